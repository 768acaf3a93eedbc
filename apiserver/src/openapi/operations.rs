//! The paths of a kind and what can be done on each, before they are written in a version of OpenAPI. Pure.

use super::components;
use crate::resources::definition::ResourceDefinition;

/// A path with its operations.
#[derive(Debug)]
pub(super) struct Path {
    /// `/apis/<group>/<version>/namespaces/{namespace}/<plural>`.
    pub(super) path: String,
    /// What holds for every operation on it.
    pub(super) parameters: Vec<Parameter>,
    pub(super) operations: Vec<Operation>,
}

/// What one method does on a path.
#[derive(Debug)]
pub(super) struct Operation {
    /// In lower case.
    pub(super) method: &'static str,
    /// `x-kubernetes-action`.
    pub(super) action: &'static str,
    pub(super) id: String,
    pub(super) tag: String,
    pub(super) description: String,
    pub(super) parameters: Vec<Parameter>,
    pub(super) body: Option<Body>,
    /// Name of the component that comes back.
    pub(super) response: String,
    pub(super) codes: &'static [(&'static str, &'static str)],
    pub(super) produces: Vec<&'static str>,
    /// `x-kubernetes-group-version-kind`.
    pub(super) kind: GroupVersionKind,
}

/// The body of a request.
#[derive(Debug)]
pub(super) struct Body {
    /// Name of its component.
    pub(super) component: String,
    pub(super) required: bool,
    pub(super) consumes: Vec<&'static str>,
}

/// A parameter of a path or a query.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) in_path: bool,
    /// `string`, `boolean`, `integer`.
    pub(super) kind: &'static str,
    pub(super) description: &'static str,
}

/// Which kind an operation is about.
#[derive(Debug, Clone)]
pub(super) struct GroupVersionKind {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
}

const fn query(name: &'static str, kind: &'static str, description: &'static str) -> Parameter {
    Parameter {
        name,
        in_path: false,
        kind,
        description,
    }
}

const NAME: Parameter = Parameter {
    name: "name",
    in_path: true,
    kind: "string",
    description: "Name of the object.",
};
const NAMESPACE: Parameter = Parameter {
    name: "namespace",
    in_path: true,
    kind: "string",
    description: "Namespace of the object.",
};
const PRETTY: Parameter = query(
    "pretty",
    "string",
    "Whether the answer is indented. By default it is for browsers, curl and wget.",
);
const DRY_RUN: Parameter = query(
    "dryRun",
    "string",
    "All: do everything but store the result. No other value is known.",
);
const FIELD_MANAGER: Parameter = query(
    "fieldManager",
    "string",
    "Who makes the change: at most 128 printable characters.",
);
const FIELD_VALIDATION: Parameter = query(
    "fieldValidation",
    "string",
    "What becomes of unknown and duplicate fields: Ignore drops them, Warn drops them with a warning, Strict refuses the request.",
);
const LIMIT: Parameter = query(
    "limit",
    "integer",
    "At most so many items; the answer has a token for the rest.",
);
const CONTINUE: Parameter = query(
    "continue",
    "string",
    "The token from an earlier answer, to go on with the same list after it.",
);
const LABEL_SELECTOR: Parameter = query(
    "labelSelector",
    "string",
    "Only objects whose labels match, such as a=b,c in (d,e),!f.",
);
const FIELD_SELECTOR: Parameter = query(
    "fieldSelector",
    "string",
    "Only objects whose fields match, such as metadata.name=a.",
);
const RESOURCE_VERSION: Parameter = query(
    "resourceVersion",
    "string",
    "From which state on the answer may be; resourceVersionMatch says how it is meant.",
);
const RESOURCE_VERSION_MATCH: Parameter = query(
    "resourceVersionMatch",
    "string",
    "Exact or NotOlderThan: how resourceVersion is meant.",
);
const SEND_INITIAL_EVENTS: Parameter = query(
    "sendInitialEvents",
    "boolean",
    "Whether a watch begins with the objects that are there, followed by a bookmark.",
);
const ALLOW_WATCH_BOOKMARKS: Parameter = query(
    "allowWatchBookmarks",
    "boolean",
    "Whether a watch may have bookmarks, events with nothing but a resource version.",
);
const SHARD_SELECTOR: Parameter = query(
    "shardSelector",
    "string",
    "Only the objects of a shard, by the hash of a field of their metadata.",
);
const TIMEOUT_SECONDS: Parameter = query(
    "timeoutSeconds",
    "integer",
    "How long the answer may take; a watch ends then.",
);
const WATCH: Parameter = query(
    "watch",
    "boolean",
    "Whether to follow the changes instead of listing.",
);
const GRACE_PERIOD_SECONDS: Parameter = query(
    "gracePeriodSeconds",
    "integer",
    "How long the object may take to go; zero means at once.",
);
const ORPHAN_DEPENDENTS: Parameter = query(
    "orphanDependents",
    "boolean",
    "Deprecated, use propagationPolicy. Whether dependents stay.",
);
const PROPAGATION_POLICY: Parameter = query(
    "propagationPolicy",
    "string",
    "What becomes of dependents: Orphan leaves them, Background deletes them afterwards, Foreground deletes them first.",
);

const GET_PARAMETERS: &[Parameter] = &[RESOURCE_VERSION];
const LIST_PARAMETERS: &[Parameter] = &[
    ALLOW_WATCH_BOOKMARKS,
    CONTINUE,
    FIELD_SELECTOR,
    LABEL_SELECTOR,
    LIMIT,
    RESOURCE_VERSION,
    RESOURCE_VERSION_MATCH,
    SEND_INITIAL_EVENTS,
    SHARD_SELECTOR,
    TIMEOUT_SECONDS,
    WATCH,
];
const DELETE_COLLECTION_PARAMETERS: &[Parameter] = &[
    CONTINUE,
    DRY_RUN,
    FIELD_SELECTOR,
    GRACE_PERIOD_SECONDS,
    LABEL_SELECTOR,
    LIMIT,
    ORPHAN_DEPENDENTS,
    PROPAGATION_POLICY,
    RESOURCE_VERSION,
    RESOURCE_VERSION_MATCH,
    SEND_INITIAL_EVENTS,
    SHARD_SELECTOR,
    TIMEOUT_SECONDS,
];
const WRITE_PARAMETERS: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const DELETE_PARAMETERS: &[Parameter] = &[
    DRY_RUN,
    GRACE_PERIOD_SECONDS,
    ORPHAN_DEPENDENTS,
    PROPAGATION_POLICY,
];

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC_MERGE_PATCH: &str = "application/strategic-merge-patch+json";

const OK: (&str, &str) = ("200", "OK");
const CREATED: (&str, &str) = ("201", "Created");
const ACCEPTED: (&str, &str) = ("202", "Accepted");
const READ_CODES: &[(&str, &str)] = &[OK];
const REPLACE_CODES: &[(&str, &str)] = &[OK, CREATED];
const CREATE_CODES: &[(&str, &str)] = &[OK, CREATED, ACCEPTED];
const DELETE_CODES: &[(&str, &str)] = &[OK, ACCEPTED];

/// All paths of a kind.
pub(super) fn paths(definition: &ResourceDefinition) -> Vec<Path> {
    let root = match definition.group.as_str() {
        "" => format!("/api/{}", definition.version),
        group => format!("/apis/{group}/{}", definition.version),
    };
    let plural = &definition.plural;
    let (collection, scope): (String, &[Parameter]) = match definition.namespaced {
        true => (format!("{root}/namespaces/{{namespace}}/{plural}"), &[NAMESPACE]),
        false => (format!("{root}/{plural}"), &[]),
    };
    let object = format!("{collection}/{{name}}");
    let builder = Builder::new(definition);
    let mut paths = Vec::new();
    if definition.namespaced {
        paths.push(Path {
            path: format!("{root}/{plural}"),
            parameters: vec![PRETTY],
            operations: vec![builder.list(true)],
        });
    }
    let parameters = |more: &[Parameter]| [more, scope, &[PRETTY]].concat();
    paths.push(Path {
        path: collection,
        parameters: parameters(&[]),
        operations: builder.collection(),
    });
    paths.push(Path {
        path: object.clone(),
        parameters: parameters(&[NAME]),
        operations: builder.object(),
    });
    for subresource in definition.subresources() {
        paths.push(Path {
            path: format!("{object}/{}", subresource.name),
            parameters: parameters(&[NAME]),
            operations: builder.subresource(subresource.name, subresource.verbs, subresource.is_scale),
        });
    }
    paths
}

/// What the operations of a kind share.
struct Builder<'a> {
    definition: &'a ResourceDefinition,
    /// Group and version as they stand in operation ids, `PaasExampleComV1`.
    prefix: String,
    tag: String,
    /// `Namespaced` or nothing.
    scope: &'static str,
    component: String,
    produces: Vec<&'static str>,
}

impl<'a> Builder<'a> {
    fn new(definition: &'a ResourceDefinition) -> Self {
        let group = if definition.group.is_empty() {
            "core"
        } else {
            &definition.group
        };
        let words = group
            .strip_suffix(".k8s.io")
            .unwrap_or(group)
            .split(|c: char| !c.is_ascii_alphanumeric());
        let group: String = words.map(capitalized).collect();
        let mut produces = vec![JSON, YAML];
        produces.extend(definition.builtin.map(|_| PROTOBUF));
        Self {
            definition,
            prefix: format!("{group}{}", capitalized(&definition.version)),
            tag: format!("{}_{}", uncapitalized(&group), definition.version),
            scope: if definition.namespaced { "Namespaced" } else { "" },
            component: components::name(definition),
            produces,
        }
    }

    fn operation(&self, method: &'static str, action: &'static str, verb: &str, rest: &str) -> Operation {
        let kind = &self.definition.kind;
        let codes = match method {
            // Only the server's own kinds take the patches that create.
            "patch" if self.definition.builtin.is_none() => READ_CODES,
            "put" | "patch" => REPLACE_CODES,
            "post" => CREATE_CODES,
            "delete" => DELETE_CODES,
            _ => READ_CODES,
        };
        let description = match action {
            "list" => format!("list or watch objects of kind {kind}"),
            "deletecollection" => format!("delete collection of {kind}"),
            "post" | "delete" => format!("{verb} {} {kind}", article(kind)),
            "patch" => format!("partially update the specified {kind}"),
            _ => format!("{verb} the specified {kind}"),
        };
        Operation {
            method,
            action,
            id: format!("{verb}{}{rest}", self.prefix),
            tag: self.tag.clone(),
            description,
            parameters: Vec::new(),
            body: None,
            response: self.component.clone(),
            codes,
            produces: self.produces.clone(),
            kind: GroupVersionKind {
                group: self.definition.group.clone(),
                version: self.definition.version.clone(),
                kind: kind.clone(),
            },
        }
    }

    fn list(&self, all_namespaces: bool) -> Operation {
        let kind = &self.definition.kind;
        let rest = if all_namespaces {
            format!("{kind}ForAllNamespaces")
        } else {
            format!("{}{kind}", self.scope)
        };
        let mut produces = self.produces.clone();
        if self.definition.builtin.is_some() {
            produces.extend([
                "application/json;stream=watch",
                "application/vnd.kubernetes.protobuf;stream=watch",
            ]);
        }
        Operation {
            parameters: LIST_PARAMETERS.to_vec(),
            response: components::list_name(self.definition),
            produces,
            ..self.operation("get", "list", "list", &rest)
        }
    }

    fn collection(&self) -> Vec<Operation> {
        let rest = format!("{}{}", self.scope, self.definition.kind);
        let mut operations = vec![
            self.list(false),
            Operation {
                parameters: WRITE_PARAMETERS.to_vec(),
                body: Some(self.body()),
                ..self.operation("post", "post", "create", &rest)
            },
        ];
        if self.definition.verbs().contains(&"deletecollection") {
            operations.push(Operation {
                parameters: DELETE_COLLECTION_PARAMETERS.to_vec(),
                body: Some(self.delete_options()),
                response: components::STATUS.to_owned(),
                codes: READ_CODES,
                ..self.operation(
                    "delete",
                    "deletecollection",
                    "delete",
                    &format!("Collection{rest}"),
                )
            });
        }
        operations
    }

    fn object(&self) -> Vec<Operation> {
        let rest = format!("{}{}", self.scope, self.definition.kind);
        let mut operations = self.read_and_write(&rest, &["get", "patch", "update"]);
        operations.push(Operation {
            parameters: DELETE_PARAMETERS.to_vec(),
            body: Some(self.delete_options()),
            response: components::STATUS.to_owned(),
            ..self.operation("delete", "delete", "delete", &rest)
        });
        operations
    }

    fn subresource(&self, name: &str, verbs: &[&str], is_scale: bool) -> Vec<Operation> {
        let rest = format!("{}{}{}", self.scope, self.definition.kind, capitalized(name));
        let mut operations = self.read_and_write(&rest, verbs);
        for operation in &mut operations {
            operation.description =
                operation
                    .description
                    .replacen(" the specified ", &format!(" {name} of the specified "), 1);
            if is_scale {
                operation.response = components::SCALE.to_owned();
                if let Some(body) = operation
                    .body
                    .as_mut()
                    .filter(|body| body.component == self.component)
                {
                    body.component = components::SCALE.to_owned();
                }
            }
        }
        operations
    }

    fn read_and_write(&self, rest: &str, verbs: &[&str]) -> Vec<Operation> {
        let mut operations = Vec::new();
        if verbs.contains(&"get") {
            operations.push(Operation {
                parameters: if self.definition.builtin.is_none() {
                    GET_PARAMETERS.to_vec()
                } else {
                    Vec::new()
                },
                ..self.operation("get", "get", "read", rest)
            });
        }
        if verbs.contains(&"update") {
            operations.push(Operation {
                parameters: WRITE_PARAMETERS.to_vec(),
                body: Some(self.body()),
                ..self.operation("put", "put", "replace", rest)
            });
        }
        if verbs.contains(&"patch") {
            let mut consumes = vec![JSON_PATCH, MERGE_PATCH];
            consumes.extend(self.definition.builtin.map(|_| STRATEGIC_MERGE_PATCH));
            operations.push(Operation {
                parameters: WRITE_PARAMETERS.to_vec(),
                body: Some(Body {
                    component: components::PATCH.to_owned(),
                    required: true,
                    consumes,
                }),
                ..self.operation("patch", "patch", "patch", rest)
            });
        }
        operations
    }

    fn body(&self) -> Body {
        Body {
            component: self.component.clone(),
            required: true,
            consumes: self.consumes(),
        }
    }

    fn delete_options(&self) -> Body {
        let component = components::DELETE_OPTIONS.to_owned();
        Body {
            component,
            required: false,
            consumes: self.consumes(),
        }
    }

    fn consumes(&self) -> Vec<&'static str> {
        if self.definition.builtin.is_some() {
            vec!["*/*"]
        } else {
            vec![JSON, YAML]
        }
    }
}

fn article(kind: &str) -> &'static str {
    if kind.starts_with(['A', 'E', 'I', 'O', 'U']) {
        "an"
    } else {
        "a"
    }
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map(|first| first.to_ascii_uppercase())
        .into_iter()
        .chain(letters)
        .collect()
}

fn uncapitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map(|first| first.to_ascii_lowercase())
        .into_iter()
        .chain(letters)
        .collect()
}
