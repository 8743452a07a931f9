//! Claims about an origin that is a folder.

use std::fs;
use std::path::Path;

use super::{all, open};
use crate::config::{OriginConfig, OriginKind};
use crate::engine::view::OriginState;
use crate::ids::ModelKey;
use crate::origin::{Origin, OriginError};

fn origin(path: &Path) -> Origin {
    open(&OriginConfig::new("disk", OriginKind::Folder { path: path.to_owned() }))
}

fn write(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn models_are_listed_located_and_read_under_odd_names() {
    let root = tempfile::tempdir().unwrap();
    let names = ["loras/a b+c%20#?&ü.safetensors", "vae/sub/x.sft"];
    for name in names {
        write(root.path(), name, name.as_bytes());
    }
    write(root.path(), "vae/readme.txt", b"x");
    write(root.path(), "vae/.hidden.sft", b"x");
    let origin = origin(root.path());
    let listed = origin.list().await.unwrap();
    let keys: Vec<&str> = listed.iter().map(|listed| listed.model.as_str()).collect();
    assert_eq!(keys, names);
    for listed in &listed {
        assert_eq!(origin.locate(&listed.model).await.unwrap().as_ref(), Some(listed));
        let end = listed.bytes;
        let body = origin.read(&listed.path, 3..end, end, &listed.validator).await.unwrap();
        assert_eq!(all(body).await.unwrap(), listed.path.as_bytes()[3..]);
    }
    assert_eq!(origin.health().state, OriginState::Up);
}

#[tokio::test]
async fn a_large_file_comes_in_order() {
    let root = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    write(root.path(), "vae/x.sft", &bytes);
    let origin = origin(root.path());
    let listed = origin.list().await.unwrap().remove(0);
    let body = origin.read(&listed.path, 5..2_999_999, listed.bytes, &listed.validator).await.unwrap();
    assert_eq!(all(body).await.unwrap(), bytes[5..2_999_999]);
}

#[tokio::test]
async fn a_rewritten_file_is_noticed_before_and_during_a_read() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "vae/x.sft", &[1; 3 << 20]);
    let origin = origin(root.path());
    let listed = origin.list().await.unwrap().remove(0);
    let mut body = origin.read_whole(&listed.path, listed.bytes, &listed.validator).await.unwrap();
    body.next().await.unwrap().unwrap();
    fs::File::options()
        .write(true)
        .open(root.path().join("vae/x.sft"))
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
    let error = all(body).await.unwrap_err();
    assert!(matches!(error, OriginError::Changed { .. }), "{error}");
    let error = origin.read(&listed.path, 0..1, listed.bytes, &listed.validator).await.unwrap_err();
    assert!(matches!(error, OriginError::Changed { .. }), "{error}");
}

#[tokio::test]
async fn a_file_cut_short_is_truncated() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "vae/x.sft", &[1; 3 << 20]);
    let origin = origin(root.path());
    let listed = origin.list().await.unwrap().remove(0);
    let mut body = origin.read_whole(&listed.path, listed.bytes, &listed.validator).await.unwrap();
    body.next().await.unwrap().unwrap();
    fs::File::options().write(true).open(root.path().join("vae/x.sft")).unwrap().set_len(1 << 20).unwrap();
    let error = all(body).await.unwrap_err();
    assert!(matches!(error, OriginError::Truncated { .. }), "{error}");
}

#[tokio::test]
async fn nothing_outside_of_the_folder_is_ever_read() {
    let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(outside.path(), "secret.sft", b"secret");
    write(root.path(), "vae/real.sft", b"real");
    std::os::unix::fs::symlink(outside.path().join("secret.sft"), root.path().join("vae/out.sft")).unwrap();
    std::os::unix::fs::symlink(outside.path(), root.path().join("loras")).unwrap();
    std::os::unix::fs::symlink("real.sft", root.path().join("vae/in.sft")).unwrap();
    let origin = origin(root.path());
    let listed = origin.list().await.unwrap();
    let keys: Vec<&str> = listed.iter().map(|listed| listed.model.as_str()).collect();
    assert_eq!(keys, ["vae/in.sft", "vae/real.sft"]);
    for key in ["vae/out.sft", "loras/secret.sft"] {
        assert_eq!(origin.locate(&ModelKey::parse(key).unwrap()).await.unwrap(), None, "{key}");
    }
    for path in ["../secret.sft", "/etc/passwd", "vae/../../secret.sft", ""] {
        let error = origin.read(path, 0..1, 1, &Default::default()).await.unwrap_err();
        assert!(matches!(error, OriginError::NotFound { .. }), "{path}: {error}");
    }
}

#[tokio::test]
async fn a_missing_folder_is_an_error_and_not_an_empty_one() {
    let root = tempfile::tempdir().unwrap();
    let origin = origin(&root.path().join("not-mounted"));
    assert!(matches!(origin.list().await, Err(OriginError::Local { .. })));
    assert_eq!(origin.health().state, OriginState::Down);
}
