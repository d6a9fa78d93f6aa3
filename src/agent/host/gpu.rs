//! Graphics processors, from the PCI bus. Names come from the host's own list
//! of PCI ids; without one the ids themselves are told.

use std::fs;

use crate::domain::host::Gpu;

use super::Host;

/// Class of display controllers: the first byte of a PCI class code.
const CLASS_DISPLAY: &str = "0x03";

/// Most graphics processors that are reported.
const GPUS_MAX: usize = 64;

pub(super) fn read(host: &Host) -> Vec<Gpu> {
    let Ok(entries) = fs::read_dir(host.path("sys/bus/pci/devices")) else { return Vec::new() };
    let mut slots: Vec<String> =
        entries.filter_map(Result::ok).filter_map(|entry| entry.file_name().into_string().ok()).collect();
    slots.sort();
    let ids: Vec<(String, String)> = slots
        .iter()
        .filter_map(|slot| {
            let attribute = |name: &str| host.line(&format!("sys/bus/pci/devices/{slot}/{name}"));
            attribute("class")?.starts_with(CLASS_DISPLAY).then_some(())?;
            Some((bare_id(&attribute("vendor")?), bare_id(&attribute("device")?)))
        })
        .take(GPUS_MAX)
        .collect();
    if ids.is_empty() {
        return Vec::new();
    }
    let names = ["usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids"]
        .iter()
        .find_map(|path| host.line(path))
        .unwrap_or_default();
    ids.iter().map(|(vendor, device)| named(&names, vendor, device)).collect()
}

fn bare_id(text: &str) -> String {
    text.trim_start_matches("0x").to_ascii_lowercase()
}

/// Looks both ids up in the text of `pci.ids`: a vendor's line starts with its
/// id, its devices follow, indented by one tab.
fn named(names: &str, vendor: &str, device: &str) -> Gpu {
    let mut lines = names.lines();
    let vendor_name = lines.find_map(|line| line.strip_prefix(vendor)?.strip_prefix("  "));
    let device_name = vendor_name.and_then(|_| {
        lines
            .take_while(|line| line.starts_with('\t') || line.starts_with('#') || line.is_empty())
            .find_map(|line| line.strip_prefix('\t')?.strip_prefix(device)?.strip_prefix("  "))
    });
    Gpu {
        vendor: vendor_name.map_or_else(|| format!("PCI vendor {vendor}"), |name| name.trim().to_owned()),
        model_name: device_name.map_or_else(|| format!("PCI device {vendor}:{device}"), |name| name.trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    const NAMES: &str = "# list\n10de  NVIDIA Corporation\n\t1eb7  Other\n\t1eb8  TU104GL [Tesla T4]\n\
                         \t\t10de 12a2  Board\n1a03  ASPEED Technology, Inc.\n\t2000  Graphics Family\n";

    fn device(slot: &str, class: &str, vendor: &str, device: &str) -> [(String, String); 3] {
        let path = |name: &str| format!("sys/bus/pci/devices/{slot}/{name}");
        [
            (path("class"), format!("{class}\n")),
            (path("vendor"), format!("{vendor}\n")),
            (path("device"), format!("{device}\n")),
        ]
    }

    #[test]
    fn display_controllers_are_named_and_others_left_out() {
        let mut files: Vec<(String, String)> = Vec::new();
        files.extend(device("0000:00:03.0", "0x020000", "0x1af4", "0x1000"));
        files.extend(device("0000:00:1e.0", "0x030200", "0x10de", "0x1eb8"));
        files.extend(device("0000:00:1f.0", "0x030000", "0x1234", "0x1111"));
        files.push(("usr/share/misc/pci.ids".to_owned(), NAMES.to_owned()));
        let files: Vec<_> = files.iter().map(|(path, content)| (path.as_str(), content.as_str())).collect();
        let (_folder, host) = fixture::host(&files);
        let gpus = read(&host);
        assert_eq!(gpus.len(), 2);
        assert_eq!(gpus[0].vendor, "NVIDIA Corporation");
        assert_eq!(gpus[0].model_name, "TU104GL [Tesla T4]");
        assert_eq!(gpus[1].model_name, "PCI device 1234:1111");
    }

    #[test]
    fn a_device_of_another_vendor_with_the_same_id_is_not_mistaken() {
        assert_eq!(named(NAMES, "10de", "2000").model_name, "PCI device 10de:2000");
    }
}
