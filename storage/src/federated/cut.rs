//! Rounds of ticks: one snapshot over all backends, shared by everybody who asks before it is sent.
//!
//! ```text
//! round e     A: tick e ──▶ base 41        cut(A) = 41    snapshot = all below (e, 0, 0):
//!             B: tick e ──▶ base 17        cut(B) = 17    A at revision 40, B at 16, C at 98
//!             C: tick e ──▶ base 99        cut(C) = 99
//! ```
//!
//! If a backend answers with a clock at or above e, that tick may be older than the round: the round goes on with an
//! epoch above all answers. Rounds of one replica follow one another, paced so that writers get through.

use super::Rule;
use super::fleet::Fleet;
use super::joined::{Joined, Ticked};
use super::view::View;
use crate::backend::Revision;
use crate::clock::{EPOCH_MILLIS, Forgotten};
use crate::resource_version::{Epoch, Slot};
use crate::signal::Signal;
use crate::{Error, ResourceVersion};
use futures::future::join_all;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A backend is not ticked more often than this, nor than four of its round trips.
const TICK_SPACING_MIN: Duration = Duration::from_millis(25);
/// Ticks a second that the whole fleet spends at most.
const FLEET_TICKS_PER_SECOND_MAX: u32 = 500;
/// An idle fleet does a round this often.
const IDLE_ROUND_EVERY: Duration = Duration::from_secs(30);
/// How long a round may take for whoever waits for it.
const ROUND_DEADLINE: Duration = Duration::from_secs(15);
/// How long a cut may take to appear in the log.
const CUT_DEADLINE: Duration = Duration::from_secs(5);
/// How often a round starts over because other replicas tick faster.
const PHASES_MAX: usize = 8;

/// The rounds of this replica.
#[derive(Default)]
pub(crate) struct Rounds {
    /// The round that has not sent anything yet.
    pending: Mutex<Option<Arc<Round>>>,
    wanted: Notify,
}

/// One round.
#[derive(Default)]
pub(crate) struct Round {
    snapshot: OnceLock<Arc<Snapshot>>,
    done: Signal,
}

/// What a round found: the cut of every backend at one epoch.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) epoch: Epoch,
    /// Whom it asked.
    pub(crate) view: Arc<View>,
    /// The base of the first tick at or above the epoch, or why it is not known.
    pub(crate) cuts: BTreeMap<Slot, Result<Revision, Error>>,
}

impl Snapshot {
    fn failed(epoch: Epoch, view: Arc<View>, error: &Error) -> Self {
        let cuts = view
            .serving
            .iter()
            .map(|joined| (joined.slot(), Err(error.clone())))
            .collect();
        Self { epoch, view, cuts }
    }

    /// The cut of one backend, or why it is not known.
    pub(crate) fn cut(&self, joined: &Joined) -> Result<Revision, Error> {
        let cut = self.cuts.get(&joined.slot()).cloned();
        cut.unwrap_or_else(|| Err(joined.unavailable("no cut")))
    }

    pub(crate) fn resource_version(&self) -> ResourceVersion {
        ResourceVersion::cut(self.epoch)
    }
}

impl Rounds {
    /// The next round that has not sent anything yet.
    fn join(&self) -> Arc<Round> {
        let round = self.pending.lock().get_or_insert_default().clone();
        self.wanted.notify_one();
        round
    }

    /// Wants a round without waiting for it.
    pub(crate) fn request(&self) {
        self.join();
    }

    /// A snapshot that holds everything acknowledged before this call.
    pub(crate) async fn snapshot(&self) -> Result<Arc<Snapshot>, Error> {
        let round = self.join();
        let finished = async {
            let mut done = round.done.listen();
            loop {
                if let Some(snapshot) = round.snapshot.get() {
                    return snapshot.clone();
                }
                done.changed().await;
            }
        };
        tokio::time::timeout(ROUND_DEADLINE, finished)
            .await
            .map_err(|_| Error::Deadline("a round of ticks did not end in time".to_owned()))
    }
}

/// How long to leave between two ticks of a backend.
pub(crate) fn spacing(round_trip: Duration, backends: usize) -> Duration {
    let share =
        Duration::from_secs(1) * u32::try_from(backends).unwrap_or(u32::MAX) / FLEET_TICKS_PER_SECOND_MAX;
    TICK_SPACING_MIN.max(round_trip * 4).max(share)
}

impl Fleet {
    /// Carries out rounds: when somebody wants one, and when the fleet is idle. Runs until the store is closed.
    pub(crate) async fn run_rounds(self: Arc<Self>) {
        loop {
            let idle = tokio::time::sleep_until(self.last_tick() + IDLE_ROUND_EVERY);
            tokio::select! {
                biased;
                () = self.closed() => return,
                () = self.rounds.wanted.notified() => {}
                () = idle => self.rounds.request(),
            }
            if self.rounds.pending.lock().is_none() {
                continue;
            }
            tokio::time::sleep_until(self.next_round_at()).await;
            let Some(round) = self.rounds.pending.lock().take() else {
                continue;
            };
            let snapshot = self.run_round().await;
            // Set once: whoever took the round out of `pending` is the only one who runs it.
            let _ = round.snapshot.set(Arc::new(snapshot));
            round.done.raise();
            // A change that came in meanwhile waits for the next round.
            self.request_round_for_watches();
        }
    }

    fn last_tick(&self) -> Instant {
        let view = self.view();
        let newest = view
            .serving
            .iter()
            .filter_map(|joined| joined.state.lock().last_tick)
            .max();
        newest.unwrap_or_else(Instant::now)
    }

    /// When pacing allows the next round: every backend that answers had its pause.
    fn next_round_at(&self) -> Instant {
        let ticked = self.view().ticked();
        let allowed = |joined: &Arc<Joined>| {
            let state = joined.state.lock();
            let round_trip = state.round_trip.unwrap_or_default().max(state.slowest_round_trip);
            Some(state.last_tick? + spacing(round_trip, ticked.len()))
        };
        let now = Instant::now();
        let at = ticked
            .iter()
            .filter(|joined| joined.is_connected())
            .filter_map(allowed)
            .max()
            .unwrap_or(now);
        // Several replicas wait for the same pause: a little disorder lets one of them go first.
        at.max(now) + self.jitter(TICK_SPACING_MIN / 8)
    }

    async fn run_round(&self) -> Snapshot {
        let mut below: BTreeMap<Slot, Epoch> = BTreeMap::new();
        let mut epoch = Epoch(0);
        let mut view = self.view();
        for phase in 0..PHASES_MAX {
            view = self.view();
            let backends = view.ticked();
            epoch = match self.next_epoch(epoch).await {
                Ok(epoch) => epoch,
                Err(error) => {
                    tracing::error!(%error, "no round of ticks");
                    return Snapshot::failed(epoch, view, &error);
                }
            };
            let ticks = join_all(backends.iter().map(|joined| self.tick_in_round(joined, epoch))).await;
            // An answer may have shown a newer membership: start again with it.
            let same_members = self.view().membership.generation == view.membership.generation;
            let fits = |(joined, ticked): (&Arc<Joined>, &Result<Ticked, Error>)| match ticked {
                Ok(ticked) => ticked.moved || below.get(&joined.slot()).is_some_and(|seen| *seen < epoch),
                Err(_) => true,
            };
            let first_at_epoch = self.broken(Rule::RoundStartsOver) || backends.iter().zip(&ticks).all(fits);
            if first_at_epoch && (same_members || self.broken(Rule::RoundSeesMembers)) {
                let cuts = join_all(backends.iter().zip(ticks).map(|(joined, ticked)| async move {
                    (joined.slot(), self.cut_of(joined, ticked, epoch).await)
                }));
                let cuts = cuts.await.into_iter().collect();
                return Snapshot { epoch, view, cuts };
            }
            tracing::debug!(
                phase,
                epoch = epoch.0,
                same_members,
                "a backend's clock was ahead, or the members have changed; the round starts over"
            );
            for (joined, ticked) in backends.iter().zip(&ticks) {
                let Ok(ticked) = ticked else { continue };
                below.insert(joined.slot(), ticked.clock.epoch);
                epoch = epoch.max(ticked.clock.epoch);
            }
            tokio::time::sleep_until(self.next_round_at()).await;
        }
        let error = Error::Deadline("the clocks moved faster than a round of ticks".to_owned());
        Snapshot::failed(epoch, view, &error)
    }

    async fn tick_in_round(&self, joined: &Arc<Joined>, epoch: Epoch) -> Result<Ticked, Error> {
        if !joined.is_connected() {
            // Its log is tried again all the time, with a tick as the first act; nobody else should wait for it.
            let problem = joined.state.lock().problem.clone();
            return Err(joined.unavailable(problem.unwrap_or_default()));
        }
        self.tick(joined, epoch).await
    }

    /// One tick of one backend, and what it shows.
    pub(crate) async fn tick(&self, joined: &Arc<Joined>, epoch: Epoch) -> Result<Ticked, Error> {
        let began = Instant::now();
        joined.metrics().tick();
        let answer = joined.tick(epoch).await;
        joined.was_ticked(began, answer.is_ok());
        let (ticked, members) = answer?;
        joined.metrics().observe_tick_round(began.elapsed());
        self.saw_epoch(ticked.clock.epoch);
        let behind = self.highest_epoch().0.saturating_sub(ticked.clock.epoch.0);
        joined
            .metrics()
            .set_epoch_lag(Duration::from_millis(behind.saturating_mul(EPOCH_MILLIS)));
        if let Some(members) = members {
            super::members::observe(self, joined, &members.value);
        }
        Ok(ticked)
    }

    /// The cut at `epoch` of a backend that was ticked for it. A tick's answer tells it only if it names that very epoch.
    async fn cut_of(
        &self,
        joined: &Arc<Joined>,
        ticked: Result<Ticked, Error>,
        epoch: Epoch,
    ) -> Result<Revision, Error> {
        let clock = ticked?.clock;
        if clock.epoch == epoch {
            return Ok(clock.base);
        }
        self.cut_from_log(joined, epoch).await
    }

    /// The cut at `epoch` from the log, which may still have to show it.
    pub(crate) async fn cut_from_log(&self, joined: &Arc<Joined>, epoch: Epoch) -> Result<Revision, Error> {
        let mut changes = joined.changes();
        let find = async {
            loop {
                changes.mark_seen();
                let cut = joined.state.lock().log.ticks.cut(epoch);
                match cut {
                    Ok(Some(base)) => return Ok(base),
                    Ok(None) => {}
                    Err(Forgotten) => {
                        return Err(Error::Expired {
                            requested: ResourceVersion::cut(epoch),
                        });
                    }
                }
                changes.changed().await;
            }
        };
        tokio::time::timeout(CUT_DEADLINE, find)
            .await
            .unwrap_or_else(|_| Err(joined.unavailable("its log does not show the tick")))
    }

    /// Ticks `joined` once, outside a round, above everything seen; a round for all follows.
    pub(crate) async fn tick_alone(&self, joined: &Arc<Joined>) -> Result<Ticked, Error> {
        let epoch = self.next_epoch(Epoch(0)).await?;
        let ticked = self.tick(joined, epoch).await?;
        self.rounds.request();
        Ok(ticked)
    }
}
