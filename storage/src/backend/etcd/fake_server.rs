//! A member that says what a test wants, for answers that a real etcd gives only on a bad day; and those tests.
//!
//! It speaks gRPC's framing over HTTP/2 and nothing else: what to answer is a function of the path.

use super::proto::{self, KV_RANGE, KV_TXN, MAINTENANCE_STATUS, WATCH_WATCH};
use super::{EtcdBackend, EtcdOptions};
use crate::backend::{Backend, BackendError, Op, Range, Txn, WatchRequest};
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use prost::Message;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// What is answered to one call.
enum Answer {
    /// One message, and the end.
    One(Vec<u8>),
    /// Messages, then silence.
    Silence(Vec<Vec<u8>>),
    /// A status of gRPC.
    Status(u32, &'static str),
}

/// A running fake. It ends when it is dropped.
struct FakeServer {
    url: String,
    /// The paths of all calls.
    calls: Arc<Mutex<Vec<String>>>,
    status: Arc<Mutex<proto::StatusResponse>>,
    connections: Arc<Mutex<JoinSet<()>>>,
    _task: AbortOnDropHandle<()>,
}

impl FakeServer {
    async fn start(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let status = Arc::new(Mutex::new(proto::StatusResponse {
            header: Some(header(7)),
            version: "3.6.1".into(),
            leader: 1,
            ..proto::StatusResponse::default()
        }));
        let calls = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(Mutex::new(JoinSet::new()));
        let answer = {
            let (calls, status) = (Arc::clone(&calls), Arc::clone(&status));
            Arc::new(move |path: &str| {
                calls.lock().push(path.to_owned());
                if path == MAINTENANCE_STATUS {
                    return Answer::One(status.lock().encode_to_vec());
                }
                answer(path)
            })
        };
        let accepted = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answer = Arc::clone(&answer);
                let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
                    let answer = answer(request.uri().path());
                    async move { Ok::<_, Infallible>(respond(request.into_body(), answer)) }
                });
                accepted.lock().spawn(async move {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    // It ends with the client.
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self {
            url,
            calls,
            status,
            connections,
            _task: AbortOnDropHandle::new(task),
        }
    }

    fn count(&self, path: &str) -> usize {
        self.calls.lock().iter().filter(|call| *call == path).count()
    }
}

fn header(revision: i64) -> proto::ResponseHeader {
    proto::ResponseHeader {
        cluster_id: 1,
        member_id: 1,
        revision,
    }
}

fn respond(requests: Incoming, answer: Answer) -> http::Response<UnsyncBoxBody<Bytes, Infallible>> {
    let response = http::Response::builder().header("content-type", "application/grpc");
    let (messages, ends) = match answer {
        Answer::One(message) => (vec![message], true),
        Answer::Silence(messages) => (messages, false),
        Answer::Status(code, text) => {
            let response = response.header("grpc-status", code).header("grpc-message", text);
            return response
                .body(UnsyncBoxBody::new(StreamBody::new(futures::stream::empty())))
                .expect("valid");
        }
    };
    let framed = messages.into_iter().map(|message| {
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len()).expect("small"));
        frame.put_slice(&message);
        Ok(Frame::data(frame.freeze()))
    });
    let end = futures::stream::once(async move {
        if !ends {
            // Reading what the client goes on saying, and never answering.
            let _ = requests.collect().await;
            std::future::pending::<()>().await;
        }
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        Ok(Frame::trailers(trailers))
    });
    let body = StreamBody::new(futures::stream::iter(framed).chain(end));
    response.body(UnsyncBoxBody::new(body)).expect("valid")
}

fn client(servers: &[&FakeServer]) -> EtcdBackend {
    let endpoints = servers.iter().map(|server| server.url.clone()).collect();
    let options = EtcdOptions {
        endpoints,
        progress_interval: Duration::from_millis(50),
        ..EtcdOptions::default()
    };
    EtcdBackend::new(&options).expect("valid options")
}

fn read() -> Txn {
    Txn::read([Range::key("a")])
}

fn write() -> Txn {
    Txn {
        success: vec![Op::Delete { key: "a".into() }],
        ..Txn::default()
    }
}

fn range_answer() -> Answer {
    Answer::One(
        proto::RangeResponse {
            header: Some(header(9)),
            ..Default::default()
        }
        .encode_to_vec(),
    )
}

fn unavailable(error: &BackendError, expect_sent: bool) -> bool {
    matches!(error, BackendError::Unavailable { sent, .. } if *sent == expect_sent)
}

#[tokio::test]
async fn an_old_version_is_refused_whenever_a_connection_is_made() {
    let server = FakeServer::start(|_| range_answer()).await;
    server.status.lock().version = "3.5.1".into();
    let backend = client(&[&server]);
    let expect = format!(
        "etcd 3.5.1 at {} announces watch progress ahead of events; Outrigger needs 3.5.30 or 3.6",
        server.url
    );
    assert_eq!(
        backend.txn(read()).await,
        Err(BackendError::Refused(expect.clone()))
    );
    let watch = WatchRequest {
        start: "a".into(),
        end: None,
        start_revision: 0,
        prev_kv: false,
        until: None,
    };
    assert_eq!(
        backend.watch(watch).await.err(),
        Some(BackendError::Refused(expect.clone()))
    );
    assert_eq!((server.count(KV_RANGE), server.count(WATCH_WATCH)), (0, 0));

    // Replaced by a newer one, and then by the old one again.
    server.status.lock().version = "3.5.30".into();
    assert!(backend.txn(read()).await.is_ok());
    server.status.lock().version = "3.5.1".into();
    server.connections.lock().abort_all();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(backend.txn(read()).await, Err(BackendError::Refused(expect)));
}

#[tokio::test]
async fn members_that_cannot_answer_are_passed_by() {
    let (learner, leaderless) = (
        FakeServer::start(|_| range_answer()).await,
        FakeServer::start(|_| range_answer()).await,
    );
    learner.status.lock().is_learner = true;
    leaderless.status.lock().leader = 0;
    let error = client(&[&learner, &leaderless])
        .txn(write())
        .await
        .expect_err("nobody answers");
    assert!(unavailable(&error, false), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("is a learner") && text.contains("has no leader"),
        "{text}"
    );
    let good = FakeServer::start(|_| range_answer()).await;
    assert!(client(&[&learner, &leaderless, &good]).txn(read()).await.is_ok());
}

#[tokio::test]
async fn a_read_is_asked_again_elsewhere_and_a_write_is_not() {
    for text in [
        "etcdserver: request timed out",
        "etcdserver: leader changed",
        "etcdserver: no leader",
    ] {
        let (bad, good) = tokio::join!(
            FakeServer::start(move |_| Answer::Status(14, text)),
            FakeServer::start(|_| range_answer())
        );
        assert!(client(&[&bad, &good]).txn(read()).await.is_ok(), "{text}");
        let error = client(&[&bad, &good]).txn(write()).await.expect_err(text);
        assert!(
            unavailable(&error, true) && error.to_string().contains(text),
            "{error:?}"
        );
        assert_eq!((bad.count(KV_TXN), good.count(KV_TXN)), (1, 0), "{text}");
    }
}

#[tokio::test]
async fn what_etcd_refuses_at_the_door_is_not_sent() {
    let busy = FakeServer::start(|_| Answer::Status(8, "etcdserver: too many requests")).await;
    let error = client(&[&busy]).txn(write()).await.expect_err("busy");
    assert!(unavailable(&error, false), "{error:?}");
    assert_eq!(busy.count(KV_TXN), 1);
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_corrupt_for_a_read_and_unknown_for_a_write() {
    let server = FakeServer::start(|_| Answer::One(Vec::new())).await;
    let backend = client(&[&server]);
    assert!(matches!(backend.txn(read()).await, Err(BackendError::Corrupt(_))));
    assert!(unavailable(
        &backend.txn(write()).await.expect_err("no header"),
        true
    ));
    assert_eq!(server.count(KV_TXN), 1);
}

#[tokio::test]
async fn a_watch_that_hears_nothing_ends() {
    let created = proto::WatchResponse {
        header: Some(header(9)),
        created: true,
        ..Default::default()
    };
    let server = FakeServer::start(move |path| match path {
        WATCH_WATCH => Answer::Silence(vec![created.encode_to_vec()]),
        _ => range_answer(),
    })
    .await;
    let watch = WatchRequest {
        start: "a".into(),
        end: None,
        start_revision: 0,
        prev_kv: false,
        until: None,
    };
    let start = tokio::time::Instant::now();
    let mut stream = client(&[&server]).watch(watch).await.expect("opened");
    let first = stream.next().await.expect("an item").expect("no error");
    assert_eq!((first.revision, first.events.len()), (9, 0));
    let error = stream
        .next()
        .await
        .expect("an item")
        .expect_err("nothing is heard");
    assert!(error.to_string().contains("hears nothing"), "{error}");
    assert!(stream.next().await.is_none());
    assert!(start.elapsed() >= Duration::from_millis(250));
}

#[tokio::test]
async fn a_silent_member_is_given_up_whoever_loses_patience() {
    let (silent, good) = tokio::join!(
        FakeServer::start(|_| Answer::Silence(Vec::new())),
        FakeServer::start(|_| range_answer())
    );
    // A read does not wait for the deadline.
    let backend = client(&[&silent, &good]);
    let answer = tokio::time::timeout(Duration::from_secs(4), backend.txn(read())).await;
    assert!(answer.is_ok_and(|answer| answer.is_ok()));
    assert_eq!((silent.count(KV_RANGE), good.count(KV_RANGE)), (1, 1));
    assert!(backend.txn(read()).await.is_ok());
    assert_eq!((silent.count(KV_RANGE), good.count(KV_RANGE)), (1, 2));

    // A write is not sent again; but when its caller gives up, the next request goes elsewhere.
    let backend = client(&[&silent, &good]);
    assert!(
        tokio::time::timeout(Duration::from_secs(2), backend.txn(write()))
            .await
            .is_err()
    );
    assert_eq!((silent.count(KV_TXN), good.count(KV_TXN)), (1, 0));
    assert!(backend.txn(read()).await.is_ok());
    assert_eq!((silent.count(KV_RANGE), good.count(KV_RANGE)), (1, 3));
}
