//! `Backend` without a server: etcd's semantics on redb in a file, or in memory.
//!
//! In a file, acknowledged transactions survive `kill -9`, and work that blocks runs on tokio's blocking threads. In
//! memory everything runs in place, without threads, tasks or timers, so that a simulated run is the same for one seed.
//! It does not know what is stored.

mod mvcc;
mod redb_engine;
mod redb_tables;
mod tables;
mod watchers;

use crate::backend::{
    Backend, BackendError, BackendStatus, Revision, Txn, TxnResponse, WatchBatch, WatchRequest, WatchStream,
};
use futures::future::{BoxFuture, FutureExt};
use mvcc::{Answer, Request};
use parking_lot::Mutex;
use redb_engine::{OpenError, RedbEngine};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tables::{MemoryTables, Meta};
use watchers::Changes;

/// Transactions that wait for the writer of a file; who comes later waits for a place.
const WRITES_QUEUED_MAX: usize = 1024;
/// Reads of a file at the same time; who comes later waits.
const READS_IN_FLIGHT_MAX: usize = 32;
/// How long an open waits for another holder of the file to go.
const LOCK_WAIT_MAX: Duration = Duration::from_millis(500);
/// Between two tries of it.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// How an embedded backend behaves.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// No puts from so many bytes on; 0: no limit.
    pub quota_bytes: u64,
    /// How long a request may take; counts for files only.
    pub deadline: Duration,
    /// Pages of the file that are kept in memory, in bytes.
    pub cache_bytes: usize,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            quota_bytes: 0,
            deadline: Duration::from_secs(10),
            cache_bytes: 16 * 1024 * 1024,
        }
    }
}

/// A backend in this process. Dropping it closes the file and ends its watches.
pub struct EmbeddedBackend {
    engine: Arc<Engine>,
    changes: Arc<Changes>,
    options: EmbeddedOptions,
}

enum Engine {
    Memory(Mutex<Memory>),
    Redb(Arc<RedbEngine>),
}

struct Memory {
    tables: MemoryTables,
    meta: Meta,
}

impl EmbeddedBackend {
    /// Opens the database file at `path`, or creates it. The folder must exist.
    ///
    /// # Errors
    /// [`BackendError::Refused`] when another process uses the file, or when it cannot be read or made.
    pub async fn open_file(path: &Path, options: EmbeddedOptions) -> Result<Self, BackendError> {
        let started = tokio::time::Instant::now();
        loop {
            let (file, with) = (path.to_owned(), options.clone());
            let open = tokio::task::spawn_blocking(move || RedbEngine::open_file(&file, with));
            match open.await.map_err(|e| BackendError::Refused(e.to_string()))? {
                Ok((engine, changes)) => {
                    return Ok(Self {
                        engine: Arc::new(Engine::Redb(Arc::new(engine))),
                        changes,
                        options,
                    });
                }
                // A holder that is on its way out (a last read of a dropped backend, a process that ends) is waited for.
                Err(OpenError::InUse) if started.elapsed() < LOCK_WAIT_MAX => {
                    tokio::time::sleep(LOCK_RETRY).await
                }
                Err(OpenError::InUse) => {
                    return Err(BackendError::Refused(format!(
                        "{} is in use by another process",
                        path.display()
                    )));
                }
                Err(OpenError::Other(error)) => return Err(error),
            }
        }
    }

    /// A new backend in memory, on ordered maps of the standard library.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::in_memory_with(EmbeddedOptions::default())
    }

    /// The same with options.
    #[must_use]
    pub fn in_memory_with(options: EmbeddedOptions) -> Self {
        let memory = Memory {
            tables: MemoryTables::default(),
            meta: Meta::NEW,
        };
        let changes = Arc::new(Changes::new(memory.meta.revision));
        Self {
            engine: Arc::new(Engine::Memory(Mutex::new(memory))),
            changes,
            options,
        }
    }

    /// What a backend in memory holds now, as another backend: a backup that is restored. `None`: it is on redb.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn snapshot(&self) -> Option<Self> {
        let Engine::Memory(memory) = &*self.engine else {
            return None;
        };
        let memory = memory.lock();
        let copy = Memory {
            tables: memory.tables.clone(),
            meta: memory.meta,
        };
        Some(Self {
            changes: Arc::new(Changes::new(copy.meta.revision)),
            engine: Arc::new(Engine::Memory(Mutex::new(copy))),
            options: self.options.clone(),
        })
    }

    /// A new backend in memory, on redb: slower, and the same code as in a file.
    ///
    /// # Errors
    /// When redb cannot make a database.
    pub fn redb_in_memory(options: EmbeddedOptions) -> Result<Self, BackendError> {
        let (engine, changes) = RedbEngine::in_memory(options.clone())?;
        Ok(Self {
            engine: Arc::new(Engine::Redb(Arc::new(engine))),
            changes,
            options,
        })
    }

    async fn write(&self, request: Request) -> Result<Answer, BackendError> {
        match &*self.engine {
            Engine::Redb(redb) => redb.write(request).await,
            Engine::Memory(memory) => {
                let (answer, revision) = {
                    let Memory { tables, meta } = &mut *memory.lock();
                    let answer = mvcc::execute(tables, meta, &request, self.options.quota_bytes);
                    (answer, meta.revision)
                };
                self.changes.publish(revision);
                answer
            }
        }
    }

    async fn meta(&self) -> Result<Meta, BackendError> {
        match &*self.engine {
            Engine::Redb(redb) => redb.read(|_, meta| Ok(*meta)).await,
            Engine::Memory(memory) => Ok(memory.lock().meta),
        }
    }
}

impl Engine {
    async fn watch_batch(
        &self,
        request: &WatchRequest,
        next: Revision,
    ) -> Result<Option<WatchBatch>, BackendError> {
        match self {
            Self::Memory(memory) => {
                let memory = memory.lock();
                mvcc::watch_batch(&memory.tables, &memory.meta, request, next)
            }
            Self::Redb(redb) => {
                let request = request.clone();
                redb.read(move |tables, meta| mvcc::watch_batch(tables, meta, &request, next))
                    .await
            }
        }
    }
}

impl Backend for EmbeddedBackend {
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, BackendError>> {
        async move {
            mvcc::validate(&txn)?;
            if txn.is_read_only() {
                return match &*self.engine {
                    Engine::Memory(memory) => {
                        let memory = memory.lock();
                        mvcc::read(&memory.tables, &memory.meta, &txn)
                    }
                    Engine::Redb(redb) => {
                        redb.read(move |tables, meta| mvcc::read(tables, meta, &txn))
                            .await
                    }
                };
            }
            match self.write(Request::Txn(txn)).await? {
                Answer::Txn(response) => Ok(response),
                other => Err(BackendError::Corrupt(format!(
                    "a transaction was answered by {other:?}"
                ))),
            }
        }
        .boxed()
    }

    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, BackendError>> {
        async move {
            let next = if request.start_revision == 0 {
                self.changes.revision() + 1
            } else {
                request.start_revision
            };
            let meta = self.meta().await?;
            if next <= meta.compacted {
                return Err(BackendError::Compacted {
                    compact_revision: meta.compacted,
                });
            }
            Ok(watchers::stream(
                Arc::downgrade(&self.engine),
                self.changes.clone(),
                request,
                next,
            ))
        }
        .boxed()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), BackendError>> {
        async move {
            self.write(Request::Compact(revision)).await?;
            // Writers come in between the steps.
            while let Answer::Swept { done: false } = self.write(Request::Sweep).await? {}
            Ok(())
        }
        .boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<BackendStatus, BackendError>> {
        async move {
            let meta = self.meta().await?;
            let file = match &*self.engine {
                Engine::Memory(_) => None,
                Engine::Redb(redb) => redb.file_size().await,
            };
            Ok(BackendStatus {
                version: "embedded".to_owned(),
                revision: meta.revision,
                db_size: file.unwrap_or(meta.bytes),
                db_size_in_use: meta.bytes,
                quota: self.options.quota_bytes,
            })
        }
        .boxed()
    }
}

impl Drop for EmbeddedBackend {
    fn drop(&mut self) {
        self.changes.close();
    }
}

impl fmt::Debug for EmbeddedBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &*self.engine {
            Engine::Memory(_) => "memory".to_owned(),
            Engine::Redb(redb) => redb
                .path()
                .map_or_else(|| "redb in memory".to_owned(), |p| p.display().to_string()),
        };
        write!(
            f,
            "EmbeddedBackend({place} at revision {})",
            self.changes.revision()
        )
    }
}
