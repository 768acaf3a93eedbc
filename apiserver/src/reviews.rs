//! Questions to the control plane about users (TokenReview, SubjectAccessReview): an answer is kept for a while, equal
//! questions at one time share one call, a call that fails for a moment is repeated, and so many run at once.
//!
//! It does not know what is asked: keys are digests and answers are values. A call is driven by those who wait for it, so
//! nothing is spawned; when all of them have gone, it ends.

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

/// Repetitions of a call, as kube-apiserver's delegation does them: 0.5 s, 0.75 s, 1.1 s, 1.7 s, each a bit longer.
const TRIES_MAX: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const PAUSE_FACTOR: f64 = 1.5;
const PAUSE_JITTER: f64 = 0.2;

/// What a question is known by: it says nothing of a token to whoever reads memory.
pub type Key = [u8; 32];

/// What reviews may use, and how long they wait.
#[derive(Debug, Clone, Copy)]
pub struct ReviewLimits {
    /// Answers that are kept.
    pub answers_max: usize,
    /// Calls at once; further ones wait for their turn as long as their requests may.
    pub calls_max: usize,
    /// How long one call may take.
    pub call_timeout: Duration,
}

/// Why there is no answer. Who runs the control plane must act; the request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// kube-apiserver answered, but not the question.
    #[error("{message}")]
    Refused {
        /// The status code.
        code: u16,
        /// What it said.
        message: String,
    },
    /// It did not answer.
    #[error("{0}")]
    Unreachable(String),
    /// It did not answer in time.
    #[error("context deadline exceeded")]
    TimedOut,
}

/// Answers, and the calls that are under way. Cheap to clone.
pub struct Reviews<A> {
    inner: Arc<Inner<A>>,
}

struct Inner<A> {
    limits: ReviewLimits,
    places: Semaphore,
    /// Makes keys of one process useless in another.
    salt: u64,
    rng: Mutex<StdRng>,
    state: Mutex<State<A>>,
}

struct State<A> {
    answers: HashMap<Key, Answer<A>>,
    /// Keys in the order of their answers, the oldest first. A key may stand here more than once; then its last place
    /// counts.
    order: VecDeque<(Key, u64)>,
    calls: HashMap<Key, Call<A>>,
    next: u64,
}

struct Answer<A> {
    answer: A,
    until: Instant,
    number: u64,
}

type Outcome<A> = Result<A, ReviewError>;

struct Call<A> {
    number: u64,
    waiters: WeakShared<BoxFuture<'static, Outcome<A>>>,
}

/// Takes a call out of the list when it is over, however it ended.
struct UnderWay<A> {
    inner: Arc<Inner<A>>,
    key: Key,
    number: u64,
}

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked<A> {
    /// The answer.
    pub outcome: Outcome<A>,
    /// Whether it was known before.
    pub hit: bool,
}

impl<A> Clone for Reviews<A> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<A: Clone + Send + Sync + 'static> Reviews<A> {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(limits: ReviewLimits, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Self {
            inner: Arc::new(Inner {
                limits,
                places: Semaphore::new(limits.calls_max),
                salt: rng.random(),
                rng: Mutex::new(rng),
                state: Mutex::new(State {
                    answers: HashMap::new(),
                    order: VecDeque::new(),
                    calls: HashMap::new(),
                    next: 0,
                }),
            }),
        }
    }

    /// What a question is known by.
    #[must_use]
    pub fn key(&self, question: &[u8]) -> Key {
        let mut digest = Sha256::new();
        digest.update(self.inner.salt.to_be_bytes());
        digest.update(question);
        digest.finalize().into()
    }

    /// The answer to `key`: the one that is known, that of a call under way, or that of `call`. It is kept as long as
    /// `keep` says; errors are never kept.
    pub async fn ask<F, C>(&self, key: Key, keep: fn(&A) -> Duration, call: F) -> Asked<A>
    where
        F: FnMut() -> C + Send + 'static,
        C: Future<Output = Result<A, kube::Error>> + Send + 'static,
    {
        let waiting = {
            let mut state = self.inner.state.lock();
            if let Some(known) = state.known(&key) {
                return Asked {
                    outcome: Ok(known),
                    hit: true,
                };
            }
            match state.calls.get(&key).and_then(|call| call.waiters.upgrade()) {
                Some(under_way) => under_way,
                None => self.begin(&mut state, key, keep, call),
            }
        };
        Asked {
            outcome: waiting.await,
            hit: false,
        }
    }

    fn begin<F, C>(
        &self,
        state: &mut State<A>,
        key: Key,
        keep: fn(&A) -> Duration,
        call: F,
    ) -> Shared<BoxFuture<'static, Outcome<A>>>
    where
        F: FnMut() -> C + Send + 'static,
        C: Future<Output = Result<A, kube::Error>> + Send + 'static,
    {
        let number = state.number();
        let under_way = UnderWay {
            inner: Arc::clone(&self.inner),
            key,
            number,
        };
        let run = async move {
            let inner = &under_way.inner;
            let outcome = inner.call(call).await;
            if let Ok(answer) = &outcome {
                let until = Instant::now() + keep(answer);
                let answers_max = inner.limits.answers_max;
                inner.state.lock().keep(key, answer.clone(), until, answers_max);
            }
            drop(under_way);
            outcome
        };
        let waiting = run.boxed().shared();
        // It was not polled yet, so it is there.
        if let Some(waiters) = waiting.downgrade() {
            state.calls.insert(key, Call { number, waiters });
        }
        waiting
    }
}

impl<A> Inner<A> {
    /// Calls, and calls again what failed for a moment.
    async fn call<F, C>(&self, mut call: F) -> Outcome<A>
    where
        F: FnMut() -> C,
        C: Future<Output = Result<A, kube::Error>>,
    {
        // The semaphore is never closed.
        let Ok(_place) = self.places.acquire().await else {
            return Err(ReviewError::TimedOut);
        };
        let mut pause = FIRST_PAUSE;
        let mut tries = 1;
        loop {
            let error = match timeout(self.limits.call_timeout, call()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => return Err(ReviewError::TimedOut),
            };
            if tries == TRIES_MAX || !is_momentary(&error) {
                return Err(ReviewError::from(&error));
            }
            let jitter = 1.0 + self.rng.lock().random::<f64>() * PAUSE_JITTER;
            sleep(pause.mul_f64(jitter)).await;
            pause = pause.mul_f64(PAUSE_FACTOR);
            tries += 1;
        }
    }
}

impl<A: Clone> State<A> {
    fn known(&self, key: &Key) -> Option<A> {
        let answer = self.answers.get(key)?;
        (Instant::now() < answer.until).then(|| answer.answer.clone())
    }

    fn keep(&mut self, key: Key, answer: A, until: Instant, answers_max: usize) {
        let number = self.number();
        self.answers.insert(
            key,
            Answer {
                answer,
                until,
                number,
            },
        );
        self.order.push_back((key, number));
        // The oldest go first: those that were replaced, those that are over, and then as many as are too many.
        while let Some((key, number)) = self.order.front() {
            let answer = self.answers.get(key).filter(|answer| answer.number == *number);
            let is_over = answer.is_none_or(|answer| answer.until <= Instant::now());
            if !is_over && self.answers.len() <= answers_max {
                break;
            }
            if answer.is_some() {
                self.answers.remove(key);
            }
            self.order.pop_front();
        }
    }
}

impl<A> State<A> {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl<A> Drop for UnderWay<A> {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        if state
            .calls
            .get(&self.key)
            .is_some_and(|call| call.number == self.number)
        {
            state.calls.remove(&self.key);
        }
    }
}

impl From<&kube::Error> for ReviewError {
    fn from(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused {
                code: status.code,
                message: status.message.clone(),
            },
            other => Self::Unreachable(other.to_string()),
        }
    }
}

/// The label of a call in metrics: the code, or what upstream says when there was none.
#[must_use]
pub fn code_of<A>(outcome: &Result<A, kube::Error>) -> String {
    match outcome {
        Ok(_) => "201".to_owned(),
        Err(kube::Error::Api(status)) => status.code.to_string(),
        Err(_) => "<error>".to_owned(),
    }
}

/// Whether it may go better the next time. A review changes nothing, so a broken connection is no reason to doubt.
fn is_momentary(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => {
            let says_when = status.details.as_ref().is_some_and(|d| d.retry_after_seconds > 0);
            matches!(status.code, 429 | 500 | 503 | 504) || says_when
        }
        kube::Error::Service(_) | kube::Error::HyperError(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    const LIMITS: ReviewLimits = ReviewLimits {
        answers_max: 4,
        calls_max: 2,
        call_timeout: Duration::from_secs(10),
    };

    fn keep(_: &u32) -> Duration {
        Duration::from_secs(10)
    }

    fn status(code: u16) -> kube::Error {
        let status = kube::core::Status {
            code,
            message: format!("code {code}"),
            ..Default::default()
        };
        kube::Error::Api(Box::new(status))
    }

    /// A call that takes 50 ms and answers how often it was made.
    fn counting(
        calls: &Arc<AtomicU32>,
    ) -> impl FnMut() -> BoxFuture<'static, Result<u32, kube::Error>> + use<> {
        let calls = Arc::clone(calls);
        move || {
            let n = calls.fetch_add(1, Ordering::Relaxed) + 1;
            sleep(Duration::from_millis(50)).map(move |()| Ok(n)).boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn equal_questions_share_a_call_and_its_answer_for_ten_seconds() {
        let (reviews, calls) = (Reviews::new(LIMITS, 1), Arc::default());
        let key = reviews.key(b"token");
        let asked =
            futures::future::join_all((0..100).map(|_| reviews.ask(key, keep, counting(&calls)))).await;
        assert!(asked.iter().all(|a| a.outcome == Ok(1) && !a.hit));
        sleep(Duration::from_secs(9)).await;
        let again = reviews.ask(key, keep, counting(&calls)).await;
        assert_eq!((again.outcome, again.hit), (Ok(1), true));
        sleep(Duration::from_secs(2)).await;
        let later = reviews.ask(key, keep, counting(&calls)).await;
        assert_eq!((later.outcome, later.hit), (Ok(2), false));
        assert_ne!(key, reviews.key(b"other"));
        assert_ne!(key, Reviews::<u32>::new(LIMITS, 2).key(b"token"), "salted");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_began_a_call_may_go_and_nobody_leaves_one_behind() {
        let (reviews, calls) = (Reviews::new(LIMITS, 1), Arc::default());
        let key = reviews.key(b"a");
        let first = reviews.ask(key, keep, counting(&calls));
        let second = reviews.ask(key, keep, counting(&calls));
        let (first, second) = tokio::join!(timeout(Duration::from_millis(10), first), second);
        assert!(first.is_err(), "it has gone");
        assert_eq!(second.outcome, Ok(1), "the call went on without it");
        let key = reviews.key(b"b");
        let alone = timeout(
            Duration::from_millis(10),
            reviews.ask(key, keep, counting(&calls)),
        )
        .await;
        assert!(alone.is_err());
        assert!(reviews.inner.state.lock().calls.is_empty());
        assert_eq!(reviews.inner.places.available_permits(), LIMITS.calls_max);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_and_calls_are_bounded() {
        let (reviews, calls) = (Reviews::new(LIMITS, 1), Arc::default());
        let started = Instant::now();
        let asked = (0..10_u8).map(|i| reviews.ask(reviews.key(&[i]), keep, counting(&calls)));
        futures::future::join_all(asked).await;
        assert_eq!(started.elapsed().as_millis() / 50, 5, "two at a time");
        let state = reviews.inner.state.lock();
        assert_eq!((state.answers.len(), state.order.len()), (4, 4));
        assert!(
            state.answers.contains_key(&reviews.key(&[9])) && !state.answers.contains_key(&reviews.key(&[0]))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_for_a_moment_is_tried_again_and_errors_are_not_kept() {
        let check = async |code: u16, failures: u32, expect: Outcome<u32>, made: u32| {
            let (reviews, calls) = (Reviews::new(LIMITS, 1), Arc::new(AtomicU32::new(0)));
            let seen = Arc::clone(&calls);
            let call = move || {
                let n = seen.fetch_add(1, Ordering::Relaxed) + 1;
                let outcome = if n > failures { Ok(n) } else { Err(status(code)) };
                futures::future::ready(outcome)
            };
            let key = reviews.key(b"x");
            let asked = reviews.ask(key, keep, call).await;
            assert_eq!(
                (asked.outcome, calls.load(Ordering::Relaxed)),
                (expect.clone(), made),
                "{code}"
            );
            if expect.is_err() {
                assert!(reviews.inner.state.lock().answers.is_empty());
            }
        };
        let refused = |code| {
            let message = format!("code {code}");
            Err(ReviewError::Refused { code, message })
        };
        check(503, 2, Ok(3), 3).await;
        check(500, 9, refused(500), TRIES_MAX).await;
        check(403, 9, refused(403), 1).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_does_not_come_back_is_given_up() {
        let reviews = Reviews::<u32>::new(LIMITS, 1);
        let started = Instant::now();
        let asked = reviews
            .ask(reviews.key(b"x"), keep, futures::future::pending)
            .await;
        assert_eq!(
            (asked.outcome, started.elapsed().as_secs()),
            (Err(ReviewError::TimedOut), 10)
        );
    }
}
