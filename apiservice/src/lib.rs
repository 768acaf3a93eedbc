//! Which kinds of a control plane are ours: for each CustomResourceDefinition annotated
//! `outrigger.dev/distributed: "true"` the APIServices of its group/versions, so that kube-apiserver proxies them to us.
//!
//! ```text
//! annotated ─▶ store in the control plane empty ─▶ guard denies writes there ─▶ still empty ─▶ Switching
//!   ─▶ APIServices point at us ─▶ Available ─▶ Distributed ─▶ (annotation removed) Releasing ─▶ APIServices local again
//! ```
//!
//! A kind takes writes from us only while it is Distributed, and from kube-apiserver only while it is neither that nor on
//! the way: the guard (a ValidatingAdmissionPolicy of ours, which only matters where kube-apiserver serves the kind
//! itself) stays for as long as the kind is ours, so that an APIService that somebody deletes loses nothing.
//!
//! It does not know where objects are kept (it asks [`Objects`]), who leads (a published value), nor where the CA bundle
//! comes from (another one). Nothing is deregistered when it stops.

mod admission;
mod condition;
mod controller;
mod crd;
mod desired;
mod guard;

pub use controller::{Controller, Timing, run};
pub use crd::{
    DISTRIBUTED_ANNOTATION, DISTRIBUTED_CONDITION, FINALIZER, RELEASE_ANNOTATION,
    WITHOUT_ADMISSION_ANNOTATION,
};
pub use desired::{KindState, Kinds, ServiceReference};

use futures::future::BoxFuture;

/// The field manager of everything written here.
pub(crate) const FIELD_MANAGER: &str = "outrigger-apiservice";

/// A kind, as the keeper of its objects is asked for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// The CRD's name: `<plural>.<group>`.
    pub crd: String,
    /// Its group.
    pub group: String,
    /// Its resource.
    pub plural: String,
    /// Whether its objects live in namespaces.
    pub is_namespaced: bool,
}

/// Who keeps the objects of our kinds.
pub trait Objects: Send + Sync + 'static {
    /// Whether there are objects of the kind in our store. An error is "not known".
    fn exist<'a>(&'a self, kind: &'a Kind) -> BoxFuture<'a, Result<bool, ObjectsError>>;

    /// Deletes objects of the kind because its CRD is being deleted, finalizers honoured, and says whether none is left.
    /// Asked again until it is so; each call does a part and returns within seconds.
    fn delete_all<'a>(&'a self, kind: &'a Kind) -> BoxFuture<'a, Result<bool, ObjectsError>>;
}

/// Why the keeper of objects cannot say.
pub type ObjectsError = Box<dyn std::error::Error + Send + Sync>;
