//! Our conditions of a CustomResourceDefinition: `Distributed`, and one named for what is in the way. Pure.

use crate::crd::{Crd, DISTRIBUTED_CONDITION};
use serde::{Deserialize, Serialize};

/// Reasons that also are conditions of their own, because people look and wait for them by name.
pub(crate) const OBJECTS_EXIST: &str = "ObjectsExist";
pub(crate) const POLICIES_NOT_ENFORCED: &str = "PoliciesNotEnforced";
const NAMED: [&str; 2] = [OBJECTS_EXIST, POLICIES_NOT_ENFORCED];

/// The messages of conditions and events are cut to so many bytes.
const MESSAGE_BYTES_MAX: usize = 1000;

/// A condition as CRDs have them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub(crate) type_: String,
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_transition_time: Option<String>,
}

/// What is to be said of a CRD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The kind is ours.
    pub(crate) is_distributed: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Finding {
    pub(crate) fn no(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            is_distributed: false,
            reason,
            message: cut(message.into()),
        }
    }

    pub(crate) fn yes(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            is_distributed: true,
            reason,
            message: cut(message.into()),
        }
    }
}

/// Our conditions after `finding`, with the times of those that did not change; `None` when nothing is to be written.
pub(crate) fn desired(crd: &Crd, finding: Option<&Finding>, now: &str) -> Option<Vec<Condition>> {
    let is_ours = |c: &&Condition| c.type_ == DISTRIBUTED_CONDITION || NAMED.contains(&c.type_.as_str());
    let old: Vec<&Condition> = crd.conditions.iter().filter(is_ours).collect();
    let since = |type_: &str, status: &str| {
        let same = old.iter().find(|c| c.type_ == type_ && c.status == status);
        same.and_then(|c| c.last_transition_time.clone())
            .or_else(|| Some(now.to_owned()))
    };
    let condition = |type_: &str, status: &str, finding: &Finding| Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: finding.reason.to_owned(),
        message: finding.message.clone(),
        last_transition_time: since(type_, status),
    };
    let mut new = Vec::new();
    if let Some(finding) = finding {
        let status = if finding.is_distributed { "True" } else { "False" };
        new.push(condition(DISTRIBUTED_CONDITION, status, finding));
        if NAMED.contains(&finding.reason) {
            new.push(condition(finding.reason, "True", finding));
        }
    }
    let is_same = old.len() == new.len() && new.iter().all(|c| old.contains(&c));
    (!is_same).then_some(new)
}

fn cut(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        let end = (0..=MESSAGE_BYTES_MAX)
            .rev()
            .find(|i| message.is_char_boundary(*i))
            .unwrap_or_default();
        message.truncate(end);
        message.push('…');
    }
    message
}
