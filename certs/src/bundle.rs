//! The bundle: the authorities that a client must trust, old and new side by side.
//!
//! It knows nothing of who carries it. Two bundles are equal when they hold the same certificates.

use crate::Error;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// A bundle with more certificates is refused: it is not one of ours.
const CERTIFICATES_MAX: usize = 64;

/// Certificates of authorities, each once, in the order in which they were added. Empty: not known yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaBundle {
    pem: String,
    certificates: Vec<CertificateDer<'static>>,
}

impl CaBundle {
    /// The certificates in a PEM text; `what` names it in errors.
    ///
    /// # Errors
    /// [`Error::Malformed`] when there is none, there are too many, or one cannot be read.
    pub fn from_pem(pem: &str, what: &str) -> Result<Self, Error> {
        let mut bundle = Self::default();
        bundle.add(pem, what)?;
        if bundle.is_empty() {
            return Err(Error::malformed(what, "it holds no certificate"));
        }
        Ok(bundle)
    }

    /// Adds the certificates in a PEM text, except those that are there.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn add(&mut self, pem: &str, what: &str) -> Result<(), Error> {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|e| Error::malformed(what, e))?;
            if self.certificates.contains(&certificate) {
                continue;
            }
            if self.certificates.len() == CERTIFICATES_MAX {
                return Err(Error::malformed(
                    what,
                    format!("more than {CERTIFICATES_MAX} authorities"),
                ));
            }
            self.pem.push_str(&encode(&certificate));
            self.certificates.push(certificate);
        }
        Ok(())
    }

    /// As PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Whether nothing is known yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.certificates.is_empty()
    }

    /// Whether it holds every certificate of the other.
    #[must_use]
    pub fn holds(&self, other: &Self) -> bool {
        other.certificates.iter().all(|c| self.certificates.contains(c))
    }

    /// The certificates.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }
}

impl AsRef<[u8]> for CaBundle {
    fn as_ref(&self) -> &[u8] {
        self.pem.as_bytes()
    }
}

/// Written by us, so that the same certificates always give the same bytes, comments and line ends of others aside.
fn encode(certificate: &CertificateDer<'_>) -> String {
    const LINE: usize = 64;
    let text = STANDARD.encode(certificate);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in text.as_bytes().chunks(LINE) {
        pem.extend(line.iter().map(|b| char::from(*b)));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Authority;

    const NOW: i64 = 1_800_000_000;

    #[test]
    fn each_authority_is_there_once() {
        let authorities = ["a", "b"].map(|name| Authority::create(name, NOW).expect("created"));
        let [a, b] = authorities.each_ref().map(Authority::certificate_pem);
        let mut bundle = CaBundle::from_pem(a, "a").expect("ours");
        let first = bundle.clone();
        bundle
            .add(&format!("# a comment\r\n{a}\n\n{b}"), "both")
            .expect("ours");
        assert_eq!(bundle.certificates().len(), 2);
        assert!(bundle.holds(&first) && !first.holds(&bundle));
        assert_eq!(CaBundle::from_pem(bundle.pem(), "again").expect("ours"), bundle);
        assert_eq!(
            first.pem().trim(),
            a.replace("\r\n", "\n").trim(),
            "as others write it"
        );
    }

    #[test]
    fn what_is_no_bundle_is_refused_by_name() {
        for text in [
            "",
            "hello",
            "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n",
        ] {
            let error = CaBundle::from_pem(text, "ca.crt").expect_err("refused");
            assert!(error.to_string().starts_with("ca.crt: "), "{error}");
        }
    }
}
