//! What holds for every CustomResourceDefinition, with kube-apiserver's messages.
//!
//! Upstream validates an internal form in which a part that is the same in every version stands once, at the top of
//! the spec. The paths in its messages come from there (`spec.validation.openAPIV3Schema…`), and so do ours.
//! Defaults in schemas, patterns and CEL rules are not checked here: that is the schema's work.

use crate::registry::names;
use crate::resources::definition::{flag, list, text};
use crate::resources::strategy::{Object, at};
use crate::resources::{field, structural};
use crate::status::StatusCause;
use serde_json::Value;
use std::collections::BTreeSet;

const COLUMN_TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: &[&str] = &[
    "byte",
    "date",
    "date-time",
    "double",
    "float",
    "int32",
    "int64",
    "password",
];
/// Fields that one version may be selected by.
const SELECTABLE_FIELDS_MAX: usize = 8;
/// Length of a deprecation warning, in bytes.
const WARNING_BYTES_MAX: usize = 256;
/// What holds for every CRD.
pub(super) fn validate(crd: &Object) -> Vec<StatusCause> {
    let none = Value::Null;
    let spec = crd.get("spec").unwrap_or(&none);
    let versions = list(spec, "/versions");
    let mut causes = validate_group(text(spec, "/group"));
    match text(spec, "/scope") {
        "" => causes.push(field::required("spec.scope", "")),
        "Cluster" | "Namespaced" => {}
        scope => causes.push(field::not_supported(
            "spec.scope",
            scope,
            &["Cluster", "Namespaced"],
        )),
    }
    causes.extend(validate_versions(versions));
    for field in ["plural", "singular", "kind", "listKind"] {
        if text(spec, &format!("/names/{field}")).is_empty() {
            causes.push(field::required(format!("spec.names.{field}"), ""));
        }
    }
    causes.extend(validate_names(spec.get("names"), "spec.names"));
    causes.extend(validate_conversion(spec.get("conversion").unwrap_or(&none)));
    causes.extend(validate_stored_versions(crd, versions));
    if flag(spec, "/preserveUnknownFields") {
        let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        causes.push(field::invalid("spec.preserveUnknownFields", true, detail));
    }
    causes
}

fn validate_group(group: &str) -> Vec<StatusCause> {
    if group.is_empty() {
        return vec![field::required("spec.group", "")];
    }
    let complaints = names::is_dns1123_subdomain(group);
    if !complaints.is_empty() {
        return vec![field::invalid("spec.group", group, &complaints.join(","))];
    }
    if group.contains('.') {
        Vec::new()
    } else {
        vec![field::invalid(
            "spec.group",
            group,
            "should be a domain with at least one dot",
        )]
    }
}

fn validate_versions(versions: &[Value]) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    for (index, version) in versions.iter().enumerate() {
        if version
            .pointer("/schema/openAPIV3Schema")
            .is_none_or(Value::is_null)
        {
            causes.push(field::required(
                format!("spec.versions[{index}].schema.openAPIV3Schema"),
                "",
            ));
        }
    }
    for (index, version) in versions.iter().enumerate() {
        let name = text(version, "/name");
        let complaints = names::is_dns1035_label(name);
        if !complaints.is_empty() {
            let complaint = complaints.join(",");
            causes.push(field::invalid(
                format!("spec.versions[{index}].name"),
                name,
                &complaint,
            ));
            if index == 0 && !name.is_empty() {
                // The older form of the API has the first version at the top.
                causes.push(field::invalid("spec.version", name, &complaint));
            }
        }
        causes.extend(validate_deprecation(
            version,
            &format!("spec.versions[{index}].deprecationWarning"),
        ));
    }
    causes.extend(validate_parts(
        versions,
        "schema",
        "validation",
        |version, path| {
            let status = version
                .pointer("/subresources/status")
                .is_some_and(|status| !status.is_null());
            version
                .pointer("/schema/openAPIV3Schema")
                .map_or_else(Vec::new, |schema| {
                    structural::validate(schema, &format!("{path}.openAPIV3Schema"), status)
                })
        },
    ));
    causes.extend(validate_parts(
        versions,
        "subresources",
        "subresources",
        |version, path| {
            version
                .pointer("/subresources/scale")
                .filter(|scale| !scale.is_null())
                .map_or_else(Vec::new, |scale| validate_scale(scale, &format!("{path}.scale")))
        },
    ));
    causes.extend(validate_parts(
        versions,
        "additionalPrinterColumns",
        "additionalPrinterColumns",
        |version, path| {
            let columns = list(version, "/additionalPrinterColumns").iter().enumerate();
            columns
                .flat_map(|(index, column)| validate_column(column, &format!("{path}[{index}]")))
                .collect()
        },
    ));
    causes.extend(validate_parts(
        versions,
        "selectableFields",
        "selectableFields",
        validate_selectable_fields,
    ));
    let storage = versions
        .iter()
        .filter(|version| flag(version, "/storage"))
        .count();
    let unique: BTreeSet<&str> = versions.iter().map(|version| text(version, "/name")).collect();
    // The whole list does not belong into a message that people read.
    let names: Vec<&str> = versions.iter().map(|version| text(version, "/name")).collect();
    if unique.len() != versions.len() {
        causes.push(field::invalid(
            "spec.versions",
            names.clone(),
            "must contain unique version names",
        ));
    }
    if storage != 1 {
        causes.push(field::invalid(
            "spec.versions",
            names,
            "must have exactly one version marked as storage version",
        ));
    }
    causes
}

/// Validates one part of every version; once, at the top of the spec, if it is the same in all of them.
fn validate_parts(
    versions: &[Value],
    part: &str,
    top: &str,
    validate: impl Fn(&Value, &str) -> Vec<StatusCause>,
) -> Vec<StatusCause> {
    let Some((first, others)) = versions.split_first() else {
        return Vec::new();
    };
    let of = |version: &Value| version.get(part).cloned().unwrap_or_default();
    let shared = of(first);
    if others.iter().all(|version| of(version) == shared) {
        return if shared.is_null() {
            Vec::new()
        } else {
            validate(first, &format!("spec.{top}"))
        };
    }
    versions
        .iter()
        .enumerate()
        .flat_map(|(index, version)| validate(version, &format!("spec.versions[{index}].{part}")))
        .collect()
}

fn validate_deprecation(version: &Value, path: &str) -> Vec<StatusCause> {
    let Some(warning) = version.get("deprecationWarning").and_then(Value::as_str) else {
        return Vec::new();
    };
    if !flag(version, "/deprecated") {
        return vec![field::invalid(
            path,
            warning,
            "can only be set for deprecated versions",
        )];
    }
    let mut causes = Vec::new();
    if warning.len() > WARNING_BYTES_MAX {
        causes.push(field::invalid(
            path,
            warning,
            &format!("must be <= {WARNING_BYTES_MAX} characters long"),
        ));
    }
    if warning.is_empty() {
        causes.push(field::invalid(path, warning, "must not be an empty string"));
    }
    if let Some((index, _)) = warning.char_indices().find(|(_, c)| c.is_control()) {
        let detail = format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {index}"
        );
        causes.push(field::invalid(path, warning, &detail));
    }
    causes
}

fn validate_scale(scale: &Value, path: &str) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    for (name, parent) in [("specReplicasPath", ".spec"), ("statusReplicasPath", ".status")] {
        let value = text(scale, &format!("/{name}"));
        let path = format!("{path}.{name}");
        if value.is_empty() {
            causes.push(field::required(path, ""));
        } else if !value.starts_with('.') {
            causes.push(field::invalid(
                path,
                value,
                "must be a simple json path starting with .",
            ));
        } else if !value.starts_with(&format!("{parent}.")) {
            causes.push(field::invalid(
                path,
                value,
                &format!("should be a json path under {parent}"),
            ));
        }
    }
    let selector = text(scale, "/labelSelectorPath");
    let path = format!("{path}.labelSelectorPath");
    if !selector.is_empty() && !selector.starts_with('.') {
        causes.push(field::invalid(
            path,
            selector,
            "must be a simple json path starting with .",
        ));
    } else if !selector.is_empty() && !selector.starts_with(".spec.") && !selector.starts_with(".status.") {
        causes.push(field::invalid(
            path,
            selector,
            "should be a json path under either .spec or .status",
        ));
    }
    causes
}

fn validate_column(column: &Value, path: &str) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    if text(column, "/name").is_empty() {
        causes.push(field::required(format!("{path}.name"), ""));
    }
    let types = format!("must be one of {}", COLUMN_TYPES.join(","));
    match text(column, "/type") {
        "" => causes.push(field::required(format!("{path}.type"), &types)),
        known if COLUMN_TYPES.contains(&known) => {}
        unknown => causes.push(field::invalid(format!("{path}.type"), unknown, &types)),
    }
    let format = text(column, "/format");
    if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
        causes.push(field::invalid(
            format!("{path}.format"),
            format,
            &format!("must be one of {}", COLUMN_FORMATS.join(",")),
        ));
    }
    match text(column, "/jsonPath") {
        "" => causes.push(field::required(format!("{path}.JSONPath"), "")),
        simple if simple.starts_with('.') => {}
        other => causes.push(field::invalid(
            format!("{path}.JSONPath"),
            other,
            "must be a simple json path starting with .",
        )),
    }
    causes
}

fn validate_selectable_fields(version: &Value, path: &str) -> Vec<StatusCause> {
    let fields = list(version, "/selectableFields");
    let Some(schema) = version.pointer("/schema/openAPIV3Schema") else {
        let detail = match path {
            "spec.selectableFields" => "may only be set when validations.schema is included",
            _ => "may only be set when `version.schema.openAPIV3Schema` is not included",
        };
        let complaint = field::invalid(path, "", detail);
        return if fields.is_empty() {
            Vec::new()
        } else {
            vec![complaint]
        };
    };
    let mut causes = Vec::new();
    let mut unique = BTreeSet::new();
    for (index, selectable) in fields.iter().enumerate() {
        let json_path = text(selectable, "/jsonPath");
        let path = format!("{path}[{index}].jsonPath");
        if json_path.is_empty() {
            causes.push(field::required(path, ""));
            continue;
        }
        let found = match structural::schema_at(schema, json_path) {
            Ok(found) => found,
            Err(error) => {
                causes.push(field::invalid(
                    path,
                    json_path,
                    &format!("is an invalid path: {error}"),
                ));
                continue;
            }
        };
        if json_path == ".metadata" || json_path.starts_with(".metadata.") {
            causes.push(field::invalid(
                &path,
                json_path,
                "must not point to fields in metadata",
            ));
        }
        if !matches!(text(found, "/type"), "string" | "boolean" | "integer") {
            let detail = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            causes.push(field::invalid(&path, json_path, detail));
        }
        if !unique.insert(json_path) {
            causes.push(field::duplicate(path, json_path));
        }
    }
    if unique.len() > SELECTABLE_FIELDS_MAX {
        causes.push(field::too_many(path, unique.len(), SELECTABLE_FIELDS_MAX));
    }
    causes
}

pub(super) fn validate_names(names: Option<&Value>, path: &str) -> Vec<StatusCause> {
    let Some(names) = names else { return Vec::new() };
    let mut causes = Vec::new();
    let mut check = |path: String, value: &str, lower: &str, prefix: &str, required: bool| {
        let complaints = names::is_dns1035_label(lower);
        if (required || !value.is_empty()) && !complaints.is_empty() {
            causes.push(field::invalid(
                path,
                value,
                &format!("{prefix}{}", complaints.join(",")),
            ));
        }
    };
    for name in ["plural", "singular"] {
        let value = text(names, &format!("/{name}"));
        check(format!("{path}.{name}"), value, value, "", false);
    }
    for name in ["kind", "listKind"] {
        let value = text(names, &format!("/{name}"));
        check(
            format!("{path}.{name}"),
            value,
            &value.to_lowercase(),
            "may have mixed case, but should otherwise match: ",
            false,
        );
    }
    for name in ["shortNames", "categories"] {
        for (index, value) in list(names, &format!("/{name}")).iter().enumerate() {
            // Unlike the others, an empty one is malformed.
            let value = value.as_str().unwrap_or_default();
            check(format!("{path}.{name}[{index}]"), value, value, "", true);
        }
    }
    let kind = text(names, "/kind");
    if !kind.is_empty() && kind == text(names, "/listKind") {
        causes.push(field::invalid(
            format!("{path}.listKind"),
            kind,
            "kind and listKind may not be the same",
        ));
    }
    causes
}

fn validate_conversion(conversion: &Value) -> Vec<StatusCause> {
    match text(conversion, "/strategy") {
        "None" => {
            let config = conversion
                .pointer("/webhook/clientConfig")
                .filter(|config| !config.is_null());
            let versions = list(conversion, "/webhook/conversionReviewVersions").first();
            let set = [
                config.map(|_| "webhookClientConfig"),
                versions.map(|_| "conversionReviewVersions"),
            ];
            let detail = "should not be set when strategy is not set to Webhook";
            let complaint = |name| field::forbidden(format!("spec.conversion.{name}"), detail);
            set.into_iter().flatten().map(complaint).collect()
        }
        "Webhook" => vec![field::forbidden(
            "spec.conversion.strategy",
            "conversion by webhook is not served yet; only None is",
        )],
        "" => vec![field::required("spec.conversion.strategy", "")],
        other => vec![field::not_supported(
            "spec.conversion.strategy",
            other,
            &["None", "Webhook"],
        )],
    }
}

fn validate_stored_versions(crd: &Object, versions: &[Value]) -> Vec<StatusCause> {
    let path = "status.storedVersions";
    let stored = at(crd, &["status", "storedVersions"])
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    if stored.is_empty() {
        return vec![field::invalid(
            path,
            Value::Null,
            "must have at least one stored version",
        )];
    }
    let mut causes = Vec::new();
    for (index, version) in stored.iter().enumerate() {
        if !versions.iter().any(|known| known.get("name") == Some(version)) {
            let name = version.as_str().unwrap_or_default();
            let detail = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration \
                 ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
            );
            causes.push(field::invalid(format!("{path}[{index}]"), name, &detail));
        }
    }
    causes
}
