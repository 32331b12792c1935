//! A length of time in a policy: milliseconds inside, `15m` or `7d` outside.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::domain::time::{DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS, parse_duration_ms};

/// Milliseconds, 0 or more. Reads and writes as `250ms`, `90s`, `15m`, `6h` or `30d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub i64);

impl Millis {
    pub const fn secs(self) -> i64 {
        self.0 / SECOND_MS
    }
}

impl fmt::Display for Millis {
    /// In the largest unit that loses nothing, so that it reads back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(DAY_MS, "d"), (HOUR_MS, "h"), (MINUTE_MS, "m"), (SECOND_MS, "s")];
        match units.iter().find(|(scale, _)| self.0 != 0 && self.0 % scale == 0) {
            Some((scale, name)) => write!(f, "{}{name}", self.0 / scale),
            None if self.0 == 0 => f.write_str("0s"),
            None => write!(f, "{}ms", self.0),
        }
    }
}

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        parse_duration_ms(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_read_back_as_written() {
        for text in ["0s", "250ms", "90s", "15m", "36h", "30d"] {
            let parsed = Millis(parse_duration_ms(text).unwrap());
            assert_eq!(parsed.to_string(), text);
        }
    }
}
