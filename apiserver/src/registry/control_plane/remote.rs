//! The control plane that is a kube-apiserver.
//!
//! Namespaces come from a reflector, which somebody else fills; one that is not in it is asked for, because it may have
//! been made a moment ago. Placements are asked for every time: they are needed once in a namespace's life.

use super::{ControlPlane, NAMESPACES, PLACEMENT_API_VERSION, PLACEMENTS, RETRY_AFTER_SECONDS, Unstructured};
use crate::status::{ApiError, GroupResource};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ApiResource, DeleteParams, DynamicObject, PostParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client};
use serde_json::Value;

/// Namespaces and placements in a kube-apiserver.
pub struct RemoteControlPlane {
    client: Client,
    namespaces: Store<PartialObjectMeta<Namespace>>,
}

impl RemoteControlPlane {
    /// Asks this client; `namespaces` is filled by whoever made it.
    #[must_use]
    pub fn new(client: Client, namespaces: Store<PartialObjectMeta<Namespace>>) -> Self {
        Self { client, namespaces }
    }

    fn placements(&self) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &placement_resource())
    }
}

/// The kind NamespacePlacement.
#[must_use]
pub fn placement_resource() -> ApiResource {
    ApiResource {
        group: PLACEMENTS.group.to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: PLACEMENT_API_VERSION.to_owned(),
        kind: "NamespacePlacement".to_owned(),
        plural: PLACEMENTS.resource.to_owned(),
    }
}

impl ControlPlane for RemoteControlPlane {
    fn namespace<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Unstructured>, ApiError>> {
        match self.namespaces.get(&ObjectRef::new(name)) {
            Some(namespace) => std::future::ready(object(&*namespace).map(Some)).boxed(),
            None => self.current_namespace(name),
        }
    }

    fn current_namespace<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Unstructured>, ApiError>> {
        async move {
            let found = Api::<Namespace>::all(self.client.clone()).get_opt(name).await;
            let found = found.map_err(|error| failed(error, NAMESPACES, name))?;
            found.as_ref().map(object).transpose()
        }
        .boxed()
    }

    fn placement<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Unstructured>, ApiError>> {
        async move {
            let found = self.placements().get_opt(name).await;
            let found = found.map_err(|error| failed(error, PLACEMENTS, name))?;
            found.as_ref().map(object).transpose()
        }
        .boxed()
    }

    fn create_placement(
        &self,
        placement: Unstructured,
    ) -> BoxFuture<'_, Result<Option<Unstructured>, ApiError>> {
        async move {
            let placement = dynamic(placement)?;
            match self.placements().create(&PostParams::default(), &placement).await {
                Ok(created) => object(&created).map(Some),
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(None),
                Err(error) => Err(failed(error, PLACEMENTS, "")),
            }
        }
        .boxed()
    }

    fn update_placement_status(&self, placement: Unstructured) -> BoxFuture<'_, Result<bool, ApiError>> {
        async move {
            let placement = dynamic(placement)?;
            let name = placement.metadata.name.clone().unwrap_or_default();
            let written = self
                .placements()
                .replace_status(&name, &PostParams::default(), &placement)
                .await;
            match written {
                Ok(_) => Ok(true),
                // Somebody was faster, or it was given up.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
                Err(error) => Err(failed(error, PLACEMENTS, &name)),
            }
        }
        .boxed()
    }

    fn delete_placement<'a>(&'a self, placement: &'a Unstructured) -> BoxFuture<'a, Result<(), ApiError>> {
        async move {
            let placement = dynamic(placement.clone())?;
            let name = placement.metadata.name.clone().unwrap_or_default();
            let preconditions = Preconditions {
                uid: placement.metadata.uid,
                resource_version: placement.metadata.resource_version,
            };
            let params = DeleteParams::background().preconditions(preconditions);
            match self.placements().delete(&name, &params).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
                Err(error) => Err(failed(error, PLACEMENTS, &name)),
            }
        }
        .boxed()
    }
}

fn object(object: &impl serde::Serialize) -> Result<Unstructured, ApiError> {
    match serde_json::to_value(object).map_err(ApiError::internal)? {
        Value::Object(object) => Ok(object),
        _ => Err(ApiError::internal("an object of the control plane is no object")),
    }
}

fn dynamic(object: Unstructured) -> Result<DynamicObject, ApiError> {
    serde_json::from_value(Value::Object(object)).map_err(ApiError::internal)
}

/// What the control plane answered, for people: the message of its Status, without the rest of it.
#[must_use]
pub fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// The control plane did not do what it was asked: the client should try again, an administrator may have to act.
fn failed(error: kube::Error, of: GroupResource<'static>, name: &str) -> ApiError {
    let what = match name {
        "" => of.to_string(),
        name => format!("{of} {name:?}"),
    };
    let cause = said(&error);
    tracing::warn!(%what, cause, "the control plane did not answer as needed");
    ApiError::service_unavailable(
        format!("the control plane cannot be asked about {what}: {cause}"),
        RETRY_AFTER_SECONDS,
    )
}
