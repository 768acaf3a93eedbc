//! The two ordered maps below MVCC, and their form in memory.
//!
//! ```text
//! versions   key, revision       → place in the log, create revision, version, deleted
//! log        revision, sub       → the whole entry: what a watch delivers, and where values are
//! ```
//!
//! `sub` numbers the changes of one transaction. Nothing here decides anything: `mvcc` does.

use crate::backend::{BackendError, Revision};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

/// What is kept beside the two maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    /// The current revision. A new database is at 1, as etcd is.
    pub(super) revision: Revision,
    /// States that are not current here or later are forgotten; 0: never compacted.
    pub(super) compacted: Revision,
    /// Up to here forgotten states have been taken out of the maps.
    pub(super) swept: Revision,
    /// Bytes of all entries.
    pub(super) bytes: u64,
}

impl Meta {
    pub(super) const NEW: Self = Self {
        revision: 1,
        compacted: 0,
        swept: 0,
        bytes: 0,
    };
}

/// One state of one key, without its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) revision: Revision,
    pub(super) sub: u32,
    /// 0 for a delete, as the version is.
    pub(super) create_revision: Revision,
    pub(super) version: u64,
    pub(super) deleted: bool,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LogEntry {
    pub(super) key: Bytes,
    pub(super) value: Bytes,
    pub(super) at: Version,
}

impl LogEntry {
    /// What it counts for in [`Meta::bytes`].
    pub(super) fn size(&self) -> u64 {
        const ENTRY_OVERHEAD_BYTES: usize = 64;
        (2 * self.key.len() + self.value.len() + ENTRY_OVERHEAD_BYTES) as u64
    }
}

/// The maps, to be read. `end`: the key after the last one, `None`: no end.
pub(super) trait Tables {
    /// The newest state of `key` at `revision`, deletes included.
    fn newest(&self, key: &[u8], revision: Revision) -> Result<Option<Version>, BackendError>;

    /// The newest state of every key of a range at `revision`, deletes left out, in the order of keys.
    fn newest_in(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        revision: Revision,
        visit: &mut dyn FnMut(Version) -> ControlFlow<()>,
    ) -> Result<(), BackendError>;

    /// The entry of a state.
    fn entry(&self, revision: Revision, sub: u32) -> Result<Option<LogEntry>, BackendError>;

    /// All changes from `from` on: `visit` gets the revision, the key and, if `wants` says so, the entry.
    fn log(
        &self,
        from: Revision,
        wants: &dyn Fn(&[u8]) -> bool,
        visit: &mut dyn FnMut(Revision, Option<LogEntry>) -> ControlFlow<()>,
    ) -> Result<(), BackendError>;
}

/// The maps, to be written.
pub(super) trait TablesMut: Tables {
    /// Adds a change to both maps.
    fn append(&mut self, entry: LogEntry) -> Result<(), BackendError>;

    /// Takes a state out of both maps; the size of its entry.
    fn forget(&mut self, key: &[u8], at: Version) -> Result<u64, BackendError>;
}

/// The maps in memory: for tests and the simulation.
#[derive(Debug, Default, Clone)]
pub(super) struct MemoryTables {
    /// By key; the states of one key by revision.
    versions: BTreeMap<Bytes, VecDeque<Version>>,
    log: BTreeMap<(Revision, u32), LogEntry>,
}

fn newest_of(versions: &VecDeque<Version>, revision: Revision) -> Option<Version> {
    let after = versions.partition_point(|v| v.revision <= revision);
    versions.get(after.checked_sub(1)?).copied()
}

impl Tables for MemoryTables {
    fn newest(&self, key: &[u8], revision: Revision) -> Result<Option<Version>, BackendError> {
        Ok(self
            .versions
            .get(key)
            .and_then(|versions| newest_of(versions, revision)))
    }

    fn newest_in(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        revision: Revision,
        visit: &mut dyn FnMut(Version) -> ControlFlow<()>,
    ) -> Result<(), BackendError> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        if end.is_some_and(|end| end <= start) {
            return Ok(());
        }
        let range = self
            .versions
            .range::<[u8], _>((Included(start), end.map_or(Unbounded, Excluded)));
        for (_, versions) in range {
            if let Some(version) = newest_of(versions, revision).filter(|v| !v.deleted)
                && visit(version).is_break()
            {
                return Ok(());
            }
        }
        Ok(())
    }

    fn entry(&self, revision: Revision, sub: u32) -> Result<Option<LogEntry>, BackendError> {
        Ok(self.log.get(&(revision, sub)).cloned())
    }

    fn log(
        &self,
        from: Revision,
        wants: &dyn Fn(&[u8]) -> bool,
        visit: &mut dyn FnMut(Revision, Option<LogEntry>) -> ControlFlow<()>,
    ) -> Result<(), BackendError> {
        for ((revision, _), entry) in self.log.range((from, 0)..) {
            if visit(*revision, wants(&entry.key).then(|| entry.clone())).is_break() {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl TablesMut for MemoryTables {
    fn append(&mut self, entry: LogEntry) -> Result<(), BackendError> {
        match self.versions.get_mut(&entry.key) {
            Some(versions) => versions.push_back(entry.at),
            None => {
                self.versions
                    .insert(entry.key.clone(), VecDeque::from([entry.at]));
            }
        }
        self.log.insert((entry.at.revision, entry.at.sub), entry);
        Ok(())
    }

    fn forget(&mut self, key: &[u8], at: Version) -> Result<u64, BackendError> {
        if let Some(versions) = self.versions.get_mut(key) {
            // The oldest states go first, so this is the front.
            let place = versions.partition_point(|v| v.revision < at.revision);
            if versions.get(place) == Some(&at) {
                versions.remove(place);
            }
            if versions.is_empty() {
                self.versions.remove(key);
            }
        }
        Ok(self
            .log
            .remove(&(at.revision, at.sub))
            .map_or(0, |entry| entry.size()))
    }
}
