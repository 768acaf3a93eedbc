//! Decisions as data: CRDs and APIServices in, verdicts and registrations out.

use super::*;
use crate::condition::Condition;

const BUNDLE: &[u8] = b"PEM";

pub(crate) fn service() -> ServiceReference {
    ServiceReference {
        namespace: "outrigger-system".to_owned(),
        name: "outrigger".to_owned(),
        port: 443,
    }
}

/// A CRD of group example.com that nobody has annotated.
pub(crate) fn crd(plural: &str, versions: &[&str]) -> Crd {
    let versions: Vec<String> = versions.iter().map(|v| (*v).to_owned()).collect();
    Crd {
        name: format!("{plural}.example.com"),
        uid: "uid".to_owned(),
        resource_version: "1".to_owned(),
        generation: 1,
        group: "example.com".to_owned(),
        plural: plural.to_owned(),
        kind: plural.to_owned(),
        is_namespaced: true,
        is_converted: false,
        served: versions.clone(),
        stored_versions: versions.first().cloned().into_iter().collect(),
        versions,
        is_wanted: false,
        is_release_confirmed: false,
        is_without_admission: false,
        is_established: true,
        is_deleting: false,
        has_finalizer: false,
        phase: Phase::Away,
        conditions: Vec::new(),
    }
}

fn wanted(plural: &str, versions: &[&str]) -> Crd {
    Crd {
        is_wanted: true,
        ..crd(plural, versions)
    }
}

fn distributed(plural: &str, versions: &[&str]) -> Crd {
    Crd {
        phase: Phase::Distributed,
        has_finalizer: true,
        ..wanted(plural, versions)
    }
}

fn local(version: &str) -> ApiService {
    ApiService {
        name: format!("{version}.example.com"),
        uid: "uid".to_owned(),
        resource_version: "1".to_owned(),
        group: "example.com".to_owned(),
        version: version.to_owned(),
        is_automanaged: true,
        is_labelled: false,
        kinds: String::new(),
        service: None,
        ca_bundle: Vec::new(),
        skips_verification: false,
        priorities: PRIORITIES,
        is_available: false,
        why_unavailable: String::new(),
    }
}

fn ours(version: &str) -> ApiService {
    ApiService {
        is_automanaged: false,
        is_labelled: true,
        service: Some(service()),
        ca_bundle: BUNDLE.to_vec(),
        is_available: true,
        ..local(version)
    }
}

fn others(version: &str) -> ApiService {
    ApiService {
        is_labelled: false,
        service: Some(ServiceReference {
            name: "metrics".to_owned(),
            ..service()
        }),
        ..ours(version)
    }
}

/// One word for each CRD: the verdict, with the reason if there is one; and the registrations.
fn decided(
    crds: &[Crd],
    api_services: &[ApiService],
    matched: &[&str],
    bundle: &[u8],
) -> (Vec<String>, Vec<String>) {
    let crds = crds.iter().map(|c| (c.name.clone(), c.clone())).collect();
    let api_services = api_services.iter().map(|a| (a.name.clone(), a.clone())).collect();
    let hook = |plural: &&str| (format!("{plural}.example.com"), vec!["hook".to_owned()]);
    let service = service();
    let plan = plan(Inputs {
        crds: &crds,
        api_services: &api_services,
        service: &service,
        bundle,
        matched: &matched.iter().map(hook).collect(),
    });
    let word = |verdict: &Verdict| match verdict {
        Verdict::LeaveAlone => "leave".to_owned(),
        Verdict::Refused(finding) => finding.reason.to_owned(),
        Verdict::TakeOver => "take".to_owned(),
        Verdict::Hold(None) => "hold".to_owned(),
        Verdict::Hold(Some(finding)) => format!("hold {}", finding.reason),
        Verdict::GiveBack => "give".to_owned(),
        Verdict::Remove => "remove".to_owned(),
    };
    let registered =
        |(name, r): (&String, &Registration)| format!("{} {r:?}", name.trim_end_matches(".example.com"));
    (
        plan.verdicts.values().map(word).collect(),
        plan.registrations.iter().map(registered).collect(),
    )
}

#[track_caller]
fn check(name: &str, crds: &[Crd], api_services: &[ApiService], verdicts: &str, registrations: &str) {
    check_with(name, crds, api_services, &[], BUNDLE, verdicts, registrations);
}

#[track_caller]
fn check_with(
    name: &str,
    crds: &[Crd],
    api_services: &[ApiService],
    matched: &[&str],
    bundle: &[u8],
    verdicts: &str,
    registrations: &str,
) {
    let (found, registered) = decided(crds, api_services, matched, bundle);
    assert_eq!(
        (found.join(", ").as_str(), registered.join(", ").as_str()),
        (verdicts, registrations),
        "{name}"
    );
}

#[test]
fn a_kind_moves_with_all_that_shares_its_group_versions() {
    let [v1, v2] = [local("v1"), local("v2")];
    check(
        "nobody asks",
        &[crd("apps", &["v1"])],
        std::slice::from_ref(&v1),
        "leave",
        "",
    );
    check(
        "one",
        &[wanted("apps", &["v1", "v2"])],
        &[v1.clone(), v2.clone()],
        "take",
        "",
    );
    let both = [wanted("apps", &["v1"]), crd("dbs", &["v1"])];
    check(
        "half a group",
        &both,
        std::slice::from_ref(&v1),
        "NotAllAnnotated, leave",
        "",
    );
    let both = [wanted("apps", &["v1"]), crd("dbs", &["v2"])];
    check(
        "no version in common",
        &both,
        &[v1.clone(), v2.clone()],
        "take, leave",
        "",
    );
    let three = [
        wanted("apps", &["v1"]),
        wanted("dbs", &["v1", "v2"]),
        crd("queues", &["v2"]),
    ];
    check(
        "over two steps",
        &three,
        &[v1.clone(), v2],
        "NotAllAnnotated, NotAllAnnotated, leave",
        "",
    );
    let unready = Crd {
        is_established: false,
        ..wanted("dbs", &["v1"])
    };
    let both = [wanted("apps", &["v1"]), unready];
    check("not ready", &both, &[v1], "OthersRefused, NotEstablished", "");
}

#[test]
fn what_is_in_the_way_is_said() {
    let apps = || [wanted("apps", &["v1"])];
    check(
        "others' APIService",
        &apps(),
        &[others("v1")],
        "ServedByOthers",
        "",
    );
    let converted = |crd| Crd {
        is_converted: true,
        ..crd
    };
    let conversion = "ConversionNotSupported";
    check(
        "a webhook",
        &[converted(wanted("apps", &["v1", "v2"]))],
        &[local("v1")],
        conversion,
        "",
    );
    let held = [converted(distributed("apps", &["v1", "v2"]))];
    let theirs = [ours("v1"), ours("v2")];
    check(
        "a webhook later",
        &held,
        &theirs,
        "hold ConversionNotSupported",
        "v1 Ours, v2 Ours",
    );
    check_with(
        "no authority",
        &apps(),
        &[local("v1")],
        &[],
        b"",
        "NoCertificateAuthority",
        "",
    );
    check_with(
        "admission",
        &apps(),
        &[local("v1")],
        &["apps"],
        BUNDLE,
        "PoliciesNotEnforced",
        "",
    );
    let accepted = Crd {
        is_without_admission: true,
        ..wanted("apps", &["v1"])
    };
    check_with(
        "accepted",
        &[accepted],
        &[local("v1")],
        &["apps"],
        BUNDLE,
        "take",
        "",
    );
    let deleting = Crd {
        is_deleting: true,
        ..wanted("apps", &["v1"])
    };
    check("deleted on the way", &[deleting], &[local("v1")], "leave", "");
}

#[test]
fn what_is_ours_is_put_right() {
    let apps = || [distributed("apps", &["v1", "v2"])];
    let all = "v1 Ours, v2 Ours";
    check("as it should be", &apps(), &[ours("v1"), ours("v2")], "hold", all);
    check(
        "deleted, and made again by kube-apiserver",
        &apps(),
        &[local("v1"), ours("v2")],
        "hold",
        all,
    );
    check("deleted", &apps(), &[ours("v2")], "hold", all);
    let wiped = Crd {
        phase: Phase::Away,
        ..distributed("apps", &["v1", "v2"])
    };
    check(
        "its conditions are gone",
        std::slice::from_ref(&wiped),
        &[ours("v1"), local("v2")],
        "hold",
        all,
    );
    check("never ours", &[wiped], &[local("v1"), local("v2")], "take", "");
    check_with(
        "a policy came later",
        &apps(),
        &[ours("v1"), ours("v2")],
        &["apps"],
        BUNDLE,
        "hold PoliciesNotEnforced",
        all,
    );
    check_with(
        "the bundle is not known",
        &apps(),
        &[ours("v1"), ours("v2")],
        &[],
        b"",
        "hold",
        "",
    );
    let moved = ApiService {
        service: others("v1").service,
        ..ours("v1")
    };
    check(
        "the Service was renamed",
        &apps(),
        &[moved, ours("v2")],
        "hold",
        all,
    );
    check(
        "another's now",
        &apps(),
        &[others("v1"), ours("v2")],
        "hold",
        "v2 Ours",
    );
}

#[test]
fn a_new_kind_in_our_group_version_is_dark_until_it_joins() {
    let held = || distributed("apps", &["v1"]);
    let check = |name: &str, other: Crd, verdicts: &str| {
        check(name, &[held(), other], &[ours("v1")], verdicts, "v1 Ours");
    };
    check(
        "not annotated",
        crd("dbs", &["v1"]),
        "hold, GroupVersionDistributed",
    );
    check("annotated", wanted("dbs", &["v1"]), "hold, take");
}

#[test]
fn it_goes_back_as_a_whole_or_not_at_all() {
    let released = |plural: &str, phase| Crd {
        is_wanted: false,
        phase,
        ..distributed(plural, &["v1"])
    };
    let v1 = [ours("v1")];
    check("alone", &[released("apps", Phase::Distributed)], &v1, "give", "");
    check(
        "closed already",
        &[released("apps", Phase::Releasing)],
        &v1,
        "give",
        "",
    );
    let both = [released("apps", Phase::Distributed), distributed("dbs", &["v1"])];
    check("one of two", &both, &v1, "hold NotAllReleased, hold", "v1 Ours");
    let both = [
        released("apps", Phase::Distributed),
        released("dbs", Phase::Distributed),
    ];
    check("both", &both, &v1, "give, give", "");
    let back = Crd {
        phase: Phase::Releasing,
        ..distributed("apps", &["v1"])
    };
    check("changed their mind", &[back], &v1, "hold", "v1 Ours");
    let switching = Crd {
        phase: Phase::Switching,
        ..crd("apps", &["v1"])
    };
    check("on the way here", &[switching], &[local("v1")], "give", "");
}

#[test]
fn a_deleted_crd_keeps_its_api_service_to_the_end() {
    let deleting = Crd {
        is_deleting: true,
        ..distributed("apps", &["v1"])
    };
    check(
        "objects first",
        std::slice::from_ref(&deleting),
        &[ours("v1")],
        "remove",
        "v1 Ours",
    );
    check("gone", &[], &[ours("v1")], "", "v1 Deleted");
    check("others' are not touched", &[], &[others("v1")], "", "");
    let both = [deleting, distributed("dbs", &["v1"])];
    check("another stays", &both, &[ours("v1")], "remove, hold", "v1 Ours");
    check(
        "another, not ours, is left",
        &[crd("dbs", &["v1"])],
        &[ours("v1")],
        "GroupVersionDistributed",
        "v1 Local",
    );
}

#[test]
fn a_kind_takes_writes_only_when_it_is_ours_for_good() {
    let service = service();
    let check = |crd: Crd, expect: Option<KindState>| {
        let name = crd.name.clone();
        let kinds = kinds(Inputs {
            crds: &BTreeMap::from([(name.clone(), crd)]),
            api_services: &BTreeMap::new(),
            service: &service,
            bundle: BUNDLE,
            matched: &BTreeMap::new(),
        });
        assert_eq!(kinds.get(&name).copied(), expect);
    };
    let phase = |phase| Crd {
        phase,
        ..distributed("apps", &["v1"])
    };
    check(crd("apps", &["v1"]), None);
    check(wanted("apps", &["v1"]), Some(KindState::Closed));
    check(phase(Phase::Switching), Some(KindState::Closed));
    check(phase(Phase::Distributed), Some(KindState::Open));
    check(phase(Phase::Releasing), Some(KindState::Closed));
    let deleting = Crd {
        is_deleting: true,
        ..phase(Phase::Distributed)
    };
    check(deleting, Some(KindState::Terminating));
}

#[test]
fn an_api_service_tells_the_kinds_behind_it() {
    let dbs = Crd {
        generation: 3,
        ..distributed("dbs", &["v1", "v2"])
    };
    let crds = [wanted("apps", &["v1"]), dbs, crd("others", &["v1"])];
    let crds: BTreeMap<String, Crd> = crds.into_iter().map(|c| (c.name.clone(), c)).collect();
    let check = |version: &str, expect: &str| {
        let inputs = Inputs {
            crds: &crds,
            api_services: &BTreeMap::new(),
            service: &service(),
            bundle: BUNDLE,
            matched: &BTreeMap::new(),
        };
        assert_eq!(kinds_of(inputs, &format!("{version}.example.com")), expect);
    };
    check("v1", "apps/1 closed, dbs/3 open");
    check("v2", "dbs/3 open");
    check("v3", "");
}

#[test]
fn an_api_service_is_right_in_every_field_that_matters() {
    let check = |name: &str, change: &dyn Fn(&mut ApiService), expect: bool| {
        let mut found = ours("v1");
        change(&mut found);
        assert_eq!(is_as_desired(&found, &service(), BUNDLE, ""), expect, "{name}");
    };
    check("as applied", &|_| {}, true);
    check(
        "kube-apiserver would take it back",
        &|a| a.is_automanaged = true,
        false,
    );
    check("unlabelled", &|a| a.is_labelled = false, false);
    check(
        "another port",
        &|a| a.service.as_mut().expect("ours").port = 8443,
        false,
    );
    check("an old bundle", &|a| a.ca_bundle.clear(), false);
    check("unverified", &|a| a.skips_verification = true, false);
    check("another order", &|a| a.priorities.1 = 10, false);
    check("other kinds", &|a| a.kinds = "apps/1 open".to_owned(), false);
    check("not available", &|a| a.is_available = false, true);
}

#[test]
fn conditions_are_written_once_and_keep_their_times() {
    let finding = Finding::no(crate::condition::OBJECTS_EXIST, "there are some");
    let mut crd = wanted("apps", &["v1"]);
    let first = crate::condition::desired(&crd, Some(&finding), "t1").expect("new");
    let shown: Vec<(&str, &str)> = first
        .iter()
        .map(|c| (c.type_.as_str(), c.status.as_str()))
        .collect();
    assert_eq!(shown, [("Distributed", "False"), ("ObjectsExist", "True")]);
    let established = Condition {
        type_: "Established".to_owned(),
        ..Condition::default()
    };
    crd.conditions = [vec![established], first].concat();
    assert_eq!(
        crate::condition::desired(&crd, Some(&finding), "t2"),
        None,
        "nothing new"
    );
    let other = Finding::no("NotEstablished", "it is not");
    let second = crate::condition::desired(&crd, Some(&other), "t2").expect("new");
    assert_eq!(second.len(), 1, "what is not so any more is not said");
    assert_eq!(
        second[0].last_transition_time.as_deref(),
        Some("t1"),
        "still False"
    );
    assert_eq!(crate::condition::desired(&crd, None, "t2"), Some(Vec::new()));
}
