//! Syntax of names, labels and keys, with Kubernetes' own words for what is wrong, and the names that the
//! server makes up. Pure; knows no object; randomness comes in.
//!
//! Each function returns the complaints about a value; none means that it is well formed.

use rand::Rng;

/// Length of a DNS label, in bytes.
const DNS_LABEL_BYTES_MAX: usize = 63;
/// Length of a DNS subdomain (the name of most objects), in bytes.
const DNS_SUBDOMAIN_BYTES_MAX: usize = 253;
/// Length of a label's value and of a label key's name part, in bytes.
const LABEL_BYTES_MAX: usize = 63;

const DNS_1123_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric \
     character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS_1123_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an \
     alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const DNS_1035_LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an \
     alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_NAME: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  \
     or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
     alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_MAP_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', \
     regex used for validation is '[-._a-zA-Z0-9]+')";

/// An RFC 1123 label, as the names of namespaces are.
#[must_use]
pub fn is_dns1123_label(value: &str) -> Vec<String> {
    let mut complaints = too_long(value, DNS_LABEL_BYTES_MAX, "characters");
    if !dns1123_label(value) {
        complaints.push(if dns1123_subdomain(value) {
            "must not contain dots".to_owned()
        } else {
            DNS_1123_LABEL.to_owned()
        });
    }
    complaints
}

/// An RFC 1123 subdomain, as the names of most objects are.
#[must_use]
pub fn is_dns1123_subdomain(value: &str) -> Vec<String> {
    let mut complaints = too_long(value, DNS_SUBDOMAIN_BYTES_MAX, "characters");
    if !dns1123_subdomain(value) {
        complaints.push(DNS_1123_SUBDOMAIN.to_owned());
    }
    complaints
}

/// An RFC 1035 label, as plurals and versions are.
#[must_use]
pub fn is_dns1035_label(value: &str) -> Vec<String> {
    let mut complaints = too_long(value, DNS_LABEL_BYTES_MAX, "characters");
    if !(dns1123_label(value) && value.starts_with(|c: char| c.is_ascii_lowercase())) {
        complaints.push(DNS_1035_LABEL.to_owned());
    }
    complaints
}

/// A qualified name, as the keys of labels and annotations and the names of finalizers are: `example.com/my-name`.
#[must_use]
pub fn is_qualified_name(value: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let name = match value.split_once('/') {
        None => value,
        Some((_, rest)) if rest.contains('/') => {
            complaints.push(format!("a valid label key {QUALIFIED_NAME} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"));
            return complaints;
        }
        Some(("", name)) => {
            complaints.push("prefix part must be non-empty".to_owned());
            name
        }
        Some((prefix, name)) => {
            complaints.extend(
                is_dns1123_subdomain(prefix)
                    .iter()
                    .map(|complaint| format!("prefix part {complaint}")),
            );
            name
        }
    };
    if name.is_empty() {
        complaints.push("name part must be non-empty".to_owned());
    }
    complaints.extend(
        too_long(name, LABEL_BYTES_MAX, "bytes")
            .iter()
            .map(|complaint| format!("name part {complaint}")),
    );
    if !qualified_part(name) {
        complaints.push(format!("name part {QUALIFIED_NAME}"));
    }
    complaints
}

/// The value of a label.
#[must_use]
pub fn is_label_value(value: &str) -> Vec<String> {
    let mut complaints = too_long(value, LABEL_BYTES_MAX, "bytes");
    if !(value.is_empty() || qualified_part(value)) {
        complaints.push(LABEL_VALUE.to_owned());
    }
    complaints
}

/// A key in the data of a Secret or ConfigMap.
#[must_use]
pub fn is_config_map_key(value: &str) -> Vec<String> {
    let mut complaints = too_long(value, DNS_SUBDOMAIN_BYTES_MAX, "characters");
    if value.is_empty() || !value.bytes().all(qualified_byte) {
        complaints.push(CONFIG_MAP_KEY.to_owned());
    }
    match value {
        "." => complaints.push("must not be '.'".to_owned()),
        ".." => complaints.push("must not be '..'".to_owned()),
        _ if value.starts_with("..") => complaints.push("must not start with '..'".to_owned()),
        _ => {}
    }
    complaints
}

/// What a name may not hold because it becomes a segment of a path.
#[must_use]
pub fn is_path_segment(value: &str) -> Vec<String> {
    if value == "." || value == ".." {
        return vec![format!("may not be '{value}'")];
    }
    let holds = |c: &char| value.contains(*c);
    ['/', '%']
        .iter()
        .filter(|c| holds(c))
        .map(|c| format!("may not contain '{c}'"))
        .collect()
}

/// The longest generated name, in bytes: that of a DNS label.
const GENERATED_BYTES_MAX: usize = 63;
/// How many random characters a generated name ends with.
const RANDOM_CHARACTERS: usize = 5;
/// How many names are tried before a create with `generateName` gives up.
pub(crate) const GENERATE_TRIES_MAX: usize = 8;
/// No vowels, so that no words appear.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// `base` cut to 58 bytes, and five random characters.
pub(crate) fn generate(base: &str, rng: &mut impl Rng) -> String {
    let end = base.floor_char_boundary(GENERATED_BYTES_MAX - RANDOM_CHARACTERS);
    let random = (0..RANDOM_CHARACTERS).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]));
    base[..end].chars().chain(random).collect()
}

/// A prefix as it looks once something follows it: a dash at its end is fine.
pub(crate) fn with_suffix(prefix: &str) -> String {
    if prefix.len() > 1 && prefix.ends_with('-') {
        format!("{prefix}a")
    } else {
        prefix.to_owned()
    }
}

/// The unit is what kube-apiserver says; what it counts are bytes.
fn too_long(value: &str, bytes_max: usize, unit: &str) -> Vec<String> {
    if value.len() > bytes_max {
        vec![format!("must be no more than {bytes_max} {unit}")]
    } else {
        Vec::new()
    }
}

fn dns1123_label(value: &str) -> bool {
    let inner = value
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    inner && !value.is_empty() && !value.starts_with('-') && !value.ends_with('-')
}

fn dns1123_subdomain(value: &str) -> bool {
    value.split('.').all(dns1123_label)
}

fn qualified_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')
}

fn qualified_part(value: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    value.bytes().all(qualified_byte) && edge(value.bytes().next()) && edge(value.bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(function: fn(&str) -> Vec<String>, good: &[&str], bad: &[&str]) {
        for value in good {
            assert_eq!(function(value), Vec::<String>::new(), "{value:?}");
        }
        for value in bad {
            assert_ne!(function(value), Vec::<String>::new(), "{value:?}");
        }
    }

    #[test]
    fn names_are_well_formed_or_not() {
        let long = "a".repeat(64);
        let longer = "a".repeat(254);
        check(
            is_dns1123_label,
            &["a", "a-b", "1", "0-9"],
            &["", "-a", "a-", "A", "a.b", "a_b", "ä", &long],
        );
        check(
            is_dns1123_subdomain,
            &["a", "a.b", &long, "1.2"],
            &["", ".", "a..b", "a.", ".a", "A", &longer],
        );
        check(
            is_dns1035_label,
            &["a", "a1", "v1beta1"],
            &["", "1", "1a", "a.b", "-", &long],
        );
        check(
            is_qualified_name,
            &["a", "A.b_c-d", "example.com/A"],
            &["", "/a", "a/", "a/b/c", "-a", "a-", "A/b", &long],
        );
        check(is_label_value, &["", "a", "A.b_c-d"], &["-", "a/b", " ", &long]);
        check(
            is_config_map_key,
            &["a", ".a", "-", "KEY_1.x"],
            &["", ".", "..", "..a", "a/b", &longer],
        );
        check(is_path_segment, &["a", "a.b", "..."], &[".", "..", "a/b", "a%b"]);
    }

    #[test]
    fn dots_in_a_label_have_their_own_complaint() {
        assert_eq!(is_dns1123_label("a.b"), ["must not contain dots"]);
    }

    #[test]
    fn generated_names_are_cut_and_end_in_five_characters() {
        let mut rng: rand::rngs::StdRng = rand::SeedableRng::seed_from_u64(1);
        let name = generate(&"a".repeat(70), &mut rng);
        assert_eq!(name.len(), 63);
        assert!(name.bytes().skip(58).all(|b| ALPHABET.contains(&b)));
        let name = generate(&format!("{}é", "a".repeat(57)), &mut rng);
        assert_eq!(name.len(), 62, "never cut inside a character");
        assert!(generate("web-", &mut rng).starts_with("web-"));
        assert_eq!(
            ["web-", "web.", "-"].map(with_suffix),
            ["web-a", "web.", "-"].map(str::to_owned)
        );
    }
}
