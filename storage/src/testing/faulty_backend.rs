//! `FaultyBackend`: a backend behind a bad network. Delays, lost requests, lost answers, requests that are carried out
//! late or twice, outages of several kinds, watches that stall, end or lose previous values.
//!
//! All randomness comes from one seeded generator and all time is tokio's, so that a run on a current-thread runtime
//! with paused time is the same for one seed. Order within a watch is kept. It does not know what the inner backend is.

use crate::backend::{
    Backend, BackendError, BackendStatus, Op, Revision, Txn, TxnResponse, WatchBatch, WatchRequest,
    WatchStream,
};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::StreamExt;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Batches of one watch that are on their way.
const BATCHES_IN_FLIGHT_MAX: usize = 64;

/// What goes wrong. Probabilities are per request or per watch batch, 0 to 1. The default: nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FaultSettings {
    /// A request's way there and back; a watch batch takes half of it.
    pub round_trip: Duration,
    /// Up to so much more, each way.
    pub jitter: Duration,
    /// After how long a caller without an answer is told `Unavailable` with `sent`.
    pub timeout: Duration,
    /// The request is lost: certainly not carried out.
    pub drop_request: f64,
    /// The request is carried out, and its answer is lost.
    pub drop_answer: f64,
    /// The request is carried out after the caller was told `Unavailable`.
    pub execute_late: f64,
    /// Up to how much later.
    pub late_by: Duration,
    /// The request is carried out twice, and only the second answer arrives.
    pub execute_twice: f64,
    /// A watch batch takes up to so much longer.
    pub watch_delay: Duration,
    /// A watch delivers nothing for a while.
    pub watch_stall: f64,
    /// For up to how long.
    pub watch_stall_for: Duration,
    /// A watch ends with an error instead of a batch.
    pub watch_cut: f64,
    /// A change comes without its previous value, as if it was compacted.
    pub drop_prev: f64,
    /// What does not work at all.
    pub outage: Outage,
}

/// Outages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Outage {
    /// None.
    #[default]
    None,
    /// Connections are refused: requests fail at once with `sent: false`, watches end.
    Down,
    /// Packets are lost: requests time out with `sent` (and are not carried out), watches stall.
    Partitioned,
    /// Reads and watches work, writes time out with `sent` (and are not carried out).
    Writes,
    /// Reads, deletes and watches work, puts are refused with `NoSpace`.
    Full,
    /// Requests work, watches stall; until `suspect_member` is called, if so configured by [`Faults::heal_on_suspect`].
    Watches,
}

impl Outage {
    fn stalls_watches(self) -> bool {
        matches!(self, Self::Partitioned | Self::Watches)
    }
}

/// The control of a [`FaultyBackend`], to be used while it runs.
#[derive(Debug, Default)]
pub struct Faults {
    state: Mutex<State>,
    changed: Notify,
    suspected: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    settings: FaultSettings,
    /// Raised to end all watches that are open.
    cut: u64,
    /// Raised when the connections are lost.
    broken: u64,
    heal_on_suspect: bool,
}

impl Faults {
    /// The settings as they are.
    #[must_use]
    pub fn settings(&self) -> FaultSettings {
        self.state.lock().settings.clone()
    }

    /// Changes settings.
    pub fn set(&self, change: impl FnOnce(&mut FaultSettings)) {
        change(&mut self.state.lock().settings);
        self.changed.notify_waiters();
    }

    /// Begins or ends an outage.
    pub fn outage(&self, outage: Outage) {
        self.set(|s| s.outage = outage);
    }

    /// Ends everything but the round trip.
    pub fn heal(&self) {
        self.set(|s| {
            let FaultSettings {
                round_trip, timeout, ..
            } = *s;
            *s = FaultSettings {
                round_trip,
                timeout,
                ..FaultSettings::default()
            };
        });
    }

    /// Ends all watches that are open.
    pub fn cut_watches(&self) {
        self.state.lock().cut += 1;
        self.changed.notify_waiters();
    }

    /// Ends all connections, as when the server behind them goes: watches end, and what is on its way is lost.
    pub fn break_connections(&self) {
        self.state.lock().broken += 1;
        self.cut_watches();
    }

    /// `suspect_member` ends an outage of watches: the other members are well.
    pub fn heal_on_suspect(&self, yes: bool) {
        self.state.lock().heal_on_suspect = yes;
    }

    /// How often `suspect_member` was called.
    #[must_use]
    pub fn suspected(&self) -> u64 {
        self.suspected.load(Ordering::Relaxed)
    }

    fn cut(&self) -> u64 {
        self.state.lock().cut
    }

    fn broken(&self) -> u64 {
        self.state.lock().broken
    }

    fn now(&self) -> Outage {
        self.state.lock().settings.outage
    }

    /// Waits until settings make `f` true.
    async fn until(&self, f: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if f(self) {
                return;
            }
            changed.await;
        }
    }
}

/// A backend behind a bad network.
#[derive(Clone)]
pub struct FaultyBackend {
    inner: Arc<dyn Backend>,
    faults: Arc<Faults>,
    random: Arc<Mutex<StdRng>>,
}

/// What becomes of one request, drawn before it is sent: always the same number of draws.
#[derive(Debug, Clone, Copy)]
struct Fate {
    there: Duration,
    back: Duration,
    timeout: Duration,
    late: Duration,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Answered,
    RequestLost,
    AnswerLost,
    Late,
    Twice,
}

impl FaultyBackend {
    /// Puts `inner` behind a network that is good until [`Faults`] says otherwise.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, seed: u64) -> (Arc<Self>, Arc<Faults>) {
        let faults = Arc::new(Faults::default());
        let random = Arc::new(Mutex::new(StdRng::seed_from_u64(seed)));
        (
            Arc::new(Self {
                inner,
                faults: faults.clone(),
                random,
            }),
            faults,
        )
    }

    /// Another connection over the same network, to what may be another server.
    #[must_use]
    pub fn beside(&self, inner: Arc<dyn Backend>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            ..self.clone()
        })
    }

    fn fate(&self) -> Fate {
        let s = self.faults.settings();
        let mut random = self.random.lock();
        let mut up_to = |max: Duration| max.mul_f64(random.random::<f64>());
        let (there, back) = (
            s.round_trip / 2 + up_to(s.jitter),
            s.round_trip / 2 + up_to(s.jitter),
        );
        let late = s.timeout + up_to(s.late_by);
        let mut chance = random.random::<f64>();
        let chances = [
            (s.drop_request, What::RequestLost),
            (s.drop_answer, What::AnswerLost),
            (s.execute_late, What::Late),
            (s.execute_twice, What::Twice),
        ];
        let mut what = What::Answered;
        for (p, case) in chances {
            if (0.0..p).contains(&chance) {
                what = case;
            }
            chance -= p;
        }
        Fate {
            there,
            back,
            timeout: s.timeout,
            late,
            what,
        }
    }

    /// Carries out one request under its fate.
    async fn send<T, F>(self, write: bool, request: impl Fn(Arc<dyn Backend>) -> F) -> Result<T, BackendError>
    where
        F: Future<Output = Result<T, BackendError>> + Send + 'static,
        T: Send + 'static,
    {
        let fate = self.fate();
        let sent = Instant::now();
        let lost = |cause: &str| BackendError::Unavailable {
            cause: cause.to_owned(),
            sent: true,
        };
        if self.faults.now() == Outage::Down {
            return Err(BackendError::Unavailable {
                cause: "connection refused".to_owned(),
                sent: false,
            });
        }
        let (faults, connection) = (self.faults.clone(), self.faults.broken());
        let is_broken = move || faults.broken() != connection;
        wait(fate.there).await;
        if is_broken() {
            return Err(lost("the connection was lost"));
        }
        let arrives = match self.faults.now() {
            Outage::Down | Outage::Partitioned => false,
            Outage::Writes => !write,
            Outage::None | Outage::Full | Outage::Watches => true,
        };
        if !arrives || fate.what == What::RequestLost {
            tokio::time::sleep_until(sent + fate.timeout).await;
            return Err(lost("timed out"));
        }
        if fate.what == What::Late {
            let late = request(self.inner.clone());
            tokio::spawn(async move {
                tokio::time::sleep_until(sent + fate.late).await;
                if !is_broken() {
                    // Nobody waits for the answer.
                    let _ = late.await;
                }
            });
            tokio::time::sleep_until(sent + fate.timeout).await;
            return Err(lost("timed out"));
        }
        let mut answer = request(self.inner.clone()).await;
        if fate.what == What::Twice {
            wait(fate.back + fate.there).await;
            if !is_broken() {
                answer = request(self.inner.clone()).await;
            }
        }
        wait(fate.back).await;
        if is_broken() {
            return Err(lost("the connection was lost, though it was carried out"));
        }
        let returns = !matches!(self.faults.now(), Outage::Down | Outage::Partitioned);
        if !returns || fate.what == What::AnswerLost {
            tokio::time::sleep_until(sent + fate.timeout).await;
            return Err(lost("timed out, though carried out"));
        }
        answer
    }

    /// How long the next batch of a watch takes, whether the watch ends instead, and whether previous values are lost.
    fn batch_fate(&self) -> (Duration, bool, bool) {
        let s = self.faults.settings();
        let mut random = self.random.lock();
        let mut up_to = |max: Duration| max.mul_f64(random.random::<f64>());
        let mut delay = s.round_trip / 2 + up_to(s.watch_delay);
        let stall = up_to(s.watch_stall_for);
        let mut chance = |p: f64| random.random::<f64>() < p;
        if chance(s.watch_stall) {
            delay += stall;
        }
        (delay, chance(s.watch_cut), chance(s.drop_prev))
    }
}

/// Sleeps, if there is anything to sleep: a timer of zero would still let others run first.
async fn wait(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

impl Backend for FaultyBackend {
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, BackendError>> {
        async move {
            let write = !txn.is_read_only();
            let puts = txn
                .success
                .iter()
                .chain(&txn.failure)
                .any(|op| matches!(op, Op::Put { .. }));
            let faults = self.faults.clone();
            let request = move |inner: Arc<dyn Backend>| {
                let (txn, faults) = (txn.clone(), faults.clone());
                async move {
                    if puts && faults.now() == Outage::Full {
                        return Err(BackendError::NoSpace);
                    }
                    inner.txn(txn).await
                }
            };
            let sent = self.clone().send(write, request);
            if !write {
                return sent.await;
            }
            // A write that was sent goes on when its caller gives up.
            let cause = || BackendError::Unavailable {
                cause: "the runtime ends".to_owned(),
                sent: true,
            };
            tokio::spawn(sent).await.unwrap_or_else(|_| Err(cause()))
        }
        .boxed()
    }

    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, BackendError>> {
        async move {
            let (fate, cut) = (self.fate(), self.faults.cut());
            let refused = || BackendError::Unavailable {
                cause: "cannot watch".to_owned(),
                sent: false,
            };
            wait(fate.there).await;
            match self.faults.now() {
                Outage::Down => return Err(refused()),
                Outage::Partitioned => {
                    tokio::time::sleep(fate.timeout).await;
                    return Err(refused());
                }
                Outage::None | Outage::Writes | Outage::Full | Outage::Watches => {}
            }
            let inner = self.inner.watch(request).await?;
            wait(fate.back).await;
            Ok(self.clone().deliver(inner, cut))
        }
        .boxed()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), BackendError>> {
        let request = move |inner: Arc<dyn Backend>| async move { inner.compact(revision).await };
        self.clone().send(true, request).boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<BackendStatus, BackendError>> {
        let request = |inner: Arc<dyn Backend>| async move { inner.status().await };
        self.clone().send(false, request).boxed()
    }

    fn suspect_member(&self) {
        self.faults.suspected.fetch_add(1, Ordering::Relaxed);
        let mut state = self.faults.state.lock();
        if state.heal_on_suspect && state.settings.outage == Outage::Watches {
            state.settings.outage = Outage::None;
            drop(state);
            self.faults.changed.notify_waiters();
        }
        self.inner.suspect_member();
    }
}

impl FaultyBackend {
    /// The batches of `inner`, each when it has arrived; many may be on their way, none overtakes another.
    fn deliver(self, mut inner: WatchStream, cut_at_start: u64) -> WatchStream {
        type Item = Result<WatchBatch, BackendError>;
        async_stream::stream! {
            let mut on_the_way: VecDeque<(Instant, Option<Item>)> = VecDeque::new();
            let mut last_arrival = Instant::now();
            let mut ended = false;
            loop {
                let faults = &self.faults;
                let arrival = on_the_way.front().map(|(at, _)| *at);
                let next_arrival = async {
                    match arrival {
                        Some(at) => {
                            if at > Instant::now() {
                                tokio::time::sleep_until(at).await;
                            }
                            faults.until(|f| !f.now().stalls_watches()).await;
                        }
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    () = faults.until(|f| f.cut() != cut_at_start || f.now() == Outage::Down) => {
                        yield Err(BackendError::Unavailable { cause: "the watch was cut".to_owned(), sent: false });
                        return;
                    }
                    () = next_arrival => {
                        match on_the_way.pop_front() {
                            Some((_, Some(item))) => {
                                let is_last = item.is_err();
                                yield item;
                                if is_last {
                                    return;
                                }
                            }
                            Some((_, None)) | None => return,
                        }
                    }
                    item = inner.next(), if !ended && on_the_way.len() < BATCHES_IN_FLIGHT_MAX => {
                        let (delay, cut, drop_prev) = self.batch_fate();
                        last_arrival = last_arrival.max(Instant::now() + delay);
                        let item = match item {
                            Some(Ok(_)) if cut => {
                                Some(Err(BackendError::Unavailable { cause: "the watch was cut".to_owned(), sent: false }))
                            }
                            Some(Ok(mut batch)) => {
                                if drop_prev {
                                    batch.events.iter_mut().for_each(|event| event.prev = None);
                                }
                                Some(Ok(batch))
                            }
                            other => other,
                        };
                        ended = !matches!(item, Some(Ok(_)));
                        on_the_way.push_back((last_arrival, item));
                    }
                }
            }
        }
        .boxed()
    }
}

impl fmt::Debug for FaultyBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyBackend({:?})", self.inner)
    }
}
