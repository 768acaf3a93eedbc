//! Tables: which columns a kind has, and the cells of one object. Pure: the time comes in.
//!
//! A CRD's columns are JSONPaths; the server's own kinds have the columns that kube-apiserver gives them. What a path
//! does not find is null, never an error. Descriptions are those of the OpenAPI types.

mod builtin;

use super::jsonpath::{self, JsonPath};
use crate::resources::definition::{Builtin, PrinterColumn, ResourceDefinition};
use crate::serializer::{Source, Wanted};
use crate::status::ApiError;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

/// What a row carries besides its cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// The object's metadata.
    #[default]
    Metadata,
    /// The object.
    Object,
}

impl IncludeObject {
    /// Reads the query parameter `includeObject`.
    ///
    /// # Errors
    /// 400.
    pub fn parse(parameter: Option<&str>) -> Result<Self, ApiError> {
        match parameter.unwrap_or_default() {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => Err(ApiError::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', 'None', or empty"
            ))),
        }
    }
}

/// Turns objects of one kind into rows.
#[derive(Debug, Clone)]
pub(crate) struct TableConvertor {
    /// `columnDefinitions`.
    headers: Value,
    cells: Cells,
    /// What must be read of an object.
    wanted: Wanted,
}

#[derive(Debug, Clone)]
enum Cells {
    Paths(Vec<Column>),
    Builtin(Builtin),
}

#[derive(Debug, Clone)]
struct Column {
    kind: String,
    /// `None`: not a path; the cell is always null.
    path: Option<JsonPath>,
}

impl TableConvertor {
    pub(crate) fn new(definition: &ResourceDefinition) -> Self {
        if let Some(builtin) = definition.builtin {
            let mut wanted = Wanted::default();
            let (headers, paths) = builtin::columns(builtin);
            paths.iter().for_each(|path| wanted.add(path));
            return Self {
                headers,
                cells: Cells::Builtin(builtin),
                wanted,
            };
        }
        let age;
        let columns: &[PrinterColumn] = if definition.columns.is_empty() {
            age = [age_column()];
            &age
        } else {
            &definition.columns
        };
        let mut wanted = Wanted::default();
        let mut headers = vec![header(
            "Name",
            "string",
            "name",
            &described::<ObjectMeta>("name"),
            0,
        )];
        let mut cells = Vec::with_capacity(columns.len());
        for column in columns {
            let path = JsonPath::parse(&column.json_path).ok();
            if let Some(path) = &path {
                wanted.add(&path.prefix());
            }
            let description = match column.description.as_str() {
                "" => format!(
                    "Custom resource definition column (in JSONPath format): {}",
                    column.json_path
                ),
                text => text.to_owned(),
            };
            headers.push(header(
                &column.name,
                &column.kind,
                &column.format,
                &description,
                column.priority,
            ));
            cells.push(Column {
                kind: column.kind.clone(),
                path,
            });
        }
        Self {
            headers: Value::Array(headers),
            cells: Cells::Paths(cells),
            wanted,
        }
    }

    /// `columnDefinitions`.
    pub(crate) fn headers(&self) -> &Value {
        &self.headers
    }

    /// The cells of an object. `json` is a buffer to read stored objects through.
    pub(crate) fn cells(
        &self,
        source: Source<'_>,
        now: Timestamp,
        json: &mut Vec<u8>,
    ) -> Result<Vec<Value>, ApiError> {
        match source {
            Source::Value(map) => {
                let name = map
                    .get("metadata")
                    .and_then(|m| m.get("name"))
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                Ok(self.cells_of(name, map, now))
            }
            Source::Stored(object) => {
                json.clear();
                object.write_json(json);
                let map = self.wanted.read(json).map_err(ApiError::internal)?;
                Ok(self.cells_of(object.name(), &map, now))
            }
        }
    }

    fn cells_of(&self, name: &str, map: &Map<String, Value>, now: Timestamp) -> Vec<Value> {
        match &self.cells {
            Cells::Builtin(builtin) => builtin::cells(*builtin, name, map, now),
            Cells::Paths(columns) => std::iter::once(name.into())
                .chain(columns.iter().map(|c| c.cell(map, now)))
                .collect(),
        }
    }
}

impl Column {
    fn cell(&self, map: &Map<String, Value>, now: Timestamp) -> Value {
        let found = self
            .path
            .as_ref()
            .and_then(|path| path.find_in(map).ok())
            .and_then(|found| found.into_iter().next());
        let Some(value) = found else {
            return Value::Null;
        };
        match (self.kind.as_str(), &*value) {
            ("string", value) => jsonpath::print(value).into(),
            ("integer", Value::Number(n)) => match (n.as_i64(), n.as_f64()) {
                (Some(n), _) => n.into(),
                (None, Some(f)) => (f as i64).into(),
                _ => Value::Null,
            },
            ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.into_owned(),
            ("date", Value::String(text)) => age_of_text(text, now).into(),
            _ => Value::Null,
        }
    }
}

fn age_column() -> PrinterColumn {
    PrinterColumn {
        name: "Age".to_owned(),
        kind: "date".to_owned(),
        format: String::new(),
        description: described::<ObjectMeta>("creationTimestamp"),
        priority: 0,
        json_path: ".metadata.creationTimestamp".to_owned(),
    }
}

fn header(name: &str, kind: &str, format: &str, description: &str, priority: i32) -> Value {
    json!({"name": name, "type": kind, "format": format, "description": description, "priority": priority})
}

/// What the OpenAPI document says of a field.
fn described<T: schemars::JsonSchema>(field: &str) -> String {
    let schema = T::json_schema(&mut schemars::SchemaGenerator::default());
    schema
        .pointer(&format!("/properties/{field}/description"))
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn at<'a>(map: &'a Map<String, Value>, path: &[&str]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter()
        .try_fold(map.get(*first)?, |value, key| value.get(key))
}

const UNKNOWN: &str = "<unknown>";

/// How long ago a timestamp was, as people want to read it.
fn age_of_text(text: &str, now: Timestamp) -> String {
    if text.is_empty() || text == "null" {
        return UNKNOWN.to_owned();
    }
    match text.parse::<Timestamp>() {
        Ok(then) => human_duration(now.as_millisecond() - then.as_millisecond()),
        Err(_) => "<invalid>".to_owned(),
    }
}

/// Two or three significant figures of a duration in milliseconds: `5d2h`.
fn human_duration(milliseconds: i64) -> String {
    let seconds = milliseconds / 1000;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    let pair = |big: i64, unit: char, small: i64, small_unit: char| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    match () {
        // Clocks may differ a little.
        () if seconds < -1 => "<invalid>".to_owned(),
        () if seconds < 0 => "0s".to_owned(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, 'm', seconds % 60, 's'),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, 'h', minutes % 60, 'm'),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => pair(days, 'd', hours % 24, 'h'),
        () if days < 365 * 2 => format!("{days}d"),
        () if days < 365 * 8 => pair(days / 365, 'y', days % 365, 'd'),
        () => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serializer::testing;

    fn now() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().expect("a timestamp")
    }

    fn column(name: &str, kind: &str, json_path: &str) -> PrinterColumn {
        PrinterColumn {
            name: name.into(),
            kind: kind.into(),
            format: String::new(),
            description: String::new(),
            priority: 0,
            json_path: json_path.into(),
        }
    }

    #[test]
    fn durations() {
        let check =
            |seconds: i64, expect: &str| assert_eq!(human_duration(seconds * 1000), expect, "{seconds}");
        let (minute, hour, day) = (60, 3600, 86400);
        check(-5, "<invalid>");
        check(-1, "0s");
        check(0, "0s");
        check(119, "119s");
        check(120, "2m");
        check(125, "2m5s");
        check(10 * minute + 5, "10m");
        check(179 * minute, "179m");
        check(3 * hour, "3h");
        check(5 * hour + 7 * minute, "5h7m");
        check(8 * hour + 7 * minute, "8h");
        check(47 * hour, "47h");
        check(5 * day + 2 * hour, "5d2h");
        check(5 * day, "5d");
        check(8 * day + 3 * hour, "8d");
        check(729 * day, "729d");
        check(730 * day, "2y");
        check(3 * 365 * day + 12 * day, "3y12d");
        check(9 * 365 * day + 12 * day, "9y");
    }

    #[test]
    fn cells_of_a_crd() {
        let columns = vec![
            column("Image", "string", ".spec.image"),
            column("Replicas", "integer", ".spec.replicas"),
            column("Ratio", "number", ".spec.ratio"),
            column("On", "boolean", ".spec.on"),
            column(
                "Ready",
                "string",
                r#".status.conditions[?(@.type=="Ready")].status"#,
            ),
            column("Missing", "string", ".status.nothing"),
            column("Ports", "string", ".spec.ports"),
            column("First", "string", ".spec.ports[*]"),
            column("Wrong", "integer", ".spec.image"),
            column("Null", "string", ".spec.null"),
            column("Since", "date", ".status.since"),
            column("Bad date", "date", ".spec.image"),
            column("No path", "string", ".spec["),
            column("RV", "string", ".metadata.resourceVersion"),
            column("Age", "date", ".metadata.creationTimestamp"),
        ];
        let definition = testing::definition("g", "v1", "K", columns);
        let value = json!({"apiVersion": "g/v1", "kind": "K",
            "metadata": {"name": "web", "uid": "u", "creationTimestamp": "2026-11-17T10:00:00Z"},
            "spec": {"image": "nginx", "replicas": 3, "ratio": 0.5, "on": true, "ports": [80, 443], "null": null, "other": "big"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "since": "2026-11-22T11:59:00Z"}});
        let object = testing::stored(value);
        let convertor = TableConvertor::new(&definition);
        let rv = object.resource_version().to_string();
        let expect = json!([
            object.name(),
            "nginx",
            3,
            0.5,
            true,
            "True",
            null,
            "[80,443]",
            "80",
            null,
            "<no value>",
            "60s",
            "<invalid>",
            null,
            rv,
            "5d2h"
        ]);
        let cells = convertor
            .cells(Source::Stored(&object), now(), &mut Vec::new())
            .expect("cells");
        assert_eq!(Value::Array(cells), expect);
        let map = object.to_value().expect("JSON");
        let mut expect = expect;
        expect[0] = json!("web");
        assert_eq!(
            Value::Array(
                convertor
                    .cells(Source::Value(&map), now(), &mut Vec::new())
                    .expect("cells")
            ),
            expect
        );
        assert_eq!(
            convertor.headers().as_array().map(Vec::len),
            expect.as_array().map(Vec::len)
        );
        assert_eq!(convertor.headers()[0]["format"], json!("name"));
        assert!(
            convertor.headers()[0]["description"]
                .as_str()
                .is_some_and(|d| d.starts_with("Name must be unique within a namespace."))
        );
        assert_eq!(
            convertor.headers()[1]["description"],
            json!("Custom resource definition column (in JSONPath format): .spec.image")
        );
    }

    #[test]
    fn name_and_age_are_the_default() {
        let convertor = TableConvertor::new(&testing::definition("g", "v1", "K", Vec::new()));
        let names: Vec<_> = convertor
            .headers()
            .as_array()
            .into_iter()
            .flatten()
            .map(|h| (h["name"].clone(), h["type"].clone()))
            .collect();
        assert_eq!(
            names,
            [(json!("Name"), json!("string")), (json!("Age"), json!("date"))]
        );
        let map = Map::new();
        assert_eq!(
            convertor.cells(Source::Value(&map), now(), &mut Vec::new()),
            Ok(vec![json!(""), Value::Null])
        );
    }

    #[test]
    fn cells_of_built_in_kinds() {
        let check = |builtin: Builtin, value: Value, expect: Value| {
            let mut definition = (*testing::definition("", "v1", "K", Vec::new())).clone();
            definition.builtin = Some(builtin);
            let convertor = TableConvertor::new(&definition);
            let map = value.as_object().expect("an object");
            let cells = convertor
                .cells(Source::Value(map), now(), &mut Vec::new())
                .expect("cells");
            assert_eq!(
                convertor.headers().as_array().map(Vec::len),
                Some(cells.len()),
                "{builtin:?}"
            );
            assert!(
                convertor
                    .headers()
                    .as_array()
                    .into_iter()
                    .flatten()
                    .all(|h| h["description"] != json!("")),
                "{builtin:?}"
            );
            assert_eq!(Value::Array(cells), expect, "{builtin:?}");
        };
        let metadata = json!({"name": "n", "creationTimestamp": "2026-11-22T11:50:00Z"});
        check(
            Builtin::Namespace,
            json!({"metadata": metadata, "status": {"phase": "Active"}}),
            json!(["n", "Active", "10m"]),
        );
        check(
            Builtin::Secret,
            json!({"metadata": metadata, "type": "Opaque", "data": {"a": "", "b": ""}}),
            json!(["n", "Opaque", 2, "10m"]),
        );
        check(
            Builtin::Lease,
            json!({"metadata": metadata, "spec": {}}),
            json!(["n", "", "10m"]),
        );
        check(
            Builtin::CustomResourceDefinition,
            json!({"metadata": metadata}),
            json!(["n", "2026-11-22T11:50:00Z"]),
        );
        check(
            Builtin::Event,
            json!({"metadata": metadata, "involvedObject": {"kind": "Application", "name": "web", "fieldPath": "spec"}, "reason": "Scaled", "message": " text\n",
                "type": "Normal", "source": {"component": "ctl", "host": "h"}, "firstTimestamp": "2026-11-22T11:00:00Z", "lastTimestamp": "2026-11-22T11:59:58Z", "count": 4}),
            json!([
                "2s",
                "Normal",
                "Scaled",
                "application/web",
                "spec",
                "ctl, h",
                "text",
                "60m",
                4,
                "n"
            ]),
        );
        check(
            Builtin::Event,
            json!({"metadata": metadata, "regarding": {"kind": "Pod"}, "note": "x", "eventTime": "2026-11-22T11:59:00.123456Z", "reportingController": "c",
                "firstTimestamp": null, "series": {"count": 7, "lastObservedTime": "2026-11-22T11:59:55.000000Z"}}),
            json!(["5s", "", "", "pod", "", "c", "x", "59s", 7, "n"]),
        );
    }
}
