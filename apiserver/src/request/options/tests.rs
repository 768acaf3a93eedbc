//! Every row of the tables that clients rely on: status codes and messages.

use super::*;
use outrigger_storage::Epoch;

const PODS: GroupResource<'static> = GroupResource {
    group: "",
    resource: "pods",
};

fn show<T: std::fmt::Debug>(result: Result<T, ApiError>) -> String {
    result.map_or_else(
        |error| format!("{} {}", error.code, error.message),
        |value| format!("{value:?}"),
    )
}

fn forbidden_match(text: &str) -> String {
    format!("422 ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: {text}")
}

#[test]
fn what_a_list_shows() {
    let check = |query: &str, expect: &str| {
        let version = ListOptions::parse(&Query::parse(query), false).and_then(|o| o.version());
        assert_eq!(show(version), expect, "{query}");
    };
    let n = ResourceVersion::cut(Epoch(7));
    let (exact, newer) = (
        format!("{:?}", ListVersion::Exact(n)),
        format!("{:?}", ListVersion::NotOlderThan(n)),
    );
    let token = "eyJ2IjoxLCJydiI6OTM5NTI0MDk2LCJucyI6Im4iLCJuIjoiYSIsInMiOjV9";
    let decoded = ContinueToken::decode(token).expect("a token of ours");
    let continued = format!("{:?}", ListVersion::Continue(decoded));
    check("", "MostRecent");
    check("limit=5", "MostRecent");
    check("resourceVersion=0", "Any");
    check("resourceVersion=0&limit=3", "Any");
    check("resourceVersion=0&resourceVersionMatch=NotOlderThan", "Any");
    check(&format!("resourceVersion={n}"), &newer);
    check(&format!("resourceVersion={n}&limit=5"), &exact);
    check(&format!("resourceVersion={n}&limit=0"), &newer);
    check(&format!("resourceVersion={n}&resourceVersionMatch=Exact"), &exact);
    check(
        &format!("resourceVersion={n}&resourceVersionMatch=NotOlderThan&limit=5"),
        &newer,
    );
    check(&format!("continue={token}"), &continued);
    check(&format!("continue={token}&resourceVersion=0&limit=5"), &continued);

    check(
        "resourceVersionMatch=Exact",
        &forbidden_match("resourceVersionMatch is forbidden unless resourceVersion is provided"),
    );
    check(
        "resourceVersion=0&resourceVersionMatch=Exact",
        &forbidden_match("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""),
    );
    check(
        &format!("continue={token}&resourceVersion={n}"),
        "400 specifying resource version is not allowed when using continue",
    );
    check(
        &format!("continue={token}&resourceVersion={n}&resourceVersionMatch=Exact"),
        &forbidden_match("resourceVersionMatch is forbidden when continue is provided"),
    );
    check(
        "continue=x",
        "400 invalid continue token: continue key is not valid: it is not base64url",
    );
    check(
        "resourceVersion=1&resourceVersionMatch=Newest",
        "422 ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Unsupported value: \"Newest\": supported values: \"Exact\", \"NotOlderThan\", \"\"",
    );
    check(
        "resourceVersionMatch=Newest",
        "422 ListOptions.meta.k8s.io \"\" is invalid: [resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided, \
         resourceVersionMatch: Unsupported value: \"Newest\": supported values: \"Exact\", \"NotOlderThan\", \"\"]",
    );
    check(
        "sendInitialEvents=true",
        "422 ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list",
    );
    check(
        "resourceVersion=abc",
        "400 invalid resource version: resourceVersion: Invalid value: \"abc\": strconv.ParseUint: parsing \"abc\": invalid syntax",
    );
    check(
        "resourceVersion=-1",
        "400 invalid resource version: resourceVersion: Invalid value: \"-1\": strconv.ParseUint: parsing \"-1\": invalid syntax",
    );
    check("limit=x", "400 strconv.ParseInt: parsing \"x\": invalid syntax");
    check("limit=", "400 strconv.ParseInt: parsing \"\": invalid syntax");
    check(
        "timeoutSeconds=99999999999999999999",
        "400 strconv.ParseInt: parsing \"99999999999999999999\": value out of range",
    );
    check("limit=-5&unknown=parameter&watch=0", "MostRecent");
}

#[test]
fn where_a_watch_starts() {
    let check = |query: &str, expect: &str| {
        let start = ListOptions::parse(&Query::parse(query), true).and_then(|o| o.watch_start(PODS));
        assert_eq!(show(start), expect, "{query}");
    };
    let n = ResourceVersion::cut(Epoch(7));
    let after = format!("{:?}", WatchStart::After(n));
    let initial = format!("{:?}", WatchStart::Initial(ListVersion::NotOlderThan(n)));
    let newer = "resourceVersionMatch=NotOlderThan";
    check("", "Initial(MostRecent)");
    check("resourceVersion=0", "Initial(Any)");
    check(&format!("resourceVersion={n}"), &after);
    check(&format!("sendInitialEvents=true&{newer}"), "Initial(MostRecent)");
    check(
        &format!("sendInitialEvents=true&{newer}&resourceVersion=0"),
        "Initial(Any)",
    );
    check(
        &format!("sendInitialEvents=true&{newer}&resourceVersion={n}"),
        &initial,
    );
    check(&format!("sendInitialEvents=false&{newer}"), "Now");
    check(
        &format!("sendInitialEvents=false&{newer}&resourceVersion=0"),
        "Now",
    );
    check(
        &format!("sendInitialEvents=false&{newer}&resourceVersion={n}"),
        &after,
    );

    let requires = forbidden_match("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
    check("sendInitialEvents=true", &requires);
    check("sendInitialEvents=false&resourceVersion=5", &requires);
    check(
        newer,
        &forbidden_match("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"),
    );
    check(
        "resourceVersionMatch=Exact&resourceVersion=5",
        "422 ListOptions.meta.k8s.io \"\" is invalid: [resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided, \
         resourceVersionMatch: Unsupported value: \"Exact\": supported values: \"NotOlderThan\"]",
    );
    check(
        &format!("sendInitialEvents=true&{newer}&continue=x"),
        &forbidden_match("resourceVersionMatch is forbidden when continue is provided"),
    );
    check(
        "resourceVersion=abc",
        "422 pods \"\" is invalid: resourceVersion: Invalid value: \"abc\": strconv.ParseUint: parsing \"abc\": invalid syntax",
    );
}

#[test]
fn watch_details() {
    let parse = |query: &str| ListOptions::parse(&Query::parse(query), false).expect("options");
    assert!(parse("watch=1&allowWatchBookmarks=1").wants_initial_events_end());
    assert!(!parse("watch=1").wants_initial_events_end());
    assert!(!parse("watch=1&resourceVersion=5&allowWatchBookmarks=1").wants_initial_events_end());
    assert_eq!(
        parse("watch=1&timeoutSeconds=7").watch_timeout(),
        Some(Duration::from_secs(7))
    );
    assert_eq!(parse("watch=1&timeoutSeconds=0").watch_timeout(), None);
    assert_eq!(
        parse("watch=1&timeoutSeconds=-3").watch_timeout(),
        Some(Duration::ZERO)
    );
}

#[test]
fn selectors() {
    let check = |query: &str, expect: Result<(), u16>| {
        let options = ListOptions::parse(&Query::parse(query), false);
        assert_eq!(options.map(|_| ()).map_err(|e| e.code), expect, "{query}");
    };
    check("labelSelector=a%3Db,c+in+(d,e),!f", Ok(()));
    check("labelSelector=", Ok(()));
    check("labelSelector=a+in+(", Err(400));
    check("fieldSelector=metadata.name%3Da", Ok(()));
    check("fieldSelector=metadata.name", Err(400));
    check("shardSelector=", Ok(()));
    check(
        "shardSelector=shardRange(object.metadata.uid,+'0x0000000000000000',+'0x8000000000000000')",
        Ok(()),
    );
    check("shardSelector=half", Err(400));
}

#[test]
fn gets() {
    let check = |query: &str, expect: &str| {
        assert_eq!(
            show(GetOptions::parse(&Query::parse(query)).map(|o| o.not_older_than)),
            expect,
            "{query}"
        )
    };
    check("", "None");
    check("resourceVersion=0", "None");
    check("resourceVersion=134217728", "Some((1, 0, 0))");
    check(
        "resourceVersion=x",
        "400 invalid resource version: resourceVersion: Invalid value: \"x\": strconv.ParseUint: parsing \"x\": invalid syntax",
    );
    check(
        "resourceVersion=007",
        "400 invalid resource version: resourceVersion: Invalid value: \"007\": invalid resource version \"007\": it must be a decimal integer that starts with 1 to 9",
    );
}

#[test]
fn writes() {
    let check = |query: &str, expect: &str| {
        let options = WriteOptions::parse_create(&Query::parse(query))
            .map(|o| (o.dry_run, o.field_manager, o.field_validation));
        assert_eq!(show(options), expect, "{query}");
    };
    let invalid = |text: &str| format!("422 CreateOptions.meta.k8s.io \"\" is invalid: {text}");
    check("", "(false, \"\", Warn)");
    check(
        "dryRun=All&dryRun=All&fieldManager=kubectl-create&fieldValidation=Strict",
        "(true, \"kubectl-create\", Strict)",
    );
    check("fieldValidation=Ignore", "(false, \"\", Ignore)");
    check(
        "dryRun=",
        &invalid("dryRun: Unsupported value: [\"\"]: supported values: \"All\""),
    );
    check(
        "dryRun=All&dryRun=x",
        &invalid("dryRun: Unsupported value: [\"All\",\"x\"]: supported values: \"All\""),
    );
    check(
        "fieldValidation=strict",
        &invalid(
            "fieldValidation: Unsupported value: \"strict\": supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"",
        ),
    );
    check(
        &format!("fieldManager={}", "m".repeat(129)),
        &invalid("fieldManager: Too long: may not be more than 128 bytes"),
    );
    check(
        "fieldManager=a%07",
        &invalid("fieldManager: Invalid value: \"a\\u0007\": invalid character U+0007 (at position 1)"),
    );
    let update = WriteOptions::parse_update(&Query::parse("dryRun=x")).map_err(|e| e.message);
    assert_eq!(update, Err("UpdateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"x\"]: supported values: \"All\"".to_owned()));
}

#[test]
fn patches() {
    let check = |query: &str, apply: bool, expect: &str| {
        let options =
            PatchOptions::parse(&Query::parse(query), apply).map(|o| (o.force, o.write.field_manager));
        assert_eq!(show(options), expect, "{query}");
    };
    check("", false, "(false, \"\")");
    check("fieldManager=me&force=true", true, "(true, \"me\")");
    check(
        "",
        true,
        "422 PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
    );
    check(
        "force=false",
        false,
        "422 PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch",
    );
}

#[test]
fn tables() {
    let check =
        |query: &str, expect: &str| assert_eq!(show(IncludeObject::parse(&Query::parse(query))), expect);
    check("", "Metadata");
    check("includeObject=Object", "Object");
    check(
        "includeObject=x",
        "400 Unable to convert to Table as requested: includeObject: Invalid value: \"x\": must be 'Metadata', 'Object', 'None', or empty",
    );
}

#[test]
fn deletes() {
    let invalid = |text: &str| format!("422 DeleteOptions.meta.k8s.io \"\" is invalid: {text}");
    let query = |query: &str, expect: &str| {
        let options = DeleteOptions::from_query(&Query::parse(query));
        assert_eq!(
            show(options.map(|o| (
                o.dry_run,
                o.propagation(),
                o.grace_period_seconds,
                o.preconditions.uid,
                o.preconditions.resource_version
            ))),
            expect,
            "{query}"
        );
    };
    query("", "(false, None, None, None, None)");
    query(
        "dryRun=All&propagationPolicy=Orphan&gracePeriodSeconds=0&uid=u&resourceVersion=7",
        "(true, Some(Orphan), Some(0), Some(\"u\"), Some(\"7\"))",
    );
    query("orphanDependents=true", "(false, Some(Orphan), None, None, None)");
    query(
        "orphanDependents=false",
        "(false, Some(Background), None, None, None)",
    );
    query(
        "orphanDependents=true&propagationPolicy=Background",
        &invalid(
            "propagationPolicy: Invalid value: \"Background\": orphanDependents and deletionPropagation cannot be both set",
        ),
    );
    query(
        "propagationPolicy=x",
        &invalid(
            "propagationPolicy: Unsupported value: \"x\": supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\"",
        ),
    );
    query(
        "gracePeriodSeconds=x",
        "400 strconv.ParseInt: parsing \"x\": invalid syntax",
    );
    query(
        "ignoreStoreReadErrorWithClusterBreakingPotential=1&dryRun=All&uid=u",
        &invalid(
            "[ignoreStoreReadErrorWithClusterBreakingPotential: Invalid value: true: cannot be set together with .dryRun, \
             ignoreStoreReadErrorWithClusterBreakingPotential: Invalid value: true: cannot be set together with .preconditions]",
        ),
    );

    let body = |body: &str, expect: &str| {
        let options = DeleteOptions::from_object(&serde_json::from_str(body).expect("JSON"));
        assert_eq!(
            show(options.map(|o| (o.dry_run, o.propagation(), o.preconditions.uid))),
            expect,
            "{body}"
        );
    };
    body("{}", "(false, None, None)");
    body(
        r#"{"kind":"DeleteOptions","apiVersion":"policy/v1","propagationPolicy":"Foreground","dryRun":["All"],"other":1}"#,
        "(true, Some(Foreground), None)",
    );
    body(
        r#"{"preconditions":{"uid":"u"},"orphanDependents":null}"#,
        "(false, None, Some(\"u\"))",
    );
    body(
        r#"{"kind":"Pod"}"#,
        "400 decoded object cannot be converted to DeleteOptions",
    );
    body(
        r#"{"gracePeriodSeconds":"x"}"#,
        "400 unable to decode DeleteOptions: invalid type: string \"x\", expected i64",
    );
    body("[]", "400 unable to decode DeleteOptions: it is not an object");
}
