//! The promises of the `Backend` trait, one test each, for every implementation.
//!
//! ```ignore
//! // The guard is dropped after the test; it keeps a folder or a process alive.
//! async fn new_backend() -> (impl Drop, Arc<dyn Backend>) { … }
//! outrigger_storage::backend_suite!(new_backend());
//! ```
//!
//! A test may find other keys and any revision, and uses keys of its own. But while it runs nobody else may write or
//! compact: revisions and history are those of the whole backend (a shared server needs a lock in the guard).

mod ranges;
mod transactions;
mod watches;

pub use ranges::*;
pub use transactions::*;
pub use watches::*;

use crate::backend::{
    Backend, BackendError, BackendEvent, Compare, KeyValue, Op, Range, RangeResponse, Revision, Txn,
    TxnResponse, WatchRequest, WatchStream,
};
use crate::key::prefix_end;
use bytes::Bytes;
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;

/// How long a watch may take to deliver.
const DELIVERY_MAX: Duration = Duration::from_secs(20);

/// Expands to one `#[tokio::test]` for every promise of [`Backend`](crate::backend::Backend). The expression makes a
/// future of a guard and an `Arc<dyn Backend>`; it is evaluated once for every test.
#[macro_export]
macro_rules! backend_suite {
    ($new:expr) => {
        $crate::backend_suite!(@tests $new;
            a_put_is_read_back_with_its_revisions
            puts_of_one_transaction_share_a_revision
            a_missing_key_has_revision_zero_and_no_value
            compares_choose_the_branch
            values_compare_bytewise
            reads_see_earlier_writes_of_their_transaction
            reads_and_lost_compares_leave_the_revision
            a_key_is_written_once_in_a_transaction
            a_transaction_has_a_limit_of_steps
            ranges_are_ordered_limited_and_counted
            keys_and_values_are_any_bytes
            a_range_at_a_past_revision_sees_the_past
            a_range_at_a_future_revision_fails_and_writes_nothing
            many_ranges_are_read_in_one_transaction
            large_values_come_back_and_too_large_ones_are_refused
            of_concurrent_creates_one_wins
            concurrent_compare_and_swap_loses_nothing
            compaction_forgets_the_past_and_keeps_the_present
            compaction_keeps_what_is_current_at_its_revision
            compacting_twice_is_fine_and_the_future_is_refused
            a_watch_below_the_compact_revision_is_refused
            history_above_the_compact_revision_remains
            a_watch_delivers_every_change_in_order
            a_batch_never_splits_a_revision
            a_watch_has_previous_values_if_asked
            a_watch_starts_at_any_retained_revision
            a_watch_from_now_on_skips_the_past
            a_watch_from_a_future_revision_waits_for_it
            a_watch_of_one_key_sees_that_key_only
            until_ends_a_watch
            until_a_revision_of_other_keys_ends_a_watch
            until_waits_for_its_revision
            a_slow_watcher_loses_nothing
            watchers_agree_on_the_order
            status_knows_the_revision
        );
    };
    (@tests $new:expr; $($name:ident)*) => {$(
        #[tokio::test]
        async fn $name() {
            let (guard, backend) = $new.await;
            $crate::testing::backend_suite::$name(backend).await;
            drop(guard);
        }
    )*};
}

/// A backend and keys of one's own in it.
struct Fixture {
    backend: Arc<dyn Backend>,
    prefix: String,
}

impl Fixture {
    fn new(backend: Arc<dyn Backend>) -> Self {
        Self {
            backend,
            prefix: format!("suite-{}/", uuid::Uuid::new_v4()),
        }
    }

    fn key(&self, name: &str) -> Bytes {
        format!("{}{name}", self.prefix).into()
    }

    fn op(&self, name: &str, value: &str) -> Op {
        Op::Put {
            key: self.key(name),
            value: value.to_owned().into(),
        }
    }

    async fn txn(&self, compare: Vec<Compare>, success: Vec<Op>, failure: Vec<Op>) -> TxnResponse {
        self.backend
            .txn(Txn {
                compare,
                success,
                failure,
            })
            .await
            .expect("a transaction")
    }

    async fn put(&self, name: &str, value: &str) -> Revision {
        self.txn(vec![], vec![self.op(name, value)], vec![])
            .await
            .revision
    }

    async fn delete(&self, name: &str) -> Revision {
        self.txn(vec![], vec![Op::Delete { key: self.key(name) }], vec![])
            .await
            .revision
    }

    fn all(&self) -> Range {
        Range::between(self.prefix.clone(), prefix_end(self.prefix.as_bytes()))
    }

    async fn range(&self, range: Range) -> RangeResponse {
        self.try_range(range).await.expect("a range")
    }

    async fn try_range(&self, range: Range) -> Result<RangeResponse, BackendError> {
        let mut response = self.backend.txn(Txn::read([range])).await?;
        Ok(response.responses.swap_remove(0).into_range())
    }

    async fn get(&self, name: &str) -> Option<KeyValue> {
        self.range(Range::key(self.key(name))).await.kvs.pop()
    }

    async fn revision(&self) -> Revision {
        self.backend
            .txn(Txn::read([Range::key(self.key("-"))]))
            .await
            .expect("a read")
            .revision
    }

    /// The names and values of a range's keys.
    fn pairs(&self, range: &RangeResponse) -> Vec<(String, String)> {
        range
            .kvs
            .iter()
            .map(|kv| (self.name(kv), text(&kv.value)))
            .collect()
    }

    fn name(&self, kv: &KeyValue) -> String {
        text(
            kv.key
                .strip_prefix(self.prefix.as_bytes())
                .expect("a key of this test"),
        )
    }

    fn request(&self, start_revision: Revision) -> WatchRequest {
        let Range { start, end, .. } = self.all();
        WatchRequest {
            start,
            end,
            start_revision,
            prev_kv: false,
            until: None,
        }
    }

    async fn watch(&self, start_revision: Revision) -> WatchStream {
        self.backend
            .watch(self.request(start_revision))
            .await
            .expect("a watch")
    }

    /// `put name=value` or `delete name`, with the revision.
    fn change(&self, event: &BackendEvent) -> (Revision, String) {
        let name = self.name(&event.kv);
        let what = if event.deleted {
            format!("delete {name}")
        } else {
            format!("put {name}={}", text(&event.kv.value))
        };
        (event.kv.mod_revision, what)
    }

    /// Everything that happened from a revision on.
    async fn history(&self, from: Revision) -> Vec<(Revision, String)> {
        let until = Some(self.revision().await);
        let request = WatchRequest {
            until,
            ..self.request(from)
        };
        let events = collect(self.backend.watch(request).await.expect("a watch")).await;
        events.iter().map(|event| self.change(event)).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The next events of a watch; checks what holds for every batch.
async fn next_events(watch: &mut WatchStream) -> Option<Vec<BackendEvent>> {
    loop {
        let next = tokio::time::timeout(DELIVERY_MAX, watch.next())
            .await
            .expect("the watch delivers in time");
        let batch = next?.expect("the watch goes on");
        let revisions: Vec<_> = batch.events.iter().map(|e| e.kv.mod_revision).collect();
        assert!(
            revisions.is_sorted(),
            "a batch is in the order of revisions: {revisions:?}"
        );
        assert!(
            revisions.last().is_none_or(|last| *last <= batch.revision),
            "a batch's revision covers its events"
        );
        if !batch.events.is_empty() {
            return Some(batch.events);
        }
    }
}

/// The next `n` events at least.
async fn take(watch: &mut WatchStream, n: usize) -> Vec<BackendEvent> {
    let mut events = Vec::new();
    while events.len() < n {
        events.extend(next_events(watch).await.expect("the watch does not end"));
    }
    events
}

/// All events of a watch that ends.
async fn collect(mut watch: WatchStream) -> Vec<BackendEvent> {
    let mut events = Vec::new();
    while let Some(more) = next_events(&mut watch).await {
        events.extend(more);
    }
    events
}
