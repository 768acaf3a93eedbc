//! Leases: durations and counts that make sense, and who may be preferred.

use super::{Object, at, text_at};
use crate::registry::names;
use crate::resources::field;
use crate::status::StatusCause;
use serde_json::Value;

pub(super) fn validate(object: &Object) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    let number = |name: &str| at(object, &["spec", name]).and_then(Value::as_i64);
    if let Some(seconds) = number("leaseDurationSeconds").filter(|&seconds| seconds <= 0) {
        causes.push(field::invalid(
            "spec.leaseDurationSeconds",
            seconds,
            "must be greater than 0",
        ));
    }
    if let Some(count) = number("leaseTransitions").filter(|&count| count < 0) {
        causes.push(field::invalid(
            "spec.leaseTransitions",
            count,
            "must be greater than or equal to 0",
        ));
    }
    let strategy = text_at(object, &["spec", "strategy"]);
    if !strategy.is_empty() && strategy != "OldestEmulationVersion" {
        causes.extend(
            names::is_qualified_name(strategy)
                .iter()
                .map(|complaint| field::invalid("spec.strategy", strategy, complaint)),
        );
        if !strategy.contains('/') {
            causes.push(field::not_supported(
                "spec.strategy",
                strategy,
                &["OldestEmulationVersion"],
            ));
        }
    }
    if strategy.is_empty() && !text_at(object, &["spec", "preferredHolder"]).is_empty() {
        causes.push(field::forbidden(
            "spec.preferredHolder",
            "may only be specified if `strategy` is defined",
        ));
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(spec: Value, fields: &[&str]) {
        let causes = validate(&Object::from_iter([("spec".to_owned(), spec)]));
        assert_eq!(
            causes
                .iter()
                .map(|cause| cause.field.as_str())
                .collect::<Vec<_>>(),
            fields
        );
    }

    #[test]
    fn leases_make_sense() {
        check(json!({}), &[]);
        check(
            json!({"holderIdentity": "a", "leaseDurationSeconds": 15, "leaseTransitions": 0}),
            &[],
        );
        check(
            json!({"leaseDurationSeconds": 0, "leaseTransitions": -1}),
            &["spec.leaseDurationSeconds", "spec.leaseTransitions"],
        );
        check(json!({"preferredHolder": "a"}), &["spec.preferredHolder"]);
        check(json!({"strategy": "mine"}), &["spec.strategy"]);
        check(
            json!({"strategy": "OldestEmulationVersion", "preferredHolder": "a"}),
            &[],
        );
    }
}
