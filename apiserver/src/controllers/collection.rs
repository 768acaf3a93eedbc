//! All objects of a kind, page by page: what is there, and deleting it. One page is in memory at a time.

use super::{Meta, api_resource, is_conflict, is_not_found};
use crate::resources::ServedResources;
use crate::resources::definition::ResourceDefinition;
use futures::{StreamExt, TryStreamExt, stream};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Preconditions};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Objects of one page of metadata.
pub(crate) const PAGE_OBJECTS: u32 = 500;
/// Requests under way at the same time for one page.
pub(crate) const REQUESTS_IN_FLIGHT_MAX: usize = 16;

/// What is left of a kind after everything in it was deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remaining {
    /// Objects.
    pub objects: u64,
    /// How many of them wait for each finalizer.
    pub finalizers: BTreeMap<String, u64>,
}

/// One definition a stored kind (not one a version, and one for both forms of Event), those for which `wanted` holds.
pub(crate) fn kinds(
    served: &ServedResources,
    wanted: impl Fn(&ResourceDefinition) -> bool,
) -> Vec<Arc<ResourceDefinition>> {
    let mut seen = BTreeSet::new();
    let all = served.iter().filter(|d| wanted(d));
    all.filter(|d| seen.insert(d.storage_resource()))
        .cloned()
        .collect()
}

/// The metadata of a kind: in a namespace, or (`None`) everywhere.
pub(crate) fn metadata_api(
    client: &kube::Client,
    definition: &ResourceDefinition,
    namespace: Option<&str>,
) -> Api<Meta> {
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &api_resource(definition)),
        None => Api::all_with(client.clone(), &api_resource(definition)),
    }
}

/// The pages of a kind's metadata, of one snapshot. A page is a list of objects.
pub(crate) fn pages(api: Api<Meta>) -> impl stream::Stream<Item = Result<Vec<Meta>, kube::Error>> + Send {
    let start = (api, Some(ListParams::default().limit(PAGE_OBJECTS)));
    stream::try_unfold(start, |(api, params)| async move {
        let Some(params) = params else { return Ok(None) };
        let list = api.list(&params).await?;
        let next = list.metadata.continue_.filter(|token| !token.is_empty());
        let next = next.map(|token| ListParams::default().limit(PAGE_OBJECTS).continue_token(&token));
        Ok(Some((list.items, (api, next))))
    })
}

/// Deletes every object of a kind that is not being deleted yet, in the background, and then counts what is left:
/// objects that wait for finalizers.
///
/// # Errors
/// What the API answers; nothing is retried.
pub async fn delete_all(
    client: &kube::Client,
    definition: &ResourceDefinition,
    namespace: Option<&str>,
) -> Result<Remaining, kube::Error> {
    let api = metadata_api(client, definition, namespace);
    let mut all = std::pin::pin!(pages(api.clone()));
    let mut is_empty = true;
    while let Some(page) = all.try_next().await? {
        is_empty &= page.is_empty();
        let mut deletions = Vec::with_capacity(page.len());
        for object in page {
            if object.metadata.deletion_timestamp.is_none() {
                // Across namespaces the list tells which one the object is in.
                let namespace = object.metadata.namespace.as_deref().filter(|n| !n.is_empty());
                deletions.push(delete(metadata_api(client, definition, namespace), object));
            }
        }
        stream::iter(deletions)
            .buffer_unordered(REQUESTS_IN_FLIGHT_MAX)
            .try_collect::<()>()
            .await?;
    }
    if is_empty {
        Ok(Remaining::default())
    } else {
        count(api).await
    }
}

/// How many objects of a kind there are, and the finalizers they wait for.
async fn count(api: Api<Meta>) -> Result<Remaining, kube::Error> {
    let mut remaining = Remaining::default();
    let mut all = std::pin::pin!(pages(api));
    while let Some(page) = all.try_next().await? {
        remaining.objects += page.len() as u64;
        for finalizer in page.iter().flat_map(|o| o.metadata.finalizers.iter().flatten()) {
            *remaining.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
    }
    Ok(remaining)
}

async fn delete(api: Api<Meta>, object: Meta) -> Result<(), kube::Error> {
    let preconditions = Preconditions {
        uid: object.metadata.uid.clone(),
        resource_version: None,
    };
    let params = DeleteParams::background().preconditions(preconditions);
    match api
        .delete(object.metadata.name.as_deref().unwrap_or_default(), &params)
        .await
    {
        Ok(_) => Ok(()),
        // Gone already, or replaced by another one, which the next round finds.
        Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(()),
        Err(e) => Err(e),
    }
}
