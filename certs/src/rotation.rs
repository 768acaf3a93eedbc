//! When a certificate is renewed, and how an authority that many share is replaced: pure functions of the state and the
//! time.
//!
//! An authority is replaced in three steps, so that at no moment a leaf is served that a bundle out there does not verify:
//!
//! ```text
//! bundle   A ───────────── A B ──────────────────────────────────────── B ──▶
//! leaves     by A                      │ by B                           │
//!          AddNext: B is trusted,   Switch: the bundle with B has been  DropPrevious: the last leaf
//!          but signs nothing yet    out long enough, everybody has it   by A has expired
//! ```

use crate::UnixSeconds;
use crate::authority::CLOCK_SKEW_SECONDS;

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

/// What is known of an authority that replicas share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RotationState {
    /// The one that signs.
    pub current: Option<Validity>,
    /// The one that will sign; it is in the bundle.
    pub next: Option<NextAuthority>,
    /// Those that signed; they are in the bundle.
    pub previous: Vec<PreviousAuthority>,
}

/// An authority that is trusted and does not sign yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextAuthority {
    /// Its own.
    pub validity: Validity,
    /// When it came into the bundle, by the clock of who added it.
    pub since: UnixSeconds,
}

/// An authority that no longer signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreviousAuthority {
    /// Its own.
    pub validity: Validity,
    /// When the next one took over, by the clock of who decided it.
    pub replaced_at: UnixSeconds,
}

/// Times of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotationPolicy {
    /// How long an authority lives, in days.
    pub authority_days: u16,
    /// How long a leaf lives at most, in days.
    pub leaf_days: u16,
    /// How long a bundle is out, at least, before leaves need what is new in it, in seconds.
    pub bundle_out_seconds: i64,
}

impl Default for RotationPolicy {
    fn default() -> Self {
        Self {
            authority_days: 365,
            leaf_days: 30,
            bundle_out_seconds: 3600,
        }
    }
}

/// What to do with the authority that replicas share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotationAction {
    /// Nothing until then.
    Keep {
        /// When to look again.
        look_at: UnixSeconds,
    },
    /// There is none that works: make one that signs at once.
    Create,
    /// Make the next one and trust it.
    AddNext,
    /// The next one signs from now on.
    Switch,
    /// Forget those whose leaves have all expired.
    DropPrevious,
}

/// The next step of a rotation. `everybody_has_next`: every client's bundle is known to hold the next authority.
#[must_use]
pub fn rotate(
    now: UnixSeconds,
    state: &RotationState,
    everybody_has_next: bool,
    policy: RotationPolicy,
) -> RotationAction {
    /// How often it is looked whether everybody has the next one.
    const LOOK_SECONDS: i64 = 60;
    const DAY: i64 = 86400;
    let Some(current) = state.current else {
        return RotationAction::Create;
    };
    if state.previous.iter().any(|p| is_forgotten(now, *p, policy)) {
        return RotationAction::DropPrevious;
    }
    if now > current.not_after {
        // Nobody accepts its leaves any more, so the next one cannot be worse.
        return match state.next {
            Some(_) => RotationAction::Switch,
            None => RotationAction::Create,
        };
    }
    match (decide(now, current), state.next) {
        (_, Some(next)) => {
            let out_at = next.since.saturating_add(policy.bundle_out_seconds);
            if now >= out_at && everybody_has_next {
                RotationAction::Switch
            } else {
                RotationAction::Keep {
                    look_at: out_at.max(now.saturating_add(LOOK_SECONDS)),
                }
            }
        }
        (Decision::Renew, None) => RotationAction::AddNext,
        (Decision::Keep { renew_at }, None) => RotationAction::Keep {
            look_at: renew_at.min(now.saturating_add(DAY)),
        },
        // It is not valid yet: our clock is far behind that of who made it. Replacing it would break everybody else.
        (Decision::Replace, None) => RotationAction::Keep {
            look_at: now.saturating_add(LOOK_SECONDS),
        },
    }
}

/// Whether its last leaf has expired by every clock. Leaves are issued only by who has just seen the authority current,
/// so none is younger than its replacement by more than clocks differ.
#[must_use]
pub(crate) fn is_forgotten(now: UnixSeconds, previous: PreviousAuthority, policy: RotationPolicy) -> bool {
    let last_leaf = previous
        .replaced_at
        .saturating_add(i64::from(policy.leaf_days) * 86400);
    let gone_at = last_leaf.min(previous.validity.not_after);
    now > gone_at.saturating_add(2 * CLOCK_SKEW_SECONDS)
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

    #[test]
    fn an_authority_is_replaced_in_three_steps() {
        const DAY: i64 = 86400;
        let policy = RotationPolicy {
            authority_days: 300,
            leaf_days: 30,
            bundle_out_seconds: 3600,
        };
        let life = |from: i64| Validity {
            not_before: from,
            not_after: from + 300 * DAY,
        };
        let only = RotationState {
            current: Some(life(0)),
            ..RotationState::default()
        };
        let with_next = |since| RotationState {
            next: Some(NextAuthority {
                validity: life(since),
                since,
            }),
            ..only.clone()
        };
        let with_previous = |replaced_at| RotationState {
            previous: vec![PreviousAuthority {
                validity: life(0),
                replaced_at,
            }],
            current: Some(life(200 * DAY)),
            ..RotationState::default()
        };
        let check = |name: &str, now, state: &RotationState, everybody, expect| {
            assert_eq!(rotate(now, state, everybody, policy), expect, "{name}");
        };
        use RotationAction::{AddNext, Create, DropPrevious, Keep, Switch};
        check("nothing", 0, &RotationState::default(), true, Create);
        check("fresh", 0, &only, true, Keep { look_at: DAY });
        check(
            "nearly due",
            200 * DAY - 5,
            &only,
            true,
            Keep { look_at: 200 * DAY },
        );
        check("due", 200 * DAY, &only, true, AddNext);
        check(
            "not out long enough",
            201 * DAY,
            &with_next(201 * DAY - 10),
            true,
            Keep {
                look_at: 201 * DAY + 3590,
            },
        );
        check(
            "not with everybody",
            201 * DAY,
            &with_next(200 * DAY),
            false,
            Keep {
                look_at: 201 * DAY + 60,
            },
        );
        check("out", 201 * DAY, &with_next(200 * DAY), true, Switch);
        check(
            "too late to wait",
            301 * DAY,
            &with_next(200 * DAY),
            false,
            Switch,
        );
        check("expired, alone", 301 * DAY, &only, true, Create);
        check(
            "a clock far behind",
            -DAY,
            &only,
            true,
            Keep { look_at: 60 - DAY },
        );
        let leaves_end = 230 * DAY + 2 * CLOCK_SKEW_SECONDS;
        check(
            "leaves live",
            leaves_end,
            &with_previous(200 * DAY),
            true,
            Keep {
                look_at: leaves_end + DAY,
            },
        );
        check(
            "leaves are gone",
            leaves_end + 1,
            &with_previous(200 * DAY),
            true,
            DropPrevious,
        );
    }
}
