//! The rules of the tree that no compiler checks: directions of `use`, module comments, no `mod.rs`, manifests that
//! parse, nothing unfinished.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Files longer than this are reported: perhaps they tell two stories.
const LINES_REPORTED: usize = 600;

/// In the library of the API server, who may not name whom: `server`, `filters`, `endpoints`, `registry`, storage.
const DIRECTIONS: [(&str, &[&str]); 9] = [
    (
        "registry",
        &[
            "server",
            "filters",
            "endpoints",
            "controllers",
            "negotiation",
            "serializer",
            "transform",
        ],
    ),
    ("endpoints", &["server", "filters", "controllers"]),
    ("filters", &["server", "endpoints", "registry", "controllers"]),
    (
        "resources",
        &[
            "server",
            "filters",
            "endpoints",
            "controllers",
            "discovery",
            "openapi",
        ],
    ),
    (
        "request",
        &["server", "filters", "endpoints", "registry", "controllers"],
    ),
    (
        "status",
        &["server", "filters", "endpoints", "registry", "controllers"],
    ),
    (
        "metrics",
        &["server", "filters", "endpoints", "registry", "controllers"],
    ),
    ("serializer", &["server", "filters", "endpoints", "controllers"]),
    ("transform", &["server", "filters", "endpoints", "controllers"]),
];

/// Names that may be used against the direction: types and rules that hang on nothing.
const LEAVES: [&str; 2] = ["crate::negotiation::PatchType", "crate::registry::names"];

/// What a crate's sources never name.
const FOREIGN: [(&str, &[&str]); 4] = [
    (
        "storage/src",
        &[
            "axum",
            "kube",
            "k8s_openapi",
            "outrigger_apiserver",
            "outrigger_certs",
        ],
    ),
    ("certs/src", &["axum", "outrigger_apiserver", "outrigger_storage"]),
    (
        "apiservice/src",
        &[
            "axum",
            "outrigger_apiserver",
            "outrigger_certs",
            "outrigger_storage",
        ],
    ),
    ("apiserver/src", &["tonic", "redb"]),
];

/// Only these files of the API server may use `certs`: the binary, which composes.
const BINARY: [&str; 5] = ["main.rs", "app.rs", "options.rs", "commands.rs", "commands/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

/// All files of the tree with one of these endings, without what cargo and git keep.
fn files(endings: &[&str]) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if path.is_dir() {
                let is_ours = !name.starts_with('.') && name != "target" && name != "outrigger-data";
                folders.extend(is_ours.then_some(path));
            } else if endings.iter().any(|e| name.ends_with(e)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

fn is_leaf(line: &str) -> bool {
    LEAVES.iter().any(|leaf| line.contains(leaf))
}

#[test]
fn modules_are_files_with_a_name_and_a_comment() {
    let mut problems = Vec::new();
    for path in files(&[".rs"]) {
        if path.ends_with("mod.rs") {
            problems.push(format!(
                "{}: a module is `name.rs` and `name/`, never `mod.rs`",
                shown(&path)
            ));
        }
        let text = read(&path);
        let is_generated = text.lines().take(3).any(|line| line.contains("@generated"));
        if !is_generated && !text.starts_with("//!") {
            problems.push(format!(
                "{}: it starts with `//!`: what it does, and what it does not know",
                shown(&path)
            ));
        }
    }
    assert_none(&problems);
}

#[test]
fn uses_follow_the_layers() {
    let mut problems = Vec::new();
    for path in files(&[".rs"]) {
        let name = shown(&path);
        let Some(file) = name.strip_prefix("apiserver/src/") else {
            continue;
        };
        let module = file.split(['/', '.']).next().unwrap_or_default();
        let forbidden = DIRECTIONS
            .iter()
            .filter(|(from, _)| *from == module)
            .flat_map(|(_, to)| to.iter());
        let text = read(&path);
        // Tests, which stand at the end of a file, may reach further.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for to in forbidden {
            let path_of = format!("crate::{to}::");
            if let Some(line) = code
                .lines()
                .find(|line| !is_comment(line) && line.contains(&path_of) && !is_leaf(line))
            {
                problems.push(format!("{name}: {module} does not use {to}: {}", line.trim()));
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn crates_name_only_what_they_may() {
    let mut problems = Vec::new();
    for path in files(&[".rs"]) {
        let (name, text) = (shown(&path), read(&path));
        let code = || text.lines().filter(|line| !is_comment(line));
        for (folder, foreign) in FOREIGN.iter().filter(|(folder, _)| name.starts_with(folder)) {
            for foreign in *foreign {
                let uses = format!("use {foreign}::");
                if code().any(|line| line.trim_start().trim_start_matches("pub ").starts_with(&uses)) {
                    problems.push(format!("{name}: {folder} does not use {foreign}"));
                }
            }
        }
        let file = name.strip_prefix("apiserver/src/");
        let is_library = file.is_some_and(|file| !BINARY.iter().any(|b| file.starts_with(b)));
        if is_library && code().any(|line| line.contains("outrigger_certs")) {
            problems.push(format!("{name}: only the binary uses outrigger_certs"));
        }
    }
    assert_none(&problems);
}

#[test]
fn manifests_parse_and_say_what_they_are() {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    // Charts, their values and what they render are checked by tests/deploy.
    let folders = ["crds", "examples", "kustomize"].map(|folder| root().join("deploy").join(folder));
    for path in files(&[".yaml", ".yml"])
        .into_iter()
        .filter(|p| folders.iter().any(|folder| p.starts_with(folder)) && !p.ends_with("kustomization.yaml"))
    {
        let documents: Vec<serde_json::Value> =
            serde_saphyr::from_multiple(&read(&path)).unwrap_or_else(|e| panic!("{}: {e}", shown(&path)));
        for document in documents.iter().filter(|d| !d.is_null()) {
            let field = |pointer: &str| {
                document
                    .pointer(pointer)
                    .and_then(serde_json::Value::as_str)
                    .unwrap_or_default()
            };
            assert!(
                !field("/apiVersion").is_empty() && !field("/metadata/name").is_empty(),
                "{}",
                shown(&path)
            );
            if field("/kind") == "CustomResourceDefinition" {
                let name = format!("{}.{}", field("/spec/names/plural"), field("/spec/group"));
                assert_eq!(field("/metadata/name"), name, "{}", shown(&path));
            }
            *kinds.entry(field("/kind").to_owned()).or_default() += 1;
        }
    }
    assert!(
        kinds.get("CustomResourceDefinition").is_some_and(|n| *n >= 4),
        "{kinds:?}"
    );
}

#[test]
fn nothing_unfinished_is_left() {
    let words = ["todo!(", "unimplemented!(", "dbg!(", "FIXME", "XXX"];
    let mut problems = Vec::new();
    for path in files(&[".rs"])
        .into_iter()
        .filter(|p| !p.ends_with("tidy/main.rs"))
    {
        for (i, line) in read(&path).lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                problems.push(format!("{}:{}: {}", shown(&path), i + 1, line.trim()));
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn long_files_are_reported() {
    for path in files(&[".rs"]) {
        let lines = read(&path).lines().count();
        if lines > LINES_REPORTED {
            eprintln!("{}: {lines} lines", shown(&path));
        }
    }
}
