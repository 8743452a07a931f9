//! Claims about clients that go without a word: stopped, cut off, or never there in the first place. None keeps its connection.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileTypeExt;
use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use crate::rig::{Daemon, Settings, assert_within, free_port, until, within};

/// What opens an HTTP/2 connection: the preface, and settings that change nothing.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// How long a peer that is gone may keep its connection.
const GONE_MAX: Duration = Duration::from_secs(60);

/// Sockets that a process has open.
fn sockets(pid: u32) -> usize {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").flatten();
    files.filter(|file| std::fs::metadata(file.path()).is_ok_and(|meta| meta.file_type().is_socket())).count()
}

/// A process that does not outlive its test.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_gone_without_a_word_are_let_go_within_a_minute() {
    within(90, async {
        let address = format!("127.0.0.1:{}", free_port());
        let settings = Settings::default().set("listen.tcp", "address", &format!("\"{address}\""));
        let daemon = Daemon::start(settings).await;
        let alive = daemon.client().await;
        // Those that asked whether it is ready have left.
        let mut own = usize::MAX;
        until("only its own sockets are left", 20, || {
            let now = sockets(daemon.pid());
            let same = std::mem::replace(&mut own, now) == now;
            async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                same.then_some(())
            }
        })
        .await;

        let (tcp, socket) = (|| TcpStream::connect(&address), daemon.socket());
        // They say nothing, half a word, half a question, or that they speak HTTP/2; and nothing more, and never read.
        let mut silent = Vec::new();
        for word in [b"".as_slice(), b"PRI * HT", b"GET /comfy/v1/absent HTTP/1.1\r\nHost: t\r\n", HTTP2] {
            let (mut here, mut there) =
                (UnixStream::connect(&socket).await.expect("it listens"), tcp().await.expect("it listens"));
            here.write_all(word).await.expect("there is room");
            there.write_all(word).await.expect("there is room");
            silent.push((here, there));
        }
        // A whole client, stopped while it follows.
        let mut follower = Stopped(daemon.cli().spawn(&["events", "--follow"]));
        until("all are connected", 20, || async { (sockets(daemon.pid()) == own + 9).then_some(()) }).await;
        let mut told = String::new();
        let output = follower.0.stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut told).expect("it tells what happened so far");
        assert!(!told.is_empty(), "it follows nothing");
        kill_process(Pid::from_child(&follower.0), Signal::STOP).expect("it is our child");
        let begun = Instant::now();
        until("all were let go", 70, || async { (sockets(daemon.pid()) == own).then_some(()) }).await;
        assert_within(begun.elapsed(), GONE_MAX, "letting them go");
        drop(silent);

        // One that lives and has nothing to say was among those that stayed.
        alive.node().await;
        assert_eq!(sockets(daemon.pid()), own);
    })
    .await;
}
