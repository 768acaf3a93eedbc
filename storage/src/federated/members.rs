//! The key `members`: who belongs to the fleet, when this backend was lost, and which replicas serve it from how far away.
//!
//! Every replica adds its round trips, so that all replicas space the ticks of a backend by the slowest of them: far
//! writers must get through between two ticks. Who the members are is decided outside and written by `roll_out`; a fleet
//! of fixed members writes those that it was opened with. Whatever shows a newer membership is acted on at once.

use super::fleet::Fleet;
use super::joined::{Joined, Own};
use crate::backend::{Compare, KeyValue, Op, OpResponse, Range, Revision, Txn};
use crate::clock::Clock;
use crate::key::{CLOCK, MEMBERS};
use crate::membership::{Gap, MemberState, Membership};
use crate::resource_version::Epoch;
use crate::{Error, Slot};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A replica that has not said anything for this many epochs (90 s) no longer counts.
const REPLICA_EPOCHS: u64 = 90_000 / crate::clock::EPOCH_MILLIS;
/// A replica repeats its round trips after this many epochs (30 s), or when one has changed by a quarter.
const REFRESH_EPOCHS: u64 = 30_000 / crate::clock::EPOCH_MILLIS;
/// Gaps that are remembered one by one; more than these become one with their neighbours.
const GAPS_MAX: usize = 64;

/// The value of `members`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Members {
    #[serde(flatten)]
    pub(crate) membership: Membership,
    /// When this backend was lost, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) gaps: Vec<Gap>,
    #[serde(default)]
    replicas: BTreeMap<String, ReplicaEntry>,
}

/// What a replica says of itself on one backend.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReplicaEntry {
    /// When it said so, as an epoch.
    at: u64,
    /// Its round trip to this backend, in milliseconds.
    round_trip_millis: u64,
}

/// The key as it was read, with the clock that was in force.
pub(crate) struct Read {
    pub(crate) members: Members,
    /// 0: there is none yet.
    pub(crate) revision: Revision,
    pub(crate) clock: Clock,
}

impl Members {
    fn parse(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok()
    }

    /// Becomes the membership `decided`, which the backend with this slot gets at `clock`.
    pub(crate) fn take(&mut self, decided: &Membership, slot: Slot, clock: Clock) {
        let record = decided.member(slot);
        let opened = record.filter(|r| r.state.serves() && self.membership.generation < r.opens);
        if let Some(missed) = opened.and_then(|record| record.missed) {
            self.gaps.push(Gap {
                from: missed.from,
                to: clock.epoch,
                objects: missed.objects,
            });
        }
        while self.gaps.len() > GAPS_MAX {
            let second = self.gaps.remove(1);
            let first = &mut self.gaps[0];
            *first = Gap {
                from: first.from.min(second.from),
                to: second.to,
                objects: first.objects || second.objects,
            };
        }
        self.membership = decided.clone();
    }
}

/// Whether a value of `members` lets namespaces be claimed on `joined`.
pub(crate) fn welcomes_claims(joined: &Joined, value: &[u8]) -> bool {
    let members = Members::parse(value);
    let record = members.as_ref().and_then(|m| m.membership.member(joined.slot()));
    record.is_some_and(|r| r.state == MemberState::Active && r.uid == joined.member.uid)
}

/// Whether a value of `members` says that `joined` leaves.
pub(crate) fn is_leaving(joined: &Joined, value: &[u8]) -> bool {
    let members = Members::parse(value);
    let record = members.as_ref().and_then(|m| m.membership.member(joined.slot()));
    record.is_some_and(|r| r.state == MemberState::Leaving && r.uid == joined.member.uid)
}

/// Learns from a value of `members` of one backend: the round trips, what it says of itself, and a newer membership. The
/// clock that was in force there is known before.
pub(crate) fn observe(fleet: &Fleet, joined: &Joined, value: &[u8]) {
    let Some(members) = Members::parse(value) else {
        tracing::error!(cluster = %joined.member.name, "the key members cannot be read");
        return;
    };
    let oldest = fleet.now_epoch().0.saturating_sub(REPLICA_EPOCHS);
    let live = members.replicas.values().filter(|replica| replica.at >= oldest);
    let slowest = live
        .map(|replica| replica.round_trip_millis)
        .max()
        .unwrap_or_default();
    joined.update(|state| {
        state.slowest_round_trip = Duration::from_millis(slowest);
        if members.membership.generation >= state.own.generation {
            state.own = Own {
                generation: members.membership.generation,
                gaps: members.gaps,
            };
        }
    });
    fleet.act_on(&members.membership);
}

/// Reads `members` and the clock of one backend. `None`: it has no clock yet.
pub(crate) async fn read(fleet: &Fleet, joined: &Joined) -> Result<Option<Read>, Error> {
    let read = joined
        .call(Txn::read([Range::key(MEMBERS), Range::key(CLOCK)]))
        .await
        .map_err(|e| joined.error(e))?;
    let mut answers = read.responses.into_iter().map(OpResponse::into_range);
    let current = answers.next().and_then(|range| range.kvs.into_iter().next());
    let Some(clock) = answers.next().and_then(|range| joined.observe_clock(&range)) else {
        return Ok(None);
    };
    fleet.saw_epoch(clock.epoch);
    let parse = |kv: &KeyValue| {
        Members::parse(&kv.value).ok_or_else(|| joined.unavailable("the key members cannot be read"))
    };
    Ok(Some(Read {
        members: current.as_ref().map(parse).transpose()?.unwrap_or_default(),
        revision: current.map_or(0, |kv| kv.mod_revision),
        clock,
    }))
}

/// Writes `members` if neither it nor the clock has changed since `read`. Whether it did is known for sure only if so.
pub(crate) async fn write(
    fleet: &Fleet,
    joined: &Joined,
    read: &Read,
    members: &Members,
) -> Result<bool, Error> {
    let value = serde_json::to_vec(members).map_err(|e| Error::Internal(e.to_string()))?;
    let value = Bytes::from(value);
    let txn = Txn {
        compare: vec![
            Compare::mod_revision(MEMBERS, read.revision),
            Compare::mod_revision(CLOCK, read.clock.base),
        ],
        success: vec![Op::Put {
            key: MEMBERS.into(),
            value: value.clone(),
        }],
        failure: vec![],
    };
    let written = joined.call(txn).await.map_err(|e| joined.error(e))?.succeeded;
    if written {
        observe(fleet, joined, &value);
    }
    Ok(written)
}

/// Writes this replica's round trip into `members` of one backend, if it does not say so already; in a fleet of fixed
/// members these as well. Compare-and-swap under the clock; who loses tries again at the next occasion.
pub(crate) async fn publish(fleet: &Fleet, joined: &Arc<Joined>) -> Result<(), Error> {
    let Some(read) = read(fleet, joined).await? else {
        return Ok(());
    };
    let mut members = read.members.clone();
    if fleet.decided {
        // Before the membership is rolled out to it there is nothing to add to.
        if read.revision == 0 {
            return Ok(());
        }
        let known = serde_json::to_vec(&members).map_err(|e| Error::Internal(e.to_string()))?;
        observe(fleet, joined, &known);
    } else {
        let fixed = fleet.view().membership.members.clone();
        if members.membership.members != fixed {
            members.membership.generation += 1;
            members.membership.members = fixed;
        }
    }
    let now = fleet.now_epoch();
    let round_trip = joined.state.lock().round_trip.unwrap_or_default();
    let said = members.replicas.get(&fleet.replica);
    if members.membership == read.members.membership
        && said.is_some_and(|said| is_current(said, now, round_trip))
    {
        return Ok(());
    }
    members
        .replicas
        .retain(|_, replica| replica.at + REPLICA_EPOCHS >= now.0);
    let round_trip_millis = u64::try_from(round_trip.as_millis()).unwrap_or(u64::MAX);
    members.replicas.insert(
        fleet.replica.clone(),
        ReplicaEntry {
            at: now.0,
            round_trip_millis,
        },
    );
    write(fleet, joined, &read, &members).await.map(drop)
}

fn is_current(said: &ReplicaEntry, now: Epoch, round_trip: Duration) -> bool {
    let (then, now_millis) = (
        said.round_trip_millis,
        u64::try_from(round_trip.as_millis()).unwrap_or(u64::MAX),
    );
    said.at + REFRESH_EPOCHS >= now.0 && now_millis <= then + then / 4 + 5
}
