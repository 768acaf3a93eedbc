//! The HTTP edge of each verb: parse, ask the registry once, answer.
//!
//! `serve` takes what the filters found out of the request, finds the kind, builds the `RequestScope` and hands over to
//! one file per verb. Below this module nothing knows HTTP.

mod create;
mod delete;
mod delete_collection;
mod get;
mod list;
mod patch;
mod response;
mod scope;
mod update;
mod watch;

use crate::discovery;
use crate::openapi::{OpenApi, OpenApiRequest};
use crate::registry::Registry;
use crate::request::context::RequestContext;
use crate::resources::ServedResources;
use crate::status::{ApiError, page_not_found};
use axum::body::Body;
use axum::response::IntoResponse;
use http::header::{ACCEPT, IF_NONE_MATCH, USER_AGENT};
use http::{HeaderMap, HeaderName, Request, Response, Uri};
use outrigger_storage::federated::WallClock;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scope::Endpoint;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch as published;

/// How soon a write may be tried again that meets a kind that is handed over, in seconds.
const CLOSED_RETRY_SECONDS: u32 = 2;
/// How long a watch runs whose client does not say: at least this, and up to twice as long.
const WATCH_TIMEOUT_MIN: Duration = Duration::from_secs(1800);

/// What the API is served from.
pub struct ApiConfig {
    /// What verbs mean.
    pub registry: Registry,
    /// What is served now.
    pub served: published::Receiver<Arc<ServedResources>>,
    /// Wall time, for ages in tables.
    pub wall_clock: WallClock,
    /// Seed of what is random in answers: how long watches run.
    pub seed: u64,
}

/// The API. Cheap to clone.
#[derive(Clone)]
pub struct ApiContext(Arc<Shared>);

struct Shared {
    openapi: OpenApi,
    registry: Registry,
    served: published::Receiver<Arc<ServedResources>>,
    wall_clock: WallClock,
    rng: Mutex<StdRng>,
}

/// One request, taken apart: what a verb needs besides its scope.
struct Call {
    context: RequestContext,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
}

impl ApiContext {
    /// The API over this registry.
    #[must_use]
    pub fn new(config: ApiConfig) -> Self {
        let ApiConfig {
            registry,
            served,
            wall_clock,
            seed,
        } = config;
        let rng = Mutex::new(StdRng::seed_from_u64(seed));
        Self(Arc::new(Shared {
            openapi: OpenApi::new(),
            registry,
            served,
            wall_clock,
            rng,
        }))
    }

    /// The registry.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// What is served now, and what will be.
    fn served_changes(&self) -> published::Receiver<Arc<ServedResources>> {
        self.0.served.clone()
    }

    fn served(&self) -> Arc<ServedResources> {
        self.0.served.borrow().clone()
    }

    fn now(&self) -> jiff::Timestamp {
        let milliseconds = i64::try_from((self.0.wall_clock)()).unwrap_or_default();
        jiff::Timestamp::from_millisecond(milliseconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }

    fn random_watch_timeout(&self) -> Duration {
        WATCH_TIMEOUT_MIN.mul_f64(1.0 + self.0.rng.lock().random::<f64>())
    }
}

impl Call {
    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Answers a request that has come through the filters.
pub async fn serve(api: ApiContext, request: Request<Body>) -> Response<Body> {
    let (mut parts, body) = request.into_parts();
    let context = match RequestContext::take(&mut parts.extensions) {
        Ok(context) => context,
        Err(error) => return error.into_response(),
    };
    let call = Call {
        context,
        uri: parts.uri,
        headers: parts.headers,
        body,
    };
    if !call.context.info.is_resource_request {
        return documents(&api, &call);
    }
    match scope::find(&api.served(), &call.context) {
        // The chain of filters writes errors in the encoding that the client accepts.
        scope::Found::Endpoint(endpoint) => Box::pin(dispatch(&api, endpoint, call))
            .await
            .unwrap_or_else(|error| error.into_response()),
        scope::Found::Error(error) => error.into_response(),
        scope::Found::Nothing => page_not_found(),
    }
}

async fn dispatch(api: &ApiContext, endpoint: Endpoint, call: Call) -> Result<Response<Body>, ApiError> {
    let reads = matches!(
        endpoint.verb,
        scope::Verb::Get | scope::Verb::List | scope::Verb::Watch
    );
    if endpoint.scope.definition.closed && !reads {
        return Err(closed(&endpoint));
    }
    match endpoint.verb {
        scope::Verb::Get => get::serve(api, endpoint, call).await,
        scope::Verb::List => list::serve(api, endpoint, call).await,
        scope::Verb::Watch => watch::serve(api, endpoint, call).await,
        scope::Verb::Create => create::serve(api, endpoint, call).await,
        scope::Verb::Update => update::serve(api, endpoint, call).await,
        scope::Verb::Patch => patch::serve(api, endpoint, call).await,
        scope::Verb::Delete => delete::serve(api, endpoint, call).await,
        scope::Verb::DeleteCollection => delete_collection::serve(api, endpoint, call).await,
    }
}

/// Two servers must not take writes of one kind.
fn closed(endpoint: &Endpoint) -> ApiError {
    let kind = endpoint.scope.definition.group_resource();
    let message = format!(
        "{kind} are being handed over between Outrigger and the control plane: writes wait until that is done"
    );
    ApiError::service_unavailable(message, CLOSED_RETRY_SECONDS)
}

/// Discovery and OpenAPI.
fn documents(api: &ApiContext, call: &Call) -> Response<Body> {
    let info = &call.context.info;
    let served = api.served();
    let (path, accept, if_none_match) = (
        info.path.as_str(),
        call.header(ACCEPT),
        call.header(IF_NONE_MATCH),
    );
    let query = call.uri.query();
    let request = OpenApiRequest {
        path,
        query,
        accept,
        if_none_match,
    };
    let asked = discovery::Asked {
        accept,
        user_agent: call.header(USER_AGENT),
        pretty: call.context.query.first("pretty"),
        if_none_match,
    };
    let document =
        discovery::respond(&served, path, asked).or_else(|| api.0.openapi.respond(&served, request));
    match (document, info.verb.as_str()) {
        (None, _) => page_not_found(),
        (Some(document), "get" | "head") => {
            response::compressed(call, document).unwrap_or_else(|error| error.into_response())
        }
        (Some(_), verb) => {
            let resource = crate::status::GroupResource {
                group: "",
                resource: path,
            };
            ApiError::method_not_allowed(resource, verb).into_response()
        }
    }
}
