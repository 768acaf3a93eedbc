//! What Outrigger costs, beside kube-apiserver and bare etcd with the same objects in the same run.
//!
//! `bench list|create|memory|all|aggregator [--objects N] [--namespaces N] [--runs N] [--no-kube-apiserver]`. It needs the release build
//! of `outrigger` (`OUTRIGGER_BIN`), etcd and kube-apiserver (`OUTRIGGER_ASSETS`), and for `aggregator`, which is by itself,
//! kube-controller-manager and kubectl. Everything listens on loopback, and ends
//! with the bench. It knows no targets: it prints what it saw, and what the issue asked for beside it.

mod aggregator;
mod bare_etcd;
mod load;
mod measure;

use anyhow::{Context, Result, bail};
use outrigger_storage::testing::etcd_server::EtcdServer;
use outrigger_tests::control_plane::{ControlPlane, Rights};
use outrigger_tests::dataset::Dataset;
use outrigger_tests::server::Outrigger;
use std::io::Write;
use std::path::Path;

/// The seed of the objects.
const SEED: u64 = 7;
/// The clusters that Outrigger keeps them in.
const CLUSTERS: [&str; 3] = ["east", "north", "west"];

/// What to do.
struct Options {
    benches: Vec<Bench>,
    objects: usize,
    namespaces: usize,
    runs: usize,
    kube_apiserver: bool,
    /// Outrigger behind kube-apiserver, and nothing else.
    aggregator: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bench {
    List,
    Create,
    Memory,
}

/// One line for whoever reads.
pub(crate) fn say(line: &str) {
    // Nobody reads: the bench goes on, its exit code counts.
    let _ = writeln!(std::io::stdout(), "{line}");
}

#[tokio::main]
async fn main() -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let options = Options::parse(std::env::args().skip(1))?;
    tokio::select! {
        done = run(&options) => done,
        // The children go with their handles.
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    }
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        const USAGE: &str = "bench list|create|memory|all|aggregator [--objects N] [--namespaces N] [--runs N] [--no-kube-apiserver]";
        let mut options = Self {
            benches: Vec::new(),
            objects: 29_000,
            namespaces: 690,
            runs: 5,
            kube_apiserver: true,
            aggregator: false,
        };
        while let Some(arg) = args.next() {
            let mut number = || -> Result<usize> {
                let value = args.next().with_context(|| format!("{arg} needs a number"))?;
                let number: usize = value
                    .parse()
                    .with_context(|| format!("{arg} {value}: no number"))?;
                Ok(number.max(1))
            };
            match arg.as_str() {
                "list" => options.benches.push(Bench::List),
                "create" => options.benches.push(Bench::Create),
                "memory" => options.benches.push(Bench::Memory),
                "aggregator" => options.aggregator = true,
                "all" => options
                    .benches
                    .extend([Bench::Create, Bench::List, Bench::Memory]),
                "--objects" => options.objects = number()?,
                "--namespaces" => options.namespaces = number()?,
                "--runs" => options.runs = number()?,
                "--no-kube-apiserver" => options.kube_apiserver = false,
                _ => bail!("{arg:?} is unknown. {USAGE}"),
            }
        }
        if options.benches.is_empty() != options.aggregator {
            bail!("{USAGE}");
        }
        options.namespaces = options.namespaces.min(options.objects);
        // Memory is ours alone to keep.
        options.kube_apiserver &= options.benches.iter().any(|bench| *bench != Bench::Memory);
        Ok(options)
    }

    fn has(&self, bench: Bench) -> bool {
        self.benches.contains(&bench)
    }
}

async fn run(options: &Options) -> Result<()> {
    let data = Dataset::new(SEED, options.namespaces, options.objects);
    if options.aggregator {
        return aggregator::run(&data, options.runs).await;
    }
    let mut etcds = Vec::new();
    for _ in CLUSTERS {
        etcds.push(EtcdServer::start().await);
    }
    let clusters: Vec<String> = CLUSTERS
        .iter()
        .zip(&etcds)
        .map(|(name, etcd)| format!("--etcd={name}={}", etcd.client_url()))
        .collect();
    let mut args: Vec<&str> = clusters.iter().map(String::as_str).collect();
    args.push("--log-level=warn");
    let outrigger = Outrigger::up(&args);
    say(&format!(
        "{} Applications in {} namespaces, {} etcds; outrigger at rest: {}",
        data.len(),
        data.namespaces.len(),
        etcds.len(),
        measure::mebibytes(outrigger.memory().0),
    ));
    let kube_apiserver = match options.kube_apiserver {
        true => Some(ControlPlane::start(Rights::All).await?),
        false => None,
    };
    if let Some(kube) = &kube_apiserver {
        kube.create_example_crd().await?;
    }

    let kube = kube_apiserver.as_ref().map(ControlPlane::kubeconfig);
    let kube = kube.as_deref();
    create(options, &outrigger.kubeconfig(), kube, &data).await?;
    if options.has(Bench::List) {
        list(options, &outrigger.kubeconfig(), kube, &etcds).await?;
    }
    if options.has(Bench::Memory) {
        measure::memory(&outrigger.kubeconfig(), outrigger.pid(), options.runs, data.len()).await?;
    }
    Ok(())
}

/// Loading is the bench of creates.
async fn create(options: &Options, outrigger: &Path, kube: Option<&Path>, data: &Dataset) -> Result<()> {
    let ours = load::load(outrigger, data).await.context("outrigger")?;
    say(&format!("create: {} clients, outrigger: {ours}", load::CLIENTS));
    let Some(kube) = kube else { return Ok(()) };
    let theirs = load::load(kube, data).await.context("kube-apiserver")?;
    say(&format!(
        "create: {} clients, kube-apiserver: {theirs}",
        load::CLIENTS
    ));
    if options.has(Bench::Create) {
        let ratio = ours.per_second() / theirs.per_second();
        say(&format!("create: ratio {ratio:.1} (wanted: 5)"));
    }
    Ok(())
}

async fn list(options: &Options, outrigger: &Path, kube: Option<&Path>, etcds: &[EtcdServer]) -> Result<()> {
    let bare = bare_etcd::page_all(etcds, options.runs).await?;
    say(&format!("list: bare etcd, paged, no TLS: {bare}"));
    let ours = measure::list(outrigger, options.runs)
        .await
        .context("outrigger")?;
    say(&format!("list: outrigger: {ours}"));
    let Some(kube) = kube else { return Ok(()) };
    let theirs = measure::list(kube, options.runs)
        .await
        .context("kube-apiserver")?;
    say(&format!("list: kube-apiserver: {theirs}"));
    say(&format!(
        "list: ratio {:.1} in MB/s (wanted: 5), {:.1} in time",
        ours.megabytes_per_second() / theirs.megabytes_per_second(),
        theirs.seconds / ours.seconds,
    ));
    Ok(())
}
