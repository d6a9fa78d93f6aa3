//! Where a call comes from: the other end of its connection or, behind proxies,
//! the address that they say. What limits callers and what the audit tells go
//! by the same one.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::http::{Extensions, HeaderMap, HeaderName};

use crate::broker::config::{Limits, Network};
use crate::broker::tls::Peer;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Proxies that a request is followed through; further ones only cost time.
const PROXIES_MAX: usize = 32;

/// The caller's address, in each request that came over a network. An IPv4
/// address is never written as an IPv6 one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin(pub(super) IpAddr);

impl Origin {
    /// What a request's connection and headers tell.
    pub(super) fn of(extensions: &Extensions, headers: &HeaderMap, limits: &Limits) -> Option<Self> {
        let peer = extensions.get::<Peer>()?.address.ip().to_canonical();
        let forwarded = if limits.forwarded_for { forwarded(peer, headers, &limits.trusted_proxies) } else { None };
        Some(Self(forwarded.unwrap_or(peer)))
    }
}

/// Who sent a request to the first of the proxies that it came through. Each
/// proxy adds whom it was sent by at the end, so what is right of the first
/// address without trust is true and what is left of it may be invented. Where
/// everybody is trusted, the first address of all counts. `None` when what
/// counts is no address.
fn forwarded(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> Option<IpAddr> {
    let mut lines = headers.get_all(FORWARDED_FOR).iter();
    if trusted.is_empty() {
        return lines.next()?.as_bytes().split(|byte| *byte == b',').next().and_then(address);
    }
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut senders = lines.rev().flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    let mut client = peer;
    for _ in 0..PROXIES_MAX {
        if !is_trusted(client) {
            return Some(client);
        }
        let Some(sender) = senders.next() else { return Some(client) };
        client = address(sender)?;
    }
    None
}

/// An address as proxies write it: alone, with a port, or in brackets.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let address = text.parse::<IpAddr>().ok().or_else(with_port).or_else(bracketed)?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::http::HeaderValue;

    use super::*;

    const PEER: &str = "10.0.0.1";

    fn origin(peer: &str, lines: &[&str], limits: &Limits) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED_FOR, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        let mut extensions = Extensions::new();
        extensions.insert(Peer { address: SocketAddr::new(peer.parse().unwrap(), 4711), certificate: None });
        Origin::of(&extensions, &headers, limits).unwrap().0.to_string()
    }

    fn trusting(networks: &[&str]) -> Limits {
        let trusted_proxies = networks.iter().map(|network| network.parse().unwrap()).collect();
        Limits { forwarded_for: true, trusted_proxies, ..Limits::default() }
    }

    #[test]
    fn the_header_counts_for_nothing_unless_it_is_asked_for() {
        assert_eq!(origin(PEER, &["192.0.2.1"], &Limits::default()), PEER);
        assert_eq!(origin("::ffff:10.0.0.1", &[], &Limits::default()), PEER);
        assert_eq!(Origin::of(&Extensions::new(), &HeaderMap::new(), &trusting(&[])), None);
    }

    #[test]
    fn only_what_trusted_proxies_say_counts() {
        let limits = trusting(&["10.0.0.0/8", "fd00::/16"]);
        let says = |lines: &[&str]| origin(PEER, lines, &limits);
        assert_eq!(origin("192.0.2.9", &["198.51.100.1"], &limits), "192.0.2.9", "this proxy is not known");
        assert_eq!(says(&[]), PEER);
        assert_eq!(says(&["192.0.2.1"]), "192.0.2.1");
        assert_eq!(says(&["198.51.100.1, 192.0.2.1"]), "192.0.2.1", "clients invent what is left of them");
        assert_eq!(says(&["198.51.100.1, 192.0.2.1, 10.0.0.2 ,fd00::7"]), "192.0.2.1");
        assert_eq!(says(&["198.51.100.1", "192.0.2.1, 10.0.0.2"]), "192.0.2.1", "lines are one list");
        assert_eq!(says(&["10.0.0.3, 10.0.0.2"]), "10.0.0.3", "a call from within");
    }

    #[test]
    fn where_everybody_is_trusted_the_first_address_counts() {
        let limits = trusting(&[]);
        assert_eq!(origin(PEER, &["192.0.2.1, 198.51.100.1", "10.0.0.2"], &limits), "192.0.2.1");
        assert_eq!(origin(PEER, &[], &limits), PEER);
        assert_eq!(origin(PEER, &["unknown, 192.0.2.1"], &limits), PEER);
    }

    #[test]
    fn addresses_are_read_as_proxies_write_them_and_the_rest_counts_for_nothing() {
        let limits = trusting(&["10.0.0.0/8"]);
        let says = |line: &str| origin(PEER, &[line], &limits);
        for (line, address) in [
            ("192.0.2.1:8080", "192.0.2.1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:8080", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(says(line), address);
        }
        for garbage in ["", "unknown", "192.0.2.1,", "192.0.2", "\"192.0.2.1\"", "192.0.2.1;x", "\u{fc}", "[192.0.2.1]"]
        {
            assert_eq!(says(garbage), PEER, "{garbage}");
        }
        assert_eq!(says(&["10.0.0.2"; 1000].join(",")), PEER, "no chain is that long");
    }
}
