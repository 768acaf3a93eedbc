//! Whether a backend is slow, with hysteresis: it is when it has been late for a while, and not any more when it has been well
//! in time for longer. Pure.

use std::time::Duration;
use tokio::time::Instant;

/// Later than this is late.
const LATE: Duration = Duration::from_secs(1);
/// Who is late for so long is slow.
const SLOW_AFTER: Duration = Duration::from_secs(10);
/// Earlier than this is well in time.
const IN_TIME: Duration = Duration::from_millis(500);
/// Who is well in time for so long is not slow any more.
const IN_TIME_AFTER: Duration = Duration::from_secs(60);

/// What is remembered of a backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Slowness {
    is_slow: bool,
    /// Since when it speaks against that.
    otherwise_since: Option<Instant>,
}

impl Slowness {
    /// Whether it is slow, now that it lags so far behind.
    pub(super) fn after(&mut self, lag: Duration, now: Instant) -> bool {
        let (is_otherwise, patience) = match self.is_slow {
            false => (lag > LATE, SLOW_AFTER),
            true => (lag < IN_TIME, IN_TIME_AFTER),
        };
        self.otherwise_since = is_otherwise.then(|| self.otherwise_since.unwrap_or(now));
        let turns = self
            .otherwise_since
            .is_some_and(|since| now.saturating_duration_since(since) >= patience);
        if turns {
            (self.is_slow, self.otherwise_since) = (!self.is_slow, None);
        }
        self.is_slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_slow_after_a_while_and_well_again_after_a_longer_one() {
        let start = Instant::now();
        let mut slowness = Slowness::default();
        let mut check = |seconds, lag_millis, expect| {
            let now = start + Duration::from_secs(seconds);
            let is_slow = slowness.after(Duration::from_millis(lag_millis), now);
            assert_eq!(is_slow, expect, "after {seconds} s");
        };
        check(0, 1500, false);
        check(9, 1500, false);
        // Once in time: it begins anew.
        check(10, 900, false);
        check(15, 1500, false);
        check(25, 1500, true);
        check(30, 100, true);
        // Neither late nor well in time.
        check(60, 700, true);
        check(65, 100, true);
        check(124, 100, true);
        check(125, 100, false);
        check(130, 1500, false);
    }
}
