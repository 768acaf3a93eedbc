//! The set-up: what an administrator does, with a balancer in the place of EndpointSlices (no node runs pods here).

use crate::balancer::Balancer;
use crate::control_plane::{Audited, ControlPlane, Rights};
use crate::kubectl::Kubectl;
use crate::replica::Replica;
use outrigger_storage::testing::etcd_server::EtcdServer;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The workload clusters.
pub const CLUSTERS: [&str; 3] = ["east", "north", "west"];

/// What the chart installs with the values of README, as `tests/deploy` renders it.
const CHART: &str = include_str!("../../deploy/helm/golden/outrigger-readme.yaml");
/// Of these, the ones that give rights. The Service of the tests is another, and no node runs the Deployment.
const RIGHTS: [&str; 5] = [
    "ServiceAccount",
    "Role",
    "RoleBinding",
    "ClusterRole",
    "ClusterRoleBinding",
];

/// A control plane that Outrigger is a member of.
pub struct Member {
    /// The administrator's.
    pub kubectl: Kubectl,
    /// All that run.
    pub replicas: Vec<Replica>,
    /// The Service in front of them.
    pub balancer: Balancer,
    /// Those of the workload clusters, in the order of [`CLUSTERS`].
    pub etcds: Vec<EtcdServer>,
    /// kube-apiserver and kube-controller-manager.
    pub control_plane: ControlPlane,
    /// The replicas': that of the chart's ServiceAccount.
    account: PathBuf,
}

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

impl Member {
    /// Everything runs, and the Application kind is Outrigger's.
    pub async fn start(replicas: usize) -> Self {
        Self::start_with(replicas, &CLUSTERS).await
    }

    /// The same with these workload clusters.
    pub async fn start_with(replicas: usize, clusters: &[&str]) -> Self {
        let mut control_plane = ControlPlane::start(Rights::Rbac).await.expect("a control plane");
        control_plane.start_controllers().expect("controllers");
        let kubectl = Kubectl::new(&control_plane.kubeconfig());
        let balancer = Balancer::start().await;
        let mut etcds = Vec::new();
        for _ in clusters {
            etcds.push(EtcdServer::start().await);
        }
        let mut member = Self {
            kubectl,
            replicas: Vec::new(),
            balancer,
            etcds,
            account: PathBuf::new(),
            control_plane,
        };
        member.prepare(clusters);
        for _ in 0..replicas {
            member.add_replica().await;
        }
        member.take_over();
        member
    }

    /// Our kinds, our namespace, the Service, the clusters.
    fn prepare(&mut self, clusters: &[&str]) {
        let crds = deploy("crds");
        let _ = self.kubectl.ok(&["apply", "-f", &crds.display().to_string()]);
        let established = [
            "wait",
            "--for=condition=Established",
            "--timeout=30s",
            "crd/workloadclusters.outrigger.dev",
            "crd/namespaceplacements.outrigger.dev",
            "crd/tenants.outrigger.dev",
        ];
        // kubectl gives up on an object that has no conditions yet.
        let _ = self
            .kubectl
            .eventually(&established, |said| said.matches("condition met").count() == 3);
        // An ExternalName Service reaches one address: the balancer's.
        let service = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: outrigger-system}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: outrigger, namespace: outrigger-system}}\n\
             spec: {{type: ExternalName, externalName: localhost, ports: [{{port: {}}}]}}\n",
            self.balancer.port()
        );
        let _ = self.kubectl.ok_with(&["apply", "-f", "-"], &service);
        let is_right = |object: &&str| {
            let kind = object.lines().find_map(|line| line.strip_prefix("kind: "));
            kind.is_some_and(|kind| RIGHTS.contains(&kind))
        };
        let rights: Vec<&str> = CHART.split("---\n").filter(is_right).collect();
        let _ = self.kubectl.ok_with(&["apply", "-f", "-"], &rights.join("---\n"));
        let token = [
            "create",
            "token",
            "outrigger",
            "-n",
            "outrigger-system",
            "--duration=2h",
        ];
        let token = self.kubectl.ok(&token);
        let account = self.control_plane.kubeconfig_of("outrigger", token.trim());
        self.account = account.expect("a kubeconfig");
        for (name, etcd) in clusters.iter().zip(&self.etcds) {
            self.join(name, etcd);
        }
    }

    /// One more workload cluster.
    pub fn join(&self, name: &str, etcd: &EtcdServer) {
        self.join_at(name, &etcd.client_url());
    }

    /// One more workload cluster, whose etcd is reached there.
    pub fn join_at(&self, name: &str, url: &str) {
        let cluster = format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: WorkloadCluster\nmetadata: {{name: {name}}}\n\
             spec: {{endpoints: [\"{url}\"], exclusive: true}}\n",
        );
        let _ = self.kubectl.ok_with(&["apply", "-f", "-"], &cluster);
    }

    /// Restarts the replicas one by one, as a rolling update does, with a pause after each.
    pub async fn restart_replicas(&mut self, pause: Duration) {
        let count = self.replicas.len();
        for replica in &mut self.replicas {
            let status = replica.stop().await;
            assert!(status.success(), "{status}: {}", replica.log_tail());
            replica.start_again();
            replica.ready_behind(&self.balancer, count).await;
            tokio::time::sleep(pause).await;
        }
    }

    /// One more replica, ready.
    pub async fn add_replica(&mut self) {
        let port = format!("--service-port={}", self.balancer.port());
        // Longer than the balancer takes to notice on a machine that has much else to do.
        let args = ["--shutdown-delay=2s", &port];
        let mut replica = Replica::start(&self.account, &args);
        self.balancer.add(replica.address());
        replica
            .ready_behind(&self.balancer, self.replicas.len() + 1)
            .await;
        self.replicas.push(replica);
    }

    /// The annotated CRD, and the moment in which its kind is served by us.
    pub fn take_over(&self) {
        let crd = deploy("examples/application-crd.yaml");
        let _ = self.kubectl.ok(&["apply", "-f", &crd.display().to_string()]);
        let _ = self.kubectl.ok(&[
            "wait",
            "--for=condition=Distributed",
            "--timeout=60s",
            "crd/applications.paas.example.com",
        ]);
    }

    /// What the replicas asked for and may not.
    pub fn forbidden(&self) -> Vec<Audited> {
        let audited = self.control_plane.audited().expect("an audit log");
        assert!(audited.iter().any(|a| a.verb == "watch"), "{audited:?}");
        audited.into_iter().filter(|a| a.is_forbidden).collect()
    }
}
