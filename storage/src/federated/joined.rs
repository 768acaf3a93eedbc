//! One joined backend: what is known of its clock, its log and its owners, and every call to it.
//!
//! Writers of this state are the log (`feed.rs`) and the answers of calls; both only raise what is known. It does not
//! know of other backends.

pub(crate) mod same_store;

use super::ring::Ring;
use super::view::View;
use super::{ClusterStatus, Member, Routing, Seen};
use crate::backend::{
    BackendError, BackendEvent, BackendStatus, Compare, Condition, KeyValue, Op, OpResponse, Range, Revision,
    Txn, TxnResponse, WatchRequest, WatchStream,
};
use crate::clock::{BASE_REVISIONS_MAX, Clock, ClockHistory, Position, decode_epoch, encode_epoch};
use crate::key::{self, Domain};
use crate::membership::Gap;
use crate::membership::report::BackendReport;
use crate::metrics::BackendMetrics;
use crate::owners::{OwnerEntry, OwnerLog, OwnerRecord, OwnerTable};
use crate::resource_version::{Epoch, Slot};
use crate::signal::{Listener, Signal};
use crate::{Error, Object, ResourceVersion};
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// A base may be used if an answer sent less than this ago shows how far the revision is from it.
const BASE_VERIFIED_FOR: Duration = Duration::from_secs(5);
/// How long one call may take.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// Reads of history that may be under way on one backend at once.
const HISTORY_READS_MAX: usize = 4;

/// One joined backend.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) member: Member,
    pub(crate) state: Mutex<State>,
    /// Counts changes of the state; whoever waits for one subscribes.
    moved: Signal,
    pub(crate) history_reads: Semaphore,
    /// A store that is older than it was is taken for what it was. Wrong: a test shows that it is noticed.
    is_credulous: bool,
    metrics: Arc<BackendMetrics>,
    /// Set when the connection is given up: its tasks end.
    closing: AtomicBool,
    close: Signal,
}

/// What a backend's own key `members` says of itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Own {
    /// The generation that it has been told.
    pub(crate) generation: u64,
    /// When it was lost before, oldest first.
    pub(crate) gaps: Vec<Gap>,
}

/// What is known of a backend.
#[derive(Debug)]
pub(crate) struct State {
    incarnation: u64,
    /// Its log is being followed.
    pub(crate) connected: bool,
    /// It was looked at since it was lost last, and is as far as it was: it may be written to.
    pub(crate) checked: bool,
    /// Why it is not.
    pub(crate) problem: Option<String>,
    /// It was found older than it was.
    pub(crate) restored: bool,
    /// It is a later incarnation than this replica has heard of.
    pub(crate) superseded: bool,
    /// Its newest clock, from answers and from the log.
    pub(crate) clock: Option<Clock>,
    /// Its highest revision that any answer showed, and when the request of that answer was sent.
    pub(crate) revision: Revision,
    pub(crate) verified: Option<Instant>,
    /// Since when ticks are not answered. `None`: the last one was.
    pub(crate) failing_since: Option<Instant>,
    /// The newest tick seen or sent.
    pub(crate) last_tick: Option<Instant>,
    /// When a tick was answered that the log has not shown yet, with its base.
    pub(crate) unseen_tick: Option<(Instant, Revision)>,
    /// A running mean of round trips.
    pub(crate) round_trip: Option<Duration>,
    /// The slowest round trip of any live replica, as `members` says.
    pub(crate) slowest_round_trip: Duration,
    pub(crate) owners: OwnerTable,
    /// Domains whose owner key here does not count, and about which it was said.
    pub(crate) reported: BTreeSet<Domain>,
    pub(crate) own: Own,
    pub(crate) log: Log,
    pub(crate) status: BackendStatus,
}

/// What was read from the log.
#[derive(Debug)]
pub(crate) struct Log {
    /// Everything up to this revision was read.
    pub(crate) revision: Revision,
    /// The ticks.
    pub(crate) ticks: ClockHistory,
    /// States below this revision are compacted.
    pub(crate) compacted: Revision,
    pub(crate) ring: Ring,
    pub(crate) owners: OwnerLog,
    /// The log was read at least once.
    pub(crate) started: bool,
    /// The epoch of the newest change of an object.
    pub(crate) newest_change: Option<Epoch>,
}

/// A tick's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticked {
    /// The clock after it.
    pub(crate) clock: Clock,
    /// Whether this tick moved it.
    pub(crate) moved: bool,
}

impl State {
    /// How late it answers, or shows what it has acknowledged.
    fn lag(&self) -> Duration {
        let unseen = self.unseen_tick.map(|(answered, _)| answered.elapsed());
        let unanswered = self.failing_since.map(|since| since.elapsed());
        let lags = [self.round_trip, unseen, unanswered];
        lags.into_iter().flatten().max().unwrap_or_default()
    }

    /// How far it was seen.
    pub(crate) fn seen(&self) -> Option<Seen> {
        self.clock.map(|clock| Seen {
            incarnation: self.incarnation,
            epoch: clock.epoch,
            revision: self.revision,
        })
    }
}

impl Joined {
    pub(crate) fn new(member: Member, metrics: Arc<BackendMetrics>, is_credulous: bool) -> Self {
        let state = State {
            incarnation: member.incarnation,
            connected: false,
            checked: false,
            problem: Some("not connected yet".to_owned()),
            restored: false,
            superseded: false,
            clock: None,
            revision: 0,
            verified: None,
            failing_since: Some(Instant::now()),
            last_tick: None,
            unseen_tick: None,
            round_trip: None,
            slowest_round_trip: Duration::ZERO,
            owners: OwnerTable::default(),
            reported: BTreeSet::new(),
            own: Own::default(),
            log: Log {
                revision: 0,
                ticks: ClockHistory::default(),
                compacted: 0,
                ring: Ring::new(0, 0),
                owners: OwnerLog::default(),
                started: false,
                newest_change: None,
            },
            status: BackendStatus::default(),
        };
        Self {
            member,
            state: Mutex::new(state),
            moved: Signal::default(),
            history_reads: Semaphore::new(HISTORY_READS_MAX),
            is_credulous,
            metrics,
            closing: AtomicBool::new(false),
            close: Signal::default(),
        }
    }

    /// Gives the connection up.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.close.raise();
        // Whoever waits for its log has to look elsewhere.
        self.moved.raise();
    }

    /// Returns when the connection is given up.
    pub(crate) async fn closed(&self) {
        let mut close = self.close.listen();
        while !self.closing.load(Ordering::SeqCst) {
            close.changed().await;
        }
    }

    /// The newest epoch that its log has shown.
    pub(crate) fn newest_epoch(&self) -> Option<Epoch> {
        self.state.lock().log.ticks.newest().map(|tick| tick.epoch)
    }

    /// The generation of the membership that it has been told.
    pub(crate) fn own_generation(&self) -> u64 {
        self.state.lock().own.generation
    }

    pub(crate) fn metrics(&self) -> &BackendMetrics {
        &self.metrics
    }

    pub(crate) fn cluster_status(&self, view: &View) -> ClusterStatus {
        let (membership, open) = (view.state(self), view.is_open(self));
        let state = self.state.lock();
        ClusterStatus {
            slot: self.slot(),
            name: self.member.name.clone(),
            uid: self.member.uid.clone(),
            incarnation: self.member.incarnation,
            membership,
            open,
            reachable: state.connected,
            lag: state.lag(),
            seen: state.seen(),
            restored: state.restored,
            namespaces: state.owners.len() as u64,
            status: state.status.clone(),
            problem: state.problem.clone(),
        }
    }

    pub(crate) fn slot(&self) -> Slot {
        self.member.slot
    }

    /// Changes the state and wakes whoever waits for changes.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state.lock());
        self.moved.raise();
        result
    }

    /// Wakes at every change of the state from now on.
    pub(crate) fn changes(&self) -> Listener {
        self.moved.listen()
    }

    /// Whether calls are likely to be answered.
    pub(crate) fn is_connected(&self) -> bool {
        self.state.lock().connected
    }

    pub(crate) fn unavailable(&self, cause: impl std::fmt::Display) -> Error {
        Error::Unavailable {
            cluster: self.member.name.clone(),
            cause: cause.to_string(),
        }
    }

    /// A backend's error, of a call whose outcome does not matter (a read, or certainly not carried out).
    pub(crate) fn error(&self, error: BackendError) -> Error {
        match error {
            BackendError::NoSpace => Error::Full {
                cluster: self.member.name.clone(),
            },
            BackendError::TooLarge => Error::TooLarge {
                size: 0,
                limit: crate::object::OBJECT_BYTES_MAX,
            },
            BackendError::Corrupt(cause) => Error::Corrupt {
                key: self.member.name.clone(),
                cause,
            },
            other => self.unavailable(other),
        }
    }

    /// Carries out a transaction within [`CALL_DEADLINE`].
    ///
    /// Before it writes it knows that the store is the one that it was: whatever is written to a restored one brings it
    /// nearer to what was seen, and after enough ticks (of those who settle a write) nobody could tell any more (seeds 22,
    /// 43). Of a read the answer tells.
    pub(crate) async fn call(&self, txn: Txn) -> Result<TxnResponse, BackendError> {
        match txn.is_read_only() {
            true => self.check_in_use()?,
            false => self.check_same_store().await?,
        }
        let answer = self.send(txn).await;
        if matches!(answer, Err(BackendError::Unavailable { .. })) {
            self.state.lock().checked = false;
        }
        answer
    }

    /// Reads a piece of history. No answer tells whose it is: revisions of a restored store stand for something else than
    /// they did (seed 345).
    pub(crate) async fn history(&self, request: WatchRequest) -> Result<WatchStream, BackendError> {
        self.check_same_store().await?;
        self.member.backend.watch(request).await
    }

    async fn send(&self, txn: Txn) -> Result<TxnResponse, BackendError> {
        let sent = Instant::now();
        // By the record as well: whoever starts may read an owner key before it looks at the store (seed 918).
        let recorded = self.must_be_at().map_or(0, |seen| seen.revision);
        let known = self.state.lock().revision.max(recorded);
        let answer = tokio::time::timeout(CALL_DEADLINE, self.member.backend.txn(txn)).await;
        let response = match answer {
            Ok(answer) => answer?,
            Err(_) => {
                return Err(BackendError::Unavailable {
                    cause: "no answer in time".to_owned(),
                    sent: true,
                });
            }
        };
        let mut state = self.state.lock();
        // An answer is never older than what was known when it was asked for, unless it is another store's.
        if response.revision < known && !self.is_credulous {
            return Err(BackendError::Unavailable {
                cause: format!(
                    "it is at revision {}, and was at {known}: restored from a backup, or wiped",
                    response.revision
                ),
                sent: true,
            });
        }
        state.revision = state.revision.max(response.revision);
        state.verified = state.verified.max(Some(sent));
        Ok(response)
    }

    /// Takes the clock out of an answer to `Get(clock)`.
    pub(crate) fn observe_clock(&self, answer: &crate::backend::RangeResponse) -> Option<Clock> {
        let kv = answer.kvs.first()?;
        let clock = Clock {
            epoch: decode_epoch(&kv.value)?,
            base: kv.mod_revision,
        };
        let mut state = self.state.lock();
        if state.clock.is_none_or(|known| known.base < clock.base) {
            state.clock = Some(clock);
            state.last_tick = Some(Instant::now());
        }
        Some(clock)
    }

    /// Takes an owner key out of an answer to `Get(owner)` that was given at `revision`.
    pub(crate) fn observe_owner(
        &self,
        domain: &Domain,
        answer: &crate::backend::RangeResponse,
        revision: Revision,
    ) -> Result<Option<OwnerEntry>, Error> {
        let entry = match answer.kvs.first() {
            None => None,
            Some(kv) => Some(OwnerEntry {
                record: self.decode_owner(kv)?,
                revision: kv.mod_revision,
            }),
        };
        let seen_at = entry.as_ref().map_or(revision, |entry| entry.revision);
        let record = entry.as_ref().map(|entry| entry.record.clone());
        self.update(|state| state.owners.observe(domain.clone(), seen_at, record));
        Ok(entry)
    }

    pub(crate) fn decode_owner(&self, kv: &KeyValue) -> Result<OwnerRecord, Error> {
        OwnerRecord::decode(&kv.value).map_err(|cause| Error::Corrupt {
            key: String::from_utf8_lossy(&kv.key).into_owned(),
            cause,
        })
    }

    /// The clock that was in force at a revision, if its tick is remembered.
    pub(crate) fn clock_at(&self, revision: Revision) -> Option<Clock> {
        self.state.lock().log.ticks.in_force_at(revision)
    }

    /// The history at `revision` is gone.
    pub(crate) fn expired_at(&self, revision: Revision) -> Error {
        let clock = self.clock_at(revision);
        let requested = clock.and_then(|clock| clock.resource_version(revision, self.slot()));
        Error::Expired {
            requested: requested.unwrap_or(ResourceVersion::cut(Epoch(0))),
        }
    }

    /// The clock that may be used for a write now; `None`: it has to be verified, or ticked, first.
    fn usable_clock(&self) -> Option<Clock> {
        let state = self.state.lock();
        let fresh = state
            .verified
            .is_some_and(|sent| sent.elapsed() < BASE_VERIFIED_FOR);
        state
            .clock
            .filter(|clock| fresh && state.revision.saturating_sub(clock.base) < BASE_REVISIONS_MAX)
    }

    /// The clock that a write may use. `None`: the backend must be ticked first.
    pub(crate) async fn clock_for_write(&self) -> Result<Option<Clock>, Error> {
        if let Some(clock) = self.usable_clock() {
            return Ok(Some(clock));
        }
        let answer = self
            .call(Txn::read([Range::key(key::CLOCK)]))
            .await
            .map_err(|e| self.error(e))?;
        if let Some(range) = answer.responses.into_iter().next() {
            self.observe_clock(&range.into_range());
        }
        Ok(self.usable_clock())
    }

    /// Moves the clock to `epoch`, unless it is there or further. Also reads `members`.
    pub(crate) async fn tick(&self, epoch: Epoch) -> Result<(Ticked, Option<KeyValue>), Error> {
        let sent = Instant::now();
        self.state.lock().last_tick = Some(sent);
        let read = |k: &'static [u8]| Op::Get(Range::key(k));
        let put = Op::Put {
            key: Bytes::from_static(key::CLOCK),
            value: encode_epoch(epoch),
        };
        let mut compare = vec![Compare {
            key: Bytes::from_static(key::CLOCK),
            condition: Condition::ValueLess(encode_epoch(epoch)),
        }];
        // Twice at most: the clock of a new backend does not exist, and no comparison of values holds for it.
        for _ in 0..2 {
            let txn = Txn {
                compare: std::mem::take(&mut compare),
                success: vec![put.clone(), read(key::MEMBERS)],
                failure: vec![read(key::CLOCK), read(key::MEMBERS)],
            };
            let answer = self.call(txn).await.map_err(|e| self.error(e))?;
            self.measure(sent.elapsed());
            let mut ranges = answer.responses.into_iter().map(OpResponse::into_range);
            let (first, members) = (
                ranges.next().unwrap_or_default(),
                ranges.next().unwrap_or_default(),
            );
            let members = members.kvs.into_iter().next();
            if answer.succeeded {
                let clock = Clock {
                    epoch,
                    base: answer.revision,
                };
                let mut state = self.state.lock();
                if state.clock.is_none_or(|known| known.base < clock.base) {
                    state.clock = Some(clock);
                }
                // The log may have shown it before the answer came.
                if clock.base > state.log.revision {
                    state.unseen_tick.get_or_insert((Instant::now(), clock.base));
                }
                return Ok((Ticked { clock, moved: true }, members));
            }
            if let Some(clock) = self.observe_clock(&first) {
                return Ok((Ticked { clock, moved: false }, members));
            }
            compare = vec![Compare::absent(Bytes::from_static(key::CLOCK))];
        }
        Err(self.unavailable("its clock cannot be read"))
    }

    /// Remembers since when ticks are not answered: since the first of them was `sent`. While its log is not followed an
    /// answer means nothing: what cannot be followed cannot be released.
    pub(crate) fn was_ticked(&self, sent: Instant, answered: bool) {
        let mut state = self.state.lock();
        state.failing_since = match answered {
            true => state.failing_since.filter(|_| !state.connected),
            false => state.failing_since.or(Some(sent)),
        };
    }

    /// Whether lists at this epoch may have left it out.
    pub(crate) fn was_left_out_at(&self, epoch: Epoch) -> bool {
        let state = self.state.lock();
        let mut gaps = state.own.gaps.iter();
        gaps.any(|gap| gap.objects && gap.holds(epoch))
    }

    /// What this replica says of it.
    pub(crate) fn report(&self, view: &View) -> BackendReport {
        let open = view.is_open(self);
        let state = self.state.lock();
        BackendReport {
            slot: self.slot(),
            uid: self.member.uid.clone(),
            unreachable_for: state.failing_since.map(|since| since.elapsed()),
            clock: state.log.ticks.newest().map(|tick| tick.epoch),
            open,
        }
    }

    /// Ticks are small and regular: they tell the round trip.
    fn measure(&self, took: Duration) {
        let mut state = self.state.lock();
        state.round_trip = Some(state.round_trip.map_or(took, |mean| (mean * 7 + took) / 8));
    }

    /// Every change of `key` in the revisions `from..=until`.
    pub(crate) async fn history_of(
        &self,
        key: Bytes,
        from: Revision,
        until: Revision,
    ) -> Result<Vec<KeyValue>, BackendError> {
        let events = self.history_of_range(key, None, from, until).await?;
        Ok(events.into_iter().map(|event| event.kv).collect())
    }

    /// Every change of a range of keys (`end: None`: of the key `start`) in the revisions `from..=until`. For keys that
    /// change seldom: it is collected.
    pub(crate) async fn history_of_range(
        &self,
        start: Bytes,
        end: Option<Bytes>,
        from: Revision,
        until: Revision,
    ) -> Result<Vec<BackendEvent>, BackendError> {
        let request = WatchRequest {
            start,
            end,
            start_revision: from,
            prev_kv: true,
            until: Some(until),
        };
        let read = async {
            let mut changes = Vec::new();
            let mut stream = self.history(request).await?;
            while let Some(batch) = stream.next().await {
                changes.extend(batch?.events);
            }
            Ok(changes)
        };
        tokio::time::timeout(CALL_DEADLINE, read)
            .await
            .unwrap_or(Err(BackendError::Unavailable {
                cause: "its history was not read in time".to_owned(),
                sent: false,
            }))
    }

    /// Whether the retained history begins above `rv`. Of a log that was never read nothing is said.
    pub(crate) fn is_forgotten(&self, rv: ResourceVersion) -> bool {
        let state = self.state.lock();
        let below = match state.log.ticks.position(rv, self.slot()) {
            Position::Expired => true,
            Position::After(at) => at < state.log.compacted,
            Position::NeedsTick => false,
        };
        below && state.log.started
    }

    /// The object of a stored key.
    pub(crate) fn object(&self, kv: KeyValue) -> Result<Object, Error> {
        Object::from_stored(kv.key, kv.value, kv.mod_revision, self.slot())
    }

    /// The resource version of what `clock` says at `revision`, or an error that asks for a tick.
    pub(crate) fn resource_version(
        &self,
        clock: Clock,
        revision: Revision,
    ) -> Result<ResourceVersion, Error> {
        clock.resource_version(revision, self.slot()).ok_or_else(|| {
            Error::Internal(format!(
                "revision {revision} is out of reach of the clock {clock:?}"
            ))
        })
    }

    /// From where on its log shows this backend as the owner of `domain`; what is before the retained history is zero.
    pub(crate) fn owner_since(&self, domain: &Domain) -> ResourceVersion {
        let state = self.state.lock();
        let since = state.log.owners.owner(domain).and_then(|owner| {
            let clock = state.log.ticks.in_force_at(owner.revision)?;
            clock.resource_version(owner.revision, self.slot())
        });
        since.unwrap_or(ResourceVersion::cut(Epoch(0)))
    }

    /// The claim of `domain` here that is not confirmed.
    pub(crate) fn claim(&self, domain: &Domain) -> Option<OwnerEntry> {
        self.state
            .lock()
            .owners
            .get(domain)
            .filter(|entry| !entry.record.counts())
            .cloned()
    }

    /// The owner of `domain` here, if it counts.
    pub(crate) fn owner(&self, domain: &Domain) -> Option<OwnerEntry> {
        self.state
            .lock()
            .owners
            .get(domain)
            .filter(|entry| entry.record.counts())
            .cloned()
    }
}

/// Whether a store of this routing compares owner keys.
pub(crate) fn compares_owners(routing: Routing) -> bool {
    routing == Routing::Owned
}
