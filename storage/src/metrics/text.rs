//! Snapshots of backends as Prometheus text: names, helps and types in one place.
//!
//! It measures nothing.

use super::{BackendSnapshot, HistogramSnapshot};
use std::fmt::Write as _;

/// Prometheus text of these backends.
pub(super) fn encode(backends: &[BackendSnapshot], out: &mut String) {
    let mut text = Text { out };
    text.family(
        "etcd_request_duration_seconds",
        "histogram",
        "Request latency in seconds for each operation and object type.",
    );
    for backend in backends {
        for r in &backend.requests {
            let labels = [
                ("cluster", backend.cluster.as_str()),
                ("operation", r.operation),
                ("type", &*r.kind),
            ];
            text.histogram("etcd_request_duration_seconds", &labels, &r.seconds);
        }
    }
    text.family(
        "etcd_requests_total",
        "counter",
        "Requests for each operation and object type.",
    );
    for backend in backends {
        for r in &backend.requests {
            let labels = [
                ("cluster", backend.cluster.as_str()),
                ("operation", r.operation),
                ("type", &*r.kind),
            ];
            text.sample("etcd_requests_total", &labels, r.seconds.count as f64);
        }
    }
    text.family(
        "etcd_request_errors_total",
        "counter",
        "Failed requests for each operation and object type.",
    );
    for backend in backends {
        for r in &backend.requests {
            let labels = [
                ("cluster", backend.cluster.as_str()),
                ("operation", r.operation),
                ("type", &*r.kind),
            ];
            text.sample("etcd_request_errors_total", &labels, r.errors as f64);
        }
    }
    text.family(
        "outrigger_backend_tick_round_duration_seconds",
        "histogram",
        "How long the backend took in rounds of ticks.",
    );
    for backend in backends {
        text.histogram(
            "outrigger_backend_tick_round_duration_seconds",
            &[("cluster", &backend.cluster)],
            &backend.tick_round,
        );
    }
    for (name, help, value) in COUNTERS {
        text.family(name, "counter", help);
        for backend in backends {
            text.sample(name, &[("cluster", &backend.cluster)], value(backend) as f64);
        }
    }
    for (name, help, value) in GAUGES {
        text.family(name, "gauge", help);
        for backend in backends {
            if let Some(value) = value(backend) {
                text.sample(name, &[("cluster", &backend.cluster)], value);
            }
        }
    }
}

type Counter = (&'static str, &'static str, fn(&BackendSnapshot) -> u64);

const COUNTERS: [Counter; 7] = [
    (
        "outrigger_backend_ticks_total",
        "Ticks sent to the backend.",
        |b| b.ticks,
    ),
    (
        "outrigger_backend_write_retries_total",
        "Writes tried again because the clock moved.",
        |b| b.write_retries,
    ),
    (
        "outrigger_backend_unknown_outcomes_total",
        "Writes whose outcome had to be settled.",
        |b| b.unknown_outcomes,
    ),
    (
        "outrigger_backend_watch_events_total",
        "Events received from the backend.",
        |b| b.watch_events,
    ),
    (
        "outrigger_backend_watches_opened_total",
        "Watches opened on the backend.",
        |b| b.watches,
    ),
    (
        "outrigger_backend_watches_failed_total",
        "Watches of the backend that ended with an error.",
        |b| b.watches_ended,
    ),
    (
        "outrigger_backend_circuit_opened_total",
        "Times the backend was given up for a while.",
        |b| b.circuit_opened,
    ),
];

type GaugeValue = (&'static str, &'static str, fn(&BackendSnapshot) -> Option<f64>);

const GAUGES: [GaugeValue; 12] = [
    ("outrigger_backend_up", "Whether the backend answers.", |b| b.up),
    (
        "outrigger_backend_epoch_lag_seconds",
        "How far the backend's clock is behind the fleet's highest.",
        |b| b.epoch_lag,
    ),
    (
        "outrigger_backend_watch_lag_seconds",
        "How far the backend's watch is behind acknowledged changes.",
        |b| b.watch_lag,
    ),
    (
        "outrigger_backend_lag_seconds",
        "How late the backend answers ticks, or shows what it has acknowledged.",
        |b| b.lag,
    ),
    (
        "outrigger_backend_lost",
        "Whether the replicas agree that the backend is lost.",
        |b| b.lost,
    ),
    (
        "outrigger_backend_slow",
        "Whether the backend has been late for a while.",
        |b| b.slow,
    ),
    (
        "outrigger_backend_ring_bytes",
        "Bytes of the backend's events held in memory.",
        |b| b.ring_bytes,
    ),
    (
        "outrigger_backend_ring_events",
        "The backend's events held in memory.",
        |b| b.ring_events,
    ),
    (
        "outrigger_backend_requests_in_flight",
        "Transactions in flight to the backend.",
        |b| b.in_flight,
    ),
    (
        "outrigger_backend_database_size_bytes",
        "Size of the backend's database file.",
        |b| b.db_size,
    ),
    (
        "outrigger_backend_database_in_use_bytes",
        "Bytes of the backend's database that are in use.",
        |b| b.db_size_in_use,
    ),
    (
        "outrigger_backend_database_quota_bytes",
        "The backend's space quota.",
        |b| b.quota,
    ),
];

/// Writes lines of the text format.
struct Text<'a> {
    out: &'a mut String,
}

impl Text<'_> {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String does not fail.
        let _ = write!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.out.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            self.out.push(if i == 0 { '{' } else { ',' });
            let _ = write!(self.out, "{label}=\"{}\"", escape(text));
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &HistogramSnapshot) {
        let bucket = format!("{name}_bucket");
        let bounds = histogram
            .buckets
            .iter()
            .map(|(bound, count)| (bound.to_string(), *count));
        for (bound, count) in bounds.chain([("+Inf".to_owned(), histogram.count)]) {
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.sample(&bucket, &labels, count as f64);
        }
        self.sample(&format!("{name}_sum"), labels, histogram.sum);
        self.sample(&format!("{name}_count"), labels, histogram.count as f64);
    }
}

/// A label's value with backslash, quote and newline escaped.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
