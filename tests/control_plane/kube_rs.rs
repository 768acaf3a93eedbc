//! A controller on kube-rs in this process: a finalizer, and a field of the status. It knows nothing of what the other
//! controller does to the same objects.

use anyhow::{Result, bail};
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::controller::Action;
use kube::runtime::finalizer::{self, Event, finalizer};
use kube::runtime::reflector::Store;
use kube::runtime::{Controller, watcher};
use kube::{Api, Client, Config, ResourceExt};
use outrigger_tests::programs::{SETTLED, now_millis};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// Its finalizer.
pub(crate) const FINALIZER: &str = "kube-rs.example.com/controller";
/// What it writes into `status.cluster`.
pub(crate) const CLUSTER: &str = "programs";
/// How long it may take until it has its objects.
const READY: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
/// How soon it tries again after an error.
const RETRY: Duration = Duration::from_millis(500);

/// A controller that runs.
pub(crate) struct KubeRs {
    store: Store<DynamicObject>,
    errors: Arc<Mutex<Vec<(u64, String)>>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

struct Context {
    client: Client,
    resource: ApiResource,
}

impl KubeRs {
    /// Starts it, and waits until it has its objects.
    pub(crate) async fn start(kubeconfig: &Path) -> Result<Self> {
        let config = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let kind = GroupVersionKind::gvk("paas.example.com", "v1", "Application");
        let resource = ApiResource::from_gvk_with_plural(&kind, "applications");
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let config = watcher::Config::default().streaming_lists();
        let (stop, stopped) = oneshot::channel::<()>();
        let controller = Controller::new_with(api, config, resource.clone()).graceful_shutdown_on(async {
            let _ = stopped.await;
        });
        let store = controller.store();
        let errors: Arc<Mutex<Vec<(u64, String)>>> = Arc::default();
        let heard = Arc::clone(&errors);
        let policy = |_: Arc<DynamicObject>, _: &finalizer::Error<kube::Error>, _: Arc<Context>| {
            Action::requeue(RETRY)
        };
        let results = controller.run(reconcile, policy, Arc::new(Context { client, resource }));
        let task = tokio::spawn(futures::StreamExt::for_each(results, move |result| {
            if let Err(error) = result {
                let said = format!("{:#}", anyhow::Error::from(error));
                heard.lock().push((now_millis(), said));
            }
            std::future::ready(())
        }));
        // Whoever waits for its store takes the controller's own wait away: a store wakes one of all who wait.
        let start = Instant::now();
        while store.is_empty() {
            sleep(POLL).await;
            if start.elapsed() > READY {
                bail!("it gets no objects: {:?}", errors.lock());
            }
        }
        Ok(Self {
            store,
            errors,
            stop,
            task,
        })
    }

    /// Waits until it holds just this.
    pub(crate) async fn holds(&self, list: &BTreeMap<String, u64>) {
        let start = Instant::now();
        while self.cache() != *list {
            assert!(start.elapsed() < SETTLED, "{:?}\n{list:?}", self.cache());
            sleep(POLL).await;
        }
    }

    fn cache(&self) -> BTreeMap<String, u64> {
        let version = |object: &DynamicObject| object.resource_version().unwrap_or_default().parse::<u64>();
        let entry = |object: Arc<DynamicObject>| {
            let key = format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any());
            (key, version(&object).expect("a decimal version"))
        };
        self.store.state().into_iter().map(entry).collect()
    }

    /// Stops it; the errors that it met, and when.
    pub(crate) async fn stop(self) -> Vec<(u64, String)> {
        let _ = self.stop.send(());
        self.task.await.expect("it does not panic");
        std::mem::take(&mut *self.errors.lock())
    }
}

async fn reconcile(
    object: Arc<DynamicObject>,
    context: Arc<Context>,
) -> Result<Action, finalizer::Error<kube::Error>> {
    let namespace = object.namespace().unwrap_or_default();
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &namespace, &context.resource);
    finalizer(&api, FINALIZER, object, async |event| {
        if let Event::Apply(object) = event
            && object.data["status"]["cluster"] != CLUSTER
        {
            let status = Patch::Merge(json!({"status": {"cluster": CLUSTER}}));
            api.patch_status(&object.name_any(), &PatchParams::default(), &status)
                .await?;
        }
        Ok(Action::await_change())
    })
    .await
}
