//! The fleet: all joined backends, and what belongs to all of them: the highest epoch, routing, the closed epoch.
//!
//! Everything that verbs share. It starts no tasks and does no I/O of its own.

use super::cut::Rounds;
use super::joined::Joined;
use super::list::ListBudget;
use super::standing::{self, Questions, Standing};
use super::view::View;
use super::{Member, Routing, Rule, StoreConfig};
use crate::clock::{EPOCH_JUMP_MAX, EPOCH_MILLIS, epoch_at};
use crate::key::Domain;
use crate::membership::MemberState;
use crate::object::WriteId;
use crate::owners::Removal;
use crate::resource_version::{Epoch, Slot};
use crate::signal::{Listener, Signal};
use crate::{Error, Membership, ResourceVersion};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// How long a replica waits at most rather than choose an epoch ahead of now.
const EPOCH_WAIT_MAX: Duration = Duration::from_secs(1);

/// How often it is looked whether the logs show where a domain lived, and the pause between.
const HOME_TRIES_MAX: usize = 20;
const HOME_PAUSE: Duration = Duration::from_millis(100);

/// All backends and what they share.
pub(crate) struct Fleet {
    pub(crate) config: StoreConfig,
    /// Whether the membership is decided outside. Otherwise it is what the store was opened with.
    pub(crate) decided: bool,
    /// The newest decision that was handed over.
    handed: Mutex<Option<Membership>>,
    pub(crate) handed_over: Signal,
    pub(crate) rounds: Rounds,
    pub(crate) questions: Questions,
    pub(crate) list_budget: ListBudget,
    /// The highest epoch that any backend showed.
    highest: AtomicU64,
    /// What the logs have shown, and of whom. Locked before the state of a backend, never after it.
    closed: Mutex<Closed>,
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

/// How far all logs have been seen.
struct Closed {
    /// The lowest clock seen in the logs of all serving members: all below it has been seen. `None` until all were read.
    epoch: Option<Epoch>,
    view: Arc<View>,
}

/// A backend that a domain lives on, or lived on until then.
pub(crate) struct Home {
    pub(crate) joined: Arc<Joined>,
    pub(crate) until: Option<Removal>,
}

impl Fleet {
    pub(crate) fn new(
        config: StoreConfig,
        membership: Membership,
        decided: bool,
        members: Vec<Member>,
    ) -> Self {
        // That somebody is away is acted on when a log shows it: others may still go on with that member.
        let mut known = membership.clone();
        for member in known.members.iter_mut().filter(|member| member.state.is_away()) {
            known.generation = 0;
            member.state = MemberState::Active;
        }
        let mut random = StdRng::seed_from_u64(config.seed);
        let replica = format!("{:016x}", random.random::<u64>());
        let fleet = Self {
            decided,
            handed: Mutex::new(decided.then_some(membership)),
            handed_over: Signal::default(),
            rounds: Rounds::default(),
            questions: Questions::default(),
            list_budget: ListBudget::new(config.list_bytes_max),
            highest: AtomicU64::new(0),
            closed: Mutex::new(Closed {
                epoch: None,
                view: Arc::new(View::new(0, known, Vec::new(), false)),
            }),
            closed_moved: Signal::default(),
            wide_watches: AtomicUsize::new(0),
            random: Mutex::new(random),
            replica,
            closing: AtomicBool::new(false),
            close: Signal::default(),
            config,
        };
        fleet.connect(members);
        fleet
    }

    /// Adds connections, and returns those that are new. Who is connected already stays as it is.
    pub(crate) fn connect(&self, members: Vec<Member>) -> Vec<Arc<Joined>> {
        let mut closed = self.closed.lock();
        let mut connections = closed.view.connections.clone();
        let (mut added, mut replaced) = (Vec::new(), Vec::new());
        for member in members {
            let is_same = |known: &Member| known.slot == member.slot && known.uid == member.uid;
            let known = connections.iter().position(|joined| is_same(&joined.member));
            match known {
                Some(i) if connections[i].member.incarnation < member.incarnation => {
                    replaced.push(connections.remove(i));
                }
                Some(_) => continue,
                None => {}
            }
            let metrics = self.config.metrics.backend(&member.name);
            let is_credulous = self.broken(Rule::RestoredAreRefused);
            let joined = Arc::new(Joined::new(member, metrics, is_credulous));
            connections.push(joined.clone());
            added.push(joined);
        }
        self.replace(&mut closed, None, connections);
        drop(closed);
        replaced.iter().for_each(|joined: &Arc<Joined>| joined.close());
        self.closed_moved.raise();
        added
    }

    /// Ends the connection to a backend that is no member any more.
    pub(crate) fn disconnect(&self, slot: Slot, uid: &str) {
        let mut closed = self.closed.lock();
        let leaves = |joined: &Arc<Joined>| joined.slot() == slot && joined.member.uid == uid;
        let (gone, stay): (Vec<_>, Vec<_>) = closed.view.connections.iter().cloned().partition(leaves);
        self.replace(&mut closed, None, stay);
        drop(closed);
        for joined in gone {
            joined.close();
            self.config.metrics.remove(&joined.member.name);
        }
    }

    /// The members as this replica acts on them, and their connections.
    pub(crate) fn view(&self) -> Arc<View> {
        self.closed.lock().view.clone()
    }

    /// Acts on a membership that a backend has shown. Older ones are known.
    pub(crate) fn act_on(&self, membership: &Membership) {
        if self.decided && !self.broken(Rule::MembersFromTheLog) {
            self.take_membership(membership);
        }
    }

    /// Acts on a decision that no backend has shown. Wrong: a test shows that it is noticed.
    #[cfg(feature = "testing")]
    pub(crate) fn act_on_hearsay(&self, membership: &Membership) {
        self.take_membership(membership);
    }

    fn take_membership(&self, membership: &Membership) {
        let mut closed = self.closed.lock();
        if membership.generation <= closed.view.membership.generation {
            return;
        }
        let connections = closed.view.connections.clone();
        self.replace(&mut closed, Some(membership.clone()), connections);
        drop(closed);
        tracing::info!(
            generation = membership.generation,
            "the fleet's membership changed"
        );
        self.closed_moved.raise();
    }

    fn replace(
        &self,
        closed: &mut Closed,
        membership: Option<Membership>,
        mut connections: Vec<Arc<Joined>>,
    ) {
        connections.sort_by_key(|joined| joined.slot());
        let ring_bytes = self.config.ring_bytes_max / connections.len().max(1);
        for joined in &connections {
            joined.state.lock().log.ring.resize(ring_bytes);
        }
        let membership = membership.unwrap_or_else(|| closed.view.membership.clone());
        // Snapshots from now on do not ask who has left, so they lie above all of its changes.
        for end in membership.members.iter().filter_map(|member| member.state.end()) {
            self.saw_epoch(end);
        }
        let hasty = self.broken(Rule::LeaverIsReadToItsEnd);
        let mut view = View::new(closed.view.version + 1, membership, connections, hasty);
        view.follows(&closed.view, self.highest_epoch());
        closed.view = Arc::new(view);
        Self::advance(closed);
    }

    /// The generation by which whatever is released from now on is. While no serving member is connected nothing is, and
    /// whoever connects is told the newest decision first.
    pub(crate) fn acts_on(&self) -> u64 {
        let (view, handed) = (self.view(), self.handed_generation());
        match view.serving.iter().any(|joined| joined.is_connected()) {
            true => view.membership.generation,
            false => view.membership.generation.max(handed),
        }
    }

    /// The generation of the newest decision that was handed over.
    pub(crate) fn handed_generation(&self) -> u64 {
        self.handed
            .lock()
            .as_ref()
            .map_or(0, |decided| decided.generation)
    }

    /// The newest decision that was handed over.
    pub(crate) fn handed(&self) -> Option<Membership> {
        self.handed.lock().clone()
    }

    /// Takes a decision, unless a newer one is known.
    pub(crate) fn take_decision(&self, membership: Membership) {
        let mut handed = self.handed.lock();
        if handed
            .as_ref()
            .is_none_or(|known| known.generation < membership.generation)
        {
            *handed = Some(membership);
            drop(handed);
            self.handed_over.raise();
        }
    }

    /// `NoMembers` while this replica knows of none. There may be one that it has not heard of, and nobody has a clock that
    /// an answer could be dated by, so "nothing there" would be a guess.
    pub(crate) fn check_has_members(&self) -> Result<(), Error> {
        let view = self.view();
        match view.serving.is_empty() && view.absent.is_empty() && view.given_up.is_empty() {
            true => Err(Error::NoMembers),
            false => Ok(()),
        }
    }

    pub(crate) fn by_slot(&self, slot: Slot) -> Option<Arc<Joined>> {
        let view = self.view();
        let joined = view.serving.iter().find(|joined| joined.slot() == slot);
        joined.cloned()
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

    /// Where the changes of `domain` above `version` begin, by what the logs have shown.
    ///
    /// # Errors
    /// `OwnerUnknown` while nobody knows whether an owner key counts.
    pub(crate) fn home_after(
        &self,
        domain: &Domain,
        version: ResourceVersion,
    ) -> Result<Option<Home>, Error> {
        let view = self.view();
        let mut homes = Vec::new();
        for joined in &view.connections {
            let held: Vec<_> = {
                let state = joined.state.lock();
                let after = state.log.owners.after(domain, version);
                let held = after.map(|held| {
                    let since = held.counts_from().map_or(version, |since| since.max(version));
                    (held.tenure.clone(), held.generation(), held.removal, since)
                });
                held.collect()
            };
            for (tenure, generation, until, since) in held {
                match self.tenure_standing(joined, domain, &tenure, since) {
                    Standing::Counts => {
                        homes.push((generation, until, joined));
                        break;
                    }
                    Standing::Impostor => {}
                    Standing::Unsettled => return Err(standing::unsettled(domain)),
                    Standing::Forgotten => return Err(Error::Expired { requested: version }),
                }
            }
        }
        // The oldest home first, and an older one whose removal its log does not show yet before a newer one (seed 915).
        let first = homes.into_iter().min_by_key(|(generation, _, _)| *generation);
        Ok(first.map(|(_, until, joined)| Home {
            joined: joined.clone(),
            until,
        }))
    }

    /// Like [`Fleet::home_after`], unless a log that was not read so far may know of an older home (seeds 1313, 2356).
    pub(crate) fn settled_home_after(
        &self,
        domain: &Domain,
        version: ResourceVersion,
    ) -> Result<Option<Home>, Error> {
        let home = self.home_after(domain, version)?;
        let since = home.as_ref().map(|home| match home.until {
            // It came before it went.
            Some(until) => until.version,
            None => home.joined.owner_since(domain),
        });
        let lives_there = since.is_some_and(|since| since <= version);
        if lives_there
            && home
                .as_ref()
                .is_some_and(|home| !home.joined.is_forgotten(version))
        {
            return Ok(home);
        }
        self.check_not_forgotten(version)?;
        // It may have lived on a backend that has lost its owner key in a restore.
        if self.began_anew_since(version.epoch()) {
            return Err(Error::Expired { requested: version });
        }
        // Where it lived between the version and that home is below the epoch of its claim there.
        let up_to = since.unwrap_or(version).epoch();
        self.view().unread(up_to).map_or(Ok(home), Err)
    }

    /// Whether a member began anew after this epoch, in a restore: what it owned then nobody knows.
    pub(crate) fn began_anew_since(&self, epoch: Epoch) -> bool {
        let view = self.view();
        let mut connections = view.connections.iter();
        connections.any(|joined| joined.began_anew_since(epoch))
    }

    /// The same, with a while for the logs to come so far.
    pub(crate) async fn await_home_after(
        &self,
        domain: &Domain,
        version: ResourceVersion,
    ) -> Result<Option<Home>, Error> {
        for _ in 0..HOME_TRIES_MAX {
            match self.settled_home_after(domain, version) {
                Err(Error::Unavailable { .. } | Error::OwnerUnknown { .. }) => {
                    self.rounds.request();
                    tokio::time::sleep(HOME_PAUSE).await;
                }
                settled => return settled,
            }
        }
        self.settled_home_after(domain, version)
    }

    /// The only backend of a store without owners.
    pub(crate) fn sole(&self) -> Option<Arc<Joined>> {
        match self.config.routing {
            Routing::Sole => self.view().connections.first().cloned(),
            Routing::Owned => None,
        }
    }

    /// The lowest clock seen in all logs, with the view that it holds for. While nobody serves no epoch is closed: who comes
    /// back is above the clocks of those that serve, and there are none (seed 2285).
    pub(crate) fn closed_view(&self) -> (Option<Epoch>, Arc<View>) {
        let closed = self.closed.lock();
        let epoch = closed.epoch.filter(|_| !closed.view.serving.is_empty());
        (epoch, closed.view.clone())
    }

    /// The closed epoch, if nobody is missing below it: no member is lost or still coming back.
    pub(crate) fn complete_epoch(&self) -> Option<Epoch> {
        let (epoch, view) = self.closed_view();
        let epoch = epoch.filter(|_| view.absent.is_empty() && view.given_up.is_empty())?;
        let seen = |joined: &Arc<Joined>| {
            view.check_begun(joined).is_ok() && joined.newest_epoch().is_some_and(|seen| seen >= epoch)
        };
        view.serving.iter().all(seen).then_some(epoch)
    }

    pub(crate) fn closed_changes(&self) -> Listener {
        self.closed_moved.listen()
    }

    /// Recomputes the closed epoch after a log moved.
    pub(crate) fn advance_closed(&self) {
        let moved = Self::advance(&mut self.closed.lock());
        if moved {
            self.closed_moved.raise();
        }
    }

    fn advance(closed: &mut Closed) -> bool {
        let lowest = closed.view.lowest_clock();
        // It never falls: a log that starts anew starts at or above what it had shown.
        let moved = lowest > closed.epoch;
        if moved {
            closed.epoch = lowest;
        }
        moved
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
        let (closed, view) = self.closed_view();
        view.serving.iter().any(|joined| {
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
