//! Rendered manifests against what is in the repository: goldens, the CRDs' copies, and kustomizations that say the same
//! as the chart. `OUTRIGGER_REWRITE=1` writes them.

use crate::render::{CASES, Case, KUSTOMIZATIONS, by_name, deploy, kustomize, parse};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Once;

/// The files of `kustomize/base` that people write.
const WRITTEN: [&str; 2] = ["kustomization.yaml", "namespace.yaml"];

/// The file has this text, or gets it.
fn expect_file(path: &Path, text: &str) {
    if std::env::var_os("OUTRIGGER_REWRITE").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        return;
    }
    let file = fs::read_to_string(path).unwrap_or_default();
    let differs = file.lines().zip(text.lines()).position(|(a, b)| a != b);
    let line = differs.unwrap_or_else(|| file.lines().count().min(text.lines().count()));
    assert!(
        file == text,
        "{} differs from line {}:\n- {}\n+ {}\nIf that is meant: just goldens",
        path.display(),
        line + 1,
        file.lines().nth(line).unwrap_or("(end)"),
        text.lines().nth(line).unwrap_or("(end)"),
    );
}

/// Without the keys and certificates that are new at every run.
fn without_randomness(text: &str) -> String {
    let generated = ["tls.crt: ", "tls.key: ", "ca.crt: ", "outrigger.dev/subject: "];
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let body = line.trim_start();
        match generated.iter().find(|field| body.starts_with(**field)) {
            Some(field) => {
                let indent = &line[..line.len() - body.len()];
                out.push_str(&format!("{indent}{field}(generated)\n"));
            }
            None => out.push_str(&format!("{line}\n")),
        }
    }
    out
}

/// The manifests by the template they come from, without what only Helm's own have.
fn base_files() -> BTreeMap<String, String> {
    COPIES.call_once(crds_are_copied);
    let text = Case::of("outrigger", "default").text();
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for document in text.split("---\n").filter(|d| !d.trim().is_empty()) {
        let (source, manifest) = document.split_once('\n').expect("helm says where it comes from");
        let name = source.rsplit('/').next().expect("a template");
        let file = files
            .entry(name.to_owned())
            .or_insert_with(|| "# Written by `just goldens` from the chart.\n".to_owned());
        file.push_str("---\n");
        for line in manifest.lines().filter(|line| !is_helms(line)) {
            file.push_str(&format!("{line}\n"));
        }
    }
    for file in files.values_mut() {
        *file = file.replace("  annotations:\n  labels:\n", "  labels:\n");
    }
    files
}

fn is_helms(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("helm.sh/") || line == "app.kubernetes.io/managed-by: Helm"
}

/// An object without what only Helm's own have.
fn without_helms(mut object: Value) -> Value {
    for map in ["labels", "annotations"] {
        let Some(values) = object
            .pointer_mut(&format!("/metadata/{map}"))
            .and_then(Value::as_object_mut)
        else {
            continue;
        };
        values.retain(|key, value| !key.starts_with("helm.sh/") && *value != "Helm");
        let is_empty = values.is_empty();
        if is_empty && let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove(map);
        }
    }
    object
}

#[test]
fn charts_render_as_their_goldens() {
    COPIES.call_once(crds_are_copied);
    for case in CASES {
        let name = format!("{}-{}.yaml", case.chart, case.values);
        let text = without_randomness(&case.text());
        expect_file(&deploy().join("helm/golden").join(name), &text);
    }
}

#[test]
fn every_set_of_values_is_rendered() {
    for chart in ["outrigger", "outrigger-etcd"] {
        for entry in fs::read_dir(deploy().join("helm").join(chart).join("ci")).expect("a folder") {
            let file = entry.expect("a file").file_name().to_string_lossy().into_owned();
            let values = file
                .strip_suffix("-values.yaml")
                .unwrap_or_else(|| panic!("{file}"));
            let is_rendered = CASES.iter().any(|c| c.chart == chart && c.values == values);
            assert!(is_rendered, "{chart}/ci/{file} is rendered nowhere");
        }
    }
}

/// Who rewrites does this first: the chart renders its copies.
static COPIES: Once = Once::new();

#[test]
fn the_chart_has_the_crds_of_the_repository() {
    COPIES.call_once(crds_are_copied);
}

fn crds_are_copied() {
    let originals = deploy().join("crds");
    let copies = deploy().join("helm/outrigger/files/crds");
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        let mut names: Vec<_> = entries
            .map(|e| e.expect("a file").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    for name in names(&originals) {
        let text = fs::read_to_string(originals.join(&name)).expect("a file");
        expect_file(&copies.join(&name), &text);
    }
    assert_eq!(names(&originals), names(&copies));
}

#[test]
fn the_base_is_what_the_chart_renders() {
    let folder = deploy().join("kustomize/base");
    let files = base_files();
    for (name, text) in &files {
        expect_file(&folder.join(name), text);
    }
    for entry in fs::read_dir(&folder).expect("a folder") {
        let name = entry.expect("a file").file_name().to_string_lossy().into_owned();
        assert!(
            WRITTEN.contains(&name.as_str()) || files.contains_key(&name),
            "{name} comes from no template"
        );
    }
}

#[test]
fn kustomizations_say_the_same_as_the_chart() {
    if std::env::var_os("OUTRIGGER_REWRITE").is_some() {
        // What they are built from is being written.
        return;
    }
    for (folder, values) in KUSTOMIZATIONS {
        let mut ours = by_name(parse(&kustomize(folder)));
        // Helm's --create-namespace makes it.
        let namespace = ours.remove("Namespace /outrigger-system");
        assert!(namespace.is_some(), "{folder}");
        let charts: Vec<_> = parse(&Case::of("outrigger", values).text())
            .into_iter()
            .map(without_helms)
            .collect();
        let charts = by_name(charts);
        let names = |objects: &BTreeMap<String, Value>| objects.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&ours), names(&charts), "{folder}");
        for (name, object) in ours {
            assert_eq!(object, charts[&name], "{folder}: {name}");
        }
    }
}
