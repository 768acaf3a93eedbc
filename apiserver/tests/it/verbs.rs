//! What the verbs do to objects and what they answer.

use crate::api::{APPS, Api, JSON_PATCH, MERGE, app, names, version};
use http::Method;
use serde_json::{Value, json};

fn url(namespace: &str, name: &str) -> String {
    format!("{APPS}/namespaces/{namespace}/applications/{name}")
}

#[tokio::test]
async fn create_sets_what_only_the_server_sets() {
    let api = Api::with_namespaces(&["a"]).await;
    let mut body = app("web");
    body["metadata"]["uid"] = "mine".into();
    body["metadata"]["generation"] = 7.into();
    body["metadata"]["managedFields"] = json!([{"manager": "me"}]);
    body["metadata"]["unknown"] = true.into();
    body["status"] = json!({"endpoint": "x"});
    let created = api
        .post(&format!("{APPS}/namespaces/a/applications"), body)
        .await
        .expect(201);
    assert_ne!(created["metadata"]["uid"], "mine");
    assert_eq!(created["metadata"]["generation"], 1);
    assert_eq!(created["metadata"]["namespace"], "a");
    assert!(created.get("status").is_none(), "{created}");
    for gone in ["managedFields", "unknown"] {
        assert!(created["metadata"].get(gone).is_none(), "{created}");
    }
    assert!(version(&created) > 0);
    assert_eq!(api.get(&url("a", "web")).await.expect(200), created);
    let at = |version: u64| format!("{}?resourceVersion={version}", url("a", "web"));
    assert_eq!(api.get(&at(version(&created))).await.expect(200), created);
    api.get(&at(1 << 62)).await.error(504, "Timeout");

    let again = api
        .post(&format!("{APPS}/namespaces/a/applications"), app("web"))
        .await;
    assert_eq!(
        again.error(409, "AlreadyExists"),
        r#"applications.paas.example.com "web" already exists"#
    );
}

#[tokio::test]
async fn what_create_refuses() {
    let api = Api::with_namespaces(&["a"]).await;
    let apps = format!("{APPS}/namespaces/a/applications");
    let post = |change: fn(&mut Value)| {
        let mut body = app("web");
        change(&mut body);
        api.post(&apps, body)
    };
    let message = post(|b| b["metadata"]["name"] = "Web".into())
        .await
        .error(422, "Invalid");
    assert!(message.starts_with(r#"Application.paas.example.com "Web" is invalid: metadata.name: Invalid value: "Web": a lowercase RFC 1123"#), "{message}");
    post(|b| b["metadata"]["namespace"] = "b".into())
        .await
        .error(400, "BadRequest");
    let message = post(|b| b["apiVersion"] = "paas.example.com/v2".into())
        .await
        .error(400, "BadRequest");
    assert_eq!(
        message,
        "the API version in the data (paas.example.com/v2) does not match the expected API version (paas.example.com/v1)"
    );
    post(|b| b["kind"] = "Other".into()).await.error(422, "Invalid");
    post(|b| b["metadata"]["labels"] = json!({"a": 1}))
        .await
        .error(400, "BadRequest");
    post(|b| b["metadata"]["labels"] = json!({"a b": "c"}))
        .await
        .error(422, "Invalid");
    post(|b| b["metadata"]["annotations"] = json!({"a": "x".repeat(300_000)}))
        .await
        .error(422, "Invalid");
    post(|b| b["metadata"]["resourceVersion"] = "17".into())
        .await
        .expect(500);
    post(|b| {
        b["metadata"]
            .as_object_mut()
            .map(|m| m.remove("name"))
            .map_or((), drop)
    })
    .await
    .error(422, "Invalid");
    post(|b| b["spec"]["command"] = json!(["x".repeat(1_600_000)]))
        .await
        .error(413, "RequestEntityTooLarge");
    let missing = api
        .post(&format!("{APPS}/namespaces/nowhere/applications"), app("web"))
        .await;
    assert_eq!(
        missing.error(404, "NotFound"),
        r#"namespaces "nowhere" not found"#
    );
    let broken = api
        .call(Method::POST, &apps, &[("content-type", "application/json")], "{")
        .await;
    broken.error(400, "BadRequest");
    let protobuf = api
        .call(
            Method::POST,
            &apps,
            &[("content-type", "application/vnd.kubernetes.protobuf")],
            "x",
        )
        .await;
    protobuf.error(415, "UnsupportedMediaType");
}

#[tokio::test]
async fn duplicate_fields_are_warnings_or_errors() {
    let api = Api::with_namespaces(&["a"]).await;
    let apps = format!("{APPS}/namespaces/a/applications");
    let body = r#"{"apiVersion":"paas.example.com/v1","kind":"Application","metadata":{"name":"web"},"spec":{"image":"a","image":"b"}}"#;
    let send = |query: &str| {
        let uri = format!("{apps}?{query}");
        let api = &api;
        async move {
            api.call(Method::POST, &uri, &[("content-type", "application/json")], body)
                .await
        }
    };
    let strict = send("fieldValidation=Strict").await.error(400, "BadRequest");
    assert!(
        strict.contains(r#"strict decoding error: duplicate field "spec.image""#),
        "{strict}"
    );
    let ignored = send("fieldValidation=Ignore&dryRun=All").await;
    ignored.expect(201);
    assert_eq!(ignored.warnings, [""; 0]);
    let warned = send("").await;
    assert_eq!(warned.expect(201)["spec"]["image"], "b");
    assert_eq!(warned.warnings, [r#"299 - "duplicate field \"spec.image\"""#]);
}

#[tokio::test]
async fn names_are_generated() {
    let api = Api::with_namespaces(&["a"]).await;
    let mut body = app("x");
    body["metadata"] = json!({"generateName": "web-"});
    let created = api
        .post(&format!("{APPS}/namespaces/a/applications"), body)
        .await
        .expect(201);
    let name = created["metadata"]["name"].as_str().unwrap_or_default();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
}

#[tokio::test]
async fn update_is_optimistic_and_counts_generations() {
    let api = Api::with_namespaces(&["a"]).await;
    let created = api.app("a", "web").await;
    let mut changed = created.clone();
    changed["spec"]["replicas"] = 3.into();
    let updated = api.put(&url("a", "web"), changed.clone()).await.expect(200);
    assert_eq!(updated["metadata"]["generation"], 2);
    assert!(version(&updated) > version(&created));
    assert_eq!(updated["metadata"]["uid"], created["metadata"]["uid"]);

    let stale = api.put(&url("a", "web"), changed.clone()).await;
    assert_eq!(
        stale.error(409, "Conflict"),
        r#"Operation cannot be fulfilled on applications.paas.example.com "web": the object has been modified; please apply your changes to the latest version and try again"#
    );
    // A no-op writes nothing, and labels are no generation.
    assert_eq!(
        api.put(&url("a", "web"), updated.clone()).await.expect(200),
        updated
    );
    let mut labelled = updated.clone();
    labelled["metadata"]["labels"]["b"] = "c".into();
    let labelled = api.put(&url("a", "web"), labelled).await.expect(200);
    assert_eq!(labelled["metadata"]["generation"], 2);

    changed["metadata"]
        .as_object_mut()
        .map(|m| m.remove("resourceVersion"));
    let message = api.put(&url("a", "web"), changed).await.error(422, "Invalid");
    assert_eq!(
        message,
        r#"applications.paas.example.com "web" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update"#
    );
    let mut other = labelled.clone();
    other["metadata"]["name"] = "other".into();
    api.put(&url("a", "web"), other).await.error(400, "BadRequest");
    let mut other = labelled.clone();
    other["metadata"]["uid"] = "other".into();
    api.put(&url("a", "web"), other).await.error(409, "Conflict");
    api.put(&url("a", "nothing"), {
        let mut o = labelled;
        o["metadata"]["name"] = "nothing".into();
        o
    })
    .await
    .error(404, "NotFound");
}

#[tokio::test]
async fn status_and_object_do_not_touch_each_other() {
    let api = Api::with_namespaces(&["a"]).await;
    let created = api.app("a", "web").await;
    let mut both = created.clone();
    both["status"] = json!({"endpoint": "https://web"});
    both["spec"]["replicas"] = 9.into();
    both["metadata"]["labels"] = json!({"x": "y"});
    let status = api
        .put(&format!("{}/status", url("a", "web")), both.clone())
        .await
        .expect(200);
    assert_eq!(status["status"]["endpoint"], "https://web");
    assert_eq!(
        (&status["spec"], &status["metadata"]["labels"]),
        (&created["spec"], &created["metadata"]["labels"])
    );
    assert_eq!(status["metadata"]["generation"], 1);
    let mut object = status.clone();
    object["status"]["endpoint"] = "https://other".into();
    object["spec"]["replicas"] = 5.into();
    let object = api.put(&url("a", "web"), object).await.expect(200);
    assert_eq!(
        (&object["status"]["endpoint"], &object["spec"]["replicas"]),
        (&json!("https://web"), &json!(5))
    );
    let patched = api
        .patch(
            &format!("{}/status", url("a", "web")),
            MERGE,
            json!({"status": {"endpoint": "e"}, "spec": {"replicas": 1}}),
        )
        .await
        .expect(200);
    assert_eq!(
        (&patched["status"]["endpoint"], &patched["spec"]["replicas"]),
        (&json!("e"), &json!(5))
    );
    api.get(&format!("{}/nothing", url("a", "web")))
        .await
        .error(404, "NotFound");
    api.delete(&format!("{}/status", url("a", "web")), Value::Null)
        .await
        .error(405, "MethodNotAllowed");
}

#[tokio::test]
async fn patches() {
    let api = Api::with_namespaces(&["a"]).await;
    let created = api.app("a", "web").await;
    let web = url("a", "web");
    let merged = api
        .patch(&web, MERGE, json!({"spec": {"replicas": 4, "tier": null}}))
        .await
        .expect(200);
    assert_eq!(
        merged["spec"],
        json!({"image": "registry.example.com/web:1", "replicas": 4})
    );
    let json_patched = api.patch(&web, JSON_PATCH, json!([{"op": "test", "path": "/spec/replicas", "value": 4.0}, {"op": "add", "path": "/metadata/labels/b", "value": "c"}])).await.expect(200);
    assert_eq!(json_patched["metadata"]["labels"]["b"], "c");
    assert_eq!(
        api.patch(&web, MERGE, json!({"spec": {"replicas": 4}}))
            .await
            .expect(200),
        json_patched,
        "a no-op"
    );

    api.patch(&web, MERGE, json!({"metadata": {"resourceVersion": created["metadata"]["resourceVersion"]}, "spec": {"replicas": 5}})).await.error(409, "Conflict");
    api.patch(&web, JSON_PATCH, json!([{"op": "remove", "path": "/nothing"}]))
        .await
        .error(422, "Invalid");
    api.patch(&web, JSON_PATCH, json!({}))
        .await
        .error(400, "BadRequest");
    api.patch(&web, MERGE, json!([])).await.error(400, "BadRequest");
    api.patch(&web, MERGE, json!({"metadata": {"name": "other"}}))
        .await
        .error(400, "BadRequest");
    api.patch(&web, MERGE, json!({"metadata": {"namespace": "other"}}))
        .await
        .error(400, "BadRequest");
    api.patch(&web, MERGE, json!({"metadata": {"uid": "other"}}))
        .await
        .error(422, "Invalid");
    api.patch(&web, MERGE, json!({"kind": "Other"}))
        .await
        .error(422, "Invalid");
    api.patch(&web, MERGE, json!({"metadata": {"labels": {"a": 1}}}))
        .await
        .error(422, "Invalid");
    api.patch(&web, "application/strategic-merge-patch+json", json!({}))
        .await
        .error(415, "UnsupportedMediaType");
    api.patch(&web, "application/apply-patch+yaml", json!({}))
        .await
        .error(415, "UnsupportedMediaType");
    api.patch(&url("a", "nothing"), MERGE, json!({}))
        .await
        .error(404, "NotFound");

    let patches = (0..8).map(|i| {
        let (api, web) = (&api, &web);
        async move {
            api.patch(
                web,
                MERGE,
                json!({"metadata": {"annotations": {format!("n{i}"): "x"}}}),
            )
            .await
            .expect(200)
        }
    });
    futures::future::join_all(patches).await;
    let all = api.get(&web).await.expect(200);
    assert_eq!(
        all["metadata"]["annotations"]
            .as_object()
            .map(serde_json::Map::len),
        Some(8),
        "{all}"
    );
}

#[tokio::test]
async fn scale_is_the_replicas_of_its_parent() {
    let api = Api::with_namespaces(&["a"]).await;
    let created = api.app("a", "web").await;
    let scale_url = format!("{}/scale", url("a", "web"));
    let scale = api.get(&scale_url).await.expect(200);
    assert_eq!(
        (&scale["apiVersion"], &scale["kind"], &scale["spec"]),
        (&json!("autoscaling/v1"), &json!("Scale"), &json!({"replicas": 2}))
    );
    for same in ["uid", "resourceVersion", "name", "namespace", "creationTimestamp"] {
        assert_eq!(scale["metadata"][same], created["metadata"][same]);
    }
    let mut put = scale.clone();
    put["spec"]["replicas"] = 3.into();
    let after = api.put(&scale_url, put.clone()).await.expect(200);
    assert_eq!(after["spec"]["replicas"], 3);
    api.put(&scale_url, put).await.error(409, "Conflict");
    let after = api
        .patch(&scale_url, MERGE, json!({"spec": {"replicas": 4}}))
        .await
        .expect(200);
    assert_eq!(after["spec"]["replicas"], 4);
    api.patch(&scale_url, MERGE, json!({"spec": {"replicas": -1}}))
        .await
        .error(422, "Invalid");
    let parent = api.get(&url("a", "web")).await.expect(200);
    assert_eq!(
        (&parent["spec"]["replicas"], &parent["metadata"]["generation"]),
        (&json!(4), &json!(3))
    );
    api.patch(&url("a", "web"), MERGE, json!({"spec": {"replicas": null}}))
        .await
        .expect(200);
    api.get(&scale_url).await.error(500, "InternalError");
}

#[tokio::test]
async fn delete_answers_with_the_version_of_the_deletion() {
    let api = Api::with_namespaces(&["a"]).await;
    let created = api.app("a", "web").await;
    let wrong = api
        .delete(&url("a", "web"), json!({"preconditions": {"uid": "other"}}))
        .await;
    assert!(
        wrong
            .error(409, "Conflict")
            .contains("the UID in the precondition (other) does not match")
    );
    api.delete(
        &url("a", "web"),
        json!({"preconditions": {"resourceVersion": "1"}}),
    )
    .await
    .error(409, "Conflict");
    let dry = api
        .delete(&format!("{}?dryRun=All", url("a", "web")), Value::Null)
        .await;
    assert_eq!(dry.expect(200)["status"], "Success");
    let deleted = api.delete(&url("a", "web"), Value::Null).await.expect(200);
    assert_eq!(
        (&deleted["kind"], &deleted["status"]),
        (&json!("Status"), &json!("Success"))
    );
    let details = json!({"name": "web", "group": "paas.example.com", "kind": "applications", "uid": created["metadata"]["uid"]});
    assert_eq!(deleted["details"], details);
    assert!(version(&deleted) > version(&created));
    api.delete(&url("a", "web"), Value::Null)
        .await
        .error(404, "NotFound");
    api.get(&url("a", "web")).await.error(404, "NotFound");
}

#[tokio::test]
async fn finalizers_keep_an_object_until_the_last_is_gone() {
    let api = Api::with_namespaces(&["a"]).await;
    let mut body = app("web");
    body["metadata"]["finalizers"] = json!(["example.com/x"]);
    let created = api
        .post(&format!("{APPS}/namespaces/a/applications"), body)
        .await
        .expect(201);
    let marked = api.delete(&url("a", "web"), Value::Null).await.expect(200);
    assert_eq!(marked["kind"], "Application");
    assert_eq!(marked["metadata"]["generation"], 2);
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 0);
    assert!(marked["metadata"]["deletionTimestamp"].is_string() && version(&marked) > version(&created));
    assert_eq!(
        api.delete(&url("a", "web"), Value::Null).await.expect(200),
        marked,
        "again: nothing changes"
    );

    let more = api
        .patch(
            &url("a", "web"),
            MERGE,
            json!({"metadata": {"finalizers": ["example.com/x", "example.com/y"]}}),
        )
        .await;
    assert!(
        more.error(422, "Invalid")
            .contains("no new finalizers can be added if the object is being deleted")
    );
    let message = api
        .post(&format!("{APPS}/namespaces/a/applications"), app("web"))
        .await
        .error(409, "AlreadyExists");
    assert!(message.starts_with("object is being deleted: "), "{message}");
    let last = api
        .patch(&url("a", "web"), MERGE, json!({"metadata": {"finalizers": null}}))
        .await
        .expect(200);
    assert!(version(&last) > version(&marked));
    api.get(&url("a", "web")).await.error(404, "NotFound");
}

#[tokio::test]
async fn propagation_policies_are_finalizers() {
    let api = Api::with_namespaces(&["a"]).await;
    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        api.app("a", "web").await;
        let marked = api
            .delete(&url("a", "web"), json!({"propagationPolicy": policy}))
            .await
            .expect(200);
        assert_eq!(marked["metadata"]["finalizers"], json!([finalizer]));
        let done = api
            .delete(&url("a", "web"), json!({"propagationPolicy": "Background"}))
            .await
            .expect(200);
        assert_eq!(done["status"], "Success", "the policy changed: {done}");
    }
    api.app("a", "web").await;
    let old = api
        .delete(&format!("{}?orphanDependents=true", url("a", "web")), Value::Null)
        .await;
    assert_eq!(old.expect(200)["metadata"]["finalizers"], json!(["orphan"]));
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let api = Api::with_namespaces(&["a"]).await;
    for name in ["x", "y", "z"] {
        api.app("a", name).await;
    }
    let apps = format!("{APPS}/namespaces/a/applications");
    let dry = api
        .delete(&format!("{apps}?dryRun=All"), Value::Null)
        .await
        .expect(200);
    assert_eq!(names(&dry), ["a/x", "a/y", "a/z"]);
    let deleted = api
        .delete(&format!("{apps}?labelSelector=app%20in%20(x,z)"), Value::Null)
        .await
        .expect(200);
    assert_eq!(
        (&deleted["kind"], names(&deleted)),
        (
            &json!("ApplicationList"),
            vec!["a/x".to_owned(), "a/z".to_owned()]
        )
    );
    assert_eq!(names(&api.get(&apps).await.expect(200)), ["a/y"]);
}

#[tokio::test]
async fn lists_are_ordered_paged_and_selected() {
    let api = Api::with_namespaces(&["a", "a-b", "b"]).await;
    for (namespace, name) in [("b", "w"), ("a", "y"), ("a-b", "x"), ("a", "x")] {
        api.app(namespace, name).await;
    }
    let all = format!("{APPS}/applications");
    let list = api.get(&all).await.expect(200);
    assert_eq!(
        (&list["kind"], &list["apiVersion"]),
        (&json!("ApplicationList"), &json!("paas.example.com/v1"))
    );
    assert_eq!(names(&list), ["a/x", "a/y", "a-b/x", "b/w"]);
    assert!(
        list["items"]
            .as_array()
            .is_some_and(|items| items.iter().all(|i| version(i) < version(&list)))
    );

    let first = api.get(&format!("{all}?limit=3")).await.expect(200);
    assert_eq!(names(&first).len(), 3);
    assert_eq!(first["metadata"]["remainingItemCount"], 1);
    api.app("b", "later").await;
    let token = first["metadata"]["continue"].as_str().unwrap_or_default();
    let second = api
        .get(&format!("{all}?limit=3&continue={token}"))
        .await
        .expect(200);
    assert_eq!(names(&second), ["b/w"]);
    assert_eq!(version(&second), version(&first));
    assert!(second["metadata"].get("continue").is_none());
    api.get(&format!("{all}?limit=3&continue={token}&resourceVersion=5"))
        .await
        .error(400, "BadRequest");
    api.get(&format!("{all}?continue=x"))
        .await
        .error(400, "BadRequest");

    let exact = api
        .get(&format!(
            "{all}?resourceVersion={}&resourceVersionMatch=Exact",
            version(&list)
        ))
        .await
        .expect(200);
    assert_eq!((names(&exact), version(&exact)), (names(&list), version(&list)));
    let old = api.get(&format!("{all}?resourceVersion=0")).await.expect(200);
    assert!(version(&old) > 0);
    api.get(&format!("{all}?resourceVersionMatch=Exact"))
        .await
        .error(422, "Invalid");
    api.get(&format!("{all}?resourceVersion=abc"))
        .await
        .error(400, "BadRequest");

    let select = |query: &'static str| {
        let (api, all) = (&api, &all);
        async move { names(&api.get(&format!("{all}?{query}")).await.expect(200)) }
    };
    assert_eq!(select("labelSelector=app%3Dw").await, ["b/w"]);
    assert_eq!(select("fieldSelector=metadata.name%3Dx").await, ["a/x", "a-b/x"]);
    assert_eq!(select("fieldSelector=metadata.namespace%3Da-b").await, ["a-b/x"]);
    let one = format!("{APPS}/namespaces/a/applications?fieldSelector=metadata.name%3D");
    assert_eq!(names(&api.get(&format!("{one}y")).await.expect(200)), ["a/y"]);
    assert_eq!(names(&api.get(&format!("{one}w")).await.expect(200)), [""; 0]);
    assert_eq!(select("fieldSelector=spec.tier%3Dbatch").await, [""; 0]);
    assert_eq!(
        select("fieldSelector=spec.tier%3Dstandard,metadata.name%3Dw").await,
        ["b/w"]
    );
    let message = api
        .get(&format!("{all}?fieldSelector=spec.port%3D1"))
        .await
        .error(400, "BadRequest");
    assert_eq!(message, "field label not supported: spec.port");
}

#[tokio::test]
async fn empty_lists_have_items_and_a_version() {
    let api = Api::with_namespaces(&["a"]).await;
    for uri in [
        format!("{APPS}/namespaces/a/applications"),
        format!("{APPS}/namespaces/nowhere/applications"),
        format!("{APPS}/applications"),
    ] {
        let list = api.get(&uri).await.expect(200);
        assert_eq!(list["items"], json!([]), "{uri}");
        assert!(version(&list) > 0, "{uri}");
    }
}

#[tokio::test]
async fn shards_are_selected_and_echoed() {
    let api = Api::with_namespaces(&["a"]).await;
    for i in 0..8 {
        api.app("a", &format!("n{i}")).await;
    }
    let half = |start: &str, end: &str| {
        let selector = format!("shardRange(object.metadata.uid,'{start}','{end}')");
        let uri = format!("{APPS}/applications?shardSelector={selector}");
        let api = &api;
        async move { api.get(&uri).await.expect(200) }
    };
    let low = half("0x0000000000000000", "0x8000000000000000").await;
    let high = half("0x8000000000000000", "0x10000000000000000").await;
    assert_eq!(names(&low).len() + names(&high).len(), 8);
    assert!(
        low["metadata"]["shardInfo"]["selector"]
            .as_str()
            .is_some_and(|s| s.contains("'0x0000000000000000'")),
        "{low}"
    );
    api.get(&format!("{APPS}/applications?shardSelector=half"))
        .await
        .error(400, "BadRequest");
}

#[tokio::test]
async fn tables_and_metadata() {
    let api = Api::with_namespaces(&["a"]).await;
    api.app("a", "web").await;
    let get = |accept: &'static str| {
        let api = &api;
        async move {
            api.call(
                Method::GET,
                &format!("{APPS}/applications"),
                &[("accept", accept)],
                "",
            )
            .await
            .expect(200)
        }
    };
    let table = get("application/json;as=Table;g=meta.k8s.io;v=v1").await;
    assert_eq!(
        (&table["kind"], &table["rows"][0]["cells"][0]),
        (&json!("Table"), &json!("web"))
    );
    let metadata = get("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1").await;
    assert_eq!(metadata["kind"], "PartialObjectMetadataList");
    assert_eq!(metadata["items"][0]["metadata"]["name"], "web");
    assert!(metadata["items"][0].get("spec").is_none());
}

#[tokio::test]
async fn dry_runs_store_nothing() {
    let api = Api::with_namespaces(&["a"]).await;
    let apps = format!("{APPS}/namespaces/a/applications?dryRun=All");
    let dry = api.post(&apps, app("web")).await.expect(201);
    assert!(dry["metadata"]["uid"].is_string() && dry["metadata"].get("resourceVersion").is_none());
    api.get(&url("a", "web")).await.error(404, "NotFound");
    let created = api.app("a", "web").await;
    api.post(&apps, app("web")).await.error(409, "AlreadyExists");
    let dry = api
        .patch(
            &format!("{}?dryRun=All", url("a", "web")),
            MERGE,
            json!({"spec": {"replicas": 7}}),
        )
        .await
        .expect(200);
    assert_eq!(
        (&dry["spec"]["replicas"], version(&dry)),
        (&json!(7), version(&created))
    );
    assert_eq!(api.get(&url("a", "web")).await.expect(200), created);
    api.post(&format!("{APPS}/namespaces/a/applications?dryRun=Some"), app("x"))
        .await
        .error(422, "Invalid");
}

#[tokio::test]
async fn a_namespace_ends_in_two_steps() {
    let api = Api::with_namespaces(&["a"]).await;
    let namespace = api.get("/api/v1/namespaces/a").await.expect(200);
    assert_eq!(namespace["spec"]["finalizers"], json!(["kubernetes"]));
    assert_eq!(namespace["status"]["phase"], "Active");
    assert_eq!(
        namespace["metadata"]["labels"]["kubernetes.io/metadata.name"],
        "a"
    );
    let deleted = api.delete("/api/v1/namespaces/a", Value::Null).await.expect(200);
    assert_eq!(
        (&deleted["kind"], &deleted["status"]["phase"]),
        (&json!("Namespace"), &json!("Terminating"))
    );
    let refused = api
        .post(&format!("{APPS}/namespaces/a/applications"), app("web"))
        .await;
    let status = refused.expect(403);
    assert_eq!(
        status["details"]["causes"][0]["reason"], "NamespaceTerminating",
        "{status}"
    );
    assert_eq!(
        status["message"],
        r#"applications.paas.example.com "web" is forbidden: unable to create new content in namespace a because it is being terminated"#
    );
    let mut finalize = deleted.clone();
    finalize["spec"]["finalizers"] = json!([]);
    api.put("/api/v1/namespaces/a/finalize", finalize)
        .await
        .expect(200);
    api.get("/api/v1/namespaces/a").await.error(404, "NotFound");
    api.delete("/api/v1/namespaces", Value::Null)
        .await
        .error(405, "MethodNotAllowed");
}

#[tokio::test]
async fn built_in_kinds_take_strategic_merge_patch() {
    let api = Api::with_namespaces(&["a"]).await;
    let patched = api
        .patch(
            "/api/v1/namespaces/a",
            "application/strategic-merge-patch+json",
            json!({"metadata": {"labels": {"team": "x"}}}),
        )
        .await;
    assert_eq!(patched.expect(200)["metadata"]["labels"]["team"], "x");
}

#[tokio::test]
async fn what_is_not_there_is_a_page_and_what_cannot_be_done_a_status() {
    let api = Api::with_namespaces(&["a"]).await;
    for uri in [
        "/apis/none.example.com/v1/things",
        "/apis/paas.example.com/v2/applications",
        "/api/v1/namespaces/a/namespaces/b",
        "/nothing",
    ] {
        let answer = api.get(uri).await;
        assert_eq!(
            (answer.code, &answer.body[..]),
            (404, &b"404 page not found\n"[..]),
            "{uri}"
        );
        assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    }
    assert_eq!(
        api.post(&format!("{APPS}/applications"), app("x")).await.code,
        404
    );
    api.post("/api/v1/namespaces/a", json!({"metadata": {"name": "a"}}))
        .await
        .error(405, "MethodNotAllowed");
    let answer = api
        .call(
            Method::GET,
            &url("a", "web"),
            &[("accept", "application/xml")],
            "",
        )
        .await;
    answer.error(406, "NotAcceptable");
}

#[tokio::test]
async fn long_lists_are_compressed_for_those_who_accept_it() {
    let api = Api::with_namespaces(&["a"]).await;
    let mut big = app("big");
    big["spec"]["command"] = json!(["x".repeat(200_000)]);
    api.post(&format!("{APPS}/namespaces/a/applications"), big)
        .await
        .expect(201);
    let uri = format!("{APPS}/applications");
    let gzip = api
        .call(Method::GET, &uri, &[("accept-encoding", "gzip")], "")
        .await;
    assert_eq!(gzip.headers["content-encoding"], "gzip");
    assert!(gzip.body.len() < 50_000);
    let plain = api.get(&uri).await;
    assert!(plain.headers.get("content-encoding").is_none());
    assert!(
        plain.expect(200)["items"][0]["spec"]["command"][0]
            .as_str()
            .is_some_and(|s| s.len() == 200_000)
    );
}

#[tokio::test]
async fn a_list_too_long_for_protobuf_comes_as_json_if_that_is_accepted() {
    let api = Api::with_namespaces(&["a"]).await;
    let secrets = "/api/v1/namespaces/a/secrets";
    for i in 0..10 {
        let secret =
            json!({"metadata": {"name": format!("s{i}")}, "stringData": {"big": "x".repeat(1_000_000)}});
        api.post(secrets, secret).await.expect(201);
    }
    let get = |uri: String, accept: &'static str| {
        let api = &api;
        async move { api.call(Method::GET, &uri, &[("accept", accept)], "").await }
    };
    let (protobuf, both) = (
        "application/vnd.kubernetes.protobuf",
        "application/vnd.kubernetes.protobuf,application/json",
    );
    get(secrets.to_owned(), protobuf)
        .await
        .error(406, "NotAcceptable");
    let answer = get(secrets.to_owned(), both).await;
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(names(&answer.expect(200)).len(), 10);
    let page = get(format!("{secrets}?limit=1"), both).await;
    assert_eq!(
        (page.code, &page.headers["content-type"]),
        (200, &http::HeaderValue::from_static(protobuf))
    );
}

#[tokio::test]
async fn namespaces_spread_over_the_clusters_and_two_claims_agree() {
    let names: Vec<String> = (0..12).map(|i| format!("ns{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let api = Api::with_namespaces(&names).await;
    let creates = names
        .iter()
        .flat_map(|ns| [api.app(ns, "one"), api.app(ns, "two")]);
    futures::future::join_all(creates).await;
    let owned: Vec<u64> = api.workload.clusters().iter().map(|c| c.namespaces).collect();
    assert_eq!(owned.iter().sum::<u64>(), 12, "{owned:?}");
    assert!(owned.iter().all(|n| *n > 0), "{owned:?}");
    let placements = api
        .get("/apis/outrigger.dev/v1alpha1/namespaceplacements")
        .await
        .expect(200);
    let items = placements["items"].as_array().cloned().unwrap_or_default();
    assert_eq!(items.len(), 12);
    for placement in &items {
        assert_eq!(
            placement["status"]["owner"]["cluster"], placement["spec"]["cluster"],
            "{placement}"
        );
    }
}
