//! What the chain of filters adds to a request, and `RequestContext`, which `endpoints` takes out of it once.
//!
//! Each value is written by one file in `filters` (or by `server`, for what belongs to the connection). Below `endpoints`
//! nothing reads extensions.

use super::{Query, RequestInfo};
use crate::authentication::UserInfo;
use crate::authentication::x509::PeerCertificates;
use crate::authorization::Authorized;
use crate::metrics::ApiMetrics;
use crate::status::ApiError;
use http::{Extensions, HeaderValue};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What is known of the connection that a request came on. Requests from inside the process have none.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The peer.
    pub remote_addr: SocketAddr,
    /// The certificates that the peer has shown, if any. The handshake has verified them against the authorities that
    /// it was given; what they are worth now is said by authentication.
    pub peer: Option<Arc<PeerCertificates>>,
}

/// Who asks, for requests from inside the process. No code that reads from the network makes one.
#[derive(Debug, Clone)]
pub struct LoopbackUser(pub Arc<UserInfo>);

/// In a response: the connection it goes out on takes no more requests (HTTP/2: GOAWAY). What runs on it goes on.
#[derive(Debug, Clone, Copy)]
pub struct CloseConnection;

/// The request's `Audit-ID`: the client's, or one of ours.
#[derive(Debug, Clone)]
pub struct AuditId(pub HeaderValue);

/// When the request is over, whatever became of it. Long-running requests have none.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(pub Instant);

/// Cancelled when watches shall end (cleanly: the body ends, nothing is cut).
#[derive(Debug, Clone, Default)]
pub struct WatchTermination(pub CancellationToken);

/// Collects the texts of `Warning` headers, until the head of the response is sent.
#[derive(Debug, Clone, Default)]
pub struct WarningRecorder {
    warnings: Arc<Mutex<Warnings>>,
}

/// What all warnings of a response together may be long, in characters.
const WARNINGS_CHARS_MAX: usize = 4 * 1024;
/// What one of them may be long once all together are too long, in characters.
const WARNING_CHARS_MAX: usize = 256;

#[derive(Debug, Default)]
struct Warnings {
    texts: Vec<String>,
    chars: usize,
    truncating: bool,
}

/// All that the chain says about a request, taken out once.
#[derive(Debug, Clone)]
pub struct RequestContext {
    /// What method and path mean.
    pub info: Arc<RequestInfo>,
    /// The URL's parameters.
    pub query: Arc<Query>,
    /// Who asks.
    pub user: Arc<UserInfo>,
    /// The proof that they may.
    pub authorized: Authorized,
    /// For `Warning` headers.
    pub warnings: WarningRecorder,
    /// When the request is over; `None` for long-running ones.
    pub deadline: Option<Deadline>,
    /// When watches shall end.
    pub watch_termination: WatchTermination,
    /// Where what endpoints alone know is counted: events of watches, deprecated versions.
    pub metrics: ApiMetrics,
}

impl RequestContext {
    /// Takes the values out of a request's extensions.
    ///
    /// # Errors
    /// 500 when a filter is missing from the chain.
    pub fn take(extensions: &mut Extensions) -> Result<Self, ApiError> {
        let missing = |what: &str| {
            ApiError::internal(format!(
                "no {what} found in the request, handler chain must be wrong"
            ))
        };
        Ok(Self {
            info: extensions.remove().ok_or_else(|| missing("RequestInfo"))?,
            query: extensions.remove().ok_or_else(|| missing("Query"))?,
            user: extensions.remove().ok_or_else(|| missing("UserInfo"))?,
            authorized: extensions.remove().ok_or_else(|| missing("Authorized"))?,
            warnings: extensions.remove().unwrap_or_default(),
            deadline: extensions.remove(),
            watch_termination: extensions.remove().unwrap_or_default(),
            metrics: extensions.remove().unwrap_or_default(),
        })
    }
}

impl WarningRecorder {
    /// Adds a warning, if it is new and there is room.
    pub fn add(&self, text: impl Into<String>) {
        let text = text.into();
        if !text.is_empty() && !text.contains(char::is_control) {
            self.warnings.lock().add(text);
        }
    }

    /// The values of the `Warning` headers.
    #[must_use]
    pub fn headers(&self) -> Vec<HeaderValue> {
        let quoted = |text: &String| format!("299 - \"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let warnings = self.warnings.lock();
        warnings
            .texts
            .iter()
            .filter_map(|text| {
                HeaderValue::from_str(&quoted(text))
                    .or_else(|_| HeaderValue::from_bytes(quoted(text).as_bytes()))
                    .ok()
            })
            .collect()
    }
}

impl Warnings {
    fn add(&mut self, text: String) {
        if self.texts.contains(&text) || (self.truncating && self.chars >= WARNINGS_CHARS_MAX) {
            return;
        }
        if !self.truncating && self.chars + text.chars().count() > WARNINGS_CHARS_MAX {
            // All are kept, and all are cut, so that many long ones do not hide the last.
            self.truncating = true;
            self.texts.iter_mut().for_each(cut);
            self.chars = self.texts.iter().map(|text| text.chars().count()).sum();
        }
        let mut text = text;
        if self.truncating {
            cut(&mut text);
        }
        self.chars += text.chars().count();
        self.texts.push(text);
    }
}

fn cut(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(WARNING_CHARS_MAX) {
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(texts: &[&str]) -> Vec<String> {
        let recorder = WarningRecorder::default();
        texts.iter().for_each(|text| recorder.add(*text));
        recorder
            .headers()
            .iter()
            .map(|h| String::from_utf8_lossy(h.as_bytes()).into_owned())
            .collect()
    }

    #[test]
    fn warnings_are_quoted_and_said_once() {
        assert_eq!(
            headers(&[
                "unknown field \"spec.foo\"",
                "a\\b",
                "",
                "a\\b",
                "two\nlines",
                "größe"
            ]),
            [
                r#"299 - "unknown field \"spec.foo\"""#,
                r#"299 - "a\\b""#,
                r#"299 - "größe""#
            ]
        );
    }

    #[test]
    fn too_many_warnings_are_cut_and_then_dropped() {
        let long = |c: &str| c.repeat(3000);
        assert_eq!(headers(&[&long("a")])[0].len(), 3000 + "299 - \"\"".len());
        let both = headers(&[&long("a"), &long("b")]);
        assert_eq!(both.iter().map(String::len).collect::<Vec<_>>(), [264, 264]);
        let many: Vec<String> = (0..100).map(|i| format!("{i:0>300}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        // As upstream: warnings are dropped once the cut ones fill the limit.
        assert_eq!(headers(&many).len(), WARNINGS_CHARS_MAX / WARNING_CHARS_MAX);
    }
}
