//! Owner keys: which backend owns a domain. The value's form, and the routing table that the logs keep current.

use crate::ResourceVersion;
use crate::backend::Revision;
use crate::federated::OwnerState;
use crate::key::Domain;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The value of an owner key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OwnerRecord {
    /// Its state.
    pub(crate) state: OwnerState,
    /// The placement's generation: rises with every claim.
    pub(crate) generation: u64,
    /// The namespace's uid.
    pub(crate) uid: String,
    /// Homes before this one. Written by moves, kept by everybody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) earlier: Vec<EarlierHome>,
}

/// Where a domain lived before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EarlierHome {
    /// The slot.
    pub(crate) slot: u16,
    /// The epoch in which it left.
    pub(crate) left: u64,
}

impl OwnerRecord {
    pub(crate) fn encode(&self) -> Bytes {
        serde_json::to_vec(self)
            .expect("a record is always written to memory")
            .into()
    }

    pub(crate) fn decode(value: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(value).map_err(|e| format!("owner record: {e}"))
    }

    /// Whether the domain's objects count here.
    pub(crate) fn counts(&self) -> bool {
        self.state != OwnerState::Claiming
    }
}

/// One owner key as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnerEntry {
    pub(crate) record: OwnerRecord,
    /// mod_revision of the owner key: what writes compare.
    pub(crate) revision: Revision,
}

/// The owner keys of one backend. It grows with the number of namespaces, not of objects.
#[derive(Debug, Default)]
pub(crate) struct OwnerTable {
    entries: BTreeMap<Domain, OwnerEntry>,
    /// Removals that an answer reported before the log did, so that the log's older puts do not bring them back.
    removed: BTreeMap<Domain, Revision>,
}

impl OwnerTable {
    pub(crate) fn replace_all(&mut self, entries: BTreeMap<Domain, OwnerEntry>) {
        *self = Self {
            entries,
            removed: BTreeMap::new(),
        };
    }

    pub(crate) fn get(&self, domain: &Domain) -> Option<&OwnerEntry> {
        self.entries.get(domain)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes a state of an owner key from the log or from an answer; the higher revision wins.
    pub(crate) fn observe(&mut self, domain: Domain, revision: Revision, record: Option<OwnerRecord>) {
        let known = self
            .entries
            .get(&domain)
            .map(|e| e.revision)
            .max(self.removed.get(&domain).copied());
        if known.is_some_and(|known| revision < known) {
            return;
        }
        match record {
            Some(record) => {
                self.removed.remove(&domain);
                self.entries.insert(domain, OwnerEntry { record, revision });
            }
            None => {
                self.entries.remove(&domain);
                self.removed.insert(domain, revision);
            }
        }
    }

    /// Forgets removals that the log has passed.
    pub(crate) fn settle(&mut self, log_revision: Revision) {
        if !self.removed.is_empty() {
            self.removed.retain(|_, revision| *revision > log_revision);
        }
    }
}

/// The owner keys of one backend as its log shows them, with the removals that are retained. Watches go by it: what an
/// answer tells may be ahead of what they have delivered.
#[derive(Debug, Default)]
pub(crate) struct OwnerLog {
    current: BTreeMap<Domain, OwnerEntry>,
    removals: BTreeMap<Domain, Vec<Removal>>,
}

/// An owner key went away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Removal {
    /// The generation of the owner that went away; 0 if that is compacted.
    pub(crate) generation: u64,
    /// Where it stands in the one order.
    pub(crate) version: ResourceVersion,
    /// Where it stands in the backend's log.
    pub(crate) revision: Revision,
}

impl OwnerLog {
    pub(crate) fn new(current: BTreeMap<Domain, OwnerEntry>) -> Self {
        Self {
            current,
            removals: BTreeMap::new(),
        }
    }

    pub(crate) fn put(&mut self, domain: Domain, entry: OwnerEntry) {
        self.current.insert(domain, entry);
    }

    pub(crate) fn remove(&mut self, domain: Domain, removal: Removal) {
        self.current.remove(&domain);
        self.removals.entry(domain).or_default().push(removal);
    }

    /// A removal from before the log was followed; the keys that there are now stay.
    pub(crate) fn remove_in_the_past(&mut self, domain: Domain, removal: Removal) {
        self.removals.entry(domain).or_default().push(removal);
    }

    /// The owner now, if it counts.
    pub(crate) fn owner(&self, domain: &Domain) -> Option<&OwnerEntry> {
        self.current.get(domain).filter(|entry| entry.record.counts())
    }

    /// The first removal above `version`.
    pub(crate) fn removal_after(&self, domain: &Domain, version: ResourceVersion) -> Option<Removal> {
        self.removals
            .get(domain)?
            .iter()
            .find(|removal| removal.version > version)
            .copied()
    }

    /// Forgets what is compacted.
    pub(crate) fn trim(&mut self, compact_revision: Revision) {
        self.removals.retain(|_, removals| {
            removals.retain(|removal| removal.revision > compact_revision);
            !removals.is_empty()
        });
    }
}
