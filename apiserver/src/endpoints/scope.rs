//! RequestInfo → which kind, which part of it, which verb. Pure.

use crate::registry::{Part, RequestScope};
use crate::request::context::RequestContext;
use crate::resources::ServedResources;
use crate::resources::definition::{Builtin, ResourceDefinition};
use crate::status::ApiError;

/// What can be asked of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

/// A verb on a resource.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) verb: Verb,
    pub(super) scope: RequestScope,
}

/// What a request is about.
#[derive(Debug)]
pub(super) enum Found {
    Endpoint(Endpoint),
    /// There is something, and this cannot be done with it.
    Error(ApiError),
    /// There is nothing: a page, not a Status.
    Nothing,
}

/// Finds what a request is about.
pub(super) fn find(served: &ServedResources, context: &RequestContext) -> Found {
    let info = &context.info;
    let Some(definition) = served.find(&info.api_group, &info.api_version, &info.resource) else {
        // kube-apiserver knows the groups of its own kinds by another router, which answers with a Status.
        let own = served
            .in_version(&info.api_group, &info.api_version)
            .any(|d| d.builtin.is_some());
        return if own {
            Found::Error(nothing_here())
        } else {
            Found::Nothing
        };
    };
    // A namespace is its own: /api/v1/namespaces/a is read as the namespace a and the name a.
    let is_namespace = definition.builtin == Some(Builtin::Namespace) && info.namespace == info.name;
    let verb = verb(&info.verb);
    let across_namespaces = matches!(verb, Some(Verb::List | Verb::Watch));
    if !definition.namespaced && !info.namespace.is_empty() && !is_namespace {
        return Found::Nothing;
    }
    if definition.namespaced && info.namespace.is_empty() && !across_namespaces {
        return Found::Nothing;
    }
    if let Some(warning) = &definition.deprecation_warning {
        context.warnings.add(warning);
    }
    let Some(part) = part(definition, &info.subresource) else {
        return match definition.builtin {
            Some(_) => Found::Error(nothing_here()),
            None => Found::Error(ApiError::not_found(definition.group_resource(), &info.name)),
        };
    };
    if definition.deprecation_warning.is_some() {
        context.metrics.deprecated_requested(
            &info.api_group,
            &info.api_version,
            &info.resource,
            &info.subresource,
        );
    }
    let named = !info.name.is_empty();
    let Some(verb) = verb.filter(|verb| is_allowed(definition, part, *verb, named)) else {
        return Found::Error(match definition.builtin {
            Some(_) => not_allowed_here(),
            None => ApiError::method_not_allowed(definition.group_resource(), &info.verb),
        });
    };
    let needs_name = matches!(verb, Verb::Get | Verb::Update | Verb::Patch | Verb::Delete);
    if needs_name && !named {
        return Found::Error(ApiError::bad_request("name must be provided"));
    }
    let namespace = if definition.namespaced {
        info.namespace.clone()
    } else {
        String::new()
    };
    let scope = RequestScope {
        definition: definition.clone(),
        part,
        namespace,
        name: info.name.clone(),
        dry_run: false,
        warnings: context.warnings.clone(),
    };
    Found::Endpoint(Endpoint { verb, scope })
}

fn nothing_here() -> ApiError {
    without_subject(ApiError::new(
        404,
        "NotFound",
        "the server could not find the requested resource",
    ))
}

fn not_allowed_here() -> ApiError {
    let message = "the server does not allow this method on the requested resource";
    without_subject(ApiError::new(405, "MethodNotAllowed", message))
}

fn without_subject(mut error: ApiError) -> ApiError {
    error.details = Some(Box::default());
    error
}

fn verb(verb: &str) -> Option<Verb> {
    Some(match verb {
        "get" => Verb::Get,
        "list" => Verb::List,
        "watch" => Verb::Watch,
        "create" => Verb::Create,
        "update" => Verb::Update,
        "patch" => Verb::Patch,
        "delete" => Verb::Delete,
        "deletecollection" => Verb::DeleteCollection,
        _ => return None,
    })
}

fn part(definition: &ResourceDefinition, subresource: &str) -> Option<Part> {
    if subresource.is_empty() {
        return Some(Part::Object);
    }
    match definition.subresource(subresource)?.name {
        "status" => Some(Part::Status),
        "scale" => Some(Part::Scale),
        "finalize" => Some(Part::Finalize),
        _ => None,
    }
}

fn is_allowed(definition: &ResourceDefinition, part: Part, verb: Verb, named: bool) -> bool {
    match part {
        // A collection of namespaces cannot be deleted.
        Part::Object if verb == Verb::DeleteCollection => definition.builtin != Some(Builtin::Namespace),
        // As upstream: the name in the path of a POST means nothing for a kind that comes from a CRD.
        Part::Object => verb != Verb::Create || !named || definition.builtin.is_none(),
        Part::Finalize => verb == Verb::Update,
        Part::Status | Part::Scale => matches!(verb, Verb::Get | Verb::Update | Verb::Patch),
    }
}
