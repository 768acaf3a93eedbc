//! Who is lost and who is back, from what the replicas report: the leader decides it, every replica draws from it whether
//! it is ready itself.
//!
//! ```text
//! reports of all ──▶ judge ─┬─▶ Decide ──▶ ConfigMap, by compare-and-swap ──▶ every store
//!                           └─▶ Resign ──▶ another replica leads
//!                └─▶ is_ready ──▶ /readyz
//! ```
//!
//! The rules are `storage::membership::report`'s. Without a control plane nothing is declared, and readiness stays what it is.

use super::clusters::newest;
use super::fleet::FleetObject;
use super::reports::{self, Heard};
use anyhow::Result;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::DynamicObject;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::Store;
use kube::{Client, ResourceExt};
use outrigger_apiserver::controllers::backends::{self, Wanted};
use outrigger_apiserver::server::healthz::{HealthChecks, Probe};
use outrigger_storage::FederatedStore;
use outrigger_storage::membership::report::{self, LOSS_AFTER, ReplicaReport, Verdict, Wishes};
use outrigger_storage::membership::{MemberRecord, MemberState, Membership};
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often it is judged.
const EVERY: Duration = Duration::from_secs(1);
/// How long a decision may take before it is judged anew.
const DECIDED_WITHIN: Duration = Duration::from_secs(5);
/// How long a replica has to reach a member that comes back, from when another one does.
const RETURNED_WITHIN: Duration = Duration::from_secs(5);
/// Members that are declared lost, or back, in one go.
const DECISIONS_MAX: usize = 512;

/// What is needed to judge.
pub(crate) struct Loss {
    pub(crate) client: Client,
    /// This replica's name.
    pub(crate) identity: String,
    pub(crate) fleet: FleetObject,
    /// What was decided last, as far as this replica has heard.
    pub(crate) decided: watch::Receiver<Arc<Membership>>,
    /// The WorkloadClusters.
    pub(crate) clusters: Store<DynamicObject>,
    pub(crate) store: FederatedStore,
    pub(crate) heard: watch::Receiver<Arc<Heard>>,
    pub(crate) health: HealthChecks,
    /// Where it is told what this replica cannot reach, and others can.
    pub(crate) cut_off: CutOff,
    /// Whether this replica decides.
    pub(crate) is_leader: watch::Receiver<bool>,
    /// Counts the times that this replica had better not lead.
    pub(crate) resign: watch::Sender<u64>,
    /// Where it is told what all replicas say.
    pub(crate) reports: watch::Sender<Arc<Vec<ReplicaReport>>>,
}

/// The clusters that keep this replica from being ready, for `/readyz`. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct CutOff(Arc<RwLock<BTreeSet<String>>>);

impl CutOff {
    /// Adds a check for each cluster to readiness.
    pub(crate) fn check_in(&self, health: &HealthChecks, store: &FederatedStore) {
        let (cut_off, store) = (self.clone(), store.clone());
        health.add_each(&[Probe::Readyz], move || {
            let cut_off = cut_off.0.read();
            let members = store.membership().members;
            let check = |member: MemberRecord| {
                let name = format!("cluster-{}", member.name);
                match cut_off.contains(&member.name) {
                    true => (
                        name,
                        Err("this replica cannot reach it, and another can".to_owned()),
                    ),
                    false => (name, Ok(())),
                }
            };
            members.into_iter().map(check).collect()
        });
    }

    fn set(&self, names: BTreeSet<String>) {
        let mut known = self.0.write();
        for name in names.difference(&known) {
            tracing::warn!(
                cluster = name,
                "this replica cannot reach it and another can: not ready"
            );
        }
        for name in known.difference(&names) {
            tracing::info!(cluster = name, "it no longer keeps this replica from being ready");
        }
        *known = names;
    }
}

/// Judges until it is dropped.
pub(crate) async fn run(loss: Loss) {
    let reporter = Reporter {
        controller: "outrigger-fleet".to_owned(),
        instance: Some(loss.identity.clone()),
    };
    let recorder = Recorder::new(loss.client.clone(), reporter);
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut behind = BTreeMap::new();
    loop {
        ticks.tick().await;
        let (mine, others) = loss.reports();
        let decided = newest(&loss.decided.borrow(), &loss.store);
        // While the control plane does not answer, nobody knows what others reach, or that there are others.
        let is_fresh = loss.heard.borrow().is_fresh(Instant::now());
        if is_fresh {
            let cut_off = cut_off(&decided, &mine, &others);
            loss.cut_off
                .set(for_good(cut_off, &decided, &mut behind, Instant::now()));
        }
        let all: Vec<ReplicaReport> = others.into_iter().chain([mine]).collect();
        let all = Arc::new(all);
        loss.reports.send_replace(Arc::clone(&all));
        if !*loss.is_leader.borrow() || !is_fresh {
            continue;
        }
        match tokio::time::timeout(DECIDED_WITHIN, loss.decide(&decided, &all, &recorder)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(
                error = format!("{error:#}"),
                "a loss or return cannot be decided, trying again"
            ),
            Err(_) => tracing::warn!("a loss or return is not decided in time, trying again"),
        }
    }
}

impl Loss {
    /// What this replica says, and what the others do.
    fn reports(&self) -> (ReplicaReport, Vec<ReplicaReport>) {
        let mine = reports::own(&self.store, &self.health, &self.identity);
        let others = self.heard.borrow().of_others(&self.identity, Instant::now());
        (mine, others)
    }

    async fn decide(&self, known: &Membership, all: &[ReplicaReport], recorder: &Recorder) -> Result<()> {
        let clusters = self.clusters.state();
        let judge = |membership: &Membership| {
            let wishes = wishes(membership, &clusters);
            match report::judge(membership, &self.identity, all, &wishes, LOSS_AFTER) {
                Verdict::Nothing => {
                    accepted(membership, &clusters, all).map_or(Verdict::Nothing, Verdict::Decide)
                }
                verdict => verdict,
            }
        };
        let mut known = known.clone();
        for _ in 0..DECISIONS_MAX {
            match judge(&known) {
                Verdict::Nothing => return Ok(()),
                Verdict::Resign => {
                    tracing::warn!(
                        "no other replica confirms that a cluster is lost: another one shall lead"
                    );
                    self.resign.send_modify(|times| *times += 1);
                    return Ok(());
                }
                Verdict::Decide(_) => {}
            }
            // Judged anew on what is read: others may have decided in between.
            let next = |read: &Membership| match judge(read) {
                Verdict::Decide(next) => Ok(Some(next)),
                Verdict::Nothing | Verdict::Resign => Ok(None),
            };
            let decided = self.fleet.decide(next).await?;
            drop(self.store.hand_over(decided.clone(), Vec::new()));
            for event in changes(&known, &decided) {
                tell(recorder, &known, event).await;
            }
            if decided.generation <= known.generation {
                return Ok(());
            }
            known = decided;
        }
        Ok(())
    }
}

/// What the administrators want of the members.
fn wishes(membership: &Membership, clusters: &[Arc<DynamicObject>]) -> Wishes {
    let those = |is_meant: fn(&DynamicObject) -> bool| {
        let is_of = |record: &&MemberRecord| {
            let cluster = clusters.iter().find(|c| c.uid().as_deref() == Some(&record.uid));
            cluster.is_some_and(|cluster| is_meant(cluster))
        };
        let members = membership.members.iter().filter(is_of);
        members.map(|record| record.slot).collect()
    };
    Wishes {
        held_back: those(backends::is_loss_held_back),
        offline: those(|cluster| Wanted::of(cluster) == Wanted::Offline { is_confirmed: true }),
    }
}

/// The membership with the next member that was restored or wiped, and that the administrator accepts as it is. As with
/// every loss, all replicas have to act on what was decided before.
fn accepted(
    membership: &Membership,
    clusters: &[Arc<DynamicObject>],
    all: &[ReplicaReport],
) -> Option<Membership> {
    if all.iter().any(|report| report.generation < membership.generation) {
        return None;
    }
    let is_accepted = |record: &&MemberRecord| {
        let cluster = clusters.iter().find(|c| c.uid().as_deref() == Some(&record.uid));
        cluster.is_some_and(|cluster| backends::is_restore_accepted(cluster, record.incarnation))
    };
    let record = membership.members.iter().find(is_accepted)?;
    membership.accepted(record.slot).ok()
}

/// The clusters that keep this replica from being ready. The last ready replica is never kept from it, and of several that
/// would all fall at once, each because of another, the first by name stays.
fn cut_off(membership: &Membership, mine: &ReplicaReport, others: &[ReplicaReport]) -> BTreeSet<String> {
    let is_ready =
        |one: &ReplicaReport, others: &[ReplicaReport]| report::is_ready(membership, one, others, LOSS_AFTER);
    if is_ready(mine, others) {
        return BTreeSet::new();
    }
    // As they will see it: this replica as ready as it is.
    let stays = |other: &ReplicaReport| {
        let rest = others.iter().filter(|rest| rest.replica != other.replica);
        let rest: Vec<ReplicaReport> = rest.chain([mine]).cloned().collect();
        is_ready(other, &rest) || other.replica < mine.replica
    };
    let ready = others
        .iter()
        .filter(|other| other.ready && other.age <= LOSS_AFTER / 2);
    if !ready.into_iter().any(stays) {
        return BTreeSet::new();
    }
    // Which ones they are: those without which it would be ready.
    let keeps = |member: &&MemberRecord| {
        let only = Membership {
            members: vec![(*member).clone()],
            ..membership.clone()
        };
        !report::is_ready(&only, mine, others, LOSS_AFTER)
    };
    let names = membership.members.iter().filter(keeps);
    names.map(|member| member.name.clone()).collect()
}

/// Those of them that count now: a member that was lost and comes back is not reached by all at the same moment.
/// `behind`: since when the others have been ahead of this replica.
fn for_good(
    cut_off: BTreeSet<String>,
    membership: &Membership,
    behind: &mut BTreeMap<String, Instant>,
    now: Instant,
) -> BTreeSet<String> {
    behind.retain(|name, _| cut_off.contains(name));
    let counts = |name: &String| {
        let since = *behind.entry(name.clone()).or_insert(now);
        let mut members = membership.members.iter();
        let is_lost = members.any(|m| m.name == *name && matches!(m.state, MemberState::Lost { .. }));
        !is_lost || now.saturating_duration_since(since) >= RETURNED_WITHIN
    };
    cut_off.into_iter().filter(counts).collect()
}

/// Whose state is another one.
fn changes<'a>(before: &'a Membership, after: &'a Membership) -> Vec<&'a MemberRecord> {
    let is_news = |member: &&MemberRecord| {
        let was = before.members.iter().find(|was| was.uid == member.uid);
        was.is_some_and(|was| {
            let is_same = std::mem::discriminant(&was.state) == std::mem::discriminant(&member.state);
            !is_same || was.incarnation != member.incarnation
        })
    };
    after.members.iter().filter(is_news).collect()
}

/// In the log and as an Event of the WorkloadCluster.
async fn tell(recorder: &Recorder, before: &Membership, member: &MemberRecord) {
    let was = before.members.iter().find(|was| was.uid == member.uid);
    let is_accepted = was.is_some_and(|was| was.incarnation != member.incarnation);
    let (type_, reason, note) = match member.state {
        MemberState::Lost { .. } => (
            EventType::Warning,
            "Lost",
            "No replica reaches the backend. Its namespaces and lists over all namespaces answer 503; watches over all \
             namespaces go on without it.",
        ),
        MemberState::Offline { .. } => (
            EventType::Warning,
            "Offline",
            "The cluster was taken offline. Its namespaces answer 503, lists over all namespaces leave it out.",
        ),
        MemberState::Active if is_accepted => (
            EventType::Warning,
            "Accepted",
            "The backend was restored or wiped, and is accepted as it is. Clients list anew.",
        ),
        MemberState::Active => (
            EventType::Normal,
            "Returned",
            "All replicas reach the backend again.",
        ),
        // Who leaves, and why, its conditions say.
        MemberState::Leaving | MemberState::Removed { .. } => return,
    };
    tracing::warn!(
        cluster = member.name,
        reason,
        "the cluster's state in the fleet has changed"
    );
    let resource = backends::api_resource();
    let reference = ObjectReference {
        api_version: Some(resource.api_version),
        kind: Some(resource.kind),
        name: Some(member.name.clone()),
        uid: Some(member.uid.clone()),
        ..ObjectReference::default()
    };
    let event = Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note.to_owned()),
        action: "Judge".to_owned(),
        secondary: None,
    };
    // The condition says the same; an event that is lost is not worth a retry.
    if let Err(error) = recorder.publish(&event, &reference).await {
        tracing::debug!(%error, cluster = member.name, "an event could not be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_storage::membership::report::BackendReport;
    use outrigger_storage::{Epoch, Slot};
    use serde_json::json;

    fn fleet() -> Membership {
        let one = Membership::default().joined(Slot(0), "a", "uid-0").expect("free");
        one.joined(Slot(1), "b", "uid-1").expect("free")
    }

    /// What a replica says that cannot reach the members with these slots.
    fn report(replica: &str, ready: bool, unreachable: &[u16]) -> ReplicaReport {
        let backend = |slot: u16| BackendReport {
            slot: Slot(slot),
            uid: format!("uid-{slot}"),
            unreachable_for: unreachable.contains(&slot).then_some(LOSS_AFTER),
            clock: Some(Epoch(7)),
            open: true,
        };
        ReplicaReport {
            replica: replica.to_owned(),
            ready,
            age: Duration::from_secs(1),
            generation: 9,
            backends: vec![backend(0), backend(1)],
        }
    }

    #[test]
    fn a_replica_that_is_cut_off_names_the_clusters_and_somebody_stays() {
        let check = |mine: &[u16], others: &[ReplicaReport], expect: &[&str]| {
            let cut_off = cut_off(&fleet(), &report("m", true, mine), others);
            assert_eq!(cut_off.iter().collect::<Vec<_>>(), expect, "{mine:?} {others:?}");
        };
        let well = [report("x", true, &[])];
        check(&[], &well, &[]);
        check(&[1], &well, &["b"]);
        check(&[0, 1], &well, &["a", "b"]);
        check(&[1], &[report("x", true, &[1])], &[]);
        check(&[1], &[report("x", false, &[])], &[]);
        check(&[1], &[], &[]);
        // Each reaches what the other does not: the first by name stays.
        check(&[1], &[report("x", true, &[0])], &[]);
        check(&[1], &[report("a", true, &[0])], &["b"]);
        // A third one is well.
        let three = [report("x", true, &[0]), report("y", true, &[])];
        check(&[1], &three, &["b"]);
    }

    #[test]
    fn who_is_under_maintenance_or_offline_is_read_from_the_objects() {
        let cluster = |name: &str, slot: u16, spec: serde_json::Value, status: serde_json::Value| {
            let mut cluster = DynamicObject::new(name, &backends::api_resource());
            cluster.metadata.uid = Some(format!("uid-{slot}"));
            cluster.data = json!({"spec": spec, "status": status});
            Arc::new(cluster)
        };
        let check = |a: serde_json::Value, status: serde_json::Value, held_back: &[u16], offline: &[u16]| {
            let clusters = [cluster("a", 0, a, status), cluster("b", 1, json!({}), json!({}))];
            let slots = |slots: &[u16]| slots.iter().copied().map(Slot).collect();
            let expect = Wishes {
                held_back: slots(held_back),
                offline: slots(offline),
            };
            assert_eq!(wishes(&fleet(), &clusters), expect);
        };
        let maintenance = || json!({"state": "Maintenance"});
        let condition = |status| json!({"conditions": [{"type": "Maintenance", "status": status}]});
        check(json!({"state": "Active"}), json!({}), &[], &[]);
        check(maintenance(), json!({}), &[0], &[]);
        check(maintenance(), condition("True"), &[0], &[]);
        check(maintenance(), condition("False"), &[], &[]);
        let offline = |confirmed| json!({"state": "Offline", "confirmDataLoss": confirmed});
        check(json!({"state": "Offline"}), json!({}), &[], &[]);
        check(offline("b"), json!({}), &[], &[]);
        check(offline("a"), json!({}), &[], &[0]);
    }

    #[test]
    fn a_restored_member_is_accepted_once_and_when_all_have_heard_of_what_was_before() {
        let cluster = |confirmed: &str, reason: &str, incarnation: u64| {
            let mut cluster = DynamicObject::new("b", &backends::api_resource());
            cluster.metadata.uid = Some("uid-1".to_owned());
            let restored = json!({"type": "Restored", "status": "True", "reason": reason});
            let status = json!({"incarnation": incarnation, "conditions": [restored]});
            cluster.data = json!({"spec": {"confirmDataLoss": confirmed}, "status": status});
            vec![Arc::new(cluster)]
        };
        let all = [report("x", true, &[1]), report("y", true, &[1])];
        let check = |membership: &Membership, clusters: &[Arc<DynamicObject>], expect: Option<u64>| {
            let next = accepted(membership, clusters, &all);
            let incarnation = next.and_then(|next| next.member(Slot(1)).map(|b| b.incarnation));
            assert_eq!(incarnation, expect);
        };
        let asked = "AwaitsConfirmation";
        check(&fleet(), &cluster("b", asked, 0), Some(1));
        check(&fleet(), &cluster("a", asked, 0), None);
        check(&fleet(), &cluster("b", "ConfirmedBefore", 0), None);
        let mut offline = (*cluster("b", asked, 0)[0]).clone();
        offline.data["spec"]["state"] = json!("Offline");
        check(&fleet(), &[Arc::new(offline)], None);
        let once = fleet().accepted(Slot(1)).expect("a member");
        check(&once, &cluster("b", asked, 0), None);
        check(&once, &cluster("b", asked, 1), Some(2));
        let ahead = Membership {
            generation: 10,
            ..fleet()
        };
        check(&ahead, &cluster("b", asked, 0), None);
    }

    #[test]
    fn a_replica_has_a_moment_to_reach_who_comes_back() {
        let (start, names) = (Instant::now(), || BTreeSet::from(["b".to_owned()]));
        let lost = fleet().lost(Slot(1), Epoch(7)).expect("it serves");
        let mut behind = BTreeMap::new();
        let mut check = |cut_off: BTreeSet<String>, membership: &Membership, seconds, expect: bool| {
            let now = start + Duration::from_secs(seconds);
            let counted = for_good(cut_off, membership, &mut behind, now);
            assert_eq!(counted.contains("b"), expect, "after {seconds} s");
        };
        check(names(), &lost, 0, false);
        check(names(), &lost, 4, false);
        check(names(), &lost, 5, true);
        check(BTreeSet::new(), &lost, 6, false);
        check(names(), &lost, 7, false);
        check(names(), &fleet(), 8, true);
    }

    #[test]
    fn what_has_changed_is_told_once() {
        let lost = fleet().lost(Slot(1), Epoch(7)).expect("it serves");
        let back = lost.returned(Slot(1)).expect("it is lost");
        let check = |before: &Membership, after: &Membership, expect: &[&str]| {
            let told: Vec<_> = changes(before, after).iter().map(|m| m.name.as_str()).collect();
            assert_eq!(told, expect);
        };
        check(&fleet(), &lost, &["b"]);
        check(&lost, &lost, &[]);
        check(&lost, &back, &["b"]);
        check(&Membership::default(), &fleet(), &[]);
    }
}
