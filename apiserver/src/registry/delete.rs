//! Delete: mark, or take away.
//!
//! An object with finalizers is marked and stays until the last of them is gone. Namespaces and
//! CustomResourceDefinitions hold content, so the first delete only marks them; controllers empty and finish them.

use super::object_meta::{self, metadata_mut, text};
use super::{Answer, Registry, RequestScope, Unstructured, finalizers, strategy, value_of};
use crate::request::options::DeleteOptions;
use crate::resources::definition::Builtin;
use crate::status::{ApiError, GroupResource};
use outrigger_storage::{Error, Object};
use serde_json::{Value, json};

/// How often a delete starts again because somebody else wrote in between.
const DELETE_TRIES_MAX: usize = 64;
/// Keeps a CustomResourceDefinition until its objects are gone.
const CUSTOM_RESOURCE_CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

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
        let store = self.store(&scope.definition);
        let mut current = self.current(scope).await?;
        for _ in 0..DELETE_TRIES_MAX {
            let old = value_of(scope, &current)?;
            check_preconditions(scope, options, &old)?;
            // Here: validating admission.
            let result = match self.marked(scope, options, &old) {
                Some(object) => self.mark(scope, &current, object).await,
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
        match definition.builtin {
            Some(Builtin::Namespace) if first => {
                mark_without_generation(&mut object, self.now());
                status_of(&mut object).insert("phase".to_owned(), "Terminating".into());
                return Some(object);
            }
            Some(Builtin::Namespace) if !strategy::may_finish(definition, old) => return Some(old.clone()),
            Some(Builtin::CustomResourceDefinition) if first => {
                mark_without_generation(&mut object, self.now());
                let mut kept: Vec<String> = object_meta::finalizers(&object)
                    .into_iter()
                    .map(str::to_owned)
                    .collect();
                if !kept.iter().any(|f| f == CUSTOM_RESOURCE_CLEANUP) {
                    kept.push(CUSTOM_RESOURCE_CLEANUP.to_owned());
                }
                object_meta::set_finalizers(&mut object, &kept);
                set_terminating_condition(&mut object, &object_meta::rfc3339(self.now()));
                return Some(object);
            }
            _ => {}
        }
        if object_meta::finalizers(&object).is_empty() {
            return None;
        }
        finalizers::mark_as_deleting(&mut object, self.now());
        Some(object)
    }

    async fn mark(
        &self,
        scope: &RequestScope,
        current: &Object,
        object: Unstructured,
    ) -> Result<Deleted, Error> {
        let waits = |answer| Deleted {
            gone: false,
            answer: DeleteAnswer::Object(answer),
        };
        let sealed = scope
            .seal(object.clone())
            .map_err(|error| Error::Internal(error.message))?;
        if sealed.body() == current.stored_json() {
            return Ok(waits(Answer::Stored(current.clone())));
        }
        if scope.dry_run {
            return Ok(waits(Answer::Value(object)));
        }
        let stored = self.store(&scope.definition).update(current, &sealed).await?;
        Ok(waits(Answer::Stored(stored)))
    }
}

fn check_preconditions(
    scope: &RequestScope,
    options: &DeleteOptions,
    old: &Unstructured,
) -> Result<(), ApiError> {
    let definition = &scope.definition;
    let (uid, version) = (text(old, "uid"), text(old, "resourceVersion"));
    // kube-apiserver names the kind here, where all other conflicts name the plural.
    let kind = GroupResource {
        group: &definition.group,
        resource: &definition.kind,
    };
    let conflict = |cause: String| Err(ApiError::conflict(kind, &scope.name, &cause));
    if let Some(asked) = options.preconditions.uid.as_deref().filter(|asked| *asked != uid) {
        return conflict(format!(
            "the UID in the precondition ({asked}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        ));
    }
    if let Some(asked) = options
        .preconditions
        .resource_version
        .as_deref()
        .filter(|asked| *asked != version)
    {
        return conflict(format!(
            "the ResourceVersion in the precondition ({asked}) does not match the ResourceVersion in record ({version}). The object might have been modified"
        ));
    }
    Ok(())
}

fn mark_without_generation(object: &mut Unstructured, now: i64) {
    metadata_mut(object).insert("deletionTimestamp".to_owned(), object_meta::rfc3339(now).into());
}

fn status_of(object: &mut Unstructured) -> &mut Unstructured {
    static_object(object.entry("status").or_insert(Value::Null))
}

fn static_object(value: &mut Value) -> &mut Unstructured {
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object just above"),
    }
}

fn set_terminating_condition(object: &mut Unstructured, now: &str) {
    let condition = json!({
        "type": "Terminating", "status": "True", "reason": "InstanceDeletionPending", "lastTransitionTime": now,
        "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
    });
    let conditions = status_of(object).entry("conditions").or_insert(Value::Null);
    match conditions {
        Value::Array(conditions) => {
            conditions.retain(|c| c["type"] != "Terminating");
            conditions.push(condition);
        }
        other => *other = json!([condition]),
    }
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
