//! What the kernel says of this process, under the names of Prometheus' process collector. Silent where there is no
//! `/proc`.

use super::text::{Kind, TextWriter};
use std::fs;

/// Pages and clock ticks as Linux reports them on every platform that the server is built for.
const PAGE_BYTES: u64 = 4096;
const TICKS_A_SECOND: f64 = 100.0;

/// Appends the process' metrics.
pub fn render(out: &mut TextWriter) {
    let mut gauge = |name: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            out.head(Kind::Gauge, name, help);
            out.sample::<&str>(name, &[], value);
        }
    };
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    #[allow(clippy::cast_precision_loss, reason = "sizes are shown as floats")]
    let bytes = |field: usize| {
        statm
            .split_whitespace()
            .nth(field)?
            .parse::<u64>()
            .ok()
            .map(|pages| (pages * PAGE_BYTES) as f64)
    };
    gauge(
        "process_virtual_memory_bytes",
        "Virtual memory size in bytes.",
        bytes(0),
    );
    gauge(
        "process_resident_memory_bytes",
        "Resident memory size in bytes.",
        bytes(1),
    );
    #[allow(clippy::cast_precision_loss, reason = "there are few files")]
    let open = fs::read_dir("/proc/self/fd")
        .ok()
        .map(|files| files.count() as f64);
    gauge("process_open_fds", "Number of open file descriptors.", open);
    gauge(
        "process_max_fds",
        "Maximum number of open file descriptors.",
        max_open_files(),
    );
    let stat = stat_fields();
    gauge(
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
        start_time(&stat),
    );
    if let Some(seconds) = cpu_seconds(&stat) {
        out.head(
            Kind::Counter,
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds.",
        );
        out.sample::<&str>("process_cpu_seconds_total", &[], seconds);
    }
}

/// The fields of `/proc/self/stat` after the command's name, which may hold spaces: the first is field 3, the state.
fn stat_fields() -> Vec<String> {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    fields.split_whitespace().map(str::to_owned).collect()
}

fn ticks(stat: &[String], field: usize) -> Option<f64> {
    stat.get(field.checked_sub(3)?)?
        .parse::<f64>()
        .ok()
        .map(|ticks| ticks / TICKS_A_SECOND)
}

fn cpu_seconds(stat: &[String]) -> Option<f64> {
    Some(ticks(stat, 14)? + ticks(stat, 15)?)
}

fn start_time(stat: &[String]) -> Option<f64> {
    let system = fs::read_to_string("/proc/stat").ok()?;
    let boot = system
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse::<f64>()
        .ok()?;
    Some(boot + ticks(stat, 22)?)
}

fn max_open_files() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}
