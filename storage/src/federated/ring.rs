//! The event ring of one backend: its most recent changes, bounded in bytes. Who falls off reads on from the backend.
//!
//! It knows nothing of watchers: they hold a revision and ask for what comes after it.

use crate::backend::{KeyValue, Revision};
use crate::clock::Clock;
use crate::event::FrameCache;
use crate::owners::Tenure;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;

/// What an entry costs besides its bytes, and for the frame that may be kept with it.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// One change of one object, as it stands in a backend's log.
#[derive(Debug)]
pub(crate) struct LogEntry {
    pub(crate) revision: Revision,
    /// The clock in force at the revision.
    pub(crate) clock: Clock,
    pub(crate) key: Bytes,
    /// The new state; `None`: deleted.
    pub(crate) now: Option<KeyValue>,
    /// The state before, unless it was compacted or there was none.
    pub(crate) before: Option<KeyValue>,
    pub(crate) frames: FrameCache,
    /// Under which owner key it was made. `None`: under none.
    pub(crate) tenure: Option<Arc<Tenure>>,
}

impl LogEntry {
    /// Bytes that the entry keeps in memory; the frame that watchers share is about as long as the new state.
    pub(crate) fn size(&self) -> usize {
        let value = |kv: &Option<KeyValue>| kv.as_ref().map_or(0, |kv| kv.value.len());
        self.key.len() + 2 * value(&self.now) + value(&self.before) + ENTRY_OVERHEAD_BYTES
    }
}

/// The most recent changes, contiguous up to the end of the log that was read.
#[derive(Debug)]
pub(crate) struct Ring {
    entries: VecDeque<Arc<LogEntry>>,
    bytes: usize,
    bytes_max: usize,
    /// All changes above this revision (and up to the log's) are here.
    complete_after: Revision,
}

impl Ring {
    pub(crate) fn new(bytes_max: usize, complete_after: Revision) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max,
            complete_after,
        }
    }

    /// Starts anew after a gap.
    pub(crate) fn reset(&mut self, complete_after: Revision) {
        *self = Self::new(self.bytes_max, complete_after);
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Changes the limit: the fleet has grown or shrunk.
    pub(crate) fn resize(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
        self.shrink();
    }

    pub(crate) fn push(&mut self, entry: LogEntry) {
        self.bytes += entry.size();
        self.entries.push_back(Arc::new(entry));
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= oldest.size();
            self.complete_after = oldest.revision;
        }
    }

    /// The entries above `after` and up to `until` whose keys start with `prefix`, at most `bytes_max` of them, and the
    /// revision up to which they are complete. `None`: `after` has fallen off.
    pub(crate) fn read(
        &self,
        after: Revision,
        until: Revision,
        prefix: &[u8],
        bytes_max: usize,
    ) -> Option<(Vec<Arc<LogEntry>>, Revision)> {
        if after < self.complete_after {
            return None;
        }
        let mut found = Vec::new();
        let mut bytes = 0;
        let start = self.entries.partition_point(|entry| entry.revision <= after);
        for entry in self
            .entries
            .range(start..)
            .take_while(|entry| entry.revision <= until)
        {
            if !entry.key.starts_with(prefix) {
                continue;
            }
            bytes += entry.size();
            found.push(entry.clone());
            if bytes >= bytes_max {
                return Some((found, entry.revision));
            }
        }
        Some((found, until.max(after)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource_version::Epoch;

    fn entry(revision: Revision, key: &'static str) -> LogEntry {
        let clock = Clock {
            epoch: Epoch(1),
            base: 1,
        };
        LogEntry {
            revision,
            clock,
            key: Bytes::from_static(key.as_bytes()),
            now: None,
            before: None,
            frames: FrameCache::default(),
            tenure: None,
        }
    }

    #[test]
    fn who_falls_off_is_told() {
        let one = entry(1, "a").size();
        let mut ring = Ring::new(3 * one, 10);
        (11..=15).for_each(|revision| ring.push(entry(revision, "a")));
        let read = |after, until| {
            ring.read(after, until, b"a", usize::MAX)
                .map(|(e, to)| (e.iter().map(|e| e.revision).collect::<Vec<_>>(), to))
        };
        assert_eq!(read(11, 20), None);
        assert_eq!(read(12, 20), Some((vec![13, 14, 15], 20)));
        assert_eq!(read(13, 14), Some((vec![14], 14)));
        assert_eq!(read(25, 20), Some((vec![], 25)));
        assert_eq!(ring.bytes(), 3 * one);
    }

    #[test]
    fn other_keys_are_passed_over() {
        let mut ring = Ring::new(1 << 20, 0);
        ring.push(entry(1, "a/1"));
        ring.push(entry(2, "b/1"));
        ring.push(entry(3, "a/2"));
        let (found, to) = ring.read(0, 9, b"a/", 1).expect("complete");
        assert_eq!((found.len(), to), (1, 1), "stops at the byte limit");
        let (found, to) = ring.read(1, 9, b"a/", usize::MAX).expect("complete");
        assert_eq!((found.len(), found[0].revision, to), (1, 3, 9));
    }
}
