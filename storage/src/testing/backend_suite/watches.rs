//! Promises about watches: every change once, in order, from any retained revision.

use super::{DELIVERY_MAX, Fixture, collect, next_events, take, text};
use crate::backend::{Backend, BackendError, TXN_OPS_MAX, WatchRequest};
use futures::StreamExt;
use std::sync::Arc;

/// When it is opened, or as its last item.
pub async fn a_watch_below_the_compact_revision_is_refused(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let first = t.put("a", "1").await;
    t.put("a", "2").await;
    let last = t.put("a", "3").await;
    t.backend.compact(last).await.expect("compacted");
    let error = match t.backend.watch(t.request(first)).await {
        Err(error) => error,
        Ok(mut watch) => loop {
            let next = tokio::time::timeout(DELIVERY_MAX, watch.next())
                .await
                .expect("an answer in time");
            match next.expect("an error before the end") {
                Ok(batch) => assert!(batch.events.is_empty(), "{batch:?}"),
                Err(error) => break error,
            }
        },
    };
    assert_eq!(
        error,
        BackendError::Compacted {
            compact_revision: last
        }
    );
}

/// From the revision after the compact revision on.
pub async fn history_above_the_compact_revision_remains(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    t.put("a", "1").await;
    let compacted = t.put("b", "1").await;
    t.delete("a").await;
    t.put("b", "2").await;
    t.put("b", "3").await;
    t.backend.compact(compacted).await.expect("compacted");
    let history: Vec<_> = t
        .history(compacted + 1)
        .await
        .into_iter()
        .map(|(_, what)| what)
        .collect();
    assert_eq!(history, ["delete a", "put b=2", "put b=3"]);
}

/// Once each, with keys, values, revisions and versions.
pub async fn a_watch_delivers_every_change_in_order(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let before = t.put("a", "0").await;
    let mut watch = t.watch(before + 1).await;
    let mut expect = Vec::new();
    for i in 0..30 {
        let name = ["a", "b", "c"][i % 3];
        if i % 7 == 3 && t.get(name).await.is_some() {
            expect.push((t.delete(name).await, format!("delete {name}")));
        } else {
            expect.push((t.put(name, &i.to_string()).await, format!("put {name}={i}")));
        }
    }
    let events = take(&mut watch, expect.len()).await;
    assert_eq!(events.iter().map(|e| t.change(e)).collect::<Vec<_>>(), expect);
    for event in &events {
        let kv = &event.kv;
        match event.deleted {
            true => assert_eq!((kv.version, kv.value.len()), (0, 0), "{event:?}"),
            false => assert!(
                kv.version >= 1 && kv.create_revision <= kv.mod_revision && kv.create_revision > 0,
                "{event:?}"
            ),
        }
        assert_eq!(event.prev, None, "not asked for");
        let is_new = kv.create_revision == kv.mod_revision;
        assert_eq!(is_new, kv.version == 1 && !event.deleted, "{event:?}");
    }
}

/// However many changes it has.
pub async fn a_batch_never_splits_a_revision(backend: Arc<dyn Backend>) {
    const TRANSACTIONS: usize = 30;
    let t = Fixture::new(backend);
    let before = t.revision().await;
    for i in 0..TRANSACTIONS {
        let value = format!("{i}").repeat(200);
        let ops = (0..TXN_OPS_MAX)
            .map(|j| t.op(&format!("{j:03}"), &value))
            .collect();
        t.txn(vec![], ops, vec![]).await;
    }
    let mut watch = t.watch(before + 1).await;
    let mut total = 0;
    let mut last = before;
    while total < TRANSACTIONS * TXN_OPS_MAX {
        let events = next_events(&mut watch).await.expect("the watch does not end");
        assert_eq!(events.len() % TXN_OPS_MAX, 0, "whole transactions");
        assert!(events[0].kv.mod_revision > last, "a revision comes in one batch");
        last = events[events.len() - 1].kv.mod_revision;
        total += events.len();
    }
}

/// Of updates and deletes; a create has none.
pub async fn a_watch_has_previous_values_if_asked(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let created = t.put("a", "1").await;
    let updated = t.put("a", "2").await;
    t.delete("a").await;
    t.put("a", "3").await;
    let request = WatchRequest {
        prev_kv: true,
        ..t.request(created)
    };
    let mut watch = t.backend.watch(request).await.expect("a watch");
    let events = take(&mut watch, 4).await;
    let prev: Vec<_> = events
        .iter()
        .map(|e| {
            e.prev
                .as_ref()
                .map(|kv| (text(&kv.value), kv.mod_revision, kv.version))
        })
        .collect();
    assert_eq!(
        prev,
        [
            None,
            Some(("1".to_owned(), created, 1)),
            Some(("2".to_owned(), updated, 2)),
            None
        ]
    );
    assert!(
        events
            .iter()
            .flat_map(|e| &e.prev)
            .all(|kv| kv.key == t.key("a") && kv.create_revision == created)
    );
}

/// And delivers exactly what came from there on.
pub async fn a_watch_starts_at_any_retained_revision(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let mut expect = Vec::new();
    for i in 0..12 {
        let name = ["a", "b"][i % 2];
        expect.push((t.put(name, &i.to_string()).await, format!("put {name}={i}")));
    }
    for from in 0..expect.len() {
        let mut watch = t.watch(expect[from].0).await;
        let events = take(&mut watch, expect.len() - from).await;
        assert_eq!(
            events.iter().map(|e| t.change(e)).collect::<Vec<_>>(),
            expect[from..]
        );
    }
}

/// `start_revision` 0.
pub async fn a_watch_from_now_on_skips_the_past(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    t.put("a", "before").await;
    let mut watch = t.watch(0).await;
    let at = t.put("a", "after").await;
    let events = take(&mut watch, 1).await;
    assert_eq!(t.change(&events[0]), (at, "put a=after".to_owned()));
}

/// What comes before it is not delivered.
pub async fn a_watch_from_a_future_revision_waits_for_it(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let at = t.put("a", "0").await;
    let mut watch = t.watch(at + 3).await;
    for i in 1..=4 {
        t.put("a", &i.to_string()).await;
    }
    let events = take(&mut watch, 2).await;
    let changes: Vec<_> = events.iter().map(|e| t.change(e)).collect();
    assert_eq!(
        changes,
        [(at + 3, "put a=3".to_owned()), (at + 4, "put a=4".to_owned())]
    );
}

/// Not those that begin with it.
pub async fn a_watch_of_one_key_sees_that_key_only(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let from = t.put("a", "1").await;
    t.put("a/b", "2").await;
    t.put("A", "3").await;
    t.put("a", "4").await;
    let request = WatchRequest {
        start: t.key("a"),
        end: None,
        ..t.request(from)
    };
    let mut watch = t.backend.watch(request).await.expect("a watch");
    let events = take(&mut watch, 2).await;
    let changes: Vec<_> = events.iter().map(|e| t.change(e).1).collect();
    assert_eq!(changes, ["put a=1", "put a=4"]);
}

/// With nothing above it delivered; a piece of the past ends by itself.
pub async fn until_ends_a_watch(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let mut expect = Vec::new();
    for i in 0..6 {
        expect.push((t.put("a", &i.to_string()).await, format!("put a={i}")));
    }
    for (from, to) in [(0, 5), (2, 4), (3, 3)] {
        let request = WatchRequest {
            until: Some(expect[to].0),
            ..t.request(expect[from].0)
        };
        let events = collect(t.backend.watch(request).await.expect("a watch")).await;
        assert_eq!(
            events.iter().map(|e| t.change(e)).collect::<Vec<_>>(),
            expect[from..=to]
        );
    }
    let request = WatchRequest {
        until: Some(expect[2].0),
        ..t.request(expect[4].0)
    };
    let empty = collect(t.backend.watch(request).await.expect("a watch")).await;
    assert!(empty.is_empty(), "until below the start");
}

/// Nothing of ours happens at that revision, and the watch ends all the same.
pub async fn until_a_revision_of_other_keys_ends_a_watch(backend: Arc<dyn Backend>) {
    let (t, other) = (Fixture::new(backend.clone()), Fixture::new(backend));
    let from = t.put("a", "1").await;
    other.put("x", "1").await;
    let until = other.put("x", "2").await;
    let request = WatchRequest {
        until: Some(until),
        ..t.request(from)
    };
    let events = collect(t.backend.watch(request).await.expect("a watch")).await;
    assert_eq!(
        events.iter().map(|e| t.change(e)).collect::<Vec<_>>(),
        [(from, "put a=1".to_owned())]
    );
    let nothing = WatchRequest {
        until: Some(until),
        ..t.request(from + 1)
    };
    assert!(
        collect(t.backend.watch(nothing).await.expect("a watch"))
            .await
            .is_empty()
    );
}

/// It may lie in the future.
pub async fn until_waits_for_its_revision(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let at = t.put("a", "0").await;
    let request = WatchRequest {
        until: Some(at + 3),
        ..t.request(at + 1)
    };
    let watch = t.backend.watch(request).await.expect("a watch");
    let writes = async {
        for i in 1..=5 {
            t.put("a", &i.to_string()).await;
        }
    };
    let (events, ()) = tokio::join!(collect(watch), writes);
    let changes: Vec<_> = events.iter().map(|e| t.change(e).1).collect();
    assert_eq!(changes, ["put a=1", "put a=2", "put a=3"]);
}

/// It reads on where it was.
pub async fn a_slow_watcher_loses_nothing(backend: Arc<dyn Backend>) {
    const EVENTS: usize = 1500;
    let t = Fixture::new(backend);
    let before = t.revision().await;
    let mut watch = t.watch(before + 1).await;
    let value = "v".repeat(1000);
    for group in 0..EVENTS / 50 {
        let puts = (0..50).map(|i| {
            let op = t.op(&format!("{:04}", group * 50 + i), &value);
            t.txn(vec![], vec![op], vec![])
        });
        futures::future::join_all(puts).await;
    }
    let events = take(&mut watch, EVENTS).await;
    let revisions: Vec<_> = events.iter().map(|e| e.kv.mod_revision).collect();
    assert_eq!(
        revisions,
        (before + 1..=before + EVENTS as u64).collect::<Vec<_>>()
    );
}

/// Whether they watched from the start or read it later.
pub async fn watchers_agree_on_the_order(backend: Arc<dyn Backend>) {
    const WRITES: usize = 60;
    let t = Fixture::new(backend);
    let before = t.revision().await;
    let (mut one, mut two) = (t.watch(before + 1).await, t.watch(before + 1).await);
    let puts = (0..WRITES).map(|i| {
        let op = t.op(&format!("{}", i % 5), &i.to_string());
        t.txn(vec![], vec![op], vec![])
    });
    let (first, second, _) = tokio::join!(
        take(&mut one, WRITES),
        take(&mut two, WRITES),
        futures::future::join_all(puts)
    );
    assert_eq!(first, second);
    let later: Vec<_> = first.iter().map(|e| t.change(e)).collect();
    assert_eq!(t.history(before + 1).await, later);
    assert!(
        later.windows(2).all(|pair| pair[0].0 < pair[1].0),
        "one revision for each transaction"
    );
}
