//! What watches deliver, and how they begin and end.

use crate::api::{APPS, Api, MERGE, app, version};
use outrigger_apiserver::resources::definition::ResourceDefinition;
use outrigger_apiserver::resources::{ServedResources, builtin};
use serde_json::{Value, json};
use std::sync::Arc;

/// Publishes what is served, with the CRD changed by `change`; `None`: without it.
fn publish(api: &Api, change: Option<fn(&mut ResourceDefinition)>) {
    let mut definitions = builtin::definitions();
    let served = api.served.borrow().clone();
    let found = served.find("paas.example.com", "v1", "applications");
    if let Some((old, change)) = found.zip(change) {
        let mut definition = ResourceDefinition::clone(old);
        change(&mut definition);
        definitions.push(Arc::new(definition));
    }
    drop(api.served.send(Arc::new(ServedResources::new(definitions))));
}

#[tokio::test]
async fn a_watch_ends_when_its_kind_goes_or_becomes_another() {
    type Change = Option<fn(&mut ResourceDefinition)>;
    let changes: [(Change, bool); 5] = [
        (Some(|d| d.fingerprint += 1), true),
        (Some(|d| d.columns.clear()), true),
        (Some(|d| d.crd_uid = "another".to_owned()), false),
        (Some(|d| d.version = "v2".to_owned()), false),
        (None, false),
    ];
    for (i, (change, goes_on)) in changes.into_iter().enumerate() {
        let api = Api::with_namespaces(&["a"]).await;
        let mut watch = api
            .watch(&format!("{APPS}/applications?watch=true&resourceVersion=0"))
            .await;
        publish(&api, change);
        if goes_on {
            api.app("a", "web").await;
            assert_eq!(watch.line().await, "ADDED web", "{i}");
        } else {
            assert_eq!(watch.line().await, "end", "{i}");
        }
    }
}

fn url(namespace: &str, name: &str) -> String {
    format!("{APPS}/namespaces/{namespace}/applications/{name}")
}

const INITIAL: &str =
    "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";

#[tokio::test]
async fn initial_events_end_with_a_bookmark_and_changes_follow() {
    let api = Api::with_namespaces(&["a", "b"]).await;
    api.app("b", "y").await;
    api.app("a", "x").await;
    let mut watch = api.watch(&format!("{APPS}/applications?{INITIAL}")).await;
    assert_eq!([watch.line().await, watch.line().await], ["ADDED x", "ADDED y"]);
    let bookmark = watch.next().await.expect("a bookmark");
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(
        bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert_eq!(bookmark["object"]["kind"], "Application");

    let changed = api
        .patch(&url("a", "x"), MERGE, json!({"spec": {"replicas": 3}}))
        .await
        .expect(200);
    let event = watch.next().await.expect("an event");
    assert_eq!((&event["type"], &event["object"]), (&json!("MODIFIED"), &changed));
    let deleted = api.delete(&url("a", "x"), Value::Null).await.expect(200);
    let event = watch.next().await.expect("an event");
    assert_eq!(event["type"], "DELETED");
    assert_eq!(event["object"]["spec"], changed["spec"]);
    assert_eq!(version(&event["object"]), version(&deleted));
    assert!(version(&event["object"]) > version(&bookmark["object"]));
}

#[tokio::test]
async fn an_empty_watch_has_its_bookmark_too() {
    let api = Api::with_namespaces(&["a"]).await;
    for uri in [
        format!("{APPS}/applications"),
        format!("{APPS}/namespaces/a/applications"),
        "/api/v1/secrets".to_owned(),
    ] {
        let mut watch = api.watch(&format!("{uri}?{INITIAL}")).await;
        assert_eq!(watch.line().await, "BOOKMARK", "{uri}");
    }
    let mut watch = api
        .watch(&format!("{APPS}/namespaces/a/applications?{INITIAL}"))
        .await;
    assert_eq!(watch.line().await, "BOOKMARK");
    api.app("a", "first").await;
    assert_eq!(
        watch.line().await,
        "ADDED first",
        "the namespace was placed after the watch began"
    );
}

#[tokio::test]
async fn a_watch_resumes_after_a_version() {
    let api = Api::with_namespaces(&["a", "b"]).await;
    let first = api.app("a", "x").await;
    let mut later = [("y", api.app("b", "y").await), ("z", api.app("a", "z").await)];
    // Across clusters the order is that of the versions.
    later.sort_by_key(|(_, object)| version(object));
    let after = format!(
        "{APPS}/applications?watch=true&resourceVersion={}",
        version(&first)
    );
    let mut watch = api.watch(&after).await;
    for (name, object) in later
        .iter()
        .filter(|(_, object)| version(object) > version(&first))
    {
        let event = watch.next().await.expect("an event");
        assert_eq!(
            (&event["type"], &event["object"]),
            (&json!("ADDED"), object),
            "{name}"
        );
    }
    let list = api.get(&format!("{APPS}/applications")).await.expect(200);
    let mut watch = api
        .watch(&format!(
            "{APPS}/applications?watch=1&resourceVersion={}",
            version(&list)
        ))
        .await;
    api.app("b", "new").await;
    assert_eq!(watch.line().await, "ADDED new");
}

#[tokio::test]
async fn selectors_turn_changes_into_additions_and_deletions() {
    let api = Api::with_namespaces(&["a"]).await;
    api.app("a", "x").await;
    let list = api.get(&format!("{APPS}/applications")).await.expect(200);
    let uri = format!(
        "{APPS}/namespaces/a/applications?watch=1&labelSelector=on&resourceVersion={}",
        version(&list)
    );
    let mut watch = api.watch(&uri).await;
    api.app("a", "other").await;
    let on = api
        .patch(
            &url("a", "x"),
            MERGE,
            json!({"metadata": {"labels": {"on": "1"}}}),
        )
        .await
        .expect(200);
    assert_eq!(watch.line().await, "ADDED x");
    let off = api
        .patch(
            &url("a", "x"),
            MERGE,
            json!({"metadata": {"labels": {"on": null}}}),
        )
        .await
        .expect(200);
    let event = watch.next().await.expect("an event");
    assert_eq!(event["type"], "DELETED");
    assert_eq!(
        event["object"]["metadata"]["labels"], on["metadata"]["labels"],
        "the last state that matched"
    );
    assert_eq!(version(&event["object"]), version(&off));

    let mut one = api
        .watch(&format!(
            "{APPS}/namespaces/a/applications?watch=1&fieldSelector=metadata.name%3Dz"
        ))
        .await;
    api.app("a", "y").await;
    api.app("a", "z").await;
    assert_eq!(one.line().await, "ADDED z");
}

#[tokio::test]
async fn a_watch_ends_when_its_time_is_over_or_the_server_stops() {
    let api = Api::with_namespaces(&["a"]).await;
    api.app("a", "x").await;
    let mut watch = api
        .watch(&format!("{APPS}/applications?watch=1&timeoutSeconds=1"))
        .await;
    assert_eq!([watch.line().await, watch.line().await], ["ADDED x", "end"]);
    let mut watch = api.watch(&format!("{APPS}/applications?watch=1")).await;
    assert_eq!(watch.line().await, "ADDED x");
    api.termination.0.cancel();
    assert_eq!(watch.line().await, "end");
}

#[tokio::test]
async fn the_last_bookmark_comes_before_the_planned_end() {
    let api = Api::with_namespaces(&["a"]).await;
    api.app("a", "x").await;
    let uri = format!("{APPS}/applications?watch=1&timeoutSeconds=3&allowWatchBookmarks=true");
    let mut watch = api.watch(&uri).await;
    let lines = [
        watch.line().await,
        watch.line().await,
        watch.line().await,
        watch.line().await,
    ];
    assert_eq!(lines, ["ADDED x", "BOOKMARK", "BOOKMARK", "end"]);
}

#[tokio::test]
async fn a_version_that_is_too_old_is_an_event() {
    let api = Api::with_namespaces(&["a"]).await;
    api.app("a", "x").await;
    let mut watch = api
        .watch(&format!("{APPS}/applications?watch=1&resourceVersion=134220288"))
        .await;
    let event = watch.next().await.expect("an event");
    assert_eq!(
        (
            &event["type"],
            &event["object"]["code"],
            &event["object"]["reason"]
        ),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
    assert_eq!(watch.line().await, "end");
    let bad = api
        .get(&format!(
            "{APPS}/applications?watch=1&resourceVersionMatch=Exact&resourceVersion=5"
        ))
        .await;
    bad.error(422, "Invalid");
}

#[tokio::test]
async fn a_table_watch_sends_its_columns_once() {
    let api = Api::with_namespaces(&["a"]).await;
    api.post(&format!("{APPS}/namespaces/a/applications"), app("x"))
        .await
        .expect(201);
    api.app("a", "y").await;
    let answer = api
        .call(
            http::Method::GET,
            &format!("{APPS}/applications?watch=1&timeoutSeconds=1"),
            &[("accept", "application/json;as=Table;g=meta.k8s.io;v=v1")],
            "",
        )
        .await;
    let frames: Vec<Value> = serde_json::Deserializer::from_slice(&answer.body)
        .into_iter()
        .map(|v| v.expect("a frame"))
        .collect();
    assert_eq!(frames.len(), 2);
    assert!(frames[0]["object"]["columnDefinitions"].is_array());
    assert!(!frames[1]["object"]["columnDefinitions"].is_array());
}
