//! Who is known, and what they may.

use crate::harness::{Client, TestServer, client_certificate, server_config};
use axum::body::Body;
use http::Method;
use http_body_util::BodyExt;
use outrigger_apiserver::server::loopback::Loopback;
use outrigger_certs::Authority;
use tower::ServiceExt;

async fn clients(server: &TestServer, certificate: Option<&outrigger_certs::Issued>) -> [Client; 2] {
    [server.http1(certificate).await, server.http2(certificate).await]
}

#[tokio::test]
async fn a_client_certificate_names_the_user() {
    let server = TestServer::start().await;
    for mut client in clients(&server, Some(&server.admin())).await {
        let answer = client
            .call(
                Method::GET,
                "/api/v1/users",
                &[("authorization", "Bearer x"), ("x-remote-user", "root")],
                "",
            )
            .await;
        assert_eq!(answer.code, 200, "{answer:?}");
        let user = answer.json();
        assert_eq!(user["name"], "admin");
        assert_eq!(
            user["groups"],
            serde_json::json!(["system:masters", "system:authenticated"])
        );
        let headers = user["headers"].to_string();
        assert!(
            !headers.contains("authorization") && !headers.contains("x-remote"),
            "{headers}"
        );
        assert_eq!(answer.headers["cache-control"], "no-cache, private");
        assert_eq!(answer.headers["audit-id"].len(), 36);
    }
}

#[tokio::test]
async fn nobody_sees_health_and_version_only() {
    let server = TestServer::start().await;
    for mut client in clients(&server, None).await {
        let version = client.get("/version").await;
        assert_eq!(
            (version.code, version.json()["minor"].as_str()),
            (200, Some("36"))
        );
        assert_eq!(client.get("/livez").await.text, "ok");
        assert_eq!(client.get("/readyz").await.code, 500);
        let answer = client.get("/api/v1/namespaces/ns/users").await;
        assert_eq!(answer.code, 403);
        assert_eq!(answer.headers["content-type"], "application/json");
        let status = answer.json();
        assert_eq!(
            (&status["kind"], &status["reason"]),
            (&"Status".into(), &"Forbidden".into())
        );
        assert_eq!(
            status["message"],
            "users is forbidden: User \"system:anonymous\" cannot list resource \"users\" in API group \"\" in the namespace \"ns\""
        );
        let yaml = [("accept", "application/yaml")];
        let answer = client.call(Method::GET, "/metrics", &yaml, "").await;
        assert_eq!(
            (answer.code, &answer.headers["content-type"]),
            (403, &"application/yaml".parse().expect("a value"))
        );
        assert!(answer.text.contains("reason: Forbidden"), "{}", answer.text);
        let metrics = client.get("/metrics").await;
        assert_eq!(
            metrics.json()["message"],
            "forbidden: User \"system:anonymous\" cannot get path \"/metrics\""
        );
        let token = client
            .call(Method::GET, "/version", &[("authorization", "Bearer abc")], "")
            .await;
        assert_eq!(
            (token.code, token.json()["reason"].as_str().map(str::to_owned)),
            (401, Some("Unauthorized".to_owned()))
        );
    }
    server.ready.set();
    let [_, mut client] = clients(&server, Some(&server.admin())).await;
    assert_eq!(
        client.get("/readyz?verbose").await.text,
        "[+]ping ok\n[+]shutdown ok\n[+]ready ok\nreadyz check passed\n"
    );
}

#[tokio::test]
async fn users_outside_system_masters_may_nothing() {
    let server = TestServer::start().await;
    let jane = client_certificate(&server.ca, "jane", "developers");
    for mut client in clients(&server, Some(&jane)).await {
        assert_eq!(client.get("/version").await.code, 200);
        let answer = client
            .call(Method::DELETE, "/apis/a.example/v1/namespaces/x/apps/y", &[], "")
            .await;
        assert_eq!(answer.code, 403);
        assert_eq!(
            answer.json()["message"],
            "apps.a.example \"y\" is forbidden: User \"jane\" cannot delete resource \"apps\" in API group \"a.example\" in the namespace \"x\""
        );
        assert_eq!(client.get("/apis").await.code, 403);
    }
}

#[tokio::test]
async fn a_certificate_of_another_ca_ends_the_handshake() {
    let server = TestServer::start().await;
    let other = Authority::create("other", jiff::Timestamp::now().as_second()).expect("a CA");
    let stranger = client_certificate(&other, "admin", "system:masters");
    // With TLS 1.3 the client hears of it when it reads.
    if let Ok(stream) = server.connect(b"http/1.1", Some(&stranger)).await {
        let io = hyper_util::rt::TokioIo::new(stream);
        let (client, connection) = hyper::client::conn::http1::handshake(io).await.expect("HTTP/1.1");
        tokio::spawn(connection);
        let request = http::Request::get("/version")
            .header("host", "x")
            .body(http_body_util::Full::default());
        assert!(
            Client::Http1(client)
                .send(request.expect("a request"))
                .await
                .is_err()
        );
    }
    assert!(
        server
            .metrics
            .render()
            .contains("apiserver_tls_handshake_errors_total 1\n")
    );
}

#[tokio::test]
async fn a_published_certificate_counts_for_the_next_connection() {
    let mut server = TestServer::start().await;
    let admin = server.admin();
    let mut old = server.http1(Some(&admin)).await;
    server.ca = Authority::create("next", jiff::Timestamp::now().as_second()).expect("a CA");
    server.tls.send_replace(server_config(&server.ca));
    let next_admin = server.admin();
    let mut new = server.http2(Some(&next_admin)).await;
    assert_eq!(new.get("/api/v1/users").await.code, 200);
    assert_eq!(
        old.get("/api/v1/users").await.code,
        200,
        "a connection lives as long as it likes"
    );
}

#[tokio::test]
async fn requests_from_inside_are_the_servers_own() {
    let server = TestServer::start().await;
    let request = http::Request::get("/api/v1/users")
        .body(Body::empty())
        .expect("a request");
    let response = Loopback::new(server.chain.clone())
        .oneshot(request)
        .await
        .expect("an answer");
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    let user: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(user["name"], "system:apiserver");
}

#[tokio::test]
async fn headers_of_the_chain() {
    let server = TestServer::start().await;
    let [mut client, _] = clients(&server, Some(&server.admin())).await;
    let answer = client
        .call(Method::GET, "/api/v1/warnings", &[("audit-id", "mine")], "")
        .await;
    assert_eq!(answer.headers["audit-id"], "mine");
    assert_eq!(answer.headers["warning"], "299 - \"this is \\\"deprecated\\\"\"");
    let nothing = client.get("/nothing").await;
    assert_eq!(
        (nothing.code, nothing.text.as_str()),
        (404, "404 page not found\n")
    );
    assert_eq!(nothing.headers["x-content-type-options"], "nosniff");
    assert_eq!(client.get("/teapot").await.code, 418);
    let index = client.get("/").await.json();
    assert_eq!(index["paths"][0], "/apis");
    assert!(
        index["paths"]
            .as_array()
            .is_some_and(|paths| paths.contains(&"/readyz/shutdown".into()))
    );
}

#[tokio::test]
async fn masters_may_ask_in_anothers_name() {
    let server = TestServer::start().await;
    let [mut client, _] = clients(&server, Some(&server.admin())).await;
    let jane = [("impersonate-user", "jane")];
    let answer = client.call(Method::GET, "/api/v1/users", &jane, "").await;
    assert_eq!(answer.code, 403, "jane may nothing");
    let masters = [
        ("impersonate-user", "jane"),
        ("impersonate-group", "system:masters"),
    ];
    let answer = client.call(Method::GET, "/api/v1/users", &masters, "").await;
    assert_eq!(answer.json()["name"], "jane");
    assert!(!answer.json()["headers"].to_string().contains("impersonate"));
}

#[tokio::test]
async fn a_head_request_has_no_body_and_its_length() {
    let server = TestServer::start().await;
    for mut client in clients(&server, Some(&server.admin())).await {
        let answer = client.call(Method::HEAD, "/livez", &[], "").await;
        assert_eq!(
            (answer.code, &answer.headers["content-length"]),
            (200, &"2".parse().expect("a value"))
        );
        assert_eq!(answer.text, "");
        let stream = client.call(Method::HEAD, "/api/v1/lists", &[], "").await;
        assert_eq!((stream.code, stream.text.as_str()), (200, ""));
    }
}
