//! Owner keys: which backend owns a domain. The value's form, and the routing table that the logs keep current.

use crate::ResourceVersion;
use crate::backend::Revision;
use crate::federated::OwnerState;
use crate::key::Domain;
use crate::resource_version::Epoch;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::time::Instant;

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
    /// What was found out about the keys here when it was asked who may own their domains.
    verdicts: BTreeMap<Domain, (Revision, Verdict)>,
}

/// What a placement that was asked for says of one state of an owner key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It names this backend, in this version.
    Placed(u64),
    /// It does not, and the key was there before and after it was asked for.
    Impostor,
}

impl OwnerTable {
    pub(crate) fn replace_all(&mut self, entries: BTreeMap<Domain, OwnerEntry>) {
        let stays = |domain: &Domain, revision: Revision| {
            entries
                .get(domain)
                .is_some_and(|entry| entry.revision == revision)
        };
        self.verdicts
            .retain(|domain, (revision, _)| stays(domain, *revision));
        self.entries = entries;
        self.removed.clear();
    }

    /// Whose keys are here.
    pub(crate) fn domains(&self) -> impl Iterator<Item = &Domain> {
        self.entries.keys()
    }

    /// What was found out about the key with this mod_revision.
    pub(crate) fn verdict(&self, domain: &Domain, revision: Revision) -> Option<Verdict> {
        let (judged, verdict) = self.verdicts.get(domain)?;
        (*judged == revision).then_some(*verdict)
    }

    /// Takes what was found out about the key with this mod_revision.
    pub(crate) fn judge(&mut self, domain: &Domain, revision: Revision, verdict: Verdict) {
        self.verdicts.insert(domain.clone(), (revision, verdict));
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
                self.verdicts.remove(&domain);
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

/// The owner keys of one backend as its log shows them, with those that are gone and retained. Watches go by it: what an
/// answer tells may be ahead of what they have delivered.
#[derive(Debug, Default)]
pub(crate) struct OwnerLog {
    tenures: BTreeMap<Domain, Vec<Held>>,
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

/// A time in which a backend had an owner key of a domain without a break.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) tenure: Arc<Tenure>,
    /// The key; the last one, if it is gone. `None`: it went, and what it was is compacted.
    pub(crate) entry: Option<OwnerEntry>,
    /// From where on its objects count; `None`: it was never more than a claim.
    counts: Option<(Revision, ResourceVersion)>,
    pub(crate) removal: Option<Removal>,
    /// When the removal was read from the log as it happened.
    pub(crate) removed_at: Option<Instant>,
}

/// What was found out about such a time. Shared with the changes that were made in it.
#[derive(Debug, Default)]
pub(crate) struct Tenure {
    /// The version of the placements at which it was last found to count, and one more; 0: never.
    counted_at: AtomicU64,
    /// No placement named this backend: nothing in it counts.
    is_impostor: AtomicBool,
}

impl Tenure {
    /// Whether it was found to count when the placements were at this version.
    pub(crate) fn counted_at(&self, version: u64) -> bool {
        self.counted_at.load(Ordering::Acquire) == version.saturating_add(1)
    }

    /// Whether it was ever found to count.
    pub(crate) fn has_counted(&self) -> bool {
        self.counted_at.load(Ordering::Acquire) > 0
    }

    pub(crate) fn counts(&self, version: u64) {
        self.counted_at
            .store(version.saturating_add(1), Ordering::Release);
    }

    pub(crate) fn is_impostor(&self) -> bool {
        self.is_impostor.load(Ordering::Acquire)
    }

    /// Whether that is new.
    pub(crate) fn is_found_out(&self) -> bool {
        !self.is_impostor.swap(true, Ordering::AcqRel)
    }
}

impl Held {
    /// Whether its objects count at this revision.
    fn holds(&self, revision: Revision) -> bool {
        let ended = self.removal.is_some_and(|removal| removal.revision <= revision);
        !ended && self.counts.is_some_and(|(from, _)| from <= revision)
    }

    /// Whether its objects count at this version.
    pub(crate) fn covers(&self, version: ResourceVersion) -> bool {
        let ended = self.removal.is_some_and(|removal| removal.version <= version);
        !ended && self.counts.is_some_and(|(_, from)| from <= version)
    }

    /// From where on it counts.
    pub(crate) fn counts_from(&self) -> Option<ResourceVersion> {
        self.counts.map(|(_, version)| version)
    }

    /// The generation of the key.
    pub(crate) fn generation(&self) -> u64 {
        let known = self.entry.as_ref().map(|entry| entry.record.generation);
        self.removal
            .map(|removal| removal.generation)
            .or(known)
            .unwrap_or_default()
    }

    /// The owner now, if it counts.
    fn owner(&self) -> Option<&OwnerEntry> {
        let open = self.entry.as_ref().filter(|_| self.removal.is_none());
        open.filter(|entry| entry.record.counts())
    }

    fn put(&mut self, entry: OwnerEntry, version: ResourceVersion) {
        if entry.record.counts() {
            self.counts.get_or_insert((entry.revision, version));
        }
        self.entry = Some(entry);
    }
}

impl OwnerLog {
    /// A put of an owner key; `version`: its place in the one order. Another generation is another time.
    pub(crate) fn put(&mut self, domain: Domain, entry: OwnerEntry, version: ResourceVersion) {
        let held = self.open(domain.clone());
        let before = held.entry.as_ref().map(|before| before.record.generation);
        match before.filter(|generation| *generation != entry.record.generation) {
            Some(generation) => {
                held.removal = Some(Removal {
                    generation,
                    version,
                    revision: entry.revision,
                });
                self.open(domain).put(entry, version);
            }
            None => held.put(entry, version),
        }
    }

    /// An owner key that was there before the retained history.
    pub(crate) fn was_there(&mut self, domain: Domain, entry: OwnerEntry) {
        let held = self.open(domain);
        if held.entry.is_none() {
            held.put(
                OwnerEntry {
                    revision: 0,
                    ..entry.clone()
                },
                ResourceVersion::cut(Epoch(0)),
            );
        }
        held.entry = Some(entry);
    }

    /// A removal; `now`: the log is being followed.
    pub(crate) fn remove(&mut self, domain: Domain, removal: Removal, now: Option<Instant>) {
        let held = self.open(domain);
        if held.entry.is_none() {
            // It was there before the retained history.
            held.counts = Some((0, ResourceVersion::cut(Epoch(0))));
        }
        held.removal = Some(removal);
        held.removed_at = now;
    }

    /// Whether there is a key, as far as it was told.
    pub(crate) fn is_held(&self, domain: &Domain) -> bool {
        let newest = self.tenures(domain).last();
        newest.is_some_and(|held| held.removal.is_none())
    }

    /// The time that has not ended.
    fn open(&mut self, domain: Domain) -> &mut Held {
        let tenures = self.tenures.entry(domain).or_default();
        if tenures.last().is_none_or(|held| held.removal.is_some()) {
            tenures.push(Held {
                tenure: Arc::default(),
                entry: None,
                counts: None,
                removal: None,
                removed_at: None,
            });
        }
        let newest = tenures.len() - 1;
        &mut tenures[newest]
    }

    /// Takes over what was found out before the log started anew.
    pub(crate) fn inherit(&mut self, old: &Self) {
        for (domain, tenures) in &mut self.tenures {
            let Some(before) = old.tenures.get(domain) else {
                continue;
            };
            for held in tenures {
                let ended = |held: &Held| held.removal.map(|removal| removal.revision);
                let same = |old: &&Held| {
                    ended(old) == ended(held)
                        && (held.removal.is_some()
                            || old.entry.as_ref().map(|e| e.revision)
                                == held.entry.as_ref().map(|e| e.revision))
                };
                if let Some(old) = before.iter().find(same) {
                    held.tenure = old.tenure.clone();
                    held.removed_at = old.removed_at;
                }
            }
        }
    }

    /// The owner now, if it counts.
    pub(crate) fn owner(&self, domain: &Domain) -> Option<&OwnerEntry> {
        self.tenures.get(domain)?.last()?.owner()
    }

    /// The times of a domain, the oldest first.
    pub(crate) fn tenures(&self, domain: &Domain) -> &[Held] {
        self.tenures.get(domain).map_or(&[], Vec::as_slice)
    }

    /// The time in which a change at this revision was made, if it was made under an owner key.
    pub(crate) fn tenure_at(&self, domain: &Domain, revision: Revision) -> Option<Arc<Tenure>> {
        let held = self
            .tenures(domain)
            .iter()
            .rev()
            .find(|held| held.holds(revision));
        held.map(|held| held.tenure.clone())
    }

    /// The time of the owner key with this mod_revision, if the log has shown that key and no later one.
    pub(crate) fn tenure_of(&self, domain: &Domain, revision: Revision) -> Option<Arc<Tenure>> {
        let is_key = |held: &&Held| {
            held.entry
                .as_ref()
                .is_some_and(|entry| entry.revision == revision)
        };
        let held = self.tenures(domain).iter().find(is_key);
        held.map(|held| held.tenure.clone())
    }

    /// Where changes above `version` may be, in order: up to each removal above it, and under the owner now.
    pub(crate) fn after(&self, domain: &Domain, version: ResourceVersion) -> impl Iterator<Item = &Held> {
        self.tenures(domain)
            .iter()
            .filter(move |held| match held.removal {
                Some(removal) => removal.version > version && held.counts.is_some(),
                None => held.owner().is_some(),
            })
    }

    /// Forgets what is compacted.
    pub(crate) fn trim(&mut self, compact_revision: Revision) {
        self.tenures.retain(|_, tenures| {
            tenures.retain(|held| {
                held.removal
                    .is_none_or(|removal| removal.revision > compact_revision)
            });
            !tenures.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource_version::Slot;

    fn version(epoch: u64) -> ResourceVersion {
        ResourceVersion::new(Epoch(epoch), 1, Slot(0)).expect("in range")
    }

    fn domain() -> Domain {
        Domain::Namespace("a".into())
    }

    fn entry(state: OwnerState, generation: u64, revision: Revision) -> OwnerEntry {
        let record = OwnerRecord {
            state,
            generation,
            uid: "uid".to_owned(),
            earlier: Vec::new(),
        };
        OwnerEntry { record, revision }
    }

    fn removal(revision: Revision) -> Removal {
        Removal {
            generation: 0,
            version: version(revision),
            revision,
        }
    }

    /// Claimed at 10, active from 20, gone at 30, active again from 50.
    fn log() -> OwnerLog {
        let mut log = OwnerLog::default();
        log.put(domain(), entry(OwnerState::Claiming, 1, 10), version(10));
        log.put(domain(), entry(OwnerState::Active, 1, 20), version(20));
        log.put(domain(), entry(OwnerState::Frozen, 1, 25), version(25));
        log.remove(domain(), removal(30), None);
        log.put(domain(), entry(OwnerState::Active, 2, 50), version(50));
        log
    }

    #[test]
    fn a_change_counts_under_an_owner_key_alone() {
        let check = |revision, expect| {
            let found = log().tenure_at(&domain(), revision).is_some();
            assert_eq!(found, expect, "at {revision}");
        };
        check(5, false);
        check(15, false);
        check(20, true);
        check(27, true);
        check(30, false);
        check(40, false);
        check(50, true);
        assert!(log().tenure_at(&Domain::Namespace("b".into()), 50).is_none());
    }

    #[test]
    fn what_was_there_before_the_history_counts_from_the_beginning() {
        let mut log = OwnerLog::default();
        log.was_there(domain(), entry(OwnerState::Active, 1, 7));
        assert!(log.tenure_at(&domain(), 1).is_some());
        assert_eq!(log.owner(&domain()).map(|owner| owner.revision), Some(7));
        let mut gone = OwnerLog::default();
        gone.remove(domain(), removal(30), None);
        assert!(gone.tenure_at(&domain(), 29).is_some());
        assert!(gone.tenure_at(&domain(), 30).is_none());
    }

    #[test]
    fn homes_after_a_version() {
        let check = |after, expect: Option<Option<Revision>>| {
            let log = log();
            let found = log.after(&domain(), version(after)).next();
            assert_eq!(
                found.map(|held| held.removal.map(|r| r.revision)),
                expect,
                "after {after}"
            );
        };
        check(5, Some(Some(30)));
        check(29, Some(Some(30)));
        check(30, Some(None));
        check(60, Some(None));
    }

    #[test]
    fn what_is_compacted_is_forgotten_and_what_was_found_out_is_kept() {
        let mut old = log();
        old.tenures(&domain())[0].tenure.counts(4);
        let mut anew = log();
        anew.inherit(&old);
        assert!(anew.tenures(&domain())[0].tenure.counted_at(4));
        assert!(!anew.tenures(&domain())[1].tenure.has_counted());
        old.trim(30);
        assert_eq!(old.tenures(&domain()).len(), 1);
    }
}
