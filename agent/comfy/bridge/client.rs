//! The way to a ComfyUI server: its HTTP answers, each with a limit on time and bytes, and one WebSocket. Decides nothing.

use std::time::Duration;

use futures_util::StreamExt;
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tonic::codegen::Bytes;

/// Longest wait for a connection: the server is on this machine or on its network.
const CONNECT_WAIT: Duration = Duration::from_secs(3);
/// Longest wait for an answer. ComfyUI's HTTP side shares Python's lock with the models: it is slow while they load.
const ANSWER_WAIT: Duration = Duration::from_secs(15);
/// Largest WebSocket message. Previews of pictures go to the client that queued them; a bystander gets counts.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Why a server did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It cannot be reached, or breaks off.
    #[error("{what} cannot be asked: {detail}")]
    Unreachable {
        /// What was asked.
        what: String,
        /// What happened.
        detail: String,
    },
    /// No answer in time.
    #[error("{what} did not answer within {} s", .wait.as_secs())]
    Silent {
        /// What was asked.
        what: String,
        /// How long was waited.
        wait: Duration,
    },
    /// It answers with an error.
    #[error("{what} answers {status}")]
    Refused {
        /// What was asked.
        what: String,
        /// Its status.
        status: u16,
    },
    /// The answer is larger than is read.
    #[error("{what} answers with more than {max} bytes")]
    TooLarge {
        /// What was asked.
        what: String,
        /// The limit.
        max: usize,
    },
    /// The answer is not what this server should say.
    #[error("{what} answers something else: {detail}")]
    Malformed {
        /// What was asked.
        what: String,
        /// What is wrong.
        detail: String,
    },
}

/// One server's address, and the connections to it.
#[derive(Debug, Clone)]
pub struct Server {
    url: String,
    http: Client<HttpConnector, Empty<Bytes>>,
}

/// A held WebSocket.
pub struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Server {
    /// A server at `http://host:port`, with or without a path below which it lies. Opens no connection.
    #[must_use]
    pub fn new(url: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_WAIT));
        connector.set_nodelay(true);
        let http = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector);
        Self { url: url.trim_end_matches('/').to_owned(), http }
    }

    /// The body of one answer, at most `max` bytes.
    ///
    /// # Errors
    ///
    /// Any [`ServerError`] but `Malformed`.
    pub async fn get(&self, path: &str, max: usize) -> Result<Bytes, ServerError> {
        let what = path.split('?').next().unwrap_or(path).to_owned();
        let silent = ServerError::Silent { what: what.clone(), wait: ANSWER_WAIT };
        tokio::time::timeout(ANSWER_WAIT, self.get_unbound(path, what, max)).await.map_err(|_| silent)?
    }

    async fn get_unbound(&self, path: &str, what: String, max: usize) -> Result<Bytes, ServerError> {
        let unreachable = |error: &dyn std::error::Error| ServerError::Unreachable {
            what: what.clone(),
            detail: crate::rpc::chain(error),
        };
        let uri: Uri =
            format!("{}{path}", self.url).parse().map_err(|error: http::uri::InvalidUri| unreachable(&error))?;
        let request = Request::get(uri).body(Empty::new()).map_err(|error| unreachable(&error))?;
        let answer = self.http.request(request).await.map_err(|error| unreachable(&error))?;
        if !answer.status().is_success() {
            return Err(ServerError::Refused { what, status: answer.status().as_u16() });
        }
        match Limited::new(answer.into_body(), max).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(ServerError::TooLarge { what, max }),
            Err(error) => Err(unreachable(&*error)),
        }
    }

    /// One answer as JSON.
    ///
    /// # Errors
    ///
    /// Any [`ServerError`].
    pub async fn json<T: DeserializeOwned>(&self, path: &str, max: usize) -> Result<T, ServerError> {
        let body = self.get(path, max).await?;
        serde_json::from_slice(&body).map_err(|error| ServerError::Malformed {
            what: path.split('?').next().unwrap_or(path).to_owned(),
            detail: error.to_string(),
        })
    }

    /// Opens the WebSocket as a bystander.
    ///
    /// # Errors
    ///
    /// Any [`ServerError`]; `Refused` if something before the server allows no WebSockets.
    pub async fn socket(&self, client: &str) -> Result<Socket, ServerError> {
        let what = || "/ws".to_owned();
        let url = format!("ws{}/ws?clientId={client}", self.url.trim_start_matches("http"));
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let open = tokio_tungstenite::connect_async_with_config(url, Some(config), true);
        let opened = tokio::time::timeout(ANSWER_WAIT, open).await;
        let opened = opened.map_err(|_| ServerError::Silent { what: what(), wait: ANSWER_WAIT })?;
        match opened {
            Ok((socket, _)) => Ok(Socket(socket)),
            Err(tungstenite::Error::Http(answer)) => {
                Err(ServerError::Refused { what: what(), status: answer.status().as_u16() })
            }
            Err(error) => Err(ServerError::Unreachable { what: what(), detail: error.to_string() }),
        }
    }
}

impl Socket {
    /// Waits until the server says that its queue changed.
    ///
    /// # Errors
    ///
    /// The connection ended, or broke.
    pub async fn changed(&mut self) -> Result<(), ServerError> {
        let broken = |detail: String| ServerError::Unreachable { what: "/ws".to_owned(), detail };
        while let Some(message) = self.0.next().await {
            match message.map_err(|error| broken(error.to_string()))? {
                Message::Text(text) if is_status(text.as_str()) => return Ok(()),
                // Pings are answered by the stream itself; previews and progress are not for us.
                _ => {}
            }
        }
        Err(broken("the server closed it".to_owned()))
    }
}

/// Whether a message speaks of the queue. Each prompt that starts or ends changes its length, so that this is enough.
fn is_status(text: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Kind<'a> {
        #[serde(rename = "type", borrow)]
        kind: std::borrow::Cow<'a, str>,
    }
    serde_json::from_str::<Kind<'_>>(text).is_ok_and(|message| message.kind == "status")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_state_of_the_queue_is_listened_for() {
        assert!(is_status(r#"{"type":"status","data":{"status":{"exec_info":{"queue_remaining":1}}}}"#));
        for text in [r#"{"type":"progress","data":{}}"#, "", "[]", "{\"type\":1}", "\u{0}"] {
            assert!(!is_status(text), "{text}");
        }
    }
}
