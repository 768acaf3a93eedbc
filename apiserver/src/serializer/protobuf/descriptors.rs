//! What the protobuf messages of the built-in kinds and of meta/v1 look like: field numbers, JSON names, types.
//!
//! Tables, ordered by name, as the `generated.proto` files and the Go types of Kubernetes 1.36 define them: `kept` marks
//! fields whose zero value means something else than their absence (Go pointers, and fields that JSON always has).

/// A message.
#[derive(Debug)]
pub(in crate::serializer) struct Message {
    pub(in crate::serializer) fields: &'static [Field],
}

/// A field of a message.
#[derive(Debug)]
pub(in crate::serializer) struct Field {
    pub(in crate::serializer) number: u32,
    /// Its key in JSON.
    pub(in crate::serializer) name: &'static str,
    pub(in crate::serializer) shape: Shape,
    pub(in crate::serializer) kind: Kind,
}

/// How often a field occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::serializer) enum Shape {
    /// Once; a zero value is the same as none.
    One,
    /// Once; a zero value is a value.
    Kept,
    /// A list.
    Many,
    /// A map from text.
    Map,
}

/// The type of a field's value.
#[derive(Debug, Clone, Copy)]
pub(in crate::serializer) enum Kind {
    String,
    /// Base64 in JSON.
    Bytes,
    Bool,
    Int,
    Double,
    Message(&'static Message),
    /// A list of text, in a message of its own.
    Strings,
    /// RFC 3339 in JSON, whole seconds.
    Time,
    /// RFC 3339 in JSON, microseconds.
    MicroTime,
    /// Any JSON, as text in a message of its own.
    RawJson,
    SchemaOrArray,
    SchemaOrBool,
    SchemaOrStringArray,
}

const fn one(number: u32, name: &'static str, kind: Kind) -> Field {
    Field {
        number,
        name,
        shape: Shape::One,
        kind,
    }
}

const fn kept(number: u32, name: &'static str, kind: Kind) -> Field {
    Field {
        number,
        name,
        shape: Shape::Kept,
        kind,
    }
}

const fn many(number: u32, name: &'static str, kind: Kind) -> Field {
    Field {
        number,
        name,
        shape: Shape::Many,
        kind,
    }
}

const fn map(number: u32, name: &'static str, kind: Kind) -> Field {
    Field {
        number,
        name,
        shape: Shape::Map,
        kind,
    }
}

/// The message of a kind; `None`: it has no form in protobuf.
pub(in crate::serializer) fn message_of(api_version: &str, kind: &str) -> Option<&'static Message> {
    Some(match (api_version, kind) {
        ("v1", "Namespace") => &NAMESPACE,
        ("v1", "NamespaceList") => &NAMESPACE_LIST,
        ("v1", "Secret") => &SECRET,
        ("v1", "SecretList") => &SECRET_LIST,
        ("v1", "Event") => &EVENT,
        ("v1", "EventList") => &EVENT_LIST,
        ("events.k8s.io/v1", "Event") => &EVENTS_EVENT,
        ("events.k8s.io/v1", "EventList") => &EVENTS_EVENT_LIST,
        ("coordination.k8s.io/v1", "Lease") => &LEASE,
        ("coordination.k8s.io/v1", "LeaseList") => &LEASE_LIST,
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => &CUSTOM_RESOURCE_DEFINITION,
        ("apiextensions.k8s.io/v1", "CustomResourceDefinitionList") => &CUSTOM_RESOURCE_DEFINITION_LIST,
        ("meta.k8s.io/v1" | "meta.k8s.io/v1beta1", "PartialObjectMetadata") => &PARTIAL_OBJECT_METADATA,
        ("meta.k8s.io/v1", "PartialObjectMetadataList") => &PARTIAL_OBJECT_METADATA_LIST,
        ("meta.k8s.io/v1beta1", "PartialObjectMetadataList") => &PARTIAL_OBJECT_METADATA_LIST_V1BETA1,
        ("v1", "Status") => &STATUS,
        // What is not in a group has no version in any encoding, as the first ones had not.
        ("", "APIVersions") => &API_VERSIONS,
        ("v1", "APIGroupList") => &API_GROUP_LIST,
        ("v1", "APIGroup") => &API_GROUP,
        ("" | "v1", "APIResourceList") => &API_RESOURCE_LIST,
        ("apidiscovery.k8s.io/v2", "APIGroupDiscoveryList") => &API_GROUP_DISCOVERY_LIST,
        // Clients send it in the version of the kind they delete.
        (_, "DeleteOptions") => &DELETE_OPTIONS,
        _ => return None,
    })
}

/// The schema of a CRD, for the types that wrap it.
pub(in crate::serializer) static SCHEMA: &Message = &JSON_SCHEMA_PROPS;

/// The first version of this list had its fields the other way round.
static PARTIAL_OBJECT_METADATA_LIST_V1BETA1: Message = Message {
    fields: &[
        many(1, "items", Kind::Message(&PARTIAL_OBJECT_METADATA)),
        one(2, "metadata", Kind::Message(&LIST_META)),
    ],
};

static API_GROUP: Message = Message {
    fields: &[
        one(1, "name", Kind::String),
        many(2, "versions", Kind::Message(&GROUP_VERSION_FOR_DISCOVERY)),
        one(3, "preferredVersion", Kind::Message(&GROUP_VERSION_FOR_DISCOVERY)),
        many(
            4,
            "serverAddressByClientCIDRs",
            Kind::Message(&SERVER_ADDRESS_BY_CLIENT_CIDR),
        ),
    ],
};

static API_GROUP_DISCOVERY: Message = Message {
    fields: &[
        one(1, "metadata", Kind::Message(&OBJECT_META)),
        many(2, "versions", Kind::Message(&API_VERSION_DISCOVERY)),
    ],
};

static API_GROUP_DISCOVERY_LIST: Message = Message {
    fields: &[
        one(1, "metadata", Kind::Message(&LIST_META)),
        many(2, "items", Kind::Message(&API_GROUP_DISCOVERY)),
    ],
};

static API_GROUP_LIST: Message = Message {
    fields: &[many(1, "groups", Kind::Message(&API_GROUP))],
};

static API_RESOURCE: Message = Message {
    fields: &[
        one(1, "name", Kind::String),
        one(2, "namespaced", Kind::Bool),
        one(3, "kind", Kind::String),
        kept(4, "verbs", Kind::Strings),
        many(5, "shortNames", Kind::String),
        one(6, "singularName", Kind::String),
        many(7, "categories", Kind::String),
        one(8, "group", Kind::String),
        one(9, "version", Kind::String),
        one(10, "storageVersionHash", Kind::String),
    ],
};

static API_RESOURCE_DISCOVERY: Message = Message {
    fields: &[
        one(1, "resource", Kind::String),
        kept(2, "responseKind", Kind::Message(&GROUP_VERSION_KIND)),
        one(3, "scope", Kind::String),
        one(4, "singularResource", Kind::String),
        many(5, "verbs", Kind::String),
        many(6, "shortNames", Kind::String),
        many(7, "categories", Kind::String),
        many(8, "subresources", Kind::Message(&API_SUBRESOURCE_DISCOVERY)),
    ],
};

static API_RESOURCE_LIST: Message = Message {
    fields: &[
        one(1, "groupVersion", Kind::String),
        many(2, "resources", Kind::Message(&API_RESOURCE)),
    ],
};

static API_SUBRESOURCE_DISCOVERY: Message = Message {
    fields: &[
        one(1, "subresource", Kind::String),
        kept(2, "responseKind", Kind::Message(&GROUP_VERSION_KIND)),
        many(3, "acceptedTypes", Kind::Message(&GROUP_VERSION_KIND)),
        many(4, "verbs", Kind::String),
    ],
};

static API_VERSIONS: Message = Message {
    fields: &[
        many(1, "versions", Kind::String),
        many(
            2,
            "serverAddressByClientCIDRs",
            Kind::Message(&SERVER_ADDRESS_BY_CLIENT_CIDR),
        ),
    ],
};

static API_VERSION_DISCOVERY: Message = Message {
    fields: &[
        one(1, "version", Kind::String),
        many(2, "resources", Kind::Message(&API_RESOURCE_DISCOVERY)),
        one(3, "freshness", Kind::String),
    ],
};

static CUSTOM_RESOURCE_COLUMN_DEFINITION: Message = Message {
    fields: &[
        kept(1, "name", Kind::String),
        kept(2, "type", Kind::String),
        one(3, "format", Kind::String),
        one(4, "description", Kind::String),
        one(5, "priority", Kind::Int),
        kept(6, "jsonPath", Kind::String),
    ],
};

static CUSTOM_RESOURCE_CONVERSION: Message = Message {
    fields: &[
        kept(1, "strategy", Kind::String),
        kept(2, "webhook", Kind::Message(&WEBHOOK_CONVERSION)),
    ],
};

static CUSTOM_RESOURCE_DEFINITION: Message = Message {
    fields: &[
        one(1, "metadata", Kind::Message(&OBJECT_META)),
        one(2, "spec", Kind::Message(&CUSTOM_RESOURCE_DEFINITION_SPEC)),
        one(3, "status", Kind::Message(&CUSTOM_RESOURCE_DEFINITION_STATUS)),
    ],
};

static CUSTOM_RESOURCE_DEFINITION_CONDITION: Message = Message {
    fields: &[
        kept(1, "type", Kind::String),
        kept(2, "status", Kind::String),
        one(3, "lastTransitionTime", Kind::Time),
        one(4, "reason", Kind::String),
        one(5, "message", Kind::String),
        one(6, "observedGeneration", Kind::Int),
    ],
};

static CUSTOM_RESOURCE_DEFINITION_LIST: Message = Message {
    fields: &[
        one(1, "metadata", Kind::Message(&LIST_META)),
        many(2, "items", Kind::Message(&CUSTOM_RESOURCE_DEFINITION)),
    ],
};

static CUSTOM_RESOURCE_DEFINITION_NAMES: Message = Message {
    fields: &[
        kept(1, "plural", Kind::String),
        one(2, "singular", Kind::String),
        many(3, "shortNames", Kind::String),
        kept(4, "kind", Kind::String),
        one(5, "listKind", Kind::String),
        many(6, "categories", Kind::String),
    ],
};

static CUSTOM_RESOURCE_DEFINITION_SPEC: Message = Message {
    fields: &[
        kept(1, "group", Kind::String),
        one(3, "names", Kind::Message(&CUSTOM_RESOURCE_DEFINITION_NAMES)),
        kept(4, "scope", Kind::String),
        many(7, "versions", Kind::Message(&CUSTOM_RESOURCE_DEFINITION_VERSION)),
        kept(9, "conversion", Kind::Message(&CUSTOM_RESOURCE_CONVERSION)),
        one(10, "preserveUnknownFields", Kind::Bool),
    ],
};

static CUSTOM_RESOURCE_DEFINITION_STATUS: Message = Message {
    fields: &[
        many(
            1,
            "conditions",
            Kind::Message(&CUSTOM_RESOURCE_DEFINITION_CONDITION),
        ),
        one(
            2,
            "acceptedNames",
            Kind::Message(&CUSTOM_RESOURCE_DEFINITION_NAMES),
        ),
        many(3, "storedVersions", Kind::String),
        one(4, "observedGeneration", Kind::Int),
    ],
};

static CUSTOM_RESOURCE_DEFINITION_VERSION: Message = Message {
    fields: &[
        kept(1, "name", Kind::String),
        kept(2, "served", Kind::Bool),
        kept(3, "storage", Kind::Bool),
        kept(4, "schema", Kind::Message(&CUSTOM_RESOURCE_VALIDATION)),
        kept(5, "subresources", Kind::Message(&CUSTOM_RESOURCE_SUBRESOURCES)),
        many(
            6,
            "additionalPrinterColumns",
            Kind::Message(&CUSTOM_RESOURCE_COLUMN_DEFINITION),
        ),
        one(7, "deprecated", Kind::Bool),
        kept(8, "deprecationWarning", Kind::String),
        many(9, "selectableFields", Kind::Message(&SELECTABLE_FIELD)),
    ],
};

static CUSTOM_RESOURCE_SUBRESOURCES: Message = Message {
    fields: &[
        kept(1, "status", Kind::Message(&CUSTOM_RESOURCE_SUBRESOURCE_STATUS)),
        kept(2, "scale", Kind::Message(&CUSTOM_RESOURCE_SUBRESOURCE_SCALE)),
    ],
};

static CUSTOM_RESOURCE_SUBRESOURCE_SCALE: Message = Message {
    fields: &[
        kept(1, "specReplicasPath", Kind::String),
        kept(2, "statusReplicasPath", Kind::String),
        kept(3, "labelSelectorPath", Kind::String),
    ],
};

static CUSTOM_RESOURCE_SUBRESOURCE_STATUS: Message = Message { fields: &[] };

static CUSTOM_RESOURCE_VALIDATION: Message = Message {
    fields: &[kept(1, "openAPIV3Schema", Kind::Message(&JSON_SCHEMA_PROPS))],
};

static DELETE_OPTIONS: Message = Message {
    fields: &[
        kept(1, "gracePeriodSeconds", Kind::Int),
        kept(2, "preconditions", Kind::Message(&PRECONDITIONS)),
        kept(3, "orphanDependents", Kind::Bool),
        kept(4, "propagationPolicy", Kind::String),
        many(5, "dryRun", Kind::String),
        kept(6, "ignoreStoreReadErrorWithClusterBreakingPotential", Kind::Bool),
    ],
};

static EVENT: Message = Message {
    fields: &[
        one(1, "metadata", Kind::Message(&OBJECT_META)),
        one(2, "involvedObject", Kind::Message(&OBJECT_REFERENCE)),
        one(3, "reason", Kind::String),
        one(4, "message", Kind::String),
        one(5, "source", Kind::Message(&EVENT_SOURCE)),
        one(6, "firstTimestamp", Kind::Time),
        one(7, "lastTimestamp", Kind::Time),
        one(8, "count", Kind::Int),
        one(9, "type", Kind::String),
        one(10, "eventTime", Kind::MicroTime),
        kept(11, "series", Kind::Message(&EVENT_SERIES)),
        one(12, "action", Kind::String),
        kept(13, "related", Kind::Message(&OBJECT_REFERENCE)),
        kept(14, "reportingComponent", Kind::String),
        kept(15, "reportingInstance", Kind::String),
    ],
};

static EVENTS_EVENT: Message = Message {
    fields: &[
        one(1, "metadata", Kind::Message(&OBJECT_META)),
        one(2, "eventTime", Kind::MicroTime),
        kept(3, "series", Kind::Message(&EVENTS_EVENT_SERIES)),
        one(4, "reportingController", Kind::String),
        one(5, "reportingInstance", Kind::String),
        one(6, "action", Kind::String),
        one(7, "reason", Kind::String),
        one(8, "regarding", Kind::Message(&OBJECT_REFERENCE)),
        kept(9, "related", Kind::Message(&OBJECT_REFERENCE)),
        one(10, "note", Kind::String),
        one(11, "type", Kind::String),
        one(12, "deprecatedSource", Kind::Message(&EVENT_SOURCE)),
        one(13, "deprecatedFirstTimestamp", Kind::Time),
        one(14, "deprecatedLastTimestamp", Kind::Time),
        one(15, "deprecatedCount", Kind::Int),
    ],
};

static EVENTS_EVENT_LIST: Message = Message {
    fields: &[
        one(1, "metadata", Kind::Message(&LIST_META)),
        many(2, "items", Kind::Message(&EVENTS_EVENT)),
    ],
};

static EVENTS_EVENT_SERIES: Message = Message {
    fields: &[
        kept(1, "count", Kind::Int),
        one(2, "lastObservedTime", Kind::MicroTime),
    ],
};

static EVENT_LIST: Message = Message {
    fields: &[
        one(1, "metadata", Kind::Message(&LIST_META)),
        many(2, "items", Kind::Message(&EVENT)),
    ],
};

static EVENT_SERIES: Message = Message {
    fields: &[
        one(1, "count", Kind::Int),
        one(2, "lastObservedTime", Kind::MicroTime),
    ],
};

static EVENT_SOURCE: Message = Message {
    fields: &[one(1, "component", Kind::String), one(2, "host", Kind::String)],
};

static EXTERNAL_DOCUMENTATION: Message = Message {
    fields: &[one(1, "description", Kind::String), one(2, "url", Kind::String)],
};

static GROUP_VERSION_FOR_DISCOVERY: Message = Message {
    fields: &[
        one(1, "groupVersion", Kind::String),
        one(2, "version", Kind::String),
    ],
};

static GROUP_VERSION_KIND: Message = Message {
    fields: &[
        one(1, "group", Kind::String),
        one(2, "version", Kind::String),
        one(3, "kind", Kind::String),
    ],
};

static JSON_SCHEMA_PROPS: Message = Message {
    fields: &[
        one(1, "id", Kind::String),
        one(2, "$schema", Kind::String),
        kept(3, "$ref", Kind::String),
        one(4, "description", Kind::String),
        one(5, "type", Kind::String),
        one(6, "format", Kind::String),
        one(7, "title", Kind::String),
        kept(8, "default", Kind::RawJson),
        kept(9, "maximum", Kind::Double),
        one(10, "exclusiveMaximum", Kind::Bool),
        kept(11, "minimum", Kind::Double),
        one(12, "exclusiveMinimum", Kind::Bool),
        kept(13, "maxLength", Kind::Int),
        kept(14, "minLength", Kind::Int),
        one(15, "pattern", Kind::String),
        kept(16, "maxItems", Kind::Int),
        kept(17, "minItems", Kind::Int),
        one(18, "uniqueItems", Kind::Bool),
        kept(19, "multipleOf", Kind::Double),
        many(20, "enum", Kind::RawJson),
        kept(21, "maxProperties", Kind::Int),
        kept(22, "minProperties", Kind::Int),
        many(23, "required", Kind::String),
        kept(24, "items", Kind::SchemaOrArray),
        many(25, "allOf", Kind::Message(&JSON_SCHEMA_PROPS)),
        many(26, "oneOf", Kind::Message(&JSON_SCHEMA_PROPS)),
        many(27, "anyOf", Kind::Message(&JSON_SCHEMA_PROPS)),
        kept(28, "not", Kind::Message(&JSON_SCHEMA_PROPS)),
        map(29, "properties", Kind::Message(&JSON_SCHEMA_PROPS)),
        kept(30, "additionalProperties", Kind::SchemaOrBool),
        map(31, "patternProperties", Kind::Message(&JSON_SCHEMA_PROPS)),
        map(32, "dependencies", Kind::SchemaOrStringArray),
        kept(33, "additionalItems", Kind::SchemaOrBool),
        map(34, "definitions", Kind::Message(&JSON_SCHEMA_PROPS)),
        kept(35, "externalDocs", Kind::Message(&EXTERNAL_DOCUMENTATION)),
        kept(36, "example", Kind::RawJson),
        one(37, "nullable", Kind::Bool),
        kept(38, "x-kubernetes-preserve-unknown-fields", Kind::Bool),
        one(39, "x-kubernetes-embedded-resource", Kind::Bool),
        one(40, "x-kubernetes-int-or-string", Kind::Bool),
        many(41, "x-kubernetes-list-map-keys", Kind::String),
        kept(42, "x-kubernetes-list-type", Kind::String),
        kept(43, "x-kubernetes-map-type", Kind::String),
        many(44, "x-kubernetes-validations", Kind::Message(&VALIDATION_RULE)),
    ],
};

static LEASE: Message = Message {
    fields: &[
        one(1, "metadata", Kind::Message(&OBJECT_META)),
        one(2, "spec", Kind::Message(&LEASE_SPEC)),
    ],
};

static LEASE_LIST: Message = Message {
    fields: &[
        one(1, "metadata", Kind::Message(&LIST_META)),
        many(2, "items", Kind::Message(&LEASE)),
    ],
};

static LEASE_SPEC: Message = Message {
    fields: &[
        kept(1, "holderIdentity", Kind::String),
        kept(2, "leaseDurationSeconds", Kind::Int),
        kept(3, "acquireTime", Kind::MicroTime),
        kept(4, "renewTime", Kind::MicroTime),
        kept(5, "leaseTransitions", Kind::Int),
        kept(6, "strategy", Kind::String),
        kept(7, "preferredHolder", Kind::String),
    ],
};

static LIST_META: Message = Message {
    fields: &[
        one(1, "selfLink", Kind::String),
        one(2, "resourceVersion", Kind::String),
        one(3, "continue", Kind::String),
        kept(4, "remainingItemCount", Kind::Int),
        kept(5, "shardInfo", Kind::Message(&SHARD_INFO)),
    ],
};

static MANAGED_FIELDS_ENTRY: Message = Message {
    fields: &[
        one(1, "manager", Kind::String),
        one(2, "operation", Kind::String),
        one(3, "apiVersion", Kind::String),
        kept(4, "time", Kind::Time),
        one(6, "fieldsType", Kind::String),
        kept(7, "fieldsV1", Kind::RawJson),
        one(8, "subresource", Kind::String),
    ],
};

static NAMESPACE: Message = Message {
    fields: &[
        one(1, "metadata", Kind::Message(&OBJECT_META)),
        one(2, "spec", Kind::Message(&NAMESPACE_SPEC)),
        one(3, "status", Kind::Message(&NAMESPACE_STATUS)),
    ],
};

static NAMESPACE_CONDITION: Message = Message {
    fields: &[
        kept(1, "type", Kind::String),
        kept(2, "status", Kind::String),
        one(4, "lastTransitionTime", Kind::Time),
        one(5, "reason", Kind::String),
        one(6, "message", Kind::String),
    ],
};

static NAMESPACE_LIST: Message = Message {
    fields: &[
        one(1, "metadata", Kind::Message(&LIST_META)),
        many(2, "items", Kind::Message(&NAMESPACE)),
    ],
};

static NAMESPACE_SPEC: Message = Message {
    fields: &[many(1, "finalizers", Kind::String)],
};

static NAMESPACE_STATUS: Message = Message {
    fields: &[
        one(1, "phase", Kind::String),
        many(2, "conditions", Kind::Message(&NAMESPACE_CONDITION)),
    ],
};

static OBJECT_META: Message = Message {
    fields: &[
        one(1, "name", Kind::String),
        one(2, "generateName", Kind::String),
        one(3, "namespace", Kind::String),
        one(4, "selfLink", Kind::String),
        one(5, "uid", Kind::String),
        one(6, "resourceVersion", Kind::String),
        one(7, "generation", Kind::Int),
        one(8, "creationTimestamp", Kind::Time),
        kept(9, "deletionTimestamp", Kind::Time),
        kept(10, "deletionGracePeriodSeconds", Kind::Int),
        map(11, "labels", Kind::String),
        map(12, "annotations", Kind::String),
        many(13, "ownerReferences", Kind::Message(&OWNER_REFERENCE)),
        many(14, "finalizers", Kind::String),
        many(17, "managedFields", Kind::Message(&MANAGED_FIELDS_ENTRY)),
    ],
};

static OBJECT_REFERENCE: Message = Message {
    fields: &[
        one(1, "kind", Kind::String),
        one(2, "namespace", Kind::String),
        one(3, "name", Kind::String),
        one(4, "uid", Kind::String),
        one(5, "apiVersion", Kind::String),
        one(6, "resourceVersion", Kind::String),
        one(7, "fieldPath", Kind::String),
    ],
};

static OWNER_REFERENCE: Message = Message {
    fields: &[
        kept(1, "kind", Kind::String),
        kept(3, "name", Kind::String),
        kept(4, "uid", Kind::String),
        kept(5, "apiVersion", Kind::String),
        kept(6, "controller", Kind::Bool),
        kept(7, "blockOwnerDeletion", Kind::Bool),
    ],
};

static PARTIAL_OBJECT_METADATA: Message = Message {
    fields: &[one(1, "metadata", Kind::Message(&OBJECT_META))],
};

static PARTIAL_OBJECT_METADATA_LIST: Message = Message {
    fields: &[
        one(1, "metadata", Kind::Message(&LIST_META)),
        many(2, "items", Kind::Message(&PARTIAL_OBJECT_METADATA)),
    ],
};

static PRECONDITIONS: Message = Message {
    fields: &[
        kept(1, "uid", Kind::String),
        kept(2, "resourceVersion", Kind::String),
    ],
};

static SECRET: Message = Message {
    fields: &[
        one(1, "metadata", Kind::Message(&OBJECT_META)),
        map(2, "data", Kind::Bytes),
        one(3, "type", Kind::String),
        map(4, "stringData", Kind::String),
        kept(5, "immutable", Kind::Bool),
    ],
};

static SECRET_LIST: Message = Message {
    fields: &[
        one(1, "metadata", Kind::Message(&LIST_META)),
        many(2, "items", Kind::Message(&SECRET)),
    ],
};

static SELECTABLE_FIELD: Message = Message {
    fields: &[kept(1, "jsonPath", Kind::String)],
};

static SERVER_ADDRESS_BY_CLIENT_CIDR: Message = Message {
    fields: &[
        one(1, "clientCIDR", Kind::String),
        one(2, "serverAddress", Kind::String),
    ],
};

static SERVICE_REFERENCE: Message = Message {
    fields: &[
        kept(1, "namespace", Kind::String),
        kept(2, "name", Kind::String),
        kept(3, "path", Kind::String),
        kept(4, "port", Kind::Int),
    ],
};

static SHARD_INFO: Message = Message {
    fields: &[kept(1, "selector", Kind::String)],
};

static STATUS: Message = Message {
    fields: &[
        one(1, "metadata", Kind::Message(&LIST_META)),
        one(2, "status", Kind::String),
        one(3, "message", Kind::String),
        one(4, "reason", Kind::String),
        kept(5, "details", Kind::Message(&STATUS_DETAILS)),
        one(6, "code", Kind::Int),
    ],
};

static STATUS_CAUSE: Message = Message {
    fields: &[
        one(1, "reason", Kind::String),
        one(2, "message", Kind::String),
        one(3, "field", Kind::String),
    ],
};

static STATUS_DETAILS: Message = Message {
    fields: &[
        one(1, "name", Kind::String),
        one(2, "group", Kind::String),
        one(3, "kind", Kind::String),
        many(4, "causes", Kind::Message(&STATUS_CAUSE)),
        one(5, "retryAfterSeconds", Kind::Int),
        one(6, "uid", Kind::String),
    ],
};

static VALIDATION_RULE: Message = Message {
    fields: &[
        kept(1, "rule", Kind::String),
        one(2, "message", Kind::String),
        one(3, "messageExpression", Kind::String),
        kept(4, "reason", Kind::String),
        one(5, "fieldPath", Kind::String),
        kept(6, "optionalOldSelf", Kind::Bool),
    ],
};

static WEBHOOK_CLIENT_CONFIG: Message = Message {
    fields: &[
        kept(1, "service", Kind::Message(&SERVICE_REFERENCE)),
        one(2, "caBundle", Kind::Bytes),
        kept(3, "url", Kind::String),
    ],
};

static WEBHOOK_CONVERSION: Message = Message {
    fields: &[
        kept(2, "clientConfig", Kind::Message(&WEBHOOK_CLIENT_CONFIG)),
        many(3, "conversionReviewVersions", Kind::String),
    ],
};
