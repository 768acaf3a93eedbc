//! A server on a loopback port with a CA of its own, endpoints that do what their path says, and a client that speaks
//! one protocol per connection.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_apiserver::metrics::ApiMetrics;
use outrigger_apiserver::request::RequestContext;
use outrigger_apiserver::request::body::{REQUEST_BODY_BYTES_MAX, read_body};
use outrigger_apiserver::request::context::WatchTermination;
use outrigger_apiserver::server::handler_chain::{ChainConfig, HandlerChain, handler_chain};
use outrigger_apiserver::server::healthz::{HealthChecks, Latch};
use outrigger_apiserver::server::lifecycle_signals::LifecycleSignals;
use outrigger_apiserver::server::routes::Routes;
use outrigger_apiserver::server::{Server, ServerLimits, tls};
use outrigger_apiserver::status::page_not_found;
use outrigger_certs::{Authority, Issued, LeafRequest, ServingCertificate, Usage, trust_anchors};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The body of `/api/v1/large`.
pub(crate) const LARGE_CHUNKS: usize = 128;
pub(crate) const LARGE_CHUNK_BYTES: usize = 32 * 1024;

/// A running server.
pub(crate) struct TestServer {
    pub(crate) addr: SocketAddr,
    pub(crate) ca: Authority,
    pub(crate) signals: LifecycleSignals,
    pub(crate) ready: Latch,
    pub(crate) metrics: ApiMetrics,
    pub(crate) chain: HandlerChain,
    /// Requests to `/api/v1/wait` go on when there are permits.
    pub(crate) gate: Arc<Semaphore>,
    pub(crate) tls: watch::Sender<Arc<rustls::ServerConfig>>,
    pub(crate) running: JoinHandle<()>,
}

/// One connection.
pub(crate) enum Client {
    Http1(hyper::client::conn::http1::SendRequest<Full<Bytes>>),
    Http2(hyper::client::conn::http2::SendRequest<Full<Bytes>>),
}

/// What came back, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub(crate) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

pub(crate) fn serving_certificate(ca: &Authority) -> Arc<ServingCertificate> {
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let leaf = LeafRequest {
        common_name: "outrigger".to_owned(),
        organization: None,
        names,
        usage: Usage::Server,
        days: 2,
    };
    let issued = ca.issue(&leaf, now()).expect("a serving certificate");
    Arc::new(ServingCertificate::new(&issued, provider()).expect("a serving certificate"))
}

pub(crate) fn server_config(ca: &Authority) -> Arc<rustls::ServerConfig> {
    let roots = trust_anchors(ca.certificate_pem(), "ca").expect("a CA");
    Arc::new(
        tls::server_config(serving_certificate(ca), Some(Arc::new(roots)), &provider())
            .expect("a TLS configuration"),
    )
}

pub(crate) fn client_certificate(ca: &Authority, user: &str, group: &str) -> Issued {
    let leaf = LeafRequest {
        common_name: user.to_owned(),
        organization: Some(group.to_owned()),
        names: Vec::new(),
        usage: Usage::Client,
        days: 2,
    };
    ca.issue(&leaf, now()).expect("a client certificate")
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::start_with(ServerLimits::default(), ChainConfig::default()).await
    }

    pub(crate) async fn start_with(limits: ServerLimits, config: ChainConfig) -> Self {
        let ca = Authority::create("test", now()).expect("a CA");
        let signals = LifecycleSignals::default();
        let metrics = config.metrics.clone();
        let health = HealthChecks::new(&signals);
        let ready = health.add_latch("ready");
        let gate = Arc::new(Semaphore::new(0));
        let api_paths = Arc::new(|| vec!["/apis".to_owned()]);
        let endpoints = endpoints(Arc::clone(&gate));
        let watch_termination = WatchTermination(signals.not_accepting_new_request.token());
        let config = ChainConfig {
            watch_termination,
            ..config
        };
        let chain = handler_chain(config, Routes::new(health, metrics.clone(), api_paths, endpoints));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let (publish, tls) = watch::channel(server_config(&ca));
        let server = Server {
            listener,
            tls,
            chain: chain.clone(),
            limits,
            signals: signals.clone(),
            metrics: metrics.clone(),
        };
        let running = tokio::spawn(server.run());
        Self {
            addr,
            ca,
            signals,
            ready,
            metrics,
            chain,
            gate,
            tls: publish,
            running,
        }
    }

    /// A TLS connection that offers this protocol.
    pub(crate) async fn connect(
        &self,
        alpn: &[u8],
        certificate: Option<&Issued>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let roots = trust_anchors(self.ca.certificate_pem(), "ca").expect("a CA");
        let builder = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions");
        let builder = builder.with_root_certificates(roots);
        let mut config = match certificate {
            None => builder.with_no_client_auth(),
            Some(issued) => {
                let chain = CertificateDer::pem_slice_iter(issued.certificate_pem.as_bytes())
                    .collect::<Result<Vec<_>, _>>()
                    .expect("PEM");
                let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).expect("PEM");
                builder
                    .with_client_auth_cert(chain, key)
                    .expect("a client certificate")
            }
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(self.addr).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    pub(crate) async fn http1(&self, certificate: Option<&Issued>) -> Client {
        let stream = self
            .connect(b"http/1.1", certificate)
            .await
            .expect("a connection");
        let (client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .expect("HTTP/1.1");
        tokio::spawn(connection);
        Client::Http1(client)
    }

    pub(crate) async fn http2(&self, certificate: Option<&Issued>) -> Client {
        let stream = self.connect(b"h2", certificate).await.expect("a connection");
        let (client, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_max_send_streams(Some(2000))
            .handshake(TokioIo::new(stream))
            .await
            .expect("HTTP/2");
        tokio::spawn(connection);
        Client::Http2(client)
    }

    /// A client certificate of a user who may do all.
    pub(crate) fn admin(&self) -> Issued {
        client_certificate(&self.ca, "admin", "system:masters")
    }
}

impl Client {
    pub(crate) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<http::Response<hyper::body::Incoming>> {
        match self {
            Self::Http1(client) => {
                client.ready().await?;
                client.send_request(request).await
            }
            Self::Http2(client) => {
                client.ready().await?;
                client.send_request(request).await
            }
        }
    }

    /// Independent use of the same HTTP/2 connection.
    pub(crate) fn share(&self) -> Self {
        match self {
            Self::Http1(_) => panic!("an HTTP/1.1 connection carries one request at a time"),
            Self::Http2(client) => Self::Http2(client.clone()),
        }
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.call(Method::GET, path, &[], "").await
    }

    pub(crate) async fn call(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let uri = match self {
            Self::Http1(_) => path.to_owned(),
            Self::Http2(_) => format!("https://localhost{path}"),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        let response = self.send(request).await.expect("an answer");
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        Answer {
            code: head.status.as_u16(),
            headers: head.headers,
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }
}

type Endpoints = tower::util::BoxCloneSyncService<Request<Body>, Response, Infallible>;

/// Endpoints that do what their path says.
fn endpoints(gate: Arc<Semaphore>) -> Endpoints {
    tower::util::BoxCloneSyncService::new(tower::service_fn(move |mut request: Request<Body>| {
        let gate = Arc::clone(&gate);
        async move {
            let context = match RequestContext::take(request.extensions_mut()) {
                Ok(context) => context,
                Err(error) => return Ok(error.into_response()),
            };
            let (head, body) = request.into_parts();
            Ok::<_, Infallible>(match context.info.resource.as_str() {
                "panics" => panic!("as asked"),
                "panicking-bodies" => {
                    let chunks = stream::iter(0..2).map(|i| {
                        if i == 0 {
                            Ok::<_, Infallible>("first")
                        } else {
                            panic!("as asked")
                        }
                    });
                    Response::new(Body::from_stream(chunks))
                }
                "bodies" => match read_body(&head.headers, body, REQUEST_BODY_BYTES_MAX).await {
                    Ok(body) => body.len().to_string().into_response(),
                    Err(error) => error.into_response(),
                },
                "waits" => {
                    let permit = gate.acquire().await.expect("the gate is open");
                    permit.forget();
                    "done".into_response()
                }
                // As a watch does: events until the client or the server has had enough, then a clean end.
                "watches" => {
                    let end = context.watch_termination.0.clone();
                    let events =
                        stream::once(async { Ok::<_, Infallible>("ADDED\n") }).chain(stream::pending());
                    let last = stream::iter([Ok("END\n")]);
                    Response::new(Body::from_stream(
                        events.take_until(end.cancelled_owned()).chain(last),
                    ))
                }
                // As a list does that takes its time.
                "lists" => {
                    let chunks = stream::iter(0..10).then(|i| async move {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        Ok::<_, Infallible>(format!("{i}\n"))
                    });
                    Response::new(Body::from_stream(chunks))
                }
                "large" => {
                    let chunks =
                        (0..LARGE_CHUNKS).map(|_| Ok::<_, Infallible>(vec![b'x'; LARGE_CHUNK_BYTES]));
                    Response::new(Body::from_stream(stream::iter(chunks)))
                }
                "warnings" => {
                    context.warnings.add("this is \"deprecated\"");
                    "ok".into_response()
                }
                "users" => {
                    let user = context.user;
                    let headers: Vec<&str> = head.headers.keys().map(http::HeaderName::as_str).collect();
                    let answer = serde_json::json!({
                        "name": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra, "headers": headers,
                    });
                    answer.to_string().into_response()
                }
                _ => match context.info.path.as_str() {
                    "/teapot" => StatusCode::IM_A_TEAPOT.into_response(),
                    _ => page_not_found(),
                },
            })
        }
    }))
}
