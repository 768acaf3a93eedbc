//! What the verbs do to objects and what they answer. (Lists are in `lists.rs`, deletions in `deletion.rs`.)

use crate::api::{APPS, Api, JSON_PATCH, MERGE, app, url, version};
use http::Method;
use serde_json::{Value, json};

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
