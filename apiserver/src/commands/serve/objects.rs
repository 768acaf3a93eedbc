//! What `apiservice` has to know of objects: whether there are any of a kind, and that they go with its CRD.

use futures::FutureExt;
use futures::future::BoxFuture;
use kube::Client;
use outrigger_apiserver::controllers::collection::{self, Remaining};
use outrigger_apiserver::resources::ServedResources;
use outrigger_apiserver::resources::definition::ResourceDefinition;
use outrigger_apiservice::{Kind, Objects, ObjectsError};
use outrigger_storage::federated::{Extent, ListOptions, Scope};
use outrigger_storage::key::{Domain, Resource};
use outrigger_storage::{Error, FederatedStore};
use std::sync::Arc;
use tokio::sync::watch;

/// The objects in the workload clusters.
pub(crate) struct StoredObjects {
    /// Of this server, as itself.
    pub(crate) client: Client,
    pub(crate) store: FederatedStore,
    pub(crate) served: watch::Receiver<Arc<ServedResources>>,
}

impl Objects for StoredObjects {
    fn exist<'a>(&'a self, kind: &'a Kind) -> BoxFuture<'a, Result<bool, ObjectsError>> {
        async move {
            let extent = match kind.is_namespaced {
                true => Extent::AllNamespaces,
                false => Extent::Cluster,
            };
            let scope = Scope {
                resource: Resource::new(&kind.group, &kind.plural),
                extent,
            };
            let options = ListOptions {
                limit: 1,
                ..ListOptions::default()
            };
            let mut list = match self.store.list(&scope, options).await {
                Ok(list) => list,
                // A kind without namespaces that nobody has ever claimed.
                Err(Error::Unplaced(_) | Error::NotFound { .. }) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            Ok(list
                .next_batch()
                .await?
                .is_some_and(|batch| !batch.objects.is_empty()))
        }
        .boxed()
    }

    fn delete_all<'a>(&'a self, kind: &'a Kind) -> BoxFuture<'a, Result<bool, ObjectsError>> {
        async move {
            let served = Arc::clone(&self.served.borrow());
            let is_it = |d: &&Arc<ResourceDefinition>| d.group == kind.group && d.plural == kind.plural;
            let Some(definition) = served.iter().find(is_it) else {
                // It cannot be deleted through a kind that is not served.
                return self.exist(kind).await.map(|exist| !exist);
            };
            if collection::delete_all(&self.client, definition, None).await? != Remaining::default() {
                return Ok(false);
            }
            if !definition.namespaced {
                let domain = Domain::Kind(definition.storage_resource());
                self.store.release(&domain, &definition.crd_uid).await?;
            }
            Ok(true)
        }
        .boxed()
    }
}
