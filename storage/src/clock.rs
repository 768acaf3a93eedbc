//! A backend's clock and its history: resource versions ↔ revisions. Pure.
//!
//! The clock is a key whose value is the epoch and whose mod_revision is the *base*. Every change of an object compares
//! the base, so the clock in force at a revision is the newest tick at or below it:
//!
//! ```text
//! revision   90      91 92 93      94        95 96
//!            tick 7  put put put   tick 9    put delete
//! RV             (7,1) (7,2) (7,3)       (9,1) (9,2)
//! cut(8) = cut(9) = 94: everything below has a smaller RV than (9,0,0), everything above a greater one
//! ```

use crate::backend::Revision;
use crate::resource_version::{Epoch, OFFSET_MAX, ResourceVersion, Slot};
use std::collections::VecDeque;

/// Milliseconds of one epoch.
pub const EPOCH_MILLIS: u64 = 25;
/// 2026-01-01T00:00:00Z in milliseconds since 1970.
pub const EPOCH_ZERO_MILLIS: u64 = 1_767_225_600_000;
/// A jump of more epochs than this (a year) above the fleet's highest is refused.
pub const EPOCH_JUMP_MAX: u64 = 366 * 24 * 3600 * 1000 / EPOCH_MILLIS;
/// A base may be used while fewer revisions than this have passed since.
pub const BASE_REVISIONS_MAX: u64 = OFFSET_MAX / 2;
/// Ticks that are remembered per backend: at 40 a second, what 13 minutes hold. Older ones are forgotten (410).
pub const CLOCK_HISTORY_MAX: usize = 32_768;

/// The epoch of a wall time in milliseconds since 1970.
#[must_use]
pub fn epoch_at(wall_millis: u64) -> Epoch {
    Epoch(wall_millis.saturating_sub(EPOCH_ZERO_MILLIS) / EPOCH_MILLIS)
}

/// A tick: from revision `base` on, changes belong to `epoch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// The epoch.
    pub epoch: Epoch,
    /// The revision of the tick.
    pub base: Revision,
}

impl Clock {
    /// The resource version of a commit at `revision` under this clock; `None` when the offset is out of range.
    #[must_use]
    pub fn resource_version(self, revision: Revision, slot: Slot) -> Option<ResourceVersion> {
        ResourceVersion::new(self.epoch, revision.checked_sub(self.base)?, slot).ok()
    }
}

/// The value of the clock key.
#[must_use]
pub fn encode_epoch(epoch: Epoch) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&epoch.0.to_be_bytes())
}

/// Reads what [`encode_epoch`] wrote.
#[must_use]
pub fn decode_epoch(value: &[u8]) -> Option<Epoch> {
    value
        .try_into()
        .ok()
        .map(|bytes| Epoch(u64::from_be_bytes(bytes)))
}

/// The ticks of one backend that are retained, oldest first.
#[derive(Debug, Clone, Default)]
pub struct ClockHistory {
    ticks: VecDeque<Clock>,
    /// The first entry is the backend's first tick ever: before it there was nothing.
    complete: bool,
}

/// Where a resource version stands in one backend's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// All revisions up to this one are at or below the resource version, all later ones above it.
    After(Revision),
    /// The history does not reach back so far, or the resource version is none of this backend.
    Expired,
    /// The backend has to be ticked above the resource version's epoch first.
    NeedsTick,
}

impl ClockHistory {
    /// A history that starts with these ticks. `complete`: the first is the backend's first ever.
    #[must_use]
    pub fn new(ticks: impl IntoIterator<Item = Clock>, complete: bool) -> Self {
        let mut history = Self {
            ticks: VecDeque::new(),
            complete,
        };
        ticks.into_iter().for_each(|tick| history.push(tick));
        history
    }

    /// Adds the next tick. Ticks that are known already are left out.
    pub fn push(&mut self, tick: Clock) {
        if self.ticks.back().is_some_and(|last| tick.base <= last.base) {
            return;
        }
        self.ticks.push_back(tick);
        if self.ticks.len() > CLOCK_HISTORY_MAX {
            self.ticks.pop_front();
            self.complete = false;
        }
    }

    /// Forgets the ticks that ended before the compact revision.
    pub fn trim(&mut self, compact_revision: Revision) {
        while self
            .ticks
            .get(1)
            .is_some_and(|second| second.base <= compact_revision)
        {
            self.ticks.pop_front();
            self.complete = false;
        }
    }

    /// The newest tick.
    #[must_use]
    pub fn newest(&self) -> Option<Clock> {
        self.ticks.back().copied()
    }

    /// The clock in force at a revision.
    #[must_use]
    pub fn in_force_at(&self, revision: Revision) -> Option<Clock> {
        let after = self.ticks.partition_point(|tick| tick.base <= revision);
        after.checked_sub(1).map(|at| self.ticks[at])
    }

    /// The first tick whose epoch is at least `epoch`: its base is the cut. `Err`: forgotten. `Ok(None)`: not yet.
    pub fn cut(&self, epoch: Epoch) -> Result<Option<Revision>, Forgotten> {
        let at = self.ticks.partition_point(|tick| tick.epoch < epoch);
        match self.ticks.get(at) {
            // An older tick that is forgotten may have been the first.
            Some(tick) if at == 0 && !self.complete && tick.epoch > epoch => Err(Forgotten),
            tick => Ok(tick.map(|tick| tick.base)),
        }
    }

    /// Where `rv` stands in the log of the backend `slot`.
    #[must_use]
    pub fn position(&self, rv: ResourceVersion, slot: Slot) -> Position {
        let (epoch, offset) = (rv.epoch(), rv.offset());
        let above = self.ticks.partition_point(|tick| tick.epoch <= epoch);
        let limit = self.ticks.get(above).map(|tick| tick.base);
        let exact = above
            .checked_sub(1)
            .map(|at| self.ticks[at])
            .filter(|tick| tick.epoch == epoch);
        let of_this_backend = offset > 0 && rv.slot() == slot;
        match (exact, limit) {
            (Some(tick), Some(limit)) if of_this_backend && tick.base + offset >= limit => Position::Expired,
            (Some(tick), Some(limit)) => {
                let covered = tick.base + offset - u64::from(slot > rv.slot());
                Position::After(covered.min(limit - 1))
            }
            // Whatever else commits in this epoch has a higher RV if it is of this backend, or if rv is the cut itself.
            (Some(tick), None) if of_this_backend || offset == 0 => Position::After(tick.base + offset),
            (None, Some(_)) if of_this_backend => Position::Expired,
            (None, Some(_)) if above == 0 && !self.complete => Position::Expired,
            (None, Some(limit)) => Position::After(limit - 1),
            (_, None) => Position::NeedsTick,
        }
    }

    /// The position of a resume that forgets the next tick and the slot. Wrong: a test shows that it is noticed.
    #[must_use]
    pub(crate) fn position_without_limit(&self, rv: ResourceVersion) -> Position {
        let at = self
            .ticks
            .partition_point(|tick| tick.epoch <= rv.epoch())
            .checked_sub(1);
        at.map_or(Position::Expired, |at| {
            Position::After(self.ticks[at].base + rv.offset())
        })
    }
}

/// The history does not reach back so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forgotten;

#[cfg(test)]
mod tests {
    use super::*;

    fn history(ticks: &[(u64, u64)], complete: bool) -> ClockHistory {
        ClockHistory::new(
            ticks.iter().map(|&(e, base)| Clock {
                epoch: Epoch(e),
                base,
            }),
            complete,
        )
    }

    #[test]
    fn cut_is_the_first_tick_at_or_above() {
        let h = history(&[(5, 10), (7, 20), (9, 30)], false);
        let check = |e, expect| assert_eq!(h.cut(Epoch(e)), expect, "cut({e})");
        check(5, Ok(Some(10)));
        check(6, Ok(Some(20)));
        check(9, Ok(Some(30)));
        check(10, Ok(None));
        check(4, Err(Forgotten));
        assert_eq!(history(&[(5, 10)], true).cut(Epoch(4)), Ok(Some(10)));
    }

    #[test]
    fn positions() {
        let h = history(&[(5, 10), (7, 20), (9, 30)], false);
        let check = |(e, o, s): (u64, u64, u16), slot: u16, expect| {
            let rv = ResourceVersion::new(Epoch(e), o, Slot(s)).expect("in range");
            assert_eq!(h.position(rv, Slot(slot)), expect, "({e}, {o}, {s}) on {slot}");
        };
        check((7, 3, 1), 1, Position::After(23));
        check((7, 3, 1), 0, Position::After(23));
        check((7, 3, 1), 2, Position::After(22));
        check((7, 0, 0), 2, Position::After(19));
        check((7, 15, 1), 0, Position::After(29));
        check((7, 15, 1), 1, Position::Expired);
        check((6, 3, 1), 0, Position::After(19));
        check((6, 3, 1), 1, Position::Expired);
        check((9, 4, 1), 1, Position::After(34));
        check((9, 0, 0), 1, Position::After(30));
        check((9, 4, 1), 0, Position::NeedsTick);
        check((10, 0, 0), 0, Position::NeedsTick);
        check((4, 0, 0), 0, Position::Expired);
        let born_late = history(&[(5, 10)], true);
        assert_eq!(
            born_late.position(ResourceVersion::cut(Epoch(4)), Slot(1)),
            Position::After(9)
        );
    }

    #[test]
    fn trimming_keeps_the_clock_in_force() {
        let mut h = history(&[(5, 10), (7, 20), (9, 30)], true);
        h.trim(25);
        assert_eq!(
            h.in_force_at(26),
            Some(Clock {
                epoch: Epoch(7),
                base: 20
            })
        );
        assert_eq!(h.in_force_at(19), None);
        assert_eq!(h.cut(Epoch(6)), Err(Forgotten));
    }
}
