//! What the server refuses, and what it survives.

use crate::harness::TestServer;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use outrigger_apiserver::request::body::REQUEST_BODY_BYTES_MAX;
use outrigger_apiserver::server::ServerLimits;
use outrigger_apiserver::server::handler_chain::ChainConfig;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_panic_ends_its_request_and_nothing_else() {
    let server = TestServer::start().await;
    let admin = server.admin();
    for mut client in [server.http1(Some(&admin)).await, server.http2(Some(&admin)).await] {
        let answer = client.get("/api/v1/panics").await;
        assert_eq!(answer.code, 500);
        assert_eq!(
            answer.json()["message"],
            "This request caused apiserver to panic. Look in the logs for details."
        );
        assert_eq!(
            client.get("/api/v1/users").await.code,
            200,
            "the connection lives on"
        );
    }
    let mut client = server.http2(Some(&admin)).await;
    let request = Request::get("https://localhost/api/v1/panicking-bodies")
        .body(Full::default())
        .expect("a request");
    // The reset may overtake the head.
    if let Ok(response) = client.send(request).await {
        assert!(
            response.into_body().collect().await.is_err(),
            "a body that failed never looks whole"
        );
    }
    assert_eq!(
        client.get("/api/v1/users").await.code,
        200,
        "the connection lives on"
    );
}

#[tokio::test]
async fn bodies_over_3_mib_are_413() {
    let server = TestServer::start().await;
    let admin = server.admin();
    for mut client in [server.http1(Some(&admin)).await, server.http2(Some(&admin)).await] {
        let whole = client
            .call(
                Method::POST,
                "/api/v1/bodies",
                &[],
                vec![b'x'; REQUEST_BODY_BYTES_MAX],
            )
            .await;
        assert_eq!((whole.code, whole.text.as_str()), (200, "3145728"));
    }
    let mut client = server.http2(Some(&admin)).await;
    let answer = client
        .call(
            Method::POST,
            "/api/v1/bodies",
            &[],
            vec![b'x'; REQUEST_BODY_BYTES_MAX + 1],
        )
        .await;
    assert_eq!(answer.code, 413);
    assert_eq!(
        answer.json()["message"],
        "Request entity too large: limit is 3145728"
    );
    assert_eq!(answer.json()["reason"], "RequestEntityTooLarge");
}

#[tokio::test]
async fn an_answer_that_comes_before_the_body_is_not_lost() {
    let server = TestServer::start().await;
    let mut nobody = server.http2(None).await;
    for _ in 0..20 {
        let answer = nobody
            .call(Method::POST, "/api/v1/bodies", &[], vec![b'x'; 4 << 20])
            .await;
        assert_eq!(answer.code, 403);
    }
    assert_eq!(nobody.get("/livez").await.text, "ok");
}

#[tokio::test]
async fn a_slow_head_is_not_waited_for() {
    let limits = ServerLimits {
        header_read_timeout: Duration::from_millis(200),
        ..ServerLimits::default()
    };
    let server = TestServer::start_with(limits, ChainConfig::default()).await;
    let mut stream = server.connect(b"http/1.1", None).await.expect("a connection");
    stream
        .write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n")
        .await
        .expect("a part of a head");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "the server ends the connection");
}

#[tokio::test]
async fn a_handshake_that_does_not_come_is_not_waited_for() {
    let limits = ServerLimits {
        handshake_timeout: Duration::from_millis(200),
        connections_max: 1,
        ..ServerLimits::default()
    };
    let server = TestServer::start_with(limits, ChainConfig::default()).await;
    let mut silent = tokio::net::TcpStream::connect(server.addr)
        .await
        .expect("a connection");
    // The only place is taken until the silent client is sent away.
    let mut client = server.http1(None).await;
    assert_eq!(client.get("/livez").await.code, 200);
    let mut nothing = Vec::new();
    drop(silent.read_to_end(&mut nothing).await);
    assert!(
        server
            .metrics
            .render()
            .contains("apiserver_tls_handshake_errors_total 1\n")
    );
}

#[tokio::test]
async fn requests_in_flight_have_a_limit_and_watches_have_none() {
    let config = ChainConfig {
        requests_in_flight_max: 2,
        mutating_requests_in_flight_max: 1,
        ..ChainConfig::default()
    };
    let server = TestServer::start_with(ServerLimits::default(), config).await;
    let client = server.http2(Some(&server.admin())).await;
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let mut client = client.share();
            tokio::spawn(async move { client.get("/api/v1/waits").await })
        })
        .collect();
    let mut client = client.share();
    let refused = loop {
        let answer = client.get("/api/v1/users").await;
        if answer.code != 200 {
            break answer;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(refused.code, 429);
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(refused.json()["reason"], "TooManyRequests");
    assert_eq!(
        client.call(Method::POST, "/api/v1/bodies", &[], "x").await.code,
        200,
        "writes are counted apart"
    );
    let watch = Request::get("https://localhost/api/v1/watches?watch=1")
        .body(Full::default())
        .expect("a request");
    let watch = client.send(watch).await.expect("a watch");
    assert_eq!(watch.status(), 200);
    server.gate.add_permits(2);
    for answer in waiting {
        assert_eq!(answer.await.expect("an answer").text, "done");
    }
    assert_eq!(client.get("/api/v1/users").await.code, 200, "places come free");
    drop(watch);
}

#[tokio::test]
async fn no_limit_is_one_too() {
    let config = ChainConfig {
        requests_in_flight_max: 0,
        mutating_requests_in_flight_max: 0,
        ..ChainConfig::default()
    };
    let server = TestServer::start_with(ServerLimits::default(), config).await;
    let client = server.http2(Some(&server.admin())).await;
    let waiting: Vec<_> = (0..600)
        .map(|_| {
            let mut client = client.share();
            tokio::spawn(async move { client.get("/api/v1/waits").await.code })
        })
        .collect();
    server.gate.add_permits(waiting.len());
    for code in waiting {
        assert_eq!(code.await.expect("an answer"), 200);
    }
    let mut client = client.share();
    assert_eq!(
        client.call(Method::POST, "/api/v1/bodies", &[], "x").await.code,
        200
    );
}

/// `--request-timeout`.
#[tokio::test]
async fn the_deadline_is_the_servers_and_not_for_watches() {
    let config = ChainConfig {
        request_timeout: Duration::from_millis(200),
        ..ChainConfig::default()
    };
    let server = TestServer::start_with(ServerLimits::default(), config).await;
    let mut client = server.http2(Some(&server.admin())).await;
    let watch = Request::get("https://localhost/api/v1/watches?watch=1")
        .body(Full::default())
        .expect("a request");
    let mut watch = client.share().send(watch).await.expect("a watch").into_body();
    for timeout in ["", "?timeout=30s"] {
        let late = client.get(&format!("/api/v1/waits{timeout}")).await;
        assert_eq!((late.code, &late.json()["reason"]), (504, &"Timeout".into()));
    }
    let event = watch.frame().await.expect("an event").expect("an event");
    assert_eq!(event.data_ref().map(|d| &d[..]), Some(&b"ADDED\n"[..]));
    server.signals.shutdown_initiated.signal();
    let rest = watch.collect().await.expect("a clean end").to_bytes();
    assert_eq!(&rest[..], b"END\n");
}

#[tokio::test]
async fn a_request_ends_at_its_deadline() {
    let server = TestServer::start().await;
    let mut client = server.http2(Some(&server.admin())).await;
    let late = client.get("/api/v1/waits?timeout=100ms").await;
    assert_eq!(
        (late.code, late.json()["reason"].as_str().map(str::to_owned)),
        (504, Some("Timeout".to_owned()))
    );
    assert_eq!(
        late.json()["message"],
        "Timeout: request did not complete within the allotted timeout"
    );
    let bad = client.get("/api/v1/users?timeout=soon").await;
    assert_eq!(bad.code, 400);
    // A list of half a second that has a fifth of one: what was sent never looks whole.
    let request = Request::get("https://localhost/api/v1/lists?timeout=200ms")
        .body(Full::default())
        .expect("a request");
    let response = client.send(request).await.expect("a head");
    assert!(response.into_body().collect().await.is_err());
    assert_eq!(client.get("/api/v1/lists").await.text.len(), 20);
}

#[tokio::test]
async fn a_thousand_watches_share_a_connection() {
    let config = ChainConfig {
        is_served: Arc::new(|_| true),
        ..ChainConfig::default()
    };
    let server = TestServer::start_with(ServerLimits::default(), config).await;
    let client = server.http2(Some(&server.admin())).await;
    let mut watches = Vec::new();
    for _ in 0..1000 {
        let request = Request::get("https://localhost/api/v1/watches?watch=1")
            .body(Full::default())
            .expect("a request");
        let response = client.share().send(request).await.expect("a watch");
        assert_eq!(response.status(), 200);
        watches.push(response.into_body());
    }
    for watch in &mut watches {
        let event = watch.frame().await.expect("an event").expect("an event");
        assert_eq!(event.data_ref().map(|d| &d[..]), Some(&b"ADDED\n"[..]));
    }
    let gauge = r#"apiserver_longrunning_requests{verb="WATCH",group="",version="v1",resource="watches",subresource="",scope="cluster",component="apiserver"}"#;
    assert!(server.metrics.render().contains(&format!("{gauge} 1000\n")));
    drop(watches);
    for _ in 0..500 {
        if server.metrics.render().contains(&format!("{gauge} 0\n")) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("watches that were dropped are still counted");
}

#[tokio::test]
async fn metrics_are_there_for_masters() {
    let config = ChainConfig {
        is_served: Arc::new(|_| true),
        ..ChainConfig::default()
    };
    let server = TestServer::start_with(ServerLimits::default(), config).await;
    let mut client = server.http1(Some(&server.admin())).await;
    assert_eq!(client.get("/api/v1/users").await.code, 200);
    let metrics = client.get("/metrics").await;
    assert!(
        metrics.headers["content-type"]
            .to_str()
            .is_ok_and(|t| t.starts_with("text/plain; version=0.0.4"))
    );
    let line = r#"apiserver_request_total{verb="LIST",dry_run="",group="",version="v1",resource="users",subresource="",scope="cluster",component="apiserver",code="200"} 1"#;
    assert!(metrics.text.lines().any(|l| l == line), "{}", metrics.text);
    assert!(
        metrics
            .text
            .lines()
            .any(|l| l.starts_with("process_resident_memory_bytes "))
    );
}
