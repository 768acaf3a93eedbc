//! Certificates that change while everything runs: the front proxy's with its authority, and Outrigger's own with the
//! authority that replicas share.

use super::member::Member;
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use outrigger_certs::Authority;
use outrigger_tests::programs::now_millis;
use outrigger_tests::raw_client::accept_any_certificate_as;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsConnector;

/// How long each step of a rotation may take, on a busy machine: kube-apiserver looks at its files once a minute.
const STEP: Duration = Duration::from_secs(100);
const POLL: Duration = Duration::from_millis(500);
/// How long kube-apiserver may take to write what it trusts into its ConfigMap again.
const SETTLED: Duration = Duration::from_secs(3);
const AUTHENTICATION: [&str; 4] = [
    "-n",
    "kube-system",
    "configmap",
    "extension-apiserver-authentication",
];
const AUTHORITY: [&str; 4] = ["-n", "outrigger-system", "secret", "outrigger-ca"];
const SERVER_NAME: &str = "outrigger.outrigger-system.svc";

/// A new authority of front proxies, a new certificate, and an end of the old one. Nobody trusts the old one afterwards.
pub(crate) async fn rotate_front_proxy(member: &Member) {
    let read = |name: &str| fs::read_to_string(member.control_plane.file(name)).expect("a file");
    let before = [read("front-proxy.crt"), read("front-proxy.key")];
    let old_authority = read("front-proxy-ca.crt");
    let next = member
        .control_plane
        .trust_next_front_proxy()
        .expect("an authority");
    eventually("trust of the next front proxy", async || {
        trusted(member).contains(next.certificate_pem().trim())
    })
    .await;
    let old = [before[0].as_str(), before[1].as_str()];
    for replica in &member.replicas {
        assert_eq!(
            status_as_front_proxy(replica.address(), old).await.ok(),
            Some(200),
            "the old one"
        );
    }
    member
        .control_plane
        .rotate_front_proxy(&next)
        .expect("a certificate");
    let new = [read("front-proxy.crt"), read("front-proxy.key")];
    let new = [new[0].as_str(), new[1].as_str()];
    for replica in &member.replicas {
        eventually("trust of the new front proxy", async || {
            status_as_front_proxy(replica.address(), new)
                .await
                .is_ok_and(|status| status == 200)
        })
        .await;
    }
    // Nothing says when kube-apiserver has read the file: its handshakes do, which nobody shows. It watches the file, and
    // looks once a minute if that fails. Whoever is early here sees requests fail, and so does the test.
    sleep(SETTLED).await;
    member
        .control_plane
        .trust_only_front_proxy(&next)
        .expect("an authority");
    // kube-apiserver adds to what stands there, and takes nothing away: an administrator does.
    let patch = json!({"data": {"requestheader-client-ca-file": next.certificate_pem()}}).to_string();
    eventually("an end of trust in the old front proxy", async || {
        let _ = member
            .kubectl
            .ok(&[&["patch"], &AUTHENTICATION[..], &["--type=merge", "-p", &patch]].concat());
        sleep(SETTLED).await;
        !trusted(member).contains(old_authority.trim())
    })
    .await;
    for replica in &member.replicas {
        eventually("refusal of the old front proxy", async || {
            status_as_front_proxy(replica.address(), old)
                .await
                .map_or(true, |status| status == 401)
        })
        .await;
    }
}

/// A new authority comes into the Secret as the next one, and takes over once every APIService trusts it.
pub(crate) async fn rotate_serving(member: &Member) {
    let now = i64::try_from(now_millis() / 1000).expect("a time");
    // In files, where its key can be read.
    let folder = tempfile::tempdir().expect("a folder");
    let next = Authority::load_or_create(folder.path(), "next", "outrigger-ca", now).expect("an authority");
    let key = fs::read(folder.path().join("next.key")).expect("its key");
    // It has been there for long.
    let rotation = json!({"nextSince": 1, "previous": []}).to_string();
    let data = json!({"data": {
        "next.crt": STANDARD.encode(next.certificate_pem()),
        "next.key": STANDARD.encode(key),
        "rotation.json": STANDARD.encode(rotation),
    }});
    for replica in &member.replicas {
        assert!(
            !serves_by(replica.address(), &next).await,
            "nobody serves by it yet"
        );
    }
    let patch = data.to_string();
    let _ = member
        .kubectl
        .ok(&[&["patch"], &AUTHORITY[..], &["--type=merge", "-p", &patch]].concat());
    for replica in &member.replicas {
        eventually("a certificate of the next authority", async || {
            serves_by(replica.address(), &next).await
        })
        .await;
    }
    let bundle = member.kubectl.ok(&[
        "get",
        "apiservice",
        "v1.paas.example.com",
        "-o",
        "jsonpath={.spec.caBundle}",
    ]);
    let bundle = String::from_utf8(STANDARD.decode(bundle).expect("base64")).expect("PEM");
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 2, "{bundle}");
}

fn trusted(member: &Member) -> String {
    let path = "jsonpath={.data.requestheader-client-ca-file}";
    member
        .kubectl
        .ok(&[&["get"], &AUTHENTICATION[..], &["-o", path]].concat())
}

async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !done().await {
        assert!(start.elapsed() < STEP, "no {what}");
        sleep(POLL).await;
    }
}

/// What a replica answers to the administrator, spoken for by whoever has this certificate.
async fn status_as_front_proxy(address: SocketAddr, [certificate, key]: [&str; 2]) -> Result<u16> {
    let connector = TlsConnector::from(Arc::new(accept_any_certificate_as(certificate, key)?));
    let name = ServerName::try_from(SERVER_NAME)?;
    let mut stream = connector
        .connect(name, TcpStream::connect(address).await?)
        .await?;
    stream
        .write_all(
            b"GET /apis/paas.example.com/v1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
              x-remote-user: admin\r\nx-remote-group: system:masters\r\n\r\n",
        )
        .await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    let status = std::str::from_utf8(&head)?
        .strip_prefix("HTTP/1.1 ")
        .context("HTTP")?;
    Ok(status.parse()?)
}

/// Whether the replica's certificate is one of this authority.
async fn serves_by(address: SocketAddr, authority: &Authority) -> bool {
    let mut roots = rustls::RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).expect("PEM");
    roots.add(root).expect("an authority");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(SERVER_NAME).expect("a name");
    let stream = TcpStream::connect(address).await.expect("it listens");
    TlsConnector::from(Arc::new(tls))
        .connect(name, stream)
        .await
        .is_ok()
}
