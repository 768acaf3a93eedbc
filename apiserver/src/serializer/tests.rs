//! Bodies in and out, in every form.

use super::watch_stream::read_json_frames;
use super::*;
use crate::negotiation::MetaVersion;
use crate::resources::definition::{Builtin, PrinterColumn};
use outrigger_storage::{Epoch, EventKind, ObjectEvent, ResourceVersion};
use serde_json::json;

const APPLICATION: Expected<'static> = Expected {
    api_version: "g/v1",
    kind: "Application",
};

fn now() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().expect("a timestamp")
}

fn application(name: &str) -> Object {
    testing::stored(
        json!({"apiVersion": "g/v1", "kind": "Application", "spec": {"image": "nginx", "ports": [80]},
        "metadata": {"name": name, "namespace": "ns", "uid": "u", "labels": {"a": "b"}, "creationTimestamp": "2026-11-22T11:59:00Z"}}),
    )
}

fn definition() -> Arc<ResourceDefinition> {
    let column = |name: &str, kind: &str, json_path: &str| PrinterColumn {
        name: name.into(),
        kind: kind.into(),
        format: String::new(),
        description: String::new(),
        priority: 0,
        json_path: json_path.into(),
    };
    let columns = vec![
        column("Image", "string", ".spec.image"),
        column("Age", "date", ".metadata.creationTimestamp"),
    ];
    testing::definition("g", "v1", "Application", columns)
}

fn namespaces() -> Arc<ResourceDefinition> {
    let mut definition = (*testing::definition("", "v1", "Namespace", Vec::new())).clone();
    definition.builtin = Some(Builtin::Namespace);
    Arc::new(definition)
}

fn representation(media_type: MediaType, target: Target) -> Representation {
    Representation {
        media_type,
        target,
        pretty: false,
        stream: false,
    }
}

fn encoder(representation: &Representation) -> ObjectEncoder {
    ObjectEncoder::new(representation, &definition(), IncludeObject::default(), now())
}

fn read(media_type: MediaType, body: &[u8]) -> Value {
    let decoded = decode(media_type, body, APPLICATION)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(body)));
    Value::Object(decoded.object)
}

fn all_targets() -> Vec<Target> {
    let v1 = MetaVersion::V1;
    vec![
        Target::Object,
        Target::Table(v1),
        Target::PartialObjectMetadata(v1),
    ]
}

#[test]
fn bodies_that_cannot_be_read() {
    let check = |media_type: MediaType, body: &str, expect: &str| {
        let error = decode(media_type, body.as_bytes(), APPLICATION).expect_err("refused");
        assert_eq!((error.code, &*error.reason), (400, "BadRequest"));
        assert!(error.message.contains(expect), "{}", error.message);
    };
    check(
        MediaType::Json,
        "",
        "(must be of type Application): couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)",
    );
    check(
        MediaType::Json,
        "{\"a\":",
        "unexpected end of JSON input ({\"a\":)",
    );
    check(
        MediaType::Json,
        "[1]",
        "type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" } (5b315d)",
    );
    check(MediaType::Json, "{} {}", "after top-level value");
    check(
        MediaType::Json,
        &format!("{{\"a\":{}", "[".repeat(100_000)),
        "exceeded max depth",
    );
    check(
        MediaType::Json,
        "\"\u{1F600}\u{1F600}\u{1F600}\u{1F600}\u{1F600}\u{1F600}\u{1F600}\u{1F600}\"",
        " ...)",
    );
    check(MediaType::Yaml, "a: [", "(must be of type Application): yaml: ");
    check(MediaType::Yaml, "just text", "cannot unmarshal string");
    check(
        MediaType::Protobuf,
        "{}",
        "does not appear to be a protobuf message ({})",
    );
}

#[test]
fn bodies_that_can_be_read() {
    let text = r#"{"kind":"Application","spec":{"a":1,"a":2.0}}"#;
    let decoded = decode(MediaType::Json, text.as_bytes(), APPLICATION).expect("read");
    assert_eq!(
        Value::Object(decoded.object),
        json!({"kind": "Application", "spec": {"a": 2}})
    );
    assert_eq!(decoded.duplicates, [r#"duplicate field "spec.a""#]);
    let error = strict_decoding_error("v1", "Application", &decoded.duplicates);
    assert_eq!(
        error.message,
        r#"Application in version "v1" cannot be handled as a Application: strict decoding error: duplicate field "spec.a""#
    );
    assert_eq!(decode_patch(b"[1]").map(|(v, _)| v), Ok(json!([1])));
    assert_eq!(decode_patch(b"[").map_err(|e| e.code), Err(400));
}

#[test]
fn objects_in_every_form() {
    let object = application("web");
    let whole = Value::Object(object.to_value().expect("JSON"));
    for target in all_targets() {
        let expect = match target {
            Target::Object => whole.clone(),
            Target::Table(_) => {
                let mut encoder = encoder(&representation(MediaType::Json, target));
                let table = read(
                    MediaType::Json,
                    &encoder.encode_object(Source::Stored(&object)).expect("encoded"),
                );
                assert_eq!(
                    table["rows"],
                    json!([{"cells": ["web", "nginx", "60s"],
                    "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": whole["metadata"]}}])
                );
                assert_eq!(table["columnDefinitions"].as_array().map(Vec::len), Some(3));
                assert_eq!(
                    table["metadata"],
                    json!({"resourceVersion": whole["metadata"]["resourceVersion"]})
                );
                table
            }
            _ => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": whole["metadata"]})
            }
        };
        for (media_type, pretty) in [
            (MediaType::Json, false),
            (MediaType::Json, true),
            (MediaType::Yaml, false),
        ] {
            let representation = Representation {
                pretty,
                ..representation(media_type, target)
            };
            let mut encoder = encoder(&representation);
            for source in [
                Source::Stored(&object),
                Source::Value(&object.to_value().expect("JSON")),
            ] {
                let body = encoder.encode_object(source).expect("encoded");
                assert_eq!(read(media_type, &body), expect, "{representation:?}");
                assert_eq!(pretty, body.starts_with(b"{\n  \""), "{representation:?}");
            }
        }
    }
    let mut encoder = encoder(&representation(
        MediaType::Protobuf,
        Target::PartialObjectMetadata(MetaVersion::V1),
    ));
    let body = encoder.encode_object(Source::Stored(&object)).expect("encoded");
    assert_eq!(read(MediaType::Protobuf, &body)["metadata"], whole["metadata"]);
}

#[test]
fn a_status_is_never_transformed() {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
    for target in all_targets() {
        let mut encoder = encoder(&representation(MediaType::Json, target));
        let body = encoder
            .encode_object(Source::Value(status.as_object().expect("an object")))
            .expect("encoded");
        assert_eq!(read(MediaType::Json, &body), status);
    }
    let error = ApiError::not_found(
        crate::status::GroupResource {
            group: "g",
            resource: "applications",
        },
        "x",
    );
    for media_type in [MediaType::Json, MediaType::Yaml, MediaType::Protobuf] {
        let body = encode_status(
            &error,
            &representation(media_type, Target::Table(MetaVersion::V1)),
        );
        let status = read(media_type, &body);
        assert_eq!(
            (&status["code"], &status["reason"], &status["details"]["name"]),
            (&json!(404), &json!("NotFound"), &json!("x"))
        );
    }
}

fn list(
    representation: &Representation,
    definition: &Arc<ResourceDefinition>,
    objects: &[Object],
    place: MetaPlace,
) -> Vec<u8> {
    let mut encoder = ObjectEncoder::new(representation, definition, IncludeObject::default(), now());
    let meta = ListMeta {
        resource_version: "17".into(),
        continue_token: Some("next".into()),
        remaining: Some(5),
        shard_selector: Some("s".into()),
    };
    let mut out = Vec::new();
    encoder.list_start(&mut out, &meta, place).expect("started");
    for object in objects {
        encoder.list_item(&mut out, object).expect("encoded");
    }
    encoder.list_end(&mut out, &meta).expect("ended");
    out
}

#[test]
fn lists_in_every_form() {
    let v1 = MetaVersion::V1;
    let objects = [application("a"), application("b"), application("c")];
    let meta = json!({"resourceVersion": "17", "continue": "next", "remainingItemCount": 5, "shardInfo": {"selector": "s"}});
    for target in [
        Target::Object,
        Target::Table(v1),
        Target::PartialObjectMetadataList(v1),
    ] {
        for (count, place) in [
            (0, MetaPlace::Before),
            (1, MetaPlace::After),
            (3, MetaPlace::Before),
            (3, MetaPlace::After),
        ] {
            let mut bodies = Vec::new();
            for (media_type, pretty) in [
                (MediaType::Json, false),
                (MediaType::Json, true),
                (MediaType::Yaml, false),
            ] {
                let representation = Representation {
                    pretty,
                    ..representation(media_type, target)
                };
                let body = list(&representation, &definition(), &objects[..count], place);
                let value = read(media_type, &body);
                assert_eq!(value["metadata"], meta, "{representation:?}");
                if pretty {
                    let text = String::from_utf8(body).expect("text");
                    let canonical = |text: &str| text.lines().map(str::len).collect::<Vec<_>>().len();
                    assert_eq!(
                        canonical(&text),
                        canonical(&serde_json::to_string_pretty(&value).expect("JSON")),
                        "{text}"
                    );
                }
                bodies.push(value);
            }
            assert!(bodies.iter().all(|b| *b == bodies[0]), "{bodies:?}");
            let items = if matches!(target, Target::Table(_)) {
                "rows"
            } else {
                "items"
            };
            assert_eq!(bodies[0][items].as_array().map(Vec::len), Some(count));
            let kind = match target {
                Target::Object => "ApplicationList",
                Target::Table(_) => "Table",
                _ => "PartialObjectMetadataList",
            };
            assert_eq!(bodies[0]["kind"], json!(kind));
        }
    }
}

#[test]
fn lists_in_protobuf() {
    let target = Target::PartialObjectMetadataList(MetaVersion::V1);
    let body = list(
        &representation(MediaType::Protobuf, target),
        &definition(),
        &[application("a"), application("b")],
        MetaPlace::After,
    );
    let value = read(MediaType::Protobuf, &body);
    assert_eq!(value["items"][1]["metadata"]["name"], json!("b"));
    assert_eq!(value["metadata"]["continue"], json!("next"));
    let namespace = testing::stored(
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "uid": "u"}, "status": {"phase": "Active"}}),
    );
    let body = list(
        &representation(MediaType::Protobuf, Target::Object),
        &namespaces(),
        &[namespace],
        MetaPlace::Before,
    );
    let value = read(MediaType::Protobuf, &body);
    assert_eq!(
        (&value["kind"], &value["items"][0]["status"]["phase"]),
        (&json!("NamespaceList"), &json!("Active"))
    );
    let empty = list(
        &representation(MediaType::Protobuf, target),
        &definition(),
        &[],
        MetaPlace::After,
    );
    assert_eq!(
        read(MediaType::Protobuf, &empty)["metadata"]["resourceVersion"],
        json!("17")
    );
}

#[test]
fn protobuf_lists_are_bounded() {
    let big = testing::stored(
        json!({"apiVersion": "g/v1", "kind": "Application", "metadata": {"name": "a", "uid": "u", "annotations": {"a": "x".repeat(1 << 20)}}}),
    );
    let mut encoder = encoder(&representation(
        MediaType::Protobuf,
        Target::PartialObjectMetadataList(MetaVersion::V1),
    ));
    let mut out = Vec::new();
    encoder
        .list_start(&mut out, &ListMeta::default(), MetaPlace::After)
        .expect("started");
    let refused = (0..20)
        .find_map(|_| encoder.list_item(&mut out, &big).err())
        .expect("refused in the end");
    assert_eq!(refused.code, 406);
    assert!(out.is_empty());
}

fn event(kind: EventKind, name: &str) -> ObjectEvent {
    ObjectEvent {
        kind,
        object: application(name),
        frames: Default::default(),
    }
}

#[test]
fn watches_in_json() {
    let rv = ResourceVersion::cut(Epoch(5));
    for target in all_targets() {
        let mut encoder = encoder(&Representation {
            stream: true,
            ..representation(MediaType::Json, target)
        });
        let mut out = Vec::new();
        out.extend_from_slice(
            &encoder
                .watch_frame(&event(EventKind::Added, "a"))
                .expect("encoded"),
        );
        out.extend_from_slice(
            &encoder
                .watch_frame(&event(EventKind::Modified, "a"))
                .expect("encoded"),
        );
        out.extend_from_slice(
            &encoder
                .watch_frame(&event(EventKind::Deleted, "a"))
                .expect("encoded"),
        );
        out.extend_from_slice(&encoder.watch_bookmark(rv, true).expect("encoded"));
        out.extend_from_slice(&encoder.watch_error(&ApiError::expired("too old")));
        assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 5, "one line each");
        let frames = read_json_frames(&out);
        let kinds: Vec<&Value> = frames.iter().map(|f| &f["type"]).collect();
        assert_eq!(kinds, ["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]);
        assert_eq!(frames[4]["object"]["code"], json!(410));
        let bookmark = &frames[3]["object"];
        let metadata =
            json!({"resourceVersion": rv.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}});
        match target {
            Target::Table(_) => {
                assert!(frames[0]["object"]["columnDefinitions"].is_array());
                assert!(
                    frames[1..4]
                        .iter()
                        .all(|f| f["object"]["columnDefinitions"].is_null())
                );
                assert_eq!(frames[1]["object"]["rows"][0]["cells"][0], json!("a"));
                assert_eq!(
                    bookmark["metadata"]["resourceVersion"],
                    metadata["resourceVersion"]
                );
                assert_eq!(bookmark["rows"][0]["object"]["metadata"], metadata);
            }
            _ => assert_eq!(bookmark["metadata"], metadata),
        }
    }
}

#[test]
fn the_end_of_initial_events_is_told_without_objects_too() {
    let representation = Representation {
        stream: true,
        ..representation(MediaType::Json, Target::Table(MetaVersion::V1))
    };
    let mut encoder = ObjectEncoder::new(&representation, &definition(), IncludeObject::None, now());
    let mut bookmark = |is_end| {
        let frame = encoder.watch_bookmark(ResourceVersion::cut(Epoch(5)), is_end);
        let frame: Value = serde_json::from_slice(&frame.expect("encoded")).expect("JSON");
        frame["object"]["rows"][0]["object"]["metadata"]["annotations"].clone()
    };
    assert_eq!(bookmark(true), json!({"k8s.io/initial-events-end": "true"}));
    assert_eq!(bookmark(false), Value::Null);
}

#[test]
fn watches_in_protobuf() {
    let representation = Representation {
        stream: true,
        ..representation(
            MediaType::Protobuf,
            Target::PartialObjectMetadata(MetaVersion::V1),
        )
    };
    let mut encoder = encoder(&representation);
    assert_eq!(
        encoder.content_type(),
        "application/vnd.kubernetes.protobuf;stream=watch"
    );
    let frames = [
        encoder
            .watch_frame(&event(EventKind::Added, "a"))
            .expect("encoded"),
        encoder
            .watch_bookmark(ResourceVersion::cut(Epoch(5)), true)
            .expect("encoded"),
        encoder.watch_error(&ApiError::expired("too old")),
    ];
    for (frame, kind) in frames
        .iter()
        .zip(["PartialObjectMetadata", "PartialObjectMetadata", "Status"])
    {
        let len = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
        assert_eq!(len, frame.len() - 4);
        let at = frame
            .windows(4)
            .position(|w| w == protobuf::MAGIC)
            .expect("an envelope");
        assert_eq!(read(MediaType::Protobuf, &frame[at..])["kind"], json!(kind));
    }
}

#[test]
fn equal_representations_share_a_frame() {
    let json = Representation {
        stream: true,
        ..Representation::JSON
    };
    let shared = event(EventKind::Added, "a");
    let first = encoder(&json).watch_frame(&shared).expect("encoded");
    let second = encoder(&json).watch_frame(&shared).expect("encoded");
    assert_eq!(first.as_ptr(), second.as_ptr());
    let other = ObjectEvent {
        kind: EventKind::Modified,
        ..shared.clone()
    };
    assert!(
        encoder(&json)
            .watch_frame(&other)
            .expect("encoded")
            .starts_with(b"{\"type\":\"MODIFIED\"")
    );
    let partial = Representation {
        target: Target::PartialObjectMetadata(MetaVersion::V1),
        ..json
    };
    assert!(
        encoder(&partial)
            .watch_frame(&shared)
            .expect("encoded")
            .starts_with(b"{\"type\":\"ADDED\",\"object\":{\"kind\":\"PartialObjectMetadata\"")
    );
    let mut v2 = (*definition()).clone();
    v2.version = "v2".into();
    let mut v2 = ObjectEncoder::new(&json, &Arc::new(v2), IncludeObject::None, now());
    assert!(
        v2.watch_frame(&shared)
            .expect("encoded")
            .starts_with(b"{\"type\":\"ADDED\",\"object\":{\"apiVersion\":\"g/v2\"")
    );
    assert_eq!(
        encoder(&representation(MediaType::Json, Target::Table(MetaVersion::V1))).representation_id(),
        None
    );
}

#[test]
fn rows_carry_what_was_asked_for() {
    let check = |parameter: &str, expect: Value| {
        let include = IncludeObject::parse(Some(parameter)).expect("known");
        let representation = representation(MediaType::Json, Target::Table(MetaVersion::V1Beta1));
        let mut encoder = ObjectEncoder::new(&representation, &definition(), include, now());
        let table = read(
            MediaType::Json,
            &encoder
                .encode_object(Source::Stored(&application("a")))
                .expect("encoded"),
        );
        assert_eq!(
            (&table["apiVersion"], &table["rows"][0]["object"]["kind"]),
            (&json!("meta.k8s.io/v1beta1"), &expect)
        );
    };
    check("None", Value::Null);
    check("Metadata", json!("PartialObjectMetadata"));
    check("", json!("PartialObjectMetadata"));
    check("Object", json!("Application"));
    assert_eq!(IncludeObject::parse(Some("x")).map_err(|e| e.code), Err(400));
}
