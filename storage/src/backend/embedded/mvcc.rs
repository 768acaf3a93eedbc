//! etcd's semantics over two ordered maps: transactions, ranges at a revision, history, compaction.
//!
//! Pure but for the maps it is given. It does not know where they live, nor who waits for changes.

use super::tables::{LogEntry, Meta, Tables, TablesMut, Version};
use crate::backend::{
    BackendError, BackendEvent, Compare, Condition, KeyValue, Op, OpResponse, Range, RangeResponse, Revision,
    TXN_OPS_MAX, Txn, TxnResponse, WatchBatch, WatchRequest,
};
use bytes::Bytes;
use std::ops::ControlFlow;

/// The largest transaction, in bytes: etcd's default request limit.
pub(super) const REQUEST_BYTES_MAX: usize = 1536 * 1024;
/// Events of one watch batch; more only to complete a revision.
const WATCH_BATCH_EVENTS_MAX: usize = 1000;
/// Bytes of one watch batch; more only to complete a revision.
const WATCH_BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Entries of the log that one batch looks at, so that a reader of much history lets others in.
const WATCH_SCAN_ENTRIES_MAX: usize = 20_000;
/// Entries of the log that one step of a compaction looks at; writers come in between.
pub(super) const SWEEP_ENTRIES_MAX: usize = 1000;

/// What a writer is asked for.
#[derive(Debug)]
pub(super) enum Request {
    Txn(Txn),
    /// Makes states older than this unreadable.
    Compact(Revision),
    /// Takes some of them out of the maps.
    Sweep,
}

/// What it answers.
#[derive(Debug)]
pub(super) enum Answer {
    Txn(TxnResponse),
    Compacted,
    Swept {
        /// Nothing is left to be taken out.
        done: bool,
    },
}

/// Carries out one request. After an error nothing has been written, unless the maps themselves failed.
pub(super) fn execute(
    tables: &mut impl TablesMut,
    meta: &mut Meta,
    request: &Request,
    quota: u64,
) -> Result<Answer, BackendError> {
    match request {
        Request::Txn(txn) => write(tables, meta, txn, quota).map(Answer::Txn),
        Request::Compact(revision) => {
            if *revision > meta.revision {
                return Err(BackendError::FutureRevision);
            }
            meta.compacted = meta.compacted.max(*revision);
            Ok(Answer::Compacted)
        }
        Request::Sweep => sweep(tables, meta).map(|done| Answer::Swept { done }),
    }
}

/// What can be said of a transaction without looking at data: size, number of steps, keys written twice.
pub(super) fn validate(txn: &Txn) -> Result<(), BackendError> {
    /// What a compare or a step adds around its keys and values on etcd's wire, roughly.
    const STEP_OVERHEAD_BYTES: usize = 12;
    if [txn.compare.len(), txn.success.len(), txn.failure.len()]
        .into_iter()
        .any(|n| n > TXN_OPS_MAX)
    {
        return Err(BackendError::Refused(
            "too many operations in txn request".to_owned(),
        ));
    }
    let of_compare = |c: &Compare| match &c.condition {
        Condition::ModRevision(_) => c.key.len(),
        Condition::ValueEquals(value) | Condition::ValueLess(value) => c.key.len() + value.len(),
    };
    let of_op = |op: &Op| match op {
        Op::Put { key, value } => key.len() + value.len(),
        Op::Delete { key } => key.len(),
        Op::Get(range) => range.start.len() + range.end.as_ref().map_or(0, Bytes::len),
    };
    let sizes = txn
        .compare
        .iter()
        .map(of_compare)
        .chain(txn.success.iter().chain(&txn.failure).map(of_op));
    if sizes.map(|size| size + STEP_OVERHEAD_BYTES).sum::<usize>() > REQUEST_BYTES_MAX {
        return Err(BackendError::TooLarge);
    }
    for branch in [&txn.success, &txn.failure] {
        let mut written: Vec<&Bytes> = branch
            .iter()
            .filter_map(|op| match op {
                Op::Put { key, .. } | Op::Delete { key } => Some(key),
                Op::Get(_) => None,
            })
            .collect();
        written.sort_unstable();
        if written.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(BackendError::Refused(
                "duplicate key given in txn request".to_owned(),
            ));
        }
    }
    Ok(())
}

/// A transaction that only reads.
pub(super) fn read(tables: &dyn Tables, meta: &Meta, txn: &Txn) -> Result<TxnResponse, BackendError> {
    let (succeeded, ops) = branch(tables, meta, txn)?;
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        if let Op::Get(wanted) = op {
            responses.push(OpResponse::Get(range(tables, meta.revision, wanted)?));
        }
    }
    Ok(TxnResponse {
        revision: meta.revision,
        succeeded,
        responses,
    })
}

fn write(
    tables: &mut impl TablesMut,
    meta: &mut Meta,
    txn: &Txn,
    quota: u64,
) -> Result<TxnResponse, BackendError> {
    let puts = |op: &Op| matches!(op, Op::Put { .. });
    if quota > 0 && meta.bytes >= quota && txn.success.iter().chain(&txn.failure).any(puts) {
        return Err(BackendError::NoSpace);
    }
    let (succeeded, ops) = branch(tables, meta, txn)?;
    let revision = meta.revision + 1;
    let mut changes = 0;
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        responses.push(match op {
            Op::Put { key, value } => {
                let before = tables.newest(key, revision)?.filter(|v| !v.deleted);
                let (create_revision, version) =
                    before.map_or((revision, 1), |v| (v.create_revision, v.version + 1));
                let at = Version {
                    revision,
                    sub: changes,
                    create_revision,
                    version,
                    deleted: false,
                };
                changes += 1;
                append(
                    tables,
                    meta,
                    LogEntry {
                        key: key.clone(),
                        value: value.clone(),
                        at,
                    },
                )?;
                OpResponse::Put
            }
            Op::Delete { key } => match tables.newest(key, revision)?.filter(|v| !v.deleted) {
                None => OpResponse::Delete(0),
                Some(_) => {
                    let at = Version {
                        revision,
                        sub: changes,
                        create_revision: 0,
                        version: 0,
                        deleted: true,
                    };
                    changes += 1;
                    append(
                        tables,
                        meta,
                        LogEntry {
                            key: key.clone(),
                            value: Bytes::new(),
                            at,
                        },
                    )?;
                    OpResponse::Delete(1)
                }
            },
            Op::Get(wanted) => OpResponse::Get(range(tables, revision, wanted)?),
        });
    }
    if changes > 0 {
        meta.revision = revision;
    }
    Ok(TxnResponse {
        revision: meta.revision,
        succeeded,
        responses,
    })
}

fn append(tables: &mut impl TablesMut, meta: &mut Meta, entry: LogEntry) -> Result<(), BackendError> {
    meta.bytes += entry.size();
    tables.append(entry)
}

/// The branch that is taken. Its reads are checked before anything is written.
fn branch<'t>(tables: &dyn Tables, meta: &Meta, txn: &'t Txn) -> Result<(bool, &'t [Op]), BackendError> {
    let mut succeeded = true;
    for compare in &txn.compare {
        succeeded = succeeded && holds(tables, meta.revision, compare)?;
    }
    let ops = if succeeded { &txn.success } else { &txn.failure };
    for op in ops {
        match op {
            Op::Get(range) if range.revision > meta.revision => return Err(BackendError::FutureRevision),
            Op::Get(range) if range.revision != 0 && range.revision < meta.compacted => {
                return Err(BackendError::Compacted {
                    compact_revision: meta.compacted,
                });
            }
            _ => {}
        }
    }
    Ok((succeeded, ops))
}

fn holds(tables: &dyn Tables, revision: Revision, compare: &Compare) -> Result<bool, BackendError> {
    let state = tables.newest(&compare.key, revision)?.filter(|v| !v.deleted);
    let value = || match state {
        Some(at) => tables
            .entry(at.revision, at.sub)
            .map(|entry| entry.map(|e| e.value)),
        None => Ok(None),
    };
    Ok(match &compare.condition {
        Condition::ModRevision(wanted) => state.map_or(0, |v| v.revision) == *wanted,
        Condition::ValueEquals(wanted) => value()?.is_some_and(|value| value == wanted),
        Condition::ValueLess(wanted) => value()?.is_some_and(|value| value < wanted),
    })
}

fn range(tables: &dyn Tables, now: Revision, wanted: &Range) -> Result<RangeResponse, BackendError> {
    let at = if wanted.revision == 0 {
        now
    } else {
        wanted.revision
    };
    let mut found = Vec::new();
    let mut count = 0;
    let mut visit = |version: Version| {
        count += 1;
        if !wanted.count_only && (wanted.limit == 0 || found.len() < wanted.limit) {
            found.push(version);
        }
        ControlFlow::Continue(())
    };
    match &wanted.end {
        None => {
            if let Some(version) = tables.newest(&wanted.start, at)?.filter(|v| !v.deleted) {
                let _ = visit(version);
            }
        }
        Some(end) => tables.newest_in(&wanted.start, bounded(end), at, &mut visit)?,
    }
    let mut kvs = Vec::with_capacity(found.len());
    for version in found {
        let mut kv = key_value(required(tables, version)?);
        if wanted.keys_only {
            kv.value = Bytes::new();
        }
        kvs.push(kv);
    }
    let more = !wanted.count_only && (kvs.len() as u64) < count;
    Ok(RangeResponse { kvs, more, count })
}

/// A range's end, or `None` for etcd's notation of no end.
fn bounded(end: &Bytes) -> Option<&[u8]> {
    (&end[..] != b"\0").then_some(&end[..])
}

fn required(tables: &dyn Tables, at: Version) -> Result<LogEntry, BackendError> {
    let missing = || BackendError::Corrupt(format!("the log has no entry {}/{}", at.revision, at.sub));
    tables.entry(at.revision, at.sub)?.ok_or_else(missing)
}

fn key_value(entry: LogEntry) -> KeyValue {
    KeyValue {
        key: entry.key,
        value: entry.value,
        create_revision: entry.at.create_revision,
        mod_revision: entry.at.revision,
        version: entry.at.version,
    }
}

/// The next piece of a watch that has been delivered up to, but without, `next`. `None`: nothing new.
pub(super) fn watch_batch(
    tables: &dyn Tables,
    meta: &Meta,
    request: &WatchRequest,
    next: Revision,
) -> Result<Option<WatchBatch>, BackendError> {
    if next <= meta.compacted {
        return Err(BackendError::Compacted {
            compact_revision: meta.compacted,
        });
    }
    let last = request
        .until
        .map_or(meta.revision, |until| until.min(meta.revision));
    if last < next {
        return Ok(None);
    }
    let end = request.end.as_ref().map(bounded);
    let wants = |key: &[u8]| match end {
        None => key == request.start,
        Some(end) => key >= &request.start[..] && end.is_none_or(|end| key < end),
    };
    let (mut entries, mut bytes, mut scanned, mut seen) = (Vec::new(), 0, 0, next - 1);
    let mut reached = last;
    tables.log(next, &wants, &mut |revision, entry| {
        let full = entries.len() >= WATCH_BATCH_EVENTS_MAX
            || bytes >= WATCH_BATCH_BYTES_MAX
            || scanned >= WATCH_SCAN_ENTRIES_MAX;
        // Only between two revisions may a batch end.
        if revision > last || (full && revision > seen) {
            reached = (revision - 1).min(last);
            return ControlFlow::Break(());
        }
        seen = revision;
        scanned += 1;
        if let Some(entry) = entry {
            bytes += entry.key.len() + entry.value.len();
            entries.push(entry);
        }
        ControlFlow::Continue(())
    })?;
    let mut events = Vec::with_capacity(entries.len());
    for entry in entries {
        let prev = if request.prev_kv {
            prev(tables, meta, &entry)?
        } else {
            None
        };
        events.push(BackendEvent {
            deleted: entry.at.deleted,
            prev,
            kv: key_value(entry),
        });
    }
    Ok(Some(WatchBatch {
        events,
        revision: reached,
    }))
}

/// The state before a change; `None` when there was none, or when it is compacted, as in etcd.
fn prev(tables: &dyn Tables, meta: &Meta, entry: &LogEntry) -> Result<Option<KeyValue>, BackendError> {
    let before = entry.at.revision - 1;
    if entry.at.create_revision == entry.at.revision || before < meta.compacted {
        return Ok(None);
    }
    match tables.newest(&entry.key, before)?.filter(|v| !v.deleted) {
        Some(at) => Ok(Some(key_value(required(tables, at)?))),
        None => Ok(None),
    }
}

/// One step of a compaction; whether it was the last one. Every change up to the compact revision forgets the state
/// before it, and a delete that is still the newest state forgets itself.
fn sweep(tables: &mut impl TablesMut, meta: &mut Meta) -> Result<bool, BackendError> {
    let compacted = meta.compacted;
    let (mut changes, mut seen, mut done) = (Vec::new(), meta.swept, true);
    tables.log(meta.swept + 1, &|_| true, &mut |revision, entry| {
        if revision > compacted {
            return ControlFlow::Break(());
        }
        if changes.len() >= SWEEP_ENTRIES_MAX && revision > seen {
            done = false;
            return ControlFlow::Break(());
        }
        seen = revision;
        changes.extend(entry.map(|e| (e.key, e.at)));
        ControlFlow::Continue(())
    })?;
    for (key, at) in changes {
        if let Some(before) = tables.newest(&key, at.revision - 1)? {
            meta.bytes = meta.bytes.saturating_sub(tables.forget(&key, before)?);
        }
        if at.deleted && tables.newest(&key, compacted)? == Some(at) {
            meta.bytes = meta.bytes.saturating_sub(tables.forget(&key, at)?);
        }
    }
    meta.swept = if done { compacted } else { seen };
    Ok(done)
}
