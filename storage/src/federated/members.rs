//! The key `members`: who belongs to the fleet, and which replicas serve it from how far away.
//!
//! In this release the members are fixed when the store opens. Every replica adds its round trips, so that all replicas
//! space the ticks of a backend by the slowest of them: far writers must get through between two ticks.

use super::fleet::Fleet;
use super::joined::Joined;
use crate::Error;
use crate::backend::{Compare, Op, Range, Txn};
use crate::key::{CLOCK, MEMBERS};
use crate::resource_version::Epoch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A replica that has not said anything for this many epochs (90 s) no longer counts.
const REPLICA_EPOCHS: u64 = 90_000 / crate::clock::EPOCH_MILLIS;
/// A replica repeats its round trips after this many epochs (30 s), or when one has changed by a quarter.
const REFRESH_EPOCHS: u64 = 30_000 / crate::clock::EPOCH_MILLIS;

/// The value of `members`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Members {
    generation: u64,
    members: Vec<MemberEntry>,
    #[serde(default)]
    replicas: BTreeMap<String, ReplicaEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MemberEntry {
    slot: u16,
    name: String,
    uid: String,
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

fn parse(value: &[u8]) -> Option<Members> {
    serde_json::from_slice(value).ok()
}

/// Takes the slowest live replica's round trip out of a value of `members`.
pub(crate) fn observe(fleet: &Fleet, joined: &Joined, value: &[u8]) {
    let Some(members) = parse(value) else {
        tracing::error!(cluster = %joined.member.name, "the key members cannot be read");
        return;
    };
    let oldest = fleet.now_epoch().0.saturating_sub(REPLICA_EPOCHS);
    let live = members.replicas.values().filter(|replica| replica.at >= oldest);
    let slowest = live
        .map(|replica| replica.round_trip_millis)
        .max()
        .unwrap_or_default();
    joined.state.lock().slowest_round_trip = Duration::from_millis(slowest);
}

/// Writes the membership and this replica's round trip into `members` of one backend, if it does not say so already.
/// Compare-and-swap under the clock; who loses tries again at the next occasion.
pub(crate) async fn publish(fleet: &Fleet, joined: &Arc<Joined>) -> Result<(), Error> {
    let read = joined
        .call(Txn::read([Range::key(MEMBERS), Range::key(CLOCK)]))
        .await
        .map_err(|e| joined.error(e))?;
    let mut answers = read
        .responses
        .into_iter()
        .map(crate::backend::OpResponse::into_range);
    let current = answers.next().and_then(|range| range.kvs.into_iter().next());
    let Some(clock) = answers.next().and_then(|range| joined.observe_clock(&range)) else {
        return Ok(());
    };

    let mut members = match &current {
        None => Members::default(),
        Some(kv) => parse(&kv.value).ok_or_else(|| joined.unavailable("the key members cannot be read"))?,
    };
    let now = fleet.now_epoch();
    let round_trip = joined.state.lock().round_trip.unwrap_or_default();
    let entries: Vec<MemberEntry> = fleet
        .backends
        .iter()
        .map(|j| MemberEntry {
            slot: j.slot().0,
            name: j.member.name.clone(),
            uid: j.member.uid.clone(),
        })
        .collect();
    let said = members.replicas.get(&fleet.replica);
    if members.members == entries && said.is_some_and(|said| is_current(said, now, round_trip)) {
        return Ok(());
    }
    if members.members != entries {
        members.generation += 1;
        members.members = entries;
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
    let value = serde_json::to_vec(&members).map_err(|e| Error::Internal(e.to_string()))?;
    observe(fleet, joined, &value);
    let txn = Txn {
        compare: vec![
            Compare::mod_revision(MEMBERS, current.map_or(0, |kv| kv.mod_revision)),
            Compare::mod_revision(CLOCK, clock.base),
        ],
        success: vec![Op::Put {
            key: MEMBERS.into(),
            value: value.into(),
        }],
        failure: vec![],
    };
    joined.call(txn).await.map_err(|e| joined.error(e))?;
    Ok(())
}

fn is_current(said: &ReplicaEntry, now: Epoch, round_trip: Duration) -> bool {
    let (then, now_millis) = (
        said.round_trip_millis,
        u64::try_from(round_trip.as_millis()).unwrap_or(u64::MAX),
    );
    said.at + REFRESH_EPOCHS >= now.0 && now_millis <= then + then / 4 + 5
}
