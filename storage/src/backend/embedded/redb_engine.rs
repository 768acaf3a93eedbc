//! A redb database and the one writer that commits transactions in groups.
//!
//! A group is what has queued up while the group before it was made durable: one redb transaction, one fsync. Nothing
//! is answered before that. Blocking work runs on tokio's blocking threads; in memory it runs in place.

use super::mvcc::{self, Answer, Request};
use super::redb_tables::{LOG, META, RedbTables, VERSIONS, broken};
use super::tables::{Meta, Tables};
use super::watchers::Changes;
use super::{EmbeddedOptions, READS_IN_FLIGHT_MAX, WRITES_QUEUED_MAX};
use crate::backend::{BackendError, Revision};
use parking_lot::Mutex;
use redb::{Database, ReadableDatabase, ReadableTable};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Raised when older releases could not read the file.
const FORMAT: u64 = 1;
/// Transactions of one group, so that the first of them does not wait for ever.
const GROUP_MAX: usize = 256;

/// A redb database and its writer.
pub(super) struct RedbEngine {
    database: Database,
    /// `None`: in memory, and nothing is moved to another thread.
    path: Option<PathBuf>,
    changes: Arc<Changes>,
    options: EmbeddedOptions,
    writer: Mutex<Writer>,
    /// Places in the writer's queue.
    places: Arc<Semaphore>,
    reads: Arc<Semaphore>,
}

/// Why a file was not opened.
pub(super) enum OpenError {
    /// Somebody has it open.
    InUse,
    Other(BackendError),
}

#[derive(Default)]
struct Writer {
    queue: VecDeque<Job>,
    /// Somebody is committing groups until the queue is empty.
    running: bool,
}

type Answered = Result<Answer, BackendError>;

struct Job {
    request: Request,
    answer: oneshot::Sender<Answered>,
    _place: OwnedSemaphorePermit,
}

impl RedbEngine {
    /// Opens or creates the file. Blocks.
    pub(super) fn open_file(
        path: &Path,
        options: EmbeddedOptions,
    ) -> Result<(Self, Arc<Changes>), OpenError> {
        let refused = |e: redb::DatabaseError| match e {
            redb::DatabaseError::DatabaseAlreadyOpen => OpenError::InUse,
            other => OpenError::Other(BackendError::Refused(format!(
                "cannot open {}: {other}",
                path.display()
            ))),
        };
        let builder = || {
            let mut builder = Database::builder();
            builder.set_cache_size(options.cache_bytes);
            builder
        };
        let exists = std::fs::metadata(path).is_ok_and(|m| m.len() > 0);
        if exists {
            let database = builder().open(path).map_err(refused)?;
            return Self::new(database, Some(path.to_owned()), options).map_err(OpenError::Other);
        }
        // Created under another name, so that a process that is killed meanwhile leaves no half-made database behind.
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".new");
        let unfinished = PathBuf::from(unfinished);
        let io = |e: std::io::Error| {
            OpenError::Other(BackendError::Refused(format!(
                "cannot create {}: {e}",
                path.display()
            )))
        };
        let database = match builder().create(&unfinished) {
            Ok(database) => database,
            // What an earlier process left unfinished.
            Err(redb::DatabaseError::Storage(_)) if unfinished.exists() => {
                std::fs::remove_file(&unfinished).map_err(io)?;
                builder().create(&unfinished).map_err(refused)?
            }
            Err(other) => return Err(refused(other)),
        };
        let opened = Self::new(database, Some(path.to_owned()), options).map_err(OpenError::Other)?;
        std::fs::rename(&unfinished, path).map_err(io)?;
        if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::File::open(folder)
                .and_then(|f| f.sync_all())
                .map_err(io)?;
        }
        Ok(opened)
    }

    pub(super) fn in_memory(options: EmbeddedOptions) -> Result<(Self, Arc<Changes>), BackendError> {
        let database = Database::builder()
            .set_cache_size(options.cache_bytes)
            .create_with_backend(redb::backends::InMemoryBackend::new())
            .map_err(broken)?;
        Self::new(database, None, options)
    }

    fn new(
        database: Database,
        path: Option<PathBuf>,
        options: EmbeddedOptions,
    ) -> Result<(Self, Arc<Changes>), BackendError> {
        let transaction = database.begin_write().map_err(broken)?;
        let meta = {
            let mut tables = RedbTables::write(&transaction)?;
            let format = tables.meta.get("format").map_err(broken)?.map(|g| g.value());
            match format {
                None => {
                    tables.meta.insert("format", FORMAT).map_err(broken)?;
                    tables.set_meta(&Meta::NEW)?;
                }
                Some(FORMAT) => {}
                Some(newer) => {
                    return Err(BackendError::Refused(format!(
                        "the database has format {newer}, this release reads {FORMAT}"
                    )));
                }
            }
            tables.meta()?
        };
        transaction.commit().map_err(broken)?;
        let changes = Arc::new(Changes::new(meta.revision));
        let engine = Self {
            database,
            path,
            changes: changes.clone(),
            options,
            writer: Mutex::default(),
            places: Arc::new(Semaphore::new(WRITES_QUEUED_MAX)),
            reads: Arc::new(Semaphore::new(READS_IN_FLIGHT_MAX)),
        };
        Ok((engine, changes))
    }

    /// Reads one snapshot.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        f: impl FnOnce(&dyn Tables, &Meta) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        if self.path.is_none() {
            return self.read_blocking(f);
        }
        let work = async {
            let place = self.reads.clone().acquire_owned().await.map_err(broken)?;
            let engine = self.clone();
            let read = move || {
                let _place = place;
                engine.read_blocking(f)
            };
            tokio::task::spawn_blocking(read).await.map_err(broken)?
        };
        match tokio::time::timeout(self.options.deadline, work).await {
            Ok(answer) => answer,
            Err(_) => Err(late(false)),
        }
    }

    fn read_blocking<T>(
        &self,
        f: impl FnOnce(&dyn Tables, &Meta) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let transaction = self.database.begin_read().map_err(broken)?;
        let tables = RedbTables {
            versions: transaction.open_table(VERSIONS).map_err(broken)?,
            log: transaction.open_table(LOG).map_err(broken)?,
            meta: transaction.open_table(META).map_err(broken)?,
        };
        let meta = tables.meta()?;
        f(&tables, &meta)
    }

    /// Queues a write and waits until it is durable.
    pub(super) async fn write(self: &Arc<Self>, request: Request) -> Result<Answer, BackendError> {
        let deadline = tokio::time::Instant::now() + self.options.deadline;
        let place = self.places.clone().acquire_owned();
        let place = if self.path.is_none() {
            place.await
        } else {
            tokio::time::timeout_at(deadline, place)
                .await
                .map_err(|_| late(false))?
        };
        let (answer, answered) = oneshot::channel();
        let job = Job {
            request,
            answer,
            _place: place.map_err(broken)?,
        };
        let lead = {
            let mut writer = self.writer.lock();
            writer.queue.push_back(job);
            !std::mem::replace(&mut writer.running, true)
        };
        if self.path.is_none() {
            if lead {
                self.run_writer();
            }
            return answered.await.map_err(broken)?;
        }
        if lead {
            let engine = self.clone();
            tokio::task::spawn_blocking(move || engine.run_writer());
        }
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(answer) => answer.map_err(broken)?,
            Err(_) => Err(late(true)),
        }
    }

    fn run_writer(&self) {
        loop {
            let group: Vec<Job> = {
                let mut writer = self.writer.lock();
                let n = writer.queue.len().min(GROUP_MAX);
                if n == 0 {
                    writer.running = false;
                    return;
                }
                writer.queue.drain(..n).collect()
            };
            let (requests, answers): (Vec<_>, Vec<_>) = group
                .into_iter()
                .map(|job| (job.request, (job.answer, job._place)))
                .unzip();
            let results = match self.commit(&requests) {
                Ok((results, revision)) => {
                    self.changes.publish(revision);
                    results
                }
                Err(error) => requests.iter().map(|_| Err(error.clone())).collect(),
            };
            for ((answer, _place), result) in answers.into_iter().zip(results) {
                // Who asked may have gone; the write stands all the same.
                let _ = answer.send(result);
            }
        }
    }

    /// One redb transaction for all of `requests`. An error means that it is not known what was written.
    fn commit(&self, requests: &[Request]) -> Result<(Vec<Answered>, Revision), BackendError> {
        let transaction = self.database.begin_write().map_err(broken)?;
        let mut results = Vec::with_capacity(requests.len());
        let (before, after) = {
            let mut tables = RedbTables::write(&transaction)?;
            let before = tables.meta()?;
            let mut meta = before;
            for request in requests {
                let result = mvcc::execute(&mut tables, &mut meta, request, self.options.quota_bytes);
                if let Err(error @ (BackendError::Unavailable { .. } | BackendError::Corrupt(_))) = result {
                    return Err(error);
                }
                results.push(result);
            }
            if meta != before {
                tables.set_meta(&meta)?;
            }
            (before, meta)
        };
        if before == after {
            transaction.abort().map_err(broken)?;
        } else {
            transaction.commit().map_err(broken)?;
        }
        Ok((results, after.revision))
    }

    /// The file's size; what is in it, in memory.
    pub(super) async fn file_size(&self) -> Option<u64> {
        let path = self.path.clone()?;
        tokio::fs::metadata(path).await.ok().map(|m| m.len())
    }

    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

fn late(sent: bool) -> BackendError {
    BackendError::Unavailable {
        cause: "the embedded backend did not answer in time".to_owned(),
        sent,
    }
}
