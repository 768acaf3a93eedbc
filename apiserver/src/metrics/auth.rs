//! Metrics of authentication and authorization, under kube-apiserver's names, labels and buckets.
//!
//! Users are folded into a few names, so that nobody fills the memory with made-up ones.

use super::text::{Histogram, Kind, TextWriter};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// Values of one label that are told apart; what comes after counts as `other`.
const SERIES_MAX: usize = 64;
/// Upper bounds of how long calls to the control plane take.
const CALL_BUCKETS: [f64; 8] = [0.25, 0.5, 0.7, 1.0, 1.5, 3.0, 5.0, 10.0];
/// Upper bounds of how long a decision takes: a millisecond, doubled fourteen times.
const DECISION_BUCKETS: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384,
];
/// Upper bounds of how long the token cache takes.
const CACHE_BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Where authentication and authorization count. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct AuthMetrics {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    users: Counters,
    authentications: Timed,
    authorizations: Timed,
    token_cache: Timed,
    token_fetches: Counters,
    tokens_in_flight: AtomicI64,
    tokens_blocked: AtomicI64,
    token_reviews: Timed,
    access_reviews: Timed,
}

/// One counter for each value of a label.
#[derive(Debug, Default)]
struct Counters(RwLock<BTreeMap<String, AtomicU64>>);

/// One counter and one histogram for each value of a label.
#[derive(Debug, Default)]
struct Timed(RwLock<BTreeMap<String, Arc<(AtomicU64, Histogram)>>>);

/// Counts a wait until it is dropped.
#[derive(Debug)]
pub struct Waiting(AuthMetrics, fn(&Inner) -> &AtomicI64);

impl AuthMetrics {
    /// Somebody asked who they are: `Some` for a user, `None` for a refusal.
    pub fn authenticated(&self, user: Option<&str>, elapsed: Duration) {
        if let Some(user) = user {
            self.inner.users.count(folded(user));
        }
        let result = if user.is_some() { "success" } else { "error" };
        self.inner
            .authentications
            .observe(result, &DECISION_BUCKETS, elapsed);
    }

    /// Somebody asked what they may: `allowed`, `no-opinion` or `error`.
    pub fn authorized(&self, result: &'static str, elapsed: Duration) {
        self.inner
            .authorizations
            .observe(result, &DECISION_BUCKETS, elapsed);
    }

    /// The token cache was asked.
    pub fn token_cache(&self, hit: bool, elapsed: Duration) {
        let status = if hit { "hit" } else { "miss" };
        self.inner.token_cache.observe(status, &CACHE_BUCKETS, elapsed);
    }

    /// A review of a token is over.
    pub fn token_fetched(&self, ok: bool) {
        self.inner.token_fetches.count(if ok { "ok" } else { "error" });
    }

    /// A review of a token is under way.
    #[must_use]
    pub fn token_in_flight(&self) -> Waiting {
        Waiting::new(self, |inner| &inner.tokens_in_flight)
    }

    /// A request waits for the review of its token.
    #[must_use]
    pub fn token_blocked(&self) -> Waiting {
        Waiting::new(self, |inner| &inner.tokens_blocked)
    }

    /// A TokenReview was answered, or was not (`<error>`).
    pub fn token_review(&self, code: &str, elapsed: Duration) {
        self.inner.token_reviews.observe(code, &CALL_BUCKETS, elapsed);
    }

    /// Likewise a SubjectAccessReview.
    pub fn access_review(&self, code: &str, elapsed: Duration) {
        self.inner.access_reviews.observe(code, &CALL_BUCKETS, elapsed);
    }

    pub(super) fn render(&self, out: &mut TextWriter) {
        let inner = &self.inner;
        let name = "authenticated_user_requests";
        out.head(
            Kind::Counter,
            name,
            "Counter of authenticated requests broken out by username.",
        );
        inner.users.render(out, name, "username");
        inner.authentications.render(
            out,
            "result",
            [
                ("authentication_attempts", "Counter of authenticated attempts."),
                (
                    "authentication_duration_seconds",
                    "Authentication duration in seconds broken out by result.",
                ),
            ],
        );
        inner.authorizations.render(out, "result", [
            ("authorization_attempts_total", "Counter of authorization attempts broken down by result. It can be either 'allowed', 'denied', 'no-opinion' or 'error'."),
            ("authorization_duration_seconds", "Authorization duration in seconds broken out by result."),
        ]);
        inner.token_cache.render(
            out,
            "status",
            [
                ("authentication_token_cache_request_total", ""),
                ("authentication_token_cache_request_duration_seconds", ""),
            ],
        );
        let name = "authentication_token_cache_fetch_total";
        out.head(Kind::Counter, name, "");
        inner.token_fetches.render(out, name, "status");
        let name = "authentication_token_cache_active_fetch_count";
        out.head(Kind::Gauge, name, "");
        for (status, n) in [
            ("blocked", &inner.tokens_blocked),
            ("in_flight", &inner.tokens_in_flight),
        ] {
            out.sample(name, &[("status", status)], n.load(Ordering::Relaxed));
        }
        inner.token_reviews.render(
            out,
            "code",
            [
                (
                    "apiserver_delegated_authn_request_total",
                    "Number of HTTP requests partitioned by status code.",
                ),
                (
                    "apiserver_delegated_authn_request_duration_seconds",
                    "Request latency in seconds. Broken down by status code.",
                ),
            ],
        );
        inner.access_reviews.render(
            out,
            "code",
            [
                (
                    "apiserver_delegated_authz_request_total",
                    "Number of HTTP requests partitioned by status code.",
                ),
                (
                    "apiserver_delegated_authz_request_duration_seconds",
                    "Request latency in seconds. Broken down by status code.",
                ),
            ],
        );
    }
}

impl Waiting {
    fn new(metrics: &AuthMetrics, gauge: fn(&Inner) -> &AtomicI64) -> Self {
        gauge(&metrics.inner).fetch_add(1, Ordering::Relaxed);
        Self(metrics.clone(), gauge)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.1(&self.0.inner).fetch_sub(1, Ordering::Relaxed);
    }
}

impl Counters {
    fn count(&self, label: &str) {
        if let Some(n) = self.0.read().get(label) {
            n.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut series = self.0.write();
        let label = bounded(label, series.len());
        series.entry(label).or_default().fetch_add(1, Ordering::Relaxed);
    }

    fn render(&self, out: &mut TextWriter, name: &str, label: &str) {
        for (value, n) in self.0.read().iter() {
            out.sample(name, &[(label, value)], n.load(Ordering::Relaxed));
        }
    }
}

impl Timed {
    fn observe(&self, label: &str, bounds: &'static [f64], elapsed: Duration) {
        let known = self.0.read().get(label).map(Arc::clone);
        let series = known.unwrap_or_else(|| {
            let mut series = self.0.write();
            let label = bounded(label, series.len());
            let new = || Arc::new((AtomicU64::new(0), Histogram::new(bounds)));
            Arc::clone(series.entry(label).or_insert_with(new))
        });
        series.0.fetch_add(1, Ordering::Relaxed);
        series.1.observe(elapsed.as_secs_f64());
    }

    fn render(&self, out: &mut TextWriter, label: &str, [total, duration]: [(&str, &str); 2]) {
        let series = self.0.read();
        out.head(Kind::Counter, total.0, total.1);
        for (value, one) in series.iter() {
            out.sample(total.0, &[(label, value)], one.0.load(Ordering::Relaxed));
        }
        out.head(Kind::Histogram, duration.0, duration.1);
        for (value, one) in series.iter() {
            out.histogram(duration.0, &[(label, value)], &one.1);
        }
    }
}

fn bounded(label: &str, series: usize) -> String {
    if series < SERIES_MAX { label } else { super::OTHER }.to_owned()
}

/// A few names stay, mail addresses are one, and everybody else is another.
fn folded(user: &str) -> &str {
    match user {
        "admin" | "client" | "kube_proxy" | "kubelet" | "system:serviceaccount:kube-system:default" => user,
        user if user.contains('@') => "email_id",
        _ => super::OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_folded_and_results_counted() {
        let metrics = AuthMetrics::default();
        for user in [Some("admin"), Some("jane"), Some("joe"), Some("a@b"), None] {
            metrics.authenticated(user, Duration::from_millis(3));
        }
        metrics.token_cache(true, Duration::ZERO);
        let waiting = metrics.token_blocked();
        let text = || {
            let mut out = TextWriter::default();
            metrics.render(&mut out);
            out.into_text()
        };
        let check = |line: &str| assert!(text().lines().any(|l| l == line), "{line}\n{}", text());
        check("authenticated_user_requests{username=\"other\"} 2");
        check("authenticated_user_requests{username=\"email_id\"} 1");
        check("authentication_attempts{result=\"success\"} 4");
        check("authentication_duration_seconds_bucket{result=\"error\",le=\"0.004\"} 1");
        check("authentication_token_cache_request_total{status=\"hit\"} 1");
        check("authentication_token_cache_active_fetch_count{status=\"blocked\"} 1");
        drop(waiting);
        check("authentication_token_cache_active_fetch_count{status=\"blocked\"} 0");
    }

    #[test]
    fn labels_are_bounded() {
        let metrics = AuthMetrics::default();
        for code in 0..200 {
            metrics.access_review(&code.to_string(), Duration::ZERO);
        }
        assert_eq!(metrics.inner.access_reviews.0.read().len(), SERIES_MAX + 1);
    }
}
