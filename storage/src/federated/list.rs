//! LIST: a stream from backend pages to the caller, ordered by namespace and name, under a byte budget.
//!
//! The snapshot is fixed first (one backend: its first transaction; several: a round of ticks). Then every backend has a
//! `Pager` that reads its part in order, one page ahead; the list takes from the pager whose next object comes first.
//! Nothing collects a list.

mod budget;
mod read_view;

use super::fleet::Fleet;
use super::joined::{Joined, compares_owners};
use super::pager::{Page, Pager, PagerPlan, Start};
use super::{Extent, ListEnd, ListOptions, ListVersion, Missing, ObjectBatch, Scope};
use crate::backend::{Range, Txn};
use crate::continue_token::ContinueToken;
use crate::key::prefix_end;
use crate::{Error, Object, ResourceVersion, SelectionPredicate};
use futures::future::BoxFuture;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

pub(crate) use budget::ListBudget;
use budget::Share;
pub(crate) use read_view::is_partial;
use read_view::{Part, ReadView};

/// Objects handed out in one batch.
const BATCH_OBJECTS_MAX: usize = 256;

/// A running list.
pub(crate) struct Listing {
    view_version: ResourceVersion,
    missing: Vec<String>,
    predicate: SelectionPredicate,
    sources: Vec<Source>,
    limit: u64,
    returned: u64,
    seen_before: u64,
    total: Option<u64>,
    last: Option<(String, String)>,
    more: bool,
    _share: Share,
}

/// One pager: the page that is handed out, the next one, and the request for the one after. Two pages in memory.
struct Source {
    joined: Arc<Joined>,
    ready: VecDeque<Object>,
    next: Option<VecDeque<Object>>,
    reading: Reading,
}

/// What a source's pager is doing.
enum Reading {
    /// Waiting for its page.
    Page(BoxFuture<'static, (Pager, Result<Option<Page>, Error>)>),
    /// Waiting until its page is wanted.
    Idle(Box<Pager>),
    /// At the end.
    Done,
}

impl Fleet {
    pub(crate) async fn list(
        self: &Arc<Self>,
        scope: &Scope,
        options: ListOptions,
    ) -> Result<Listing, Error> {
        let leaves_out = options.missing == Missing::Allow && matches!(scope.extent, Extent::AllNamespaces);
        if !leaves_out {
            self.check_has_members()?;
        }
        let parts = if matches!(scope.extent, Extent::AllNamespaces) {
            self.view().serving.len().max(1)
        } else {
            1
        };
        let share = self.list_budget.reserve(&scope.extent, parts).await?;
        let start = match &options.version {
            // As in kube-apiserver, a token says where to go on below the list's own prefix: one of another namespace does not
            // make this one look empty.
            ListVersion::Continue(token) => match &scope.extent {
                Extent::Namespace(namespace) => Some((namespace.to_string(), token.name.clone())),
                _ => Some((token.namespace.clone(), token.name.clone())),
            },
            _ => None,
        };
        let plan = PagerPlan {
            resource: scope.resource.clone(),
            extent: scope.extent.clone(),
            name: options
                .predicate
                .fields
                .requires_exact("metadata.name")
                .map(str::to_owned),
            compares_owners: compares_owners(self.config.routing),
            start: start.map_or(Start::Beginning, |(namespace, name)| Start::After {
                namespace,
                name,
            }),
            page_bytes: share.page_bytes,
            objects_max: if options.predicate.is_everything() && options.limit > 0 {
                options.limit + 1
            } else {
                u64::MAX
            },
        };
        let view = self.fix_view(scope, &options, &plan).await?;
        let counts = options.limit > 0 && options.predicate.is_everything() && view.missing.is_empty();
        let total = if counts {
            self.count_all(scope, &view).await?
        } else {
            None
        };
        let sources = view
            .parts
            .into_iter()
            .map(|part| Source::new(self, &plan, part, view.resource_version))
            .collect::<Result<_, Error>>()?;
        let seen_before = match &options.version {
            ListVersion::Continue(token) => token.seen,
            _ => 0,
        };
        Ok(Listing {
            view_version: view.resource_version,
            missing: view.missing,
            predicate: options.predicate,
            sources,
            limit: options.limit,
            returned: 0,
            seen_before,
            total,
            last: None,
            more: false,
            _share: share,
        })
    }

    /// How many objects the view holds, for remainingItemCount.
    async fn count_all(&self, scope: &Scope, view: &ReadView) -> Result<Option<u64>, Error> {
        let mut total = 0;
        for part in &view.parts {
            let prefix = match &scope.extent {
                Extent::Namespace(namespace) => scope.resource.namespace_prefix(namespace),
                Extent::AllNamespaces | Extent::Cluster => scope.resource.prefix(),
            };
            let end = prefix_end(&prefix);
            let range = Range {
                count_only: true,
                ..Range::between(prefix, end).at(part.at)
            };
            let answer = part
                .joined
                .call(Txn::read([range]))
                .await
                .map_err(|e| part.joined.error(e))?;
            total += answer
                .responses
                .into_iter()
                .next()
                .map_or(0, |r| r.into_range().count);
        }
        Ok(Some(total))
    }
}

impl Source {
    fn new(
        fleet: &Arc<Fleet>,
        plan: &PagerPlan,
        part: Part,
        version: ResourceVersion,
    ) -> Result<Self, Error> {
        let joined = part.joined.clone();
        let at = (part.at, version);
        let mut pager = Pager::new(fleet.clone(), plan.clone(), part.joined, at);
        let Some(page) = part.first else {
            return Ok(Self {
                joined,
                ready: VecDeque::new(),
                next: None,
                reading: Reading::Page(read(pager)),
            });
        };
        pager.resume_after(&page);
        let reading = if page.last {
            Reading::Done
        } else {
            Reading::Page(read(pager))
        };
        let ready = objects(&joined, page)?;
        Ok(Self {
            joined,
            ready,
            next: None,
            reading,
        })
    }

    /// Drives the next page on. Ready when the next object is known, or that there is none.
    fn poll_head(&mut self, context: &mut std::task::Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            if let Reading::Page(page) = &mut self.reading
                && let Poll::Ready((pager, page)) = Pin::new(page).poll(context)
            {
                self.reading = Reading::Done;
                if let Some(page) = page? {
                    if !page.last {
                        self.reading = Reading::Idle(Box::new(pager));
                    }
                    self.next = Some(objects(&self.joined, page)?);
                }
            }
            if !self.ready.is_empty() {
                return Poll::Ready(Ok(()));
            }
            match self.next.take() {
                Some(next) => {
                    self.ready = next;
                    self.reading = match std::mem::replace(&mut self.reading, Reading::Done) {
                        Reading::Idle(pager) => Reading::Page(read(*pager)),
                        other => other,
                    };
                }
                None if matches!(self.reading, Reading::Page(_)) => return Poll::Pending,
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

fn objects(joined: &Joined, page: Page) -> Result<VecDeque<Object>, Error> {
    page.kvs.into_iter().map(|kv| joined.object(kv)).collect()
}

fn read(mut pager: Pager) -> BoxFuture<'static, (Pager, Result<Option<Page>, Error>)> {
    Box::pin(async move {
        let page = pager.next_page().await;
        (pager, page)
    })
}

impl Listing {
    pub(crate) fn resource_version(&self) -> ResourceVersion {
        self.view_version
    }

    pub(crate) fn missing(&self) -> &[String] {
        &self.missing
    }

    pub(crate) async fn next_batch(&mut self) -> Result<Option<ObjectBatch>, Error> {
        let mut objects = Vec::new();
        while objects.is_empty() {
            self.wait_for_heads().await?;
            let Some(source) = self.first_source() else {
                return Ok(None);
            };
            if self.limit > 0 && self.returned == self.limit {
                self.more = true;
                return Ok(None);
            }
            self.take_run(source, &mut objects)?;
        }
        Ok(Some(ObjectBatch { objects }))
    }

    /// Waits until the next object of every source is known. All sources are driven on meanwhile.
    async fn wait_for_heads(&mut self) -> Result<(), Error> {
        futures::future::poll_fn(|context| {
            let mut pending = false;
            for source in &mut self.sources {
                match source.poll_head(context) {
                    Poll::Pending => pending = true,
                    Poll::Ready(head) => head?,
                }
            }
            if pending {
                Poll::Pending
            } else {
                Poll::Ready(Ok(()))
            }
        })
        .await
    }

    fn first_source(&self) -> Option<usize> {
        let heads = self
            .sources
            .iter()
            .enumerate()
            .filter_map(|(i, source)| Some((order(source.ready.front()?), i)));
        heads.min().map(|(_, i)| i)
    }

    /// Takes from one source while its objects come before all others'.
    fn take_run(&mut self, source: usize, objects: &mut Vec<Object>) -> Result<(), Error> {
        let others = self.sources.iter().enumerate().filter(|(i, _)| *i != source);
        let bound = others
            .filter_map(|(_, other)| other.ready.front().cloned())
            .min_by(|a, b| order(a).cmp(&order(b)));
        let ready = &mut self.sources[source].ready;
        while objects.len() < BATCH_OBJECTS_MAX && (self.limit == 0 || self.returned < self.limit) {
            // Two of one name cannot be; if they were, the list should still come to its end.
            let before = |object: &Object| bound.as_ref().is_none_or(|bound| order(object) <= order(bound));
            let Some(object) = ready.pop_front_if(|object| before(object)) else {
                break;
            };
            if object.is_moved() || !self.predicate.matches(&object)? {
                continue;
            }
            self.returned += 1;
            if self.limit > 0 && self.returned == self.limit {
                self.last = Some((object.namespace().to_owned(), object.name().to_owned()));
            }
            objects.push(object);
        }
        Ok(())
    }

    pub(crate) fn end(&self) -> ListEnd {
        let (Some((namespace, name)), true) = (&self.last, self.more) else {
            return ListEnd::default();
        };
        let seen = self.seen_before + self.returned;
        let token = ContinueToken::new(self.view_version, namespace, name, seen);
        let remaining = self
            .total
            .map(|total| total.saturating_sub(seen))
            .filter(|remaining| *remaining > 0);
        ListEnd {
            continue_token: Some(token.encode()),
            remaining,
        }
    }
}

fn order(object: &Object) -> (&str, &str) {
    (object.namespace(), object.name())
}
