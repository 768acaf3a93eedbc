//! Get, list and watch: what the store has, with the selectors that the kind allows.

use super::object_meta::text;
use super::{Registry, RequestScope, Unstructured};
use crate::request::options::{GetOptions, ListOptions};
use crate::resources::definition::Builtin;
use crate::status::ApiError;
use outrigger_storage::federated::{Extent, List, ListVersion, Missing, Scope, Watch, WatchStart};
use outrigger_storage::selection_predicate::{FieldOperator, FieldSelector, SelectionPredicate};
use outrigger_storage::{Error, Object};
use serde_json::Value;

/// What a Status says when the snapshot of a continue token is compacted.
const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
     the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided \
     token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and \
     now may show up in the list.";

impl Registry {
    /// The object, in its newest state.
    ///
    /// # Errors
    /// 404, 504 when the version that it shall not be older than does not exist yet, and the store's.
    pub async fn get(&self, scope: &RequestScope, options: &GetOptions) -> Result<Object, ApiError> {
        if let Some(version) = options.not_older_than {
            let fields = FieldSelector::equals("metadata.name", &scope.name);
            let predicate = SelectionPredicate {
                fields,
                ..SelectionPredicate::default()
            };
            let version = ListVersion::NotOlderThan(version);
            self.list_version(scope, predicate, version, 1, Missing::Refuse)
                .await?;
        }
        self.current(scope).await
    }

    /// Lists objects. Returns when the snapshot is fixed; the objects follow.
    ///
    /// # Errors
    /// 400, 410 with a token to go on with, 503, 504, and the store's.
    pub async fn list(
        &self,
        scope: &RequestScope,
        options: &ListOptions,
        missing: Missing,
    ) -> Result<List, ApiError> {
        let predicate = predicate(scope, &options.predicate)?;
        let version = options.version()?;
        self.list_version(scope, predicate, version, options.limit, missing)
            .await
    }

    pub(super) async fn list_version(
        &self,
        scope: &RequestScope,
        predicate: SelectionPredicate,
        version: ListVersion,
        limit: u64,
        missing: Missing,
    ) -> Result<List, ApiError> {
        let store = self.store(&scope.definition)?;
        let extent = narrow(scope.extent(), &predicate);
        let options = outrigger_storage::federated::ListOptions {
            version,
            predicate,
            limit,
            missing,
        };
        // Nobody is left out here: there is nobody, and people are to be told what to do about it.
        if extent.extent == Extent::AllNamespaces && !store.has_members() {
            return Err(scope.storage_error(Error::NoMembers));
        }
        match store.list(&extent, options.clone()).await {
            Err(error @ (Error::OwnerUnknown { .. } | Error::NoMembers)) => {
                self.0
                    .placement
                    .check_nobody_owns(&scope_domain(&extent), missing_of(&error))
                    .await?;
                // Nobody owns the namespace: the snapshot of all others is the one that it is empty in.
                let (extent, options) = empty_list(&extent, options);
                store
                    .list(&extent, options)
                    .await
                    .map_err(|error| scope.storage_error(error))
            }
            Err(Error::Expired { requested }) => Err(match options.version {
                ListVersion::Continue(token) => ApiError {
                    continue_token: Some(token.inconsistent().encode()),
                    ..ApiError::expired(CONTINUE_EXPIRED)
                },
                _ => scope.storage_error(Error::Expired { requested }),
            }),
            other => other.map_err(|error| scope.storage_error(error)),
        }
    }

    /// Watches objects.
    ///
    /// # Errors
    /// 400, 503, 504, and the store's. A version that is too old comes as the first event instead.
    pub async fn watch(
        &self,
        scope: &RequestScope,
        options: &ListOptions,
    ) -> Result<Result<Watch, ApiError>, ApiError> {
        let predicate = predicate(scope, &options.predicate)?;
        let start = options.watch_start(scope.group_resource())?;
        let from_version = matches!(start, WatchStart::After(_));
        let extent = narrow(scope.extent(), &predicate);
        match self
            .store(&scope.definition)?
            .watch(&extent, predicate, start)
            .await
        {
            Ok(watch) => Ok(Ok(watch)),
            Err(error @ Error::Expired { .. }) if from_version => Ok(Err(scope.storage_error(error))),
            Err(error @ Error::OwnerUnknown { .. }) => {
                self.0
                    .placement
                    .check_nobody_owns(&scope_domain(&extent), missing_of(&error))
                    .await?;
                Err(scope.storage_error(error))
            }
            Err(error) => Err(scope.storage_error(error)),
        }
    }

    /// The object's newest state, for reads and for the beginning of writes.
    pub(super) async fn current(&self, scope: &RequestScope) -> Result<Object, ApiError> {
        let key = scope.key();
        match self.store(&scope.definition)?.get(&key).await {
            Err(error @ (Error::OwnerUnknown { .. } | Error::NoMembers)) => {
                self.0
                    .placement
                    .check_nobody_owns(&key.domain(), missing_of(&error))
                    .await?;
                Err(scope.not_found())
            }
            Err(Error::Unplaced(_)) => Err(scope.not_found()),
            other => other.map_err(|error| scope.storage_error(error)),
        }
    }

    /// A namespace, from where namespaces are.
    pub(super) async fn namespace(&self, name: &str) -> Result<Unstructured, ApiError> {
        let namespace = self.0.control_plane.namespace(name).await?;
        namespace.ok_or_else(|| namespace_not_found(name))
    }
}

/// The clusters that did not say whether they own a namespace.
fn missing_of(error: &Error) -> &[String] {
    match error {
        Error::OwnerUnknown { missing, .. } => missing,
        _ => &[],
    }
}

pub(super) fn namespace_not_found(name: &str) -> ApiError {
    let resource = crate::status::GroupResource {
        group: "",
        resource: "namespaces",
    };
    ApiError::not_found(resource, name)
}

/// Whether a namespace is on its way out.
pub(super) fn is_terminating(namespace: &Unstructured) -> bool {
    let phase = namespace
        .get("status")
        .and_then(|s| s.get("phase"))
        .and_then(Value::as_str);
    phase == Some("Terminating") || !text(namespace, "deletionTimestamp").is_empty()
}

/// The predicate with the fields that the kind can be selected by, as paths in the stored object.
///
/// # Errors
/// 400 for any other field.
pub(super) fn predicate(
    scope: &RequestScope,
    asked: &SelectionPredicate,
) -> Result<SelectionPredicate, ApiError> {
    let mut text = String::new();
    for term in asked.fields.terms() {
        let path = match term.field() {
            "metadata.name" | "metadata.namespace" => term.field().to_owned(),
            other => scope
                .definition
                .selectable_path(other)
                .ok_or_else(|| not_selectable(scope, other))?,
        };
        let path = path.strip_prefix('.').unwrap_or(&path);
        let operator = if term.operator() == FieldOperator::Equals {
            "="
        } else {
            "!="
        };
        let value = term
            .value()
            .replace('\\', "\\\\")
            .replace(',', "\\,")
            .replace('=', "\\=");
        text = format!(
            "{text}{}{path}{operator}{value}",
            if text.is_empty() { "" } else { "," }
        );
    }
    let fields = FieldSelector::parse(&text).map_err(|error| ApiError::bad_request(error.to_string()))?;
    Ok(SelectionPredicate {
        fields,
        ..asked.clone()
    })
}

fn not_selectable(scope: &RequestScope, field: &str) -> ApiError {
    ApiError::bad_request(match scope.definition.builtin {
        Some(Builtin::Lease | Builtin::CustomResourceDefinition) => {
            format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
        }
        _ => format!("field label not supported: {field}"),
    })
}

/// One namespace, when the selector says that nothing else is wanted.
fn narrow(scope: Scope, predicate: &SelectionPredicate) -> Scope {
    match (
        &scope.extent,
        predicate.fields.requires_exact("metadata.namespace"),
    ) {
        (Extent::AllNamespaces, Some(namespace)) if !namespace.is_empty() && !namespace.contains('/') => {
            Scope {
                extent: Extent::Namespace(namespace.into()),
                ..scope
            }
        }
        _ => scope,
    }
}

fn scope_domain(scope: &Scope) -> outrigger_storage::key::Domain {
    match &scope.extent {
        Extent::Namespace(namespace) => outrigger_storage::key::Domain::Namespace(namespace.clone()),
        Extent::AllNamespaces | Extent::Cluster => {
            outrigger_storage::key::Domain::Kind(scope.resource.clone())
        }
    }
}

fn empty_list(
    scope: &Scope,
    options: outrigger_storage::federated::ListOptions,
) -> (Scope, outrigger_storage::federated::ListOptions) {
    // No name is a DNS name and empty, so this selects nothing wherever it is asked.
    let predicate = SelectionPredicate {
        fields: FieldSelector::equals("metadata.name", ""),
        ..options.predicate
    };
    let extent = match &scope.extent {
        Extent::Namespace(_) => Extent::AllNamespaces,
        other => other.clone(),
    };
    (
        Scope {
            extent,
            ..scope.clone()
        },
        outrigger_storage::federated::ListOptions {
            predicate,
            missing: Missing::Allow,
            ..options
        },
    )
}
