//! Metadata in protobuf, as the garbage collector and other clients that only look at metadata ask for it.

use crate::api::{APPS, Answer, Api, app, names};
use crate::real_control_plane::{KubeApiserver, program};
use http::Method;
use http_body_util::BodyExt;
use outrigger_apiserver::negotiation::{MediaType, MetaVersion, Representation, Target, negotiate_document};
use outrigger_apiserver::resources::builtin;
use outrigger_apiserver::resources::definition::ResourceDefinition;
use outrigger_apiserver::serializer::{
    Expected, IncludeObject, ListMeta, MetaPlace, ObjectEncoder, Source, decode, encode_document,
};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const WATCH: &str = "application/vnd.kubernetes.protobuf;stream=watch";
/// What client-go's metadata client sends, for one object and for a list.
const METADATA: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
const METADATA_LIST: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

fn read(body: &[u8]) -> Value {
    let expected = Expected {
        api_version: "",
        kind: "",
    };
    let read = decode(MediaType::Protobuf, body, expected);
    Value::Object(read.expect("a body in protobuf").object)
}

/// The events of a watch: a length in front, then type and object, which is a whole body.
fn read_frames(mut bytes: &[u8]) -> Vec<(String, Value)> {
    let mut events = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<4>() {
        let (frame, rest) = rest.split_at(u32::from_be_bytes(*len) as usize);
        assert_eq!(frame[0], 0x0a, "the type comes first");
        let kind = &frame[2..2 + usize::from(frame[1])];
        let kind = String::from_utf8(kind.to_vec()).expect("text");
        let magic = frame.windows(4).position(|w| w == b"k8s\0").expect("a body");
        events.push((kind, read(&frame[magic..])));
        bytes = rest;
    }
    events
}

async fn get(api: &Api, uri: &str, accept: &str) -> Answer {
    api.call(Method::GET, uri, &[("accept", accept)], "").await
}

/// The same metadata, asked for in JSON.
fn in_json(accept: &str) -> String {
    accept.replace(PROTOBUF, "application/json")
}

async fn with_apps(names: &[&str]) -> Api {
    let api = Api::with_namespaces(&["a", "b"]).await;
    for name in names {
        let app = rich(name);
        api.post(&format!("{APPS}/namespaces/a/applications"), app)
            .await
            .expect(201);
    }
    api
}

#[tokio::test]
async fn metadata_says_the_same_as_in_json() {
    let api = with_apps(&["one", "two"]).await;
    let (one, all) = (
        format!("{APPS}/namespaces/a/applications/one"),
        format!("{APPS}/applications"),
    );
    for (uri, accept) in [(&one, METADATA), (&all, METADATA_LIST)] {
        let answer = get(&api, uri, accept).await;
        assert_eq!(
            (answer.code, &answer.headers["content-type"]),
            (200, &http::HeaderValue::from_static(PROTOBUF))
        );
        let mut json = get(&api, uri, &in_json(accept)).await.expect(200);
        // Cuts have versions of their own; items have no type of their own in protobuf.
        json["metadata"]["resourceVersion"] = read(&answer.body)["metadata"]["resourceVersion"].clone();
        let items = json.get_mut("items").and_then(Value::as_array_mut);
        for item in items.into_iter().flatten().filter_map(Value::as_object_mut) {
            let _ = (item.remove("kind"), item.remove("apiVersion"));
        }
        assert_eq!(read(&answer.body), json, "{uri}");
    }
}

#[tokio::test]
async fn pages_go_on_in_protobuf() {
    let api = with_apps(&["one", "two", "three"]).await;
    let (mut names, mut next) = (Vec::new(), String::new());
    loop {
        let uri = format!("{APPS}/applications?limit=2{next}");
        let page = read(&get(&api, &uri, METADATA_LIST).await.body);
        let items = page["items"].as_array().cloned().unwrap_or_default();
        names.extend(items.iter().map(|item| item["metadata"]["name"].clone()));
        match page["metadata"]["continue"].as_str() {
            Some(token) => next = format!("&continue={token}"),
            None => break,
        }
    }
    assert_eq!(names, ["one", "three", "two"]);
}

/// A list in protobuf is collected; one that is too long is streamed as JSON to whoever takes that.
#[tokio::test]
async fn a_long_list_of_metadata_comes_as_json() {
    let api = Api::with_namespaces(&["a"]).await;
    for i in 0..10 {
        let mut app = app(&format!("app-{i}"));
        app["metadata"]["annotations"] = json!({"example.com/long": "x".repeat(240_000)});
        api.post(&format!("{APPS}/namespaces/a/applications"), app)
            .await
            .expect(201);
    }
    let all = format!("{APPS}/applications");
    let answer = get(&api, &all, METADATA_LIST).await;
    assert_eq!(answer.headers["content-type"], "application/json");
    let list = answer.expect(200);
    assert_eq!(
        (&list["kind"], list["items"].as_array().map(Vec::len)),
        (&json!("PartialObjectMetadataList"), Some(10))
    );
    let page = get(&api, &format!("{all}?limit=5"), METADATA_LIST).await;
    assert_eq!(page.headers["content-type"], PROTOBUF);
    // Whoever takes nothing else gets more of it.
    let only = METADATA_LIST.split(',').next().unwrap_or_default();
    let answer = get(&api, &all, only).await;
    assert_eq!(
        (answer.code, &answer.headers["content-type"]),
        (200, &http::HeaderValue::from_static(PROTOBUF))
    );
    assert_eq!(read(&answer.body)["items"].as_array().map(Vec::len), Some(10));
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
async fn a_watch_of_metadata_begins_with_what_there_is() {
    let api = with_apps(&["one", "two"]).await;
    let watch = format!(
        "{APPS}/applications?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1"
    );
    let answer = get(&api, &watch, METADATA).await;
    assert_eq!(
        (answer.code, &answer.headers["content-type"]),
        (200, &http::HeaderValue::from_static(WATCH))
    );
    let events = read_frames(&answer.body);
    let json = get(&api, &watch, &in_json(METADATA)).await;
    let objects: Vec<Map<String, Value>> = serde_json::Deserializer::from_slice(&json.body)
        .into_iter::<Map<String, Value>>()
        .map(|event| event.expect("an event"))
        .filter(|event| event["type"] == "ADDED")
        .collect();
    assert_eq!(objects.len(), 2);
    for ((kind, object), event) in events.iter().zip(&objects) {
        assert_eq!((&json!(kind), object), (&event["type"], &event["object"]));
    }
    let (kind, bookmark) = &events[2];
    assert_eq!(
        (kind.as_str(), &bookmark["kind"]),
        ("BOOKMARK", &json!("PartialObjectMetadata"))
    );
    assert_eq!(
        bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
}

/// A kube-apiserver with the same kind and the object of [`rich`].
async fn real() -> Option<KubeApiserver> {
    let Some(program) = program() else {
        eprintln!("not tried: there is no kube-apiserver in OUTRIGGER_ASSETS");
        return None;
    };
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let real = KubeApiserver::start(&program).await;
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let mut crd = builtin::example_crd();
    crd["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": "unapproved, for a test"});
    real.create(crds, &crd).await;
    real.create("/api/v1/namespaces", &json!({"metadata": {"name": "a"}}))
        .await;
    let applications = format!("{APPS}/namespaces/a/applications");
    for name in ["one", "two", "three"] {
        while real.try_create(&applications, &rich(name)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    Some(real)
}

/// An object with everything that metadata may have.
fn rich(name: &str) -> Value {
    let mut app = app(name);
    app["metadata"]["labels"] = json!({"z": "1", "a": "two"});
    app["metadata"]["annotations"] = json!({"example.com/text": "<é> \"quoted\"", "a": ""});
    app["metadata"]["finalizers"] = json!(["example.com/wait", "example.com/other"]);
    app["metadata"]["ownerReferences"] = json!([
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "u", "controller": false, "blockOwnerDeletion": true},
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": "u2"},
    ]);
    app
}

impl KubeApiserver {
    async fn body(&self, path: &str, accept: &str) -> (u16, String, Vec<u8>) {
        let request = http::Request::get(path)
            .header("accept", accept)
            .body(kube::client::Body::empty());
        let response = self
            .client
            .send(request.expect("a request"))
            .await
            .expect("an answer");
        let content_type = response.headers()["content-type"]
            .to_str()
            .expect("text")
            .to_owned();
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body");
        (code, content_type, body.to_bytes().to_vec())
    }
}

/// What we make of kube-apiserver's JSON is what it makes itself, byte by byte.
#[tokio::test]
async fn bodies_are_those_of_a_real_kube_apiserver() {
    let Some(real) = real().await else { return };
    // One that is being deleted has two fields more.
    let one = format!("{APPS}/namespaces/a/applications/one");
    let request = http::Request::delete(&one).body(Vec::new()).expect("a request");
    let _: Value = real.client.request(request).await.expect("deleted");

    let same = |ours: &[u8], theirs: &[u8], what: &str| {
        assert!(ours == theirs, "{what}:\n{}\n{}", read(ours), read(theirs));
    };
    for (path, accept) in [
        (one.clone(), METADATA),
        (format!("{APPS}/applications"), METADATA_LIST),
        (format!("{APPS}/applications?limit=2"), METADATA_LIST),
    ] {
        let (_, _, json) = real.body(&path, &in_json(accept)).await;
        let (code, content_type, theirs) = real.body(&path, accept).await;
        assert_eq!((code, content_type.as_str()), (200, PROTOBUF), "{path}");
        let mut json: Map<String, Value> = serde_json::from_slice(&json).expect("JSON");
        // A continue token names the moment.
        if let Some(token) = read(&theirs)["metadata"].get("continue") {
            json["metadata"]["continue"] = token.clone();
        }
        same(&metadata_in_protobuf(&json), &theirs, &path);
    }
    let discovery = ";g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    for (path, form) in [
        ("/api", ""),
        ("/apis", ""),
        ("/apis/paas.example.com", ""),
        ("/apis/paas.example.com/v1", ""),
        ("/api/v1", ""),
        ("/api", discovery),
        ("/apis", discovery),
        ("/apis/paas.example.com/v1/namespaces/b/secrets/none", ""),
        ("/api/v1/namespaces/b/secrets/none", ""),
    ] {
        let (_, _, json) = real.body(path, &format!("application/json{form}")).await;
        let Ok(json) = serde_json::from_slice::<Value>(&json) else {
            continue;
        };
        let (_, content_type, theirs) = real.body(path, &format!("{PROTOBUF}{form}")).await;
        assert_eq!(content_type, format!("{PROTOBUF}{form}"), "{path}");
        let (chosen, _) = negotiate_document(Some(PROTOBUF), None, None, true).expect("accepted");
        same(&encode_document(&json, &chosen).expect("encoded"), &theirs, path);
    }
    // Events: a type, and an object as above.
    let watch = format!("{APPS}/applications?watch=1&resourceVersion=0&timeoutSeconds=1");
    let (_, content_type, theirs) = real.body(&watch, METADATA).await;
    assert_eq!(content_type, WATCH);
    let events = read_frames(&theirs);
    assert_eq!(events.len(), 3, "{events:?}");
    assert!(events.iter().all(|(kind, _)| kind == "ADDED"));
}

/// Metadata that came as JSON, encoded by us.
fn metadata_in_protobuf(json: &Map<String, Value>) -> Vec<u8> {
    let mut crd = builtin::example_crd();
    crd["status"] = json!({"conditions": [{"type": "Established", "status": "True"}]});
    let definition = ResourceDefinition::from_crd(&crd)
        .into_iter()
        .next()
        .map(Arc::new);
    let items = json.get("items").and_then(Value::as_array);
    let target = match items {
        Some(_) => Target::PartialObjectMetadataList(MetaVersion::V1),
        None => Target::PartialObjectMetadata(MetaVersion::V1),
    };
    let representation = Representation {
        media_type: MediaType::Protobuf,
        target,
        pretty: false,
        stream: false,
    };
    let now = jiff::Timestamp::UNIX_EPOCH;
    let definition = definition.expect("a version");
    let mut encoder = ObjectEncoder::new(&representation, &definition, IncludeObject::None, now);
    let Some(items) = items else {
        return encoder
            .encode_object(Source::Value(json))
            .expect("encoded")
            .to_vec();
    };
    let text = |field: &str| json["metadata"][field].as_str().map(str::to_owned);
    let meta = ListMeta {
        resource_version: text("resourceVersion").unwrap_or_default(),
        continue_token: text("continue"),
        remaining: json["metadata"]["remainingItemCount"].as_u64(),
        shard_selector: None,
    };
    let mut out = Vec::new();
    encoder
        .list_start(&mut out, &meta, MetaPlace::After)
        .expect("a start");
    for item in items.iter().filter_map(Value::as_object) {
        encoder
            .list_item_of(&mut out, Source::Value(item))
            .expect("an item");
    }
    encoder.list_end(&mut out, &meta).expect("an end");
    out
}
