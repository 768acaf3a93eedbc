//! The promises of the `Backend` trait, one test each, for every implementation.
//!
//! ```ignore
//! // The guard is dropped after the test; it keeps a folder or a process alive.
//! async fn new_backend() -> (impl Drop, Arc<dyn Backend>) { … }
//! outrigger_storage::backend_suite!(new_backend());
//! ```
//!
//! A test may find other keys and any revision, and uses keys of its own. But while it runs nobody else may write or
//! compact: revisions and history are those of the whole backend (a shared server needs a lock in the guard).

use crate::backend::{
    Backend, BackendError, BackendEvent, Compare, Condition, KeyValue, Op, OpResponse, Range, RangeResponse,
    Revision, TXN_OPS_MAX, Txn, TxnResponse, WatchRequest, WatchStream,
};
use crate::key::prefix_end;
use bytes::Bytes;
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;

/// How long a watch may take to deliver.
const DELIVERY_MAX: Duration = Duration::from_secs(20);

/// Expands to one `#[tokio::test]` for every promise of [`Backend`](crate::backend::Backend). The expression makes a
/// future of a guard and an `Arc<dyn Backend>`; it is evaluated once for every test.
#[macro_export]
macro_rules! backend_suite {
    ($new:expr) => {
        $crate::backend_suite!(@tests $new;
            a_put_is_read_back_with_its_revisions
            puts_of_one_transaction_share_a_revision
            a_missing_key_has_revision_zero_and_no_value
            compares_choose_the_branch
            values_compare_bytewise
            reads_see_earlier_writes_of_their_transaction
            reads_and_lost_compares_leave_the_revision
            a_key_is_written_once_in_a_transaction
            a_transaction_has_a_limit_of_steps
            ranges_are_ordered_limited_and_counted
            keys_and_values_are_any_bytes
            a_range_at_a_past_revision_sees_the_past
            a_range_at_a_future_revision_fails_and_writes_nothing
            many_ranges_are_read_in_one_transaction
            large_values_come_back_and_too_large_ones_are_refused
            of_concurrent_creates_one_wins
            concurrent_compare_and_swap_loses_nothing
            compaction_forgets_the_past_and_keeps_the_present
            compaction_keeps_what_is_current_at_its_revision
            compacting_twice_is_fine_and_the_future_is_refused
            a_watch_below_the_compact_revision_is_refused
            history_above_the_compact_revision_remains
            a_watch_delivers_every_change_in_order
            a_batch_never_splits_a_revision
            a_watch_has_previous_values_if_asked
            a_watch_starts_at_any_retained_revision
            a_watch_from_now_on_skips_the_past
            a_watch_from_a_future_revision_waits_for_it
            a_watch_of_one_key_sees_that_key_only
            until_ends_a_watch
            until_a_revision_of_other_keys_ends_a_watch
            until_waits_for_its_revision
            a_slow_watcher_loses_nothing
            watchers_agree_on_the_order
            status_knows_the_revision
        );
    };
    (@tests $new:expr; $($name:ident)*) => {$(
        #[tokio::test]
        async fn $name() {
            let (guard, backend) = $new.await;
            $crate::testing::backend_suite::$name(backend).await;
            drop(guard);
        }
    )*};
}

/// A backend and keys of one's own in it.
struct Fixture {
    backend: Arc<dyn Backend>,
    prefix: String,
}

impl Fixture {
    fn new(backend: Arc<dyn Backend>) -> Self {
        Self {
            backend,
            prefix: format!("suite-{}/", uuid::Uuid::new_v4()),
        }
    }

    fn key(&self, name: &str) -> Bytes {
        format!("{}{name}", self.prefix).into()
    }

    fn op(&self, name: &str, value: &str) -> Op {
        Op::Put {
            key: self.key(name),
            value: value.to_owned().into(),
        }
    }

    async fn txn(&self, compare: Vec<Compare>, success: Vec<Op>, failure: Vec<Op>) -> TxnResponse {
        self.backend
            .txn(Txn {
                compare,
                success,
                failure,
            })
            .await
            .expect("a transaction")
    }

    async fn put(&self, name: &str, value: &str) -> Revision {
        self.txn(vec![], vec![self.op(name, value)], vec![])
            .await
            .revision
    }

    async fn delete(&self, name: &str) -> Revision {
        self.txn(vec![], vec![Op::Delete { key: self.key(name) }], vec![])
            .await
            .revision
    }

    fn all(&self) -> Range {
        Range::between(self.prefix.clone(), prefix_end(self.prefix.as_bytes()))
    }

    async fn range(&self, range: Range) -> RangeResponse {
        self.try_range(range).await.expect("a range")
    }

    async fn try_range(&self, range: Range) -> Result<RangeResponse, BackendError> {
        let mut response = self.backend.txn(Txn::read([range])).await?;
        Ok(response.responses.swap_remove(0).into_range())
    }

    async fn get(&self, name: &str) -> Option<KeyValue> {
        self.range(Range::key(self.key(name))).await.kvs.pop()
    }

    async fn revision(&self) -> Revision {
        self.backend
            .txn(Txn::read([Range::key(self.key("-"))]))
            .await
            .expect("a read")
            .revision
    }

    /// The names and values of a range's keys.
    fn pairs(&self, range: &RangeResponse) -> Vec<(String, String)> {
        range
            .kvs
            .iter()
            .map(|kv| (self.name(kv), text(&kv.value)))
            .collect()
    }

    fn name(&self, kv: &KeyValue) -> String {
        text(
            kv.key
                .strip_prefix(self.prefix.as_bytes())
                .expect("a key of this test"),
        )
    }

    fn request(&self, start_revision: Revision) -> WatchRequest {
        let Range { start, end, .. } = self.all();
        WatchRequest {
            start,
            end,
            start_revision,
            prev_kv: false,
            until: None,
        }
    }

    async fn watch(&self, start_revision: Revision) -> WatchStream {
        self.backend
            .watch(self.request(start_revision))
            .await
            .expect("a watch")
    }

    /// `put name=value` or `delete name`, with the revision.
    fn change(&self, event: &BackendEvent) -> (Revision, String) {
        let name = self.name(&event.kv);
        let what = if event.deleted {
            format!("delete {name}")
        } else {
            format!("put {name}={}", text(&event.kv.value))
        };
        (event.kv.mod_revision, what)
    }

    /// Everything that happened from a revision on.
    async fn history(&self, from: Revision) -> Vec<(Revision, String)> {
        let until = Some(self.revision().await);
        let request = WatchRequest {
            until,
            ..self.request(from)
        };
        let events = collect(self.backend.watch(request).await.expect("a watch")).await;
        events.iter().map(|event| self.change(event)).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The next events of a watch; checks what holds for every batch.
async fn next_events(watch: &mut WatchStream) -> Option<Vec<BackendEvent>> {
    loop {
        let next = tokio::time::timeout(DELIVERY_MAX, watch.next())
            .await
            .expect("the watch delivers in time");
        let batch = next?.expect("the watch goes on");
        let revisions: Vec<_> = batch.events.iter().map(|e| e.kv.mod_revision).collect();
        assert!(
            revisions.is_sorted(),
            "a batch is in the order of revisions: {revisions:?}"
        );
        assert!(
            revisions.last().is_none_or(|last| *last <= batch.revision),
            "a batch's revision covers its events"
        );
        if !batch.events.is_empty() {
            return Some(batch.events);
        }
    }
}

/// The next `n` events at least.
async fn take(watch: &mut WatchStream, n: usize) -> Vec<BackendEvent> {
    let mut events = Vec::new();
    while events.len() < n {
        events.extend(next_events(watch).await.expect("the watch does not end"));
    }
    events
}

/// All events of a watch that ends.
async fn collect(mut watch: WatchStream) -> Vec<BackendEvent> {
    let mut events = Vec::new();
    while let Some(more) = next_events(&mut watch).await {
        events.extend(more);
    }
    events
}

/// Create, update, delete, create again.
pub async fn a_put_is_read_back_with_its_revisions(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let created = t.put("a", "1").await;
    let updated = t.put("a", "2").await;
    assert_eq!(updated, created + 1);
    let expect = KeyValue {
        key: t.key("a"),
        value: "2".into(),
        create_revision: created,
        mod_revision: updated,
        version: 2,
    };
    assert_eq!(t.get("a").await, Some(expect));
    let response = t.txn(vec![], vec![Op::Delete { key: t.key("a") }], vec![]).await;
    assert_eq!(
        (response.revision, response.responses),
        (updated + 1, vec![OpResponse::Delete(1)])
    );
    assert_eq!(t.get("a").await, None);
    let again = t.put("a", "3").await;
    let kv = t.get("a").await.expect("created again");
    assert_eq!(
        (kv.create_revision, kv.mod_revision, kv.version),
        (again, again, 1)
    );
}

/// All or nothing, at one revision.
pub async fn puts_of_one_transaction_share_a_revision(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let before = t.put("gone", "0").await;
    let ops = vec![t.op("a", "1"), Op::Delete { key: t.key("gone") }, t.op("b", "2")];
    let response = t.txn(vec![], ops, vec![]).await;
    assert!(response.succeeded);
    assert_eq!(response.revision, before + 1);
    assert_eq!(
        response.responses,
        [OpResponse::Put, OpResponse::Delete(1), OpResponse::Put]
    );
    let all = t.range(t.all()).await;
    assert_eq!(
        all.kvs.iter().map(|kv| kv.mod_revision).collect::<Vec<_>>(),
        [before + 1, before + 1]
    );
}

/// For a key that does not exist only `mod_revision = 0` holds.
pub async fn a_missing_key_has_revision_zero_and_no_value(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    t.put("deleted", "x").await;
    t.delete("deleted").await;
    for name in ["never", "deleted"] {
        for (condition, expect) in [
            (Condition::ModRevision(0), true),
            (Condition::ModRevision(1), false),
            (Condition::ValueEquals(Bytes::new()), false),
            (Condition::ValueLess("z".into()), false),
        ] {
            let compare = Compare {
                key: t.key(name),
                condition,
            };
            let response = t.txn(vec![compare.clone()], vec![], vec![]).await;
            assert_eq!(response.succeeded, expect, "{compare:?}");
        }
    }
}

/// All conditions must hold; otherwise the other branch is carried out, reads and writes.
pub async fn compares_choose_the_branch(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let at = t.put("a", "1").await;
    let (right, wrong) = (
        Compare::mod_revision(t.key("a"), at),
        Compare::mod_revision(t.key("a"), at + 1),
    );
    let absent = Compare::absent(t.key("b"));
    for (compare, expect) in [
        (vec![right.clone()], true),
        (vec![right.clone(), absent.clone()], true),
        (vec![wrong.clone(), absent.clone()], false),
        (vec![absent, wrong], false),
    ] {
        let ops = |value: &str| vec![t.op("result", value), Op::Get(Range::key(t.key("a")))];
        let response = t.txn(compare, ops("then"), ops("else")).await;
        assert_eq!(response.succeeded, expect);
        assert_eq!(response.responses.len(), 2);
        assert_eq!(
            response
                .responses
                .last()
                .cloned()
                .expect("a read")
                .into_range()
                .count,
            1
        );
        let result = t.get("result").await.expect("written");
        assert_eq!(
            (text(&result.value).as_str(), result.mod_revision),
            (if expect { "then" } else { "else" }, response.revision)
        );
    }
}

/// As byte strings: a prefix is less.
pub async fn values_compare_bytewise(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    t.put("a", "mm").await;
    let less = |v: &str| Condition::ValueLess(v.to_owned().into());
    let equals = |v: &str| Condition::ValueEquals(v.to_owned().into());
    for (condition, expect) in [
        (less("mn"), true),
        (less("mmm"), true),
        (less("n"), true),
        (less("mm"), false),
        (less("m"), false),
        (less("Z"), false),
        (equals("mm"), true),
        (equals("m"), false),
        (equals(""), false),
    ] {
        let compare = Compare {
            key: t.key("a"),
            condition,
        };
        assert_eq!(
            t.txn(vec![compare.clone()], vec![], vec![]).await.succeeded,
            expect,
            "{compare:?}"
        );
    }
}

/// In the order of the steps.
pub async fn reads_see_earlier_writes_of_their_transaction(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    t.put("b", "old").await;
    let get = || Op::Get(t.all());
    let ops = vec![
        get(),
        t.op("a", "1"),
        get(),
        Op::Delete { key: t.key("b") },
        get(),
    ];
    let response = t.txn(vec![], ops, vec![]).await;
    let seen: Vec<_> = response
        .responses
        .into_iter()
        .map(|r| t.pairs(&r.into_range()))
        .collect();
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(seen[0], [pair("b", "old")]);
    assert_eq!(seen[2], [pair("a", "1"), pair("b", "old")]);
    assert_eq!(seen[4], [pair("a", "1")]);
    assert_eq!(t.get("a").await.expect("written").mod_revision, response.revision);
}

/// Only changes raise the revision; the delete of a missing key is none.
pub async fn reads_and_lost_compares_leave_the_revision(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let at = t.put("a", "1").await;
    let lost = t
        .txn(vec![Compare::absent(t.key("a"))], vec![t.op("a", "2")], vec![])
        .await;
    assert_eq!((lost.succeeded, lost.revision), (false, at));
    assert_eq!(t.delete("missing").await, at);
    let (read, empty) = (
        t.backend.txn(Txn::read([t.all()])).await,
        t.backend.txn(Txn::default()).await,
    );
    assert_eq!(read.expect("a read").revision, at);
    assert_eq!(empty.map(|r| r.revision).unwrap_or(at), at);
}

/// Whether by two puts or by a put and a delete; nothing of it is written.
pub async fn a_key_is_written_once_in_a_transaction(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let delete = Op::Delete { key: t.key("a") };
    for ops in [
        vec![t.op("a", "1"), t.op("a", "2")],
        vec![t.op("a", "1"), delete.clone()],
        vec![delete, t.op("a", "1")],
    ] {
        for (success, failure) in [(ops.clone(), vec![]), (vec![], ops)] {
            let error = t
                .backend
                .txn(Txn {
                    compare: vec![],
                    success,
                    failure,
                })
                .await
                .expect_err("a key written twice");
            assert!(matches!(error, BackendError::Refused(_)), "{error:?}");
        }
    }
    assert_eq!(t.get("a").await, None);
}

/// [`TXN_OPS_MAX`] steps, and as many compares.
pub async fn a_transaction_has_a_limit_of_steps(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let puts = |n: usize| (0..n).map(|i| t.op(&format!("{i:03}"), "x")).collect::<Vec<_>>();
    t.txn(vec![], puts(TXN_OPS_MAX), vec![]).await;
    assert_eq!(t.range(t.all()).await.count, TXN_OPS_MAX as u64);
    let txn = Txn {
        success: puts(TXN_OPS_MAX + 1),
        ..Txn::default()
    };
    let error = t.backend.txn(txn).await.expect_err("too many steps");
    assert!(matches!(error, BackendError::Refused(_)), "{error:?}");
}

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

/// A megabyte is fine, two are not.
pub async fn large_values_come_back_and_too_large_ones_are_refused(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let value: Bytes = (0..1024 * 1024)
        .map(|i: u32| (i % 251) as u8)
        .collect::<Vec<_>>()
        .into();
    let put = |value: Bytes| Txn {
        success: vec![Op::Put {
            key: t.key("a"),
            value,
        }],
        ..Txn::default()
    };
    let at = t
        .backend
        .txn(put(value.clone()))
        .await
        .expect("a megabyte")
        .revision;
    assert_eq!(t.get("a").await.expect("there").value, value);
    let mut watch = t.watch(at).await;
    assert_eq!(take(&mut watch, 1).await[0].kv.value, value);
    let error = t
        .backend
        .txn(put(vec![7; 2 * 1024 * 1024].into()))
        .await
        .expect_err("two megabytes");
    assert_eq!(error, BackendError::TooLarge);
    assert_eq!(t.get("a").await.expect("still there").mod_revision, at);
}

/// Exactly one, and the others see it.
pub async fn of_concurrent_creates_one_wins(backend: Arc<dyn Backend>) {
    const WRITERS: usize = 20;
    let t = Fixture::new(backend);
    let attempts = (0..WRITERS).map(|i| {
        let get = Op::Get(Range::key(t.key("a")));
        t.txn(
            vec![Compare::absent(t.key("a"))],
            vec![t.op("a", &i.to_string())],
            vec![get],
        )
    });
    let answers = futures::future::join_all(attempts).await;
    let winners: Vec<usize> = (0..WRITERS).filter(|i| answers[*i].succeeded).collect();
    assert_eq!(winners.len(), 1, "{winners:?}");
    let stored = t.get("a").await.expect("created");
    assert_eq!((text(&stored.value), stored.version), (winners[0].to_string(), 1));
    for answer in answers.into_iter().filter(|a| !a.succeeded) {
        assert_eq!(
            answer.responses[0].clone().into_range().kvs,
            std::slice::from_ref(&stored)
        );
    }
}

/// A counter raised by several writers ends where it should.
pub async fn concurrent_compare_and_swap_loses_nothing(backend: Arc<dyn Backend>) {
    const WRITERS: u64 = 6;
    const STEPS: u64 = 15;
    let t = Fixture::new(backend);
    t.put("counter", "0").await;
    let writer = || async {
        for _ in 0..STEPS {
            loop {
                let now = t.get("counter").await.expect("there");
                let next = text(&now.value).parse::<u64>().expect("a number") + 1;
                let compare = Compare::mod_revision(now.key, now.mod_revision);
                if t.txn(vec![compare], vec![t.op("counter", &next.to_string())], vec![])
                    .await
                    .succeeded
                {
                    break;
                }
            }
        }
    };
    futures::future::join_all((0..WRITERS).map(|_| writer())).await;
    let end = t.get("counter").await.expect("there");
    assert_eq!(
        (text(&end.value), end.version),
        ((WRITERS * STEPS).to_string(), WRITERS * STEPS + 1)
    );
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

/// And a version and sizes.
pub async fn status_knows_the_revision(backend: Arc<dyn Backend>) {
    let t = Fixture::new(backend);
    let at = t.put("a", "1").await;
    let status = t.backend.status().await.expect("a status");
    assert_eq!(status.revision, at);
    assert!(
        !status.version.is_empty() && status.db_size > 0 && status.db_size_in_use > 0,
        "{status:?}"
    );
}
