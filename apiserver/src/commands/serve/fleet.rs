//! Who belongs to the fleet, as the control plane keeps it: one ConfigMap in the server's namespace, written once, by
//! whichever replica is first. All replicas must mean the same clusters: one that knew fewer would leave objects out.

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The ConfigMap, and the key in it.
pub(crate) const NAME: &str = "outrigger-fleet";
const KEY: &str = "members.json";

/// The clusters of the fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fleet {
    /// In the order of their slots.
    pub(crate) members: Vec<FleetMember>,
}

/// One cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FleetMember {
    /// Its number, written into its identity.
    pub(crate) slot: u16,
    /// The name of its WorkloadCluster.
    pub(crate) name: String,
    /// The uid of its WorkloadCluster, written into its identity.
    pub(crate) uid: String,
}

/// The fleet as it is written down, or else `proposed`, which is written down then.
pub(crate) async fn agree(client: &Client, namespace: &str, proposed: &Fleet) -> Result<Fleet> {
    let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    if let Some(object) = api.get_opt(NAME).await? {
        return read(&object);
    }
    let new = ConfigMap {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(
            KEY.to_owned(),
            serde_json::to_string(proposed)?,
        )])),
        ..ConfigMap::default()
    };
    match api.create(&PostParams::default(), &new).await {
        Ok(_) => Ok(proposed.clone()),
        // Another replica was faster.
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => read(&api.get(NAME).await?),
        Err(error) => Err(error).with_context(|| format!("ConfigMap {namespace}/{NAME} cannot be written")),
    }
}

fn read(object: &ConfigMap) -> Result<Fleet> {
    let Some(text) = object.data.as_ref().and_then(|data| data.get(KEY)) else {
        // Beginning anew would give slots away that objects carry in their resource versions.
        bail!("ConfigMap {NAME} has no key {KEY}: somebody emptied it; restore it");
    };
    serde_json::from_str(text).with_context(|| format!("ConfigMap {NAME}, key {KEY}: it is no fleet"))
}

/// What tells the fleets of two control planes apart: the uid of the namespace that every control plane has.
pub(crate) async fn uid(client: &Client) -> Result<String> {
    let namespace = Api::<Namespace>::all(client.clone())
        .get("kube-system")
        .await
        .context("the control plane cannot be asked for the namespace kube-system")?;
    namespace
        .metadata
        .uid
        .context("the namespace kube-system has no uid")
}
