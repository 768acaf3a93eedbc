//! Which owner keys count: those on the cluster that the placement names. Whoever holds one backend can write any key
//! there, and takes no namespace with it.
//!
//! ```text
//! placement, as it is known     owner key on X
//! names X                       counts
//! names Y, and Y has a key      does not: an impostor
//! names Y, and Y has none, or   either this replica's knowledge is old, or it is an impostor: the placement is asked
//!   is not there; there is none   for in the background, and whoever needs to know waits, or hears 503
//! ```
//!
//! A key is written after its placement, and removed before it: a key that was there before the placement was asked for,
//! and is there afterwards, can be no one's that the placement does not name. What once counted goes on to count for the
//! time that it was there: old changes are delivered after the placement is gone.

use super::Rule;
use super::fleet::Fleet;
use super::joined::Joined;
use super::ring::LogEntry;
use crate::backend::{KeyValue, Revision};
use crate::key::{Domain, domain_of};
use crate::owners::{Held, OwnerEntry, OwnerRecord, Tenure, Verdict};
use crate::placements::{Known, Placed};
use crate::resource_version::Epoch;
use crate::signal::Signal;
use crate::{Error, ResourceVersion};
use futures::StreamExt;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Domains whose placements are to be asked for; what comes on top is asked for when it is looked at again.
const QUESTIONS_MAX: usize = 10_000;
/// Placements that are asked for at once.
const QUESTIONS_AT_ONCE: usize = 8;
/// What is known in memory has this long to catch up before a placement is asked for.
const BEFORE_ASKING: Duration = Duration::from_millis(10);
/// How long an answer may take.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// The pause after a question that nobody could answer.
const ASK_PAUSE: Duration = Duration::from_millis(250);
/// How long whoever needs an owner waits for the answer.
const SETTLE_WAIT: Duration = Duration::from_secs(2);
/// How often it is looked whether it is settled, if nobody says so.
const SETTLE_POLL: Duration = Duration::from_millis(250);
/// How long what is known in memory has to show a placement of an owner key that is gone already.
const DOUBT: Duration = Duration::from_secs(2);
/// Impostors of one cluster that are reported.
const REPORTED_MAX: usize = 1024;

/// Whether an owner key counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Counts,
    Impostor,
    /// Nobody knows yet.
    Unsettled,
    /// Nobody knows any more.
    Forgotten,
}

/// Who owns a domain, by the routing table.
pub(crate) enum Routed {
    Owned(Arc<Joined>, OwnerEntry),
    Nobody,
    /// There is a key that may count.
    Unsettled,
}

/// Which placements are to be asked for.
#[derive(Default)]
pub(crate) struct Questions {
    open: Mutex<BTreeSet<Domain>>,
    asked: Signal,
    pub(crate) settled: Signal,
}

impl Questions {
    fn ask(&self, domain: &Domain) {
        let mut open = self.open.lock();
        if open.len() < QUESTIONS_MAX && open.insert(domain.clone()) {
            self.asked.raise();
        }
    }
}

/// What an owner key is judged by.
#[derive(Debug, Clone, Copy)]
struct Key<'a> {
    generation: u64,
    /// What was answered about it.
    verdict: Option<Verdict>,
    /// The cluster that the placement names has an owner key itself.
    named_one_stands: bool,
    known: &'a Known,
    is_named: bool,
}

fn judge(key: Key<'_>) -> Standing {
    let (later, placed) = match key.known {
        Known::Anywhere => return Standing::Counts,
        Known::Unread => return Standing::Unsettled,
        Known::Nowhere => (0, None),
        Known::Placed(_) if key.is_named => return Standing::Counts,
        Known::Placed(placed) => (placed.version, Some(placed)),
    };
    match key.verdict {
        Some(Verdict::Placed(version)) if version > later => return Standing::Counts,
        Some(Verdict::Impostor) => return Standing::Impostor,
        Some(Verdict::Placed(_)) | None => {}
    }
    // A key's generation is the version of the placement that it was claimed for.
    match placed {
        Some(placed) if key.generation <= placed.version || key.named_one_stands => Standing::Impostor,
        _ => Standing::Unsettled,
    }
}

impl Fleet {
    pub(crate) fn known(&self, domain: &Domain) -> Known {
        if self.broken(Rule::PlacementNamesTheOwner) {
            return Known::Anywhere;
        }
        self.config.placements.known(domain)
    }

    /// Whether a state of an owner key counts now.
    pub(crate) fn key_standing(
        &self,
        known: &Known,
        joined: &Arc<Joined>,
        domain: &Domain,
        entry: &OwnerEntry,
    ) -> Standing {
        let verdict = joined.state.lock().owners.verdict(domain, entry.revision);
        let standing = judge(Key {
            generation: entry.record.generation,
            verdict,
            named_one_stands: self.named_one_stands(known, domain),
            known,
            is_named: known.owns(&joined.member.name, joined.slot(), entry.record.generation),
        });
        // Of an impostor, too: to be sure before anybody is told.
        if standing != Standing::Counts && verdict != Some(Verdict::Impostor) {
            self.questions.ask(domain);
        }
        standing
    }

    fn named_one_stands(&self, known: &Known, domain: &Domain) -> bool {
        let Known::Placed(placed) = known else {
            return false;
        };
        let view = self.view();
        let named = |joined: &&Arc<Joined>| placed.names(&joined.member.name, joined.slot());
        let Some(named) = view.connections.iter().find(named) else {
            return false;
        };
        let owns = |generation| placed.owns(&named.member.name, named.slot(), generation);
        let state = named.state.lock();
        let held = state.owners.get(domain);
        held.is_some_and(|held| owns(held.record.generation))
    }

    /// Who owns `domain`, by the routing table and the placement as it is known.
    pub(crate) fn route(&self, domain: &Domain) -> Routed {
        let known = self.known(domain);
        let view = self.view();
        let mut best: Option<(u64, &Arc<Joined>, OwnerEntry)> = None;
        let mut unsettled = false;
        for joined in &view.connections {
            let Some(entry) = joined.owner(domain) else {
                continue;
            };
            if known.owns(&joined.member.name, joined.slot(), entry.record.generation) {
                best = Some((u64::MAX, joined, entry));
                break;
            }
            match self.key_standing(&known, joined, domain, &entry) {
                Standing::Counts => {
                    let generation = entry.record.generation;
                    if best.as_ref().is_none_or(|(highest, _, _)| *highest <= generation) {
                        best = Some((generation, joined, entry));
                    }
                }
                Standing::Impostor => {}
                Standing::Unsettled | Standing::Forgotten => unsettled = true,
            }
        }
        match best {
            Some((_, joined, entry)) => Routed::Owned(joined.clone(), entry),
            None if unsettled => Routed::Unsettled,
            None => Routed::Nobody,
        }
    }

    /// The same, with a while for what is not settled.
    pub(crate) async fn route_settled(
        &self,
        domain: &Domain,
    ) -> Result<Option<(Arc<Joined>, OwnerEntry)>, Error> {
        let settled = async {
            let mut settled = self.questions.settled.listen();
            loop {
                match self.route(domain) {
                    Routed::Owned(joined, entry) => return Some((joined, entry)),
                    Routed::Nobody => return None,
                    Routed::Unsettled => {}
                }
                let _ = tokio::time::timeout(SETTLE_POLL, settled.changed()).await;
            }
        };
        tokio::time::timeout(SETTLE_WAIT, settled)
            .await
            .map_err(|_| unsettled(domain))
    }

    /// Waits until something was settled, or might have been.
    pub(crate) async fn something_settled(&self) {
        let mut settled = self.questions.settled.listen();
        let _ = tokio::time::timeout(SETTLE_POLL, settled.changed()).await;
    }

    /// Who has claimed `domain` without being its owner yet.
    pub(crate) fn claimed(&self, domain: &Domain) -> Option<(Arc<Joined>, OwnerEntry)> {
        let known = self.known(domain);
        let view = self.view();
        let claims = view.connections.iter().filter_map(|joined| {
            let named = match &known {
                Known::Placed(placed) => placed.names(&joined.member.name, joined.slot()),
                Known::Anywhere | Known::Unread | Known::Nowhere => true,
            };
            named.then(|| Some((joined, joined.claim(domain)?))).flatten()
        });
        let (joined, entry) = claims.max_by_key(|(_, entry)| entry.record.generation)?;
        Some((joined.clone(), entry))
    }

    /// Whether a change counts: it was made under an owner key that does.
    pub(crate) fn change_standing(
        &self,
        joined: &Arc<Joined>,
        entry: &LogEntry,
        version: ResourceVersion,
    ) -> Standing {
        if self.sole().is_some() || self.broken(Rule::ChangesOfOwnersOnly) {
            return Standing::Counts;
        }
        let Some(tenure) = &entry.tenure else {
            return Standing::Impostor;
        };
        if tenure.counted_at(self.config.placements.version()) && !tenure.is_impostor() {
            return Standing::Counts;
        }
        let Some(domain) = domain_of(&entry.key) else {
            return Standing::Impostor;
        };
        self.tenure_standing(joined, &domain, tenure, version)
    }

    /// Whether an owner key that was there at a revision counts there; `version`: what the revision is in the one order.
    pub(crate) async fn owned_at(
        &self,
        joined: &Arc<Joined>,
        domain: &Domain,
        generation: u64,
        (at, version): (Revision, ResourceVersion),
    ) -> Result<bool, Error> {
        let known = self.known(domain);
        if known == Known::Anywhere || known.owns(&joined.member.name, joined.slot(), generation) {
            return Ok(true);
        }
        let mut changes = joined.changes();
        let settled = async {
            loop {
                changes.mark_seen();
                let (reached, tenure) = {
                    let state = joined.state.lock();
                    (state.log.revision >= at, state.log.owners.tenure_at(domain, at))
                };
                // The key was read at that revision: until the log shows it, the log is not so far.
                match tenure.filter(|_| reached) {
                    Some(tenure) => match self.tenure_standing(joined, domain, &tenure, version) {
                        Standing::Counts => return Ok(true),
                        Standing::Impostor => return Ok(false),
                        Standing::Forgotten => return Err(Error::Expired { requested: version }),
                        Standing::Unsettled => self.something_settled().await,
                    },
                    None => {
                        let _ = tokio::time::timeout(SETTLE_POLL, changes.changed()).await;
                    }
                }
            }
        };
        tokio::time::timeout(SETTLE_WAIT, settled)
            .await
            .unwrap_or_else(|_| {
                let cause = format!("nobody says whether {} is placed on it", domain.placement_name());
                Err(joined.unavailable(cause))
            })
    }

    /// Whether what was written in this time counts, at `version`.
    pub(crate) fn tenure_standing(
        &self,
        joined: &Arc<Joined>,
        domain: &Domain,
        tenure: &Arc<Tenure>,
        version: ResourceVersion,
    ) -> Standing {
        // Read first: what is known may only be newer.
        let placements = self.config.placements.version();
        let known = self.known(domain);
        match &known {
            Known::Anywhere => return Standing::Counts,
            Known::Unread => return Standing::Unsettled,
            Known::Nowhere | Known::Placed(_) => {}
        }
        if tenure.is_impostor() {
            return Standing::Impostor;
        }
        let (name, slot) = (&joined.member.name, joined.slot());
        let (entry, generation, removed, verdict, is_older, claimed) = {
            let state = joined.state.lock();
            let tenures = state.log.owners.tenures(domain);
            let Some(at) = tenures.iter().position(|held| Arc::ptr_eq(&held.tenure, tenure)) else {
                // Compacted meanwhile.
                return match tenure.has_counted() {
                    true => Standing::Counts,
                    false => Standing::Forgotten,
                };
            };
            let held = &tenures[at];
            let generation = held.generation();
            let entry = held.entry.clone().filter(|_| held.removal.is_none());
            let verdict = entry
                .as_ref()
                .and_then(|entry| state.owners.verdict(domain, entry.revision));
            // Generations never restart: what was claimed before cannot be claimed again.
            let is_older = tenures[..at]
                .iter()
                .any(|before| before.tenure.has_counted() && before.generation() >= generation);
            // In a backup the key of a placement that is gone since may stand again. (Of those that went it is not asked.)
            let claimed = held.counts_from().map_or(Epoch(0), |from| from.epoch());
            (entry, generation, held.removed_at, verdict, is_older, claimed)
        };
        let is_restored = || entry.is_some() && joined.began_anew_since(claimed);
        if known.owns(name, slot, generation) {
            tenure.counts(placements);
            return Standing::Counts;
        }
        if self.displaced(joined, domain, &known, version) {
            if !tenure.has_counted() {
                self.found_out(joined, domain, tenure);
            }
            return Standing::Impostor;
        }
        let has_owned = || {
            !is_older && !is_restored() && self.config.placements.has_owned(domain, name, slot, generation)
        };
        if tenure.has_counted() || has_owned() {
            tenure.counts(placements);
            return Standing::Counts;
        }
        match (entry, verdict, removed) {
            (Some(_), Some(Verdict::Placed(_)), _) => {
                tenure.counts(placements);
                Standing::Counts
            }
            (Some(_), Some(Verdict::Impostor), _) => {
                self.found_out(joined, domain, tenure);
                Standing::Impostor
            }
            (Some(_), None, _) => {
                self.questions.ask(domain);
                Standing::Unsettled
            }
            // It is gone, and nobody has said that it could count.
            (None, _, Some(removed_at)) if removed_at.elapsed() < DOUBT => Standing::Unsettled,
            (None, _, Some(_)) => {
                self.found_out(joined, domain, tenure);
                Standing::Impostor
            }
            // It was over before this replica began to look, and its placement may be gone: nobody can tell.
            (None, _, None) => Standing::Forgotten,
        }
    }

    /// Whether somebody else held the domain at `version`, by right.
    fn displaced(
        &self,
        joined: &Arc<Joined>,
        domain: &Domain,
        known: &Known,
        version: ResourceVersion,
    ) -> bool {
        let view = self.view();
        let mut others = view
            .connections
            .iter()
            .filter(|other| !Arc::ptr_eq(other, joined));
        others.any(|other| {
            let named = |held: &Held| known.owns(&other.member.name, other.slot(), held.generation());
            let state = other.state.lock();
            let newest = state.log.ticks.newest();
            let certain = |held: &Held| {
                held.removal.is_some() || newest.is_some_and(|newest| newest.epoch > version.epoch())
            };
            let holds = |held: &Held| held.covers(version) && certain(held);
            let by_right =
                |held: &&Held| !held.tenure.is_impostor() && (held.tenure.has_counted() || named(held));
            let mut tenures = state.log.owners.tenures(domain).iter().filter(by_right);
            tenures.any(holds)
        })
    }

    fn found_out(&self, joined: &Arc<Joined>, domain: &Domain, tenure: &Tenure) {
        if tenure.is_found_out() {
            self.report_impostor(joined, domain);
        }
    }

    /// The record in an owner key. `None`: it cannot be read, and is of a domain that is not placed there, so it is as if
    /// there were none. (Of one that is, nobody knows what it would say.)
    pub(crate) fn owner_in(
        &self,
        joined: &Arc<Joined>,
        domain: &Domain,
        kv: &KeyValue,
    ) -> Result<Option<OwnerRecord>, Error> {
        let error = match joined.decode_owner(kv) {
            Ok(record) => return Ok(Some(record)),
            Err(error) => error,
        };
        let is_forged = match self.known(domain) {
            Known::Anywhere | Known::Unread => false,
            Known::Nowhere => true,
            Known::Placed(placed) => !placed.names(&joined.member.name, joined.slot()),
        };
        if !is_forged {
            return Err(error);
        }
        self.report_impostor(joined, domain);
        Ok(None)
    }

    /// Says it once.
    fn report_impostor(&self, joined: &Arc<Joined>, domain: &Domain) {
        let is_new = {
            let reported = &mut joined.state.lock().reported;
            reported.len() < REPORTED_MAX && reported.insert(domain.clone())
        };
        if is_new {
            tracing::warn!(
                cluster = %joined.member.name,
                namespace = domain.placement_name(),
                "a cluster holds an owner key of a namespace that is not placed on it; the key does not count"
            );
        }
    }

    /// Looks at owner keys that have just been seen.
    pub(crate) fn look_at(&self, joined: &Arc<Joined>, domains: impl IntoIterator<Item = Domain>) {
        for domain in domains {
            if let Some(entry) = joined.owner(&domain) {
                self.look_at_key(&self.known(&domain), joined, &domain, &entry);
            }
        }
    }

    /// Judges a key, and remembers for its time in the log that it counts: its placement may be gone when its changes are
    /// delivered.
    fn look_at_key(
        &self,
        known: &Known,
        joined: &Arc<Joined>,
        domain: &Domain,
        entry: &OwnerEntry,
    ) -> Standing {
        let standing = self.key_standing(known, joined, domain, entry);
        if standing == Standing::Counts && *known != Known::Anywhere {
            let state = joined.state.lock();
            let tenure = state.log.owners.tenure_of(domain, entry.revision);
            if let Some(tenure) = tenure.filter(|tenure| !tenure.has_counted()) {
                tenure.counts(0);
            }
        }
        standing
    }

    /// Asks for placements that what is known does not settle. Runs until the store is closed.
    pub(crate) async fn run_questions(self: Arc<Self>) {
        loop {
            let mut asked = self.questions.asked.listen();
            if self.questions.open.lock().is_empty() {
                tokio::select! {
                    biased;
                    () = self.closed() => return,
                    () = asked.changed() => {}
                }
            }
            tokio::select! {
                biased;
                () = self.closed() => return,
                () = tokio::time::sleep(BEFORE_ASKING) => {}
            }
            let open = std::mem::take(&mut *self.questions.open.lock());
            let answers = futures::stream::iter(open).map(|domain| {
                let fleet = self.clone();
                async move {
                    let answered = fleet.settle_keys(&domain).await;
                    fleet.questions.settled.raise();
                    if !answered {
                        fleet.questions.ask(&domain);
                    }
                    answered
                }
            });
            let answers: Vec<bool> = answers.buffer_unordered(QUESTIONS_AT_ONCE).collect().await;
            if answers.contains(&false) {
                tokio::select! {
                    biased;
                    () = self.closed() => return,
                    () = tokio::time::sleep(ASK_PAUSE) => {}
                }
            }
        }
    }

    /// Whether the keys of a domain are settled now.
    async fn settle_keys(&self, domain: &Domain) -> bool {
        let known = self.known(domain);
        if known == Known::Unread {
            return false;
        }
        let view = self.view();
        let mut keys = Vec::new();
        for joined in &view.connections {
            let Some(entry) = joined.owner(domain) else {
                continue;
            };
            let verdict = joined.state.lock().owners.verdict(domain, entry.revision);
            let standing = self.look_at_key(&known, joined, domain, &entry);
            if standing != Standing::Counts && verdict != Some(Verdict::Impostor) {
                keys.push((joined, entry));
            }
        }
        // What was asked just now is what is being answered.
        self.questions.open.lock().remove(domain);
        if keys.is_empty() {
            return true;
        }
        let answer = tokio::time::timeout(ANSWER_DEADLINE, self.config.placements.ask(domain)).await;
        let placed = match answer {
            Ok(Ok(placed)) => placed,
            Ok(Err(cause)) => {
                tracing::debug!(
                    domain = domain.placement_name(),
                    cause,
                    "nobody says where it is placed"
                );
                return false;
            }
            Err(_) => return false,
        };
        let mut settled = true;
        for (joined, entry) in keys {
            let key = (entry.revision, entry.record.generation);
            settled &= self.take_answer(joined, domain, key, placed.as_ref()).await;
        }
        settled
    }

    async fn take_answer(
        &self,
        joined: &Arc<Joined>,
        domain: &Domain,
        (revision, generation): (Revision, u64),
        placed: Option<&Placed>,
    ) -> bool {
        let named = placed.filter(|placed| placed.owns(&joined.member.name, joined.slot(), generation));
        let verdict = match named {
            Some(placed) => Verdict::Placed(placed.version),
            None => match self.read_owner(joined, domain).await {
                Ok(Some(now)) if now.revision == revision => Verdict::Impostor,
                // It went, or is another one now.
                Ok(_) => return true,
                Err(_) => return false,
            },
        };
        let tenure = joined.update(|state| {
            state.owners.judge(domain, revision, verdict);
            state.log.owners.tenure_of(domain, revision)
        });
        match (verdict, tenure) {
            (Verdict::Placed(_), Some(tenure)) => tenure.counts(0),
            (Verdict::Impostor, Some(tenure)) => self.found_out(joined, domain, &tenure),
            (_, None) => {}
        }
        if verdict == Verdict::Impostor {
            self.report_impostor(joined, domain);
        }
        true
    }
}

/// Nobody could be asked whether an owner key counts.
pub(crate) fn unsettled(domain: &Domain) -> Error {
    Error::OwnerUnknown {
        domain: domain.placement_name(),
        missing: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Slot;

    fn placed(version: u64) -> Known {
        Known::Placed(Placed {
            cluster: "y".into(),
            slot: Some(Slot(1)),
            version,
            generations: version..=version,
        })
    }

    #[test]
    fn a_key_counts_where_the_placement_says() {
        let check = |known: Known, generation, verdict, named_one_stands, expect| {
            let is_named = known.owns("x", Slot(0), generation);
            let standing = judge(Key {
                generation,
                verdict,
                named_one_stands,
                known: &known,
                is_named,
            });
            assert_eq!(
                standing, expect,
                "{generation} {verdict:?} {named_one_stands} {known:?}"
            );
        };
        let here = Known::Placed(Placed {
            cluster: "x".into(),
            slot: None,
            version: 7,
            generations: 4..=7,
        });
        check(Known::Anywhere, 1, None, false, Standing::Counts);
        check(Known::Unread, 1, None, false, Standing::Unsettled);
        check(here.clone(), 4, None, false, Standing::Counts);
        check(here.clone(), 7, Some(Verdict::Impostor), false, Standing::Counts);
        // Claimed for a later placement, or for none.
        check(here.clone(), 8, None, false, Standing::Unsettled);
        check(here, 3, None, false, Standing::Impostor);
        // The one that is named has its key: no generation is high enough.
        check(placed(7), u64::MAX, None, true, Standing::Impostor);
        // What is known may be older than the claim.
        check(placed(7), 8, None, false, Standing::Unsettled);
        check(placed(7), 7, None, false, Standing::Impostor);
        check(Known::Nowhere, 8, None, false, Standing::Unsettled);
        // It was asked for.
        check(placed(7), 8, Some(Verdict::Placed(8)), true, Standing::Counts);
        check(placed(9), 8, Some(Verdict::Placed(8)), true, Standing::Impostor);
        check(
            Known::Nowhere,
            8,
            Some(Verdict::Placed(8)),
            false,
            Standing::Counts,
        );
        check(
            Known::Nowhere,
            8,
            Some(Verdict::Impostor),
            false,
            Standing::Impostor,
        );
    }

    #[test]
    fn a_name_that_is_given_again_is_another_cluster() {
        assert!(placed(1).owns("y", Slot(1), 1));
        assert!(!placed(1).owns("y", Slot(1), 2));
        assert!(!placed(1).owns("y", Slot(2), 1));
        assert!(!placed(1).owns("x", Slot(1), 1));
    }
}
