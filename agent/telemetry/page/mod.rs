//! The status page: one read-only HTML file and the snapshot that it draws, once as JSON and live as server-sent events.
//! Changes nothing, loads nothing from elsewhere, and works only while somebody looks.

mod live;
mod snapshot;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, REFERRER_POLICY, RETRY_AFTER};
use axum::http::header::{HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use futures_util::Stream;
use sha2::{Digest, Sha256};

pub use live::{Live, Sources};
use live::{Look, RETRY};

/// The page. What stands between its tags is trusted by its digest alone.
const PAGE: &str = include_str!("page.html");
/// Where the first snapshot goes, so that the page does not begin empty.
const FIRST: &str = "id=\"first\">null<";
/// The page's own style and script may run, and nothing else; it may speak to this daemon only.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let [style, script] = ["style", "script"].map(|tag| {
        let digest = Sha256::digest(between(PAGE, tag).as_bytes());
        format!("'sha256-{}'", base64::engine::general_purpose::STANDARD.encode(digest))
    });
    format!(
        "default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'"
    )
});

/// What stands between a tag without attributes and its end.
fn between<'a>(page: &'a str, tag: &str) -> &'a str {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let start = page.find(&open).map_or(page.len(), |at| at + open.len());
    let end = page[start..].find(&close).map_or(start, |at| start + at);
    &page[start..end]
}

/// The page's routes. `local`: the listener is bound to the loopback, so that only programs of this machine may ask; a name in
/// `Host` that is not this machine's then is a stranger's page in a browser here, whose name was made to point at us.
pub(super) fn routes(live: Arc<Live>, local: bool) -> Router {
    let routes = Router::new()
        .route("/", get(page))
        .route("/v1/snapshot", get(snapshot))
        .route("/v1/live", get(listen))
        .with_state(live)
        .layer(middleware::map_response(guarded));
    if local { routes.layer(middleware::from_fn(only_here)) } else { routes }
}

async fn only_here(request: Request, next: Next) -> Response {
    if is_here(request.headers()) {
        return next.run(request).await;
    }
    (StatusCode::MISDIRECTED_REQUEST, "ask for localhost or an address: this listener is for this machine\n")
        .into_response()
}

/// Whether `Host` is `localhost` or an address, with or without a port.
fn is_here(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let fixed: [(HeaderName, &'static str); 4] = [
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

async fn page(State(live): State<Arc<Live>>) -> Response {
    let first = match live.look() {
        Look::At(mut told) => told.first().await,
        Look::NotYet | Look::TooMany => None,
    };
    ([(CONTENT_TYPE, "text/html; charset=utf-8")], with_first(first.as_deref())).into_response()
}

/// The page with its first snapshot in it.
fn with_first(first: Option<&str>) -> String {
    // `<` begins nothing in JSON but text, where it may be written so; and no text can then end the element that holds it.
    let first = first.map_or_else(|| "null".to_owned(), |first| first.replace('<', "\\u003c"));
    PAGE.replacen(FIRST, &format!("id=\"first\">{first}<"), 1)
}

async fn snapshot(State(live): State<Arc<Live>>) -> Response {
    let mut told = match live.look() {
        Look::At(told) => told,
        Look::NotYet => return not_yet(),
        Look::TooMany => return too_many(),
    };
    match told.first().await {
        Some(json) => ([(CONTENT_TYPE, "application/json")], json.to_string()).into_response(),
        None => not_yet(),
    }
}

async fn listen(State(live): State<Arc<Live>>) -> Response {
    match live.look() {
        Look::At(told) => Sse::new(events(told)).into_response(),
        Look::NotYet => not_yet(),
        Look::TooMany => too_many(),
    }
}

/// A snapshot whenever there is a new one, until the look is over.
fn events(told: live::Told) -> impl Stream<Item = Result<Event, Infallible>> {
    futures_util::stream::unfold(told, |mut told| async move {
        let json = told.next().await?;
        Some((Ok(Event::default().retry(RETRY).data(&*json)), told))
    })
}

fn not_yet() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")], "the store is being opened, or the daemon ends\n")
        .into_response()
}

fn too_many() -> Response {
    let words = format!("{} look already: try again when one of them left\n", live::LOOKERS_MAX);
    (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "5")], words).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_whole_loads_nothing_and_writes_text_only() {
        assert!(PAGE.contains(FIRST), "there is no place for the first snapshot");
        let (style, script) = (between(PAGE, "style"), between(PAGE, "script"));
        assert!(style.len() > 500 && script.len() > 500);
        for way_out in
            ["http://", "https://", "//cdn", "@import", "url(", "src=", "innerHTML", "outerHTML", "insertAdjacent"]
        {
            assert!(!PAGE.contains(way_out), "the page has {way_out}");
        }
        for way_in in
            ["document.write", "eval(", "new Function", "setAttribute('style'", " style=", " onclick", " onload"]
        {
            assert!(!PAGE.contains(way_in), "the policy would refuse {way_in}");
        }
        assert!(POLICY.contains("default-src 'none'") && POLICY.matches("'sha256-").count() == 2, "{}", *POLICY);
    }

    #[test]
    fn a_hostile_name_cannot_end_the_element_that_holds_it() {
        let page = with_first(Some("{\"model\":\"loras/</script><script>alert(1)</script>\"}"));
        assert_eq!(page.matches("</script>").count(), PAGE.matches("</script>").count());
        assert!(page.contains("loras/\\u003c/script>\\u003cscript>"));
        assert!(with_first(None).contains(FIRST));
    }

    #[test]
    fn a_listener_of_this_machine_answers_to_this_machines_names_only() {
        let is = |host: &'static str| is_here(&HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]));
        assert!(is("localhost:9469") && is("127.0.0.1") && is("[::1]:9469") && is("LOCALHOST"));
        assert!(
            !is("rebound.example.com:9469") && !is("localhost.example.com") && !is("") && !is_here(&HeaderMap::new())
        );
    }
}
