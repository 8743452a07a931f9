//! Who calls, and what that one may do: tokens, client certificates, and what the kernel says of the other end of the Unix
//! socket. Knows no method; the gate has the table of those.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::{Extensions, HeaderMap};
use tierd_cache::config::Secret;
use tonic::Status;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo, UdsConnectInfo};

use crate::config::{CallerConfig, ListenConfig, Role};
use crate::rpc::subject;

/// Who calls, as its limits and the log name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    /// A caller of the configuration.
    Named(Arc<str>),
    /// A user of this machine.
    User(u32),
    /// A client certificate, by its first name.
    Certificate(Arc<str>),
    /// An address.
    Address(IpAddr),
    /// Nobody could tell.
    Unknown,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::User(uid) => write!(f, "uid:{uid}"),
            Self::Certificate(name) => write!(f, "certificate:{name}"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// Who may come in by one listener.
#[derive(Debug)]
pub(crate) struct Access {
    callers: Vec<Caller>,
    door: Door,
}

/// What a listener goes by.
#[derive(Debug)]
enum Door {
    /// The Unix socket: users.
    Socket { own: u32, others: Option<Role> },
    /// TCP: tokens if there are any, certificates if they are asked for, or nothing.
    Tcp { tokens: bool, certificates: bool, strangers: Option<Role>, open: Option<Role> },
}

/// A caller as it is looked for.
#[derive(Debug)]
struct Caller {
    name: Arc<str>,
    role: Role,
    /// Of its token: the comparison takes as long for any token, and no token lies here to be read.
    token: Option<blake3::Hash>,
    certificate: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Access {
    /// The Unix socket's.
    pub(crate) fn socket(config: &ListenConfig) -> Self {
        let own = rustix::process::geteuid().as_raw();
        Self { callers: callers(&config.callers), door: Door::Socket { own, others: config.socket_role } }
    }

    /// TCP's. Without a section for it in the configuration, nobody gets in.
    pub(crate) fn tcp(config: &ListenConfig) -> Self {
        let tcp = config.tcp.as_ref();
        let mut callers = callers(&config.callers);
        if let Some(token) = tcp.and_then(|tcp| tcp.token.as_ref()) {
            let (name, token) = ("listen.tcp".into(), Some(digest(token)));
            callers.push(Caller { name, role: Role::Admin, token, certificate: None, uid: None, gid: None });
        }
        let tls = tcp.and_then(|tcp| tcp.tls.as_ref());
        let door = Door::Tcp {
            tokens: callers.iter().any(|caller| caller.token.is_some()),
            certificates: tls.is_some_and(|tls| tls.client_ca.is_some()),
            strangers: tls.and_then(|tls| tls.client_role),
            open: tcp.and_then(|tcp| tcp.open_role),
        };
        Self { callers, door }
    }

    /// Who calls, and its role.
    ///
    /// # Errors
    ///
    /// UNAUTHENTICATED for who shows nothing, or nothing that is known; PERMISSION_DENIED for who is known and has no role.
    pub(crate) fn know(&self, headers: &HeaderMap, connection: &Extensions) -> Result<(Client, Role), Box<Status>> {
        match self.door {
            Door::Socket { own, others } => {
                let peer = connection.get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
                self.user(peer.map(|peer| (peer.uid(), peer.gid())), own, others)
            }
            Door::Tcp { tokens, certificates, strangers, open } => {
                let certified = certificates.then(|| self.certified(connection, strangers)).transpose()?;
                let borne = tokens.then(|| self.bearer(headers)).transpose()?;
                match (borne, certified) {
                    // Both are asked for: the token says who, and neither gives more than the other.
                    (Some((client, role)), Some((_, other))) => Ok((client, role.min(other))),
                    (Some(known), None) | (None, Some(known)) => Ok(known),
                    (None, None) => role_of(address(connection), open, "listen.tcp.open_role"),
                }
            }
        }
    }

    fn user(&self, peer: Option<(u32, u32)>, own: u32, others: Option<Role>) -> Result<(Client, Role), Box<Status>> {
        let Some((uid, gid)) = peer else { return role_of(Client::Unknown, others, "listen.socket_role") };
        if uid == 0 || uid == own {
            return Ok((Client::User(uid), Role::Admin));
        }
        let is_it = |caller: &&Caller| caller.uid == Some(uid) || caller.gid == Some(gid);
        match self.callers.iter().find(is_it) {
            Some(caller) => Ok((Client::Named(caller.name.clone()), caller.role)),
            None => role_of(Client::User(uid), others, "listen.socket_role"),
        }
    }

    /// Looks at every token, whichever it is, so that the time tells nothing.
    fn bearer(&self, headers: &HeaderMap) -> Result<(Client, Role), Box<Status>> {
        let given = headers.get(http::header::AUTHORIZATION).map(http::HeaderValue::as_bytes);
        let given = given.and_then(|given| given.split_at_checked("Bearer ".len()));
        let Some((_, given)) = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer ")) else {
            return Err(Box::new(Status::unauthenticated("this listener wants `authorization: Bearer <token>`")));
        };
        let given = blake3::hash(given);
        let mut found = None;
        for caller in &self.callers {
            // Equality of these takes the same time wherever they differ.
            let is_it = caller.token.is_some_and(|token| token == given);
            if is_it && found.is_none() {
                found = Some(caller);
            }
        }
        let unknown = || Box::new(Status::unauthenticated("the bearer token is not one of this daemon's"));
        found.map(|caller| (Client::Named(caller.name.clone()), caller.role)).ok_or_else(unknown)
    }

    fn certified(&self, connection: &Extensions, strangers: Option<Role>) -> Result<(Client, Role), Box<Status>> {
        let certificates = connection.get::<TlsConnectInfo<TcpConnectInfo>>().and_then(TlsConnectInfo::peer_certs);
        let Some(leaf) = certificates.as_ref().and_then(|all| all.first()) else {
            return Err(Box::new(Status::unauthenticated("this listener wants a client certificate")));
        };
        let names = subject::names(leaf);
        let is_it = |caller: &&Caller| caller.certificate.as_ref().is_some_and(|wanted| names.contains(wanted));
        match self.callers.iter().find(is_it) {
            Some(caller) => Ok((Client::Named(caller.name.clone()), caller.role)),
            None => {
                let client =
                    names.first().map_or_else(|| address(connection), |name| Client::Certificate((**name).into()));
                role_of(client, strangers, "listen.tcp.tls.client_role")
            }
        }
    }
}

fn callers(config: &[CallerConfig]) -> Vec<Caller> {
    let caller = |caller: &CallerConfig| Caller {
        name: caller.name.as_str().into(),
        role: caller.role,
        token: caller.token.as_ref().map(digest),
        certificate: caller.certificate.clone(),
        uid: caller.uid,
        gid: caller.gid,
    };
    config.iter().map(caller).collect()
}

fn digest(token: &Secret) -> blake3::Hash {
    blake3::hash(token.expose().as_bytes())
}

/// The role that a door gives to those who are not named.
fn role_of(client: Client, role: Option<Role>, option: &str) -> Result<(Client, Role), Box<Status>> {
    let shut =
        || format!("{client} is named by no [[caller]], and {option} lets nobody else in: ask the operator for a role");
    match role {
        Some(role) => Ok((client, role)),
        None => Err(Box::new(Status::permission_denied(shut()))),
    }
}

fn address(connection: &Extensions) -> Client {
    let tls = connection.get::<TlsConnectInfo<TcpConnectInfo>>().map(TlsConnectInfo::get_ref);
    let tcp = tls.or_else(|| connection.get::<TcpConnectInfo>()).and_then(TcpConnectInfo::remote_addr);
    tcp.map_or(Client::Unknown, |address| Client::Address(address.ip().to_canonical()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::{Config, TcpConfig};
    use tonic::Code;

    /// The listeners' part of an empty configuration.
    pub(crate) fn listen() -> ListenConfig {
        let env = [("HOME".to_owned(), "/home/a".to_owned())].into();
        Config::parse("", &env).expect("the defaults are good").listen
    }

    pub(crate) fn caller(name: &str, role: Role) -> CallerConfig {
        CallerConfig { name: name.to_owned(), role, token: None, certificate: None, uid: None, gid: None }
    }

    pub(crate) fn tcp(token: Option<&str>) -> TcpConfig {
        let (address, token) = (([127, 0, 0, 1], 0).into(), token.map(Secret::new));
        TcpConfig { address, tls: None, token, open_role: Some(Role::Admin) }
    }

    pub(crate) fn bearing(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", value.parse().expect("a header value"));
        headers
    }

    fn named(name: &str) -> Client {
        Client::Named(name.into())
    }

    #[test]
    fn only_an_exact_token_passes_and_each_has_its_role() {
        let token = |name: &str, role, token| CallerConfig { token: Some(Secret::new(token)), ..caller(name, role) };
        let callers = vec![token("metrics", Role::Read, "r3ad"), token("scheduler", Role::Ensure, "3nsure")];
        let access = Access::tcp(&ListenConfig { tcp: Some(tcp(Some("s3cret"))), callers, ..listen() });
        let know = |headers: &HeaderMap| access.know(headers, &Extensions::new());
        for (value, expected) in [
            ("Bearer s3cret", (named("listen.tcp"), Role::Admin)),
            ("bearer s3cret", (named("listen.tcp"), Role::Admin)),
            ("Bearer r3ad", (named("metrics"), Role::Read)),
            ("Bearer 3nsure", (named("scheduler"), Role::Ensure)),
        ] {
            assert_eq!(know(&bearing(value)).expect("known"), expected, "{value}");
        }
        let wrong = ["s3cret", "Bearer", "Bearer ", "Bearer s3creT", "Bearer s3cret ", "Basic s3cret", "Bearer s3cre"];
        for value in wrong {
            let status = know(&bearing(value)).expect_err("refused");
            assert_eq!(status.code(), Code::Unauthenticated, "{value}");
            assert!(!status.message().contains("s3cre"), "{}", status.message());
        }
        assert_eq!(know(&HeaderMap::new()).expect_err("refused").code(), Code::Unauthenticated);
        let printed = format!("{access:?}");
        assert!(!printed.contains("s3cret") && !printed.contains("r3ad"), "{printed}");
    }

    #[test]
    fn a_token_of_a_caller_alone_shuts_the_door_for_everybody_else() {
        let callers = vec![CallerConfig { token: Some(Secret::new("t")), ..caller("a", Role::Read) }];
        let access = Access::tcp(&ListenConfig { tcp: Some(tcp(None)), callers, ..listen() });
        let status = access.know(&HeaderMap::new(), &Extensions::new()).expect_err("refused");
        assert_eq!(status.code(), Code::Unauthenticated);
    }

    #[test]
    fn a_door_that_asks_for_nothing_has_its_role_or_none() {
        let open = |open_role| {
            let access = Access::tcp(&ListenConfig { tcp: Some(TcpConfig { open_role, ..tcp(None) }), ..listen() });
            access.know(&HeaderMap::new(), &Extensions::new()).map(|(_, role)| role).map_err(|status| status.code())
        };
        assert_eq!(open(Some(Role::Read)), Ok(Role::Read));
        assert_eq!(open(None), Err(Code::PermissionDenied));
    }

    #[test]
    fn users_of_the_socket_have_the_role_of_the_first_caller_that_fits() {
        let user = CallerConfig { uid: Some(7), ..caller("user", Role::Read) };
        let group = CallerConfig { gid: Some(70), ..caller("group", Role::Ensure) };
        let root = CallerConfig { uid: Some(0), ..caller("root", Role::Read) };
        let callers = vec![root, user, group];
        let know = |peer, others| {
            let access = Access::socket(&ListenConfig { callers: callers.clone(), ..listen() });
            access.user(peer, 1000, others).map_err(|status| status.code())
        };
        assert_eq!(know(Some((7, 70)), None), Ok((named("user"), Role::Read)));
        assert_eq!(know(Some((8, 70)), None), Ok((named("group"), Role::Ensure)));
        assert_eq!(know(Some((8, 80)), Some(Role::Ensure)), Ok((Client::User(8), Role::Ensure)));
        assert_eq!(know(Some((8, 80)), None), Err(Code::PermissionDenied));
        assert_eq!(know(None, None), Err(Code::PermissionDenied), "what the kernel does not tell is no proof");
        assert_eq!(know(Some((0, 0)), None), Ok((Client::User(0), Role::Admin)), "root cannot be locked out");
        assert_eq!(know(Some((1000, 0)), None), Ok((Client::User(1000), Role::Admin)), "nor the daemon's own user");
    }
}
