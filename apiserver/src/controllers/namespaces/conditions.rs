//! The conditions of a namespace that is being deleted, in kube-controller-manager's words. Pure.

use crate::controllers::collection::Remaining;
use k8s_openapi::api::core::v1::NamespaceCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;

/// What one round of deleting found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Emptied {
    /// Kinds of which something is left, by `<plural>.<group>`.
    pub(super) remaining: BTreeMap<String, Remaining>,
    /// Kinds that could not be emptied, and why.
    pub(super) failures: BTreeMap<String, String>,
}

impl Emptied {
    /// What is left, in one line; `None`: nothing.
    pub(super) fn summary(&self) -> Option<String> {
        if self.remaining.is_empty() && self.failures.is_empty() {
            return None;
        }
        Some(
            [self.failure_text(), self.remaining_text()]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join("; "),
        )
    }

    fn failure_text(&self) -> Option<String> {
        let texts: Vec<String> = self
            .failures
            .iter()
            .map(|(kind, cause)| format!("{kind}: {cause}"))
            .collect();
        match &texts[..] {
            [] => None,
            [one] => Some(format!("Failed to delete all resource types, 1 remaining: {one}")),
            many => Some(format!(
                "Failed to delete all resource types, {} remaining: {}",
                many.len(),
                many.join(", ")
            )),
        }
    }

    fn remaining_text(&self) -> Option<String> {
        let texts: Vec<String> = self
            .remaining
            .iter()
            .map(|(kind, r)| format!("{kind} has {} resource instances", r.objects))
            .collect();
        (!texts.is_empty()).then(|| format!("Some resources are remaining: {}", texts.join(", ")))
    }

    fn finalizer_text(&self) -> Option<String> {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for (finalizer, count) in self.remaining.values().flat_map(|r| &r.finalizers) {
            *counts.entry(finalizer).or_default() += count;
        }
        let texts: Vec<String> = counts
            .iter()
            .map(|(f, n)| format!("{f} in {n} resource instances"))
            .collect();
        (!texts.is_empty()).then(|| {
            format!(
                "Some content in the namespace has finalizers remaining: {}",
                texts.join(", ")
            )
        })
    }
}

/// The five conditions, in order, after `old`; a time of transition changes with the status only.
pub(super) fn conditions(
    old: &[NamespaceCondition],
    emptied: &Emptied,
    now_ms: u64,
) -> Vec<NamespaceCondition> {
    let fine = [
        (
            "NamespaceDeletionDiscoveryFailure",
            None,
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            emptied.failure_text().map(|text| ("ContentDeletionFailed", text)),
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            emptied.remaining_text().map(|text| ("SomeResourcesRemain", text)),
            "ContentRemoved",
            "All content successfully removed",
        ),
        (
            "NamespaceFinalizersRemaining",
            emptied
                .finalizer_text()
                .map(|text| ("SomeFinalizersRemain", text)),
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ];
    let now = i64::try_from(now_ms / 1000)
        .ok()
        .and_then(|s| Timestamp::from_second(s).ok())
        .map(Time);
    let mut all: Vec<NamespaceCondition> = old.to_vec();
    for (type_, problem, reason, message) in fine {
        let (status, reason, message) = match problem {
            Some((reason, message)) => ("True", reason, message),
            None => ("False", reason, message.to_owned()),
        };
        let found = all.iter_mut().find(|c| c.type_ == type_);
        let changed = found.as_ref().is_none_or(|c| c.status != status);
        let since = if changed {
            now.clone()
        } else {
            found.as_ref().and_then(|c| c.last_transition_time.clone())
        };
        let condition = NamespaceCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: since,
        };
        match found {
            Some(place) => *place = condition,
            None => all.push(condition),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn emptied(objects: u64) -> Emptied {
        let finalizers = BTreeMap::from([("example.com/hold".to_owned(), 2)]);
        let remaining = Remaining { objects, finalizers };
        Emptied {
            remaining: [("applications.paas.example.com".to_owned(), remaining)].into(),
            failures: BTreeMap::new(),
        }
    }

    #[test]
    fn an_empty_namespace_has_five_conditions_that_are_false() {
        let all = conditions(&[], &Emptied::default(), 1_800_000_000_000);
        assert_eq!(all.len(), 5);
        assert!(
            all.iter()
                .all(|c| c.status == "False" && c.last_transition_time.is_some())
        );
        assert_eq!(Emptied::default().summary(), None);
    }

    #[test]
    fn what_is_left_is_named() {
        let all = conditions(&[], &emptied(3), 1_800_000_000_000);
        let message = |type_: &str| {
            all.iter()
                .find(|c| c.type_ == type_)
                .and_then(|c| c.message.clone())
                .unwrap_or_default()
        };
        assert_eq!(
            message("NamespaceContentRemaining"),
            "Some resources are remaining: applications.paas.example.com has 3 resource instances"
        );
        assert_eq!(
            message("NamespaceFinalizersRemaining"),
            "Some content in the namespace has finalizers remaining: example.com/hold in 2 resource instances"
        );
    }

    #[test]
    fn times_change_with_the_status_only() {
        let first = conditions(&[], &emptied(3), 1_800_000_000_000);
        let second = conditions(&first, &emptied(1), 1_800_000_009_000);
        let times = |all: &[NamespaceCondition]| {
            all.iter()
                .map(|c| c.last_transition_time.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(times(&first), times(&second));
        assert_ne!(first, second, "the message counts");
        let third = conditions(&second, &Emptied::default(), 1_800_000_010_000);
        let changed = third
            .iter()
            .zip(&second)
            .filter(|(a, b)| a.last_transition_time != b.last_transition_time)
            .count();
        assert_eq!(changed, 2);
        assert_eq!(third, conditions(&third, &Emptied::default(), 1_800_000_020_000));
    }
}
