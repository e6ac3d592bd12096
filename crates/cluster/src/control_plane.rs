//! etcd, kube-apiserver, and in a full cluster kube-controller-manager and kube-scheduler.

use std::net::TcpListener;
use std::process::Command;

use anyhow::Context as _;

use crate::certificates::{Authority, service_account_keys};
use crate::process;
use crate::state::State;
use crate::{Binaries, network};

/// Services' addresses. Each node has a network of its own, so two clusters may share them.
pub(crate) const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The first of them is the API server's.
const KUBERNETES_SERVICE: &str = "10.96.0.1";

/// File name of the cluster's certificate authority.
pub(crate) const CA: &str = "ca";
/// Its common name.
pub(crate) const CA_NAME: &str = "kubernetes";

/// Where the control plane listens.
pub(crate) struct Endpoint {
    ip: String,
    api: u16,
    etcd: u16,
    etcd_peer: u16,
}

impl Endpoint {
    /// Ports of loopback that are free now.
    pub(crate) fn loopback() -> anyhow::Result<Self> {
        let free = || TcpListener::bind("127.0.0.1:0").context("loopback has a free port");
        // Held together, so that they differ.
        let held = [free()?, free()?, free()?];
        let [api, etcd, etcd_peer] = held
            .each_ref()
            .map(|port| port.local_addr().map_or(0, |at| at.port()));
        Ok(Self {
            ip: "127.0.0.1".to_owned(),
            api,
            etcd,
            etcd_peer,
        })
    }

    /// The usual ports of an address that this cluster has for itself.
    pub(crate) fn at(ip: &str) -> Self {
        Self {
            ip: ip.to_owned(),
            api: 6443,
            etcd: 2379,
            etcd_peer: 2380,
        }
    }

    fn url(&self) -> String {
        format!("https://{}:{}", self.ip, self.api)
    }
}

/// Starts etcd and kube-apiserver, and waits until that is ready.
pub(crate) fn start(
    state: &State,
    binaries: &Binaries,
    endpoint: &Endpoint,
    tracing: bool,
) -> anyhow::Result<()> {
    certificates(state, endpoint)?;
    start_etcd(state, binaries, endpoint)?;
    start_api_server(state, binaries, endpoint, tracing)?;
    process::wait_for("the API server", || {
        let mut kubectl = binaries.command("kubectl");
        kubectl
            .arg("--kubeconfig")
            .arg(state.path("admin.kubeconfig"));
        process::output(kubectl.args(["get", "--raw", "/readyz"]), "").ok()
    })?;
    Ok(())
}

fn certificates(state: &State, endpoint: &Endpoint) -> anyhow::Result<()> {
    let ca = Authority::new(state, CA, CA_NAME)?;
    let front = Authority::new(state, "front-ca", "front-proxy")?;
    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "localhost",
        "127.0.0.1",
        KUBERNETES_SERVICE,
        &endpoint.ip,
    ];
    ca.leaf(state, "apiserver", (None, "kube-apiserver"), &names)?;
    ca.leaf(
        state,
        "kubelet-client",
        (Some("system:masters"), "kubelet-client"),
        &[],
    )?;
    front.leaf(state, "front-proxy", (None, "front-proxy-client"), &[])?;
    ca.leaf(state, "admin", (Some("system:masters"), "admin"), &[])?;
    ca.kubeconfig(state, "admin", &endpoint.url())?;
    for component in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
        ca.leaf(
            state,
            component,
            (None, &format!("system:{component}")),
            &[],
        )?;
        ca.kubeconfig(state, component, &endpoint.url())?;
    }
    std::fs::write(state.path("server"), endpoint.url())?;
    service_account_keys(state)
}

fn start_etcd(state: &State, binaries: &Binaries, endpoint: &Endpoint) -> anyhow::Result<()> {
    let (clients, peers) = (
        format!("http://{}:{}", endpoint.ip, endpoint.etcd),
        format!("http://{}:{}", endpoint.ip, endpoint.etcd_peer),
    );
    let mut etcd = binaries.command("etcd");
    etcd.arg("--data-dir").arg(state.path("etcd"));
    etcd.args([
        "--listen-client-urls",
        &clients,
        "--advertise-client-urls",
        &clients,
    ]);
    etcd.args([
        "--listen-peer-urls",
        &peers,
        "--initial-advertise-peer-urls",
        &peers,
    ]);
    etcd.args(["--initial-cluster", &format!("default={peers}")]);
    // What a cluster for tests holds need not outlive a power cut.
    etcd.args(["--unsafe-no-fsync", "--log-level=warn"]);
    run(state, &mut etcd, "etcd")
}

/// What the API server reads where it is to trace (KEP-647). Nobody listens there: it samples nothing.
const TRACING: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\n\
                       endpoint: 127.0.0.1:4317\nsamplingRatePerMillion: 0\n";

fn start_api_server(
    state: &State,
    binaries: &Binaries,
    endpoint: &Endpoint,
    tracing: bool,
) -> anyhow::Result<()> {
    let mut server = binaries.command("kube-apiserver");
    server.current_dir(state.directory());
    server.arg(format!(
        "--etcd-servers=http://{}:{}",
        endpoint.ip, endpoint.etcd
    ));
    server.arg(format!("--bind-address={}", endpoint.ip));
    server.arg(format!("--advertise-address={}", endpoint.ip));
    server.arg(format!("--secure-port={}", endpoint.api));
    server.arg(format!("--service-cluster-ip-range={SERVICE_CIDR}"));
    server.args([
        "--tls-cert-file=pki/apiserver.crt",
        "--tls-private-key-file=pki/apiserver.key",
        "--client-ca-file=pki/ca.crt",
        "--kubelet-client-certificate=pki/kubelet-client.crt",
        "--kubelet-client-key=pki/kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-account-key-file=pki/sa.pub",
        "--service-account-signing-key-file=pki/sa.key",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--requestheader-client-ca-file=pki/front-ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--enable-aggregator-routing=true",
        "--proxy-client-cert-file=pki/front-proxy.crt",
        "--proxy-client-key-file=pki/front-proxy.key",
    ]);
    if tracing {
        std::fs::write(state.path("tracing.yaml"), TRACING)?;
        server.arg("--tracing-config-file=tracing.yaml");
    }
    if network::is_loopback(&endpoint.ip) {
        // The Service `kubernetes` cannot point to loopback, and nobody here would use it.
        server.arg("--endpoint-reconciler-type=none");
    }
    run(state, &mut server, "kube-apiserver")
}

/// Starts what a cluster with nodes needs beyond its API server.
pub(crate) fn start_controllers(state: &State, binaries: &Binaries) -> anyhow::Result<()> {
    for (component, extra) in [
        (
            "kube-controller-manager",
            &[
                "--service-account-private-key-file=pki/sa.key",
                "--root-ca-file=pki/ca.crt",
                "--use-service-account-credentials=true",
                // A test that stops a kubelet need not wait for most of a minute.
                "--node-monitor-grace-period=20s",
                "--flex-volume-plugin-dir=volume-plugins",
            ][..],
        ),
        ("kube-scheduler", &[]),
    ] {
        let mut command = binaries.command(component);
        command.current_dir(state.directory()).args(extra);
        for flag in [
            "kubeconfig",
            "authentication-kubeconfig",
            "authorization-kubeconfig",
        ] {
            command.arg(format!("--{flag}={component}.kubeconfig"));
        }
        // No port: two clusters would want the same, and nobody asks.
        command.args(["--leader-elect=false", "--secure-port=0"]);
        run(state, &mut command, component)?;
    }
    Ok(())
}

fn run(state: &State, command: &mut Command, program: &str) -> anyhow::Result<()> {
    process::start(command, state.directory(), &state.log(program))
}
