//! When a certificate is renewed: a pure function of its validity and the time.

use crate::UnixSeconds;

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: UnixSeconds,
    /// The last second.
    pub not_after: UnixSeconds,
}

/// What to do with a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Use it. Look again at this time.
    Keep {
        /// When it is to be renewed.
        renew_at: UnixSeconds,
    },
    /// It still works, but a new one should take its place now.
    Renew,
    /// Nobody accepts it.
    Replace,
}

/// A certificate is renewed when less than a third of its life is left, so that a server that is down for a while comes
/// back with one that works.
#[must_use]
pub fn decide(now: UnixSeconds, validity: Validity) -> Decision {
    let Validity {
        not_before,
        not_after,
    } = validity;
    if now < not_before || now > not_after {
        return Decision::Replace;
    }
    let renew_at = not_after.saturating_sub(not_after.saturating_sub(not_before) / 3);
    if now >= renew_at {
        Decision::Renew
    } else {
        Decision::Keep { renew_at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_in_the_last_third_of_its_life() {
        let check = |now, expect| {
            assert_eq!(
                decide(
                    now,
                    Validity {
                        not_before: 100,
                        not_after: 400
                    }
                ),
                expect,
                "at {now}"
            )
        };
        check(99, Decision::Replace);
        check(100, Decision::Keep { renew_at: 300 });
        check(299, Decision::Keep { renew_at: 300 });
        check(300, Decision::Renew);
        check(400, Decision::Renew);
        check(401, Decision::Replace);
        check(i64::MAX, Decision::Replace);
    }

    #[test]
    fn nonsense_is_replaced() {
        for (not_before, not_after) in [(10, 5), (i64::MIN, i64::MIN), (i64::MAX, i64::MAX)] {
            assert_eq!(
                decide(
                    7,
                    Validity {
                        not_before,
                        not_after
                    }
                ),
                Decision::Replace
            );
        }
    }
}
