//! Points in time as whole milliseconds since 1970-01-01T00:00:00Z, and their one text form.
//!
//! The core never asks what time it is: every function that needs *now* takes it.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// One second, minute, hour and day, in milliseconds.
pub const SECOND_MS: i64 = 1_000;
pub const MINUTE_MS: i64 = 60 * SECOND_MS;
pub const HOUR_MS: i64 = 60 * MINUTE_MS;
pub const DAY_MS: i64 = 24 * HOUR_MS;

/// A point in time: milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    pub const fn from_millis(ms: i64) -> Self {
        Self(ms)
    }

    pub const fn from_secs(s: i64) -> Self {
        Self(s * SECOND_MS)
    }

    /// Milliseconds since the epoch.
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down.
    pub const fn secs(self) -> i64 {
        self.0.div_euclid(SECOND_MS)
    }

    /// This instant moved by `ms` milliseconds (negative: earlier). Saturates.
    pub const fn plus_ms(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this instant; negative when `earlier` is later.
    pub const fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Reads RFC 3339 in any offset with any number of fraction digits (Nango writes both
    /// `Z` and `+00:00`, and one to six digits).
    ///
    /// # Errors
    /// When the text is not RFC 3339.
    pub fn parse(text: &str) -> Result<Self, ParseTimestampError> {
        let parsed =
            OffsetDateTime::parse(text, &Rfc3339).map_err(|_| ParseTimestampError { text: text.to_owned() })?;
        Ok(Self((parsed.unix_timestamp_nanos() / 1_000_000) as i64))
    }

    /// `2026-05-06T09:00:00.000Z`
    pub fn to_rfc3339(self) -> String {
        let Some(t) = self.to_offset() else { return format!("{}ms", self.0) };
        format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            t.year(),
            u8::from(t.month()),
            t.day(),
            t.hour(),
            t.minute(),
            t.second(),
            t.millisecond()
        )
    }

    /// `2026-05-06 09:00` for people, always UTC.
    pub fn to_minute(self) -> String {
        let Some(t) = self.to_offset() else { return format!("{}ms", self.0) };
        format!("{:04}-{:02}-{:02} {:02}:{:02}", t.year(), u8::from(t.month()), t.day(), t.hour(), t.minute())
    }

    fn to_offset(self) -> Option<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000).ok()
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, d: Duration) -> Self {
        self.plus_ms(d.as_millis() as i64)
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, d: Duration) -> Self {
        self.plus_ms(-(d.as_millis() as i64))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_rfc3339())
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.to_rfc3339())
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// The text was not an RFC 3339 time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an RFC 3339 time such as 2026-05-06T09:00:00Z")]
pub struct ParseTimestampError {
    text: String,
}

/// Reads a duration as people write it: `90s`, `15m`, `6h`, `30d`, `250ms`; a bare number is seconds.
///
/// # Errors
/// When the number or the unit is not one of those, or it overflows.
pub fn parse_duration_ms(text: &str) -> Result<i64, ParseDurationError> {
    let bad = || ParseDurationError { text: text.to_owned() };
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: i64 = number.parse().map_err(|_| bad())?;
    let scale = match unit {
        "ms" => 1,
        "" | "s" => SECOND_MS,
        "m" | "min" => MINUTE_MS,
        "h" => HOUR_MS,
        "d" => DAY_MS,
        _ => return Err(bad()),
    };
    number.checked_mul(scale).ok_or_else(bad)
}

/// Writes milliseconds the way [`parse_duration_ms`] reads them, in the largest two units.
pub fn format_duration_ms(ms: i64) -> String {
    if ms < 0 {
        return format!("-{}", format_duration_ms(ms.saturating_neg()));
    }
    let units = [(DAY_MS, "d"), (HOUR_MS, "h"), (MINUTE_MS, "m"), (SECOND_MS, "s"), (1, "ms")];
    let mut rest = ms;
    let mut parts = Vec::new();
    for (scale, name) in units {
        if rest >= scale {
            parts.push(format!("{}{name}", rest / scale));
            rest %= scale;
        } else if !parts.is_empty() {
            break;
        }
        if parts.len() == 2 {
            break;
        }
    }
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

/// The text was not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a duration such as 90s, 15m, 6h or 30d")]
pub struct ParseDurationError {
    text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nango_and_composio_time_forms_mean_the_same_instant() {
        let a = Timestamp::parse("2026-09-14T08:02:11.402+00:00").unwrap();
        let b = Timestamp::parse("2026-09-14T08:02:11.402Z").unwrap();
        let c = Timestamp::parse("2026-09-14T10:02:11.402000+02:00").unwrap();
        assert_eq!((a, a), (b, c));
        assert_eq!(a.to_rfc3339(), "2026-09-14T08:02:11.402Z");
    }

    #[test]
    fn durations_read_back_as_written() {
        for (text, ms) in [("90s", 90_000), ("15m", 900_000), ("6h", 21_600_000), ("30d", 2_592_000_000)] {
            assert_eq!(parse_duration_ms(text), Ok(ms));
        }
        assert_eq!(format_duration_ms(parse_duration_ms("90s").unwrap()), "1m 30s");
        assert!(parse_duration_ms("soon").is_err());
        assert!(parse_duration_ms("99999999999999999999d").is_err());
    }
}
