//! `EtcdBackend` on real etcds: certificates, failover, outcomes, watches, compaction, large values, round trips.
//!
//! What every backend promises is in `backend_suite!`; here is what only a real etcd, and a network, can show.

use bytes::Bytes;
use futures::StreamExt;
use outrigger_storage::StoreMetrics;
use outrigger_storage::backend::bounded::{Bounded, Limits};
use outrigger_storage::backend::embedded::EmbeddedBackend;
use outrigger_storage::backend::etcd::{EtcdBackend, EtcdOptions};
use outrigger_storage::backend::instrumented::Instrumented;
use outrigger_storage::backend::{
    Backend, BackendError, Compare, Op, OpResponse, Range, Revision, Txn, WatchBatch, WatchRequest,
    WatchStream,
};
use outrigger_storage::testing::etcd_server::{EtcdServer, EtcdServerOptions, EtcdTls};
use outrigger_storage::testing::tcp_proxy::TcpProxy;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

mod suite {
    use super::*;
    async fn new() -> (EtcdServer, Arc<dyn Backend>) {
        let etcd = EtcdServer::start().await;
        let backend = Arc::new(etcd.backend());
        (etcd, backend)
    }
    outrigger_storage::backend_suite!(new());
}

/// The suite through the decorators that every backend of the server wears.
mod decorated {
    use super::*;
    async fn new() -> ((), Arc<dyn Backend>) {
        let metrics = StoreMetrics::new().backend("test");
        let inner = Arc::new(Instrumented::new(
            Arc::new(EmbeddedBackend::in_memory()),
            Arc::clone(&metrics),
        ));
        (
            (),
            Arc::new(Bounded::new(inner, Limits::default()).with_metrics(metrics)),
        )
    }
    outrigger_storage::backend_suite!(new());
}

/// Longer than anything here takes, shorter than patience.
const SOON: Duration = Duration::from_secs(30);

fn put(key: &str, value: impl Into<Bytes>) -> Txn {
    Txn {
        success: vec![Op::Put {
            key: key.to_owned().into(),
            value: value.into(),
        }],
        ..Txn::default()
    }
}

fn delete(key: &str) -> Txn {
    Txn {
        success: vec![Op::Delete {
            key: key.to_owned().into(),
        }],
        ..Txn::default()
    }
}

fn all() -> Range {
    Range::between("", Bytes::from_static(&[0]))
}

fn watch_all(start_revision: Revision) -> WatchRequest {
    WatchRequest {
        start: Bytes::new(),
        end: Some(Bytes::from_static(&[0])),
        start_revision,
        prev_kv: true,
        until: None,
    }
}

async fn value(backend: &EtcdBackend, key: &str) -> Result<Option<Bytes>, BackendError> {
    let answer = backend.txn(Txn::read([Range::key(key.to_owned())])).await?;
    let range = answer
        .responses
        .into_iter()
        .next()
        .map(OpResponse::into_range)
        .unwrap_or_default();
    Ok(range.kvs.into_iter().next().map(|kv| kv.value))
}

async fn next(stream: &mut WatchStream) -> Option<Result<WatchBatch, BackendError>> {
    timeout(SOON, stream.next())
        .await
        .expect("the watch yields something in time")
}

/// `key=value` and `key-` of the next so many events.
async fn events(stream: &mut WatchStream, count: usize) -> Vec<String> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let batch = next(stream)
            .await
            .expect("the watch goes on")
            .expect("without an error");
        seen.extend(batch.events.into_iter().map(|event| {
            let key = String::from_utf8_lossy(&event.kv.key).into_owned();
            let value = String::from_utf8_lossy(&event.kv.value).into_owned();
            if event.deleted {
                format!("{key}-")
            } else {
                format!("{key}={value}")
            }
        }));
    }
    seen
}

fn through(proxy: &TcpProxy) -> EtcdOptions {
    EtcdOptions {
        endpoints: vec![proxy.http_url()],
        ..EtcdOptions::default()
    }
}

fn client(options: &EtcdOptions) -> EtcdBackend {
    EtcdBackend::new(options).expect("valid options")
}

fn is_unavailable<T>(answer: &Result<T, BackendError>, expect_sent: bool) -> bool {
    matches!(answer, Err(BackendError::Unavailable { sent, .. }) if *sent == expect_sent)
}

#[tokio::test]
async fn prefixes_keep_clients_apart() {
    let etcd = EtcdServer::start().await;
    let a = etcd.backend();
    let b = client(&EtcdOptions {
        prefix: "/outrigger2/".into(),
        ..etcd.client_options()
    });
    let plain = client(&EtcdOptions {
        prefix: String::new(),
        ..etcd.client_options()
    });
    a.txn(put("x", "of a")).await.expect("written");
    b.txn(put("x", "of b")).await.expect("written");
    assert_eq!(value(&a, "x").await, Ok(Some("of a".into())));
    assert_eq!(value(&b, "x").await, Ok(Some("of b".into())));
    let keys = |backend: EtcdBackend| async move {
        let answer = backend.txn(Txn::read([all()])).await.expect("read");
        let range = answer
            .responses
            .into_iter()
            .next()
            .expect("one answer")
            .into_range();
        range
            .kvs
            .iter()
            .map(|kv| String::from_utf8_lossy(&kv.key).into_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(keys(a).await, ["x"]);
    assert_eq!(keys(b).await, ["x"]);
    assert_eq!(keys(plain).await, ["/outrigger/x", "/outrigger2/x"]);
}

#[tokio::test]
async fn status_tells_version_revision_and_sizes() {
    let options = EtcdServerOptions {
        quota_bytes: Some(64 << 20),
        ..EtcdServerOptions::default()
    };
    let etcd = EtcdServer::start_with(options).await;
    let backend = etcd.backend();
    let written = backend.txn(put("a", "1")).await.expect("written").revision;
    let status = backend.status().await.expect("answers");
    assert!(status.version.starts_with("3."), "{status:?}");
    assert_eq!((status.revision, status.quota), (written, 64 << 20));
    assert!(
        status.db_size >= status.db_size_in_use && status.db_size_in_use > 0,
        "{status:?}"
    );
}

#[tokio::test]
async fn a_transaction_without_steps_is_linearizable_too() {
    let etcd = EtcdServer::start().await;
    let backend = etcd.backend();
    let revision = backend.txn(put("a", "1")).await.expect("written").revision;
    let answer = backend
        .txn(Txn {
            compare: vec![Compare::absent("a")],
            ..Txn::default()
        })
        .await
        .expect("read");
    assert_eq!(
        (answer.succeeded, answer.revision, answer.responses.len()),
        (false, revision, 0)
    );
    let answer = backend.txn(Txn::default()).await.expect("read");
    assert_eq!(
        (answer.succeeded, answer.revision, answer.responses.len()),
        (true, revision, 0)
    );
}

#[tokio::test]
async fn limits_of_etcd_are_told_apart() {
    let options = EtcdServerOptions {
        quota_bytes: Some(4 << 20),
        ..EtcdServerOptions::default()
    };
    let etcd = EtcdServer::start_with(options).await;
    let backend = etcd.backend();
    let ops = (0..129).map(|i| Op::Put {
        key: format!("{i}").into(),
        value: Bytes::new(),
    });
    let many = backend
        .txn(Txn {
            success: ops.collect(),
            ..Txn::default()
        })
        .await;
    assert!(
        matches!(&many, Err(BackendError::Refused(cause)) if cause.contains("too many operations")),
        "{many:?}"
    );
    for size in [(1 << 20) + (600 << 10), 3 << 20] {
        assert_eq!(
            backend.txn(put("big", vec![0; size])).await.map(|_| ()),
            Err(BackendError::TooLarge),
            "{size}"
        );
    }
    let future = backend.txn(Txn::read([Range::key("a").at(1000)])).await;
    assert_eq!(future.map(|_| ()), Err(BackendError::FutureRevision));
    let mut full = Ok(());
    for i in 0..16 {
        full = backend
            .txn(put(&format!("{i}"), vec![0; 1 << 20]))
            .await
            .map(|_| ());
        if full.is_err() {
            break;
        }
    }
    assert_eq!(full, Err(BackendError::NoSpace));
    // Reads and deletes still go.
    assert!(value(&backend, "0").await.is_ok_and(|v| v.is_some()));
    assert!(backend.txn(delete("0")).await.is_ok());
}

#[tokio::test]
async fn compaction_is_told_with_its_revision() {
    let etcd = EtcdServer::start().await;
    let backend = etcd.backend();
    let mut revisions = Vec::new();
    for i in 0..10 {
        revisions.push(
            backend
                .txn(put("a", format!("{i}")))
                .await
                .expect("written")
                .revision,
        );
    }
    let compacted = revisions[5];
    backend.compact(compacted).await.expect("compacted");
    backend
        .compact(compacted)
        .await
        .expect("what is compacted already is no error");
    backend.compact(revisions[2]).await.expect("nor is what is older");
    assert_eq!(
        backend.compact(revisions[9] + 100).await,
        Err(BackendError::FutureRevision)
    );

    let below = backend.txn(Txn::read([Range::key("a").at(compacted - 1)])).await;
    assert_eq!(
        below.map(|_| ()),
        Err(BackendError::Compacted { compact_revision: 0 })
    );
    assert!(
        backend
            .txn(Txn::read([Range::key("a").at(compacted)]))
            .await
            .is_ok()
    );

    for start in [1, compacted - 1, compacted] {
        let error = match backend.watch(watch_all(start)).await {
            Err(error) => error,
            Ok(mut stream) => loop {
                match next(&mut stream).await.expect("an error is the last item") {
                    Err(error) => break error,
                    Ok(batch) => assert!(batch.events.is_empty(), "{start}: {batch:?}"),
                }
            },
        };
        assert_eq!(
            error,
            BackendError::Compacted {
                compact_revision: compacted
            },
            "from {start}"
        );
    }
    let mut stream = backend
        .watch(watch_all(compacted + 1))
        .await
        .expect("the history is whole");
    assert_eq!(events(&mut stream, 4).await, ["a=6", "a=7", "a=8", "a=9"]);
}

#[tokio::test]
async fn a_watch_resumes_where_it_ended() {
    let etcd = EtcdServer::start().await;
    let backend = Arc::new(etcd.backend());
    let start = backend.status().await.expect("answers").revision + 1;
    let writer = {
        let backend = Arc::clone(&backend);
        tokio::spawn(async move {
            for i in 0..300 {
                backend
                    .txn(put(&format!("k{}", i % 7), format!("{i}")))
                    .await
                    .expect("written");
            }
        })
    };
    let (mut seen, mut from) = (Vec::new(), start);
    while seen.len() < 300 {
        let mut stream = backend.watch(watch_all(from)).await.expect("opened");
        // A few batches, then the stream is dropped and opened anew.
        for _ in 0..5 {
            let batch = next(&mut stream)
                .await
                .expect("goes on")
                .expect("without an error");
            assert!(
                batch.events.iter().all(|e| e.kv.mod_revision >= from),
                "{batch:?} from {from}"
            );
            seen.extend(
                batch
                    .events
                    .iter()
                    .map(|e| String::from_utf8_lossy(&e.kv.value).into_owned()),
            );
            from = from.max(batch.revision + 1);
        }
    }
    writer.await.expect("the writer ends");
    assert_eq!(seen, (0..300).map(|i| i.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_watch_from_now_misses_nothing_after_it_was_opened() {
    let etcd = EtcdServer::start().await;
    let backend = etcd.backend();
    for i in 0..20 {
        backend.txn(put("before", format!("{i}"))).await.expect("written");
        let mut stream = backend.watch(watch_all(0)).await.expect("opened");
        backend.txn(put("a", format!("{i}"))).await.expect("written");
        backend.txn(delete("a")).await.expect("deleted");
        assert_eq!(events(&mut stream, 2).await, [format!("a={i}"), "a-".to_owned()]);
    }
}

#[tokio::test]
async fn a_piece_of_history_is_read_to_its_end() {
    let etcd = EtcdServer::start().await;
    let backend = etcd.backend();
    let mut revisions = Vec::new();
    for i in 0..50 {
        revisions.push(
            backend
                .txn(put("a", format!("{i}")))
                .await
                .expect("written")
                .revision,
        );
    }
    let outside = client(&EtcdOptions {
        prefix: "/other/".into(),
        ..etcd.client_options()
    });
    let last = outside.txn(put("not ours", "")).await.expect("written").revision;
    let read = |from, until| {
        let backend = &backend;
        async move {
            let request = WatchRequest {
                until: Some(until),
                ..watch_all(from)
            };
            let mut stream = backend.watch(request).await.expect("opened");
            let (mut values, mut revision) = (Vec::new(), 0);
            while let Some(batch) = next(&mut stream).await {
                let batch = batch.expect("without an error");
                values.extend(batch.events.iter().map(|e| e.kv.mod_revision));
                revision = batch.revision;
            }
            (values, revision)
        }
    };
    assert_eq!(
        read(revisions[10], revisions[19]).await,
        (revisions[10..20].to_vec(), revisions[19])
    );
    // The end is a revision that none of our keys has.
    assert_eq!(read(revisions[48], last).await, (revisions[48..].to_vec(), last));
    assert_eq!(read(revisions[5], revisions[4]).await, (Vec::new(), revisions[4]));
    // The end does not exist yet.
    let (history, ()) = tokio::join!(read(last, last + 1), async {
        sleep(Duration::from_millis(300)).await;
        backend.txn(put("a", "late")).await.expect("written");
    });
    assert_eq!(history, (vec![last + 1], last + 1));
}

#[tokio::test]
async fn an_idle_watch_tells_progress() {
    let etcd = EtcdServer::start().await;
    let backend = etcd.backend();
    let outside = client(&EtcdOptions {
        prefix: "/other/".into(),
        ..etcd.client_options()
    });
    let mut stream = backend.watch(watch_all(0)).await.expect("opened");
    let written = outside.txn(put("not ours", "")).await.expect("written").revision;
    loop {
        let batch = next(&mut stream)
            .await
            .expect("goes on")
            .expect("without an error");
        assert!(batch.events.is_empty(), "{batch:?}");
        if batch.revision >= written {
            break;
        }
    }
}

#[tokio::test]
async fn large_events_come_in_fragments_and_revisions_whole() {
    let etcd = EtcdServer::start().await;
    let backend = etcd.backend();
    let start = backend.status().await.expect("answers").revision + 1;
    let mut expect = Vec::new();
    for i in 0..12_u8 {
        // Three keys a revision, 1.2 MB together, each written twice so that there is a previous value.
        let ops = (0..3).map(|k| Op::Put {
            key: format!("k{k}").into(),
            value: vec![i; 400_000].into(),
        });
        let answer = backend
            .txn(Txn {
                success: ops.collect(),
                ..Txn::default()
            })
            .await
            .expect("written");
        expect.push(answer.revision);
    }
    let mut stream = backend.watch(watch_all(start)).await.expect("opened");
    let mut seen = Vec::new();
    while seen.len() < expect.len() {
        let batch = next(&mut stream)
            .await
            .expect("goes on")
            .expect("without an error");
        for events in batch
            .events
            .chunk_by(|a, b| a.kv.mod_revision == b.kv.mod_revision)
        {
            assert_eq!(events.len(), 3, "a revision was split");
            let first = seen.is_empty();
            assert!(
                events
                    .iter()
                    .all(|e| e.kv.value.len() == 400_000 && e.prev.is_some() != first)
            );
            seen.push(events[0].kv.mod_revision);
        }
        if let Some(last) = seen.last() {
            assert_eq!(batch.revision.max(*last), batch.revision);
        }
    }
    assert_eq!(seen, expect);
    // The same as pages of a range: 12 MB are below the limit of an answer, values are not copied.
    let answer = backend
        .txn(Txn::read((0..12).map(|i| all().at(expect[i]))))
        .await
        .expect("read");
    assert_eq!(answer.responses.len(), 12);
}

#[tokio::test]
async fn a_request_cut_after_sending_may_have_been_carried_out() {
    let etcd = EtcdServer::start().await;
    let direct = etcd.backend();
    let proxy = TcpProxy::start(&etcd.client_url()).await;
    let backend = client(&through(&proxy));
    backend.txn(put("warm", "up")).await.expect("written");

    // The answer is on its way when the connection breaks.
    proxy.change(|b| b.stall_down = true);
    let (answer, ()) = tokio::join!(backend.txn(put("a", "1")), async {
        while value(&direct, "a").await.expect("read").is_none() {
            sleep(Duration::from_millis(5)).await;
        }
        proxy.cut();
    });
    assert!(is_unavailable(&answer, true), "{answer:?}");
    assert_eq!(value(&direct, "a").await, Ok(Some("1".into())));

    // The request itself is on its way; a read is asked again on a new connection.
    proxy.change(|b| (b.stall_down, b.stall_up) = (false, true));
    let (answer, ()) = tokio::join!(backend.txn(put("a", "2")), async {
        sleep(Duration::from_millis(100)).await;
        proxy.change(|b| b.stall_up = false);
        sleep(Duration::from_millis(500)).await;
    });
    answer.expect("a stall that ends is only slow");
    proxy.change(|b| b.stall_down = true);
    let (answer, ()) = tokio::join!(value(&backend, "a"), async {
        sleep(Duration::from_millis(200)).await;
        proxy.change(|b| b.stall_down = false);
        proxy.cut();
    });
    assert_eq!(answer, Ok(Some("2".into())));
}

#[tokio::test]
async fn a_deadline_leaves_a_write_open_and_no_connection_leaves_it_undone() {
    let etcd = EtcdServer::start().await;
    let proxy = TcpProxy::start(&etcd.client_url()).await;
    let options = EtcdOptions {
        request_timeout: Duration::from_millis(500),
        ..through(&proxy)
    };
    let backend = client(&options);
    backend.txn(put("warm", "up")).await.expect("written");
    proxy.change(|b| b.stall_down = true);
    let answer = backend.txn(put("a", "1")).await;
    assert!(is_unavailable(&answer, true), "{answer:?}");
    proxy.change(|b| (b.stall_down, b.refuse) = (false, true));
    proxy.cut();
    sleep(Duration::from_millis(100)).await;
    let answer = backend.txn(put("b", "1")).await;
    assert!(is_unavailable(&answer, false), "{answer:?}");
    assert_eq!(value(&etcd.backend(), "b").await, Ok(None));
    // Nobody listens.
    let address = proxy.http_url();
    drop(proxy);
    sleep(Duration::from_millis(100)).await;
    let answer = client(&options).txn(put("c", "1")).await;
    assert!(is_unavailable(&answer, false), "{answer:?}");
    let cause = answer.expect_err("refused").to_string();
    assert!(cause.contains(&address) && cause.contains("refused"), "{cause}");
}

#[tokio::test]
async fn a_broken_connection_is_made_anew() {
    let etcd = EtcdServer::start().await;
    let proxy = TcpProxy::start(&etcd.client_url()).await;
    let backend = client(&through(&proxy));
    for i in 0..20 {
        backend.txn(put("a", format!("{i}"))).await.expect("written");
        proxy.cut();
        // The end of the connection arrives before the next request.
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(value(&backend, "a").await, Ok(Some("19".into())));
}

#[tokio::test]
async fn a_watch_ends_with_its_connection_and_when_the_member_is_suspected() {
    let etcd = EtcdServer::start().await;
    let proxy = TcpProxy::start(&etcd.client_url()).await;
    let backend = client(&through(&proxy));
    let mut stream = backend.watch(watch_all(0)).await.expect("opened");
    backend.txn(put("a", "1")).await.expect("written");
    assert_eq!(events(&mut stream, 1).await, ["a=1"]);
    proxy.cut();
    assert!(matches!(
        next(&mut stream).await,
        Some(Err(BackendError::Unavailable { .. }))
    ));
    assert!(next(&mut stream).await.is_none(), "an error is the last item");

    let mut stream = backend.watch(watch_all(1)).await.expect("opened");
    assert_eq!(events(&mut stream, 1).await, ["a=1"]);
    backend.suspect_member();
    assert!(matches!(
        next(&mut stream).await,
        Some(Err(BackendError::Unavailable { .. }))
    ));
    let mut stream = backend.watch(watch_all(1)).await.expect("opened");
    assert_eq!(events(&mut stream, 1).await, ["a=1"]);
}

#[tokio::test]
async fn a_dead_line_is_noticed() {
    let etcd = EtcdServer::start().await;
    let proxy = TcpProxy::start(&etcd.client_url()).await;
    let backend = client(&EtcdOptions {
        keepalive_interval: Duration::from_millis(300),
        keepalive_timeout: Duration::from_millis(300),
        progress_interval: Duration::from_millis(100),
        request_timeout: SOON,
        ..through(&proxy)
    });
    backend.txn(put("a", "1")).await.expect("written");
    let mut stream = backend.watch(watch_all(0)).await.expect("opened");
    // Nothing arrives, and nothing says that nothing will.
    proxy.change(|b| (b.stall_up, b.stall_down) = (true, true));
    let start = Instant::now();
    let (answer, ended) = tokio::join!(backend.txn(put("a", "2")), async {
        loop {
            match next(&mut stream).await.expect("an item") {
                Ok(batch) => assert!(batch.events.is_empty()),
                Err(error) => break error,
            }
        }
    });
    assert!(is_unavailable(&answer, true), "{answer:?}");
    assert!(matches!(ended, BackendError::Unavailable { .. }), "{ended:?}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    proxy.change(|b| (b.stall_up, b.stall_down) = (false, false));
    timeout(SOON, async { while value(&backend, "a").await.is_err() {} })
        .await
        .expect("on a new connection");
}

#[tokio::test]
async fn a_watch_that_nobody_reads_does_not_stop_requests() {
    let etcd = EtcdServer::start().await;
    let backend = etcd.backend();
    let stalled: Vec<_> = futures::future::join_all((0..4).map(|_| backend.watch(watch_all(0)))).await;
    for i in 0..20 {
        backend.txn(put("a", vec![i; 1 << 20])).await.expect("written");
    }
    let read = timeout(SOON, value(&backend, "a"))
        .await
        .expect("in time")
        .expect("read");
    assert_eq!(read.map(|v| v.len()), Some(1 << 20));
    for stream in stalled {
        let mut stream = stream.expect("opened");
        assert_eq!(events(&mut stream, 20).await.len(), 20);
    }
}

#[tokio::test]
async fn pages_that_nobody_takes_do_not_stop_requests() {
    let etcd = EtcdServer::start().await;
    let backend = etcd.backend();
    for i in 0..8 {
        backend
            .txn(put(&format!("k{i}"), vec![i; 1 << 20]))
            .await
            .expect("written");
    }
    // Asked for ahead, and then their reader is busy with something else: polled once, and not again.
    let mut pages: Vec<_> = (0..8).map(|_| backend.txn(Txn::read([all()]))).collect();
    for page in &mut pages {
        assert!(futures::poll!(page).is_pending());
    }
    for _ in 0..20 {
        let written = timeout(SOON, backend.txn(put("small", "1")))
            .await
            .expect("in time");
        written.expect("written");
        sleep(Duration::from_millis(5)).await;
    }
    for page in pages {
        let answer = timeout(SOON, page).await.expect("in time").expect("read");
        assert!(
            answer
                .responses
                .into_iter()
                .next()
                .is_some_and(|r| r.into_range().kvs.len() >= 8)
        );
    }
}

#[tokio::test]
async fn far_etcds_are_only_slow() {
    let etcd = EtcdServer::start().await;
    let proxy = TcpProxy::start(&etcd.client_url()).await;
    let round_trip = Duration::from_millis(60);
    proxy.set_round_trip(round_trip);
    let backend = client(&through(&proxy));
    backend.txn(put("a", "0")).await.expect("written");
    let start = Instant::now();
    let writes = (0..50).map(|i| backend.txn(put(&format!("k{i}"), vec![0; 20_000])));
    for answer in futures::future::join_all(writes).await {
        answer.expect("written");
    }
    // One after the other they would take 3 s.
    assert!(
        start.elapsed() >= round_trip && start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    let start = Instant::now();
    let answer = backend.txn(Txn::read([all()])).await.expect("read");
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "a page of 1 MB in {:?}",
        start.elapsed()
    );
    assert_eq!(
        answer
            .responses
            .into_iter()
            .next()
            .map(|r| r.into_range().kvs.len()),
        Some(51)
    );
}

#[tokio::test]
async fn one_member_of_three_may_die() {
    let mut etcd = EtcdServer::start_members(3).await;
    let backend = Arc::new(etcd.backend());
    backend.txn(put("counter", "")).await.expect("written");
    let mut stream = backend.watch(watch_all(0)).await.expect("opened");

    // Writers count what was acknowledged and what is unknown; readers must not notice at all.
    let writer = {
        let backend = Arc::clone(&backend);
        tokio::spawn(async move {
            let (mut acknowledged, mut unknown) = (Vec::new(), 0);
            for i in 0..400 {
                match backend.txn(put(&format!("k{i}"), "v")).await {
                    Ok(_) => acknowledged.push(format!("k{i}")),
                    Err(BackendError::Unavailable { sent: true, .. }) => unknown += 1,
                    Err(other) => panic!("write {i}: {other:?}"),
                }
                sleep(Duration::from_millis(5)).await;
            }
            (acknowledged, unknown)
        })
    };
    let reader = {
        let backend = Arc::clone(&backend);
        tokio::spawn(async move {
            for _ in 0..400 {
                value(&backend, "counter")
                    .await
                    .expect("reads go to another member");
                sleep(Duration::from_millis(5)).await;
            }
        })
    };
    sleep(Duration::from_millis(400)).await;
    // The client's requests are with the first member as long as that one answers.
    etcd.kill(0).await;

    let (mut seen, mut from) = (Vec::new(), 0);
    let (acknowledged, unknown) = {
        let watching = async {
            loop {
                match next(&mut stream).await.expect("an item") {
                    Ok(batch) => {
                        seen.extend(
                            batch
                                .events
                                .iter()
                                .map(|e| String::from_utf8_lossy(&e.kv.key).into_owned()),
                        );
                        from = batch.revision + 1;
                    }
                    Err(BackendError::Unavailable { .. }) => {
                        stream = backend
                            .watch(watch_all(from))
                            .await
                            .expect("opened on another member");
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
        };
        tokio::select! {
            () = watching => unreachable!("it does not end"),
            written = async {
                let written = writer.await.expect("the writer ends");
                sleep(Duration::from_secs(1)).await;
                written
            } => written,
        }
    };
    reader.await.expect("the reader ends");
    assert!(
        acknowledged.len() > 300,
        "{} acknowledged, {unknown} unknown",
        acknowledged.len()
    );
    for key in &acknowledged {
        assert!(seen.contains(key), "{key} was not seen");
    }
    let mut once = seen.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), seen.len(), "an event came twice");

    // It comes back, and the others may go one after the other.
    etcd.restart(0);
    timeout(SOON, async {
        let alone = client(&EtcdOptions {
            endpoints: vec![etcd.client_url()],
            ..EtcdOptions::default()
        });
        while alone.status().await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the member is back");
    etcd.kill(1).await;
    timeout(SOON, async {
        while backend.txn(put("after", "all")).await.is_err() {}
    })
    .await
    .expect("written");
}

#[tokio::test]
async fn without_a_quorum_nothing_is_promised() {
    let mut etcd = EtcdServer::start_members(3).await;
    let options = EtcdOptions {
        request_timeout: Duration::from_secs(1),
        ..etcd.client_options()
    };
    let backend = client(&options);
    backend.txn(put("a", "1")).await.expect("written");
    let mut stream = backend.watch(watch_all(0)).await.expect("opened");
    etcd.kill(1).await;
    etcd.kill(2).await;
    assert!(backend.txn(put("a", "2")).await.is_err());
    assert!(value(&backend, "a").await.is_err(), "a read must be linearizable");
    // The watch requires a leader.
    loop {
        match next(&mut stream).await.expect("an item") {
            Ok(batch) => assert!(batch.events.is_empty()),
            Err(error) => break assert!(matches!(error, BackendError::Unavailable { .. }), "{error:?}"),
        }
    }
}

#[tokio::test]
async fn a_silent_member_is_left() {
    let etcd = EtcdServer::start_members(3).await;
    let options = EtcdOptions {
        request_timeout: Duration::from_secs(1),
        connect_timeout: Duration::from_millis(500),
        ..etcd.client_options()
    };
    let backend = client(&options);
    backend.txn(put("a", "1")).await.expect("written");
    etcd.pause(0, true).await;
    // The others may have to elect a leader first.
    timeout(SOON, async { while value(&backend, "a").await.is_err() {} })
        .await
        .expect("read");
    // From now on the silent one is not asked first.
    let start = Instant::now();
    assert_eq!(value(&backend, "a").await, Ok(Some("1".into())));
    assert!(
        start.elapsed() < Duration::from_millis(500),
        "{:?}",
        start.elapsed()
    );
    etcd.pause(0, false).await;
}

#[tokio::test]
async fn members_of_two_etcds_are_not_mixed() {
    let (one, other) = tokio::join!(EtcdServer::start(), EtcdServer::start());
    let proxy = TcpProxy::start(&one.client_url()).await;
    let endpoints = vec![proxy.http_url(), other.client_url()];
    let backend = client(&EtcdOptions {
        endpoints,
        ..EtcdOptions::default()
    });
    backend.txn(put("a", "1")).await.expect("written");
    proxy.change(|b| b.refuse = true);
    proxy.cut();
    sleep(Duration::from_millis(50)).await;
    let answer = backend.txn(put("a", "2")).await;
    assert!(
        matches!(&answer, Err(BackendError::Refused(cause)) if cause.contains(&other.client_url())),
        "{answer:?}"
    );
}

#[tokio::test]
async fn client_certificates_open_the_door() {
    let tls = certificates();
    let stranger = certificates();
    let options = EtcdServerOptions {
        tls: Some(tls.clone()),
        ..EtcdServerOptions::default()
    };
    let etcd = EtcdServer::start_with(options).await;
    assert!(etcd.client_url().starts_with("https://"));
    let backend = etcd.backend();
    backend.txn(put("a", "1")).await.expect("written");
    let mut stream = backend.watch(watch_all(1)).await.expect("opened");
    assert_eq!(events(&mut stream, 1).await, ["a=1"]);

    let valid = etcd.client_options();
    let without = client(&EtcdOptions {
        cert_pem: None,
        key_pem: None,
        ..valid.clone()
    });
    let wrong_ca = client(&EtcdOptions {
        ca_pem: Some(stranger.ca.clone().into_bytes()),
        ..valid.clone()
    });
    let wrong_client = client(&EtcdOptions {
        cert_pem: Some(stranger.client_cert.into_bytes()),
        key_pem: Some(stranger.client_key.into_bytes()),
        ..valid.clone()
    });
    let plain_urls = vec![etcd.client_url().replace("https", "http")];
    let plain = client(&EtcdOptions {
        endpoints: plain_urls,
        ..valid
    });
    for (backend, what) in [
        (without, "no certificate"),
        (wrong_ca, "a server of another CA"),
        (wrong_client, "a client of another CA"),
        (plain, "no TLS"),
    ] {
        let answer = backend.txn(put("b", "1")).await;
        assert!(is_unavailable(&answer, false), "{what}: {answer:?}");
    }
    assert_eq!(value(&etcd.backend(), "b").await, Ok(None));
}

/// A CA, a server certificate for 127.0.0.1 and a client certificate.
fn certificates() -> EtcdTls {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };
    let key = || KeyPair::generate().expect("a key");
    let params = |name: &str, hosts: &[&str], usage: &[ExtendedKeyUsagePurpose]| {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>();
        let mut params = CertificateParams::new(hosts).expect("valid names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = usage.to_vec();
        params
    };
    let ca_key = key();
    let mut ca = params("test CA", &[], &[]);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).expect("a CA").pem();
    let issuer = Issuer::new(ca, ca_key);
    // etcd's gateway connects to itself with the server's certificate.
    let both = [
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let (server_key, client_key) = (key(), key());
    let server = params("etcd", &["127.0.0.1"], &both)
        .signed_by(&server_key, &issuer)
        .expect("signed");
    let client = params("outrigger", &[], &both[1..])
        .signed_by(&client_key, &issuer)
        .expect("signed");
    EtcdTls {
        ca: ca_pem,
        server_cert: server.pem(),
        server_key: server_key.serialize_pem(),
        client_cert: client.pem(),
        client_key: client_key.serialize_pem(),
    }
}
