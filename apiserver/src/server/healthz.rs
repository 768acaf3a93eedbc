//! /healthz, /livez and /readyz: named checks, as kube-apiserver answers them. A check is a closure that must not wait.

use super::lifecycle_signals::LifecycleSignals;
use crate::request::Query;
use crate::status::{page_not_found, plain_text};
use axum::response::Response;
use http::StatusCode;
use parking_lot::RwLock;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Which of the three paths a check belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// All checks, from before there were two kinds.
    Healthz,
    /// Whether a restart would help.
    Livez,
    /// Whether requests should come here.
    Readyz,
}

/// The checks behind the three paths. Cheap to clone.
#[derive(Clone)]
pub struct HealthChecks {
    checks: Arc<RwLock<Vec<HealthCheck>>>,
}

struct HealthCheck {
    probes: &'static [Probe],
    check: Box<dyn Fn() -> Vec<Outcome> + Send + Sync>,
}

/// A check's name, and why it fails if it does.
pub type Outcome = (String, Result<(), String>);

/// A check that fails until it was set once. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Latch(Arc<AtomicBool>);

impl Latch {
    /// From now on the check succeeds.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it was set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl HealthChecks {
    /// `ping`, and `shutdown` for readiness.
    #[must_use]
    pub fn new(signals: &LifecycleSignals) -> Self {
        let checks = Self {
            checks: Arc::default(),
        };
        checks.add("ping", &[Probe::Healthz, Probe::Livez, Probe::Readyz], || Ok(()));
        let initiated = signals.shutdown_initiated.clone();
        checks.add("shutdown", &[Probe::Readyz], move || {
            match initiated.is_signaled() {
                true => Err("process is shutting down".to_owned()),
                false => Ok(()),
            }
        });
        checks
    }

    /// Adds a check.
    pub fn add(
        &self,
        name: &str,
        probes: &'static [Probe],
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) {
        let name = name.to_owned();
        self.add_each(probes, move || vec![(name.clone(), check())]);
    }

    /// Adds checks that come and go.
    pub fn add_each(
        &self,
        probes: &'static [Probe],
        check: impl Fn() -> Vec<Outcome> + Send + Sync + 'static,
    ) {
        let check = Box::new(check);
        self.checks.write().push(HealthCheck { probes, check });
    }

    /// How the checks of a probe end now.
    fn outcomes(&self, probe: Probe) -> Vec<Outcome> {
        let checks = self.checks.read();
        let of_probe = checks.iter().filter(|check| check.probes.contains(&probe));
        of_probe.flat_map(|check| (check.check)()).collect()
    }

    /// Adds a check for health and readiness that fails until the latch it returns is set.
    #[must_use]
    pub fn add_latch(&self, name: &str) -> Latch {
        let latch = Latch::default();
        let seen = latch.clone();
        self.add(name, &[Probe::Healthz, Probe::Readyz], move || {
            match seen.is_set() {
                true => Ok(()),
                false => Err("not finished".to_owned()),
            }
        });
        latch
    }

    /// The paths of all checks, for the index.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = [Probe::Healthz, Probe::Livez, Probe::Readyz]
            .map(|probe| format!("/{}", probe.name()))
            .into();
        for check in self.checks.read().iter() {
            for (name, _) in (check.check)() {
                let path = |probe: &Probe| format!("/{}/{name}", probe.name());
                paths.extend(check.probes.iter().map(path));
            }
        }
        paths
    }

    /// Whether all checks of a probe succeed.
    #[must_use]
    pub fn succeed(&self, probe: Probe) -> bool {
        self.outcomes(probe).iter().all(|(_, outcome)| outcome.is_ok())
    }

    /// Answers a path; `None` if it is not one of ours.
    #[must_use]
    pub fn answer(&self, path: &str, query: &Query) -> Option<Response> {
        let (probe, check) = [Probe::Healthz, Probe::Livez, Probe::Readyz]
            .into_iter()
            .find_map(|probe| {
                let rest = path.strip_prefix('/')?.strip_prefix(probe.name())?;
                match rest.strip_prefix('/') {
                    None if rest.is_empty() => Some((probe, "")),
                    Some("") | None => None,
                    Some(check) => Some((probe, check)),
                }
            })?;
        Some(if check.is_empty() {
            self.all(probe, query)
        } else {
            self.one(probe, check)
        })
    }

    fn one(&self, probe: Probe, name: &str) -> Response {
        let outcomes = self.outcomes(probe);
        let Some((_, outcome)) = outcomes.into_iter().find(|(known, _)| known == name) else {
            return page_not_found();
        };
        match outcome {
            Ok(()) => plain_text(StatusCode::OK, "ok"),
            Err(cause) => plain_text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("internal server error: {cause}\n"),
            ),
        }
    }

    fn all(&self, probe: Probe, query: &Query) -> Response {
        let mut unknown: Vec<&str> = query.all("exclude").collect();
        let excluded = unknown.clone();
        let (mut lines, mut failed) = (String::new(), Vec::new());
        for (name, outcome) in self.outcomes(probe) {
            if excluded.contains(&name.as_str()) {
                unknown.retain(|n| *n != name);
                lines.push_str(&format!("[+]{name} excluded: ok\n"));
                continue;
            }
            match outcome {
                Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
                Err(cause) => {
                    // The cause is for the log: this path is public.
                    lines.push_str(&format!("[-]{name} failed: reason withheld\n"));
                    failed.push(format!("{name}: {cause}"));
                }
            }
        }
        if !unknown.is_empty() {
            let quoted: Vec<String> = unknown.iter().map(|name| format!("{name:?}")).collect();
            lines.push_str(&format!(
                "warn: some health checks cannot be excluded: no matches for {}\n",
                quoted.join(", ")
            ));
        }
        let probe = probe.name();
        if !failed.is_empty() {
            tracing::debug!(probe, failed = failed.join("; "), "health check failed");
            return plain_text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("{lines}{probe} check failed\n"),
            );
        }
        match query.has("verbose") {
            true => plain_text(StatusCode::OK, format!("{lines}{probe} check passed\n")),
            false => plain_text(StatusCode::OK, "ok"),
        }
    }
}

impl Probe {
    fn name(self) -> &'static str {
        match self {
            Self::Healthz => "healthz",
            Self::Livez => "livez",
            Self::Readyz => "readyz",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn check(checks: &HealthChecks, url: &str, code: u16, expect: &str) {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let response = checks.answer(path, &Query::parse(query)).expect("a health path");
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(
            (status, String::from_utf8_lossy(&body).as_ref()),
            (code, expect),
            "{url}"
        );
    }

    #[tokio::test]
    async fn answers_are_those_of_kube_apiserver() {
        let signals = LifecycleSignals::default();
        let checks = HealthChecks::new(&signals);
        let latch = checks.add_latch("crds");
        check(&checks, "/healthz/ping", 200, "ok").await;
        check(&checks, "/livez", 200, "ok").await;
        check(
            &checks,
            "/readyz",
            500,
            "[+]ping ok\n[+]shutdown ok\n[-]crds failed: reason withheld\nreadyz check failed\n",
        )
        .await;
        check(
            &checks,
            "/readyz/crds",
            500,
            "internal server error: not finished\n",
        )
        .await;
        check(&checks, "/readyz?exclude=crds", 200, "ok").await;
        check(
            &checks,
            "/readyz?exclude=crds&exclude=x&verbose",
            200,
            "[+]ping ok\n[+]shutdown ok\n[+]crds excluded: ok\nwarn: some health checks cannot be excluded: no matches for \"x\"\nreadyz check passed\n",
        )
        .await;
        latch.set();
        check(&checks, "/readyz", 200, "ok").await;
        signals.shutdown_initiated.signal();
        check(
            &checks,
            "/readyz",
            500,
            "[+]ping ok\n[-]shutdown failed: reason withheld\n[+]crds ok\nreadyz check failed\n",
        )
        .await;
        check(
            &checks,
            "/healthz?verbose",
            200,
            "[+]ping ok\n[+]crds ok\nhealthz check passed\n",
        )
        .await;
        check(&checks, "/livez/nothing", 404, "404 page not found\n").await;
        assert!(checks.answer("/healthzz", &Query::default()).is_none());
        checks.add_each(&[Probe::Readyz], || {
            ["a", "b"].map(|name| (name.to_owned(), Ok(()))).into()
        });
        check(&checks, "/readyz/b", 200, "ok").await;
        check(&checks, "/livez/b", 404, "404 page not found\n").await;
        assert!(checks.paths().contains(&"/readyz/a".to_owned()));
        assert!(!checks.succeed(Probe::Readyz) && checks.succeed(Probe::Livez));
    }
}
