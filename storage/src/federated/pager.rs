//! `Pager`: one backend's part of a list, page after page, in the order of the list.
//!
//! Pages are read per namespace: etcd counts the whole remaining range for each limited page, so paging one big range is
//! quadratic. A limited read of the whole range comes first, and its count decides: up to two pages it is the answer.
//! Above that the owner keys at the cut name the namespaces, their counts are read in one transaction, small namespaces
//! share a read, large ones are paged. A pager knows one backend and one revision.

use super::Extent;
use super::feed::next_key;
use super::fleet::Fleet;
use super::joined::Joined;
use crate::backend::{BackendError, KeyValue, OpResponse, Range, RangeResponse, Revision, TXN_OPS_MAX, Txn};
use crate::key::{self, Domain, prefix_end, split_object_key};
use crate::owners::OwnerRecord;
use crate::{Error, Resource, ResourceVersion};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Objects on the first page, when nothing is known of their sizes.
pub(crate) const FIRST_PAGE_OBJECTS: usize = 64;
/// Objects on any page.
const PAGE_OBJECTS_MAX: usize = 2000;
/// Owner keys read at once.
const OWNERS_PAGE: usize = 500;

/// Where a list starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Start {
    /// With the first object.
    Beginning,
    /// After this object (of the page before).
    After {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// What to read, the same for all backends of a list.
#[derive(Debug, Clone)]
pub(crate) struct PagerPlan {
    pub(crate) resource: Resource,
    pub(crate) extent: Extent,
    /// Only the object of this name, where its key is known: in a namespace, or of a kind without namespaces.
    pub(crate) name: Option<String>,
    pub(crate) compares_owners: bool,
    pub(crate) start: Start,
    /// What a page should hold, in bytes.
    pub(crate) page_bytes: usize,
    /// More objects than this are not needed.
    pub(crate) objects_max: u64,
}

/// Some objects, in the order of the list.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) kvs: Vec<KeyValue>,
    /// There are no more.
    pub(crate) last: bool,
}

impl Page {
    pub(crate) fn of_range(answer: RangeResponse, range: &Range) -> Self {
        Self {
            last: range.limit == 0 || !answer.more,
            kvs: answer.kvs,
        }
    }
}

/// What is left to be read.
enum Rest {
    /// One range, by the order of keys: a namespace, a kind without namespaces, or a whole kind of a sole backend.
    Scan { next: Bytes, end: Bytes },
    /// All namespaces of this backend; the whole range has not been tried yet.
    Wide,
    /// All namespaces of this backend, one after the other.
    Namespaces {
        owners: Option<Bytes>,
        names: VecDeque<Arc<str>>,
        reads: VecDeque<Read>,
    },
    /// Nothing.
    End,
}

/// One read of the plan for some namespaces.
enum Read {
    /// These namespaces whole.
    Group(Vec<Arc<str>>),
    /// One large namespace, from this key on.
    Part { next: Bytes, end: Bytes },
}

/// One backend's part of a list.
pub(crate) struct Pager {
    fleet: Arc<Fleet>,
    plan: PagerPlan,
    joined: Arc<Joined>,
    at: Revision,
    version: ResourceVersion,
    rest: Rest,
    page_objects: usize,
}

impl PagerPlan {
    fn prefix(&self) -> Bytes {
        match &self.extent {
            Extent::Namespace(namespace) => self.resource.namespace_prefix(namespace),
            Extent::AllNamespaces | Extent::Cluster => self.resource.prefix(),
        }
    }

    /// The only key to read, if there is only one.
    fn only_key(&self) -> Option<Bytes> {
        let namespace = match &self.extent {
            Extent::Namespace(namespace) => namespace,
            Extent::Cluster => "",
            Extent::AllNamespaces => return None,
        };
        let prefix = self.resource.namespace_prefix(namespace);
        self.name
            .as_ref()
            .map(|name| [&prefix[..], name.as_bytes()].concat().into())
    }

    /// The key after the last one to read when the order is that of the keys.
    fn end_key(&self) -> Bytes {
        match self.only_key() {
            Some(key) => next_key(&key),
            None => prefix_end(&self.prefix()),
        }
    }

    /// The first key to read when the order is that of the keys.
    fn first_key(&self) -> Bytes {
        match &self.start {
            Start::Beginning => self.only_key().unwrap_or_else(|| self.prefix()),
            Start::After { namespace, name } => after(&self.resource, namespace, name),
        }
    }

    /// The read that a list of one range starts with.
    pub(crate) fn first_range(&self, objects_max: usize) -> Range {
        Range::between(self.first_key(), self.end_key()).limit(self.limit(objects_max))
    }

    fn limit(&self, objects: usize) -> usize {
        usize::try_from(self.objects_max)
            .unwrap_or(usize::MAX)
            .min(objects)
            .max(1)
    }

    /// Whether an object comes before the start.
    fn is_before_start(&self, namespace: &str, name: &str) -> bool {
        match &self.start {
            Start::Beginning => false,
            Start::After {
                namespace: after_namespace,
                name: after_name,
            } => (namespace, name) <= (after_namespace.as_str(), after_name.as_str()),
        }
    }
}

fn after(resource: &Resource, namespace: &str, name: &str) -> Bytes {
    next_key(&[&resource.namespace_prefix(namespace)[..], name.as_bytes()].concat())
}

impl Pager {
    /// `at`: the revision to read, and what it is in the one order.
    pub(crate) fn new(
        fleet: Arc<Fleet>,
        plan: PagerPlan,
        joined: Arc<Joined>,
        (at, version): (Revision, ResourceVersion),
    ) -> Self {
        let rest = if plan.compares_owners && plan.extent == Extent::AllNamespaces {
            Rest::Wide
        } else {
            Rest::Scan {
                next: plan.first_key(),
                end: plan.end_key(),
            }
        };
        let page_objects = plan.limit(FIRST_PAGE_OBJECTS);
        Self {
            fleet,
            plan,
            joined,
            at,
            version,
            rest,
            page_objects,
        }
    }

    /// Goes on after a page that somebody else has read.
    pub(crate) fn resume_after(&mut self, page: &Page) {
        self.learn_sizes(&page.kvs);
        if let (Rest::Scan { next, .. }, Some(last)) = (&mut self.rest, page.kvs.last()) {
            *next = next_key(&last.key);
        }
    }

    /// The next page; `None` at the end.
    pub(crate) async fn next_page(&mut self) -> Result<Option<Page>, Error> {
        loop {
            match std::mem::replace(&mut self.rest, Rest::End) {
                Rest::End => return Ok(None),
                Rest::Scan { next, end } => return self.scan(next, end).await.map(Some),
                Rest::Wide => {
                    if let Some(page) = self.try_whole().await? {
                        return Ok(Some(page));
                    }
                    self.rest = self.first_namespaces();
                }
                Rest::Namespaces { owners, names, reads } => {
                    if let Some(page) = self.next_of_namespaces(owners, names, reads).await? {
                        return Ok(Some(page));
                    }
                }
            }
        }
    }

    async fn scan(&mut self, next: Bytes, end: Bytes) -> Result<Page, Error> {
        let (kvs, rest) = self.read_part(next, end).await?;
        let last = rest.is_none();
        if let Some((next, end)) = rest {
            self.rest = Rest::Scan { next, end };
        }
        Ok(Page { kvs, last })
    }

    /// One page of a range, and what is left of it.
    async fn read_part(
        &mut self,
        next: Bytes,
        end: Bytes,
    ) -> Result<(Vec<KeyValue>, Option<(Bytes, Bytes)>), Error> {
        loop {
            let range = Range::between(next.clone(), end.clone())
                .limit(self.page_objects)
                .at(self.at);
            match self.read(vec![range]).await {
                Ok(mut answers) => {
                    let answer = answers.pop().unwrap_or_default();
                    self.learn_sizes(&answer.kvs);
                    let rest = answer
                        .kvs
                        .last()
                        .filter(|_| answer.more)
                        .map(|last| (next_key(&last.key), end));
                    return Ok((answer.kvs, rest));
                }
                // Larger objects than any before: the answer would not have fitted into a message.
                Err(BackendError::TooLarge) if self.page_objects > 1 => self.page_objects /= 2,
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    async fn read(&self, ranges: Vec<Range>) -> Result<Vec<RangeResponse>, BackendError> {
        let answer = self.joined.call(Txn::read(ranges)).await?;
        Ok(answer.responses.into_iter().map(OpResponse::into_range).collect())
    }

    fn failed(&self, error: BackendError) -> Error {
        match error {
            BackendError::Compacted { .. } => self.joined.expired_at(self.at),
            error => self.joined.error(error),
        }
    }

    /// Sizes pages by what objects weigh.
    fn learn_sizes(&mut self, kvs: &[KeyValue]) {
        let bytes: usize = kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        if let Some(mean) = bytes.checked_div(kvs.len()) {
            // Grow step by step: the first objects may be the small ones.
            let fits = (self.plan.page_bytes / mean.max(1)).clamp(1, PAGE_OBJECTS_MAX);
            self.page_objects = self
                .plan
                .limit(fits.min(self.page_objects.max(FIRST_PAGE_OBJECTS) * 4));
        }
    }

    /// The whole range, if it is no more than two pages.
    async fn try_whole(&mut self) -> Result<Option<Page>, Error> {
        let prefix = self.plan.prefix();
        let whole = Range::between(prefix.clone(), prefix_end(&prefix)).at(self.at);
        let sample = match self.read(vec![whole.clone().limit(FIRST_PAGE_OBJECTS)]).await {
            Ok(mut answers) => answers.pop().unwrap_or_default(),
            Err(BackendError::TooLarge) => return Ok(None),
            Err(error) => return Err(self.failed(error)),
        };
        self.learn_sizes(&sample.kvs);
        let kvs = if !sample.more {
            sample.kvs
        } else if sample.count <= 2 * self.page_objects as u64 {
            match self.read(vec![whole]).await {
                Ok(mut answers) => answers.pop().unwrap_or_default().kvs,
                Err(BackendError::TooLarge) => return Ok(None),
                Err(error) => return Err(self.failed(error)),
            }
        } else {
            return Ok(None);
        };
        let mut kvs = self.of_owned_namespaces(kvs).await?;
        // The order of keys puts `a-b/` before `a/`; that of a list does not.
        kvs.sort_by(|a, b| list_order(&a.key).cmp(&list_order(&b.key)));
        kvs.retain(|kv| {
            !list_order(&kv.key).is_some_and(|(namespace, name)| self.plan.is_before_start(namespace, name))
        });
        Ok(Some(Page { kvs, last: true }))
    }

    /// Leaves out objects whose namespace is not owned here at the revision.
    async fn of_owned_namespaces(&self, kvs: Vec<KeyValue>) -> Result<Vec<KeyValue>, Error> {
        let mut owned: BTreeMap<String, bool> = BTreeMap::new();
        for kv in &kvs {
            if let Some((namespace, _)) = list_order(&kv.key)
                && !owned.contains_key(namespace)
            {
                owned.insert(namespace.to_owned(), false);
            }
        }
        let names: Vec<String> = owned.keys().cloned().collect();
        for names in names.chunks(TXN_OPS_MAX) {
            let key =
                |name: &String| Range::key(Domain::Namespace(name.as_str().into()).owner_key()).at(self.at);
            let answers = self
                .read(names.iter().map(key).collect())
                .await
                .map_err(|e| self.failed(e))?;
            for (name, answer) in names.iter().zip(answers) {
                let Some(kv) = answer.kvs.first() else { continue };
                if self
                    .is_owner(&Domain::Namespace(name.as_str().into()), kv)
                    .await?
                {
                    owned.insert(name.clone(), true);
                }
            }
        }
        let is_owned = |kv: &KeyValue| {
            list_order(&kv.key).is_some_and(|(namespace, _)| owned.get(namespace) == Some(&true))
        };
        Ok(kvs.into_iter().filter(is_owned).collect())
    }

    /// Whether an owner key at the revision counts there.
    async fn is_owner(&self, domain: &Domain, kv: &KeyValue) -> Result<bool, Error> {
        let record = self.fleet.owner_in(&self.joined, domain, kv)?;
        let Some(record) = record.filter(OwnerRecord::counts) else {
            return Ok(false);
        };
        let at = (self.at, self.version);
        let owned = self.fleet.owned_at(&self.joined, domain, record.generation, at);
        owned.await
    }

    fn first_namespaces(&self) -> Rest {
        let first = match &self.plan.start {
            Start::Beginning => Bytes::from_static(key::OWNER),
            Start::After { namespace, .. } => Domain::Namespace(namespace.as_str().into()).owner_key(),
        };
        Rest::Namespaces {
            owners: Some(first),
            names: VecDeque::new(),
            reads: VecDeque::new(),
        }
    }

    /// One step towards the next page; `None`: `self.rest` says how to go on.
    async fn next_of_namespaces(
        &mut self,
        owners: Option<Bytes>,
        mut names: VecDeque<Arc<str>>,
        mut reads: VecDeque<Read>,
    ) -> Result<Option<Page>, Error> {
        match reads.pop_front() {
            Some(Read::Group(group)) => {
                let kvs = self.read_group(&group, &mut reads).await?;
                self.rest = Rest::Namespaces { owners, names, reads };
                Ok(kvs.map(|kvs| Page { kvs, last: false }))
            }
            Some(Read::Part { next, end }) => {
                let (kvs, rest) = self.read_part(next, end).await?;
                if let Some((next, end)) = rest {
                    reads.push_front(Read::Part { next, end });
                }
                self.rest = Rest::Namespaces { owners, names, reads };
                Ok(Some(Page { kvs, last: false }))
            }
            None if !names.is_empty() => {
                let some = names.drain(..names.len().min(TXN_OPS_MAX)).collect();
                let reads = self.plan_reads(some).await?;
                self.rest = Rest::Namespaces { owners, names, reads };
                Ok(None)
            }
            None => {
                if let Some(next) = owners {
                    let (owners, names) = self.read_owners(next).await?;
                    self.rest = Rest::Namespaces { owners, names, reads };
                }
                Ok(None)
            }
        }
    }

    async fn read_owners(&self, next: Bytes) -> Result<(Option<Bytes>, VecDeque<Arc<str>>), Error> {
        let range = Range::between(next, prefix_end(key::OWNER))
            .limit(OWNERS_PAGE)
            .at(self.at);
        let answer = self
            .read(vec![range])
            .await
            .map_err(|e| self.failed(e))?
            .pop()
            .unwrap_or_default();
        let next = answer
            .kvs
            .last()
            .filter(|_| answer.more)
            .map(|last| next_key(&last.key));
        let mut names = VecDeque::new();
        for kv in &answer.kvs {
            let Some(domain @ Domain::Namespace(_)) = Domain::from_owner_key(&kv.key) else {
                continue;
            };
            if self.is_owner(&domain, kv).await?
                && let Domain::Namespace(name) = domain
            {
                names.push_back(name);
            }
        }
        Ok((next, names))
    }

    /// How to read these namespaces: small ones together, large ones in parts, empty ones not at all.
    async fn plan_reads(&self, names: Vec<Arc<str>>) -> Result<VecDeque<Read>, Error> {
        let count = |name: &Arc<str>| {
            let (start, end) = self.bounds(name);
            Range {
                count_only: true,
                ..Range::between(start, end).at(self.at)
            }
        };
        let answers = self
            .read(names.iter().map(count).collect())
            .await
            .map_err(|e| self.failed(e))?;
        let mut reads = VecDeque::new();
        let (mut group, mut objects) = (Vec::new(), 0);
        for (name, answer) in names.into_iter().zip(answers) {
            if answer.count == 0 {
                continue;
            }
            if objects + answer.count > self.page_objects as u64 && !group.is_empty() {
                reads.push_back(Read::Group(std::mem::take(&mut group)));
                objects = 0;
            }
            if answer.count > self.page_objects as u64 {
                let (next, end) = self.bounds(&name);
                reads.push_back(Read::Part { next, end });
            } else {
                objects += answer.count;
                group.push(name);
            }
        }
        if !group.is_empty() {
            reads.push_back(Read::Group(group));
        }
        Ok(reads)
    }

    fn bounds(&self, namespace: &str) -> (Bytes, Bytes) {
        let prefix = self.plan.resource.namespace_prefix(namespace);
        let end = prefix_end(&prefix);
        match &self.plan.start {
            Start::After {
                namespace: after_namespace,
                name,
            } if after_namespace == namespace => (after(&self.plan.resource, namespace, name), end),
            _ => (prefix, end),
        }
    }

    /// Several namespaces in one transaction. `None`: they did not fit into one message and are read in parts.
    async fn read_group(
        &mut self,
        group: &[Arc<str>],
        reads: &mut VecDeque<Read>,
    ) -> Result<Option<Vec<KeyValue>>, Error> {
        let range = |name: &Arc<str>| {
            let (start, end) = self.bounds(name);
            Range::between(start, end).at(self.at)
        };
        match self.read(group.iter().map(range).collect()).await {
            Ok(answers) => {
                let kvs: Vec<KeyValue> = answers.into_iter().flat_map(|answer| answer.kvs).collect();
                self.learn_sizes(&kvs);
                Ok(Some(kvs))
            }
            Err(BackendError::TooLarge) => {
                self.page_objects = (self.page_objects / 2).max(1);
                for name in group.iter().rev() {
                    let (next, end) = self.bounds(name);
                    reads.push_front(Read::Part { next, end });
                }
                Ok(None)
            }
            Err(error) => Err(self.failed(error)),
        }
    }
}

/// Namespace and name: the order of a list.
fn list_order(key: &[u8]) -> Option<(&str, &str)> {
    split_object_key(key).map(|(_, _, namespace, name)| (namespace, name))
}
