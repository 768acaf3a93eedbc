//! Deletecollection: every object of a list, one delete each, some at a time.
//!
//! It is not atomic. The answer is the list as it was: the same snapshot, read again, so that nothing is held meanwhile.

use super::{Registry, RequestScope, read};
use crate::request::options::{DeleteOptions, ListOptions};
use crate::status::ApiError;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt, TryStreamExt};
use outrigger_storage::Object;
use outrigger_storage::federated::{List, ListVersion, Missing};

/// How many deletes of one request run at a time.
const DELETES_IN_FLIGHT_MAX: usize = 16;

impl Registry {
    /// Deletes what a list with these options shows, and returns that list.
    ///
    /// # Errors
    /// Those of list, and the first of the deletes; an object that is gone already is none.
    pub async fn delete_collection(
        &self,
        scope: &RequestScope,
        list_options: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<List, ApiError> {
        let (list, found) = self.delete_all(scope, list_options, options).await?;
        if !found {
            // Nothing to be read again. Where nobody owns the namespace and clusters are away, nobody could.
            return Ok(list);
        }
        let version = list.resource_version();
        let version = match list_options.version()? {
            // A page is found by its token.
            page @ ListVersion::Continue(_) => page,
            _ => ListVersion::Exact(version),
        };
        let predicate = read::predicate(scope, &list_options.predicate)?;
        self.list_version(scope, predicate, version, list_options.limit, Missing::Refuse)
            .await
    }

    /// Deletes what the list shows; returns the list, read to its end, and whether there was anything in it.
    async fn delete_all(
        &self,
        scope: &RequestScope,
        list_options: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<(List, bool), ApiError> {
        let mut found = false;
        let mut list = self.list(scope, list_options, Missing::Refuse).await?;
        let failed = |error| ApiError::from_storage(error, scope.group_resource(), "");
        while let Some(batch) = list.next_batch().await.map_err(failed)? {
            found |= !batch.objects.is_empty();
            // Boxed, so that the compiler sees that they may be sent.
            let delete = |object| self.delete_listed(scope, object, options).boxed();
            let deletes: Vec<BoxFuture<'_, _>> = batch.objects.iter().map(delete).collect();
            stream::iter(deletes)
                .buffer_unordered(DELETES_IN_FLIGHT_MAX)
                .try_collect::<()>()
                .await?;
        }
        Ok((list, found))
    }

    async fn delete_listed(
        &self,
        scope: &RequestScope,
        object: &Object,
        options: &DeleteOptions,
    ) -> Result<(), ApiError> {
        let namespace = object.namespace().to_owned();
        let scope = RequestScope {
            name: object.name().to_owned(),
            namespace,
            ..scope.clone()
        };
        match self.delete(&scope, options).await {
            Err(error) if error.code != 404 => Err(error),
            _ => Ok(()),
        }
    }
}
