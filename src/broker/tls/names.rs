//! What this host is called: every name and address that its server
//! certificate is to hold.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::ServerName;

/// How long the system's resolver may take to say the host's full name. A host
/// without one must not start late for it.
const RESOLVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Asks `getaddrinfo` for the full name: `AI_CANONNAME` of `<netdb.h>`.
const AI_CANONNAME: i32 = 0x0002;

/// Tells the names of a host.
pub trait Names: Send + Sync {
    /// Names and addresses, as they are now. May take as long as the resolver.
    fn names(&self) -> BTreeSet<String>;
}

/// This host. Remembers the full name that the resolver told last: it may not
/// answer at times, and the name is not lost with that.
#[derive(Debug, Default)]
pub struct ThisHost {
    resolved: Arc<Mutex<Resolved>>,
}

#[derive(Debug, Default)]
struct Resolved {
    /// The host's name, and its full name by the resolver.
    known: Option<(String, String)>,
    /// A question is not answered yet.
    is_asking: bool,
}

impl Names for ThisHost {
    /// The host's name, its first label, the names that `/etc/hosts` and the resolver give it,
    /// `localhost`, and the addresses of its interfaces.
    fn names(&self) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = ["localhost", "127.0.0.1", "::1"].into_iter().map(str::to_owned).collect();
        let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        if let Ok(hostname) = std::fs::read_to_string("/proc/sys/kernel/hostname") {
            let hostname = hostname.trim();
            if !hostname.is_empty() && hostname != "(none)" {
                // A host may be called by its full name; the first label is a name of it too.
                names.extend([hostname, hostname.split('.').next().unwrap_or_default()].map(str::to_owned));
                names.extend(aliases(&hosts, hostname));
                names.extend(self.full_name(hostname));
            }
        }
        match sysinfo::Networks::new_with_refreshed_list() {
            Ok(networks) => {
                let addresses =
                    networks.values().flat_map(sysinfo::NetworkData::ip_networks).map(|network| network.addr);
                names.extend(addresses.filter(is_usable).map(|ip| ip.to_string()));
            }
            Err(error) => {
                tracing::warn!(%error, "the addresses of this host cannot be told; its certificate lacks them");
            }
        }
        names.retain(|name| can_be_certified(name));
        names
    }
}

impl ThisHost {
    /// The host's full name by the system's resolver, asked on a thread of its
    /// own, since nothing limits how long it takes. One question at a time.
    fn full_name(&self, hostname: &str) -> Option<String> {
        let known = |resolved: &Resolved| {
            resolved.known.as_ref().filter(|(asked, _)| asked == hostname).map(|(_, full)| full.clone())
        };
        {
            let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
            if std::mem::replace(&mut resolved.is_asking, true) {
                return known(&resolved);
            }
        }
        let (done, answered) = mpsc::channel();
        let (shared, asked) = (Arc::clone(&self.resolved), hostname.to_owned());
        let thread = std::thread::Builder::new().name("resolver".to_owned()).spawn(move || {
            let found = canonical_name(&asked);
            let mut resolved = shared.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(full) = found {
                resolved.known = Some((asked, full));
            }
            resolved.is_asking = false;
            drop(resolved);
            // Nobody may be waiting any longer.
            let _ = done.send(());
        });
        match thread {
            Ok(_) => drop(answered.recv_timeout(RESOLVER_TIMEOUT)),
            Err(error) => {
                tracing::debug!(%error, "no thread to ask the resolver on");
                self.resolved.lock().unwrap_or_else(PoisonError::into_inner).is_asking = false;
            }
        }
        known(&self.resolved.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the resolver calls a host by, if that is the host's name with a domain.
/// An alias of some other host is not what this one is called.
fn canonical_name(hostname: &str) -> Option<String> {
    let hints = dns_lookup::AddrInfoHints { flags: AI_CANONNAME, ..dns_lookup::AddrInfoHints::default() };
    let found = dns_lookup::getaddrinfo(Some(hostname), None, Some(hints));
    let mut found = found.inspect_err(|error| tracing::debug!(error = ?error.kind(), "no full name")).ok()?;
    // The first answer bears the name.
    let full = found.next()?.ok()?.canonname?;
    belongs_to(&full, hostname).then(|| full.trim_end_matches('.').to_owned())
}

fn belongs_to(full: &str, hostname: &str) -> bool {
    let label = |name: &str| name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    !full.is_empty() && label(full) == label(hostname)
}

/// Names on the lines of a hosts file that hold a host's name.
fn aliases(hosts: &str, hostname: &str) -> BTreeSet<String> {
    hosts
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .map(|line| line.split_whitespace().skip(1).collect::<Vec<_>>())
        .filter(|names| names.contains(&hostname))
        .flatten()
        .map(str::to_owned)
        .collect()
}

/// Link-local addresses need a zone to be called and are of no use in a certificate.
fn is_usable(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_unicast_link_local(),
    }
}

/// Whether a name can stand in a certificate: an address, or a DNS name whose
/// first label may be `*`.
pub(super) fn can_be_certified(name: &str) -> bool {
    ServerName::try_from(name.strip_prefix("*.").unwrap_or(name)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_name_comes_from_the_hosts_file() {
        let hosts = "127.0.0.1 localhost\n10.0.0.7 vdi7.corp.example vdi7 # the host\n10.0.0.8 vdi8";
        let names = aliases(hosts, "vdi7");
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["vdi7", "vdi7.corp.example"]);
    }

    #[test]
    fn the_resolver_is_believed_about_this_host_alone() {
        assert!(belongs_to("vdi7.corp.example", "vdi7") && belongs_to("VDI7.corp.example.", "vdi7.other"));
        assert!(!belongs_to("www.bank.example", "vdi7") && !belongs_to("", "vdi7"));
        assert_eq!(canonical_name("localhost").as_deref(), Some("localhost"));
        assert_eq!(canonical_name("a name that nothing can have"), None);
    }

    #[test]
    fn a_resolver_that_hangs_is_not_asked_twice_and_what_it_once_said_stays() {
        let host = ThisHost::default();
        let known = ("vdi7".to_owned(), "vdi7.corp.example".to_owned());
        *host.resolved.lock().expect("no panic") = Resolved { known: Some(known), is_asking: true };
        assert_eq!(host.full_name("vdi7").as_deref(), Some("vdi7.corp.example"));
        assert_eq!(host.full_name("vdi8"), None, "another host's name");
    }

    #[test]
    fn names_that_no_certificate_can_hold_are_left_out() {
        for name in ["vdi7", "vdi_7.corp.example", "*.corp.example", "10.0.0.7", "fd00::7"] {
            assert!(can_be_certified(name), "{name}");
        }
        for name in ["", "büro", "two words", "a..b", "-"] {
            assert!(!can_be_certified(name), "{name}");
        }
        let names = ThisHost::default().names();
        assert!(names.contains("localhost") && names.contains("127.0.0.1"), "{names:?}");
    }
}
