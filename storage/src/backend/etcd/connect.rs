//! Connections to the members of one etcd: TCP, TLS, HTTP/2, and the first question (which version, which cluster).
//!
//! A connection is ours (hyper below tonic's codec), not tonic's channel, for three reasons: "it was never sent" must be a
//! certainty, a reconnect must check the version again, and the members' order is ours to choose. It knows nothing of
//! transactions or watches.

use super::super::BackendError;
use super::error::{Failure, NotSent, describe_error};
use super::proto::{MAINTENANCE_STATUS, StatusRequest, StatusResponse};
use futures::future::BoxFuture;
use http::Uri;
use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic_prost::ProstCodec;

/// What one answer may send before we have read it. Bandwidth over round trip: 66 MB/s at 30 ms.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// The same for all answers of a connection. With the event ring and the list budget it is part of the server's memory.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// One watch that nobody reads holds this much, so six of them stop the watches of their connection, and nothing else.
const WATCH_STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// The same for all watches of a connection.
const WATCH_CONNECTION_WINDOW_BYTES: u32 = 6 << 20;
/// The largest answer that is taken: a page of 128 ranges, or one event with its predecessor.
pub(super) const ANSWER_BYTES_MAX: usize = 32 << 20;
/// A member that could not be reached, or that is suspected of lagging, is asked last for this long.
const AVOIDED_FOR: Duration = Duration::from_secs(10);

/// How long nobody asks a second member. Longer than what a healthy one takes for a page over a slow line.
const SILENT_AFTER: Duration = Duration::from_millis(1500);

/// What the connections are used for. Apart, so that watches nobody reads cannot stop transactions, and history that is
/// read slowly cannot stop the watches that the clocks come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Requests,
    Watches,
    History,
}

/// The times of connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    pub(super) connect: Duration,
    pub(super) request: Duration,
    pub(super) keepalive_interval: Duration,
    pub(super) keepalive_timeout: Duration,
    pub(super) progress: Duration,
}

impl Timing {
    /// A member that takes longer is silent: others are asked beside it.
    pub(super) fn silent(&self) -> Duration {
        SILENT_AFTER.min(self.request / 2)
    }
}

/// The cluster id that the first member named; 0: none yet. A member of another cluster is refused.
pub(super) type ClusterId = Arc<AtomicU64>;

/// Where a member listens.
#[derive(Clone)]
pub(super) struct Endpoint {
    /// The URL, for people and as the origin of requests.
    pub(super) uri: Uri,
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// One member and its connections, made when first needed.
pub(super) struct Member {
    /// The newest settings: connections that stand were made with older ones, perhaps.
    endpoint: parking_lot::RwLock<Endpoint>,
    timing: Timing,
    cluster: ClusterId,
    requests: Mutex<Place>,
    watches: Mutex<Place>,
    history: Mutex<Place>,
    /// Raised when the member is suspected; older connections are not used any more, and watches on them end.
    generation: watch::Sender<u64>,
    avoided_until: parking_lot::Mutex<Option<Instant>>,
}

/// Where a connection is kept.
#[derive(Default)]
struct Place {
    connection: Option<Connection>,
    /// The last failure and its time: who waited for the same attempt gets the same answer.
    failed: Option<(Instant, Failure)>,
}

/// A connection whose member has a fitting version. Cheap to clone; closed when the last clone and the last answer are gone.
#[derive(Clone)]
pub(super) struct Connection {
    send: SendRequest<Body>,
    origin: Uri,
    generation: u64,
    suspicion: watch::Receiver<u64>,
}

impl Endpoint {
    /// An endpoint of a URL, `http://…` or, with `tls`, `https://…`.
    pub(super) fn parse(url: &str, tls: Option<&TlsConnector>) -> Result<Self, String> {
        let uri: Uri = url
            .trim()
            .trim_end_matches('/')
            .parse()
            .map_err(|e| format!("is not a URL: {e}"))?;
        let host = uri
            .host()
            .ok_or("has no host")?
            .trim_matches(['[', ']'])
            .to_owned();
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err("has a path: only scheme, host and port are used".into());
        }
        let tls = match uri.scheme_str() {
            Some("http") => None,
            Some("https") => {
                let connector = tls.ok_or("needs a CA certificate")?;
                let name =
                    ServerName::try_from(host.clone()).map_err(|e| format!("has an invalid host: {e}"))?;
                Some((connector.clone(), name))
            }
            _ => return Err("must begin with http:// or https://".into()),
        };
        let port = uri.port_u16().unwrap_or(2379);
        Ok(Self { uri, host, port, tls })
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.uri.scheme_str().unwrap_or("http");
        match self.uri.authority() {
            Some(authority) => write!(f, "{scheme}://{authority}"),
            None => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

/// A TLS client that trusts `ca` alone, with a client certificate if there is one.
pub(super) fn tls_connector(ca: &[u8], identity: Option<(&[u8], &[u8])>) -> Result<TlsConnector, String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        let certificate = certificate.map_err(|e| format!("the CA certificate cannot be read: {e}"))?;
        roots
            .add(certificate)
            .map_err(|e| format!("the CA certificate cannot be used: {e}"))?;
    }
    if roots.is_empty() {
        return Err("there is no CA certificate in the PEM data".into());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS cannot be set up: {e}"))?
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| format!("the client certificate cannot be read: {e}"))?;
            let key = PrivateKeyDer::from_pem_slice(key)
                .map_err(|e| format!("the client key cannot be read: {e}"))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| format!("the client certificate cannot be used: {e}"))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Member {
    pub(super) fn new(endpoint: Endpoint, timing: Timing, cluster: ClusterId) -> Self {
        Self {
            endpoint: parking_lot::RwLock::new(endpoint),
            timing,
            cluster,
            requests: Mutex::default(),
            watches: Mutex::default(),
            history: Mutex::default(),
            generation: watch::Sender::new(0),
            avoided_until: parking_lot::Mutex::new(None),
        }
    }

    /// Its URL.
    pub(super) fn name(&self) -> String {
        self.endpoint.read().to_string()
    }

    /// Connections from now on are made like this. Those that stand go on.
    pub(super) fn set_endpoint(&self, endpoint: Endpoint) {
        *self.endpoint.write() = endpoint;
    }

    /// New connections in the place of those that stand, made with the newest settings. What runs on the old ones goes on
    /// there. Those that cannot be replaced stay.
    pub(super) async fn renew(&self) -> Result<(), Failure> {
        for purpose in [Purpose::Requests, Purpose::Watches, Purpose::History] {
            let mut place = self.place(purpose).lock().await;
            // Requests will come, and tell by themselves whether the settings are good.
            if place.connection.is_none() && purpose != Purpose::Requests {
                continue;
            }
            let connection = self.connect(purpose).await?;
            *place = Place {
                connection: Some(connection),
                failed: None,
            };
        }
        self.answers();
        Ok(())
    }

    fn place(&self, purpose: Purpose) -> &Mutex<Place> {
        match purpose {
            Purpose::Requests => &self.requests,
            Purpose::Watches => &self.watches,
            Purpose::History => &self.history,
        }
    }

    /// Whether it failed a moment ago.
    pub(super) fn is_avoided(&self) -> bool {
        self.avoided_until
            .lock()
            .is_some_and(|until| Instant::now() < until)
    }

    /// Ask others first for a while.
    pub(super) fn avoid(&self) {
        *self.avoided_until.lock() = Some(Instant::now() + AVOIDED_FOR);
    }

    /// It did not answer: said once, when it is asked first.
    pub(super) fn fails(&self, failure: &Failure) {
        if !self.is_avoided() {
            tracing::info!(?failure, "an etcd member does not answer");
        }
        self.avoid();
    }

    /// It answers.
    pub(super) fn answers(&self) {
        *self.avoided_until.lock() = None;
    }

    /// It seems to lag: its watches end, its connections are made anew, others are asked first.
    pub(super) fn suspect(&self) {
        self.avoid();
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// A living connection, made now if there is none. Whatever goes wrong here happened before a request was sent.
    pub(super) async fn connection(&self, purpose: Purpose) -> Result<Connection, Failure> {
        let asked_at = Instant::now();
        let mut place = self.place(purpose).lock().await;
        if let Some(connection) = &place.connection
            && connection.is_usable()
        {
            return Ok(connection.clone());
        }
        if let Some((failed_at, failure)) = &place.failed
            && *failed_at >= asked_at
        {
            return Err(failure.clone());
        }
        match self.connect(purpose).await {
            Ok(connection) => {
                *place = Place {
                    connection: Some(connection.clone()),
                    failed: None,
                };
                Ok(connection)
            }
            Err(failure) => {
                *place = Place {
                    connection: None,
                    failed: Some((Instant::now(), failure.clone())),
                };
                Err(failure)
            }
        }
    }

    async fn connect(&self, purpose: Purpose) -> Result<Connection, Failure> {
        let suspicion = self.generation.subscribe();
        let generation = *suspicion.borrow();
        let endpoint = self.endpoint.read().clone();
        let not_sent = |cause: String| Failure::NotSent(format!("{endpoint}: {cause}"));
        let send = timeout(self.timing.connect, self.open(&endpoint, purpose))
            .await
            .map_err(|_| not_sent("cannot connect in time".into()))?
            .map_err(not_sent)?;
        let connection = Connection {
            send,
            origin: endpoint.uri.clone(),
            generation,
            suspicion,
        };
        let name = endpoint.to_string();
        let status: StatusResponse = match connection
            .unary(MAINTENANCE_STATUS, StatusRequest {}, self.timing.request, &name)
            .await
        {
            Ok(status) => status,
            // The question changes nothing: the caller's request was not sent.
            Err(Failure::Unavailable(cause) | Failure::AnswerTooLarge(cause)) => {
                return Err(Failure::NotSent(cause));
            }
            Err(failure) => return Err(failure),
        };
        self.accept(&status)?;
        tracing::debug!(member = %name, version = %status.version, ?purpose, "connected to etcd");
        Ok(connection)
    }

    /// Whether a member that says this of itself may be used.
    fn accept(&self, status: &StatusResponse) -> Result<(), Failure> {
        let name = self.name();
        check_version(&status.version, &name)
            .map_err(|refusal| Failure::Final(BackendError::Refused(refusal)))?;
        if status.is_learner {
            return Err(Failure::NotSent(format!(
                "{name}: is a learner, which answers neither reads nor writes"
            )));
        }
        if status.leader == 0 {
            return Err(Failure::NotSent(format!("{name}: has no leader")));
        }
        let id = status.header.map_or(0, |header| header.cluster_id);
        match self
            .cluster
            .compare_exchange(0, id, Ordering::AcqRel, Ordering::Acquire)
        {
            Err(known) if known != id => Err(Failure::Final(BackendError::OtherStore(format!(
                "{name}: is a member of etcd cluster {id:x}, not of {known:x} as before"
            )))),
            _ => Ok(()),
        }
    }

    async fn open(&self, endpoint: &Endpoint, purpose: Purpose) -> Result<SendRequest<Body>, String> {
        let Endpoint { host, port, tls, .. } = endpoint;
        let tcp = TcpStream::connect((host.as_str(), *port))
            .await
            .map_err(|e| describe_error(&e))?;
        tcp.set_nodelay(true).map_err(|e| describe_error(&e))?;
        match tls {
            None => self.handshake(tcp, purpose).await,
            Some((connector, name)) => {
                let stream = connector
                    .connect(name.clone(), tcp)
                    .await
                    .map_err(|e| describe_error(&e))?;
                self.handshake(stream, purpose).await
            }
        }
    }

    async fn handshake<IO>(&self, io: IO, purpose: Purpose) -> Result<SendRequest<Body>, String>
    where
        IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (stream_window, connection_window) = match purpose {
            Purpose::Requests => (STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES),
            Purpose::Watches | Purpose::History => (WATCH_STREAM_WINDOW_BYTES, WATCH_CONNECTION_WINDOW_BYTES),
        };
        let (send, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(stream_window)
            .initial_connection_window_size(connection_window)
            .keep_alive_interval(self.timing.keepalive_interval)
            .keep_alive_timeout(self.timing.keepalive_timeout)
            // etcd closes connections that ping it while they have no stream (PermitWithoutStream is false). Where an idle
            // connection matters there is a watch on it, or a tick comes soon.
            .keep_alive_while_idle(false)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|e| describe_error(&e))?;
        // The one task this client has: it moves the bytes of this connection, and ends with it.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %describe_error(&error), "connection to etcd ended");
            }
        });
        Ok(send)
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.endpoint.read(), f)
    }
}

impl Connection {
    fn is_usable(&self) -> bool {
        !self.send.is_closed() && *self.suspicion.borrow() == self.generation
    }

    /// Ends when the member of this connection is suspected of lagging.
    pub(super) fn suspicion(&self) -> BoxFuture<'static, ()> {
        let (mut suspicion, generation) = (self.suspicion.clone(), self.generation);
        Box::pin(async move {
            if suspicion.wait_for(|now| *now != generation).await.is_err() {
                // The backend was dropped; its watches go on.
                std::future::pending::<()>().await;
            }
        })
    }

    /// The door to tonic's calls.
    pub(super) fn grpc(&self) -> Grpc<Http2> {
        Grpc::with_origin(Http2(self.send.clone()), self.origin.clone())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// One question, one answer.
    pub(super) async fn unary<Q, A>(
        &self,
        path: &'static str,
        request: Q,
        deadline: Duration,
        member: &str,
    ) -> Result<A, Failure>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut grpc = self.grpc();
        let codec = ProstCodec::<Q, A>::default();
        let call = grpc.unary(
            tonic::Request::new(request),
            PathAndQuery::from_static(path),
            codec,
        );
        match timeout(deadline, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(Failure::from_status(&status, member)),
            Err(_) => Err(Failure::deadline(member)),
        }
    }
}

/// hyper's half of a connection as the service that tonic calls.
pub(super) struct Http2(SendRequest<Body>);

impl tower::Service<http::Request<Body>> for Http2 {
    type Response = http::Response<Incoming>;
    type Error = tonic::codegen::StdError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // Never waits: what cannot be sent comes back at once, marked as not sent.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let sending = self.0.try_send_request(request);
        Box::pin(async move {
            sending.await.map_err(|mut error| {
                // hyper gives the request back if, and only if, nothing of it was sent.
                let not_sent = error.take_message().is_some();
                let error = error.into_error();
                if not_sent {
                    Box::new(NotSent(describe_error(&error))) as Self::Error
                } else {
                    error.into()
                }
            })
        })
    }
}

/// The versions that are refused announce, when asked for a watch's progress, revisions whose events they have not sent.
fn check_version(version: &str, member: &str) -> Result<(), String> {
    let mut numbers = version.split(['.', '-', '+']).map(str::parse::<u64>);
    let (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch))) =
        (numbers.next(), numbers.next(), numbers.next())
    else {
        return Err(format!(
            "{member}: is no etcd that is known here (it says version {version:?})"
        ));
    };
    if (major, minor, patch) >= (3, 5, 30) {
        return Ok(());
    }
    Err(format!(
        "etcd {version} at {member} announces watch progress ahead of events; Outrigger needs 3.5.30 or 3.6"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_versions_are_refused() {
        for version in [
            "3.5.30",
            "3.5.31",
            "3.6.0",
            "3.6.0-rc.1",
            "3.6.16",
            "3.7.0-alpha.0",
            "4.0.0",
        ] {
            assert_eq!(check_version(version, "http://a:1"), Ok(()), "{version}");
        }
        for version in ["3.5.29", "3.5.1", "3.4.23", "2.3.8"] {
            let refusal = check_version(version, "http://a:1").expect_err(version);
            assert!(
                refusal.contains(version) && refusal.contains("http://a:1"),
                "{refusal}"
            );
        }
        for version in ["", "3", "3.6", "x.y.z", "v3.6.0"] {
            assert!(check_version(version, "http://a:1").is_err(), "{version}");
        }
    }

    #[test]
    fn endpoints_are_urls() {
        let tls = tls_connector(b"", None);
        assert!(tls.is_err_and(|e| e.contains("no CA certificate")));
        let name = |url: &str| Endpoint::parse(url, None).map(|endpoint| endpoint.to_string());
        assert_eq!(
            name("http://etcd-0.etcd:2379/"),
            Ok("http://etcd-0.etcd:2379".into())
        );
        assert_eq!(name(" http://[::1]:2379"), Ok("http://[::1]:2379".into()));
        assert_eq!(
            Endpoint::parse("http://[::1]", None)
                .map(|e| (e.host, e.port))
                .ok(),
            Some(("::1".into(), 2379))
        );
        for url in [
            "",
            "etcd:2379",
            "ftp://etcd:2379",
            "https://etcd:2379",
            "http://etcd:2379/path",
            "http://",
        ] {
            assert!(name(url).is_err(), "{url}");
        }
    }
}
