//! What a provider's answer says about the credential that it was asked with.

/// What a whoami showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    Works,
    /// A limit, or a failure of the provider itself: nothing is known of the credential. Ask again.
    Busy,
    Refused,
}

impl Upstream {
    /// Reads the status of an answer.
    pub const fn of(status: u16) -> Self {
        match status {
            200..=299 => Self::Works,
            429 | 500.. => Self::Busy,
            _ => Self::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_failures_of_the_provider_say_nothing_about_a_credential() {
        for (status, expected) in [
            (200, Upstream::Works),
            (204, Upstream::Works),
            (302, Upstream::Refused),
            (401, Upstream::Refused),
            (404, Upstream::Refused),
            (429, Upstream::Busy),
            (503, Upstream::Busy),
        ] {
            assert_eq!(Upstream::of(status), expected, "{status}");
        }
    }
}
