//! The certificate authority: made once, kept in two files (`<name>.crt`, `<name>.key`), loaded ever after.

use crate::issue::{self, Issued, LeafRequest};
use crate::rotation::{self, Decision, Validity};
use crate::{Error, UnixSeconds, files};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use std::path::Path;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

/// How long an authority lives, in days.
const AUTHORITY_DAYS: i64 = 3650;
/// Clocks of clients may be behind ours by so much, in seconds.
pub(crate) const CLOCK_SKEW_SECONDS: i64 = 3600;

/// A certificate authority.
pub struct Authority {
    certificate_pem: String,
    key_pem: String,
    validity: Validity,
    key_id: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority that lives for ten years.
    ///
    /// # Errors
    /// [`Error::Issue`].
    pub fn create(common_name: &str, now: UnixSeconds) -> Result<Self, Error> {
        Self::create_for(common_name, AUTHORITY_DAYS, now)
    }

    /// A new authority that lives for so many days.
    ///
    /// # Errors
    /// [`Error::Issue`].
    pub fn create_for(common_name: &str, days: i64, now: UnixSeconds) -> Result<Self, Error> {
        let failed = |e: rcgen::Error| Error::Issue {
            subject: common_name.to_owned(),
            cause: e.to_string(),
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params.not_before = date(now - CLOCK_SKEW_SECONDS)?;
        params.not_after = date(now.saturating_add(days.saturating_mul(86400)))?;
        let key = KeyPair::generate().map_err(failed)?;
        let certificate_pem = params.self_signed(&key).map_err(failed)?.pem();
        Self::from_pem(&certificate_pem, &key.serialize_pem(), common_name)
    }

    /// The authority in these PEM texts; `what` names them in errors.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn from_pem(certificate_pem: &str, key_pem: &str, what: &str) -> Result<Self, Error> {
        let key = KeyPair::from_pem(key_pem)
            .map_err(|e| Error::malformed(what, format!("the key cannot be read: {e}")))?;
        let issued = Issued {
            certificate_pem: certificate_pem.to_owned(),
            key_pem: key_pem.to_owned(),
        };
        issued
            .keys_match()
            .then_some(())
            .ok_or_else(|| Error::malformed(what, "certificate and key do not belong together"))?;
        let der = issue::first_certificate(certificate_pem, what)?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|e| Error::malformed(what, e))?;
        if !certificate.is_ca() {
            return Err(Error::malformed(
                what,
                "the certificate is not that of an authority",
            ));
        }
        let key_id = certificate
            .extensions()
            .iter()
            .find_map(|e| match e.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            });
        Ok(Self {
            certificate_pem: certificate_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            validity: issue::validity(&certificate),
            key_id: key_id.unwrap_or_default(),
            issuer: Issuer::from_ca_cert_der(&der, key).map_err(|e| Error::malformed(what, e))?,
        })
    }

    /// The authority in `<folder>/<name>.crt` and `.key`, made now if it is not there.
    ///
    /// # Errors
    /// When the files cannot be read or written, hold something else, or hold an authority that has expired. It is never
    /// replaced silently: clients trust the old one.
    pub fn load_or_create(
        folder: &Path,
        name: &str,
        common_name: &str,
        now: UnixSeconds,
    ) -> Result<Self, Error> {
        let (certificate_path, key_path) = (
            folder.join(format!("{name}.crt")),
            folder.join(format!("{name}.key")),
        );
        let what = certificate_path.display().to_string();
        // The key is written first: a certificate without a key was not made here, a key without a certificate was
        // left by a process that died and has signed nothing.
        let Some(certificate_pem) = files::read(&certificate_path)? else {
            let authority = Self::create(common_name, now)?;
            files::write_private(&key_path, authority.key_pem.as_bytes())?;
            files::write_private(&certificate_path, authority.certificate_pem.as_bytes())?;
            return Ok(authority);
        };
        let Some(key_pem) = files::read(&key_path)? else {
            return Err(Error::malformed(
                what,
                format!("its key {} is missing", key_path.display()),
            ));
        };
        let authority = Self::from_pem(&certificate_pem, &key_pem, &what)?;
        match rotation::decide(now, authority.validity) {
            Decision::Keep { .. } | Decision::Renew => Ok(authority),
            Decision::Replace => Err(Error::AuthorityExpired { path: what }),
        }
    }

    /// Its certificate, for those who shall trust it.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its key. Secret.
    pub(crate) fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Its key's identifier, as its leaves name it.
    pub(crate) fn key_id(&self) -> &[u8] {
        &self.key_id
    }

    /// From when to when it is valid. A leaf never outlives it.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Issues a certificate with a new key.
    ///
    /// # Errors
    /// [`Error::Issue`] when a name cannot stand in a certificate.
    pub fn issue(&self, request: &LeafRequest, now: UnixSeconds) -> Result<Issued, Error> {
        issue::issue(&self.issuer, self.validity, request, now)
    }

    /// The certificate in `<folder>/<name>.crt` and `.key` if it still serves, else a new one, written there: when it is
    /// in the last third of its life, is not what the request asks for, was signed by another authority, or cannot be
    /// read. Says whether it is new.
    ///
    /// # Errors
    /// When it cannot be issued or written.
    pub fn load_or_issue(
        &self,
        folder: &Path,
        name: &str,
        request: &LeafRequest,
        now: UnixSeconds,
    ) -> Result<(Issued, bool), Error> {
        let (certificate_path, key_path) = (
            folder.join(format!("{name}.crt")),
            folder.join(format!("{name}.key")),
        );
        if let (Some(certificate_pem), Some(key_pem)) =
            (files::read(&certificate_path)?, files::read(&key_path)?)
        {
            let old = Issued {
                certificate_pem,
                key_pem,
            };
            if old.serves(request, &self.key_id, now) {
                return Ok((old, false));
            }
        }
        let new = self.issue(request, now)?;
        files::write_private(&key_path, new.key_pem.as_bytes())?;
        files::write_private(&certificate_path, new.certificate_pem.as_bytes())?;
        Ok((new, true))
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

pub(crate) fn date(seconds: UnixSeconds) -> Result<OffsetDateTime, Error> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|e| Error::malformed("time", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Usage;

    const NOW: UnixSeconds = 1_800_000_000;
    const DAY: i64 = 86400;

    fn request() -> LeafRequest {
        LeafRequest {
            common_name: "admin".to_owned(),
            organization: Some("system:masters".to_owned()),
            names: vec![],
            usage: Usage::Client,
            days: 365,
        }
    }

    #[test]
    fn it_comes_back_from_its_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let load = |now| Authority::load_or_create(folder.path(), "ca", "outrigger", now);
        let first = load(NOW).expect("created");
        let second = load(NOW + 5 * DAY).expect("loaded");
        assert_eq!(first.certificate_pem(), second.certificate_pem());
        assert!(matches!(
            load(NOW + 4000 * DAY),
            Err(Error::AuthorityExpired { .. })
        ));
        std::fs::remove_file(folder.path().join("ca.key")).expect("removed");
        assert!(load(NOW).expect_err("no key").to_string().contains("is missing"));
    }

    #[test]
    fn a_key_without_certificate_is_a_leftover() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca.key"), "half a key").expect("written");
        Authority::load_or_create(folder.path(), "ca", "outrigger", NOW).expect("created");
    }

    #[test]
    fn foreign_files_are_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let ours = Authority::create("outrigger", NOW).expect("created");
        let leaf = ours.issue(&request(), NOW).expect("issued");
        let check = |certificate: &str, key: &str| {
            std::fs::write(folder.path().join("ca.crt"), certificate).expect("written");
            std::fs::write(folder.path().join("ca.key"), key).expect("written");
            let error =
                Authority::load_or_create(folder.path(), "ca", "outrigger", NOW).expect_err("refused");
            assert!(error.to_string().contains("ca.crt"), "{error}");
        };
        check("", "");
        check("not PEM", &leaf.key_pem);
        check(&leaf.certificate_pem, &leaf.key_pem);
        check(ours.certificate_pem(), &leaf.key_pem);
    }

    #[test]
    fn leaves_are_kept_until_they_are_due() {
        let folder = tempfile::tempdir().expect("a folder");
        let ca = Authority::create("outrigger", NOW).expect("created");
        let is_new = |ca: &Authority, request: &LeafRequest, now| {
            ca.load_or_issue(folder.path(), "admin", request, now)
                .expect("issued")
                .1
        };
        assert!(is_new(&ca, &request(), NOW));
        assert!(!is_new(&ca, &request(), NOW + 200 * DAY));
        assert!(is_new(&ca, &request(), NOW + 300 * DAY), "the last third");
        assert!(!is_new(&ca, &request(), NOW + 301 * DAY));
        let other = LeafRequest {
            common_name: "other".to_owned(),
            ..request()
        };
        assert!(is_new(&ca, &other, NOW + 301 * DAY), "another name");
        let named = LeafRequest {
            names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            ..other.clone()
        };
        assert!(is_new(&ca, &named, NOW + 301 * DAY), "more names");
        assert!(!is_new(&ca, &other, NOW + 301 * DAY), "fewer names");
        let replaced = Authority::create("outrigger", NOW).expect("created");
        assert!(is_new(&replaced, &other, NOW + 301 * DAY), "another authority");
        std::fs::write(folder.path().join("admin.key"), "half").expect("written");
        assert!(is_new(&replaced, &other, NOW + 301 * DAY), "a broken key");
    }

    #[test]
    fn a_leaf_does_not_outlive_its_authority() {
        let ca = Authority::create("outrigger", NOW).expect("created");
        let leaf = ca
            .issue(
                &LeafRequest {
                    days: 9999,
                    ..request()
                },
                NOW,
            )
            .expect("issued");
        assert_eq!(leaf.validity().expect("ours").not_after, ca.validity().not_after);
    }
}
