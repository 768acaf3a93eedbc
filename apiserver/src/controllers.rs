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
pub mod placements;

use kube::api::{ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;

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

/// The kind of a definition, as `kube` names it.
pub(crate) fn api_resource(definition: &crate::resources::definition::ResourceDefinition) -> ApiResource {
    ApiResource {
        group: definition.group.clone(),
        version: definition.version.clone(),
        api_version: definition.api_version(),
        kind: definition.kind.clone(),
        plural: definition.plural.clone(),
    }
}
