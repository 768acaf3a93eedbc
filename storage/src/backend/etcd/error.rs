//! What an error of gRPC or of etcd means for the caller: may it have been carried out, and can another member do better?
//!
//! etcd answers with gRPC codes that are shared by very different errors (`OutOfRange` is "compacted", "future revision"
//! and "message too large"), so its texts decide. The conservative answer is always "may have been carried out": only what
//! is certain says otherwise.

use super::super::{BackendError, Revision};
use std::error::Error as StdError;
use std::fmt::Write as _;
use tonic::{Code, Status};

/// A call that failed on one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// It was certainly not carried out; another member may do it, whatever it is.
    NotSent(String),
    /// This member cannot answer now. What was sent may have been carried out, so only reads go to another member.
    Unavailable(String),
    /// The request was carried out, and its answer is larger than what may be received.
    AnswerTooLarge(String),
    /// Every member would say so. Nothing was carried out.
    Final(BackendError),
}

/// The connection was closed before the request left it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotSent(pub(super) String);

impl Failure {
    /// What a call's status means. `member` is named in the text.
    pub(super) fn from_status(status: &Status, member: &str) -> Self {
        let text = format!("{member}: {}", describe(status));
        if in_chain(status, |e| e.is::<NotSent>()) {
            return Self::NotSent(text);
        }
        // A status with a source was made on our side, of a broken connection.
        if status.source().is_some() {
            return Self::Unavailable(text);
        }
        let says = |part: &str| status.message().contains(part);
        match status.code() {
            Code::OutOfRange if says("required revision has been compacted") => {
                Self::Final(BackendError::Compacted { compact_revision: 0 })
            }
            Code::OutOfRange if says("required revision is a future revision") => {
                Self::Final(BackendError::FutureRevision)
            }
            // Our own limit of an answer, found while it was decoded.
            Code::OutOfRange if says("decoded message length too large") => Self::AnswerTooLarge(text),
            Code::ResourceExhausted if says("trying to send message larger than max") => {
                Self::AnswerTooLarge(text)
            }
            Code::ResourceExhausted if says("database space exceeded") => Self::Final(BackendError::NoSpace),
            // The request is above what the gRPC server takes.
            Code::ResourceExhausted if says("message larger than max") => Self::Final(BackendError::TooLarge),
            // Refused before it was proposed to the members.
            Code::ResourceExhausted if says("too many requests") => Self::Final(BackendError::Unavailable {
                cause: text,
                sent: false,
            }),
            Code::InvalidArgument if says("request is too large") => Self::Final(BackendError::TooLarge),
            // A member that does not vote yet refuses at the door.
            Code::FailedPrecondition if says("not supported for learner") => Self::NotSent(text),
            Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented => Self::Final(BackendError::Refused(text)),
            // `no leader`, `leader changed`, `request timed out`, `server stopped`, and whatever we do not know.
            _ => Self::Unavailable(text),
        }
    }

    /// The call did not end in time.
    pub(super) fn deadline(member: &str) -> Self {
        Self::Unavailable(format!("{member}: no answer in time"))
    }

    /// For who asked to read.
    pub(super) fn into_read_error(self) -> BackendError {
        match self {
            Self::AnswerTooLarge(_) => BackendError::TooLarge,
            other => other.into_write_error(),
        }
    }

    /// For who asked to write.
    pub(super) fn into_write_error(self) -> BackendError {
        match self {
            Self::NotSent(cause) => BackendError::Unavailable { cause, sent: false },
            Self::Unavailable(cause) | Self::AnswerTooLarge(cause) => {
                BackendError::Unavailable { cause, sent: true }
            }
            Self::Final(error) => error,
        }
    }
}

/// Why etcd ended a watch.
pub(super) fn watch_canceled(compact_revision: Revision, reason: &str, member: &str) -> BackendError {
    if compact_revision > 0 {
        return BackendError::Compacted { compact_revision };
    }
    if reason.contains("permission denied") || reason.contains("auth token") {
        return BackendError::Refused(format!("{member}: {reason}"));
    }
    let reason = if reason.is_empty() {
        "the watch was canceled"
    } else {
        reason
    };
    BackendError::Unavailable {
        cause: format!("{member}: {reason}"),
        sent: true,
    }
}

/// An error with its causes, each once: `tcp connect error: Connection refused (os error 111)`.
pub(super) fn describe_error(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            // Writing to a String does not fail.
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn describe(status: &Status) -> String {
    match status.source() {
        Some(source) => describe_error(source),
        None if status.message().is_empty() => status.code().description().to_owned(),
        None => status.message().to_owned(),
    }
}

fn in_chain(status: &Status, is: impl Fn(&(dyn StdError + 'static)) -> bool) -> bool {
    let mut error = status.source();
    while let Some(e) = error {
        if is(e) {
            return true;
        }
        error = e.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_decide_where_codes_are_shared() {
        let unavailable = |text: &str| Failure::Unavailable(format!("m: {text}"));
        let check = |code: Code, text: &str, expect: Failure| {
            assert_eq!(
                Failure::from_status(&Status::new(code, text), "m"),
                expect,
                "{text}"
            );
        };
        check(
            Code::OutOfRange,
            "etcdserver: mvcc: required revision has been compacted",
            Failure::Final(BackendError::Compacted { compact_revision: 0 }),
        );
        check(
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
            Failure::Final(BackendError::FutureRevision),
        );
        let too_large = "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes";
        check(
            Code::OutOfRange,
            too_large,
            Failure::AnswerTooLarge(format!("m: {too_large}")),
        );
        check(
            Code::ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
            Failure::Final(BackendError::NoSpace),
        );
        check(
            Code::ResourceExhausted,
            "grpc: received message larger than max (3000000 vs. 2097152)",
            Failure::Final(BackendError::TooLarge),
        );
        check(
            Code::ResourceExhausted,
            "etcdserver: too many requests",
            Failure::Final(BackendError::Unavailable {
                cause: "m: etcdserver: too many requests".into(),
                sent: false,
            }),
        );
        check(
            Code::InvalidArgument,
            "etcdserver: request is too large",
            Failure::Final(BackendError::TooLarge),
        );
        for (code, text) in [
            (
                Code::InvalidArgument,
                "etcdserver: too many operations in txn request",
            ),
            (
                Code::InvalidArgument,
                "etcdserver: duplicate key given in txn request",
            ),
            (Code::PermissionDenied, "etcdserver: permission denied"),
            (Code::Unauthenticated, "etcdserver: invalid auth token"),
        ] {
            check(
                code,
                text,
                Failure::Final(BackendError::Refused(format!("m: {text}"))),
            );
        }
        for text in [
            "etcdserver: request timed out",
            "etcdserver: request timed out, possibly due to previous leader failure",
            "etcdserver: leader changed",
            "etcdserver: no leader",
            "etcdserver: server stopped",
        ] {
            check(Code::Unavailable, text, unavailable(text));
        }
        check(
            Code::DeadlineExceeded,
            "context deadline exceeded",
            unavailable("context deadline exceeded"),
        );
        check(Code::Unknown, "what is this", unavailable("what is this"));
        check(
            Code::FailedPrecondition,
            "etcdserver: rpc not supported for learner",
            Failure::NotSent("m: etcdserver: rpc not supported for learner".into()),
        );
    }

    #[test]
    fn only_what_never_left_is_not_sent() {
        let not_sent = Status::from_error(Box::new(NotSent("connection was not ready".into())));
        assert_eq!(
            Failure::from_status(&not_sent, "m").into_write_error(),
            BackendError::Unavailable {
                cause: "m: connection was not ready".into(),
                sent: false
            }
        );
        let broken = Status::from_error(Box::new(std::io::Error::other("broken pipe")));
        assert!(matches!(
            Failure::from_status(&broken, "m").into_write_error(),
            BackendError::Unavailable { sent: true, .. }
        ));
    }

    #[test]
    fn an_answer_that_is_too_large_was_carried_out() {
        let failure = Failure::AnswerTooLarge("m: too large".into());
        assert_eq!(failure.clone().into_read_error(), BackendError::TooLarge);
        assert!(matches!(
            failure.into_write_error(),
            BackendError::Unavailable { sent: true, .. }
        ));
    }

    #[test]
    fn watches_end_for_reasons() {
        assert_eq!(
            watch_canceled(7, "etcdserver: mvcc: required revision has been compacted", "m"),
            BackendError::Compacted { compact_revision: 7 }
        );
        assert!(matches!(
            watch_canceled(0, "etcdserver: permission denied", "m"),
            BackendError::Refused(_)
        ));
        assert!(matches!(
            watch_canceled(0, "", "m"),
            BackendError::Unavailable { .. }
        ));
    }
}
