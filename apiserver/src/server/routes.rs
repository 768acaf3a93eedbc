//! What is served besides the API: /version, /metrics, the health paths and the index. Everything else is handed on.

use super::healthz::HealthChecks;
use crate::metrics::{ApiMetrics, text};
use crate::request::{Query, RequestInfo};
use crate::status::ApiError;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures::future::Either;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};
use tower::Service;

/// The release of Kubernetes whose API this is.
const KUBERNETES_VERSION: (&str, &str) = ("1", "36");

/// Lists the paths that the API serves, for the index.
pub type ApiPaths = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// Answers its own paths and hands the others to `endpoints`.
#[derive(Clone)]
pub struct Routes<S> {
    own: Arc<Own>,
    endpoints: S,
}

struct Own {
    health: HealthChecks,
    metrics: ApiMetrics,
    api_paths: ApiPaths,
}

impl<S> Routes<S> {
    /// The routes before `endpoints`.
    pub fn new(health: HealthChecks, metrics: ApiMetrics, api_paths: ApiPaths, endpoints: S) -> Self {
        Self {
            own: Arc::new(Own {
                health,
                metrics,
                api_paths,
            }),
            endpoints,
        }
    }
}

impl<S> Service<Request<Body>> for Routes<S>
where
    S: Service<Request<Body>, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response, Infallible>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.endpoints.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.own.answer(&request) {
            Some(response) => Either::Left(ready(Ok(response))),
            None => Either::Right(self.endpoints.call(request)),
        }
    }
}

impl Own {
    fn answer(&self, request: &Request<Body>) -> Option<Response> {
        let info = request.extensions().get::<Arc<RequestInfo>>()?;
        if info.is_resource_request {
            return None;
        }
        let query = request.extensions().get::<Arc<Query>>()?;
        Some(match info.path.as_str() {
            "/" | "/index.html" => json_response(&json!({ "paths": self.paths() })),
            "/version" | "/version/" if info.verb == "get" => json_response(&version()),
            // Upstream asks for the method here and nowhere else.
            "/version" | "/version/" => {
                let message = "the server does not allow this method on the requested resource";
                let error = ApiError::new(405, "MethodNotAllowed", message);
                error.causes(Vec::new()).into_response()
            }
            "/metrics" => self.metrics(),
            path => self.health.answer(path, query)?,
        })
    }

    fn metrics(&self) -> Response {
        let mut response = Response::new(Body::from(self.metrics.render()));
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(text::CONTENT_TYPE));
        response
    }

    fn paths(&self) -> Vec<String> {
        let mut paths = (self.api_paths)();
        paths.extend(self.health.paths());
        paths.extend(["/metrics", "/version"].map(str::to_owned));
        paths.sort();
        paths.dedup();
        paths
    }
}

/// What /version says. kubectl compares the minor with its own and warns when they are far apart.
#[must_use]
pub fn version() -> Value {
    let (major, minor) = KUBERNETES_VERSION;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "major": major,
        "minor": minor,
        "gitVersion": format!("v{major}.{minor}.0+outrigger-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{architecture}", std::env::consts::OS),
    })
}

fn json_response(value: &Value) -> Response {
    let mut response = Response::new(Body::from(format!("{value:#}\n")));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
