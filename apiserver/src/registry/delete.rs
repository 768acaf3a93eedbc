//! Delete: mark, or take away.
//!
//! An object with finalizers is marked and stays until the last of them is gone. Namespaces and
//! CustomResourceDefinitions hold content, so the first delete only marks them; controllers empty and finish them.

use super::object_meta::{self, metadata_mut, text};
use super::{Answer, Registry, RequestScope, Unstructured, finalizers, strategy, value_of};
use crate::request::options::DeleteOptions;
use crate::resources::definition::Builtin;
use crate::status::{ApiError, GroupResource};
use outrigger_storage::{Error, FederatedStore, Object};
use serde_json::{Value, json};

/// How often a delete starts again because somebody else wrote in between.
const DELETE_TRIES_MAX: usize = 64;

/// Namespaces that are always there, as kube-apiserver's admission has it.
const IMMORTAL_NAMESPACES: [&str; 3] = ["default", "kube-public", "kube-system"];

/// What became of an object.
#[derive(Debug, Clone)]
pub struct Deleted {
    /// Whether it is gone.
    pub gone: bool,
    /// What is answered.
    pub answer: DeleteAnswer,
}

/// The answer to a delete.
#[derive(Debug, Clone)]
pub enum DeleteAnswer {
    /// A `Status`: the object is gone. Its metadata has the resource version of the deletion.
    Status(Unstructured),
    /// The object: it waits for its finalizers, or the kind says so.
    Object(Answer),
}

impl Registry {
    /// Deletes the object, or marks it.
    ///
    /// # Errors
    /// 404, 409 when a precondition does not hold, and the store's.
    pub async fn delete(&self, scope: &RequestScope, options: &DeleteOptions) -> Result<Deleted, ApiError> {
        let is_namespace = scope.definition.builtin == Some(Builtin::Namespace);
        if is_namespace && IMMORTAL_NAMESPACES.contains(&scope.name.as_str()) {
            let cause = "this namespace may not be deleted";
            return Err(ApiError::forbidden(scope.group_resource(), &scope.name, cause));
        }
        let store = self.store(&scope.definition)?;
        let mut current = self.current(scope).await?;
        for _ in 0..DELETE_TRIES_MAX {
            let old = value_of(scope, &current)?;
            check_preconditions(scope, options, &old)?;
            // Here: validating admission.
            let result = match self.marked(scope, options, &old) {
                Some(object) => mark(store, scope, &current, object).await,
                None if scope.dry_run => {
                    return Ok(gone(scope, &current, current.resource_version().to_string()));
                }
                None => store.delete(&current).await.map(|deleted| {
                    let version = deleted.resource_version().to_string();
                    gone(scope, &deleted, version)
                }),
            };
            match result {
                Ok(deleted) => return Ok(deleted),
                Err(Error::Conflict(Some(now))) => current = *now,
                Err(Error::Conflict(None) | Error::Unplaced(_) | Error::NotFound { .. }) => {
                    return Err(scope.not_found());
                }
                Err(error) => return Err(scope.storage_error(error)),
            }
        }
        Err(ApiError::modified(scope.group_resource(), &scope.name))
    }

    /// The object as it waits for its finalizers; `None` when nothing keeps it.
    fn marked(
        &self,
        scope: &RequestScope,
        options: &DeleteOptions,
        old: &Unstructured,
    ) -> Option<Unstructured> {
        let definition = &*scope.definition;
        let mut object = old.clone();
        let first = text(old, "deletionTimestamp").is_empty();
        if strategy::is_garbage_collected(definition) {
            object_meta::set_finalizers(&mut object, &finalizers::for_deletion(old, options));
        }
        if strategy::holds_content(definition) && first {
            let now = object_meta::rfc3339(self.now());
            metadata_mut(&mut object).insert("deletionTimestamp".to_owned(), now.clone().into());
            strategy::prepare_for_delete(definition, &mut object, &now);
            return Some(object);
        }
        if strategy::stays(definition, old) {
            return Some(old.clone());
        }
        if object_meta::finalizers(&object).is_empty() {
            return None;
        }
        finalizers::mark_as_deleting(&mut object, self.now());
        Some(object)
    }
}

/// Stores the object as it waits for its finalizers.
async fn mark(
    store: &FederatedStore,
    scope: &RequestScope,
    current: &Object,
    object: Unstructured,
) -> Result<Deleted, Error> {
    let waits = |answer| Deleted {
        gone: false,
        answer: DeleteAnswer::Object(answer),
    };
    let sealed = scope
        .seal(&object)
        .map_err(|error| Error::Internal(error.message))?;
    if sealed.body() == current.stored_json() {
        return Ok(waits(Answer::Stored(current.clone())));
    }
    if scope.dry_run {
        return Ok(waits(Answer::Value(scope.to_served(object))));
    }
    let stored = store.update(current, &sealed).await?;
    Ok(waits(Answer::Stored(stored)))
}

fn check_preconditions(
    scope: &RequestScope,
    options: &DeleteOptions,
    old: &Unstructured,
) -> Result<(), ApiError> {
    let definition = &scope.definition;
    let (uid, version) = (text(old, "uid"), text(old, "resourceVersion"));
    let (asked_uid, asked_version) = (
        &options.preconditions.uid,
        &options.preconditions.resource_version,
    );
    let asked = |asked: &Option<String>, now: &str| asked.clone().filter(|asked| asked != now);
    if strategy::holds_content(definition) {
        let conflict = |what: &str, asked: &str, now: &str| {
            let cause =
                format!("Precondition failed: {what} in precondition: {asked}, {what} in object meta: {now}");
            Err(ApiError::conflict(scope.group_resource(), &scope.name, &cause))
        };
        return match (asked(asked_uid, uid), asked(asked_version, version)) {
            (Some(asked), _) => conflict("UID", &asked, uid),
            (None, Some(asked)) => conflict("ResourceVersion", &asked, version),
            (None, None) => Ok(()),
        };
    }
    // kube-apiserver names the kind here, where all other conflicts name the plural.
    let kind = GroupResource {
        group: &definition.group,
        resource: &definition.kind,
    };
    let conflict = |cause: String| Err(ApiError::conflict(kind, &scope.name, &cause));
    if let Some(asked) = asked(asked_uid, uid) {
        return conflict(format!(
            "the UID in the precondition ({asked}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        ));
    }
    if let Some(asked) = asked(asked_version, version) {
        return conflict(format!(
            "the ResourceVersion in the precondition ({asked}) does not match the ResourceVersion in record ({version}). The object might have been modified"
        ));
    }
    Ok(())
}

/// The answer about an object that is gone at `version`.
fn gone(scope: &RequestScope, object: &Object, version: String) -> Deleted {
    if strategy::returns_deleted_object(&scope.definition) {
        return Deleted {
            gone: true,
            answer: DeleteAnswer::Object(Answer::Stored(object.clone())),
        };
    }
    let uid = object.metadata().map(|m| m.uid.into_owned()).unwrap_or_default();
    let mut details = json!({"name": object.name(), "kind": scope.definition.plural, "uid": uid});
    if !scope.definition.group.is_empty() {
        details["group"] = scope.definition.group.clone().into();
    }
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "status": "Success", "details": details,
    });
    let Value::Object(status) = status else {
        unreachable!("written as an object just above")
    };
    Deleted {
        gone: true,
        answer: DeleteAnswer::Status(status),
    }
}
