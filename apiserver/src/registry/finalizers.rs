//! Finalizers and deletion: when an object is marked, when it goes, and which finalizers a propagation policy asks for.
//! Pure. It does not wait for anybody: whoever put a finalizer there takes it away.

use super::Unstructured;
use super::object_meta::{
    FOREGROUND_FINALIZER, ORPHAN_FINALIZER, finalizers, generation, metadata, metadata_mut, rfc3339, text,
};
use crate::request::options::{DeleteOptions, PropagationPolicy};
use serde_json::Value;

/// The finalizers that the object has once a delete with these options is asked for: those of the garbage collector
/// follow the options, or stay as they are.
pub(crate) fn for_deletion(object: &Unstructured, options: &DeleteOptions) -> Vec<String> {
    let before = finalizers(object);
    let (orphan, foreground) = match options.propagation() {
        Some(policy) => (
            policy == PropagationPolicy::Orphan,
            policy == PropagationPolicy::Foreground,
        ),
        None => {
            let first = before
                .iter()
                .find(|f| [ORPHAN_FINALIZER, FOREGROUND_FINALIZER].contains(f));
            (
                first == Some(&ORPHAN_FINALIZER),
                first == Some(&FOREGROUND_FINALIZER),
            )
        }
    };
    let keep = |f: &&&str| match **f {
        ORPHAN_FINALIZER => orphan,
        FOREGROUND_FINALIZER => foreground,
        _ => true,
    };
    let mut after: Vec<String> = before.iter().filter(keep).map(|f| (*f).to_owned()).collect();
    for (wanted, finalizer) in [(orphan, ORPHAN_FINALIZER), (foreground, FOREGROUND_FINALIZER)] {
        if wanted && !after.iter().any(|f| f == finalizer) {
            after.push(finalizer.to_owned());
        }
    }
    after
}

/// Marks the object as being deleted since `now` (wall time in milliseconds). A mark that is there stays.
pub(crate) fn mark_as_deleting(object: &mut Unstructured, now: i64) {
    let generation = generation(object);
    let first = text(object, "deletionTimestamp").is_empty();
    let metadata = metadata_mut(object);
    if first {
        metadata.insert("deletionTimestamp".to_owned(), rfc3339(now).into());
        // Controllers shall notice: deletion is a change of what is wanted.
        if generation > 0 {
            metadata.insert("generation".to_owned(), (generation + 1).into());
        }
    }
    metadata.insert("deletionGracePeriodSeconds".to_owned(), 0.into());
}

/// Whether an update to `object` takes away the last reason to keep `old`.
pub(crate) fn is_finished(object: &Unstructured, old: &Unstructured) -> bool {
    let grace = metadata(old)
        .get("deletionGracePeriodSeconds")
        .and_then(Value::as_i64)
        .unwrap_or_default();
    finalizers(object).is_empty() && !text(old, "deletionTimestamp").is_empty() && grace == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(metadata: Value) -> Unstructured {
        let Value::Object(map) = json!({ "metadata": metadata }) else {
            panic!("an object")
        };
        map
    }

    #[test]
    fn policies_choose_the_finalizers() {
        let check = |before: &[&str], policy, expect: &[&str]| {
            let options = DeleteOptions {
                propagation_policy: policy,
                ..DeleteOptions::default()
            };
            assert_eq!(
                for_deletion(&object(json!({ "finalizers": before })), &options),
                expect,
                "{before:?} {policy:?}"
            );
        };
        use PropagationPolicy::{Background, Foreground, Orphan};
        check(&[], None, &[]);
        check(&["a/b"], None, &["a/b"]);
        check(&["orphan"], None, &["orphan"]);
        check(&["a/b"], Some(Foreground), &["a/b", "foregroundDeletion"]);
        check(
            &["orphan", "a/b"],
            Some(Foreground),
            &["a/b", "foregroundDeletion"],
        );
        check(&["foregroundDeletion"], Some(Background), &[]);
        check(&[], Some(Orphan), &["orphan"]);
        check(&["orphan"], Some(Orphan), &["orphan"]);
    }

    #[test]
    fn a_mark_is_set_once() {
        let mut marked = object(json!({"generation": 3}));
        mark_as_deleting(&mut marked, 1_000);
        let expect = json!({"deletionGracePeriodSeconds": 0, "deletionTimestamp": "1970-01-01T00:00:01Z", "generation": 4});
        assert_eq!(marked["metadata"], expect);
        mark_as_deleting(&mut marked, 9_000);
        assert_eq!(marked["metadata"], expect);
    }

    #[test]
    fn the_last_finalizer_finishes() {
        let deleting =
            |finalizers: &[&str]| object(json!({"deletionTimestamp": "t", "finalizers": finalizers}));
        assert!(is_finished(&deleting(&[]), &deleting(&["a/b"])));
        assert!(!is_finished(&deleting(&["a/b"]), &deleting(&["a/b"])));
        assert!(!is_finished(
            &object(json!({})),
            &object(json!({"finalizers": ["a/b"]}))
        ));
    }
}
