//! The writer of `WorkloadCluster.status`: slot, version, sizes, how many namespaces live there, and the condition Ready.
//! It only says what the store sees; it decides nothing. Standalone it also keeps the objects themselves as the flags
//! describe them.

use super::namespaces::patch_params;
use crate::resources::definition::OUTRIGGER_GROUP;
use kube::api::{ApiResource, DynamicObject, Patch, PostParams};
use kube::{Api, Client};
use outrigger_storage::FederatedStore;
use outrigger_storage::federated::{ClusterStatus, WallClock};
use serde_json::{Value, json};
use std::time::Duration;
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

/// Keeps the status of every WorkloadCluster as the store sees it, and the objects of those that are described.
/// Never ends.
pub async fn run(
    client: Client,
    described: Vec<ClusterDescription>,
    store: FederatedStore,
    wall_clock: WallClock,
) {
    let clusters = Api::<DynamicObject>::all_with(client, &api_resource());
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for cluster in store.clusters() {
            let description = described.iter().find(|d| d.name == cluster.name);
            if let Err(error) = write(&clusters, &cluster, description, wall_clock()).await {
                debug!(cluster = cluster.name, %error, "its status could not be written, trying again");
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
    cluster: &ClusterStatus,
    description: Option<&ClusterDescription>,
    now_ms: u64,
) -> Result<(), kube::Error> {
    let object = match (clusters.get_opt(&cluster.name).await?, description) {
        (Some(object), None) => object,
        (Some(object), Some(description)) if has_spec(&object, description) => object,
        (Some(_), Some(description)) => {
            let patch = json!({"spec": spec(description)});
            clusters
                .patch(&cluster.name, &patch_params(), &Patch::Merge(patch))
                .await?
        }
        (None, Some(description)) => {
            let mut object = DynamicObject::new(&cluster.name, &api_resource());
            object.data = json!({"spec": spec(description)});
            // The defaults of its schema, which a control plane would set.
            object.data["spec"]["state"] = "Active".into();
            object.data["spec"]["tenancy"] = "Pool".into();
            clusters.create(&PostParams::default(), &object).await?
        }
        (None, None) => return Ok(()),
    };
    let old = object.data.get("status").cloned().unwrap_or_default();
    let generation = object.metadata.generation.unwrap_or_default();
    let mut new = desired(&old, cluster, generation, now_ms);
    if let Some(description) = description {
        new["clusterUID"] = description.uid.clone().into();
    }
    if new == old {
        return Ok(());
    }
    if ready(&old) != ready(&new) {
        match &cluster.problem {
            None => info!(cluster = cluster.name, "the cluster answers"),
            Some(problem) => warn!(cluster = cluster.name, problem, "the cluster does not answer"),
        }
    }
    clusters
        .patch_status(
            &cluster.name,
            &patch_params(),
            &Patch::Merge(json!({"status": new})),
        )
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

/// The status after `old`. Sizes follow in steps, so that a busy backend does not rewrite the object all the time.
fn desired(old: &Value, cluster: &ClusterStatus, generation: i64, now_ms: u64) -> Value {
    let mut new = old.as_object().cloned().unwrap_or_default();
    new.insert("slot".to_owned(), cluster.slot.0.into());
    new.insert("namespaces".to_owned(), cluster.namespaces.into());
    new.insert("observedGeneration".to_owned(), generation.into());
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
    let (status, reason, message) = match (cluster.reachable, &cluster.problem) {
        (false, Some(problem)) if cluster.restored => ("False", "Restored", problem.clone()),
        (true, _) => (
            "True",
            "Answers",
            "The backend answers and its log is followed.".to_owned(),
        ),
        (false, Some(problem)) => ("False", "Unreachable", problem.clone()),
        (false, None) => (
            "Unknown",
            "Connecting",
            "The backend has not answered yet.".to_owned(),
        ),
    };
    let mut conditions = old
        .get("conditions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let mut put = |kind: &str, status: &str, reason: &str, message: &str| {
        let before = conditions.iter().find(|c| c["type"] == kind);
        let since = before
            .filter(|c| c["status"] == status)
            .and_then(|c| c.get("lastTransitionTime"))
            .cloned();
        let condition = json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": since.unwrap_or_else(|| timestamp(now_ms).into()),
        });
        conditions.retain(|c| c["type"] != kind);
        conditions.push(condition);
    };
    put("Ready", status, reason, &message);
    match (&cluster.problem, cluster.restored) {
        (Some(problem), true) => put("Restored", "True", "OlderThanSeen", problem),
        _ => put(
            "Restored",
            "False",
            "AsSeen",
            "The backend is not older than it was.",
        ),
    }
    match cluster.status.is_full() {
        true => put("Full", "True", "QuotaAlmostUsed", FULL),
        false => put("Full", "False", "EnoughSpace", "There is space for objects."),
    }
    new.insert("conditions".to_owned(), conditions.into());
    new.into()
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

    #[test]
    fn the_status_says_what_the_store_sees() {
        let status = desired(&Value::Null, &cluster(true, 1000), 4, 1_800_000_000_000);
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
        let first = desired(&Value::Null, &cluster(true, 1000), 4, 1_800_000_000_000);
        assert_eq!(desired(&first, &cluster(true, 1000), 4, 1_800_000_060_000), first);
        assert_eq!(
            desired(&first, &cluster(true, 1099), 4, 1_800_000_060_000),
            first,
            "a size in the same step"
        );
        let lost = desired(&first, &cluster(false, 1000), 4, 1_800_000_060_000);
        assert_eq!(lost["conditions"][0]["message"], "connection refused");
        assert_ne!(
            lost["conditions"][0]["lastTransitionTime"],
            first["conditions"][0]["lastTransitionTime"]
        );
    }

    #[test]
    fn conditions_of_others_stay() {
        let old = json!({"conditions": [{"type": "Slow", "status": "False"}]});
        let status = desired(&old, &cluster(true, 1), 1, 0);
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
            desired(old, &cluster, 1, 0)
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
}
