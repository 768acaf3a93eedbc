//! WATCH: frames of events until the client, the time or the server ends it.
//!
//! What goes wrong after the headers is an ERROR event. The end is always clean: a watch can be resumed from the last
//! resource version that it delivered.

use super::scope::Endpoint;
use super::{ApiContext, Call, response};
use crate::metrics::WatchSeries;
use crate::negotiation::{ResponseKind, Target};
use crate::registry::RequestScope;
use crate::request::context::WatchTermination;
use crate::request::options::ListOptions;
use crate::resources::ServedResources;
use crate::resources::definition::ResourceDefinition;
use crate::serializer::ObjectEncoder;
use crate::status::ApiError;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::Stream;
use http::Response;
use http::header::CONTENT_TYPE;
use outrigger_storage::WatchEvent;
use outrigger_storage::federated::Watch;
use outrigger_storage::selection_predicate::FieldSelector;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch as published;
use tokio::time::{Instant, sleep_until};

/// How often a client that allows bookmarks gets one.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long before the planned end the last bookmark comes.
const LAST_BOOKMARK_BEFORE: Duration = Duration::from_secs(2);
/// How long a watch goes on after its kind went: its last events, those of the deletions, are still on their way.
const KIND_GONE_GRACE: Duration = Duration::from_secs(2);
/// Frames that are ready together are sent together, up to this length in bytes.
const CHUNK_BYTES_MAX: usize = 64 << 10;

pub(super) async fn serve(
    api: &ApiContext,
    endpoint: Endpoint,
    call: Call,
) -> Result<Response<Body>, ApiError> {
    let scope = endpoint.scope;
    let representation = response::negotiate(&call, &scope, ResponseKind::Watch)?;
    let mut options = ListOptions::parse(&call.context.query, true)?;
    select_name(&scope, &mut options)?;
    let encoder = response::encoder(api, &call, &scope, &representation)?;
    let has_columns = matches!(representation.target, Target::Table(_));
    let content_type = http::HeaderValue::from_static(encoder.content_type());
    let timeout = options
        .watch_timeout()
        .unwrap_or_else(|| api.random_watch_timeout());
    let now = Instant::now();
    let info = &call.context.info;
    let sent = call
        .context
        .metrics
        .watch(&info.api_group, &info.api_version, &info.resource);
    let body = match api.registry().watch(&scope, &options).await? {
        Err(error) => Body::from(encoder.watch_error(&error)),
        Ok(watch) => Body::from_stream(frames(WatchBody {
            api: api.clone(),
            kind: Kind {
                served: Some(api.served_changes()),
                definition: Arc::clone(&scope.definition),
                has_columns,
                checked: false,
            },
            scope,
            watch,
            encoder,
            bookmarks: options.allow_watch_bookmarks,
            tells_initial_events_end: options.wants_initial_events_end(),
            initial_events: options.send_initial_events == Some(true),
            end: now + timeout,
            next_bookmark: now + BOOKMARK_EVERY,
            last_bookmark: now + timeout.saturating_sub(LAST_BOOKMARK_BEFORE),
            termination: call.context.watch_termination.clone(),
            sent,
        })),
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    Ok(response)
}

/// A name in the path is the same as a field selector for it.
pub(super) fn select_name(scope: &RequestScope, options: &mut ListOptions) -> Result<(), ApiError> {
    if scope.name.is_empty() {
        return Ok(());
    }
    let fields = &mut options.predicate.fields;
    if fields.is_empty() {
        *fields = FieldSelector::equals("metadata.name", &scope.name);
    } else if fields.requires_exact("metadata.name") != Some(&scope.name) {
        return Err(ApiError::bad_request(
            "fieldSelector metadata.name doesn't match requested name",
        ));
    }
    Ok(())
}

struct WatchBody {
    api: ApiContext,
    kind: Kind,
    scope: RequestScope,
    watch: Watch,
    encoder: ObjectEncoder,
    bookmarks: bool,
    /// The client wants to know where the initial events end.
    tells_initial_events_end: bool,
    /// Initial events are being delivered: no bookmark may come in between.
    initial_events: bool,
    end: Instant,
    next_bookmark: Instant,
    last_bookmark: Instant,
    termination: WatchTermination,
    /// Where events are counted.
    sent: Arc<WatchSeries>,
}

/// The kind as it was when the watch began.
struct Kind {
    /// What is served now; `None` once the kind went.
    served: Option<published::Receiver<Arc<ServedResources>>>,
    definition: Arc<ResourceDefinition>,
    /// The client was told the kind's columns.
    has_columns: bool,
    /// What is served now is known to be the kind that it was.
    checked: bool,
}

impl Kind {
    /// Waits until the kind is not served any longer, or is another one under the same name: a client that went on
    /// watching would take silence for peace.
    async fn gone(&mut self) {
        let Some(served) = &mut self.served else {
            return std::future::pending().await;
        };
        let old = &*self.definition;
        loop {
            if !self.checked {
                let served = served.borrow_and_update();
                let new = served.find(&old.group, &old.version, &old.plural);
                if !new.is_some_and(|new| goes_on(old, new, self.has_columns)) {
                    break;
                }
                self.checked = true;
            }
            if served.changed().await.is_err() {
                return std::future::pending().await;
            }
            self.checked = false;
        }
        self.served = None;
    }
}

/// Whether who watches the one may go on with the other.
fn goes_on(old: &ResourceDefinition, new: &ResourceDefinition, has_columns: bool) -> bool {
    let same = (&new.crd_uid, &new.kind, new.namespaced) == (&old.crd_uid, &old.kind, old.namespaced);
    same && (!has_columns || new.columns == old.columns)
}

/// What happened next.
enum Next {
    Events(Result<Vec<WatchEvent>, outrigger_storage::Error>),
    Bookmark,
    End,
}

impl WatchBody {
    /// Waits for whatever comes first. The end goes before events, so that a busy watch ends too.
    async fn next(&mut self) -> Next {
        loop {
            let bookmark_at = match self.bookmarks && !self.initial_events {
                true => self.next_bookmark.min(self.last_bookmark),
                false => self.end + BOOKMARK_EVERY,
            };
            tokio::select! {
                biased;
                () = self.termination.0.cancelled() => return Next::End,
                () = sleep_until(self.end) => return Next::End,
                () = self.kind.gone() => {
                    self.end = self.end.min(Instant::now() + KIND_GONE_GRACE);
                }
                () = sleep_until(bookmark_at) => return Next::Bookmark,
                events = self.watch.next_batch() => return Next::Events(events),
            }
        }
    }

    fn bookmark(&mut self) -> Result<Option<Bytes>, ApiError> {
        let now = Instant::now();
        if now >= self.last_bookmark {
            self.last_bookmark = self.end + BOOKMARK_EVERY;
        }
        self.next_bookmark = now + BOOKMARK_EVERY;
        self.watch
            .bookmark()
            .map(|version| self.encoder.watch_bookmark(version, false))
            .transpose()
    }

    /// The frame of an event; `None` for one that this client has not asked for.
    fn frame(&mut self, event: &WatchEvent) -> Result<Option<Bytes>, ApiError> {
        match event {
            WatchEvent::Object(event) => {
                let frame = self.encoder.watch_frame(event)?;
                self.sent.sent(frame.len());
                Ok(Some(frame))
            }
            WatchEvent::InitialEventsEnd(version) => {
                self.initial_events = false;
                let told = self.tells_initial_events_end;
                told.then(|| self.encoder.watch_bookmark(*version, true))
                    .transpose()
            }
        }
    }

    fn error(&mut self, error: outrigger_storage::Error) -> Bytes {
        self.encoder.watch_error(&ApiError::from_storage(
            error,
            self.scope.group_resource(),
            &self.scope.name,
        ))
    }
}

fn frames(mut body: WatchBody) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    async_stream::stream! {
        loop {
            let events = match body.next().await {
                Next::End => return,
                Next::Bookmark => match body.bookmark() {
                    Ok(frame) => {
                        if let Some(frame) = frame {
                            yield Ok(frame);
                        }
                        continue;
                    }
                    Err(error) => {
                        let frame = body.encoder.watch_error(&error);
                        yield Ok(frame);
                        return;
                    }
                },
                Next::Events(Ok(events)) => events,
                Next::Events(Err(error)) => {
                    let frame = body.error(error);
                    yield Ok(frame);
                    return;
                }
            };
            body.encoder.set_now(body.api.now());
            let mut joined = BytesMut::new();
            let alone = events.len() == 1;
            for event in &events {
                match body.frame(event) {
                    Ok(None) => {}
                    // The shared frame itself: nothing is copied.
                    Ok(Some(frame)) if alone || (joined.is_empty() && frame.len() >= CHUNK_BYTES_MAX) => yield Ok(frame),
                    Ok(Some(frame)) => {
                        joined.extend_from_slice(&frame);
                        if joined.len() >= CHUNK_BYTES_MAX {
                            yield Ok(joined.split().freeze());
                        }
                    }
                    Err(error) => {
                        joined.extend_from_slice(&body.encoder.watch_error(&error));
                        yield Ok(joined.split().freeze());
                        return;
                    }
                }
            }
            if !joined.is_empty() {
                yield Ok(joined.freeze());
            }
        }
    }
}
