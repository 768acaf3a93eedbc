//! One line per request, when its last byte is sent.

use super::observed_body::observe;
use super::{Info, earlier};
use crate::request::context::{AuditId, Connection};
use crate::status::ErrorBehind;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::header::USER_AGENT;
use tokio::time::Instant;

/// What of a user agent is logged, in bytes.
const USER_AGENT_BYTES_MAX: usize = 256;

/// Logs the request at its end: debug for what comes all the time (probes, scrapes, our own controllers), info for the
/// rest.
pub async fn http_log(request: Request, next: Next) -> Response {
    let info: Info = match earlier(&request) {
        Ok(info) => info,
        Err(response) => return *response,
    };
    let started = Instant::now();
    // Without the authority, which HTTP/2 repeats in every request.
    let uri = request.uri().path_and_query().cloned();
    let header = |bytes: &[u8]| {
        String::from_utf8_lossy(bytes.get(..USER_AGENT_BYTES_MAX).unwrap_or(bytes)).into_owned()
    };
    let user_agent = request
        .headers()
        .get(USER_AGENT)
        .map(|v| header(v.as_bytes()))
        .unwrap_or_default();
    let audit_id = request
        .extensions()
        .get::<AuditId>()
        .map(|AuditId(id)| header(id.as_bytes()))
        .unwrap_or_default();
    let connection = request.extensions().get::<Connection>();
    let is_from_inside = connection.is_none();
    let src_ip = connection.map_or_else(|| "loopback".to_owned(), |c| c.remote_addr.to_string());
    let response = next.run(request).await;
    let code = response.status().as_u16();
    let error = response
        .extensions()
        .get::<ErrorBehind>()
        .map(|ErrorBehind(error)| error.message.clone());
    observe(response, move |end| {
        let verb = info.verb.to_ascii_uppercase();
        let latency = started.elapsed();
        let error = error.unwrap_or_default();
        let uri = uri.as_ref().map_or("/", |uri| uri.as_str());
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(target: "httplog", verb, uri, ?latency, user_agent, audit_id, src_ip, resp = code, bytes = end.bytes, complete = end.complete, error, "HTTP")
            };
        }
        let is_routine = !info.is_resource_request
            && ["/healthz", "/livez", "/readyz", "/metrics"]
                .iter()
                .any(|path| info.path.starts_with(path));
        match code {
            500.. => line!(warn),
            _ if is_routine || is_from_inside => line!(debug),
            _ => line!(info),
        }
    })
}
