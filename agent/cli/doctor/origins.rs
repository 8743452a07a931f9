//! Whether origins answer: what the daemon says, or one question to each.

use std::time::Duration;

use futures_util::future::join_all;
use tierd_cache::config::{OriginConfig, OriginKind};
use tierd_cache::origin::Origin;

use super::Finding;
use crate::rpc::pb;

/// Longest wait for one origin. Longer than a handshake that loses two packets, shorter than a person's patience.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// What the daemon says of an origin.
pub(super) fn told(origin: &pb::OriginStatus) -> Finding {
    let name = &origin.origin;
    match origin.state() {
        pb::OriginState::Up => Finding::good("origin", format!("{name} is up, with {} models", origin.models)),
        pb::OriginState::Unknown | pb::OriginState::Unspecified => {
            Finding::note("origin", format!("{name} was not asked yet"), "")
        }
        pb::OriginState::Throttled => Finding::note("origin", format!("{name} asks to wait: {}", origin.detail), ""),
        pb::OriginState::Down => {
            Finding::wrong("origin", format!("{name} is down: {}", origin.detail), format!("check {}", origin.address))
        }
    }
}

/// Asks every origin for its manifest: one small read that needs the address, the way there and the credentials.
pub(super) async fn try_all(origins: &[OriginConfig]) -> Vec<Finding> {
    join_all(origins.iter().map(try_one)).await
}

async fn try_one(config: &OriginConfig) -> Finding {
    let name = &config.name;
    let wrong = |why: String| {
        let change = format!("check origin[{name}] in the configuration");
        Finding::wrong("origin", format!("{name} is not reachable: {why}"), change)
    };
    if let OriginKind::Folder { path } = &config.kind
        && let Err(error) = std::fs::read_dir(path)
    {
        return wrong(format!("{}: {error}", path.display()));
    }
    let origin = match Origin::open(config) {
        Ok(origin) => origin,
        Err(error) => return wrong(error.to_string()),
    };
    match tokio::time::timeout(ANSWER_WAIT, origin.manifest()).await {
        Ok(Ok(Some(manifest))) => {
            Finding::good("origin", format!("{name} answers, with a manifest of {} models", manifest.models.len()))
        }
        Ok(Ok(None)) => Finding::good("origin", format!("{name} answers; it has no manifest")),
        Ok(Err(error)) => wrong(error.to_string()),
        Err(_) => wrong(format!("no answer within {} s", ANSWER_WAIT.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[tokio::test]
    async fn origins_that_are_not_there_are_wrong_and_a_folder_is_good() {
        let folder = tempfile::tempdir().expect("a folder");
        // A port that was free a moment ago: nobody listens.
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
        let url = format!("http://{port}");
        let origins = [
            OriginConfig::new("here", OriginKind::Folder { path: folder.path().to_owned() }),
            OriginConfig::new("gone", OriginKind::Folder { path: folder.path().join("gone") }),
            OriginConfig::new("dead", OriginKind::Http { url, bearer: None }),
        ];
        let verdicts: Vec<_> = try_all(&origins).await.iter().map(|finding| finding.verdict).collect();
        assert_eq!(verdicts, [Verdict::Good, Verdict::Wrong, Verdict::Wrong]);
    }
}
