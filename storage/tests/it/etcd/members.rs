//! An etcd of several members, of which some die, fall silent, or belong to somebody else.

use super::*;

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
        matches!(&answer, Err(BackendError::OtherStore(cause)) if cause.contains(&other.client_url())),
        "{answer:?}"
    );
}
