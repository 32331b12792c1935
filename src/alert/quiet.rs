//! Hours in which only what is urgent is sent.

use std::str::FromStr;

use crate::domain::time::{DAY_MS, MINUTE_MS, Timestamp};

/// From one time of day to another, UTC; over midnight when the second is the earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuietHours {
    /// Milliseconds after midnight.
    from: i64,
    to: i64,
}

/// A text that is not `HH:MM-HH:MM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("quiet hours are written `22:00-07:00` (UTC), and begin and end at different times")]
pub struct NotQuietHours;

impl FromStr for QuietHours {
    type Err = NotQuietHours;

    fn from_str(text: &str) -> Result<Self, NotQuietHours> {
        let (from, to) = text.split_once('-').ok_or(NotQuietHours)?;
        let (from, to) = (time_of_day(from.trim())?, time_of_day(to.trim())?);
        if from == to { Err(NotQuietHours) } else { Ok(Self { from, to }) }
    }
}

fn time_of_day(text: &str) -> Result<i64, NotQuietHours> {
    let (hours, minutes) = text.split_once(':').ok_or(NotQuietHours)?;
    let number = |text: &str, below: i64| {
        let two_digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<i64>().ok().filter(|n| two_digits && *n < below).ok_or(NotQuietHours)
    };
    Ok((number(hours, 24)? * 60 + number(minutes, 60)?) * MINUTE_MS)
}

impl QuietHours {
    /// When the quiet hours end that `now` is in; `None` outside of them.
    pub fn until(self, now: Timestamp) -> Option<Timestamp> {
        let midnight = now.millis().div_euclid(DAY_MS) * DAY_MS;
        let passed = now.millis() - midnight;
        let quiet = if self.from < self.to {
            (self.from..self.to).contains(&passed)
        } else {
            passed >= self.from || passed < self.to
        };
        let end = if passed < self.to { midnight + self.to } else { midnight + DAY_MS + self.to };
        quiet.then(|| Timestamp::from_millis(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_hours_end_in_the_morning_also_over_midnight() {
        let until = |hours: &str, now: &str| {
            let hours: QuietHours = hours.parse().unwrap();
            hours.until(Timestamp::parse(&format!("2026-05-06T{now}:00Z")).unwrap()).map(Timestamp::to_minute)
        };
        assert_eq!(until("22:00-07:00", "23:10").as_deref(), Some("2026-05-07 07:00"));
        assert_eq!(until("22:00-07:00", "06:59").as_deref(), Some("2026-05-06 07:00"));
        assert_eq!(until("22:00-07:00", "07:00"), None);
        assert_eq!(until("12:00 - 13:30", "13:29").as_deref(), Some("2026-05-06 13:30"));
        assert_eq!(until("12:00-13:30", "11:59"), None);
        for bad in ["", "22-07", "24:00-07:00", "22:60-07:00", "7:00-08:00", "07:00-07:00", "+1:00-02:00"] {
            assert_eq!(bad.parse::<QuietHours>(), Err(NotQuietHours), "{bad}");
        }
    }
}
