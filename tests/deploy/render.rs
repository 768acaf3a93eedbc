//! Charts and kustomizations as text and as objects. It judges nothing.

use outrigger_tests::kubectl::asset;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A chart with the values it is rendered with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// The folder of the chart in `deploy/helm`.
    pub(crate) chart: &'static str,
    /// `ci/<values>-values.yaml` of the chart, or nothing.
    pub(crate) values: &'static str,
}

/// Every chart with every set of values.
pub(crate) const CASES: [Case; 12] = [
    Case::of("outrigger", "default"),
    Case::of("outrigger", "dev"),
    Case::of("outrigger", "ha"),
    Case::of("outrigger", "cert-manager"),
    Case::of("outrigger", "existing"),
    Case::of("outrigger", "everything"),
    Case::of("outrigger", "readme"),
    Case::of("outrigger-etcd", "default"),
    Case::of("outrigger-etcd", "single"),
    Case::of("outrigger-etcd", "cert-manager"),
    Case::of("outrigger-etcd", "existing"),
    Case::of("outrigger-etcd", "everything"),
];

/// Every kustomization that is applied, with the values of the chart that say the same.
pub(crate) const KUSTOMIZATIONS: [(&str, &str); 3] = [
    ("base", "default"),
    ("overlays/dev", "dev"),
    ("overlays/ha", "ha"),
];

impl Case {
    pub(crate) const fn of(chart: &'static str, values: &'static str) -> Self {
        Self { chart, values }
    }

    pub(crate) fn namespace(&self) -> &'static str {
        match self.chart {
            "outrigger" => "outrigger-system",
            _ => "outrigger-etcd",
        }
    }

    fn release(&self) -> &'static str {
        match self.chart {
            "outrigger" => "outrigger",
            _ => "east",
        }
    }

    /// The manifests, as helm prints them.
    pub(crate) fn text(&self) -> String {
        self.text_with(&[])
    }

    /// The same with further arguments.
    pub(crate) fn text_with(&self, args: &[&str]) -> String {
        run(self.command(args))
    }

    /// What is said after an installation.
    pub(crate) fn notes(&self) -> String {
        let mut command = tool("helm");
        command
            .args(["install", self.release()])
            .arg(deploy().join("helm").join(self.chart))
            .args(["--namespace", self.namespace(), "--dry-run=client"]);
        let text = run(command);
        text.split_once("\nNOTES:\n").expect("notes").1.to_owned()
    }

    /// It is refused; what helm says about that.
    pub(crate) fn refused(&self, args: &[&str]) -> String {
        let output = self.command(args).output().expect("helm starts");
        assert!(!output.status.success(), "{self:?} {args:?} was rendered");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let chart = deploy().join("helm").join(self.chart);
        let mut command = tool("helm");
        command.args(["template", self.release()]).arg(&chart).args([
            "--namespace",
            self.namespace(),
            "--kube-version",
            "1.36.0",
        ]);
        if self.values != "default" {
            let values = chart.join("ci").join(format!("{}-values.yaml", self.values));
            command.arg("--values").arg(values);
        }
        command.args(args);
        command
    }
}

/// What kustomize builds.
pub(crate) fn kustomize(folder: &str) -> String {
    let mut command = tool("kustomize");
    command.arg("build").arg(deploy().join("kustomize").join(folder));
    run(command)
}

/// The folder `deploy` of the repository.
pub(crate) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The documents of a YAML text.
pub(crate) fn parse(text: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    documents.into_iter().filter(|d| !d.is_null()).collect()
}

/// Objects by kind, namespace and name.
pub(crate) fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let mut named = BTreeMap::new();
    for object in objects {
        let name = format!(
            "{} {}/{}",
            string(&object, "/kind"),
            string(&object, "/metadata/namespace"),
            string(&object, "/metadata/name")
        );
        let before = named.insert(name.clone(), object);
        assert!(before.is_none(), "{name} is there twice");
    }
    named
}

/// The string at this place, or nothing.
pub(crate) fn string<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The elements of the array at this place, or nothing.
pub(crate) fn array<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// Installs or upgrades a release of a chart on this control plane; no hook runs, because nothing runs jobs there.
pub(crate) fn helm_upgrade(kubeconfig: &Path, case: Case, args: &[&str]) {
    let mut command = tool("helm");
    command
        .args(["upgrade", "--install", case.release()])
        .arg(deploy().join("helm").join(case.chart))
        .args(["--namespace", case.namespace(), "--no-hooks"])
        .args(args)
        .env("KUBECONFIG", kubeconfig);
    let _ = run(command);
}

/// A program without the user's own settings.
fn tool(name: &str) -> Command {
    let mut command = Command::new(asset(name));
    for variable in ["KUBECONFIG", "HELM_NAMESPACE", "HELM_KUBECONTEXT", "HELM_PLUGINS"] {
        command.env_remove(variable);
    }
    let home = std::env::temp_dir().join("outrigger-deploy-tests");
    command.env("HOME", home).stdin(Stdio::null());
    command
}

fn run(mut command: Command) -> String {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{shown}: {e}: set OUTRIGGER_ASSETS (tests/run does)"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}\n{error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}
