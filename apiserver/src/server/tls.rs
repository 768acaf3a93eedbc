//! The TLS of the listener: which certificate is shown, whose client certificates count.
//!
//! It does not know where certificates come from. Whoever renews them publishes a new configuration; the next connection
//! uses it.

use crate::authentication::client_ca::ClientCas;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, ResolvesServerCert, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use std::sync::Arc;
use tokio::sync::watch;

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

/// A configuration that asks for, without demanding them, client certificates of any authority that counts now: of clients
/// and of the front proxy. Which of them a certificate belongs to is decided by authentication, for each request.
///
/// # Errors
/// When the authorities cannot be used.
pub fn delegating_config(
    certificate: Arc<dyn ResolvesServerCert>,
    client_cas: &ClientCas,
    provider: &Arc<CryptoProvider>,
) -> Result<ServerConfig, TlsError> {
    server_config(certificate, client_cas.roots().map(Arc::new), provider)
}

/// Publishes such a configuration whenever other authorities count. Connections that there are live on. Ends when nobody
/// publishes authorities any more, or nobody listens.
pub async fn follow_client_cas(
    certificate: Arc<dyn ResolvesServerCert>,
    mut client_cas: watch::Receiver<Arc<ClientCas>>,
    provider: Arc<CryptoProvider>,
    publish: watch::Sender<Arc<ServerConfig>>,
) {
    // What counted when the first configuration was made may have been replaced since.
    client_cas.mark_changed();
    loop {
        tokio::select! {
            changed = client_cas.changed() => if changed.is_err() {
                return;
            },
            () = publish.closed() => return,
        }
        let cas = Arc::clone(&client_cas.borrow_and_update());
        match delegating_config(Arc::clone(&certificate), &cas, &provider) {
            Ok(config) => drop(publish.send_replace(Arc::new(config))),
            Err(error) => {
                tracing::error!(%error, "new certificate authorities cannot be used; the old ones count")
            }
        }
    }
}
