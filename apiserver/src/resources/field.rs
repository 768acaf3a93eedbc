//! What is wrong with a field, in the words of Kubernetes' `field.Error`: constructors for `StatusCause`.
//!
//! Paths are dotted text (`spec.versions[0].name`), put together by the caller.

use crate::status::StatusCause;
use serde_json::Value;

/// The field has no value and must have one.
#[must_use]
pub fn required(field: impl Into<String>, detail: &str) -> StatusCause {
    cause(
        "FieldValueRequired",
        field,
        with_detail("Required value".to_owned(), detail),
    )
}

/// The value is malformed.
#[must_use]
pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: &str) -> StatusCause {
    cause(
        "FieldValueInvalid",
        field,
        with_detail(format!("Invalid value: {}", text(&value.into())), detail),
    )
}

/// The value is not one of those that are known.
#[must_use]
pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> StatusCause {
    let list: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
    let detail = if list.is_empty() {
        String::new()
    } else {
        format!("supported values: {}", list.join(", "))
    };
    cause(
        "FieldValueNotSupported",
        field,
        with_detail(format!("Unsupported value: {}", text(&value.into())), &detail),
    )
}

/// The value stands in the list twice.
#[must_use]
pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> StatusCause {
    cause(
        "FieldValueDuplicate",
        field,
        format!("Duplicate value: {}", text(&value.into())),
    )
}

/// The value is well formed and not permitted here.
#[must_use]
pub fn forbidden(field: impl Into<String>, detail: &str) -> StatusCause {
    cause(
        "FieldValueForbidden",
        field,
        with_detail("Forbidden".to_owned(), detail),
    )
}

/// The value has more bytes than permitted.
#[must_use]
pub fn too_long(field: impl Into<String>, bytes_max: usize) -> StatusCause {
    let unit = if bytes_max == 1 { "byte" } else { "bytes" };
    cause(
        "FieldValueTooLong",
        field,
        format!("Too long: may not be more than {bytes_max} {unit}"),
    )
}

/// The list has more items than permitted.
#[must_use]
pub fn too_many(field: impl Into<String>, count: usize, count_max: usize) -> StatusCause {
    let unit = if count_max == 1 { "item" } else { "items" };
    cause(
        "FieldValueTooMany",
        field,
        format!("Too many: {count}: must have at most {count_max} {unit}"),
    )
}

/// The value has another type than the field.
#[must_use]
pub fn type_invalid(field: impl Into<String>, value: impl Into<Value>, detail: &str) -> StatusCause {
    cause(
        "FieldValueTypeInvalid",
        field,
        with_detail(format!("Invalid value: {}", text(&value.into())), detail),
    )
}

/// The field may not change.
#[must_use]
pub fn immutable(field: impl Into<String>, value: impl Into<Value>) -> StatusCause {
    invalid(field, value, "field is immutable")
}

fn cause(reason: &'static str, field: impl Into<String>, message: String) -> StatusCause {
    StatusCause {
        reason: reason.into(),
        message,
        field: field.into(),
    }
}

fn with_detail(text: String, detail: &str) -> String {
    if detail.is_empty() {
        text
    } else {
        format!("{text}: {detail}")
    }
}

/// A value as it stands in a message: JSON, which for text is what Go's `%q` prints.
fn text(value: &Value) -> String {
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_as_those_of_kubernetes() {
        assert_eq!(required("spec.group", "").message, "Required value");
        assert_eq!(
            required("spec.group", "because").message,
            "Required value: because"
        );
        assert_eq!(invalid("a", "B", "no").message, r#"Invalid value: "B": no"#);
        assert_eq!(invalid("a", 0, "no").message, "Invalid value: 0: no");
        assert_eq!(
            not_supported("a", "C", &["A", "B"]).message,
            r#"Unsupported value: "C": supported values: "A", "B""#
        );
        assert_eq!(duplicate("a", "b").message, r#"Duplicate value: "b""#);
        assert_eq!(forbidden("a", "never").message, "Forbidden: never");
        assert_eq!(too_long("a", 1).message, "Too long: may not be more than 1 byte");
        assert_eq!(
            too_many("a", 9, 8).message,
            "Too many: 9: must have at most 8 items"
        );
    }
}
