//! THE list of filters, outermost first, each with the reason for its place.

use crate::authentication::Authenticator;
use crate::authorization::Authorizer;
use crate::filters::authentication::{Authentication, authentication};
use crate::filters::authorization::{Authorization, authorization};
use crate::filters::goaway::{Goaway, goaway};
use crate::filters::impersonation::impersonation;
use crate::filters::max_in_flight::{MaxInFlight, max_in_flight};
use crate::filters::request_deadline::{RequestTimeout, request_deadline};
use crate::filters::request_metrics::{IsServed, RequestMetrics, request_metrics};
use crate::filters::{audit, error_encoding, http_log, panic_recovery, request_info, warning};
use crate::metrics::ApiMetrics;
use crate::request::context::WatchTermination;
use axum::body::Body;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::Response;
use http::Request;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tower::Service;
use tower::util::BoxCloneSyncService;

/// A service with all filters before it.
pub type HandlerChain = BoxCloneSyncService<Request<Body>, Response, Infallible>;

/// What the filters need to know.
#[derive(Clone)]
pub struct ChainConfig {
    /// How long a request may take that is not long-running.
    pub request_timeout: Duration,
    /// Reads in flight at once; 0 for no limit.
    pub requests_in_flight_max: usize,
    /// Writes in flight at once; 0 for no limit.
    pub mutating_requests_in_flight_max: usize,
    /// Where requests are counted.
    pub metrics: ApiMetrics,
    /// Which resources become labels of metrics.
    pub is_served: IsServed,
    /// When watches shall end.
    pub watch_termination: WatchTermination,
    /// Who finds out who asks.
    pub authenticator: Authenticator,
    /// Who decides what they may.
    pub authorizer: Authorizer,
    /// How often an HTTP/2 client is asked to connect anew: 0 to [`crate::filters::goaway::GOAWAY_CHANCE_MAX`].
    pub goaway_chance: f64,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for ChainConfig {
    /// kube-apiserver's limits, and standalone mode's clients.
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(60),
            requests_in_flight_max: 400,
            mutating_requests_in_flight_max: 200,
            metrics: ApiMetrics::default(),
            is_served: Arc::new(|_| false),
            watch_termination: WatchTermination::default(),
            authenticator: Authenticator::standalone(),
            authorizer: Authorizer::standalone(),
            goaway_chance: 0.0,
            seed: 0,
        }
    }
}

/// The chain: every request passes all of it, whether it came from the network or from inside.
///
/// `inner` finds in the request's extensions what [`crate::request::RequestContext`] takes out.
pub fn handler_chain<S>(config: ChainConfig, inner: S) -> HandlerChain
where
    S: Service<Request<Body>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    let ChainConfig {
        metrics,
        watch_termination,
        authenticator,
        authorizer,
        ..
    } = config;
    let timeout = RequestTimeout(config.request_timeout);
    let limits = MaxInFlight::new(
        config.requests_in_flight_max,
        config.mutating_requests_in_flight_max,
        metrics.clone(),
    )
    .masters_pass(authorizer.is_delegated());
    let goaway_chance = Goaway::new(config.goaway_chance, config.seed);
    let authenticating = Authentication {
        authenticator,
        metrics: metrics.auth().clone(),
    };
    let authorizing = Authorization {
        authorizer: authorizer.clone(),
        metrics: metrics.auth().clone(),
    };
    let counting = RequestMetrics {
        metrics,
        is_served: config.is_served,
    };
    let chain = tower::ServiceBuilder::new()
        // Catches what any of the others (or the body they return) drops.
        .layer(from_fn(panic_recovery::panic_recovery))
        // Whatever comes of the request, refusals included, may be the last on its connection.
        .layer(from_fn_with_state(goaway_chance, goaway))
        // All below decide by verb and resource.
        .layer(from_fn(request_info::request_info))
        // Before the log, which names the id; before any refusal, which carries it.
        .layer(from_fn(audit::audit))
        // Refusals are logged and counted too, so these stand before whoever may refuse.
        .layer(from_fn(http_log::http_log))
        .layer(from_fn_with_state(counting, request_metrics))
        // What is counted and logged is what is sent, so errors get their encoding inside of those.
        .layer(from_fn(error_encoding::error_encoding))
        // The time runs from here: waiting for a token review would count, as upstream.
        .layer(from_fn_with_state(timeout, request_deadline))
        // Nobody takes a place among the requests in flight without a name.
        .layer(from_fn_with_state(authenticating, authentication))
        // The name that counts below is the one that the request is carried out in.
        .layer(from_fn_with_state(authorizer, impersonation))
        // Before authorization, which may cost a call to somebody else.
        .layer(from_fn_with_state(limits, max_in_flight))
        // The last that refuses: what is below trusts the proof it makes.
        .layer(from_fn_with_state(authorizing, authorization))
        // Only what carries the request out has something to warn of.
        .layer(from_fn(warning::warning))
        .layer(axum::Extension(watch_termination));
    BoxCloneSyncService::new(chain.service(inner))
}
