//! DELETE of a collection.

use super::scope::Endpoint;
use super::{ApiContext, Call, delete, list, response};
use crate::negotiation::ResponseKind;
use crate::request::options::{DeleteOptions, ListOptions};
use crate::serializer::gzip::accepts_gzip;
use crate::status::ApiError;
use axum::body::Body;
use http::Response;
use http::header::ACCEPT_ENCODING;

pub(super) async fn serve(
    api: &ApiContext,
    endpoint: Endpoint,
    mut call: Call,
) -> Result<Response<Body>, ApiError> {
    let mut scope = endpoint.scope;
    let representation = response::negotiate(&call, &scope, ResponseKind::List)?;
    let list_options = ListOptions::parse(&call.context.query, false)?;
    let options = delete::delete_options(&mut call).await?;
    if options.ignore_store_read_error {
        return Err(DeleteOptions::refuse_unsafe_delete());
    }
    scope.dry_run = options.dry_run;
    let encoder = response::encoder(api, &call, &scope, &representation)?;
    let gzip = accepts_gzip(call.header(ACCEPT_ENCODING));
    let deleted = api
        .registry()
        .delete_collection(&scope, &list_options, &options)
        .await?;
    list::respond(gzip, scope, deleted, encoder, &list_options).await
}
