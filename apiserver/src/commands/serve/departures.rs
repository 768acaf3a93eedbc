//! Who leaves the fleet, and when: from WorkloadClusters and what is known of the backends to the next decision. Pure.
//!
//! ```text
//! spec.state: Draining, or deleted ──▶ Leaving: no namespace is placed there any more
//! state: Active again              ──▶ Active
//! deleted, and it owns nothing     ──▶ Removed ──▶ its finalizer goes ──▶ forgotten when its history is
//! ```
//!
//! One replica at a time may act on it: two that see different objects would send a member to and fro.

use kube::ResourceExt;
use kube::api::DynamicObject;
use outrigger_storage::clock::EPOCH_MILLIS;
use outrigger_storage::membership::{MemberRecord, MemberState, Membership, MembershipError};
use outrigger_storage::{Epoch, Slot};
use std::collections::BTreeMap;
use std::time::Duration;

/// Our finalizer on a WorkloadCluster: it waits until nothing lives there.
pub(crate) const FINALIZER: &str = "outrigger.dev/fleet";
/// How long a backend that was removed has to stay: every replica reads its log up to a tick after its removal, and an idle
/// fleet ticks every 30 seconds.
const LAST_READS: Duration = Duration::from_secs(40);

/// What is wanted of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Active,
    /// It is to own nothing, and to stay.
    Drained,
    /// It is to go.
    Gone,
}

/// What is known beside the objects.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// Now.
    pub(crate) now: Epoch,
    /// For how long history is retained.
    pub(crate) retention: Duration,
    /// Leaving members that own nothing, by slot and by the generation they leave since, with the epoch that none of their
    /// changes is above.
    pub(crate) empty: BTreeMap<(Slot, u64), Epoch>,
}

fn wanted(record: &MemberRecord, clusters: &[DynamicObject]) -> Wanted {
    let of_record = |cluster: &&DynamicObject| cluster.uid().as_deref() == Some(record.uid.as_str());
    let Some(cluster) = clusters.iter().find(of_record) else {
        return Wanted::Gone;
    };
    if is_deleted(cluster) {
        return Wanted::Gone;
    }
    match cluster
        .data
        .pointer("/spec/state")
        .and_then(|state| state.as_str())
    {
        Some("Draining") => Wanted::Drained,
        _ => Wanted::Active,
    }
}

pub(crate) fn is_deleted(cluster: &DynamicObject) -> bool {
    cluster.metadata.deletion_timestamp.is_some()
}

pub(crate) fn has_finalizer(cluster: &DynamicObject) -> bool {
    cluster
        .finalizers()
        .iter()
        .any(|finalizer| finalizer == FINALIZER)
}

/// Leaving members that are to go: whether they own anything is to be found out.
pub(crate) fn to_be_verified(membership: &Membership, clusters: &[DynamicObject]) -> Vec<(Slot, u64)> {
    let leaves = |record: &&MemberRecord| {
        record.state == MemberState::Leaving && wanted(record, clusters) == Wanted::Gone
    };
    let leaving = membership.members.iter().filter(leaves);
    leaving.map(|record| (record.slot, record.since)).collect()
}

/// The membership with every step that is due.
pub(crate) fn departed(
    membership: &Membership,
    clusters: &[DynamicObject],
    facts: &Facts,
) -> Result<Membership, MembershipError> {
    let mut next = membership.clone();
    for record in &membership.members {
        next = match (record.state, wanted(record, clusters)) {
            (MemberState::Active, Wanted::Drained | Wanted::Gone) => next.leaving(record.slot)?,
            (MemberState::Leaving, Wanted::Active) => next.staying(record.slot)?,
            (MemberState::Leaving, Wanted::Gone) => match facts.empty.get(&(record.slot, record.since)) {
                Some(last) => next.removed(record.slot, *last)?,
                None => next,
            },
            // Whoever took it offline has confirmed that what it holds is gone.
            (MemberState::Offline { .. }, Wanted::Gone) if membership.is_served_without(record.slot) => {
                next.abandoned(record.slot, facts.now)?
            }
            (MemberState::Removed { last }, _)
                if facts.now >= after(last, facts.retention) && membership.is_served_without(record.slot) =>
            {
                next.forgotten(record.slot)?
            }
            _ => next,
        };
    }
    Ok(next)
}

/// Whether a deleted cluster may go: it never was a member, or every replica has had the time to read its log to the end.
/// `removed_for`: for how long this replica has known that it is removed.
pub(crate) fn may_go(membership: &Membership, cluster: &DynamicObject, removed_for: Duration) -> bool {
    let uid = cluster.uid().unwrap_or_default();
    match membership.members.iter().find(|record| record.uid == uid) {
        None => true,
        Some(record) => match record.state {
            MemberState::Removed { .. } => removed_for >= LAST_READS,
            MemberState::Active
            | MemberState::Leaving
            | MemberState::Lost { .. }
            | MemberState::Offline { .. } => false,
        },
    }
}

fn after(epoch: Epoch, time: Duration) -> Epoch {
    let epochs = u64::try_from(time.as_millis()).unwrap_or(u64::MAX) / EPOCH_MILLIS;
    Epoch(epoch.0.saturating_add(epochs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_apiserver::controllers::backends;
    use serde_json::json;

    const RETENTION: Duration = Duration::from_secs(600);

    fn cluster(name: &str, state: &str, deleted: bool) -> DynamicObject {
        let mut cluster = DynamicObject::new(name, &backends::api_resource());
        cluster.metadata.uid = Some(format!("uid-{name}"));
        cluster.data = json!({"spec": {"state": state}});
        if deleted {
            let now = jiff::Timestamp::UNIX_EPOCH;
            cluster.metadata.deletion_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
        }
        cluster
    }

    fn two() -> Membership {
        let one = Membership::default().joined(Slot(0), "a", "uid-a").expect("free");
        one.joined(Slot(1), "b", "uid-b").expect("free")
    }

    fn check(membership: &Membership, b: Option<DynamicObject>, facts: &Facts, expect: Option<MemberState>) {
        let clusters: Vec<_> = std::iter::once(cluster("a", "Active", false)).chain(b).collect();
        let next = departed(membership, &clusters, facts).expect("it fits");
        assert_eq!(next.member(Slot(0)).map(|a| a.state), Some(MemberState::Active));
        assert_eq!(next.member(Slot(1)).map(|b| b.state), expect);
    }

    #[test]
    fn the_state_that_is_wanted_is_followed() {
        let (nothing, leaving) = (Facts::default(), two().leaving(Slot(1)).expect("active"));
        let stays = Some(MemberState::Active);
        let leaves = Some(MemberState::Leaving);
        check(&two(), Some(cluster("b", "Active", false)), &nothing, stays);
        check(&two(), Some(cluster("b", "Maintenance", false)), &nothing, stays);
        check(&two(), Some(cluster("b", "Draining", false)), &nothing, leaves);
        check(&two(), Some(cluster("b", "Active", true)), &nothing, leaves);
        check(&two(), None, &nothing, leaves);
        check(&leaving, Some(cluster("b", "Draining", false)), &nothing, leaves);
        check(&leaving, Some(cluster("b", "Active", false)), &nothing, stays);
        check(&leaving, Some(cluster("b", "Active", true)), &nothing, leaves);
    }

    #[test]
    fn who_owns_nothing_is_removed_only_when_it_is_to_go() {
        let leaving = two().leaving(Slot(1)).expect("active");
        let since = leaving.member(Slot(1)).expect("a member").since;
        let facts = |since| Facts {
            empty: BTreeMap::from([((Slot(1), since), Epoch(7))]),
            ..Facts::default()
        };
        let removed = Some(MemberState::Removed { last: Epoch(7) });
        let leaves = Some(MemberState::Leaving);
        check(
            &leaving,
            Some(cluster("b", "Active", true)),
            &facts(since),
            removed,
        );
        check(&leaving, None, &facts(since), removed);
        check(
            &leaving,
            Some(cluster("b", "Draining", false)),
            &facts(since),
            leaves,
        );
        // It stayed in between, and may have been given namespaces.
        check(
            &leaving,
            Some(cluster("b", "Active", true)),
            &facts(since - 1),
            leaves,
        );
    }

    #[test]
    fn who_is_offline_and_deleted_is_abandoned() {
        let facts = Facts {
            now: Epoch(100),
            ..Facts::default()
        };
        let (lost, offline) = (
            two().lost(Slot(1), Epoch(7)).expect("active"),
            two().offline(Slot(1), Epoch(7)).expect("active"),
        );
        let (still_lost, still_offline) = (
            Some(MemberState::Lost { from: Epoch(7) }),
            Some(MemberState::Offline { from: Epoch(7) }),
        );
        check(&lost, Some(cluster("b", "Active", true)), &facts, still_lost);
        check(
            &offline,
            Some(cluster("b", "Offline", false)),
            &facts,
            still_offline,
        );
        check(&offline, Some(cluster("b", "Offline", true)), &facts, None);
        check(&offline, None, &facts, None);
    }

    #[test]
    fn it_is_forgotten_with_its_history_and_not_as_the_last() {
        let removed = two()
            .leaving(Slot(1))
            .and_then(|m| m.removed(Slot(1), Epoch(100)));
        let removed = removed.expect("it fits");
        let facts = |now| Facts {
            now: Epoch(now),
            retention: RETENTION,
            ..Facts::default()
        };
        let still = Some(MemberState::Removed { last: Epoch(100) });
        check(&removed, None, &facts(100 + 24_000 - 1), still);
        check(&removed, None, &facts(100 + 24_000), None);
        let alone = Membership {
            members: removed.members[1..].to_vec(),
            ..removed.clone()
        };
        let kept = departed(&alone, &[], &facts(u64::MAX)).expect("it fits");
        assert_eq!(kept, alone);
        let gone = cluster("b", "Active", true);
        assert!(!may_go(&removed, &gone, Duration::from_secs(39)));
        assert!(may_go(&removed, &gone, LAST_READS));
        assert!(!may_go(&two(), &gone, Duration::MAX));
        assert!(may_go(&two(), &cluster("c", "Active", true), Duration::ZERO));
    }
}
