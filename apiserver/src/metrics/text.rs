//! Prometheus' text format 0.0.4, and the histogram that is written in it.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};

/// The Content-Type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// The type of a family.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// It only rises.
    Counter,
    /// It rises and falls.
    Gauge,
    /// Buckets, sum and count.
    Histogram,
}

/// Observations in buckets with fixed upper bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One more than there are bounds: the last is +Inf. Not cumulative.
    buckets: Box<[AtomicU64]>,
    /// The bits of an `f64`.
    sum: AtomicU64,
}

/// Writes families one after the other.
#[derive(Debug, Default)]
pub struct TextWriter {
    out: String,
}

impl Histogram {
    /// An empty histogram.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self {
            bounds,
            buckets,
            sum: AtomicU64::new(0),
        }
    }

    /// Counts a value.
    pub fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

impl TextWriter {
    /// Help and type of a family; its samples follow.
    pub fn head(&mut self, kind: Kind, name: &str, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample.
    pub fn sample<L: AsRef<str>>(&mut self, name: &str, labels: &[(&str, L)], value: impl Display) {
        self.out.push_str(name);
        if !labels.is_empty() {
            self.out.push('{');
            self.labels(labels);
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }

    /// The samples of a histogram.
    pub fn histogram<L: AsRef<str>>(&mut self, name: &str, labels: &[(&str, L)], histogram: &Histogram) {
        let bounds = histogram
            .bounds
            .iter()
            .map(|bound| go_float(*bound))
            .chain(["+Inf".to_owned()]);
        let mut count = 0;
        for (bound, bucket) in bounds.zip(&histogram.buckets) {
            count += bucket.load(Ordering::Relaxed);
            let _ = write!(self.out, "{name}_bucket{{");
            self.labels(labels);
            let comma = if labels.is_empty() { "" } else { "," };
            let _ = writeln!(self.out, "{comma}le=\"{bound}\"}} {count}");
        }
        let sum = f64::from_bits(histogram.sum.load(Ordering::Relaxed));
        self.sample(&format!("{name}_sum"), labels, sum);
        self.sample(&format!("{name}_count"), labels, count);
    }

    /// What was written.
    #[must_use]
    pub fn into_text(self) -> String {
        self.out
    }

    fn labels<L: AsRef<str>>(&mut self, labels: &[(&str, L)]) {
        for (i, (name, value)) in labels.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let _ = write!(self.out, "{comma}{name}=\"");
            for c in value.as_ref().chars() {
                match c {
                    '\\' => self.out.push_str("\\\\"),
                    '"' => self.out.push_str("\\\""),
                    '\n' => self.out.push_str("\\n"),
                    c => self.out.push(c),
                }
            }
            self.out.push('"');
        }
    }
}

/// A bound as Go prints it (`1e+06`), so that queries written for kube-apiserver find it.
fn go_float(value: f64) -> String {
    if value.abs() < 1e6 || value.fract() != 0.0 {
        return value.to_string();
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => format!("{mantissa}e+{exponent:0>2}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_written_as_go_writes_them() {
        for (value, expect) in [
            (0.005, "0.005"),
            (1.0, "1"),
            (1.25, "1.25"),
            (1e5, "100000"),
            (1e6, "1e+06"),
            (1e9, "1e+09"),
            (131_072.0, "131072"),
        ] {
            assert_eq!(go_float(value), expect);
        }
    }

    #[test]
    fn labels_are_escaped() {
        let mut out = TextWriter::default();
        out.sample("m", &[("a", "x\"y\\z\n")], 1.5);
        assert_eq!(out.into_text(), "m{a=\"x\\\"y\\\\z\\n\"} 1.5\n");
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        [0.5, 1.0, 1.5, 3.0]
            .into_iter()
            .for_each(|v| histogram.observe(v));
        let mut out = TextWriter::default();
        out.histogram::<&str>("h", &[], &histogram);
        assert_eq!(
            out.into_text(),
            "h_bucket{le=\"1\"} 2\nh_bucket{le=\"2\"} 3\nh_bucket{le=\"+Inf\"} 4\nh_sum 6\nh_count 4\n"
        );
    }
}
