//! `DeleteOptions`, from the body of a request or from its query.

use super::{META_GROUP, dry_run_cause, integer, refuse};
use crate::request::Query;
use crate::resources::field;
use crate::status::ApiError;
use serde::Deserialize;
use serde_json::Value;

const UNSAFE_DELETE: &str = "ignoreStoreReadErrorWithClusterBreakingPotential";

/// What happens to dependents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PropagationPolicy {
    /// They lose the reference to their owner and stay.
    Orphan,
    /// They are deleted afterwards.
    Background,
    /// They are deleted first.
    Foreground,
}

/// What the object must be for the delete to happen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preconditions {
    /// Its uid.
    pub uid: Option<String>,
    /// Its resource version.
    pub resource_version: Option<String>,
}

/// Options of delete and deletecollection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// `dryRun=All`.
    pub dry_run: bool,
    /// `gracePeriodSeconds`.
    pub grace_period_seconds: Option<i64>,
    /// `propagationPolicy`; `None`: the kind's default.
    pub propagation_policy: Option<PropagationPolicy>,
    /// `orphanDependents`, the switch from before there was a policy; never set together with it.
    pub orphan_dependents: Option<bool>,
    /// `preconditions`.
    pub preconditions: Preconditions,
    /// `ignoreStoreReadErrorWithClusterBreakingPotential`.
    pub ignore_store_read_error: bool,
}

/// The object as clients send it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    kind: Option<String>,
    grace_period_seconds: Option<i64>,
    preconditions: Option<Preconditions>,
    orphan_dependents: Option<bool>,
    propagation_policy: Option<String>,
    dry_run: Option<Vec<String>>,
    ignore_store_read_error_with_cluster_breaking_potential: Option<bool>,
}

impl DeleteOptions {
    /// Reads and validates the options in the query, where they are when the body is empty.
    ///
    /// # Errors
    /// 400 for what cannot be read, 422 for what contradicts itself.
    pub fn from_query(query: &Query) -> Result<Self, ApiError> {
        let text = |key| {
            query
                .first(key)
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
        };
        let dry_run: Vec<String> = query.all("dryRun").map(str::to_owned).collect();
        let (uid, resource_version) = (text("uid"), text("resourceVersion"));
        let has_preconditions = uid.is_some() || resource_version.is_some();
        Self::validated(Raw {
            kind: None,
            grace_period_seconds: integer(query, "gracePeriodSeconds")?,
            preconditions: has_preconditions.then_some(Preconditions {
                uid,
                resource_version,
            }),
            orphan_dependents: query.switch("orphanDependents"),
            propagation_policy: query.first("propagationPolicy").map(str::to_owned),
            dry_run: Some(dry_run),
            ignore_store_read_error_with_cluster_breaking_potential: query.switch(UNSAFE_DELETE),
        })
    }

    /// Reads and validates the options in a body. The object may name any group's version, as upstream.
    ///
    /// # Errors
    /// 400 for what cannot be read or is something else, 422 for what contradicts itself.
    pub fn from_object(object: &Value) -> Result<Self, ApiError> {
        if !object.is_object() {
            return Err(ApiError::bad_request(
                "unable to decode DeleteOptions: it is not an object",
            ));
        }
        let raw = Raw::deserialize(object)
            .map_err(|error| ApiError::bad_request(format!("unable to decode DeleteOptions: {error}")))?;
        match raw.kind.as_deref() {
            None | Some("" | "DeleteOptions") => Self::validated(raw),
            Some(_) => Err(ApiError::bad_request(
                "decoded object cannot be converted to DeleteOptions",
            )),
        }
    }

    fn validated(raw: Raw) -> Result<Self, ApiError> {
        let dry_run = raw.dry_run.unwrap_or_default();
        let ignore_store_read_error = raw
            .ignore_store_read_error_with_cluster_breaking_potential
            .unwrap_or_default();
        let mut causes = Vec::new();
        if let (Some(_), Some(policy)) = (raw.orphan_dependents, &raw.propagation_policy) {
            causes.push(field::invalid(
                "propagationPolicy",
                policy.as_str(),
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        let propagation_policy = match raw.propagation_policy.as_deref() {
            None => None,
            Some("Orphan") => Some(PropagationPolicy::Orphan),
            Some("Background") => Some(PropagationPolicy::Background),
            Some("Foreground") => Some(PropagationPolicy::Foreground),
            Some(other) => {
                causes.push(field::not_supported(
                    "propagationPolicy",
                    other,
                    &["Foreground", "Background", "Orphan", "nil"],
                ));
                None
            }
        };
        causes.extend(dry_run_cause(&dry_run));
        if ignore_store_read_error {
            let others = [
                (!dry_run.is_empty(), "dryRun"),
                (raw.propagation_policy.is_some(), "propagationPolicy"),
                (raw.orphan_dependents.is_some(), "orphanDependents"),
                (raw.grace_period_seconds.is_some(), "gracePeriodSeconds"),
                (raw.preconditions.is_some(), "preconditions"),
            ];
            let exclusive = others.iter().filter(|(set, _)| *set).map(|(_, other)| {
                field::invalid(
                    UNSAFE_DELETE,
                    true,
                    &format!("cannot be set together with .{other}"),
                )
            });
            causes.extend(exclusive);
        }
        refuse("DeleteOptions", causes)?;
        Ok(Self {
            dry_run: !dry_run.is_empty(),
            grace_period_seconds: raw.grace_period_seconds,
            propagation_policy,
            orphan_dependents: raw.orphan_dependents,
            preconditions: raw.preconditions.unwrap_or_default(),
            ignore_store_read_error,
        })
    }

    /// What happens to dependents: the policy, or what the old switch meant; `None`: the kind's default.
    #[must_use]
    pub fn propagation(&self) -> Option<PropagationPolicy> {
        match (self.propagation_policy, self.orphan_dependents) {
            (Some(policy), _) => Some(policy),
            (None, Some(true)) => Some(PropagationPolicy::Orphan),
            (None, Some(false)) => Some(PropagationPolicy::Background),
            (None, None) => None,
        }
    }

    /// The error of `ignoreStoreReadErrorWithClusterBreakingPotential` where it is not served (deletecollection upstream).
    #[must_use]
    pub fn refuse_unsafe_delete() -> ApiError {
        let cause = field::invalid(
            UNSAFE_DELETE,
            true,
            "is not allowed with DELETECOLLECTION, try again after removing the option",
        );
        ApiError::invalid(META_GROUP, "DeleteOptions", "", vec![cause])
    }
}
