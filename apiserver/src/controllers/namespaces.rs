//! The end of a namespace: everything in it is deleted, its owner key and placement are given up, and only then is the
//! namespace let go. What kube-controller-manager does in a cluster; here only standalone.
//!
//! The namespace object is the last to go, so a crash at any moment leaves it there, Terminating, and everything is done
//! again.

mod conditions;

use super::collection::{self, Remaining};
use super::{FIELD_MANAGER, is_not_found};
use crate::resources::ServedResources;
use crate::resources::definition::OUTRIGGER_GROUP;
use conditions::{Emptied, conditions};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use outrigger_storage as storage;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use storage::FederatedStore;
use storage::key::Domain;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info};

/// The finalizer in `spec.finalizers` that is ours to remove.
const FINALIZER: &str = "kubernetes";
/// Kinds that are emptied at the same time.
const KINDS_IN_FLIGHT_MAX: usize = 4;
/// Namespaces that are emptied at the same time.
const NAMESPACES_IN_FLIGHT_MAX: usize = 8;
/// First and longest pause before a namespace is looked at again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Why a namespace is not finished yet.
#[derive(Debug, thiserror::Error)]
enum Unfinished {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("its owner key cannot be released: {0}")]
    Release(#[source] storage::Error),
    #[error("there is still content: {0}")]
    Content(String),
}

/// Empties and finishes deleted namespaces. Never ends.
pub async fn run(
    client: Client,
    served: watch::Receiver<Arc<ServedResources>>,
    store: FederatedStore,
    wall_clock: storage::federated::WallClock,
) {
    let namespaces = Api::<Namespace>::all(client.clone());
    let mut events = std::pin::pin!(
        watcher(namespaces, watcher::Config::default())
            .default_backoff()
            .applied_objects()
            .fuse()
    );
    let controller = Controller {
        client,
        served,
        store,
        wall_clock,
    };
    // Terminating namespaces only: name → when to look at it, and how long to wait after that.
    let mut due: BTreeMap<String, (Instant, Duration)> = BTreeMap::new();
    let mut in_flight = stream::FuturesUnordered::new();
    let mut busy: BTreeMap<String, Duration> = BTreeMap::new();
    loop {
        let now = Instant::now();
        let ready: Vec<String> = due
            .iter()
            .filter(|(name, (at, _))| *at <= now && !busy.contains_key(*name))
            .map(|(name, _)| name.clone())
            .take(NAMESPACES_IN_FLIGHT_MAX.saturating_sub(in_flight.len()))
            .collect();
        for name in ready {
            if let Some((_, pause)) = due.remove(&name) {
                busy.insert(name.clone(), pause);
                let controller = &controller;
                in_flight.push(async move { (controller.finish(&name).await, name) });
            }
        }
        let next = due
            .iter()
            .filter(|(name, _)| !busy.contains_key(*name))
            .map(|(_, (at, _))| *at)
            .min();
        let can_start = in_flight.len() < NAMESPACES_IN_FLIGHT_MAX;
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(namespace)) if namespace.metadata.deletion_timestamp.is_some() => {
                    due.entry(namespace.name_any()).or_insert((Instant::now(), RETRY.0));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => debug!(%error, "the watch of namespaces is opened again"),
                None => return,
            },
            Some((result, name)) = in_flight.next() => {
                let pause = busy.remove(&name).unwrap_or(RETRY.0);
                match result {
                    Ok(()) => { due.remove(&name); }
                    Err(error) => {
                        debug!(namespace = %name, %error, "not finished yet");
                        due.insert(name, (Instant::now() + pause, (pause * 2).min(RETRY.1)));
                    }
                }
            },
            () = sleep_until(next), if can_start => {}
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

struct Controller {
    client: Client,
    served: watch::Receiver<Arc<ServedResources>>,
    store: FederatedStore,
    wall_clock: storage::federated::WallClock,
}

impl Controller {
    /// One round for one namespace: delete what is in it, say what is left; if nothing is, give it up.
    async fn finish(&self, name: &str) -> Result<(), Unfinished> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let Some(namespace) = namespaces.get_opt(name).await? else {
            return Ok(());
        };
        if namespace.metadata.deletion_timestamp.is_none() {
            return Ok(());
        }
        let mut finalizers = namespace.spec.iter().flat_map(|s| s.finalizers.iter().flatten());
        if !finalizers.any(|f| f == FINALIZER) {
            // Emptied before; whoever holds another finalizer has the word.
            return Ok(());
        }
        let mut emptied = self.empty(name).await;
        self.report(&namespaces, &namespace, &emptied).await?;
        if let Some(left) = emptied.summary() {
            return Err(Unfinished::Content(left));
        }
        let uid = namespace.uid().unwrap_or_default();
        if let Err(error) = self.release(name, &uid).await {
            // Objects of a kind that is no longer served, or a cluster that is away: nobody could tell otherwise.
            emptied
                .failures
                .insert("namespaceplacements.outrigger.dev".to_owned(), error.to_string());
            if let Some(namespace) = namespaces.get_opt(name).await? {
                self.report(&namespaces, &namespace, &emptied).await?;
            }
            return Err(error);
        }
        self.finalize(&namespaces, name, &uid).await?;
        info!(namespace = name, "deleted");
        Ok(())
    }

    /// Deletes what is in the namespace.
    async fn empty(&self, name: &str) -> Emptied {
        let served = Arc::clone(&self.served.borrow());
        let kinds = collection::kinds(&served, |d| d.namespaced);
        let rounds = kinds.into_iter().map(|definition| async move {
            let result = collection::delete_all(&self.client, &definition, Some(name)).await;
            (definition.group_resource().to_string(), result)
        });
        let mut emptied = Emptied::default();
        let mut results = stream::iter(rounds).buffer_unordered(KINDS_IN_FLIGHT_MAX);
        while let Some((resource, result)) = results.next().await {
            match result {
                Ok(Remaining { objects: 0, .. }) => {}
                // The kind was taken away meanwhile, and its objects with it.
                Err(error) if is_not_found(&error) => {}
                Ok(remaining) => {
                    emptied.remaining.insert(resource, remaining);
                }
                Err(error) => {
                    emptied.failures.insert(resource, error.to_string());
                }
            }
        }
        emptied
    }

    /// Writes the conditions, if they say something new.
    async fn report(
        &self,
        namespaces: &Api<Namespace>,
        namespace: &Namespace,
        emptied: &Emptied,
    ) -> Result<(), kube::Error> {
        let status = namespace.status.clone().unwrap_or_default();
        let old = status.conditions.clone().unwrap_or_default();
        let new = conditions(&old, emptied, (self.wall_clock)());
        if new == old && status.phase.as_deref() == Some("Terminating") {
            return Ok(());
        }
        let patch = serde_json::json!({"status": {"phase": "Terminating", "conditions": new}});
        match namespaces
            .patch_status(
                &namespace.name_any(),
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The owner key, then the placement that named the cluster. The placement is read first, and deleted as it was read:
    /// a create that came through the check for namespaces in deletion changes it, and then all this is done again.
    async fn release(&self, name: &str, uid: &str) -> Result<(), Unfinished> {
        let placed = Placed::read(&self.client, name).await?;
        let owner_uid = match &placed {
            Some(placed) if !placed.owner_uid.is_empty() && placed.owner_uid != uid => {
                // Somebody finalized an earlier namespace of this name by force, and left us its content.
                let namespaces = Api::<Namespace>::all(self.client.clone());
                let namespace = namespaces.get_opt(name).await?;
                if namespace.is_none_or(|n| n.uid().as_deref() != Some(uid)) {
                    return Ok(());
                }
                &placed.owner_uid
            }
            _ => uid,
        };
        self.store
            .release(&Domain::Namespace(name.into()), owner_uid)
            .await
            .map_err(Unfinished::Release)?;
        if let Some(placed) = placed {
            placed.delete(&self.client).await?;
        }
        Ok(())
    }

    /// Takes our finalizer from `spec.finalizers`; the last one takes the namespace with it.
    async fn finalize(&self, namespaces: &Api<Namespace>, name: &str, uid: &str) -> Result<(), kube::Error> {
        let Some(mut namespace) = namespaces.get_opt(name).await? else {
            return Ok(());
        };
        if namespace.uid().as_deref() != Some(uid) {
            return Ok(());
        }
        let finalizers = &mut namespace.spec.get_or_insert_default().finalizers;
        finalizers.get_or_insert_default().retain(|f| f != FINALIZER);
        match namespaces
            .replace_subresource("finalize", name, &PostParams::default(), &namespace)
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The placement of a namespace or kind, at the moment when giving it up began.
pub(crate) struct Placed {
    name: String,
    version: Preconditions,
    /// The uid of the namespace or CRD that it was made for; empty if it names none.
    pub(crate) owner_uid: String,
}

impl Placed {
    pub(crate) async fn read(client: &Client, name: &str) -> Result<Option<Self>, kube::Error> {
        let placement = placements(client).get_opt(name).await?;
        Ok(placement.map(|placement| Self {
            name: name.to_owned(),
            owner_uid: placement
                .data
                .pointer("/spec/namespaceUID")
                .and_then(serde_json::Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            version: Preconditions {
                uid: placement.uid(),
                resource_version: placement.resource_version(),
            },
        }))
    }

    /// Deletes it, unless somebody changed it since.
    pub(crate) async fn delete(self, client: &Client) -> Result<(), kube::Error> {
        let parameters = DeleteParams::background().preconditions(self.version);
        match placements(client).delete(&self.name, &parameters).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn placements(client: &Client) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: OUTRIGGER_GROUP.to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: format!("{OUTRIGGER_GROUP}/v1alpha1"),
        kind: "NamespacePlacement".to_owned(),
        plural: "namespaceplacements".to_owned(),
    };
    Api::all_with(client.clone(), &resource)
}

/// Parameters of our merge patches.
pub(crate) fn patch_params() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}
