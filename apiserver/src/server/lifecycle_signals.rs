//! The named moments of start and stop.
//!
//! ```text
//!  all latches set                                     readyz succeeds
//!       |
//!  ShutdownInitiated            readyz fails, everything else goes on: load balancers look elsewhere
//!       |  shutdown_delay
//!  AfterShutdownDelay           the listener closes; connections get GOAWAY (HTTP/2) or `Connection: close`
//!       |  until all clients know (`quiescence`)
//!  NotAcceptingNewRequest       watches end cleanly, and are opened elsewhere; requests in flight go on
//!       |  until the last one is answered, at most drain_timeout
//!  Drained                      what is left is cut; the store may be closed
//! ```
//!
//! Nothing here acts: who acts waits for a signal and raises the next one.

use tokio_util::sync::CancellationToken;

/// A moment that comes once. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Signal {
    name: &'static str,
    token: CancellationToken,
}

/// The moments.
#[derive(Debug, Clone)]
pub struct LifecycleSignals {
    /// Somebody wants the server to stop.
    pub shutdown_initiated: Signal,
    /// Load balancers had time to notice.
    pub after_shutdown_delay: Signal,
    /// No client opens anything here any more.
    pub not_accepting_new_request: Signal,
    /// Every connection is closed.
    pub drained: Signal,
}

impl Signal {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            token: CancellationToken::new(),
        }
    }

    /// The moment is now.
    pub fn signal(&self) {
        if !self.token.is_cancelled() {
            tracing::info!(name = self.name, "[graceful-termination] shutdown event");
            self.token.cancel();
        }
    }

    /// Whether the moment has come.
    #[must_use]
    pub fn is_signaled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits for the moment.
    pub async fn signaled(&self) {
        self.token.cancelled().await;
    }

    /// The same as a token, for those who know nothing of lifecycles.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }
}

impl Default for LifecycleSignals {
    fn default() -> Self {
        Self {
            shutdown_initiated: Signal::new("ShutdownInitiated"),
            after_shutdown_delay: Signal::new("AfterShutdownDelayDuration"),
            not_accepting_new_request: Signal::new("NotAcceptingNewRequest"),
            drained: Signal::new("InFlightRequestsDrained"),
        }
    }
}
