//! What is said of clusters that are away: lost, offline, under maintenance, or older than they were.

use super::super::{Known, Wanted};
use super::{
    AWAITS_CONFIRMATION, Condition, MAINTENANCE, OFFLINE_CONDITION, RESTORED, Spec, asks_for_acceptance,
    condition_of,
};
use outrigger_storage::federated::ClusterStatus;
use outrigger_storage::membership::MemberState;
use serde_json::Value;
use std::time::Duration;

/// How long maintenance holds back the declaration of a loss.
const MAINTENANCE_MAX: Duration = Duration::from_secs(60 * 60);

pub(super) fn is_lost(known: &Known<'_>) -> bool {
    matches!(known.decided, Some(MemberState::Lost { .. }))
}

pub(super) fn is_offline(known: &Known<'_>) -> bool {
    matches!(known.decided, Some(MemberState::Offline { .. }))
}

/// Of one that is, or is to be, taken offline: whether it is.
pub(super) fn offline(known: &Known<'_>, wanted: Wanted) -> Option<Condition> {
    let (status, reason, message) = match (is_offline(known), wanted) {
        (true, Wanted::Offline { is_confirmed: true }) => ("True", "AsWanted", OFFLINE),
        (true, _) => (
            "True",
            "Returning",
            "It serves again as soon as all replicas reach the backend. Versions from before expire then.",
        ),
        (false, Wanted::Offline { is_confirmed: false }) => (
            "False",
            "NotConfirmed",
            "Nothing is done yet: to be taken offline makes the namespaces of the cluster unavailable. Confirm it by \
             writing the cluster's name into spec.confirmDataLoss.",
        ),
        (false, Wanted::Offline { is_confirmed: true }) => (
            "False",
            "Deciding",
            "The replicas are being told to go on without it.",
        ),
        (false, _) => return None,
    };
    Some(Condition {
        kind: OFFLINE_CONDITION,
        status,
        reason,
        message: message.to_owned(),
    })
}

/// What the conditions say of one that is offline.
pub(super) const OFFLINE: &str = "It was taken offline. Its namespaces answer 503, lists over all namespaces leave it out, and nothing \
                       of it counts as deleted. With spec.state Active it comes back when all replicas reach it; clients \
                       list anew then.";

/// Whether the replicas agree that it is lost. Its last transition says since when.
pub(super) fn lost(known: &Known<'_>, is_held_back: bool) -> Option<Condition> {
    known.decided.filter(|_| !is_offline(known))?;
    let is_away = known.cluster.is_some_and(|cluster| !cluster.reachable);
    let (status, reason, message) = match (is_lost(known), is_away, is_held_back) {
        (true, true, _) => ("True", "Declared", LOST),
        (true, false, _) => (
            "True",
            "Returning",
            "The backend answers again; it serves as soon as all replicas reach it.",
        ),
        (false, true, true) => (
            "False",
            "HeldBack",
            "The backend does not answer; that it is lost is not declared during maintenance. Watches over all \
             namespaces wait for it.",
        ),
        (false, true, false) => (
            "False",
            "NotDeclared",
            "The backend does not answer this replica. It is lost when no replica has reached it for 10 seconds.",
        ),
        (false, false, _) => ("False", "Reachable", "The backend is there."),
    };
    Some(Condition {
        kind: "Lost",
        status,
        reason,
        message: message.to_owned(),
    })
}

/// What the conditions say of one that is lost.
pub(super) const LOST: &str = "No replica can reach the backend. Its namespaces and lists over all namespaces answer 503; tables \
                    for people leave it out with a warning. Other namespaces, and watches over all namespaces that run \
                    already, go on. Nothing of it counts as deleted. It serves again by itself when all replicas reach it.";

/// Of one that is under maintenance: whether its loss is still held back.
pub(super) fn maintenance(old: &Value, spec: Spec, now_ms: u64) -> Option<Condition> {
    if spec.wanted != Wanted::Maintenance {
        return None;
    }
    let before = condition_of(old, MAINTENANCE);
    let since = before.and_then(|c| c["lastTransitionTime"].as_str()?.parse::<jiff::Timestamp>().ok());
    let since_ms = since.and_then(|since| u64::try_from(since.as_millisecond()).ok());
    let max_ms = u64::try_from(MAINTENANCE_MAX.as_millis()).unwrap_or(u64::MAX);
    let is_over = match before.and_then(|c| c["status"].as_str()) {
        Some("True") => since_ms.is_some_and(|since| since.saturating_add(max_ms) <= now_ms),
        Some("False") => true,
        _ => false,
    };
    let (status, reason, message) = match is_over {
        false => (
            "True",
            "LossHeldBack",
            "The backend is not declared lost for an hour from here on.",
        ),
        true => (
            "False",
            "Over",
            "The hour is over: the backend is declared lost like any other. It begins anew with spec.state Active, then \
             Maintenance.",
        ),
    };
    Some(Condition {
        kind: MAINTENANCE,
        status,
        reason,
        message: message.to_owned(),
    })
}

/// Whether it is older than it was. To be accepted as it is, it has to be confirmed after this was known: a confirmation from
/// before was given for something else.
pub(super) fn restored(old: &Value, cluster: &ClusterStatus, spec: Spec) -> Condition {
    let is_for_offline = matches!(spec.wanted, Wanted::Offline { .. });
    let is_spent = spec.is_loss_confirmed && (is_for_offline || !asks_for_acceptance(old));
    let (status, reason, message) = match (&cluster.problem, cluster.restored) {
        (Some(problem), true) if is_spent => (
            "True",
            "ConfirmedBefore",
            format!(
                "{problem}. Bring its data back. Or, to accept it as it is, remove spec.confirmDataLoss, which was \
                 written for something else, and write the cluster's name into it again, with state Active."
            ),
        ),
        (Some(problem), true) => (
            "True",
            AWAITS_CONFIRMATION,
            format!(
                "{problem}. Bring its data back. Or, to accept it as it is, write the cluster's name into \
                 spec.confirmDataLoss: what was acknowledged since is gone then, and clients list anew."
            ),
        ),
        _ => (
            "False",
            "AsSeen",
            "The backend is not older than it was.".to_owned(),
        ),
    };
    Condition {
        kind: RESTORED,
        status,
        reason,
        message,
    }
}
