//! A position in the log of one backend: recent changes from its ring, older ones from the backend's history.
//!
//! A cursor holds a few entries at most; whoever is slow holds a revision, nothing more. It does not know what a watch
//! releases: it is told up to where it may read.

use super::joined::Joined;
use super::ring::LogEntry;
use crate::backend::{BackendError, BackendEvent, Revision, WatchRequest};
use crate::event::FrameCache;
use crate::key::domain_of;
use crate::{Error, ResourceVersion};
use bytes::Bytes;
use futures::StreamExt;
use std::collections::VecDeque;
use std::sync::Arc;

/// What a cursor takes from the ring or from history at once, in bytes.
const READ_BYTES_MAX: usize = 256 * 1024;

/// A position in one backend's log.
pub(crate) struct Cursor {
    pub(crate) joined: Arc<Joined>,
    /// Keys outside are passed over.
    prefix: Bytes,
    /// Everything up to here was read into `entries` or passed over.
    position: Revision,
    entries: VecDeque<Arc<LogEntry>>,
}

impl Cursor {
    pub(crate) fn new(joined: Arc<Joined>, prefix: Bytes, position: Revision) -> Self {
        Self {
            joined,
            prefix,
            position,
            entries: VecDeque::new(),
        }
    }

    /// The next change that was read.
    pub(crate) fn head(&self) -> Option<&Arc<LogEntry>> {
        self.entries.front()
    }

    pub(crate) fn pop(&mut self) -> Option<Arc<LogEntry>> {
        self.entries.pop_front()
    }

    /// Whether everything up to `until` was handed out.
    pub(crate) fn is_drained(&self, until: Revision) -> bool {
        self.entries.is_empty() && self.position >= until
    }

    pub(crate) fn resource_version_of(&self, entry: &LogEntry) -> Result<ResourceVersion, Error> {
        self.joined.resource_version(entry.clock, entry.revision)
    }

    /// Reads on, up to `until` at most (which the log has reached), until there is a head or nothing is left.
    /// Cancel-safe: what was not taken is read again.
    pub(crate) async fn fill(&mut self, until: Revision) -> Result<(), Error> {
        while self.entries.is_empty() && self.position < until {
            let read =
                self.joined
                    .state
                    .lock()
                    .log
                    .ring
                    .read(self.position, until, &self.prefix, READ_BYTES_MAX);
            let (entries, position) = match read {
                Some(read) => read,
                None => self.read_history(until).await?,
            };
            self.entries.extend(entries);
            self.position = position;
        }
        Ok(())
    }

    /// A piece of history from the backend. At most a few such reads run on one backend.
    async fn read_history(&self, until: Revision) -> Result<(Vec<Arc<LogEntry>>, Revision), Error> {
        let _permit = self
            .joined
            .history_reads
            .acquire()
            .await
            .map_err(|_| self.joined.unavailable("the store is closed"))?;
        let request = WatchRequest {
            start: self.prefix.clone(),
            end: Some(crate::key::prefix_end(&self.prefix)),
            start_revision: self.position + 1,
            prev_kv: true,
            until: Some(until),
        };
        let mut stream = self.joined.history(request).await.map_err(|e| self.failed(e))?;
        let mut entries = Vec::new();
        let mut bytes = 0;
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(|e| self.failed(e))?;
            for event in batch
                .events
                .into_iter()
                .filter(|event| event.kv.mod_revision > self.position)
            {
                let entry = self.entry(event)?;
                bytes += entry.size();
                entries.push(Arc::new(entry));
            }
            if bytes >= READ_BYTES_MAX {
                return Ok((entries, batch.revision.min(until)));
            }
        }
        Ok((entries, until))
    }

    fn entry(&self, event: BackendEvent) -> Result<LogEntry, Error> {
        let revision = event.kv.mod_revision;
        let clock = self.joined.clock_at(revision).ok_or_else(|| self.expired())?;
        let key = event.kv.key.clone();
        let now = (!event.deleted).then_some(event.kv);
        let tenure = domain_of(&key).and_then(|domain| {
            let state = self.joined.state.lock();
            state.log.owners.tenure_at(&domain, revision)
        });
        Ok(LogEntry {
            revision,
            clock,
            tenure,
            key,
            now,
            before: event.prev,
            frames: FrameCache::default(),
        })
    }

    fn failed(&self, error: BackendError) -> Error {
        match error {
            BackendError::Compacted { .. } => self.expired(),
            error => self.joined.error(error),
        }
    }

    fn expired(&self) -> Error {
        self.joined.expired_at(self.position)
    }
}
