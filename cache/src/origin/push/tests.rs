//! Claims about pushes to folders, and about which files are pushed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::*;
use crate::config::{OriginConfig, OriginKind};

fn folder_origin(path: &Path) -> Origin {
    let config = OriginConfig::new("disk", OriginKind::Folder { path: path.to_owned() });
    Origin::open(&OriginConfig { prefix: "models".to_owned(), ..config }).unwrap()
}

fn file(at: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = at.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

fn names(files: &[PushFile]) -> Vec<&str> {
    files.iter().map(|file| file.model.as_str()).collect()
}

async fn push_all(origin: &Origin, from: &Path, options: PushOptions) -> PushReport {
    push(origin, plan_push(&[from.to_owned()]).unwrap(), options, |_| ()).await.unwrap()
}

#[tokio::test]
async fn what_was_pushed_is_listed_with_its_digests_and_not_sent_twice() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let large = vec![5; 11 << 20];
    file(from.path(), "loras/a.sft", &large);
    file(from.path(), "unet/b.sft", b"");
    let origin = folder_origin(to.path());
    let events = Mutex::new(Vec::new());
    let options = PushOptions { part_bytes: 5 << 20, ..PushOptions::default() };
    let files = plan_push(&[from.path().to_owned()]).unwrap();
    let report = push(&origin, files, options, |event| events.lock().unwrap().push(event)).await.unwrap();
    assert_eq!((report.uploaded.len(), report.manifest), (2, ManifestWrite::Guarded));
    let sent: Vec<u64> = events
        .lock()
        .unwrap()
        .iter()
        .filter_map(|event| match event {
            PushProgress::Sent { model, sent, .. } if model.as_str() == "loras/a.sft" => Some(*sent),
            _ => None,
        })
        .collect();
    assert_eq!(sent, [5 << 20, 10 << 20, 11 << 20]);

    let (listed, manifest) = (origin.list().await.unwrap(), origin.manifest().await.unwrap().unwrap());
    assert_eq!(listed.len(), 2, "no hidden file is left or listed");
    let known = manifest.get(&"loras/a.sft".parse().unwrap()).unwrap();
    assert_eq!(known.blake3.unwrap().0, *blake3::hash(&large).as_bytes());
    let sha256: [u8; 32] = sha2::Digest::finalize(<sha2::Sha256 as sha2::Digest>::new_with_prefix(&large)).into();
    assert_eq!(known.sha256.unwrap().0, sha256);

    let again = push_all(&origin, from.path(), PushOptions::default()).await;
    assert_eq!((again.uploaded.len(), again.skipped.len(), again.manifest), (0, 2, ManifestWrite::Unchanged));
    let forced = push_all(&origin, from.path(), PushOptions { force: true, ..PushOptions::default() }).await;
    assert_eq!((forced.uploaded.len(), forced.manifest), (2, ManifestWrite::Unchanged));
}

#[tokio::test]
async fn other_content_and_lost_objects_are_sent_again() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    file(from.path(), "vae/a.sft", b"one");
    file(from.path(), "vae/b.sft", b"two");
    let origin = folder_origin(to.path());
    push_all(&origin, from.path(), PushOptions::default()).await;
    file(from.path(), "vae/a.sft", b"eno");
    fs::remove_file(to.path().join("models/vae/b.sft")).unwrap();
    let report = push_all(&origin, from.path(), PushOptions::default()).await;
    assert_eq!(report.uploaded.len(), 2);
    assert_eq!(fs::read(to.path().join("models/vae/a.sft")).unwrap(), b"eno");
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_at_once_lose_no_entry_of_each_other() {
    let to = tempfile::tempdir().unwrap();
    let origin = folder_origin(to.path());
    let pushes = (0..8).map(|number| {
        let origin = origin.clone();
        tokio::spawn(async move {
            let from = tempfile::tempdir().unwrap();
            file(from.path(), &format!("vae/{number}.sft"), b"x");
            push_all(&origin, from.path(), PushOptions::default()).await
        })
    });
    for push in pushes.collect::<Vec<_>>() {
        push.await.unwrap();
    }
    assert_eq!(origin.manifest().await.unwrap().unwrap().models.len(), 8);
}

#[tokio::test]
async fn a_file_that_fails_leaves_no_trace_and_the_others_are_named() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let good = PushFile { file: file(from.path(), "a.sft", b"x"), model: "vae/a.sft".parse().unwrap() };
    let gone = PushFile { file: from.path().join("gone"), model: "vae/z.sft".parse().unwrap() };
    let origin = folder_origin(to.path());
    push(&origin, vec![good.clone()], PushOptions::default(), |_| ()).await.unwrap();
    let error = push(&origin, vec![good, gone], PushOptions::default(), |_| ()).await.unwrap_err();
    assert!(matches!(error, OriginError::Local { .. }), "{error}");
    assert_eq!(origin.manifest().await.unwrap().unwrap().models.len(), 1);
    let left: Vec<_> =
        fs::read_dir(to.path().join("models/vae")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["a.sft"]);
}

#[tokio::test]
async fn http_origins_and_impossible_options_are_refused() {
    let http = OriginKind::Http { url: "http://127.0.0.1:1".to_owned(), bearer: None };
    let origin = Origin::open(&OriginConfig::new("web", http)).unwrap();
    let error = push(&origin, Vec::new(), PushOptions::default(), |_| ()).await.unwrap_err();
    assert!(matches!(error, OriginError::Unsupported(_)), "{error}");
    let to = tempfile::tempdir().unwrap();
    for options in [
        PushOptions { concurrency: 0, ..PushOptions::default() },
        PushOptions { part_bytes: 1, ..PushOptions::default() },
        PushOptions { part_bytes: u64::MAX, ..PushOptions::default() },
    ] {
        let error = push(&folder_origin(to.path()), Vec::new(), options, |_| ()).await.unwrap_err();
        assert!(matches!(error, OriginError::Config(_)), "{error}");
    }
}

#[test]
fn a_layout_is_planned_with_aliases_resolved_and_other_files_passed_over() {
    let root = tempfile::tempdir().unwrap();
    for name in
        ["unet/flux/a.safetensors", "vae/b.PT", "vae/put_vae_here", "loras/.x.sft", ".git/loras/y.sft", "notes.txt"]
    {
        file(root.path(), name, b"x");
    }
    let files = plan_push(&[root.path().to_owned()]).unwrap();
    assert_eq!(names(&files), ["diffusion_models/flux/a.safetensors", "vae/b.PT"]);
    let files = plan_push(&[root.path().join("vae")]).unwrap();
    assert_eq!(names(&files), ["vae/b.PT"], "a folder of ComfyUI's is that folder");
    let files = plan_push(&[root.path().join("vae/b.PT")]).unwrap();
    assert_eq!(names(&files), ["vae/b.PT"], "a file is named after its folder");
}

#[test]
fn what_comfyui_would_not_find_is_refused_with_a_way_out() {
    let root = tempfile::tempdir().unwrap();
    let loose = file(root.path(), "loose.sft", b"x");
    let says = |path: &Path| plan_push(&[path.to_owned()]).unwrap_err().to_string();
    assert!(says(root.path()).contains("move it into one of LLM"), "{}", says(root.path()));
    assert!(says(&loose).contains("move it into one of"));
    fs::remove_file(&loose).unwrap();
    assert!(says(root.path()).contains("nothing to push"));
    file(root.path(), "mine/x.sft", b"x");
    assert!(says(root.path()).contains("\"mine\""));
    fs::remove_dir_all(root.path().join("mine")).unwrap();
    file(root.path(), "unet/x.sft", b"x");
    file(root.path(), "diffusion_models/x.sft", b"x");
    assert!(says(root.path()).contains("would both be diffusion_models/x.sft"));
    assert!(says(&file(root.path(), "vae/x.txt", b"x")).contains("does not end as a model does"));
}
