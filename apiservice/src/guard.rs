//! The guard of a kind: a ValidatingAdmissionPolicy and its binding that deny creates and updates of the kind where
//! kube-apiserver serves it itself. Requests that are proxied to us never meet it. Pure.
//!
//! Whether it is in force is seen with a probe: the same policy denies a Lease of a name that nobody uses, which is tried
//! as a dry run. One policy is in force as a whole or not at all.

use crate::FIELD_MANAGER;
use crate::crd::{Crd, MANAGED_BY};
use serde_json::{Value, json};

/// Names the CRD whose guard it is. An annotation: the name may be too long for a label.
pub(crate) const GUARD_ANNOTATION: &str = "outrigger.dev/guards";
/// How all guards begin.
pub(crate) const PREFIX: &str = "outrigger-guard.";
/// What the names of objects may be long.
const NAME_BYTES_MAX: usize = 253;

/// The name of a CRD's guard.
pub(crate) fn name(crd: &str) -> String {
    let name = format!("{PREFIX}{crd}");
    if name.len() <= NAME_BYTES_MAX {
        return name;
    }
    // Long names differ in their beginnings or in this sum of everything.
    let sum = crd.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let kept = name.get(..200).unwrap_or(PREFIX).trim_end_matches(['.', '-']);
    format!("{kept}-{sum:x}")
}

/// The policy.
pub(crate) fn policy(crd: &Crd) -> Value {
    let name = name(&crd.name);
    let message = format!(
        "{} is kept by Outrigger: kube-apiserver does not take writes to it. If this stays, look at the conditions of the \
         CustomResourceDefinition {} and at its APIServices",
        crd.plural, crd.name
    );
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": metadata(&name, crd),
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [
                {
                    "apiGroups": [crd.group], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"],
                    "resources": [crd.plural, format!("{}/*", crd.plural)],
                },
                {
                    "apiGroups": ["coordination.k8s.io"], "apiVersions": ["*"], "operations": ["CREATE"],
                    "resources": ["leases"], "resourceNames": [name],
                },
            ]},
            "validations": [{"expression": "false", "message": message, "reason": "Forbidden"}],
        },
    })
}

/// Its binding.
pub(crate) fn binding(crd: &Crd) -> Value {
    let name = name(&crd.name);
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": metadata(&name, crd),
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    })
}

/// The Lease that only an active guard denies.
pub(crate) fn probe(crd: &str, namespace: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name(crd), "namespace": namespace},
        "spec": {"holderIdentity": FIELD_MANAGER},
    })
}

/// Whether what is found has everything that is wanted. What kube-apiserver adds as a default does not count.
pub(crate) fn covers(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| found.get(key).is_some_and(|found| covers(found, value))),
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(f, w)| covers(f, w))
        }
        (found, wanted) => found == wanted,
    }
}

fn metadata(name: &str, crd: &Crd) -> Value {
    json!({
        "name": name,
        "labels": {MANAGED_BY.0: MANAGED_BY.1},
        "annotations": {GUARD_ANNOTATION: crd.name},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_no_difference() {
        let check = |found: Value, expect: bool| {
            let wanted = json!({"rules": [{"groups": ["a"]}], "actions": ["Deny"]});
            assert_eq!(covers(&found, &wanted), expect, "{found}");
        };
        check(
            json!({"rules": [{"groups": ["a"], "scope": "*"}], "actions": ["Deny"], "more": {}}),
            true,
        );
        check(json!({"rules": [{"groups": ["a"]}], "actions": ["Audit"]}), false);
        check(
            json!({"rules": [{"groups": ["a", "b"]}], "actions": ["Deny"]}),
            false,
        );
        check(json!({"rules": [], "actions": ["Deny"]}), false);
        check(json!({"actions": ["Deny"]}), false);
    }

    #[test]
    fn names_fit() {
        assert_eq!(name("apps.example.com"), "outrigger-guard.apps.example.com");
        let long = format!("{}.example.com", "a".repeat(240));
        let longer = format!("{}.example.org", "a".repeat(240));
        assert!(name(&long).len() <= NAME_BYTES_MAX && name(&long) != name(&longer));
    }
}
