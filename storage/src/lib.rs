//! Objects of one API in the etcds of many clusters, under one order.
//!
//! The store promises seven things, by these names (the validators of the simulation check exactly these):
//!
//! * **I1** resource versions rise along every key and every backend.
//! * **I2** a snapshot at T holds exactly the changes below T.
//! * **I3** a watch from T delivers every change above T once, in resource-version order, or ends with `Expired`.
//! * **I4** any replica resumes any retained resource version.
//! * **I5** an acknowledged write is in every later list and get.
//! * **I6** a lost backend never looks like deletion.
//! * **I7** no write lands on a backend that does not own the namespace.
//!
//! The crate knows objects as bytes plus the metadata that selection and routing need. It knows nothing of HTTP, of
//! schemas or of Kubernetes' wire formats, and it never calls its caller: what it cannot decide it returns.

pub mod resource_version;

pub mod key;

pub mod object;

pub mod selection_predicate;

pub mod continue_token;

pub mod event;

pub mod error;

pub mod backend;

pub mod clock;

pub mod membership;

mod owners;

mod signal;

pub mod federated;

pub mod metrics;

pub mod placement;

pub mod placements;

#[cfg(feature = "testing")]
pub mod testing;

pub use error::Error;
pub use event::{EventKind, ObjectEvent, WatchEvent};
pub use federated::FederatedStore;
pub use key::{Key, Resource};
pub use membership::Membership;
pub use metrics::{BackendMetrics, StoreMetrics};
pub use object::{Object, SealedObject};
pub use resource_version::{Epoch, ResourceVersion, Slot};
pub use selection_predicate::SelectionPredicate;
