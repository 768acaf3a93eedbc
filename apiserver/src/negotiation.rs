//! Accept and Content-Type → media type and transform. Pure.
//!
//! The rules are those of kube-apiserver, oddities included: clauses are sorted by their q-value but a q of 0 excludes
//! nothing, parameters that nobody knows are ignored (`drop=metadata.managedFields`, `profile=…`), and a clause whose
//! transform the endpoint cannot serve is skipped in favour of the next one. This is what lets a client say
//! "a v1 Table, or a v1beta1 Table, or JSON" in one header. Nothing here reads a body.

use crate::status::ApiError;

/// How many clauses of an Accept header are looked at.
pub const ACCEPT_CLAUSES_MAX: usize = 64;

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const META_GROUP: &str = "meta.k8s.io";

/// An encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MediaType {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`: built-in kinds, metadata, discovery and Status only.
    Protobuf,
}

impl MediaType {
    const ALL: [Self; 3] = [Self::Json, Self::Yaml, Self::Protobuf];

    /// Type and subtype.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Yaml => YAML,
            Self::Protobuf => PROTOBUF,
        }
    }

    /// The Content-Type of a watch in this encoding.
    #[must_use]
    pub const fn as_stream(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Yaml => "application/yaml;stream=watch",
            Self::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        }
    }

    fn matches(self, clause: &Clause<'_>) -> bool {
        let (kind, subtype) = self.as_str().split_once('/').unwrap_or_default();
        match (clause.kind, clause.subtype) {
            ("*", "*") => true,
            (k, "*") => k == kind,
            (k, s) => k == kind && s == subtype,
        }
    }
}

/// A version of group meta.k8s.io.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MetaVersion {
    /// `meta.k8s.io/v1`.
    V1,
    /// `meta.k8s.io/v1beta1`.
    V1Beta1,
}

impl MetaVersion {
    /// Group and version.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1Beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

/// What an object is turned into before it is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// The object itself.
    Object,
    /// Rows for people.
    Table(MetaVersion),
    /// apiVersion, kind and metadata only.
    PartialObjectMetadata(MetaVersion),
    /// A list of these.
    PartialObjectMetadataList(MetaVersion),
}

/// What a response looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Representation {
    /// The encoding.
    pub media_type: MediaType,
    /// The transform.
    pub target: Target,
    /// Whether JSON is indented.
    pub pretty: bool,
    /// Whether the response is a stream of watch events.
    pub stream: bool,
}

impl Representation {
    /// Plain compact JSON of whole objects.
    pub const JSON: Self = Self {
        media_type: MediaType::Json,
        target: Target::Object,
        pretty: false,
        stream: false,
    };

    /// The Content-Type header.
    #[must_use]
    pub const fn content_type(&self) -> &'static str {
        if self.stream {
            self.media_type.as_stream()
        } else {
            self.media_type.as_str()
        }
    }
}

/// What the endpoint answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResponseKind {
    /// One object.
    Object,
    /// A list.
    List,
    /// A stream of events.
    Watch,
}

/// How a patch body is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7396.
    Merge,
    /// Kubernetes' own; built-in kinds only.
    StrategicMerge,
    /// Server-side apply.
    Apply,
}

impl PatchType {
    /// The media type.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::StrategicMerge => "application/strategic-merge-patch+json",
            Self::Apply => "application/apply-patch+yaml",
        }
    }
}

/// One clause of an Accept header.
#[derive(Debug, Clone, Default)]
struct Clause<'a> {
    kind: &'a str,
    subtype: &'a str,
    q: f32,
    /// `as`, `g`, `v`: the transform asked for.
    convert: Option<Convert<'a>>,
    stream: &'a str,
    server_version: &'a str,
    pretty: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Convert<'a> {
    kind: &'a str,
    group: &'a str,
    version: &'a str,
}

impl Convert<'_> {
    fn is_aggregated_discovery(&self) -> bool {
        (self.group, self.version, self.kind) == ("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList")
    }
}

/// Chooses the representation of a response. `builtin`: the kind is one of those that protobuf is served for; for the
/// others it is served for metadata only.
///
/// # Errors
/// 406, naming what would have been accepted.
pub fn negotiate_output(
    accept: Option<&str>,
    user_agent: Option<&str>,
    pretty: Option<&str>,
    response: ResponseKind,
    builtin: bool,
) -> Result<Representation, ApiError> {
    let stream = response == ResponseKind::Watch;
    let header = accept.unwrap_or_default();
    let accepted = if header.is_empty() {
        Some((MediaType::Json, Target::Object, false))
    } else {
        first_accepted(&parse_accept(header), &MediaType::ALL, |clause, m| {
            target_of(clause, m, builtin)
        })
    };
    let Some((media_type, target, pretty_parameter)) = accepted else {
        return Err(ApiError::not_acceptable(&MediaType::ALL.map(MediaType::as_str)));
    };
    if stream && media_type == MediaType::Yaml {
        return Err(ApiError::not_acceptable(&[
            "application/json;stream=watch",
            MediaType::Protobuf.as_stream(),
        ]));
    }
    let mismatch = match (response, target) {
        (ResponseKind::List, Target::PartialObjectMetadata(_)) => {
            Some("you requested PartialObjectMetadata, but the requested object is a list")
        }
        (ResponseKind::Object | ResponseKind::Watch, Target::PartialObjectMetadataList(_)) => {
            Some("you requested PartialObjectMetadataList, but the requested object is not a list")
        }
        _ => None,
    };
    if let Some(message) = mismatch {
        return Err(ApiError::new(406, "NotAcceptable", message));
    }
    let wants_pretty = pretty_parameter || is_pretty(pretty, user_agent);
    Ok(Representation {
        media_type,
        target,
        pretty: wants_pretty && media_type == MediaType::Json && !stream,
        stream,
    })
}

/// Whether the client takes the same as JSON, should a list be too long for the encoding that it likes better.
#[must_use]
pub fn accepts_json_instead(accept: Option<&str>, representation: &Representation, builtin: bool) -> bool {
    let clauses = parse_accept(accept.unwrap_or_default());
    first_accepted(&clauses, &[MediaType::Json], |clause, m| {
        target_of(clause, m, builtin)
    })
    .is_some_and(|(_, target, _)| target == representation.target)
}

/// Chooses the representation of a document that is no object of a kind. `aggregates`: the root of discovery, which has
/// another form besides; true in the answer if that form is wanted.
///
/// # Errors
/// 406, naming what would have been accepted.
pub fn negotiate_document(
    accept: Option<&str>,
    user_agent: Option<&str>,
    pretty: Option<&str>,
    aggregates: bool,
) -> Result<(Representation, bool), ApiError> {
    let header = accept.unwrap_or_default();
    let clauses = parse_accept(header);
    let plain = |clause: &Clause<'_>, _| is_plain(clause).then_some(false);
    let with_aggregated = |clause: &Clause<'_>, _| {
        let is_aggregated = clause
            .convert
            .as_ref()
            .is_some_and(Convert::is_aggregated_discovery);
        (is_plain(clause) || (is_aggregated && clause.server_version.is_empty())).then_some(is_aggregated)
    };
    let accepted = if header.is_empty() {
        Some((MediaType::Json, false, false))
    } else if aggregates {
        first_accepted(&clauses, &MediaType::ALL, with_aggregated)
    } else {
        first_accepted(&clauses, &MediaType::ALL, plain)
    };
    let Some((media_type, aggregated, pretty_parameter)) = accepted else {
        return Err(ApiError::not_acceptable(&MediaType::ALL.map(MediaType::as_str)));
    };
    let wants_pretty = pretty_parameter || is_pretty(pretty, user_agent);
    let representation = Representation {
        media_type,
        target: Target::Object,
        pretty: wants_pretty && media_type == MediaType::Json,
        stream: false,
    };
    Ok((representation, aggregated))
}

/// The representation for a Status when the negotiation itself failed or never took place: whatever plain encoding the
/// client accepts, JSON otherwise.
#[must_use]
pub fn negotiate_status(
    accept: Option<&str>,
    user_agent: Option<&str>,
    pretty: Option<&str>,
) -> Representation {
    negotiate_document(accept, user_agent, pretty, false).map_or(Representation::JSON, |(chosen, _)| chosen)
}

/// Reads the Content-Type of a body that holds an object. `builtin`: protobuf is read; say so for the meta types
/// (DeleteOptions) as well.
///
/// # Errors
/// 415, naming what would have been accepted.
pub fn negotiate_input(content_type: Option<&str>, builtin: bool) -> Result<MediaType, ApiError> {
    let essence = content_type
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    let served: &[MediaType] = if builtin {
        &MediaType::ALL
    } else {
        &[MediaType::Json, MediaType::Yaml]
    };
    match essence.as_str() {
        "" => Ok(MediaType::Json),
        essence => served
            .iter()
            .copied()
            .find(|m| m.as_str() == essence)
            .ok_or_else(|| {
                let accepted: Vec<&str> = served.iter().map(|m| m.as_str()).collect();
                ApiError::unsupported_media_type(&accepted)
            }),
    }
}

/// Reads the Content-Type of a PATCH.
///
/// # Errors
/// 415, naming what would have been accepted.
pub fn patch_type(content_type: Option<&str>, builtin: bool) -> Result<PatchType, ApiError> {
    let header = content_type.unwrap_or_default();
    let essence = header.split(';').next().unwrap_or_default();
    let served: &[PatchType] = if builtin {
        &[PatchType::Json, PatchType::Merge, PatchType::StrategicMerge]
    } else {
        &[PatchType::Json, PatchType::Merge]
    };
    if essence.starts_with("application/apply-patch+") {
        let list: Vec<&str> = served.iter().map(|p| p.as_str()).collect();
        let message = format!(
            "the body of the request was in an unknown format - server-side apply is not served by this server yet - accepted media types include: {}",
            list.join(", ")
        );
        return Err(ApiError::new(415, "UnsupportedMediaType", message));
    }
    served
        .iter()
        .copied()
        .find(|p| p.as_str() == essence)
        .ok_or_else(|| {
            let accepted: Vec<&str> = served.iter().map(|p| p.as_str()).collect();
            ApiError::unsupported_media_type(&accepted)
        })
}

/// The first clause that is served, and in which form: `form` says what an endpoint makes of a clause, if anything.
fn first_accepted<T>(
    clauses: &[Clause<'_>],
    served: &[MediaType],
    form: impl Fn(&Clause<'_>, MediaType) -> Option<T>,
) -> Option<(MediaType, T, bool)> {
    let candidates = clauses.iter().flat_map(|clause| {
        let served = served.iter().copied();
        served.filter(|m| m.matches(clause)).map(move |m| (clause, m))
    });
    candidates.into_iter().find_map(|(clause, media_type)| {
        let stream_known =
            clause.stream.is_empty() || (clause.stream == "watch" && media_type != MediaType::Yaml);
        let form = form(clause, media_type).filter(|_| stream_known)?;
        Some((media_type, form, clause.pretty))
    })
}

/// Whether a clause asks for a document as it is.
fn is_plain(clause: &Clause<'_>) -> bool {
    clause.convert.is_none() && clause.server_version.is_empty()
}

/// The transform a clause asks for, if it is served in this encoding.
fn target_of(clause: &Clause<'_>, media_type: MediaType, builtin: bool) -> Option<Target> {
    if !["", "v1"].contains(&clause.server_version) {
        return None;
    }
    let Some(convert) = clause.convert else {
        return (builtin || media_type != MediaType::Protobuf).then_some(Target::Object);
    };
    let version = match (convert.group, convert.version) {
        (META_GROUP, "v1") => MetaVersion::V1,
        (META_GROUP, "v1beta1") => MetaVersion::V1Beta1,
        _ => return None,
    };
    match convert.kind {
        "Table" if media_type != MediaType::Protobuf => Some(Target::Table(version)),
        "PartialObjectMetadata" => Some(Target::PartialObjectMetadata(version)),
        "PartialObjectMetadataList" => Some(Target::PartialObjectMetadataList(version)),
        _ => None,
    }
}

fn parse_accept(header: &str) -> Vec<Clause<'_>> {
    let mut clauses: Vec<Clause<'_>> = Vec::new();
    for clause in header
        .split(',')
        .take(ACCEPT_CLAUSES_MAX)
        .filter_map(parse_clause)
    {
        // An insertion sort with this comparison, and no other, gives upstream's order: it is no total order.
        let mut at = clauses.len();
        while at > 0 && goes_before(&clause, &clauses[at - 1]) {
            at -= 1;
        }
        clauses.insert(at, clause);
    }
    clauses
}

fn goes_before(a: &Clause<'_>, b: &Clause<'_>) -> bool {
    a.q > b.q || (a.kind != "*" && b.kind == "*") || (a.subtype != "*" && b.subtype == "*")
}

fn parse_clause(text: &str) -> Option<Clause<'_>> {
    let mut parts = text.trim_matches(' ').split(';');
    let range = parts.next().unwrap_or_default();
    let (kind, subtype) = match range.split_once('/') {
        Some((kind, subtype)) if !subtype.is_empty() && !subtype.contains('/') => {
            (kind.trim_matches(' '), subtype.trim_matches(' '))
        }
        None if range.trim_matches(' ') == "*" => ("*", "*"),
        _ => return None,
    };
    let mut clause = Clause {
        kind,
        subtype,
        q: 1.0,
        ..Clause::default()
    };
    for (key, value) in parts.filter_map(|p| p.split_once('=')) {
        if value.is_empty() || value.contains('=') {
            continue;
        }
        let (key, raw) = (key.trim_matches(' '), value);
        let value = raw.trim_matches(' ');
        match key {
            "q" => clause.q = raw.parse().unwrap_or(0.0),
            "as" => clause.convert.get_or_insert_default().kind = value,
            "g" => clause.convert.get_or_insert_default().group = value,
            "v" => clause.convert.get_or_insert_default().version = value,
            "stream" => clause.stream = value,
            "sv" => clause.server_version = value,
            "pretty" => clause.pretty = value == "1",
            _ => {}
        }
    }
    Some(clause)
}

/// The query parameter decides; without it, programs that people look at get indented JSON.
fn is_pretty(parameter: Option<&str>, user_agent: Option<&str>) -> bool {
    match parameter {
        Some(value) if !value.is_empty() => matches!(value, "1" | "t" | "T" | "TRUE" | "true" | "True"),
        _ => user_agent.is_some_and(|ua| {
            ["curl", "Wget", "Mozilla/5.0"]
                .iter()
                .any(|prefix| ua.starts_with(prefix))
        }),
    }
}

#[cfg(test)]
mod tests;
