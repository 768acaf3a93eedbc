//! `EtcdBackend` on real etcds: certificates, failover, outcomes, watches, compaction, large values, round trips.
//!
//! What every backend promises is in `backend_suite!`; here is what only a real etcd, and a network, can show.

use bytes::Bytes;
use futures::StreamExt;
use outrigger_storage::StoreMetrics;
use outrigger_storage::backend::bounded::{Bounded, Limits};
use outrigger_storage::backend::embedded::EmbeddedBackend;
use outrigger_storage::backend::etcd::{EtcdBackend, EtcdOptions, EtcdOptionsError};
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

mod members;
mod network;
mod rotation;
mod watches;

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
