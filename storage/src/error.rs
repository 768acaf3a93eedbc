//! The store's errors, sorted by who must act.

use crate::{Object, ResourceVersion};

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    // The caller must act.
    /// There is no such object. `verified_at` is the resource version at which its absence was seen.
    #[error("not found")]
    NotFound {
        /// Where absence was seen.
        verified_at: Option<ResourceVersion>,
    },
    /// Create: the key is taken by this object.
    #[error("already exists")]
    AlreadyExists(Box<Object>),
    /// Update or delete: the object is no longer the one that was read. `None`: it is gone.
    #[error("the object has been modified")]
    Conflict(Option<Box<Object>>),
    /// The resource version (or the history a continue token needs) is older than what is retained.
    #[error("too old resource version: {requested}")]
    Expired {
        /// What was asked for.
        requested: ResourceVersion,
    },
    /// The resource version is above everything that any backend has seen.
    #[error("Too large resource version: {requested}, current: {current}")]
    ResourceVersionTooLarge {
        /// What was asked for.
        requested: ResourceVersion,
        /// The highest clock of the fleet.
        current: ResourceVersion,
    },
    /// A continue token that this server did not make, or that belongs to another request.
    #[error("continue key is not valid: {0}")]
    InvalidContinue(String),
    /// The object is larger than a backend takes, in bytes.
    #[error("the object is {size} bytes long, more than the {limit} that can be stored")]
    TooLarge {
        /// The object's size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// No backend owns the namespace (or kind): the caller places it (`FederatedStore::claim`) and tries again.
    #[error("{0} is not placed on any cluster")]
    Unplaced(String),

    // The backend, or who runs it, must act.
    /// A backend that is needed did not answer; nothing was written, or the write could not be settled.
    #[error("cluster {cluster:?} cannot be reached: {cause}")]
    Unavailable {
        /// The cluster's name.
        cluster: String,
        /// What was seen.
        cause: String,
    },
    /// The fleet has no member that this replica knows of: nobody can tell what there is, and nothing can be stored.
    #[error("no cluster has joined the fleet yet")]
    NoMembers,
    /// No owner was found among the backends that answered, and some did not. The placement decides.
    #[error("the owner of {domain} is not known while {missing:?} cannot be reached")]
    OwnerUnknown {
        /// The placement's name.
        domain: String,
        /// The clusters that did not answer.
        missing: Vec<String>,
    },
    /// A backend that belongs to another fleet or another slot.
    #[error("cluster {cluster:?} belongs to somebody else: it is {found}, not {expected}")]
    Foreign {
        /// The cluster's name.
        cluster: String,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// A backend that is older than it was: restored from a backup, or wiped. It is refused: what was acknowledged since
    /// would look deleted.
    #[error(
        "cluster {cluster:?} was restored from a backup or wiped ({found}, and was at {seen}): it is refused until its data is back"
    )]
    Restored {
        /// The cluster's name.
        cluster: String,
        /// What it shows.
        found: String,
        /// What was seen of it before.
        seen: String,
    },
    /// The backend's disk quota is (almost) used up.
    #[error("cluster {cluster:?} has no space left for objects")]
    Full {
        /// The cluster's name.
        cluster: String,
    },
    /// A write was sent and nothing tells whether it was carried out (its history is compacted or unreachable).
    #[error("the outcome of the write on cluster {cluster:?} is not known: {cause}")]
    UnknownOutcome {
        /// The cluster's name.
        cluster: String,
        /// What was seen.
        cause: String,
    },
    /// The byte budget of lists, or another limit of this server, is used up. Try again later.
    #[error("too many requests: {0}")]
    Busy(String),
    /// The deadline passed (for example: the clock kept moving).
    #[error("deadline exceeded: {0}")]
    Deadline(String),

    // We must act.
    /// Stored bytes that cannot be read.
    #[error("the stored value of {key:?} cannot be read: {cause}")]
    Corrupt {
        /// The key.
        key: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A broken promise inside the store.
    #[error("internal error: {0}")]
    Internal(String),
}
