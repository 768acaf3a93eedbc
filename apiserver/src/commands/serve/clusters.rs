//! The workload clusters of `outrigger serve`: WorkloadCluster objects, the Secrets they name, and the backend of each.
//!
//! The clusters that there are when the first replica starts are the fleet (`fleet` keeps it); one that comes later is
//! reported, and not used.

use super::super::backends::guarded;
use super::fleet::{self, Fleet, FleetMember};
use anyhow::{Context, Result, anyhow};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::DynamicObject;
use kube::{Api, Client, ResourceExt};
use outrigger_apiserver::controllers::backends;
use outrigger_storage::Slot;
use outrigger_storage::backend::etcd::{EtcdBackend, EtcdOptions};
use outrigger_storage::federated::Member;
use outrigger_storage::metrics::StoreMetrics;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether there are clusters, or others than before.
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
    /// The server's own namespace: where the fleet is written down, and where Secrets are that name none.
    pub(crate) namespace: String,
    pub(crate) metrics: StoreMetrics,
}

impl Clusters {
    /// The members of the fleet. Waits for the first WorkloadCluster.
    pub(crate) async fn members(&self) -> Result<Vec<Member>> {
        let mut said = false;
        let described = loop {
            let described = self.described().await?;
            if !described.is_empty() {
                break described;
            }
            if !std::mem::replace(&mut said, true) {
                tracing::warn!("there is no WorkloadCluster yet: waiting for the first one (kubectl apply)");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        let fleet = fleet::agree(&self.client, &self.namespace, &propose(&described)).await?;
        let mut members = Vec::new();
        for member in &fleet.members {
            let cluster = described
                .iter()
                .find(|c| c.uid().as_deref() == Some(member.uid.as_str()));
            let cluster = cluster.ok_or_else(|| {
                anyhow!(
                    "cluster {:?} belongs to the fleet (ConfigMap {}/{}), and its WorkloadCluster is not there: \
                     its objects would look deleted; apply it again",
                    member.name,
                    self.namespace,
                    fleet::NAME
                )
            })?;
            let connected = self.connect(member, cluster).await;
            members.push(connected.with_context(|| format!("WorkloadCluster {:?}", member.name))?);
        }
        Ok(members)
    }

    /// Reports WorkloadClusters that do not belong to the fleet. Never ends.
    pub(crate) async fn report_strangers(self, members: BTreeSet<String>) {
        let mut known = BTreeSet::new();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let described = match self.described().await {
                Ok(described) => described,
                Err(error) => {
                    tracing::debug!(error = format!("{error:#}"), "trying again");
                    continue;
                }
            };
            for cluster in described {
                let uid = cluster.uid().unwrap_or_default();
                if !members.contains(&uid) && known.insert(uid) {
                    tracing::warn!(
                        cluster = cluster.name_any(),
                        "it came after the fleet was made and is not used: clusters cannot join a running fleet yet"
                    );
                }
            }
        }
    }

    async fn described(&self) -> Result<Vec<DynamicObject>> {
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &backends::api_resource());
        let all = api.list(&Default::default()).await;
        Ok(all.context("WorkloadClusters cannot be listed")?.items)
    }

    async fn connect(&self, record: &FleetMember, cluster: &DynamicObject) -> Result<Member> {
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
        let backend = Arc::new(EtcdBackend::new(&options)?);
        let backend = guarded(backend, &self.metrics, &record.name);
        Ok(Member {
            slot: Slot(record.slot),
            name: record.name.clone(),
            uid: record.uid.clone(),
            backend,
            exclusive: spec.exclusive,
        })
    }

    async fn secret(&self, reference: &SecretRef) -> Result<BTreeMap<String, ByteString>> {
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

/// A slot for each: the one that its status says, or else the lowest that is free.
fn propose(described: &[DynamicObject]) -> Fleet {
    let said = |cluster: &DynamicObject| {
        let slot = cluster
            .data
            .pointer("/status/slot")
            .and_then(serde_json::Value::as_u64);
        slot.and_then(|slot| u16::try_from(slot).ok())
    };
    let mut taken: BTreeSet<u16> = described.iter().filter_map(said).collect();
    let mut members: Vec<FleetMember> = Vec::new();
    for cluster in described {
        let kept = said(cluster).filter(|slot| members.iter().all(|member| member.slot != *slot));
        let free = || {
            (0..u16::MAX)
                .find(|slot| !taken.contains(slot))
                .unwrap_or_default()
        };
        let slot = kept.unwrap_or_else(free);
        taken.insert(slot);
        members.push(FleetMember {
            slot,
            name: cluster.name_any(),
            uid: cluster.uid().unwrap_or_default(),
        });
    }
    members.sort_by_key(|member| member.slot);
    Fleet { members }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(said: &[Option<u64>], expect: &[u16]) {
        let described: Vec<DynamicObject> = said
            .iter()
            .enumerate()
            .map(|(i, slot)| {
                let mut cluster = DynamicObject::new(&format!("c{i}"), &backends::api_resource());
                cluster.metadata.uid = Some(format!("uid-{i}"));
                cluster.data = json!({"status": {"slot": slot}});
                cluster
            })
            .collect();
        let fleet = propose(&described);
        let slot_of = |i: usize| {
            fleet
                .members
                .iter()
                .find(|m| m.uid == format!("uid-{i}"))
                .map(|m| m.slot)
        };
        let slots: Vec<u16> = (0..said.len()).filter_map(slot_of).collect();
        assert_eq!(slots, expect, "{said:?}");
    }

    #[test]
    fn a_cluster_keeps_its_slot() {
        check(&[None, None, None], &[0, 1, 2]);
        check(&[None, Some(0), None], &[1, 0, 2]);
        check(&[Some(7), None, Some(7)], &[7, 0, 1]);
    }
}
