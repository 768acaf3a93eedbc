//! What runs beside the requests: controllers, each on a `kube::Client`, the same in a cluster and standalone.
//!
//! Every `run` is a future that never ends by itself; `app.rs` spawns it and drops it. Controllers decide in pure
//! functions and act in small steps that may be repeated: each of them may die anywhere and start again.

pub mod backends;
pub mod collection;
pub mod definitions;
pub mod distributed_kinds;
pub mod garbage_collector;
pub mod leader_election;
pub mod namespaces;
pub mod placement_conditions;
pub mod placements;

use crate::resources::ServedResources;
use crate::resources::definition::ResourceDefinition;
use futures::{FutureExt, Stream, StreamExt};
use kube::api::{ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use std::sync::Arc;
use tokio::sync::watch;

/// An object of any kind, of which only metadata is asked for.
pub(crate) type Meta = PartialObjectMeta<DynamicObject>;

/// The field manager of our own writes.
pub(crate) const FIELD_MANAGER: &str = "outrigger";

/// Whether the server said that there is no such thing.
pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether somebody else was faster, or the object is another one than we thought.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Applies an event of the watch of CRDs, and those that are there already behind it: they are taken together. Whether any
/// of them is news; `None`: the watch has ended.
pub(crate) fn apply_crd_events(
    first: Option<watcher::Result<watcher::Event<DynamicObject>>>,
    events: &mut (impl Stream<Item = watcher::Result<watcher::Event<DynamicObject>>> + Unpin),
    mut apply: impl FnMut(watcher::Event<DynamicObject>) -> bool,
) -> Option<bool> {
    let mut news = false;
    let mut next = Some(first);
    while let Some(event) = next {
        match event? {
            Ok(event) => news |= apply(event),
            Err(error) => tracing::debug!(%error, "the watch of CustomResourceDefinitions is opened again"),
        }
        next = events.next().now_or_never();
    }
    Some(news)
}

/// Publishes what is served, if it is something else than before.
pub(crate) fn publish(served: &watch::Sender<Arc<ServedResources>>, new: ServedResources) {
    served.send_if_modified(|current| {
        // A CRD that was made anew, is being deleted or is handed over may look the same to clients.
        let is_same = |(a, b): (&Arc<ResourceDefinition>, &Arc<ResourceDefinition>)| {
            a.crd_uid == b.crd_uid && a.terminating == b.terminating && a.closed == b.closed
        };
        let same = current.hash() == new.hash() && current.iter().zip(new.iter()).all(is_same);
        if !same {
            tracing::info!(kinds = new.iter().count(), "serving");
            *current = Arc::new(new);
        }
        !same
    });
}

/// The kind of a definition, as `kube` names it.
pub(crate) fn api_resource(definition: &ResourceDefinition) -> ApiResource {
    ApiResource {
        group: definition.group.clone(),
        version: definition.version.clone(),
        api_version: definition.api_version(),
        kind: definition.kind.clone(),
        plural: definition.plural.clone(),
    }
}
