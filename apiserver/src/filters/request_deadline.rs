//! Adds `Deadline`, and ends the request there. Long-running requests have none; they end when nobody reads them.

use super::observed_body::{end_at, end_when_stalled};
use super::{Info, earlier};
use crate::request::Query;
use crate::request::context::Deadline;
use crate::status::ApiError;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long a request may take, and what `timeout` cannot exceed.
#[derive(Debug, Clone, Copy)]
pub struct RequestTimeout(pub Duration);

/// How long the body of a list may take, unless the client has set a limit: half of what history is kept for, so that the
/// snapshot is still there. Upstream holds the whole answer in memory and cuts it at the request's timeout; ours comes
/// from the clusters as the client reads it, and a large one takes its time.
const LIST_BODY: Duration = Duration::from_secs(300);

/// Gives the request a deadline.
pub async fn request_deadline(
    State(RequestTimeout(max)): State<RequestTimeout>,
    mut request: Request,
    next: Next,
) -> Response {
    let (info, query): (Info, Arc<Query>) = match (earlier(&request), earlier(&request)) {
        (Ok(info), Ok(query)) => (info, query),
        (Err(response), _) | (_, Err(response)) => return *response,
    };
    if info.is_long_running() {
        return end_when_stalled(next.run(request).await);
    }
    let timeout = match timeout(&query, max) {
        Ok(timeout) => timeout,
        Err(error) => return error.into_response(),
    };
    let deadline = Instant::now() + timeout;
    let lists = info.is_resource_request && info.verb == "list" && timeout == max;
    let body_deadline = if lists {
        Instant::now() + max.max(LIST_BODY)
    } else {
        deadline
    };
    request.extensions_mut().insert(Deadline(deadline));
    match timeout_at(deadline, next.run(request)).await {
        Ok(response) => end_at(response, body_deadline),
        Err(_) => {
            ApiError::timeout("request did not complete within the allotted timeout", 0).into_response()
        }
    }
}

fn timeout(query: &Query, max: Duration) -> Result<Duration, ApiError> {
    let Some(text) = query.first("timeout").filter(|text| !text.is_empty()) else {
        return Ok(max);
    };
    match parse_go_duration(text) {
        // Zero and less mean that the client sets no limit.
        Ok(None | Some(Duration::ZERO)) => Ok(max),
        Ok(Some(timeout)) => Ok(timeout.min(max)),
        Err(cause) => Err(ApiError::bad_request(format!(
            "invalid timeout specified in the request URL - {cause}"
        ))),
    }
}

/// Reads `1m30s`, `1.5h`, `500ms` as Go does; `None` for a negative duration.
fn parse_go_duration(text: &str) -> Result<Option<Duration>, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(Some(Duration::ZERO));
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let after_whole = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let after = match after_whole.strip_prefix('.') {
            Some(fraction) => fraction.trim_start_matches(|c: char| c.is_ascii_digit()),
            None => after_whole,
        };
        let number = rest.strip_suffix(after).unwrap_or_default();
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let unit_len = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        seconds += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "" => return Err(format!("time: missing unit in duration {text:?}")),
                unit => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
            };
        rest = after;
    }
    match Duration::try_from_secs_f64(seconds) {
        Ok(_) if negative => Ok(None),
        Ok(duration) => Ok(Some(duration)),
        Err(_) => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        let check = |query: &str, expect: Result<u64, &str>| {
            let timeout = timeout(&Query::parse(query), Duration::from_secs(60)).map(|t| t.as_millis());
            let expect = expect
                .map(u128::from)
                .map_err(|cause| format!("invalid timeout specified in the request URL - {cause}"));
            assert_eq!(timeout.map_err(|e| e.message), expect, "{query}");
        };
        check("", Ok(60_000));
        check("timeout=", Ok(60_000));
        check("timeout=32s", Ok(32_000));
        check("timeout=500ms", Ok(500));
        check("timeout=1m30s", Ok(60_000));
        check("timeout=0.5s", Ok(500));
        check("timeout=0", Ok(60_000));
        check("timeout=0s", Ok(60_000));
        check("timeout=-5s", Ok(60_000));
        check("timeout=5", Err("time: missing unit in duration \"5\""));
        check("timeout=5x", Err("time: unknown unit \"x\" in duration \"5x\""));
        check("timeout=s", Err("time: invalid duration \"s\""));
        check("timeout=1..5s", Err("time: missing unit in duration \"1..5s\""));
        check("timeout=.5s", Ok(500));
        check("timeout=.", Err("time: invalid duration \".\""));
        check(
            "timeout=999999999999999999999999999999h",
            Err("time: invalid duration \"999999999999999999999999999999h\""),
        );
    }
}
