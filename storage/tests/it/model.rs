//! Random histories: the embedded backend answers as the simplest thing that could be right, a copy of all keys for
//! every revision. Transactions, ranges in the past, pieces of history, compactions.

use futures::StreamExt;
use outrigger_storage::backend::embedded::{EmbeddedBackend, EmbeddedOptions};
use outrigger_storage::backend::{
    Backend, BackendError, BackendEvent, Compare, Condition, KeyValue, Op, OpResponse, Range, RangeResponse,
    Revision, Txn, TxnResponse, WatchRequest,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

type State = BTreeMap<bytes::Bytes, KeyValue>;

/// A copy of everything for every revision.
struct Model {
    /// The state at revision i + 1.
    states: Vec<State>,
    compacted: Revision,
}

impl Model {
    fn revision(&self) -> Revision {
        self.states.len() as Revision
    }

    fn at(&self, revision: Revision) -> &State {
        &self.states[revision as usize - 1]
    }

    fn txn(&mut self, txn: &Txn) -> Result<TxnResponse, BackendError> {
        let mut state = self.at(self.revision()).clone();
        let holds = |c: &Compare| {
            let kv = state.get(&c.key);
            match &c.condition {
                Condition::ModRevision(r) => kv.map_or(0, |kv| kv.mod_revision) == *r,
                Condition::ValueEquals(v) => kv.is_some_and(|kv| kv.value == v),
                Condition::ValueLess(v) => kv.is_some_and(|kv| kv.value < v),
            }
        };
        let succeeded = txn.compare.iter().all(holds);
        let ops = if succeeded { &txn.success } else { &txn.failure };
        for op in ops {
            match op {
                Op::Get(r) if r.revision > self.revision() => return Err(BackendError::FutureRevision),
                Op::Get(r) if r.revision != 0 && r.revision < self.compacted => {
                    return Err(BackendError::Compacted {
                        compact_revision: self.compacted,
                    });
                }
                _ => {}
            }
        }
        let revision = self.revision() + 1;
        let mut changed = false;
        let mut responses = Vec::new();
        for op in ops {
            responses.push(match op {
                Op::Put { key, value } => {
                    let (key, value) = (key.clone(), value.clone());
                    let before = state
                        .get(&key)
                        .map_or((revision, 0), |kv| (kv.create_revision, kv.version));
                    let kv = KeyValue {
                        key: key.clone(),
                        value,
                        create_revision: before.0,
                        mod_revision: revision,
                        version: before.1 + 1,
                    };
                    state.insert(key, kv);
                    changed = true;
                    OpResponse::Put
                }
                Op::Delete { key } => {
                    let deleted = state.remove(key).is_some();
                    changed |= deleted;
                    OpResponse::Delete(u64::from(deleted))
                }
                Op::Get(range) if range.revision == 0 => OpResponse::Get(read(&state, range)),
                Op::Get(range) => OpResponse::Get(read(self.at(range.revision), range)),
            });
        }
        if changed {
            self.states.push(state);
        }
        Ok(TxnResponse {
            revision: self.revision(),
            succeeded,
            responses,
        })
    }

    /// What a watch of everything delivers between two revisions, both included.
    fn history(&self, from: Revision, to: Revision) -> Vec<BackendEvent> {
        let mut events = Vec::new();
        for revision in from..=to {
            let (before, after) = (self.at(revision - 1), self.at(revision));
            for kv in after.values().filter(|kv| kv.mod_revision == revision) {
                events.push(BackendEvent {
                    kv: kv.clone(),
                    deleted: false,
                    prev: before.get(&kv.key).cloned(),
                });
            }
            for kv in before.values().filter(|kv| !after.contains_key(&kv.key)) {
                let gone = KeyValue {
                    value: bytes::Bytes::new(),
                    create_revision: 0,
                    mod_revision: revision,
                    version: 0,
                    ..kv.clone()
                };
                events.push(BackendEvent {
                    kv: gone,
                    deleted: true,
                    prev: Some(kv.clone()),
                });
            }
        }
        events
    }
}

fn read(state: &State, range: &Range) -> RangeResponse {
    let inside = |key: &bytes::Bytes| match &range.end {
        None => *key == range.start,
        Some(end) => *key >= range.start && (&end[..] == b"\0" || key < end),
    };
    let mut kvs: Vec<KeyValue> = state.values().filter(|kv| inside(&kv.key)).cloned().collect();
    let count = kvs.len() as u64;
    if range.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value.clear());
    }
    if range.limit > 0 {
        kvs.truncate(range.limit);
    }
    let more = !range.count_only && (kvs.len() as u64) < count;
    if range.count_only {
        kvs.clear();
    }
    RangeResponse { kvs, more, count }
}

struct Random(StdRng);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0.random_range(0..n)
    }

    fn key(&mut self) -> bytes::Bytes {
        const KEYS: [&[u8]; 8] = [b"a", b"a\0", b"a-b", b"a/b", b"a/b\xff", b"b", b"", b"c/d"];
        bytes::Bytes::from_static(KEYS.choose(&mut self.0).unwrap_or(&KEYS[0]))
    }

    fn value(&mut self) -> bytes::Bytes {
        self.below(4).to_string().into()
    }

    fn range(&mut self, now: Revision) -> Range {
        let end = match self.below(4) {
            0 => None,
            1 => Some(bytes::Bytes::from_static(b"\0")),
            _ => Some(self.key()).filter(|end| !end.is_empty()),
        };
        Range {
            start: self.key(),
            end,
            limit: self.below(4) as usize,
            revision: if self.below(2) == 0 {
                0
            } else {
                1 + self.below(now + 1)
            },
            keys_only: self.below(5) == 0,
            count_only: self.below(5) == 0,
        }
    }

    fn txn(&mut self, now: Revision) -> Txn {
        let compare = (0..self.below(3)).map(|_| {
            let condition = match self.below(5) {
                0 | 1 => Condition::ModRevision(0),
                2 => Condition::ModRevision(now - self.below(now.min(4))),
                3 => Condition::ValueEquals(self.value()),
                _ => Condition::ValueLess(self.value()),
            };
            Compare {
                key: self.key(),
                condition,
            }
        });
        let compare = compare.collect();
        let mut branch = || {
            let mut written = Vec::new();
            let mut ops = Vec::new();
            for _ in 0..self.below(5) {
                let key = self.key();
                let kind = self.below(4);
                if kind == 3 || written.contains(&key) {
                    ops.push(Op::Get(self.range(now)));
                    continue;
                }
                written.push(key.clone());
                ops.push(if kind == 0 {
                    Op::Delete { key }
                } else {
                    Op::Put {
                        key,
                        value: self.value(),
                    }
                });
            }
            ops
        };
        Txn {
            compare,
            success: branch(),
            failure: branch(),
        }
    }
}

async fn history(
    backend: &dyn Backend,
    from: Revision,
    to: Revision,
) -> Result<Vec<BackendEvent>, BackendError> {
    let request = WatchRequest {
        start: bytes::Bytes::new(),
        end: Some(bytes::Bytes::from_static(b"\0")),
        start_revision: from,
        prev_kv: true,
        until: Some(to),
    };
    let mut watch = backend.watch(request).await?;
    let mut events = Vec::new();
    while let Some(batch) = watch.next().await {
        events.extend(batch?.events);
    }
    // The changes of one revision come in the order of its steps; the model has them by key.
    events.sort_by_key(|e| (e.kv.mod_revision, e.deleted, e.kv.key.clone()));
    Ok(events)
}

async fn check(backend: &dyn Backend, seed: u64, steps: usize) {
    let mut random = Random(StdRng::seed_from_u64(seed));
    let mut model = Model {
        states: vec![State::new()],
        compacted: 0,
    };
    for step in 0..steps {
        let now = model.revision();
        match random.below(20) {
            0 if now > 2 => {
                let revision = 1 + random.below(now + 1);
                let expect = if revision > now {
                    Err(BackendError::FutureRevision)
                } else {
                    Ok(())
                };
                assert_eq!(
                    backend.compact(revision).await,
                    expect,
                    "seed {seed}, step {step}"
                );
                if expect.is_ok() {
                    model.compacted = model.compacted.max(revision);
                }
            }
            1 | 2 if now > 2 => {
                let from = 2 + random.below(now - 1);
                let to = from + random.below(now + 1 - from.min(now));
                let to = to.min(now);
                let got = history(backend, from, to).await;
                match from <= model.compacted {
                    true => assert_eq!(
                        got,
                        Err(BackendError::Compacted {
                            compact_revision: model.compacted
                        })
                    ),
                    false => assert_eq!(
                        got,
                        Ok(model.history(from, to)),
                        "seed {seed}, step {step}: {from} to {to}"
                    ),
                }
            }
            _ => {
                let txn = random.txn(now);
                let expect = model.txn(&txn);
                assert_eq!(
                    backend.txn(txn.clone()).await,
                    expect,
                    "seed {seed}, step {step}: {txn:?}"
                );
            }
        }
    }
    assert_eq!(
        backend.status().await.expect("a status").revision,
        model.revision()
    );
}

#[tokio::test]
async fn random_histories_in_memory() {
    for seed in 0..60 {
        check(&EmbeddedBackend::in_memory(), seed, 150).await;
    }
}

#[tokio::test]
async fn random_histories_on_redb() {
    for seed in 0..12 {
        let backend = EmbeddedBackend::redb_in_memory(EmbeddedOptions::default()).expect("a database");
        check(&backend, seed, 120).await;
    }
}
