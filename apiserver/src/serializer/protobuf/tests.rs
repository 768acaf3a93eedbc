//! Bodies that Kubernetes' own serializer wrote, read and written again.

use super::*;

/// Pairs of lines: a body that Kubernetes' own serializer (1.36) wrote, in hexadecimal, and the object in JSON. What
/// JSON would have as null or as an empty struct is left out of the second line.
const GOLDEN: &str = include_str!("golden.txt");
const ANY: Expected<'static> = Expected {
    api_version: "v1",
    kind: "Namespace",
};

fn golden() -> Vec<(Vec<u8>, Map<String, Value>)> {
    let lines: Vec<&str> = GOLDEN.lines().collect();
    let pair = |pair: &[&str]| (unhex(pair[0]), serde_json::from_str(pair[1]).expect("JSON"));
    lines.chunks_exact(2).map(pair).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal"))
        .collect()
}

#[test]
fn bodies_of_kubernetes_are_read() {
    assert!(golden().len() >= 13);
    for (body, object) in golden() {
        assert_eq!(decode(&body, ANY).map(Value::Object), Ok(Value::Object(object)));
    }
}

#[test]
fn what_is_written_is_read_again() {
    for (_, object) in golden() {
        let mut body = Vec::new();
        encode(&object, &mut body).expect("encoded");
        assert_eq!(decode(&body, ANY), Ok(object));
    }
}

#[test]
fn the_bytes_are_those_of_kubernetes() {
    for (body, object) in golden() {
        let mut ours = Vec::new();
        encode(&object, &mut ours).expect("encoded");
        assert_eq!(hex(&ours), hex(&body), "{}", Value::Object(object));
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn lists_are_put_together_from_items() {
    for (_, object) in golden().iter().filter(|(_, o)| o.contains_key("items")) {
        let (api_version, kind) = type_of(object);
        let mut items = Vec::new();
        for item in object["items"].as_array().expect("a list") {
            encode_list_item(
                api_version,
                kind,
                item.as_object().expect("an object"),
                &mut items,
            )
            .expect("encoded");
        }
        let mut body = Vec::new();
        encode_list(api_version, kind, &object["metadata"], &items, &mut body).expect("encoded");
        assert_eq!(decode(&body, ANY).as_ref(), Ok(object));
    }
}

#[test]
fn what_is_no_message_is_refused() {
    let check = |body: &[u8]| assert!(decode(body, ANY).is_err(), "{body:?}");
    check(b"");
    check(b"{}");
    check(b"k8s\0\x0a");
    check(b"k8s\0\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f");
    check(b"k8s\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff");
    check(b"k8s\0\x12\x02\x0a\x05");
    check(b"k8s\0\x0a\x10\x0a\x07g/v1beta\x12\x04Rock");
    // Every prefix and every flipped byte of a real body is either read or refused.
    for (body, _) in golden() {
        for at in 0..body.len() {
            let _ = decode(&body[..at], ANY);
            let mut bent = body.clone();
            bent[at] ^= 0xff;
            let _ = decode(&bent, ANY);
        }
    }
}

#[test]
fn an_empty_envelope_is_what_was_expected() {
    let object = decode(
        b"k8s\0",
        Expected {
            api_version: "v1",
            kind: "DeleteOptions",
        },
    )
    .map(Value::Object);
    assert_eq!(object, Ok(json!({"apiVersion": "v1", "kind": "DeleteOptions"})));
}

#[test]
fn schemas_are_not_nested_without_end() {
    let mut schema = Vec::new();
    for _ in 0..NESTING_MAX + 10 {
        let mut outer = Vec::new();
        put_bytes(28, &schema, &mut outer);
        schema = outer;
    }
    let mut out = Map::new();
    assert!(read_message(SCHEMA, &schema, &mut out, NESTING_MAX).is_err());
}

#[test]
fn values_of_other_types_are_not_written() {
    let check = |object: Value| {
        assert!(
            encode(object.as_object().expect("an object"), &mut Vec::new()).is_err(),
            "{object}"
        )
    };
    check(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": 1}}));
    check(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"labels": []}}));
    check(json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "not base64!"}}));
    check(json!({"apiVersion": "paas.example.com/v1", "kind": "Application"}));
}

#[test]
fn watch_frames_have_their_length_in_front() {
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}});
    let frame = encode_watch_frame("ADDED", object.as_object().expect("an object")).expect("encoded");
    let len = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
    assert_eq!(len, frame.len() - 4);
    assert_eq!(&frame[4..11], b"\x0a\x05ADDED");
    let at = frame.windows(4).position(|w| w == MAGIC).expect("an envelope");
    assert_eq!(decode(&frame[at..], ANY).map(Value::Object), Ok(object));
}
