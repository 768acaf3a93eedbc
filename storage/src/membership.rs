//! Who belongs to the fleet: one object with one generation. Pure.
//!
//! It is decided outside, by compare-and-swap (in a cluster by the leader, in an object of the control plane), handed to
//! every replica's store, and written as key `members` into the backends. Every change here returns the next generation;
//! what does not fit is refused. It does not know whether anybody can be reached.
//!
//! ```text
//!            joined ──▶ Active ──▶ Leaving ──▶ Removed ──▶ (forgotten)
//!                        ▲   │        │
//!               returned │   ▼ lost   │ lost
//!                        ├─ Lost ◀────┤
//!                        │   ▼ given up
//!                        └─ Offline ◀─┘──▶ (abandoned)
//! ```

pub mod report;

use crate::resource_version::{Epoch, SLOT_MAX, Slot};
use serde::{Deserialize, Serialize};

/// Who belongs to the fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// Rises by one with every decision.
    pub generation: u64,
    /// In the order of their slots.
    pub members: Vec<MemberRecord>,
    /// Resource versions of lower epochs may miss changes of members that are forgotten: `Expired`.
    #[serde(default)]
    pub horizon: Epoch,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberRecord {
    /// Its number, written into its identity.
    pub slot: Slot,
    /// The cluster's name, for people.
    pub name: String,
    /// The cluster's uid, written into its identity.
    pub uid: String,
    /// What it is to the fleet.
    #[serde(default)]
    pub state: MemberState,
    /// The generation in which it got this state.
    #[serde(default)]
    pub since: u64,
    /// The generation that its own `members` must say before it takes part: that of its joining, or of its last return.
    #[serde(default)]
    pub opens: u64,
    /// How often it was accepted with data older than it had had.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub incarnation: u64,
    /// What was missed of it before it returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<Missed>,
}

pub(crate) fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What watches, and perhaps lists, went on without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Missed {
    /// Its changes of this epoch and above.
    pub from: Epoch,
    /// Lists left it out as well: its objects, not only its changes.
    #[serde(default)]
    pub objects: bool,
}

/// What a member is to the fleet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberState {
    /// It takes part in everything, once its own `members` says so.
    #[default]
    Active,
    /// It takes part, and no namespace is claimed on it any more.
    Leaving,
    /// It owned nothing when it left. Its history is still read for resource versions up to then.
    #[serde(rename_all = "camelCase")]
    Removed {
        /// No change of it is above this epoch.
        last: Epoch,
    },
    /// It cannot be reached. Watches over all namespaces go on without it.
    #[serde(rename_all = "camelCase")]
    Lost {
        /// Its changes of this epoch and above may be missing in what watches have delivered (`J`).
        from: Epoch,
    },
    /// It was given up for now, by somebody who has said so: lists leave it out as well.
    #[serde(rename_all = "camelCase")]
    Offline {
        /// As of [`MemberState::Lost`].
        from: Epoch,
    },
}

impl MemberState {
    /// Whether lists and watches over all namespaces need it.
    #[must_use]
    pub fn serves(self) -> bool {
        matches!(self, Self::Active | Self::Leaving)
    }

    /// Whether it is lost, or offline.
    #[must_use]
    pub fn is_away(self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Offline { .. })
    }

    /// The epoch below which watches take its changes; `None`: all of them.
    #[must_use]
    pub fn end(self) -> Option<Epoch> {
        match self {
            Self::Active | Self::Leaving => None,
            Self::Removed { last } => Some(Epoch(last.0 + 1)),
            Self::Lost { from } | Self::Offline { from } => Some(from),
        }
    }
}

/// Epochs `from..to` in which a member was lost. What it committed then, watches over all namespaces have not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The first epoch of the gap.
    pub from: Epoch,
    /// The epoch in which it came back.
    pub to: Epoch,
    /// Lists left it out: whoever goes on from one of them has missed its objects.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub objects: bool,
}

impl Gap {
    /// Whether a watch that has delivered everything up to this epoch went on without the member.
    #[must_use]
    pub fn holds(&self, epoch: Epoch) -> bool {
        (self.from..self.to).contains(&epoch)
    }

    /// Whether the member began anew: it was restored from a backup, or wiped, and accepted as it is.
    #[must_use]
    pub fn begins_anew(&self) -> bool {
        self.objects && self.from == Epoch(0)
    }
}

/// Why a decision is refused. Whoever asked for it must act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Slot, name or uid belong to another member, or to one whose history is still retained.
    #[error("{what} is taken by cluster {by:?}")]
    Taken {
        /// What is taken.
        what: String,
        /// By whom.
        by: String,
    },
    /// There is no such slot.
    #[error("slot {0} is above the highest slot {SLOT_MAX}")]
    NoSuchSlot(u16),
    /// No member has this slot.
    #[error("no member has slot {0}")]
    NotAMember(u16),
    /// The member's state does not allow it.
    #[error("cluster {name:?} is {state:?} and cannot be {wanted}")]
    WrongState {
        /// The member.
        name: String,
        /// Its state.
        state: MemberState,
        /// What was asked for.
        wanted: &'static str,
    },
}

impl Membership {
    /// The member with this slot.
    #[must_use]
    pub fn member(&self, slot: Slot) -> Option<&MemberRecord> {
        self.members.iter().find(|member| member.slot == slot)
    }

    /// Whether anybody else serves. Replicas hear of decisions from members that do: of the last one's departure nobody would.
    #[must_use]
    pub fn is_served_without(&self, slot: Slot) -> bool {
        let mut others = self.members.iter().filter(|other| other.slot != slot);
        others.any(|other| other.state.serves())
    }

    /// The lowest slot that nobody has; a removed member keeps its slot until it is forgotten.
    #[must_use]
    pub fn free_slot(&self) -> Option<Slot> {
        (0..=SLOT_MAX).map(Slot).find(|slot| self.member(*slot).is_none())
    }

    /// A new member.
    ///
    /// # Errors
    /// `Taken`, `NoSuchSlot`.
    pub fn joined(&self, slot: Slot, name: &str, uid: &str) -> Result<Self, MembershipError> {
        if slot.0 > SLOT_MAX {
            return Err(MembershipError::NoSuchSlot(slot.0));
        }
        for member in &self.members {
            let taken = [
                (member.slot == slot, format!("slot {}", slot.0)),
                (member.name == name, format!("the name {name}")),
                (member.uid == uid, format!("the uid {uid}")),
            ];
            if let Some((_, what)) = taken.into_iter().find(|(taken, _)| *taken) {
                let by = member.name.clone();
                return Err(MembershipError::Taken { what, by });
            }
        }
        let mut next = self.next();
        next.members.push(MemberRecord {
            slot,
            name: name.to_owned(),
            uid: uid.to_owned(),
            state: MemberState::Active,
            since: next.generation,
            opens: next.generation,
            incarnation: 0,
            missed: None,
        });
        next.members.sort_by_key(|member| member.slot);
        Ok(next)
    }

    /// No namespace is claimed on it any more; what it owns has to move away.
    ///
    /// # Errors
    /// `NotAMember`, `WrongState`.
    pub fn leaving(&self, slot: Slot) -> Result<Self, MembershipError> {
        self.change(slot, "leaving", |record| {
            (record.state == MemberState::Active).then_some(MemberState::Leaving)
        })
    }

    /// It stays after all.
    ///
    /// # Errors
    /// `NotAMember`, `WrongState`.
    pub fn staying(&self, slot: Slot) -> Result<Self, MembershipError> {
        self.change(slot, "staying", |record| {
            (record.state == MemberState::Leaving).then_some(MemberState::Active)
        })
    }

    /// It has left: `last` is what `FederatedStore::verify_owns_nothing` answered.
    ///
    /// # Errors
    /// `NotAMember`, `WrongState`.
    pub fn removed(&self, slot: Slot, last: Epoch) -> Result<Self, MembershipError> {
        self.change(slot, "removed", |record| {
            (record.state == MemberState::Leaving).then_some(MemberState::Removed { last })
        })
    }

    /// A removed member whose history nobody can ask for any more. Its slot is free.
    ///
    /// # Errors
    /// `NotAMember`, `WrongState`.
    pub fn forgotten(&self, slot: Slot) -> Result<Self, MembershipError> {
        let member = self.member(slot).ok_or(MembershipError::NotAMember(slot.0))?;
        let MemberState::Removed { last } = member.state else {
            return Err(wrong_state(member, "forgotten"));
        };
        let mut next = self.next();
        next.members.retain(|member| member.slot != slot);
        next.horizon = next.horizon.max(Epoch(last.0 + 1));
        Ok(next)
    }

    /// One that is offline, and will not come back. Its slot is free; versions up to `last`, the newest epoch, are expired.
    ///
    /// # Errors
    /// `NotAMember`, `WrongState`.
    pub fn abandoned(&self, slot: Slot, last: Epoch) -> Result<Self, MembershipError> {
        let member = self.member(slot).ok_or(MembershipError::NotAMember(slot.0))?;
        if !matches!(member.state, MemberState::Offline { .. }) {
            return Err(wrong_state(member, "abandoned"));
        }
        let mut next = self.next();
        next.members.retain(|member| member.slot != slot);
        next.horizon = next.horizon.max(Epoch(last.0 + 1));
        Ok(next)
    }

    /// It is lost: `from` is the lowest of its clocks that any live replica has released up to.
    ///
    /// # Errors
    /// `NotAMember`, `WrongState`.
    pub fn lost(&self, slot: Slot, from: Epoch) -> Result<Self, MembershipError> {
        self.gone(slot, "lost", |state| {
            state.serves().then_some(MemberState::Lost { from })
        })
    }

    /// It is left out of lists as well; `from` as for [`Membership::lost`], and for one that is lost already the lower of both.
    ///
    /// # Errors
    /// `NotAMember`, `WrongState`.
    pub fn offline(&self, slot: Slot, from: Epoch) -> Result<Self, MembershipError> {
        self.gone(slot, "offline", |state| match state {
            MemberState::Active | MemberState::Leaving => Some(MemberState::Offline { from }),
            MemberState::Lost { from: before } => Some(MemberState::Offline {
                from: before.min(from),
            }),
            MemberState::Removed { .. } | MemberState::Offline { .. } => None,
        })
    }

    /// It is back.
    ///
    /// # Errors
    /// `NotAMember`, `WrongState`.
    pub fn returned(&self, slot: Slot) -> Result<Self, MembershipError> {
        let mut missed = None;
        if let Some(member) = self.member(slot) {
            let before = member.missed.is_some_and(|missed| missed.objects);
            missed = match member.state {
                MemberState::Lost { from } => Some(Missed {
                    from,
                    objects: before,
                }),
                MemberState::Offline { from } => Some(Missed { from, objects: true }),
                _ => None,
            };
        }
        let opens = self.generation + 1;
        self.change(slot, "back", |record| {
            (record.missed, record.opens) = (missed, opens);
            missed.map(|_| MemberState::Active)
        })
    }

    /// It was restored from a backup, or wiped, and is accepted as it is: nothing that was said of it before it is opened
    /// again counts on.
    ///
    /// # Errors
    /// `NotAMember`, `WrongState`.
    pub fn accepted(&self, slot: Slot) -> Result<Self, MembershipError> {
        let opens = self.generation + 1;
        self.change(slot, "accepted as it is", |record| {
            (record.opens, record.incarnation) = (opens, record.incarnation + 1);
            record.missed = Some(Missed {
                from: Epoch(0),
                objects: true,
            });
            (!matches!(record.state, MemberState::Removed { .. })).then_some(MemberState::Active)
        })
    }

    /// It is not reached any more. What was missed before it returned last is still missing if it never was opened, and then
    /// `from` is not above that.
    fn gone(
        &self,
        slot: Slot,
        wanted: &'static str,
        to: impl Fn(MemberState) -> Option<MemberState>,
    ) -> Result<Self, MembershipError> {
        self.change(slot, wanted, |record| {
            let state = to(record.state)?;
            let end = state.end().unwrap_or_default();
            record.missed = record.missed.filter(|missed| end <= missed.from);
            Some(state)
        })
    }

    fn next(&self) -> Self {
        Self {
            generation: self.generation + 1,
            ..self.clone()
        }
    }

    fn change(
        &self,
        slot: Slot,
        wanted: &'static str,
        to: impl FnOnce(&mut MemberRecord) -> Option<MemberState>,
    ) -> Result<Self, MembershipError> {
        let before = self.member(slot).ok_or(MembershipError::NotAMember(slot.0))?;
        let mut changed = before.clone();
        let state = to(&mut changed).ok_or_else(|| wrong_state(before, wanted))?;
        let mut next = self.next();
        (changed.state, changed.since) = (state, next.generation);
        for member in next.members.iter_mut().filter(|member| member.slot == slot) {
            *member = changed.clone();
        }
        Ok(next)
    }
}

fn wrong_state(member: &MemberRecord, wanted: &'static str) -> MembershipError {
    MembershipError::WrongState {
        name: member.name.clone(),
        state: member.state,
        wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Membership {
        let one = Membership::default().joined(Slot(0), "a", "uid-a").expect("free");
        one.joined(Slot(1), "b", "uid-b").expect("free")
    }

    #[test]
    fn every_decision_is_the_next_generation() {
        let leaving = two().leaving(Slot(1)).expect("active");
        let removed = leaving.removed(Slot(1), Epoch(7)).expect("leaving");
        let forgotten = removed.forgotten(Slot(1)).expect("removed");
        let generations = [&leaving, &removed, &forgotten].map(|m| m.generation);
        assert_eq!(generations, [3, 4, 5]);
        assert_eq!(forgotten.horizon, Epoch(8));
        assert_eq!(
            (removed.free_slot(), forgotten.free_slot()),
            (Some(Slot(2)), Some(Slot(1)))
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let check = |result: Result<Membership, MembershipError>, expect: &str| {
            assert_eq!(result.expect_err("refused").to_string(), expect);
        };
        check(
            two().joined(Slot(1), "c", "uid-c"),
            "slot 1 is taken by cluster \"b\"",
        );
        check(
            two().joined(Slot(2), "b", "uid-c"),
            "the name b is taken by cluster \"b\"",
        );
        check(
            two().joined(Slot(600), "c", "uid-c"),
            "slot 600 is above the highest slot 511",
        );
        check(
            two().removed(Slot(1), Epoch(1)),
            "cluster \"b\" is Active and cannot be removed",
        );
        check(
            two().returned(Slot(0)),
            "cluster \"a\" is Active and cannot be back",
        );
        check(two().leaving(Slot(5)), "no member has slot 5");
    }

    #[test]
    fn the_gap_of_a_return_begins_where_it_was_lost() {
        let check = |membership: Result<Membership, MembershipError>, state: MemberState, missed| {
            let membership = membership.expect("it fits");
            let member = membership.member(Slot(0)).expect("a member");
            assert_eq!((member.state, member.missed), (state, missed));
        };
        let missed = |from, objects| {
            Some(Missed {
                from: Epoch(from),
                objects,
            })
        };
        let (lost, offline) = (
            |from| MemberState::Lost { from: Epoch(from) },
            |from| MemberState::Offline { from: Epoch(from) },
        );
        let gone = two().lost(Slot(0), Epoch(40)).expect("active");
        check(Ok(gone.clone()), lost(40), None);
        check(gone.returned(Slot(0)), MemberState::Active, missed(40, false));
        let given_up = gone.offline(Slot(0), Epoch(50)).expect("lost");
        check(Ok(given_up.clone()), offline(40), None);
        let abandoned = given_up.abandoned(Slot(0), Epoch(70)).expect("offline");
        assert_eq!((abandoned.member(Slot(0)), abandoned.horizon), (None, Epoch(71)));
        assert!(gone.abandoned(Slot(0), Epoch(70)).is_err());
        let back = given_up.returned(Slot(0)).expect("offline");
        check(Ok(back.clone()), MemberState::Active, missed(40, true));
        // Gone again before it was opened, and after.
        let again = back.lost(Slot(0), Epoch(40)).expect("active");
        check(Ok(again.clone()), lost(40), missed(40, true));
        check(again.returned(Slot(0)), MemberState::Active, missed(40, true));
        check(back.lost(Slot(0), Epoch(60)), lost(60), None);
        assert_eq!(
            given_up
                .offline(Slot(0), Epoch(1))
                .expect_err("refused")
                .to_string(),
            "cluster \"a\" is Offline { from: Epoch(40) } and cannot be offline"
        );
        let gap = Gap {
            from: Epoch(40),
            to: Epoch(50),
            objects: false,
        };
        assert_eq!(
            [39, 40, 49, 50].map(|e| gap.holds(Epoch(e))),
            [false, true, true, false]
        );
    }

    #[test]
    fn who_is_accepted_as_it_is_begins_anew() {
        let lost = two().lost(Slot(0), Epoch(40)).expect("active");
        for before in [two(), lost] {
            let accepted = before.accepted(Slot(0)).expect("a member");
            let member = accepted.member(Slot(0)).expect("a member");
            assert_eq!((member.state, member.incarnation), (MemberState::Active, 1));
            assert_eq!(
                (member.opens, member.since),
                (accepted.generation, accepted.generation)
            );
            let everything = Missed {
                from: Epoch(0),
                objects: true,
            };
            assert_eq!(member.missed, Some(everything));
        }
        let removed = two().leaving(Slot(0)).and_then(|m| m.removed(Slot(0), Epoch(1)));
        removed
            .expect("leaving")
            .accepted(Slot(0))
            .expect_err("it has left");
    }

    #[test]
    fn the_form_of_the_release_before_is_read() {
        let old = r#"{"generation":1,"members":[{"slot":0,"name":"a","uid":"u"}]}"#;
        let read: Membership = serde_json::from_str(old).expect("compatible");
        assert_eq!(read.members[0].state, MemberState::Active);
    }
}
