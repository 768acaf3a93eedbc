//! Lists: their order, pages, selectors and forms.

use crate::api::{APPS, Api, app, names, version};
use http::Method;
use serde_json::json;

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
