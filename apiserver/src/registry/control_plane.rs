//! The control plane as the registry needs it: namespaces to look at, and placements, which it decides.
//!
//! Two of them: [`stored::StoredControlPlane`], where this server keeps these kinds itself, and
//! [`remote::RemoteControlPlane`], a kube-apiserver. A placement is handed around whole, as JSON with its
//! resourceVersion, so that each can check what it needs; what a placement means, `placement` knows.

pub mod known_placements;
pub mod remote;
pub mod stored;

use super::Unstructured;
use crate::status::{ApiError, GroupResource};
use futures::future::BoxFuture;

/// Group and version of placements.
pub(crate) const PLACEMENT_API_VERSION: &str = "outrigger.dev/v1alpha1";
/// Group and plural of placements, as errors name them.
pub(crate) const PLACEMENTS: GroupResource<'static> = GroupResource {
    group: "outrigger.dev",
    resource: "namespaceplacements",
};
/// Plural of namespaces, as errors name them.
const NAMESPACES: GroupResource<'static> = GroupResource {
    group: "",
    resource: "namespaces",
};
/// How soon a client should come back when the control plane does not answer, in seconds.
const RETRY_AFTER_SECONDS: u32 = 1;

/// What the registry asks of the control plane.
pub trait ControlPlane: Send + Sync {
    /// A namespace, from a cache that may be a little old. `None`: there is none.
    ///
    /// # Errors
    /// 503 when nobody can tell.
    fn namespace<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Unstructured>, ApiError>>;

    /// A namespace as it is now. `None`: there is none.
    ///
    /// # Errors
    /// 503 when nobody can tell.
    fn current_namespace<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Unstructured>, ApiError>>;

    /// A placement as it is now. `None`: there is none.
    ///
    /// # Errors
    /// 503 when nobody can tell.
    fn placement<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Unstructured>, ApiError>>;

    /// Creates a placement, which is what makes all replicas agree. `None`: somebody else was faster.
    ///
    /// # Errors
    /// 503 when nobody can tell; it may have been created.
    fn create_placement(
        &self,
        placement: Unstructured,
    ) -> BoxFuture<'_, Result<Option<Unstructured>, ApiError>>;

    /// Writes the status of a placement if it still is what it was. `false`: it changed.
    ///
    /// # Errors
    /// 503 when nobody can tell; it may have been written.
    fn update_placement_status(&self, placement: Unstructured) -> BoxFuture<'_, Result<bool, ApiError>>;

    /// Deletes a placement if it still is what it was; it is not an error if it is not.
    ///
    /// # Errors
    /// 503 when nobody can tell; it may have been deleted.
    fn delete_placement<'a>(&'a self, placement: &'a Unstructured) -> BoxFuture<'a, Result<(), ApiError>>;
}
