//! What is said of a WorkloadCluster: its status after the one before, from what this replica sees and what the replicas
//! agree on. Pure.

mod absence;

use super::{Known, Wanted, timestamp};
use absence::{LOST, OFFLINE, is_lost, is_offline, lost, maintenance, offline, restored};
use outrigger_storage::federated::ClusterStatus;
use outrigger_storage::membership::MemberState;
use serde_json::{Value, json};

/// How often it is written down how far a backend was seen. A backup that is younger than that cannot be told from it.
const SEEN_EVERY_EPOCHS: u64 = 15_000 / outrigger_storage::clock::EPOCH_MILLIS;
/// A size that changed by less is not news, as a part of the size.
const SIZE_STEP: u64 = 10;

/// The condition that says whether it serves.
pub(super) const READY: &str = "Ready";
/// The condition that says whether its loss is held back; `False`: not any more.
pub(super) const MAINTENANCE: &str = "Maintenance";

/// The condition of clusters that are older than they were, and its reason when they may be accepted as they are.
const RESTORED: &str = "Restored";
const AWAITS_CONFIRMATION: &str = "AwaitsConfirmation";
/// The condition of clusters that are taken offline.
const OFFLINE_CONDITION: &str = "Offline";
/// Conditions that go when there is nothing to be said.
const PASSING: [&str; 4] = ["Drained", "Lost", MAINTENANCE, OFFLINE_CONDITION];

/// What the object wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spec {
    pub(super) wanted: Wanted,
    pub(super) is_loss_confirmed: bool,
    pub(super) generation: i64,
}

/// The status of a condition.
pub(super) fn status_of<'a>(status: &'a Value, kind: &str) -> Option<&'a str> {
    condition_of(status, kind)?["status"].as_str()
}

/// Whether the administrator was asked to accept the backend as it is.
pub(super) fn asks_for_acceptance(status: &Value) -> bool {
    let condition = condition_of(status, RESTORED);
    condition.is_some_and(|c| c["status"] == "True" && c["reason"] == AWAITS_CONFIRMATION)
}

fn condition_of<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = status.get("conditions")?.as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)
}

/// One aspect of a cluster: type, status, reason, message.
struct Condition {
    kind: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

/// The status after `old`. Sizes follow in steps, so that a busy backend does not rewrite the object all the time.
pub(super) fn desired(old: &Value, known: &Known<'_>, spec: Spec, now_ms: u64) -> Value {
    let generation = spec.generation;
    let mut new = old.as_object().cloned().unwrap_or_default();
    new.insert("observedGeneration".to_owned(), generation.into());
    if let Some(cluster) = known.cluster {
        new.insert("slot".to_owned(), cluster.slot.0.into());
        new.insert("namespaces".to_owned(), cluster.namespaces.into());
        new.insert("clusterUID".to_owned(), cluster.uid.clone().into());
        if !cluster.status.version.is_empty() {
            new.insert("version".to_owned(), cluster.status.version.clone().into());
        }
        let sizes = [
            ("databaseBytes", cluster.status.db_size),
            ("quotaBytes", cluster.status.quota),
        ];
        for (field, size) in sizes.into_iter().filter(|(_, size)| *size > 0) {
            let before = old.get(field).and_then(Value::as_u64).unwrap_or_default();
            if before.abs_diff(size) > before / SIZE_STEP {
                new.insert(field.to_owned(), size.into());
            }
        }
        if let Some(seen) = cluster.seen.filter(|_| !cluster.restored) {
            let number = |field: &str| old["lastSeen"][field].as_u64().unwrap_or_default();
            let is_due = number("epoch") + SEEN_EVERY_EPOCHS <= seen.epoch.0;
            if is_due || number("incarnation") != seen.incarnation {
                new.insert("lastSeen".to_owned(), json!(seen));
            }
        }
        if cluster.incarnation > 0 {
            new.insert("incarnation".to_owned(), cluster.incarnation.into());
        }
    }
    let mut conditions = old
        .get("conditions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let maintenance = known.decided.and_then(|_| maintenance(old, spec, now_ms));
    let is_held_back = maintenance.as_ref().is_some_and(|held| held.status == "True");
    let ours = [
        Some(readiness(known)),
        configured(known),
        drained(known),
        known.cluster.and_then(|_| lost(known, is_held_back)),
        known.is_slow.map(slow),
        known.decided.and_then(|_| offline(known, spec.wanted)),
        maintenance,
        known.cluster.map(|cluster| restored(old, cluster, spec)),
        known.cluster.map(full),
    ];
    // Who stays is not asked how far it has left, and so on.
    let is_told = |kind: &Value| ours.iter().flatten().any(|condition| kind == condition.kind);
    let is_over = |kind: &Value| PASSING.iter().any(|passing| kind == passing) && !is_told(kind);
    conditions.retain(|condition| known.cluster.is_none() || !is_over(&condition["type"]));
    for condition in ours.into_iter().flatten() {
        let before = conditions.iter().find(|c| c["type"] == condition.kind);
        let since = before
            .filter(|c| c["status"] == condition.status)
            .and_then(|c| c.get("lastTransitionTime"))
            .cloned();
        let value = json!({
            "type": condition.kind, "status": condition.status, "reason": condition.reason,
            "message": condition.message, "observedGeneration": generation,
            "lastTransitionTime": since.unwrap_or_else(|| timestamp(now_ms).into()),
        });
        conditions.retain(|c| c["type"] != condition.kind);
        conditions.push(value);
    }
    new.insert("conditions".to_owned(), conditions.into());
    new.into()
}

/// Whether it serves, in one word and in a sentence: this is what `kubectl get workloadclusters` shows.
fn readiness(known: &Known<'_>) -> Condition {
    let problem = known.settings.and_then(Option::as_ref);
    let (status, reason, message) = match (known.cluster, problem) {
        (Some(_), _) if is_offline(known) => ("False", "Offline", OFFLINE.to_owned()),
        (Some(cluster), _) if is_lost(known) && !cluster.restored => match &cluster.problem {
            Some(problem) => ("False", "Lost", format!("{LOST} What was met last: {problem}")),
            None => ("False", "Lost", LOST.to_owned()),
        },
        (None, problem) => {
            let message = problem.map_or("The backend is not connected yet.", String::as_str);
            ("False", "NotConnected", message.to_owned())
        }
        (Some(ClusterStatus { reachable: false, .. }), Some(problem)) => {
            ("False", "NotConfigured", problem.clone())
        }
        (Some(cluster), _) if !cluster.reachable => match &cluster.problem {
            Some(problem) if cluster.restored => ("False", "Restored", problem.clone()),
            Some(problem) => ("False", "Unreachable", problem.clone()),
            None => (
                "Unknown",
                "Connecting",
                "The backend has not answered yet.".to_owned(),
            ),
        },
        (Some(cluster), problem) => match (cluster.membership, problem) {
            (Some(MemberState::Removed { .. }), _) => (
                "False",
                "Left",
                "It has left the fleet; its history is still read.".to_owned(),
            ),
            (Some(MemberState::Leaving), _) => (
                "True",
                "Draining",
                format!(
                    "It takes no new namespaces; namespaces that live on it: {}.",
                    cluster.namespaces
                ),
            ),
            (_, Some(problem)) => (
                "True",
                "SettingsNotUsed",
                format!("It serves over the connections that it has; new ones fail: {problem}"),
            ),
            (Some(MemberState::Active), None) if cluster.open && !known.cut_off.is_empty() => (
                "True",
                "PartlyReachable",
                format!(
                    "It serves; replicas that cannot reach it, and are not ready: {}.",
                    known.cut_off.join(", ")
                ),
            ),
            (Some(MemberState::Active), None) if cluster.open && known.is_slow == Some(true) => {
                ("True", "Slow", SLOW.to_owned())
            }
            (Some(MemberState::Active), None) if cluster.open => (
                "True",
                "Answers",
                "The backend answers and its log is followed.".to_owned(),
            ),
            _ => (
                "False",
                "Joining",
                "The backend answers; the fleet is being told of it.".to_owned(),
            ),
        },
    };
    Condition {
        kind: READY,
        status,
        reason,
        message,
    }
}

/// Whether its endpoints and certificates can be used.
fn configured(known: &Known<'_>) -> Option<Condition> {
    let (status, reason, message) = match known.settings? {
        None => ("True", "Used", "Endpoints and certificates are used.".to_owned()),
        Some(problem) => ("False", "NotUsed", problem.clone()),
    };
    Some(Condition {
        kind: "Configured",
        status,
        reason,
        message,
    })
}

/// Of one that leaves: whether anything is left on it.
fn drained(known: &Known<'_>) -> Option<Condition> {
    let cluster = known.cluster?;
    let (status, reason, message) = match (cluster.membership?, cluster.namespaces) {
        (MemberState::Active | MemberState::Lost { .. } | MemberState::Offline { .. }, _) => return None,
        (MemberState::Leaving, 0) if cluster.reachable => {
            ("True", "OwnsNothing", "No namespace lives on it.".to_owned())
        }
        (MemberState::Leaving, _) if !cluster.reachable => (
            "Unknown",
            "Unreachable",
            "Nobody knows what lives on it while it does not answer.".to_owned(),
        ),
        (MemberState::Leaving, namespaces) => (
            "False",
            "OwnsNamespaces",
            format!("Namespaces that live on it: {namespaces}. It is let go when they are deleted."),
        ),
        (MemberState::Removed { .. }, _) => (
            "True",
            "Left",
            "It owned nothing when it left the fleet.".to_owned(),
        ),
    };
    Some(Condition {
        kind: "Drained",
        status,
        reason,
        message,
    })
}

/// Whether it answers late.
fn slow(is_slow: bool) -> Condition {
    let (status, reason, message) = match is_slow {
        true => ("True", "AnswersLate", SLOW),
        false => ("False", "AnswersInTime", "The backend answers in time."),
    };
    Condition {
        kind: "Slow",
        status,
        reason,
        message: message.to_owned(),
    }
}

/// What the conditions say of one that is slow.
const SLOW: &str = "The backend answers late, or shows late what it has acknowledged. Lists and watches over all \
                    namespaces are as slow as it is.";

/// Whether it takes what grows.
fn full(cluster: &ClusterStatus) -> Condition {
    let (status, reason, message) = match cluster.status.is_full() {
        true => ("True", "QuotaAlmostUsed", FULL),
        false => ("False", "EnoughSpace", "There is space for objects."),
    };
    Condition {
        kind: "Full",
        status,
        reason,
        message: message.to_owned(),
    }
}

/// What the condition Full says.
const FULL: &str = "From 90 % of its quota the backend takes only deletions and updates that do not grow. Delete objects, \
                    compact and defragment the etcd, or raise its quota.";

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_storage::backend::BackendStatus;
    use outrigger_storage::federated::Seen;
    use outrigger_storage::{Epoch, Slot};
    use std::time::Duration;

    fn cluster(reachable: bool, db_size: u64) -> ClusterStatus {
        ClusterStatus {
            slot: Slot(2),
            name: "east".to_owned(),
            uid: "uid-2".to_owned(),
            incarnation: 0,
            membership: Some(MemberState::Active),
            open: true,
            reachable,
            lag: Duration::from_millis(3),
            seen: None,
            restored: false,
            namespaces: 7,
            status: BackendStatus {
                version: "3.6.1".to_owned(),
                db_size,
                ..BackendStatus::default()
            },
            problem: (!reachable).then(|| "connection refused".to_owned()),
        }
    }

    fn status(old: &Value, cluster: &ClusterStatus, now_ms: u64) -> Value {
        let known = Known {
            cluster: Some(cluster),
            ..Known::default()
        };
        desired(old, &known, ACTIVE, now_ms)
    }

    const ACTIVE: Spec = Spec {
        wanted: Wanted::Active,
        is_loss_confirmed: false,
        generation: 4,
    };

    fn spec(wanted: Wanted) -> Spec {
        Spec { wanted, ..ACTIVE }
    }

    #[test]
    fn the_status_says_what_the_store_sees() {
        let status = status(&Value::Null, &cluster(true, 1000), 1_800_000_000_000);
        assert_eq!(
            (&status["slot"], &status["namespaces"], &status["version"]),
            (&json!(2), &json!(7), &json!("3.6.1"))
        );
        assert_eq!(status["conditions"][0]["status"], "True");
        assert_eq!(
            status["conditions"][0]["lastTransitionTime"],
            "2027-01-15T08:00:00Z"
        );
    }

    #[test]
    fn nothing_new_is_the_same_status() {
        let first = status(&Value::Null, &cluster(true, 1000), 1_800_000_000_000);
        assert_eq!(status(&first, &cluster(true, 1000), 1_800_000_060_000), first);
        assert_eq!(
            status(&first, &cluster(true, 1099), 1_800_000_060_000),
            first,
            "a size in the same step"
        );
        let lost = status(&first, &cluster(false, 1000), 1_800_000_060_000);
        assert_eq!(lost["conditions"][0]["message"], "connection refused");
        assert_ne!(
            lost["conditions"][0]["lastTransitionTime"],
            first["conditions"][0]["lastTransitionTime"]
        );
    }

    #[test]
    fn conditions_of_others_stay() {
        let old = json!({"conditions": [{"type": "Painted", "status": "False"}]});
        let status = status(&old, &cluster(true, 1), 0);
        assert_eq!(status["conditions"].as_array().map(Vec::len), Some(4));
    }

    #[test]
    fn how_far_it_was_seen_is_written_down_now_and_then_and_never_of_a_restored_one() {
        let check = |old: &Value, epoch: u64, restored: bool| {
            let mut cluster = cluster(!restored, 1);
            cluster.seen = Some(Seen {
                incarnation: 0,
                epoch: Epoch(epoch),
                revision: 7,
            });
            cluster.restored = restored;
            status(old, &cluster, 0)
        };
        let first = check(&Value::Null, 1000, false);
        assert_eq!(first["lastSeen"], json!({"epoch": 1000, "revision": 7}));
        assert_eq!(check(&first, 1599, false)["lastSeen"], first["lastSeen"]);
        assert_eq!(check(&first, 1600, false)["lastSeen"]["epoch"], 1600);
        let mut accepted = cluster(true, 1);
        accepted.seen = Some(Seen {
            incarnation: 1,
            epoch: Epoch(1001),
            revision: 1,
        });
        let accepted = status(&first, &accepted, 0);
        assert_eq!(accepted["lastSeen"]["incarnation"], 1, "it begins anew");
        let restored = check(&first, 2000, true);
        assert_eq!(restored["lastSeen"], first["lastSeen"]);
        let ready = &restored["conditions"][0];
        assert_eq!(
            (&ready["reason"], &ready["status"]),
            (&json!("Restored"), &json!("False"))
        );
    }

    /// `Ready=True/Answers Drained=…` of a cluster.
    fn summary(cluster: Option<&ClusterStatus>, settings: Option<&Option<String>>) -> String {
        let known = Known {
            cluster,
            settings,
            ..Known::default()
        };
        summary_of(&known, Wanted::Active)
    }

    fn summary_of(known: &Known<'_>, wanted: Wanted) -> String {
        let old = json!({"conditions": [{"type": "Drained", "status": "False"}, {"type": "Maintenance", "status": "Unknown"}]});
        told(&desired(&old, known, spec(wanted), 0))
    }

    fn told(status: &Value) -> String {
        let text = |c: &Value| {
            let field = |name: &str| c[name].as_str().unwrap_or_default().to_owned();
            format!("{}={}/{}", field("type"), field("status"), field("reason"))
        };
        let conditions = status["conditions"].as_array().map(Vec::as_slice);
        let conditions = conditions.unwrap_or_default().iter();
        let others = ["Full", "Restored"];
        let mut told: Vec<_> = conditions
            .filter(|c| !others.iter().any(|other| c["type"] == *other))
            .map(text)
            .collect();
        told.sort();
        told.join(" ")
    }

    #[test]
    fn loss_slowness_and_maintenance_can_be_told_at_a_glance() {
        let active = Some(MemberState::Active);
        let lost = Some(MemberState::Lost { from: Epoch(7) });
        let (up, down) = (cluster(true, 1), cluster(false, 1));
        let known = |cluster, decided, is_slow| Known {
            cluster: Some(cluster),
            decided,
            is_slow,
            ..Known::default()
        };
        let check = |known: Known<'_>, wanted, expect: &str| assert_eq!(summary_of(&known, wanted), expect);
        check(
            known(&up, active, Some(false)),
            Wanted::Active,
            "Lost=False/Reachable Ready=True/Answers Slow=False/AnswersInTime",
        );
        check(
            known(&up, active, Some(true)),
            Wanted::Active,
            "Lost=False/Reachable Ready=True/Slow Slow=True/AnswersLate",
        );
        check(
            known(&down, active, None),
            Wanted::Active,
            "Lost=False/NotDeclared Ready=False/Unreachable",
        );
        check(
            known(&down, lost, None),
            Wanted::Active,
            "Lost=True/Declared Ready=False/Lost",
        );
        check(
            known(&up, lost, Some(false)),
            Wanted::Active,
            "Lost=True/Returning Ready=False/Lost Slow=False/AnswersInTime",
        );
        check(
            known(&down, active, None),
            Wanted::Maintenance,
            "Lost=False/HeldBack Maintenance=True/LossHeldBack Ready=False/Unreachable",
        );
        let cut_off = Known {
            cut_off: vec!["outrigger-7".to_owned()],
            ..known(&up, active, Some(true))
        };
        check(
            cut_off,
            Wanted::Active,
            "Lost=False/Reachable Ready=True/PartlyReachable Slow=True/AnswersLate",
        );
        let offline = Some(MemberState::Offline { from: Epoch(7) });
        let wanted = |is_confirmed| Wanted::Offline { is_confirmed };
        check(
            known(&down, active, None),
            wanted(false),
            "Lost=False/NotDeclared Offline=False/NotConfirmed Ready=False/Unreachable",
        );
        check(
            known(&down, lost, None),
            wanted(true),
            "Lost=True/Declared Offline=False/Deciding Ready=False/Lost",
        );
        check(
            known(&up, offline, None),
            wanted(true),
            "Offline=True/AsWanted Ready=False/Offline",
        );
        check(
            known(&down, offline, None),
            Wanted::Active,
            "Offline=True/Returning Ready=False/Offline",
        );
        let restored = ClusterStatus {
            restored: true,
            ..cluster(false, 1)
        };
        check(
            known(&restored, lost, None),
            Wanted::Active,
            "Lost=True/Declared Ready=False/Restored",
        );
    }

    #[test]
    fn a_restored_backend_is_accepted_only_by_a_confirmation_that_was_asked_for() {
        let old = ClusterStatus {
            restored: true,
            ..cluster(false, 1)
        };
        let check = |before: &Value, cluster: &ClusterStatus, is_loss_confirmed, expect: &str| {
            let known = Known {
                cluster: Some(cluster),
                ..Known::default()
            };
            let spec = Spec {
                is_loss_confirmed,
                ..ACTIVE
            };
            let status = desired(before, &known, spec, 0);
            let reason = condition_of(&status, RESTORED).map(|c| c["reason"].clone());
            assert_eq!(reason, Some(expect.into()));
            status
        };
        let nothing = Value::Null;
        let before = check(&nothing, &old, true, "ConfirmedBefore");
        assert!(!asks_for_acceptance(&before));
        let asked = check(&before, &old, false, AWAITS_CONFIRMATION);
        let answered = check(&asked, &old, true, AWAITS_CONFIRMATION);
        assert!(asks_for_acceptance(&answered));
        let accepted = ClusterStatus {
            incarnation: 1,
            ..cluster(true, 1)
        };
        let accepted = check(&answered, &accepted, true, "AsSeen");
        assert_eq!(accepted["incarnation"], 1);
        check(&accepted, &old, true, "ConfirmedBefore");
    }

    #[test]
    fn maintenance_ends_after_an_hour_and_begins_anew_only_after_something_else() {
        let down = cluster(false, 1);
        let known = Known {
            cluster: Some(&down),
            decided: Some(MemberState::Active),
            ..Known::default()
        };
        let at = |old: &Value, wanted, minutes: u64| desired(old, &known, spec(wanted), minutes * 60_000);
        let check = |status: &Value, expect| assert_eq!(status_of(status, MAINTENANCE), expect);
        let first = at(&Value::Null, Wanted::Maintenance, 10);
        check(&first, Some("True"));
        let later = at(&first, Wanted::Maintenance, 69);
        check(&later, Some("True"));
        let over = at(&later, Wanted::Maintenance, 70);
        check(&over, Some("False"));
        check(&at(&over, Wanted::Maintenance, 500), Some("False"));
        let ended = at(&over, Wanted::Active, 501);
        check(&ended, None);
        check(&at(&ended, Wanted::Maintenance, 502), Some("True"));
    }

    #[test]
    fn joining_leaving_and_settings_can_be_told_at_a_glance() {
        let with = |membership, open, namespaces| ClusterStatus {
            membership,
            open,
            namespaces,
            ..cluster(true, 1)
        };
        let check = |cluster: ClusterStatus, expect: &str| assert_eq!(summary(Some(&cluster), None), expect);
        let removed = MemberState::Removed { last: Epoch(1) };
        check(with(Some(MemberState::Active), true, 7), "Ready=True/Answers");
        check(with(Some(MemberState::Active), false, 0), "Ready=False/Joining");
        check(
            with(Some(MemberState::Leaving), true, 7),
            "Drained=False/OwnsNamespaces Ready=True/Draining",
        );
        check(
            with(Some(MemberState::Leaving), true, 0),
            "Drained=True/OwnsNothing Ready=True/Draining",
        );
        check(
            with(Some(removed), false, 0),
            "Drained=True/Left Ready=False/Left",
        );
        let away = ClusterStatus {
            membership: Some(MemberState::Leaving),
            ..cluster(false, 1)
        };
        check(away, "Drained=Unknown/Unreachable Ready=False/Unreachable");

        let (used, refused) = (None, Some("refused".to_owned()));
        let (up, down) = (cluster(true, 1), cluster(false, 1));
        assert_eq!(
            summary(Some(&up), Some(&used)),
            "Configured=True/Used Ready=True/Answers"
        );
        assert_eq!(
            summary(Some(&up), Some(&refused)),
            "Configured=False/NotUsed Ready=True/SettingsNotUsed"
        );
        assert_eq!(
            summary(Some(&down), Some(&refused)),
            "Configured=False/NotUsed Ready=False/NotConfigured"
        );
        let unknown = summary(None, Some(&refused));
        assert!(
            unknown.contains("Ready=False/NotConnected") && unknown.contains("Configured=False/NotUsed"),
            "{unknown}"
        );
    }
}
