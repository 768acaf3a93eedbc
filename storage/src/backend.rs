//! `Backend`: one etcd as the store sees it, in etcd's own words: revisions, transactions, watches, compaction.
//!
//! Keys are relative: an implementation puts its prefix in front and takes it off again. Every implementation passes
//! `backend_suite!` (`testing`). A backend knows nothing of epochs, owners or objects.

pub mod bounded;
pub mod embedded;
pub mod etcd;
pub mod instrumented;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use std::fmt;

/// A backend's revision: etcd's counter, raised by one by every transaction that changes something.
pub type Revision = u64;

/// One key at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key, without the prefix.
    pub key: Bytes,
    /// The value; empty when only keys were asked for.
    pub value: Bytes,
    /// The revision that created the key (since its last deletion).
    pub create_revision: Revision,
    /// The revision of the latest change.
    pub mod_revision: Revision,
    /// The number of changes since creation, 1 for a new key.
    pub version: u64,
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Bytes,
    /// What must hold.
    pub condition: Condition,
}

/// What must hold for a key. As in etcd, a key that does not exist has revisions 0, and no condition on a value holds for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// mod_revision equals this; 0: the key does not exist.
    ModRevision(Revision),
    /// The value equals this.
    ValueEquals(Bytes),
    /// The value is (bytewise) less than this.
    ValueLess(Bytes),
}

impl Compare {
    /// mod_revision(key) = revision.
    #[must_use]
    pub fn mod_revision(key: impl Into<Bytes>, revision: Revision) -> Self {
        Self {
            key: key.into(),
            condition: Condition::ModRevision(revision),
        }
    }
    /// The key does not exist.
    #[must_use]
    pub fn absent(key: impl Into<Bytes>) -> Self {
        Self::mod_revision(key, 0)
    }
}

/// A read of one key or of a range of keys, in bytewise order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The first key.
    pub start: Bytes,
    /// The key after the last one; `None`: only the key `start`.
    pub end: Option<Bytes>,
    /// At most so many keys; 0: no limit.
    pub limit: usize,
    /// At this revision; 0: now.
    pub revision: Revision,
    /// Leave values out.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
}

impl Range {
    /// One key, now.
    #[must_use]
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self {
            start: key.into(),
            end: None,
            limit: 0,
            revision: 0,
            keys_only: false,
            count_only: false,
        }
    }
    /// All keys from `start` up to, but without, `end`, now.
    #[must_use]
    pub fn between(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self {
            end: Some(end.into()),
            ..Self::key(start)
        }
    }
    /// The same at a revision.
    #[must_use]
    pub fn at(self, revision: Revision) -> Self {
        Self { revision, ..self }
    }
    /// The same with a limit.
    #[must_use]
    pub fn limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }
}

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Write a key.
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
    },
    /// Delete a key.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Read.
    Get(Range),
}

/// A transaction: if all of `compare` hold, `success`, else `failure`. Without compares it is `success`; a transaction
/// that only reads is linearizable and leaves the revision as it is. At most [`TXN_OPS_MAX`] steps, no key written twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// Conditions.
    pub compare: Vec<Compare>,
    /// Steps if they hold.
    pub success: Vec<Op>,
    /// Steps if one does not.
    pub failure: Vec<Op>,
}

/// etcd's default limit of operations in one transaction.
pub const TXN_OPS_MAX: usize = 128;

impl Txn {
    /// A transaction that reads these ranges.
    #[must_use]
    pub fn read(ranges: impl IntoIterator<Item = Range>) -> Self {
        Self {
            success: ranges.into_iter().map(Op::Get).collect(),
            ..Self::default()
        }
    }

    /// Whether no step of it writes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.success
            .iter()
            .chain(&self.failure)
            .all(|op| matches!(op, Op::Get(_)))
    }
}

/// The answer to a [`Range`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeResponse {
    /// The keys, in bytewise order.
    pub kvs: Vec<KeyValue>,
    /// There are more than the limit.
    pub more: bool,
    /// How many keys the whole range holds, whatever the limit.
    pub count: u64,
}

/// The answer to one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpResponse {
    /// Written.
    Put,
    /// So many keys were deleted, 0 or 1.
    Delete(u64),
    /// Read.
    Get(RangeResponse),
}

impl OpResponse {
    /// What a `Get` answered; empty for other steps.
    #[must_use]
    pub fn into_range(self) -> RangeResponse {
        match self {
            Self::Get(range) => range,
            Self::Put | Self::Delete(_) => RangeResponse::default(),
        }
    }
}

/// The answer to a [`Txn`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnResponse {
    /// The backend's revision after the transaction.
    pub revision: Revision,
    /// Whether the compares held.
    pub succeeded: bool,
    /// One answer a step of the branch that was taken.
    pub responses: Vec<OpResponse>,
}

impl TxnResponse {
    /// What a transaction of one `Get` answered.
    #[must_use]
    pub fn into_range(self) -> RangeResponse {
        let first = self.responses.into_iter().next();
        first.map(OpResponse::into_range).unwrap_or_default()
    }
}

/// A watch of a range of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchRequest {
    /// The first key.
    pub start: Bytes,
    /// The key after the last one; `None`: only the key `start`.
    pub end: Option<Bytes>,
    /// The first revision to be delivered; 0: what comes after now.
    pub start_revision: Revision,
    /// Deliver the previous value with each change (missing when it is compacted, as in etcd).
    pub prev_kv: bool,
    /// End the stream (with `None`) once everything up to this revision has been delivered, and deliver nothing above it.
    /// This is how a piece of history is read.
    pub until: Option<Revision>,
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendEvent {
    /// The new state. For a delete: the key, an empty value, version 0, mod_revision of the delete.
    pub kv: KeyValue,
    /// Whether the key was deleted.
    pub deleted: bool,
    /// The state before, if asked for, if there was one, and if it is not compacted.
    pub prev: Option<KeyValue>,
}

/// Some events in the order of their revisions; the events of one revision are never spread over two batches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchBatch {
    /// The events; empty for mere progress.
    pub events: Vec<BackendEvent>,
    /// Everything up to this revision has been delivered.
    pub revision: Revision,
}

/// What a watch yields. An error is the last item.
pub type WatchStream = BoxStream<'static, Result<WatchBatch, BackendError>>;

/// What a backend says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackendStatus {
    /// The server's version, or `embedded`.
    pub version: String,
    /// The current revision.
    pub revision: Revision,
    /// Bytes of the database file.
    pub db_size: u64,
    /// Bytes of it that are in use.
    pub db_size_in_use: u64,
    /// The quota in bytes; 0: not known.
    pub quota: u64,
}

/// From so much of its quota on a backend takes no puts that make it grow, in percent: ticks and deletes need the rest.
pub const FULL_PERCENT: u64 = 90;

impl BackendStatus {
    /// Whether so much of the quota is in use that nothing may grow any more. Unknown quotas are never used up.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let used = if self.db_size_in_use > 0 {
            self.db_size_in_use
        } else {
            self.db_size
        };
        self.quota > 0 && used / FULL_PERCENT >= self.quota / 100
    }
}

/// Why a backend did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// No answer. `sent`: the request may have been carried out; if false it certainly was not.
    #[error("{cause}")]
    Unavailable {
        /// What was seen.
        cause: String,
        /// Whether it may have been carried out.
        sent: bool,
    },
    /// The revision is compacted. For a watch, etcd also says what the oldest revision is.
    #[error("required revision has been compacted (compact revision {compact_revision})")]
    Compacted {
        /// The compact revision; 0: the backend did not say.
        compact_revision: Revision,
    },
    /// The revision does not exist yet.
    #[error("required revision is a future revision")]
    FutureRevision,
    /// The quota is used up (etcd's NOSPACE alarm).
    #[error("database space exceeded")]
    NoSpace,
    /// The request is larger than the backend takes.
    #[error("request is too large")]
    TooLarge,
    /// The backend refuses us: authentication, version, or a request that it does not understand.
    #[error("{0}")]
    Refused(String),
    /// Another store answers than before (etcd: another cluster id), as after a restore.
    #[error("{0}")]
    OtherStore(String),
    /// Stored data or an answer that cannot be read.
    #[error("{0}")]
    Corrupt(String),
}

/// One etcd, or something that behaves like one.
pub trait Backend: Send + Sync + fmt::Debug + 'static {
    /// Carries out a transaction.
    ///
    /// # Errors
    /// After [`BackendError::Unavailable`] with `sent`, and only then, a writing transaction may have been carried out,
    /// and may still be carried out later.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, BackendError>>;

    /// Opens a watch. It requires a leader: a member that lost its quorum ends it.
    ///
    /// # Errors
    /// [`BackendError::Compacted`], here or as the last item, when `start_revision` is at or below the compact revision.
    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, BackendError>>;

    /// Forgets all states that are not current at `revision`. Compacting what is compacted is not an error.
    ///
    /// # Errors
    /// When the backend does not answer.
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), BackendError>>;

    /// Version, revision and sizes.
    ///
    /// # Errors
    /// When the backend does not answer.
    fn status(&self) -> BoxFuture<'_, Result<BackendStatus, BackendError>>;

    /// The member that answers seems to lag (an acknowledged write does not appear in its watch): use another one.
    fn suspect_member(&self) {}
}
