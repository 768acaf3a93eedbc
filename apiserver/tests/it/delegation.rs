//! Authentication in a control plane: who may speak for whom, on the wire. There is no way past the front proxy's
//! certificate.

use crate::control_plane::{ControlPlane, config_map};
use crate::harness::{Answer, Client, TestServer, client_certificate, now, provider, serving_certificate};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use outrigger_apiserver::authentication::client_ca::ClientCas;
use outrigger_apiserver::authentication::{Anonymous, Authenticator, DelegatingConfig};
use outrigger_apiserver::authorization::Authorizer;
use outrigger_apiserver::authorization::delegated::DelegatedConfig;
use outrigger_apiserver::authorization::path::AlwaysAllowPaths;
use outrigger_apiserver::metrics::ApiMetrics;
use outrigger_apiserver::server::ServerLimits;
use outrigger_apiserver::server::handler_chain::ChainConfig;
use outrigger_apiserver::server::tls;
use outrigger_certs::{Authority, Issued, LeafRequest, Usage};
use outrigger_storage::federated::WallClock;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

const DAY_SECONDS: i64 = 24 * 60 * 60;
pub(crate) const USERS: &str = "/api/v1/users";

/// A server behind a control plane.
pub(crate) struct World {
    pub(crate) server: TestServer,
    pub(crate) control_plane: ControlPlane,
    clients: Authority,
    proxies: Authority,
    cas: watch::Sender<Arc<ClientCas>>,
    /// What the server takes for the time, in milliseconds since 1970.
    wall_ms: Arc<AtomicU64>,
}

/// What a client shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    Nothing,
    FrontProxy,
    /// The front proxy's authority has issued it to somebody else.
    OtherName,
    ExpiredFrontProxy,
    /// The front proxy's authority, the right name, and for servers only.
    ServerUsage,
    /// The right name from an authority that nobody knows.
    WrongCa,
    /// The right name from the authority of clients.
    ClientWithTheName,
    Client,
}

/// What comes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The connection does not come about.
    Refused,
    Code(u16),
    User(String),
}

fn authority(name: &str) -> Authority {
    Authority::create(name, now() - 100 * DAY_SECONDS).expect("a CA")
}

fn parse(clients: &Authority, proxies: &Authority) -> Arc<ClientCas> {
    let data = config_map(clients.certificate_pem(), proxies.certificate_pem());
    Arc::new(ClientCas::parse(&data, &ClientCas::default(), &provider()).expect("well formed"))
}

/// A server that asks the control plane behind `client`.
pub(crate) async fn serve(
    client: kube::Client,
    cas: watch::Receiver<Arc<ClientCas>>,
    anonymous: Anonymous,
    wall_clock: WallClock,
    config: ChainConfig,
) -> TestServer {
    let paths = AlwaysAllowPaths::default();
    serve_allowing(client, paths, cas, anonymous, wall_clock, config).await
}

async fn serve_allowing(
    client: kube::Client,
    always_allow_paths: AlwaysAllowPaths,
    cas: watch::Receiver<Arc<ClientCas>>,
    anonymous: Anonymous,
    wall_clock: WallClock,
    config: ChainConfig,
) -> TestServer {
    let metrics = ApiMetrics::default();
    let config = ChainConfig {
        authenticator: Authenticator::delegating(DelegatingConfig {
            client: client.clone(),
            client_cas: cas.clone(),
            anonymous,
            wall_clock,
            metrics: metrics.auth().clone(),
            seed: 1,
        }),
        authorizer: Authorizer::delegated(DelegatedConfig {
            client,
            always_allow_paths,
            metrics: metrics.auth().clone(),
            seed: 2,
        }),
        metrics,
        ..config
    };
    let server = TestServer::start_with(ServerLimits::default(), config).await;
    let certificate = serving_certificate(&server.ca);
    let first = tls::delegating_config(certificate.clone(), &cas.borrow(), &provider()).expect("TLS");
    server.tls.send_replace(Arc::new(first));
    tokio::spawn(tls::follow_client_cas(
        certificate,
        cas,
        provider(),
        server.tls.clone(),
    ));
    server
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(Anonymous::default(), ChainConfig::default()).await
    }

    pub(crate) async fn start_with(anonymous: Anonymous, config: ChainConfig) -> Self {
        Self::start_allowing(AlwaysAllowPaths::default(), anonymous, config).await
    }

    pub(crate) async fn start_allowing(
        paths: AlwaysAllowPaths,
        anonymous: Anonymous,
        config: ChainConfig,
    ) -> Self {
        let control_plane = ControlPlane::default();
        let (clients, proxies) = (authority("clients"), authority("proxies"));
        let (cas, seen) = watch::channel(parse(&clients, &proxies));
        let wall_ms = Arc::new(AtomicU64::new(u64::try_from(now()).expect("after 1970") * 1000));
        let clock = Arc::clone(&wall_ms);
        let clock = Arc::new(move || clock.load(Ordering::Relaxed));
        let server = serve_allowing(control_plane.client(), paths, seen, anonymous, clock, config).await;
        Self {
            server,
            control_plane,
            clients,
            proxies,
            cas,
            wall_ms,
        }
    }

    fn certificate(&self, shown: Shown) -> Option<Issued> {
        const NAME: &str = "front-proxy-client";
        let leaf = LeafRequest {
            common_name: NAME.to_owned(),
            organization: None,
            names: vec!["localhost".to_owned()],
            usage: Usage::Server,
            days: 2,
        };
        let old = LeafRequest {
            usage: Usage::Client,
            ..leaf.clone()
        };
        Some(match shown {
            Shown::Nothing => return None,
            Shown::FrontProxy => client_certificate(&self.proxies, NAME, "system:masters"),
            Shown::OtherName => client_certificate(&self.proxies, "somebody", "system:masters"),
            Shown::ExpiredFrontProxy => self
                .proxies
                .issue(&old, now() - 10 * DAY_SECONDS)
                .expect("a certificate"),
            Shown::ServerUsage => self.proxies.issue(&leaf, now()).expect("a certificate"),
            Shown::WrongCa => client_certificate(&authority("proxies"), NAME, "system:masters"),
            Shown::ClientWithTheName => client_certificate(&self.clients, NAME, "developers"),
            Shown::Client => client_certificate(&self.clients, "jane", "developers"),
        })
    }

    /// A connection of each protocol; `None` if it does not come about.
    pub(crate) async fn connections(&self, shown: Shown) -> Vec<Option<Client>> {
        let certificate = self.certificate(shown);
        let mut connections = Vec::new();
        for alpn in [&b"http/1.1"[..], b"h2"] {
            connections.push(open(&self.server, alpn, certificate.as_ref()).await);
        }
        connections
    }

    /// What a request by both protocols comes to.
    async fn check(&self, shown: Shown, headers: &[(&str, &str)], expect: &Outcome) {
        for connection in self.connections(shown).await {
            let outcome = match connection {
                None => Outcome::Refused,
                Some(mut client) => try_ask(&mut client, headers).await,
            };
            assert_eq!(&outcome, expect, "{shown:?} {headers:?}");
        }
    }
}

/// Connects. With TLS 1.3 a client hears of a refusal when it reads, so this may succeed and the first request fail.
async fn open(server: &TestServer, alpn: &[u8], certificate: Option<&Issued>) -> Option<Client> {
    let stream = server.connect(alpn, certificate).await.ok()?;
    let io = hyper_util::rt::TokioIo::new(stream);
    let client = if alpn == b"h2" {
        let executor = hyper_util::rt::TokioExecutor::new();
        let (client, connection) = hyper::client::conn::http2::handshake(executor, io).await.ok()?;
        tokio::spawn(connection);
        Client::Http2(client)
    } else {
        let (client, connection) = hyper::client::conn::http1::handshake(io).await.ok()?;
        tokio::spawn(connection);
        Client::Http1(client)
    };
    Some(client)
}

fn request(client: &Client, path: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let uri = match client {
        Client::Http1(_) => path.to_owned(),
        Client::Http2(_) => format!("https://localhost{path}"),
    };
    let mut request = Request::get(uri).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).expect("a request")
}

pub(crate) async fn ask(client: &mut Client, headers: &[(&str, &str)]) -> Answer {
    client.call(Method::GET, USERS, headers, "").await
}

/// The same on a connection that the server may have refused.
async fn try_ask(client: &mut Client, headers: &[(&str, &str)]) -> Outcome {
    let Ok(response) = client.send(request(client, USERS, headers)).await else {
        return Outcome::Refused;
    };
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    outcome(&Answer {
        code: head.status.as_u16(),
        headers: head.headers,
        text: String::from_utf8_lossy(&body).into_owned(),
    })
}

pub(crate) fn outcome(answer: &Answer) -> Outcome {
    match answer.code {
        200 => {
            let user = answer.json();
            let headers = user["headers"].to_string();
            for proof in ["x-remote", "authorization", "impersonate"] {
                assert!(!headers.contains(proof), "nobody below sees {proof}: {headers}");
            }
            Outcome::User(user["name"].as_str().unwrap_or_default().to_owned())
        }
        code => Outcome::Code(code),
    }
}

pub(crate) fn user(name: &str) -> Outcome {
    Outcome::User(name.to_owned())
}

pub(crate) const ROOT: &[(&str, &str)] = &[("x-remote-user", "root"), ("x-remote-group", "system:masters")];

#[tokio::test]
async fn headers_count_only_with_the_front_proxys_certificate() {
    let world = World::start().await;
    world.check(Shown::FrontProxy, ROOT, &user("root")).await;
    world.check(Shown::Nothing, ROOT, &Outcome::Code(401)).await;
    world.check(Shown::OtherName, ROOT, &Outcome::Code(401)).await;
    world
        .check(Shown::ExpiredFrontProxy, ROOT, &Outcome::Refused)
        .await;
    world.check(Shown::ServerUsage, ROOT, &Outcome::Refused).await;
    world.check(Shown::WrongCa, ROOT, &Outcome::Refused).await;
    world
        .check(Shown::ClientWithTheName, ROOT, &user("front-proxy-client"))
        .await;
    world.check(Shown::Client, ROOT, &user("jane")).await;
    world.check(Shown::Client, &[], &user("jane")).await;
    // The front proxy itself is nobody: it speaks for others or not at all.
    world.check(Shown::FrontProxy, &[], &Outcome::Code(401)).await;
    world
        .check(Shown::FrontProxy, &[("x-remote-user", "")], &Outcome::Code(401))
        .await;
    world
        .check(
            Shown::FrontProxy,
            &[("x-remote-group", "system:masters")],
            &Outcome::Code(401),
        )
        .await;
    let twice = [("x-remote-user", "jane"), ("x-remote-user", "root")];
    world.check(Shown::FrontProxy, &twice, &user("jane")).await;
    let empty_first = [("x-remote-user", ""), ("x-remote-user", "root")];
    world
        .check(Shown::FrontProxy, &empty_first, &Outcome::Code(401))
        .await;
    world
        .check(Shown::FrontProxy, &[("X-REMOTE-USER", "jane")], &user("jane"))
        .await;
    world
        .check(Shown::Client, &[("X-Remote-User", "root")], &user("jane"))
        .await;
}

#[tokio::test]
async fn the_case_of_a_header_is_nothing_on_the_wire() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::start().await;
    for (shown, expect) in [
        (Shown::FrontProxy, "HTTP/1.1 200"),
        (Shown::Nothing, "HTTP/1.1 401"),
    ] {
        let certificate = world.certificate(shown);
        let mut stream = world
            .server
            .connect(b"http/1.1", certificate.as_ref())
            .await
            .expect("a connection");
        let head = "GET /api/v1/users HTTP/1.1\r\nHost: x\r\nx-ReMoTe-UsEr: root\r\nX-REMOTE-GROUP: system:masters\r\nConnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with(expect), "{shown:?}: {answer}");
        assert!(!answer.to_ascii_lowercase().contains("x-remote"), "{answer}");
    }
}

#[tokio::test]
async fn the_front_proxy_says_all_of_a_user() {
    let world = World::start().await;
    for connection in world.connections(Shown::FrontProxy).await {
        let mut client = connection.expect("a connection");
        let headers = [
            ("x-remote-user", "jane"),
            ("x-remote-uid", "u-7"),
            ("x-remote-group", "developers"),
            ("x-remote-group", "system:authenticated"),
            ("x-remote-extra-scopes", "a"),
            ("x-remote-extra-scopes", "b"),
            ("x-remote-extra-example.com%2fproject", "x"),
        ];
        let answer = ask(&mut client, &headers).await.json();
        assert_eq!(answer["uid"], "u-7");
        assert_eq!(answer["groups"], json!(["developers", "system:authenticated"]));
        assert_eq!(
            answer["extra"],
            json!({"scopes": ["a", "b"], "example.com/project": ["x"]})
        );
    }
}

#[tokio::test]
async fn every_request_of_a_connection_speaks_for_itself() {
    let world = World::start().await;
    for connection in world.connections(Shown::FrontProxy).await {
        let mut client = connection.expect("a connection");
        for name in ["jane", "joe", "jane"] {
            assert_eq!(
                outcome(&ask(&mut client, &[("x-remote-user", name)]).await),
                user(name)
            );
        }
    }
    let [http1, _] = &mut world.connections(Shown::FrontProxy).await[..] else {
        panic!("two connections")
    };
    let client = http1.as_mut().expect("a connection");
    assert_eq!(outcome(&ask(client, &[]).await), Outcome::Code(401));
    assert_eq!(
        outcome(&ask(client, &[("x-remote-user", "joe")]).await),
        user("joe")
    );
}

#[tokio::test]
async fn a_certificate_that_expires_or_whose_authority_goes_counts_no_more_and_the_connection_lives() {
    let world = World::start().await;
    world.control_plane.add_token("t", json!({"username": "robot"}));
    let token = [("authorization", "Bearer t"), ("x-remote-user", "root")];
    let mut connections = Vec::new();
    for shown in [Shown::FrontProxy, Shown::Client] {
        let [Some(http1), _] = &mut world.connections(shown).await[..] else {
            panic!("two connections")
        };
        connections.push(std::mem::replace(http1, world.server.http1(None).await));
    }
    let [proxy, jane] = &mut connections[..] else {
        panic!("two")
    };
    assert_eq!(outcome(&ask(proxy, ROOT).await), user("root"));
    assert_eq!(outcome(&ask(jane, &[]).await), user("jane"));
    let days = |days: u64| days * 24 * 60 * 60 * 1000;
    world.wall_ms.fetch_add(days(3), Ordering::Relaxed);
    assert_eq!(outcome(&ask(proxy, ROOT).await), Outcome::Code(401));
    assert_eq!(outcome(&ask(jane, &[]).await), Outcome::Code(401));
    world.wall_ms.fetch_sub(days(3), Ordering::Relaxed);
    assert_eq!(outcome(&ask(proxy, ROOT).await), user("root"));

    // The authorities are replaced.
    let (clients, proxies) = (authority("clients"), authority("proxies"));
    world.cas.send_replace(parse(&clients, &proxies));
    assert_eq!(outcome(&ask(proxy, ROOT).await), Outcome::Code(401));
    assert_eq!(outcome(&ask(jane, &[]).await), Outcome::Code(401));
    assert_eq!(
        outcome(&ask(proxy, &token).await),
        user("robot"),
        "the connection is as good as any"
    );
    let next = client_certificate(&proxies, "front-proxy-client", "x");
    let known = async {
        loop {
            if let Some(mut client) = open(&world.server, b"h2", Some(&next)).await
                && try_ask(&mut client, ROOT).await == user("root")
            {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let known = timeout(Duration::from_secs(10), known).await;
    known.expect("the listener learns of the new authority");
}

#[tokio::test]
async fn tokens_are_reviewed_once_in_a_while() {
    let world = World::start().await;
    let robot = json!({"username": "robot", "uid": "u", "groups": ["robots"], "extra": {"pod": ["p"]}});
    world.control_plane.add_token("good", robot);
    let mut client = world.server.http2(None).await;
    let shared: Vec<Client> = (0..50).map(|_| client.share()).collect();
    let asked = shared.into_iter().map(|mut client| async move {
        ask(
            &mut client,
            &[("authorization", "Bearer good"), ("x-remote-user", "root")],
        )
        .await
    });
    for answer in futures::future::join_all(asked).await {
        assert_eq!(outcome(&answer), user("robot"));
        let user = answer.json();
        assert_eq!(user["groups"], json!(["robots", "system:authenticated"]));
        assert_eq!(
            (&user["uid"], &user["extra"]),
            (&"u".into(), &json!({"pod": ["p"]}))
        );
    }
    assert_eq!(world.control_plane.token_reviews(), 1);
    for _ in 0..3 {
        let mut bad = world.server.http1(None).await;
        let answer = ask(&mut bad, &[("authorization", "Bearer bad")]).await;
        assert_eq!(
            (answer.code, answer.json()["reason"].clone()),
            (401, json!("Unauthorized"))
        );
    }
    assert_eq!(
        world.control_plane.token_reviews(),
        2,
        "nobody's token is remembered too"
    );
    world.control_plane.fail_with(403);
    let mut other = world.server.http1(None).await;
    assert_eq!(
        ask(&mut other, &[("authorization", "Bearer other")]).await.code,
        401
    );
    assert_eq!(
        ask(&mut client, &[("authorization", "Bearer good")]).await.code,
        200,
        "still known"
    );
    let metrics = world.server.metrics.render();
    for line in [
        "authentication_token_cache_fetch_total{status=\"error\"} 1",
        "apiserver_delegated_authn_request_total{code=\"201\"} 2",
        "apiserver_delegated_authn_request_total{code=\"403\"} 1",
        "authentication_attempts{result=\"error\"} 4",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    assert!(!metrics.contains("good"));
}

#[tokio::test]
async fn nobody_may_probe_and_loses_the_connection() {
    let world = World::start().await;
    let mut http2 = world.server.http2(None).await;
    assert_eq!(http2.get("/livez").await.text, "ok");
    let closed = async {
        while http2.send(request(&http2, "/livez", &[])).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(5), closed)
        .await
        .expect("HTTP/2 is not for nobody");
    let mut http1 = world.server.http1(None).await;
    for path in ["/livez", "/healthz"] {
        assert_ne!(http1.get(path).await.code, 401, "{path}");
    }
    for path in ["/livez/ping", "/version", "/apis", USERS] {
        assert_eq!(http1.get(path).await.code, 401, "{path}");
    }
    assert_eq!(
        world.control_plane.access_reviews(),
        [Value::Null; 0],
        "nobody costs no question"
    );

    let world = World::start_with(Anonymous::Everywhere, ChainConfig::default()).await;
    world.control_plane.deny("system:anonymous", "");
    let mut http1 = world.server.http1(None).await;
    let answer = http1.get(USERS).await;
    assert_eq!(answer.code, 403);
    let message = "users is forbidden: User \"system:anonymous\" cannot list resource \"users\" in API group \"\" at the cluster scope";
    assert_eq!(answer.json()["message"], message);
}

#[tokio::test]
async fn the_front_proxy_keeps_its_connection_whomever_it_speaks_for() {
    let world = World::start().await;
    let [_, Some(client)] = &mut world.connections(Shown::FrontProxy).await[..] else {
        panic!("two connections")
    };
    let nobody = [
        ("x-remote-user", "system:anonymous"),
        ("x-remote-group", "system:unauthenticated"),
    ];
    for _ in 0..20 {
        let answer = ask(client, &nobody).await;
        assert_eq!(outcome(&answer), user("system:anonymous"));
        assert_eq!(answer.json()["groups"], json!(["system:unauthenticated"]));
        assert_eq!(ask(client, &[]).await.code, 401);
    }
}
