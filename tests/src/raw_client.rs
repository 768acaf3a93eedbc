//! Raw requests over TLS and HTTP/2, for what kubectl does not show: statuses, headers, streams and their ends.

use crate::server::kubeconfig_field;
use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The longest line of a watch, in bytes.
const LINE_BYTES_MAX: usize = 16 << 20;

/// One connection. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct RawClient {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The code.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// A body that nobody keeps.
pub struct Stream(Incoming);

/// A body that is read as it comes.
pub struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl RawClient {
    /// Connects as the administrator of this kubeconfig.
    ///
    /// # Errors
    /// When there is no server.
    pub async fn connect(kubeconfig: &Path) -> Result<Self> {
        let pem = |field: &str| {
            STANDARD
                .decode(kubeconfig_field(kubeconfig, field))
                .context("base64")
        };
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem(
            "certificate-authority-data",
        )?)?)?;
        let chain = vec![CertificateDer::from_pem_slice(&pem("client-certificate-data")?)?];
        let key = PrivateKeyDer::from_pem_slice(&pem("client-key-data")?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let url = kubeconfig_field(kubeconfig, "server");
        let authority = url
            .strip_prefix("https://")
            .ok_or_else(|| anyhow!("{url}"))?
            .to_owned();
        Self::connect_with(authority, tls).await
    }

    /// Connects to a server that is taken for the right one, with a certificate and its key (PEM) to show.
    ///
    /// # Errors
    /// When there is no server.
    pub async fn connect_to(address: SocketAddr, certificate: &str, key: &str) -> Result<Self> {
        let mut tls = accept_any_certificate_as(certificate, key)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Self::connect_with(address.to_string(), tls).await
    }

    async fn connect_with(authority: String, tls: rustls::ClientConfig) -> Result<Self> {
        let stream = TcpStream::connect(&authority).await?;
        stream.set_nodelay(true)?;
        let host = authority
            .rsplit_once(':')
            .map_or(authority.as_str(), |(host, _)| host)
            .to_owned();
        let stream = TlsConnector::from(Arc::new(tls))
            .connect(ServerName::try_from(host)?, stream)
            .await?;
        let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(64 << 20)
            .max_frame_size(1 << 20)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(connection);
        Ok(Self { sender, authority })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<http::Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.authority));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut sender = self.sender.clone();
        sender.ready().await?;
        Ok(sender.send_request(request.body(Full::from(body))?).await?)
    }

    /// A request and its whole answer.
    ///
    /// # Errors
    /// When the connection breaks, or the body is cut.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Answer> {
        let response = self.send(method, path, headers, body).await?;
        let (parts, body) = response.into_parts();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await?.to_bytes(),
        })
    }

    /// GET, as JSON.
    ///
    /// # Errors
    /// When the answer is not a success.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.request(Method::GET, path, &[], Vec::new()).await?.json()
    }

    /// POST of a JSON object.
    ///
    /// # Errors
    /// When the answer is not a success.
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value> {
        let body = serde_json::to_vec(object)?;
        self.request(Method::POST, path, &[("content-type", "application/json")], body)
            .await?
            .json()
    }

    /// A JSON merge patch.
    ///
    /// # Errors
    /// When the answer is not a success.
    pub async fn merge_patch(&self, path: &str, patch: &Value) -> Result<Value> {
        let body = serde_json::to_vec(patch)?;
        self.request(
            Method::PATCH,
            path,
            &[("content-type", "application/merge-patch+json")],
            body,
        )
        .await?
        .json()
    }

    /// DELETE.
    ///
    /// # Errors
    /// When the answer is not a success.
    pub async fn delete(&self, path: &str) -> Result<Value> {
        self.request(Method::DELETE, path, &[], Vec::new()).await?.json()
    }

    /// GET of a body that is read line by line: a watch.
    ///
    /// # Errors
    /// When the answer is not a success.
    pub async fn lines(&self, path: &str) -> Result<Lines> {
        let response = self.send(Method::GET, path, &[], Vec::new()).await?;
        if !response.status().is_success() {
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            bail!("{path}: {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(Lines {
            body: response.into_body(),
            buffer: BytesMut::new(),
        })
    }

    /// Reads a body to its end and forgets it; how long it was.
    ///
    /// # Errors
    /// When the answer is not a success, or the body is cut.
    pub async fn drain(&self, path: &str) -> Result<u64> {
        self.stream(path).await?.read(u64::MAX).await
    }

    /// GET of a body that is read as fast as the caller likes.
    ///
    /// # Errors
    /// When the answer is not a success.
    pub async fn stream(&self, path: &str) -> Result<Stream> {
        let response = self.send(Method::GET, path, &[], Vec::new()).await?;
        if !response.status().is_success() {
            bail!("{path}: {}", response.status());
        }
        Ok(Stream(response.into_body()))
    }
}

impl Stream {
    /// Reads so many bytes at least, and forgets them; how many. Fewer at the end alone.
    ///
    /// # Errors
    /// When the body is cut.
    pub async fn read(&mut self, wanted: u64) -> Result<u64> {
        let mut bytes = 0;
        while bytes < wanted {
            let Some(frame) = self.0.frame().await else { break };
            bytes += frame?.data_ref().map_or(0, |data| data.len() as u64);
        }
        Ok(bytes)
    }
}

impl Answer {
    /// The body of a success as JSON.
    ///
    /// # Errors
    /// The Status of a failure.
    pub fn json(&self) -> Result<Value> {
        if !self.status.is_success() {
            bail!("{}: {}", self.status, String::from_utf8_lossy(&self.body));
        }
        serde_json::from_slice(&self.body).context("the body is not JSON")
    }
}

impl Lines {
    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// When the body is cut, or a line is no JSON.
    pub async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                bail!("a line is longer than {LINE_BYTES_MAX} bytes");
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Some(data) = frame?.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                None => return Ok(None),
            }
        }
    }
}

/// A client that takes every server for the right one, as a kubelet's probe does.
#[must_use]
pub fn accept_any_certificate() -> rustls::ClientConfig {
    accept_any().with_no_client_auth()
}

/// The same, with a certificate and its key (PEM) to show.
///
/// # Errors
/// When they are none.
pub fn accept_any_certificate_as(certificate: &str, key: &str) -> Result<rustls::ClientConfig> {
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes())?];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
    Ok(accept_any().with_client_auth_cert(chain, key)?)
}

fn accept_any() -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
}

#[derive(Debug)]
struct AcceptAny(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
