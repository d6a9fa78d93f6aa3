//! Memory, swap and load averages, from `/proc`.

use crate::domain::host::{LoadAverage, Usage};

use super::Host;

/// Memory and swap. Used memory is what programs cannot get any more: total
/// without available, since a page cache is free for the asking.
pub(super) fn memory(host: &Host) -> (Usage, Usage) {
    let text = host.text("proc/meminfo");
    let bytes = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
            .and_then(|value| value.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
            .map(|kibibytes| kibibytes.saturating_mul(1024))
    };
    let usage = |total: Option<u64>, free: Option<u64>| {
        let total_bytes = total.unwrap_or(0);
        Usage { total_bytes, used_bytes: total_bytes.saturating_sub(free.unwrap_or(0)) }
    };
    (
        usage(bytes("MemTotal"), bytes("MemAvailable").or_else(|| bytes("MemFree"))),
        usage(bytes("SwapTotal"), bytes("SwapFree")),
    )
}

pub(super) fn average(host: &Host) -> LoadAverage {
    let text = host.text("proc/loadavg");
    let mut fields = text.split_ascii_whitespace().map(|field| hundredths(field).unwrap_or(0));
    let mut next = || fields.next().unwrap_or(0);
    LoadAverage { one_minute_hundredths: next(), five_minutes_hundredths: next(), fifteen_minutes_hundredths: next() }
}

/// The kernel writes exactly two decimals.
fn hundredths(text: &str) -> Option<u32> {
    let (whole, decimals) = text.split_once('.')?;
    let decimals: u32 = if decimals.len() == 2 { decimals.parse().ok()? } else { return None };
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(decimals)
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn memory_that_can_be_had_is_not_used() {
        let text = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\n\
                    SwapTotal:         50 kB\nSwapFree:          20 kB\n";
        let (_folder, host) = fixture::host(&[("proc/meminfo", text)]);
        let (memory, swap) = memory(&host);
        assert_eq!(memory, Usage { total_bytes: 1_024_000, used_bytes: 409_600 });
        assert_eq!(swap, Usage { total_bytes: 51_200, used_bytes: 30_720 });
    }

    #[test]
    fn load_averages_keep_both_decimals() {
        let (_folder, host) = fixture::host(&[("proc/loadavg", "0.09 12.50 100.00 1/2 3\n")]);
        let load = average(&host);
        assert_eq!(load.one_minute_hundredths, 9);
        assert_eq!(load.five_minutes_hundredths, 1250);
        assert_eq!(load.fifteen_minutes_hundredths, 10_000);
    }
}
