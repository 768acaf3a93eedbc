//! The serving certificate as a published value: one writer renews it, every handshake takes the newest.

use crate::issue::Issued;
use crate::{Error, UnixSeconds};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::{Arc, PoisonError, RwLock};

/// The certificate that a TLS server shows. Put it into a `rustls::ServerConfig` as its certificate resolver.
pub struct ServingCertificate {
    current: RwLock<Arc<CertifiedKey>>,
    provider: Arc<CryptoProvider>,
}

impl ServingCertificate {
    /// Publishes a first certificate.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn new(issued: &Issued, provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        let current = RwLock::new(Arc::new(certified_key(issued, &provider)?));
        Ok(Self { current, provider })
    }

    /// Publishes the next one. Connections that exist keep what they have.
    ///
    /// # Errors
    /// [`Error::Malformed`]; the old one stays.
    pub fn publish(&self, issued: &Issued) -> Result<(), Error> {
        let next = Arc::new(certified_key(issued, &self.provider)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// The certificate that is shown now.
    #[must_use]
    pub fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl std::fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServingCertificate").finish_non_exhaustive()
    }
}

/// Certificate chain and key as rustls takes them.
///
/// # Errors
/// [`Error::Malformed`] when one of them cannot be read or they do not belong together.
pub fn certified_key(issued: &Issued, provider: &CryptoProvider) -> Result<CertifiedKey, Error> {
    let chain = CertificateDer::pem_slice_iter(issued.certificate_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| Error::malformed("certificate", e))?;
    let key =
        PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).map_err(|e| Error::malformed("key", e))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|e| Error::malformed("certificate", e))
}

/// The authorities in a PEM text, as roots of trust; `what` names it in errors.
///
/// # Errors
/// [`Error::Malformed`] when there is none, or one cannot be read.
pub fn trust_anchors(pem: &str, what: &str) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|e| Error::malformed(what, e))?;
        roots.add(certificate).map_err(|e| Error::malformed(what, e))?;
    }
    if roots.is_empty() {
        return Err(Error::malformed(what, "it holds no certificate"));
    }
    Ok(roots)
}

/// How long to wait before a certificate is looked at again: until it is due, at most a day, at least a minute, in seconds.
#[must_use]
pub fn look_again_in(now: UnixSeconds, issued: &Issued) -> u64 {
    use crate::rotation::{Decision, decide};
    const DAY: i64 = 86400;
    let seconds = match issued.validity().map(|v| decide(now, v)) {
        Ok(Decision::Keep { renew_at }) => renew_at.saturating_sub(now).clamp(60, DAY),
        _ => 60,
    };
    seconds.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, LeafRequest, Usage};

    const NOW: UnixSeconds = 1_800_000_000;

    fn provider() -> Arc<CryptoProvider> {
        Arc::new(rustls::crypto::aws_lc_rs::default_provider())
    }

    fn leaf(ca: &Authority) -> Issued {
        let names = vec!["localhost".to_owned()];
        let request = LeafRequest {
            common_name: "s".to_owned(),
            organization: None,
            names,
            usage: Usage::Server,
            days: 30,
        };
        ca.issue(&request, NOW).expect("issued")
    }

    #[test]
    fn the_next_certificate_takes_over() {
        let ca = Authority::create("ca", NOW).expect("created");
        let (first, second) = (leaf(&ca), leaf(&ca));
        let serving = ServingCertificate::new(&first, provider()).expect("ours");
        let before = serving.current();
        serving.publish(&second).expect("ours");
        assert_ne!(before.cert, serving.current().cert);
        let mixed = Issued {
            certificate_pem: first.certificate_pem,
            ..second
        };
        assert!(
            serving.publish(&mixed).is_err(),
            "certificate and key do not belong together"
        );
    }

    #[test]
    fn trust() {
        let ca = Authority::create("ca", NOW).expect("created");
        assert_eq!(trust_anchors(ca.certificate_pem(), "ca").expect("ours").len(), 1);
        assert!(
            trust_anchors("", "etcd-ca.crt")
                .expect_err("empty")
                .to_string()
                .contains("etcd-ca.crt")
        );
    }

    #[test]
    fn it_is_looked_at_every_day_and_when_it_is_due() {
        let issued = leaf(&Authority::create("ca", NOW).expect("created"));
        assert_eq!(look_again_in(NOW, &issued), 86400);
        assert_eq!(look_again_in(NOW + 29 * 86400, &issued), 60);
    }
}
