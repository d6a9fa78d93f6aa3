//! Names of the host. The address that clients are told is the one the host
//! uses toward the broker, known once a connection stands.

use super::Host;

/// Names of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Names {
    /// As the host says.
    pub(crate) hostname: String,
    /// With its domain, when the host knows one.
    pub(crate) dns_name: Option<String>,
}

pub(super) fn read(host: &Host) -> Names {
    let hostname = host.line("proc/sys/kernel/hostname").unwrap_or_default();
    let dns_name = if hostname.contains('.') { Some(hostname.clone()) } else { from_hosts_file(host, &hostname) };
    Names { hostname, dns_name }
}

/// The full name that stands beside the short one in the hosts file: where
/// installers write it.
fn from_hosts_file(host: &Host, hostname: &str) -> Option<String> {
    let text = host.text("etc/hosts");
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .filter_map(|line| {
            let names: Vec<&str> = line.split_ascii_whitespace().skip(1).collect();
            let full = format!("{hostname}.");
            let own = names.iter().any(|name| *name == hostname || name.starts_with(&full));
            own.then(|| names.into_iter().find(|name| name.contains('.')).map(str::to_owned)).flatten()
        })
        .find(|name| name != "localhost.localdomain")
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn the_full_name_stands_in_the_hosts_file() {
        let hosts = "127.0.0.1 localhost\n127.0.1.1 desk7.example.org desk7 # me\n";
        let (_folder, host) = fixture::host(&[("proc/sys/kernel/hostname", "desk7\n"), ("etc/hosts", hosts)]);
        let names = read(&host);
        assert_eq!(names.hostname, "desk7");
        assert_eq!(names.dns_name.as_deref(), Some("desk7.example.org"));
    }

    #[test]
    fn a_host_without_a_domain_has_no_dns_name() {
        let hosts = "127.0.0.1 localhost\n10.0.0.2 other.example.org other\n";
        let (_folder, host) = fixture::host(&[("proc/sys/kernel/hostname", "desk7\n"), ("etc/hosts", hosts)]);
        assert_eq!(read(&host).dns_name, None);
    }
}
