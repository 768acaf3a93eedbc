//! Watches of a real etcd: resuming, pinning, pieces of history, progress, fragments, compaction.

use super::*;

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
