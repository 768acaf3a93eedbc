//! OpenAPI: `/openapi/v3` with a document for each group and version, and `/openapi/v2` with everything.
//!
//! Documents are built when somebody asks and kept within a budget; only their hashes are kept for as long as the
//! group and version is served as it is. Compression is the caller's.

mod components;
mod gnostic;
mod operations;
mod v2;
mod v3;

use crate::resources::definition::ResourceDefinition;
use crate::resources::{ServedResources, ServedVersion};
use crate::status::ApiError;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use operations::GroupVersionKind;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::Digest;
use std::collections::{BTreeMap, VecDeque};

/// Bytes of documents that are kept; the oldest go first.
const DOCUMENT_CACHE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A document under its own hash never changes.
const IMMUTABLE: &str = "public, immutable, max-age=31536000";

const JSON: &str = "application/json";

/// The OpenAPI documents of what is served.
#[derive(Debug, Default)]
pub struct OpenApi {
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    /// SHA-512 of each document, beside the hash of what it was made from.
    hashes: BTreeMap<Document, (u64, String)>,
    /// Documents with the hash of what they were made from, the oldest first.
    bodies: VecDeque<(Document, u64, Bytes)>,
    bytes: usize,
}

/// One of the documents.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Document {
    V3 { group: String, version: String },
    V2Json,
    V2Protobuf,
}

/// What matters of a request.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenApiRequest<'a> {
    /// The path without the query.
    pub path: &'a str,
    /// The query, still encoded.
    pub query: Option<&'a str>,
    /// The header Accept.
    pub accept: Option<&'a str>,
    /// The header If-None-Match.
    pub if_none_match: Option<&'a str>,
}

impl OpenApi {
    /// Nothing built yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The answer to a GET, if the path is one of OpenAPI and what it names is served.
    #[must_use]
    pub fn respond(&self, served: &ServedResources, request: OpenApiRequest<'_>) -> Option<Response<Bytes>> {
        let segments: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        match segments[..] {
            ["openapi", "v2"] => Some(self.v2(served, request)),
            ["openapi", "v3"] => Some(self.v3_root(served, request)),
            ["openapi", "v3", "api", version] => self.v3(served, "", version, request),
            ["openapi", "v3", "apis", group, version] if !group.is_empty() => {
                self.v3(served, group, version, request)
            }
            _ => None,
        }
    }

    fn v3_root(&self, served: &ServedResources, request: OpenApiRequest<'_>) -> Response<Bytes> {
        let mut paths = Map::new();
        for group in served.groups() {
            for version in &group.versions {
                let path = gv_path(&group.name, &version.name);
                let hash = self.hash(served, &Document::v3(&group.name, version), version.hash);
                let url = format!("/openapi/v3/{path}?hash={hash}");
                paths.insert(path, json!({"serverRelativeURL": url}));
            }
        }
        let body = json!({"paths": paths}).to_string();
        let etag = sha512(body.as_bytes());
        let mut response = respond_with(JSON, &etag, request, || Bytes::from(body));
        response.headers_mut().remove(header::VARY);
        response
    }

    fn v3(
        &self,
        served: &ServedResources,
        group: &str,
        version: &str,
        request: OpenApiRequest<'_>,
    ) -> Option<Response<Bytes>> {
        let version = served
            .group(group)?
            .versions
            .iter()
            .find(|found| found.name == version)?;
        if preferred(request.accept, &[JSON]).is_none() {
            return Some(not_acceptable());
        }
        let document = Document::v3(group, version);
        let etag = self.hash(served, &document, version.hash);
        let mut response = respond_with(JSON, &etag, request, || {
            self.body(served, &document, version.hash)
        });
        // A stale hash gets the present document: kube-aggregator does not follow redirects of its backends.
        let asked = query_parameter(request.query, "hash");
        if asked.is_some_and(|asked| asked == etag) {
            response
                .headers_mut()
                .insert(header::CACHE_CONTROL, HeaderValue::from_static(IMMUTABLE));
        }
        Some(response)
    }

    fn v2(&self, served: &ServedResources, request: OpenApiRequest<'_>) -> Response<Bytes> {
        let offered = [JSON, gnostic::MEDIA_TYPE, gnostic::MEDIA_TYPE_ASKED];
        let (document, media_type) = match preferred(request.accept, &offered) {
            Some(JSON) => (Document::V2Json, JSON),
            Some(_) => (Document::V2Protobuf, gnostic::MEDIA_TYPE),
            None => return not_acceptable(),
        };
        let etag = self.hash(served, &document, served.hash());
        respond_with(media_type, &etag, request, || {
            self.body(served, &document, served.hash())
        })
    }

    /// SHA-512 of a document that is made from what has this hash.
    fn hash(&self, served: &ServedResources, document: &Document, of: u64) -> String {
        let known = self
            .cache
            .lock()
            .hashes
            .get(document)
            .filter(|(known, _)| *known == of)
            .map(|(_, hash)| hash.clone());
        if let Some(hash) = known {
            return hash;
        }
        let hash = sha512(&self.body(served, document, of));
        let mut cache = self.cache.lock();
        cache.hashes.retain(|document, _| document.is_served(served));
        cache.hashes.insert(document.clone(), (of, hash.clone()));
        hash
    }

    /// The document from the cache, or a new one.
    fn body(&self, served: &ServedResources, document: &Document, of: u64) -> Bytes {
        if let Some(body) = self.cache.lock().find(document, of) {
            return body;
        }
        // Not under the lock: two that build the same at the same time do no harm.
        let body = document.build(served);
        self.cache.lock().keep(document.clone(), of, body.clone());
        body
    }
}

impl Document {
    fn v3(group: &str, version: &ServedVersion) -> Self {
        Self::V3 {
            group: group.to_owned(),
            version: version.name.clone(),
        }
    }

    fn is_served(&self, served: &ServedResources) -> bool {
        match self {
            Self::V3 { group, version } => served.in_version(group, version).next().is_some(),
            Self::V2Json | Self::V2Protobuf => true,
        }
    }

    fn build(&self, served: &ServedResources) -> Bytes {
        let all = || {
            served
                .iter()
                .map(|definition| &**definition)
                .collect::<Vec<&ResourceDefinition>>()
        };
        match self {
            Self::V3 { group, version } => {
                let these = served.in_version(group, version).map(|definition| &**definition);
                v3::document(&these.collect::<Vec<_>>()).to_string().into()
            }
            Self::V2Json => v2::document(&all()).to_string().into(),
            Self::V2Protobuf => gnostic::encode(&v2::document(&all())).into(),
        }
    }
}

impl Cache {
    fn find(&self, document: &Document, of: u64) -> Option<Bytes> {
        let found = self
            .bodies
            .iter()
            .find(|(known, known_of, _)| known == document && *known_of == of);
        found.map(|(_, _, body)| body.clone())
    }

    fn keep(&mut self, document: Document, of: u64, body: Bytes) {
        // What it was before will not be asked for again.
        let stale = |known: &(Document, u64, Bytes)| known.0 == document;
        self.bytes -= self
            .bodies
            .iter()
            .filter(|known| stale(known))
            .map(|(_, _, body)| body.len())
            .sum::<usize>();
        self.bodies.retain(|known| !stale(known));
        if body.len() > DOCUMENT_CACHE_BYTES_MAX {
            return;
        }
        self.bytes += body.len();
        self.bodies.push_back((document, of, body));
        while self.bytes > DOCUMENT_CACHE_BYTES_MAX
            && let Some((_, _, oldest)) = self.bodies.pop_front()
        {
            self.bytes -= oldest.len();
        }
    }
}

/// `api/v1`, `apis/<group>/<version>`.
fn gv_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

fn kind(kind: &GroupVersionKind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

/// Upper-case hex, as clients find it in URLs.
fn sha512(bytes: &[u8]) -> String {
    sha2::Sha512::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect()
}

fn respond_with(
    content_type: &'static str,
    etag: &str,
    request: OpenApiRequest<'_>,
    body: impl FnOnce() -> Bytes,
) -> Response<Bytes> {
    let etag = format!("\"{etag}\"");
    let known = request
        .if_none_match
        .is_some_and(|known| crate::discovery::matches(known, &etag));
    let mut response = Response::new(if known { Bytes::new() } else { body() });
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    if let Ok(etag) = HeaderValue::try_from(etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn not_acceptable() -> Response<Bytes> {
    let error = ApiError::not_acceptable(&[JSON, gnostic::MEDIA_TYPE]);
    let mut response = Response::new(Bytes::from(error.to_status().to_string()));
    *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

/// The first of the offered media types that the header names; the first one for whoever does not care.
fn preferred(accept: Option<&str>, offered: &[&'static str]) -> Option<&'static str> {
    let accept = accept
        .map(str::trim)
        .filter(|accept| !accept.is_empty())
        .unwrap_or("*/*");
    let media_types = accept
        .split(',')
        .map(|clause| clause.split(';').next().unwrap_or_default().trim());
    media_types.into_iter().find_map(|media_type| match media_type {
        "*/*" | "application/*" => offered.first().copied(),
        named => offered
            .iter()
            .find(|offered| named.eq_ignore_ascii_case(offered))
            .copied(),
    })
}

fn query_parameter(query: Option<&str>, name: &str) -> Option<String> {
    let pairs = form_urlencoded::parse(query?.as_bytes());
    pairs
        .into_iter()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::{builtin, crd_status};
    use std::sync::Arc;

    fn served() -> ServedResources {
        let mut example = builtin::example_crd();
        example["status"] = crd_status::crd_status(&example, &[], "2026-01-01T00:00:00Z");
        let custom = ResourceDefinition::from_crd(&example).into_iter().map(Arc::new);
        let outrigger = builtin::outrigger_definitions();
        ServedResources::new(builtin::definitions().into_iter().chain(outrigger).chain(custom))
    }

    fn get(path: &str) -> Value {
        let request = OpenApiRequest {
            path,
            ..OpenApiRequest::default()
        };
        let response = OpenApi::new().respond(&served(), request).unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        serde_json::from_slice(response.body()).unwrap()
    }

    /// Every reference in a document leads to something.
    fn check_references(document: &Value, root: &Value) {
        match document {
            Value::Object(fields) => {
                if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                    let pointer = reference.strip_prefix('#').unwrap();
                    assert!(root.pointer(pointer).is_some(), "{reference}");
                }
                fields.values().for_each(|value| check_references(value, root));
            }
            Value::Array(items) => items.iter().for_each(|value| check_references(value, root)),
            _ => {}
        }
    }

    #[test]
    fn every_document_holds_what_it_refers_to() {
        let root = get("/openapi/v3");
        assert_eq!(root["paths"].as_object().unwrap().len(), 6);
        for path in root["paths"].as_object().unwrap().keys() {
            let document = get(&format!("/openapi/v3/{path}"));
            check_references(&document, &document);
        }
        let document = get("/openapi/v2");
        check_references(&document, &document);
    }

    #[test]
    fn a_custom_kind_has_the_schema_of_its_crd() {
        let document = get("/openapi/v3/apis/paas.example.com/v1");
        let application = &document["components"]["schemas"]["com.example.paas.v1.Application"];
        assert_eq!(
            application["properties"]["spec"]["properties"]["replicas"]["default"],
            1
        );
        assert_eq!(
            application["x-kubernetes-selectable-fields"],
            json!([{"fieldPath": "spec.tier"}, {"fieldPath": "spec.image"}])
        );
        let kind = json!([{"group": "paas.example.com", "version": "v1", "kind": "Application"}]);
        assert_eq!(application["x-kubernetes-group-version-kind"], kind);
        let object =
            &document["paths"]["/apis/paas.example.com/v1/namespaces/{namespace}/applications/{name}"];
        assert_eq!(
            object["patch"]["operationId"],
            "patchPaasExampleComV1NamespacedApplication"
        );
        let consumes: Vec<_> = object["patch"]["requestBody"]["content"]
            .as_object()
            .unwrap()
            .keys()
            .collect();
        assert_eq!(
            consumes,
            ["application/json-patch+json", "application/merge-patch+json"]
        );
        let scale =
            &document["paths"]["/apis/paas.example.com/v1/namespaces/{namespace}/applications/{name}/scale"];
        let answer = &scale["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"];
        assert_eq!(answer, "#/components/schemas/io.k8s.api.autoscaling.v1.Scale");
        assert_eq!(
            scale["put"]["description"],
            "replace scale of the specified Application"
        );
    }

    #[test]
    fn built_in_kinds_take_strategic_merge_patch() {
        let document = get("/openapi/v3/api/v1");
        let namespace = &document["paths"]["/api/v1/namespaces/{name}"];
        assert!(
            namespace["patch"]["requestBody"]["content"]["application/strategic-merge-patch+json"]
                .is_object()
        );
        assert_eq!(
            document["paths"]["/api/v1/namespaces/{name}/finalize"]["put"]["operationId"],
            "replaceCoreV1NamespaceFinalize"
        );
        assert!(document["paths"]["/api/v1/namespaces"].get("delete").is_none());
        let conditions = &document["components"]["schemas"]["io.k8s.api.core.v1.NamespaceStatus"]["properties"]
            ["conditions"];
        assert_eq!(conditions["x-kubernetes-patch-merge-key"], "type");
        let metadata =
            &document["components"]["schemas"]["io.k8s.api.core.v1.Namespace"]["properties"]["metadata"];
        assert_eq!(
            metadata["allOf"][0]["$ref"],
            "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
        );
    }

    #[test]
    fn a_document_under_its_hash_never_changes() {
        let (api, served) = (OpenApi::new(), served());
        let root = OpenApiRequest {
            path: "/openapi/v3",
            ..OpenApiRequest::default()
        };
        let root: Value = serde_json::from_slice(api.respond(&served, root).unwrap().body()).unwrap();
        let url = root["paths"]["apis/paas.example.com/v1"]["serverRelativeURL"]
            .as_str()
            .unwrap();
        let (path, query) = url.split_once('?').unwrap();
        let get = |query, if_none_match| {
            api.respond(
                &served,
                OpenApiRequest {
                    path,
                    query,
                    if_none_match,
                    ..OpenApiRequest::default()
                },
            )
            .unwrap()
        };
        let fresh = get(Some(query), None);
        assert_eq!(fresh.headers()[header::CACHE_CONTROL], IMMUTABLE);
        let etag = fresh.headers()[header::ETAG].to_str().unwrap();
        assert_eq!(
            (etag.trim_matches('"'), etag.len()),
            (query.trim_start_matches("hash="), 130)
        );
        let stale = get(Some("hash=ABC"), None);
        assert_eq!(
            (stale.status(), stale.headers().get(header::CACHE_CONTROL)),
            (StatusCode::OK, None)
        );
        assert_eq!(stale.body(), fresh.body());
        assert_eq!(get(None, Some(etag)).status(), StatusCode::NOT_MODIFIED);
    }

    #[test]
    fn version_2_drops_what_it_cannot_say() {
        let document = get("/openapi/v2");
        let resources = &document["definitions"]["com.example.paas.v1.Application"]["properties"]["spec"]["properties"]
            ["resources"];
        assert_eq!(resources["properties"]["cpu"].get("anyOf"), None);
        assert_eq!(resources["properties"]["cpu"]["x-kubernetes-int-or-string"], true);
        let metadata = &document["definitions"]["com.example.paas.v1.Application"]["properties"]["metadata"];
        assert_eq!(
            metadata["$ref"],
            "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
        );
    }

    #[test]
    fn client_go_gets_version_2_as_protobuf() {
        let request = OpenApiRequest {
            path: "/openapi/v2",
            accept: Some(gnostic::MEDIA_TYPE_ASKED),
            ..OpenApiRequest::default()
        };
        let response = OpenApi::new().respond(&served(), request).unwrap();
        assert_eq!(response.headers()[header::CONTENT_TYPE], gnostic::MEDIA_TYPE);
        // Field 1, length-delimited, "2.0".
        assert_eq!(&response.body()[..5], b"\x0a\x032.0");
        let none = OpenApiRequest {
            accept: Some("text/html"),
            ..request
        };
        assert_eq!(
            OpenApi::new().respond(&served(), none).unwrap().status(),
            StatusCode::NOT_ACCEPTABLE
        );
    }

    #[test]
    fn the_cache_keeps_to_its_budget() {
        let mut cache = Cache::default();
        let document = |version: u64| Document::V3 {
            group: String::new(),
            version: version.to_string(),
        };
        let body = |bytes| Bytes::from(vec![0; bytes]);
        for version in 0..10 {
            cache.keep(document(version), 0, body(DOCUMENT_CACHE_BYTES_MAX / 4));
        }
        assert_eq!((cache.bodies.len(), cache.bytes), (4, DOCUMENT_CACHE_BYTES_MAX));
        cache.keep(document(9), 1, body(1));
        assert_eq!(
            (
                cache.bodies.len(),
                cache.find(&document(9), 0),
                cache.find(&document(9), 1)
            ),
            (4, None, Some(body(1)))
        );
        cache.keep(document(9), 2, body(DOCUMENT_CACHE_BYTES_MAX + 1));
        assert_eq!(
            (cache.bodies.len(), cache.bytes),
            (3, DOCUMENT_CACHE_BYTES_MAX / 4 * 3)
        );
    }
}
