//! Flags and environment → [`Config`], or a usage error: one line that says what to change.
//!
//! Pure: nothing is opened, created or asked here, so a setting that cannot work with the world as it is (a port that is
//! taken, an etcd that does not answer) is found later, in `commands`. This file has the flags of `outrigger up`, and those
//! that all commands share.

mod serve;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
pub(crate) use serve::{CertificateSource, ServeConfig, ServiceName};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// The most clusters of one fleet: slots are 9 bits wide, and one stays free.
pub(crate) const CLUSTERS_MAX: u16 = 511;
/// The least and the most of `--request-timeout`.
const REQUEST_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// The port of an etcd URL that names none.
const ETCD_PORT: u16 = 2379;

/// What `outrigger` was asked to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Command {
    /// `outrigger up`.
    Up(Box<Config>),
    /// `outrigger serve`.
    Serve(Box<ServeConfig>),
}

/// What is logged, what may be held in memory, and how much may be asked at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    /// What to log, in the syntax of tracing's filters.
    pub(crate) log_level: String,
    /// What all lists together may hold in memory, in bytes.
    pub(crate) list_bytes_max: usize,
    /// What the event rings may hold in memory, in bytes.
    pub(crate) ring_bytes_max: usize,
    /// What may be in flight.
    pub(crate) requests: RequestLimits,
}

/// What may be in flight. Watches and other long-running requests are not meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestLimits {
    /// Reads at once; 0 for no limit.
    pub(crate) in_flight_max: usize,
    /// Writes at once; 0 for no limit.
    pub(crate) mutating_in_flight_max: usize,
    /// How long one may take.
    pub(crate) timeout: Duration,
}

/// The settings of `outrigger up`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// Where everything that must survive is kept.
    pub(crate) data_dir: PathBuf,
    /// The address to serve on.
    pub(crate) listen: SocketAddr,
    /// The workload clusters' backends.
    pub(crate) clusters: Clusters,
    /// A folder of CustomResourceDefinitions to apply on start.
    pub(crate) crds: Option<PathBuf>,
    /// What is logged, and what may be held in memory.
    pub(crate) limits: Limits,
}

/// The workload clusters' backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Clusters {
    /// So many embedded ones, in the data folder.
    Embedded(u16),
    /// Real etcds.
    Etcd {
        /// One a cluster, in the order of the flags.
        members: Vec<EtcdMember>,
        /// The prefix of all keys.
        prefix: String,
        /// Files for TLS.
        tls: EtcdTls,
        /// Nobody else uses them, so that we may compact.
        exclusive: bool,
    },
}

/// One `--etcd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EtcdMember {
    /// The cluster's name.
    pub(crate) name: String,
    /// The URLs of its etcd's members.
    pub(crate) urls: Vec<String>,
}

/// Files for TLS to etcd.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct EtcdTls {
    /// Who signed the servers' certificates; the system's roots if it is not given.
    pub(crate) ca_certificate: Option<PathBuf>,
    /// Our client certificate and its key.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
}

/// Why the command line cannot be carried out; one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UsageError {
    /// Not an error: help or version, to be printed on stdout.
    #[error("{0}")]
    Print(String),
    /// What is wrong. The user must act.
    #[error("{0}")]
    Wrong(String),
}

/// Reads the command line (its first item is the program's name) and the environment.
///
/// # Errors
/// [`UsageError`].
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, UsageError> {
    let cli = Cli::try_parse_from(args).map_err(|e| one_line(&e))?;
    match cli.command {
        Subcommands::Up(up) => up.into_config().map(|c| Command::Up(Box::new(c))),
        Subcommands::Serve(serve) => serve.into_config().map(|c| Command::Serve(Box::new(c))),
    }
}

/// The Kubernetes API for developer kinds, kept in the etcds of many clusters.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Serve on this machine, without a control plane.
    Up(UpArgs),
    /// Serve the distributed kinds of a control plane.
    Serve(serve::ServeArgs),
}

#[derive(Debug, Args)]
struct UpArgs {
    /// The folder for data, certificates and the kubeconfig.
    #[arg(
        long,
        env = "OUTRIGGER_DATA_DIR",
        default_value = "./outrigger-data",
        value_name = "DIR"
    )]
    data_dir: PathBuf,
    /// The address to serve on; port 0 takes a free one.
    #[arg(long, env = "OUTRIGGER_LISTEN", default_value = "127.0.0.1:7443", value_name = "ADDRESS:PORT", value_parser = listen)]
    listen: SocketAddr,
    /// So many embedded workload clusters (1 to 511) [default: 3].
    #[arg(long, env = "OUTRIGGER_BACKENDS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(CLUSTERS_MAX)), conflicts_with = "etcd")]
    backends: Option<u16>,
    /// A workload cluster with a real etcd: its name and the URLs of the etcd's members. Once for each cluster.
    #[arg(long, env = "OUTRIGGER_ETCD", value_name = "NAME=URL[,URL...]", value_parser = etcd_member, value_delimiter = ';')]
    etcd: Vec<EtcdMember>,
    /// The authority that signed the etcds' certificates (PEM).
    #[arg(long, env = "OUTRIGGER_ETCD_CACERT", value_name = "FILE", requires = "etcd")]
    etcd_cacert: Option<PathBuf>,
    /// Our client certificate for the etcds (PEM).
    #[arg(
        long,
        env = "OUTRIGGER_ETCD_CERT",
        value_name = "FILE",
        requires = "etcd",
        requires = "etcd_key"
    )]
    etcd_cert: Option<PathBuf>,
    /// The key of our client certificate (PEM).
    #[arg(
        long,
        env = "OUTRIGGER_ETCD_KEY",
        value_name = "FILE",
        requires = "etcd",
        requires = "etcd_cert"
    )]
    etcd_key: Option<PathBuf>,
    /// The prefix of all our keys in the etcds [default: /outrigger/].
    #[arg(long, env = "OUTRIGGER_ETCD_PREFIX", value_name = "PREFIX", requires = "etcd", value_parser = etcd_prefix)]
    etcd_prefix: Option<String>,
    /// Nobody else uses these etcds: Outrigger compacts them, every 5 minutes, keeping 10.
    #[arg(long, env = "OUTRIGGER_ETCD_EXCLUSIVE", requires = "etcd")]
    etcd_exclusive: bool,
    /// A folder of CustomResourceDefinitions (YAML or JSON) to apply on start.
    #[arg(long, env = "OUTRIGGER_CRDS", value_name = "DIR")]
    crds: Option<PathBuf>,
    #[command(flatten)]
    limits: LimitsArgs,
}

/// The flags that all commands share.
#[derive(Debug, Args)]
struct LimitsArgs {
    /// error, warn, info, debug or trace, or a filter such as `info,outrigger_storage=debug`.
    #[arg(long, env = "OUTRIGGER_LOG_LEVEL", default_value = "info", value_name = "LEVEL", value_parser = log_level)]
    log_level: String,
    /// What all lists together may hold in memory.
    #[arg(long, env = "OUTRIGGER_LIST_BYTES_MAX", default_value = "64Mi", value_name = "BYTES", value_parser = |s: &str| bytes(s, 4 << 20))]
    list_bytes_max: usize,
    /// What the rings of recent events may hold in memory.
    #[arg(long, env = "OUTRIGGER_RING_BYTES_MAX", default_value = "16Mi", value_name = "BYTES", value_parser = |s: &str| bytes(s, 64 << 10))]
    ring_bytes_max: usize,
    /// Reads in flight at once, watches not counted; more are refused with 429. 0: no limit.
    #[arg(
        long,
        env = "OUTRIGGER_MAX_REQUESTS_INFLIGHT",
        default_value_t = 400,
        value_name = "N"
    )]
    max_requests_inflight: u32,
    /// Writes in flight at once; more are refused with 429. 0: no limit.
    #[arg(
        long,
        env = "OUTRIGGER_MAX_MUTATING_REQUESTS_INFLIGHT",
        default_value_t = 200,
        value_name = "N"
    )]
    max_mutating_requests_inflight: u32,
    /// How long a request may take that is no watch; a client may ask for less with `timeout`.
    #[arg(long, env = "OUTRIGGER_REQUEST_TIMEOUT", default_value = "60s", value_name = "SECONDS", value_parser = |s: &str| duration(s, REQUEST_TIMEOUT))]
    request_timeout: Duration,
}

impl From<LimitsArgs> for Limits {
    fn from(args: LimitsArgs) -> Self {
        Self {
            log_level: args.log_level,
            list_bytes_max: args.list_bytes_max,
            ring_bytes_max: args.ring_bytes_max,
            requests: RequestLimits {
                in_flight_max: args.max_requests_inflight as usize,
                mutating_in_flight_max: args.max_mutating_requests_inflight as usize,
                timeout: args.request_timeout,
            },
        }
    }
}

impl UpArgs {
    fn into_config(self) -> Result<Config, UsageError> {
        let clusters = match self.etcd.is_empty() {
            true => Clusters::Embedded(self.backends.unwrap_or(3)),
            false => {
                check_members(&self.etcd)?;
                let tls = EtcdTls {
                    ca_certificate: self.etcd_cacert,
                    client: self.etcd_cert.zip(self.etcd_key),
                };
                check_schemes(&self.etcd, &tls)?;
                let prefix = self.etcd_prefix.unwrap_or_else(|| "/outrigger/".to_owned());
                Clusters::Etcd {
                    members: self.etcd,
                    prefix,
                    tls,
                    exclusive: self.etcd_exclusive,
                }
            }
        };
        Ok(Config {
            data_dir: self.data_dir,
            listen: self.listen,
            clusters,
            crds: self.crds,
            limits: self.limits.into(),
        })
    }
}

fn wrong(message: impl Into<String>) -> UsageError {
    UsageError::Wrong(message.into())
}

fn check_members(members: &[EtcdMember]) -> Result<(), UsageError> {
    if members.len() > usize::from(CLUSTERS_MAX) {
        return Err(wrong(format!(
            "--etcd is given {} times, but a fleet has at most {CLUSTERS_MAX} clusters",
            members.len()
        )));
    }
    for (i, member) in members.iter().enumerate() {
        for earlier in members.iter().take(i) {
            if earlier.name == member.name {
                return Err(wrong(format!(
                    "--etcd: the name {:?} is given twice",
                    member.name
                )));
            }
            if let Some(url) = member.urls.iter().find(|u| earlier.urls.contains(u)) {
                return Err(wrong(format!(
                    "--etcd: {url} is given for both {:?} and {:?}",
                    earlier.name, member.name
                )));
            }
        }
    }
    Ok(())
}

fn check_schemes(members: &[EtcdMember], tls: &EtcdTls) -> Result<(), UsageError> {
    let is_tls_set = tls.ca_certificate.is_some() || tls.client.is_some();
    let plain = members
        .iter()
        .flat_map(|m| &m.urls)
        .find(|u| u.starts_with("http://"));
    match plain {
        Some(url) if is_tls_set => Err(wrong(format!(
            "--etcd: {url} is not https, but certificates are given for it"
        ))),
        _ => Ok(()),
    }
}

/// `10s`, `10`, `2m`, `500ms`.
fn duration(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let milliseconds: u64 = match unit {
        "" | "s" => 1000,
        "ms" => 1,
        "m" => 60_000,
        _ => return Err("expected a time, as in 10s".to_owned()),
    };
    let time = number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(milliseconds));
    match time.map(Duration::from_millis) {
        Some(time) if time < *range.start() => {
            Err(format!("it must be at least {} s", range.start().as_secs()))
        }
        Some(time) if time > *range.end() => Err(format!("it must be at most {} s", range.end().as_secs())),
        Some(time) => Ok(time),
        None => Err("expected a time, as in 10s".to_owned()),
    }
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    let text = text.replace("localhost:", "127.0.0.1:");
    text.parse()
        .map_err(|_| "expected an IP address and a port, as in 127.0.0.1:7443".to_owned())
}

fn etcd_member(text: &str) -> Result<EtcdMember, String> {
    let Some((name, urls)) = text.split_once('=').filter(|(name, _)| !name.contains("://")) else {
        return Err("expected NAME=URL[,URL...], as in east=https://10.0.0.1:2379".to_owned());
    };
    if !is_cluster_name(name) {
        return Err(format!(
            "{name:?} is no name for a cluster: it takes lower case letters, digits, '-' and '.', at most 63"
        ));
    }
    let urls = urls.split(',').map(etcd_url).collect::<Result<Vec<_>, _>>()?;
    let schemes = urls.iter().filter(|u| u.starts_with("https://")).count();
    if schemes != 0 && schemes != urls.len() {
        return Err("http and https are mixed".to_owned());
    }
    for (i, url) in urls.iter().enumerate() {
        if urls.iter().take(i).any(|u| u == url) {
            return Err(format!("{url} is given twice"));
        }
    }
    Ok(EtcdMember {
        name: name.to_owned(),
        urls,
    })
}

/// As Kubernetes checks a label value of a name: a DNS subdomain, short enough for a label.
fn is_cluster_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let is_inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty() && label.bytes().all(is_inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= 63 && name.split('.').all(is_label)
}

/// The URL with its port, without a trailing slash.
fn etcd_url(text: &str) -> Result<String, String> {
    let bad = |cause: &str| format!("{text:?} is no URL of an etcd: {cause}");
    let uri: http::Uri = text
        .parse()
        .map_err(|e: http::uri::InvalidUri| bad(&e.to_string()))?;
    let Some(scheme @ ("http" | "https")) = uri.scheme_str() else {
        return Err(bad("it must start with http:// or https://"));
    };
    let Some(authority) = uri.authority() else {
        return Err(bad("it names no host"));
    };
    if authority.as_str().contains('@') {
        return Err(bad(
            "names and passwords are not supported, use a client certificate",
        ));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(bad("it must end after the port"));
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(bad("it names no host"));
    }
    // A port that is there but no number would be taken for none.
    let port = match authority.as_str().strip_prefix(authority.host()) {
        Some("") => ETCD_PORT,
        _ => authority
            .port_u16()
            .ok_or_else(|| bad("its port is no number from 1 to 65535"))?,
    };
    Ok(format!("{scheme}://{}:{port}", authority.host()))
}

fn etcd_prefix(text: &str) -> Result<String, String> {
    match text.starts_with('/') && text.ends_with('/') && text.len() > 1 && text.len() <= 256 {
        true => Ok(text.to_owned()),
        false => Err("a prefix starts and ends with '/', as in /outrigger/".to_owned()),
    }
}

fn log_level(text: &str) -> Result<String, String> {
    text.parse::<tracing_subscriber::filter::EnvFilter>()
        .map(|_| text.to_owned())
        .map_err(|e| e.to_string())
}

/// `64Mi`, `64MiB`, `67108864`; at least `least`.
fn bytes(text: &str, least: usize) -> Result<usize, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: usize = match unit {
        "" => 1,
        "Ki" | "KiB" => 1 << 10,
        "Mi" | "MiB" => 1 << 20,
        "Gi" | "GiB" => 1 << 30,
        _ => return Err("expected a number of bytes, as in 64Mi".to_owned()),
    };
    let bytes = number.parse::<usize>().ok().and_then(|n| n.checked_mul(factor));
    match bytes {
        Some(bytes) if bytes >= least => Ok(bytes),
        Some(_) => Err(format!("it must be at least {}Ki", least >> 10)),
        None => Err("expected a number of bytes, as in 64Mi".to_owned()),
    }
}

/// clap's errors have a headline, details and hints on lines of their own; scripts and people get them as one line.
fn one_line(error: &clap::Error) -> UsageError {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => UsageError::Print(text),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            wrong("what shall it do? Try `outrigger up`, or `outrigger --help`")
        }
        _ => {
            let lines = text
                .lines()
                .map(str::trim)
                .take_while(|l| !l.starts_with("Usage:") && !l.starts_with("For more information"));
            let lines: Vec<&str> = lines.filter(|l| !l.is_empty()).collect();
            let line = lines.join(" ");
            wrong(line.strip_prefix("error: ").unwrap_or(&line))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str]) -> Result<Config, UsageError> {
        let args = ["outrigger", "up"].iter().chain(args).map(OsString::from);
        parse(args).map(|command| match command {
            Command::Up(config) => *config,
            Command::Serve(_) => unreachable!("up was asked for"),
        })
    }

    #[test]
    fn defaults() {
        let config = run(&[]).expect("no flag is needed");
        assert_eq!(config.clusters, Clusters::Embedded(3));
        assert_eq!(config.listen.to_string(), "127.0.0.1:7443");
        assert_eq!(
            (config.limits.list_bytes_max, config.limits.ring_bytes_max),
            (64 << 20, 16 << 20)
        );
        assert_eq!(config.data_dir, PathBuf::from("./outrigger-data"));
    }

    #[test]
    fn etcds() {
        let config = run(&[
            "--etcd=east=https://10.0.0.1,https://10.0.0.2:2379/",
            "--etcd",
            "west=https://[::1]:23790",
            "--etcd-cacert=ca.crt",
            "--etcd-cert=c.crt",
            "--etcd-key=c.key",
            "--etcd-exclusive",
        ]);
        let Clusters::Etcd {
            members,
            prefix,
            tls,
            exclusive,
        } = config.expect("well formed").clusters
        else {
            panic!("etcds were given")
        };
        assert_eq!(
            members[0].urls,
            ["https://10.0.0.1:2379", "https://10.0.0.2:2379"]
        );
        assert_eq!(
            (members[1].name.as_str(), &members[1].urls[..]),
            ("west", &["https://[::1]:23790".to_owned()][..])
        );
        assert_eq!(prefix, "/outrigger/");
        assert_eq!(tls.client, Some(("c.crt".into(), "c.key".into())));
        assert!(exclusive);
    }

    #[test]
    fn mistakes_are_one_line_that_names_them() {
        let check = |args: &[&str], expect: &[&str]| match run(args) {
            Err(UsageError::Wrong(line)) => {
                assert!(!line.contains('\n') && !line.is_empty(), "{line:?}");
                for part in expect {
                    assert!(line.contains(part), "{args:?}: {line:?} does not say {part:?}");
                }
            }
            other => panic!("{args:?}: {other:?}"),
        };
        check(&["--backends", "0"], &["--backends", "1..=511"]);
        check(&["--backends", "512"], &["--backends", "1..=511"]);
        check(
            &["--backends", "3", "--etcd", "a=http://h"],
            &["--backends", "--etcd"],
        );
        check(&["--listen", "nowhere"], &["--listen", "127.0.0.1:7443"]);
        check(&["--etcd", "http://h:1"], &["--etcd", "NAME=URL"]);
        check(&["--etcd", "http://h:1/?a=b"], &["--etcd", "NAME=URL"]);
        check(&["--etcd", "East=http://h"], &["\"East\"", "lower case"]);
        check(&["--etcd", "a=ftp://h"], &["ftp://h", "http://"]);
        check(&["--etcd", "a="], &["--etcd"]);
        check(&["--etcd", "a=http://"], &["--etcd"]);
        check(&["--etcd", "a=http://h:99999"], &["99999"]);
        check(&["--etcd", "a=http://h:1/v3"], &["end after the port"]);
        check(&["--etcd", "a=http://u:p@h:1"], &["client certificate"]);
        check(&["--etcd", "a=http://h,https://i"], &["mixed"]);
        check(&["--etcd", "a=http://h,http://h:2379"], &["twice"]);
        check(
            &["--etcd", "a=http://h", "--etcd", "a=http://i"],
            &["\"a\"", "twice"],
        );
        check(&["--etcd", "a=http://h", "--etcd", "b=http://h"], &["both"]);
        check(&["--etcd", "a=http://h", "--etcd-cacert", "f"], &["not https"]);
        check(&["--etcd", "a=https://h", "--etcd-cert", "f"], &["--etcd-key"]);
        check(&["--etcd-cacert", "f"], &["--etcd"]);
        check(&["--etcd", "a=http://h", "--etcd-prefix", "x"], &["/outrigger/"]);
        check(&["--log-level", "info,=="], &["--log-level"]);
        check(&["--list-bytes-max", "1"], &["at least"]);
        check(&["--list-bytes-max", "64M"], &["64Mi"]);
        check(&["--list-bytes-max", "99999999999999999999Gi"], &["64Mi"]);
        check(&["--nonsense"], &["--nonsense"]);
        check(&["surplus"], &["surplus"]);
    }

    #[test]
    fn without_a_command_it_says_what_to_type() {
        let Err(UsageError::Wrong(line)) = parse(["outrigger".into()]) else {
            panic!("a command is needed")
        };
        assert!(line.contains("outrigger up"));
        assert!(matches!(
            parse(["outrigger".into(), "--version".into()]),
            Err(UsageError::Print(_))
        ));
    }
}
