//! The operating system, from `os-release` and the kernel.

use crate::domain::host::{Os, OsFamily};

use super::Host;

pub(super) fn read(host: &Host) -> Os {
    // /etc first, /usr/lib as the fallback: the order that os-release(5) asks for.
    let mut text = host.text("etc/os-release");
    if text.is_empty() {
        text = host.text("usr/lib/os-release");
    }
    Os {
        family: OsFamily::Linux,
        name: value(&text, "NAME").unwrap_or_else(|| "Linux".to_owned()),
        version: value(&text, "VERSION_ID").or_else(|| value(&text, "VERSION")).unwrap_or_default(),
        kernel_version: host.line("proc/sys/kernel/osrelease"),
        build_number: None,
    }
}

/// Value of a shell-like assignment, without its quotes.
fn value(text: &str, key: &str) -> Option<String> {
    let given = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?.trim();
    let bare = ['"', '\''].iter().find_map(|quote| given.strip_prefix(*quote)?.strip_suffix(*quote)).unwrap_or(given);
    Some(bare.replace("\\\"", "\"").replace("\\$", "$").replace("\\\\", "\\"))
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn the_distribution_and_the_kernel_are_told() {
        let release = "PRETTY_NAME=\"Debian GNU/Linux 12\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID='12'\n";
        let (_folder, host) = fixture::host(&[("etc/os-release", release), ("proc/sys/kernel/osrelease", "6.1.0-9\n")]);
        let os = read(&host);
        assert_eq!((os.name.as_str(), os.version.as_str()), ("Debian GNU/Linux", "12"));
        assert_eq!(os.kernel_version.as_deref(), Some("6.1.0-9"));
    }

    #[test]
    fn a_distribution_without_a_version_is_told_too() {
        let (_folder, host) = fixture::host(&[("usr/lib/os-release", "NAME=Arch\n")]);
        assert_eq!((read(&host).name.as_str(), read(&host).version.as_str()), ("Arch", ""));
    }
}
