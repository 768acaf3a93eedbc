//! A backend that is measured: how long each request took, under which operation and for which type, and how it ended.
//!
//! It changes nothing of what is asked or answered. The type is read off the first key (`objects/<group>/<resource>/…` is
//! the resource, everything else its first part).

use super::{
    Backend, BackendError, BackendStatus, Op, Revision, Txn, TxnResponse, WatchRequest, WatchStream,
};
use crate::key::OBJECTS;
use crate::metrics::BackendMetrics;
use futures::StreamExt;
use futures::future::BoxFuture;
use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use tokio::time::Instant;

/// A measured backend around another.
pub struct Instrumented<B: ?Sized> {
    inner: Arc<B>,
    metrics: Arc<BackendMetrics>,
}

impl<B: Backend + ?Sized> Instrumented<B> {
    /// `inner`, measured in `metrics`.
    #[must_use]
    pub fn new(inner: Arc<B>, metrics: Arc<BackendMetrics>) -> Self {
        Self { inner, metrics }
    }

    async fn measured<T>(
        &self,
        operation: &'static str,
        kind: String,
        request: impl Future<Output = Result<T, BackendError>> + Send,
    ) -> Result<T, BackendError> {
        let mut running = Running {
            metrics: &self.metrics,
            operation,
            kind,
            start: Instant::now(),
            ok: false,
        };
        let answer = request.await;
        // A compare that fails or a key that is not there is an answer; so is "compacted".
        running.ok = !matches!(
            answer,
            Err(BackendError::Unavailable { .. }
                | BackendError::NoSpace
                | BackendError::Refused(_)
                | BackendError::OtherStore(_)
                | BackendError::Corrupt(_))
        );
        if let Err(error) = &answer {
            let took_ms = running.start.elapsed().as_millis();
            tracing::debug!(operation, kind = running.kind, took_ms, %error, "a backend request failed");
        }
        answer
    }
}

/// A request that is being measured. Given up (a deadline, a caller that is gone), it counts as failed: the slowest requests
/// are those that end so.
struct Running<'a> {
    metrics: &'a BackendMetrics,
    operation: &'static str,
    kind: String,
    start: Instant,
    ok: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let seconds = self.start.elapsed().as_secs_f64();
        self.metrics
            .observe_request(self.operation, &self.kind, seconds, self.ok);
    }
}

impl<B: Backend + ?Sized> Backend for Instrumented<B> {
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, BackendError>> {
        let (operation, kind) = (operation_of(&txn), kind_of_txn(&txn));
        Box::pin(self.measured(operation, kind, async move { self.inner.txn(txn).await }))
    }

    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, BackendError>> {
        let kind = kind_of(&request.start).into_owned();
        let open = self.measured("watch", kind, async move { self.inner.watch(request).await });
        Box::pin(async move {
            let stream = open.await?;
            self.metrics.watch_opened();
            let metrics = Arc::clone(&self.metrics);
            let stream = stream.inspect(move |item| match item {
                Ok(batch) => metrics.watch_events(batch.events.len()),
                Err(_) => metrics.watch_ended(),
            });
            Ok(stream.boxed())
        })
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(self.measured("compact", String::new(), async move {
            self.inner.compact(revision).await
        }))
    }

    fn status(&self) -> BoxFuture<'_, Result<BackendStatus, BackendError>> {
        Box::pin(async move {
            let status = self
                .measured("status", String::new(), self.inner.status())
                .await?;
            self.metrics
                .set_database(status.db_size, status.db_size_in_use, status.quota);
            Ok(status)
        })
    }

    fn suspect_member(&self) {
        tracing::warn!(backend = ?self.inner, "an acknowledged write does not appear in the watch; trying another member");
        self.inner.suspect_member();
    }
}

impl<B: fmt::Debug + ?Sized> fmt::Debug for Instrumented<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Instrumented").field(&&*self.inner).finish()
    }
}

/// kube-apiserver's word for what a transaction does.
fn operation_of(txn: &Txn) -> &'static str {
    let ops = || txn.success.iter().chain(&txn.failure);
    if ops().any(|op| matches!(op, Op::Put { .. })) {
        let creates = txn.compare.iter().any(|compare| {
            compare.condition == super::Condition::ModRevision(0)
                && txn
                    .success
                    .iter()
                    .any(|op| matches!(op, Op::Put { key, .. } if *key == compare.key))
        });
        return if creates { "create" } else { "update" };
    }
    if ops().any(|op| matches!(op, Op::Delete { .. })) {
        return "delete";
    }
    let many = ops().filter(|op| matches!(op, Op::Get(_))).count() > 1;
    if many || ops().any(|op| matches!(op, Op::Get(range) if range.end.is_some())) {
        return "list";
    }
    "get"
}

/// The type of the first key that a transaction writes or, if it writes none, reads.
fn kind_of_txn(txn: &Txn) -> String {
    let ops = || txn.success.iter().chain(&txn.failure);
    let written = ops().find_map(|op| match op {
        Op::Put { key, .. } | Op::Delete { key } => Some(key),
        Op::Get(_) => None,
    });
    // Transactions read the clock and owners beside what they are about.
    let read = || {
        ops().filter_map(|op| {
            if let Op::Get(range) = op {
                Some(&range.start)
            } else {
                None
            }
        })
    };
    let key = written
        .or_else(|| read().find(|key| key.starts_with(OBJECTS)))
        .or_else(|| read().next());
    key.map(|key| kind_of(key).into_owned()).unwrap_or_default()
}

/// `applications.paas.example.com` of an object's key, `owner` of an owner's.
fn kind_of(key: &[u8]) -> Cow<'_, str> {
    let text = |bytes| String::from_utf8_lossy(bytes);
    let Some(rest) = key.strip_prefix(OBJECTS) else {
        return text(key.split(|b| *b == b'/').next().unwrap_or_default());
    };
    let mut parts = rest.split(|b| *b == b'/');
    match (parts.next().unwrap_or_default(), parts.next().unwrap_or_default()) {
        (_, []) => text(&OBJECTS[..OBJECTS.len() - 1]),
        ([], resource) => text(resource),
        (group, resource) => Cow::Owned(format!("{}.{}", text(resource), text(group))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::embedded::EmbeddedBackend;
    use crate::backend::{Compare, Range};
    use crate::key::{Key, Resource};
    use crate::metrics::StoreMetrics;

    #[tokio::test]
    async fn what_is_given_up_is_counted_too() {
        let metrics = StoreMetrics::new();
        let inner = Arc::new(EmbeddedBackend::in_memory());
        let backend = Instrumented::new(inner, metrics.backend("a"));
        assert!(backend.txn(Txn::read([Range::key("clock")])).await.is_ok());
        backend.status().await.expect("answers");
        let given_up = backend.measured("get", "clock".to_owned(), std::future::pending::<Result<(), _>>());
        assert!(futures::poll!(Box::pin(given_up)).is_pending());
        let snapshot = metrics.snapshot().remove(0);
        let seen: Vec<_> = snapshot
            .requests
            .iter()
            .map(|r| (r.operation, &*r.kind, r.seconds.count, r.errors))
            .collect();
        assert_eq!(seen, [("get", "clock", 2, 1), ("status", "", 1, 0)]);
        assert!(snapshot.db_size.is_some());
    }

    #[test]
    fn requests_are_told_apart() {
        let key = Key::new(Resource::new("paas.example.com", "applications"), "ns", "web").encode();
        let put = || Op::Put {
            key: key.clone(),
            value: "v".into(),
        };
        let check = |txn: Txn, expect: (&str, &str)| {
            assert_eq!((operation_of(&txn), kind_of_txn(&txn).as_str()), expect);
        };
        let apps = "applications.paas.example.com";
        check(
            Txn {
                success: vec![put()],
                ..Txn::default()
            },
            ("update", apps),
        );
        let create = Txn {
            compare: vec![Compare::absent(key.clone())],
            success: vec![put()],
            ..Txn::default()
        };
        check(create, ("create", apps));
        check(
            Txn {
                success: vec![Op::Delete { key: key.clone() }],
                ..Txn::default()
            },
            ("delete", apps),
        );
        check(
            Txn::read([Range::key("clock"), Range::key(key.clone())]),
            ("list", apps),
        );
        check(Txn::read([Range::key(key.clone())]), ("get", apps));
        check(Txn::read([Range::between("owner/", "owner0")]), ("list", "owner"));
        check(Txn::read([Range::key("clock")]), ("get", "clock"));
        check(Txn::default(), ("get", ""));
        let core = Key::new(Resource::new("", "namespaces"), "", "x").encode();
        check(Txn::read([Range::key(core)]), ("get", "namespaces"));
        check(
            Txn::read([Range::between("objects/", "objects0")]),
            ("list", "objects"),
        );
    }
}
