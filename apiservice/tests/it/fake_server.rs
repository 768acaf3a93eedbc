//! A TLS server in Outrigger's place: it answers discovery of any group/version, and every other path with a word by which
//! a test knows it.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use outrigger_certs::{Authority, LeafRequest, ServingCertificate};
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// How it is known.
pub(crate) const ANSWER: &str = "answered by Outrigger";

pub(crate) struct FakeServer {
    pub(crate) port: u16,
    /// Whom to trust.
    pub(crate) ca_pem: String,
    task: JoinHandle<()>,
}

impl FakeServer {
    pub(crate) async fn start(service: &str, namespace: &str, now: i64) -> Self {
        let authority = Authority::create("fake-ca", now).expect("created");
        let leaf = authority
            .issue(&LeafRequest::serving(service, namespace, &[]), now)
            .expect("issued");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let certificate = ServingCertificate::new(&leaf, Arc::clone(&provider)).expect("ours");
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(certificate));
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(&request)) });
                    // A probe that hangs up is no matter of a test.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        let ca_pem = authority.certificate_pem().to_owned();
        Self { port, ca_pem, task }
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let segments: Vec<&str> = request
        .uri()
        .path()
        .split('/')
        .filter(|s| !s.is_empty())
        .collect();
    let (status, body) = match segments.as_slice() {
        ["apis", group, version] => (
            StatusCode::OK,
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{group}/{version}"), "resources": []}),
        ),
        ["apis", _, _, ..] => (
            StatusCode::OK,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Success", "message": ANSWER}),
        ),
        _ => (
            StatusCode::NOT_FOUND,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}),
        ),
    };
    let body = Full::new(Bytes::from(body.to_string()));
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}
