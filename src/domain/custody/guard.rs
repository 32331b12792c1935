//! The guards of [`super::Custody::step`] that the model check switches off one by one, to see that
//! it would notice their loss.

/// A guard that the model check can take away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    /// A "no" stops what goes forward.
    Held,
    /// Nothing settles while it can still be reversed.
    Window,
    /// Nothing becomes final without a gate that passed a short time ago.
    FreshPass,
    /// Nothing settles before it was seen to work at the target.
    Tested,
}

/// The guards that hold: all of them, outside the model check.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guards {
    #[cfg(test)]
    without: Option<Guard>,
}

impl Guards {
    pub const fn all() -> Self {
        Self {
            #[cfg(test)]
            without: None,
        }
    }

    #[cfg(test)]
    pub const fn without(guard: Guard) -> Self {
        Self { without: Some(guard) }
    }

    #[cfg(test)]
    pub fn holds(self, guard: Guard) -> bool {
        self.without != Some(guard)
    }

    #[cfg(not(test))]
    pub const fn holds(self, _: Guard) -> bool {
        true
    }
}
