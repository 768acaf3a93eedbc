//! What clients ask for, and what they get.

use super::*;
use MediaType::{Json, Protobuf, Yaml};
use MetaVersion::{V1, V1Beta1};

const KUBECTL_GET: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
const METADATA_CLIENT: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

#[test]
fn output() {
    let check =
        |accept: &str, builtin: bool, response: ResponseKind, expect: Result<(MediaType, Target), u16>| {
            let got = negotiate_output(Some(accept), None, None, response, builtin);
            assert_eq!(
                got.map(|r| (r.media_type, r.target)).map_err(|e| e.code),
                expect,
                "{accept}"
            );
        };
    use ResponseKind::{List, Object, Watch};
    let ok = |m, t| Ok((m, t));
    check("", false, Object, ok(Json, Target::Object));
    check("*/*", false, Object, ok(Json, Target::Object));
    check("*", true, Object, ok(Json, Target::Object));
    check("application/*", false, Object, ok(Json, Target::Object));
    check("text/html", false, Object, Err(406));
    check("application/cbor", true, Object, Err(406));
    check(
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        false,
        Object,
        ok(Json, Target::Object),
    );
    check(
        "application/json;q=0.1,application/yaml",
        false,
        Object,
        ok(Yaml, Target::Object),
    );
    check(
        "application/yaml;q=0.5, application/json;q=0.9",
        false,
        Object,
        ok(Json, Target::Object),
    );
    check("*/*, application/yaml", false, Object, ok(Yaml, Target::Object));
    check(
        "application/vnd.kubernetes.protobuf",
        true,
        Object,
        ok(Protobuf, Target::Object),
    );
    check("application/vnd.kubernetes.protobuf", false, Object, Err(406));
    check(
        "application/vnd.kubernetes.protobuf,application/json",
        false,
        List,
        ok(Json, Target::Object),
    );
    check(KUBECTL_GET, false, List, ok(Json, Target::Table(V1)));
    check(
        "application/json;as=Table;v=v1beta1;g=meta.k8s.io",
        false,
        Watch,
        ok(Json, Target::Table(V1Beta1)),
    );
    check(
        "application/json;as=Table;v=v2;g=meta.k8s.io,application/json",
        false,
        List,
        ok(Json, Target::Object),
    );
    check(
        "application/json;as=Table;v=v1;g=example.com",
        false,
        List,
        Err(406),
    );
    check(
        "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1;g=meta.k8s.io",
        true,
        List,
        ok(Json, Target::Table(V1)),
    );
    check(
        METADATA_CLIENT,
        false,
        List,
        ok(Protobuf, Target::PartialObjectMetadataList(V1)),
    );
    check(
        "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
        false,
        List,
        ok(Protobuf, Target::PartialObjectMetadataList(V1)),
    );
    check(
        "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        false,
        Watch,
        ok(Protobuf, Target::PartialObjectMetadata(V1)),
    );
    check(
        "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        false,
        Watch,
        ok(Json, Target::PartialObjectMetadata(V1)),
    );
    check(
        "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        false,
        List,
        Err(406),
    );
    check(
        "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
        false,
        Object,
        Err(406),
    );
    check(
        "application/json;stream=watch",
        false,
        Watch,
        ok(Json, Target::Object),
    );
    check("application/json;stream=other", false, Watch, Err(406));
    check("application/yaml", false, Watch, Err(406));
    check(
        "application/json;drop=metadata.managedFields;charset=utf-8",
        false,
        Object,
        ok(Json, Target::Object),
    );
    check("application/json;sv=v9", false, Object, Err(406));
}

#[test]
fn errors_are_written_as_they_are() {
    let check = |accept: &str, expect: MediaType| {
        let status = negotiate_status(Some(accept), None, None);
        assert_eq!(
            (status.media_type, status.target),
            (expect, Target::Object),
            "{accept}"
        );
    };
    check("application/yaml", Yaml);
    check("application/vnd.kubernetes.protobuf", Protobuf);
    check("application/vnd.kubernetes.protobuf,application/json", Protobuf);
    check("text/html", Json);
    // Upstream does not transform a Status, and does not look for another clause's encoding in one that asks for it.
    check(METADATA_CLIENT, Json);
    check(KUBECTL_GET, Json);
    check(
        "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        Json,
    );
}

#[test]
fn pretty_is_for_people() {
    let check = |ua: &str, parameter: Option<&str>, accept: &str, expect: bool| {
        let got =
            negotiate_output(Some(accept), Some(ua), parameter, ResponseKind::Object, true).map(|r| r.pretty);
        assert_eq!(got, Ok(expect), "{ua} {parameter:?} {accept}");
    };
    check("kubectl/v1.36", None, "*/*", false);
    check("curl/8.5", None, "*/*", true);
    check("Mozilla/5.0 (X11)", None, "*/*", true);
    check("curl/8.5", Some("false"), "*/*", false);
    check("curl/8.5", Some("nonsense"), "*/*", false);
    check("kubectl/v1.36", Some("true"), "*/*", true);
    check("kubectl/v1.36", None, "application/json;pretty=1", true);
    check("curl/8.5", None, "application/yaml", false);
}

#[test]
fn errors_name_what_is_accepted() {
    let refused =
        negotiate_output(Some("text/html"), None, None, ResponseKind::List, false).map_err(|e| e.message);
    let message = "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf";
    assert_eq!(refused, Err(message.to_owned()));
    let refused = negotiate_output(Some("application/yaml"), None, None, ResponseKind::Watch, false)
        .map_err(|e| e.message);
    let message = "only the following media types are accepted: application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";
    assert_eq!(refused, Err(message.to_owned()));
}

#[test]
fn input() {
    let check = |content_type: Option<&str>, builtin: bool, expect: Result<MediaType, u16>| {
        assert_eq!(
            negotiate_input(content_type, builtin).map_err(|e| e.code),
            expect,
            "{content_type:?}"
        );
    };
    check(None, false, Ok(Json));
    check(Some("application/json; charset=utf-8"), false, Ok(Json));
    check(Some("Application/YAML"), false, Ok(Yaml));
    check(Some("application/vnd.kubernetes.protobuf"), true, Ok(Protobuf));
    check(Some("application/vnd.kubernetes.protobuf"), false, Err(415));
    check(Some("text/plain"), true, Err(415));
}

#[test]
fn patches() {
    let check = |content_type: &str, builtin: bool, expect: Result<PatchType, u16>| {
        assert_eq!(
            patch_type(Some(content_type), builtin).map_err(|e| e.code),
            expect,
            "{content_type}"
        );
    };
    check("application/json-patch+json", false, Ok(PatchType::Json));
    check(
        "application/merge-patch+json; charset=utf-8",
        false,
        Ok(PatchType::Merge),
    );
    check(
        "application/strategic-merge-patch+json",
        true,
        Ok(PatchType::StrategicMerge),
    );
    check("application/strategic-merge-patch+json", false, Err(415));
    check("application/apply-patch+yaml", true, Err(415));
    check("application/json", true, Err(415));
    check("", true, Err(415));
    assert!(
        patch_type(Some("application/apply-patch+yaml"), false)
            .is_err_and(|e| e.message.contains("server-side apply is not served"))
    );
}
