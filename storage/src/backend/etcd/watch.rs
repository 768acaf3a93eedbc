//! A watch: etcd's messages become batches that never split a revision, with progress, an end, and a watchdog.
//!
//! [`Assembler`] decides, without I/O; [`Watch`] is the stream around it. Nothing runs beside the reader: what is not read
//! stays in HTTP/2's window. It knows nothing of members; who opens it says which connection.

use super::super::{BackendError, Revision, WatchBatch, WatchRequest, WatchStream};
use super::connect::Connection;
use super::error::{Failure, watch_canceled};
use super::keyspace::Keyspace;
use super::proto::{self, NO_WATCH, WATCH_WATCH};
use futures::future::BoxFuture;
use http::uri::PathAndQuery;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval_at, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::metadata::MetadataValue;
use tonic_prost::ProstCodec;

/// How often progress is asked for while the end of a piece of history is waited for: etcd does not answer before the watch
/// has caught up.
const PROGRESS_EVERY_UNTIL: Duration = Duration::from_millis(100);
/// A watch that hears nothing at all for so many intervals, although it keeps asking, is over.
const UNANSWERED_MAX: u32 = 5;
/// Requests waiting on the stream of a watch: the creation and some questions.
const REQUESTS_MAX: usize = 4;
/// What the events of one revision may hold. etcd limits a transaction to 1.5 MiB by default.
const REVISION_BYTES_MAX: usize = 64 << 20;
/// How long etcd may take to say at which revision it compacted.
const CANCEL_WAIT: Duration = Duration::from_secs(1);

/// How a watch behaves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    /// How often progress is asked for.
    pub(super) progress_every: Duration,
    /// Begin with a batch that tells where the watch starts: the caller does not know.
    pub(super) tells_start: bool,
}

/// A running watch.
pub(super) struct Watch {
    assembler: Assembler,
    answers: Streaming<proto::WatchResponse>,
    requests: mpsc::Sender<proto::WatchRequest>,
    progress: Interval,
    /// Questions since the last message.
    unanswered: u32,
    unanswered_max: u32,
    suspicion: BoxFuture<'static, ()>,
    member: String,
    /// To be yielded before anything is read.
    first: Option<Step>,
}

/// What has been received, up to the next batch. Pure.
struct Assembler {
    keyspace: Keyspace,
    member: String,
    watch_id: i64,
    until: Option<Revision>,
    delivered: Revision,
    /// The events of a revision whose end was not seen yet.
    carried: WatchBatch,
    carried_bytes: usize,
}

/// What follows from a message.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Batch(WatchBatch),
    Last(WatchBatch),
    Failed(BackendError),
}

impl Watch {
    /// Opens a watch, and returns when etcd has created it.
    pub(super) async fn open(
        connection: &Connection,
        keyspace: &Keyspace,
        request: &WatchRequest,
        manner: Manner,
        member: &str,
    ) -> Result<Self, Failure> {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let (key, range_end) = keyspace.range(&request.start, request.end.as_deref());
        let create = proto::WatchCreateRequest {
            key,
            range_end,
            start_revision: i64::try_from(request.start_revision).unwrap_or(i64::MAX),
            progress_notify: true,
            prev_kv: request.prev_kv,
            fragment: true,
        };
        let create = proto::WatchRequest {
            request_union: Some(proto::WatchRequestUnion::Create(create)),
        };
        // The channel is new and has room.
        let _ = requests.try_send(create);
        let mut stream = tonic::Request::new(ReceiverStream::new(receiver));
        // A member that lost its leader ends the watch instead of being silent.
        stream
            .metadata_mut()
            .insert("hasleader", MetadataValue::from_static("true"));
        let codec = ProstCodec::<proto::WatchRequest, proto::WatchResponse>::default();
        let failed = |status| Failure::from_status(&status, member);
        let mut answers = connection
            .grpc()
            .streaming(stream, PathAndQuery::from_static(WATCH_WATCH), codec)
            .await
            .map_err(failed)?
            .into_inner();
        let closed = || Failure::Unavailable(format!("{member}: the watch was closed before it was created"));
        let created = answers.message().await.map_err(failed)?.ok_or_else(closed)?;
        if created.canceled || !created.created {
            let compact_revision = u64::try_from(created.compact_revision).unwrap_or(0);
            return Err(
                match watch_canceled(compact_revision, &created.cancel_reason, member) {
                    BackendError::Unavailable { cause, .. } => Failure::Unavailable(cause),
                    error => Failure::Final(error),
                },
            );
        }

        let delivered = request.start_revision.saturating_sub(1);
        let mut assembler = Assembler::new(
            keyspace.clone(),
            member,
            created.watch_id,
            request.until,
            delivered,
        );
        // A piece of history may be empty.
        let is_over = request.until.is_some_and(|until| until <= delivered);
        let first = (manner.tells_start || is_over).then(|| assembler.finish(Vec::new(), delivered));
        let every = match request.until {
            Some(_) => PROGRESS_EVERY_UNTIL.min(manner.progress_every),
            None => manner.progress_every,
        };
        let mut progress = interval_at(tokio::time::Instant::now() + every, every);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let patience = manner.progress_every * UNANSWERED_MAX;
        let unanswered_max =
            u32::try_from(patience.as_millis() / every.as_millis().max(1)).unwrap_or(u32::MAX);
        let mut watch = Self {
            assembler,
            answers,
            requests,
            progress,
            unanswered: 0,
            unanswered_max,
            suspicion: connection.suspicion(),
            member: member.to_owned(),
            first,
        };
        if request.until.is_some() {
            watch.ask_for_progress();
        }
        Ok(watch)
    }

    /// The first revision was found to be compacted: why etcd cancels, if it does. It does not when the first revision is
    /// the compact revision itself.
    pub(super) async fn compacted(mut self, start_revision: Revision) -> BackendError {
        let at_the_edge = BackendError::Compacted {
            compact_revision: start_revision,
        };
        let canceled = async {
            while let Ok(Some(message)) = self.answers.message().await {
                if let Step::Failed(error @ BackendError::Compacted { .. }) = self.assembler.accept(message) {
                    return Some(error);
                }
            }
            None
        };
        timeout(CANCEL_WAIT, canceled)
            .await
            .ok()
            .flatten()
            .unwrap_or(at_the_edge)
    }

    /// The batches, until the end or an error, which is the last item.
    pub(super) fn into_stream(self) -> WatchStream {
        Box::pin(futures::stream::unfold(Some(Box::new(self)), |watch| async {
            let mut watch = watch?;
            Some(match watch.next().await {
                Ok((batch, false)) => (Ok(batch), Some(watch)),
                Ok((batch, true)) => (Ok(batch), None),
                Err(error) => (Err(error), None),
            })
        }))
    }

    /// The next batch, and whether it is the last one.
    async fn next(&mut self) -> Result<(WatchBatch, bool), BackendError> {
        loop {
            let step = match self.first.take() {
                Some(step) => step,
                None => self.step().await,
            };
            match step {
                Step::Nothing => {}
                Step::Batch(batch) => return Ok((batch, false)),
                Step::Last(batch) => return Ok((batch, true)),
                Step::Failed(error) => return Err(error),
            }
        }
    }

    async fn step(&mut self) -> Step {
        tokio::select! {
            biased;
            () = &mut self.suspicion => self.failed("the member is suspected of lagging"),
            message = self.answers.message() => match message {
                Ok(Some(message)) => {
                    self.unanswered = 0;
                    self.assembler.accept(message)
                }
                Ok(None) => self.failed("the watch was closed"),
                Err(status) => Step::Failed(Failure::from_status(&status, &self.member).into_read_error()),
            },
            _ = self.progress.tick() => {
                if self.unanswered >= self.unanswered_max {
                    return self.failed("the watch hears nothing");
                }
                self.ask_for_progress();
                Step::Nothing
            }
        }
    }

    fn ask_for_progress(&mut self) {
        self.unanswered += 1;
        let ask = proto::WatchRequestUnion::Progress(proto::WatchProgressRequest {});
        // When there is no room, older questions still wait to be sent.
        let _ = self.requests.try_send(proto::WatchRequest {
            request_union: Some(ask),
        });
    }

    fn failed(&self, cause: &str) -> Step {
        Step::Failed(BackendError::Unavailable {
            cause: format!("{}: {cause}", self.member),
            sent: true,
        })
    }
}

impl Assembler {
    fn new(
        keyspace: Keyspace,
        member: &str,
        watch_id: i64,
        until: Option<Revision>,
        delivered: Revision,
    ) -> Self {
        let (member, carried) = (member.to_owned(), WatchBatch::default());
        Self {
            keyspace,
            member,
            watch_id,
            until,
            delivered,
            carried,
            carried_bytes: 0,
        }
    }

    fn accept(&mut self, message: proto::WatchResponse) -> Step {
        if message.watch_id != self.watch_id && message.watch_id != NO_WATCH {
            return Step::Nothing;
        }
        if message.canceled {
            let compact_revision = u64::try_from(message.compact_revision).unwrap_or(0);
            return Step::Failed(watch_canceled(
                compact_revision,
                &message.cancel_reason,
                &self.member,
            ));
        }
        if message.created {
            return Step::Nothing;
        }
        if message.events.is_empty() {
            return self.progress(&message);
        }
        self.events(message)
    }

    /// Everything up to the revision of this message has been sent before it.
    fn progress(&mut self, message: &proto::WatchResponse) -> Step {
        let revision = message
            .header
            .map_or(0, |header| u64::try_from(header.revision).unwrap_or(0));
        // A progress amid the fragments of a revision would tell nothing; etcd does not send one.
        if revision == 0 || !self.carried.events.is_empty() {
            return Step::Nothing;
        }
        self.finish(Vec::new(), revision)
    }

    fn events(&mut self, message: proto::WatchResponse) -> Step {
        let mut events = std::mem::take(&mut self.carried.events);
        for event in message.events {
            match self.keyspace.event(event) {
                Ok(event) if event.kv.mod_revision <= self.delivered => {}
                Ok(event) => events.push(event),
                Err(cause) => {
                    return Step::Failed(BackendError::Corrupt(format!("{}: {cause}", self.member)));
                }
            }
        }
        let Some(last) = events.last().map(|event| event.kv.mod_revision) else {
            return Step::Nothing;
        };
        if !message.fragment {
            self.carried_bytes = 0;
            return self.finish(events, last);
        }
        // The revision at the end of a fragment may go on in the next one; all before it are complete.
        let complete = events.partition_point(|event| event.kv.mod_revision < last);
        let carried = events.split_off(complete);
        self.carried_bytes = carried
            .iter()
            .map(|event| event.kv.value.len() + event.prev.as_ref().map_or(0, |prev| prev.value.len()))
            .sum();
        self.carried.events = carried;
        if self.carried_bytes > REVISION_BYTES_MAX {
            return Step::Failed(BackendError::Corrupt(format!(
                "{}: revision {last} has more than {REVISION_BYTES_MAX} bytes",
                self.member
            )));
        }
        if events.is_empty() {
            return Step::Nothing;
        }
        self.finish(events, last - 1)
    }

    /// A batch that completes everything up to `revision`, cut at the end of what was asked for.
    fn finish(&mut self, mut events: Vec<super::super::BackendEvent>, revision: Revision) -> Step {
        self.delivered = self.delivered.max(revision);
        match self.until {
            Some(until) if self.delivered >= until => {
                events.retain(|event| event.kv.mod_revision <= until);
                Step::Last(WatchBatch {
                    events,
                    revision: until,
                })
            }
            _ => Step::Batch(WatchBatch {
                events,
                revision: self.delivered,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn message(events: &[(&'static str, i64)], fragment: bool) -> proto::WatchResponse {
        let events = events
            .iter()
            .map(|(key, revision)| {
                let key = Bytes::from_static(key.as_bytes());
                let kv = proto::KeyValue {
                    key,
                    mod_revision: *revision,
                    ..Default::default()
                };
                proto::Event {
                    kv: Some(kv),
                    ..Default::default()
                }
            })
            .collect();
        proto::WatchResponse {
            events,
            fragment,
            watch_id: 5,
            ..Default::default()
        }
    }

    fn progress(revision: i64) -> proto::WatchResponse {
        let header = Some(proto::ResponseHeader {
            revision,
            ..Default::default()
        });
        proto::WatchResponse {
            header,
            watch_id: NO_WATCH,
            ..Default::default()
        }
    }

    /// What comes out of these messages: `a@1 b@2 |2` is a batch with two events and revision 2, `!` an end.
    fn check(until: Option<Revision>, messages: Vec<proto::WatchResponse>, expect: &[&str]) {
        let mut assembler = Assembler::new(Keyspace::new("/p/"), "m", 5, until, 0);
        let mut out = Vec::new();
        for message in messages {
            let (batch, end) = match assembler.accept(message) {
                Step::Nothing => continue,
                Step::Batch(batch) => (batch, ""),
                Step::Last(batch) => (batch, "!"),
                Step::Failed(error) => {
                    out.push(format!("error: {error}"));
                    break;
                }
            };
            let events = batch.events.iter().map(|event| {
                let key = String::from_utf8_lossy(&event.kv.key).into_owned();
                format!("{key}@{} ", event.kv.mod_revision)
            });
            out.push(format!("{}|{}{end}", events.collect::<String>(), batch.revision));
            if end == "!" {
                break;
            }
        }
        assert_eq!(out, expect);
    }

    #[test]
    fn batches_say_what_they_complete() {
        check(
            None,
            vec![
                message(&[("/p/a", 1), ("/p/b", 2)], false),
                progress(7),
                progress(3),
            ],
            &["a@1 b@2 |2", "|7", "|7"],
        );
    }

    #[test]
    fn a_revision_is_never_split() {
        check(
            None,
            vec![
                message(&[("/p/a", 1), ("/p/b", 2)], true),
                message(&[("/p/c", 2)], true),
                message(&[("/p/d", 2), ("/p/e", 3)], true),
                message(&[("/p/f", 3)], false),
            ],
            &["a@1 |1", "b@2 c@2 d@2 |2", "e@3 f@3 |3"],
        );
    }

    #[test]
    fn a_piece_of_history_ends_where_it_should() {
        check(
            Some(2),
            vec![message(&[("/p/a", 1)], false), message(&[("/p/b", 2)], false)],
            &["a@1 |1", "b@2 |2!"],
        );
        check(
            Some(2),
            vec![message(&[("/p/a", 1), ("/p/b", 5)], false)],
            &["a@1 |2!"],
        );
        check(
            Some(2),
            vec![message(&[("/p/a", 1), ("/p/b", 5)], true)],
            &["a@1 |2!"],
        );
        check(Some(2), vec![progress(1), progress(9)], &["|1", "|2!"]);
    }

    #[test]
    fn what_is_not_ours_is_left_out() {
        let other = proto::WatchResponse {
            watch_id: 6,
            ..message(&[("/p/a", 1)], false)
        };
        check(
            None,
            vec![
                other,
                message(&[("/p/b", 2)], false),
                message(&[("/p/b", 2)], false),
            ],
            &["b@2 |2"],
        );
        check(
            None,
            vec![message(&[("/q/a", 1)], false)],
            &["error: m: a key without the prefix \"/p/\": \"/q/a\""],
        );
    }

    #[test]
    fn a_canceled_watch_says_why() {
        let canceled = proto::WatchResponse {
            watch_id: 5,
            canceled: true,
            compact_revision: 9,
            ..Default::default()
        };
        check(
            None,
            vec![canceled],
            &["error: required revision has been compacted (compact revision 9)"],
        );
    }
}
