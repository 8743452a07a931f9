//! Claims about who may do what: tokens, users of the Unix socket, and the limits of one client.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use tierd::rpc::pb;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::rig::pki::Remote;
use crate::rig::{Cli, Daemon, Settings, free_port, is_root, within};

/// A user and a group that own nothing.
const NOBODY: u32 = 65_534;

#[tokio::test(flavor = "multi_thread")]
async fn each_token_opens_what_its_role_may_and_the_command_line_says_what_is_missing() {
    within(60, async {
        let port = free_port();
        let settings = Settings::default()
            .set("listen.tcp", "address", &format!("\"127.0.0.1:{port}\""))
            .set("listen.tcp", "token_file", "\"admin\"")
            .caller("name = \"metrics\"\nrole = \"read\"\ntoken_file = \"read\"")
            .caller("name = \"launcher\"\nrole = \"ensure\"\ntoken_env = \"LAUNCHER\"")
            .env("LAUNCHER", "ensure-token");
        let mut daemon = Daemon::prepare(settings);
        daemon.put("admin", "admin-token\n");
        daemon.put("read", "read-token\n");
        daemon.restart().await;
        let cli = Cli::at(&format!("http://127.0.0.1:{port}"), &daemon.config());
        let as_who = |token: &str| cli.clone().env("TIERD_TOKEN", token);
        for (token, may_pin, may_evict) in
            [("admin-token", true, true), ("ensure-token", true, false), ("read-token", false, false)]
        {
            let cli = as_who(token);
            assert_eq!(cli.run(&["status"]).await.code, 0, "{token} may ask");
            let pinned = cli.run(&["pin", "vae/x.safetensors", "--owner", "test"]).await;
            let evicted = cli.run(&["evict", "vae/x.safetensors"]).await;
            let is_denied = |text: &str| text.contains("needs the role");
            assert_eq!((!is_denied(&pinned.err), !is_denied(&evicted.err)), (may_pin, may_evict), "{token}");
            if !may_evict {
                assert!(evicted.code != 0 && evicted.err.contains("Evict needs the role admin"), "{}", evicted.err);
            }
        }
        for cli in [as_who("nobody's"), cli] {
            let done = cli.run(&["status"]).await;
            assert!(done.code != 0 && done.err.contains("oken"), "{} {}", done.code, done.err);
        }
        let log = daemon.log();
        assert!(!log.contains("-token"), "a token is in the log");
    })
    .await;
}

/// The command line as another user, over the daemon's socket.
fn as_nobody(daemon: &Daemon, args: &[&str]) -> (i32, String) {
    let binary = daemon.dir().join("tierd-cli");
    // Where the build folder is closed to others; a link costs nothing.
    if std::fs::hard_link(env!("CARGO_BIN_EXE_tierd"), &binary).is_err() && !binary.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_tierd"), &binary).expect("copied");
    }
    let mut command = Command::new(&binary);
    command.args(args).env_clear().env("TIERD_SOCKET", daemon.socket()).uid(NOBODY).gid(NOBODY);
    let output = command.output().expect("it starts");
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_the_socket_have_the_role_that_the_configuration_gives_them() {
    if !is_root() {
        return crate::rig::skip("users_of_the_socket", "only root can be somebody else");
    }
    within(60, async {
        let mut daemon = Daemon::start(Settings::default()).await;
        let open = |daemon: &Daemon| {
            for (path, mode) in [(daemon.dir().to_owned(), 0o755), (daemon.socket(), 0o666)] {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
            }
        };
        let denied = |daemon: &Daemon, args: &[&str]| as_nobody(daemon, args).1.contains("needs the role");
        open(&daemon);
        assert!(!denied(&daemon, &["evict", "vae/x"]), "who may open the socket may do everything, by default");
        for (role, may_read, may_pin) in [("none", false, false), ("read", true, false), ("ensure", true, true)] {
            daemon.stop().await;
            daemon.settings(|settings| settings.set("listen", "socket_role", &format!("\"{role}\"")));
            daemon.restart().await;
            open(&daemon);
            let (code, text) = as_nobody(&daemon, &["status"]);
            assert_eq!(code == 0, may_read, "{role}: {text}");
            assert!(may_read || text.contains("listen.socket_role lets nobody else in"), "{text}");
            if may_read {
                assert_eq!(!denied(&daemon, &["pin", "vae/x", "--owner", "t"]), may_pin, "{role}");
                assert!(denied(&daemon, &["evict", "vae/x"]), "{role}");
            }
            assert_eq!(daemon.cli().run(&["status"]).await.code, 0, "the daemon's own user is always admin");
        }
        daemon.stop().await;
        daemon.settings(|settings| settings.caller(&format!("name = \"ops\"\nrole = \"admin\"\ngid = {NOBODY}")));
        daemon.restart().await;
        open(&daemon);
        assert!(!denied(&daemon, &["evict", "vae/x"]), "a caller of its own goes before the role of the others");
    })
    .await;
}

async fn get_node(client: &Remote) -> Result<(), Status> {
    client.node.clone().get_node(pb::GetNodeRequest {}).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_at_its_limit_is_told_when_to_come_back_and_others_are_served() {
    within(60, async {
        let port = free_port();
        let settings = Settings::default()
            .set("listen", "client_requests_max", "2")
            .set("listen.tcp", "address", &format!("\"127.0.0.1:{port}\""))
            .set("listen.tcp", "token_file", "\"token\"");
        let mut daemon = Daemon::prepare(settings);
        daemon.put("token", "t");
        daemon.restart().await;
        let local = daemon.client().await;
        let request = || pb::WatchRequest::default();
        let first = local.node.clone().watch(request()).await.expect("the first");
        let _second = local.node.clone().watch(request()).await.expect("the second");
        let status = local.node.clone().get_node(pb::GetNodeRequest {}).await.expect_err("the third");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.message().contains("listen.client_requests_max (2)"), "{status}");
        assert!(status.get_error_details().retry_info().is_some_and(|info| info.retry_delay.is_some()));
        let done = Cli::at(&format!("http://127.0.0.1:{port}"), &daemon.config()).env("TIERD_TOKEN", "t");
        assert_eq!(done.run(&["status"]).await.code, 0, "another client is served");
        drop(first);
        crate::rig::until("its place comes back", 10, || async {
            local.node.clone().get_node(pb::GetNodeRequest {}).await.ok()
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_too_often_is_told_how_long_to_wait() {
    within(60, async {
        let daemon = Daemon::start(Settings::default().set("listen", "client_rate_max", "20")).await;
        let client = daemon.client().await;
        let mut refused = None;
        for _ in 0..200 {
            if let Err(status) = client.node.clone().get_node(pb::GetNodeRequest {}).await {
                refused = Some(status);
                break;
            }
        }
        let status = refused.expect("two hundred calls take less than nine seconds");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        let wait = status.get_error_details().retry_info().and_then(|info| info.retry_delay).expect("it is told");
        assert!(wait.as_millis() <= 50, "{wait:?}");
        crate::rig::until("the wait is enough", 10, || async {
            client.node.clone().get_node(pb::GetNodeRequest {}).await.ok()
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_too_large_or_have_too_many_headers_are_refused_and_cost_nothing_else() {
    within(60, async {
        let port = free_port();
        let settings = Settings::default().set("listen", "message_bytes_max", "\"64 KiB\"").set(
            "listen.tcp",
            "address",
            &format!("\"127.0.0.1:{port}\""),
        );
        let daemon = Daemon::start(settings).await;
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("an address");
        let client = Remote::over(endpoint.connect().await.expect("it listens"));
        let models =
            |count: usize| pb::PrefetchRequest { models: vec!["vae/x".repeat(20); count], ..Default::default() };
        let status = client.cache.clone().prefetch(models(2000)).await.expect_err("200 KB");
        assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status}");
        let mut request = tonic::Request::new(pb::GetNodeRequest {});
        for at in 0..40 {
            let key = tonic::metadata::AsciiMetadataKey::from_bytes(format!("x-{at}").as_bytes()).expect("a key");
            request.metadata_mut().insert(key, "v".repeat(1000).parse().expect("ascii"));
        }
        let status = client.node.clone().get_node(request).await.expect_err("40 KB of headers");
        println!("headers: {status}");
        let client =
            Remote::over(Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("an address").connect_lazy());
        get_node(&client).await.expect("the daemon goes on");
        drop(daemon);
    })
    .await;
}
