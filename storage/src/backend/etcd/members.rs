//! The members of one etcd as one: who is asked first, who next, and when.
//!
//! It knows what a failure means for the next member, and nothing of what is asked.

use super::super::BackendError;
use super::connect::{Connection, Member, Purpose};
use super::error::Failure;
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use parking_lot::RwLock;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

/// The members, and who answered last.
pub(super) struct Members {
    /// Replaced as a whole. The places below may lie beyond its end for a moment: they only say who is asked first.
    members: RwLock<Arc<[Arc<Member>]>>,
    /// The member that answered last.
    preferred: AtomicUsize,
    /// The member that the newest watch is on.
    watched: AtomicUsize,
    /// A member that takes longer is silent.
    silent: Duration,
}

impl Members {
    /// There must be at least one.
    pub(super) fn new(members: Vec<Arc<Member>>, silent: Duration) -> Self {
        let (preferred, watched) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self {
            members: RwLock::new(members.into()),
            preferred,
            watched,
            silent,
        }
    }

    /// The members of now.
    pub(super) fn all(&self) -> Arc<[Arc<Member>]> {
        Arc::clone(&self.members.read())
    }

    /// Other members. What runs on those that are not among them goes on there.
    pub(super) fn replace(&self, members: Vec<Arc<Member>>) {
        *self.members.write() = members.into();
    }

    /// Connects anew to all members. One that accepts is enough: others may be down.
    pub(super) async fn renew(&self) -> Result<(), Failure> {
        let members = self.all();
        let mut seen = Seen::default();
        let mut is_accepted = false;
        for renewed in join_all(members.iter().map(|member| member.renew())).await {
            match renewed {
                Ok(()) => is_accepted = true,
                Err(failure) => seen.not_connected(failure),
            }
        }
        match is_accepted {
            true => Ok(()),
            false => Err(seen.into_failure()),
        }
    }

    /// The members, the one that answered last first, those that failed a moment ago last.
    fn order(&self) -> Vec<(usize, Arc<Member>)> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        let members = self.all();
        let count = members.len();
        let mut order: Vec<_> = members
            .iter()
            .cycle()
            .enumerate()
            .skip(preferred)
            .take(count)
            .map(|(i, member)| (i % count, Arc::clone(member)))
            .collect();
        order.sort_by_key(|(_, member)| member.is_avoided());
        order
    }

    /// Asks the members one after the other. `repeat`: also when the one before may have carried it out, or has been
    /// silent for a while; then the first answer counts.
    pub(super) async fn ask<A, F, Fut>(&self, purpose: Purpose, repeat: bool, ask: F) -> Result<A, Failure>
    where
        F: Fn(Connection, String) -> Fut,
        Fut: Future<Output = Result<A, Failure>>,
    {
        let mut order = self.order().into_iter();
        let is_alone = order.len() == 1;
        let mut asked = FuturesUnordered::new();
        asked.extend(
            order
                .next()
                .map(|(index, member)| self.ask_one(purpose, index, member, &ask)),
        );
        let mut reconnects = usize::from(is_alone);
        let mut seen = Seen::default();
        loop {
            let waits_only_so_long = repeat && order.len() > 0;
            let outcome = tokio::select! {
                biased;
                Some(outcome) = asked.next() => outcome,
                () = sleep(self.silent), if waits_only_so_long => {
                    asked.extend(order.next().map(|(index, member)| self.ask_one(purpose, index, member, &ask)));
                    continue;
                }
                else => return Err(seen.into_failure()),
            };
            match outcome {
                Outcome::Answered(answer) => return Ok(answer),
                Outcome::Failed(failure @ Failure::Unavailable(_)) if repeat => seen.unavailable(failure),
                Outcome::Failed(failure @ Failure::NotSent(_)) => seen.not_connected(failure),
                Outcome::Failed(failure) => return Err(failure),
                Outcome::NotConnected(failure) => {
                    seen.not_connected(failure);
                    reconnects = 0;
                }
            }
            let next = match order.next() {
                // A connection that broke under the request is made anew once.
                None if reconnects > 0 => {
                    reconnects -= 1;
                    self.order().into_iter().next()
                }
                next => next,
            };
            asked.extend(next.map(|(index, member)| self.ask_one(purpose, index, member, &ask)));
        }
    }

    async fn ask_one<A, F, Fut>(
        &self,
        purpose: Purpose,
        index: usize,
        member: Arc<Member>,
        ask: &F,
    ) -> Outcome<A>
    where
        F: Fn(Connection, String) -> Fut,
        Fut: Future<Output = Result<A, Failure>>,
    {
        let patience = Patience {
            member: &member,
            since: Instant::now(),
            silent: self.silent,
        };
        let connection = match member.connection(purpose).await {
            Ok(connection) => connection,
            Err(failure) => {
                patience.rewarded();
                member.fails(&failure);
                return Outcome::NotConnected(failure);
            }
        };
        let answer = ask(connection, member.name()).await;
        patience.rewarded();
        match answer {
            Ok(answer) => {
                member.answers();
                self.preferred.store(index, Ordering::Relaxed);
                if purpose == Purpose::Watches {
                    self.watched.store(index, Ordering::Relaxed);
                }
                Outcome::Answered(answer)
            }
            Err(failure) => {
                if matches!(failure, Failure::Unavailable(_)) {
                    member.fails(&failure);
                }
                Outcome::Failed(failure)
            }
        }
    }

    /// The member of the newest watch seems to lag: its watches end, and others are asked first.
    pub(super) fn suspect_watched(&self) {
        let suspected = self.watched.load(Ordering::Relaxed);
        let members = self.all();
        if let Some(member) = members.get(suspected) {
            member.suspect();
        }
        let next = (suspected + 1) % members.len().max(1);
        // Unless requests have gone elsewhere already.
        let _ = self
            .preferred
            .compare_exchange(suspected, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.all().fmt(f)
    }
}

/// Runs on while the caller does not poll, and ends with the caller. A page that a slow reader has asked for ahead would
/// otherwise stay in the connection's window, and a few of them would stop every request, ticks included.
pub(super) async fn detached<A: Send + 'static>(
    call: impl Future<Output = Result<A, Failure>> + Send + 'static,
) -> Result<A, Failure> {
    match AbortOnDropHandle::new(tokio::spawn(call)).await {
        Ok(answer) => answer,
        Err(error) => Err(Failure::Unavailable(error.to_string())),
    }
}

/// What came of asking one member.
enum Outcome<A> {
    Answered(A),
    /// There is no connection to it.
    NotConnected(Failure),
    Failed(Failure),
}

/// Whoever stops waiting for a member that has been silent for a while makes it the last to be asked: the caller's deadline
/// may be shorter than ours.
struct Patience<'a> {
    member: &'a Member,
    since: Instant,
    silent: Duration,
}

impl Patience<'_> {
    /// It said something.
    fn rewarded(self) {
        std::mem::forget(self);
    }
}

impl Drop for Patience<'_> {
    fn drop(&mut self) {
        if self.since.elapsed() >= self.silent {
            self.member.avoid();
        }
    }
}

/// Why the members did not answer, told as one failure.
#[derive(Default)]
struct Seen {
    causes: Vec<String>,
    refused: Option<BackendError>,
    sent: bool,
}

impl Seen {
    fn not_connected(&mut self, failure: Failure) {
        match failure {
            Failure::NotSent(cause) | Failure::Unavailable(cause) | Failure::AnswerTooLarge(cause) => {
                self.add(cause);
            }
            Failure::Final(error) => self.refused = Some(error),
        }
    }

    fn unavailable(&mut self, failure: Failure) {
        self.sent = true;
        self.not_connected(failure);
    }

    fn add(&mut self, cause: String) {
        if !self.causes.contains(&cause) {
            self.causes.push(cause);
        }
    }

    fn into_failure(self) -> Failure {
        let causes = self.causes.join("; ");
        match self.refused {
            // A refusal says more than silence, and who runs the cluster must act.
            Some(refusal) if !self.sent => Failure::Final(refusal),
            _ if self.sent => Failure::Unavailable(causes),
            _ => Failure::NotSent(causes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::connect::{ClusterId, Endpoint, Timing};
    use super::*;

    fn members(urls: &[&str]) -> Members {
        let second = Duration::from_secs(1);
        let timing = Timing {
            connect: second,
            request: second,
            keepalive_interval: second,
            keepalive_timeout: second,
            progress: second,
        };
        let member = |url: &&str| {
            let endpoint = Endpoint::parse(url, None).expect("a URL");
            Arc::new(Member::new(endpoint, timing, ClusterId::default()))
        };
        Members::new(urls.iter().map(member).collect(), timing.silent())
    }

    #[test]
    fn members_are_asked_in_the_order_of_their_answers() {
        let members = members(&["http://a:1", "http://b:1", "http://c:1"]);
        let order = || members.order().into_iter().map(|(i, _)| i).collect::<Vec<_>>();
        assert_eq!(order(), [0, 1, 2]);
        members.preferred.store(1, Ordering::Relaxed);
        assert_eq!(order(), [1, 2, 0]);
        members.all()[2].avoid();
        assert_eq!(order(), [1, 0, 2]);
        // Requests are elsewhere than the watch whose member is suspected.
        members.suspect_watched();
        assert_eq!(order(), [1, 2, 0]);
        members.watched.store(1, Ordering::Relaxed);
        members.suspect_watched();
        assert_eq!(order(), [2, 0, 1]);
    }

    #[test]
    fn failures_of_several_members_are_told_as_one() {
        let check = |failures: &[(bool, Failure)], expect: Failure| {
            let mut seen = Seen::default();
            for (sent, failure) in failures {
                match sent {
                    true => seen.unavailable(failure.clone()),
                    false => seen.not_connected(failure.clone()),
                }
            }
            assert_eq!(seen.into_failure(), expect);
        };
        let refused = Failure::Final(BackendError::Refused("old".into()));
        check(
            &[
                (false, Failure::NotSent("a".into())),
                (false, Failure::NotSent("b".into())),
            ],
            Failure::NotSent("a; b".into()),
        );
        check(
            &[(false, Failure::NotSent("a".into())), (false, refused.clone())],
            refused.clone(),
        );
        check(
            &[(true, Failure::Unavailable("a".into())), (false, refused)],
            Failure::Unavailable("a".into()),
        );
    }
}
