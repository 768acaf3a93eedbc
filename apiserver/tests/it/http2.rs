//! HTTP/2 as the aggregator uses it: one connection for everything.

use crate::api::{APPS, Api};
use crate::harness::{Client, TestServer};
use bytes::Bytes;
use futures::future::join_all;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use outrigger_apiserver::server::ServerLimits;
use outrigger_apiserver::server::handler_chain::ChainConfig;
use std::time::Duration;
use tokio::time::timeout;

/// What the aggregator's client asks for, whatever the kind.
const PROTOBUF_FIRST: &str = "application/vnd.kubernetes.protobuf, application/json";

fn get(path: &str) -> Request<Full<Bytes>> {
    let request = Request::get(format!("https://localhost{path}")).header("accept", PROTOBUF_FIRST);
    request.body(Full::default()).expect("a request")
}

/// Row 26 of the bugs of others: a cap on streams below the number of watches.
#[tokio::test]
async fn a_thousand_watches_share_a_connection_with_requests() {
    let server = TestServer::start().await;
    let client = server.http2(Some(&server.admin())).await;
    let watches = (0..999).map(|_| {
        let mut client = client.share();
        async move {
            let response = client.send(get("/api/v1/watches?watch=1")).await.expect("a head");
            assert_eq!(response.status(), 200);
            let mut body = response.into_body();
            let first = body.frame().await.expect("a frame").expect("whole");
            assert_eq!(first.data_ref().map(Bytes::as_ref), Some(&b"ADDED\n"[..]));
            body
        }
    });
    let watches = timeout(Duration::from_secs(60), join_all(watches))
        .await
        .expect("all have begun");
    let mut other = client.share();
    for _ in 0..10 {
        let answer = timeout(Duration::from_secs(5), other.get("/api/v1/users")).await;
        assert_eq!(answer.expect("there is a stream left").code, 200);
    }
    let long_running = "apiserver_longrunning_requests{verb=\"WATCH\"";
    let metrics = server.metrics.render();
    let line = metrics.lines().find(|line| line.starts_with(long_running));
    assert!(line.is_some_and(|line| line.ends_with(" 999")), "{line:?}");
    server.signals.shutdown_initiated.signal();
    for body in watches {
        let rest = body.collect().await.expect("a clean end").to_bytes();
        assert_eq!(&rest[..], b"END\n");
    }
}

/// Row 26, the other half: kinds without a protobuf form are answered in JSON to whoever takes that too.
#[tokio::test]
async fn protobuf_first_is_answered_in_json() {
    let api = Api::with_namespaces(&["a"]).await;
    api.app("a", "web").await;
    let list = format!("{APPS}/namespaces/a/applications");
    let one = format!("{list}/web");
    for uri in [&list, &one] {
        let accept = [("accept", PROTOBUF_FIRST)];
        let answer = api.call(Method::GET, uri, &accept, "").await;
        assert_eq!(answer.headers["content-type"], "application/json", "{uri}");
        answer.expect(200);
        let only = [("accept", "application/vnd.kubernetes.protobuf")];
        let answer = api.call(Method::GET, uri, &only, "").await;
        answer.error(406, "NotAcceptable");
    }
}

#[tokio::test]
async fn goaway_moves_new_requests_and_leaves_running_ones_alone() {
    let config = ChainConfig {
        goaway_chance: 0.02,
        seed: 5,
        ..ChainConfig::default()
    };
    let server = TestServer::start_with(ServerLimits::default(), config).await;
    let admin = server.admin();
    let mut client = server.http2(Some(&admin)).await;
    let watch = client.send(get("/api/v1/watches?watch=1")).await.expect("a head");
    let mut served = 0;
    let moved = async {
        loop {
            match client.send(get("/api/v1/users")).await {
                Ok(response) => {
                    assert_eq!(response.status(), 200);
                    response.into_body().collect().await.expect("a whole body");
                    served += 1;
                }
                Err(error) => return error,
            }
        }
    };
    let error = timeout(Duration::from_secs(60), moved)
        .await
        .expect("one in fifty");
    assert!(
        error.is_closed() || error.is_canceled() || error.to_string().contains("not a result of an error"),
        "{error:?}"
    );
    assert!(served > 0);
    let mut next = server.http2(Some(&admin)).await;
    assert_eq!(next.get("/livez").await.code, 200);
    server.signals.shutdown_initiated.signal();
    let whole = watch
        .into_body()
        .collect()
        .await
        .expect("the watch goes on to its own end")
        .to_bytes();
    assert_eq!(&whole[..], b"ADDED\nEND\n");
}

#[tokio::test]
async fn http1_connections_are_left_alone() {
    let config = ChainConfig {
        goaway_chance: 0.02,
        seed: 5,
        ..ChainConfig::default()
    };
    let server = TestServer::start_with(ServerLimits::default(), config).await;
    let mut client = server.http1(Some(&server.admin())).await;
    for _ in 0..500 {
        assert_eq!(client.get("/livez").await.code, 200);
    }
}

/// A reader that takes nothing holds its own stream and no other: the window of the connection is large, and what is
/// buffered of a stream is bounded.
#[tokio::test]
async fn a_slow_reader_stalls_nobody_else() {
    let server = TestServer::start().await;
    let stream = server
        .connect(b"h2", Some(&server.admin()))
        .await
        .expect("a connection");
    let (mut client, connection) = h2::client::Builder::new()
        .initial_window_size(64 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .handshake::<_, Bytes>(stream)
        .await
        .expect("HTTP/2");
    tokio::spawn(connection);
    let request = || {
        let request = Request::get("https://localhost/api/v1/large");
        request.body(()).expect("a request")
    };
    let mut stalled = Vec::new();
    for _ in 0..16 {
        client = client.ready().await.expect("ready");
        let (response, _) = client.send_request(request(), true).expect("sent");
        // The head is read and the body never is: no window is given back.
        stalled.push(response.await.expect("a head").into_body());
    }
    client = client.ready().await.expect("ready");
    let (response, _) = client.send_request(request(), true).expect("sent");
    let read = async {
        let mut body = response.await.expect("a head").into_body();
        let mut bytes = 0;
        while let Some(data) = body.data().await {
            let data = data.expect("whole");
            bytes += data.len();
            body.flow_control()
                .release_capacity(data.len())
                .expect("given back");
        }
        bytes
    };
    let bytes = timeout(Duration::from_secs(20), read)
        .await
        .expect("nobody waits for the slow ones");
    assert_eq!(
        bytes,
        crate::harness::LARGE_CHUNKS * crate::harness::LARGE_CHUNK_BYTES
    );
    drop(stalled);
}

#[tokio::test]
async fn nothing_is_ever_redirected() {
    let server = TestServer::start().await;
    let admin = server.admin();
    for mut client in [server.http1(Some(&admin)).await, server.http2(Some(&admin)).await] {
        for path in [
            "/apis/",
            "//apis",
            "/apis//g/v1",
            "/healthz/",
            "/index.html",
            "/api/v1/users/",
            "/openapi/v3/apis/g/v1?hash=0000",
            "/../api",
            "/metrics/",
        ] {
            for method in [Method::GET, Method::POST] {
                let code = client.call(method.clone(), path, &[], "").await.code;
                assert!(!(300..400).contains(&code), "{method} {path}: {code}");
            }
        }
    }
}

#[tokio::test]
async fn an_idle_connection_is_told_when_the_server_stops() {
    let server = TestServer::start().await;
    let client = server.http2(Some(&server.admin())).await;
    server.signals.shutdown_initiated.signal();
    let Client::Http2(client) = client else {
        panic!("HTTP/2")
    };
    let closed = async {
        while !client.is_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(5), closed)
        .await
        .expect("it is closed");
}
