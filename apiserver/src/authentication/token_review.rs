//! Bearer tokens: kube-apiserver says whose one is (TokenReview). Answers of both kinds are kept for a while; of a token
//! only a salted digest is.

use super::UserInfo;
use crate::metrics::auth::AuthMetrics;
use crate::reviews::{ReviewError, ReviewLimits, Reviews, code_of};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long an answer counts, as in kube-apiserver's delegation.
pub const TOKEN_TTL: Duration = Duration::from_secs(10);
/// Tokens that are remembered: a user with its groups is about a kilobyte.
const TOKENS_MAX: usize = 4096;
/// Reviews at once. Who guesses tokens must not keep kube-apiserver busy.
const REVIEWS_MAX: usize = 64;
/// How long one review may take.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a token proves nothing. The client must act, or who runs the control plane.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nobody's.
    #[error("invalid bearer token")]
    Invalid,
    /// Nobody can say whose it is.
    #[error("a token cannot be reviewed: {0}")]
    NoReview(#[from] ReviewError),
}

/// Asks whose tokens are. Cheap to clone.
#[derive(Clone)]
pub struct TokenReviewer {
    client: Client,
    /// `None`: nobody's.
    reviews: Reviews<Option<Arc<UserInfo>>>,
    metrics: AuthMetrics,
}

impl TokenReviewer {
    /// Asks through `client`.
    #[must_use]
    pub fn new(client: Client, metrics: AuthMetrics, seed: u64) -> Self {
        let limits = ReviewLimits {
            answers_max: TOKENS_MAX,
            calls_max: REVIEWS_MAX,
            call_timeout: REVIEW_TIMEOUT,
        };
        Self {
            client,
            reviews: Reviews::new(limits, seed),
            metrics,
        }
    }

    /// Whose a token is.
    ///
    /// # Errors
    /// When it is nobody's, or nobody can say.
    pub async fn review(&self, token: &str) -> Result<Arc<UserInfo>, TokenError> {
        let started = Instant::now();
        let key = self.reviews.key(token.as_bytes());
        let blocked = self.metrics.token_blocked();
        let (token, this) = (token.to_owned(), self.clone());
        let asked = self
            .reviews
            .ask(key, |_| TOKEN_TTL, move || this.clone().call(token.clone()))
            .await;
        drop(blocked);
        self.metrics.token_cache(asked.hit, started.elapsed());
        asked.outcome?.ok_or(TokenError::Invalid)
    }

    async fn call(self, token: String) -> Result<Option<Arc<UserInfo>>, kube::Error> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token,
                audiences: None,
            },
            ..TokenReview::default()
        };
        let _in_flight = self.metrics.token_in_flight();
        let started = Instant::now();
        let outcome = Api::<TokenReview>::all(self.client)
            .create(&PostParams::default(), &review)
            .await;
        self.metrics.token_review(&code_of(&outcome), started.elapsed());
        self.metrics.token_fetched(outcome.is_ok());
        Ok(user(outcome?.status.unwrap_or_default()))
    }
}

/// Whom a review names; nobody, unless it says that it is sure and of whom.
fn user(status: TokenReviewStatus) -> Option<Arc<UserInfo>> {
    let user = status.user.filter(|_| status.authenticated == Some(true))?;
    let name = user.username.filter(|name| !name.is_empty())?;
    Some(Arc::new(UserInfo {
        name,
        uid: user.uid.unwrap_or_default(),
        groups: user.groups.unwrap_or_default(),
        extra: user.extra.unwrap_or_default(),
    }))
}

/// The bearer token of a request, read as upstream: one space, then the token.
#[must_use]
pub fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?.trim();
    let mut parts = value.splitn(3, ' ');
    let (scheme, token) = (parts.next()?, parts.next()?);
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn tokens_are_found_as_upstream_finds_them() {
        for (value, expect) in [
            ("Bearer abc", Some("abc")),
            ("bearer abc", Some("abc")),
            (" Bearer abc ", Some("abc")),
            ("Bearer abc def", Some("abc")),
            ("Bearer  abc", None),
            ("Bearer ", None),
            ("Bearer", None),
            ("Basic abc", None),
            ("", None),
        ] {
            let headers = [(AUTHORIZATION, HeaderValue::from_static(value))]
                .into_iter()
                .collect();
            assert_eq!(bearer_token(&headers), expect, "{value:?}");
        }
        assert_eq!(bearer_token(&HeaderMap::new()), None);
    }

    #[test]
    fn a_review_names_somebody_only_when_it_is_sure() {
        let check = |status: serde_json::Value, expect: Option<&str>| {
            let status: TokenReviewStatus = serde_json::from_value(status).expect("a status");
            assert_eq!(user(status).map(|user| user.name.clone()).as_deref(), expect);
        };
        check(
            serde_json::json!({"authenticated": true, "user": {"username": "jane"}}),
            Some("jane"),
        );
        check(
            serde_json::json!({"authenticated": false, "user": {"username": "jane"}}),
            None,
        );
        check(serde_json::json!({"user": {"username": "jane"}}), None);
        check(serde_json::json!({"authenticated": true}), None);
        check(
            serde_json::json!({"authenticated": true, "user": {"username": ""}}),
            None,
        );
    }
}
