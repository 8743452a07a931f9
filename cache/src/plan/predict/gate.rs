//! Whether one guess is worth its bytes. Arithmetic only.

/// Below this share of a tier, room is free for the taking; from the higher one on, none is, until there is that much again.
pub const FILL_BELOW: f64 = 0.60;
/// See [`FILL_BELOW`].
pub const FILL_UNTIL: f64 = 0.85;
/// Most of a tier that unused guesses hold together: what is wrong must not take more than what is right can pay.
pub const SHARE_MAX: f64 = 0.25;
/// Share of a guess's time on the link that demand may have to wait for: the pieces that are on their way when it comes.
const LINK_WAIT: f64 = 0.05;

/// What a guess could win and lose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stakes {
    /// How likely it is to come true.
    pub probability: f64,
    /// Seconds of waiting that it saves then.
    pub saved: f64,
    /// Seconds until then at most.
    pub horizon: f64,
    /// Expected seconds of waiting a second that what must go for it would have saved.
    pub loss_rate: f64,
    /// Seconds that it takes of the link.
    pub link: f64,
    /// Share of the time that somebody waits for that link.
    pub busy: f64,
}

impl Stakes {
    /// Expected seconds saved.
    #[must_use]
    pub fn gain(&self) -> f64 {
        self.probability * self.saved
    }

    /// Expected seconds lost: what goes may be asked for until then, and demand may find the link taken.
    #[must_use]
    pub fn cost(&self) -> f64 {
        self.loss_rate * self.horizon + self.busy * LINK_WAIT * self.link
    }

    /// Whether it is worth it.
    #[must_use]
    pub fn worth(&self) -> bool {
        self.gain() > self.cost()
    }
}

/// Whether a tier may be filled with guesses, by its use and whether it was being filled.
#[must_use]
pub fn fills(used: u64, limit: u64, filling: bool) -> bool {
    let use_share = if limit == 0 { 1.0 } else { used as f64 / limit as f64 };
    use_share < if filling { FILL_UNTIL } else { FILL_BELOW }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_must_save_more_than_what_goes_for_it_and_what_it_holds_up() {
        let free = Stakes { probability: 0.6, saved: 6.0, horizon: 600.0, loss_rate: 0.0, link: 7.0, busy: 0.0 };
        assert!(free.worth());
        assert!(Stakes { loss_rate: 3.5 / 600.0, ..free }.worth());
        assert!(!Stakes { loss_rate: 3.7 / 600.0, ..free }.worth());
        assert!(!Stakes { saved: 0.5, busy: 1.0, ..free }.worth(), "demand would wait as long");
    }

    #[test]
    fn filling_begins_below_sixty_percent_and_ends_at_eighty_five() {
        assert_eq!([59, 60, 84].map(|used| fills(used, 100, false)), [true, false, false]);
        assert_eq!([59, 84, 85].map(|used| fills(used, 100, true)), [true, true, false]);
        assert!(!fills(0, 0, true));
    }
}
