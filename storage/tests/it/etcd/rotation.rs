//! Certificates and endpoints that change while requests and watches run.

use super::*;

/// What a client of `etcd` would be with the certificates of another.
fn with_certificates(etcd: &EtcdServer, ca: &str, of: &EtcdTls) -> EtcdOptions {
    EtcdOptions {
        ca_pem: Some(ca.as_bytes().to_vec()),
        cert_pem: Some(of.client_cert.clone().into_bytes()),
        key_pem: Some(of.client_key.clone().into_bytes()),
        ..etcd.client_options()
    }
}

#[tokio::test]
async fn a_client_certificate_changes_under_a_watch() {
    let (old, new, stranger) = (certificates(), certificates(), certificates());
    let both = old.ca.clone() + &new.ca;
    let options = EtcdServerOptions {
        tls: Some(EtcdTls {
            ca: both.clone(),
            ..old.clone()
        }),
        ..EtcdServerOptions::default()
    };
    let mut etcd = EtcdServer::start_with(options).await;
    let backend = client(&with_certificates(&etcd, &old.ca, &old));
    backend.txn(put("a", "1")).await.expect("written");
    let mut stream = backend.watch(watch_all(1)).await.expect("opened");
    assert_eq!(events(&mut stream, 1).await, ["a=1"]);

    // Settings that etcd refuses are noticed, and the connections that stand are kept.
    let wrong = with_certificates(&etcd, &both, &stranger);
    backend.reconfigure(&wrong).expect("they can be read");
    let refused = backend.renew().await;
    assert!(is_unavailable(&refused, false), "{refused:?}");
    backend.txn(put("b", "2")).await.expect("written");
    // Settings that nobody can use change nothing.
    let half = EtcdOptions {
        key_pem: None,
        ..wrong.clone()
    };
    assert_eq!(backend.reconfigure(&half), Err(EtcdOptionsError::HalfIdentity));
    let elsewhere = EtcdOptions {
        prefix: "/other/".to_owned(),
        ..wrong
    };
    assert_eq!(
        backend.reconfigure(&elsewhere),
        Err(EtcdOptionsError::PrefixChanged)
    );

    let good = with_certificates(&etcd, &both, &new);
    backend.reconfigure(&good).expect("they can be read");
    backend.renew().await.expect("accepted");
    backend.txn(put("c", "3")).await.expect("written");
    assert_eq!(events(&mut stream, 2).await, ["b=2", "c=3"], "the same watch");

    // etcd no longer trusts the old authority: the old key opens nothing, the new one everything.
    etcd.kill(0).await;
    etcd.set_tls(new.clone());
    etcd.restart(0);
    etcd.wait_until_ready().await.expect("it answers");
    let former = client(&with_certificates(&etcd, &both, &old));
    let answer = former.txn(put("d", "4")).await;
    assert!(is_unavailable(&answer, false), "{answer:?}");
    assert_eq!(value(&former, "a").await.map_err(|_| ()), Err(()));
    backend.txn(put("d", "4")).await.expect("written");
    let mut stream = backend.watch(watch_all(1)).await.expect("opened");
    assert_eq!(events(&mut stream, 4).await, ["a=1", "b=2", "c=3", "d=4"]);
}

#[tokio::test]
async fn endpoints_change_under_a_watch() {
    let etcd = EtcdServer::start().await;
    let other = EtcdServer::start().await;
    let proxy = TcpProxy::start(&etcd.client_url()).await;
    let backend = client(&through(&proxy));
    let mut stream = backend.watch(watch_all(1)).await.expect("opened");
    backend.txn(put("a", "1")).await.expect("written");

    backend.reconfigure(&etcd.client_options()).expect("usable");
    backend.renew().await.expect("accepted");
    proxy.change(|network| network.stall_up = true);
    backend
        .txn(put("b", "2"))
        .await
        .expect("written past the old address");
    assert_eq!(events(&mut stream, 2).await, ["a=1", "b=2"], "the same watch");
    proxy.cut();
    let end = next(&mut stream).await;
    assert!(
        !matches!(end, Some(Ok(_))),
        "its connection was to the old address: {end:?}"
    );
    let mut stream = backend.watch(watch_all(1)).await.expect("opened");
    assert_eq!(events(&mut stream, 2).await, ["a=1", "b=2"]);

    // The endpoints of another etcd are not taken for this one's.
    backend.reconfigure(&other.client_options()).expect("usable");
    let refused = backend.renew().await;
    assert!(matches!(refused, Err(BackendError::OtherStore(_))), "{refused:?}");
    let answer = backend.txn(put("c", "3")).await;
    assert!(matches!(answer, Err(BackendError::OtherStore(_))), "{answer:?}");
}
