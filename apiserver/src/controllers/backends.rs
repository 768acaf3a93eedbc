//! The writer of `WorkloadCluster.status`: slot, version, sizes, how many namespaces live there, and what is to be said of
//! it: Ready, Configured, Drained. It only says what the store sees, and what it is told of the settings; it decides
//! nothing. Standalone it also keeps the objects themselves as the flags describe them.

use super::namespaces::patch_params;
use crate::resources::definition::OUTRIGGER_GROUP;
use kube::api::{ApiResource, DynamicObject, Patch, PostParams};
use kube::{Api, Client, ResourceExt};
use outrigger_storage::FederatedStore;
use outrigger_storage::federated::{ClusterStatus, WallClock};
use outrigger_storage::membership::MemberState;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{debug, info, warn};

/// How often the store is asked.
const EVERY: Duration = Duration::from_secs(5);
/// How often it is written down how far a backend was seen. A backup that is younger than that cannot be told from it.
const SEEN_EVERY_EPOCHS: u64 = 15_000 / outrigger_storage::clock::EPOCH_MILLIS;
/// A size that changed by less is not news, as a part of the size.
const SIZE_STEP: u64 = 10;

/// A cluster as the flags of standalone mode describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterDescription {
    /// Its name.
    pub name: String,
    /// What is written into its backend's identity.
    pub uid: String,
    /// Where its etcd is.
    pub endpoints: Vec<String>,
    /// The prefix of our keys in it.
    pub prefix: String,
    /// Whether nobody else uses it.
    pub exclusive: bool,
}

/// What became of the settings of clusters, by name. `None`: they are used. Otherwise: what is wrong with them.
pub type Settings = BTreeMap<String, Option<String>>;

/// What is known of a cluster.
#[derive(Debug, Clone, Copy)]
struct Known<'a> {
    /// `None`: this replica has no connection to it.
    cluster: Option<&'a ClusterStatus>,
    /// `None`: nobody looks after its settings.
    settings: Option<&'a Option<String>>,
}

/// Keeps the status of every WorkloadCluster as the store sees it, and the objects of those that are described.
/// Never ends.
pub async fn run(
    client: Client,
    described: Vec<ClusterDescription>,
    settings: watch::Receiver<Arc<Settings>>,
    store: FederatedStore,
    wall_clock: WallClock,
) {
    let clusters = Api::<DynamicObject>::all_with(client, &api_resource());
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (connected, settings) = (store.clusters(), settings.borrow().clone());
        let mut all: BTreeMap<&str, Known<'_>> = settings
            .iter()
            .map(|(name, settings)| {
                let settings = Some(settings);
                let cluster = None;
                (name.as_str(), Known { cluster, settings })
            })
            .collect();
        for cluster in &connected {
            let known = Known {
                cluster: Some(cluster),
                settings: settings.get(&cluster.name),
            };
            all.insert(&cluster.name, known);
        }
        for (name, known) in all {
            let description = described.iter().find(|d| d.name == name);
            if let Err(error) = write(&clusters, name, known, description, wall_clock()).await {
                debug!(cluster = name, %error, "its status could not be written, trying again");
            }
        }
    }
}

/// The kind WorkloadCluster.
#[must_use]
pub fn api_resource() -> ApiResource {
    ApiResource {
        group: OUTRIGGER_GROUP.to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: format!("{OUTRIGGER_GROUP}/v1alpha1"),
        kind: "WorkloadCluster".to_owned(),
        plural: "workloadclusters".to_owned(),
    }
}

async fn write(
    clusters: &Api<DynamicObject>,
    name: &str,
    known: Known<'_>,
    description: Option<&ClusterDescription>,
    now_ms: u64,
) -> Result<(), kube::Error> {
    let object = match (clusters.get_opt(name).await?, description) {
        (Some(object), None) => object,
        (Some(object), Some(description)) if has_spec(&object, description) => object,
        (Some(_), Some(description)) => {
            let patch = json!({"spec": spec(description)});
            clusters
                .patch(name, &patch_params(), &Patch::Merge(patch))
                .await?
        }
        (None, Some(description)) => {
            let mut object = DynamicObject::new(name, &api_resource());
            object.data = json!({"spec": spec(description)});
            clusters.create(&PostParams::default(), &object).await?
        }
        (None, None) => return Ok(()),
    };
    // A cluster of the same name whose history is still kept is another one.
    let is_of_object =
        |cluster: &&ClusterStatus| description.is_some() || object.uid().as_ref() == Some(&cluster.uid);
    let known = Known {
        cluster: known.cluster.filter(is_of_object),
        ..known
    };
    let old = object.data.get("status").cloned().unwrap_or_default();
    let generation = object.metadata.generation.unwrap_or_default();
    let new = desired(&old, known, generation, now_ms);
    if new == old {
        return Ok(());
    }
    if ready(&old) != ready(&new) {
        match ready(&new).is_some_and(|status| status == "True") {
            true => info!(cluster = name, "the cluster is ready"),
            false => warn!(cluster = name, status = %new["conditions"], "the cluster is not ready"),
        }
    }
    clusters
        .patch_status(name, &patch_params(), &Patch::Merge(json!({"status": new})))
        .await?;
    Ok(())
}

fn spec(description: &ClusterDescription) -> Value {
    json!({"endpoints": description.endpoints, "prefix": description.prefix, "exclusive": description.exclusive})
}

fn has_spec(object: &DynamicObject, description: &ClusterDescription) -> bool {
    let wanted = spec(description);
    let stored = object.data.get("spec");
    wanted
        .as_object()
        .into_iter()
        .flatten()
        .all(|(field, value)| stored.and_then(|s| s.get(field)) == Some(value))
}

fn ready(status: &Value) -> Option<&Value> {
    let conditions = status.get("conditions")?.as_array()?;
    conditions
        .iter()
        .find(|c| c["type"] == "Ready")
        .and_then(|c| c.get("status"))
}

/// One aspect of a cluster: type, status, reason, message.
struct Condition {
    kind: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

/// The status after `old`. Sizes follow in steps, so that a busy backend does not rewrite the object all the time.
fn desired(old: &Value, known: Known<'_>, generation: i64, now_ms: u64) -> Value {
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
            let before = old["lastSeen"]["epoch"].as_u64().unwrap_or_default();
            if before + SEEN_EVERY_EPOCHS <= seen.epoch.0 {
                new.insert("lastSeen".to_owned(), json!(seen));
            }
        }
    }
    let mut conditions = old
        .get("conditions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let ours = [
        Some(readiness(known)),
        configured(known),
        drained(known),
        known.cluster.map(restored),
        known.cluster.map(full),
    ];
    // Who stays is not asked how far it has left.
    if known
        .cluster
        .is_some_and(|c| c.membership == Some(MemberState::Active))
    {
        conditions.retain(|c| c["type"] != "Drained");
    }
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
fn readiness(known: Known<'_>) -> Condition {
    let problem = known.settings.and_then(Option::as_ref);
    let (status, reason, message) = match (known.cluster, problem) {
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
        kind: "Ready",
        status,
        reason,
        message,
    }
}

/// Whether its endpoints and certificates can be used.
fn configured(known: Known<'_>) -> Option<Condition> {
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
fn drained(known: Known<'_>) -> Option<Condition> {
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

/// Whether it is older than it was.
fn restored(cluster: &ClusterStatus) -> Condition {
    let (status, reason, message) = match (&cluster.problem, cluster.restored) {
        (Some(problem), true) => ("True", "OlderThanSeen", problem.as_str()),
        _ => ("False", "AsSeen", "The backend is not older than it was."),
    };
    Condition {
        kind: "Restored",
        status,
        reason,
        message: message.to_owned(),
    }
}

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

/// A time as Kubernetes writes it.
pub(crate) fn timestamp(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds)
        .unwrap_or(jiff::Timestamp::MAX)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_storage::backend::BackendStatus;
    use outrigger_storage::federated::Seen;
    use outrigger_storage::membership::MemberState;
    use outrigger_storage::{Epoch, Slot};

    fn cluster(reachable: bool, db_size: u64) -> ClusterStatus {
        ClusterStatus {
            slot: Slot(2),
            name: "east".to_owned(),
            uid: "uid-2".to_owned(),
            membership: Some(MemberState::Active),
            open: true,
            reachable,
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
            settings: None,
        };
        desired(old, known, 4, now_ms)
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
        let old = json!({"conditions": [{"type": "Slow", "status": "False"}]});
        let status = status(&old, &cluster(true, 1), 0);
        assert_eq!(status["conditions"].as_array().map(Vec::len), Some(4));
    }

    #[test]
    fn how_far_it_was_seen_is_written_down_now_and_then_and_never_of_a_restored_one() {
        let check = |old: &Value, epoch: u64, restored: bool| {
            let mut cluster = cluster(!restored, 1);
            cluster.seen = Some(Seen {
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
        let old = json!({"conditions": [{"type": "Drained", "status": "False"}]});
        let status = desired(&old, Known { cluster, settings }, 1, 0);
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
