//! `Backend` on a real etcd: its own gRPC stubs, its own failover between the members.
//!
//! A read goes to the member that answered last and, when that one does not answer, to the others. A write is sent once:
//! another member gets it only if it is certain that nothing was sent. Everything lies under one prefix, which callers do
//! not see. It knows nothing of epochs, owners or objects.

mod connect;
mod error;
#[cfg(test)]
mod fake_server;
mod keyspace;
mod members;
mod proto;
mod watch;

use super::{
    Backend, BackendError, BackendStatus, Compare, Condition, Op, OpResponse, Range, Revision, Txn,
    TxnResponse, WatchRequest, WatchStream,
};
use bytes::Bytes;
use connect::{ClusterId, Connection, Endpoint, Member, Purpose, Timing};
use error::Failure;
use futures::future::BoxFuture;
use keyspace::Keyspace;
use members::{Members, detached};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use watch::{Manner, Watch};

/// Where our keys live when nothing else is said.
pub const DEFAULT_PREFIX: &str = "/outrigger/";

/// The settings of an [`EtcdBackend`].
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdOptions {
    /// The members' URLs, `http://host:port` or `https://host:port`. They must belong to one etcd.
    pub endpoints: Vec<String>,
    /// The CA that signed the members' certificates, in PEM; needed for https.
    pub ca_pem: Option<Vec<u8>>,
    /// Our client certificate, in PEM, with its chain.
    pub cert_pem: Option<Vec<u8>>,
    /// Its key, in PEM.
    pub key_pem: Option<Vec<u8>>,
    /// Put before every key.
    pub prefix: String,
    /// How long one member may take for one answer.
    pub request_timeout: Duration,
    /// How long TCP, TLS and HTTP/2 may take until a connection stands.
    pub connect_timeout: Duration,
    /// A connection with requests on it that is silent for this long is asked for a sign of life. etcd wants at least 5 s.
    pub keepalive_interval: Duration,
    /// How long the sign of life may take.
    pub keepalive_timeout: Duration,
    /// How often a watch asks how far it has come. One that hears nothing after five questions is over.
    pub progress_interval: Duration,
}

/// Settings that cannot be used. Whoever wrote them must act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EtcdOptionsError {
    /// There is no endpoint.
    #[error("no etcd endpoint is given")]
    NoEndpoint,
    /// An endpoint that cannot be used.
    #[error("etcd endpoint {url:?} {cause}")]
    Endpoint {
        /// As given.
        url: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A certificate without its key, or the other way round.
    #[error("an etcd client certificate needs its key, and a key its certificate")]
    HalfIdentity,
    /// Certificates or a key that cannot be used.
    #[error("etcd client TLS: {0}")]
    Tls(String),
    /// Our keys lie under another prefix.
    #[error("the prefix of our keys in an etcd cannot change while the etcd is in use")]
    PrefixChanged,
}

/// One etcd.
pub struct EtcdBackend {
    members: Members,
    keyspace: Keyspace,
    timing: Timing,
    cluster: ClusterId,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            ca_pem: None,
            cert_pem: None,
            key_pem: None,
            prefix: DEFAULT_PREFIX.to_owned(),
            request_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(3),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(5),
            progress_interval: Duration::from_secs(3),
        }
    }
}

impl fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key.
        f.debug_struct("EtcdOptions")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .finish()
    }
}

impl EtcdBackend {
    /// A client of these endpoints. Nothing is connected before the first request.
    ///
    /// # Errors
    /// When the settings cannot be used.
    pub fn new(options: &EtcdOptions) -> Result<Self, EtcdOptionsError> {
        let endpoints = endpoints(options)?;
        let timing = Timing {
            connect: options.connect_timeout,
            request: options.request_timeout,
            keepalive_interval: options.keepalive_interval,
            keepalive_timeout: options.keepalive_timeout,
            progress: options.progress_interval,
        };
        let cluster = ClusterId::default();
        let member = |endpoint| Arc::new(Member::new(endpoint, timing, Arc::clone(&cluster)));
        let members = endpoints.into_iter().map(member).collect();
        Ok(Self {
            members: Members::new(members, timing.silent()),
            keyspace: Keyspace::new(&options.prefix),
            timing,
            cluster,
        })
    }

    /// Other endpoints, another client certificate, another CA: they count for every connection that is made from now on.
    /// Connections that stand go on, with what runs on them, also those to members that are no endpoint any more; only
    /// [`EtcdBackend::renew`] replaces them. The times stay as they were.
    ///
    /// # Errors
    /// When the settings cannot be used. Then nothing has changed.
    pub fn reconfigure(&self, options: &EtcdOptions) -> Result<(), EtcdOptionsError> {
        if Keyspace::new(&options.prefix) != self.keyspace {
            return Err(EtcdOptionsError::PrefixChanged);
        }
        let known = self.members.all();
        let member = |endpoint: Endpoint| {
            let name = endpoint.to_string();
            match known.iter().find(|member| member.name() == name) {
                Some(member) => {
                    member.set_endpoint(endpoint);
                    Arc::clone(member)
                }
                None => Arc::new(Member::new(endpoint, self.timing, Arc::clone(&self.cluster))),
            }
        };
        let members = endpoints(options)?.into_iter().map(member).collect();
        self.members.replace(members);
        Ok(())
    }

    /// Connects anew with the newest settings, so that a certificate that is refused is noticed now and not when the next
    /// connection breaks. New requests and watches go to the new connections; what runs on the old ones goes on there
    /// until it ends. A member that cannot be connected anew keeps the connections that it has.
    ///
    /// # Errors
    /// When no member accepts: the old connections are still used.
    pub async fn renew(&self) -> Result<(), BackendError> {
        self.members.renew().await.map_err(Failure::into_read_error)
    }

    async fn call<Q, A>(&self, path: &'static str, request: Q, repeat: bool) -> Result<A, Failure>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let deadline = self.timing.request;
        let ask = |connection: Connection, member: String| {
            let request = request.clone();
            async move {
                let call = async move { connection.unary(path, request, deadline, &member).await };
                if repeat { detached(call).await } else { call.await }
            }
        };
        self.members.ask(Purpose::Requests, repeat, ask).await
    }

    async fn range(&self, range: &Range) -> Result<TxnResponse, BackendError> {
        let answer: proto::RangeResponse = self
            .call(proto::KV_RANGE, self.range_request(range), true)
            .await
            .map_err(Failure::into_read_error)?;
        let revision = keyspace::revision(answer.header).map_err(BackendError::Corrupt)?;
        let range = self
            .keyspace
            .range_response(answer)
            .map_err(BackendError::Corrupt)?;
        Ok(TxnResponse {
            revision,
            succeeded: true,
            responses: vec![OpResponse::Get(range)],
        })
    }

    async fn transaction(&self, txn: Txn) -> Result<TxnResponse, BackendError> {
        let reads = txn.is_read_only();
        // etcd answers a transaction without any step from the member's own, perhaps old, state. A read makes it ask.
        let padded = txn.success.is_empty() && txn.failure.is_empty();
        let mut request = self.txn_request(txn);
        if padded {
            let read = Range {
                count_only: true,
                ..Range::key(Bytes::new())
            };
            let read = proto::RequestOp {
                request: Some(proto::Request::Range(self.range_request(&read))),
            };
            request.success.push(read.clone());
            request.failure.push(read);
        }
        let into_error = if reads {
            Failure::into_read_error
        } else {
            Failure::into_write_error
        };
        let answer: proto::TxnResponse = self
            .call(proto::KV_TXN, request, reads)
            .await
            .map_err(into_error)?;
        let mut response = self.txn_response(answer).map_err(|cause| match reads {
            true => BackendError::Corrupt(cause),
            false => BackendError::Unavailable { cause, sent: true },
        })?;
        if padded {
            response.responses.clear();
        }
        Ok(response)
    }

    fn range_request(&self, range: &Range) -> proto::RangeRequest {
        let (key, range_end) = self.keyspace.range(&range.start, range.end.as_deref());
        proto::RangeRequest {
            key,
            range_end,
            limit: i64::try_from(range.limit).unwrap_or(i64::MAX),
            revision: i64::try_from(range.revision).unwrap_or(i64::MAX),
            keys_only: range.keys_only,
            count_only: range.count_only,
        }
    }

    fn txn_request(&self, txn: Txn) -> proto::TxnRequest {
        let ops = |ops: Vec<Op>| ops.into_iter().map(|op| self.request_op(op)).collect();
        proto::TxnRequest {
            compare: txn.compare.iter().map(|compare| self.compare(compare)).collect(),
            success: ops(txn.success),
            failure: ops(txn.failure),
        }
    }

    fn request_op(&self, op: Op) -> proto::RequestOp {
        let request = match op {
            Op::Put { key, value } => proto::Request::Put(proto::PutRequest {
                key: self.keyspace.key(&key),
                value,
            }),
            Op::Delete { key } => proto::Request::DeleteRange(proto::DeleteRangeRequest {
                key: self.keyspace.key(&key),
            }),
            Op::Get(range) => proto::Request::Range(self.range_request(&range)),
        };
        proto::RequestOp {
            request: Some(request),
        }
    }

    fn compare(&self, compare: &Compare) -> proto::Compare {
        use proto::{CompareResult, CompareTarget, TargetUnion};
        let (result, target, value) = match &compare.condition {
            Condition::ModRevision(revision) => (
                CompareResult::Equal,
                CompareTarget::Mod,
                // A revision that etcd cannot have equals none that it has.
                TargetUnion::ModRevision(i64::try_from(*revision).unwrap_or(i64::MAX)),
            ),
            Condition::ValueEquals(value) => (
                CompareResult::Equal,
                CompareTarget::Value,
                TargetUnion::Value(value.clone()),
            ),
            Condition::ValueLess(value) => (
                CompareResult::Less,
                CompareTarget::Value,
                TargetUnion::Value(value.clone()),
            ),
        };
        proto::Compare {
            result: result.into(),
            target: target.into(),
            key: self.keyspace.key(&compare.key),
            target_union: Some(value),
        }
    }

    fn txn_response(&self, answer: proto::TxnResponse) -> Result<TxnResponse, String> {
        let responses = answer.responses.into_iter().map(|op| match op.response {
            Some(proto::Response::Range(range)) => Ok(OpResponse::Get(self.keyspace.range_response(range)?)),
            Some(proto::Response::Put(_)) => Ok(OpResponse::Put),
            Some(proto::Response::DeleteRange(delete)) => {
                Ok(OpResponse::Delete(keyspace::number(delete.deleted)?))
            }
            None => Err("a step of a transaction without an answer".to_owned()),
        });
        Ok(TxnResponse {
            revision: keyspace::revision(answer.header)?,
            succeeded: answer.succeeded,
            responses: responses.collect::<Result<_, _>>()?,
        })
    }

    /// Whether the history from this revision on is no longer whole.
    async fn is_compacted(&self, start_revision: Revision) -> Result<bool, BackendError> {
        // etcd itself lets a watch begin at the compact revision, but not a read below it.
        let Some(below) = start_revision.checked_sub(1).filter(|below| *below > 0) else {
            return Ok(false);
        };
        let read = Range {
            count_only: true,
            ..Range::key(Bytes::new()).at(below)
        };
        match self.range(&read).await {
            Ok(_) | Err(BackendError::FutureRevision) => Ok(false),
            Err(BackendError::Compacted { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    async fn open_watch(&self, mut request: WatchRequest) -> Result<WatchStream, BackendError> {
        let from_now = request.start_revision == 0;
        if from_now {
            // The member's own "now" may be old; the cluster's is not.
            let read = Range {
                count_only: true,
                ..Range::key(Bytes::new())
            };
            request.start_revision = self.range(&read).await?.revision + 1;
        }
        let deadline = self.timing.request;
        let manner = Manner {
            progress_every: self.timing.progress,
            tells_start: from_now,
        };
        let open = |connection: Connection, member: String| {
            let request = &request;
            async move {
                let open = Watch::open(&connection, &self.keyspace, request, manner, &member);
                timeout(deadline, open)
                    .await
                    .unwrap_or_else(|_| Err(Failure::deadline(&member)))
            }
        };
        let purpose = match request.until {
            Some(_) => Purpose::History,
            None => Purpose::Watches,
        };
        let open = self.members.ask(purpose, true, open);
        let (watch, compacted) = tokio::join!(open, self.is_compacted(request.start_revision));
        let watch = watch.map_err(Failure::into_read_error)?;
        match compacted? && !from_now {
            true => Err(watch.compacted(request.start_revision).await),
            false => Ok(watch.into_stream()),
        }
    }
}

/// The endpoints, with the TLS that they need.
fn endpoints(options: &EtcdOptions) -> Result<Vec<Endpoint>, EtcdOptionsError> {
    if options.endpoints.is_empty() {
        return Err(EtcdOptionsError::NoEndpoint);
    }
    let identity = match (&options.cert_pem, &options.key_pem) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some((certificate.as_slice(), key.as_slice())),
        _ => return Err(EtcdOptionsError::HalfIdentity),
    };
    let tls = options
        .ca_pem
        .as_ref()
        .map(|ca| connect::tls_connector(ca, identity))
        .transpose();
    let tls = tls.map_err(EtcdOptionsError::Tls)?;
    let endpoints = options.endpoints.iter().map(|url| {
        Endpoint::parse(url, tls.as_ref()).map_err(|cause| EtcdOptionsError::Endpoint {
            url: url.clone(),
            cause,
        })
    });
    endpoints.collect()
}

impl Backend for EtcdBackend {
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, BackendError>> {
        Box::pin(async move {
            match (&txn.compare[..], &txn.success[..]) {
                ([], [Op::Get(range)]) => self.range(range).await,
                _ => self.transaction(txn).await,
            }
        })
    }

    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, BackendError>> {
        Box::pin(self.open_watch(request))
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(async move {
            let revision = i64::try_from(revision).map_err(|_| BackendError::FutureRevision)?;
            let request = proto::CompactionRequest { revision };
            let answer: Result<proto::CompactionResponse, _> =
                self.call(proto::KV_COMPACT, request, true).await;
            match answer.map_err(Failure::into_read_error) {
                Ok(_) | Err(BackendError::Compacted { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    fn status(&self) -> BoxFuture<'_, Result<BackendStatus, BackendError>> {
        Box::pin(async move {
            let status: proto::StatusResponse = self
                .call(proto::MAINTENANCE_STATUS, proto::StatusRequest {}, true)
                .await
                .map_err(Failure::into_read_error)?;
            // The status tells the member's own revision; a linearizable read tells the cluster's.
            let read = Range {
                count_only: true,
                ..Range::key(Bytes::new())
            };
            let revision = self.range(&read).await?.revision;
            let size = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
            Ok(BackendStatus {
                version: status.version,
                revision,
                db_size: size(status.db_size),
                db_size_in_use: size(status.db_size_in_use),
                quota: size(status.db_size_quota),
            })
        })
    }

    fn suspect_member(&self) {
        self.members.suspect_watched();
    }
}

impl fmt::Debug for EtcdBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EtcdBackend").field(&self.members).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(endpoints: &[&str]) -> EtcdOptions {
        EtcdOptions {
            endpoints: endpoints.iter().map(|url| (*url).to_owned()).collect(),
            ..EtcdOptions::default()
        }
    }

    #[test]
    fn settings_that_cannot_be_used_are_told() {
        let check = |options: EtcdOptions, expect: &str| {
            let error = EtcdBackend::new(&options)
                .map(|_| ())
                .expect_err(expect)
                .to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(options(&[]), "no etcd endpoint");
        check(options(&["http://a:1", "b:2"]), "\"b:2\"");
        check(options(&["https://a:1"]), "needs a CA");
        check(
            EtcdOptions {
                cert_pem: Some(Vec::new()),
                ..options(&["http://a:1"])
            },
            "needs its key",
        );
        check(
            EtcdOptions {
                ca_pem: Some(b"x".to_vec()),
                ..options(&["https://a:1"])
            },
            "no CA certificate",
        );
    }
}
