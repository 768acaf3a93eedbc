//! The listener: TLS, HTTP/1.1 and HTTP/2, the chain of filters, start and stop.
//!
//! It does not know what is served: a connection's requests go to a [`HandlerChain`], with the [`Connection`] they came on.

pub mod handler_chain;

pub mod healthz;

pub mod lifecycle_signals;

pub mod loopback;

pub mod routes;

pub mod tls;

mod quiescence;

mod request_body;

use crate::authentication::x509::PeerCertificates;
use crate::metrics::ApiMetrics;
use crate::request::context::{CloseConnection, Connection};
use axum::body::Body;
use axum::response::Response;
use handler_chain::HandlerChain;
use http::header::CONTENT_LENGTH;
use http::{Method, Request};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use lifecycle_signals::LifecycleSignals;
use quiescence::{Patience, Quiescence, REBALANCING, STOPPING};
use request_body::RequestBody;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// What the server may use, and how long it waits.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Connections at once; the next waits in the kernel's backlog.
    pub connections_max: usize,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long an HTTP/1.1 client may take to send a request's head, from the connection's start or the last response.
    pub header_read_timeout: Duration,
    /// Streams at once on an HTTP/2 connection: client-go opens one per watch.
    pub streams_max: u32,
    /// What is held of a response for an HTTP/2 client that reads slowly, in bytes per stream. Eight lists of 100 MB at
    /// once hold eight times this, so it counts in the server's memory budget.
    pub send_buffer_bytes_max: usize,
    /// What an HTTP/2 client may send ahead, in bytes per stream: a whole body at once.
    pub stream_window_bytes: u32,
    /// Likewise for a connection.
    pub connection_window_bytes: u32,
    /// How often an HTTP/2 client is asked whether it is still there.
    pub keep_alive_interval: Duration,
    /// How long it may take to answer.
    pub keep_alive_timeout: Duration,
    /// How long readiness fails before the listener closes.
    pub shutdown_delay: Duration,
    /// How long requests in flight have once the listener is closed.
    pub drain_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            handshake_timeout: Duration::from_secs(10),
            header_read_timeout: Duration::from_secs(32),
            streams_max: 1000,
            send_buffer_bytes_max: 256 * 1024,
            stream_window_bytes: 1024 * 1024,
            connection_window_bytes: 8 * 1024 * 1024,
            keep_alive_interval: Duration::from_secs(30),
            keep_alive_timeout: Duration::from_secs(15),
            shutdown_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(60),
        }
    }
}

/// The longest head of an HTTP/1.1 request and of an HTTP/2 header list, in bytes: Go's default is 1 MiB; selectors of
/// that length are not.
const HEADER_BYTES_MAX: usize = 256 * 1024;
/// Streams that a client may reset before they were looked at: client-go cancels all its watches at once when it stops.
/// More than that is taken for an attack, and the connection ends.
const EARLY_RESETS_MAX: usize = 1000;
/// How long the listener rests after it could not accept (no file descriptors left), so that it does not spin.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// How long closed connections have to say so before they are cut.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A server that is ready to run.
pub struct Server {
    /// Where it listens.
    pub listener: TcpListener,
    /// The TLS configuration; the current value counts for each new connection.
    pub tls: watch::Receiver<Arc<rustls::ServerConfig>>,
    /// What answers.
    pub chain: HandlerChain,
    /// What it may use.
    pub limits: ServerLimits,
    /// When it starts and stops.
    pub signals: LifecycleSignals,
    /// Where failed handshakes are counted.
    pub metrics: ApiMetrics,
}

/// What every connection needs.
struct Shared {
    chain: HandlerChain,
    limits: ServerLimits,
    signals: LifecycleSignals,
    metrics: ApiMetrics,
}

impl Server {
    /// Serves until `shutdown_initiated` is raised and everything after it has happened; raises the later signals itself.
    pub async fn run(self) {
        let Self {
            listener,
            tls,
            chain,
            limits,
            signals,
            metrics,
        } = self;
        let places = Arc::new(Semaphore::new(limits.connections_max));
        let connections = TaskTracker::new();
        let shared = Arc::new(Shared {
            chain,
            limits,
            signals: signals.clone(),
            metrics,
        });
        let closing = async {
            signals.shutdown_initiated.signaled().await;
            sleep(shared.limits.shutdown_delay).await;
        };
        tokio::select! {
            () = closing => {}
            () = accept(&listener, &tls, &places, &shared, &connections) => {}
        }
        drop(listener);
        // Connections see this signal and begin to close. Watches end when their clients open the next ones elsewhere.
        signals.after_shutdown_delay.signal();
        connections.close();
        let _ = timeout(STOPPING.longest(), connections.wait()).await;
        signals.not_accepting_new_request.signal();
        if timeout(shared.limits.drain_timeout, connections.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                connections = connections.len(),
                "requests were still in flight after the drain timeout: they are cut"
            );
        }
        signals.drained.signal();
        // Whoever is left is cut by that signal.
        let _ = timeout(CLOSE_TIMEOUT, connections.wait()).await;
    }
}

async fn accept(
    listener: &TcpListener,
    tls: &watch::Receiver<Arc<rustls::ServerConfig>>,
    places: &Arc<Semaphore>,
    shared: &Arc<Shared>,
    connections: &TaskTracker,
) {
    // The semaphore is never closed; if it were, there would be no more connections.
    while let Ok(place) = Arc::clone(places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, remote_addr)) => {
                let acceptor = TlsAcceptor::from(Arc::clone(&tls.borrow()));
                connections.spawn(connection(
                    stream,
                    remote_addr,
                    acceptor,
                    place,
                    Arc::clone(shared),
                ));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_REST).await;
            }
        }
    }
}

/// One connection, from its handshake to its end. `_place` is free afterwards.
async fn connection(
    stream: TcpStream,
    remote_addr: SocketAddr,
    acceptor: TlsAcceptor,
    _place: OwnedSemaphorePermit,
    shared: Arc<Shared>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, %remote_addr, "TCP_NODELAY could not be set");
    }
    let stream = match timeout(shared.limits.handshake_timeout, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            shared.metrics.tls_handshake_error();
            let cause = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
            return match cause {
                // The front proxy may be the one: then no request comes through, and its side says only that much.
                Some(rustls::Error::InvalidCertificate(cause)) => {
                    tracing::info!(%cause, %remote_addr, "a client's certificate is refused")
                }
                _ => tracing::debug!(%error, %remote_addr, "TLS handshake error"),
            };
        }
        Err(_) => {
            shared.metrics.tls_handshake_error();
            return tracing::debug!(%remote_addr, "TLS handshake error: it took too long");
        }
    };
    let (_, session) = stream.get_ref();
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    let peer = session
        .peer_certificates()
        .and_then(PeerCertificates::new)
        .map(Arc::new);
    let connection = Connection { remote_addr, peer };
    let served = match is_http2 {
        true => serve_http2(stream, connection, &shared).await,
        false => serve_http1(stream, connection, &shared).await,
    };
    if let Err(error) = served {
        tracing::debug!(%error, %remote_addr, "the connection ended early");
    }
}

/// Answers a request of this connection. `closing` is cancelled when the connection shall take no more of them.
async fn answer(
    chain: HandlerChain,
    connection: Connection,
    closing: CancellationToken,
    mut request: Request<Body>,
) -> Result<Response, Infallible> {
    let is_head = request.method() == Method::HEAD;
    request.extensions_mut().insert(connection);
    let response = chain.oneshot(request).await?;
    if response.extensions().get::<CloseConnection>().is_some() {
        closing.cancel();
    }
    Ok(if is_head { without_body(response) } else { response })
}

/// The head alone, with the length that the body would have. On HTTP/2 nobody else takes the body away.
fn without_body(response: Response) -> Response {
    let (mut head, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact() {
        head.headers.entry(CONTENT_LENGTH).or_insert(length.into());
    }
    Response::from_parts(head, Body::empty())
}

/// When it is time for a connection to close, and how patiently that is said: the listener does, or one of its responses
/// says so.
async fn time_to_close(closing: &CancellationToken, signals: &LifecycleSignals) -> Patience {
    tokio::select! {
        () = closing.cancelled() => REBALANCING,
        () = signals.after_shutdown_delay.signaled() => STOPPING,
    }
}

/// Runs a connection to its end: asks it to close when it is time to, and cuts it when the time is up. Asked to close, it
/// takes no more requests; those that run go on, however long they are.
macro_rules! run_to_end {
    ($served:ident, $closing:ident, $shared:ident, $quiescence:ident) => {{
        let mut served = std::pin::pin!($served);
        let patience = tokio::select! {
            result = served.as_mut() => return result,
            patience = time_to_close(&$closing, &$shared.signals) => patience,
        };
        tokio::select! {
            result = served.as_mut() => return result,
            () = $quiescence.begin(patience) => served.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            result = served.as_mut() => return result,
            () = $quiescence.end(patience) => {}
        }
        tokio::select! {
            result = served => result,
            () = $shared.signals.drained.signaled() => Ok(()),
        }
    }};
}

// Both protocols are known from the handshake, so that nothing waits for a preface without a timeout.

async fn serve_http2(
    stream: TlsStream<TcpStream>,
    connection: Connection,
    shared: &Shared,
) -> Result<(), hyper::Error> {
    let limits = &shared.limits;
    let chain = shared.chain.clone();
    let closing = CancellationToken::new();
    let close = closing.clone();
    let quiescence = Arc::new(Quiescence::default());
    let asked = Arc::clone(&quiescence);
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_max)
        .max_pending_accept_reset_streams(EARLY_RESETS_MAX)
        .initial_stream_window_size(limits.stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes)
        .max_send_buf_size(limits.send_buffer_bytes_max)
        .max_header_list_size(u32::try_from(HEADER_BYTES_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(limits.keep_alive_interval)
        .keep_alive_timeout(limits.keep_alive_timeout)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(move |request: Request<Incoming>| {
                if !request.body().is_end_stream() {
                    asked.body_came();
                }
                let request = request.map(|body| Body::new(RequestBody::new(body)));
                let answer = answer(chain.clone(), connection.clone(), close.clone(), request);
                let asked = Arc::clone(&asked);
                async move {
                    let response = answer.await;
                    asked.may_answer().await;
                    response
                }
            }),
        );
    run_to_end!(served, closing, shared, quiescence)
}

async fn serve_http1(
    stream: TlsStream<TcpStream>,
    connection: Connection,
    shared: &Shared,
) -> Result<(), hyper::Error> {
    let chain = shared.chain.clone();
    let closing = CancellationToken::new();
    let close = closing.clone();
    // One request at a time, and the last response says so: nothing to wait for.
    let quiescence = Quiescence::default();
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.header_read_timeout)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(move |request: Request<Incoming>| {
                answer(
                    chain.clone(),
                    connection.clone(),
                    close.clone(),
                    request.map(Body::new),
                )
            }),
        );
    run_to_end!(served, closing, shared, quiescence)
}
