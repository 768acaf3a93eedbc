//! What happened in a run: every call of every client with its times, and the logs of the backends as they are.
//!
//! It records; `validate` judges.

use outrigger_storage::{EventKind, ResourceVersion};
use std::collections::BTreeMap;

/// Time of a run, in nanoseconds since its start.
pub type Nanos = u64;

/// Everything that clients saw.
#[derive(Debug, Default, Clone)]
pub struct History {
    /// Writes.
    pub writes: Vec<Write>,
    /// Gets.
    pub gets: Vec<Get>,
    /// Lists.
    pub lists: Vec<List>,
    /// Watches, each with all its resumes.
    pub watches: Vec<Watch>,
}

/// `namespace/name`.
pub type ObjectName = (String, String);

/// What a write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WriteKind {
    /// Create.
    Create,
    /// Update.
    Update,
    /// Delete.
    Delete,
}

/// How a write ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteResult {
    /// Acknowledged with this resource version.
    Acknowledged(ResourceVersion),
    /// Certainly not carried out (conflict, exists already, not placed, never sent).
    Refused(String),
    /// Nobody knows.
    Unknown(String),
}

/// One write.
#[derive(Debug, Clone)]
pub struct Write {
    /// Create, update, delete.
    pub kind: WriteKind,
    /// Of what.
    pub object: ObjectName,
    /// What was written, unique in the run. For a delete: the tag of the state that was deleted.
    pub tag: u64,
    /// When it was called and when it returned.
    pub time: (Nanos, Nanos),
    /// How it ended.
    pub result: WriteResult,
}

/// One get.
#[derive(Debug, Clone)]
pub struct Get {
    /// Of what.
    pub object: ObjectName,
    /// When it was called and when it returned.
    pub time: (Nanos, Nanos),
    /// The tag and version that were found; `None`: not found.
    pub found: Option<(u64, ResourceVersion)>,
}

/// One list that came to its end.
#[derive(Debug, Clone)]
pub struct List {
    /// The namespace; `None`: all.
    pub namespace: Option<String>,
    /// Whether it asked for the newest state.
    pub most_recent: bool,
    /// When it was called and when it returned.
    pub time: (Nanos, Nanos),
    /// The snapshot's version.
    pub version: ResourceVersion,
    /// The objects in the order in which they came, with tag and version.
    pub items: Vec<(ObjectName, u64, ResourceVersion)>,
}

/// One thing that a watch delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivered {
    /// A change.
    Event(EventKind, ObjectName, u64, ResourceVersion),
    /// A bookmark.
    Bookmark(ResourceVersion),
}

/// One watch.
#[derive(Debug, Clone)]
pub struct Watch {
    /// The namespace; `None`: all.
    pub namespace: Option<String>,
    /// Where it started.
    pub after: ResourceVersion,
    /// What it delivered, over all its resumes.
    pub delivered: Vec<Delivered>,
    /// It ended with 410, at this version: the last that the client knew.
    pub expired: Option<ResourceVersion>,
    /// It was running then, and may have gone on from there without a word.
    pub was_running: bool,
    /// When it ended.
    pub ended: Nanos,
    /// It went on until it had passed this version.
    pub complete_to: Option<ResourceVersion>,
}

/// One change in a backend's log, with the resource version that it must have.
#[derive(Debug, Clone)]
pub struct Change {
    /// The resource version.
    pub version: ResourceVersion,
    /// The backend.
    pub slot: u16,
    /// The backend's revision.
    pub revision: u64,
    /// What changed.
    pub object: ObjectName,
    /// The new state's tag; `None`: deleted.
    pub tag: Option<u64>,
    /// The tag of the state before.
    pub before: Option<u64>,
    /// Whether the backend owned the namespace (`Active`) when this was written.
    pub owned: bool,
    /// Which of the stores that stood behind the slot one after another: revisions rise in each.
    pub life: usize,
    /// A restore has undone it: in snapshots of this epoch and above it has never happened.
    pub undone: Option<u64>,
}

/// The logs of all backends, read directly.
#[derive(Debug, Default, Clone)]
pub struct Truth {
    /// All changes of objects, in the order of their versions.
    pub changes: Vec<Change>,
    /// Per backend: epochs and revisions of clocks, rising.
    pub clocks: BTreeMap<u16, Vec<(u64, u64)>>,
    /// Per namespace: slot, version and value of owner keys (`None`: removed), for people who look for a fault.
    pub owners: BTreeMap<String, Vec<(u16, ResourceVersion, Option<String>)>>,
    /// Members that have left, with the last epoch in which they may have changed.
    pub removed: Vec<(u16, u64)>,
    /// When members were lost, or offline.
    pub gaps: Vec<Gap>,
    /// When backends were restored from a backup, or wiped.
    pub restores: Vec<Restore>,
    /// Versions of lower epochs may miss changes of members that are forgotten.
    pub horizon: u64,
}

/// Epochs `from..to` in which watches over all namespaces may have gone on without a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The member.
    pub slot: u16,
    /// The first epoch.
    pub from: u64,
    /// The epoch in which it came back.
    pub to: u64,
    /// It was offline: lists may have left its objects out.
    pub objects: bool,
}

/// A backend was put back to an earlier state of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restore {
    /// The backend.
    pub slot: u16,
    /// From when on nobody can have seen what it held before.
    pub replaced: Nanos,
    /// When it was accepted as it is, or put back to what it was.
    pub over: Option<Nanos>,
    /// Somebody accepted it as it is.
    pub was_accepted: bool,
    /// The first tick that it got as it is: from there on snapshots show it so. `None`: it was not accepted.
    pub begins: Option<u64>,
    /// The epoch in which it was opened as it is: versions from before are expired.
    pub opened: Option<u64>,
    /// The highest clock that it had before.
    pub clock: u64,
    /// Something was written to it before it was accepted.
    pub was_written: bool,
}

impl Restore {
    /// Whether the backend was to be refused all the time.
    #[must_use]
    pub fn is_under_way(&self, time: (Nanos, Nanos)) -> bool {
        self.replaced <= time.0 && self.over.is_none_or(|over| time.1 < over)
    }
}

impl Gap {
    /// Whether a version is of the gap, whichever backend it is of.
    #[must_use]
    pub fn holds(&self, version: ResourceVersion) -> bool {
        (self.from..self.to).contains(&version.epoch().0)
    }
}
