//! Update and patch: read, compute, check, write; again when somebody else wrote in between.
//!
//! A patch is an update whose new object is computed from the current one, in the same loop.

use super::create::{cannot_be_handled, check_namespace, check_type, to_stored_form};
use super::object_meta::{self, generation, metadata_mut, text};
use super::patch::Patch;
use super::{Answer, Part, Registry, RequestScope, Unstructured, finalizers, scale, strategy, value_of};
use crate::resources::field;
use crate::serializer;
use crate::status::{ApiError, GroupResource};
use futures::future::BoxFuture;
use outrigger_storage::{Error, Object};
use serde_json::Value;

/// How often an update is computed anew because somebody else wrote in between. Only updates that do not name a version
/// come here twice; kube-apiserver repeats them until the request's deadline.
const UPDATE_TRIES_MAX: usize = 64;

/// A strategic merge patch, applied by whoever knows the kinds' merge keys.
pub type StrategicMerge<'a> =
    &'a (dyn Fn(&Unstructured, &Unstructured) -> Result<Unstructured, ApiError> + Send + Sync);

impl Registry {
    /// Replaces the object (or its status, or a namespace's finalizers) by `object`. Says whether it was created: some
    /// kinds are, by a PUT.
    ///
    /// # Errors
    /// 400, 404, 409, 413, 422, and the store's.
    pub async fn update(
        &self,
        scope: &RequestScope,
        mut object: Unstructured,
    ) -> Result<(Answer, bool), ApiError> {
        check_type(scope, &mut object)?;
        let asked = object.clone();
        let mut object = to_stored_form(scope, object).map_err(|error| cannot_be_handled(scope, &error))?;
        check_namespace(scope, &mut object)?;
        check_name(scope, &object)?;
        warn_about_owners(scope, &mut object);
        let uid = text(&object, "uid").to_owned();
        let compute = |current: &Unstructured| {
            check_uid(scope, &uid, text(current, "uid"))?;
            Ok(object.clone())
        };
        let creates = scope.part == Part::Object && strategy::allows_create_on_update(&scope.definition);
        match self.update_with(scope, &compute).await {
            Err(error) if error.code == 404 && creates => Ok((self.create(scope, asked).await?, true)),
            result => Ok((result?, false)),
        }
    }

    /// Applies a patch to the object or its status.
    ///
    /// # Errors
    /// As for update, and 422 when the patch does not apply.
    pub async fn patch(
        &self,
        scope: &RequestScope,
        patch: &Patch,
        strategic_merge: StrategicMerge<'_>,
    ) -> Result<Answer, ApiError> {
        let compute = |current: &Unstructured| {
            let current = scope.to_served(current.clone());
            let mut object = match patch {
                Patch::StrategicMerge(patch) => strategic_merge(&current, patch)?,
                Patch::Json(_) | Patch::Merge(_) => patch.apply(&current)?,
            };
            check_patched_type(scope, &object)?;
            // A patch has no type; what it makes of a built-in kind must have one.
            let api_version = scope.definition.api_version();
            let expected = serializer::Expected {
                api_version: &api_version,
                kind: &scope.definition.kind,
            };
            let patched = object.clone();
            let invalid = |error: String| invalid_patch(&patched, &error);
            serializer::conform(expected, &mut object).map_err(invalid)?;
            let mut object = to_stored_form(scope, object).map_err(invalid)?;
            check_namespace(scope, &mut object)?;
            check_name(scope, &object)?;
            warn_about_owners(scope, &mut object);
            Ok(object)
        };
        self.update_with(scope, &compute).await
    }

    /// Replaces the scale by `object`, an `autoscaling/v1 Scale`.
    ///
    /// # Errors
    /// As for update.
    pub async fn update_scale(&self, scope: &RequestScope, object: Unstructured) -> Result<Answer, ApiError> {
        scale::check_type(&object)?;
        scale::check_replicas(&object).map_err(|error| {
            ApiError::bad_request(format!(
                "Scale in version \"v1\" cannot be handled as a Scale: {error}"
            ))
        })?;
        check_name(scope, &object)?;
        let uid = text(&object, "uid").to_owned();
        let compute = |current: &Unstructured| {
            check_uid(scope, &uid, text(current, "uid"))?;
            scale::apply(scope, current, &object)
        };
        scale::answer(scope, self.update_with(scope, &compute).await?)
    }

    /// Applies a patch to the scale.
    ///
    /// # Errors
    /// As for patch.
    pub async fn patch_scale(&self, scope: &RequestScope, patch: &Patch) -> Result<Answer, ApiError> {
        let compute = |current: &Unstructured| {
            let object = patch.apply(&scale::of_object_or_unset(scope, current)?)?;
            scale::check_type(&object)?;
            scale::check_replicas(&object).map_err(|error| invalid_patch(&object, &error))?;
            check_name(scope, &object)?;
            scale::apply(scope, current, &object)
        };
        scale::answer(scope, self.update_with(scope, &compute).await?)
    }

    /// The loop: `compute` makes the new object of the current one, both in the form in which they are stored.
    ///
    /// Boxed here, where the compiler still sees that it may be sent: behind generic callers it no longer does.
    fn update_with<'a>(
        &'a self,
        scope: &'a RequestScope,
        compute: &'a (dyn Fn(&Unstructured) -> Result<Unstructured, ApiError> + Send + Sync),
    ) -> BoxFuture<'a, Result<Answer, ApiError>> {
        Box::pin(self.update_loop(scope, compute))
    }

    async fn update_loop(
        &self,
        scope: &RequestScope,
        compute: &(dyn Fn(&Unstructured) -> Result<Unstructured, ApiError> + Send + Sync),
    ) -> Result<Answer, ApiError> {
        let store = self.store(&scope.definition)?;
        let mut current = self.current(scope).await?;
        for _ in 0..UPDATE_TRIES_MAX {
            let old = value_of(scope, &current)?;
            let mut object = compute(&old)?;
            check_version(scope, &object, &current)?;
            // Here: pruning and defaulting, field management, mutating admission.
            prepare(scope, &mut object, &old)?;
            // Here: the schema and CEL, then validating admission.

            let finished =
                finalizers::is_finished(&object, &old) && !strategy::stays(&scope.definition, &object);
            let result = if finished && scope.dry_run {
                return Ok(Answer::Value(scope.to_served(object)));
            } else if finished {
                match store.delete(&current).await {
                    Err(Error::Conflict(None) | Error::NotFound { .. }) => {
                        return Ok(Answer::Value(scope.to_served(object)));
                    }
                    other => other.map(|deleted| {
                        let version = deleted.resource_version().to_string();
                        metadata_mut(&mut object).insert("resourceVersion".to_owned(), version.into());
                        Answer::Value(scope.to_served(object))
                    }),
                }
            } else {
                let sealed = scope.seal(&object)?;
                if sealed.body() == current.stored_json() {
                    return Ok(Answer::Stored(current));
                }
                if scope.dry_run {
                    let version = current.resource_version().to_string();
                    metadata_mut(&mut object).insert("resourceVersion".to_owned(), version.into());
                    return Ok(Answer::Value(scope.to_served(object)));
                }
                store.update(&current, &sealed).await.map(Answer::Stored)
            };
            match result {
                Ok(answer) => return Ok(answer),
                Err(Error::Conflict(Some(now))) => current = *now,
                Err(Error::Conflict(None) | Error::Unplaced(_)) => return Err(scope.not_found()),
                Err(error) => return Err(scope.storage_error(error)),
            }
        }
        Err(ApiError::modified(scope.group_resource(), &scope.name))
    }
}

/// Everything between the new object as it was asked for and the one that may be stored.
fn prepare(scope: &RequestScope, object: &mut Unstructured, old: &Unstructured) -> Result<(), ApiError> {
    let definition = &*scope.definition;
    let metadata = metadata_mut(object);
    metadata.remove("selfLink");
    match generation(old) {
        0 => metadata.remove("generation"),
        generation => metadata.insert("generation".to_owned(), generation.into()),
    };
    strategy::prepare_for_update(scope, object, old);
    object_meta::keep_system_fields(object, old);
    let name_rule = |name: &str, prefix| strategy::validate_name(definition, name, prefix);
    let mut causes = object_meta::validate(object, definition.namespaced, &name_rule);
    causes.extend(object_meta::validate_update(object, old));
    causes.extend(strategy::validate_update(scope, object, old));
    if !causes.is_empty() {
        return Err(scope.invalid(&scope.name, causes));
    }
    strategy::canonicalize(scope, object);
    if scope.part == Part::Object {
        for warning in object_meta::finalizer_warnings(object, Some(old)) {
            scope.warnings.add(warning);
        }
    }
    Ok(())
}

/// The version that the new object names is the current one. None is fine for kinds that allow it.
fn check_version(scope: &RequestScope, object: &Unstructured, current: &Object) -> Result<(), ApiError> {
    let (resource, version) = (scope.group_resource(), text(object, "resourceVersion"));
    match version.parse::<u64>() {
        Ok(n) if n == current.resource_version().get() => Ok(()),
        Ok(1..) => Err(ApiError::modified(resource, &scope.name)),
        Err(_) if !version.is_empty() => Err(ApiError::bad_request(format!(
            "invalid resource version {version:?}: it must be a decimal integer that starts with 1 to 9"
        ))),
        _ if strategy::allows_unconditional_update(&scope.definition) => Ok(()),
        _ => {
            let cause = field::invalid("metadata.resourceVersion", 0, "must be specified for an update");
            // kube-apiserver names the plural here, where all other errors name the kind.
            let GroupResource { group, resource } = resource;
            Err(ApiError::invalid(group, resource, &scope.name, vec![cause]))
        }
    }
}

/// What a patch made cannot be read.
fn invalid_patch(patched: &Unstructured, error: &str) -> ApiError {
    let cause = field::invalid("patch", Value::Object(patched.clone()).to_string(), error);
    ApiError::invalid("", "", "", vec![cause])
}

/// A patch may not turn the object into one of another kind.
fn check_patched_type(scope: &RequestScope, object: &Unstructured) -> Result<(), ApiError> {
    let expect = [
        ("kind", scope.definition.kind.clone()),
        ("apiVersion", scope.definition.api_version()),
    ];
    let wrong = |(name, expect): &(&str, String)| {
        let text = object.get(*name).and_then(Value::as_str).unwrap_or_default();
        (text != expect).then(|| field::invalid(*name, text, &format!("must be {expect}")))
    };
    let causes: Vec<_> = expect.iter().filter_map(wrong).collect();
    if causes.is_empty() {
        return Ok(());
    }
    // The error is about what the patch made of it.
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let group = text("apiVersion").split_once('/').map_or("", |(group, _)| group);
    Err(ApiError::invalid(group, text("kind"), &scope.name, causes))
}

fn check_uid(scope: &RequestScope, asked: &str, current: &str) -> Result<(), ApiError> {
    if asked.is_empty() || asked == current {
        return Ok(());
    }
    let cause = format!("Precondition failed: UID in precondition: {asked}, UID in object meta: {current}");
    Err(ApiError::conflict(scope.group_resource(), &scope.name, &cause))
}

fn check_name(scope: &RequestScope, object: &Unstructured) -> Result<(), ApiError> {
    match text(object, "name") {
        "" => Err(ApiError::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            scope.name
        ))),
        name if name == scope.name => Ok(()),
        name => Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            scope.name
        ))),
    }
}

fn warn_about_owners(scope: &RequestScope, object: &mut Unstructured) {
    if let Some(warning) = object_meta::dedup_owner_references(object) {
        scope.warnings.add(warning);
    }
}
