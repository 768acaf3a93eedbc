//! The options of each verb, parsed and validated once: `ListOptions`, `GetOptions`, `CreateOptions`, `UpdateOptions`,
//! `PatchOptions`, `DeleteOptions`, `TableOptions`.
//!
//! As in kube-apiserver, what cannot be read is 400 BadRequest, what contradicts itself is 422 Invalid, and unknown
//! parameters are ignored. Nothing here knows which fields a kind lets a selector use.

use super::Query;
use super::query::quote;
use crate::resources::field;
use crate::status::{ApiError, GroupResource, StatusCause};
use outrigger_storage::continue_token::ContinueToken;
use outrigger_storage::federated::{ListVersion, WatchStart};
use outrigger_storage::selection_predicate::{
    FieldSelector, LabelSelector, SelectionPredicate, SelectorError, ShardSelector,
};
use outrigger_storage::{Error as StorageError, ResourceVersion};
use std::time::Duration;

pub mod delete_options;

pub use delete_options::{DeleteOptions, Preconditions, PropagationPolicy};

/// The group that option kinds are named with in errors.
const META_GROUP: &str = "meta.k8s.io";
/// The longest `fieldManager`, in bytes.
const FIELD_MANAGER_BYTES_MAX: usize = 128;

/// `resourceVersionMatch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourceVersionMatch {
    /// At that version, or 410.
    Exact,
    /// At that version or a newer one.
    NotOlderThan,
}

/// Options of list, watch and deletecollection.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// `labelSelector`, `fieldSelector` and `shardSelector`.
    pub predicate: SelectionPredicate,
    /// The text of `shardSelector`, echoed in the list's `shardInfo`.
    pub shard_selector: Option<String>,
    /// `watch`.
    pub watch: bool,
    /// `allowWatchBookmarks`.
    pub allow_watch_bookmarks: bool,
    /// `sendInitialEvents`; set by [`ListOptions::parse`] for a watch from an unset version or from 0.
    pub send_initial_events: Option<bool>,
    /// `timeoutSeconds`.
    pub timeout_seconds: Option<i64>,
    /// `limit`; 0: all.
    pub limit: u64,
    /// `continue`; empty if unset.
    pub continue_token: String,
    /// `resourceVersion`; empty if unset.
    pub resource_version: String,
    /// `resourceVersionMatch`; empty if unset.
    pub resource_version_match: String,
}

/// Options of get.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GetOptions {
    /// Not older than this; `None`: the newest state (which `0` also gets).
    pub not_older_than: Option<ResourceVersion>,
}

/// `fieldValidation`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Unknown and duplicate fields are dropped silently.
    Ignore,
    /// They are dropped, and named in `Warning` headers.
    #[default]
    Warn,
    /// They are errors.
    Strict,
}

/// Options of create and update (`CreateOptions` and `UpdateOptions` have the same fields).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// `dryRun=All`.
    pub dry_run: bool,
    /// `fieldManager`; empty if unset.
    pub field_manager: String,
    /// `fieldValidation`.
    pub field_validation: FieldValidation,
}

/// Options of create.
pub type CreateOptions = WriteOptions;
/// Options of update.
pub type UpdateOptions = WriteOptions;

/// Options of patch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PatchOptions {
    /// What all writes have.
    pub write: WriteOptions,
    /// `force`: take over fields of other managers. Apply only.
    pub force: bool,
}

/// `includeObject` of a Table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Rows hold nothing but cells.
    None,
    /// Rows hold `PartialObjectMetadata`.
    #[default]
    Metadata,
    /// Rows hold the object.
    Object,
}

impl ListOptions {
    /// Reads, defaults and validates the options of a list, a watch (`force_watch` for the verb watch, wherever it came
    /// from) or a deletecollection.
    ///
    /// # Errors
    /// 400 for what cannot be read, 422 for what contradicts itself.
    pub fn parse(query: &Query, force_watch: bool) -> Result<Self, ApiError> {
        let mut options = Self::decode(query)?;
        options.watch |= force_watch;
        options.set_defaults();
        options.validate()?;
        Ok(options)
    }

    /// Reads the options and does not validate them.
    ///
    /// # Errors
    /// 400 for what cannot be read.
    pub fn decode(query: &Query) -> Result<Self, ApiError> {
        let bad_selector = |SelectorError(text): SelectorError| ApiError::bad_request(text);
        let bad_shard_selector = |SelectorError(text): SelectorError| {
            ApiError::bad_request(format!("invalid shard selector: {text}"))
        };
        let labels = query
            .first("labelSelector")
            .map(LabelSelector::parse)
            .transpose()
            .map_err(bad_selector)?;
        let fields = query
            .first("fieldSelector")
            .map(FieldSelector::parse)
            .transpose()
            .map_err(bad_selector)?;
        let shard_selector = query.first("shardSelector").filter(|text| !text.is_empty());
        let shard = shard_selector
            .map(ShardSelector::parse)
            .transpose()
            .map_err(bad_shard_selector)?;
        let text = |key| query.first(key).unwrap_or_default().to_owned();
        Ok(Self {
            predicate: SelectionPredicate {
                labels: labels.unwrap_or_default(),
                fields: fields.unwrap_or_default(),
                shard,
            },
            shard_selector: shard_selector.map(str::to_owned),
            watch: query.switch("watch").unwrap_or_default(),
            allow_watch_bookmarks: query.switch("allowWatchBookmarks").unwrap_or_default(),
            send_initial_events: query.switch("sendInitialEvents"),
            timeout_seconds: integer(query, "timeoutSeconds")?,
            // A negative limit is none, as upstream.
            limit: integer(query, "limit")?
                .and_then(|limit| u64::try_from(limit).ok())
                .unwrap_or_default(),
            continue_token: text("continue"),
            resource_version: text("resourceVersion"),
            resource_version_match: text("resourceVersionMatch"),
        })
    }

    /// Which state a list shows.
    ///
    /// # Errors
    /// 400 for a version or a token that cannot be read, or for both at once.
    pub fn version(&self) -> Result<ListVersion, ApiError> {
        if !self.continue_token.is_empty() {
            let token = ContinueToken::decode(&self.continue_token).map_err(|error| match error {
                StorageError::InvalidContinue(cause) => ApiError::bad_request(format!(
                    "invalid continue token: continue key is not valid: {cause}"
                )),
                other => ApiError::bad_request(format!("invalid continue token: {other}")),
            })?;
            return match self.resource_version.as_str() {
                "" | "0" => Ok(ListVersion::Continue(token)),
                _ => Err(ApiError::bad_request(
                    "specifying resource version is not allowed when using continue",
                )),
            };
        }
        let version = match self.resource_version.as_str() {
            "" => return Ok(ListVersion::MostRecent),
            "0" => return Ok(ListVersion::Any),
            text => text
                .parse::<ResourceVersion>()
                .map_err(|error| bad_resource_version(text, &error))?,
        };
        match self.resource_version_match() {
            Some(ResourceVersionMatch::Exact) => Ok(ListVersion::Exact(version)),
            // The rule from before there was a resourceVersionMatch.
            None if self.limit > 0 => Ok(ListVersion::Exact(version)),
            None | Some(ResourceVersionMatch::NotOlderThan) => Ok(ListVersion::NotOlderThan(version)),
        }
    }

    /// Where a watch starts.
    ///
    /// # Errors
    /// 422 about `resource` for a version that cannot be read.
    pub fn watch_start(&self, resource: GroupResource<'_>) -> Result<WatchStart, ApiError> {
        let invalid = |text: &str, error| {
            let cause = field::invalid("resourceVersion", text, &unreadable_number(text, &error));
            ApiError::invalid(resource.group, resource.resource, "", vec![cause])
        };
        let version = match self.resource_version.as_str() {
            "" | "0" => None,
            text => Some(
                text.parse::<ResourceVersion>()
                    .map_err(|error| invalid(text, error))?,
            ),
        };
        Ok(match (self.send_initial_events, version) {
            (Some(true), Some(version)) => WatchStart::Initial(ListVersion::NotOlderThan(version)),
            (Some(true), None) if self.resource_version == "0" => WatchStart::Initial(ListVersion::Any),
            (Some(true), None) => WatchStart::Initial(ListVersion::MostRecent),
            (_, Some(version)) => WatchStart::After(version),
            (_, None) => WatchStart::Now,
        })
    }

    /// Whether the client wants to be told where the initial events end.
    #[must_use]
    pub fn wants_initial_events_end(&self) -> bool {
        self.allow_watch_bookmarks && self.send_initial_events == Some(true)
    }

    /// How long a watch runs; `None`: as long as the server likes.
    #[must_use]
    pub fn watch_timeout(&self) -> Option<Duration> {
        match self.timeout_seconds {
            None | Some(0) => None,
            Some(seconds) => Some(Duration::from_secs(u64::try_from(seconds).unwrap_or_default())),
        }
    }

    fn resource_version_match(&self) -> Option<ResourceVersionMatch> {
        match self.resource_version_match.as_str() {
            "Exact" => Some(ResourceVersionMatch::Exact),
            "NotOlderThan" => Some(ResourceVersionMatch::NotOlderThan),
            _ => None,
        }
    }

    /// A watch from nowhere gets the state first: what clients that know nothing of sendInitialEvents expect.
    fn set_defaults(&mut self) {
        let legacy = matches!(self.resource_version.as_str(), "" | "0");
        if self.watch
            && legacy
            && self.send_initial_events.is_none()
            && self.resource_version_match.is_empty()
        {
            self.send_initial_events = Some(true);
            "NotOlderThan".clone_into(&mut self.resource_version_match);
        }
    }

    fn validate(&self) -> Result<(), ApiError> {
        let causes = if self.watch {
            self.watch_causes()
        } else {
            self.list_causes()
        };
        refuse("ListOptions", causes)
    }

    fn list_causes(&self) -> Vec<StatusCause> {
        const MATCH: &str = "resourceVersionMatch";
        let mut causes = Vec::new();
        let text = self.resource_version_match.as_str();
        if !text.is_empty() {
            if self.resource_version.is_empty() {
                causes.push(field::forbidden(
                    MATCH,
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if !self.continue_token.is_empty() {
                causes.push(field::forbidden(
                    MATCH,
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            if self.resource_version_match().is_none() {
                causes.push(field::not_supported(MATCH, text, &["Exact", "NotOlderThan", ""]));
            }
            if text == "Exact" && self.resource_version == "0" {
                causes.push(field::forbidden(
                    MATCH,
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
        }
        if self.send_initial_events.is_some() {
            causes.push(field::forbidden(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for list",
            ));
        }
        causes
    }

    fn watch_causes(&self) -> Vec<StatusCause> {
        const MATCH: &str = "resourceVersionMatch";
        let mut causes = Vec::new();
        let text = self.resource_version_match.as_str();
        if self.send_initial_events.is_some() && text != "NotOlderThan" {
            causes.push(field::forbidden(
                MATCH,
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        if !text.is_empty() {
            if self.send_initial_events.is_none() {
                causes.push(field::forbidden(
                    MATCH,
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ));
            }
            if text != "NotOlderThan" {
                causes.push(field::not_supported(MATCH, text, &["NotOlderThan"]));
            }
            if !self.continue_token.is_empty() {
                causes.push(field::forbidden(
                    MATCH,
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
        }
        causes
    }
}

impl GetOptions {
    /// Reads the options of a get.
    ///
    /// # Errors
    /// 400 for a version that cannot be read.
    pub fn parse(query: &Query) -> Result<Self, ApiError> {
        match query.first("resourceVersion").unwrap_or_default() {
            "" | "0" => Ok(Self::default()),
            text => {
                let version = text
                    .parse::<ResourceVersion>()
                    .map_err(|error| bad_resource_version(text, &error))?;
                Ok(Self {
                    not_older_than: Some(version),
                })
            }
        }
    }
}

impl WriteOptions {
    /// Reads and validates the options of a create.
    ///
    /// # Errors
    /// 422.
    pub fn parse_create(query: &Query) -> Result<Self, ApiError> {
        let (options, causes) = Self::read(query);
        refuse("CreateOptions", causes)?;
        Ok(options)
    }

    /// Reads and validates the options of an update.
    ///
    /// # Errors
    /// 422.
    pub fn parse_update(query: &Query) -> Result<Self, ApiError> {
        let (options, causes) = Self::read(query);
        refuse("UpdateOptions", causes)?;
        Ok(options)
    }

    fn read(query: &Query) -> (Self, Vec<StatusCause>) {
        let field_manager = query.first("fieldManager").unwrap_or_default().to_owned();
        let dry_run: Vec<String> = query.all("dryRun").map(str::to_owned).collect();
        let mut causes = field_manager_causes("fieldManager", &field_manager);
        causes.extend(dry_run_cause(&dry_run));
        let field_validation = match query.first("fieldValidation").unwrap_or_default() {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                causes.push(field::not_supported(
                    "fieldValidation",
                    other,
                    &["", "Ignore", "Strict", "Warn"],
                ));
                FieldValidation::Warn
            }
        };
        (
            Self {
                dry_run: !dry_run.is_empty(),
                field_manager,
                field_validation,
            },
            causes,
        )
    }
}

impl PatchOptions {
    /// Reads and validates the options of a patch; `apply` for a server-side apply.
    ///
    /// # Errors
    /// 422.
    pub fn parse(query: &Query, apply: bool) -> Result<Self, ApiError> {
        let (write, more) = WriteOptions::read(query);
        let force = query.switch("force");
        let mut causes = Vec::new();
        if apply && write.field_manager.is_empty() {
            causes.push(field::required("fieldManager", "is required for apply patch"));
        }
        if !apply && force.is_some() {
            causes.push(field::forbidden(
                "force",
                "may not be specified for non-apply patch",
            ));
        }
        causes.extend(more);
        refuse("PatchOptions", causes)?;
        Ok(Self {
            write,
            force: force.unwrap_or_default(),
        })
    }
}

impl IncludeObject {
    /// Reads the options of a Table.
    ///
    /// # Errors
    /// 400 for another value.
    pub fn parse(query: &Query) -> Result<Self, ApiError> {
        match query.first("includeObject").unwrap_or_default() {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => {
                let cause = field::invalid(
                    "includeObject",
                    other,
                    "must be 'Metadata', 'Object', 'None', or empty",
                );
                Err(ApiError::bad_request(format!(
                    "Unable to convert to Table as requested: {}: {}",
                    cause.field, cause.message
                )))
            }
        }
    }
}

/// The causes of a field manager's name that is too long or cannot be printed.
pub(crate) fn field_manager_causes(path: &str, manager: &str) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    if manager.len() > FIELD_MANAGER_BYTES_MAX {
        causes.push(field::too_long(path, FIELD_MANAGER_BYTES_MAX));
    }
    // A name of a million control characters must not make a million causes.
    let shown: String = manager.chars().take(FIELD_MANAGER_BYTES_MAX).collect();
    let unprintable = |c: char| c.is_control() || (c.is_whitespace() && c != ' ');
    for (position, c) in shown.char_indices().filter(|(_, c)| unprintable(*c)) {
        let detail = format!(
            "invalid character U+{:04X} (at position {position})",
            u32::from(c)
        );
        causes.push(field::invalid(path, shown.as_str(), &detail));
    }
    causes
}

fn dry_run_cause(dry_run: &[String]) -> Option<StatusCause> {
    if dry_run.iter().all(|value| value == "All") {
        return None;
    }
    Some(field::not_supported("dryRun", dry_run.to_vec(), &["All"]))
}

fn integer(query: &Query, key: &str) -> Result<Option<i64>, ApiError> {
    let Some(text) = query.first(key) else {
        return Ok(None);
    };
    // Go's ParseInt takes a sign and decimal digits, like this.
    text.parse::<i64>().map(Some).map_err(|error| {
        ApiError::bad_request(format!(
            "strconv.ParseInt: parsing {}: {}",
            quote(text),
            go_cause(error.kind())
        ))
    })
}

fn go_cause(kind: &std::num::IntErrorKind) -> &'static str {
    use std::num::IntErrorKind as K;
    match kind {
        K::PosOverflow | K::NegOverflow => "value out of range",
        _ => "invalid syntax",
    }
}

/// What upstream says of a resource version that is not a number; ours where upstream would take it.
fn unreadable_number(
    text: &str,
    error: &outrigger_storage::resource_version::ResourceVersionError,
) -> String {
    match text.parse::<u64>() {
        Err(number) => format!(
            "strconv.ParseUint: parsing {}: {}",
            quote(text),
            go_cause(number.kind())
        ),
        Ok(_) => error.to_string(),
    }
}

fn bad_resource_version(
    text: &str,
    error: &outrigger_storage::resource_version::ResourceVersionError,
) -> ApiError {
    let cause = field::invalid("resourceVersion", text, &unreadable_number(text, error));
    ApiError::bad_request(format!(
        "invalid resource version: {}: {}",
        cause.field, cause.message
    ))
}

fn refuse(kind: &str, causes: Vec<StatusCause>) -> Result<(), ApiError> {
    if causes.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(META_GROUP, kind, "", causes))
}

#[cfg(test)]
mod tests;
