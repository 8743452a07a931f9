//! Where a redirect may not lead: an origin that answers with an address of this node itself, or of the link that it hangs on
//! (where clouds keep their instances' credentials), would make the daemon read what its caller cannot. Checked for names after
//! they were looked up, since a name can stand for any address.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::Name;
use tower::Service;

/// An address that a redirect may not lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a redirect leads to {0}, which is this node or its own link: refused")]
pub(crate) struct Inner(pub(crate) IpAddr);

/// Whether an address is this node, or of the link that it hangs on.
#[must_use]
pub(crate) fn is_inner(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => is_inner_v4(v4),
        IpAddr::V6(v6) => {
            // fd00:ec2::/32 is where AWS keeps what 169.254.169.254 has.
            let is_metadata = v6.segments()[..2] == [0xfd00, 0x0ec2];
            let is_own = v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast();
            is_own || is_metadata || carried(v6).is_some_and(is_inner_v4)
        }
    }
}

fn is_inner_v4(v4: Ipv4Addr) -> bool {
    // Where Alibaba's and Oracle's clouds keep what others have at 169.254.169.254.
    let is_metadata = matches!(v4.octets(), [100, 100, 100, 200] | [192, 0, 0, 192]);
    let is_this = v4.octets()[0] == 0;
    v4.is_loopback() || v4.is_link_local() || is_this || v4.is_broadcast() || v4.is_multicast() || is_metadata
}

/// The IPv4 address that a translator would make of an IPv6 one: NAT64's, 6to4's, and the old form with zeros in front.
fn carried(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let of = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0, 0, high, low] => Some(of(high, low)),
        [0x2002, high, low, ..] => Some(of(high, low)),
        _ => None,
    }
}

/// The address that a host of an address is written as, if it is one.
#[must_use]
pub(crate) fn literal(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Whether a configured host is this node by its spelling: then its redirects may lead there too.
#[must_use]
pub(crate) fn is_inner_host(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || literal(host).is_some_and(is_inner)
}

/// Looks names up; guarded, it gives no inner address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lookup {
    pub(crate) guarded: bool,
}

impl Service<Name> for Lookup {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let guarded = self.guarded;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if guarded {
                refuse_inner(&found)?;
            }
            Ok(found.into_iter())
        })
    }
}

/// All or nothing: a name that stands for an inner address too is somebody's trick.
fn refuse_inner(found: &[SocketAddr]) -> io::Result<()> {
    match found.iter().map(SocketAddr::ip).find(|address| is_inner(*address)) {
        Some(address) => Err(io::Error::other(Inner(address))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_links_and_metadata_are_inner_however_they_are_written() {
        for inner in [
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "fd00:ec2::254",
            "ff02::1",
            "0.0.0.1",
            "100.100.100.200",
            "192.0.0.192",
            "64:ff9b::169.254.169.254",
            "64:ff9b::127.0.0.1",
            "2002:7f00:1::",
            "::127.0.0.1",
        ] {
            assert!(is_inner(inner.parse().expect("an address")), "{inner}");
        }
        for outer in
            ["10.0.0.1", "192.168.1.1", "8.8.8.8", "2001:db8::1", "fd12::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
        {
            assert!(!is_inner(outer.parse().expect("an address")), "{outer}");
        }
        assert_eq!(literal("[::1]"), Some("::1".parse().expect("an address")));
        assert!(is_inner_host("LOCALHOST") && is_inner_host("[::1]") && !is_inner_host("example.com"));
    }

    #[test]
    fn one_inner_address_among_the_answers_refuses_them_all() {
        let answers = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| (text.parse::<IpAddr>().expect("an address"), 0).into()).collect()
        };
        assert!(refuse_inner(&answers(&["8.8.8.8", "10.0.0.1", "2001:db8::1"])).is_ok());
        for inner in ["127.0.0.1", "169.254.169.254", "fe80::1", "64:ff9b::7f00:1"] {
            for answer in [answers(&[inner]), answers(&["8.8.8.8", inner]), answers(&[inner, "8.8.8.8"])] {
                assert!(refuse_inner(&answer).is_err(), "{answer:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_name_that_stands_for_this_node_is_looked_up_only_unguarded() {
        let name = || "localhost".parse::<Name>().expect("a name");
        assert!(Lookup { guarded: false }.call(name()).await.expect("every system knows it").next().is_some());
        let error = Lookup { guarded: true }.call(name()).await.expect_err("refused");
        assert!(error.to_string().contains("redirect leads to"), "{error}");
    }
}
