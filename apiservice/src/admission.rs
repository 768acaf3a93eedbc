//! Which admission of the cluster matches a kind: webhooks and policies that kube-apiserver would run and that nobody runs
//! for requests that it proxies. Pure.
//!
//! Selectors of namespaces and objects, match conditions and parameters are not looked at: what may match counts as
//! matched. Our own guards do not count.

use crate::crd::Crd;
use crate::guard;
use serde::Deserialize;
use std::collections::BTreeMap;

/// What the cluster has, as far as rules go.
#[derive(Debug, Clone, Default)]
pub(crate) struct Admission {
    pub(crate) webhooks: Vec<WebhookConfiguration>,
    pub(crate) policies: Vec<Policy>,
    pub(crate) bindings: Vec<Binding>,
}

/// A ValidatingWebhookConfiguration or MutatingWebhookConfiguration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WebhookConfiguration {
    #[serde(skip)]
    pub(crate) shown: String,
    webhooks: Vec<Webhook>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Webhook {
    rules: Vec<Rule>,
}

/// A ValidatingAdmissionPolicy or MutatingAdmissionPolicy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Policy {
    #[serde(skip)]
    pub(crate) shown: String,
    #[serde(skip)]
    pub(crate) name: String,
    /// "Validating" or "Mutating": bindings belong to one of them.
    #[serde(skip)]
    pub(crate) family: &'static str,
    spec: PolicySpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PolicySpec {
    match_constraints: Option<MatchResources>,
}

/// The binding of a policy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Binding {
    #[serde(skip)]
    pub(crate) family: &'static str,
    spec: BindingSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct BindingSpec {
    policy_name: String,
    match_resources: Option<MatchResources>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct MatchResources {
    resource_rules: Vec<Rule>,
    exclude_resource_rules: Vec<Rule>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Rule {
    api_groups: Vec<String>,
    api_versions: Vec<String>,
    operations: Vec<String>,
    resources: Vec<String>,
    resource_names: Vec<String>,
    scope: String,
}

impl Admission {
    /// What matches each of the kinds, by the CRD's name; kinds that nothing matches are left out.
    pub(crate) fn matched<'a>(
        &self,
        crds: impl IntoIterator<Item = &'a Crd>,
    ) -> BTreeMap<String, Vec<String>> {
        crds.into_iter()
            .map(|crd| (crd.name.clone(), self.matching(crd)))
            .filter(|(_, found)| !found.is_empty())
            .collect()
    }

    fn matching(&self, crd: &Crd) -> Vec<String> {
        let webhooks = self
            .webhooks
            .iter()
            .filter(|c| c.webhooks.iter().flat_map(|w| &w.rules).any(|r| r.touches(crd)))
            .map(|c| c.shown.clone());
        let policies = self
            .policies
            .iter()
            .filter(|p| !p.name.starts_with(guard::PREFIX) && self.is_bound(p, crd))
            .map(|p| p.shown.clone());
        webhooks.chain(policies).collect()
    }

    /// A policy without a binding does nothing.
    fn is_bound(&self, policy: &Policy, crd: &Crd) -> bool {
        let is_constrained = policy
            .spec
            .match_constraints
            .as_ref()
            .is_some_and(|m| m.touches(crd, false));
        let mut bindings = self
            .bindings
            .iter()
            .filter(|b| b.family == policy.family && b.spec.policy_name == policy.name);
        is_constrained
            && bindings.any(|b| {
                b.spec
                    .match_resources
                    .as_ref()
                    .is_none_or(|m| m.touches(crd, true))
            })
    }
}

impl MatchResources {
    /// `is_all_by_default`: no rules stand for everything, as in a binding.
    fn touches(&self, crd: &Crd, is_all_by_default: bool) -> bool {
        let is_excluded = self.exclude_resource_rules.iter().any(|r| r.covers(crd));
        let is_default = is_all_by_default && self.resource_rules.is_empty();
        !is_excluded && (is_default || self.resource_rules.iter().any(|r| r.touches(crd)))
    }
}

impl Rule {
    /// Whether some request for an object of the kind may match.
    fn touches(&self, crd: &Crd) -> bool {
        let has_version = |v: &String| v == "*" || crd.versions.contains(v);
        let has_resource = |r: &String| {
            let main = r.split('/').next().unwrap_or_default();
            main == "*" || main == crd.plural
        };
        let is_write = |o: &String| matches!(o.as_str(), "*" | "CREATE" | "UPDATE" | "DELETE");
        self.has_group(crd)
            && self.has_scope(crd)
            // A webhook sees other versions too, converted, unless its matchPolicy is Exact; a kind moves with all.
            && self.api_versions.iter().any(has_version)
            && self.operations.iter().any(is_write)
            && self.resources.iter().any(has_resource)
    }

    /// Whether every request for an object of the kind matches.
    fn covers(&self, crd: &Crd) -> bool {
        let has = |list: &[String], value: &str| list.iter().any(|v| v == "*" || v == value);
        let has_objects = ["*", "*/*", crd.plural.as_str()]
            .iter()
            .any(|r| self.resources.iter().any(|resource| resource == r));
        let everything = format!("{}/*", crd.plural);
        let has_subresources = ["*/*", everything.as_str()]
            .iter()
            .any(|r| self.resources.iter().any(|resource| resource == r));
        self.has_group(crd)
            && self.has_scope(crd)
            && self.resource_names.is_empty()
            && crd.versions.iter().all(|v| has(&self.api_versions, v))
            && ["CREATE", "UPDATE", "DELETE"]
                .iter()
                .all(|o| has(&self.operations, o))
            && has_objects
            && has_subresources
    }

    fn has_group(&self, crd: &Crd) -> bool {
        self.api_groups.iter().any(|g| g == "*" || *g == crd.group)
    }

    fn has_scope(&self, crd: &Crd) -> bool {
        match self.scope.as_str() {
            "Namespaced" => crd.is_namespaced,
            "Cluster" => !crd.is_namespaced,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::tests::crd;
    use serde_json::{Value, json};

    fn rule(groups: &str, versions: &str, resources: &str, operations: &str) -> Value {
        let list = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        json!({
            "apiGroups": list(groups), "apiVersions": list(versions),
            "resources": list(resources), "operations": list(operations),
        })
    }

    fn webhook(rules: &Value) -> Admission {
        let configuration = json!({"webhooks": [{"rules": []}, {"rules": rules}]});
        let mut configuration: WebhookConfiguration =
            serde_json::from_value(configuration).expect("a configuration");
        configuration.shown = "hook".to_owned();
        Admission {
            webhooks: vec![configuration],
            ..Admission::default()
        }
    }

    fn policy(name: &str, constraints: &Value, bindings: &[(&'static str, Value)]) -> Admission {
        let mut policy: Policy =
            serde_json::from_value(json!({"spec": {"matchConstraints": constraints}})).expect("a policy");
        (policy.name, policy.shown, policy.family) = (name.to_owned(), "policy".to_owned(), "Validating");
        let binding = |(family, match_resources): &(&'static str, Value)| Binding {
            family,
            ..serde_json::from_value(json!({"spec": {"policyName": name, "matchResources": match_resources}}))
                .expect("a binding")
        };
        Admission {
            policies: vec![policy],
            bindings: bindings.iter().map(binding).collect(),
            ..Admission::default()
        }
    }

    #[test]
    fn webhooks_match_by_their_rules() {
        let check = |name: &str, rule: Value, expect: bool| {
            let matched = webhook(&json!([rule])).matched([&crd("apps", &["v1", "v2"])]);
            assert_eq!(!matched.is_empty(), expect, "{name}");
        };
        check("itself", rule("example.com", "v1", "apps", "CREATE"), true);
        check("everything", rule("*", "*", "*/*", "*"), true);
        check("all resources", rule("*", "*", "*", "UPDATE"), true);
        check(
            "a subresource",
            rule("example.com", "v2", "apps/status", "UPDATE"),
            true,
        );
        check("any status", rule("*", "*", "*/status", "UPDATE"), true);
        check(
            "among others",
            rule("apps example.com", "v1", "pods apps", "CONNECT DELETE"),
            true,
        );
        check("another group", rule("apps", "*", "*", "*"), false);
        check("core", rule("", "v1", "*", "*"), false);
        check("another version", rule("example.com", "v3", "apps", "*"), false);
        check(
            "another resource",
            rule("example.com", "*", "databases", "*"),
            false,
        );
        check("no write", rule("example.com", "*", "apps", "CONNECT"), false);
        let mut cluster = rule("*", "*", "*", "*");
        cluster["scope"] = "Cluster".into();
        check("another scope", cluster.clone(), false);
        cluster["scope"] = "Namespaced".into();
        check("its scope", cluster, true);
    }

    #[test]
    fn policies_match_when_they_are_bound() {
        let all = || json!({"resourceRules": [rule("*", "*", "*", "*")]});
        let check = |name: &str, admission: Admission, expect: bool| {
            let matched = admission.matched([&crd("apps", &["v1"])]);
            assert_eq!(!matched.is_empty(), expect, "{name}");
        };
        let bound =
            |constraints: &Value, binding: Value| policy("p", constraints, &[("Validating", binding)]);
        check("bound", bound(&all(), Value::Null), true);
        check("unbound", policy("p", &all(), &[]), false);
        check(
            "bound by a namesake",
            policy("p", &all(), &[("Mutating", Value::Null)]),
            false,
        );
        check("no rules", bound(&json!({}), Value::Null), false);
        check(
            "a binding for all",
            bound(&all(), json!({"namespaceSelector": {"matchLabels": {"a": "b"}}})),
            true,
        );
        let pods = json!({"resourceRules": [rule("", "v1", "pods", "*")]});
        check("a binding for others", bound(&all(), pods), false);
        let but =
            |r: Value| json!({"resourceRules": [rule("*", "*", "*", "*")], "excludeResourceRules": [r]});
        check(
            "excluded",
            bound(&but(rule("example.com", "*", "*/* *", "*")), Value::Null),
            false,
        );
        check(
            "partly excluded",
            bound(&but(rule("example.com", "*", "apps", "*")), Value::Null),
            true,
        );
        check(
            "updates excluded",
            bound(&but(rule("*", "*", "*/*", "UPDATE")), Value::Null),
            true,
        );
        let mut named = rule("*", "*", "*/*", "*");
        named["resourceNames"] = json!(["one"]);
        check("one excluded", bound(&but(named), Value::Null), true);
        check(
            "our own",
            policy(
                "outrigger-guard.apps.example.com",
                &all(),
                &[("Validating", Value::Null)],
            ),
            false,
        );
    }
}
