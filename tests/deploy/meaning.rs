//! What no schema says of the manifests: how wide rights are, what pods may do, that values are strict, that alerts and
//! dashboards name metrics that exist.

use crate::render::{CASES, Case, array, by_name, deploy, parse, string};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Metrics that others than Outrigger have.
const METRICS_OF_OTHERS: [&str; 1] = ["up"];

/// The pod of a workload, if it is one.
fn pod(object: &Value) -> Option<&Value> {
    let pointer = match string(object, "/kind") {
        "Deployment" | "StatefulSet" | "Job" => "/spec/template/spec",
        "CronJob" => "/spec/jobTemplate/spec/template/spec",
        _ => return None,
    };
    object.pointer(pointer)
}

#[test]
fn every_container_is_locked_down() {
    let mut pods = 0;
    for case in CASES {
        for object in parse(&case.text()) {
            let Some(pod) = pod(&object) else { continue };
            pods += 1;
            let name = format!("{case:?} {}", string(&object, "/metadata/name"));
            let is = |value: &Value, pointer: &str, expected: Value| {
                assert_eq!(value.pointer(pointer), Some(&expected), "{name} {pointer}");
            };
            is(pod, "/securityContext/runAsNonRoot", true.into());
            is(
                pod,
                "/securityContext/seccompProfile/type",
                "RuntimeDefault".into(),
            );
            for list in ["/containers", "/initContainers"] {
                for container in array(pod, list) {
                    is(container, "/securityContext/readOnlyRootFilesystem", true.into());
                    is(
                        container,
                        "/securityContext/allowPrivilegeEscalation",
                        false.into(),
                    );
                    is(container, "/securityContext/capabilities/drop/0", "ALL".into());
                    assert!(container.pointer("/resources/limits/memory").is_some(), "{name}");
                    assert!(container.pointer("/resources/requests/cpu").is_some(), "{name}");
                }
            }
        }
    }
    assert!(pods > CASES.len());
}

#[test]
fn rights_are_no_wider_than_meant() {
    for case in CASES.iter().filter(|c| c.chart == "outrigger") {
        for object in parse(&case.text()) {
            let (kind, name) = (string(&object, "/kind"), string(&object, "/metadata/name"));
            for rule in array(&object, "/rules") {
                let has = |list: &str, word: &str| array(rule, list).iter().any(|w| w == word);
                let shown = format!("{case:?} {kind} {name}: {rule}");
                assert!(!has("/verbs", "*") && !has("/apiGroups", "*"), "{shown}");
                for verb in ["escalate", "bind", "impersonate", "deletecollection"] {
                    assert!(!has("/verbs", verb), "{shown}");
                }
                if kind == "ClusterRole" {
                    for resource in ["secrets", "configmaps", "pods", "nodes", "leases"] {
                        assert!(!has("/resources", resource), "{shown}");
                    }
                }
                if has("/resources", "*") {
                    assert_eq!(array(rule, "/verbs"), ["list"], "{shown}");
                    assert!(!has("/apiGroups", ""), "{shown}");
                }
            }
        }
    }
}

#[test]
fn the_rights_alone_can_be_rendered_for_any_account() {
    let case = Case::of("outrigger", "default");
    let args = [
        "--namespace=elsewhere",
        "--set=serviceAccount.name=tester",
        "--show-only=templates/rbac.yaml",
    ];
    let objects = parse(&case.text_with(&args));
    let bindings: Vec<_> = objects
        .iter()
        .filter(|o| string(o, "/kind").ends_with("Binding"))
        .collect();
    assert_eq!(bindings.len(), 4);
    for binding in bindings {
        assert_eq!(string(binding, "/subjects/0/namespace"), "elsewhere");
        assert_eq!(string(binding, "/subjects/0/name"), "tester");
    }
}

#[test]
fn values_are_strict() {
    let refused = |chart: &'static str, set: &str, because: &str| {
        let error = Case::of(chart, "default").refused(&["--set", set]);
        assert!(error.contains(because), "{chart} {set}: {error}");
    };
    refused("outrigger", "replica=3", "replica");
    refused("outrigger", "replicas=0", "replicas");
    refused("outrigger", "certificates.mode=none", "mode");
    refused("outrigger", "certificates.mode=existingSecret", "existingSecret");
    refused("outrigger", "server.goawayChance=0.5", "goawayChance");
    refused("outrigger", "server.listBytesMax=lots", "listBytesMax");
    refused("outrigger", "server.port=443", "port");
    refused("outrigger", "antiAffinity=yes", "antiAffinity");
    refused("outrigger-etcd", "members=2", "members");
    refused("outrigger-etcd", "prefix=/", "prefix");
    refused("outrigger-etcd", "user=root", "user");
    refused("outrigger-etcd", "tls.mode=existing", "Secret");
    refused("outrigger-etcd", "snapshots.schedule=often", "schedule");
}

#[test]
fn a_rollout_takes_no_replica_before_another_is_there() {
    for case in CASES.iter().filter(|c| c.chart == "outrigger") {
        let objects = by_name(parse(&case.text()));
        let (_, deployment) = objects
            .iter()
            .find(|(name, _)| name.starts_with("Deployment "))
            .expect("a Deployment");
        let number = |pointer: &str| deployment.pointer(pointer).and_then(Value::as_u64);
        assert_eq!(number("/spec/strategy/rollingUpdate/maxUnavailable"), Some(0));
        let args = array(deployment, "/spec/template/spec/containers/0/args");
        let delay = args.iter().filter_map(Value::as_str).find_map(|arg| {
            let seconds = arg.strip_prefix("--shutdown-delay=")?.strip_suffix('s')?;
            seconds.parse::<u64>().ok()
        });
        // The delay, what is in flight (60 s), and time to close.
        let grace = number("/spec/template/spec/terminationGracePeriodSeconds").expect("a grace period");
        assert!(grace > delay.expect("a delay") + 60, "{case:?}");
    }
}

#[test]
fn the_image_is_built_with_the_pinned_toolchain_and_runs_as_nobody() {
    let root = deploy().join("..");
    let read = |file: &str| fs::read_to_string(root.join(file)).expect(file);
    let toolchain = read("rust-toolchain.toml");
    let channel = toolchain
        .lines()
        .find_map(|line| line.strip_prefix("channel = \"")?.strip_suffix('"'));
    let dockerfile = read("deploy/Dockerfile");
    let argument = format!("ARG RUST_VERSION={}", channel.expect("a channel"));
    for line in [
        argument.as_str(),
        "FROM scratch",
        "USER 65532:65532",
        "CMD [\"serve\"]",
    ] {
        assert!(dockerfile.lines().any(|l| l == line), "{line}");
    }
    // What the build reads is let through to it.
    let ignored = read(".dockerignore");
    let manifest = read("Cargo.toml");
    let members = manifest
        .lines()
        .find(|l| l.starts_with("members = "))
        .expect("members");
    for member in members.split('"').skip(1).step_by(2) {
        let let_through = format!("!/{}", member.split('/').next().unwrap_or_default());
        assert!(ignored.lines().any(|l| l == let_through), "{let_through}");
    }
}

/// The names of metrics that the sources say, with what a histogram adds.
fn known_metrics() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let files = [
        "apiserver/src/metrics.rs",
        "apiserver/src/metrics/process.rs",
        "storage/src/metrics/text.rs",
    ];
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(root.join(file)).expect(file);
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in code.split('"').skip(1).step_by(2) {
            if word.contains('_') && word.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
                names.insert(word.to_owned());
                for suffix in ["_bucket", "_sum", "_count"] {
                    names.insert(format!("{word}{suffix}"));
                }
            }
        }
    }
    names
}

/// The metrics that an expression names: words in front of a brace, or that look like ours.
fn metrics_of(expression: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find('{') {
        let before = &rest[..at];
        let start = before
            .rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
            .map_or(0, |i| i + 1);
        found.push(before[start..].to_owned());
        rest = rest[at..].split_once('}').map_or("", |(_, after)| after);
    }
    found
}

#[test]
fn alerts_and_dashboards_name_metrics_that_exist() {
    let mut known = known_metrics();
    known.extend(METRICS_OF_OTHERS.map(str::to_owned));
    let mut expressions = Vec::new();
    for object in parse(&Case::of("outrigger", "everything").text()) {
        for group in array(&object, "/spec/groups") {
            let rules = array(group, "/rules").iter();
            expressions.extend(rules.map(|rule| string(rule, "/expr").to_owned()));
        }
    }
    let alerts = expressions.len();
    assert!(alerts >= 8, "{alerts}");

    let dashboard = fs::read_to_string(deploy().join("dashboards/outrigger.json")).expect("a dashboard");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
    let mut ids = BTreeSet::new();
    for panel in array(&dashboard, "/panels") {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{panel}");
        assert!(!string(panel, "/title").is_empty(), "{panel}");
        let targets = array(panel, "/targets").iter();
        expressions.extend(targets.map(|target| string(target, "/expr").to_owned()));
    }
    assert!(expressions.len() >= alerts + 12, "{}", expressions.len());

    for expression in expressions {
        let metrics = metrics_of(&expression);
        assert!(!metrics.is_empty(), "{expression}");
        for metric in metrics {
            assert!(known.contains(&metric), "no metric {metric}: {expression}");
        }
    }
}
