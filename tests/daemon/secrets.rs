//! Claims about what must not get out: secrets in what the daemon and its command line print, and files that others may read.

use std::os::unix::fs::PermissionsExt;

use crate::rig::{Content, Daemon, FaultOrigin, MIB, Settings, free_port, within};

/// Part of every secret.
const MARK: &str = "hunter2";

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_printed_logged_or_told_whatever_is_asked_for() {
    within(90, async {
        let origin = FaultOrigin::start().await;
        let (tcp, http) = (free_port(), free_port());
        let settings = Settings::default()
            .set("log", "filter", "\"trace\"")
            .set("listen", "http", &format!("\"127.0.0.1:{http}\""))
            .set("listen.tcp", "address", &format!("\"127.0.0.1:{tcp}\""))
            .set("listen.tcp", "token_file", "\"token\"")
            .caller("name = \"a\"\nrole = \"read\"\ntoken_env = \"CALLER\"")
            .set("fleet", "nats", "\"nats://127.0.0.1:1\"")
            .set("fleet", "token_env", "\"NATS\"")
            .origin(&format!("name = \"web\"\nkind = \"http\"\nurl = \"{}\"\nbearer_file = \"bearer\"", origin.url()))
            .origin(
                "name = \"s3\"\nkind = \"s3\"\nbucket = \"b\"\nendpoint = \"http://127.0.0.1:1\"\naccess_key_id = \"AK\"\n\
                 secret_access_key_file = \"key\"\nsession_token_env = \"SESSION\"\nconnect_timeout = \"1s\"",
            )
            .env("CALLER", &format!("{MARK}-caller"))
            .env("NATS", &format!("{MARK}-nats"))
            .env("SESSION", &format!("{MARK}-session"));
        let mut daemon = Daemon::prepare(settings);
        for name in ["token", "bearer", "key"] {
            daemon.put(name, &format!("{MARK}-{name}\n"));
        }
        origin.put("vae/x.safetensors", &Content::model(3, MIB));
        daemon.restart().await;
        let mut said = String::new();
        let cli = daemon.cli();
        let vars = [("CALLER", "caller"), ("NATS", "nats"), ("SESSION", "session")];
        let with = vars.iter().fold(cli.clone(), |cli, (name, value)| cli.env(name, &format!("{MARK}-{value}")));
        let commands: [&[&str]; 7] = [
            &["check-config"],
            &["doctor"],
            &["status", "--json"],
            &["ensure", "vae/x.safetensors"],
            &["ensure", "vae/absent.safetensors"],
            &["refresh"],
            &["events", "--json"],
        ];
        for command in commands {
            let done = with.run(command).await;
            said.push_str(&format!("{command:?}\n{}\n{}\n", done.out, done.err));
        }
        assert!(said.contains("is set (not shown)"), "{said}");
        let wrong = crate::rig::Cli::at(&format!("http://127.0.0.1:{tcp}"), &daemon.config());
        said.push_str(&wrong.env("TIERD_TOKEN", &format!("{MARK}-wrong")).run(&["status"]).await.err);
        for path in ["/", "/metrics", "/readyz"] {
            let answer = crate::rig::http::ask(&format!("127.0.0.1:{http}"), "GET", path, b"").await.expect("it listens");
            said.push_str(&answer.1);
        }
        assert_eq!(daemon.stop().await.code(), Some(0));
        let log = daemon.log();
        assert!(log.contains("TRACE"), "the filter lets everything through");
        let leaks: Vec<&str> = said.lines().chain(log.lines()).filter(|line| line.contains(MARK)).collect();
        assert!(leaks.is_empty(), "{leaks:#?}");
        let kept = daemon.files("").keys().filter(|path| std::fs::read(path).is_ok_and(|bytes| holds(&bytes))).count();
        assert_eq!(kept, 0, "a secret is in the store");
    })
    .await;
}

fn holds(bytes: &[u8]) -> bool {
    bytes.windows(MARK.len()).any(|window| window == MARK.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_in_the_store_is_for_others_whatever_the_umask() {
    within(60, async {
        let origin = FaultOrigin::start().await;
        origin.put("vae/x.safetensors", &Content::model(4, 9 * MIB));
        let mut daemon = Daemon::prepare(Settings::with_origin(&origin));
        daemon.wrapper = ["sh", "-c", "umask 000; exec \"$@\"", "sh"].map(str::to_owned).to_vec();
        daemon.restart().await;
        let client = daemon.client().await;
        client.ready(&["vae/x.safetensors"]).await;
        assert_eq!(daemon.stop().await.code(), Some(0));
        let mut folders = vec![daemon.store()];
        let mut seen = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).expect("ours").flatten() {
                let found = entry.metadata().expect("ours");
                let mode = found.permissions().mode() & 0o7777;
                seen += 1;
                if found.is_dir() {
                    assert_eq!(mode & !0o750, 0, "{} is {mode:o}", entry.path().display());
                    folders.push(entry.path());
                } else if found.is_file() {
                    assert_eq!(mode & !0o640, 0, "{} is {mode:o}", entry.path().display());
                }
            }
        }
        assert!(seen >= 8, "only {seen} things are there");
    })
    .await;
}
