//! A verified client certificate → the user it names: the common name, with the organizations as groups.
//! It does not verify: rustls has done that in the handshake, against the client CA.

use super::{ALL_AUTHENTICATED, UserInfo};
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The extra attribute that tells two certificates of one user apart.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// A certificate that names nobody. Who issued it must act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It cannot be parsed.
    #[error("the client certificate cannot be parsed: {0}")]
    Malformed(String),
    /// Its subject has no common name.
    #[error("the client certificate's subject has no common name")]
    NoCommonName,
}

/// The user that a certificate names.
///
/// # Errors
/// When it cannot be parsed or has no common name.
pub fn user(certificate: &CertificateDer<'_>) -> Result<UserInfo, CertificateError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|e| CertificateError::Malformed(e.to_string()))?;
    let subject = parsed.subject();
    // The last common name counts, as in Go's pkix.Name.
    let name = subject
        .iter_common_name()
        .filter_map(|cn| cn.as_str().ok())
        .last()
        .unwrap_or_default();
    if name.is_empty() {
        return Err(CertificateError::NoCommonName);
    }
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
        name: name.to_owned(),
        uid: String::new(),
        groups,
        extra,
    })
}
