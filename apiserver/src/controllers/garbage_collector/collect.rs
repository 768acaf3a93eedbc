//! The collector's effects: read an object and its owners again, then delete it, patch it, or let it be.

use super::owners::{self, FOREGROUND, ItemRef, ORPHAN, OwnerState, Verdict, group_version, has_finalizer};
use crate::controllers::collection::{self, REQUESTS_IN_FLIGHT_MAX, metadata_api, pages};
use crate::controllers::namespaces::patch_params;
use crate::controllers::{Meta, is_conflict, is_not_found};
use crate::resources::ServedResources;
use crate::resources::definition::ResourceDefinition;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Client;
use kube::api::{DeleteParams, Patch, Preconditions, PropagationPolicy};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use tokio::sync::watch;
use tracing::{debug, info};

/// Owners that are known to exist; when there are more, all are asked for again.
const KNOWN_MAX: usize = 64 * 1024;
/// Tries of a patch that meets a change of somebody else.
const PATCH_TRIES: usize = 5;

/// What became of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// Nothing is left to do.
    Finished,
    /// It waits for its dependents, and is to be examined again.
    Waits,
    /// It does not exist; whoever it owns has to be looked at.
    OwnerIsGone,
}

pub(super) struct Collector {
    pub(super) client: Client,
    served: watch::Receiver<Arc<ServedResources>>,
    /// Uids of owners that exist and are not waiting for their dependents.
    known: Mutex<HashSet<String>>,
}

impl Collector {
    pub(super) fn new(client: Client, served: watch::Receiver<Arc<ServedResources>>) -> Self {
        Self {
            client,
            served,
            known: Mutex::default(),
        }
    }

    /// Whether the owner with this uid is known to hold its dependents.
    pub(super) fn is_known(&self, uid: &str) -> bool {
        self.known.lock().contains(uid)
    }

    /// The object is gone, or going.
    pub(super) fn forget(&self, uid: &str) {
        self.known.lock().remove(uid);
    }

    fn know(&self, uid: &str) {
        let mut known = self.known.lock();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(uid.to_owned());
    }

    fn definition(&self, group: &str, plural: &str) -> Option<Arc<ResourceDefinition>> {
        self.served
            .borrow()
            .iter()
            .find(|d| d.group == group && d.plural == plural)
            .cloned()
    }

    fn owner_definition(&self, reference: &OwnerReference) -> Option<Arc<ResourceDefinition>> {
        let (group, version) = group_version(&reference.api_version);
        let served = self.served.borrow();
        let of_kind = || {
            served
                .iter()
                .filter(|d| d.group == group && d.kind == reference.kind)
        };
        // Any version names the same objects.
        of_kind()
            .find(|d| d.version == version)
            .or_else(|| of_kind().next())
            .cloned()
    }

    /// The owner that a dependent in this namespace refers to, if its kind is served and it can be there.
    pub(super) fn owner_item(&self, reference: &OwnerReference, namespace: Option<&str>) -> Option<ItemRef> {
        let definition = self.owner_definition(reference)?;
        let namespace = match definition.namespaced {
            true => Some(namespace.filter(|n| !n.is_empty())?.to_owned()),
            false => None,
        };
        Some(ItemRef {
            group: definition.group.clone(),
            plural: definition.plural.clone(),
            namespace,
            name: reference.name.clone(),
            uid: reference.uid.clone(),
        })
    }

    /// Looks at one object and does what its owners, and its finalizers, ask for.
    pub(super) async fn examine(&self, item: &ItemRef, may_own: bool) -> Result<Done, kube::Error> {
        let Some(definition) = self.definition(&item.group, &item.plural) else {
            return Ok(Done::Finished);
        };
        let api = metadata_api(&self.client, &definition, item.namespace.as_deref());
        let object = match api.get_opt(&item.name).await? {
            Some(object) if object.metadata.uid.as_deref() == Some(&item.uid) => object,
            _ if may_own => return Ok(Done::OwnerIsGone),
            _ => return Ok(Done::Finished),
        };
        let metadata = &object.metadata;
        if metadata.deletion_timestamp.is_some() {
            return match () {
                () if has_finalizer(metadata, FOREGROUND) => self.delete_dependents(&definition, item).await,
                () if has_finalizer(metadata, ORPHAN) => self.orphan_dependents(&definition, item).await,
                () => Ok(Done::Finished),
            };
        }
        self.collect(&definition, item, metadata, may_own).await?;
        Ok(Done::Finished)
    }

    /// A dependent: deletes it if no owner holds it, and drops the references that hold nothing.
    async fn collect(
        &self,
        definition: &ResourceDefinition,
        item: &ItemRef,
        metadata: &ObjectMeta,
        may_own: bool,
    ) -> Result<(), kube::Error> {
        let references = metadata.owner_references.as_deref().unwrap_or_default();
        let states = references
            .iter()
            .map(|r| self.state_of(r, item.namespace.as_deref()));
        let states = futures::future::try_join_all(states).await?;
        match owners::verdict(references, &states, may_own) {
            Verdict::Keep => Ok(()),
            Verdict::DropOwners(uids) => self.drop_owners(definition, item, &uids).await,
            Verdict::Delete => {
                let policy = match () {
                    () if has_finalizer(metadata, ORPHAN) => PropagationPolicy::Orphan,
                    () if has_finalizer(metadata, FOREGROUND) => PropagationPolicy::Foreground,
                    () => PropagationPolicy::Background,
                };
                self.delete(definition, item, metadata, policy).await
            }
            Verdict::DeleteForeground => match self.dependents_of(item).await? {
                Dependents { all: 0, .. } => {
                    self.delete(definition, item, metadata, PropagationPolicy::Background)
                        .await
                }
                Dependents { waiting: 0, .. } => {
                    self.delete(definition, item, metadata, PropagationPolicy::Foreground)
                        .await
                }
                // It and one of its dependents would wait for each other for ever.
                _ => {
                    self.unblock_owners(definition, item).await?;
                    self.delete(definition, item, metadata, PropagationPolicy::Foreground)
                        .await
                }
            },
        }
    }

    /// Reads an owner. Only an answer that it is not there, or is another object, makes it absent.
    async fn state_of(
        &self,
        reference: &OwnerReference,
        namespace: Option<&str>,
    ) -> Result<OwnerState, kube::Error> {
        if self.is_known(&reference.uid) {
            return Ok(OwnerState::Solid);
        }
        // A kind that is not served, or an owner that cannot be where it would have to be, says nothing about absence.
        let Some(definition) = self.owner_definition(reference) else {
            return Ok(OwnerState::Solid);
        };
        let namespace = match (definition.namespaced, namespace) {
            (true, None) => return Ok(OwnerState::Solid),
            (true, some) => some,
            (false, _) => None,
        };
        match metadata_api(&self.client, &definition, namespace)
            .get_opt(&reference.name)
            .await?
        {
            Some(owner) if owner.metadata.uid.as_deref() == Some(&reference.uid) => {
                let state = owners::state_of_existing(&owner.metadata);
                if state == OwnerState::Solid && owner.metadata.deletion_timestamp.is_none() {
                    self.know(&reference.uid);
                }
                Ok(state)
            }
            _ => Ok(OwnerState::Absent),
        }
    }

    /// The dependents of owners that are gone: each is examined.
    pub(super) async fn scan(
        &self,
        namespace: Option<&str>,
        uids: &BTreeSet<String>,
    ) -> Result<(), kube::Error> {
        self.for_each_dependent(namespace, uids, |definition, object| async move {
            let Some(item) = ItemRef::new(&definition, &object.metadata) else {
                return Ok(());
            };
            if object.metadata.deletion_timestamp.is_none() {
                self.collect(&definition, &item, &object.metadata, true).await?;
            }
            Ok(())
        })
        .await
    }

    /// Foreground: all dependents are collected; when none is left that blocks, the owner may go.
    async fn delete_dependents(
        &self,
        definition: &ResourceDefinition,
        owner: &ItemRef,
    ) -> Result<Done, kube::Error> {
        let uids = BTreeSet::from([owner.uid.clone()]);
        self.for_each_dependent(
            owner.namespace.as_deref(),
            &uids,
            |definition, object| async move {
                let Some(item) = ItemRef::new(&definition, &object.metadata) else {
                    return Ok(());
                };
                if object.metadata.deletion_timestamp.is_none() {
                    self.collect(&definition, &item, &object.metadata, true).await?;
                }
                Ok(())
            },
        )
        .await?;
        match self.dependents_of(owner).await? {
            Dependents { blocking: 0, .. } => self
                .remove_finalizer(definition, owner, FOREGROUND)
                .await
                .map(|()| Done::Finished),
            _ => Ok(Done::Waits),
        }
    }

    /// Orphan: all dependents forget the owner, then it may go.
    async fn orphan_dependents(
        &self,
        definition: &ResourceDefinition,
        owner: &ItemRef,
    ) -> Result<Done, kube::Error> {
        let uids = BTreeSet::from([owner.uid.clone()]);
        let forget = std::slice::from_ref(&owner.uid);
        self.for_each_dependent(
            owner.namespace.as_deref(),
            &uids,
            |definition, object| async move {
                let Some(item) = ItemRef::new(&definition, &object.metadata) else {
                    return Ok(());
                };
                self.drop_owners(&definition, &item, forget).await
            },
        )
        .await?;
        self.remove_finalizer(definition, owner, ORPHAN).await?;
        Ok(Done::Finished)
    }

    async fn dependents_of(&self, owner: &ItemRef) -> Result<Dependents, kube::Error> {
        let found = Mutex::new(Dependents::default());
        let uids = BTreeSet::from([owner.uid.clone()]);
        self.for_each_dependent(owner.namespace.as_deref(), &uids, |_, object| {
            let mut found = found.lock();
            let blocks = |r: &OwnerReference| r.uid == owner.uid && r.block_owner_deletion.unwrap_or(false);
            let is_blocking = object.metadata.owner_references.iter().flatten().any(blocks);
            found.all += 1;
            found.blocking += u64::from(is_blocking);
            found.waiting += u64::from(
                object.metadata.deletion_timestamp.is_some() && has_finalizer(&object.metadata, FOREGROUND),
            );
            std::future::ready(Ok(()))
        })
        .await?;
        Ok(found.into_inner())
    }

    /// Calls `act` for every object that names one of these owners: in a namespace, or everywhere.
    async fn for_each_dependent<F, Fut>(
        &self,
        namespace: Option<&str>,
        uids: &BTreeSet<String>,
        act: F,
    ) -> Result<(), kube::Error>
    where
        F: Fn(Arc<ResourceDefinition>, Meta) -> Fut,
        Fut: Future<Output = Result<(), kube::Error>>,
    {
        let served = Arc::clone(&self.served.borrow());
        for definition in collection::kinds(&served, |d| d.namespaced || namespace.is_none()) {
            let mut all = std::pin::pin!(pages(metadata_api(&self.client, &definition, namespace)));
            loop {
                let page = match all.try_next().await {
                    Ok(Some(page)) => page,
                    Ok(None) => break,
                    // The kind was taken away meanwhile.
                    Err(error) if is_not_found(&error) => break,
                    Err(error) => return Err(error),
                };
                let names_one = |o: &Meta| {
                    o.metadata
                        .owner_references
                        .iter()
                        .flatten()
                        .any(|r| uids.contains(&r.uid))
                };
                let actions = page
                    .into_iter()
                    .filter(names_one)
                    .map(|object| act(Arc::clone(&definition), object));
                stream::iter(actions)
                    .buffer_unordered(REQUESTS_IN_FLIGHT_MAX)
                    .try_collect::<()>()
                    .await?;
            }
        }
        Ok(())
    }

    async fn delete(
        &self,
        definition: &ResourceDefinition,
        item: &ItemRef,
        metadata: &ObjectMeta,
        policy: PropagationPolicy,
    ) -> Result<(), kube::Error> {
        info!(item = %item, ?policy, "its owners are gone or going: deleting it");
        let preconditions = Preconditions {
            uid: Some(item.uid.clone()),
            resource_version: metadata.resource_version.clone(),
        };
        let params = DeleteParams {
            propagation_policy: Some(policy),
            ..DeleteParams::default()
        }
        .preconditions(preconditions);
        let api = metadata_api(&self.client, definition, item.namespace.as_deref());
        match api.delete(&item.name, &params).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn drop_owners(
        &self,
        definition: &ResourceDefinition,
        item: &ItemRef,
        uids: &[String],
    ) -> Result<(), kube::Error> {
        self.patch(definition, item, |metadata| {
            let old = metadata.owner_references.as_deref().unwrap_or_default();
            let rest: Vec<&OwnerReference> = old.iter().filter(|r| !uids.contains(&r.uid)).collect();
            (rest.len() != old.len())
                .then(|| json!({"ownerReferences": if rest.is_empty() { None } else { Some(rest) }}))
        })
        .await
    }

    async fn unblock_owners(
        &self,
        definition: &ResourceDefinition,
        item: &ItemRef,
    ) -> Result<(), kube::Error> {
        debug!(item = %item, "owners and dependents wait for each other: its references no longer block");
        self.patch(definition, item, |metadata| {
            let mut references = metadata.owner_references.clone().unwrap_or_default();
            let blocking = references
                .iter_mut()
                .filter(|r| r.block_owner_deletion == Some(true));
            let changed = blocking.map(|r| r.block_owner_deletion = Some(false)).count();
            (changed > 0).then(|| json!({"ownerReferences": references}))
        })
        .await
    }

    async fn remove_finalizer(
        &self,
        definition: &ResourceDefinition,
        item: &ItemRef,
        finalizer: &str,
    ) -> Result<(), kube::Error> {
        self.patch(definition, item, |metadata| {
            let rest: Vec<&String> = metadata
                .finalizers
                .iter()
                .flatten()
                .filter(|f| *f != finalizer)
                .collect();
            has_finalizer(metadata, finalizer).then(|| json!({"finalizers": rest}))
        })
        .await
    }

    /// Merges what `change` computes into the metadata of the object as it is, as often as somebody else is faster.
    async fn patch(
        &self,
        definition: &ResourceDefinition,
        item: &ItemRef,
        change: impl Fn(&ObjectMeta) -> Option<serde_json::Value>,
    ) -> Result<(), kube::Error> {
        let api = metadata_api(&self.client, definition, item.namespace.as_deref());
        let mut tries = 1;
        loop {
            let Some(object) = api.get_opt(&item.name).await? else {
                return Ok(());
            };
            if object.metadata.uid.as_deref() != Some(&item.uid) {
                return Ok(());
            }
            let Some(mut metadata) = change(&object.metadata) else {
                return Ok(());
            };
            metadata["uid"] = json!(item.uid);
            metadata["resourceVersion"] = json!(object.metadata.resource_version);
            match api
                .patch(
                    &item.name,
                    &patch_params(),
                    &Patch::Merge(json!({"metadata": metadata})),
                )
                .await
            {
                Ok(_) => return Ok(()),
                Err(error) if is_not_found(&error) => return Ok(()),
                Err(error) if is_conflict(&error) && tries < PATCH_TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

/// How many objects name an owner.
#[derive(Debug, Clone, Copy, Default)]
struct Dependents {
    all: u64,
    /// They block its deletion.
    blocking: u64,
    /// They are themselves waiting for their dependents.
    waiting: u64,
}
