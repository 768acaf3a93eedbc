//! Promises about ranges: order, limits, the past, compaction.

use super::Fixture;
use crate::backend::{Backend, BackendError, Compare, Op, Range, RangeResponse, TXN_OPS_MAX, Txn};
use crate::key::prefix_end;
use bytes::Bytes;
use std::sync::Arc;

/// Bytewise order, `limit`, `more`, `count`, keys only, counts only, one key, no key.
pub async fn ranges_are_ordered_limited_and_counted(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    for name in ["b", "a/x", "a-b/x", "a", "Z", "c"] {
        t.put(name, &format!("value of {name}")).await;
    }
    t.put("deleted", "x").await;
    t.delete("deleted").await;
    let names = |r: &RangeResponse| r.kvs.iter().map(|kv| t.name(kv)).collect::<Vec<_>>();

    let all = t.range(t.all()).await;
    assert_eq!(names(&all), ["Z", "a", "a-b/x", "a/x", "b", "c"]);
    assert_eq!((all.count, all.more), (6, false));

    let page = t.range(t.all().limit(2)).await;
    assert_eq!(
        (names(&page), page.count, page.more),
        (vec!["Z".to_owned(), "a".to_owned()], 6, true)
    );
    let rest = t
        .range(Range::between([&t.key("a")[..], b"\0"].concat(), prefix_end(t.prefix.as_bytes())).limit(4))
        .await;
    assert_eq!((rest.kvs.len(), rest.count, rest.more), (4, 4, false));

    let keys = t
        .range(Range {
            keys_only: true,
            ..t.all()
        })
        .await;
    assert_eq!(names(&keys), names(&all));
    assert!(
        keys.kvs
            .iter()
            .all(|kv| kv.value.is_empty() && kv.mod_revision > 0 && kv.version == 1)
    );

    let count = t
        .range(Range {
            count_only: true,
            ..t.all()
        })
        .await;
    assert_eq!((count.kvs.len(), count.count), (0, 6));

    let part = t.range(Range::between(t.key("a"), t.key("b"))).await;
    assert_eq!(names(&part), ["a", "a-b/x", "a/x"]);
    let one = t.range(Range::key(t.key("b"))).await;
    assert_eq!(
        (names(&one), one.count, one.more),
        (vec!["b".to_owned()], 1, false)
    );
    let none = t.range(Range::between(t.key("c"), t.key("b"))).await;
    assert_eq!((none.kvs.len(), none.count, none.more), (0, 0, false));
    let missing = t.range(Range::key(t.key("missing"))).await;
    assert_eq!((missing.kvs.len(), missing.count), (0, 0));
}

/// Zero bytes and 0xff included, in the right order; a value may be empty.
pub async fn keys_and_values_are_any_bytes(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let key = |tail: &[u8]| Bytes::from([t.prefix.as_bytes(), tail].concat());
    let tails: [&[u8]; 7] = [b"\0", b"\0\0", b"\0\x01", b"a", b"a\0", b"a\xff", b"\xff"];
    for tail in tails.iter().rev() {
        let op = Op::Put {
            key: key(tail),
            value: Bytes::copy_from_slice(&tail[1..]),
        };
        t.txn(vec![], vec![op], vec![]).await;
    }
    let all = t.range(t.all()).await;
    let read: Vec<_> = all.kvs.iter().map(|kv| kv.key.clone()).collect();
    assert_eq!(read, tails.map(key));
    assert!(all.kvs.iter().zip(tails).all(|(kv, tail)| kv.value == tail[1..]));
    let from_a = t.range(Range::between(key(b"a"), key(b"a\xff"))).await;
    assert_eq!(from_a.count, 2);
}

/// Values, counts and deleted keys as they were.
pub async fn a_range_at_a_past_revision_sees_the_past(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let mut expect = Vec::new();
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    expect.push((t.put("a", "1").await, vec![pair("a", "1")]));
    expect.push((t.put("b", "1").await, vec![pair("a", "1"), pair("b", "1")]));
    expect.push((t.put("a", "2").await, vec![pair("a", "2"), pair("b", "1")]));
    expect.push((t.delete("b").await, vec![pair("a", "2")]));
    expect.push((t.put("b", "2").await, vec![pair("a", "2"), pair("b", "2")]));
    for (revision, pairs) in expect {
        let range = t.range(t.all().at(revision)).await;
        assert_eq!(t.pairs(&range), pairs, "at {revision}");
        assert_eq!(range.count, pairs.len() as u64);
        let limited = t.range(t.all().at(revision).limit(1)).await;
        assert_eq!((limited.count, limited.more), (range.count, range.count > 1));
        let first = t.range(Range::key(t.key("a")).at(revision)).await;
        assert_eq!(t.pairs(&first), pairs[..1]);
    }
}

/// Alone and beside writes.
pub async fn a_range_at_a_future_revision_fails_and_writes_nothing(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let at = t.put("a", "1").await;
    assert_eq!(
        t.try_range(t.all().at(at + 1)).await,
        Err(BackendError::FutureRevision)
    );
    let success = vec![t.op("a", "2"), Op::Get(t.all().at(at + 5))];
    let error = t
        .backend
        .txn(Txn {
            success,
            ..Txn::default()
        })
        .await
        .expect_err("the future");
    assert_eq!(error, BackendError::FutureRevision);
    let kv = t.get("a").await.expect("still there");
    assert_eq!((kv.value, kv.mod_revision), ("1".into(), at));
}

/// As many as a transaction has steps, all at one revision.
pub async fn many_ranges_are_read_in_one_transaction(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    for i in 0..TXN_OPS_MAX / 8 {
        let ops = (0..8)
            .map(|j| t.op(&format!("{:03}/x", i * 8 + j), "v"))
            .collect();
        t.txn(vec![], ops, vec![]).await;
    }
    let ranges =
        (0..TXN_OPS_MAX).map(|i| Range::between(t.key(&format!("{i:03}/")), t.key(&format!("{i:03}0"))));
    let response = t.backend.txn(Txn::read(ranges)).await.expect("a read");
    assert_eq!(response.responses.len(), TXN_OPS_MAX);
    for (i, response) in response.responses.into_iter().enumerate() {
        let range = response.into_range();
        assert_eq!(t.pairs(&range), [(format!("{i:03}/x"), "v".to_owned())]);
    }
}

/// Reads below the compact revision fail; everything that exists stays.
pub async fn compaction_forgets_the_past_and_keeps_the_present(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let first = t.put("a", "1").await;
    t.put("old", "kept").await;
    t.put("b", "1").await;
    t.delete("b").await;
    let last = t.put("a", "2").await;
    t.backend.compact(last).await.expect("compacted");
    for revision in [first, last - 1] {
        let error = t.try_range(t.all().at(revision)).await.expect_err("compacted");
        assert!(matches!(error, BackendError::Compacted { .. }), "{error:?}");
    }
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    for revision in [0, last] {
        let range = t.range(t.all().at(revision)).await;
        assert_eq!(t.pairs(&range), [pair("a", "2"), pair("old", "kept")]);
    }
    let kv = t.get("a").await.expect("there");
    assert_eq!((kv.create_revision, kv.version), (first, 2));
    let next = t
        .txn(vec![Compare::absent(t.key("b"))], vec![t.op("b", "2")], vec![])
        .await;
    assert!(next.succeeded, "a deleted and compacted key is absent");
    assert_eq!(t.get("b").await.expect("there").version, 1);
}

/// The state at the compact revision stays readable at and after it, however often it is compacted.
pub async fn compaction_keeps_what_is_current_at_its_revision(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    t.put("a", "1").await;
    t.put("b", "1").await;
    let middle = t.put("a", "2").await;
    t.put("c", "1").await;
    t.delete("b").await;
    let last = t.put("a", "3").await;
    t.backend.compact(middle).await.expect("compacted");
    assert_eq!(
        t.pairs(&t.range(t.all().at(middle)).await),
        [pair("a", "2"), pair("b", "1")]
    );
    assert_eq!(
        t.pairs(&t.range(t.all().at(middle + 1)).await),
        [pair("a", "2"), pair("b", "1"), pair("c", "1")]
    );
    t.backend.compact(last).await.expect("compacted");
    assert_eq!(
        t.pairs(&t.range(t.all().at(last)).await),
        [pair("a", "3"), pair("c", "1")]
    );
    let end = t.put("d", "1").await;
    t.backend.compact(end).await.expect("compacted");
    assert_eq!(
        t.pairs(&t.range(t.all()).await),
        [pair("a", "3"), pair("c", "1"), pair("d", "1")]
    );
}

/// What is compacted is compacted; what does not exist yet cannot be.
pub async fn compacting_twice_is_fine_and_the_future_is_refused(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    t.put("a", "1").await;
    let at = t.put("a", "2").await;
    t.backend.compact(at).await.expect("compacted");
    t.backend.compact(at).await.expect("compacted again");
    t.backend.compact(at - 1).await.expect("compacted already");
    assert_eq!(
        t.backend.compact(at + 100).await,
        Err(BackendError::FutureRevision)
    );
    assert_eq!(t.get("a").await.expect("there").version, 2);
}
