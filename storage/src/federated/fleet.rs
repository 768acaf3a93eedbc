//! The fleet: all joined backends, and what belongs to all of them: the highest epoch, routing, the closed epoch.
//!
//! Everything that verbs share. It starts no tasks and does no I/O of its own.

use super::cut::Rounds;
use super::joined::Joined;
use super::{Member, Routing, StoreConfig};
use crate::clock::{EPOCH_JUMP_MAX, EPOCH_MILLIS, epoch_at};
use crate::key::Domain;
use crate::object::WriteId;
use crate::owners::{OwnerEntry, Removal};
use crate::resource_version::{Epoch, Slot};
use crate::signal::{Listener, Signal};
use crate::{Error, ResourceVersion};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How long a replica waits at most rather than choose an epoch ahead of now.
const EPOCH_WAIT_MAX: Duration = Duration::from_secs(1);

/// All backends and what they share.
pub(crate) struct Fleet {
    pub(crate) config: StoreConfig,
    /// In the order of their slots.
    pub(crate) backends: Vec<Arc<Joined>>,
    pub(crate) rounds: Rounds,
    /// The byte budget of lists, in KiB.
    pub(crate) list_budget: Arc<Semaphore>,
    /// The highest epoch that any backend showed.
    highest: AtomicU64,
    /// The lowest clock seen in the logs of all backends: all below it has been seen. `None` until all logs were read once.
    closed: Mutex<Option<Epoch>>,
    closed_moved: Signal,
    /// Running watches over several backends: while there are some, changes ask for a round.
    pub(crate) wide_watches: AtomicUsize,
    random: Mutex<StdRng>,
    /// This replica's name in `members`.
    pub(crate) replica: String,
    /// Set when the store is closed: tasks end.
    closing: AtomicBool,
    close: Signal,
}

/// A backend that a domain lives on, or lived on until then.
pub(crate) struct Home {
    pub(crate) joined: Arc<Joined>,
    pub(crate) until: Option<Removal>,
}

impl Fleet {
    pub(crate) fn new(config: StoreConfig, mut members: Vec<Member>) -> Self {
        members.sort_by_key(|member| member.slot);
        let mut random = StdRng::seed_from_u64(config.seed);
        let replica = format!("{:016x}", random.random::<u64>());
        let ring_bytes = config.ring_bytes_max / members.len().max(1);
        let joined = |member: Member| {
            let metrics = config.metrics.backend(&member.name);
            Arc::new(Joined::new(member, ring_bytes, metrics))
        };
        Self {
            backends: members.into_iter().map(joined).collect(),
            rounds: Rounds::default(),
            list_budget: Arc::new(Semaphore::new(config.list_bytes_max / 1024)),
            highest: AtomicU64::new(0),
            closed: Mutex::new(None),
            closed_moved: Signal::default(),
            wide_watches: AtomicUsize::new(0),
            random: Mutex::new(random),
            replica,
            closing: AtomicBool::new(false),
            close: Signal::default(),
            config,
        }
    }

    pub(crate) fn by_slot(&self, slot: Slot) -> Option<&Arc<Joined>> {
        self.backends.iter().find(|joined| joined.slot() == slot)
    }

    pub(crate) fn write_id(&self) -> WriteId {
        WriteId(self.random.lock().random())
    }

    /// A part of `max`, so that replicas do not act in step.
    pub(crate) fn jitter(&self, max: Duration) -> Duration {
        max.mul_f64(self.random.lock().random::<f64>())
    }

    pub(crate) fn saw_epoch(&self, epoch: Epoch) {
        self.highest.fetch_max(epoch.0, Ordering::SeqCst);
    }

    pub(crate) fn highest_epoch(&self) -> Epoch {
        Epoch(self.highest.load(Ordering::SeqCst))
    }

    pub(crate) fn now_epoch(&self) -> Epoch {
        epoch_at((self.config.wall_clock)())
    }

    /// The epoch for the next tick: above everything seen, and not ahead of the wall clock if a short wait helps.
    pub(crate) async fn next_epoch(&self, above: Epoch) -> Result<Epoch, Error> {
        let highest = self.highest_epoch().max(above);
        let now = self.now_epoch();
        let next = Epoch(highest.0 + 1).max(now);
        if highest.0 > 0 && next.0 > highest.0.saturating_add(EPOCH_JUMP_MAX) {
            return Err(Error::Internal(format!(
                "the wall clock is more than a year ahead of the fleet's clock (epoch {} to {}); check the time of this machine",
                highest.0, next.0
            )));
        }
        let ahead = Duration::from_millis(next.0.saturating_sub(now.0).saturating_mul(EPOCH_MILLIS));
        if !ahead.is_zero() {
            tokio::time::sleep(ahead.min(EPOCH_WAIT_MAX)).await;
        }
        Ok(Epoch(self.highest_epoch().max(above).0 + 1).max(next))
    }

    /// Who owns `domain`, by the routing table: the owner key of the highest generation.
    pub(crate) fn route(&self, domain: &Domain) -> Option<(&Arc<Joined>, OwnerEntry)> {
        let owners = self
            .backends
            .iter()
            .filter_map(|joined| Some((joined, joined.owner(domain)?)));
        owners.max_by_key(|(_, entry)| entry.record.generation)
    }

    /// Who has claimed `domain` without being its owner yet.
    pub(crate) fn claimed(&self, domain: &Domain) -> Option<(&Arc<Joined>, OwnerEntry)> {
        let claim = |joined| Some((joined, Joined::claim(joined, domain)?));
        self.backends
            .iter()
            .filter_map(claim)
            .max_by_key(|(_, entry)| entry.record.generation)
    }

    /// Where the changes of `domain` above `version` begin, by what the logs have shown.
    pub(crate) fn home_after(&self, domain: &Domain, version: ResourceVersion) -> Option<Home> {
        let homes = self.backends.iter().filter_map(|joined| {
            let state = joined.state.lock();
            let removal = state.log.owners.removal_after(domain, version);
            let owner = state
                .log
                .owners
                .owner(domain)
                .map(|entry| entry.record.generation);
            let generation = removal.map(|removal| removal.generation).or(owner)?;
            Some((generation, removal, joined))
        });
        // The oldest home first, and an older one whose removal its log does not show yet before a newer one (seed 915).
        let (_, until, joined) = homes.min_by_key(|(generation, _, _)| *generation)?;
        Some(Home {
            joined: joined.clone(),
            until,
        })
    }

    /// The only backend of a store without owners.
    pub(crate) fn sole(&self) -> Option<&Arc<Joined>> {
        (self.config.routing == Routing::Sole).then(|| &self.backends[0])
    }

    /// The lowest clock seen in all logs.
    pub(crate) fn closed_epoch(&self) -> Option<Epoch> {
        *self.closed.lock()
    }

    pub(crate) fn closed_changes(&self) -> Listener {
        self.closed_moved.listen()
    }

    /// Recomputes the closed epoch after a log moved.
    pub(crate) fn advance_closed(&self) {
        let seen = |joined: &Arc<Joined>| joined.state.lock().log.ticks.newest().map(|tick| tick.epoch);
        let lowest = self
            .backends
            .iter()
            .map(seen)
            .try_fold(None, |lowest: Option<Epoch>, seen| {
                let seen = seen?;
                Some(Some(lowest.map_or(seen, |lowest| lowest.min(seen))))
            });
        let lowest = lowest.flatten();
        let mut closed = self.closed.lock();
        // It never falls: a log that starts anew starts at or above what it had shown.
        if lowest > *closed {
            *closed = lowest;
            drop(closed);
            self.closed_moved.raise();
        }
    }

    /// Ends the tasks.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.close.raise();
    }

    /// Returns when the store is closed.
    pub(crate) async fn closed(&self) {
        let mut close = self.close.listen();
        while !self.closing.load(Ordering::SeqCst) {
            close.changed().await;
        }
    }

    /// Whether any log holds a change that watches over several backends may not show yet.
    pub(crate) fn holds_unreleased(&self) -> bool {
        let closed = self.closed_epoch();
        self.backends.iter().any(|joined| {
            let newest = joined.state.lock().log.newest_change;
            newest.is_some_and(|newest| closed.is_none_or(|closed| newest >= closed))
        })
    }

    /// Asks for a round if somebody waits for changes that only a round can release.
    pub(crate) fn request_round_for_watches(&self) {
        if self.wide_watches.load(Ordering::SeqCst) > 0 && self.holds_unreleased() {
            self.rounds.request();
        }
    }
}
