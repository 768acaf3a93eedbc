//! Everything before the log of a backend is followed: whose it is, whether it is what it was, a tick, the members, the
//! owners, and the history of its clock. It writes what a new backend lacks, and moves no state of the log itself.

use super::{generation_before, next_key};
use crate::Error;
use crate::backend::{BackendError, Compare, Op, Range, Revision, Txn};
use crate::clock::{Clock, ClockHistory, decode_epoch};
use crate::federated::fleet::Fleet;
use crate::federated::joined::Joined;
use crate::federated::joined::same_store::Identity;
use crate::federated::members;
use crate::key::{self, Domain};
use crate::owners::{OwnerEntry, OwnerLog, OwnerRecord, Removal};
use crate::resource_version::Epoch;
use bytes::Bytes;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Owner keys read in one page.
const OWNERS_PAGE: usize = 1000;

/// Where the log is followed from.
pub(super) struct CaughtUp {
    /// The generation of the membership that it was told.
    pub(super) told: u64,
    pub(super) revision: Revision,
    /// `None`: the log goes on where it was; `Some`: it starts anew with this history.
    pub(super) anew: Option<Anew>,
    pub(super) owners: BTreeMap<Domain, OwnerEntry>,
}

/// What is known of a log that starts anew.
pub(super) struct Anew {
    pub(super) ticks: ClockHistory,
    pub(super) compacted: Revision,
    pub(super) owners: OwnerLog,
}

impl Fleet {
    /// Whether the backend answers, is ours, and as far as it was.
    pub(crate) async fn check(&self, joined: &Arc<Joined>) -> Result<(), Error> {
        joined.check_not_restored().await?;
        self.check_identity(joined).await
    }

    /// Everything before the watch: identity, tick, members, owners, clock history.
    pub(super) async fn catch_up(&self, joined: &Arc<Joined>) -> Result<CaughtUp, Error> {
        let status = match joined.member.backend.status().await {
            Ok(status) => status,
            Err(error) => {
                return Err(match (error, joined.must_be_at()) {
                    (BackendError::OtherStore(found), Some(seen)) => joined.is_restored(found, seen),
                    (error, _) => joined.error(error),
                });
            }
        };
        joined.state.lock().status = status;
        self.check(joined).await?;
        self.read_clock(joined).await?;
        let epoch = self.next_epoch(Epoch(0)).await?;
        self.tick(joined, epoch).await?;
        let told = self.bring_up_to_date(joined).await?;
        members::publish(self, joined).await?;
        let (owners, revision) = self.read_owners(joined).await?;

        let known = {
            let state = joined.state.lock();
            state.log.started.then_some(state.log.revision)
        };
        if let Some(known) = known {
            // Go on where the log ended, unless that is compacted.
            match joined
                .history_of(Bytes::from_static(key::CLOCK), known + 1, known + 1)
                .await
            {
                Ok(_) => {
                    return Ok(CaughtUp {
                        told,
                        revision: known,
                        anew: None,
                        owners,
                    });
                }
                Err(BackendError::Compacted { .. }) => {}
                Err(error) => return Err(joined.error(error)),
            }
        }
        let (ticks, compacted) = self.read_ticks(joined, revision).await?;
        let owner_log = self
            .read_owner_log(joined, &ticks, compacted, revision, &owners)
            .await?;
        Ok(CaughtUp {
            told,
            revision,
            anew: Some(Anew {
                ticks,
                compacted,
                owners: owner_log,
            }),
            owners,
        })
    }

    /// Writes the identity of a new backend; refuses one that is another's.
    async fn check_identity(&self, joined: &Arc<Joined>) -> Result<(), Error> {
        let ours = Identity {
            slot: joined.slot().0,
            uid: joined.member.uid.clone(),
            fleet: self.config.fleet.clone(),
            incarnation: joined.member.incarnation,
        };
        let value = serde_json::to_vec(&ours).map_err(|e| Error::Internal(e.to_string()))?;
        let txn = Txn {
            compare: vec![Compare::absent(key::IDENTITY)],
            success: vec![Op::Put {
                key: key::IDENTITY.into(),
                value: Bytes::from(value.clone()),
            }],
            failure: vec![Op::Get(Range::key(key::IDENTITY))],
        };
        let answer = joined.call(txn).await.map_err(|e| joined.error(e))?;
        if answer.succeeded {
            return Ok(());
        }
        let found = answer
            .responses
            .into_iter()
            .next()
            .and_then(|r| r.into_range().kvs.into_iter().next());
        let found = found.ok_or_else(|| joined.unavailable("its identity cannot be read"))?;
        let theirs: Identity = serde_json::from_slice(&found.value)
            .map_err(|_| joined.unavailable("its identity cannot be read"))?;
        let is_ours = (theirs.slot, &theirs.uid, &theirs.fleet) == (ours.slot, &ours.uid, &ours.fleet);
        match theirs.incarnation.cmp(&ours.incarnation) {
            _ if !is_ours => {}
            Ordering::Equal => return Ok(()),
            // It was restored, and is accepted as it is: from now on others do not take it for what it was.
            Ordering::Less => {
                let txn = Txn {
                    compare: vec![Compare::mod_revision(key::IDENTITY, found.mod_revision)],
                    success: vec![Op::Put {
                        key: key::IDENTITY.into(),
                        value: value.into(),
                    }],
                    failure: vec![],
                };
                let written = joined.call(txn).await.map_err(|e| joined.error(e))?;
                return match written.succeeded {
                    true => Ok(()),
                    false => Err(joined.unavailable("its identity was written meanwhile")),
                };
            }
            Ordering::Greater => {
                return Err(joined.is_superseded());
            }
        }
        Err(Error::Foreign {
            cluster: joined.member.name.clone(),
            found: format!(
                "slot {} (uid {}) of fleet {}",
                theirs.slot, theirs.uid, theirs.fleet
            ),
            expected: format!("slot {} (uid {}) of fleet {}", ours.slot, ours.uid, ours.fleet),
        })
    }

    /// The clock before the first tick of a connection, so that this tick is above it.
    async fn read_clock(&self, joined: &Arc<Joined>) -> Result<(), Error> {
        let answer = joined
            .call(Txn::read([Range::key(key::CLOCK)]))
            .await
            .map_err(|e| joined.error(e))?;
        let range = answer.into_range();
        if let Some(clock) = joined.observe_clock(&range) {
            self.saw_epoch(clock.epoch);
        }
        Ok(())
    }

    /// All owner keys at one revision.
    async fn read_owners(
        &self,
        joined: &Arc<Joined>,
    ) -> Result<(BTreeMap<Domain, OwnerEntry>, Revision), Error> {
        let mut owners = BTreeMap::new();
        let mut revision = 0;
        for prefix in [key::OWNER, key::OWNER_KIND] {
            let end = key::prefix_end(prefix);
            let mut start = Bytes::from_static(prefix);
            loop {
                let range = Range::between(start, end.clone()).limit(OWNERS_PAGE).at(revision);
                let answer = joined
                    .call(Txn::read([range]))
                    .await
                    .map_err(|e| joined.error(e))?;
                if revision == 0 {
                    revision = answer.revision;
                }
                let range = answer.into_range();
                let last = range.kvs.last().map(|kv| kv.key.clone());
                for kv in range.kvs {
                    let Some(domain) = Domain::from_owner_key(&kv.key) else {
                        continue;
                    };
                    let Some(record) = self.owner_in(joined, &domain, &kv)? else {
                        continue;
                    };
                    let revision = kv.mod_revision;
                    owners.insert(domain, OwnerEntry { record, revision });
                }
                match last {
                    Some(last) if range.more => start = next_key(&last),
                    _ => break,
                }
            }
        }
        Ok((owners, revision))
    }

    /// The retained ticks up to `until`, and the compact revision.
    async fn read_ticks(
        &self,
        joined: &Arc<Joined>,
        until: Revision,
    ) -> Result<(ClockHistory, Revision), Error> {
        let clock_key = Bytes::from_static(key::CLOCK);
        let tick = |kv: &crate::backend::KeyValue| {
            Some(Clock {
                epoch: decode_epoch(&kv.value)?,
                base: kv.mod_revision,
            })
        };
        let mut compacted = 0;
        // Compaction may run while we read: start over above it, a few times.
        for _ in 0..5 {
            let changes = match joined.history_of(clock_key.clone(), compacted + 1, until).await {
                Ok(changes) => changes,
                Err(BackendError::Compacted { compact_revision }) if compact_revision > compacted => {
                    compacted = compact_revision;
                    continue;
                }
                Err(error) => return Err(joined.error(error)),
            };
            if compacted == 0 {
                return Ok((ClockHistory::new(changes.iter().filter_map(tick), true), 0));
            }
            // The clock in force at the compact revision is still readable there.
            let at = Range::key(clock_key.clone()).at(compacted);
            let first = match joined.call(Txn::read([at])).await {
                Ok(answer) => answer
                    .responses
                    .into_iter()
                    .next()
                    .and_then(|r| r.into_range().kvs.into_iter().next()),
                Err(BackendError::Compacted { compact_revision }) => {
                    compacted = compact_revision.max(compacted + 1);
                    continue;
                }
                Err(error) => return Err(joined.error(error)),
            };
            let ticks = first.iter().chain(&changes).filter_map(tick);
            // A backend that had no clock then is younger than what its etcd forgot: nothing of ours is.
            return Ok((ClockHistory::new(ticks, first.is_none()), compacted));
        }
        Err(joined.unavailable("its history is compacted faster than it can be read"))
    }

    /// The owner keys with their retained history: a watch may have to follow a domain through it.
    async fn read_owner_log(
        &self,
        joined: &Arc<Joined>,
        ticks: &ClockHistory,
        compacted: Revision,
        until: Revision,
        owners: &BTreeMap<Domain, OwnerEntry>,
    ) -> Result<OwnerLog, Error> {
        let mut log = OwnerLog::default();
        for prefix in [key::OWNER, key::OWNER_KIND] {
            let start = Bytes::from_static(prefix);
            let changes = joined
                .history_of_range(start, Some(key::prefix_end(prefix)), compacted + 1, until)
                .await;
            for event in changes.map_err(|e| joined.error(e))? {
                let revision = event.kv.mod_revision;
                let Some(domain) = Domain::from_owner_key(&event.kv.key) else {
                    continue;
                };
                let Some(clock) = ticks.in_force_at(revision) else {
                    continue;
                };
                let version = joined.resource_version(clock, revision)?;
                let before = event.prev.as_ref().and_then(|prev| {
                    let record = OwnerRecord::decode(&prev.value).ok()?;
                    let revision = prev.mod_revision;
                    Some(OwnerEntry { record, revision })
                });
                if let Some(before) = before.filter(|_| !log.is_held(&domain)) {
                    log.was_there(domain.clone(), before);
                }
                let record = match event.deleted {
                    true => None,
                    false => self.owner_in(joined, &domain, &event.kv)?,
                };
                match record {
                    Some(record) => log.put(domain, OwnerEntry { record, revision }, version),
                    None => {
                        let generation = generation_before(&event);
                        let removal = Removal {
                            generation,
                            version,
                            revision,
                        };
                        log.remove(domain, removal, None);
                    }
                }
            }
        }
        for (domain, entry) in owners
            .iter()
            .filter(|(domain, _)| !log.is_held(domain))
            .collect::<Vec<_>>()
        {
            log.was_there(domain.clone(), entry.clone());
        }
        Ok(log)
    }
}
