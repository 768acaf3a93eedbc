//! Create: from a decoded object to a stored one.

use super::names::{self, GENERATE_TRIES_MAX};
use super::object_meta::{self, metadata_mut, text};
use super::{Answer, Registry, RequestScope, Unstructured, strategy};
use crate::registry::placement::Placed;
use crate::registry::read::{is_terminating, namespace_not_found};
use crate::resources::field;
use crate::status::{ApiError, StatusCause};
use outrigger_storage::{Error, Key, Object, SealedObject};
use serde_json::Value;

/// How often a create asks for a placement before it gives up: each time another replica may have been faster.
const PLACEMENT_TRIES_MAX: u32 = 8;

impl Registry {
    /// Creates the object. `name` of the scope may be empty: the object has a name, or gets one.
    ///
    /// # Errors
    /// 400, 403, 404 (no such namespace), 409, 413, 422, and the store's.
    pub async fn create(&self, scope: &RequestScope, mut object: Unstructured) -> Result<Answer, ApiError> {
        let definition = &*scope.definition;
        check_type(scope, &mut object)?;
        let mut object = to_stored_form(scope, object).map_err(|error| cannot_be_handled(scope, &error))?;
        check_namespace(scope, &mut object)?;
        object_meta::wipe_system_fields(&mut object);
        if let Some(warning) = object_meta::dedup_owner_references(&mut object) {
            scope.warnings.add(warning);
        }
        // Here: pruning and defaulting, field management, mutating admission.
        let uid = self.check_lifecycle(scope, text(&object, "name")).await?;
        if definition.terminating {
            let cause = "create not allowed while custom resource definition is terminating";
            return Err(ApiError::forbidden(
                scope.group_resource(),
                text(&object, "name"),
                cause,
            ));
        }

        let generates = text(&object, "name").is_empty() && !text(&object, "generateName").is_empty();
        let tries = if generates { GENERATE_TRIES_MAX } else { 1 };
        let mut result = Err(ApiError::internal("no name was tried"));
        for _ in 0..tries {
            result = self.create_named(scope, object.clone(), &uid).await;
            if !matches!(&result, Err(error) if error.reason == "AlreadyExists") {
                break;
            }
        }
        result
    }

    /// One try with one name.
    async fn create_named(
        &self,
        scope: &RequestScope,
        mut object: Unstructured,
        uid: &str,
    ) -> Result<Answer, ApiError> {
        let definition = &*scope.definition;
        let generate_name = text(&object, "generateName").to_owned();
        let generated = (text(&object, "name").is_empty() && !generate_name.is_empty())
            .then(|| names::generate(&generate_name, &mut *self.0.rng.lock()));
        let metadata = metadata_mut(&mut object);
        if let Some(name) = generated {
            metadata.insert("name".to_owned(), name.into());
        }
        metadata.insert("uid".to_owned(), self.new_uid().into());
        metadata.insert(
            "creationTimestamp".to_owned(),
            object_meta::rfc3339(self.now()).into(),
        );
        strategy::prepare_for_create(scope, &mut object);
        let mut causes = strategy::validate_create(scope, &object);
        let name_rule = |name: &str, prefix| strategy::validate_name(definition, name, prefix);
        causes.extend(object_meta::validate(&object, definition.namespaced, &name_rule));
        // Here: the schema and CEL, then validating admission.
        let name = text(&object, "name").to_owned();
        if !causes.is_empty() {
            return Err(scope.invalid(&name, causes));
        }
        for warning in object_meta::finalizer_warnings(&object, None) {
            scope.warnings.add(warning);
        }
        check_resource_version_is_unset(&object)?;
        strategy::canonicalize(scope, &mut object);

        let key = scope.key_of(&name);
        let sealed = scope.seal(&object)?;
        let result = if scope.dry_run {
            self.dry_run_create(scope, &key, object).await
        } else {
            self.create_placed(scope, &key, &sealed, uid)
                .await
                .map(|o| o.map(Answer::Stored))
        };
        match result? {
            Ok(answer) => Ok(answer),
            Err(existing) => Err(already_exists(scope, &name, &generate_name, &existing)),
        }
    }

    /// Creates where the placement says, or returns what is there already.
    async fn create_placed(
        &self,
        scope: &RequestScope,
        key: &Key,
        sealed: &SealedObject,
        uid: &str,
    ) -> Result<Result<Object, Box<Object>>, ApiError> {
        let store = self.store(&scope.definition)?;
        for attempt in 0..PLACEMENT_TRIES_MAX {
            match store.create(key, sealed).await {
                Ok(object) => return Ok(Ok(object)),
                Err(Error::AlreadyExists(existing)) => return Ok(Err(existing)),
                Err(Error::Unplaced(_) | Error::OwnerUnknown { .. }) => {
                    let placed = self.0.placement.place(&key.domain(), uid, attempt).await;
                    match placed.map_err(|e| e.about(scope.group_resource(), &key.name))? {
                        Placed::TryAgain => {}
                        Placed::Gone => return Err(self.namespace_went(scope, &key.name).await),
                    }
                }
                Err(error) => return Err(ApiError::from_storage(error, scope.group_resource(), &key.name)),
            }
        }
        let message = format!("{} is being placed on a cluster", key.domain().placement_name());
        Err(ApiError::service_unavailable(message, 1).about(scope.group_resource(), &key.name))
    }

    async fn dry_run_create(
        &self,
        scope: &RequestScope,
        key: &Key,
        object: Unstructured,
    ) -> Result<Result<Answer, Box<Object>>, ApiError> {
        match self.store(&scope.definition)?.get(key).await {
            Ok(existing) => Ok(Err(Box::new(existing))),
            Err(Error::NotFound { .. } | Error::Unplaced(_) | Error::OwnerUnknown { .. }) => {
                Ok(Ok(Answer::Value(scope.to_served(object))))
            }
            Err(error) => Err(ApiError::from_storage(error, scope.group_resource(), &key.name)),
        }
    }

    /// The namespace is there and stays. Returns the uid of what the object's placement follows: the namespace, or the CRD.
    async fn check_lifecycle(&self, scope: &RequestScope, name: &str) -> Result<String, ApiError> {
        if !scope.definition.namespaced {
            return Ok(scope.definition.crd_uid.clone());
        }
        let namespace = self.namespace(&scope.namespace).await?;
        if is_terminating(&namespace) {
            return Err(namespace_is_terminating(scope, name));
        }
        Ok(text(&namespace, "uid").to_owned())
    }

    /// The namespace was there when the request began.
    async fn namespace_went(&self, scope: &RequestScope, name: &str) -> ApiError {
        match self.0.control_plane.current_namespace(&scope.namespace).await {
            Ok(Some(_)) => namespace_is_terminating(scope, name),
            Ok(None) => namespace_not_found(&scope.namespace),
            Err(error) => error.about(scope.group_resource(), name),
        }
    }
}

fn namespace_is_terminating(scope: &RequestScope, name: &str) -> ApiError {
    let cause = format!(
        "unable to create new content in namespace {} because it is being terminated",
        scope.namespace
    );
    let causes = vec![StatusCause {
        reason: "NamespaceTerminating".into(),
        message: format!("namespace {} is being terminated", scope.namespace),
        field: "metadata.namespace".to_owned(),
    }];
    ApiError::forbidden(scope.group_resource(), name, &cause).causes(causes)
}

fn already_exists(scope: &RequestScope, name: &str, generate_name: &str, existing: &Object) -> ApiError {
    let resource = scope.group_resource();
    let mut error = ApiError::already_exists(resource, name);
    if !generate_name.is_empty() {
        error = error.retry_after(1);
        error.message = format!(
            "{resource} {name:?} already exists, the server was not able to generate a unique name for the object"
        );
    }
    if existing.metadata().is_ok_and(|m| m.deletion_timestamp.is_some()) {
        error.message = format!("object is being deleted: {}", error.message);
    }
    error
}

/// apiVersion and kind are those of the endpoint. Built-in kinds may leave them out.
pub(super) fn check_type(scope: &RequestScope, object: &mut Unstructured) -> Result<(), ApiError> {
    let definition = &*scope.definition;
    let api_version = definition.api_version();
    if definition.builtin.is_some() {
        for (name, default) in [("kind", &definition.kind), ("apiVersion", &api_version)] {
            if object
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .is_empty()
            {
                object.insert(name.to_owned(), default.clone().into());
            }
        }
    }
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    if text("apiVersion") != api_version {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({api_version})",
            text("apiVersion")
        )));
    }
    if text("kind") != definition.kind && definition.builtin.is_none() {
        let detail = format!("must be {}", definition.kind);
        let causes = vec![field::invalid("kind", text("kind"), &detail)];
        let name = object_meta::text(object, "name");
        return Err(ApiError::invalid(&definition.group, text("kind"), name, causes));
    }
    if text("kind") != definition.kind {
        return Err(ApiError::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}",
            text("kind"),
            definition.version,
            definition.kind
        )));
    }
    Ok(())
}

/// An object as clients send it, in the form in which it is stored: metadata and built-in kinds have their types.
///
/// # Errors
/// The text of the decoding error.
pub(super) fn to_stored_form(scope: &RequestScope, mut object: Unstructured) -> Result<Unstructured, String> {
    object_meta::coerce(&mut object)?;
    let object = crate::resources::strategy::typed(&scope.definition, object);
    Ok(scope.to_stored(object.map_err(|error| error.to_string())?))
}

/// The namespace in the object is the one in the URL; it is filled in where it is missing.
pub(super) fn check_namespace(scope: &RequestScope, object: &mut Unstructured) -> Result<(), ApiError> {
    if !scope.definition.namespaced {
        metadata_mut(object).remove("namespace");
        return Ok(());
    }
    match text(object, "namespace") {
        "" => {
            metadata_mut(object).insert("namespace".to_owned(), scope.namespace.clone().into());
            Ok(())
        }
        namespace if namespace == scope.namespace => Ok(()),
        _ => Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
    }
}

pub(super) fn cannot_be_handled(scope: &RequestScope, error: &str) -> ApiError {
    let (version, kind) = (&scope.definition.version, &scope.definition.kind);
    ApiError::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: {error}"
    ))
}

/// A new object has no resource version yet. kube-apiserver answers this with a bare 500, and so do we.
fn check_resource_version_is_unset(object: &Unstructured) -> Result<(), ApiError> {
    match text(object, "resourceVersion").parse::<u64>() {
        Ok(1..) => Err(ApiError::new(
            500,
            "",
            "resourceVersion should not be set on objects to be created",
        )),
        _ => Ok(()),
    }
}
