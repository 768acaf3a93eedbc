//! What a bad network does to requests and watches, and what may be said of a write afterwards.

use super::*;

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
