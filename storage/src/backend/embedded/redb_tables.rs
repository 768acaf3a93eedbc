//! The maps on redb.

use super::tables::{LogEntry, Meta, Tables, TablesMut, Version};
use crate::backend::{BackendError, Revision};
use bytes::Bytes;
use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};
use std::ops::ControlFlow;
use tokio::sync::oneshot;

pub(super) type VersionKey = (&'static [u8], u64);
/// sub, create revision, version, deleted
pub(super) type VersionValue = (u32, u64, u64, bool);
pub(super) type LogKey = (u64, u32);

pub(super) const VERSIONS: TableDefinition<'_, VersionKey, VersionValue> = TableDefinition::new("versions");
pub(super) const LOG: TableDefinition<'_, LogKey, &[u8]> = TableDefinition::new("log");
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

pub(super) struct RedbTables<V, L, M> {
    pub(super) versions: V,
    pub(super) log: L,
    pub(super) meta: M,
}

pub(super) type WriteTables<'t> = RedbTables<
    Table<'t, VersionKey, VersionValue>,
    Table<'t, LogKey, &'static [u8]>,
    Table<'t, &'static str, u64>,
>;

impl<'t> WriteTables<'t> {
    pub(super) fn write(transaction: &'t WriteTransaction) -> Result<Self, BackendError> {
        Ok(Self {
            versions: transaction.open_table(VERSIONS).map_err(broken)?,
            log: transaction.open_table(LOG).map_err(broken)?,
            meta: transaction.open_table(META).map_err(broken)?,
        })
    }

    pub(super) fn set_meta(&mut self, meta: &Meta) -> Result<(), BackendError> {
        let Meta {
            revision,
            compacted,
            swept,
            bytes,
        } = *meta;
        for (name, value) in [
            ("revision", revision),
            ("compacted", compacted),
            ("swept", swept),
            ("bytes", bytes),
        ] {
            self.meta.insert(name, value).map_err(broken)?;
        }
        Ok(())
    }
}

impl<V, L, M: ReadableTable<&'static str, u64>> RedbTables<V, L, M> {
    pub(super) fn meta(&self) -> Result<Meta, BackendError> {
        let get = |name: &str| match self.meta.get(name).map_err(broken)? {
            Some(value) => Ok(value.value()),
            None => Err(BackendError::Corrupt(format!(
                "the embedded database has no {name:?}"
            ))),
        };
        Ok(Meta {
            revision: get("revision")?,
            compacted: get("compacted")?,
            swept: get("swept")?,
            bytes: get("bytes")?,
        })
    }
}

impl<V, L, M> Tables for RedbTables<V, L, M>
where
    V: ReadableTable<VersionKey, VersionValue>,
    L: ReadableTable<LogKey, &'static [u8]>,
{
    fn newest(&self, key: &[u8], revision: Revision) -> Result<Option<Version>, BackendError> {
        let mut range = self.versions.range((key, 0)..=(key, revision)).map_err(broken)?;
        match range.next_back() {
            None => Ok(None),
            Some(item) => {
                let (key, value) = item.map_err(broken)?;
                Ok(Some(version(key.value().1, value.value())))
            }
        }
    }

    fn newest_in(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        revision: Revision,
        visit: &mut dyn FnMut(Version) -> ControlFlow<()>,
    ) -> Result<(), BackendError> {
        if end.is_some_and(|end| end <= start) {
            return Ok(());
        }
        let range = match end {
            Some(end) => self.versions.range((start, 0)..(end, 0)),
            None => self.versions.range((start, 0)..),
        };
        let mut key = Vec::new();
        let mut newest: Option<Version> = None;
        for item in range.map_err(broken)? {
            let (at, value) = item.map_err(broken)?;
            let (this, at) = at.value();
            if key != this {
                if let Some(newest) = newest.take().filter(|v| !v.deleted)
                    && visit(newest).is_break()
                {
                    return Ok(());
                }
                key.clear();
                key.extend_from_slice(this);
            }
            if at <= revision {
                newest = Some(version(at, value.value()));
            }
        }
        if let Some(newest) = newest.filter(|v| !v.deleted) {
            let _ = visit(newest);
        }
        Ok(())
    }

    fn entry(&self, revision: Revision, sub: u32) -> Result<Option<LogEntry>, BackendError> {
        match self.log.get((revision, sub)).map_err(broken)? {
            None => Ok(None),
            Some(value) => decode(revision, sub, value.value()).map(Some),
        }
    }

    fn log(
        &self,
        from: Revision,
        wants: &dyn Fn(&[u8]) -> bool,
        visit: &mut dyn FnMut(Revision, Option<LogEntry>) -> ControlFlow<()>,
    ) -> Result<(), BackendError> {
        for item in self.log.range((from, 0)..).map_err(broken)? {
            let (at, value) = item.map_err(broken)?;
            let (revision, sub) = at.value();
            let value = value.value();
            let entry = if wants(split(revision, value)?.1) {
                Some(decode(revision, sub, value)?)
            } else {
                None
            };
            if visit(revision, entry).is_break() {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl TablesMut for WriteTables<'_> {
    fn append(&mut self, entry: LogEntry) -> Result<(), BackendError> {
        let Version {
            revision,
            sub,
            create_revision,
            version,
            deleted,
        } = entry.at;
        let value = (sub, create_revision, version, deleted);
        self.versions
            .insert((&entry.key[..], revision), value)
            .map_err(broken)?;
        self.log
            .insert((revision, sub), &encode(&entry)[..])
            .map_err(broken)?;
        Ok(())
    }

    fn forget(&mut self, key: &[u8], at: Version) -> Result<u64, BackendError> {
        self.versions.remove((key, at.revision)).map_err(broken)?;
        match self.log.remove((at.revision, at.sub)).map_err(broken)? {
            None => Ok(0),
            Some(value) => Ok(decode(at.revision, at.sub, value.value())?.size()),
        }
    }
}

fn version(revision: Revision, (sub, create_revision, version, deleted): (u32, u64, u64, bool)) -> Version {
    Version {
        revision,
        sub,
        create_revision,
        version,
        deleted,
    }
}

/// Length of what stands before the key in a log entry: deleted u8, create revision u64, version u64, key length u32.
const HEAD: usize = 21;

fn encode(entry: &LogEntry) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD + entry.key.len() + entry.value.len());
    out.push(u8::from(entry.at.deleted));
    out.extend_from_slice(&entry.at.create_revision.to_be_bytes());
    out.extend_from_slice(&entry.at.version.to_be_bytes());
    out.extend_from_slice(&u32::try_from(entry.key.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&entry.key);
    out.extend_from_slice(&entry.value);
    out
}

/// Head, key and value of a log entry.
type Parts<'a> = ([u8; HEAD], &'a [u8], &'a [u8]);

fn split(revision: Revision, bytes: &[u8]) -> Result<Parts<'_>, BackendError> {
    let parts = || {
        let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
        let key_len = u32::from_be_bytes(head[HEAD - 4..].try_into().ok()?) as usize;
        let (key, value) = rest.split_at_checked(key_len)?;
        Some((*head, key, value))
    };
    parts().ok_or_else(|| BackendError::Corrupt(format!("the log entry of revision {revision} is cut off")))
}

fn decode(revision: Revision, sub: u32, bytes: &[u8]) -> Result<LogEntry, BackendError> {
    let (head, key, value) = split(revision, bytes)?;
    let word = |at: usize| {
        head[at..at + 8]
            .iter()
            .fold(0_u64, |n, byte| n << 8 | u64::from(*byte))
    };
    let at = Version {
        revision,
        sub,
        create_revision: word(1),
        version: word(9),
        deleted: head[0] != 0,
    };
    let both = Bytes::from([key, value].concat());
    Ok(LogEntry {
        key: both.slice(..key.len()),
        value: both.slice(key.len()..),
        at,
    })
}

/// The file fails us, or the runtime is going down. What was asked for may have been done.
pub(super) fn broken(error: impl Into<Broken>) -> BackendError {
    error.into().0
}

pub(super) struct Broken(BackendError);

macro_rules! broken_from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for Broken {
            fn from(error: $error) -> Self {
                let cause = format!("the embedded database failed: {error}");
                Self(match redb::Error::from(error) {
                    redb::Error::Corrupted(_) => BackendError::Corrupt(cause),
                    _ => BackendError::Unavailable { cause, sent: true },
                })
            }
        }
    )*};
}

broken_from_redb!(
    redb::DatabaseError,
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError
);

macro_rules! broken_from_runtime {
    ($($error:ty),*) => {$(
        impl From<$error> for Broken {
            fn from(error: $error) -> Self {
                Self(BackendError::Unavailable { cause: error.to_string(), sent: true })
            }
        }
    )*};
}

broken_from_runtime!(
    tokio::task::JoinError,
    tokio::sync::AcquireError,
    oneshot::error::RecvError
);
