//! Claims about our own disk: damage is caught and mended piece by piece, a full, read-only or shared folder is refused in
//! words, a clock that jumps changes nothing.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tierd::rpc::pb;
use tierd::rpc::pb::FaultKind;
use tierd::rpc::pb::occurrence::What;
use tonic::Code;

use crate::rig::client::Milliseconds;
use crate::rig::{Content, Daemon, FaultOrigin, MIB, PIECE, Settings, is_root, skip, until, within};

const FLUX: &str = "diffusion_models/flux1-schnell.safetensors";

/// A daemon that has one model of four pieces, and its origin.
async fn stored() -> (FaultOrigin, Content, Daemon) {
    let origin = FaultOrigin::start().await;
    let content = Content::model(500, 4 * PIECE - 7);
    origin.put(FLUX, &content);
    let daemon = Daemon::start(Settings::with_origin(&origin)).await;
    daemon.client().await.ready(&[FLUX]).await;
    origin.forget();
    (origin, content, daemon)
}

/// Flips a byte of a file in place.
fn flip(path: &Path, at: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).expect("root or the owner may write");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("it is that long");
    file.write_all_at(&[byte[0] ^ 0x40], at).expect("it can be written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupted_file_is_caught_at_the_next_ensure_and_only_the_bad_piece_is_fetched() {
    within(60, async {
        let (origin, content, daemon) = stored().await;
        flip(&daemon.model(FLUX), 2 * PIECE + 1000);
        daemon.client().await.ready(&[FLUX]).await;
        content.assert_is(&daemon.model(FLUX));
        let gets = origin.gets(FLUX);
        assert!(gets.iter().all(|get| get.range.start >= 2 * PIECE && get.range.end <= 3 * PIECE), "{gets:?}");
        assert_eq!(origin.sent(FLUX), PIECE, "one piece is fetched");
        let damaged = daemon
            .until_event("the damage is recorded", |event| match &event.what {
                Some(What::Damaged(damaged)) => Some(damaged.clone()),
                _ => None,
            })
            .await;
        assert_eq!((damaged.pieces_bad, damaged.models.as_slice()), (1, &[FLUX.to_owned()][..]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_left_the_times_alone_is_found_by_verify() {
    within(60, async {
        let (origin, content, daemon) = stored().await;
        let path = daemon.model(FLUX);
        let modified = std::fs::metadata(&path).and_then(|meta| meta.modified()).expect("it has times");
        flip(&path, PIECE + 5);
        let file = std::fs::File::options().write(true).open(&path).expect("it can be opened");
        file.set_modified(modified).expect("its times can be set");
        drop(file);
        let done = daemon.cli().run(&["verify", "--json"]).await;
        assert!(
            done.out.contains("\"pieces_bad\":1") || done.out.contains("\"pieces_bad\": 1"),
            "{} {}",
            done.out,
            done.err
        );
        daemon.client().await.ready(&[FLUX]).await;
        content.assert_is(&daemon.model(FLUX));
        assert_eq!(origin.sent(FLUX), PIECE, "one piece is fetched");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_cut_is_mended_from_where_it_ends() {
    within(60, async {
        let (origin, content, daemon) = stored().await;
        let file = std::fs::File::options().write(true).open(daemon.model(FLUX)).expect("it can be opened");
        file.set_len(2 * PIECE).expect("it can be cut");
        drop(file);
        daemon.client().await.ready(&[FLUX]).await;
        content.assert_is(&daemon.model(FLUX));
        assert_eq!(origin.sent(FLUX), content.bytes() - 2 * PIECE);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_was_deleted_comes_back_without_a_fetch() {
    within(60, async {
        let (origin, content, daemon) = stored().await;
        std::fs::remove_file(daemon.model(FLUX)).expect("it is there");
        daemon.client().await.ready(&[FLUX]).await;
        content.assert_is(&daemon.model(FLUX));
        assert_eq!(origin.sent(FLUX), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_file_under_a_model_name_is_never_overwritten() {
    within(60, async {
        let (origin, _content, daemon) = stored().await;
        let vae = "vae/mine.safetensors";
        let mine = Content::model(501, MIB);
        mine.write_to(&daemon.model(vae));
        origin.put(vae, &Content::model(502, 2 * MIB));
        let (kind, _, text) = daemon.client().await.ensure(&[vae]).await.fault();
        assert_eq!(kind, FaultKind::Store, "{text}");
        assert!(text.contains("vae/mine.safetensors"), "{text}");
        mine.assert_is(&daemon.model(vae));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_folder_refuses_and_the_first_goes_on() {
    within(60, async {
        let (_origin, _content, first) = stored().await;
        let mut second = Daemon::prepare(Settings::default().store_at(&first.store()));
        second.spawn();
        let status = second.ended(20).await;
        assert!(!status.success());
        let log = second.log();
        let said = log.lines().last().unwrap_or_default();
        assert!(log.contains(&first.store().display().to_string()), "the message names the folder: {said}");
        assert!(log.contains(&first.pid().to_string()), "the message names the process that holds it: {said}");
        first.client().await.ready(&[FLUX]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_socket_refuses_and_the_first_goes_on() {
    within(60, async {
        let (_origin, _content, first) = stored().await;
        let socket = format!("\"{}\"", first.socket().display());
        let mut second = Daemon::prepare(Settings::default().set("listen", "unix", &socket));
        second.spawn();
        let status = second.ended(20).await;
        assert!(!status.success());
        assert!(second.log().contains(&first.socket().display().to_string()), "{}", second.log());
        first.client().await.ready(&[FLUX]).await;
    })
    .await;
}

/// A small file system in memory, unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// Mounts one of so many bytes, or skips the test.
    fn tmpfs(test: &str, path: PathBuf, bytes: u64) -> Option<Self> {
        if !is_root() {
            skip(test, "only root can mount a small file system");
            return None;
        }
        std::fs::create_dir_all(&path).expect("it can be made");
        let options = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path).status();
        if !mounted.is_ok_and(|status| status.success()) {
            skip(test, "this root may not mount");
            return None;
        }
        Some(Self(path))
    }

    fn remount(&self, option: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(&self.0).status();
        assert!(status.expect("mount runs").success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a daemon that is being killed may hold it for a moment.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_a_typed_fault_shows_nothing_and_heals() {
    within(60, async {
        let folder = tempfile::tempdir().expect("a folder");
        let Some(disk) = Mounted::tmpfs("a_full_disk", folder.path().join("disk"), 160 * MIB) else { return };
        let origin = FaultOrigin::start().await;
        let content = Content::model(503, 80 * MIB);
        origin.put(FLUX, &content);
        let settings =
            Settings::with_origin(&origin).store_at(&disk.0.join("store")).set("store", "budget", "\"150 MiB\"");
        let daemon = Daemon::start(settings).await;
        let client = daemon.client().await;

        let filler = disk.0.join("somebody-elses-file");
        std::fs::write(&filler, vec![1; 120 << 20]).expect("there is room");
        let (kind, code, text) = client.ensure(&[FLUX]).await.fault();
        assert!(matches!(kind, FaultKind::DiskFull | FaultKind::NoRoom), "{kind:?} {text}");
        assert_eq!(code, Code::ResourceExhausted);
        assert!(!daemon.model(FLUX).exists());
        daemon.cli().run(&["ensure", FLUX]).await.assert_code(4);
        let node = client.node().await;
        assert_eq!(
            node.tiers.iter().map(|tier| tier.reserved_bytes).sum::<u64>(),
            0,
            "what was reserved is given back"
        );

        std::fs::remove_file(&filler).expect("it is there");
        until("it fits again", 5, || async { client.ensure(&[FLUX]).await.ready }).await;
        content.assert_is(&daemon.model(FLUX));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_folder_is_refused_at_the_start_in_words() {
    within(60, async {
        let folder = tempfile::tempdir().expect("a folder");
        let Some(disk) = Mounted::tmpfs("a_read_only_folder", folder.path().join("disk"), 16 * MIB) else { return };
        disk.remount("ro");
        let mut daemon = Daemon::prepare(Settings::default().store_at(&disk.0.join("store")));
        daemon.spawn();
        let status = daemon.ended(20).await;
        assert!(!status.success());
        let log = daemon.log();
        assert!(log.contains(&disk.0.display().to_string()) && log.to_lowercase().contains("read-only"), "{log}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unwritable_folder_is_refused_at_the_start_in_words() {
    within(60, async {
        let folder = tempfile::tempdir().expect("a folder");
        // Root may write everywhere, but nobody can make a folder in a file.
        let file = folder.path().join("a-file");
        std::fs::write(&file, "not a folder").expect("it can be written");
        let mut daemon = Daemon::prepare(Settings::default().store_at(&file.join("store")));
        daemon.spawn();
        assert!(!daemon.ended(20).await.success());
        assert!(daemon.log().contains(&file.display().to_string()), "{}", daemon.log());
        assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_ends_no_lease_and_no_download() {
    within(60, async {
        let test = "a_clock_that_jumps";
        let triple = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH);
        if !Path::new(&triple).exists() {
            return skip(test, "libfaketime is not installed (tests/setup.sh installs it)");
        }
        let origin = FaultOrigin::start().await;
        let content = Content::model(504, 12 * MIB);
        origin.put(FLUX, &content);
        origin.allow(MIB);
        let folder = tempfile::tempdir().expect("a folder");
        let clock = folder.path().join("clock");
        let jump = |to: &str| {
            // In one step, so that no half of it is read.
            std::fs::write(folder.path().join("next"), format!("{to}\n")).expect("it can be written");
            std::fs::rename(folder.path().join("next"), &clock).expect("it can be renamed");
        };
        jump("+0");
        let settings = Settings::with_origin(&origin)
            .env("LD_PRELOAD", &triple)
            .env("FAKETIME_TIMESTAMP_FILE", &clock.display().to_string())
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let daemon = Daemon::start(settings).await;
        let client = daemon.client().await;
        let caller = tokio::spawn({
            let client = client.clone();
            async move { client.ready(&[FLUX]).await }
        });
        origin.until_sent(FLUX, MIB, 20).await;
        client.pin(&[FLUX], "launcher", Milliseconds(3_600_000)).await.expect("pinned");

        jump("+40d");
        let request = pb::RefreshRequest::default();
        client.cache.clone().refresh(request).await.expect("the daemon goes on");
        assert_eq!(client.node().await.leases, 1, "an hour has not passed");
        jump("-40d");
        let short = client.pin(&[FLUX], "short", Milliseconds(600)).await.expect("pinned");
        origin.heal();
        caller.await.expect("the download ends well");
        content.assert_is(&daemon.model(FLUX));
        until("the short lease ends although the clock went back", 10, || async {
            let leases = client.cache.clone().list_leases(pb::ListLeasesRequest::default()).await.expect("it answers");
            (!leases.into_inner().leases.iter().any(|lease| lease.lease == short.lease)).then_some(())
        })
        .await;
        assert_eq!(client.node().await.leases, 1, "the long one stays");
    })
    .await;
}
