//! The same keys, paged out of the etcds with nothing in between: what a list can come near to.

use crate::measure::Speed;
use anyhow::{Context, Result, anyhow};
use outrigger_storage::backend::{Backend, OpResponse, Range, Txn};
use outrigger_storage::testing::etcd_server::EtcdServer;
use std::sync::Arc;
use tokio::time::Instant;

/// Where the Applications are, and what comes after them.
const START: &[u8] = b"objects/paas.example.com/applications/";
const END: &[u8] = b"objects/paas.example.com/applications0";
/// Keys on a page: kube-apiserver's own step is 500, and ours are pages of up to two megabytes.
const PAGE_KEYS: usize = 500;
/// More pages than any set of objects has.
const PAGES_MAX: usize = 10_000;

/// All etcds at once, each page by page.
pub(crate) async fn page_all(etcds: &[EtcdServer], runs: usize) -> Result<Speed> {
    let backends: Vec<Arc<dyn Backend>> = etcds
        .iter()
        .map(|etcd| Arc::new(etcd.backend()) as Arc<dyn Backend>)
        .collect();
    let mut seen = Vec::new();
    for _ in 0..=runs {
        let start = Instant::now();
        let pages = backends
            .iter()
            .map(|backend| tokio::spawn(page(Arc::clone(backend))));
        let mut bytes = 0;
        for part in futures::future::join_all(pages).await {
            bytes += part??;
        }
        seen.push((bytes, start.elapsed().as_secs_f64()));
    }
    // The first one connects.
    seen.remove(0);
    Speed::median(seen)
}

async fn page(backend: Arc<dyn Backend>) -> Result<u64> {
    let (mut next, mut revision, mut bytes) = (START.to_vec(), 0, 0);
    for _ in 0..PAGES_MAX {
        let range = Range::between(next, END).limit(PAGE_KEYS).at(revision);
        let answer = backend
            .txn(Txn::read([range]))
            .await
            .map_err(|e| anyhow!("{e}"))?;
        if revision == 0 {
            revision = answer.revision;
        }
        let range = answer
            .responses
            .into_iter()
            .next()
            .map(OpResponse::into_range)
            .context("no answer to a range")?;
        bytes += range
            .kvs
            .iter()
            .map(|kv| (kv.key.len() + kv.value.len()) as u64)
            .sum::<u64>();
        match range.kvs.last() {
            Some(last) if range.more => next = [&last.key[..], b"\0"].concat(),
            _ => return Ok(bytes),
        }
    }
    Err(anyhow!("more than {PAGES_MAX} pages"))
}
