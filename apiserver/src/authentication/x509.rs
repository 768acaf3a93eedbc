//! Client certificates: whom one names (the common name, with the organizations as groups), and whether it chains to a
//! bundle of authorities.
//!
//! The handshake has refused what chains to none of the bundles that it knew. Which bundle a certificate belongs to, and
//! whether it still does, is decided here, for each request: authorities are replaced while connections live.

use super::client_ca::ClientCas;
use super::{ALL_AUTHENTICATED, UserInfo};
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The extra attribute that tells two certificates of one user apart.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
/// The attribute of a subject that is the user's uid (KEP-4412).
const UID_OID: &str = "1.3.6.1.4.1.57683.2";
/// How long a connection's verdict holds, unless the bundles change: as long as that of a token.
const VERDICT_TTL: Duration = Duration::from_secs(10);
/// Certificates of one bundle. More are no bundle.
const BUNDLE_CERTIFICATES_MAX: usize = 256;

/// A certificate that names nobody, or whose name does not count. Who issued it must act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It cannot be parsed.
    #[error("the client certificate cannot be parsed: {0}")]
    Malformed(String),
    /// Its subject has no common name.
    #[error("the client certificate's subject has no common name")]
    NoCommonName,
    /// Its subject has more than one uid, or an empty one.
    #[error("the client certificate's subject has no single uid")]
    AmbiguousUid,
    /// It does not chain to the bundle, is not valid now, or is not for clients.
    #[error("verifying the client certificate failed: {0}")]
    Untrusted(String),
}

/// A bundle that cannot be used. Who wrote it must act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not PEM, or not of certificates.
    #[error("it is no bundle of certificates: {0}")]
    Malformed(String),
    /// There is no certificate in it.
    #[error("there is no certificate in it")]
    Empty,
}

/// Authorities, and what verifies client certificates against them and against nobody else.
#[derive(Debug, Clone)]
pub struct CaBundle {
    pem: String,
    roots: Arc<RootCertStore>,
    verifier: Arc<dyn ClientCertVerifier>,
}

/// What the peer of a connection has shown, and proved to have the key of.
#[derive(Debug)]
pub struct PeerCertificates {
    chain: Vec<CertificateDer<'static>>,
    user: Result<Arc<UserInfo>, CertificateError>,
    common_name: String,
    verdicts: Mutex<Option<Verdicts>>,
}

/// What was decided of a peer, and by what.
#[derive(Debug, Clone)]
pub struct Verdicts {
    cas: Arc<ClientCas>,
    at: Duration,
    /// Whether it chains to the requestheader CA. `None`: there is no such CA.
    pub request_header: Option<Result<(), CertificateError>>,
    /// Whether it chains to the client CA.
    pub client: Option<Result<(), CertificateError>>,
}

impl PartialEq for CaBundle {
    fn eq(&self, other: &Self) -> bool {
        self.pem == other.pem
    }
}

impl CaBundle {
    /// The authorities of a PEM text. As upstream, one that cannot be read spoils the bundle.
    ///
    /// # Errors
    /// When there is none, or one cannot be used.
    pub fn parse(pem: &str, provider: &Arc<CryptoProvider>) -> Result<Self, BundleError> {
        let malformed = |cause: &dyn std::fmt::Display| BundleError::Malformed(cause.to_string());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            if roots.len() == BUNDLE_CERTIFICATES_MAX {
                return Err(malformed(&format!(
                    "more than {BUNDLE_CERTIFICATES_MAX} certificates"
                )));
            }
            let certificate = certificate.map_err(|e| malformed(&e))?;
            roots.add(certificate).map_err(|e| malformed(&e))?;
        }
        if roots.is_empty() {
            return Err(BundleError::Empty);
        }
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider))
            .build()
            .map_err(|e| malformed(&e))?;
        Ok(Self {
            pem: pem.to_owned(),
            roots,
            verifier,
        })
    }

    /// The authorities.
    #[must_use]
    pub fn roots(&self) -> &RootCertStore {
        &self.roots
    }

    /// Whether a certificate chains to these authorities, is valid and may be shown by clients.
    fn verify(&self, chain: &[CertificateDer<'_>], now: Duration) -> Result<(), CertificateError> {
        let [leaf, intermediates @ ..] = chain else {
            return Err(CertificateError::Untrusted("there is none".to_owned()));
        };
        self.verifier
            .verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(now))
            .map(|_| ())
            .map_err(|e| CertificateError::Untrusted(e.to_string()))
    }
}

impl PeerCertificates {
    /// What a peer has shown, its own certificate first; `None` when that is nothing.
    #[must_use]
    pub fn new(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let leaf = chain.first()?;
        Some(Self {
            user: user(leaf).map(Arc::new),
            common_name: X509Certificate::from_der(leaf)
                .map(|(_, parsed)| common_name(&parsed))
                .unwrap_or_default(),
            chain: chain.iter().map(|c| c.clone().into_owned()).collect(),
            verdicts: Mutex::new(None),
        })
    }

    /// Whom the certificate names, if it is to be believed.
    ///
    /// # Errors
    /// When it names nobody.
    pub fn user(&self) -> Result<&Arc<UserInfo>, CertificateError> {
        self.user.as_ref().map_err(Clone::clone)
    }

    /// The common name of its subject; empty if there is none.
    #[must_use]
    pub fn common_name(&self) -> &str {
        &self.common_name
    }

    /// Which bundles it chains to at `now` (since 1970). The answer is kept for a while, as long as the bundles stay.
    #[must_use]
    pub fn verify(&self, cas: &Arc<ClientCas>, now: Duration) -> Verdicts {
        let mut known = self.verdicts.lock();
        if let Some(verdicts) = known.as_ref()
            && Arc::ptr_eq(&verdicts.cas, cas)
            && now.checked_sub(verdicts.at).is_some_and(|age| age < VERDICT_TTL)
        {
            return verdicts.clone();
        }
        let verify = |bundle: &CaBundle| bundle.verify(&self.chain, now);
        let verdicts = Verdicts {
            cas: Arc::clone(cas),
            at: now,
            request_header: cas.request_header.as_ref().map(|r| verify(&r.ca)),
            client: cas.client.as_ref().map(verify),
        };
        known.insert(verdicts).clone()
    }
}

/// The user that a certificate names.
///
/// # Errors
/// When it cannot be parsed or has no common name.
pub fn user(certificate: &CertificateDer<'_>) -> Result<UserInfo, CertificateError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|e| CertificateError::Malformed(e.to_string()))?;
    let name = common_name(&parsed);
    if name.is_empty() {
        return Err(CertificateError::NoCommonName);
    }
    let subject = parsed.subject();
    let mut uids = subject
        .iter_attributes()
        .filter(|attribute| attribute.attr_type().to_id_string() == UID_OID);
    let uid = match (uids.next(), uids.next()) {
        (None, _) => String::new(),
        (Some(uid), None) => match uid.as_str() {
            Ok(uid) if !uid.is_empty() => uid.to_owned(),
            _ => return Err(CertificateError::AmbiguousUid),
        },
        (Some(_), Some(_)) => return Err(CertificateError::AmbiguousUid),
    };
    let organizations = subject.iter_organization().filter_map(|o| o.as_str().ok());
    let mut groups: Vec<String> = organizations.map(str::to_owned).collect();
    groups.push(ALL_AUTHENTICATED.to_owned());
    let fingerprint: String = Sha256::digest(certificate)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let extra = [(
        CREDENTIAL_ID.to_owned(),
        vec![format!("X509SHA256={fingerprint}")],
    )]
    .into();
    Ok(UserInfo {
        name,
        uid,
        groups,
        extra,
    })
}

/// The last common name counts, as in Go's pkix.Name.
fn common_name(certificate: &X509Certificate<'_>) -> String {
    let names = certificate.subject().iter_common_name();
    names
        .filter_map(|cn| cn.as_str().ok())
        .last()
        .unwrap_or_default()
        .to_owned()
}
