//! GET of a collection: a stream from the store's pages to the socket. Nothing collects a list.

use super::scope::Endpoint;
use super::{ApiContext, Call, response};
use crate::negotiation::{MediaType, Representation, ResponseKind, Target, accepts_json_instead};
use crate::registry::RequestScope;
use crate::request::options::ListOptions;
use crate::serializer::gzip::{BodyCompressor, ContentEncoding, accepts_gzip};
use crate::serializer::{ListMeta, MetaPlace, ObjectEncoder, PROTOBUF_LIST_BYTES_PREFERRED_MAX};
use crate::status::ApiError;
use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE};
use http::{HeaderValue, Response};
use outrigger_storage::federated::{Extent, List, Missing, ObjectBatch};

pub(super) async fn serve(
    api: &ApiContext,
    endpoint: Endpoint,
    call: Call,
) -> Result<Response<Body>, ApiError> {
    let scope = endpoint.scope;
    let representation = response::negotiate(&call, &scope, ResponseKind::List)?;
    let mut options = ListOptions::parse(&call.context.query, false)?;
    super::watch::select_name(&scope, &mut options)?;
    let for_people = matches!(representation.target, Target::Table(_));
    let missing = match scope.extent().extent {
        Extent::AllNamespaces if for_people => Missing::Allow,
        _ => Missing::Refuse,
    };
    let has_protobuf = scope.definition.builtin.is_some();
    // A list in protobuf has its length in front: it is sent when it is known whole, and that has a limit. JSON streams.
    let json_will_do = representation.media_type == MediaType::Protobuf
        && accepts_json_instead(call.header(ACCEPT), &representation, has_protobuf);
    let mut encoder = response::encoder(api, &call, &scope, &representation)?;
    if json_will_do {
        encoder = encoder.collecting_at_most(PROTOBUF_LIST_BYTES_PREFERRED_MAX);
    }
    let gzip = accepts_gzip(call.header(ACCEPT_ENCODING));
    let list = api.registry().list(&scope, &options, missing).await?;
    match respond(gzip, scope.clone(), list, encoder, &options).await {
        Err(error) if error.code == 406 && json_will_do => {
            let representation = Representation {
                media_type: MediaType::Json,
                ..representation
            };
            let encoder = response::encoder(api, &call, &scope, &representation)?;
            let list = api.registry().list(&scope, &options, missing).await?;
            respond(gzip, scope, list, encoder, &options).await
        }
        result => result,
    }
}

/// Answers with a list. What goes wrong before the first bytes are due is an ordinary error.
pub(super) async fn respond(
    gzip: bool,
    scope: RequestScope,
    list: List,
    encoder: ObjectEncoder,
    options: &ListOptions,
) -> Result<Response<Body>, ApiError> {
    for cluster in list.missing() {
        scope.warnings.add(format!(
            "cluster {cluster:?} cannot be reached: its objects are missing from this list"
        ));
    }
    let content_type = encoder.content_type();
    let compressor = BodyCompressor::new(gzip);
    let meta = ListMeta {
        resource_version: list.resource_version().to_string(),
        shard_selector: options.predicate.shard.as_ref().map(ToString::to_string),
        ..ListMeta::default()
    };
    let paged = options.limit > 0;
    let mut body = ListBody {
        scope,
        list,
        encoder,
        meta,
        paged,
        out: Vec::new(),
        batch: None,
        started: false,
        compressor: Some(compressor),
        encoding: None,
    };
    let first = body.next_chunk().await?;
    let encoding = body.encoding.unwrap_or(ContentEncoding::Identity);
    let rest = stream::unfold((first, Some(body)), |(ready, body)| async {
        if let Some(chunk) = ready {
            return Some((Ok(chunk), (None, body)));
        }
        let mut body = body?;
        match body.next_chunk().await {
            Ok(Some(chunk)) => Some((Ok(chunk), (None, Some(body)))),
            Ok(None) => None,
            // An error as the last item resets the stream: a body that is not whole must not look whole.
            Err(error) => Some((Err(error), (None, None))),
        }
    });
    let mut response = Response::new(Body::from_stream(rest));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response::set_encoding(&mut response, encoding);
    Ok(response)
}

/// A list on its way out: at most a batch of objects, which count against the budget of all lists, and a chunk.
struct ListBody {
    scope: RequestScope,
    list: List,
    encoder: ObjectEncoder,
    meta: ListMeta,
    /// The continue token is known at the end only, so metadata stands there.
    paged: bool,
    /// One item, encoded; kept for its capacity.
    out: Vec<u8>,
    /// The objects at hand, and how many of them are encoded.
    batch: Option<(ObjectBatch, usize)>,
    started: bool,
    /// `None` once the end is written.
    compressor: Option<BodyCompressor>,
    encoding: Option<ContentEncoding>,
}

impl ListBody {
    /// The next chunk; `None` after the last.
    async fn next_chunk(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            let Some(compressor) = &mut self.compressor else {
                return Ok(None);
            };
            if let Some(chunk) = compressor.take_chunk() {
                self.encoding = compressor.encoding();
                return Ok(Some(chunk));
            }
            if !self.step().await? {
                return self.finish().map(Some);
            }
        }
    }

    /// Encodes one more piece; false at the end.
    async fn step(&mut self) -> Result<bool, ApiError> {
        self.out.clear();
        if !self.started {
            self.started = true;
            let place = if self.paged {
                MetaPlace::After
            } else {
                MetaPlace::Before
            };
            self.encoder.list_start(&mut self.out, &self.meta, place)?;
            return self.write().map(|()| true);
        }
        let object = match &mut self.batch {
            Some((batch, at)) => {
                *at += 1;
                batch.objects.get(*at - 1)
            }
            None => None,
        };
        if let Some(object) = object {
            self.encoder.list_item(&mut self.out, object)?;
            return self.write().map(|()| true);
        }
        // Its bytes go back to the budget before the next ones are asked for.
        self.batch = None;
        let next = self
            .list
            .next_batch()
            .await
            .map_err(|error| ApiError::from_storage(error, self.scope.group_resource(), ""))?;
        self.batch = next.map(|batch| (batch, 0));
        Ok(self.batch.is_some())
    }

    fn write(&mut self) -> Result<(), ApiError> {
        match &mut self.compressor {
            Some(compressor) => compressor.write(&self.out).map_err(ApiError::internal),
            None => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<Bytes, ApiError> {
        let end = self.list.end();
        self.meta.continue_token = end.continue_token;
        self.meta.remaining = end.remaining;
        self.out.clear();
        self.encoder.list_end(&mut self.out, &self.meta)?;
        self.write()?;
        let Some(compressor) = self.compressor.take() else {
            return Ok(Bytes::new());
        };
        let (encoding, rest) = compressor.finish().map_err(ApiError::internal)?;
        self.encoding = Some(encoding);
        Ok(rest)
    }
}
