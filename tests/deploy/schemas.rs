//! A real kube-apiserver is asked about every manifest: strict fields, defaults, validation and CEL as a user meets them.

use crate::control_plane::ControlPlane;
use crate::etcd_chart::generated_key;
use crate::render::{CASES, Case, KUSTOMIZATIONS, deploy, helm_upgrade, kustomize, string};
use serde_json::Value;
use std::fs;

/// The kinds of other projects that we render, with the fields that we use of them.
const FOREIGN_KINDS: &str = include_str!("foreign-kinds.yaml");

const DRY_RUN: [&str; 6] = [
    "apply",
    "--dry-run=server",
    "--validate=strict",
    "-o",
    "name",
    "-f",
];

/// A WorkloadCluster with this specification, in JSON.
fn cluster(name: &str, spec: &str) -> String {
    format!(
        "{{\"apiVersion\": \"outrigger.dev/v1alpha1\", \"kind\": \"WorkloadCluster\", \"metadata\": {{\"name\": \"{name}\"}}, \
         \"spec\": {spec}}}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_api_server_accepts_every_manifest() {
    let control_plane = ControlPlane::start(&generated_key()).await;
    let kubectl = &control_plane.kubectl;
    let dry_run = |what: &str, text: &str| {
        let output = kubectl.output(&[&DRY_RUN[..], &["-"]].concat(), text);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{what}: {error}");
        assert!(!error.to_lowercase().contains("warning"), "{what}: {error}");
    };

    for namespace in ["outrigger-system", "outrigger-etcd", "fleet-secrets"] {
        // A pod that would not be let in where Pod Security is enforced is a warning.
        let text = format!(
            "{{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {{\"name\": \"{namespace}\", \"labels\": \
             {{\"pod-security.kubernetes.io/warn\": \"restricted\"}}}}}}"
        );
        let _ = kubectl.ok_with(&["apply", "-f", "-"], &text);
    }
    let crds = deploy().join("crds").display().to_string();
    let _ = kubectl.ok(&["apply", "--validate=strict", "-f", &crds]);
    let _ = kubectl.ok_with(&["apply", "--validate=strict", "-f", "-"], FOREIGN_KINDS);
    let _ = kubectl.ok(&[
        "wait",
        "--for=condition=Established",
        "crd",
        "--all",
        "--timeout=60s",
    ]);

    for case in CASES {
        dry_run(&format!("{case:?}"), &case.text());
    }
    // What the notes tell people to paste.
    for case in CASES.iter().filter(|case| case.values == "default") {
        let notes = case.notes();
        let pasted = notes
            .split_once("<<EOF\n")
            .and_then(|(_, after)| after.split_once("\nEOF\n"));
        let (manifest, _) = pasted.unwrap_or_else(|| panic!("{notes}"));
        dry_run(
            &format!("notes of {}", case.chart),
            &manifest.replace("NAME", "east"),
        );
    }
    for (folder, _) in KUSTOMIZATIONS {
        dry_run(folder, &kustomize(folder));
    }

    // The examples of the kinds of outrigger.dev; the kinds of developers need their CRD.
    let _ = kubectl.ok(&[
        "apply",
        "-f",
        &deploy()
            .join("examples/application-crd.yaml")
            .display()
            .to_string(),
    ]);
    let _ = kubectl.ok(&[
        "wait",
        "--for=condition=Established",
        "crd",
        "--all",
        "--timeout=60s",
    ]);
    for entry in fs::read_dir(deploy().join("examples")).expect("a folder") {
        let path = entry.expect("a file").path();
        dry_run(
            &path.display().to_string(),
            &fs::read_to_string(&path).expect("text"),
        );
    }

    what_a_cluster_may_say(&control_plane);
    what_an_operator_sees(&control_plane);
    what_the_server_may_do(&control_plane);
    certificates_outlive_upgrades(&control_plane);
}

/// The chart's rights, as kube-apiserver's RBAC decides about them.
fn what_the_server_may_do(control_plane: &ControlPlane) {
    let kubectl = &control_plane.kubectl;
    let rights = [
        "--show-only=templates/rbac.yaml",
        "--set=rbac.distributedGroups={paas.example.com}",
    ];
    let text = Case::of("outrigger", "default").text_with(&rights);
    let _ = kubectl.ok_with(&["apply", "-f", "-"], &text);
    let may = |args: &[&str]| {
        let account = "--as=system:serviceaccount:outrigger-system:outrigger";
        let answer = kubectl.output(&[&["auth", "can-i", account, "-q"], args].concat(), "");
        answer.status.success()
    };
    let own = "--namespace=outrigger-system";
    for args in [
        &["create", "tokenreviews.authentication.k8s.io"][..],
        &["create", "subjectaccessreviews.authorization.k8s.io"],
        &[
            "watch",
            "configmap/extension-apiserver-authentication",
            "--namespace=kube-system",
        ],
        &["patch", "customresourcedefinitions"],
        &["patch", "customresourcedefinitions/status"],
        &["create", "apiservices.apiregistration.k8s.io"],
        &[
            "create",
            "validatingadmissionpolicybindings.admissionregistration.k8s.io",
        ],
        &["create", "namespaceplacements.outrigger.dev"],
        &["create", "leases.coordination.k8s.io", own],
        &["update", "secrets", own],
        &["create", "events.events.k8s.io", "--namespace=default"],
        &["list", "applications.paas.example.com", "-A"],
    ] {
        assert!(may(args), "{args:?} is denied");
    }
    for args in [
        &["get", "secrets", "--namespace=kube-system"][..],
        &["list", "secrets", "-A"],
        &["delete", "secrets", own],
        &["get", "configmap/other", "--namespace=kube-system"],
        &["create", "pods", own],
        &["patch", "namespaces"],
        &["delete", "customresourcedefinitions"],
        &["get", "customresourcedefinitions"],
        &["patch", "namespaceplacements.outrigger.dev"],
        &["list", "tenants.outrigger.dev"],
        &["delete", "applications.paas.example.com", "-A"],
        &["create", "applications.paas.example.com", "-A"],
        &["create", "clusterroles.rbac.authorization.k8s.io"],
        &["impersonate", "users"],
    ] {
        assert!(!may(args), "{args:?} is allowed");
    }
}

/// What Helm made it finds again, and only what has other names is made anew.
fn certificates_outlive_upgrades(control_plane: &ControlPlane) {
    let upgrade = |args: &[&str]| {
        helm_upgrade(
            &control_plane.kubeconfig(),
            Case::of("outrigger-etcd", "default"),
            args,
        );
        ["ca", "server", "root", "client"].map(|what| {
            let secret = format!("secret/east-outrigger-etcd-{what}");
            let args = ["get", &secret, "-n", "outrigger-etcd", "-o", "jsonpath={.data}"];
            control_plane.kubectl.ok(&args)
        })
    };
    let first = upgrade(&[]);
    assert!(first.iter().all(|data| data.contains("tls.key")));
    assert_eq!(upgrade(&[]), first);
    let address = ["--set", "tls.extraIPs={192.0.2.1}"];
    let second = upgrade(&address);
    let is_kept = [0, 1, 2, 3].map(|i| first[i] == second[i]);
    assert_eq!(is_kept, [true, false, true, true]);
    assert_eq!(upgrade(&address), second);
}

/// WorkloadClusters that are refused, each with the words that say why.
fn what_a_cluster_may_say(control_plane: &ControlPlane) {
    let refused = |name: &str, spec: &str, because: &str| {
        let error = control_plane
            .kubectl
            .fails(&[&DRY_RUN[..], &["-"]].concat(), &cluster(name, spec));
        assert!(error.contains(because), "{name} {spec}: {error}");
    };
    refused("a", "{\"endpoints\": []}", "at least 1");
    refused("a", "{\"endpoints\": [\"h:2379\"]}", "should match");
    refused("a", "{\"endpoints\": [\"https://u:p@h:2379\"]}", "should match");
    refused("a", "{\"endpoints\": [\"https://h:2379/v3\"]}", "should match");
    refused("a", "{\"endpoints\": [\"http://h:1\", \"https://i:1\"]}", "mixed");
    refused(
        "a",
        "{\"endpoints\": [\"http://h:1\"], \"secretRef\": {\"name\": \"s\"}}",
        "needs endpoints with https",
    );
    refused(
        "a",
        "{\"endpoints\": [\"https://h:1\"], \"prefix\": \"outrigger\"}",
        "should match",
    );
    refused(
        "a",
        "{\"endpoints\": [\"https://h:1\"], \"tenancy\": \"Bridge\"}",
        "Unsupported value",
    );
    refused(
        "a",
        "{\"endpoints\": [\"https://h:1\"], \"endpoint\": 1}",
        "unknown field",
    );
    refused(
        "a",
        "{\"endpoints\": [\"https://h:1\"], \"state\": \"Offline\"}",
        "confirmDataLoss: a",
    );
    refused(
        "a",
        "{\"endpoints\": [\"https://h:1\"], \"state\": \"Offline\", \"confirmDataLoss\": \"b\"}",
        "confirmDataLoss: a",
    );
    refused(
        &"a".repeat(64),
        "{\"endpoints\": [\"https://h:1\"]}",
        "at most 63",
    );

    let offline = "{\"endpoints\": [\"https://h:1\"], \"state\": \"Offline\", \"confirmDataLoss\": \"a\"}";
    let _ = control_plane
        .kubectl
        .ok_with(&[&DRY_RUN[..], &["-"]].concat(), &cluster("a", offline));
}

/// One glance: the columns of `kubectl get`.
fn what_an_operator_sees(control_plane: &ControlPlane) {
    let kubectl = &control_plane.kubectl;
    let text = cluster("east", "{\"endpoints\": [\"https://h:1\"]}");
    let _ = kubectl.ok_with(&["apply", "-f", "-"], &text);
    let status = "{\"status\": {\"slot\": 3, \"namespaces\": 7, \"conditions\": [{\"type\": \"Ready\", \"status\": \"False\", \
                  \"reason\": \"Lost\", \"message\": \"no answer\", \"lastTransitionTime\": \"2026-01-01T00:00:00Z\"}]}}";
    let _ = kubectl.ok(&[
        "patch",
        "workloadcluster",
        "east",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ]);
    let table = kubectl.ok(&["get", "wlc"]);
    let words: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(
        words[0],
        [
            "NAME",
            "SLOT",
            "TENANCY",
            "STATE",
            "READY",
            "REASON",
            "SINCE",
            "NAMESPACES",
            "AGE"
        ]
    );
    assert_eq!(words[1][..6], ["east", "3", "Pool", "Active", "False", "Lost"]);
    assert_eq!(words[1][7], "7");
    let object: Value =
        serde_json::from_str(&kubectl.ok(&["get", "wlc", "east", "-o", "json"])).expect("JSON");
    assert_eq!(string(&object, "/spec/prefix"), "/outrigger/");
}
