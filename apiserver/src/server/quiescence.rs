//! What an HTTP/2 connection does before it says GOAWAY: it looks for a moment in which its client is not about to send a
//! request with a body.
//!
//! Go's HTTP/2 client, and with it kube-apiserver's proxy, picks a connection before it opens a stream on it. If GOAWAY
//! arrives in between, it closes the body, cannot send it on another connection, and whoever asked gets 503 ("cannot rewind
//! body after connection loss") for a request that never left. Most who write wait for one answer before they ask again;
//! so answers are held back for a moment, no new requests come, and then it is said. Whoever sends all the time without
//! waiting is told after a while all the same.
//!
//! It knows nothing of why the connection ends.

use parking_lot::Mutex;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// How long it is tried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// No request for so long is silence.
    quiet: Duration,
    /// Without silence it is said after this time.
    at_most: Duration,
    /// So long after it was said the client has read it.
    read_within: Duration,
}

/// When the server stops: once in the life of a connection.
pub(crate) const STOPPING: Patience = Patience {
    quiet: Duration::from_millis(50),
    at_most: Duration::from_millis(300),
    read_within: Duration::from_millis(50),
};

/// When the client shall look for another server: once in a while, under load.
pub(crate) const REBALANCING: Patience = Patience {
    quiet: Duration::from_millis(10),
    at_most: Duration::from_millis(30),
    read_within: Duration::from_millis(10),
};

impl Patience {
    /// How long it takes at most until the client knows.
    pub(crate) const fn longest(self) -> Duration {
        self.at_most.saturating_add(self.read_within)
    }
}

/// Of one connection.
#[derive(Debug)]
pub(crate) struct Quiescence {
    last_body: Mutex<Option<Instant>>,
    is_held: watch::Sender<bool>,
}

impl Default for Quiescence {
    fn default() -> Self {
        Self {
            last_body: Mutex::new(None),
            is_held: watch::Sender::new(false),
        }
    }
}

impl Quiescence {
    /// A request with a body has come. (Others can be sent again.)
    pub(crate) fn body_came(&self) {
        *self.last_body.lock() = Some(Instant::now());
    }

    /// Waits while answers are held back.
    pub(crate) async fn may_answer(&self) {
        // It fails only when the sender, which is ours, is gone.
        let _ = self.is_held.subscribe().wait_for(|is_held| !is_held).await;
    }

    /// Holds answers back until no request comes any more. At once on a connection that never had one with a body.
    pub(crate) async fn begin(&self, patience: Patience) {
        if self.last_body.lock().is_none() {
            return;
        }
        self.is_held.send_replace(true);
        let began = Instant::now();
        loop {
            let last = self.last_body.lock().map_or(began, |last| last.max(began));
            let silence = (last + patience.quiet).min(began + patience.at_most);
            if Instant::now() >= silence {
                return;
            }
            sleep_until(silence).await;
        }
    }

    /// The client was told: gives it time to read that, and lets answers go.
    pub(crate) async fn end(&self, patience: Patience) {
        if *self.is_held.borrow() {
            sleep(patience.read_within).await;
            self.is_held.send_replace(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn answers_are_held_until_the_client_is_silent_and_has_heard_of_it() {
        let connection = Arc::new(Quiescence::default());
        connection.body_came();
        let began = Instant::now();
        let sender = {
            let connection = Arc::clone(&connection);
            tokio::spawn(async move {
                sleep(Duration::from_millis(30)).await;
                connection.body_came();
            })
        };
        connection.begin(STOPPING).await;
        assert_eq!(began.elapsed(), Duration::from_millis(80));
        assert!(connection.may_answer().now_or_never().is_none());
        connection.end(STOPPING).await;
        assert_eq!(began.elapsed(), Duration::from_millis(130));
        assert!(connection.may_answer().now_or_never().is_some());
        sender.await.expect("it ends");
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_is_silent_is_told_all_the_same() {
        let connection = Arc::new(Quiescence::default());
        connection.body_came();
        let sender = {
            let connection = Arc::clone(&connection);
            tokio::spawn(async move {
                loop {
                    connection.body_came();
                    sleep(Duration::from_millis(1)).await;
                }
            })
        };
        let began = Instant::now();
        connection.begin(REBALANCING).await;
        assert_eq!(began.elapsed(), REBALANCING.at_most);
        connection.end(REBALANCING).await;
        assert_eq!(began.elapsed(), REBALANCING.longest());
        sender.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn who_only_reads_waits_for_nothing() {
        let connection = Quiescence::default();
        assert!(connection.begin(STOPPING).now_or_never().is_some());
        assert!(connection.may_answer().now_or_never().is_some());
        assert!(connection.end(STOPPING).now_or_never().is_some());
    }
}
