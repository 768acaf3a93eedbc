//! Who is asking.
//!
//! Standalone: the client certificate of the connection, or nobody. Tokens are not known there.
//! In a control plane, in kube-apiserver's order: the headers of its front proxy, if the connection is the front proxy's;
//! a client certificate of the client CA; a bearer token that kube-apiserver knows; nobody, where nobody may ask.

pub mod client_ca;

pub mod impersonation;

pub mod request_header;

pub mod token_review;

pub mod x509;

use crate::metrics::auth::AuthMetrics;
use crate::request::context::{Connection, LoopbackUser};
use crate::status::ApiError;
use client_ca::{ClientCas, RequestHeaderCa};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};
use outrigger_storage::federated::WallClock;
use std::sync::Arc;
use std::time::Duration;
use token_review::{TokenReviewer, bearer_token};
use tokio::sync::watch;
use x509::{CertificateError, PeerCertificates};

/// Everyone who is known.
pub const ALL_AUTHENTICATED: &str = "system:authenticated";
/// Everyone else.
pub const ALL_UNAUTHENTICATED: &str = "system:unauthenticated";
/// The name of everyone else.
pub const ANONYMOUS: &str = "system:anonymous";
/// Those who may do all.
pub const SYSTEM_MASTERS: &str = "system:masters";
/// The name of the server when it asks itself.
pub const API_SERVER_USER: &str = "system:apiserver";

/// The user that a request comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// `system:anonymous` when nobody is known.
    pub name: String,
    /// Empty if there is none.
    pub uid: String,
    /// Groups, `system:authenticated` or `system:unauthenticated` included.
    pub groups: Vec<String>,
    /// Extra attributes.
    pub extra: std::collections::BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// Nobody.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_owned(),
            groups: vec![ALL_UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// The server itself, which may do all.
    #[must_use]
    pub fn api_server() -> Self {
        Self {
            name: API_SERVER_USER.to_owned(),
            groups: vec![ALL_AUTHENTICATED.to_owned(), SYSTEM_MASTERS.to_owned()],
            ..Self::default()
        }
    }

    /// Whether the user belongs to a group.
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// Finds out who asks. Cheap to clone.
#[derive(Clone, Default)]
pub struct Authenticator {
    /// `None`: standalone.
    delegating: Option<Arc<Delegating>>,
}

/// What authentication in a control plane needs.
pub struct DelegatingConfig {
    /// Asks kube-apiserver whose tokens are.
    pub client: kube::Client,
    /// Whose certificates count.
    pub client_cas: watch::Receiver<Arc<ClientCas>>,
    /// Where nobody may ask.
    pub anonymous: Anonymous,
    /// Wall time.
    pub wall_clock: WallClock,
    /// Where calls are counted.
    pub metrics: AuthMetrics,
    /// Seed of everything random.
    pub seed: u64,
}

/// Where requests without any proof are taken as those of `system:anonymous`. Elsewhere they are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Anonymous {
    /// Nowhere.
    Refused,
    /// On these paths, as they are.
    Paths(Vec<String>),
    /// Everywhere; authorization decides what they may.
    Everywhere,
}

/// What is known of a request before anybody has said who asks.
#[derive(Clone, Copy)]
pub struct Proofs<'a> {
    /// It came from inside.
    pub loopback: Option<&'a LoopbackUser>,
    /// What it came on.
    pub connection: Option<&'a Connection>,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its path.
    pub path: &'a str,
}

struct Delegating {
    tokens: TokenReviewer,
    client_cas: watch::Receiver<Arc<ClientCas>>,
    anonymous: Anonymous,
    wall_clock: WallClock,
}

/// Why a certificate of the front proxy's CA does not let it speak for others. Who runs the control plane must act.
#[derive(Debug, thiserror::Error)]
enum FrontProxyError {
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("x509: subject with cn={0} is not in the allowed list")]
    NotAllowed(String),
    #[error(transparent)]
    Header(#[from] request_header::UnreadableHeader),
}

impl Default for Anonymous {
    /// Probes may ask: all else would cost a question to the control plane for everybody who finds the port.
    fn default() -> Self {
        Self::Paths(["/healthz", "/livez", "/readyz"].map(str::to_owned).into())
    }
}

impl Anonymous {
    fn may_ask(&self, path: &str) -> bool {
        match self {
            Self::Refused => false,
            Self::Paths(paths) => paths.iter().any(|allowed| allowed == path),
            Self::Everywhere => true,
        }
    }
}

impl Authenticator {
    /// By the client certificate alone. The listener must have verified it.
    #[must_use]
    pub fn standalone() -> Self {
        Self::default()
    }

    /// As kube-apiserver's extension servers do it.
    #[must_use]
    pub fn delegating(config: DelegatingConfig) -> Self {
        let DelegatingConfig {
            client,
            client_cas,
            anonymous,
            wall_clock,
            metrics,
            seed,
        } = config;
        Self {
            delegating: Some(Arc::new(Delegating {
                tokens: TokenReviewer::new(client, metrics, seed),
                client_cas,
                anonymous,
                wall_clock,
            })),
        }
    }

    /// Whether clients come from anywhere, and not only with certificates of our own.
    #[must_use]
    pub fn is_delegating(&self) -> bool {
        self.delegating.is_some()
    }

    /// Finds out who asks. The strongest proof decides: a request from inside, then what the connection shows, then what
    /// the request says.
    ///
    /// # Errors
    /// 401 for proofs that prove nothing: whoever shows one does not want to be nobody.
    pub async fn authenticate(&self, proofs: Proofs<'_>) -> Result<Arc<UserInfo>, ApiError> {
        match (proofs.loopback, &self.delegating) {
            (Some(LoopbackUser(user)), _) => Ok(Arc::clone(user)),
            (None, None) => standalone(&proofs),
            (None, Some(delegating)) => delegating.authenticate(&proofs).await.map(member_of_all),
        }
    }

    /// Whether a header proves (or claims) who asks. What comes after authentication must not see it.
    #[must_use]
    pub fn is_proof(&self, name: &HeaderName) -> bool {
        let is_configured = self.delegating.as_ref().is_some_and(|delegating| {
            let cas = delegating.client_cas.borrow();
            cas.request_header
                .as_ref()
                .is_some_and(|r| r.headers.contains(name))
        });
        is_configured
            || *name == AUTHORIZATION
            || ["x-remote-user", "x-remote-uid", "x-remote-group"].contains(&name.as_str())
            || name.as_str().starts_with("x-remote-extra-")
    }
}

/// The certificate, or nobody. A token is a claim that nobody here can check, so it is refused rather than ignored.
fn standalone(proofs: &Proofs<'_>) -> Result<Arc<UserInfo>, ApiError> {
    let peer = proofs.connection.and_then(|connection| connection.peer.as_ref());
    match peer.map(|peer| peer.user()) {
        Some(Ok(user)) => Ok(Arc::clone(user)),
        // The certificate is ours and still says nothing: its holder is nobody, as upstream.
        Some(Err(error)) => {
            tracing::debug!(%error, "the client certificate names nobody");
            Ok(Arc::new(UserInfo::anonymous()))
        }
        None if has_bearer_token(proofs.headers) => Err(ApiError::unauthorized()),
        None => Ok(Arc::new(UserInfo::anonymous())),
    }
}

impl Delegating {
    async fn authenticate(&self, proofs: &Proofs<'_>) -> Result<Arc<UserInfo>, ApiError> {
        let mut problems: Vec<String> = Vec::new();
        let peer = proofs.connection.and_then(|connection| connection.peer.as_ref());
        if let Some(peer) = peer
            && let Some(user) = self.by_certificate(peer, proofs.headers, &mut problems)
        {
            return Ok(user);
        }
        if let Some(token) = bearer_token(proofs.headers) {
            match self.tokens.review(token).await {
                Ok(user) => return Ok(user),
                Err(error) => problems.push(error.to_string()),
            }
        }
        if problems.is_empty() && self.anonymous.may_ask(proofs.path) {
            return Ok(Arc::new(UserInfo::anonymous()));
        }
        if !problems.is_empty() {
            tracing::info!(
                problems = problems.join("; "),
                "Unable to authenticate the request"
            );
        }
        Err(ApiError::unauthorized())
    }

    /// The front proxy's word, or the certificate's own name.
    fn by_certificate(
        &self,
        peer: &PeerCertificates,
        headers: &HeaderMap,
        problems: &mut Vec<String>,
    ) -> Option<Arc<UserInfo>> {
        let cas = Arc::clone(&self.client_cas.borrow());
        let verdicts = peer.verify(&cas, Duration::from_millis((self.wall_clock)()));
        if let (Some(front_proxy), Some(verdict)) = (&cas.request_header, verdicts.request_header) {
            match spoken_for(front_proxy, verdict, peer, headers) {
                Ok(Some(user)) => return Some(Arc::new(user)),
                Ok(None) => {}
                Err(error) => problems.push(error.to_string()),
            }
        }
        match verdicts.client? {
            Ok(()) => match peer.user() {
                Ok(user) => return Some(Arc::clone(user)),
                // As upstream: a certificate without a name is no proof, and no lie.
                Err(CertificateError::NoCommonName) => {}
                Err(error) => problems.push(error.to_string()),
            },
            Err(error) => problems.push(error.to_string()),
        }
        None
    }
}

/// Whom the front proxy speaks for, if the peer is the front proxy.
fn spoken_for(
    front_proxy: &RequestHeaderCa,
    verdict: Result<(), CertificateError>,
    peer: &PeerCertificates,
    headers: &HeaderMap,
) -> Result<Option<UserInfo>, FrontProxyError> {
    verdict?;
    let allowed = &front_proxy.allowed_names;
    let is_allowed = allowed.is_empty() || allowed.iter().any(|name| name == peer.common_name());
    if !is_allowed {
        return Err(FrontProxyError::NotAllowed(peer.common_name().to_owned()));
    }
    Ok(front_proxy.headers.user(headers)?)
}

/// The same user in `system:authenticated`, unless it says what it belongs to.
fn member_of_all(user: Arc<UserInfo>) -> Arc<UserInfo> {
    if user.name == ANONYMOUS || user.is_in(ALL_AUTHENTICATED) || user.is_in(ALL_UNAUTHENTICATED) {
        return user;
    }
    let mut user = Arc::unwrap_or_clone(user);
    user.groups.push(ALL_AUTHENTICATED.to_owned());
    Arc::new(user)
}

fn has_bearer_token(headers: &HeaderMap) -> bool {
    let is_bearer = |value: &[u8]| {
        value
            .get(..7)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "))
            && value.len() > 7
    };
    headers
        .get_all(AUTHORIZATION)
        .iter()
        .any(|value| is_bearer(value.as_bytes().trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use http::HeaderValue;

    fn check(header: Option<(&'static str, &'static str)>, expect: Result<&str, u16>) {
        let headers: HeaderMap = header
            .into_iter()
            .map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)))
            .collect();
        let proofs = Proofs {
            loopback: None,
            connection: None,
            headers: &headers,
            path: "/version",
        };
        let user = Authenticator::standalone().authenticate(proofs).now_or_never();
        let user = user.expect("nothing to wait for").map_err(|e| e.code);
        assert_eq!(
            user.as_ref().map(|u| u.name.as_str()).map_err(|e| *e),
            expect,
            "{header:?}"
        );
    }

    #[test]
    fn who_asks_without_a_certificate() {
        check(None, Ok(ANONYMOUS));
        check(Some(("authorization", "Bearer abc")), Err(401));
        check(Some(("authorization", "bearer  abc")), Err(401));
        check(Some(("authorization", "Basic abc")), Ok(ANONYMOUS));
        check(Some(("x-remote-user", "root")), Ok(ANONYMOUS));
    }

    #[test]
    fn a_request_from_inside_is_the_servers_own() {
        let loopback = LoopbackUser(Arc::new(UserInfo::api_server()));
        let proofs = Proofs {
            loopback: Some(&loopback),
            connection: None,
            headers: &HeaderMap::new(),
            path: "/",
        };
        let user = Authenticator::standalone().authenticate(proofs).now_or_never();
        let user = user.expect("nothing to wait for").expect("a user");
        assert!(user.is_in(SYSTEM_MASTERS) && user.name == API_SERVER_USER);
    }

    #[test]
    fn nobody_may_ask_where_it_is_said() {
        let check =
            |anonymous: &Anonymous, path: &str, expect| assert_eq!(anonymous.may_ask(path), expect, "{path}");
        let probes = Anonymous::default();
        check(&probes, "/readyz", true);
        check(&probes, "/readyz/ping", false);
        check(&probes, "/apis", false);
        check(&Anonymous::Everywhere, "/apis", true);
        check(&Anonymous::Refused, "/readyz", false);
    }

    #[test]
    fn everybody_known_is_authenticated() {
        let groups = |name: &str, groups: &[&str]| {
            let user = UserInfo {
                name: name.to_owned(),
                groups: groups.iter().map(|g| (*g).to_owned()).collect(),
                ..UserInfo::default()
            };
            member_of_all(Arc::new(user)).groups.clone()
        };
        assert_eq!(groups("jane", &["a"]), ["a", ALL_AUTHENTICATED]);
        assert_eq!(groups("jane", &[ALL_UNAUTHENTICATED]), [ALL_UNAUTHENTICATED]);
        assert_eq!(groups(ANONYMOUS, &[]), [""; 0]);
    }
}
