//! Claims about TLS: certificates that are renewed under a running daemon, and what a client's certificate is good for.

use tierd::rpc::pb;
use tonic::Code;

use crate::rig::pki::{Authority, Pair, Remote};
use crate::rig::{Daemon, Settings, free_port, until, within};

fn pin() -> pb::PinRequest {
    let models = vec!["vae/ae.safetensors".to_owned()];
    pb::PinRequest { models, owner: "test".to_owned(), ..pb::PinRequest::default() }
}

fn evict() -> pb::EvictRequest {
    pb::EvictRequest { models: vec!["vae/ae.safetensors".to_owned()], ..pb::EvictRequest::default() }
}

/// A daemon with these files that listens on TCP with TLS, and its port.
async fn serving(pair: &Pair, more: impl FnOnce(Settings) -> Settings, files: &[(&str, &str)]) -> (Daemon, u16) {
    let port = free_port();
    let settings = Settings::default()
        .set("listen.tcp", "address", &format!("\"127.0.0.1:{port}\""))
        .set("listen.tcp.tls", "certificate", "\"server.pem\"")
        .set("listen.tcp.tls", "key", "\"server.key\"");
    let mut daemon = Daemon::prepare(more(settings));
    daemon.put("server.pem", &pair.certificate);
    daemon.put("server.key", &pair.key);
    files.iter().for_each(|(name, text)| drop(daemon.put(name, text)));
    daemon.restart().await;
    (daemon, port)
}

/// Whether a call got past the gate: there is no such model, which only the engine knows.
fn passes(answer: Result<(), tonic::Status>) -> bool {
    answer.map_or_else(|status| status.code(), |()| Code::Ok) != Code::PermissionDenied
}

async fn answers(client: &Remote) -> bool {
    client.node.clone().get_node(pb::GetNodeRequest {}).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_used_without_a_restart_and_a_bad_one_changes_nothing() {
    within(60, async {
        let (old, new) = (Authority::new(), Authority::new());
        let (first, second) = (old.pair("node", Some("localhost")), new.pair("node", Some("localhost")));
        let (daemon, port) = serving(&first, |settings| settings, &[]).await;
        let early = old.connect(port, None).await.expect("the first certificate is of this authority");
        assert!(answers(&early).await && new.connect(port, None).await.is_err());

        // A pair that does not fit together, as between the two writes of a renewal: said once, and nothing changes.
        daemon.put("server.pem", &second.certificate);
        until("the daemon says that the pair does not work", 20, || async {
            daemon.log().contains("the new certificate does not work").then_some(())
        })
        .await;
        assert!(old.connect(port, None).await.is_ok(), "the old pair goes on");
        daemon.put("server.pem", "no certificate at all");
        daemon.put("server.key", "");
        assert!(old.connect(port, None).await.is_ok());

        daemon.put("server.key", &second.key);
        daemon.put("server.pem", &second.certificate);
        let late = until("the new certificate is in force", 20, || async { new.connect(port, None).await.ok() }).await;
        assert!(answers(&late).await && old.connect(port, None).await.is_err());
        assert!(answers(&early).await, "a connection that was there goes on");
        assert!(!daemon.log().contains("PRIVATE KEY"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_certificates_have_the_role_of_their_name() {
    within(60, async {
        let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
        let more = |settings: Settings| {
            settings
                .set("listen.tcp.tls", "client_ca", "\"clients.pem\"")
                .set("listen.tcp.tls", "client_role", "\"read\"")
                .caller("name = \"scheduler\"\nrole = \"ensure\"\ncertificate = \"scheduler.example\"")
                .caller("name = \"ops\"\nrole = \"admin\"\ncertificate = \"Ops of \\\"Ü\\\"\"")
        };
        let files = [("clients.pem", clients.pem())];
        let (_daemon, port) = serving(&servers.pair("node", Some("localhost")), more, &files).await;
        let roles = [
            ("Ops of \"Ü\"", None, true, true),
            ("anything", Some("scheduler.example"), true, false),
            ("anything", Some("xscheduler.example"), false, false),
        ];
        for (common, dns, may_pin, may_evict) in roles {
            let own = clients.pair(common, dns);
            let mut client = servers.connect(port, Some(&own)).await.expect("a certificate of the right authority");
            assert!(answers(&client).await, "{common} {dns:?} may read");
            let pinned = passes(client.cache.pin(pin()).await.map(drop));
            let evicted = passes(client.cache.evict(evict()).await.map(drop));
            assert_eq!((pinned, evicted), (may_pin, may_evict), "{common} {dns:?}");
            if !may_evict {
                let status = client.cache.evict(evict()).await.expect_err("denied");
                assert!(status.message().contains("Evict needs the role admin"), "{status}");
            }
        }
        let forged = strangers.pair("Ops of \"Ü\"", Some("scheduler.example"));
        for own in [None, Some(&forged)] {
            // TLS 1.3 tells a client of its refusal with the first answer.
            let refused = match servers.connect(port, own).await {
                Ok(client) => !answers(&client).await,
                Err(_) => true,
            };
            assert!(refused, "a certificate of another authority, or none, opens nothing");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_token_is_asked_for_too_both_are_needed_and_the_lesser_role_counts() {
    within(60, async {
        let (servers, clients) = (Authority::new(), Authority::new());
        let more = |settings: Settings| {
            settings
                .set("listen.tcp", "token_file", "\"token\"")
                .set("listen.tcp.tls", "client_ca", "\"clients.pem\"")
                .set("listen.tcp.tls", "client_role", "\"ensure\"")
        };
        let files = [("clients.pem", clients.pem()), ("token", "s3cret\n")];
        let (_daemon, port) = serving(&servers.pair("node", Some("localhost")), more, &files).await;
        let mut client = servers.connect(port, Some(&clients.pair("any", None))).await.expect("connects");
        let bare = client.cache.pin(pin()).await.expect_err("no token");
        assert_eq!(bare.code(), Code::Unauthenticated);
        fn bearing<T>(message: T) -> tonic::Request<T> {
            let mut request = tonic::Request::new(message);
            request.metadata_mut().insert("authorization", "Bearer s3cret".parse().expect("ascii"));
            request
        }
        assert!(passes(client.cache.pin(bearing(pin())).await.map(drop)), "ensure may pin");
        let status =
            client.cache.evict(bearing(evict())).await.expect_err("an admin's token over a lesser certificate");
        assert_eq!(status.code(), Code::PermissionDenied);
    })
    .await;
}
