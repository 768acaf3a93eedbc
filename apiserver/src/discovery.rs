//! Discovery: `/api`, `/apis` and what is below, in the legacy form and as one aggregated document (v2). Pure: a
//! function from what is served to responses.
//!
//! Paths that are not served get no answer here; the caller has its own 404.

mod aggregated;
mod group;
mod resource_list;

use crate::negotiation::{Representation, negotiate_document, negotiate_status};
use crate::resources::ServedResources;
use crate::serializer::{encode_document, encode_status};
use crate::status::ApiError;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::Value;

/// What clients expect after the media type of the aggregated form.
const AGGREGATED: &str = ";g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// What a client said of the answer that it wants.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    /// Accept.
    pub accept: Option<&'a str>,
    /// User-Agent.
    pub user_agent: Option<&'a str>,
    /// The query parameter `pretty`.
    pub pretty: Option<&'a str>,
    /// If-None-Match.
    pub if_none_match: Option<&'a str>,
}

/// The answer to a GET of this path, if it is one of discovery and what it names is served.
#[must_use]
pub fn respond(served: &ServedResources, path: &str, asked: Asked<'_>) -> Option<Response<Bytes>> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let document = match segments[..] {
        ["api"] => Some(group::api_versions(served)),
        ["apis"] => Some(group::api_group_list(served)),
        ["apis", name] => served
            .group(name)
            .filter(|group| !group.name.is_empty())
            .map(group::api_group),
        ["api", version] => resource_list::api_resource_list(served, "", version),
        ["apis", name, version] if !name.is_empty() => {
            resource_list::api_resource_list(served, name, version)
        }
        _ => None,
    }?;
    let aggregates = segments.len() == 1;
    let Asked {
        accept,
        user_agent,
        pretty,
        if_none_match,
    } = asked;
    let answer = negotiate_document(accept, user_agent, pretty, aggregates).and_then(|chosen| match chosen {
        (form, true) => aggregated_response(served, segments == ["api"], &form, if_none_match),
        (form, false) => {
            let body = encode_document(&document, &form)?;
            Ok(response(StatusCode::OK, form.content_type(), body, aggregates))
        }
    });
    Some(answer.unwrap_or_else(|error| {
        let form = negotiate_status(accept, user_agent, pretty);
        let code = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response(
            code,
            form.content_type(),
            encode_status(&error, &form),
            aggregates,
        )
    }))
}

fn aggregated_response(
    served: &ServedResources,
    core: bool,
    form: &Representation,
    if_none_match: Option<&str>,
) -> Result<Response<Bytes>, ApiError> {
    let etag = format!("\"{:016X}\"", served.hash());
    let known = if_none_match.is_some_and(|known| matches(known, &etag));
    let mut response = match known {
        true => response(StatusCode::NOT_MODIFIED, "", Bytes::new(), true),
        false => {
            let body = encode_document(&aggregated::group_discovery_list(served, core), form)?;
            let content_type = format!("{}{AGGREGATED}", form.content_type());
            response(StatusCode::OK, &content_type, body, true)
        }
    };
    if let Ok(etag) = HeaderValue::try_from(etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    if known {
        response.headers_mut().remove(header::CONTENT_TYPE);
    }
    Ok(response)
}

fn response(status: StatusCode, content_type: &str, body: Bytes, vary: bool) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if let Ok(content_type) = HeaderValue::from_str(content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    if vary {
        response
            .headers_mut()
            .insert(header::VARY, HeaderValue::from_static("Accept"));
    }
    response
}

/// Whether an If-None-Match names this entity tag. Proxies may have made it weak.
pub(crate) fn matches(if_none_match: &str, etag: &str) -> bool {
    let tags = if_none_match
        .split(',')
        .map(|tag| tag.trim().trim_start_matches("W/"));
    tags.into_iter().any(|tag| tag == etag || tag == "*")
}

/// Puts a list into an object, unless it is empty.
fn insert_list(object: &mut Value, field: &str, list: &[String]) {
    if !list.is_empty() {
        object[field] = list.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::negotiation::MediaType;
    use crate::resources::builtin;
    use crate::resources::definition::ResourceDefinition;
    use crate::serializer::{Expected, decode};
    use serde_json::json;
    use std::sync::Arc;

    fn served() -> ServedResources {
        let mut example = builtin::example_crd();
        example["status"] = crate::resources::crd_status::crd_status(&example, &[], "2026-01-01T00:00:00Z");
        let custom = ResourceDefinition::from_crd(&example).into_iter().map(Arc::new);
        let outrigger = builtin::outrigger_definitions();
        ServedResources::new(builtin::definitions().into_iter().chain(outrigger).chain(custom))
    }

    fn get(path: &str) -> Option<Value> {
        respond(&served(), path, Asked::default())
            .map(|response| serde_json::from_slice(response.body()).unwrap())
    }

    #[test]
    fn the_roots_list_versions_and_groups() {
        assert_eq!(get("/api").unwrap()["versions"], json!(["v1"]));
        let groups = get("/apis/").unwrap();
        let names: Vec<_> = groups["groups"]
            .as_array()
            .unwrap()
            .iter()
            .map(|group| group["name"].clone())
            .collect();
        let expect = [
            "events.k8s.io",
            "apiextensions.k8s.io",
            "coordination.k8s.io",
            "outrigger.dev",
            "paas.example.com",
        ];
        assert_eq!(names, expect);
        let preferred = json!({"groupVersion": "paas.example.com/v1", "version": "v1"});
        assert_eq!(
            get("/apis/paas.example.com").unwrap()["preferredVersion"],
            preferred
        );
    }

    #[test]
    fn what_is_not_served_is_not_answered() {
        for path in [
            "/",
            "/version",
            "/apis/none.io",
            "/apis/paas.example.com/v2",
            "/api/v2",
            "/apis//v1",
            "/api/v1/namespaces",
        ] {
            assert_eq!(get(path), None, "{path}");
        }
    }

    #[test]
    fn a_version_lists_its_kinds_with_their_subresources() {
        let list = get("/apis/paas.example.com/v1").unwrap();
        assert_eq!(
            (&list["kind"], &list["groupVersion"]),
            (&json!("APIResourceList"), &json!("paas.example.com/v1"))
        );
        let resources = list["resources"].as_array().unwrap();
        let application = json!({
            "name": "applications", "singularName": "application", "namespaced": true, "kind": "Application",
            "verbs": ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"],
            "shortNames": ["app", "apps"], "categories": ["all", "paas"], "storageVersionHash": resources[0]["storageVersionHash"],
        });
        assert_eq!(resources[0], application);
        let status = json!({"name": "applications/status", "singularName": "", "namespaced": true, "kind": "Application", "verbs": ["get", "patch", "update"]});
        assert_eq!(resources[1], status);
        let scale = json!({
            "name": "applications/scale", "singularName": "", "namespaced": true, "group": "autoscaling", "version": "v1",
            "kind": "Scale", "verbs": ["get", "patch", "update"],
        });
        assert_eq!(resources[2], scale);
    }

    #[test]
    fn the_core_group_reads_as_that_of_kube_apiserver() {
        let list = get("/api/v1").unwrap();
        let names: Vec<_> = list["resources"]
            .as_array()
            .unwrap()
            .iter()
            .map(|resource| resource["name"].clone())
            .collect();
        assert_eq!(
            names,
            [
                "events",
                "namespaces",
                "namespaces/finalize",
                "namespaces/status",
                "secrets"
            ]
        );
        assert_eq!(list["groupVersion"], "v1");
    }

    fn ask<'a>(accept: &'a str, if_none_match: Option<&'a str>) -> Asked<'a> {
        Asked {
            accept: Some(accept),
            if_none_match,
            ..Asked::default()
        }
    }

    #[test]
    fn kubectl_gets_the_aggregated_form() {
        let accept = format!(
            "application/json{AGGREGATED},application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
        );
        let served = served();
        let response = respond(&served, "/apis", ask(&accept, None)).unwrap();
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            format!("application/json{AGGREGATED}")
        );
        assert_eq!(response.headers()[header::VARY], "Accept");
        let list: Value = serde_json::from_slice(response.body()).unwrap();
        let last = list["items"].as_array().unwrap().last().unwrap();
        assert_eq!(last["metadata"]["name"], "paas.example.com");
        let resource = &last["versions"][0]["resources"][0];
        let kind = json!({"group": "paas.example.com", "version": "v1", "kind": "Application"});
        assert_eq!(
            (&resource["responseKind"], &resource["scope"]),
            (&kind, &json!("Namespaced"))
        );
        let scale = json!({"group": "autoscaling", "version": "v1", "kind": "Scale"});
        assert_eq!(resource["subresources"][1]["responseKind"], scale);

        let etag = response.headers()[header::ETAG].to_str().unwrap();
        let unchanged = respond(&served, "/apis", ask(&accept, Some(etag))).unwrap();
        assert_eq!(
            (unchanged.status(), unchanged.body().len()),
            (StatusCode::NOT_MODIFIED, 0)
        );
        assert_eq!(
            respond(&served, "/apis", ask(&accept, Some("\"x\"")))
                .unwrap()
                .status(),
            StatusCode::OK
        );
    }

    #[test]
    fn every_document_has_every_encoding() {
        let served = served();
        let roots = ["/api", "/apis"].map(|path| (path, AGGREGATED));
        let plain = [
            "/api",
            "/apis",
            "/api/v1",
            "/apis/paas.example.com",
            "/apis/paas.example.com/v1",
        ];
        for (path, form) in plain.map(|path| (path, "")).into_iter().chain(roots) {
            let read = |media_type: MediaType| {
                let accept = format!("{}{form}", media_type.as_str());
                let response = respond(&served, path, ask(&accept, None)).unwrap();
                assert_eq!(
                    (
                        response.status(),
                        response.headers()[header::CONTENT_TYPE].to_str().unwrap()
                    ),
                    (StatusCode::OK, accept.as_str())
                );
                let expected = Expected {
                    api_version: "",
                    kind: "",
                };
                decode(media_type, response.body(), expected).unwrap().object
            };
            let json = Value::Object(read(MediaType::Json));
            assert_eq!(Value::Object(read(MediaType::Yaml)), json, "{path}");
            // A list in protobuf does not tell whether it is empty or not there.
            let protobuf = without_empty(Value::Object(read(MediaType::Protobuf)));
            assert_eq!(protobuf, without_empty(json), "{path}");
        }
    }

    fn without_empty(value: Value) -> Value {
        let is_empty = |value: &Value| {
            matches!(value, Value::String(s) if s.is_empty())
                || matches!(value, Value::Bool(false))
                || value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(serde_json::Map::is_empty)
        };
        match value {
            Value::Object(map) => {
                let map = map.into_iter().map(|(key, value)| (key, without_empty(value)));
                Value::Object(map.filter(|(_, value)| !is_empty(value)).collect())
            }
            Value::Array(list) => Value::Array(list.into_iter().map(without_empty).collect()),
            other => other,
        }
    }

    #[test]
    fn forms_that_are_not_served_are_passed_over() {
        let check = |path: &str, accept: &str, expect: Option<&str>| {
            let response = respond(&served(), path, ask(accept, None)).unwrap();
            match expect {
                Some(content_type) => {
                    let said = &response.headers()[header::CONTENT_TYPE];
                    assert_eq!(
                        (response.status(), said.to_str().ok()),
                        (StatusCode::OK, Some(content_type)),
                        "{accept}"
                    );
                }
                None => assert_eq!(response.status(), StatusCode::NOT_ACCEPTABLE, "{accept}"),
            }
        };
        let (json, protobuf) = ("application/json", "application/vnd.kubernetes.protobuf");
        let aggregated = format!("{json}{AGGREGATED}");
        check("/apis", &format!("{protobuf},{json}"), Some(protobuf));
        check(
            "/apis",
            "application/json;as=APIGroupDiscoveryList;v=v2beta1;g=apidiscovery.k8s.io,application/json",
            Some(json),
        );
        check("/apis", &format!("{json};q=0.5,{aggregated}"), Some(&aggregated));
        check(
            "/apis/paas.example.com",
            &format!("{aggregated},{json}"),
            Some(json),
        );
        check("/apis/paas.example.com", &aggregated, None);
        check("/apis", "", Some(json));
        check("/apis", "text/html, */*;q=0.1", Some(json));
        check("/apis", "application/cbor", None);
        check("/apis", "text/plain", None);
    }

    #[test]
    fn people_read_it_indented() {
        let asked = Asked {
            user_agent: Some("curl/8.0"),
            ..Asked::default()
        };
        let response = respond(&served(), "/apis", asked).unwrap();
        assert!(response.body().starts_with(b"{\n  \""));
    }
}
