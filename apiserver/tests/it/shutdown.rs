//! How the server stops: nothing that was begun is lost, and it does stop.

use crate::harness::TestServer;
use http::Request;
use http_body_util::{BodyExt, Full};
use outrigger_apiserver::server::ServerLimits;
use outrigger_apiserver::server::handler_chain::ChainConfig;
use std::time::Duration;
use tokio::time::{Instant, timeout};

#[tokio::test]
async fn readiness_fails_first_and_requests_go_on() {
    let limits = ServerLimits {
        shutdown_delay: Duration::from_millis(300),
        ..ServerLimits::default()
    };
    let server = TestServer::start_with(limits, ChainConfig::default()).await;
    server.ready.set();
    let admin = server.admin();
    let mut client = server.http1(Some(&admin)).await;
    assert_eq!(client.get("/readyz").await.code, 200);
    server.signals.shutdown_initiated.signal();
    assert_eq!(client.get("/readyz").await.code, 500);
    assert_eq!(client.get("/livez").await.code, 200);
    // New connections are still taken: load balancers have not noticed yet.
    assert_eq!(
        server.http2(Some(&admin)).await.get("/api/v1/users").await.code,
        200
    );
    timeout(Duration::from_secs(5), server.running)
        .await
        .expect("it stops")
        .expect("it does not panic");
    assert!(tokio::net::TcpStream::connect(server.addr).await.is_err());
}

#[tokio::test]
async fn what_is_in_flight_is_finished_and_watches_end_cleanly() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let mut bodies = Vec::new();
    for (resource, expect) in [
        ("lists", "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n"),
        ("watches?watch=1", "ADDED\nEND\n"),
    ] {
        let mut http1 = server.http1(Some(&admin)).await;
        let mut http2 = server.http2(Some(&admin)).await;
        let request = |uri: String| {
            Request::get(uri)
                .header("host", "localhost")
                .body(Full::default())
                .expect("a request")
        };
        let one = http1
            .send(request(format!("/api/v1/{resource}")))
            .await
            .expect("a head");
        let two = http2
            .send(request(format!("https://localhost/api/v1/{resource}")))
            .await
            .expect("a head");
        bodies.push((one.into_body(), http1, expect));
        bodies.push((two.into_body(), http2, expect));
    }
    let idle = server.http2(Some(&admin)).await;
    server.signals.shutdown_initiated.signal();
    for (body, _client, expect) in bodies {
        let text = body.collect().await.expect("a whole body").to_bytes();
        assert_eq!(String::from_utf8_lossy(&text), expect);
    }
    timeout(Duration::from_secs(5), server.running)
        .await
        .expect("it stops")
        .expect("it does not panic");
    let mut idle = idle;
    let request = Request::get("https://localhost/livez")
        .body(Full::default())
        .expect("a request");
    assert!(
        idle.send(request).await.is_err(),
        "the connection was told to go away"
    );
}

#[tokio::test]
async fn a_request_that_does_not_end_is_cut() {
    let limits = ServerLimits {
        drain_timeout: Duration::from_millis(300),
        ..ServerLimits::default()
    };
    let server = TestServer::start_with(limits, ChainConfig::default()).await;
    let mut client = server.http2(Some(&server.admin())).await;
    let mut other = client.share();
    let stuck = tokio::spawn(async move {
        other
            .send(
                Request::get("https://localhost/api/v1/waits")
                    .body(Full::default())
                    .expect("a request"),
            )
            .await
            .is_err()
    });
    assert_eq!(client.get("/api/v1/users").await.code, 200);
    let started = Instant::now();
    server.signals.shutdown_initiated.signal();
    timeout(Duration::from_secs(5), server.running)
        .await
        .expect("it stops")
        .expect("it does not panic");
    assert!(started.elapsed() < Duration::from_secs(3));
    assert!(stuck.await.expect("an end"));
    assert!(server.signals.drained.is_signaled());
}
