//! Deletion: of an object, of a collection, of a namespace; finalizers and propagation.

use crate::api::{APPS, Api, MERGE, app, names, url, version};
use serde_json::{Value, json};

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
