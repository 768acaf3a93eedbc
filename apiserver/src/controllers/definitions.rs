//! The writer of `ServedResources`: watches CustomResourceDefinitions, accepts their names, publishes what they serve,
//! and empties those that are being deleted.
//!
//! ```text
//! watch ─▶ all CRDs ─▶ crd_status (pure) ─▶ patch status ─▶ publish
//!                  └─▶ being deleted: delete the objects ─▶ release the owner key ─▶ take the finalizer off
//! ```
//!
//! What is published follows the stored CRDs, never a plan: a kind is served once `Established` is stored.

use super::backends::timestamp;
use super::collection::{self, Remaining};
use super::namespaces::{Placed, patch_params};
use super::{apply_crd_events, is_conflict, is_not_found};
use crate::resources::crd_status::{CLEANUP_FINALIZER, crd_status, instances_removed};
use crate::resources::definition::{Backing, OUTRIGGER_GROUP, ResourceDefinition, condition_is_true};
use crate::resources::{ServedResources, builtin};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use kube::api::{ApiResource, DynamicObject, Patch, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use outrigger_storage::FederatedStore;
use outrigger_storage::federated::WallClock;
use outrigger_storage::key::Domain;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// How soon a status that could not be written is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// First and longest pause between two looks at the objects of a CRD that is being deleted.
const CLEANUP_RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Tries of a change that meets a change of somebody else.
const TRIES: usize = 5;

/// What the controller needs.
pub struct Definitions {
    /// A client of the API that serves the CRDs.
    pub client: Client,
    /// What is served; this controller is its only writer.
    pub served: watch::Sender<Arc<ServedResources>>,
    /// The store of the distributed kinds.
    pub store: FederatedStore,
    /// Wall time.
    pub wall_clock: WallClock,
    /// Becomes true once everything that was stored at the start is served.
    pub synced: watch::Sender<bool>,
}

/// What is served before any CRD was read: the server's own kinds.
#[must_use]
pub fn initial() -> ServedResources {
    ServedResources::new(
        builtin::outrigger_definitions()
            .into_iter()
            .chain(builtin::definitions()),
    )
}

/// The kind CustomResourceDefinition.
#[must_use]
pub fn api_resource() -> ApiResource {
    ApiResource {
        group: "apiextensions.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "apiextensions.k8s.io/v1".to_owned(),
        kind: "CustomResourceDefinition".to_owned(),
        plural: "customresourcedefinitions".to_owned(),
    }
}

/// The CRDs as they are stored, and what each of them serves.
#[derive(Default)]
struct Crds {
    known: BTreeMap<String, Value>,
    /// What the watch has listed so far, while it starts over.
    listed: BTreeMap<String, Value>,
    /// Those whose status has to be looked at.
    dirty: BTreeSet<String>,
    /// What each serves, beside the version that it was made from.
    definitions: BTreeMap<String, (u64, Vec<Arc<ResourceDefinition>>)>,
}

/// Follows the CRDs. Never ends.
pub async fn run(definitions: Definitions) {
    let api = Api::<DynamicObject>::all_with(definitions.client.clone(), &api_resource());
    let mut events = std::pin::pin!(watcher(api.clone(), watcher::Config::default()).default_backoff());
    let mut crds = Crds::default();
    let mut cleanups: FuturesUnordered<BoxFuture<'_, (String, String)>> = FuturesUnordered::new();
    let mut cleaning: BTreeMap<String, String> = BTreeMap::new();
    let mut retry_at: Option<Instant> = None;
    let mut own_seen = false;
    loop {
        let mut changed = false;
        tokio::select! {
            event = events.next() => {
                match apply_crd_events(event, &mut events, |event| crds.apply(event)) {
                    Some(news) => changed = news,
                    None => return,
                }
            }
            Some((name, uid)) = cleanups.next() => {
                if cleaning.get(&name) == Some(&uid) {
                    cleaning.remove(&name);
                }
            }
            () = sleep_until(retry_at) => changed = true,
        }
        if !changed {
            continue;
        }
        retry_at = match definitions.write_statuses(&api, &mut crds).await {
            true => None,
            false => Some(Instant::now() + RETRY),
        };
        definitions.publish(&mut crds);
        definitions
            .synced
            .send_if_modified(|synced| !std::mem::replace(synced, true));
        for (name, crd) in crds.known.iter().filter(|(_, crd)| is_deleting(crd)) {
            let uid = uid(crd).to_owned();
            if cleaning.get(name) != Some(&uid) {
                cleaning.insert(name.clone(), uid.clone());
                let definitions = &definitions;
                let name = name.clone();
                cleanups.push(Box::pin(async move {
                    definitions.clean_up(&name, &uid).await;
                    (name, uid)
                }));
            }
        }
        // They are written once at the start; only what was there and went comes back.
        let own = builtin::outrigger_crds();
        own_seen |= own
            .iter()
            .all(|crd| crds.known.contains_key(text(crd, "/metadata/name")));
        if own_seen && retry_at.is_none() && !definitions.restore_own(&own, &crds.known).await {
            retry_at = Some(Instant::now() + RETRY);
        }
    }
}

impl Crds {
    /// Applies an event; whether anything changed.
    fn apply(&mut self, event: watcher::Event<DynamicObject>) -> bool {
        let entry = |crd: DynamicObject| {
            let name = crd.metadata.name.clone().unwrap_or_default();
            (name, serde_json::to_value(crd).unwrap_or_default())
        };
        match event {
            watcher::Event::Init => {
                self.listed.clear();
                false
            }
            watcher::Event::InitApply(crd) => {
                self.listed.extend([entry(crd)]);
                false
            }
            watcher::Event::InitDone => {
                self.known = std::mem::take(&mut self.listed);
                self.dirty = self.known.keys().cloned().collect();
                true
            }
            watcher::Event::Apply(crd) => {
                let (name, crd) = entry(crd);
                // Our own writes come back: only what is newer than what we know counts.
                let known = self.known.get(&name);
                let is_news =
                    known.is_none_or(|known| version(known) < version(&crd) || uid(known) != uid(&crd));
                if is_news {
                    self.touch(&name, &crd);
                    self.known.insert(name, crd);
                }
                is_news
            }
            watcher::Event::Delete(crd) => {
                let (name, crd) = entry(crd);
                let is_known = self.known.get(&name).is_some_and(|known| uid(known) == uid(&crd));
                if is_known {
                    self.touch(&name, &crd);
                    self.known.remove(&name);
                    self.definitions.remove(&name);
                }
                is_known
            }
        }
    }

    /// A CRD changed: it has to be looked at, and so have those of its group that waited for names.
    fn touch(&mut self, name: &str, crd: &Value) {
        self.dirty.insert(name.to_owned());
        let group = text(crd, "/spec/group");
        let waits =
            |other: &Value| text(other, "/spec/group") == group && !condition_is_true(other, "NamesAccepted");
        self.dirty.extend(
            self.known
                .iter()
                .filter(|(_, other)| waits(other))
                .map(|(name, _)| name.clone()),
        );
    }

    /// What the CRDs say of names, without the rest of them.
    fn names(&self) -> Vec<Value> {
        let names = |crd: &Value| {
            json!({
                "metadata": {"name": text(crd, "/metadata/name")},
                "spec": {"group": text(crd, "/spec/group"), "names": crd.pointer("/spec/names")},
                "status": {"acceptedNames": crd.pointer("/status/acceptedNames")},
            })
        };
        self.known.values().map(names).collect()
    }

    /// What all of them serve.
    fn serve(&mut self) -> Vec<Arc<ResourceDefinition>> {
        for (name, crd) in &self.known {
            let version = version(crd);
            if self.definitions.get(name).is_none_or(|(of, _)| *of != version) {
                let made = ResourceDefinition::from_crd(crd)
                    .into_iter()
                    .map(Arc::new)
                    .collect();
                self.definitions.insert(name.clone(), (version, made));
            }
        }
        self.definitions.retain(|name, _| self.known.contains_key(name));
        self.definitions
            .values()
            .flat_map(|(_, definitions)| definitions.iter().cloned())
            .collect()
    }
}

impl Definitions {
    /// Brings the statuses up to date; whether all are.
    async fn write_statuses(&self, api: &Api<DynamicObject>, crds: &mut Crds) -> bool {
        let mut failed = BTreeSet::new();
        while let Some(name) = crds.dirty.pop_first() {
            let Some(crd) = crds.known.get(&name) else {
                continue;
            };
            let status = crd_status(crd, &crds.names(), &timestamp((self.wall_clock)()));
            if crd.get("status") == Some(&status) {
                continue;
            }
            let version = crd.pointer("/metadata/resourceVersion").cloned();
            let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
            match api
                .patch_status(&name, &patch_params(), &Patch::Merge(patch))
                .await
            {
                Ok(stored) => {
                    debug!(crd = name, "status written");
                    crds.known
                        .insert(name, serde_json::to_value(stored).unwrap_or_default());
                }
                // Its next event is on the way.
                Err(error) if is_conflict(&error) || is_not_found(&error) => {}
                Err(error) => {
                    warn!(crd = name, %error, "its status could not be written, trying again");
                    failed.insert(name);
                }
            }
        }
        crds.dirty = failed;
        crds.dirty.is_empty()
    }

    fn publish(&self, crds: &mut Crds) {
        // Later ones count: nobody takes the server's own kinds away.
        let all = builtin::outrigger_definitions()
            .into_iter()
            .chain(crds.serve())
            .chain(builtin::definitions());
        super::publish(&self.served, ServedResources::new(all));
    }

    /// The CRDs of `outrigger.dev` are part of the server: one that somebody deleted comes back. Whether all are there.
    async fn restore_own(&self, own: &[Value], crds: &BTreeMap<String, Value>) -> bool {
        for crd in own {
            let name = text(crd, "/metadata/name");
            if !crds.contains_key(name)
                && let Err(error) = apply_crd(&self.client, crd).await
            {
                warn!(crd = name, %error, "it could not be written, trying again");
                return false;
            }
        }
        true
    }

    /// Deletes the objects of a CRD that is being deleted, until none is left, and lets it go.
    async fn clean_up(&self, name: &str, uid: &str) {
        let mut pause = CLEANUP_RETRY.0;
        loop {
            match self.clean_up_round(name, uid).await {
                Ok(true) => return,
                Ok(false) => debug!(crd = name, "its objects are not gone yet"),
                Err(error) => warn!(crd = name, error, "its objects cannot be deleted, trying again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(CLEANUP_RETRY.1);
        }
    }

    /// Whether it is done.
    async fn clean_up_round(&self, name: &str, uid: &str) -> Result<bool, String> {
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &api_resource());
        let Some(crd) = api.get_opt(name).await.map_err(|e| e.to_string())? else {
            return Ok(true);
        };
        let crd = serde_json::to_value(crd).map_err(|e| e.to_string())?;
        if text(&crd, "/metadata/uid") != uid || !is_deleting(&crd) {
            return Ok(true);
        }
        // Placements and clusters outlive the description of their kinds: it comes back (`restore_own`).
        let definition = match text(&crd, "/spec/group") {
            OUTRIGGER_GROUP => None,
            _ => ResourceDefinition::from_crd(&crd).into_iter().next(),
        };
        if let Some(definition) = definition {
            if collection::delete_all(&self.client, &definition, None)
                .await
                .map_err(|e| e.to_string())?
                != Remaining::default()
            {
                return Ok(false);
            }
            self.release(&definition).await?;
        }
        let status = instances_removed(&crd, &timestamp((self.wall_clock)()));
        let finalizers = crd
            .pointer("/metadata/finalizers")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let finalizers: Vec<Value> = finalizers
            .into_iter()
            .filter(|f| f != CLEANUP_FINALIZER)
            .collect();
        let version = crd.pointer("/metadata/resourceVersion");
        let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
        let written = api
            .patch_status(name, &patch_params(), &Patch::Merge(patch))
            .await
            .map_err(|e| e.to_string())?;
        let patch = json!({"metadata": {"resourceVersion": written.metadata.resource_version, "finalizers": finalizers}});
        api.patch(name, &patch_params(), &Patch::Merge(patch))
            .await
            .map_err(|e| e.to_string())?;
        info!(crd = name, "deleted, and all its objects");
        Ok(true)
    }

    /// A kind without namespaces has an owner key of its own.
    async fn release(&self, definition: &ResourceDefinition) -> Result<(), String> {
        if definition.namespaced || definition.backing == Backing::System {
            return Ok(());
        }
        let domain = Domain::Kind(definition.storage_resource());
        // Read first and deleted as it was read, as for a namespace.
        let placed = Placed::read(&self.client, &domain.placement_name())
            .await
            .map_err(|e| e.to_string())?;
        let mut owner_uid = definition.crd_uid.clone();
        if let Some(placed) = &placed
            && !placed.owner_uid.is_empty()
            && placed.owner_uid != owner_uid
        {
            // An earlier CRD of this name went without its objects: somebody took our finalizer from it.
            let crds = Api::<DynamicObject>::all_with(self.client.clone(), &api_resource());
            let crd = crds
                .get_opt(&definition.group_resource().to_string())
                .await
                .map_err(|e| e.to_string())?;
            if crd.is_none_or(|crd| crd.metadata.uid.as_ref() != Some(&owner_uid)) {
                return Ok(());
            }
            owner_uid.clone_from(&placed.owner_uid);
        }
        self.store
            .release(&domain, &owner_uid)
            .await
            .map_err(|e| e.to_string())?;
        match placed {
            Some(placed) => placed.delete(&self.client).await.map_err(|e| e.to_string()),
            None => Ok(()),
        }
    }
}

/// Creates a CRD, or brings the stored one to this spec, labels and annotations.
///
/// # Errors
/// What the API answers: 422 for a CRD that is not valid.
pub async fn apply_crd(client: &Client, crd: &Value) -> Result<(), kube::Error> {
    let api = Api::<DynamicObject>::all_with(client.clone(), &api_resource());
    let name = text(crd, "/metadata/name");
    let wanted: DynamicObject = serde_json::from_value(crd.clone()).map_err(kube::Error::SerdeError)?;
    let mut tries = 1;
    loop {
        let result = match api.get_opt(name).await? {
            None => api.create(&PostParams::default(), &wanted).await.map(|_| ()),
            Some(stored) => {
                let mut new = stored.clone();
                new.data["spec"] = wanted.data["spec"].clone();
                new.metadata
                    .labels
                    .get_or_insert_default()
                    .extend(wanted.metadata.labels.clone().unwrap_or_default());
                new.metadata
                    .annotations
                    .get_or_insert_default()
                    .extend(wanted.metadata.annotations.clone().unwrap_or_default());
                api.replace(name, &PostParams::default(), &new).await.map(|_| ())
            }
        };
        match result {
            Err(error) if is_conflict(&error) && tries < TRIES => tries += 1,
            other => return other,
        }
    }
}

fn is_deleting(crd: &Value) -> bool {
    let finalizers = crd.pointer("/metadata/finalizers").and_then(Value::as_array);
    !text(crd, "/metadata/deletionTimestamp").is_empty()
        && finalizers.is_some_and(|all| all.iter().any(|f| f == CLEANUP_FINALIZER))
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn uid(crd: &Value) -> &str {
    text(crd, "/metadata/uid")
}

fn version(crd: &Value) -> u64 {
    text(crd, "/metadata/resourceVersion").parse().unwrap_or_default()
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crd(name: &str, uid: &str, version: u64) -> DynamicObject {
        let value = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": name, "uid": uid, "resourceVersion": version.to_string()},
        });
        serde_json::from_value(value).expect("a CRD")
    }

    #[test]
    fn events_in_any_order_lead_to_what_is_stored() {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        let mut crds = Crds::default();
        assert!(!crds.apply(Init));
        assert!(
            !crds.apply(InitApply(crd("a", "1", 10))),
            "nothing is served before all are known"
        );
        assert!(crds.apply(InitDone));
        assert!(!crds.apply(Apply(crd("a", "1", 9))), "older than what is known");
        assert!(!crds.apply(Apply(crd("a", "1", 10))), "the same");
        assert!(crds.apply(Apply(crd("a", "1", 11))));
        assert!(crds.apply(Apply(crd("a", "2", 20))), "made anew");
        assert!(
            !crds.apply(Delete(crd("a", "1", 12))),
            "the deletion of its predecessor"
        );
        assert!(crds.apply(Delete(crd("a", "2", 21))));
        assert!(!crds.apply(Delete(crd("a", "2", 21))));
    }

    #[test]
    fn a_change_wakes_those_of_the_group_that_wait_for_names() {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        let accepted = |name: &str, accepted: &str| {
            let mut crd = crd(name, "1", 1);
            let conditions = json!([{"type": "NamesAccepted", "status": accepted}]);
            crd.data = json!({"spec": {"group": "g"}, "status": {"conditions": conditions}});
            crd
        };
        let mut crds = Crds::default();
        for event in [
            Init,
            InitApply(accepted("a", "True")),
            InitApply(accepted("b", "False")),
            InitApply(accepted("c", "True")),
            InitDone,
        ] {
            crds.apply(event);
        }
        assert_eq!(crds.dirty.len(), 3, "all are looked at when the watch starts");
        crds.dirty.clear();
        crds.apply(Delete(accepted("a", "True")));
        assert_eq!(
            crds.dirty.iter().map(String::as_str).collect::<Vec<_>>(),
            ["a", "b"]
        );
        let mut other = crd("d", "9", 9);
        other.data = json!({"spec": {"group": "other"}});
        crds.dirty.clear();
        crds.apply(Apply(other));
        assert_eq!(crds.dirty.iter().map(String::as_str).collect::<Vec<_>>(), ["d"]);
    }
}
