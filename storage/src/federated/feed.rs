//! Following the log of one backend: one watch over its whole prefix, so that clock, owners and objects arrive in one
//! order. Connects, catches up, follows; starts over when the connection is lost.
//!
//! The first act on a connection is to see whose backend it is, the second a tick. It releases nothing to anybody: it
//! only moves the state forward and wakes those who wait.

mod catch_up;

use super::fleet::Fleet;
use super::joined::{Joined, State};
use super::members;
use super::ring::LogEntry;
use crate::Error;
use crate::backend::{BackendEvent, WatchRequest};
use crate::clock::{Clock, decode_epoch};
use crate::event::FrameCache;
use crate::key::{self, Domain};
use crate::owners::{OwnerEntry, OwnerRecord, Removal};
use crate::resource_version::{Epoch, Slot};
use bytes::Bytes;
use catch_up::CaughtUp;
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The pause before a lost connection is tried again; it doubles up to the second value.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How long catching up may take.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(60);
/// An acknowledged tick that the log does not show within this means that the member lags.
const TICK_SEEN_WITHIN: Duration = Duration::from_secs(2);
/// How often that is looked at.
const WATCHDOG_EVERY: Duration = Duration::from_millis(500);

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
                state.checked = false;
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
            state.failing_since = None;
            state.problem = None;
            state.unseen_tick = None;
        });
        joined.metrics().set_up(true);
        let domains: Vec<Domain> = joined.state.lock().owners.domains().cloned().collect();
        self.look_at(joined, domains);
        self.advance_closed();
        self.request_round_for_watches();
    }

    fn take_batch(&self, joined: &Arc<Joined>, mut batch: crate::backend::WatchBatch) -> Result<(), Error> {
        let mut newest_epoch = None;
        for event in batch.events.iter_mut().filter(|event| !event.deleted) {
            if let Some(domain) = Domain::from_owner_key(&event.kv.key) {
                event.deleted = self.owner_in(joined, &domain, &event.kv)?.is_none();
            }
        }
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
