//! `--crds DIR`: the CustomResourceDefinitions in a folder. What cannot be used is named by its file.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// The most files that are read.
const FILES_MAX: usize = 10_000;

/// The CRDs in the `.yaml`, `.yml` and `.json` files of a folder (not of folders in it), by file, in the order of their
/// names.
pub(crate) fn read(folder: &Path) -> Result<Vec<(PathBuf, Value)>> {
    let shown = folder.display();
    let entries = fs::read_dir(folder).with_context(|| format!("--crds: cannot read the folder {shown}"))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry
            .with_context(|| format!("--crds: cannot read the folder {shown}"))?
            .path();
        let is_manifest = path
            .extension()
            .is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if is_manifest && path.is_file() {
            files.push(path);
        }
        if files.len() > FILES_MAX {
            bail!("--crds: {shown} holds more than {FILES_MAX} files");
        }
    }
    files.sort();
    let mut crds = Vec::new();
    for path in files {
        for crd in read_file(&path).with_context(|| format!("--crds: {}", path.display()))? {
            crds.push((path.clone(), crd));
        }
    }
    if crds.is_empty() {
        bail!("--crds: {shown} holds no CustomResourceDefinition (.yaml, .yml or .json)");
    }
    Ok(crds)
}

fn read_file(path: &Path) -> Result<Vec<Value>> {
    let size = fs::metadata(path)?.len();
    if size > FILE_BYTES_MAX {
        bail!("it is {size} bytes long, more than the {FILE_BYTES_MAX} that are read");
    }
    parse(&fs::read_to_string(path)?)
}

/// The CRDs in a text of YAML documents, or of one in JSON, which is YAML as well.
fn parse(text: &str) -> Result<Vec<Value>> {
    let mut crds = Vec::new();
    for value in serde_saphyr::from_multiple::<Value>(text)? {
        if value.is_null() {
            continue;
        }
        let field = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        match (field("/apiVersion"), field("/kind")) {
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => {}
            ("", _) | (_, "") => bail!("it has no apiVersion and kind"),
            (api_version, kind) => bail!(
                "it holds a {kind} of {api_version}, not a CustomResourceDefinition of apiextensions.k8s.io/v1"
            ),
        }
        if field("/metadata/name").is_empty() {
            bail!("a CustomResourceDefinition in it has no name");
        }
        crds.push(value);
    }
    Ok(crds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CRD: &str =
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: a.b}\n";

    #[test]
    fn documents() {
        let check = |text: &str, expect: Result<usize, &str>| match (parse(text), expect) {
            (Ok(crds), Ok(count)) => assert_eq!(crds.len(), count, "{text}"),
            (Err(error), Err(part)) => assert!(format!("{error:#}").contains(part), "{error:#}"),
            (found, expect) => panic!("{text}: {found:?}, not {expect:?}"),
        };
        check(CRD, Ok(1));
        check(&format!("# comment\n---\n{CRD}---\n{CRD}---\n"), Ok(2));
        check(
            "{\"apiVersion\": \"apiextensions.k8s.io/v1\", \"kind\": \"CustomResourceDefinition\", \"metadata\": {\"name\": \"x\"}}",
            Ok(1),
        );
        check("kind: ConfigMap\napiVersion: v1", Err("ConfigMap of v1"));
        check("a: b", Err("no apiVersion"));
        check(
            "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition",
            Err("no name"),
        );
        check("a: [", Err(""));
    }

    #[test]
    fn folders() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = |path: &Path| format!("{:#}", read(path).expect_err("not usable"));
        assert!(error(folder.path()).contains("holds no CustomResourceDefinition"));
        assert!(error(&folder.path().join("none")).contains("cannot read the folder"));
        fs::write(folder.path().join("readme.txt"), "text").expect("written");
        fs::write(folder.path().join("b.yaml"), CRD).expect("written");
        assert_eq!(read(folder.path()).expect("one").len(), 1);
        fs::write(folder.path().join("a.yaml"), "kind: Pod\napiVersion: v1").expect("written");
        assert!(error(folder.path()).contains("a.yaml: it holds a Pod of v1"));
    }
}
