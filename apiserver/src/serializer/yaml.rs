//! YAML in and out. One document, read as Kubernetes' clients read it (YAML 1.1 booleans, merge keys, aliases), under
//! limits for nodes, depth and aliases. It becomes JSON values at once; nothing of YAML goes further.

use super::json::{Path, Reader};
use serde::Serialize;
use serde::de::DeserializeSeed;
use serde_json::Value;

/// How many nodes a document may have, those of expanded aliases included.
pub(super) const YAML_NODES_MAX: usize = 250_000;
/// How many aliases a document may have.
pub(super) const YAML_ALIASES_MAX: usize = 1_000;
/// How deep a document may be nested: less than JSON, because the reader needs far more stack for each level.
const YAML_NESTING_MAX: usize = 64;
/// Bytes of text that expanded anchors may copy.
const ANCHOR_BYTES_MAX: usize = 4 << 20;

/// Reads one document.
pub(super) fn read(text: &str, duplicates: &mut Vec<String>) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 4 * YAML_NODES_MAX,
            max_nodes: YAML_NODES_MAX,
            max_aliases: YAML_ALIASES_MAX,
            max_anchors: YAML_ALIASES_MAX,
            max_recorded_anchor_events: YAML_NODES_MAX,
            max_recorded_anchor_bytes: ANCHOR_BYTES_MAX,
            max_depth: YAML_NESTING_MAX,
            flow_nesting_limit: YAML_NESTING_MAX,
            max_documents: 2,
            max_merge_keys: YAML_ALIASES_MAX,
        },
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::PassThrough,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    // The crate builds values of types, not of seeds: the seed's state travels beside it.
    serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        let mut path = Path::default();
        Reader {
            path: &mut path,
            duplicates,
        }
        .deserialize(deserializer)
    })
    .map_err(|e| e.to_string())
}

/// Appends a document.
pub(super) fn write(value: &impl Serialize, out: &mut Vec<u8>) -> Result<(), String> {
    let options = serde_saphyr::ser_options! {
        // As sigs.k8s.io/yaml: a list stands under its key, and long text is not folded.
        compact_list_indent: true,
        folded_wrap_chars: usize::MAX,
        min_fold_chars: usize::MAX,
        prefer_block_scalars: false,
    };
    let text = serde_saphyr::to_string_with_options(value, options).map_err(|e| e.to_string())?;
    out.extend_from_slice(text.as_bytes());
    if !text.ends_with('\n') {
        out.push(b'\n');
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn read_as_kubernetes_does() {
        let check = |text: &str, expect: Value| {
            assert_eq!(read(text, &mut Vec::new()), Ok(expect), "{text}");
        };
        check(
            "a: 1\nb: yes\nc: 'yes'\nd: 1.0\ne: null\nf: ~\n",
            json!({"a": 1, "b": true, "c": "yes", "d": 1, "e": null, "f": null}),
        );
        check(
            "a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\n",
            json!({"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}),
        );
        check("1: a\ntrue: b\n", json!({"1": "a", "true": "b"}));
        check("{\"a\": [1, 2]}", json!({"a": [1, 2]}));
        check(
            "a: 2020-01-01T00:00:00Z\nb: 12:30\n",
            json!({"a": "2020-01-01T00:00:00Z", "b": "12:30"}),
        );
        check("a: |\n  x\n  y\n", json!({"a": "x\ny\n"}));
        check("mode: 0644\n", json!({"mode": 420}));
        check("---\na: 1\n", json!({"a": 1}));
    }

    #[test]
    fn duplicates_have_their_path() {
        let mut duplicates = Vec::new();
        let value = read(
            "spec:\n  foo: 1\n  foo: 2\nlist:\n- a: 1\n  a: 1\n",
            &mut duplicates,
        )
        .expect("YAML");
        assert_eq!(
            duplicates,
            [r#"duplicate field "spec.foo""#, r#"duplicate field "list[0].a""#]
        );
        assert_eq!(value["spec"]["foo"], json!(2));
    }

    #[test]
    fn bombs_and_nonsense_are_refused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..12 {
            let before = i - 1;
            bomb.push_str(&format!(
                "a{i}: &a{i} [{}]\n",
                vec![format!("*a{before}"); 10].join(",")
            ));
        }
        for bad in [
            &bomb,
            "a: 1\n---\nb: 2\n",
            "a: [",
            "a: .nan",
            "? {a: 1}\n: b\n",
            &"[".repeat(10_000),
            &"- ".repeat(10_000),
        ] {
            assert!(
                read(bad, &mut Vec::new()).is_err(),
                "{}",
                bad.chars().take(80).collect::<String>()
            );
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let value = json!({"apiVersion": "v1", "empty": {}, "none": [], "null": null, "list": [{"a": 1, "b": [1, [2]]}, "x"],
            "text": ["yes", "1", "0x1f", "null", "~", "", " lead", "trail ", "a: b", "# c", "multi\nline\n", "tab\t", "\u{7f}\u{85}\u{feff}", "é", "-", "- a",
                "1e3", "on", "n", "0644", "12:30:45", "2020-01-01", "!tag", "&a", "*a", "%x", "@x", "`x", "{", "[", "\"", "'", "\\", "a #b", "a:", "=", "<<", ".inf", "1_000",
                "\n", "\n\n a\n", "a\r\nb", "x".repeat(300), "word ".repeat(60)],
            "f": 1.5, "n": -3, "yes": {"on": false}});
        let mut out = Vec::new();
        write(&value, &mut out).expect("written");
        let text = String::from_utf8(out).expect("text");
        assert_eq!(read(&text, &mut Vec::new()), Ok(value), "{text}");
    }
}
