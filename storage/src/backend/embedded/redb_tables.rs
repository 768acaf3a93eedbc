//! The maps on redb, and the one writer that commits transactions in groups.
//!
//! A group is what has queued up while the group before it was made durable: one redb transaction, one fsync. Nothing
//! is answered before that. Blocking work runs on tokio's blocking threads; in memory it runs in place.

use super::mvcc::{self, Answer, Request};
use super::tables::{LogEntry, Meta, Tables, TablesMut, Version};
use super::watchers::Changes;
use super::{EmbeddedOptions, READS_IN_FLIGHT_MAX, WRITES_QUEUED_MAX};
use crate::backend::{BackendError, Revision};
use bytes::Bytes;
use parking_lot::Mutex;
use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

type VersionKey = (&'static [u8], u64);
/// sub, create revision, version, deleted
type VersionValue = (u32, u64, u64, bool);
type LogKey = (u64, u32);

const VERSIONS: TableDefinition<'_, VersionKey, VersionValue> = TableDefinition::new("versions");
const LOG: TableDefinition<'_, LogKey, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
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

/// The file fails us, or the runtime is going down. What was asked for may have been done.
fn broken(error: impl Into<Broken>) -> BackendError {
    error.into().0
}

struct Broken(BackendError);

macro_rules! broken_from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for Broken {
            fn from(error: $error) -> Self {
                let cause = format!("the embedded database failed: {error}");
                Self(match redb::Error::from(error) {
                    redb::Error::Corrupted(_) => BackendError::Corrupt(cause),
                    _ => BackendError::Unavailable { cause, sent: true },
                })
            }
        }
    )*};
}

broken_from_redb!(
    redb::DatabaseError,
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError
);

macro_rules! broken_from_runtime {
    ($($error:ty),*) => {$(
        impl From<$error> for Broken {
            fn from(error: $error) -> Self {
                Self(BackendError::Unavailable { cause: error.to_string(), sent: true })
            }
        }
    )*};
}

broken_from_runtime!(
    tokio::task::JoinError,
    tokio::sync::AcquireError,
    oneshot::error::RecvError
);

struct RedbTables<V, L, M> {
    versions: V,
    log: L,
    meta: M,
}

type WriteTables<'t> = RedbTables<
    Table<'t, VersionKey, VersionValue>,
    Table<'t, LogKey, &'static [u8]>,
    Table<'t, &'static str, u64>,
>;

impl<'t> WriteTables<'t> {
    fn write(transaction: &'t WriteTransaction) -> Result<Self, BackendError> {
        Ok(Self {
            versions: transaction.open_table(VERSIONS).map_err(broken)?,
            log: transaction.open_table(LOG).map_err(broken)?,
            meta: transaction.open_table(META).map_err(broken)?,
        })
    }

    fn set_meta(&mut self, meta: &Meta) -> Result<(), BackendError> {
        let Meta {
            revision,
            compacted,
            swept,
            bytes,
        } = *meta;
        for (name, value) in [
            ("revision", revision),
            ("compacted", compacted),
            ("swept", swept),
            ("bytes", bytes),
        ] {
            self.meta.insert(name, value).map_err(broken)?;
        }
        Ok(())
    }
}

impl<V, L, M: ReadableTable<&'static str, u64>> RedbTables<V, L, M> {
    fn meta(&self) -> Result<Meta, BackendError> {
        let get = |name: &str| match self.meta.get(name).map_err(broken)? {
            Some(value) => Ok(value.value()),
            None => Err(BackendError::Corrupt(format!(
                "the embedded database has no {name:?}"
            ))),
        };
        Ok(Meta {
            revision: get("revision")?,
            compacted: get("compacted")?,
            swept: get("swept")?,
            bytes: get("bytes")?,
        })
    }
}

impl<V, L, M> Tables for RedbTables<V, L, M>
where
    V: ReadableTable<VersionKey, VersionValue>,
    L: ReadableTable<LogKey, &'static [u8]>,
{
    fn newest(&self, key: &[u8], revision: Revision) -> Result<Option<Version>, BackendError> {
        let mut range = self.versions.range((key, 0)..=(key, revision)).map_err(broken)?;
        match range.next_back() {
            None => Ok(None),
            Some(item) => {
                let (key, value) = item.map_err(broken)?;
                Ok(Some(version(key.value().1, value.value())))
            }
        }
    }

    fn newest_in(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        revision: Revision,
        visit: &mut dyn FnMut(Version) -> ControlFlow<()>,
    ) -> Result<(), BackendError> {
        if end.is_some_and(|end| end <= start) {
            return Ok(());
        }
        let range = match end {
            Some(end) => self.versions.range((start, 0)..(end, 0)),
            None => self.versions.range((start, 0)..),
        };
        let mut key = Vec::new();
        let mut newest: Option<Version> = None;
        for item in range.map_err(broken)? {
            let (at, value) = item.map_err(broken)?;
            let (this, at) = at.value();
            if key != this {
                if let Some(newest) = newest.take().filter(|v| !v.deleted)
                    && visit(newest).is_break()
                {
                    return Ok(());
                }
                key.clear();
                key.extend_from_slice(this);
            }
            if at <= revision {
                newest = Some(version(at, value.value()));
            }
        }
        if let Some(newest) = newest.filter(|v| !v.deleted) {
            let _ = visit(newest);
        }
        Ok(())
    }

    fn entry(&self, revision: Revision, sub: u32) -> Result<Option<LogEntry>, BackendError> {
        match self.log.get((revision, sub)).map_err(broken)? {
            None => Ok(None),
            Some(value) => decode(revision, sub, value.value()).map(Some),
        }
    }

    fn log(
        &self,
        from: Revision,
        wants: &dyn Fn(&[u8]) -> bool,
        visit: &mut dyn FnMut(Revision, Option<LogEntry>) -> ControlFlow<()>,
    ) -> Result<(), BackendError> {
        for item in self.log.range((from, 0)..).map_err(broken)? {
            let (at, value) = item.map_err(broken)?;
            let (revision, sub) = at.value();
            let value = value.value();
            let entry = if wants(split(revision, value)?.1) {
                Some(decode(revision, sub, value)?)
            } else {
                None
            };
            if visit(revision, entry).is_break() {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl TablesMut for WriteTables<'_> {
    fn append(&mut self, entry: LogEntry) -> Result<(), BackendError> {
        let Version {
            revision,
            sub,
            create_revision,
            version,
            deleted,
        } = entry.at;
        let value = (sub, create_revision, version, deleted);
        self.versions
            .insert((&entry.key[..], revision), value)
            .map_err(broken)?;
        self.log
            .insert((revision, sub), &encode(&entry)[..])
            .map_err(broken)?;
        Ok(())
    }

    fn forget(&mut self, key: &[u8], at: Version) -> Result<u64, BackendError> {
        self.versions.remove((key, at.revision)).map_err(broken)?;
        match self.log.remove((at.revision, at.sub)).map_err(broken)? {
            None => Ok(0),
            Some(value) => Ok(decode(at.revision, at.sub, value.value())?.size()),
        }
    }
}

fn version(revision: Revision, (sub, create_revision, version, deleted): (u32, u64, u64, bool)) -> Version {
    Version {
        revision,
        sub,
        create_revision,
        version,
        deleted,
    }
}

/// Length of what stands before the key in a log entry: deleted u8, create revision u64, version u64, key length u32.
const HEAD: usize = 21;

fn encode(entry: &LogEntry) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD + entry.key.len() + entry.value.len());
    out.push(u8::from(entry.at.deleted));
    out.extend_from_slice(&entry.at.create_revision.to_be_bytes());
    out.extend_from_slice(&entry.at.version.to_be_bytes());
    out.extend_from_slice(&u32::try_from(entry.key.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&entry.key);
    out.extend_from_slice(&entry.value);
    out
}

/// Head, key and value of a log entry.
type Parts<'a> = ([u8; HEAD], &'a [u8], &'a [u8]);

fn split(revision: Revision, bytes: &[u8]) -> Result<Parts<'_>, BackendError> {
    let parts = || {
        let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
        let key_len = u32::from_be_bytes(head[HEAD - 4..].try_into().ok()?) as usize;
        let (key, value) = rest.split_at_checked(key_len)?;
        Some((*head, key, value))
    };
    parts().ok_or_else(|| BackendError::Corrupt(format!("the log entry of revision {revision} is cut off")))
}

fn decode(revision: Revision, sub: u32, bytes: &[u8]) -> Result<LogEntry, BackendError> {
    let (head, key, value) = split(revision, bytes)?;
    let word = |at: usize| {
        head[at..at + 8]
            .iter()
            .fold(0_u64, |n, byte| n << 8 | u64::from(*byte))
    };
    let at = Version {
        revision,
        sub,
        create_revision: word(1),
        version: word(9),
        deleted: head[0] != 0,
    };
    let both = Bytes::from([key, value].concat());
    Ok(LogEntry {
        key: both.slice(..key.len()),
        value: both.slice(key.len()..),
        at,
    })
}
