//! A backend with limits: a deadline for every request, so many at once, and none for a while when none is answered.
//!
//! One slow or dead cluster must cost its own requests an error, not everybody's memory and time. It knows nothing of what
//! is asked, except whether it writes.

use super::{Backend, BackendError, BackendStatus, Revision, Txn, TxnResponse, WatchRequest, WatchStream};
use crate::metrics::BackendMetrics;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

/// The limits of a [`Bounded`] backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long a request may take, the wait for its turn included.
    pub deadline: Duration,
    /// So many requests at once; more wait. Watches do not count once they are open.
    pub in_flight_max: usize,
    /// So many requests may wait; more are refused at once.
    pub waiting_max: usize,
    /// After so many requests in a row without an answer the circuit opens.
    pub failures_max: u32,
    /// While it is open requests fail at once; every so often one is let through to see.
    pub probe_every: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            in_flight_max: 256,
            waiting_max: 4096,
            failures_max: 8,
            probe_every: Duration::from_millis(500),
        }
    }
}

/// A backend with limits around another.
pub struct Bounded<B: ?Sized> {
    inner: Arc<B>,
    limits: Limits,
    turns: Arc<Semaphore>,
    /// Turns and places to wait together.
    places: Arc<Semaphore>,
    circuit: Mutex<Circuit>,
    metrics: Option<Arc<BackendMetrics>>,
}

/// Whether requests are let through. Pure.
#[derive(Debug, Default)]
struct Circuit {
    failures: u32,
    /// Open since there is one: when the next request is let through.
    next_probe: Option<Instant>,
    cause: String,
}

/// What an answer, or none, says of a backend.
enum News {
    None,
    /// It is given up for a while.
    Opened,
    Answers,
}

impl<B: Backend + ?Sized> Bounded<B> {
    /// `inner` with these limits.
    #[must_use]
    pub fn new(inner: Arc<B>, limits: Limits) -> Self {
        Self {
            inner,
            limits,
            turns: Arc::new(Semaphore::new(limits.in_flight_max)),
            places: Arc::new(Semaphore::new(
                limits
                    .in_flight_max
                    .saturating_add(limits.waiting_max)
                    .min(Semaphore::MAX_PERMITS),
            )),
            circuit: Mutex::default(),
            metrics: None,
        }
    }

    /// The same, which tells these metrics how many requests are in flight and when the circuit opens.
    #[must_use]
    pub fn with_metrics(self, metrics: Arc<BackendMetrics>) -> Self {
        Self {
            metrics: Some(metrics),
            ..self
        }
    }

    /// Carries out a request within the limits. `writes`: cut off by the deadline, it may have been carried out.
    async fn bounded<T: Send + 'static>(
        &self,
        writes: bool,
        request: impl Future<Output = Result<T, BackendError>> + Send + 'static,
    ) -> Result<T, BackendError> {
        let deadline = Instant::now() + self.limits.deadline;
        let not_sent = |cause: &str| BackendError::Unavailable {
            cause: cause.to_owned(),
            sent: false,
        };
        self.circuit
            .lock()
            .pass(Instant::now(), self.limits.probe_every)?;
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| not_sent("too many requests wait for this cluster"))?;
        let turn = timeout_at(deadline, Arc::clone(&self.turns).acquire_owned()).await;
        // The semaphore is never closed. A turn that comes with the deadline comes too late.
        let turn = turn
            .ok()
            .and_then(Result::ok)
            .filter(|_| Instant::now() < deadline);
        let turn = turn.ok_or_else(|| not_sent("other requests to this cluster took too long"))?;
        self.show_in_flight();
        let run = async move {
            let answer = timeout_at(deadline, request).await;
            drop((turn, place));
            let cause = "no answer in time".to_owned();
            answer.unwrap_or(Err(BackendError::Unavailable { cause, sent: writes }))
        };
        // In a task of its own, which ends with the caller: a caller that does not poll (a list whose reader is slow, and
        // that has asked for the next page) must not keep its turn, nor come too late for an answer that is there.
        let answer = match AbortOnDropHandle::new(tokio::spawn(run)).await {
            Ok(answer) => answer,
            Err(error) => Err(BackendError::Unavailable {
                cause: error.to_string(),
                sent: writes,
            }),
        };
        self.learn(&answer);
        answer
    }

    /// What an answer says of the circuit.
    fn learn<T>(&self, answer: &Result<T, BackendError>) {
        let news = {
            let mut circuit = self.circuit.lock();
            match answer {
                Err(BackendError::Unavailable { cause, .. }) => {
                    circuit.failed(cause, Instant::now(), &self.limits)
                }
                _ => circuit.answered(),
            }
        };
        self.show_in_flight();
        match (&self.metrics, news) {
            (Some(metrics), News::Opened) => metrics.circuit_opened(),
            (Some(metrics), News::Answers) => metrics.set_up(true),
            _ => {}
        }
    }

    fn show_in_flight(&self) {
        if let Some(metrics) = &self.metrics {
            metrics.set_in_flight(
                self.limits
                    .in_flight_max
                    .saturating_sub(self.turns.available_permits()),
            );
        }
    }
}

impl<B: Backend + ?Sized> Backend for Bounded<B> {
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, BackendError>> {
        let writes = !txn.is_read_only();
        let inner = Arc::clone(&self.inner);
        Box::pin(self.bounded(writes, async move { inner.txn(txn).await }))
    }

    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, BackendError>> {
        let inner = Arc::clone(&self.inner);
        Box::pin(self.bounded(false, async move { inner.watch(request).await }))
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), BackendError>> {
        let inner = Arc::clone(&self.inner);
        Box::pin(self.bounded(true, async move { inner.compact(revision).await }))
    }

    fn status(&self) -> BoxFuture<'_, Result<BackendStatus, BackendError>> {
        let inner = Arc::clone(&self.inner);
        Box::pin(self.bounded(false, async move { inner.status().await }))
    }

    fn suspect_member(&self) {
        self.inner.suspect_member();
    }
}

impl<B: fmt::Debug + ?Sized> fmt::Debug for Bounded<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bounded").field(&&*self.inner).finish()
    }
}

impl Circuit {
    /// Lets a request through, or says why not. While open, one request passes every `probe_every`.
    fn pass(&mut self, now: Instant, probe_every: Duration) -> Result<(), BackendError> {
        match self.next_probe {
            Some(at) if now < at => Err(BackendError::Unavailable {
                cause: self.cause.clone(),
                sent: false,
            }),
            Some(_) => {
                self.next_probe = Some(now + probe_every);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn failed(&mut self, cause: &str, now: Instant, limits: &Limits) -> News {
        self.failures = self.failures.saturating_add(1);
        cause.clone_into(&mut self.cause);
        if self.failures < limits.failures_max || self.next_probe.is_some() {
            return News::None;
        }
        self.next_probe = Some(now + limits.probe_every);
        News::Opened
    }

    fn answered(&mut self) -> News {
        *self = Self::default();
        News::Answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Range;
    use crate::metrics::StoreMetrics;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// Answers after a second, or not at all.
    #[derive(Debug, Default)]
    struct Slow {
        dead: AtomicBool,
        silent: AtomicBool,
        asked: AtomicUsize,
    }

    impl Backend for Slow {
        fn txn(&self, _: Txn) -> BoxFuture<'_, Result<TxnResponse, BackendError>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            Box::pin(async {
                if self.dead.load(Ordering::Relaxed) {
                    return Err(BackendError::Unavailable {
                        cause: "refused".into(),
                        sent: false,
                    });
                }
                if self.silent.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(TxnResponse {
                    revision: 1,
                    succeeded: true,
                    responses: Vec::new(),
                })
            })
        }
        fn watch(&self, _: WatchRequest) -> BoxFuture<'_, Result<WatchStream, BackendError>> {
            Box::pin(async { Err(BackendError::FutureRevision) })
        }
        fn compact(&self, _: Revision) -> BoxFuture<'_, Result<(), BackendError>> {
            Box::pin(async { Ok(()) })
        }
        fn status(&self) -> BoxFuture<'_, Result<BackendStatus, BackendError>> {
            Box::pin(async { Ok(BackendStatus::default()) })
        }
    }

    fn read() -> Txn {
        Txn::read([Range::key("a")])
    }

    fn write() -> Txn {
        Txn {
            success: vec![super::super::Op::Delete { key: "a".into() }],
            ..Txn::default()
        }
    }

    fn unavailable(sent: bool) -> impl Fn(&Result<TxnResponse, BackendError>) -> bool {
        move |answer| matches!(answer, Err(BackendError::Unavailable { sent: s, .. }) if *s == sent)
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_cut_off_by_the_deadline_may_have_been_carried_out() {
        let inner = Arc::new(Slow::default());
        inner.silent.store(true, Ordering::Relaxed);
        let bounded = Bounded::new(Arc::clone(&inner), Limits::default());
        let start = Instant::now();
        assert!(unavailable(true)(&bounded.txn(write()).await));
        assert_eq!(start.elapsed(), Limits::default().deadline);
        assert!(unavailable(false)(&bounded.txn(read()).await));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_was_not_sent() {
        let inner = Arc::new(Slow::default());
        let limits = Limits {
            deadline: Duration::from_millis(2500),
            in_flight_max: 1,
            waiting_max: 3,
            failures_max: 100,
            ..Limits::default()
        };
        let bounded = Bounded::new(Arc::clone(&inner), limits);
        let answers = futures::future::join_all((0..5).map(|_| bounded.txn(write()))).await;
        // Two in time, the third cut off half way, the fourth never had its turn, the fifth found no place.
        assert!(answers[0].is_ok() && answers[1].is_ok());
        assert!(unavailable(true)(&answers[2]));
        assert!(unavailable(false)(&answers[3]) && unavailable(false)(&answers[4]));
        assert_eq!(inner.asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_take_the_answer_gives_the_turn_back() {
        let inner = Arc::new(Slow::default());
        let limits = Limits {
            in_flight_max: 1,
            ..Limits::default()
        };
        let bounded = Bounded::new(Arc::clone(&inner), limits);
        let mut ahead = bounded.txn(read());
        assert!(futures::poll!(&mut ahead).is_pending());
        for _ in 0..3 {
            assert!(bounded.txn(write()).await.is_ok());
        }
        tokio::time::sleep(limits.deadline * 2).await;
        assert!(ahead.await.is_ok(), "the answer has been there for long");
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_backend_is_probed_only() {
        let inner = Arc::new(Slow::default());
        let metrics = StoreMetrics::new();
        let up = || metrics.snapshot().first().and_then(|backend| backend.up);
        let limits = Limits {
            failures_max: 3,
            probe_every: Duration::from_secs(1),
            ..Limits::default()
        };
        let bounded =
            Bounded::new(Arc::clone(&inner) as Arc<dyn Backend>, limits).with_metrics(metrics.backend("a"));
        inner.dead.store(true, Ordering::Relaxed);
        for _ in 0..10 {
            assert!(unavailable(false)(&bounded.txn(write()).await));
        }
        assert_eq!(inner.asked.load(Ordering::Relaxed), 3);
        assert_eq!(up(), Some(0.0));
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..10 {
            assert!(unavailable(false)(&bounded.txn(write()).await));
        }
        assert_eq!(inner.asked.load(Ordering::Relaxed), 4);
        inner.dead.store(false, Ordering::Relaxed);
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..10 {
            assert!(bounded.txn(write()).await.is_ok());
        }
        assert_eq!(up(), Some(1.0));
        // An answer that is an error is an answer.
        let request = WatchRequest {
            start: "a".into(),
            end: None,
            start_revision: 0,
            prev_kv: false,
            until: None,
        };
        for _ in 0..10 {
            assert_eq!(
                bounded.watch(request.clone()).await.err(),
                Some(BackendError::FutureRevision)
            );
        }
        assert!(bounded.txn(read()).await.is_ok());
    }
}
