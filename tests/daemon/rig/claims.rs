//! Claims about the rig itself: a test that stands on a crooked floor proves nothing.

use super::http::ask;
use super::servers::{Weed, nginx, rclone};
use super::watch::Eyes;
use super::{Content, Fault, FaultOrigin, MIB, until, within};

const NAME: &str = "loras/a b.safetensors";
const PATH: &str = "/loras/a%20b.safetensors";

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_serves_counts_and_misbehaves_as_it_is_told() {
    within(30, async {
        let origin = FaultOrigin::start().await;
        let at = origin.address();
        let content = Content::model(1, 5000);
        origin.put(NAME, &content);
        assert_eq!(ask(&at, "GET", PATH, b"").await.expect("served").0, 200);
        assert_eq!(origin.sent(NAME), 5000);
        assert_eq!(ask(&at, "GET", "/none", b"").await.expect("served").0, 404);
        origin.fault(NAME, 1, Fault::Status(503, vec![]));
        assert_eq!(ask(&at, "GET", PATH, b"").await.expect("served").0, 503);
        assert_eq!(ask(&at, "GET", PATH, b"").await.expect("served").0, 200);
        origin.fault(NAME, 1, Fault::Reset(100));
        assert!(ask(&at, "GET", PATH, b"").await.is_err(), "a reset is an error");
        origin.forget();
        origin.fault(NAME, 1, Fault::Close(100));
        assert!(ask(&at, "GET", PATH, b"").await.is_ok(), "an early end is not");
        assert_eq!(origin.sent(NAME), 100);
    })
    .await;
}

#[test]
fn a_content_is_the_same_through_every_window_and_tiles_exactly() {
    for bytes in [4096, 5001, 3 * MIB + 17] {
        let content = Content::model(7, bytes);
        let all = content.to_vec();
        assert_eq!(all.len() as u64, bytes);
        assert_eq!(content.blake3(), blake3::hash(&all).to_hex().to_string());
        for start in [0, 2047, 2048, 3000, bytes - 1] {
            let part = content.slice(start..bytes, 100_000);
            assert!(!part.is_empty());
            assert_eq!(part, all[start as usize..start as usize + part.len()]);
        }
        let length = u64::from_le_bytes(all[..8].try_into().expect("eight bytes"));
        let header: serde_json::Value = serde_json::from_slice(&all[8..8 + length as usize]).expect("a header");
        assert_eq!(header["double_blocks.0.txt_attn.qkv.weight"]["data_offsets"][1], bytes - 8 - length);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_of_others_start_and_end() {
    within(120, async {
        let root = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(root.path().join("bucket")).expect("it can be made");
        drop(nginx("the_servers", root.path(), "").await);
        drop(rclone("the_servers", root.path()).await);
        drop(Weed::start("the_servers", "bucket").await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eyes_see_a_file_that_has_its_size_and_not_its_bytes() {
    within(30, async {
        let folder = tempfile::tempdir().expect("a folder");
        let content = Content::model(3, 4 * MIB);
        let path = folder.path().join("model.safetensors");
        content.write_to(&path);
        let eyes = Eyes::on(path.clone(), content.clone());
        until("it is looked at", 10, || async { (eyes.looks() > 0).then_some(()) }).await;
        eyes.assert_clean();

        std::fs::remove_file(&path).expect("it is there");
        let file = std::fs::File::create(&path).expect("it can be made");
        file.set_len(content.bytes()).expect("it can be sized");
        let eyes = Eyes::on(path, content);
        until("it is seen", 10, || async { eyes.has_seen_bad().then_some(()) }).await;
    })
    .await;
}
