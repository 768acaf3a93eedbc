//! The flags of `outrigger serve`.

use super::{Limits, LimitsArgs, UsageError, wrong};
use clap::Args;
use outrigger_apiserver::filters::goaway::GOAWAY_CHANCE_MAX;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// `--shutdown-delay`: at most longer than any pod may take to end by default.
const SHUTDOWN_DELAY: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(300);

/// The longest `--pod-name`: who reports an Event may have 128 characters.
const POD_NAME_BYTES_MAX: usize = 100;

/// The settings of `outrigger serve`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ServeConfig {
    /// The address to serve on.
    pub(crate) listen: SocketAddr,
    /// How the control plane is reached; in the cluster that the server runs in if it is not given.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// What people know this replica by.
    pub(crate) pod_name: String,
    /// The Service in front of the replicas.
    pub(crate) service: ServiceName,
    /// Its port.
    pub(crate) service_port: u16,
    /// Where the serving certificate comes from.
    pub(crate) certificate: CertificateSource,
    /// How long readiness fails before the listener closes.
    pub(crate) shutdown_delay: Duration,
    /// How often an HTTP/2 client is asked to connect anew, 0 to 0.02.
    pub(crate) goaway_chance: f64,
    /// Paths that pass without authorization.
    pub(crate) always_allow_paths: Vec<String>,
    /// What is logged, what may be held in memory, and how much may be asked at once.
    pub(crate) limits: Limits,
}

/// A Service. Its namespace is also that of what the server keeps for itself in the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceName {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
}

/// Where the serving certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CertificateSource {
    /// An authority of our own, which the replicas share.
    Own,
    /// Files that somebody else keeps.
    Files {
        /// The certificate, with its chain.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
        /// Who signed it, for the APIServices.
        authority: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// The address to serve on; port 0 takes a free one.
    #[arg(long, env = "OUTRIGGER_LISTEN", default_value = "0.0.0.0:6443", value_name = "ADDRESS:PORT", value_parser = super::listen)]
    listen: SocketAddr,
    /// How to reach the control plane [default: as a pod of it].
    #[arg(long, env = "OUTRIGGER_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The name of this pod: what Leases, conditions and events call the replica.
    #[arg(long, env = "POD_NAME", default_value = "outrigger", value_name = "NAME", value_parser = pod_name)]
    pod_name: String,
    /// The Service in front of the replicas.
    #[arg(long, env = "OUTRIGGER_SERVICE", default_value = "outrigger-system/outrigger", value_name = "NAMESPACE/NAME", value_parser = service)]
    service: ServiceName,
    /// The port of that Service.
    #[arg(
        long,
        env = "OUTRIGGER_SERVICE_PORT",
        default_value_t = 443,
        value_name = "PORT"
    )]
    service_port: u16,
    /// The serving certificate with its chain (PEM), kept by somebody else [default: one of an authority of our own].
    #[arg(
        long,
        env = "OUTRIGGER_TLS_CERT_FILE",
        value_name = "FILE",
        requires = "tls_private_key_file",
        requires = "tls_ca_file"
    )]
    tls_cert_file: Option<PathBuf>,
    /// The key of that certificate (PEM).
    #[arg(
        long,
        env = "OUTRIGGER_TLS_PRIVATE_KEY_FILE",
        value_name = "FILE",
        requires = "tls_cert_file"
    )]
    tls_private_key_file: Option<PathBuf>,
    /// The authority that signed that certificate (PEM).
    #[arg(
        long,
        env = "OUTRIGGER_TLS_CA_FILE",
        value_name = "FILE",
        requires = "tls_cert_file"
    )]
    tls_ca_file: Option<PathBuf>,
    /// How long readiness fails before the listener closes, so that nobody is sent here any more.
    #[arg(long, env = "OUTRIGGER_SHUTDOWN_DELAY", default_value = "10s", value_name = "SECONDS", value_parser = |s: &str| super::duration(s, SHUTDOWN_DELAY))]
    shutdown_delay: Duration,
    /// How often an HTTP/2 client is asked to connect anew, so that replicas share the load: 0 to 0.02, 0.001 is a good start.
    #[arg(long, env = "OUTRIGGER_GOAWAY_CHANCE", default_value = "0", value_name = "CHANCE", value_parser = goaway_chance)]
    goaway_chance: f64,
    /// Paths that pass without authorization, as the probes of a kubelet do; a `*` at the end stands for what follows.
    #[arg(long, env = "OUTRIGGER_AUTHORIZATION_ALWAYS_ALLOW_PATHS", default_value = "/healthz,/livez,/readyz", value_name = "PATH[,PATH...]", value_parser = allowed_path, value_delimiter = ',')]
    authorization_always_allow_paths: Vec<String>,
    #[command(flatten)]
    limits: LimitsArgs,
}

impl ServeArgs {
    pub(super) fn into_config(self) -> Result<ServeConfig, UsageError> {
        let files = (self.tls_cert_file, self.tls_private_key_file, self.tls_ca_file);
        let certificate = match files {
            (None, None, None) => CertificateSource::Own,
            (Some(certificate), Some(key), Some(authority)) => CertificateSource::Files {
                certificate,
                key,
                authority,
            },
            _ => {
                return Err(wrong(
                    "--tls-cert-file, --tls-private-key-file and --tls-ca-file belong together",
                ));
            }
        };
        Ok(ServeConfig {
            listen: self.listen,
            kubeconfig: self.kubeconfig,
            pod_name: self.pod_name,
            service: self.service,
            service_port: self.service_port,
            certificate,
            shutdown_delay: self.shutdown_delay,
            goaway_chance: self.goaway_chance,
            always_allow_paths: self.authorization_always_allow_paths,
            limits: self.limits.into(),
        })
    }
}

/// A name that a Lease may have, with room for what tells a replica from itself before a restart.
fn pod_name(text: &str) -> Result<String, String> {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let is_name = !text.is_empty() && text.len() <= POD_NAME_BYTES_MAX && text.chars().all(is_inner);
    let is_edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    match is_name && is_edge(text.chars().next()) && is_edge(text.chars().last()) && !text.contains("..") {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "a pod's name has lower-case letters, digits, '-' and '.', at most {POD_NAME_BYTES_MAX}"
        )),
    }
}

fn service(text: &str) -> Result<ServiceName, String> {
    let is_label = |label: &str| super::is_cluster_name(label) && !label.contains('.');
    match text.split_once('/') {
        Some((namespace, name)) if is_label(namespace) && is_label(name) => Ok(ServiceName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }),
        _ => Err("expected NAMESPACE/NAME, as in outrigger-system/outrigger".to_owned()),
    }
}

/// A path, or the beginning of one with a `*` behind it.
fn allowed_path(text: &str) -> Result<String, String> {
    let beginning = text.strip_suffix('*').unwrap_or(text);
    match (beginning.starts_with('/') || text == "*") && !beginning.contains('*') {
        true => Ok(text.to_owned()),
        false => Err("expected paths, as in /healthz or /healthz/*".to_owned()),
    }
}

fn goaway_chance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(chance) if (0.0..=GOAWAY_CHANCE_MAX).contains(&chance) => Ok(chance),
        _ => Err(format!("expected a number from 0 to {GOAWAY_CHANCE_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Command, RequestLimits, parse};
    use super::*;
    use std::ffi::OsString;

    fn run(args: &[&str]) -> Result<ServeConfig, UsageError> {
        let args = ["outrigger", "serve"].iter().chain(args).map(OsString::from);
        parse(args).map(|command| match command {
            Command::Serve(config) => *config,
            Command::Up(_) => unreachable!("serve was asked for"),
        })
    }

    #[test]
    fn defaults() {
        let config = run(&[]).expect("no flag is needed");
        assert_eq!(config.listen.to_string(), "0.0.0.0:6443");
        assert_eq!(
            (config.service.namespace.as_str(), config.service.name.as_str()),
            ("outrigger-system", "outrigger")
        );
        assert_eq!(config.certificate, CertificateSource::Own);
        assert_eq!(config.shutdown_delay, Duration::from_secs(10));
        assert_eq!(config.limits.list_bytes_max, 64 << 20);
        assert_eq!(config.always_allow_paths, ["/healthz", "/livez", "/readyz"]);
        let requests = RequestLimits {
            in_flight_max: 400,
            mutating_in_flight_max: 200,
            timeout: Duration::from_secs(60),
        };
        assert_eq!(config.limits.requests, requests);
    }

    #[test]
    fn limits_of_requests() {
        let config = run(&[
            "--max-requests-inflight=0",
            "--max-mutating-requests-inflight=7",
            "--request-timeout=2m",
            "--authorization-always-allow-paths=/healthz,/metrics/*",
        ]);
        let config = config.expect("limits");
        let requests = RequestLimits {
            in_flight_max: 0,
            mutating_in_flight_max: 7,
            timeout: Duration::from_secs(120),
        };
        assert_eq!(config.limits.requests, requests);
        assert_eq!(config.always_allow_paths, ["/healthz", "/metrics/*"]);
        let config = run(&["--pod-name=outrigger-7d9f-x2x"]).expect("a name");
        assert_eq!(config.pod_name, "outrigger-7d9f-x2x");
    }

    fn check(args: &[&str], expect: &str) {
        match run(args) {
            Err(UsageError::Wrong(message)) => assert!(message.contains(expect), "{args:?}: {message}"),
            other => panic!("{args:?} gave {other:?}"),
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        check(&["--service=outrigger"], "expected NAMESPACE/NAME");
        check(&["--service=a.b/c"], "expected NAMESPACE/NAME");
        for name in ["", "Pod", "-pod", "pod.", "a..b", "a/b", &"a".repeat(101)] {
            check(&[&format!("--pod-name={name}")], "a pod's name has");
        }
        check(&["--tls-cert-file=a"], "--tls-private-key-file");
        check(&["--shutdown-delay=1h"], "as in 10s");
        check(&["--shutdown-delay=301"], "at most 300 s");
        check(&["--data-dir=x"], "--data-dir");
        check(&["--goaway-chance=0.5"], "from 0 to 0.02");
        check(&["--goaway-chance=NaN"], "from 0 to 0.02");
        check(&["--request-timeout=0"], "at least 1 s");
        check(&["--request-timeout=2h"], "as in 10s");
        check(&["--max-requests-inflight=-1"], "--max-requests-inflight");
        check(&["--authorization-always-allow-paths=metrics"], "as in /healthz");
        check(&["--authorization-always-allow-paths=/a/*/b"], "as in /healthz");
    }

    #[test]
    fn times() {
        for (text, expect) in [("0", 0), ("3", 3000), ("250ms", 250), ("2m", 120_000)] {
            assert_eq!(
                super::super::duration(text, SHUTDOWN_DELAY),
                Ok(Duration::from_millis(expect)),
                "{text}"
            );
        }
    }
}
