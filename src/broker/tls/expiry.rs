//! What ends when, and when operators are told.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::facts::{Facts, timestamp};

/// Days before its end at which a certificate is warned about.
const WARN_DAYS: [u64; 3] = [1, 7, 30];
const DAY: Duration = Duration::from_hours(24);

/// A certificate in use and its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiry {
    /// The port that shows it, or `authority` for the one that signs.
    pub listener: String,
    /// Its subject.
    pub subject: String,
    /// The file that it comes from.
    pub file: String,
    /// Its first moment: RFC 3339.
    pub not_before: String,
    /// Its last moment: RFC 3339.
    pub not_after: String,
    /// The same in seconds since 1970, as metrics want it.
    pub not_after_seconds: i64,
    /// Whole days that are left; negative when it has expired.
    pub days_left: i64,
    /// Whether the broker renews it by itself.
    pub is_renewed: bool,
    /// Names and addresses that it is for, when the broker chose them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub names: BTreeSet<String>,
    /// Why what lies in the file now is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Expiry {
    pub(super) fn new(listener: &str, facts: &Facts, file: String, now: SystemTime) -> Self {
        let not_after = timestamp(facts.not_after);
        let days_left = (not_after.as_second() - timestamp(now).as_second()).div_euclid(24 * 3600);
        Self {
            listener: listener.to_owned(),
            subject: facts.subject.clone(),
            file,
            not_before: timestamp(facts.not_before).to_string(),
            not_after: not_after.to_string(),
            not_after_seconds: not_after.as_second(),
            days_left,
            is_renewed: false,
            names: BTreeSet::new(),
            problem: None,
        }
    }
}

/// Whether a certificate's end was told, and how near it was then.
#[derive(Debug, Default)]
pub(super) struct Told(Option<u64>);

impl Told {
    /// Whether to tell now: when 30, 7 or 1 days are left, and when none is.
    /// Once each, however often it is asked.
    pub(super) fn is_due(&mut self, not_after: SystemTime, now: SystemTime) -> bool {
        let left = not_after.duration_since(now).unwrap_or_default();
        let near = if left.is_zero() {
            Some(0)
        } else {
            WARN_DAYS.into_iter().find(|days| left <= DAY * u32::try_from(*days).expect("small constants"))
        };
        let is_nearer = match (near, self.0) {
            (Some(near), Some(told)) => near < told,
            (near, None) => near.is_some(),
            (None, Some(_)) => false,
        };
        // Also when the clock went back: what is far again will be told again.
        self.0 = near;
        is_nearer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_at_30_7_and_1_days_and_when_it_came() {
        let end = SystemTime::UNIX_EPOCH + 1000 * DAY;
        let mut told = Told::default();
        let days: Vec<u32> = (0..=60).rev().filter(|left| told.is_due(end, end - *left * DAY)).collect();
        assert_eq!(days, [30, 7, 1, 0]);
        assert!(!told.is_due(end, end + DAY));
        // A new certificate.
        assert!(!told.is_due(end + 90 * DAY, end + DAY));
        // One that is near its end at the first look is told once.
        let mut told = Told::default();
        assert!(told.is_due(end, end - 3 * DAY) && !told.is_due(end, end - 3 * DAY));
    }

    #[test]
    fn days_that_are_left_are_whole_ones() {
        let (end, hour) = (SystemTime::UNIX_EPOCH + 1000 * DAY, Duration::from_hours(1));
        let facts = Facts { subject: "CN=a".to_owned(), not_before: end - 90 * DAY, not_after: end };
        let left = |now| Expiry::new("clients", &facts, String::new(), now).days_left;
        assert_eq!((left(end - DAY), left(end - hour), left(end + hour)), (1, 0, -1));
        let expiry = Expiry::new("clients", &facts, String::new(), end);
        assert_eq!((expiry.not_after.as_str(), expiry.not_after_seconds), ("1972-09-27T00:00:00Z", 86_400_000));
    }
}
