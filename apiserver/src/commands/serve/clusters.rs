//! The workload clusters of `outrigger serve`: WorkloadCluster objects, the Secrets they name, and the backend of each.
//!
//! A cluster that appears joins the fleet, one that is deleted leaves it once it owns nothing: each is a decision of
//! `fleet`, which every replica hands to its store.

use super::super::backends::guarded;
use super::fleet::FleetObject;
use crate::app::Spawner;
use anyhow::{Context, Result, anyhow};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::api::DynamicObject;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use outrigger_apiserver::controllers::backends;
use outrigger_storage::FederatedStore;
use outrigger_storage::backend::etcd::{EtcdBackend, EtcdOptions};
use outrigger_storage::federated::{Member, Seen};
use outrigger_storage::membership::{MemberRecord, MemberState, Membership};
use outrigger_storage::metrics::StoreMetrics;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// How often the members are looked at, whatever the watch says.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What is read of a WorkloadCluster's spec.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    endpoints: Vec<String>,
    #[serde(default = "default_prefix")]
    prefix: String,
    #[serde(default)]
    secret_ref: Option<SecretRef>,
    #[serde(default)]
    exclusive: bool,
}

#[derive(Debug, Clone, Deserialize)]
struct SecretRef {
    name: String,
    #[serde(default)]
    namespace: String,
}

fn default_prefix() -> String {
    EtcdOptions::default().prefix
}

/// The clusters, as the control plane describes them.
#[derive(Clone)]
pub(crate) struct Clusters {
    pub(crate) client: Client,
    /// The server's own namespace: where Secrets are that name none.
    pub(crate) namespace: String,
    pub(crate) fleet: FleetObject,
    pub(crate) metrics: StoreMetrics,
}

impl Clusters {
    /// All WorkloadClusters that are there to stay.
    pub(crate) async fn wanted(&self) -> Result<Vec<DynamicObject>> {
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &backends::api_resource());
        let all = api
            .list(&Default::default())
            .await
            .context("WorkloadClusters cannot be listed")?;
        let stays = |cluster: &DynamicObject| cluster.metadata.deletion_timestamp.is_none();
        Ok(all.items.into_iter().filter(stays).collect())
    }

    /// The fleet, once every cluster that is wanted belongs to it.
    pub(crate) async fn join(&self, wanted: &[DynamicObject]) -> Result<Membership> {
        let is_new = |membership: &Membership, cluster: &DynamicObject| {
            let uid = cluster.uid().unwrap_or_default();
            !membership.members.iter().any(|member| member.uid == uid)
        };
        self.fleet
            .decide(|membership| {
                let mut next = membership.clone();
                for cluster in wanted.iter().filter(|cluster| is_new(membership, cluster)) {
                    let Some(slot) = next.free_slot() else { break };
                    next = next.joined(slot, &cluster.name_any(), &cluster.uid().unwrap_or_default())?;
                }
                Ok((next != *membership).then_some(next))
            })
            .await
    }

    /// Connections to the members that are described. What is wrong with one does not keep the others away.
    pub(crate) async fn connections(&self, membership: &Membership, wanted: &[DynamicObject]) -> Vec<Member> {
        let mut connections = Vec::new();
        for record in membership
            .members
            .iter()
            .filter(|m| !matches!(m.state, MemberState::Removed { .. }))
        {
            let described = wanted
                .iter()
                .find(|c| c.uid().as_deref() == Some(record.uid.as_str()));
            let connected = match described {
                Some(cluster) => self.connect(record, cluster).await,
                None => Err(anyhow!("its WorkloadCluster is not there")),
            };
            match connected {
                Ok(member) => connections.push(member),
                Err(error) => tracing::error!(
                    cluster = record.name,
                    error = format!("{error:#}"),
                    "it cannot be connected"
                ),
            }
        }
        connections
    }

    async fn connect(&self, record: &MemberRecord, cluster: &DynamicObject) -> Result<Member> {
        let spec = cluster.data.get("spec").cloned().unwrap_or_default();
        let spec: Spec = serde_json::from_value(spec).context("its spec cannot be read")?;
        let secret = match &spec.secret_ref {
            Some(reference) => Some(self.secret(reference).await?),
            None => None,
        };
        let entry = |key: &str| {
            secret
                .as_ref()
                .and_then(|data| data.get(key))
                .map(|bytes| bytes.0.clone())
        };
        let options = EtcdOptions {
            endpoints: spec.endpoints,
            ca_pem: entry("ca.crt"),
            cert_pem: entry("tls.crt"),
            key_pem: entry("tls.key"),
            prefix: spec.prefix,
            ..EtcdOptions::default()
        };
        let seen = cluster
            .data
            .get("status")
            .and_then(|status| status.get("lastSeen"));
        let seen = seen
            .map(|seen| Seen::deserialize(seen).context("its status.lastSeen cannot be read"))
            .transpose()?;
        let backend = Arc::new(EtcdBackend::new(&options)?);
        let backend = guarded(backend, &self.metrics, &record.name);
        Ok(Member {
            slot: record.slot,
            name: record.name.clone(),
            uid: record.uid.clone(),
            backend,
            exclusive: spec.exclusive,
            seen,
        })
    }

    async fn secret(
        &self,
        reference: &SecretRef,
    ) -> Result<std::collections::BTreeMap<String, k8s_openapi::ByteString>> {
        let namespace = match reference.namespace.as_str() {
            "" => &self.namespace,
            namespace => namespace,
        };
        let secret = Api::<Secret>::namespaced(self.client.clone(), namespace)
            .get(&reference.name)
            .await
            .with_context(|| format!("Secret {namespace}/{} cannot be read", reference.name))?;
        Ok(secret.data.unwrap_or_default())
    }
}

/// Follows the WorkloadClusters and the decisions about them, and hands both to the store. Never ends.
pub(crate) async fn follow(clusters: Clusters, store: FederatedStore, spawner: Spawner) {
    let api = Api::<DynamicObject>::all_with(clusters.client.clone(), &backends::api_resource());
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // Decisions of other replicas come with the next look.
            _ = ticks.tick() => {}
            event = events.next() => match event {
                Some(Ok(watcher::Event::Init | watcher::Event::InitApply(_))) => continue,
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    tracing::debug!(%error, "the watch of WorkloadClusters is opened again");
                    continue;
                }
                None => return,
            }
        }
        if let Err(error) = clusters.look(&store, &spawner).await {
            tracing::warn!(
                error = format!("{error:#}"),
                "the members of the fleet could not be looked at, trying again"
            );
        }
    }
}

impl Clusters {
    async fn look(&self, store: &FederatedStore, spawner: &Spawner) -> Result<()> {
        let wanted = self.wanted().await?;
        let membership = self.join(&wanted).await?;
        let connected = store.clusters();
        let is_new = |record: &&MemberRecord| !connected.iter().any(|cluster| cluster.uid == record.uid);
        let missing = Membership {
            members: membership.members.iter().filter(is_new).cloned().collect(),
            ..membership.clone()
        };
        let connections = self.connections(&missing, &wanted).await;
        for task in store.hand_over(membership, connections) {
            spawner.spawn(&format!("workload store: {}", task.name), task.run);
        }
        Ok(())
    }
}
