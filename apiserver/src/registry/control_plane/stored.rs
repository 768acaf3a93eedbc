//! The control plane that this server keeps itself: its system store.

use super::super::object_meta::{metadata_mut, rfc3339, text};
use super::super::{Unstructured, new_uid};
use super::{ControlPlane, NAMESPACES, PLACEMENTS};
use crate::status::{ApiError, GroupResource};
use futures::FutureExt;
use futures::future::BoxFuture;
use outrigger_storage::federated::WallClock;
use outrigger_storage::{Error, FederatedStore, Key, Object, Resource, SealedObject};
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Namespaces and placements in the system store.
pub struct StoredControlPlane {
    system: FederatedStore,
    wall_clock: WallClock,
    rng: Mutex<StdRng>,
}

impl StoredControlPlane {
    /// On this store; `seed` is that of uids.
    #[must_use]
    pub fn new(system: FederatedStore, wall_clock: WallClock, seed: u64) -> Self {
        let rng = Mutex::new(StdRng::seed_from_u64(seed));
        Self {
            system,
            wall_clock,
            rng,
        }
    }

    async fn read(&self, of: GroupResource<'static>, name: &str) -> Result<Option<Object>, ApiError> {
        match self.system.get(&key(of, name)).await {
            Ok(object) => Ok(Some(object)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(ApiError::from_storage(error, of, name)),
        }
    }

    async fn value(&self, of: GroupResource<'static>, name: &str) -> Result<Option<Unstructured>, ApiError> {
        let object = self.read(of, name).await?;
        object
            .map(|object| object.to_value())
            .transpose()
            .map_err(|error| ApiError::from_storage(error, of, name))
    }
}

impl StoredControlPlane {
    /// The placement as it is stored, if nobody has changed it.
    async fn unchanged(&self, placement: &Unstructured) -> Result<Option<Object>, ApiError> {
        let expected = text(placement, "resourceVersion");
        let current = self.read(PLACEMENTS, text(placement, "name")).await?;
        Ok(current.filter(|object| object.resource_version().get().to_string() == expected))
    }
}

impl ControlPlane for StoredControlPlane {
    fn namespace<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Unstructured>, ApiError>> {
        self.value(NAMESPACES, name).boxed()
    }

    fn current_namespace<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Unstructured>, ApiError>> {
        self.value(NAMESPACES, name).boxed()
    }

    fn placement<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Unstructured>, ApiError>> {
        self.value(PLACEMENTS, name).boxed()
    }

    fn create_placement(
        &self,
        mut placement: Unstructured,
    ) -> BoxFuture<'_, Result<Option<Unstructured>, ApiError>> {
        async move {
            let name = text(&placement, "name").to_owned();
            let uid = new_uid(&mut *self.rng.lock());
            let now = i64::try_from((self.wall_clock)()).unwrap_or(i64::MAX);
            let metadata = metadata_mut(&mut placement);
            metadata.insert("uid".to_owned(), uid.into());
            metadata.insert("creationTimestamp".to_owned(), rfc3339(now).into());
            metadata.insert("generation".to_owned(), 1.into());
            match self
                .system
                .create(&key(PLACEMENTS, &name), &seal(&placement)?)
                .await
            {
                Ok(created) => created.to_value().map(Some).map_err(ApiError::internal),
                Err(Error::AlreadyExists(_)) => Ok(None),
                Err(error) => Err(ApiError::from_storage(error, PLACEMENTS, &name)),
            }
        }
        .boxed()
    }

    fn update_placement_status(&self, placement: Unstructured) -> BoxFuture<'_, Result<bool, ApiError>> {
        async move {
            let name = text(&placement, "name").to_owned();
            let Some(current) = self.unchanged(&placement).await? else {
                return Ok(false);
            };
            match self.system.update(&current, &seal(&placement)?).await {
                Ok(_) => Ok(true),
                Err(Error::Conflict(_)) => Ok(false),
                Err(error) => Err(ApiError::from_storage(error, PLACEMENTS, &name)),
            }
        }
        .boxed()
    }

    fn delete_placement<'a>(&'a self, placement: &'a Unstructured) -> BoxFuture<'a, Result<(), ApiError>> {
        async move {
            let Some(current) = self.unchanged(placement).await? else {
                return Ok(());
            };
            match self.system.delete(&current).await {
                Ok(_) | Err(Error::Conflict(_)) => Ok(()),
                Err(error) => Err(ApiError::from_storage(error, PLACEMENTS, text(placement, "name"))),
            }
        }
        .boxed()
    }
}

fn key(of: GroupResource<'static>, name: &str) -> Key {
    Key::new(Resource::new(of.group, of.resource), "", name)
}

fn seal(value: &Unstructured) -> Result<SealedObject, ApiError> {
    SealedObject::seal(value, 0).map_err(ApiError::internal)
}
