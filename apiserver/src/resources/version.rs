//! The order of API versions as kube-apiserver sorts them: GA before beta before alpha, higher before lower, and
//! whatever is no such version last, by name. Pure.

use std::cmp::Ordering;

/// A version such as `v1`, `v2beta3`, in the order of preference: the greatest is preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct KubeVersion {
    stability: Stability,
    major: u64,
    minor: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stability {
    Alpha,
    Beta,
    GenerallyAvailable,
}

/// Compares two versions; the preferred one is `Less`, so that sorting puts it first.
#[must_use]
pub fn by_preference(a: &str, b: &str) -> Ordering {
    match (parse(a), parse(b)) {
        (Some(a), Some(b)) => b.cmp(&a),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

fn parse(version: &str) -> Option<KubeVersion> {
    let (major, rest) = number(version.strip_prefix('v')?)?;
    let (stability, rest) = match (rest.strip_prefix("alpha"), rest.strip_prefix("beta")) {
        _ if rest.is_empty() => {
            return Some(KubeVersion {
                stability: Stability::GenerallyAvailable,
                major,
                minor: 0,
            });
        }
        (Some(rest), _) => (Stability::Alpha, rest),
        (_, Some(rest)) => (Stability::Beta, rest),
        _ => return None,
    };
    let (minor, rest) = number(rest)?;
    rest.is_empty().then_some(KubeVersion {
        stability,
        major,
        minor,
    })
}

/// The digits at the start, and what follows them.
fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at_checked(end)?;
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_by_preference() {
        let mut versions = [
            "foo10",
            "v1",
            "v10",
            "v2",
            "v11alpha2",
            "foo1",
            "v3beta1",
            "v12alpha1",
            "v11beta2",
            "v1alpha",
            "v3beta10",
            "",
        ];
        versions.sort_by(|a, b| by_preference(a, b));
        assert_eq!(
            versions,
            [
                "v10",
                "v2",
                "v1",
                "v11beta2",
                "v3beta10",
                "v3beta1",
                "v12alpha1",
                "v11alpha2",
                "",
                "foo1",
                "foo10",
                "v1alpha"
            ]
        );
    }
}
