//! What a caller sent, checked: model keys, spans, its name and its deadline. Every refusal names the field as the proto
//! spells it.

use std::time::Duration;

use tierd_cache::fault::Fault;
use tierd_cache::ids::ModelKey;
use tonic::metadata::MetadataMap;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo, UdsConnectInfo};
use tonic::{Extensions, Status};

use crate::rpc::access::Client;
use crate::rpc::fault::{invalid, status};
use crate::rpc::time;

/// Longest name of a caller or an owner, in characters.
const NAME_CHARS_MAX: usize = 200;

/// Longest wait for the engine's answer to a plain question. It answers in microseconds; an eviction unlinks files.
pub(crate) const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// Longest wait for origins to be listed: a million objects are a thousand pages.
pub(crate) const REFRESH_WAIT: Duration = Duration::from_secs(600);

/// Parses model keys; at least one.
pub(crate) fn models(texts: &[String]) -> Result<Vec<ModelKey>, Status> {
    if texts.is_empty() {
        return Err(invalid("models", "name at least one model, such as vae/ae.safetensors"));
    }
    models_or_none(texts)
}

/// Parses model keys; none is right too.
pub(crate) fn models_or_none(texts: &[String]) -> Result<Vec<ModelKey>, Status> {
    let parse =
        |(index, text): (usize, &String)| ModelKey::parse(text).map_err(|bad| invalid(format!("models[{index}]"), bad));
    texts.iter().enumerate().map(parse).collect()
}

/// Parses one model key of a field that is not a list.
pub(crate) fn model(field: &str, text: &str) -> Result<ModelKey, Status> {
    ModelKey::parse(text).map_err(|bad| invalid(field, bad))
}

/// A span that must not be negative; `default` if it is absent.
pub(crate) fn span(field: &str, given: Option<time::Duration>, default: Duration) -> Result<Duration, Status> {
    match given {
        None => Ok(default),
        Some(span) => {
            span.to_std().ok_or_else(|| invalid(field, "it is negative or not a normal google.protobuf.Duration"))
        }
    }
}

/// An owner: 1 to 200 characters.
pub(crate) fn owner(given: &str) -> Result<String, Status> {
    if given.is_empty() {
        return Err(invalid("owner", "it is empty: say who holds the lease"));
    }
    name("owner", given)
}

/// Who asks: what the request says, or what the connection tells.
pub(crate) fn client(given: &str, connection: &Extensions) -> Result<String, Status> {
    if given.is_empty() { Ok(peer(connection)) } else { name("client", given) }
}

pub(crate) fn name(field: &str, given: &str) -> Result<String, Status> {
    if given.chars().count() > NAME_CHARS_MAX {
        return Err(invalid(field, format_args!("it is longer than {NAME_CHARS_MAX} characters")));
    }
    if given.chars().any(char::is_control) {
        return Err(invalid(field, "it holds a control character"));
    }
    Ok(given.to_owned())
}

fn peer(connection: &Extensions) -> String {
    if let Some(client @ (Client::Named(_) | Client::Certificate(_))) = connection.get::<Client>() {
        return client.to_string();
    }
    if let Some(cred) = connection.get::<UdsConnectInfo>().and_then(|info| info.peer_cred) {
        return cred.pid().map_or_else(|| format!("uid:{}", cred.uid()), |pid| format!("uid:{} pid:{pid}", cred.uid()));
    }
    let tls = connection.get::<TlsConnectInfo<TcpConnectInfo>>().map(|info| info.get_ref());
    let tcp = tls.or_else(|| connection.get::<TcpConnectInfo>());
    tcp.and_then(TcpConnectInfo::remote_addr).map_or_else(|| "unknown".to_owned(), |address| address.to_string())
}

/// The caller's deadline as a span from now, from `grpc-timeout`; `None` if it set none or an unreadable one.
///
/// tonic itself ends calls at their deadline up to the first answer; streams are ours to end.
pub(crate) fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

/// Waits for the engine, at most `wait`.
pub(crate) async fn answer<T>(wait: Duration, asked: impl Future<Output = Result<T, Fault>>) -> Result<T, Status> {
    match tokio::time::timeout(wait, asked).await {
        Ok(answer) => answer.map_err(|fault| status(&fault)),
        Err(_) => Err(status(&Fault::DeadlineExceeded)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::fault::of_status;

    #[test]
    fn a_bad_key_is_named_by_its_place_in_the_list() {
        let texts = ["vae/ok", "unet/ok", "../etc/passwd"].map(str::to_owned);
        let fault = of_status(&models(&texts).expect_err("refused"));
        assert_eq!(fault.field, "models[2]");
        assert!(fault.text.contains("../etc/passwd"), "{}", fault.text);
        assert_eq!(of_status(&models(&[]).expect_err("refused")).field, "models");
        assert_eq!(models(&texts[1..2]).expect("accepted")[0].as_str(), "diffusion_models/ok");
    }

    #[test]
    fn negative_spans_and_long_names_are_refused() {
        let negative = Some(time::Duration { seconds: -1, nanos: 0 });
        assert_eq!(of_status(&span("ttl", negative, Duration::ZERO).expect_err("refused")).field, "ttl");
        let long = "x".repeat(NAME_CHARS_MAX + 1);
        assert_eq!(of_status(&owner(&long).expect_err("refused")).field, "owner");
        assert_eq!(of_status(&client("a\nb", &Extensions::default()).expect_err("refused")).field, "client");
        assert_eq!(client("", &Extensions::default()).expect("accepted"), "unknown");
    }

    #[test]
    fn deadlines_are_read_as_grpc_writes_them_and_garbage_is_no_deadline() {
        let of = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().expect("ascii"));
            timeout(&metadata)
        };
        assert_eq!(of("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(of("2H"), Some(Duration::from_secs(7200)));
        for text in ["", "S", "-1S", "123456789S", "1x", "1.5S"] {
            assert_eq!(of(text), None, "{text:?}");
        }
    }
}
