//! What every replica says of the backends, where all the others read it: one Lease per replica in the server's
//! namespace, found by a label, with the report as an annotation.
//!
//! A report is as old as it is since this replica saw it change: no clocks of two machines are compared. It does not know
//! what follows from the reports (`loss`).

use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, ResourceExt};
use outrigger_apiserver::server::healthz::{HealthChecks, Probe};
use outrigger_storage::federated::WallClock;
use outrigger_storage::membership::report::{BackendReport, LOSS_AFTER, ReplicaReport};
use outrigger_storage::{Epoch, FederatedStore, Slot};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// What the Leases are found by.
const LABEL: &str = "outrigger.dev/report";
/// The report, in JSON. 512 backends are 80 KiB; all annotations of an object may have 256 KiB.
const ANNOTATION: &str = "outrigger.dev/report";
const FIELD_MANAGER: &str = "outrigger-report";
/// How often a replica reports, and reads what the others say: one that is half of `LOSS_AFTER` old does not count.
const EVERY: Duration = Duration::from_millis(1500);
/// How long that may take before it is tried anew.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);
/// What a Lease says it lasts, in seconds. For people: nobody takes it over.
const LEASE_SECONDS: i32 = 5;
/// Who has not reported for so long does not exist for those who judge: a leader need not wait for its word.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);
/// Who has not reported for so long is gone, and its Lease is deleted.
const GONE_AFTER: Duration = Duration::from_secs(180);
/// So many replicas are listened to.
const REPLICAS_MAX: u32 = 500;

/// The annotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    ready: bool,
    /// The generation of the membership that it acts on.
    #[serde(default)]
    generation: u64,
    backends: Vec<Backend>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Backend {
    slot: u16,
    uid: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unreachable_for_millis: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    clock: Option<u64>,
    #[serde(default)]
    open: bool,
}

/// What the replicas have said last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// By their names.
    replicas: BTreeMap<String, Last>,
    /// When it was read.
    at: Option<Instant>,
}

/// The last report of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Last {
    resource_version: String,
    /// When this replica saw that it had changed.
    at: Instant,
    /// What it says. `None`: nothing that can be read.
    report: Option<Report>,
}

/// What is needed to report, and to listen.
pub(crate) struct Reports {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    /// This replica's name, and that of its Lease.
    pub(crate) identity: String,
    pub(crate) store: FederatedStore,
    pub(crate) health: HealthChecks,
    pub(crate) wall_clock: WallClock,
    /// Whether this replica deletes what is left of others.
    pub(crate) is_leader: watch::Receiver<bool>,
    pub(crate) heard: watch::Sender<Arc<Heard>>,
}

/// What this replica says now.
pub(crate) fn own(store: &FederatedStore, health: &HealthChecks, identity: &str) -> ReplicaReport {
    ReplicaReport {
        replica: identity.to_owned(),
        ready: health.succeed(Probe::Readyz),
        age: Duration::ZERO,
        generation: store.acts_on(),
        backends: store.report(),
    }
}

/// Reports and listens until it is dropped.
pub(crate) async fn run(reports: Reports) {
    let leases: Api<Lease> = Api::namespaced(reports.client.clone(), &reports.namespace);
    let metadata: Api<PartialObjectMeta<Lease>> = Api::namespaced(reports.client.clone(), &reports.namespace);
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (said, heard) = tokio::join!(
            within(reports.say(&leases)),
            within(reports.listen(&leases, &metadata))
        );
        for error in [said, heard].into_iter().filter_map(Result::err) {
            tracing::debug!(error = format!("{error:#}"), "replicas do not hear of each other");
        }
    }
}

/// Takes back what this replica has said: it ends.
pub(crate) async fn withdraw(client: &Client, namespace: &str, identity: &str) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let params = DeleteParams::default();
    let deleted = within(async { Ok(leases.delete(identity, &params).await.map(drop)?) }).await;
    if let Err(error) = deleted {
        tracing::debug!(error = format!("{error:#}"), "the own report stays for a while");
    }
}

async fn within<T>(attempt: impl Future<Output = Result<T>>) -> Result<T> {
    let answer = tokio::time::timeout(ANSWERED_WITHIN, attempt).await;
    answer.context("the control plane did not answer in time")?
}

impl Reports {
    async fn say(&self, leases: &Api<Lease>) -> Result<()> {
        let report = Report::from(own(&self.store, &self.health, &self.identity));
        let now = i64::try_from((self.wall_clock)()).unwrap_or(i64::MAX);
        let now = jiff::Timestamp::from_millisecond(now).unwrap_or(jiff::Timestamp::MAX);
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.identity.clone()),
                labels: Some([(LABEL.to_owned(), "replica".to_owned())].into()),
                annotations: Some([(ANNOTATION.to_owned(), serde_json::to_string(&report)?)].into()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(LEASE_SECONDS),
                renew_time: Some(MicroTime(now)),
                ..LeaseSpec::default()
            }),
        };
        let params = PatchParams::apply(FIELD_MANAGER).force();
        leases
            .patch(&self.identity, &params, &Patch::Apply(&lease))
            .await?;
        Ok(())
    }

    async fn listen(&self, leases: &Api<Lease>, metadata: &Api<PartialObjectMeta<Lease>>) -> Result<()> {
        // From kube-apiserver's cache: it is read all the time, and a moment's delay counts as age.
        let params = ListParams {
            resource_version: Some("0".to_owned()),
            ..ListParams::default().labels(LABEL).limit(REPLICAS_MAX)
        };
        let list = metadata.list(&params).await?;
        let read = list.items.iter().map(|lease| {
            let report = lease.annotations().get(ANNOTATION);
            let report = report.and_then(|text| serde_json::from_str(text).ok());
            (
                lease.name_any(),
                lease.resource_version().unwrap_or_default(),
                report,
            )
        });
        let heard = self.heard.borrow().after(read, Instant::now());
        let gone = heard.gone(Instant::now());
        self.heard.send_replace(Arc::new(heard));
        for replica in gone.into_iter().filter(|_| *self.is_leader.borrow()) {
            leases.delete(&replica, &DeleteParams::default()).await?;
            tracing::info!(replica, "a replica that is gone is not listened to any more");
        }
        Ok(())
    }
}

impl Heard {
    /// What is known after this was read.
    fn after(&self, read: impl Iterator<Item = (String, String, Option<Report>)>, now: Instant) -> Self {
        let last = |(replica, resource_version, report): (String, String, Option<Report>)| {
            let known = self.replicas.get(&replica);
            // What is older than what is known comes from a cache that is behind: nobody has said it anew.
            let number = |version: &str| version.parse::<u64>().unwrap_or_default();
            let unchanged =
                known.filter(|known| number(&known.resource_version) >= number(&resource_version));
            let last = unchanged.cloned().unwrap_or(Last {
                resource_version,
                at: now,
                report,
            });
            (replica, last)
        };
        Self {
            replicas: read.map(last).collect(),
            at: Some(now),
        }
    }

    /// Whether the control plane has told it lately: not longer ago than a report counts.
    pub(crate) fn is_fresh(&self, now: Instant) -> bool {
        self.at
            .is_some_and(|at| now.saturating_duration_since(at) <= LOSS_AFTER / 2)
    }

    /// What all but this replica say.
    pub(crate) fn of_others(&self, identity: &str, now: Instant) -> Vec<ReplicaReport> {
        let is_there = |last: &Last| now.saturating_duration_since(last.at) < FORGOTTEN_AFTER;
        let others = self
            .replicas
            .iter()
            .filter(|(replica, last)| *replica != identity && is_there(last));
        let report = |(replica, last): (&String, &Last)| ReplicaReport {
            replica: replica.clone(),
            ready: last.report.as_ref().is_some_and(|report| report.ready),
            age: now.saturating_duration_since(last.at),
            generation: last.report.as_ref().map_or(0, |report| report.generation),
            backends: last
                .report
                .iter()
                .flat_map(|report| &report.backends)
                .map(BackendReport::from)
                .collect(),
        };
        others.map(report).collect()
    }

    /// Who has said nothing for a long time.
    fn gone(&self, now: Instant) -> Vec<String> {
        let is_gone = |last: &Last| now.saturating_duration_since(last.at) >= GONE_AFTER;
        let gone = self.replicas.iter().filter(|(_, last)| is_gone(last));
        gone.map(|(replica, _)| replica.clone()).collect()
    }
}

impl From<ReplicaReport> for Report {
    fn from(report: ReplicaReport) -> Self {
        let backend = |said: BackendReport| Backend {
            slot: said.slot.0,
            uid: said.uid,
            unreachable_for_millis: said
                .unreachable_for
                .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            clock: said.clock.map(|epoch| epoch.0),
            open: said.open,
        };
        Self {
            ready: report.ready,
            generation: report.generation,
            backends: report.backends.into_iter().map(backend).collect(),
        }
    }
}

impl From<&Backend> for BackendReport {
    fn from(said: &Backend) -> Self {
        Self {
            slot: Slot(said.slot),
            uid: said.uid.clone(),
            unreachable_for: said.unreachable_for_millis.map(Duration::from_millis),
            clock: said.clock.map(Epoch),
            open: said.open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ready: bool) -> Report {
        let backend = |unreachable_for_millis, clock, open| Backend {
            slot: 511,
            uid: "0b7a2f0c-7d0f-4b3f-9a55-0a2a3c1d4e5f".to_owned(),
            unreachable_for_millis,
            clock,
            open,
        };
        Report {
            ready,
            generation: 3,
            backends: vec![backend(None, Some(7), true), backend(Some(1500), None, false)],
        }
    }

    #[test]
    fn a_report_says_the_same_on_the_other_side() {
        let said = report(true);
        let text = serde_json::to_string(&said).expect("it can be written");
        assert_eq!(
            text,
            "{\"ready\":true,\"generation\":3,\"backends\":[{\"slot\":511,\"uid\":\"0b7a2f0c-7d0f-4b3f-9a55-0a2a3c1d4e5f\",\"clock\":7,\
             \"open\":true},{\"slot\":511,\"uid\":\"0b7a2f0c-7d0f-4b3f-9a55-0a2a3c1d4e5f\",\
             \"unreachableForMillis\":1500,\"open\":false}]}"
        );
        let read: Report = serde_json::from_str(&text).expect("it can be read");
        let report = ReplicaReport {
            replica: "a".to_owned(),
            ready: read.ready,
            age: Duration::ZERO,
            generation: read.generation,
            backends: read.backends.iter().map(BackendReport::from).collect(),
        };
        assert_eq!(Report::from(report), said);
    }

    #[test]
    fn a_report_of_the_largest_fleet_fits() {
        let mut largest = report(true);
        let longest = Backend {
            unreachable_for_millis: Some(u64::MAX),
            clock: Some(1 << 36),
            ..largest.backends.remove(0)
        };
        largest.backends = vec![longest; 512];
        let text = serde_json::to_string(&largest).expect("it can be written");
        assert!(text.len() < 128 << 10, "{} bytes", text.len());
    }

    #[test]
    fn a_report_ages_while_it_does_not_change() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let lease = |replica: &str, version: &str, report| (replica.to_owned(), version.to_owned(), report);
        let (a, b) = (Some(report(true)), Some(report(false)));
        let first = [lease("a", "1", a.clone()), lease("b", "2", b)];
        let heard = Heard::default().after(first.into_iter(), at(0));
        let second = [lease("a", "3", a), lease("b", "2", None), lease("c", "4", None)];
        let heard = heard.after(second.into_iter(), at(4));
        let check = |own: &str, now: u64, expect: &[(&str, bool, u64, usize)]| {
            let reports = heard.of_others(own, at(now));
            let said: Vec<_> = reports
                .iter()
                .map(|r| (r.replica.as_str(), r.ready, r.age.as_secs(), r.backends.len()))
                .collect();
            assert_eq!(said, expect);
        };
        check("a", 6, &[("b", false, 6, 2), ("c", false, 2, 0)]);
        check("c", 6, &[("a", true, 2, 2), ("b", false, 6, 2)]);
        check("c", 30, &[("a", true, 26, 2)]);
        assert_eq!([4, 9, 10].map(|now| heard.is_fresh(at(now))), [true, true, false]);
        assert_eq!(heard.gone(at(179)), Vec::<String>::new());
        assert_eq!(heard.gone(at(180)), ["b"]);
        assert_eq!(heard.after(std::iter::empty(), at(5)).of_others("c", at(5)), []);
    }
}
