//! Strategic merge patch for the built-in kinds: a merge patch that knows which lists are merged by key, with directives
//! inside the patch. Pure.
//!
//! | directive | where | meaning |
//! |---|---|---|
//! | `$patch: replace` | a map, an element of a list | take the rest of the patch as it is |
//! | `$patch: delete` | a map, an element of a list | empty the map, remove the element with this key |
//! | `$retainKeys: [...]` | a map | drop all other keys of the original |
//! | `$setElementOrder/x: [...]` | beside list x | the order of its elements |
//! | `$deleteFromPrimitiveList/x: [...]` | beside list x | remove these values |
//!
//! Lists that are not in [`list_strategy`] are replaced. The table follows the `patchStrategy` tags of Kubernetes' types.

use crate::resources::definition::Builtin;
use crate::status::ApiError;
use serde_json::{Map, Value};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM_PRIMITIVE_LIST: &str = "$deleteFromPrimitiveList/";

/// What happens to a list that both sides have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ListStrategy {
    /// The patch's list is taken.
    Replace,
    /// A set of plain values.
    MergeValues,
    /// Maps with the same value of this key are one.
    MergeBy(&'static str),
}

/// The lists of the built-in kinds that are merged.
fn list_strategy(builtin: Builtin, path: &[&str]) -> ListStrategy {
    match (builtin, path) {
        (_, ["metadata", "ownerReferences"]) => ListStrategy::MergeBy("uid"),
        (_, ["metadata", "finalizers"]) => ListStrategy::MergeValues,
        (Builtin::Namespace, ["status", "conditions"]) => ListStrategy::MergeBy("type"),
        _ => ListStrategy::Replace,
    }
}

/// Applies a patch.
///
/// # Errors
/// 400 for directives that make no sense.
pub fn apply(
    builtin: Builtin,
    original: &Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<Map<String, Value>, ApiError> {
    merge_maps(builtin, original.clone(), patch.clone(), &[])
}

fn bad(message: impl Into<String>) -> ApiError {
    ApiError::bad_request(message)
}

fn merge_maps(
    builtin: Builtin,
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
    path: &[&str],
) -> Result<Map<String, Value>, ApiError> {
    match patch.remove(PATCH) {
        None => {}
        Some(Value::String(directive)) if directive == "replace" => return Ok(patch),
        Some(Value::String(directive)) if directive == "delete" => return Ok(Map::new()),
        Some(other) => return Err(bad(format!("unknown patch type: {other} in map"))),
    }
    if let Some(keys) = patch.remove(RETAIN_KEYS) {
        retain_keys(&mut original, &patch, keys)?;
    }
    let mut orders = take_prefixed(&mut patch, SET_ELEMENT_ORDER)?;
    let deletions = take_prefixed(&mut patch, DELETE_FROM_PRIMITIVE_LIST)?;

    for (key, change) in patch {
        let order = take_order(&mut orders, &key);
        let below: Vec<&str> = path.iter().copied().chain([key.as_str()]).collect();
        let merged = match (original.remove(&key), change) {
            (_, Value::Null) => None,
            (Some(Value::Object(before)), Value::Object(change)) => {
                Some(Value::Object(merge_maps(builtin, before, change, &below)?))
            }
            (Some(Value::Array(before)), Value::Array(change)) => Some(Value::Array(merge_lists(
                builtin,
                before,
                change,
                order.as_deref(),
                &below,
            )?)),
            (_, Value::Array(change)) => {
                let strategy = list_strategy(builtin, &below);
                check_order(&change, order.as_deref().unwrap_or_default(), strategy)?;
                let list = change.into_iter().filter_map(without_directives).collect();
                Some(Value::Array(reorder(
                    list,
                    order.as_deref().unwrap_or_default(),
                    &[],
                    strategy,
                )))
            }
            (_, change) => without_directives(change),
        };
        if let Some(value) = merged {
            original.insert(key, value);
        }
    }
    // An order may come without a change of its list.
    for (key, order) in orders {
        if let Some(Value::Array(list)) = original.get_mut(&key) {
            let below: Vec<&str> = path.iter().copied().chain([key.as_str()]).collect();
            let before = list.clone();
            *list = reorder(
                std::mem::take(list),
                &order,
                &before,
                list_strategy(builtin, &below),
            );
        }
    }
    for (key, values) in deletions {
        if let Some(Value::Array(list)) = original.get_mut(&key) {
            list.retain(|v| !values.contains(v));
        }
    }
    Ok(original)
}

/// Removes the keys with a directive's prefix. Their values must be lists.
fn take_prefixed(
    patch: &mut Map<String, Value>,
    prefix: &str,
) -> Result<Vec<(String, Vec<Value>)>, ApiError> {
    let keys: Vec<String> = patch.keys().filter(|k| k.starts_with(prefix)).cloned().collect();
    let take = |key: String| match patch.remove(&key) {
        Some(Value::Array(list)) => Ok((key[prefix.len()..].to_owned(), list)),
        _ => Err(bad(format!("the value of {key} must be a list"))),
    };
    keys.into_iter().map(take).collect()
}

fn retain_keys(
    original: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    keys: Value,
) -> Result<(), ApiError> {
    let Value::Array(keys) = keys else {
        return Err(bad("invalid patch format of retainKeys"));
    };
    let retained = |key: &str| keys.iter().any(|k| k == key);
    let is_directive =
        |key: &str| key.starts_with(SET_ELEMENT_ORDER) || key.starts_with(DELETE_FROM_PRIMITIVE_LIST);
    if patch
        .iter()
        .any(|(key, value)| !value.is_null() && !is_directive(key) && !retained(key))
    {
        return Err(bad("invalid patch format of retainKeys"));
    }
    original.retain(|key, _| retained(key));
    Ok(())
}

fn merge_lists(
    builtin: Builtin,
    original: Vec<Value>,
    change: Vec<Value>,
    order: Option<&[Value]>,
    path: &[&str],
) -> Result<Vec<Value>, ApiError> {
    let strategy = list_strategy(builtin, path);
    let (merged, default_order) = match strategy {
        ListStrategy::Replace => return Ok(change),
        ListStrategy::MergeValues => {
            let mut merged: Vec<Value> = Vec::with_capacity(original.len() + change.len());
            for value in original.iter().chain(&change) {
                if !merged.contains(value) {
                    merged.push(value.clone());
                }
            }
            (merged, change)
        }
        ListStrategy::MergeBy(key) => merge_by_key(builtin, &original, change, key, path)?,
    };
    if let Some(order) = order {
        check_order(&default_order, order, strategy)?;
    }
    Ok(reorder(
        merged,
        order.unwrap_or(&default_order),
        &original,
        strategy,
    ))
}

fn take_order(orders: &mut Vec<(String, Vec<Value>)>, key: &str) -> Option<Vec<Value>> {
    let at = orders.iter().position(|(list, _)| list == key)?;
    Some(orders.swap_remove(at).1)
}

/// The merged list, and the patch's elements that are no directives.
fn merge_by_key(
    builtin: Builtin,
    original: &[Value],
    change: Vec<Value>,
    key: &'static str,
    path: &[&str],
) -> Result<(Vec<Value>, Vec<Value>), ApiError> {
    let no_key = || {
        bad(format!(
            "an element of {} does not contain the declared merge key: {key}",
            path.join(".")
        ))
    };
    let key_of = |element: &Value| element.get(key).cloned().ok_or_else(no_key);
    let mut merged = original.to_vec();
    let mut elements = Vec::new();
    let mut replace = false;
    for element in change {
        match element.get(PATCH).map(|d| d.as_str().unwrap_or_default()) {
            None => elements.push(element),
            Some("delete") => {
                let gone = key_of(&element)?;
                merged.retain(|e| e.get(key) != Some(&gone));
            }
            Some("replace") => replace = true,
            Some("merge") => return Err(bad("merging lists cannot yet be specified in the patch")),
            Some(other) => return Err(bad(format!("unknown patch type: {other} in map"))),
        }
    }
    if replace {
        return Ok((elements, Vec::new()));
    }
    for element in &elements {
        let wanted = key_of(element)?;
        let at = merged.iter().position(|e| e.get(key) == Some(&wanted));
        match (at.and_then(|at| merged.get_mut(at)), element) {
            (Some(Value::Object(before)), Value::Object(change)) => {
                *before = merge_maps(builtin, std::mem::take(before), change.clone(), path)?;
            }
            _ => merged.push(element.clone()),
        }
    }
    Ok((merged, elements))
}

/// The elements of a change must stand in the order that the patch asks for.
fn check_order(change: &[Value], order: &[Value], strategy: ListStrategy) -> Result<(), ApiError> {
    if order.is_empty() {
        return Ok(());
    }
    let mut rest = order.iter();
    let in_order = change
        .iter()
        .filter(|e| e.get(PATCH).is_none())
        .all(|element| rest.any(|o| same(element, o, strategy)));
    if in_order {
        Ok(())
    } else {
        Err(bad(
            "the order in the patch list does not match its $setElementOrder list",
        ))
    }
}

fn same(a: &Value, b: &Value, strategy: ListStrategy) -> bool {
    match strategy {
        ListStrategy::MergeBy(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        ListStrategy::Replace | ListStrategy::MergeValues => a == b,
    }
}

/// Elements named in `order` come in that order; the others keep theirs and go before the first named element that
/// followed them in `before`.
fn reorder(list: Vec<Value>, order: &[Value], before: &[Value], strategy: ListStrategy) -> Vec<Value> {
    let place = |value: &Value, list: &[Value]| list.iter().position(|v| same(v, value, strategy));
    let (mut named, others): (Vec<Value>, Vec<Value>) =
        list.into_iter().partition(|v| place(v, order).is_some());
    named.sort_by_key(|v| place(v, order));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for value in named {
        while let Some(other) = others
            .next_if(|o| matches!((place(o, before), place(&value, before)), (Some(a), Some(b)) if a < b))
        {
            out.push(other);
        }
        out.push(value);
    }
    out.extend(others);
    out
}

/// What of a patch becomes part of the object where the object has nothing to merge it with. `None`: nothing at all.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(PATCH) => None,
        Value::Object(map) => {
            let is_directive = |key: &str| {
                key == RETAIN_KEYS
                    || key.starts_with(SET_ELEMENT_ORDER)
                    || key.starts_with(DELETE_FROM_PRIMITIVE_LIST)
            };
            let kept = map
                .into_iter()
                .filter(|(key, value)| !value.is_null() && !is_directive(key));
            Some(Value::Object(
                kept.filter_map(|(key, value)| Some((key, without_directives(value)?)))
                    .collect(),
            ))
        }
        Value::Array(list) => Some(Value::Array(
            list.into_iter().filter_map(without_directives).collect(),
        )),
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(original: Value, patch: Value, expect: Value) {
        let object = |v: &Value| v.as_object().expect("an object").clone();
        let got = apply(Builtin::Namespace, &object(&original), &object(&patch));
        assert_eq!(got.map(Value::Object), Ok(expect), "{original} + {patch}");
    }

    #[test]
    fn maps() {
        check(
            json!({"a": 1, "b": {"c": 2, "d": 3}}),
            json!({"b": {"c": null, "e": 4}}),
            json!({"a": 1, "b": {"d": 3, "e": 4}}),
        );
        check(
            json!({"a": 1}),
            json!({"b": {"c": null, "d": {"e": null}}, "n": null}),
            json!({"a": 1, "b": {"d": {}}}),
        );
        check(
            json!({"a": {"x": 1}}),
            json!({"a": {"$patch": "replace", "y": 2}}),
            json!({"a": {"y": 2}}),
        );
        check(
            json!({"a": {"x": 1}}),
            json!({"a": {"$patch": "delete"}}),
            json!({"a": {}}),
        );
        check(
            json!({"a": 1}),
            json!({"b": {"$patch": "delete"}}),
            json!({"a": 1}),
        );
        check(json!({"a": 1}), json!({"a": {"b": 2}}), json!({"a": {"b": 2}}));
        check(
            json!({"a": {"x": 1, "y": 2}}),
            json!({"a": {"$retainKeys": ["y", "z"], "z": 3}}),
            json!({"a": {"y": 2, "z": 3}}),
        );
        check(json!({"l": [1, 2]}), json!({"l": [3]}), json!({"l": [3]}));
    }

    #[test]
    fn finalizers_are_a_set() {
        let with = |list: Value| json!({"metadata": {"finalizers": list}});
        // What is new comes first, as upstream.
        check(
            with(json!(["a", "b"])),
            with(json!(["c"])),
            with(json!(["c", "a", "b"])),
        );
        check(
            with(json!(["a", "b"])),
            with(json!(["b"])),
            with(json!(["a", "b"])),
        );
        check(
            with(json!(["a", "b", "c"])),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"]}}),
            with(json!(["a", "c"])),
        );
        check(
            with(json!(["a", "b", "c"])),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"], "$setElementOrder/finalizers": ["c", "d", "a"], "finalizers": ["d"]}}),
            with(json!(["c", "d", "a"])),
        );
        check(json!({"metadata": {}}), with(json!(["a"])), with(json!(["a"])));
        check(
            with(json!(["a"])),
            json!({"metadata": {"finalizers": null}}),
            json!({"metadata": {}}),
        );
    }

    #[test]
    fn lists_with_a_merge_key() {
        let with = |list: Value| json!({"metadata": {"ownerReferences": list}});
        check(
            with(json!([{"uid": "1", "name": "a"}])),
            with(json!([{"uid": "2"}])),
            with(json!([{"uid": "2"}, {"uid": "1", "name": "a"}])),
        );
        check(
            with(json!([{"uid": "1", "name": "a"}])),
            with(json!([{"uid": "1", "x": true}])),
            with(json!([{"uid": "1", "name": "a", "x": true}])),
        );
        check(
            with(json!([{"uid": "1"}, {"uid": "2"}])),
            with(json!([{"uid": "1", "$patch": "delete"}])),
            with(json!([{"uid": "2"}])),
        );
        check(
            with(json!([{"uid": "1"}])),
            with(json!([{"$patch": "replace"}, {"uid": "3"}])),
            with(json!([{"uid": "3"}])),
        );
        check(
            json!({"status": {"conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "True"}]}}),
            json!({"status": {"conditions": [{"type": "B", "status": "False"}], "$setElementOrder/conditions": [{"type": "B"}, {"type": "A"}]}}),
            json!({"status": {"conditions": [{"type": "B", "status": "False"}, {"type": "A", "status": "True"}]}}),
        );
        check(
            json!({}),
            json!({"status": {"conditions": [{"type": "A"}, {"type": "B", "$patch": "delete"}]}}),
            json!({"status": {"conditions": [{"type": "A"}]}}),
        );
        check(
            with(json!([{"uid": "1"}, {"uid": "2"}])),
            json!({"metadata": {"$setElementOrder/ownerReferences": [{"uid": "2"}, {"uid": "1"}]}}),
            with(json!([{"uid": "2"}, {"uid": "1"}])),
        );
    }

    #[test]
    fn nonsense_is_refused() {
        let refuse = |patch: Value| {
            let original = json!({"metadata": {"finalizers": ["a", "b"], "ownerReferences": [{"uid": "1"}]}, "a": {"b": 1}});
            let got = apply(
                Builtin::Secret,
                original.as_object().expect("an object"),
                patch.as_object().expect("an object"),
            );
            assert_eq!(got.map_err(|e| e.code), Err(400), "{patch}");
        };
        refuse(json!({"a": {"$patch": "explode"}}));
        refuse(json!({"a": {"$patch": 1}}));
        refuse(json!({"a": {"$retainKeys": "b"}}));
        refuse(json!({"a": {"$retainKeys": ["b"], "c": 1}}));
        refuse(json!({"metadata": {"$setElementOrder/finalizers": "a"}}));
        refuse(json!({"metadata": {"ownerReferences": [{"name": "no uid"}]}}));
        refuse(json!({"metadata": {"ownerReferences": [{"uid": "1", "$patch": "merge"}]}}));
        refuse(json!({"metadata": {"finalizers": ["b", "a"], "$setElementOrder/finalizers": ["a", "b"]}}));
    }
}
