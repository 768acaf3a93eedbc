//! Keys below a backend's prefix, and the parts they are made of.
//!
//! ```text
//! identity  clock  members  deletion
//! owner/<namespace>                       who owns a namespace
//! owner-kind/<resource>.<group>           who owns a kind without namespaces
//! objects/<group>/<resource>/<namespace>/<name>
//! ```
//!
//! The prefix itself (default `/outrigger/`) is added and removed by the backend, never here.

use bytes::Bytes;
use std::sync::Arc;

/// The backend's identity: written once.
pub const IDENTITY: &[u8] = b"identity";
/// The backend's clock: the epoch, 8 bytes, big-endian.
pub const CLOCK: &[u8] = b"clock";
/// The fleet's membership.
pub const MEMBERS: &[u8] = b"members";
/// The write id of the latest delete, put in the same transaction as the delete: it settles a delete whose outcome is unknown.
pub const DELETION: &[u8] = b"deletion";
/// Prefix of the owner keys of namespaces.
pub const OWNER: &[u8] = b"owner/";
/// Prefix of the owner keys of kinds that have no namespaces.
pub const OWNER_KIND: &[u8] = b"owner-kind/";
/// Prefix of all objects.
pub const OBJECTS: &[u8] = b"objects/";

/// A group and a plural, `applications.paas.example.com`. The core group is empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    /// The API group; empty for the core group.
    pub group: Arc<str>,
    /// The plural name.
    pub resource: Arc<str>,
}

impl Resource {
    /// The resource `resource` of group `group`.
    #[must_use]
    pub fn new(group: &str, resource: &str) -> Self {
        Self {
            group: group.into(),
            resource: resource.into(),
        }
    }

    /// `objects/<group>/<resource>/`.
    #[must_use]
    pub fn prefix(&self) -> Bytes {
        [
            OBJECTS,
            self.group.as_bytes(),
            b"/",
            self.resource.as_bytes(),
            b"/",
        ]
        .concat()
        .into()
    }

    /// `objects/<group>/<resource>/<namespace>/`; the namespace is empty for kinds without namespaces.
    #[must_use]
    pub fn namespace_prefix(&self, namespace: &str) -> Bytes {
        [
            OBJECTS,
            self.group.as_bytes(),
            b"/",
            self.resource.as_bytes(),
            b"/",
            namespace.as_bytes(),
            b"/",
        ]
        .concat()
        .into()
    }
}

/// What is owned as one: a namespace, or a whole kind that has no namespaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Domain {
    /// A namespace.
    Namespace(Arc<str>),
    /// A kind without namespaces.
    Kind(Resource),
}

impl Domain {
    /// The owner key of this domain.
    #[must_use]
    pub fn owner_key(&self) -> Bytes {
        match self {
            Self::Namespace(namespace) => [OWNER, namespace.as_bytes()].concat().into(),
            Self::Kind(r) => [OWNER_KIND, r.resource.as_bytes(), b".", r.group.as_bytes()]
                .concat()
                .into(),
        }
    }

    /// The domain of an owner key, if the key is one. A kind's group is what follows the first dot (plurals have none).
    #[must_use]
    pub fn from_owner_key(key: &[u8]) -> Option<Self> {
        if let Some(rest) = key.strip_prefix(OWNER) {
            return Some(Self::Namespace(std::str::from_utf8(rest).ok()?.into()));
        }
        let rest = std::str::from_utf8(key.strip_prefix(OWNER_KIND)?).ok()?;
        let (resource, group) = rest.split_once('.')?;
        Some(Self::Kind(Resource::new(group, resource)))
    }

    /// The name of the NamespacePlacement that decides for this domain: the namespace, or `<resource>.<group>`
    /// (a namespace's name has no dot, so the two never meet).
    #[must_use]
    pub fn placement_name(&self) -> String {
        match self {
            Self::Namespace(namespace) => namespace.to_string(),
            Self::Kind(r) => format!("{}.{}", r.resource, r.group),
        }
    }
}

/// Where one object lives: resource, namespace (empty for kinds without namespaces) and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Group and plural.
    pub resource: Resource,
    /// The namespace; empty for kinds without namespaces.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl Key {
    /// The key of `namespace/name`.
    #[must_use]
    pub fn new(resource: Resource, namespace: &str, name: &str) -> Self {
        Self {
            resource,
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// What owns this key.
    #[must_use]
    pub fn domain(&self) -> Domain {
        if self.namespace.is_empty() {
            Domain::Kind(self.resource.clone())
        } else {
            Domain::Namespace(self.namespace.clone())
        }
    }

    /// `objects/<group>/<resource>/<namespace>/<name>`.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut key = Vec::from(&self.resource.namespace_prefix(&self.namespace)[..]);
        key.extend_from_slice(self.name.as_bytes());
        key.into()
    }
}

/// The parts of an object's key, borrowed from it: group, resource, namespace, name.
#[must_use]
pub fn split_object_key(key: &[u8]) -> Option<(&str, &str, &str, &str)> {
    let mut parts = std::str::from_utf8(key.strip_prefix(OBJECTS)?)
        .ok()?
        .splitn(4, '/');
    Some((parts.next()?, parts.next()?, parts.next()?, parts.next()?))
}

/// What owns the object of this key, if it is an object's.
#[must_use]
pub fn domain_of(key: &[u8]) -> Option<Domain> {
    let (group, resource, namespace, _) = split_object_key(key)?;
    Some(match namespace {
        "" => Domain::Kind(Resource::new(group, resource)),
        namespace => Domain::Namespace(namespace.into()),
    })
}

/// The first key after every key with this prefix, for the end of a range.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end.into();
        }
    }
    // Everything from the prefix on, in etcd's notation.
    Bytes::from_static(&[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back() {
        let key = Key::new(Resource::new("paas.example.com", "applications"), "a-b", "web.1");
        assert_eq!(
            &key.encode()[..],
            b"objects/paas.example.com/applications/a-b/web.1"
        );
        assert_eq!(
            split_object_key(&key.encode()),
            Some(("paas.example.com", "applications", "a-b", "web.1"))
        );
        let core = Key::new(Resource::new("", "namespaces"), "", "x");
        assert_eq!(
            split_object_key(&core.encode()),
            Some(("", "namespaces", "", "x"))
        );
    }

    #[test]
    fn owner_keys_come_back() {
        for domain in [
            Domain::Namespace("team-a".into()),
            Domain::Kind(Resource::new("paas.example.com", "regions")),
        ] {
            assert_eq!(Domain::from_owner_key(&domain.owner_key()), Some(domain));
        }
    }

    #[test]
    fn ends_of_prefixes() {
        assert_eq!(&prefix_end(b"a/")[..], b"a0");
        assert_eq!(&prefix_end(b"a\xff")[..], b"b");
        assert_eq!(&prefix_end(b"\xff")[..], &[0]);
    }
}
