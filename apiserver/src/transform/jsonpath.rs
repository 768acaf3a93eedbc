//! kubectl's JSONPath dialect, as printer columns, selectable fields and the scale subresource use it.
//!
//! Fields with escapes (`.metadata.labels.app\.io/name`), `['key']`, wildcards, indices, slices, unions, recursive
//! descent and filters. A path is compiled once and evaluated on JSON values; what Go would order at random (the values
//! of a map) comes in key order here. `range` and text outside of the path are not part of it.

mod parser;

use parser::Parser;
use serde_json::{Map, Value};
use std::borrow::Cow;

/// The longest path that is compiled, in bytes.
pub const PATH_BYTES_MAX: usize = 4096;
/// How deep filters and unions may be nested in each other.
pub const PATH_NESTING_MAX: usize = 8;
/// How many values a path may have on its way at once: `..` repeated would grow without bound.
pub const RESULTS_MAX: usize = 10_000;

/// Why a path cannot be compiled (whoever wrote it must act), or not be evaluated on this value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonPathError {
    /// The text is not a path.
    #[error("invalid JSONPath: {0}")]
    Syntax(String),
    /// The path does not fit the value.
    #[error("{0}")]
    Evaluate(&'static str),
}

/// A compiled path.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath {
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Field(String),
    Wildcard,
    Recursive,
    /// `[from:to:step]`; `[i]` is `[i:i+1]` and marked, because `[-1]` must reach the end.
    Slice {
        from: Option<i64>,
        to: Option<i64>,
        single: bool,
        step: Option<i64>,
    },
    Union(Vec<Vec<Self>>),
    Filter {
        left: Vec<Self>,
        operator: Operator,
        right: Vec<Self>,
    },
    Literal(Value),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Exists,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

type Values<'a> = Vec<Cow<'a, Value>>;

impl JsonPath {
    /// Compiles `.spec.image`, or `{.spec.image}`.
    ///
    /// # Errors
    /// [`JsonPathError::Syntax`].
    pub fn parse(text: &str) -> Result<Self, JsonPathError> {
        if text.len() > PATH_BYTES_MAX {
            return Err(syntax("it is too long"));
        }
        let text = text
            .strip_prefix('{')
            .and_then(|t| t.strip_suffix('}'))
            .unwrap_or(text);
        Ok(Self {
            nodes: Parser::new(text).nodes(0)?,
        })
    }

    /// The values at the path; none where a key is missing.
    ///
    /// # Errors
    /// [`JsonPathError::Evaluate`] when an index is out of range, a filter meets no list, or unlike things are compared.
    pub fn find<'a>(&'a self, data: &'a Value) -> Result<Values<'a>, JsonPathError> {
        walk(vec![Cow::Borrowed(data)], &self.nodes)
    }

    /// The same on an object's map.
    ///
    /// # Errors
    /// As [`JsonPath::find`].
    pub fn find_in<'a>(&'a self, data: &'a Map<String, Value>) -> Result<Values<'a>, JsonPathError> {
        match self.nodes.first() {
            Some(Node::Field(name)) => {
                let first = data.get(name).map(Cow::Borrowed).into_iter().collect();
                walk(first, &self.nodes[1..])
            }
            _ => {
                let whole = Value::Object(data.clone());
                let found = walk(vec![Cow::Borrowed(&whole)], &self.nodes)?;
                Ok(found.into_iter().map(|v| Cow::Owned(v.into_owned())).collect())
            }
        }
    }

    /// The fields that every result lies under: what a reader must keep of an object to evaluate this path.
    #[must_use]
    pub fn prefix(&self) -> Vec<&str> {
        self.nodes
            .iter()
            .map_while(|n| {
                if let Node::Field(name) = n {
                    Some(name.as_str())
                } else {
                    None
                }
            })
            .collect()
    }
}

/// A value as kubectl prints a result: text bare, maps and lists as JSON.
#[must_use]
pub fn print(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        // What Go prints for an absent value.
        Value::Null => "<no value>".to_owned(),
        Value::Number(n) if n.is_f64() => print_float(n.as_f64().unwrap_or_default()),
        other => escape_html(&other.to_string()),
    }
}

/// Go's JSON is safe inside of HTML. What is escaped occurs in strings only.
fn escape_html(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// `%v` of a Go float: an exponent below 1e-4 and from 1e21.
fn print_float(f: f64) -> String {
    if f != 0.0 && (f.abs() < 1e-4 || f.abs() >= 1e21) {
        let text = format!("{f:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |d| ('-', d));
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    f.to_string()
}

fn syntax(cause: impl Into<String>) -> JsonPathError {
    JsonPathError::Syntax(cause.into())
}

fn walk<'a>(start: Values<'a>, nodes: &'a [Node]) -> Result<Values<'a>, JsonPathError> {
    let mut values = start;
    for node in nodes {
        values = step(values, node)?;
        if values.len() > RESULTS_MAX {
            return Err(JsonPathError::Evaluate("the path has too many results"));
        }
    }
    Ok(values)
}

fn step<'a>(values: Values<'a>, node: &'a Node) -> Result<Values<'a>, JsonPathError> {
    let mut out = Vec::new();
    match node {
        Node::Literal(literal) => out.extend(values.iter().map(|_| Cow::Borrowed(literal))),
        Node::Field(name) => out.extend(values.into_iter().filter_map(|v| field(v, name))),
        Node::Wildcard => out.extend(values.into_iter().flat_map(children)),
        Node::Recursive => descend(values, &mut out)?,
        Node::Slice {
            from,
            to,
            single,
            step,
        } => {
            for value in values.into_iter().filter(|v| !v.is_null()) {
                out.extend(cut(elements(value)?, *from, *to, *single, *step)?);
            }
        }
        Node::Union(paths) => {
            for path in paths {
                out.extend(walk(values.clone(), path)?);
            }
        }
        Node::Filter {
            left,
            operator,
            right,
        } => {
            for value in values {
                for element in elements(value)? {
                    if passes(&element, left, *operator, right)? {
                        out.push(element);
                    }
                }
            }
        }
    }
    Ok(out)
}

fn field<'a>(value: Cow<'a, Value>, name: &str) -> Option<Cow<'a, Value>> {
    match value {
        Cow::Borrowed(value) => value.as_object()?.get(name).map(Cow::Borrowed),
        Cow::Owned(Value::Object(mut map)) => map.remove(name).map(Cow::Owned),
        Cow::Owned(_) => None,
    }
}

fn children(value: Cow<'_, Value>) -> Values<'_> {
    match value {
        Cow::Borrowed(Value::Object(map)) => map.values().map(Cow::Borrowed).collect(),
        Cow::Borrowed(Value::Array(list)) => list.iter().map(Cow::Borrowed).collect(),
        Cow::Owned(Value::Object(map)) => map.into_iter().map(|(_, v)| Cow::Owned(v)).collect(),
        Cow::Owned(Value::Array(list)) => list.into_iter().map(Cow::Owned).collect(),
        _ => Vec::new(),
    }
}

fn descend<'a>(values: Values<'a>, out: &mut Values<'a>) -> Result<(), JsonPathError> {
    for value in values {
        let below = children(value.clone());
        if below.is_empty() {
            continue;
        }
        out.push(value);
        if out.len() > RESULTS_MAX {
            return Err(JsonPathError::Evaluate("the path has too many results"));
        }
        descend(below, out)?;
    }
    Ok(())
}

fn elements(value: Cow<'_, Value>) -> Result<Values<'_>, JsonPathError> {
    match value {
        Cow::Borrowed(Value::Array(list)) => Ok(list.iter().map(Cow::Borrowed).collect()),
        Cow::Owned(Value::Array(list)) => Ok(list.into_iter().map(Cow::Owned).collect()),
        _ => Err(JsonPathError::Evaluate("the value is not a list")),
    }
}

fn cut(
    list: Values<'_>,
    from: Option<i64>,
    to: Option<i64>,
    single: bool,
    step: Option<i64>,
) -> Result<Values<'_>, JsonPathError> {
    const OUT_OF_BOUNDS: JsonPathError = JsonPathError::Evaluate("array index out of bounds");
    let len = i64::try_from(list.len()).map_err(|_| OUT_OF_BOUNDS)?;
    let start = from.unwrap_or(0);
    let mut end = if single {
        start.saturating_add(1)
    } else {
        to.unwrap_or(len)
    };
    if end < 0 || (end == 0 && single) {
        end += len;
    }
    let start = if start < 0 { start + len } else { start };
    if start == end {
        return Ok(Vec::new());
    }
    if start < 0 || start >= len || end < 0 || end > len || start > end {
        return Err(OUT_OF_BOUNDS);
    }
    let step = step.unwrap_or(1);
    if step <= 0 {
        return Err(JsonPathError::Evaluate("step must be > 0"));
    }
    let as_usize = |n: i64| usize::try_from(n).map_err(|_| OUT_OF_BOUNDS);
    Ok(list
        .into_iter()
        .take(as_usize(end)?)
        .skip(as_usize(start)?)
        .step_by(as_usize(step)?)
        .collect())
}

fn passes(element: &Value, left: &[Node], operator: Operator, right: &[Node]) -> Result<bool, JsonPathError> {
    let found = walk(vec![Cow::Borrowed(element)], left);
    if operator == Operator::Exists {
        return Ok(found.is_ok_and(|f| !f.is_empty()));
    }
    let (lefts, rights) = (found?, walk(vec![Cow::Borrowed(element)], right)?);
    match (&lefts[..], &rights[..]) {
        ([], _) | (_, []) => Ok(false),
        ([left], [right]) => compare(left, operator, right),
        _ => Err(JsonPathError::Evaluate("can only compare one element at a time")),
    }
}

/// Only like things are compared: an integer is not like a float.
fn compare(left: &Value, operator: Operator, right: &Value) -> Result<bool, JsonPathError> {
    use std::cmp::Ordering;
    const UNLIKE: JsonPathError = JsonPathError::Evaluate("incompatible types for comparison");
    let ordering = match (left, right) {
        (Value::Bool(a), Value::Bool(b)) => {
            return match operator {
                Operator::Equal => Ok(a == b),
                Operator::NotEqual => Ok(a != b),
                _ => Err(UNLIKE),
            };
        }
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            (None, None) => a.as_f64().partial_cmp(&b.as_f64()),
            _ => return Err(UNLIKE),
        },
        _ => return Err(UNLIKE),
    };
    Ok(match operator {
        Operator::Equal => ordering == Some(Ordering::Equal),
        Operator::NotEqual => ordering != Some(Ordering::Equal),
        Operator::Less => ordering == Some(Ordering::Less),
        Operator::LessOrEqual => matches!(ordering, Some(Ordering::Less | Ordering::Equal)),
        Operator::Greater => ordering == Some(Ordering::Greater),
        Operator::GreaterOrEqual => matches!(ordering, Some(Ordering::Greater | Ordering::Equal)),
        Operator::Exists => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(path: &str, expect: Value) {
        let data = json!({
            "metadata": {"name": "web", "labels": {"app.kubernetes.io/name": "web", "a": "1"}},
            "spec": {"replicas": 3, "ratio": 0.5, "ports": [80, 443, 8080], "on": true, "gone": null},
            "status": {"conditions": [
                {"type": "Ready", "status": "True", "n": 1, "reason": "a)b"},
                {"type": "Synced", "status": "False", "n": 2},
                {"type": "Other", "n": 3}
            ]}
        });
        let found = JsonPath::parse(path).and_then(|p| {
            let found = p
                .find(&data)?
                .into_iter()
                .map(Cow::into_owned)
                .collect::<Vec<_>>();
            let again = p
                .find_in(data.as_object().expect("an object"))?
                .into_iter()
                .map(Cow::into_owned)
                .collect::<Vec<_>>();
            assert_eq!(found, again, "{path}");
            Ok(found)
        });
        let got = found.map_or_else(
            |e| {
                json!(
                    matches!(e, JsonPathError::Syntax(_))
                        .then_some("syntax")
                        .unwrap_or("error")
                )
            },
            Value::Array,
        );
        assert_eq!(got, expect, "{path}");
    }

    #[test]
    fn paths() {
        check(".spec.replicas", json!([3]));
        check("{.spec.replicas}", json!([3]));
        check("$.spec.replicas", json!([3]));
        check(".spec.nothing.below", json!([]));
        check(".spec.replicas.below", json!([]));
        check(".spec.gone", json!([null]));
        check(r".metadata.labels.app\.kubernetes\.io/name", json!(["web"]));
        check(r".metadata.labels['app\.kubernetes\.io/name']", json!(["web"]));
        check(".metadata['name']", json!(["web"]));
        check("['metadata'].name", json!(["web"]));
        check(".metadata.labels.*", json!(["1", "web"]));
        check(".spec.ports[0]", json!([80]));
        check(".spec.ports[-1]", json!([8080]));
        check(".spec.ports[-2]", json!([443]));
        check(".spec.ports[3]", json!("error"));
        check(".spec.ports[*]", json!([80, 443, 8080]));
        check(".spec.ports[1:]", json!([443, 8080]));
        check(".spec.ports[:2]", json!([80, 443]));
        check(".spec.ports[::2]", json!([80, 8080]));
        check(".spec.ports[-2:-1]", json!([443]));
        check(".spec.ports[0:0]", json!([]));
        check(".spec.ports[0,2]", json!([80, 8080]));
        check(".spec['replicas','on']", json!([3, true]));
        check(".spec.replicas[0]", json!("error"));
        check("..type", json!(["Ready", "Synced", "Other"]));
        check(".status..n", json!([1, 2, 3]));
    }

    #[test]
    fn filters() {
        check(
            r#".status.conditions[?(@.type=="Ready")].status"#,
            json!(["True"]),
        );
        check(".status.conditions[?(@.type=='Synced')].status", json!(["False"]));
        check(r#".status.conditions[?(@.type != "Ready")].n"#, json!([2, 3]));
        check(".status.conditions[?(@.n>=2)].type", json!(["Synced", "Other"]));
        check(".status.conditions[?(@.n<2)].type", json!(["Ready"]));
        check(".status.conditions[?(@.n>1.5)].type", json!("error"));
        check(".status.conditions[?(@.status)].type", json!(["Ready", "Synced"]));
        check(r#".status.conditions[?(@.reason=="a)b")].type"#, json!(["Ready"]));
        check(".spec[?(@.x==1)]", json!("error"));
        check(".spec.ports[?(@ > 400)]", json!([443, 8080]));
    }

    #[test]
    fn what_is_no_path() {
        for bad in [
            ".spec[",
            ".spec[x]",
            ".a[?(@.b",
            ".a[?(@.b)",
            "#",
            ".a......b",
            "word",
            ".a[1:2:3:4]",
            "{.a}{.b}",
            ".a[?(@.b=!1)]",
        ] {
            assert!(
                matches!(JsonPath::parse(bad), Err(JsonPathError::Syntax(_))),
                "{bad}"
            );
        }
        let nested = format!("{}@.x{}", "[?(@.a".repeat(200), ")]".repeat(200));
        assert!(JsonPath::parse(&nested).is_err());
        assert!(JsonPath::parse(&".a".repeat(PATH_BYTES_MAX)).is_err());
    }

    #[test]
    fn results_are_bounded() {
        let mut deep = json!(1);
        for _ in 0..100 {
            deep = json!([deep.clone(), 2]);
        }
        let path = JsonPath::parse("..[*]..[*]..[*]..[*]").expect("a path");
        assert!(matches!(path.find(&deep), Err(JsonPathError::Evaluate(_))));
    }

    #[test]
    fn printing() {
        let check = |value: Value, expect: &str| assert_eq!(print(&value), expect);
        check(json!("a b"), "a b");
        check(json!(3), "3");
        check(json!(0.5), "0.5");
        check(json!(1e-7), "1e-07");
        check(json!(1.5e25), "1.5e+25");
        check(json!(true), "true");
        check(json!(null), "<no value>");
        check(json!({"b": [1], "a": "x"}), r#"{"a":"x","b":[1]}"#);
        check(json!(["<a&b>"]), r#"["\u003ca\u0026b\u003e"]"#);
        check(json!("<a&b>"), "<a&b>");
    }

    #[test]
    fn prefixes_stop_at_the_first_choice() {
        let check =
            |path: &str, expect: &[&str]| assert_eq!(JsonPath::parse(path).expect("a path").prefix(), expect);
        check(
            ".status.conditions[?(@.type=='Ready')].status",
            &["status", "conditions"],
        );
        check("..name", &[]);
        check(".spec.image", &["spec", "image"]);
    }
}
