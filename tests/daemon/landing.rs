//! The claim that what arrives for RAM is kept as it passes: no second read of the disk.

use tierd::rpc::pb;

use crate::ram::{BYTES, NAMES, assert_locked, may_lock, read_from_disk, settings};
use crate::rig::http::ask;
use crate::rig::{Daemon, MIB, free_port, until, within};

/// How often a set is fetched to see what of it is read back.
const ROUNDS: u64 = 5;
/// What may be read from the disk beside what was not kept: pages of the daemon's program that others' needs evicted meanwhile. Less
/// than the smallest thing that would be read twice, a model.
const STRAY_READS: u64 = BYTES / 2;

#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_for_ram_is_held_when_it_is_ready_and_what_is_kept_is_not_read_back() {
    if !may_lock("what_arrives_for_ram_is_held_when_it_is_ready_and_what_is_kept_is_not_read_back") {
        return;
    }
    within(120, async {
        let (_origin, settings) = settings(4).await;
        let address = format!("127.0.0.1:{}", free_port());
        let daemon = Daemon::start(settings.set("listen", "http", &format!("\"{address}\""))).await;
        let client = daemon.client().await;
        // The first time, the daemon's own program is read from the disk as well.
        client.ready_in_ram(&NAMES[3..]).await;
        let mut kept_whole = 0;
        for _ in 0..ROUNDS {
            let before =
                (read_from_disk(daemon.pid()), landed(&address, "through").await, landed(&address, "behind").await);
            let ready = client.ready_in_ram(&NAMES[..3]).await;
            assert_eq!(ready.bytes_fetched, 3 * BYTES);
            assert_locked(daemon.pid(), 4 * BYTES).await;
            let read = read_from_disk(daemon.pid()) - before.0;
            let through = landed(&address, "through").await - before.1;
            let behind = landed(&address, "behind").await - before.2;
            println!("of {} MiB, {} were kept, {} were read", 3 * BYTES / MIB, through / MIB, read / MIB);
            // A request that stalls is made again, and what it brought lands twice.
            assert!(through + behind >= 3 * BYTES, "every byte lands one way or the other");
            assert!(read <= behind + STRAY_READS, "{} MiB were read, {} were not kept", read / MIB, behind / MIB);
            kept_whole += u64::from(behind == 0);
            let again = client.ready_in_ram(&NAMES[..3]).await;
            assert!(again.models.iter().all(|model| model.from() == pb::Tier::Ram), "a hit in RAM: {again:?}");
            client.demote(&NAMES[..3]).await.expect("the call is good");
            client.evict(&NAMES[..3]).await.expect("the call is good");
            // Pages on their way out still count: with room for four models, the next round's would find none to land in.
            let given_back = || async { (client.tier(pb::Tier::Ram).await.used_bytes == BYTES).then_some(()) };
            until("the pages are given back", 10, given_back).await;
        }
        // Memory that was used a moment ago is cheap everywhere, so that all is kept: but for what other tests took of it.
        println!("all was kept in {kept_whole} of {ROUNDS} rounds");
    })
    .await;
}

/// Bytes that landed for RAM this way so far, by the daemon's count.
async fn landed(address: &str, way: &str) -> u64 {
    let (status, body) = ask(address, "GET", "/metrics", b"").await.expect("it listens");
    assert_eq!(status, 200);
    let name = format!("tierd_ram_landed_bytes_total{{way=\"{way}\"}} ");
    body.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse().ok()).unwrap_or(0)
}
