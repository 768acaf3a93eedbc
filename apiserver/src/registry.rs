//! What each verb means for any object. No HTTP here.
//!
//! One file per verb, and in it the order of its steps, once. A step that is not here yet has its place in that order:
//!
//! ```text
//! prune, default ─▶ field management ─▶ mutating admission ─▶ strategy ─▶ validation and CEL ─▶ validating admission ─▶ seal
//! ```
//!
//! Where objects live, and how many clusters there are, only `placement` and `storage` know.

pub mod control_plane;

pub mod create;

pub mod delete;

pub mod delete_collection;

pub mod finalizers;

mod json_patch;
pub mod names;

pub mod object_meta;

pub mod patch;

pub mod placement;

pub mod read;

pub mod scale;

pub mod strategy;

pub mod update;

use crate::conversion;
use crate::request::context::WarningRecorder;
use crate::resources::definition::{Backing, ResourceDefinition};
use crate::status::{ApiError, GroupResource};
use control_plane::ControlPlane;
use outrigger_storage::federated::{Extent, Scope, WallClock};
use outrigger_storage::{Error, FederatedStore, Key, Object, SealedObject};
use parking_lot::Mutex;
use placement::Placement;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Map, Value};
use std::sync::Arc;

/// An object as JSON: what is between decoding and sealing.
pub type Unstructured = Map<String, Value>;

/// What the registry is built from.
pub struct RegistryConfig {
    /// The store of the kinds that the server keeps itself; a member of a control plane keeps none.
    pub system: Option<FederatedStore>,
    /// Where namespaces and placements are.
    pub control_plane: Arc<dyn ControlPlane>,
    /// The store of all others: the clusters.
    pub workload: FederatedStore,
    /// Wall time.
    pub wall_clock: WallClock,
    /// Seed of uids and generated names.
    pub seed: u64,
}

/// The registry. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    system: Option<FederatedStore>,
    control_plane: Arc<dyn ControlPlane>,
    workload: FederatedStore,
    placement: Placement,
    wall_clock: WallClock,
    rng: Mutex<StdRng>,
}

/// Which part of an object a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Part {
    /// The object.
    #[default]
    Object,
    /// `/status`.
    Status,
    /// `/scale`.
    Scale,
    /// `/finalize` of a namespace.
    Finalize,
}

impl Part {
    /// The path segment; empty for the object.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Object => "",
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Finalize => "finalize",
        }
    }
}

/// What a request is about.
#[derive(Debug, Clone)]
pub struct RequestScope {
    /// The kind, in the version that was asked for.
    pub definition: Arc<ResourceDefinition>,
    /// Which part of the object.
    pub part: Part,
    /// The namespace; empty for kinds without namespaces and for all namespaces.
    pub namespace: String,
    /// The name; empty for collections.
    pub name: String,
    /// Nothing is stored.
    pub dry_run: bool,
    /// Warnings for the client.
    pub warnings: WarningRecorder,
}

/// One object, as an answer.
#[derive(Debug, Clone)]
pub enum Answer {
    /// As it is stored.
    Stored(Object),
    /// As it was computed: a dry run, a scale, the last state of an object that an update finished. In the version that
    /// was asked for.
    Value(Unstructured),
}

impl RequestScope {
    /// Where the object lives.
    #[must_use]
    pub fn key(&self) -> Key {
        self.key_of(&self.name)
    }

    fn key_of(&self, name: &str) -> Key {
        let namespace = if self.definition.namespaced {
            self.namespace.as_str()
        } else {
            ""
        };
        Key::new(self.definition.storage_resource(), namespace, name)
    }

    /// Group and plural, as errors name them.
    #[must_use]
    pub fn group_resource(&self) -> GroupResource<'_> {
        self.definition.group_resource()
    }

    /// What a list or a watch covers.
    #[must_use]
    pub fn extent(&self) -> Scope {
        let extent = match (self.definition.namespaced, self.namespace.as_str()) {
            (false, _) => Extent::Cluster,
            (true, "") => Extent::AllNamespaces,
            (true, namespace) => Extent::Namespace(namespace.into()),
        };
        Scope {
            resource: self.definition.storage_resource(),
            extent,
        }
    }

    fn storage_error(&self, error: Error) -> ApiError {
        ApiError::from_storage(error, self.group_resource(), &self.name)
    }

    fn not_found(&self) -> ApiError {
        ApiError::not_found(self.group_resource(), &self.name)
    }

    /// 422 about an object of this kind.
    fn invalid(&self, name: &str, causes: Vec<crate::status::StatusCause>) -> ApiError {
        ApiError::invalid(&self.definition.group, &self.definition.kind, name, causes)
    }

    /// The object in the version that was asked for.
    fn to_served(&self, mut object: Unstructured) -> Unstructured {
        conversion::to_served(&self.definition, &mut object);
        object
    }

    /// The object in the version in which it is stored.
    fn to_stored(&self, mut object: Unstructured) -> Unstructured {
        conversion::to_stored(&self.definition, &mut object);
        object
    }

    /// The object, ready to be stored.
    fn seal(&self, object: &Unstructured) -> Result<SealedObject, ApiError> {
        SealedObject::seal(object, self.definition.fingerprint).map_err(|error| match error {
            outrigger_storage::object::SealError::TooLarge(size) => {
                let limit = outrigger_storage::object::OBJECT_BYTES_MAX;
                self.storage_error(Error::TooLarge { size, limit })
            }
            other => ApiError::internal(other),
        })
    }
}

impl Registry {
    /// The registry over these stores.
    #[must_use]
    pub fn new(config: RegistryConfig) -> Self {
        let RegistryConfig {
            system,
            control_plane,
            workload,
            wall_clock,
            seed,
        } = config;
        let placement = Placement::new(control_plane.clone(), workload.clone());
        let rng = Mutex::new(StdRng::seed_from_u64(seed));
        Self(Arc::new(Shared {
            system,
            control_plane,
            workload,
            placement,
            wall_clock,
            rng,
        }))
    }

    fn store(&self, definition: &ResourceDefinition) -> Result<&FederatedStore, ApiError> {
        match definition.backing {
            Backing::System => self.0.system.as_ref().ok_or_else(|| {
                ApiError::internal(format!("{} are the control plane's", definition.group_resource()))
            }),
            Backing::Distributed => Ok(&self.0.workload),
        }
    }

    /// Wall time in milliseconds.
    fn now(&self) -> i64 {
        i64::try_from((self.0.wall_clock)()).unwrap_or(i64::MAX)
    }

    fn new_uid(&self) -> String {
        new_uid(&mut *self.0.rng.lock())
    }
}

fn new_uid(rng: &mut impl rand::Rng) -> String {
    uuid::Builder::from_random_bytes(rng.random())
        .into_uuid()
        .to_string()
}

/// The object as a value, in the version in which it is stored, resourceVersion included.
fn value_of(scope: &RequestScope, object: &Object) -> Result<Unstructured, ApiError> {
    object.to_value().map_err(|error| scope.storage_error(error))
}
