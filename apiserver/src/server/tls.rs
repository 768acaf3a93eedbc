//! The TLS of the listener: which certificate is shown, whose client certificates count.
//!
//! It does not know where certificates come from. Whoever renews them publishes a new configuration; the next connection
//! uses it.

use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, ResolvesServerCert, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use std::sync::Arc;

/// Why there is no TLS. Who wrote the certificates must act.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The client CA.
    #[error("the client CA cannot be used: {0}")]
    ClientCa(#[from] rustls::server::VerifierBuilderError),
    /// The provider of cryptography.
    #[error("TLS cannot be set up: {0}")]
    Protocol(#[from] rustls::Error),
}

/// A configuration that shows `certificate` and accepts, without demanding them, client certificates of `client_ca`. A
/// client certificate of another CA ends the handshake. Without a client CA everybody is anonymous.
///
/// # Errors
/// When the CA has no usable certificate.
pub fn server_config(
    certificate: Arc<dyn ResolvesServerCert>,
    client_ca: Option<Arc<RootCertStore>>,
    provider: &Arc<CryptoProvider>,
) -> Result<ServerConfig, TlsError> {
    let verifier: Arc<dyn ClientCertVerifier> = match client_ca {
        Some(roots) => WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider))
            .allow_unauthenticated()
            .build()?,
        None => Arc::new(NoClientAuth),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
