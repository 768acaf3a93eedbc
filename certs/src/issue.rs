//! A leaf: a server's certificate for names and addresses, or a client's for a user and its groups.

use crate::authority::{CLOCK_SKEW_SECONDS, date};
use crate::rotation::{self, Decision, Validity};
use crate::{Error, UnixSeconds};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::collections::BTreeSet;
use std::net::IpAddr;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// A server.
    Server,
    /// A client.
    Client,
}

/// What is asked of the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafRequest {
    /// CN: a client's user name.
    pub common_name: String,
    /// O: a client's group.
    pub organization: Option<String>,
    /// A server's DNS names and IP addresses.
    pub names: Vec<String>,
    /// What it is for.
    pub usage: Usage,
    /// How long it shall live, in days.
    pub days: u16,
}

/// A certificate and its key, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate.
    pub certificate_pem: String,
    /// Its key. Secret.
    pub key_pem: String,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued")
            .field("certificate_pem", &self.certificate_pem)
            .finish_non_exhaustive()
    }
}

impl Issued {
    /// From when to when it is valid.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn validity(&self) -> Result<Validity, Error> {
        let der = first_certificate(&self.certificate_pem, "certificate")?;
        let (_, certificate) =
            X509Certificate::from_der(&der).map_err(|e| Error::malformed("certificate", e))?;
        Ok(validity(&certificate))
    }

    /// Whether certificate and key belong together (also false when one of them cannot be read).
    pub(crate) fn keys_match(&self) -> bool {
        let (Ok(der), Ok(key)) = (
            first_certificate(&self.certificate_pem, ""),
            KeyPair::from_pem(&self.key_pem),
        ) else {
            return false;
        };
        X509Certificate::from_der(&der)
            .is_ok_and(|(_, c)| c.public_key().subject_public_key.data[..] == *key.public_key_raw())
    }

    /// Whether it may be used for this request for a while yet.
    pub(crate) fn serves(&self, request: &LeafRequest, authority_key_id: &[u8], now: UnixSeconds) -> bool {
        let Ok(der) = first_certificate(&self.certificate_pem, "") else {
            return false;
        };
        let Ok((_, certificate)) = X509Certificate::from_der(&der) else {
            return false;
        };
        let is_fresh = matches!(
            rotation::decide(now, validity(&certificate)),
            Decision::Keep { .. }
        );
        is_fresh
            && self.keys_match()
            && is_signed_by(&certificate, authority_key_id)
            && is_for(&certificate, request)
    }
}

pub(crate) fn issue(
    issuer: &Issuer<'static, KeyPair>,
    authority: Validity,
    request: &LeafRequest,
    now: UnixSeconds,
) -> Result<Issued, Error> {
    let failed = |e: rcgen::Error| Error::Issue {
        subject: request.common_name.clone(),
        cause: e.to_string(),
    };
    let mut params = CertificateParams::new(request.names.clone()).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    if let Some(organization) = &request.organization {
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization.as_str());
    }
    params
        .distinguished_name
        .push(DnType::CommonName, request.common_name.as_str());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match request.usage {
        Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    params.use_authority_key_identifier_extension = true;
    params.not_before = date((now - CLOCK_SKEW_SECONDS).max(authority.not_before))?;
    params.not_after = date(
        now.saturating_add(i64::from(request.days) * 86400)
            .min(authority.not_after),
    )?;
    let key = KeyPair::generate().map_err(failed)?;
    let certificate_pem = params.signed_by(&key, issuer).map_err(failed)?.pem();
    Ok(Issued {
        certificate_pem,
        key_pem: key.serialize_pem(),
    })
}

pub(crate) fn first_certificate(pem: &str, what: &str) -> Result<CertificateDer<'static>, Error> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| Error::malformed(what, e))
}

pub(crate) fn validity(certificate: &X509Certificate<'_>) -> Validity {
    let validity = certificate.validity();
    Validity {
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
    }
}

fn is_signed_by(certificate: &X509Certificate<'_>, authority_key_id: &[u8]) -> bool {
    certificate
        .extensions()
        .iter()
        .any(|e| match e.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => id
                .key_identifier
                .as_ref()
                .is_some_and(|id| id.0 == authority_key_id),
            _ => false,
        })
}

fn is_for(certificate: &X509Certificate<'_>, request: &LeafRequest) -> bool {
    let subject = certificate.subject();
    let common_name = subject.iter_common_name().next().and_then(|n| n.as_str().ok());
    let organization = subject.iter_organization().next().and_then(|o| o.as_str().ok());
    let names: BTreeSet<String> = match certificate.subject_alternative_name() {
        Ok(Some(extension)) => extension.value.general_names.iter().filter_map(name).collect(),
        _ => BTreeSet::new(),
    };
    let is_usage = certificate
        .extended_key_usage()
        .ok()
        .flatten()
        .is_some_and(|usage| match request.usage {
            Usage::Server => usage.value.server_auth,
            Usage::Client => usage.value.client_auth,
        });
    is_usage
        && common_name == Some(request.common_name.as_str())
        && organization == request.organization.as_deref()
        && request.names.iter().all(|n| names.contains(n))
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes)
                .ok()
                .map(|b| IpAddr::from(b).to_string()),
            _ => <[u8; 16]>::try_from(*bytes)
                .ok()
                .map(|b| IpAddr::from(b).to_string()),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Authority;

    #[test]
    fn a_leaf_says_what_was_asked() {
        let ca = Authority::create("outrigger", 1_800_000_000).expect("created");
        let request = LeafRequest {
            common_name: "outrigger".to_owned(),
            organization: Some("a".to_owned()),
            names: ["localhost", "kubernetes.default.svc", "127.0.0.1", "::1"]
                .map(str::to_owned)
                .to_vec(),
            usage: Usage::Server,
            days: 90,
        };
        let leaf = ca.issue(&request, 1_800_000_000).expect("issued");
        let der = first_certificate(&leaf.certificate_pem, "leaf").expect("PEM");
        let (_, certificate) = X509Certificate::from_der(&der).expect("DER");
        assert!(is_for(&certificate, &request));
        assert!(!is_for(
            &certificate,
            &LeafRequest {
                usage: Usage::Client,
                ..request.clone()
            }
        ));
        assert!(!is_for(
            &certificate,
            &LeafRequest {
                organization: None,
                ..request.clone()
            }
        ));
        assert_eq!(certificate.issuer().to_string(), "CN=outrigger");
        assert!(!format!("{leaf:?}").contains("PRIVATE"));
    }

    #[test]
    fn names_that_cannot_stand_in_a_certificate_are_refused() {
        let ca = Authority::create("outrigger", 1_800_000_000).expect("created");
        let names = vec!["gr\u{fc}n".to_owned()];
        let request = LeafRequest {
            common_name: "x".to_owned(),
            organization: None,
            names,
            usage: Usage::Server,
            days: 1,
        };
        assert!(matches!(
            ca.issue(&request, 1_800_000_000),
            Err(Error::Issue { .. })
        ));
    }
}
