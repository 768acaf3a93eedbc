//! The address of a backend, behind which another store may stand from one moment to the next, and the connections to it.
//!
//! A store has a life: it begins empty, or as a copy of an earlier state of the life before (a backup that is restored).
//! Nobody is told when it is replaced; that connections break is up to whoever replaces it.

use super::truth::{RawLog, record_log};
use futures::FutureExt;
use futures::future::BoxFuture;
use outrigger_storage::backend::embedded::{EmbeddedBackend, EmbeddedOptions};
use outrigger_storage::backend::{
    Backend, BackendError, BackendStatus, Revision, Txn, TxnResponse, WatchRequest, WatchStream,
};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What stands there now.
#[derive(Debug)]
pub(super) struct Site(Mutex<Stands>);

#[derive(Debug, Clone)]
struct Stands {
    store: Arc<EmbeddedBackend>,
    /// Its etcd's cluster id.
    id: u64,
    down: bool,
}

/// A store, from its beginning to the end of the run.
#[derive(Clone)]
pub(super) struct Life {
    pub(super) store: Arc<EmbeddedBackend>,
    pub(super) log: Rc<RefCell<RawLog>>,
    /// What is at or below this revision it has from the life before.
    pub(super) from: Revision,
    id: u64,
    quota_bytes: u64,
}

impl Life {
    /// The first. `quota_bytes`: 0: it has none.
    pub(super) fn first(quota_bytes: u64) -> Self {
        let options = EmbeddedOptions {
            quota_bytes,
            ..EmbeddedOptions::default()
        };
        Self {
            store: Arc::new(EmbeddedBackend::in_memory_with(options)),
            log: Rc::default(),
            from: 0,
            id: 1,
            quota_bytes,
        }
    }

    /// One that begins as `backup`, a copy of this one as it was at a revision; `None`: it begins empty.
    pub(super) fn next(&self, backup: Option<(EmbeddedBackend, Revision)>, is_other: bool) -> Self {
        let id = self.id + u64::from(is_other);
        let Some((store, from)) = backup else {
            return Self {
                id,
                ..Self::first(self.quota_bytes)
            };
        };
        let log = self.log.borrow().up_to(from);
        Self {
            store: Arc::new(store),
            log: Rc::new(RefCell::new(log)),
            from,
            id,
            quota_bytes: self.quota_bytes,
        }
    }

    /// Follows its log until the run ends.
    pub(super) fn record(&self) {
        let recorded = record_log(self.store.clone(), self.from + 1, self.log.clone());
        tokio::task::spawn_local(recorded);
    }
}

impl Site {
    pub(super) fn new(life: &Life) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Stands {
            store: life.store.clone(),
            id: life.id,
            down: false,
        })))
    }

    /// The server stops.
    pub(super) fn stop(&self) {
        self.0.lock().down = true;
    }

    /// It is started on this store.
    pub(super) fn start(&self, life: &Life) {
        *self.0.lock() = Stands {
            store: life.store.clone(),
            id: life.id,
            down: false,
        };
    }

    /// What stands there, for whoever holds the machine.
    pub(super) fn store(&self) -> Arc<EmbeddedBackend> {
        self.0.lock().store.clone()
    }
}

/// How a replica is connected: as the client of etcd, it remembers which cluster it has met.
#[derive(Debug)]
pub(super) struct Line {
    site: Arc<Site>,
    met: Mutex<Option<u64>>,
    /// Puts that did not fit.
    no_space: Arc<AtomicU64>,
}

impl Line {
    pub(super) fn new(site: &Arc<Site>, no_space: &Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self {
            site: site.clone(),
            met: Mutex::default(),
            no_space: no_space.clone(),
        })
    }

    /// The store, if it is the one that was met before. It is asked before anything is sent.
    fn store(&self) -> Result<Arc<EmbeddedBackend>, BackendError> {
        let stands = self.site.0.lock().clone();
        if stands.down {
            return Err(BackendError::Unavailable {
                cause: "connection refused".to_owned(),
                sent: false,
            });
        }
        match *self.met.lock().get_or_insert(stands.id) == stands.id {
            true => Ok(stands.store),
            false => Err(BackendError::OtherStore("another cluster id".to_owned())),
        }
    }
}

impl Backend for Line {
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, BackendError>> {
        async move {
            let answer = self.store()?.txn(txn).await;
            if answer == Err(BackendError::NoSpace) {
                self.no_space.fetch_add(1, Ordering::Relaxed);
            }
            answer
        }
        .boxed()
    }

    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, BackendError>> {
        async move { self.store()?.watch(request).await }.boxed()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), BackendError>> {
        async move { self.store()?.compact(revision).await }.boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<BackendStatus, BackendError>> {
        async move { self.store()?.status().await }.boxed()
    }
}
