//! What one operation of a JSON patch does to a document (RFC 6902), as kube-apiserver's library understands it.
//!
//! Pure. It is more lenient than the RFC where clients have come to rely on it: `replace`, `test` and `copy` of a member
//! that an object does not have take it for null, an operation without `value` has null, indices may count from the end.
//! It knows nothing of limits.

use serde_json::{Map, Value};

/// Applies one operation; `None` when it does not apply, and then the document may be half changed.
#[must_use]
pub(super) fn apply(document: &mut Value, operation: &Map<String, Value>) -> Option<()> {
    let text = |name: &str| operation.get(name).and_then(Value::as_str);
    let value = operation.get("value").unwrap_or(&Value::Null);
    let path = text("path");
    match text("op")? {
        "add" => add(document, path?, value.clone()),
        "remove" => remove(document, path?).map(drop),
        "replace" => replace(document, path?, value.clone()),
        "move" => {
            let moved = remove(document, text("from")?)?;
            add(document, path?, moved)
        }
        "copy" => {
            let copied = get(document, text("from")?)?.clone();
            add(document, path?, copied)
        }
        "test" => same(get(document, path?)?, value).then_some(()),
        _ => None,
    }
}

/// What is at the path; null where an object has no such member.
pub(super) fn get<'a>(document: &'a Value, path: &str) -> Option<&'a Value> {
    let mut at = document;
    let mut tokens = tokens(path)?.peekable();
    while let Some(token) = tokens.next() {
        at = match at {
            Value::Object(members) => match members.get(&token) {
                Some(member) => member,
                None if tokens.peek().is_none() => &Value::Null,
                None => return None,
            },
            Value::Array(items) => items.get(index(&token, items.len())?)?,
            _ => return None,
        };
    }
    Some(at)
}

fn add(document: &mut Value, path: &str, value: Value) -> Option<()> {
    let (container, key) = container(document, path)?;
    match container {
        Value::Object(members) => {
            members.insert(key, value);
        }
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => {
            // One more place than there are items: the new one may become the last.
            let at = index(&key, items.len() + 1)?;
            items.insert(at, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(document: &mut Value, path: &str) -> Option<Value> {
    let (container, key) = container(document, path)?;
    match container {
        Value::Object(members) => members.remove(&key),
        Value::Array(items) => {
            let at = index(&key, items.len())?;
            Some(items.remove(at))
        }
        _ => None,
    }
}

fn replace(document: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.is_empty() {
        *document = value;
        return Some(());
    }
    let (container, key) = container(document, path)?;
    match container {
        Value::Object(members) => {
            members.insert(key, value);
        }
        Value::Array(items) => {
            let at = index(&key, items.len())?;
            *items.get_mut(at)? = value;
        }
        _ => return None,
    }
    Some(())
}

/// The object or array that holds what the path names, and its key there.
fn container<'a>(document: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let mut tokens: Vec<String> = tokens(path)?.collect();
    let key = tokens.pop()?;
    let mut at = document;
    for token in tokens {
        at = match at {
            Value::Object(members) => members.get_mut(&token)?,
            Value::Array(items) => {
                let index = index(&token, items.len())?;
                items.get_mut(index)?
            }
            _ => return None,
        };
    }
    Some((at, key))
}

/// The decoded tokens of a JSON pointer. A path that does not start with a slash is none: kube-apiserver leaves its first
/// token out, and writes to another place than the client meant.
fn tokens(path: &str) -> Option<impl Iterator<Item = String> + '_> {
    let absolute = path.is_empty() || path.starts_with('/');
    let decoded = |token: &str| token.replace("~1", "/").replace("~0", "~");
    absolute.then(|| path.split('/').skip(1).map(decoded))
}

/// An index below `len`; negative ones count from the end.
fn index(token: &str, len: usize) -> Option<usize> {
    let index: i64 = token.parse().ok()?;
    let from_start = match usize::try_from(index) {
        Ok(index) => index,
        Err(_) => len.checked_sub(usize::try_from(index.checked_neg()?).ok()?)?,
    };
    (from_start < len).then_some(from_start)
}

/// Numbers are compared by their value: 1 and 1.0 are the same.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || (!both_integers(a, b) && a.as_f64() == b.as_f64()),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| same(v, w)))
        }
        (a, b) => a == b,
    }
}

/// Integers beyond 2^53 that differ by one are one number as floats.
fn both_integers(a: &serde_json::Number, b: &serde_json::Number) -> bool {
    !a.is_f64() && !b.is_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(operation: Value, expect: Option<Value>) {
        let mut document =
            json!({"a": {"b": 1, "c": [1, 2, 3], "n": null}, "d": "x", "e/f~": {"g": 9007199254740993_i64}});
        let operation = operation.as_object().cloned().unwrap_or_default();
        let applied = apply(&mut document, &operation);
        let got = applied.map(|()| document["a"].take());
        assert_eq!(got, expect, "{operation:?}");
    }

    fn untouched() -> Option<Value> {
        Some(json!({"b": 1, "c": [1, 2, 3], "n": null}))
    }

    fn c(items: Value) -> Option<Value> {
        Some(json!({"b": 1, "c": items, "n": null}))
    }

    #[test]
    fn members_that_are_not_there_are_null() {
        check(
            json!({"op": "replace", "path": "/a/z", "value": 1}),
            Some(json!({"b": 1, "c": [1, 2, 3], "n": null, "z": 1})),
        );
        check(
            json!({"op": "copy", "from": "/a/nope", "path": "/a/b"}),
            Some(json!({"b": null, "c": [1, 2, 3], "n": null})),
        );
        check(
            json!({"op": "add", "path": "/a/b"}),
            Some(json!({"b": null, "c": [1, 2, 3], "n": null})),
        );
        check(json!({"op": "test", "path": "/a/z", "value": null}), untouched());
        check(json!({"op": "test", "path": "/a/z"}), untouched());
        check(json!({"op": "test", "path": "/a/z", "value": 1}), None);
        check(json!({"op": "remove", "path": "/a/z"}), None);
        check(json!({"op": "move", "from": "/a/z", "path": "/a/b"}), None);
        for op in ["add", "replace", "test", "remove"] {
            check(json!({"op": op, "path": "/a/z/y", "value": null}), None);
            check(json!({"op": op, "path": "/a/n/y", "value": null}), None);
            check(json!({"op": op, "path": "/a/b/y", "value": null}), None);
        }
    }

    #[test]
    fn indices() {
        let add = |key: &str| json!({"op": "add", "path": format!("/a/c/{key}"), "value": 9});
        check(add("1"), c(json!([1, 9, 2, 3])));
        check(add("01"), c(json!([1, 9, 2, 3])));
        check(add("3"), c(json!([1, 2, 3, 9])));
        check(add("-"), c(json!([1, 2, 3, 9])));
        check(add("-1"), c(json!([1, 2, 3, 9])));
        check(add("-4"), c(json!([9, 1, 2, 3])));
        for wrong in [
            "4",
            "-5",
            "x",
            "",
            "1.0",
            "99999999999999999999",
            "-9223372036854775808",
        ] {
            check(add(wrong), None);
        }
        let replace = |key: &str| json!({"op": "replace", "path": format!("/a/c/{key}"), "value": 9});
        check(replace("-1"), c(json!([1, 2, 9])));
        for wrong in ["3", "-4", "-", "x"] {
            check(replace(wrong), None);
            check(json!({"op": "remove", "path": format!("/a/c/{wrong}")}), None);
        }
        check(json!({"op": "remove", "path": "/a/c/-3"}), c(json!([2, 3])));
    }

    #[test]
    fn numbers_are_compared_by_value_and_integers_exactly() {
        let g = |value: Value| json!({"op": "test", "path": "/e~1f~0/g", "value": value});
        check(g(json!(9007199254740993_i64)), untouched());
        check(g(json!(9007199254740992_i64)), None);
        check(json!({"op": "test", "path": "/a/b", "value": 1.0}), untouched());
        check(
            json!({"op": "test", "path": "/a/c", "value": [1, 2.0, 3]}),
            untouched(),
        );
        check(json!({"op": "test", "path": "/a/c", "value": [1, 2]}), None);
    }

    #[test]
    fn what_is_no_operation_does_not_apply() {
        for wrong in [
            json!({"op": "ADD", "path": "/a/z", "value": 1}),
            json!({"path": "/a/z", "value": 1}),
            json!({"op": "add", "value": 1}),
            json!({"op": "add", "path": "", "value": 1}),
            json!({"op": "add", "path": "a/z", "value": 1}),
            json!({"op": "remove", "path": ""}),
            json!({"op": "move", "path": "/a/z"}),
        ] {
            check(wrong, None);
        }
    }
}
