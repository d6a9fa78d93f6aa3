//! Processors, from `/proc/cpuinfo`.

use std::collections::BTreeSet;

use crate::domain::host::Cpu;

use super::Host;

pub(super) fn read(host: &Host) -> Cpu {
    let text = host.text("proc/cpuinfo");
    let fields = |wanted: &'static str| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .filter(move |(key, _)| key.trim() == wanted)
            .map(|(_, value)| value.trim())
    };
    let logical_count = u32::try_from(fields("processor").count()).unwrap_or(u32::MAX);
    let packages = fields("physical id").collect::<BTreeSet<_>>().len().max(1);
    let per_package =
        u32::try_from(usize::try_from(logical_count).unwrap_or(usize::MAX) / packages).unwrap_or(logical_count);
    let implementer = fields("CPU implementer").next();
    Cpu {
        vendor: fields("vendor_id")
            .next()
            .map(str::to_owned)
            .or_else(|| implementer.map(|code| vendor_of_implementer(code).to_owned()))
            .unwrap_or_default(),
        model_name: fields("model name")
            .next()
            .map(str::to_owned)
            .or_else(|| fields("CPU part").next().map(|part| format!("ARM part {part}")))
            .unwrap_or_default(),
        architecture: std::env::consts::ARCH.to_owned(),
        logical_count,
        // ARM kernels do not tell cores; there a logical processor is a core.
        physical_cores_per_cpu: fields("cpu cores").next().and_then(|n| n.parse().ok()).unwrap_or(per_package),
    }
}

/// Makers of ARM processors by the code in their main id register.
fn vendor_of_implementer(code: &str) -> &str {
    match code {
        "0x41" => "ARM",
        "0x42" => "Broadcom",
        "0x43" => "Cavium",
        "0x48" => "HiSilicon",
        "0x4e" => "NVIDIA",
        "0x51" => "Qualcomm",
        "0x61" => "Apple",
        "0xc0" => "Ampere",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn two_packages_with_two_cores_and_four_threads_each() {
        let text: Vec<String> = (0..8)
            .map(|processor| {
                format!(
                    "processor\t: {processor}\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon: Gold\n\
                     physical id\t: {}\ncpu cores\t: 2\n\n",
                    processor / 4
                )
            })
            .collect();
        let text = text.concat();
        let (_folder, host) = fixture::host(&[("proc/cpuinfo", &text)]);
        let cpu = read(&host);
        assert_eq!((cpu.vendor.as_str(), cpu.model_name.as_str()), ("GenuineIntel", "Xeon: Gold"));
        assert_eq!((cpu.logical_count, cpu.physical_cores_per_cpu), (8, 2));
    }

    #[test]
    fn an_arm_processor_has_a_vendor_and_cores() {
        let text = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\nprocessor\t: 1\n";
        let (_folder, host) = fixture::host(&[("proc/cpuinfo", text)]);
        let cpu = read(&host);
        assert_eq!((cpu.vendor.as_str(), cpu.model_name.as_str()), ("ARM", "ARM part 0xd0c"));
        assert_eq!((cpu.logical_count, cpu.physical_cores_per_cpu), (2, 2));
    }
}
