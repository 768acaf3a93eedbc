//! Outrigger's certificates: an authority, the leaves it issues, when they are renewed, and two published values: the
//! serving certificate and the bundle that clients must trust to accept it.
//!
//! Standalone, the authority lives in files. In a cluster it lives in a Secret that all replicas share, or certificates
//! come from somebody else, in files or in a Secret ([`Certificates`] is the door to all of that). Wall time comes in as
//! [`UnixSeconds`]. Nothing here knows who asks for a certificate or what it is used for, and nothing here speaks TLS.

mod authority;
mod bundle;
mod certificates;
mod external;
mod files;
mod issue;
mod rotation;
mod secret;
mod serving;
mod shared;

pub use authority::Authority;
pub use bundle::CaBundle;
pub use certificates::{Carried, CertificateSource, Certificates, CertificatesConfig, UnixClock};
pub use files::write_private;
pub use issue::{Issued, LeafRequest, Usage};
pub use rotation::{
    Decision, NextAuthority, PreviousAuthority, RotationAction, RotationPolicy, RotationState, Validity,
    decide, rotate,
};
pub use serving::{ServingCertificate, certified_key, look_again_in, trust_anchors};

/// Wall time: seconds since 1970-01-01T00:00:00Z.
pub type UnixSeconds = i64;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written. Who runs the server must act.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file, or a PEM text, does not hold what it should. Who runs the server must act.
    #[error("{what}: {cause}")]
    Malformed {
        /// The file, or what the text was taken for.
        what: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The authority's certificate is no longer valid; every client's trust ends with it. Who runs the server must act.
    #[error("{path}: the certificate authority has expired; move the folder away to get a new one")]
    AuthorityExpired {
        /// The file.
        path: String,
    },
    /// The Secret could not be read or written. Tried again; who runs the control plane must act if it stays.
    #[error("secret {secret}: {source}")]
    Secret {
        /// `<namespace>/<name>`.
        secret: String,
        /// What the control plane said.
        source: Box<kube::Error>,
    },
    /// Others changed the Secret each time before we could. Tried again.
    #[error("secret {secret}: others were faster, many times")]
    Contended {
        /// `<namespace>/<name>`.
        secret: String,
    },
    /// A certificate could not be made: a name that is not allowed in one.
    #[error("cannot issue a certificate for {subject:?}: {cause}")]
    Issue {
        /// Its common name.
        subject: String,
        /// What was seen.
        cause: String,
    },
}

impl Error {
    pub(crate) fn malformed(what: impl ToString, cause: impl ToString) -> Self {
        Self::Malformed {
            what: what.to_string(),
            cause: cause.to_string(),
        }
    }
}
