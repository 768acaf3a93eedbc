//! `Signal`: something changed. Any number of listeners wait for the next change, and none is missed.
//!
//! Like `tokio::sync::watch` without a value; that one wakes its receivers in a random order, and a simulated run must
//! follow from its seed alone. Listeners wake in the order in which they began to wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// Raised at every change.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signal(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    raised: AtomicU64,
    notify: Notify,
}

/// Waits for changes; sees all that come after its last look.
#[derive(Debug, Clone)]
pub(crate) struct Listener {
    signal: Signal,
    seen: u64,
}

impl Signal {
    pub(crate) fn raise(&self) {
        self.0.raised.fetch_add(1, Ordering::SeqCst);
        self.0.notify.notify_waiters();
    }

    /// A listener that has seen all changes up to now.
    pub(crate) fn listen(&self) -> Listener {
        Listener {
            signal: self.clone(),
            seen: self.0.raised.load(Ordering::SeqCst),
        }
    }
}

impl Listener {
    /// From here on only later changes count.
    pub(crate) fn mark_seen(&mut self) {
        self.seen = self.signal.0.raised.load(Ordering::SeqCst);
    }

    /// Returns once there was a change since the last look. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        loop {
            let notified = self.signal.0.notify.notified();
            tokio::pin!(notified);
            // Waiting begins before the look, so that no change falls between the two.
            notified.as_mut().enable();
            let raised = self.signal.0.raised.load(Ordering::SeqCst);
            if raised != self.seen {
                self.seen = raised;
                return;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_change_is_missed() {
        let signal = Signal::default();
        let mut listener = signal.listen();
        signal.raise();
        listener.changed().await;
        let later = tokio::spawn({
            let mut listener = listener.clone();
            async move { listener.changed().await }
        });
        tokio::task::yield_now().await;
        assert!(!later.is_finished());
        signal.raise();
        later.await.expect("woken");
    }
}
