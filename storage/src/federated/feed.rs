//! Following the log of one backend: one watch over its whole prefix, so that clock, owners and objects arrive in one
//! order. Connects, catches up, follows; starts over when the connection is lost.
//!
//! The first act on a connection is to see whose backend it is, the second a tick. It releases nothing to anybody: it
//! only moves the state forward and wakes those who wait.

use super::Seen;
use super::fleet::Fleet;
use super::joined::{CALL_DEADLINE, Joined, State};
use super::members;
use super::ring::LogEntry;
use crate::Error;
use crate::backend::{
    BackendError, BackendEvent, Compare, Op, OpResponse, Range, Revision, Txn, WatchRequest,
};
use crate::clock::{Clock, ClockHistory, decode_epoch};
use crate::event::FrameCache;
use crate::key::{self, Domain};
use crate::owners::{OwnerEntry, OwnerLog, OwnerRecord, Removal};
use crate::resource_version::{Epoch, Slot};
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Owner keys read in one page.
const OWNERS_PAGE: usize = 1000;
/// The pause before a lost connection is tried again; it doubles up to the second value.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How long catching up may take.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(60);
/// An acknowledged tick that the log does not show within this means that the member lags.
const TICK_SEEN_WITHIN: Duration = Duration::from_secs(2);
/// How often that is looked at.
const WATCHDOG_EVERY: Duration = Duration::from_millis(500);

/// The value of `identity`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    slot: u16,
    uid: String,
    fleet: String,
    #[serde(default, skip_serializing_if = "crate::membership::is_zero")]
    incarnation: u64,
}

/// Where the log is followed from.
struct CaughtUp {
    /// The generation of the membership that it was told.
    told: u64,
    revision: Revision,
    /// `None`: the log goes on where it was; `Some`: it starts anew with this history.
    anew: Option<Anew>,
    owners: BTreeMap<Domain, OwnerEntry>,
}

/// What is known of a log that starts anew.
struct Anew {
    ticks: ClockHistory,
    compacted: Revision,
    owners: OwnerLog,
}

impl Fleet {
    /// Follows the log of one backend until the store is closed.
    pub(crate) async fn follow_log(self: Arc<Self>, joined: Arc<Joined>) {
        let mut pause = RETRY_MIN;
        loop {
            let connected_at = Instant::now();
            let error = tokio::select! {
                biased;
                () = self.closed() => return,
                () = joined.closed() => return,
                error = self.connect_and_follow(&joined) => error,
            };
            joined.was_ticked(Instant::now(), false);
            let was_connected = joined.update(|state| {
                state.problem = Some(match &error {
                    Error::Unavailable { cause, .. } => cause.clone(),
                    other => other.to_string(),
                });
                std::mem::replace(&mut state.connected, false)
            });
            joined.metrics().set_up(false);
            if was_connected {
                tracing::warn!(cluster = %joined.member.name, %error, "the log of a cluster was lost; trying again");
            }
            pause = if connected_at.elapsed() > RETRY_MAX {
                RETRY_MIN
            } else {
                (pause * 2).min(RETRY_MAX)
            };
            tokio::select! {
                biased;
                () = self.closed() => return,
                () = joined.closed() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Ends with the reason why the log cannot be followed any longer.
    async fn connect_and_follow(&self, joined: &Arc<Joined>) -> Error {
        let follow = async {
            let caught_up = tokio::time::timeout(CATCH_UP_DEADLINE, self.catch_up(joined))
                .await
                .map_err(|_| joined.unavailable("catching up took too long"))??;
            let request = WatchRequest {
                start: Bytes::new(),
                end: Some(Bytes::from_static(&[0])),
                start_revision: caught_up.revision + 1,
                prev_kv: true,
                until: None,
            };
            let mut watch = joined
                .member
                .backend
                .watch(request)
                .await
                .map_err(|e| joined.error(e))?;
            if self.handed_generation() > caught_up.told {
                return Err(joined.unavailable("a newer membership was decided meanwhile"));
            }
            self.take_over(joined, caught_up);
            tracing::info!(cluster = %joined.member.name, slot = joined.slot().0, "following the log of a cluster");
            let mut watchdog = tokio::time::interval(WATCHDOG_EVERY);
            watchdog.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    biased;
                    batch = watch.next() => match batch {
                        Some(Ok(batch)) => self.take_batch(joined, batch)?,
                        Some(Err(error)) => return Err(joined.error(error)),
                        None => return Err(joined.unavailable("its watch ended")),
                    },
                    _ = watchdog.tick() => self.check_tick_seen(joined)?,
                }
            }
        };
        let ended: Result<std::convert::Infallible, Error> = follow.await;
        match ended {
            Err(error) => error,
            Ok(never) => match never {},
        }
    }

    fn check_tick_seen(&self, joined: &Arc<Joined>) -> Result<(), Error> {
        let unseen = joined.state.lock().unseen_tick;
        if unseen.is_some_and(|(answered, _)| answered.elapsed() > TICK_SEEN_WITHIN) {
            joined.state.lock().unseen_tick = None;
            joined.member.backend.suspect_member();
            return Err(joined.unavailable("its watch does not show an acknowledged tick"));
        }
        Ok(())
    }

    /// Whether the backend answers, is ours, and as far as it was.
    pub(crate) async fn check(&self, joined: &Arc<Joined>) -> Result<(), Error> {
        if let Some(seen) = joined.must_be_at() {
            self.check_not_restored(joined, seen).await?;
        }
        self.check_identity(joined).await
    }

    /// Refuses a backend that is older than it was. Before anything is written to it.
    async fn check_not_restored(&self, joined: &Arc<Joined>, seen: Seen) -> Result<(), Error> {
        let read = [Range::key(key::IDENTITY), Range::key(key::CLOCK)];
        // Not `Joined::call`, which does not let such answers pass.
        let answer = tokio::time::timeout(CALL_DEADLINE, joined.member.backend.txn(Txn::read(read))).await;
        let answer = answer
            .map_err(|_| joined.unavailable("no answer in time"))?
            .map_err(|e| joined.error(e))?;
        let revision = answer.revision;
        let mut values = answer.responses.into_iter().map(OpResponse::into_range);
        let mut value = || values.next().and_then(|range| range.kvs.into_iter().next());
        let (identity, clock) = (value(), value());
        let epoch = clock.and_then(|kv| decode_epoch(&kv.value));
        let found = match (identity, epoch) {
            (None, _) | (_, None) => "it holds nothing of ours".to_owned(),
            (Some(_), Some(epoch)) if epoch < seen.epoch || revision < seen.revision => {
                format!("it is at epoch {}, revision {revision}", epoch.0)
            }
            (Some(_), Some(_)) => {
                joined.state.lock().restored = false;
                return Ok(());
            }
        };
        joined.state.lock().restored = true;
        Err(Error::Restored {
            cluster: joined.member.name.clone(),
            found,
            seen: format!("epoch {}, revision {}", seen.epoch.0, seen.revision),
        })
    }

    /// Everything before the watch: identity, tick, members, owners, clock history.
    async fn catch_up(&self, joined: &Arc<Joined>) -> Result<CaughtUp, Error> {
        let status = joined
            .member
            .backend
            .status()
            .await
            .map_err(|e| joined.error(e))?;
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
                joined.state.lock().restored = true;
                let cause = "it was restored and accepted as it is, which this replica has not heard of yet";
                return Err(joined.unavailable(cause));
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
        let range = answer
            .responses
            .into_iter()
            .next()
            .map(|r| r.into_range())
            .unwrap_or_default();
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
                let range = answer
                    .responses
                    .into_iter()
                    .next()
                    .map(|r| r.into_range())
                    .unwrap_or_default();
                let last = range.kvs.last().map(|kv| kv.key.clone());
                for kv in range.kvs {
                    let Some(domain) = Domain::from_owner_key(&kv.key) else {
                        continue;
                    };
                    let record = joined.decode_owner(&kv)?;
                    owners.insert(
                        domain,
                        OwnerEntry {
                            record,
                            revision: kv.mod_revision,
                        },
                    );
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
                if event.deleted {
                    let generation = generation_before(&event);
                    let removal = Removal {
                        generation,
                        version,
                        revision,
                    };
                    log.remove(domain, removal, None);
                } else {
                    let record = joined.decode_owner(&event.kv)?;
                    log.put(domain, OwnerEntry { record, revision }, version);
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

    fn take_over(&self, joined: &Arc<Joined>, caught_up: CaughtUp) {
        joined.update(|state| {
            if let Some(anew) = caught_up.anew {
                state.log.ticks = anew.ticks;
                state.log.compacted = anew.compacted;
                let before = std::mem::replace(&mut state.log.owners, anew.owners);
                state.log.owners.inherit(&before);
                state.log.revision = caught_up.revision;
                state.log.ring.reset(caught_up.revision);
                state.log.newest_change = None;
                state.owners.replace_all(caught_up.owners);
            } else {
                for (domain, entry) in caught_up.owners {
                    state.owners.observe(domain, entry.revision, Some(entry.record));
                }
            }
            state.log.started = true;
            state.connected = true;
            state.problem = None;
            state.unseen_tick = None;
        });
        joined.metrics().set_up(true);
        let domains: Vec<Domain> = joined.state.lock().owners.domains().cloned().collect();
        self.look_at(joined, domains);
        self.advance_closed();
        self.request_round_for_watches();
    }

    fn take_batch(&self, joined: &Arc<Joined>, batch: crate::backend::WatchBatch) -> Result<(), Error> {
        let mut newest_epoch = None;
        // Before the log is seen to move: later epochs are released by the members that this log names.
        for event in batch.events.iter().filter(|event| !event.deleted) {
            if event.kv.key == key::CLOCK
                && let Some(epoch) = decode_epoch(&event.kv.value)
            {
                self.saw_epoch(epoch);
            }
            if event.kv.key == key::MEMBERS {
                members::observe(self, joined, &event.kv.value);
            }
        }
        let taken = joined.update(|state| {
            let mut changed_objects = false;
            let mut changed_owners = Vec::new();
            for event in batch.events {
                if event.kv.mod_revision <= state.log.revision {
                    continue;
                }
                match take_event(state, joined.slot(), event)? {
                    Taken::Tick(epoch) => newest_epoch = Some(epoch),
                    Taken::Object => changed_objects = true,
                    Taken::Owner(domain) => changed_owners.push(domain),
                    Taken::Nothing => {}
                }
            }
            state.log.revision = state.log.revision.max(batch.revision);
            state.revision = state.revision.max(batch.revision);
            if state
                .unseen_tick
                .is_some_and(|(_, base)| base <= state.log.revision)
            {
                state.unseen_tick = None;
            }
            state.owners.settle(state.log.revision);
            let lag = state
                .unseen_tick
                .map_or(Duration::ZERO, |(answered, _)| answered.elapsed());
            let ring = (state.log.ring.bytes(), state.log.ring.len());
            Ok::<_, String>((changed_objects, changed_owners, ring, lag))
        });
        let (changed_objects, changed_owners, (ring_bytes, ring_events), lag) =
            taken.map_err(|cause| joined.unavailable(cause))?;
        self.look_at(joined, changed_owners);
        joined.metrics().set_ring(ring_bytes, ring_events);
        joined.metrics().set_watch_lag(lag);
        if let Some(epoch) = newest_epoch {
            self.saw_epoch(epoch);
            self.advance_closed();
        }
        if changed_objects {
            self.request_round_for_watches();
        }
        Ok(())
    }
}

/// What an event was.
enum Taken {
    Tick(Epoch),
    Object,
    Owner(Domain),
    Nothing,
}

fn take_event(state: &mut State, slot: Slot, event: BackendEvent) -> Result<Taken, String> {
    let revision = event.kv.mod_revision;
    if event.kv.key.starts_with(key::OBJECTS) {
        let clock = state
            .log
            .ticks
            .newest()
            .ok_or("an object was written before the first tick")?;
        state.log.newest_change = Some(clock.epoch);
        let key = event.kv.key.clone();
        let now = (!event.deleted).then_some(event.kv);
        let tenure = key::domain_of(&key).and_then(|domain| state.log.owners.tenure_at(&domain, revision));
        state.log.ring.push(LogEntry {
            revision,
            clock,
            tenure,
            key,
            now,
            before: event.prev,
            frames: FrameCache::default(),
        });
        return Ok(Taken::Object);
    }
    if event.kv.key == key::CLOCK && !event.deleted {
        let epoch = decode_epoch(&event.kv.value).ok_or("its clock cannot be read")?;
        let clock = Clock {
            epoch,
            base: revision,
        };
        state.log.ticks.push(clock);
        if state.clock.is_none_or(|known| known.base < clock.base) {
            state.clock = Some(clock);
            state.last_tick = Some(Instant::now());
        }
        return Ok(Taken::Tick(epoch));
    }
    if let Some(domain) = Domain::from_owner_key(&event.kv.key) {
        let record = match event.deleted {
            true => None,
            false => Some(OwnerRecord::decode(&event.kv.value)?),
        };
        let clock = state
            .log
            .ticks
            .newest()
            .ok_or("an owner key changed before the first tick")?;
        let version = clock
            .resource_version(revision, slot)
            .ok_or("a revision is out of reach of the clock")?;
        match &record {
            Some(record) => {
                let entry = OwnerEntry {
                    record: record.clone(),
                    revision,
                };
                state.log.owners.put(domain.clone(), entry, version);
            }
            None => {
                let removal = Removal {
                    generation: generation_before(&event),
                    version,
                    revision,
                };
                let now = Some(Instant::now());
                state.log.owners.remove(domain.clone(), removal, now);
            }
        }
        state.owners.observe(domain.clone(), revision, record);
        return Ok(Taken::Owner(domain));
    }
    Ok(Taken::Nothing)
}

/// The generation of the owner that a removal took away; 0, the oldest, if that is compacted.
fn generation_before(event: &BackendEvent) -> u64 {
    let before = event
        .prev
        .as_ref()
        .and_then(|prev| OwnerRecord::decode(&prev.value).ok());
    before.map_or(0, |record| record.generation)
}

/// The smallest key above `key`.
pub(crate) fn next_key(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}
