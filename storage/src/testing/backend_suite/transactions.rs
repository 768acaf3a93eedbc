//! Promises about transactions: revisions, compares, limits, races.

use super::{Fixture, take, text};
use crate::backend::{
    Backend, BackendError, Compare, Condition, KeyValue, Op, OpResponse, Range, TXN_OPS_MAX, Txn,
};
use bytes::Bytes;
use std::sync::Arc;

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
