//! Every error as a `metav1.Status`. The one place that picks a code, a reason and a message.
//!
//! Constructors are named after those of Kubernetes' `apimachinery/pkg/api/errors`, with its messages: clients and
//! people parse them. Nothing here knows how an error came about.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, StatusCode};
use outrigger_storage as storage;
use serde::Serialize;
use std::borrow::Cow;
use std::sync::Arc;

/// What whoever runs the server has to do first.
const NO_CLUSTER: &str = "no WorkloadCluster has joined yet: kubectl apply one";

/// An API error: a `Status` with `status: Failure`, and what its HTTP response carries besides.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP status code.
    pub code: u16,
    /// The machine-readable reason: `NotFound`, `AlreadyExists`, `Conflict`, ...
    pub reason: Cow<'static, str>,
    /// For people.
    pub message: String,
    /// Which object, and why.
    pub details: Option<Box<StatusDetails>>,
    /// `metadata.continue` of an expired list: an inconsistent continuation.
    pub continue_token: Option<String>,
}

/// The error behind a response, in the response's extensions: so that the log can name it, and so that the serializer can
/// write it in another encoding than JSON.
#[derive(Debug, Clone)]
pub struct ErrorBehind(pub Arc<ApiError>);

/// `StatusDetails`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusDetails {
    /// The object's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The plural (upstream calls it kind).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The uid.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The single causes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<StatusCause>,
    /// When to try again, in seconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

/// `StatusCause`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct StatusCause {
    /// `FieldValueInvalid`, `FieldValueRequired`, ...
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: Cow<'static, str>,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The field's path.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A group and a plural, as errors name them: `applications.paas.example.com`, `namespaces`.
#[derive(Debug, Clone, Copy)]
pub struct GroupResource<'a> {
    /// The group; empty for the core group.
    pub group: &'a str,
    /// The plural.
    pub resource: &'a str,
}

impl std::fmt::Display for GroupResource<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.group {
            "" => f.write_str(self.resource),
            group => write!(f, "{}.{group}", self.resource),
        }
    }
}

impl ApiError {
    /// An error with this code, reason and message, without details.
    #[must_use]
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            message: message.into(),
            details: None,
            continue_token: None,
        }
    }

    /// The same about this object.
    #[must_use]
    pub fn about(mut self, resource: GroupResource<'_>, name: &str) -> Self {
        let details = self.details.get_or_insert_default();
        (details.group, details.kind, details.name) = (
            resource.group.to_owned(),
            resource.resource.to_owned(),
            name.to_owned(),
        );
        self
    }

    /// The same with `retryAfterSeconds` (and so the header Retry-After).
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    /// The same with causes.
    #[must_use]
    pub fn causes(mut self, causes: Vec<StatusCause>) -> Self {
        self.details.get_or_insert_default().causes = causes;
        self
    }

    /// 404.
    #[must_use]
    pub fn not_found(resource: GroupResource<'_>, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{resource} {name:?} not found")).about(resource, name)
    }

    /// 409 for a create.
    #[must_use]
    pub fn already_exists(resource: GroupResource<'_>, name: &str) -> Self {
        Self::new(
            409,
            "AlreadyExists",
            format!("{resource} {name:?} already exists"),
        )
        .about(resource, name)
    }

    /// 409 for an update or delete.
    #[must_use]
    pub fn conflict(resource: GroupResource<'_>, name: &str, cause: &str) -> Self {
        Self::new(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {resource} {name:?}: {cause}"),
        )
        .about(resource, name)
    }

    /// The conflict of optimistic locking.
    #[must_use]
    pub fn modified(resource: GroupResource<'_>, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 400.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403. `user` and the rest as in kube-apiserver's message are put together by authorization.
    #[must_use]
    pub fn forbidden(resource: GroupResource<'_>, name: &str, cause: &str) -> Self {
        let message = match name {
            _ if resource.resource.is_empty() => format!("forbidden: {cause}"),
            "" => format!("{resource} is forbidden: {cause}"),
            _ => format!("{resource} {name:?} is forbidden: {cause}"),
        };
        Self::new(403, "Forbidden", message).about(resource, name)
    }

    /// 422 with causes. `kind` is a Kind here (`Application.paas.example.com "x" is invalid: …`), as upstream.
    #[must_use]
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<StatusCause>) -> Self {
        let text = |c: &StatusCause| {
            if c.field.is_empty() {
                c.message.clone()
            } else {
                format!("{}: {}", c.field, c.message)
            }
        };
        let texts: Vec<String> = causes.iter().map(text).collect();
        let texts = match &texts[..] {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let qualified = GroupResource {
            group,
            resource: kind,
        };
        Self::new(
            422,
            "Invalid",
            format!("{qualified} {name:?} is invalid: {texts}"),
        )
        .about(qualified, name)
        .causes(causes)
    }

    /// 405.
    #[must_use]
    pub fn method_not_allowed(resource: GroupResource<'_>, action: &str) -> Self {
        let message = format!(
            "{action} is not supported on resources of kind {:?}",
            resource.to_string()
        );
        Self::new(405, "MethodNotAllowed", message).about(resource, "")
    }

    /// 415.
    #[must_use]
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let list = accepted.join(", ");
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {list}"
            ),
        )
    }

    /// 406.
    #[must_use]
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let list = accepted.join(", ");
        Self::new(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {list}"),
        )
    }

    /// 413.
    #[must_use]
    pub fn request_entity_too_large(message: impl Into<String>) -> Self {
        let message = format!("Request entity too large: {}", message.into());
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 410 Expired.
    #[must_use]
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 429.
    #[must_use]
    pub fn too_many_requests(message: impl Into<String>, seconds: u32) -> Self {
        Self::new(429, "TooManyRequests", message).retry_after(seconds)
    }

    /// 503.
    #[must_use]
    pub fn service_unavailable(message: impl Into<String>, seconds: u32) -> Self {
        Self::new(503, "ServiceUnavailable", message).retry_after(seconds)
    }

    /// 504 Timeout.
    #[must_use]
    pub fn timeout(message: impl Into<String>, seconds: u32) -> Self {
        Self::new(504, "Timeout", format!("Timeout: {}", message.into())).retry_after(seconds)
    }

    /// 500.
    #[must_use]
    pub fn internal(message: impl std::fmt::Display) -> Self {
        let cause = StatusCause {
            message: message.to_string(),
            ..StatusCause::default()
        };
        let message = format!("Internal error occurred: {message}");
        Self::new(500, "InternalError", message).causes(vec![cause])
    }

    /// An error of the store, met while working on this object (an empty name for a collection).
    #[must_use]
    pub fn from_storage(error: storage::Error, resource: GroupResource<'_>, name: &str) -> Self {
        use storage::Error as E;
        /// How soon a client should come back after a backend did not answer, in seconds.
        const RETRY_AFTER_SECONDS: u32 = 1;
        match error {
            E::NotFound { .. } => Self::not_found(resource, name),
            E::AlreadyExists(_) => Self::already_exists(resource, name),
            E::Conflict(_) => Self::modified(resource, name),
            E::Expired { .. } => Self::expired(error.to_string()),
            E::ResourceVersionTooLarge { .. } => {
                let cause = StatusCause {
                    reason: "ResourceVersionTooLarge".into(),
                    message: "Too large resource version".to_owned(),
                    field: String::new(),
                };
                Self::timeout(error.to_string(), 1).causes(vec![cause])
            }
            E::InvalidContinue(_) => Self::bad_request(error.to_string()),
            E::TooLarge { .. } => Self::request_entity_too_large(error.to_string()).about(resource, name),
            E::Unplaced(_)
            | E::Unavailable { .. }
            | E::OwnerUnknown { .. }
            | E::Foreign { .. }
            | E::Restored { .. } => {
                Self::service_unavailable(error.to_string(), RETRY_AFTER_SECONDS).about(resource, name)
            }
            E::NoMembers => Self::service_unavailable(NO_CLUSTER, RETRY_AFTER_SECONDS).about(resource, name),
            E::Full { .. } => Self::new(507, "InsufficientStorage", error.to_string()).about(resource, name),
            E::UnknownOutcome { .. } | E::Deadline(_) => {
                Self::timeout(error.to_string(), 1).about(resource, name)
            }
            E::Busy(_) => Self::too_many_requests(error.to_string(), 1),
            E::Corrupt { .. } | E::Internal(_) => Self::internal(error),
        }
    }

    /// Code, Retry-After and nosniff of the response that carries this error, whatever its encoding.
    pub fn write_head(&self, response: &mut Response) {
        *response.status_mut() = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let said = self
            .details
            .as_ref()
            .map_or(0, |details| details.retry_after_seconds);
        // Who is refused for a while is always told to come back: client-go then does, by itself.
        let seconds = match self.code {
            429 | 503 => said.max(1),
            _ => said,
        };
        if seconds > 0 {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        if self.code == 403 {
            response
                .headers_mut()
                .insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        }
    }

    /// The `Status` object.
    #[must_use]
    pub fn to_status(&self) -> serde_json::Value {
        let mut metadata = serde_json::Map::new();
        if let Some(token) = &self.continue_token {
            metadata.insert("continue".to_owned(), token.clone().into());
        }
        let mut status = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        // kube-apiserver gives no reason for errors that it did not expect.
        if self.reason.is_empty()
            && let Some(status) = status.as_object_mut()
        {
            status.remove("reason");
        }
        if let Some(details) = &self.details {
            status["details"] = serde_json::to_value(details).unwrap_or_default();
        }
        status
    }
}

impl IntoResponse for ApiError {
    /// The `Status` as JSON. Where the client wants another encoding, the serializer writes it anew.
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.to_status().to_string()));
        self.write_head(&mut response);
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.extensions_mut().insert(ErrorBehind(Arc::new(self)));
        response
    }
}

/// The answer to a path that nobody serves: text, as upstream.
#[must_use]
pub fn page_not_found() -> Response {
    plain_text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// A text for people, that no browser shall take for something else.
#[must_use]
pub fn plain_text(code: StatusCode, text: impl Into<Body>) -> Response {
    let mut response = Response::new(text.into());
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn an_error_is_a_status_with_its_headers() {
        let pods = GroupResource {
            group: "",
            resource: "pods",
        };
        let response = ApiError::service_unavailable("cluster \"b\" cannot be reached", 5)
            .about(pods, "x")
            .into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "5");
        assert_eq!(response.headers()["content-type"], "application/json");
        assert!(response.extensions().get::<ErrorBehind>().is_some());
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        let status: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(
            status,
            serde_json::json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "cluster \"b\" cannot be reached", "reason": "ServiceUnavailable", "code": 503,
                "details": {"name": "x", "kind": "pods", "retryAfterSeconds": 5},
            })
        );
    }

    #[test]
    fn messages_are_those_of_kubernetes() {
        let apps = GroupResource {
            group: "a.example",
            resource: "apps",
        };
        let nothing = GroupResource {
            group: "",
            resource: "",
        };
        let check = |error: ApiError, code: u16, message: &str| {
            assert_eq!((error.code, error.message.as_str()), (code, message));
        };
        check(
            ApiError::not_found(apps, "x"),
            404,
            "apps.a.example \"x\" not found",
        );
        check(ApiError::unauthorized(), 401, "Unauthorized");
        check(ApiError::forbidden(nothing, "", "no"), 403, "forbidden: no");
        check(
            ApiError::forbidden(apps, "", "no"),
            403,
            "apps.a.example is forbidden: no",
        );
        check(
            ApiError::forbidden(apps, "x", "no"),
            403,
            "apps.a.example \"x\" is forbidden: no",
        );
        check(ApiError::timeout("too late", 1), 504, "Timeout: too late");
        check(ApiError::internal("oh"), 500, "Internal error occurred: oh");
    }
}
