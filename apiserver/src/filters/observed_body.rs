//! A response body that says when it ends, how, and how long it was; and one that ends at a deadline.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::task::AtomicWaker;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyEnd {
    /// Bytes that were taken from it.
    pub bytes: u64,
    /// Whether it was taken whole; otherwise it failed, or nobody wanted the rest.
    pub complete: bool,
}

struct ObservedBody {
    inner: Body,
    bytes: u64,
    on_end: Option<Box<dyn FnOnce(BodyEnd) + Send>>,
}

/// The same response; `on_end` is called once, when its body has ended or is dropped.
pub fn observe(response: Response, on_end: impl FnOnce(BodyEnd) + Send + 'static) -> Response {
    response.map(|inner| {
        Body::new(ObservedBody {
            inner,
            bytes: 0,
            on_end: Some(Box::new(on_end)),
        })
    })
}

/// The same response; `guard` lives as long as its body.
pub fn hold<G: Send + 'static>(response: Response, guard: G) -> Response {
    observe(response, move |_| drop(guard))
}

impl ObservedBody {
    fn end(&mut self, complete: bool) {
        if let Some(on_end) = self.on_end.take() {
            on_end(BodyEnd {
                bytes: self.bytes,
                complete,
            });
        }
    }
}

impl HttpBody for ObservedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
            Some(Err(_)) => self.end(false),
            None => self.end(true),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for ObservedBody {
    fn drop(&mut self) {
        let complete = self.inner.is_end_stream();
        self.end(complete);
    }
}

/// The body of a response that was not sent whole in time.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the request did not complete within the allotted timeout")]
pub struct DeadlineExceeded;

/// How long a client may take nothing of a body that has something for it. It must be shorter than what a list waits for
/// its share of memory, or a dozen clients that do not read keep all others from listing until their deadlines.
const STALL_MAX: Duration = Duration::from_secs(20);

/// Where a body is in the hands of its client.
struct Progress {
    /// When the client last took something.
    last: Instant,
    /// The client waits for us: it is not the client that stalls.
    awaited: bool,
}

/// A body that a timer can take away. A client that does not read never polls the body, so the body cannot look at the
/// clock itself; and what it holds (a place among the requests in flight, bytes of the lists' budget) must come free.
struct DeadlineBody {
    inner: Arc<Mutex<Option<Body>>>,
    progress: Arc<Mutex<Progress>>,
    /// Who waits for the next frame learns that there will be none.
    waiting: Arc<AtomicWaker>,
    timer: AbortHandle,
}

/// The same response; its body is dropped at `deadline`, or when the client stops to read it, and the client sees that it
/// is not whole.
pub fn end_at(response: Response, deadline: Instant) -> Response {
    timed(response, Some(deadline))
}

/// The same response, of a request without a deadline; its body is dropped when the client stops to read it. A watch holds
/// memory for lists while its initial events are on their way, and kube-apiserver too ends watches that are not read.
pub fn end_when_stalled(response: Response) -> Response {
    timed(response, None)
}

fn timed(response: Response, deadline: Option<Instant>) -> Response {
    // What is in memory already needs no more than memory.
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| {
        let inner = Arc::new(Mutex::new(Some(body)));
        let taken = Arc::clone(&inner);
        let progress = Arc::new(Mutex::new(Progress {
            last: Instant::now(),
            awaited: false,
        }));
        let watched = Arc::clone(&progress);
        let waiting = Arc::new(AtomicWaker::new());
        let told = Arc::clone(&waiting);
        let timer = tokio::spawn(async move {
            loop {
                let now = Instant::now();
                let (stalls_at, awaited) = {
                    let progress = watched.lock();
                    (progress.last + STALL_MAX, progress.awaited)
                };
                if deadline.is_some_and(|deadline| now >= deadline) || (!awaited && now >= stalls_at) {
                    break;
                }
                let next = if awaited { now + STALL_MAX } else { stalls_at };
                tokio::time::sleep_until(deadline.map_or(next, |deadline| next.min(deadline))).await;
            }
            let body = taken.lock().take();
            drop(body);
            told.wake();
        });
        Body::new(DeadlineBody {
            inner,
            progress,
            waiting,
            timer: timer.abort_handle(),
        })
    })
}

impl HttpBody for DeadlineBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.waiting.register(cx.waker());
        match self.inner.lock().as_mut() {
            Some(body) => {
                let frame = Pin::new(body).poll_frame(cx);
                *self.progress.lock() = Progress {
                    last: Instant::now(),
                    awaited: frame.is_pending(),
                };
                frame
            }
            None => Poll::Ready(Some(Err(axum::Error::new(DeadlineExceeded)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.lock().as_ref().is_some_and(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .lock()
            .as_ref()
            .map(HttpBody::size_hint)
            .unwrap_or_default()
    }
}

impl Drop for DeadlineBody {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use http_body_util::BodyExt;

    fn streamed(chunks: Vec<Result<&'static str, std::io::Error>>) -> Response {
        Response::new(Body::from_stream(stream::iter(chunks)))
    }

    fn watched(response: Response) -> (Response, Arc<Mutex<Option<BodyEnd>>>) {
        let end = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&end);
        (observe(response, move |e| *seen.lock() = Some(e)), end)
    }

    #[tokio::test]
    async fn the_end_of_a_body_is_seen_once() {
        let (response, end) = watched(streamed(vec![Ok("abc"), Ok("de")]));
        drop(response.into_body().collect().await);
        assert_eq!(
            *end.lock(),
            Some(BodyEnd {
                bytes: 5,
                complete: true
            })
        );

        let (response, end) = watched(streamed(vec![Ok("abc"), Err(std::io::Error::other("cut"))]));
        assert!(response.into_body().collect().await.is_err());
        assert_eq!(
            *end.lock(),
            Some(BodyEnd {
                bytes: 3,
                complete: false
            })
        );

        let (response, end) = watched(streamed(vec![Ok("abc")]));
        drop(response);
        assert_eq!(
            *end.lock(),
            Some(BodyEnd {
                bytes: 0,
                complete: false
            })
        );

        let (response, end) = watched(Response::new(Body::empty()));
        drop(response);
        assert_eq!(
            *end.lock(),
            Some(BodyEnd {
                bytes: 0,
                complete: true
            })
        );
    }

    /// Reads a body whose next piece is `every` seconds away, `pauses` apart; the bytes read until it is cut.
    async fn read(every: u64, pauses: &[u64]) -> usize {
        read_until(Some(Instant::now() + Duration::from_secs(300)), every, pauses).await
    }

    async fn read_until(deadline: Option<Instant>, every: u64, pauses: &[u64]) -> usize {
        let pieces = stream::unfold((), move |()| async move {
            tokio::time::sleep(Duration::from_secs(every)).await;
            Some((Ok::<_, std::io::Error>("x"), ()))
        });
        let response = Response::new(Body::from_stream(pieces));
        let mut body = timed(response, deadline).into_body();
        let mut bytes = 0;
        for pause in pauses {
            tokio::time::sleep(Duration::from_secs(*pause)).await;
            match body.frame().await {
                Some(Ok(_)) => bytes += 1,
                _ => return bytes,
            }
        }
        bytes
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_not_read_on_is_dropped_and_one_that_is_slow_is_not() {
        assert_eq!(read(0, &[0, 15, 19, 1, 19]).await, 5);
        assert_eq!(read(0, &[0, 19, 25, 1]).await, 2);
        assert_eq!(read(0, &[25]).await, 0);
        // The client waits for us.
        assert_eq!(read(50, &[0, 0, 0]).await, 3);
        assert_eq!(read(120, &[0, 0, 0]).await, 2);
        // A watch that has nothing to say may be silent for long.
        assert_eq!(read_until(None, 1000, &[0, 10, 0]).await, 3);
        assert_eq!(read_until(None, 0, &[0, 10, 25]).await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_nobody_reads_is_dropped_at_the_deadline() {
        let endless = Response::new(Body::from_stream(stream::pending::<std::io::Result<&str>>()));
        let (response, end) = watched(endless);
        let response = end_at(response, Instant::now() + Duration::from_secs(15));
        tokio::time::sleep(Duration::from_secs(14)).await;
        assert_eq!(*end.lock(), None);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(
            *end.lock(),
            Some(BodyEnd {
                bytes: 0,
                complete: false
            })
        );
        assert!(response.into_body().collect().await.is_err());
    }
}
