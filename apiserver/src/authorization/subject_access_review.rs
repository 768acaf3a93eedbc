//! A user and a request → the question that kube-apiserver is asked about them. Pure.

use crate::authentication::UserInfo;
use crate::request::{Query, RequestInfo};
use k8s_openapi::api::authorization::v1::{
    FieldSelectorAttributes, LabelSelectorAttributes, NonResourceAttributes, ResourceAttributes,
    SubjectAccessReviewSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldSelectorRequirement, LabelSelectorRequirement};
use outrigger_storage::selection_predicate::{FieldOperator, FieldSelector, LabelOperator, LabelSelector};

/// Verbs whose selectors narrow what is asked for.
const SELECTING_VERBS: [&str; 3] = ["list", "watch", "deletecollection"];
/// What a client may write of an answer that is kept, in bytes. As upstream.
const KEPT_ATTRIBUTES_BYTES_MAX: usize = 10_000;

/// The question whether `user` may do what `info` says.
pub(super) fn spec(user: &UserInfo, info: &RequestInfo, query: &Query) -> SubjectAccessReviewSpec {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let resource = || ResourceAttributes {
        namespace: some(&info.namespace),
        verb: some(&info.verb),
        group: some(&info.api_group),
        version: some(&info.api_version),
        resource: some(&info.resource),
        subresource: some(&info.subresource),
        name: some(&info.name),
        field_selector: selector(info, query, "fieldSelector").and_then(fields),
        label_selector: selector(info, query, "labelSelector").and_then(labels),
    };
    SubjectAccessReviewSpec {
        user: some(&user.name),
        uid: some(&user.uid),
        groups: (!user.groups.is_empty()).then(|| user.groups.clone()),
        extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
        resource_attributes: info.is_resource_request.then(resource),
        non_resource_attributes: (!info.is_resource_request).then(|| NonResourceAttributes {
            path: some(&info.path),
            verb: some(&info.verb),
        }),
    }
}

/// Whether the answer may be kept: what clients write at length is not worth the place.
pub(super) fn is_kept(info: &RequestInfo) -> bool {
    let written = match info.is_resource_request {
        true => [
            &info.namespace,
            &info.verb,
            &info.api_group,
            &info.api_version,
            &info.resource,
            &info.subresource,
            &info.name,
        ]
        .map(String::len)
        .iter()
        .sum(),
        false => info.path.len() + info.verb.len(),
    };
    written < KEPT_ATTRIBUTES_BYTES_MAX
}

/// The selector of a request that honours it. A verb in the path honours none, and the question must not be narrower than
/// what is done.
fn selector<'a>(info: &RequestInfo, query: &'a Query, key: &str) -> Option<&'a str> {
    let mut segments = info.path.trim_matches('/').split('/');
    let after_version = match segments.next() {
        Some("api") => segments.nth(1),
        _ => segments.nth(2),
    };
    let by_path = after_version == Some("watch");
    let selects = SELECTING_VERBS.contains(&info.verb.as_str()) && !by_path;
    query.first(key).filter(|text| selects && !text.is_empty())
}

/// A selector that cannot be read narrows nothing (and the request fails later).
fn fields(text: &str) -> Option<FieldSelectorAttributes> {
    let selector = FieldSelector::parse(text).ok()?;
    let requirement = |term: &outrigger_storage::selection_predicate::FieldTerm| FieldSelectorRequirement {
        key: term.field().to_owned(),
        operator: match term.operator() {
            FieldOperator::Equals => "In",
            FieldOperator::NotEquals => "NotIn",
        }
        .to_owned(),
        values: Some(vec![term.value().to_owned()]),
    };
    let requirements: Vec<_> = selector.terms().iter().map(requirement).collect();
    (!requirements.is_empty()).then_some(FieldSelectorAttributes {
        raw_selector: None,
        requirements: Some(requirements),
    })
}

/// What a review cannot say (`>`, `<`) is left out: that only widens the question.
fn labels(text: &str) -> Option<LabelSelectorAttributes> {
    let selector = LabelSelector::parse(text).ok()?;
    let requirements: Vec<_> = selector
        .requirements()
        .iter()
        .filter_map(|requirement| {
            let operator = match requirement.operator() {
                LabelOperator::Equals | LabelOperator::DoubleEquals | LabelOperator::In => "In",
                LabelOperator::NotEquals | LabelOperator::NotIn => "NotIn",
                LabelOperator::Exists => "Exists",
                LabelOperator::DoesNotExist => "DoesNotExist",
                LabelOperator::GreaterThan | LabelOperator::LessThan => return None,
            };
            let values = requirement.values().to_vec();
            Some(LabelSelectorRequirement {
                key: requirement.key().to_owned(),
                operator: operator.to_owned(),
                values: (!values.is_empty()).then_some(values),
            })
        })
        .collect();
    (!requirements.is_empty()).then_some(LabelSelectorAttributes {
        raw_selector: None,
        requirements: Some(requirements),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use serde_json::{Value, json};

    fn check(method: &str, url: &str, expect: Value) {
        let user = UserInfo {
            name: "jane".to_owned(),
            ..UserInfo::default()
        };
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let query = Query::parse(query);
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let info = RequestInfo::parse(&method, path, &query).expect("a meaning");
        let spec = serde_json::to_value(spec(&user, &info, &query)).expect("JSON");
        let attributes = spec
            .get("resourceAttributes")
            .or(spec.get("nonResourceAttributes"));
        assert_eq!(attributes, Some(&expect), "{method} {url}");
    }

    #[test]
    fn requests_are_asked_about_as_upstream_does() {
        check("GET", "/healthz/x", json!({"path": "/healthz/x", "verb": "get"}));
        check(
            "PUT",
            "/apis/g/v1/namespaces/ns/apps/a/status",
            json!({"verb": "update", "group": "g", "version": "v1", "namespace": "ns", "resource": "apps", "subresource": "status", "name": "a"}),
        );
        let apps = json!({"verb": "list", "group": "g", "version": "v1", "resource": "apps"});
        check("GET", "/apis/g/v1/apps", apps.clone());
        let with = |key: &str, value: Value| {
            let mut apps = apps.clone();
            apps[key] = value;
            apps
        };
        check(
            "GET",
            "/apis/g/v1/apps?labelSelector=a+in+%28y%2Cx%29%2Cb%21%3Dz%2Cc%2C%21d%2Ce%3E1",
            with(
                "labelSelector",
                json!({"requirements": [
                    {"key": "a", "operator": "In", "values": ["x", "y"]},
                    {"key": "b", "operator": "NotIn", "values": ["z"]},
                    {"key": "c", "operator": "Exists"},
                    {"key": "d", "operator": "DoesNotExist"},
                ]}),
            ),
        );
        check(
            "GET",
            "/apis/g/v1/apps?fieldSelector=metadata.namespace%21%3Da%2Cspec.x%3D1",
            with(
                "fieldSelector",
                json!({"requirements": [
                    {"key": "metadata.namespace", "operator": "NotIn", "values": ["a"]},
                    {"key": "spec.x", "operator": "In", "values": ["1"]},
                ]}),
            ),
        );
        check(
            "GET",
            "/apis/g/v1/apps?labelSelector=%2C%2C&fieldSelector=x",
            apps.clone(),
        );
        check("GET", "/apis/g/v1/apps?labelSelector=a%3E1", apps.clone());
    }

    #[test]
    fn selectors_count_only_where_they_are_honoured() {
        let selector = "labelSelector=a";
        let has = |method: &str, path: &str| {
            let query = Query::parse(selector);
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            let info = RequestInfo::parse(&method, path, &query).expect("a meaning");
            let spec = spec(&UserInfo::default(), &info, &query);
            spec.resource_attributes
                .is_some_and(|r| r.label_selector.is_some())
        };
        assert!(has("GET", "/apis/g/v1/apps") && has("DELETE", "/api/v1/namespaces/x/pods"));
        assert!(!has("GET", "/apis/g/v1/namespaces/x/apps/a"));
        assert!(!has("GET", "/apis/g/v1/watch/apps") && !has("GET", "/api/v1/watch/pods"));
        assert!(has("GET", "/apis/watch/v1/apps"), "a group may be called so");
        assert!(!has("PATCH", "/apis/g/v1/namespaces/x/apps/a"));
    }

    #[test]
    fn the_user_is_asked_about_whole() {
        let user = UserInfo {
            name: "jane".to_owned(),
            uid: "7".to_owned(),
            groups: vec!["a".to_owned()],
            extra: [("scopes".to_owned(), vec!["x".to_owned()])].into(),
        };
        let spec = spec(&user, &RequestInfo::default(), &Query::default());
        assert_eq!(
            serde_json::to_value(spec).expect("JSON"),
            json!({"user": "jane", "uid": "7", "groups": ["a"], "extra": {"scopes": ["x"]}, "nonResourceAttributes": {}})
        );
    }

    #[test]
    fn long_questions_are_not_kept() {
        let mut info = RequestInfo {
            path: "x".repeat(KEPT_ATTRIBUTES_BYTES_MAX),
            ..RequestInfo::default()
        };
        assert!(!is_kept(&info));
        info.is_resource_request = true;
        assert!(is_kept(&info));
    }
}
