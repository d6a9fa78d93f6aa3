//! The brokers that an agent knows, and in which order it turns to them.
//!
//! Each server has an order of its own, drawn from its id and the brokers'
//! addresses: agents spread over all brokers, and those of one that died over
//! all that are left. The order is the same after a restart.

use std::collections::VecDeque;
use std::fmt;
use std::net::Ipv6Addr;

use aws_lc_rs::digest;

use crate::domain::ServerId;

/// Where a broker takes agents.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Address {
    /// Reads `HOST` or `HOST:PORT`; an IPv6 address with a port stands in
    /// brackets.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, &'static str> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or("has no closing bracket")?;
                match (rest, rest.strip_prefix(':')) {
                    ("", _) => (host, None),
                    (_, Some(port)) => (host, Some(port)),
                    (_, None) => return Err("has something else than a port behind the bracket"),
                }
            }
            None if text.parse::<Ipv6Addr>().is_ok() => (text, None),
            None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Ok(default_port), |port| port.parse().map_err(|_| "has no port from 1 to 65535"))?;
        if port == 0 {
            return Err("has no port from 1 to 65535");
        }
        let is_sound = !host.is_empty() && host.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '/');
        if !is_sound || (host.contains(':') && host.parse::<Ipv6Addr>().is_err()) {
            return Err("has no host name or address");
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Brings what can be turned to into a server's own order.
pub(super) fn in_order_of<T: fmt::Display>(server: &ServerId, mut all: Vec<T>) -> Vec<T> {
    all.sort_by_cached_key(|one| {
        let text = format!("{server}\n{one}");
        digest::digest(&digest::SHA256, text.as_bytes()).as_ref().to_vec()
    });
    all
}

/// A way through all brokers, once: who is still to be tried.
#[derive(Debug)]
pub(super) struct Round {
    brokers: usize,
    left: VecDeque<usize>,
}

impl Round {
    /// From the first of so many brokers to the last.
    pub(super) fn new(brokers: usize) -> Self {
        Self { brokers, left: (0..brokers).collect() }
    }

    /// Begins anew. The one that was left comes last.
    pub(super) fn begin(&mut self, left: Option<usize>) {
        self.left = (0..self.brokers).filter(|broker| Some(*broker) != left).chain(left).collect();
    }

    /// Those still to be tried, in order.
    pub(super) fn left(&self) -> Vec<usize> {
        self.left.iter().copied().collect()
    }

    /// One was tried, in vain.
    pub(super) fn tried(&mut self, broker: usize) {
        self.left.retain(|left| *left != broker);
    }

    /// The others are of no use either.
    pub(super) fn end(&mut self) {
        self.left.clear();
    }

    /// Whether all were tried.
    pub(super) fn is_over(&self) -> bool {
        self.left.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_a_port() {
        for (text, host, port, shown) in [
            ("broker", "broker", 8445, "broker:8445"),
            ("broker.example:9000", "broker.example", 9000, "broker.example:9000"),
            ("10.0.0.1", "10.0.0.1", 8445, "10.0.0.1:8445"),
            ("::1", "::1", 8445, "[::1]:8445"),
            ("[::1]", "::1", 8445, "[::1]:8445"),
            ("[fe80::1]:9000", "fe80::1", 9000, "[fe80::1]:9000"),
        ] {
            let address = Address::parse(text, 8445).unwrap();
            assert_eq!((address.host.as_str(), address.port), (host, port), "{text}");
            assert_eq!(address.to_string(), shown);
        }
        for text in
            ["", ":1", "a:", "a:0", "a:65536", "a:b", "a:1:2", "[::1", "[::1]9", "[]:1", "a b", "https://a", "[a:b]"]
        {
            assert!(Address::parse(text, 8445).is_err(), "{text}");
        }
    }

    #[test]
    fn servers_spread_over_the_brokers_and_over_those_that_are_left() {
        let brokers = ["a:1", "b:1", "c:1"];
        let mut orders: BTreeMap<Vec<&str>, u32> = BTreeMap::new();
        for number in 0..600 {
            let server = ServerId::new(&format!("server-{number}")).unwrap();
            let order = in_order_of(&server, brokers.to_vec());
            let other_list = brokers.iter().rev().copied().collect();
            assert_eq!(in_order_of(&server, other_list), order, "the order of the list does not matter");
            *orders.entry(order).or_default() += 1;
        }
        assert_eq!(orders.len(), 6, "{orders:?}");
        assert!(orders.values().all(|servers| (60..150).contains(servers)), "{orders:?}");
    }

    #[test]
    fn a_round_tries_each_broker_once_and_the_one_that_was_left_last() {
        let mut round = Round::new(3);
        assert_eq!(round.left(), [0, 1, 2]);
        round.tried(0);
        round.tried(2);
        assert_eq!((round.left(), round.is_over()), (vec![1], false));
        round.tried(1);
        assert!(round.is_over());
        round.begin(Some(0));
        assert_eq!(round.left(), [1, 2, 0]);
        round.begin(None);
        assert_eq!(round.left(), [0, 1, 2]);
        round.end();
        assert!(round.is_over());
    }
}
