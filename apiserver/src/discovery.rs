//! Discovery: `/api`, `/apis` and what is below, in the legacy form and as one aggregated document (v2). Pure: a
//! function from what is served to responses.
//!
//! Paths that are not served get no answer here; the caller has its own 404.

mod aggregated;
mod group;
mod resource_list;

use crate::resources::ServedResources;
use crate::status::ApiError;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::Value;

const JSON: &str = "application/json";
/// The content type of the aggregated form, as clients expect it back.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// How many clauses of an Accept header are looked at.
const ACCEPT_CLAUSES_MAX: usize = 64;

/// Which form the client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Legacy,
    Aggregated,
}

/// The answer to a GET of this path, if it is one of discovery and what it names is served.
#[must_use]
pub fn respond(
    served: &ServedResources,
    path: &str,
    accept: Option<&str>,
    if_none_match: Option<&str>,
) -> Option<Response<Bytes>> {
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
    Some(match negotiate(accept, aggregates) {
        Some(Form::Aggregated) => aggregated_response(served, segments == ["api"], if_none_match),
        Some(Form::Legacy) => response(StatusCode::OK, JSON, document.to_string(), aggregates),
        None => {
            let error = ApiError::not_acceptable(&[JSON]);
            response(
                StatusCode::NOT_ACCEPTABLE,
                JSON,
                error.to_status().to_string(),
                aggregates,
            )
        }
    })
}

fn aggregated_response(served: &ServedResources, core: bool, if_none_match: Option<&str>) -> Response<Bytes> {
    let etag = format!("\"{:016X}\"", served.hash());
    let known = if_none_match.is_some_and(|known| matches(known, &etag));
    let (status, body) = match known {
        true => (StatusCode::NOT_MODIFIED, String::new()),
        false => (
            StatusCode::OK,
            aggregated::group_discovery_list(served, core).to_string(),
        ),
    };
    let mut response = response(status, AGGREGATED, body, true);
    if let Ok(etag) = HeaderValue::try_from(etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    if known {
        response.headers_mut().remove(header::CONTENT_TYPE);
    }
    response
}

fn response(status: StatusCode, content_type: &'static str, body: String, vary: bool) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
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

/// The first form in the header that is served, by preference. Forms that are not served (protobuf, the aggregated
/// form of another version) are passed over in favour of the next.
fn negotiate(accept: Option<&str>, aggregates: bool) -> Option<Form> {
    let accept = accept
        .map(str::trim)
        .filter(|accept| !accept.is_empty())
        .unwrap_or("*/*");
    let mut clauses: Vec<Clause<'_>> = accept
        .split(',')
        .take(ACCEPT_CLAUSES_MAX)
        .map(Clause::parse)
        .collect();
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    clauses.iter().find_map(|clause| clause.form(aggregates))
}

/// One clause of an Accept header.
struct Clause<'a> {
    media_type: &'a str,
    group: &'a str,
    version: &'a str,
    target: &'a str,
    quality: f32,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        let mut clause = Self {
            media_type,
            group: "",
            version: "",
            target: "",
            quality: 1.0,
        };
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            match key.trim() {
                "g" => clause.group = value.trim(),
                "v" => clause.version = value.trim(),
                "as" => clause.target = value.trim(),
                "q" => clause.quality = value.trim().parse().unwrap_or(0.0),
                _ => {}
            }
        }
        clause
    }

    fn form(&self, aggregates: bool) -> Option<Form> {
        if !["*/*", "application/*", JSON]
            .iter()
            .any(|known| self.media_type.eq_ignore_ascii_case(known))
        {
            return None;
        }
        match (self.group, self.version, self.target) {
            (_, _, "") => Some(Form::Legacy),
            ("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList") => Some(if aggregates {
                Form::Aggregated
            } else {
                Form::Legacy
            }),
            _ => None,
        }
    }
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
    use crate::resources::builtin;
    use crate::resources::definition::ResourceDefinition;
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
        respond(&served(), path, None, None).map(|response| serde_json::from_slice(response.body()).unwrap())
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

    #[test]
    fn kubectl_gets_the_aggregated_form() {
        let accept = format!(
            "{AGGREGATED},application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
        );
        let served = served();
        let response = respond(&served, "/apis", Some(&accept), None).unwrap();
        assert_eq!(response.headers()[header::CONTENT_TYPE], AGGREGATED);
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
        let unchanged = respond(&served, "/apis", Some(&accept), Some(etag)).unwrap();
        assert_eq!(
            (unchanged.status(), unchanged.body().len()),
            (StatusCode::NOT_MODIFIED, 0)
        );
        assert_eq!(
            respond(&served, "/apis", Some(&accept), Some("\"x\""))
                .unwrap()
                .status(),
            StatusCode::OK
        );
    }

    #[test]
    fn forms_that_are_not_served_are_passed_over() {
        let check = |accept: &str, expect: Option<Form>| {
            assert_eq!(negotiate(Some(accept), true), expect, "{accept}")
        };
        check(
            "application/vnd.kubernetes.protobuf,application/json",
            Some(Form::Legacy),
        );
        check(
            "application/json;as=APIGroupDiscoveryList;v=v2beta1;g=apidiscovery.k8s.io,application/json",
            Some(Form::Legacy),
        );
        check(
            "application/json;q=0.5,application/json;as=APIGroupDiscoveryList;v=v2;g=apidiscovery.k8s.io",
            Some(Form::Aggregated),
        );
        check("", Some(Form::Legacy));
        check("text/html, */*;q=0.1", Some(Form::Legacy));
        check("application/vnd.kubernetes.protobuf", None);
        assert_eq!(
            respond(&served(), "/apis", Some("text/plain"), None)
                .unwrap()
                .status(),
            StatusCode::NOT_ACCEPTABLE
        );
    }
}
