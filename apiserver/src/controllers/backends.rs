//! The writer of `WorkloadCluster.status`: slot, version, sizes, how many namespaces live there, and what is to be said of
//! it (`conditions`). It only says what the store sees, what it is told of the settings, and what the replicas agree on; it
//! decides nothing. Behind a control plane the leader writes, so that replicas which see different things do not overwrite
//! each other. Standalone it also keeps the objects themselves as the flags describe them.

mod conditions;
mod slowness;

use super::namespaces::patch_params;
use crate::resources::definition::OUTRIGGER_GROUP;
use kube::api::{ApiResource, DynamicObject, Patch, PostParams};
use kube::{Api, Client, ResourceExt};
use outrigger_storage::FederatedStore;
use outrigger_storage::federated::{ClusterStatus, WallClock};
use outrigger_storage::membership::report::{LOSS_AFTER, ReplicaReport};
use outrigger_storage::membership::{MemberState, Membership};
use outrigger_storage::metrics::StoreMetrics;
use serde_json::{Value, json};
use slowness::Slowness;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// How often the store is asked.
const EVERY: Duration = Duration::from_secs(5);
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

/// What is needed to look after the objects.
pub struct Backends {
    /// A client that may read and patch them; standalone also create them.
    pub client: Client,
    /// Those that flags describe.
    pub described: Vec<ClusterDescription>,
    /// What became of the settings of the others.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// What sees the backends.
    pub store: FederatedStore,
    /// Where it is measured which of them are slow or lost.
    pub metrics: StoreMetrics,
    /// Wall time.
    pub wall_clock: WallClock,
    /// What the replicas agree on. `None`: there is only one.
    pub agreed: Option<Agreed>,
}

/// What the replicas agree on.
#[derive(Clone)]
pub struct Agreed {
    /// Whether this replica writes.
    pub is_leader: watch::Receiver<bool>,
    /// Who belongs to the fleet.
    pub decided: watch::Receiver<Arc<Membership>>,
    /// What they say of the backends.
    pub reports: watch::Receiver<Arc<Vec<ReplicaReport>>>,
}

/// What is known of a cluster.
#[derive(Debug, Clone, Default)]
struct Known<'a> {
    /// `None`: this replica has no connection to it.
    cluster: Option<&'a ClusterStatus>,
    /// `None`: nobody looks after its settings.
    settings: Option<&'a Option<String>>,
    /// What the replicas agree that it is. `None`: there is only one replica, or it is no member.
    decided: Option<MemberState>,
    /// Replicas that cannot reach it, and that others can.
    cut_off: Vec<String>,
    /// Whether it answers late. `None`: it does not answer.
    is_slow: Option<bool>,
}

/// What the administrator wants of a cluster (`spec.state`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// It serves.
    Active,
    /// It serves, and takes no new namespaces.
    Draining,
    /// It serves, and is not declared lost for a while.
    Maintenance,
    /// It does not serve. Whether what that means is confirmed.
    Offline {
        /// `spec.confirmDataLoss` is the cluster's name.
        is_confirmed: bool,
    },
}

impl Wanted {
    /// What this WorkloadCluster says.
    #[must_use]
    pub fn of(cluster: &DynamicObject) -> Self {
        let field = |name: &str| cluster.data["spec"][name].as_str();
        match field("state") {
            Some("Draining") => Self::Draining,
            Some("Maintenance") => Self::Maintenance,
            Some("Offline") => Self::Offline {
                is_confirmed: is_loss_confirmed(cluster),
            },
            _ => Self::Active,
        }
    }
}

/// Whether the administrator accepts that what the backend holds is unavailable, or gone.
#[must_use]
pub fn is_loss_confirmed(cluster: &DynamicObject) -> bool {
    let confirmed = cluster.data["spec"]["confirmDataLoss"].as_str();
    confirmed.is_some() && confirmed == cluster.metadata.name.as_deref()
}

/// Whether the declaration of its loss is held back: it is under maintenance, and not for too long, which the condition says.
#[must_use]
pub fn is_loss_held_back(cluster: &DynamicObject) -> bool {
    let status = cluster.data.get("status").unwrap_or(&Value::Null);
    let is_over = conditions::status_of(status, conditions::MAINTENANCE) == Some("False");
    Wanted::of(cluster) == Wanted::Maintenance && !is_over
}

/// Whether the administrator accepts a backend that was restored or wiped as it is. It counts when the condition has asked for
/// it before, and for the member as it was then: `incarnation` is that of the member now.
#[must_use]
pub fn is_restore_accepted(cluster: &DynamicObject, incarnation: u64) -> bool {
    let status = cluster.data.get("status").unwrap_or(&Value::Null);
    let asked_of = status["incarnation"].as_u64().unwrap_or_default();
    // Taking it offline needs the same confirmation, and accepts nothing.
    let is_answer = is_loss_confirmed(cluster) && !matches!(Wanted::of(cluster), Wanted::Offline { .. });
    conditions::asks_for_acceptance(status) && asked_of == incarnation && is_answer
}

/// Keeps the status of every WorkloadCluster as the store sees it, and the objects of those that are described.
/// Never ends.
pub async fn run(backends: Backends) {
    let clusters = Api::<DynamicObject>::all_with(backends.client.clone(), &api_resource());
    let mut slowness: BTreeMap<String, Slowness> = BTreeMap::new();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (connected, settings) = (backends.store.clusters(), Arc::clone(&backends.settings.borrow()));
        slowness.retain(|uid, _| connected.iter().any(|cluster| cluster.uid == *uid));
        let mut all: BTreeMap<&str, Known<'_>> = BTreeMap::new();
        for (name, settings) in settings.iter() {
            all.entry(name).or_default().settings = Some(settings);
        }
        for cluster in &connected {
            let slowness = slowness.entry(cluster.uid.clone()).or_default();
            let known = all.entry(&cluster.name).or_default();
            *known = Known {
                cluster: Some(cluster),
                settings: known.settings,
                is_slow: cluster
                    .reachable
                    .then(|| slowness.after(cluster.lag, Instant::now())),
                ..backends.agreed(cluster)
            };
            backends.measure(cluster, known);
        }
        if backends
            .agreed
            .as_ref()
            .is_some_and(|agreed| !*agreed.is_leader.borrow())
        {
            continue;
        }
        for (name, known) in all {
            let description = backends.described.iter().find(|d| d.name == name);
            let now = (backends.wall_clock)();
            if let Err(error) = write(&clusters, name, known, description, now).await {
                debug!(cluster = name, %error, "its status could not be written, trying again");
            }
        }
    }
}

impl Backends {
    /// What the replicas agree on, of this cluster.
    fn agreed(&self, cluster: &ClusterStatus) -> Known<'static> {
        let Some(agreed) = &self.agreed else {
            return Known::default();
        };
        let decided = Arc::clone(&agreed.decided.borrow());
        let is_it = |slot: outrigger_storage::Slot, uid: &str| slot == cluster.slot && uid == cluster.uid;
        let record = decided.members.iter().find(|m| is_it(m.slot, &m.uid));
        let reports = Arc::clone(&agreed.reports.borrow());
        let live = reports.iter().filter(|report| report.age <= LOSS_AFTER / 2);
        let said = live.filter_map(|report| {
            let said = report.backends.iter().find(|said| is_it(said.slot, &said.uid))?;
            Some((report, said.unreachable_for))
        });
        let (reach, cut_off): (Vec<_>, Vec<_>) =
            said.partition(|(_, unreachable_for)| unreachable_for.is_none_or(|time| time < LOSS_AFTER));
        let some_reach = reach
            .iter()
            .any(|(report, unreachable_for)| report.ready && unreachable_for.is_none());
        let cut_off = cut_off.into_iter().filter(|_| some_reach);
        Known {
            decided: record.map(|record| record.state),
            cut_off: cut_off.map(|(report, _)| report.replica.clone()).collect(),
            ..Known::default()
        }
    }

    fn measure(&self, cluster: &ClusterStatus, known: &Known<'_>) {
        let metrics = self.metrics.backend(&cluster.name);
        metrics.set_lag(cluster.lag);
        metrics.set_lost(matches!(known.decided, Some(MemberState::Lost { .. })));
        if let Some(is_slow) = known.is_slow {
            metrics.set_slow(is_slow);
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
    let known = match known.cluster.filter(is_of_object) {
        Some(_) => known,
        None => Known {
            settings: known.settings,
            ..Known::default()
        },
    };
    let old = object.data.get("status").cloned().unwrap_or_default();
    let spec = conditions::Spec {
        wanted: Wanted::of(&object),
        is_loss_confirmed: is_loss_confirmed(&object),
        generation: object.metadata.generation.unwrap_or_default(),
    };
    let new = conditions::desired(&old, &known, spec, now_ms);
    if new == old {
        return Ok(());
    }
    let ready = |status| conditions::status_of(status, conditions::READY);
    if ready(&old) != ready(&new) {
        match ready(&new) == Some("True") {
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

/// A time as Kubernetes writes it.
pub(crate) fn timestamp(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds)
        .unwrap_or(jiff::Timestamp::MAX)
        .to_string()
}
