//! What the store counts and measures, per backend, and its rendering as Prometheus text.
//!
//! It knows names and numbers only: who measures calls a method, who serves `/metrics` calls [`StoreMetrics::encode`] (or
//! takes a [`StoreMetrics::snapshot`]). No global state; a `StoreMetrics` is handed in.

mod text;

use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the request histogram in seconds: those of kube-apiserver's `etcd_request_duration_seconds`.
pub const REQUEST_BUCKETS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];

/// Upper bounds of the histogram of ticks in seconds: from a local disk to a far cluster.
pub const TICK_BUCKETS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];

/// At most so many different (operation, type) pairs are kept for a backend; what comes later counts as type `other`.
pub const REQUEST_SERIES_MAX: usize = 2_000;

/// The metrics of a store. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct StoreMetrics {
    backends: Arc<RwLock<BTreeMap<String, Arc<BackendMetrics>>>>,
}

/// The metrics of one backend.
#[derive(Debug, Default)]
pub struct BackendMetrics {
    requests: RwLock<BTreeMap<RequestLabels, Arc<RequestSeries>>>,
    ticks: AtomicU64,
    tick_round: Histogram<{ TICK_BUCKETS.len() }>,
    write_retries: AtomicU64,
    unknown_outcomes: AtomicU64,
    watch_events: AtomicU64,
    watches: AtomicU64,
    watches_ended: AtomicU64,
    circuit_opened: AtomicU64,
    up: Gauge,
    epoch_lag: Gauge,
    watch_lag: Gauge,
    lag: Gauge,
    lost: Gauge,
    slow: Gauge,
    ring_bytes: Gauge,
    ring_events: Gauge,
    in_flight: Gauge,
    db_size: Gauge,
    db_size_in_use: Gauge,
    quota: Gauge,
}

/// What a request is counted under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct RequestLabels {
    operation: &'static str,
    kind: Arc<str>,
}

#[derive(Debug, Default)]
struct RequestSeries {
    seconds: Histogram<{ REQUEST_BUCKETS.len() }>,
    errors: AtomicU64,
}

/// A histogram with fixed bounds; the last bucket is +Inf.
#[derive(Debug)]
struct Histogram<const N: usize> {
    buckets: [AtomicU64; N],
    above: AtomicU64,
    sum_nanos: AtomicU64,
}

/// A value that is not shown before it was first set.
#[derive(Debug)]
struct Gauge(AtomicU64);

/// A histogram at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HistogramSnapshot {
    /// Upper bound and number of observations at or below it (cumulative), without +Inf.
    pub buckets: Vec<(f64, u64)>,
    /// All observations.
    pub count: u64,
    /// Their sum in seconds.
    pub sum: f64,
}

/// The requests of one operation and type at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestSnapshot {
    /// The operation: `get`, `list`, `txn`, `watch`, …
    pub operation: &'static str,
    /// The type: a resource (`applications.paas.example.com`) or a kind of key (`clock`).
    pub kind: Arc<str>,
    /// How long they took.
    pub seconds: HistogramSnapshot,
    /// How many failed.
    pub errors: u64,
}

/// A backend's metrics at one moment. A gauge that was never set is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BackendSnapshot {
    /// The cluster's name.
    pub cluster: String,
    /// Requests.
    pub requests: Vec<RequestSnapshot>,
    /// Ticks sent.
    pub ticks: u64,
    /// How long this backend took in tick rounds.
    pub tick_round: HistogramSnapshot,
    /// Writes that were tried again because the clock moved.
    pub write_retries: u64,
    /// Writes whose outcome had to be settled.
    pub unknown_outcomes: u64,
    /// Events received by watches.
    pub watch_events: u64,
    /// Watches opened.
    pub watches: u64,
    /// Watches that ended with an error.
    pub watches_ended: u64,
    /// How often the circuit opened.
    pub circuit_opened: u64,
    /// 1 if it answers, 0 if not.
    pub up: Option<f64>,
    /// How far its clock is behind the highest of the fleet, in seconds.
    pub epoch_lag: Option<f64>,
    /// How far its watch is behind its acknowledged changes, in seconds.
    pub watch_lag: Option<f64>,
    /// How late it answers ticks, or shows what it has acknowledged, in seconds.
    pub lag: Option<f64>,
    /// 1 if the replicas agree that it is lost, 0 if not.
    pub lost: Option<f64>,
    /// 1 if it has been late for a while, 0 if not.
    pub slow: Option<f64>,
    /// Bytes in the event ring.
    pub ring_bytes: Option<f64>,
    /// Events in the event ring.
    pub ring_events: Option<f64>,
    /// Transactions in flight.
    pub in_flight: Option<f64>,
    /// Bytes of the database file.
    pub db_size: Option<f64>,
    /// Bytes of it in use.
    pub db_size_in_use: Option<f64>,
    /// The quota in bytes.
    pub quota: Option<f64>,
}

impl StoreMetrics {
    /// Empty metrics.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The metrics of the backend of this cluster; the same ones at every call.
    #[must_use]
    pub fn backend(&self, cluster: &str) -> Arc<BackendMetrics> {
        if let Some(backend) = self.backends.read().get(cluster) {
            return Arc::clone(backend);
        }
        Arc::clone(self.backends.write().entry(cluster.to_owned()).or_default())
    }

    /// Forgets a cluster that has left the fleet.
    pub fn remove(&self, cluster: &str) {
        self.backends.write().remove(cluster);
    }

    /// All backends by name.
    #[must_use]
    pub fn snapshot(&self) -> Vec<BackendSnapshot> {
        let backends: Vec<_> = self
            .backends
            .read()
            .iter()
            .map(|(name, b)| (name.clone(), Arc::clone(b)))
            .collect();
        backends
            .into_iter()
            .map(|(name, backend)| backend.snapshot(name))
            .collect()
    }

    /// Appends everything as Prometheus text (format 0.0.4).
    pub fn encode(&self, out: &mut String) {
        text::encode(&self.snapshot(), out);
    }
}

impl BackendMetrics {
    /// A request was answered (or not) after so many seconds.
    pub fn observe_request(&self, operation: &'static str, kind: &str, seconds: f64, ok: bool) {
        let series = self.series(operation, kind);
        series.seconds.observe(seconds);
        if !ok {
            series.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn series(&self, operation: &'static str, kind: &str) -> Arc<RequestSeries> {
        let labels = RequestLabels {
            operation,
            kind: kind.into(),
        };
        if let Some(series) = self.requests.read().get(&labels) {
            return Arc::clone(series);
        }
        let mut requests = self.requests.write();
        let labels = if requests.len() < REQUEST_SERIES_MAX {
            labels
        } else {
            RequestLabels {
                operation,
                kind: "other".into(),
            }
        };
        Arc::clone(requests.entry(labels).or_default())
    }

    /// A tick was sent.
    pub fn tick(&self) {
        self.ticks.fetch_add(1, Ordering::Relaxed);
    }

    /// This backend's part of a tick round took so long.
    pub fn observe_tick_round(&self, took: Duration) {
        self.tick_round.observe(took.as_secs_f64());
    }

    /// A write is tried again, because the clock moved.
    pub fn write_retry(&self) {
        self.write_retries.fetch_add(1, Ordering::Relaxed);
    }

    /// A write's outcome is not known and has to be settled.
    pub fn unknown_outcome(&self) {
        self.unknown_outcomes.fetch_add(1, Ordering::Relaxed);
    }

    /// A watch was opened.
    pub fn watch_opened(&self) {
        self.watches.fetch_add(1, Ordering::Relaxed);
    }

    /// A watch ended with an error.
    pub fn watch_ended(&self) {
        self.watches_ended.fetch_add(1, Ordering::Relaxed);
    }

    /// A watch received so many events.
    pub fn watch_events(&self, events: usize) {
        self.watch_events.fetch_add(events as u64, Ordering::Relaxed);
    }

    /// The circuit opened: this backend is not asked for a while.
    pub fn circuit_opened(&self) {
        self.circuit_opened.fetch_add(1, Ordering::Relaxed);
        self.set_up(false);
    }

    /// Whether it answers.
    pub fn set_up(&self, up: bool) {
        self.up.set(f64::from(u8::from(up)));
    }

    /// How far the clock is behind the highest of the fleet.
    pub fn set_epoch_lag(&self, lag: Duration) {
        self.epoch_lag.set(lag.as_secs_f64());
    }

    /// How far the watch is behind acknowledged changes.
    pub fn set_watch_lag(&self, lag: Duration) {
        self.watch_lag.set(lag.as_secs_f64());
    }

    /// How late it answers, or shows what it has acknowledged.
    pub fn set_lag(&self, lag: Duration) {
        self.lag.set(lag.as_secs_f64());
    }

    /// Whether the replicas agree that it is lost.
    pub fn set_lost(&self, lost: bool) {
        self.lost.set(f64::from(u8::from(lost)));
    }

    /// Whether it has been late for a while.
    pub fn set_slow(&self, slow: bool) {
        self.slow.set(f64::from(u8::from(slow)));
    }

    /// What the event ring holds.
    pub fn set_ring(&self, bytes: usize, events: usize) {
        self.ring_bytes.set(bytes as f64);
        self.ring_events.set(events as f64);
    }

    /// How many transactions are in flight.
    pub fn set_in_flight(&self, transactions: usize) {
        self.in_flight.set(transactions as f64);
    }

    /// Size of the database file, what of it is in use, and the quota (0: not known), in bytes.
    pub fn set_database(&self, size: u64, in_use: u64, quota: u64) {
        self.db_size.set(size as f64);
        self.db_size_in_use.set(in_use as f64);
        if quota > 0 {
            self.quota.set(quota as f64);
        }
    }

    fn snapshot(&self, cluster: String) -> BackendSnapshot {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let requests = self.requests.read();
        BackendSnapshot {
            cluster,
            requests: requests
                .iter()
                .map(|(labels, series)| RequestSnapshot {
                    operation: labels.operation,
                    kind: Arc::clone(&labels.kind),
                    seconds: series.seconds.snapshot(&REQUEST_BUCKETS),
                    errors: count(&series.errors),
                })
                .collect(),
            ticks: count(&self.ticks),
            tick_round: self.tick_round.snapshot(&TICK_BUCKETS),
            write_retries: count(&self.write_retries),
            unknown_outcomes: count(&self.unknown_outcomes),
            watch_events: count(&self.watch_events),
            watches: count(&self.watches),
            watches_ended: count(&self.watches_ended),
            circuit_opened: count(&self.circuit_opened),
            up: self.up.get(),
            epoch_lag: self.epoch_lag.get(),
            watch_lag: self.watch_lag.get(),
            lag: self.lag.get(),
            lost: self.lost.get(),
            slow: self.slow.get(),
            ring_bytes: self.ring_bytes.get(),
            ring_events: self.ring_events.get(),
            in_flight: self.in_flight.get(),
            db_size: self.db_size.get(),
            db_size_in_use: self.db_size_in_use.get(),
            quota: self.quota.get(),
        }
    }
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            above: AtomicU64::new(0),
            sum_nanos: AtomicU64::new(0),
        }
    }
}

/// The bounds of a histogram, chosen by its size: one place where the two belong together.
trait Bounds {
    const BOUNDS: &'static [f64];
}

impl Bounds for Histogram<{ REQUEST_BUCKETS.len() }> {
    const BOUNDS: &'static [f64] = &REQUEST_BUCKETS;
}

impl Bounds for Histogram<{ TICK_BUCKETS.len() }> {
    const BOUNDS: &'static [f64] = &TICK_BUCKETS;
}

impl<const N: usize> Histogram<N>
where
    Self: Bounds,
{
    fn observe(&self, seconds: f64) {
        let seconds = if seconds.is_finite() {
            seconds.max(0.0)
        } else {
            0.0
        };
        let bucket = Self::BOUNDS.iter().position(|bound| seconds <= *bound);
        bucket
            .and_then(|i| self.buckets.get(i))
            .unwrap_or(&self.above)
            .fetch_add(1, Ordering::Relaxed);
        self.sum_nanos
            .fetch_add((seconds * 1e9) as u64, Ordering::Relaxed);
    }
}

impl<const N: usize> Histogram<N> {
    fn snapshot(&self, bounds: &[f64; N]) -> HistogramSnapshot {
        let mut count = 0;
        let mut buckets = Vec::with_capacity(N);
        for (bound, bucket) in bounds.iter().zip(&self.buckets) {
            count += bucket.load(Ordering::Relaxed);
            buckets.push((*bound, count));
        }
        count += self.above.load(Ordering::Relaxed);
        HistogramSnapshot {
            buckets,
            count,
            sum: self.sum_nanos.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }
}

impl Gauge {
    /// A NaN, which nobody sets: "never set".
    const UNSET: u64 = u64::MAX;

    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    fn get(&self) -> Option<f64> {
        let bits = self.0.load(Ordering::Relaxed);
        (bits != Self::UNSET).then(|| f64::from_bits(bits))
    }
}

impl Default for Gauge {
    fn default() -> Self {
        Self(AtomicU64::new(Self::UNSET))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_rendered() {
        let metrics = StoreMetrics::new();
        let backend = metrics.backend("a\"b");
        backend.observe_request("get", "applications.paas.example.com", 0.03, true);
        backend.observe_request("get", "applications.paas.example.com", 100.0, false);
        backend.tick();
        metrics.backend("a\"b").tick();
        backend.set_epoch_lag(Duration::from_millis(1500));
        backend.set_database(10, 5, 0);

        let mut text = String::new();
        metrics.encode(&mut text);
        for line in [
            "# TYPE etcd_request_duration_seconds histogram",
            r#"etcd_request_duration_seconds_bucket{cluster="a\"b",operation="get",type="applications.paas.example.com",le="0.025"} 0"#,
            r#"etcd_request_duration_seconds_bucket{cluster="a\"b",operation="get",type="applications.paas.example.com",le="0.05"} 1"#,
            r#"etcd_request_duration_seconds_bucket{cluster="a\"b",operation="get",type="applications.paas.example.com",le="60"} 1"#,
            r#"etcd_request_duration_seconds_bucket{cluster="a\"b",operation="get",type="applications.paas.example.com",le="+Inf"} 2"#,
            r#"etcd_request_duration_seconds_count{cluster="a\"b",operation="get",type="applications.paas.example.com"} 2"#,
            r#"etcd_requests_total{cluster="a\"b",operation="get",type="applications.paas.example.com"} 2"#,
            r#"etcd_request_errors_total{cluster="a\"b",operation="get",type="applications.paas.example.com"} 1"#,
            r#"outrigger_backend_ticks_total{cluster="a\"b"} 2"#,
            r#"outrigger_backend_epoch_lag_seconds{cluster="a\"b"} 1.5"#,
            r#"outrigger_backend_database_size_bytes{cluster="a\"b"} 10"#,
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line}\n{text}");
        }
        // What was never set is not shown.
        assert!(!text.contains("outrigger_backend_database_quota_bytes{"));
        assert!(!text.contains("outrigger_backend_up{"));
    }

    #[test]
    fn series_are_limited() {
        let backend = BackendMetrics::default();
        for i in 0..REQUEST_SERIES_MAX + 50 {
            backend.observe_request("get", &i.to_string(), 0.001, true);
        }
        let snapshot = backend.snapshot(String::new());
        assert_eq!(snapshot.requests.len(), REQUEST_SERIES_MAX + 1);
        let other = snapshot.requests.iter().find(|r| &*r.kind == "other");
        assert_eq!(other.map(|r| r.seconds.count), Some(50));
    }
}
