//! Authorization in a control plane: what is asked of kube-apiserver, and what comes of its answers.

use crate::delegation::{ROOT, Shown, USERS, World, ask, outcome, user};
use http::Method;
use outrigger_apiserver::authentication::Anonymous;
use outrigger_apiserver::authorization::path::AlwaysAllowPaths;
use outrigger_apiserver::server::handler_chain::ChainConfig;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{sleep, timeout};

#[tokio::test]
async fn kube_apiserver_decides_and_is_asked_once() {
    let world = World::start().await;
    let [_, Some(client)] = &mut world.connections(Shown::FrontProxy).await[..] else {
        panic!("two connections")
    };
    world.control_plane.access_reviews();
    let jane = [
        ("x-remote-user", "jane"),
        ("x-remote-group", "developers"),
        ("x-remote-uid", "7"),
    ];
    for _ in 0..3 {
        let path =
            "/apis/g/v1/namespaces/ns/users?labelSelector=app+in+%28a%29&fieldSelector=metadata.name%3Dx";
        assert_eq!(client.call(Method::GET, path, &jane, "").await.code, 200);
    }
    assert_eq!(
        world.control_plane.access_reviews(),
        [json!({
            "user": "jane", "uid": "7", "groups": ["developers", "system:authenticated"],
            "resourceAttributes": {
                "verb": "list", "group": "g", "version": "v1", "namespace": "ns", "resource": "users", "name": "x",
                "labelSelector": {"requirements": [{"key": "app", "operator": "In", "values": ["a"]}]},
                "fieldSelector": {"requirements": [{"key": "metadata.name", "operator": "In", "values": ["x"]}]},
            },
        })]
    );
    world.control_plane.deny("joe", "RBAC: nothing fits <you>");
    let joe = [("x-remote-user", "joe")];
    for _ in 0..2 {
        let answer = client
            .call(Method::DELETE, "/apis/g/v1/namespaces/ns/users/u", &joe, "")
            .await;
        assert_eq!(answer.code, 403);
        assert_eq!(
            answer.json()["message"],
            "users.g \"u\" is forbidden: User \"joe\" cannot delete resource \"users\" in API group \"g\" in the namespace \"ns\": RBAC: nothing fits <you>"
        );
    }
    assert_eq!(
        world.control_plane.access_reviews().len(),
        1,
        "a refusal is remembered too"
    );
    // Masters and probes need nobody's leave.
    assert_eq!(client.call(Method::GET, USERS, ROOT, "").await.code, 200);
    assert_eq!(client.call(Method::GET, "/livez", &joe, "").await.code, 200);
    assert_eq!(world.control_plane.access_reviews(), [Value::Null; 0]);
    let below = client.call(Method::GET, "/livez/ping", &joe, "").await;
    assert_eq!(below.code, 403);
}

/// `--authorization-always-allow-paths`.
#[tokio::test]
async fn paths_of_the_administrators_choice_pass_without_a_question() {
    let paths = AlwaysAllowPaths::new(["/metrics".to_owned(), "/livez/*".to_owned()]);
    let world = World::start_allowing(paths, Anonymous::default(), ChainConfig::default()).await;
    world.control_plane.deny("joe", "nothing");
    let [_, Some(client)] = &mut world.connections(Shown::FrontProxy).await[..] else {
        panic!("two connections")
    };
    world.control_plane.access_reviews();
    let joe = [("x-remote-user", "joe")];
    for (path, code) in [
        ("/metrics", 200),
        ("/livez/ping", 200),
        ("/livez", 403),
        (USERS, 403),
    ] {
        assert_eq!(
            client.call(Method::GET, path, &joe, "").await.code,
            code,
            "{path}"
        );
    }
    assert_eq!(world.control_plane.access_reviews().len(), 2);
}

#[tokio::test]
async fn who_cannot_be_asked_refuses() {
    let world = World::start().await;
    let [_, Some(client)] = &mut world.connections(Shown::FrontProxy).await[..] else {
        panic!("two connections")
    };
    world.control_plane.fail_with(403);
    let answer = ask(client, &[("x-remote-user", "jane")]).await;
    assert_eq!(
        (answer.code, answer.headers.get("retry-after").is_some()),
        (500, true)
    );
    assert_eq!(answer.json()["reason"], "InternalError");
    assert_eq!(ask(client, ROOT).await.code, 200, "masters are not asked about");
    world.control_plane.recover();
    assert_eq!(
        ask(client, &[("x-remote-user", "jane")]).await.code,
        200,
        "a failure is not remembered"
    );
    let metrics = world.server.metrics.render();
    assert!(
        metrics.contains("apiserver_delegated_authz_request_total{code=\"403\"} 1"),
        "{metrics}"
    );
    assert!(
        metrics.contains("authorization_attempts_total{result=\"error\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn impersonation_needs_leave_for_each_part() {
    let world = World::start().await;
    let [_, Some(client)] = &mut world.connections(Shown::Client).await[..] else {
        panic!("two connections")
    };
    world.control_plane.access_reviews();
    let wish = [
        ("impersonate-user", "joe"),
        ("impersonate-group", "system:masters"),
        ("impersonate-extra-scopes", "a"),
        ("impersonate-uid", "7"),
    ];
    assert_eq!(outcome(&ask(client, &wish).await), user("joe"));
    let asked: Vec<String> = world
        .control_plane
        .access_reviews()
        .iter()
        .map(|spec| {
            let r = &spec["resourceAttributes"];
            let text = |key: &str| r[key].as_str().unwrap_or_default().to_owned();
            format!(
                "{} {} {} {}",
                text("verb"),
                text("resource"),
                text("subresource"),
                text("name")
            )
        })
        .collect();
    // As a member of system:masters joe needs no leave of his own.
    assert_eq!(
        asked,
        [
            "impersonate users  joe",
            "impersonate groups  system:masters",
            "impersonate userextras scopes a",
            "impersonate uids  7"
        ]
    );
    world.control_plane.deny("jane", "no");
    // Another wish, as the first is remembered.
    let answer = ask(client, &[("impersonate-user", "root")]).await;
    assert_eq!(
        answer.json()["message"],
        "users \"root\" is forbidden: User \"jane\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope: no"
    );
    assert_eq!(ask(client, &[("impersonate-group", "a")]).await.code, 400);
}

#[tokio::test]
async fn masters_are_served_when_all_places_are_taken() {
    let config = ChainConfig {
        requests_in_flight_max: 1,
        ..ChainConfig::default()
    };
    let world = World::start_with(Anonymous::default(), config).await;
    let [_, Some(client)] = &mut world.connections(Shown::FrontProxy).await[..] else {
        panic!("two connections")
    };
    let jane = [("x-remote-user", "jane")];
    let mut waiting = client.share();
    let waits = tokio::spawn(async move {
        loop {
            let answer = waiting.call(Method::GET, "/api/v1/waits", &jane, "").await;
            if answer.code != 429 {
                return answer.code;
            }
        }
    });
    let refused = async {
        loop {
            let answer = ask(client, &jane).await;
            if answer.code == 429 {
                return answer;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    let refused = timeout(Duration::from_secs(5), refused)
        .await
        .expect("there is one place");
    assert_eq!(refused.headers["retry-after"], "1");
    // The aggregator's probe is one of these.
    assert_eq!(ask(client, ROOT).await.code, 200);
    world.server.gate.add_permits(1);
    assert_eq!(waits.await.expect("no panic"), 200);
}
