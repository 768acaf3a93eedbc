//! Placements of namespaces that are gone: their owner keys are released, then they are deleted. Only in a control plane;
//! standalone the controller of namespaces does it before the namespace goes.
//!
//! The control plane's namespace controller empties a namespace through us before it lets it go, so what is released
//! here is empty; if it is not, the release is refused and tried again. Every replica may do this: each step may be
//! repeated.

use super::{is_conflict, is_not_found};
use crate::registry::control_plane::remote::placement_resource;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, DynamicObject, Preconditions};
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, ResourceExt};
use outrigger_storage::FederatedStore;
use outrigger_storage::key::Domain;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tracing::{debug, info};

/// How often namespaces and placements are compared. Both are in memory: nobody is asked.
const EVERY: Duration = Duration::from_secs(2);

/// Why a placement is still there.
#[derive(Debug, thiserror::Error)]
enum Unfinished {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("its owner key cannot be released: {0}")]
    Release(#[from] outrigger_storage::Error),
}

/// Gives up the placements whose namespaces are gone. Never ends.
pub async fn run(
    client: Client,
    namespaces: Store<PartialObjectMeta<Namespace>>,
    placements: Store<DynamicObject>,
    store: FederatedStore,
) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    if namespaces.wait_until_ready().await.is_err() || placements.wait_until_ready().await.is_err() {
        return;
    }
    loop {
        ticks.tick().await;
        for placement in placements.state() {
            let name = placement.name_any();
            let uid = placed_uid(&placement, &store);
            let namespace = namespaces.get(&ObjectRef::new(&name));
            if !is_candidate(&name, &uid, namespace.as_deref()) {
                continue;
            }
            match give_up(&client, &placement, &uid, &store).await {
                Ok(true) => info!(
                    namespace = name,
                    "its placement was given up: the namespace is gone"
                ),
                Ok(false) => {}
                Err(error) => debug!(namespace = name, %error, "its placement stays for now"),
            }
        }
    }
}

/// The uid of the namespace that was placed. Who places a namespace beforehand does not know it: then its owner key tells,
/// once there is one; until then it is empty.
fn placed_uid(placement: &DynamicObject, store: &FederatedStore) -> String {
    let uid = placement.data.pointer("/spec/namespaceUID");
    match uid.and_then(Value::as_str).unwrap_or_default() {
        "" => {
            let domain = Domain::Namespace(placement.name_any().as_str().into());
            store.owner(&domain).map_or_else(String::new, |owner| owner.uid)
        }
        uid => uid.to_owned(),
    }
}

/// As far as the caches tell.
fn is_candidate(name: &str, uid: &str, namespace: Option<&PartialObjectMeta<Namespace>>) -> bool {
    let is_of_a_kind = name.contains('.');
    let lives = namespace.is_some_and(|namespace| namespace.metadata.uid.as_deref() == Some(uid));
    !uid.is_empty() && !is_of_a_kind && !lives
}

/// Whether it was given up. The caches may be old: both are asked for again.
async fn give_up(
    client: &Client,
    seen: &Arc<DynamicObject>,
    uid: &str,
    store: &FederatedStore,
) -> Result<bool, Unfinished> {
    let name = seen.name_any();
    let namespace = Api::<Namespace>::all(client.clone()).get_opt(&name).await?;
    if namespace.is_some_and(|namespace| namespace.uid().as_deref() == Some(uid)) {
        return Ok(false);
    }
    store
        .release(&Domain::Namespace(name.as_str().into()), uid)
        .await?;
    let placements = Api::<DynamicObject>::all_with(client.clone(), &placement_resource());
    let preconditions = Preconditions {
        uid: seen.uid(),
        resource_version: None,
    };
    let params = DeleteParams::background().preconditions(preconditions);
    match placements.delete(&name, &params).await {
        Ok(_) => Ok(true),
        Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(placed: &str, uid: &str, namespace: Option<&str>, expect: bool) {
        let namespace = namespace.map(|uid| {
            let mut namespace = PartialObjectMeta::<Namespace>::default();
            namespace.metadata.uid = Some(uid.to_owned());
            namespace
        });
        assert_eq!(
            is_candidate(placed, uid, namespace.as_ref()),
            expect,
            "{placed} {uid}"
        );
    }

    #[test]
    fn a_namespace_that_is_gone_or_another_one() {
        check("a", "1", Some("1"), false);
        check("a", "1", Some("2"), true);
        check("a", "1", None, true);
        check("a", "", None, false);
        check("clusterthings.example.com", "crd-uid", None, false);
    }
}
