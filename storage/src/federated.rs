//! `FederatedStore`: get, list, watch, create, update and delete over all backends, under one order.

use crate::backend::Backend;
use crate::continue_token::ContinueToken;
use crate::key::{Domain, Key, Resource};
use crate::{Error, Object, ResourceVersion, SealedObject, SelectionPredicate, Slot, WatchEvent};
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;

/// One backend of the fleet.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its number, written into its identity.
    pub slot: Slot,
    /// The cluster's name, for people.
    pub name: String,
    /// The cluster's uid, written into its identity.
    pub uid: String,
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// Nobody else uses it, so that we may compact it.
    pub exclusive: bool,
}

/// How keys find their backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// By owner keys: a fleet.
    Owned,
    /// Everything lives on the only member (the system backend of standalone mode): no owners, no ticks for reads.
    Sole,
}

/// Wall time, for epochs. Milliseconds since 1970-01-01T00:00:00Z.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The settings of a store.
#[derive(Clone)]
pub struct StoreConfig {
    /// The fleet's uid, written into every backend's identity.
    pub fleet: String,
    /// How keys find their backend.
    pub routing: Routing,
    /// What all lists together may hold in memory, in bytes.
    pub list_bytes_max: usize,
    /// What the event rings of all backends together may hold, in bytes.
    pub ring_bytes_max: usize,
    /// How long a write may take, retries included.
    pub write_deadline: Duration,
    /// How long history is kept.
    pub retention: Duration,
    /// How often exclusive backends are compacted.
    pub compact_every: Duration,
    /// Wall time.
    pub wall_clock: WallClock,
    /// Seed of everything random.
    pub seed: u64,
}

/// A background task of the store, to be spawned by the caller; it ends when the store is dropped or closed.
pub struct Task {
    /// Its name.
    pub name: String,
    /// Its work.
    pub run: BoxFuture<'static, ()>,
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct FederatedStore {}

/// What a list or a watch covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Group and plural.
    pub resource: Resource,
    /// Which part of it.
    pub extent: Extent,
}

/// Which part of a resource a list or a watch covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// One namespace.
    Namespace(Arc<str>),
    /// All namespaces of a kind with namespaces.
    AllNamespaces,
    /// A kind without namespaces.
    Cluster,
}

/// Which state a list shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ListVersion {
    /// The newest: everything acknowledged before the call is in it.
    #[default]
    MostRecent,
    /// Any recent state (`resourceVersion=0`).
    Any,
    /// At least this one.
    NotOlderThan(ResourceVersion),
    /// Exactly this one, or `Expired`.
    Exact(ResourceVersion),
    /// The next page.
    Continue(ContinueToken),
}

/// What to do with a list over several backends when one of them does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Missing {
    /// `Unavailable`. For programs: absence means deletion to them.
    #[default]
    Refuse,
    /// List the others, and say so ([`List::missing`]). For people (Table).
    Allow,
}

/// Options of [`FederatedStore::list`].
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Which state.
    pub version: ListVersion,
    /// Which objects.
    pub predicate: SelectionPredicate,
    /// At most so many objects, then a continue token; 0: all.
    pub limit: u64,
    /// What to do when a backend does not answer.
    pub missing: Missing,
}

/// A running list: batches of objects, ordered by namespace and name (bytewise).
pub struct List {}

/// Some objects of a list, in order. The bytes count against the budget until it is dropped.
pub struct ObjectBatch {
    /// The objects.
    pub objects: Vec<Object>,
}

/// What is known at the end of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListEnd {
    /// The token for the next page, if there is one.
    pub continue_token: Option<String>,
    /// How many objects are left after this page (only without selectors, and with a limit).
    pub remaining: Option<u64>,
}

impl List {
    /// The snapshot's resource version: the same on every page.
    #[must_use]
    pub fn resource_version(&self) -> ResourceVersion {
        todo!()
    }
    /// Clusters that did not answer and are left out (only with [`Missing::Allow`]).
    #[must_use]
    pub fn missing(&self) -> &[String] {
        todo!()
    }
    /// The next objects; `None` at the end. Waits for the byte budget. After an error the list is over and incomplete.
    ///
    /// # Errors
    /// `Unavailable`, `Expired`, `Corrupt`.
    pub async fn next_batch(&mut self) -> Result<Option<ObjectBatch>, Error> {
        todo!()
    }
    /// After the last batch: the continue token and what is left.
    #[must_use]
    pub fn end(&self) -> ListEnd {
        todo!()
    }
}

/// Where a watch starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchStart {
    /// Changes above this resource version.
    After(ResourceVersion),
    /// Changes from now on (`resourceVersionMatch=NotOlderThan&sendInitialEvents=false` without a version).
    Now,
    /// The objects as `Added` events, then [`WatchEvent::InitialEventsEnd`], then changes. `Any` or a version not older
    /// than the given one; `MostRecent` for an unset version.
    Initial(ListVersion),
}

/// A running watch.
pub struct Watch {}

impl Watch {
    /// The next events, at least one. Pending until there is one; an error (`Expired`, ...) ends the watch.
    /// Cancel-safe: a dropped call loses nothing.
    ///
    /// # Errors
    /// `Expired` when the watch cannot go on without a gap.
    pub async fn next_batch(&mut self) -> Result<Vec<WatchEvent>, Error> {
        todo!()
    }
    /// A resource version below which everything has been delivered, not below what this watch has delivered: for a
    /// bookmark. `None` until the watch has a position.
    #[must_use]
    pub fn bookmark(&self) -> Option<ResourceVersion> {
        todo!()
    }
}

/// A claim of a namespace (or of a kind without namespaces) for a cluster, as the placement has decided it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What is claimed.
    pub domain: Domain,
    /// The namespace's uid (the CRD's uid for a kind).
    pub uid: String,
    /// The placement's generation: its resource version, so that it never restarts.
    pub generation: u64,
    /// The backend.
    pub slot: Slot,
}

/// A claim that is written as `Claiming`; to be confirmed in the placement, then activated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claiming {
    /// The claim.
    pub claim: Claim,
    /// The owner key's mod_revision.
    pub revision: u64,
}

/// What the routing cache says of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The backend.
    pub slot: Slot,
    /// The cluster's name.
    pub cluster: String,
    /// Its state.
    pub state: OwnerState,
    /// The placement's generation.
    pub generation: u64,
    /// The namespace's uid.
    pub uid: String,
}

/// The state of an owner key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum OwnerState {
    /// Written, not yet confirmed by the placement: no writes.
    Claiming,
    /// Writes and reads.
    Active,
    /// No writes any more: the namespace is being deleted.
    Frozen,
}

/// A member as an operator wants to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Its slot.
    pub slot: Slot,
    /// Its name.
    pub name: String,
    /// Whether its log is being followed and its last tick was answered.
    pub reachable: bool,
    /// Namespaces it owns.
    pub namespaces: u64,
    /// What it last said of its sizes.
    pub status: crate::backend::BackendStatus,
    /// Why it is not reachable.
    pub problem: Option<String>,
}

impl FederatedStore {
    /// Opens the store: identities and clocks are written where they are missing. Backends that do not answer are tried
    /// again in the background. The tasks must be spawned, or nothing moves.
    ///
    /// # Errors
    /// When a backend that answers belongs to another fleet or slot.
    pub async fn open(_config: StoreConfig, _members: Vec<Member>) -> Result<(Self, Vec<Task>), Error> {
        todo!()
    }

    /// The object, in its newest state.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `OwnerUnknown`.
    pub async fn get(&self, _key: &Key) -> Result<Object, Error> {
        todo!()
    }

    /// Creates the object.
    ///
    /// # Errors
    /// `AlreadyExists` with the object that is there, `Unplaced`, `Unavailable`, `Full`, `UnknownOutcome`.
    pub async fn create(&self, _key: &Key, _object: &SealedObject) -> Result<Object, Error> {
        todo!()
    }

    /// Replaces the state `expected` (as returned by this store).
    ///
    /// # Errors
    /// `Conflict` with the current state, and as for create.
    pub async fn update(&self, _expected: &Object, _object: &SealedObject) -> Result<Object, Error> {
        todo!()
    }

    /// Deletes the state `expected`. Returns that state with the resource version of the deletion.
    ///
    /// # Errors
    /// `Conflict` with the current state (`None`: gone), and as for create.
    pub async fn delete(&self, _expected: &Object) -> Result<Object, Error> {
        todo!()
    }

    /// Lists a scope. Returns when the snapshot is fixed; objects follow by [`List::next_batch`].
    ///
    /// # Errors
    /// `Unavailable`, `Expired`, `ResourceVersionTooLarge`, `InvalidContinue`, `Busy`.
    pub async fn list(&self, _scope: &Scope, _options: ListOptions) -> Result<List, Error> {
        todo!()
    }

    /// Watches a scope.
    ///
    /// # Errors
    /// `Expired`, `ResourceVersionTooLarge`, `Unavailable` (initial events over all namespaces while a backend is lost).
    pub async fn watch(
        &self,
        _scope: &Scope,
        _predicate: SelectionPredicate,
        _start: WatchStart,
    ) -> Result<Watch, Error> {
        todo!()
    }

    /// Who owns a domain, by the routing cache (no I/O). `None`: not known here.
    #[must_use]
    pub fn owner(&self, _domain: &Domain) -> Option<Owner> {
        todo!()
    }

    /// First step of a claim: the owner key as `Claiming`. Repeating it is harmless; a claim of a higher generation
    /// replaces a `Claiming` of a lower one.
    ///
    /// # Errors
    /// `Conflict(None)` when the backend has another owner key already, `Unavailable`.
    pub async fn begin_claim(&self, _claim: &Claim) -> Result<Claiming, Error> {
        todo!()
    }

    /// Last step of a claim, after the placement names the cluster: `Claiming` becomes `Active`. Writes work afterwards.
    ///
    /// # Errors
    /// `Conflict(None)` when the owner key changed since, `Unavailable`.
    pub async fn activate(&self, _claiming: &Claiming) -> Result<(), Error> {
        todo!()
    }

    /// A deleted namespace: `Frozen`, verified empty, owner key removed, a round of ticks. The placement may be deleted
    /// afterwards. A domain without owner is already released.
    ///
    /// # Errors
    /// `Conflict(None)` when there are still objects or the uid is another one; `Unavailable`.
    pub async fn release(&self, _domain: &Domain, _uid: &str) -> Result<(), Error> {
        todo!()
    }

    /// The members, as an operator wants to see them.
    #[must_use]
    pub fn clusters(&self) -> Vec<ClusterStatus> {
        todo!()
    }
}
