//! Watches: each reads the log itself, at the pace of whoever polls it, and waits for the next revision in between.
//!
//! There is no queue, so a slow watcher costs nothing: it is further back in the log, and at worst finds its place
//! compacted. Woken in the order in which they began to wait, which keeps a simulated run the same for one seed.
//! (`tokio::sync::watch` wakes in a random order.)

use super::Engine;
use crate::backend::{BackendError, Revision, WatchRequest, WatchStream};
use futures::StreamExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::Notify;

/// The newest revision that readers see, and who waits for the next.
#[derive(Debug)]
pub(super) struct Changes {
    revision: AtomicU64,
    closed: AtomicBool,
    notify: Notify,
}

impl Changes {
    pub(super) fn new(revision: Revision) -> Self {
        Self {
            revision: AtomicU64::new(revision),
            closed: AtomicBool::new(false),
            notify: Notify::new(),
        }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision.load(Ordering::Acquire)
    }

    /// A commit is visible. Called before it is acknowledged.
    pub(super) fn publish(&self, revision: Revision) {
        if self.revision.fetch_max(revision, Ordering::AcqRel) < revision {
            self.notify.notify_waiters();
        }
    }

    /// The backend is gone.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.notify.notify_waiters();
    }

    /// Waits until there is this revision; false: there will be none.
    async fn reached(&self, revision: Revision) -> bool {
        loop {
            let notified = self.notify.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.closed.load(Ordering::Acquire) {
                return false;
            }
            if self.revision() >= revision {
                return true;
            }
            notified.await;
        }
    }
}

/// The stream of a watch from `next` on. It does not keep the backend open.
pub(super) fn stream(
    engine: Weak<Engine>,
    changes: Arc<Changes>,
    request: WatchRequest,
    next: Revision,
) -> WatchStream {
    async_stream::stream! {
        let mut next = next;
        while request.until.is_none_or(|until| next <= until) {
            let open = changes.reached(next).await;
            let batch = match engine.upgrade() {
                Some(engine) if open => engine.watch_batch(&request, next).await,
                _ => Err(BackendError::Unavailable { cause: "the backend was closed".to_owned(), sent: false }),
            };
            match batch {
                Ok(Some(batch)) => {
                    next = batch.revision + 1;
                    yield Ok(batch);
                }
                Ok(None) => {}
                Err(error) => {
                    yield Err(error);
                    return;
                }
            }
        }
    }
    .boxed()
}
