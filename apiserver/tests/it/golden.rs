//! Discovery and OpenAPI documents, whole: against the files in `tests/golden`, so that a change of what clients read is
//! seen in review. `just golden` writes them anew. And what must hold for any such document.

use crate::api::Api;
use http::Method;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::PathBuf;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// Set to write the files instead of comparing with them.
const WRITE: &str = "OUTRIGGER_WRITE_GOLDEN";

async fn document(api: &Api, path: &str, accept: &str) -> Value {
    api.call(Method::GET, path, &[("accept", accept)], "")
        .await
        .expect(200)
}

#[track_caller]
fn check(file: &str, got: &Value) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file);
    let got = format!("{got:#}\n");
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, got).expect("the golden file is written");
        return;
    }
    let expect = std::fs::read_to_string(&path).expect("a golden file");
    let differs = got.lines().zip(expect.lines()).position(|(a, b)| a != b);
    if let Some(line) = differs {
        let around = |text: &str| {
            text.lines()
                .skip(line.saturating_sub(3))
                .take(8)
                .collect::<Vec<_>>()
                .join("\n")
        };
        panic!(
            "{file}, line {}: got\n{}\ninstead of\n{}\n(`just golden` writes it anew)",
            line + 1,
            around(&got),
            around(&expect)
        );
    }
    assert_eq!(
        got.lines().count(),
        expect.lines().count(),
        "{file}: `just golden` writes it anew"
    );
}

#[tokio::test]
async fn discovery_documents() {
    let api = Api::start().await;
    let mut documents = Map::new();
    for path in [
        "/api",
        "/apis",
        "/api/v1",
        "/apis/paas.example.com",
        "/apis/paas.example.com/v1",
    ] {
        documents.insert(path.to_owned(), document(&api, path, "application/json").await);
    }
    for path in ["/api", "/apis"] {
        documents.insert(
            format!("{path} aggregated"),
            document(&api, path, AGGREGATED).await,
        );
    }
    check("discovery.json", &Value::Object(documents));
}

#[tokio::test]
async fn openapi_of_a_custom_resource() {
    let api = Api::start().await;
    let v3 = document(&api, "/openapi/v3/apis/paas.example.com/v1", "application/json").await;
    check("openapi-v3-paas.json", &v3);
    let v2 = document(&api, "/openapi/v2", "application/json").await;
    let part = |name: &str, belongs: fn(&str) -> bool| {
        let all = v2[name].as_object().cloned().unwrap_or_default();
        let part: Map<String, Value> = all.into_iter().filter(|(key, _)| belongs(key)).collect();
        Value::Object(part)
    };
    let v2 = serde_json::json!({
        "paths": part("paths", |path| path.contains("paas.example.com")),
        "definitions": part("definitions", |name| name.contains("com.example.paas")),
    });
    check("openapi-v2-paas.json", &v2);
}

#[tokio::test]
async fn every_reference_resolves_and_every_operation_has_its_own_name() {
    let api = Api::start().await;
    let index = document(&api, "/openapi/v3", "application/json").await;
    let paths = index["paths"].as_object().cloned().unwrap_or_default();
    let mut documents = vec!["/openapi/v2".to_owned()];
    let url = |entry: &Value| entry["serverRelativeURL"].as_str().map(str::to_owned);
    documents.extend(paths.values().filter_map(url));
    assert!(documents.len() > 6, "{documents:?}");
    for url in documents {
        let document = document(&api, &url, "application/json").await;
        let (mut references, mut operations) = (BTreeSet::new(), Vec::new());
        visit(&document, &mut |key, value| match (key, value) {
            ("$ref", Value::String(reference)) => drop(references.insert(reference.clone())),
            ("operationId", Value::String(id)) => operations.push(id.clone()),
            _ => {}
        });
        for reference in &references {
            let target = reference
                .strip_prefix('#')
                .and_then(|pointer| document.pointer(pointer));
            assert!(target.is_some(), "{url}: {reference}");
        }
        assert!(!references.is_empty() && !operations.is_empty(), "{url}");
        let distinct: BTreeSet<&String> = operations.iter().collect();
        assert_eq!(distinct.len(), operations.len(), "{url}");
    }
}

/// Calls `see` for every member of every object. A schema may have a property that is called `$ref`: CRDs describe schemas.
fn visit(value: &Value, see: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                see(key, member);
                visit(member, see);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| visit(item, see)),
        _ => {}
    }
}
