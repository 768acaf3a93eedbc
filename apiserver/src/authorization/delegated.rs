//! kube-apiserver decides (SubjectAccessReview). Answers of both kinds are kept for a while; who cannot be asked refuses.

use super::path::AlwaysAllowPaths;
use super::{Decision, subject_access_review};
use crate::authentication::UserInfo;
use crate::metrics::auth::AuthMetrics;
use crate::request::{Query, RequestInfo};
use crate::reviews::{ReviewLimits, Reviews, code_of};
use crate::status::ApiError;
use k8s_openapi::api::authorization::v1::{
    SubjectAccessReview, SubjectAccessReviewSpec, SubjectAccessReviewStatus,
};
use kube::api::PostParams;
use kube::{Api, Client};
use std::time::Duration;
use tokio::time::Instant;

/// How long an answer counts, of either kind, as in kube-apiserver's delegation.
pub const DECISION_TTL: Duration = Duration::from_secs(10);
/// Answers that are kept, as upstream: each is a digest and a short reason.
const DECISIONS_MAX: usize = 8192;
/// Reviews at once.
const REVIEWS_MAX: usize = 256;
/// How long one review may take.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest reason that is kept and shown, in bytes.
const REASON_BYTES_MAX: usize = 4096;
/// How soon a client should come back when nobody could decide, in seconds.
const RETRY_AFTER_SECONDS: u32 = 1;

/// What authorization in a control plane needs.
pub struct DelegatedConfig {
    /// Asks kube-apiserver.
    pub client: Client,
    /// What passes without a question.
    pub always_allow_paths: AlwaysAllowPaths,
    /// Where calls are counted.
    pub metrics: AuthMetrics,
    /// Seed of everything random.
    pub seed: u64,
}

/// Asks what users may. Cheap to clone.
#[derive(Clone)]
pub(super) struct Delegated {
    client: Client,
    reviews: Reviews<Answer>,
    metrics: AuthMetrics,
}

/// What kube-apiserver said.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    decision: Result<Decision, &'static str>,
    is_kept: bool,
}

impl Delegated {
    pub(super) fn new(config: DelegatedConfig) -> Self {
        let limits = ReviewLimits {
            answers_max: DECISIONS_MAX,
            calls_max: REVIEWS_MAX,
            call_timeout: REVIEW_TIMEOUT,
        };
        Self {
            client: config.client,
            reviews: Reviews::new(limits, config.seed),
            metrics: config.metrics,
        }
    }

    pub(super) async fn decide(
        &self,
        user: &UserInfo,
        info: &RequestInfo,
        query: &Query,
    ) -> Result<Decision, ApiError> {
        let undecided = |cause: &dyn std::fmt::Display| {
            tracing::warn!(%cause, "nobody could say whether a request is allowed, so it is refused");
            ApiError::internal(cause).retry_after(RETRY_AFTER_SECONDS)
        };
        let spec = subject_access_review::spec(user, info, query);
        let is_kept = subject_access_review::is_kept(info);
        let question = serde_json::to_vec(&spec).map_err(|e| undecided(&e))?;
        let key = self.reviews.key(&question);
        let keep = |answer: &Answer| {
            if answer.is_kept {
                DECISION_TTL
            } else {
                Duration::ZERO
            }
        };
        let this = self.clone();
        let call = move || this.clone().call(spec.clone(), is_kept);
        let asked = self.reviews.ask(key, keep, call).await;
        asked
            .outcome
            .map_err(|e| undecided(&e))?
            .decision
            .map_err(|e| undecided(&e))
    }

    async fn call(self, spec: SubjectAccessReviewSpec, is_kept: bool) -> Result<Answer, kube::Error> {
        let review = SubjectAccessReview {
            spec,
            ..SubjectAccessReview::default()
        };
        let started = Instant::now();
        let outcome = Api::<SubjectAccessReview>::all(self.client)
            .create(&PostParams::default(), &review)
            .await;
        self.metrics.access_review(&code_of(&outcome), started.elapsed());
        let decision = decision(outcome?.status.unwrap_or_default());
        Ok(Answer { decision, is_kept })
    }
}

fn decision(status: SubjectAccessReviewStatus) -> Result<Decision, &'static str> {
    let mut reason = status.reason.unwrap_or_default();
    reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
    match (status.allowed, status.denied.unwrap_or_default()) {
        (true, true) => Err("webhook subject access review returned both allow and deny response"),
        (true, false) => Ok(Decision::Allow),
        (false, _) => Ok(Decision::Deny(reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_yes_is_one() {
        let check = |status: serde_json::Value, expect: Result<Decision, ()>| {
            let status: SubjectAccessReviewStatus = serde_json::from_value(status).expect("a status");
            assert_eq!(decision(status).map_err(|_| ()), expect);
        };
        let no = |reason: &str| Ok(Decision::Deny(reason.to_owned()));
        check(
            serde_json::json!({"allowed": true, "reason": "RBAC"}),
            Ok(Decision::Allow),
        );
        check(
            serde_json::json!({"allowed": false, "reason": "no rule"}),
            no("no rule"),
        );
        check(serde_json::json!({"allowed": false, "denied": true}), no(""));
        check(serde_json::json!({"allowed": true, "denied": true}), Err(()));
        assert_eq!(
            decision(SubjectAccessReviewStatus::default()),
            no("").map_err(|()| "")
        );
        let long = serde_json::json!({"allowed": false, "reason": "ö".repeat(REASON_BYTES_MAX)});
        check(long, no(&"ö".repeat(REASON_BYTES_MAX / 2)));
    }
}
