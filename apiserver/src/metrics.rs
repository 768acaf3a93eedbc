//! Metrics in Prometheus text (format 0.0.4), under kube-apiserver's names, labels and buckets.
//!
//! Labels are bounded: verbs that nobody knows and resources that are not served count as `other`, and so does whatever
//! comes after [`REQUEST_SERIES_MAX`] different label sets. It does not know who measures; the store's own metrics are
//! appended by a collector. There is no `apiserver_storage_objects`: nothing here grows with the number of objects.

pub mod auth;

pub mod process;

mod request_labels;
pub use request_labels::RequestLabels;

pub mod text;

use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use text::{Histogram, Kind, TextWriter};

/// At most so many label sets of requests are kept.
pub const REQUEST_SERIES_MAX: usize = 500;
/// At most so many resources have metrics of their watches.
const WATCH_SERIES_MAX: usize = 500;
/// At most so many deprecated APIs are remembered.
const DEPRECATED_SERIES_MAX: usize = 500;
/// What folded labels say.
const OTHER: &str = "other";

/// Upper bounds of `apiserver_request_duration_seconds`.
const DURATION_BUCKETS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
/// Upper bounds of `apiserver_request_sli_duration_seconds`.
const SLI_BUCKETS: [f64; 21] = [
    0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];
/// Upper bounds of `apiserver_response_sizes`, in bytes.
const RESPONSE_SIZE_BUCKETS: [f64; 7] = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// Upper bounds of `apiserver_watch_events_sizes`, in bytes.
const WATCH_EVENT_SIZE_BUCKETS: [f64; 8] = [
    1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0, 131_072.0,
];

/// The server's metrics. Cheap to clone.
#[derive(Clone, Default)]
pub struct ApiMetrics {
    inner: Arc<Inner>,
}

/// Something that appends its own metrics, such as the store's.
pub type Collector = Box<dyn Fn(&mut String) + Send + Sync>;

#[derive(Default)]
struct Inner {
    requests: RwLock<HashMap<RequestLabels, Arc<RequestSeries>>>,
    watches: RwLock<HashMap<ResourceLabels, Arc<WatchSeries>>>,
    deprecated: RwLock<std::collections::BTreeSet<[String; 5]>>,
    read_only: InFlight,
    mutating: InFlight,
    tls_handshake_errors: AtomicU64,
    auth: auth::AuthMetrics,
    collectors: RwLock<Vec<Collector>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct ResourceLabels {
    group: String,
    version: String,
    resource: String,
}

/// What is counted of one kind of request.
#[derive(Debug)]
pub struct RequestSeries {
    codes: RwLock<Vec<(u16, AtomicU64)>>,
    terminations: RwLock<Vec<(u16, AtomicU64)>>,
    aborts: AtomicU64,
    long_running: AtomicI64,
    duration: Histogram,
    sli_duration: Histogram,
    response_size: Histogram,
}

/// What is counted of the watches of one resource.
#[derive(Debug)]
pub struct WatchSeries {
    events: AtomicU64,
    sizes: Histogram,
}

/// Requests in flight now, and the most there were since the last look.
#[derive(Debug, Default)]
struct InFlight {
    now: AtomicU64,
    most: AtomicU64,
}

/// Counts a request as in flight until it is dropped.
#[derive(Debug)]
pub struct InFlightGuard {
    metrics: ApiMetrics,
    mutating: bool,
}

/// Counts a request as long-running until it is dropped.
#[derive(Debug)]
pub struct LongRunningGuard(Arc<RequestSeries>);

impl RequestSeries {
    fn new() -> Self {
        Self {
            codes: RwLock::default(),
            terminations: RwLock::default(),
            aborts: AtomicU64::new(0),
            long_running: AtomicI64::new(0),
            duration: Histogram::new(&DURATION_BUCKETS),
            sli_duration: Histogram::new(&SLI_BUCKETS),
            response_size: Histogram::new(&RESPONSE_SIZE_BUCKETS),
        }
    }

    /// The request was answered: the last byte is sent.
    pub fn answered(&self, code: u16, elapsed: Duration, response_bytes: u64) {
        count(&self.codes, code);
        self.duration.observe(elapsed.as_secs_f64());
        self.sli_duration.observe(elapsed.as_secs_f64());
        #[allow(clippy::cast_precision_loss, reason = "sizes are shown rounded")]
        self.response_size.observe(response_bytes as f64);
    }

    /// The server ended the request in self-defence.
    pub fn terminated(&self, code: u16) {
        count(&self.terminations, code);
    }

    /// The response ended before its end.
    pub fn aborted(&self) {
        self.aborts.fetch_add(1, Ordering::Relaxed);
    }

    /// The request is running, and will be for a while.
    #[must_use]
    pub fn long_running(self: &Arc<Self>) -> LongRunningGuard {
        self.long_running.fetch_add(1, Ordering::Relaxed);
        LongRunningGuard(Arc::clone(self))
    }
}

impl Drop for LongRunningGuard {
    fn drop(&mut self) {
        self.0.long_running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// There are few codes: a list is as good as a map.
fn count(codes: &RwLock<Vec<(u16, AtomicU64)>>, code: u16) {
    if let Some((_, n)) = codes.read().iter().find(|(c, _)| *c == code) {
        n.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let mut codes = codes.write();
    match codes.iter().find(|(c, _)| *c == code) {
        Some((_, n)) => drop(n.fetch_add(1, Ordering::Relaxed)),
        None => codes.push((code, AtomicU64::new(1))),
    }
}

impl WatchSeries {
    /// An event of so many bytes was sent.
    pub fn sent(&self, bytes: usize) {
        self.events.fetch_add(1, Ordering::Relaxed);
        #[allow(clippy::cast_precision_loss, reason = "sizes are shown rounded")]
        self.sizes.observe(bytes as f64);
    }
}

impl InFlight {
    fn enter(&self) {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
    }

    fn leave(&self) {
        self.now.fetch_sub(1, Ordering::Relaxed);
    }

    fn most(&self) -> u64 {
        self.most
            .swap(self.now.load(Ordering::Relaxed), Ordering::Relaxed)
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.metrics.in_flight_kind(self.mutating).leave();
    }
}

impl std::fmt::Debug for ApiMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiMetrics").finish_non_exhaustive()
    }
}

impl ApiMetrics {
    /// Where requests with these labels are counted.
    #[must_use]
    pub fn request(&self, labels: &RequestLabels) -> Arc<RequestSeries> {
        if let Some(series) = self.inner.requests.read().get(labels) {
            return Arc::clone(series);
        }
        let mut requests = self.inner.requests.write();
        let labels = if requests.len() < REQUEST_SERIES_MAX {
            labels.clone()
        } else {
            labels.folded()
        };
        Arc::clone(
            requests
                .entry(labels)
                .or_insert_with(|| Arc::new(RequestSeries::new())),
        )
    }

    /// Where the events of watches on a resource are counted.
    #[must_use]
    pub fn watch(&self, group: &str, version: &str, resource: &str) -> Arc<WatchSeries> {
        let labels = ResourceLabels {
            group: group.to_owned(),
            version: version.to_owned(),
            resource: resource.to_owned(),
        };
        if let Some(series) = self.inner.watches.read().get(&labels) {
            return Arc::clone(series);
        }
        let mut watches = self.inner.watches.write();
        let labels = match watches.len() {
            n if n < WATCH_SERIES_MAX => labels,
            _ => ResourceLabels {
                group: String::new(),
                version: String::new(),
                resource: OTHER.to_owned(),
            },
        };
        let series = || {
            Arc::new(WatchSeries {
                events: AtomicU64::new(0),
                sizes: Histogram::new(&WATCH_EVENT_SIZE_BUCKETS),
            })
        };
        Arc::clone(watches.entry(labels).or_insert_with(series))
    }

    /// A version that its CRD calls deprecated was asked for.
    pub fn deprecated_requested(&self, group: &str, version: &str, resource: &str, subresource: &str) {
        let labels = [group, version, resource, subresource, ""].map(str::to_owned);
        if self.inner.deprecated.read().contains(&labels) {
            return;
        }
        let mut deprecated = self.inner.deprecated.write();
        if deprecated.len() < DEPRECATED_SERIES_MAX {
            deprecated.insert(labels);
        }
    }

    /// Counts a request as in flight.
    #[must_use]
    pub fn in_flight(&self, mutating: bool) -> InFlightGuard {
        self.in_flight_kind(mutating).enter();
        InFlightGuard {
            metrics: self.clone(),
            mutating,
        }
    }

    fn in_flight_kind(&self, mutating: bool) -> &InFlight {
        if mutating {
            &self.inner.mutating
        } else {
            &self.inner.read_only
        }
    }

    /// A handshake failed.
    pub fn tls_handshake_error(&self) {
        self.inner.tls_handshake_errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Where authentication and authorization count.
    #[must_use]
    pub fn auth(&self) -> &auth::AuthMetrics {
        &self.inner.auth
    }

    /// Appends what `collector` says to every answer, after the server's own metrics.
    pub fn add_collector(&self, collector: impl Fn(&mut String) + Send + Sync + 'static) {
        self.inner.collectors.write().push(Box::new(collector));
    }

    /// Everything as text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = TextWriter::default();
        self.render_requests(&mut out);
        self.render_watches(&mut out);
        self.render_server(&mut out);
        self.inner.auth.render(&mut out);
        process::render(&mut out);
        let mut out = out.into_text();
        self.inner
            .collectors
            .read()
            .iter()
            .for_each(|collector| collector(&mut out));
        out
    }

    fn render_requests(&self, out: &mut TextWriter) {
        let mut requests: Vec<_> = self
            .inner
            .requests
            .read()
            .iter()
            .map(|(labels, series)| (labels.clone(), Arc::clone(series)))
            .collect();
        requests.sort_by(|(a, _), (b, _)| a.cmp(b));
        let load = |codes: &RwLock<Vec<(u16, AtomicU64)>>| {
            let mut codes: Vec<_> = codes
                .read()
                .iter()
                .map(|(code, n)| (code.to_string(), n.load(Ordering::Relaxed)))
                .collect();
            codes.sort();
            codes
        };
        let is_read = |labels: &RequestLabels| matches!(labels.verb, "GET" | "LIST");

        out.head(Kind::Gauge, "apiserver_longrunning_requests", "Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component. Not all requests are tracked this way.");
        for (labels, series) in requests.iter().filter(|(labels, _)| labels.verb == "WATCH") {
            out.sample(
                "apiserver_longrunning_requests",
                &labels.short_pairs(),
                series.long_running.load(Ordering::Relaxed),
            );
        }
        out.head(Kind::Counter, "apiserver_request_total", "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.");
        for (labels, series) in &requests {
            for (code, n) in load(&series.codes) {
                out.sample(
                    "apiserver_request_total",
                    &with(&labels.pairs(), ("code", &code)),
                    n,
                );
            }
        }
        out.head(
            Kind::Counter,
            "apiserver_request_terminations_total",
            "Number of requests which apiserver terminated in self-defense.",
        );
        for (labels, series) in &requests {
            for (code, n) in load(&series.terminations) {
                out.sample(
                    "apiserver_request_terminations_total",
                    &with(&labels.short_pairs(), ("code", &code)),
                    n,
                );
            }
        }
        out.head(Kind::Counter, "apiserver_request_aborts_total", "Number of requests which apiserver aborted possibly due to a timeout, for each group, version, verb, resource, subresource and scope");
        for (labels, series) in requests
            .iter()
            .filter(|(_, series)| series.aborts.load(Ordering::Relaxed) > 0)
        {
            out.sample(
                "apiserver_request_aborts_total",
                &labels.short_pairs()[..6],
                series.aborts.load(Ordering::Relaxed),
            );
        }
        out.head(Kind::Histogram, "apiserver_request_duration_seconds", "Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.");
        for (labels, series) in &requests {
            out.histogram(
                "apiserver_request_duration_seconds",
                &labels.pairs(),
                &series.duration,
            );
        }
        out.head(Kind::Histogram, "apiserver_request_sli_duration_seconds", "Response latency distribution (not counting webhook duration and priority & fairness queue wait times) in seconds for each verb, group, version, resource, subresource, scope and component.");
        for (labels, series) in requests.iter().filter(|(labels, _)| labels.dry_run.is_empty()) {
            out.histogram(
                "apiserver_request_sli_duration_seconds",
                &labels.short_pairs(),
                &series.sli_duration,
            );
        }
        out.head(Kind::Histogram, "apiserver_response_sizes", "Response size distribution in bytes for each group, version, verb, resource, subresource, scope and component.");
        for (labels, series) in requests.iter().filter(|(labels, _)| is_read(labels)) {
            out.histogram(
                "apiserver_response_sizes",
                &labels.short_pairs(),
                &series.response_size,
            );
        }
        out.head(Kind::Gauge, "apiserver_requested_deprecated_apis", "Gauge of deprecated APIs that have been requested, broken out by API group, version, resource, subresource, and removed_release.");
        for [group, version, resource, subresource, removed] in self.inner.deprecated.read().iter() {
            let labels = [
                ("group", group.as_str()),
                ("version", version),
                ("resource", resource),
                ("subresource", subresource),
                ("removed_release", removed),
            ];
            out.sample("apiserver_requested_deprecated_apis", &labels, 1);
        }
    }

    fn render_watches(&self, out: &mut TextWriter) {
        let mut watches: Vec<_> = self
            .inner
            .watches
            .read()
            .iter()
            .map(|(labels, series)| (labels.clone(), Arc::clone(series)))
            .collect();
        watches.sort_by(|(a, _), (b, _)| a.cmp(b));
        let pairs = |labels: &ResourceLabels| {
            [
                ("group", labels.group.clone()),
                ("version", labels.version.clone()),
                ("resource", labels.resource.clone()),
            ]
        };
        out.head(
            Kind::Counter,
            "apiserver_watch_events_total",
            "Number of events sent in watch clients",
        );
        for (labels, series) in &watches {
            out.sample(
                "apiserver_watch_events_total",
                &pairs(labels),
                series.events.load(Ordering::Relaxed),
            );
        }
        out.head(
            Kind::Histogram,
            "apiserver_watch_events_sizes",
            "Watch event size distribution in bytes",
        );
        for (labels, series) in &watches {
            out.histogram("apiserver_watch_events_sizes", &pairs(labels), &series.sizes);
        }
    }

    fn render_server(&self, out: &mut TextWriter) {
        let kinds = [
            ("mutating", &self.inner.mutating),
            ("readOnly", &self.inner.read_only),
        ];
        out.head(Kind::Gauge, "apiserver_current_inflight_requests", "Maximal number of currently used inflight request limit of this apiserver per request kind since the last scrape.");
        for (kind, in_flight) in kinds {
            out.sample(
                "apiserver_current_inflight_requests",
                &[("request_kind", kind)],
                in_flight.most(),
            );
        }
        // Nothing waits in a queue: what does not fit is refused.
        out.head(
            Kind::Gauge,
            "apiserver_current_inqueue_requests",
            "Maximal number of queued requests in this apiserver per request kind since the last scrape.",
        );
        for (kind, _) in kinds {
            out.sample("apiserver_current_inqueue_requests", &[("request_kind", kind)], 0);
        }
        out.head(
            Kind::Counter,
            "apiserver_tls_handshake_errors_total",
            "Number of requests dropped with 'TLS handshake error from' error",
        );
        out.sample::<&str>(
            "apiserver_tls_handshake_errors_total",
            &[],
            self.inner.tls_handshake_errors.load(Ordering::Relaxed),
        );
    }
}

fn with<'a>(
    labels: &[(&'static str, &'a str)],
    more: (&'static str, &'a str),
) -> Vec<(&'static str, &'a str)> {
    labels.iter().copied().chain([more]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Query, RequestInfo};
    use http::Method;

    fn labels(method: &Method, url: &str, served: bool) -> RequestLabels {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let query = Query::parse(query);
        let info = RequestInfo::parse(method, path, &query).expect("a meaning");
        RequestLabels::new(&info, &query, false, served)
    }

    #[test]
    fn label_sets_are_bounded() {
        let metrics = ApiMetrics::default();
        for i in 0..2 * REQUEST_SERIES_MAX {
            drop(metrics.request(&labels(
                &Method::GET,
                &format!("/apis/g{i}.example/v1/things"),
                true,
            )));
        }
        assert_eq!(metrics.inner.requests.read().len(), REQUEST_SERIES_MAX + 1);
    }

    #[test]
    fn the_text_is_what_prometheus_expects() {
        let metrics = ApiMetrics::default();
        let list = metrics.request(&labels(&Method::GET, "/apis/a.example/v1/apps", true));
        list.answered(200, Duration::from_millis(30), 5000);
        list.answered(200, Duration::from_secs(90), 50);
        list.terminated(429);
        let watch = metrics.request(&labels(&Method::GET, "/apis/a.example/v1/apps?watch=1", true));
        let running = watch.long_running();
        metrics.watch("a.example", "v1", "apps").sent(3000);
        metrics.add_collector(|out| out.push_str("etcd_up 1\n"));
        let _guard = metrics.in_flight(true);
        let text = metrics.render();
        let list = r#"verb="LIST",dry_run="",group="a.example",version="v1",resource="apps",subresource="",scope="cluster",component="apiserver""#;
        let short = list.replace(r#"dry_run="","#, "");
        for line in [
            "# TYPE apiserver_request_total counter".to_owned(),
            format!("apiserver_request_total{{{list},code=\"200\"}} 2"),
            "# TYPE apiserver_request_duration_seconds histogram".to_owned(),
            format!("apiserver_request_duration_seconds_bucket{{{list},le=\"0.025\"}} 0"),
            format!("apiserver_request_duration_seconds_bucket{{{list},le=\"0.05\"}} 1"),
            format!("apiserver_request_duration_seconds_bucket{{{list},le=\"1\"}} 1"),
            format!("apiserver_request_duration_seconds_bucket{{{list},le=\"+Inf\"}} 2"),
            format!("apiserver_request_duration_seconds_count{{{list}}} 2"),
            format!("apiserver_response_sizes_bucket{{{short},le=\"10000\"}} 2"),
            format!("apiserver_response_sizes_bucket{{{short},le=\"1e+06\"}} 2"),
            format!("apiserver_response_sizes_sum{{{short}}} 5050"),
            format!("apiserver_request_terminations_total{{{short},code=\"429\"}} 1"),
            format!("apiserver_longrunning_requests{{{}}} 1", short.replace("LIST", "WATCH")),
            r#"apiserver_watch_events_total{group="a.example",version="v1",resource="apps"} 1"#.to_owned(),
            r#"apiserver_watch_events_sizes_bucket{group="a.example",version="v1",resource="apps",le="4096"} 1"#.to_owned(),
            r#"apiserver_current_inflight_requests{request_kind="mutating"} 1"#.to_owned(),
            "apiserver_tls_handshake_errors_total 0".to_owned(),
            "etcd_up 1".to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nis not in\n{text}");
        }
        drop(running);
        assert!(metrics.render().contains(&format!(
            "apiserver_longrunning_requests{{{}}} 0\n",
            short.replace("LIST", "WATCH")
        )));
    }

    #[test]
    fn every_family_is_described_once() {
        let text = ApiMetrics::default().render();
        let mut seen = std::collections::BTreeSet::new();
        for line in text.lines().filter(|l| l.starts_with("# TYPE ")) {
            assert!(seen.insert(line.to_owned()), "{line}");
        }
        assert!(seen.contains("# TYPE process_resident_memory_bytes gauge"));
    }
}
