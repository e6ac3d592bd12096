//! A real control plane for one test, with what nodestats installs into it, and Nodes that no
//! machine stands behind.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use nodestats_cluster::{Cluster, Config, Level, Owned};
use nodestats_wire::client::Client;
use tempfile::TempDir;

use crate::{PATIENCE, Program};

pub use nodestats_cluster::{Version, sweep};

/// A control plane; gone when it is dropped.
pub struct ControlPlane {
    cluster: Owned,
    version: Version,
    folder: TempDir,
}

/// The repository's folder.
fn root() -> &'static Path {
    let testkit = Path::new(env!("CARGO_MANIFEST_DIR"));
    testkit
        .ancestors()
        .nth(2)
        .expect("crates/testkit is in the repository")
}

/// A name that no other test of this machine has.
fn unique_name() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("t{}-{count}", std::process::id() % 100_000)
}

impl ControlPlane {
    /// Starts etcd and kube-apiserver.
    ///
    /// # Panics
    /// Where they do not start.
    pub fn start(version: Version) -> Self {
        let config = Config {
            name: unique_name(),
            version,
            level: Level::ControlPlane,
            ..Config::default()
        };
        Self {
            cluster: Owned::up(&config).expect("a control plane"),
            version,
            folder: tempfile::tempdir().expect("temporary folder"),
        }
    }

    /// The same, with the resource's definition, the namespace and the RBAC of nodestats.
    ///
    /// # Panics
    /// Where it cannot be installed.
    pub fn with_nodestats(version: Version) -> Self {
        let plane = Self::start(version);
        install(&plane.cluster);
        plane
    }

    /// Installs the definition alone, again.
    pub fn reinstall_definition(&self) {
        install_definition(&self.cluster);
    }

    /// Installs everything again.
    pub fn reinstall(&self) {
        install(&self.cluster);
    }

    /// Runs kubectl as the administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.cluster.kubectl(arguments)
    }

    /// Runs kubectl as the administrator, with this on its standard input.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        self.cluster.kubectl_with(arguments, input)
    }

    /// Applies documents as a person does, and returns what kubectl said.
    pub fn apply(&self, documents: &str) -> anyhow::Result<String> {
        self.cluster.kubectl_with(&["apply", "-f", "-"], documents)
    }

    /// The JSON of an object.
    ///
    /// # Panics
    /// Where there is none.
    pub fn get(&self, kind: &str, name: &str) -> serde_json::Value {
        let text = self.kubectl(&["get", kind, name, "-o", "json", "--show-managed-fields"]);
        serde_json::from_str(&text.expect("an object")).expect("JSON")
    }

    /// A file of this test.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Renders the chart with `values` (`KEY=VALUE`, a value in JSON), and asks the API server
    /// whether it would take each object of it; returns what kubectl said.
    pub fn try_chart(&self, values: &[&str]) -> anyhow::Result<String> {
        let chart = root().join("charts/nodestats").display().to_string();
        let version = format!("--kube-version={}", self.version.as_str());
        let mut arguments = vec!["template", "nodestats", &chart, &version];
        arguments.extend(["--namespace", "nodestats"]);
        for value in values {
            arguments.extend(["--set-json", value]);
        }
        let rendered = self.cluster.helm(&arguments)?;
        let apply = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
        self.cluster.kubectl_with(&apply, &rendered)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.cluster.kubeconfig()
    }

    /// Makes a Node with this address that is Ready, as a kubelet would.
    ///
    /// # Panics
    /// Where the API server does not take it.
    pub fn add_node(&self, name: &str, ip: &str) -> String {
        let node =
            serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        self.apply(&node.to_string()).expect("a Node");
        let status = serde_json::json!({"status": {
            "addresses": [{"type": "InternalIP", "address": ip}, {"type": "Hostname", "address": name}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": ""}],
        }});
        let status = status.to_string();
        let patch = [
            "patch",
            "node",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ];
        self.kubectl(&patch).expect("a Node's status");
        self.get("node", name)["metadata"]["uid"]
            .as_str()
            .expect("a UID")
            .to_owned()
    }

    /// A pod of the agents' service account on `node`, to which tokens are bound.
    ///
    /// # Panics
    /// Where the API server does not take it.
    pub fn add_agent_pod(&self, name: &str, node: &str) {
        let pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "nodestats"},
            "spec": {
                "nodeName": node, "serviceAccountName": "nodestats-agent",
                "containers": [{"name": "agent", "image": "none"}],
            },
        });
        self.apply(&pod.to_string()).expect("a pod");
    }

    /// A kubeconfig and a token file of the agent's service account, bound to a pod on `node` as
    /// the kubelet gives them to an agent there.
    ///
    /// # Panics
    /// Where the API server does not make one.
    pub fn agent_credentials(&self, node: &str) -> (PathBuf, PathBuf) {
        let pod_name = format!("agent-{node}");
        self.add_agent_pod(&pod_name, node);
        let token = self.kubectl(&[
            "create",
            "token",
            "nodestats-agent",
            "-n",
            "nodestats",
            "--bound-object-kind=Pod",
            &format!("--bound-object-name={pod_name}"),
        ]);
        let token = token.expect("a token").trim().to_owned();
        let token_file = self.file(&format!("{node}.token"));
        std::fs::write(&token_file, &token).expect("written");
        (
            self.kubeconfig_with(&format!("{node}.kubeconfig"), &token),
            token_file,
        )
    }

    /// A service account of the namespace `nodestats` that these roles are bound to, each by a
    /// binding `ACCOUNT-ROLE`.
    ///
    /// # Panics
    /// Where it cannot be made.
    pub fn let_read(&self, account: &str, roles: &[&str]) {
        let_read(&self.cluster, account, roles);
    }

    /// A file with a token of a service account (of the namespace `nodestats`) for nodestats' API,
    /// bound to this pod of the same namespace where one is named.
    ///
    /// # Panics
    /// Where the API server makes none.
    pub fn token(&self, service_account: &str, pod: Option<&str>) -> PathBuf {
        token(&self.cluster, self.folder.path(), service_account, pod)
    }

    /// A kubeconfig of a service account of the namespace `nodestats`.
    ///
    /// # Panics
    /// Where the API server makes no token.
    pub fn credentials(&self, service_account: &str) -> PathBuf {
        let token = self.kubectl(&["create", "token", service_account, "-n", "nodestats"]);
        let token = token.expect("a token").trim().to_owned();
        self.kubeconfig_with(&format!("{service_account}.kubeconfig"), &token)
    }

    fn kubeconfig_with(&self, file: &str, token: &str) -> PathBuf {
        kubeconfig_with(&self.cluster, self.file(file), token)
    }
}

/// A kubeconfig of whoever has this token.
fn kubeconfig_with(cluster: &Cluster, path: PathBuf, token: &str) -> PathBuf {
    let admin = std::fs::read_to_string(cluster.kubeconfig()).expect("readable");
    let mut config: serde_json::Value = serde_json::from_str(&admin).expect("JSON");
    config["users"][0]["user"] = serde_json::json!({"token": token});
    std::fs::write(&path, config.to_string()).expect("written");
    path
}

/// A cluster with nodes; gone when it is dropped.
pub struct FullCluster {
    cluster: Owned,
    images: [PathBuf; 2],
    folder: TempDir,
}

/// A network that nobody on this machine has: beside a contributor's own cluster, and other tests.
fn free_network() -> String {
    let first = std::process::id();
    let networks = (0..32).map(|next| format!("192.168.{}", 64 + (first + next) % 32));
    // The gateway of one that is there is an address of this machine, and can be bound to.
    let is_free = |network: &String| std::net::UdpSocket::bind(format!("{network}.1:0")).is_err();
    let mut free = networks.filter(is_free);
    free.next().expect("fewer than 32 clusters on one machine")
}

impl FullCluster {
    /// Starts it, and imports the images of `cargo xtask image` into every node.
    ///
    /// # Panics
    /// Where it does not start, or the images are not built.
    pub fn with_images(version: Version, nodes: usize) -> Self {
        let images = ["nodestats", "nodestats-agent"].map(|name| {
            let image = crate::program::target_folder().join(format!("xtask-images/{name}.tar"));
            assert!(
                image.exists(),
                "{} is missing: cargo xtask image makes it",
                image.display()
            );
            image
        });
        let config = Config {
            name: unique_name(),
            version,
            level: Level::Full { nodes },
            network: free_network(),
            tracing: true,
        };
        let cluster = Owned::up(&config).expect("a cluster");
        for image in &images {
            cluster.load(image).expect("imported");
        }
        Self {
            cluster,
            images,
            folder: tempfile::tempdir().expect("temporary folder"),
        }
    }

    /// Adds a node that was removed, and imports the images into it.
    pub fn add_node(&self, node: &str) -> anyhow::Result<()> {
        self.cluster.add_node(node)?;
        self.images
            .iter()
            .try_for_each(|image| self.cluster.load_into(node, image))
    }

    /// Installs or upgrades the chart with the images of this machine, as `helm` does, in the
    /// namespace `nodestats`; each of `values` is `KEY=VALUE`, a value in JSON.
    pub fn install_chart(&self, values: &[&str]) -> anyhow::Result<String> {
        let chart = root().join("charts/nodestats").display().to_string();
        let mut arguments = vec!["upgrade", "--install", "nodestats", &chart];
        arguments.extend(["--namespace", "nodestats", "--create-namespace"]);
        let images = [
            "image.registry=\"localhost\"",
            "image.pullPolicy=\"Never\"",
            "agent.image.tag=\"latest\"",
            "api.image.tag=\"latest\"",
        ];
        for value in images.iter().chain(values) {
            arguments.extend(["--set-json", value]);
        }
        self.helm(&arguments)
    }

    /// Applies documents as a person does, and returns what kubectl said.
    pub fn apply(&self, documents: &str) -> anyhow::Result<String> {
        self.kubectl_with(&["apply", "-f", "-"], documents)
    }

    /// A service account of the namespace `nodestats` that these roles are bound to.
    ///
    /// # Panics
    /// Where it cannot be made.
    pub fn let_read(&self, account: &str, roles: &[&str]) {
        let_read(&self.cluster, account, roles);
    }

    /// A file with a token of a service account (of the namespace `nodestats`) for nodestats' API,
    /// bound to this pod where one is named.
    ///
    /// # Panics
    /// Where the API server makes none.
    pub fn token(&self, account: &str, pod: Option<&str>) -> PathBuf {
        token(&self.cluster, self.folder.path(), account, pod)
    }

    /// A kubeconfig of a service account of the namespace `nodestats`.
    ///
    /// # Panics
    /// Where the API server makes no token.
    pub fn credentials(&self, account: &str) -> PathBuf {
        let create = ["create", "token", account, "-n", "nodestats"];
        let token = self.cluster.kubectl(&create).expect("a token");
        let path = self.folder.path().join(format!("{account}.kubeconfig"));
        kubeconfig_with(&self.cluster, path, token.trim())
    }

    /// A kubeconfig of a service account of the namespace `nodestats` with the token that a pod of it
    /// has for the cluster's own API.
    ///
    /// # Panics
    /// Where the API server makes none.
    pub fn credentials_of_pod(&self, account: &str, pod: &str) -> PathBuf {
        let bound = format!("--bound-object-name={pod}");
        let create = ["create", "token", account, "-n", "nodestats"];
        let token = [&create[..], &["--bound-object-kind=Pod", &bound]].concat();
        let token = self.cluster.kubectl(&token).expect("a token");
        let path = self.folder.path().join(format!("{pod}.kubeconfig"));
        kubeconfig_with(&self.cluster, path, token.trim())
    }

    /// A client for the API's pod, which this machine has a route to, that shows the token in this
    /// file.
    pub fn api(&self, token: &Path) -> anyhow::Result<Client> {
        let get = |what: &[&str], path: &str| {
            let path = format!("jsonpath={path}");
            self.kubectl(&[&["get", "-n", "nodestats", "-o", &path], what].concat())
        };
        let api = ["pod", "-l", "app.kubernetes.io/component=api"];
        let ip: IpAddr = get(&api, "{.items[0].status.podIP}")?.parse()?;
        let authorities = get(&["configmap", "nodestats-ca"], "{.data.ca\\.crt}")?;
        let client = Client::new("https://nodestats-api.nodestats.svc:8443", PATIENCE)?;
        let client = client.trust_at(authorities.as_bytes(), SocketAddr::new(ip, 8443))?;
        Ok(client.with_token_file(token.to_owned())?)
    }

    /// What `kubectl nodestats get` answers to these words as JSON, or what it says on standard error.
    ///
    /// # Panics
    /// Where an answer is no JSON.
    pub fn ask(&self, words: &[&str]) -> Result<serde_json::Value, String> {
        self.plugin("get", words)
    }

    /// The same of `kubectl nodestats events`.
    ///
    /// # Panics
    /// Where an answer is no JSON.
    pub fn events(&self, words: &[&str]) -> Result<serde_json::Value, String> {
        self.plugin("events", words)
    }

    /// The same of `kubectl nodestats top`.
    ///
    /// # Panics
    /// Where an answer is no JSON.
    pub fn top(&self, words: &[&str]) -> Result<serde_json::Value, String> {
        self.plugin("top", words)
    }

    fn plugin(&self, command: &str, words: &[&str]) -> Result<serde_json::Value, String> {
        let kubeconfig = self.kubeconfig().display().to_string();
        let mut arguments = vec!["--kubeconfig", &kubeconfig, command, "-o", "json"];
        arguments.extend(words);
        let run = Program::run("kubectl-nodestats", &arguments);
        if run.status.success() {
            Ok(serde_json::from_str(&run.stdout).expect("JSON"))
        } else {
            Err(run.stderr)
        }
    }

    /// Makes an image of one program in C, static, and imports it into every node.
    ///
    /// # Panics
    /// Where it cannot be compiled or imported.
    pub fn load_source(&self, source: &Path, reference: &str) {
        // Called as its source is: by that name its processes are found.
        let name = source.file_stem().expect("a file");
        let program = self.folder.path().join(name);
        let mut compiler = std::process::Command::new("cc");
        compiler.args(["-static", "-O1", "-s", "-o"]);
        let status = compiler.arg(&program).arg(source).status().expect("cc");
        assert!(status.success());
        self.load_program(&program, reference).expect("imported");
    }

    /// Kills (SIGKILL) the processes of a node that run this program, in containers or not.
    pub fn kill_inside(&self, node: &str, program: &str) -> anyhow::Result<()> {
        let mut command = self.inside(node)?;
        let status = command
            .args(["pkill", "-KILL", "-f", &format!("^/{program}")])
            .status()?;
        anyhow::ensure!(status.success(), "no process of {node} runs {program}");
        Ok(())
    }
}

impl std::ops::Deref for FullCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

fn let_read(cluster: &Cluster, account: &str, roles: &[&str]) {
    let mut documents = vec![serde_json::json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": account, "namespace": "nodestats"},
    })];
    documents.extend(roles.iter().map(|role| {
        serde_json::json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": format!("{account}-{role}")},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role,
            },
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "nodestats"}],
        })
    }));
    for document in documents {
        let apply = ["apply", "-f", "-"];
        let applied = cluster.kubectl_with(&apply, &document.to_string());
        applied.expect("applied");
    }
}

fn token(cluster: &Cluster, folder: &Path, account: &str, pod: Option<&str>) -> PathBuf {
    let mut arguments = vec!["create", "token", account, "-n", "nodestats"];
    arguments.push("--audience=nodestats");
    let name = pod.map(|pod| format!("--bound-object-name={pod}"));
    if let Some(name) = &name {
        arguments.extend(["--bound-object-kind=Pod", name]);
    }
    let token = cluster.kubectl(&arguments).expect("a token");
    let file = folder.join(format!("{account}.{}", pod.unwrap_or("token")));
    std::fs::write(&file, token.trim()).expect("written");
    file
}

/// Installs what every cluster with nodestats has: the definition, the namespace, the RBAC, and the
/// programs' objects, which nobody runs on a control plane alone.
fn install(cluster: &Cluster) {
    let manifests = root().join("manifests").display().to_string();
    // Twice: the definition and the namespace are there before what needs them.
    cluster
        .kubectl(&["apply", "-f", &manifests])
        .expect("the manifests");
    install_definition(cluster);
}

fn install_definition(cluster: &Cluster) {
    let crd = root().join("crds").display().to_string();
    cluster
        .kubectl(&["apply", "-f", &crd])
        .expect("the definition");
    let wait = [
        "wait",
        "--for=condition=Established",
        "crd/monitorednodes.nodestats.dev",
    ];
    cluster
        .kubectl(&wait)
        .expect("the definition is established");
}
