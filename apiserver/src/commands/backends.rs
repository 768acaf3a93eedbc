//! What every workload cluster's backend is wrapped in, whoever describes the cluster.

use outrigger_storage::backend::Backend;
use outrigger_storage::backend::bounded::{Bounded, Limits};
use outrigger_storage::backend::instrumented::Instrumented;
use outrigger_storage::metrics::StoreMetrics;
use std::sync::Arc;

/// Measured under the cluster's name, and bounded: what is refused or cut counts too.
pub(super) fn guarded(backend: Arc<dyn Backend>, metrics: &StoreMetrics, cluster: &str) -> Arc<dyn Backend> {
    let measured = metrics.backend(cluster);
    let backend = Arc::new(Instrumented::new(backend, Arc::clone(&measured)));
    Arc::new(Bounded::new(backend, Limits::default()).with_metrics(measured))
}
