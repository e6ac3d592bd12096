//! Wiring of `nodestats controller`.

use anyhow::Context as _;
use nodestats_controller::{Lifetimes, Serving};
use nodestats_runtime::Supervisor;
use nodestats_runtime::metrics::Registry;

use crate::arguments::Controller;

/// Where a pod finds its own namespace (the service account's volume).
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// The namespace of the pod that this runs in.
pub(crate) fn own_namespace() -> anyhow::Result<String> {
    let text = std::fs::read_to_string(NAMESPACE_FILE)
        .with_context(|| format!("cannot read {NAMESPACE_FILE}"))?;
    Ok(text.trim().to_owned())
}

/// `nodestats controller`.
pub(crate) async fn run(arguments: Controller, registry: Registry) -> anyhow::Result<()> {
    let namespace = match arguments.namespace {
        Some(namespace) => namespace,
        None => own_namespace().context("outside a pod --namespace says where the Lease is")?,
    };
    let identity = match arguments.identity {
        Some(identity) => identity,
        None => nodestats_runtime::hostname(),
    };
    let defaults = serde_json::from_str(&arguments.node_defaults)
        .context("--node-defaults is no JSON object")?;
    anyhow::ensure!(
        arguments.authority_published * 4 <= arguments.certificate_lifetime,
        "--authority-published is a fourth of --certificate-lifetime at most: a certificate that is to be \
         renewed meanwhile waits for the new authority to be known"
    );
    let serving = arguments.serving_secret.zip(arguments.ca_config_map);
    let serving = serving.map(|(secret, ca_config_map)| Serving {
        namespace: namespace.clone(),
        secret,
        ca_config_map,
        foreign_certificates: arguments.foreign_certificates,
        aggregated: arguments.aggregated,
        lifetimes: Lifetimes {
            authority: arguments.authority_lifetime,
            certificate: arguments.certificate_lifetime,
            published: arguments.authority_published,
        },
    });
    let config = nodestats_controller::Config {
        api: arguments.api,
        api_token_file: arguments.api_token_file,
        namespace,
        identity,
        poll: arguments.poll,
        lost_after: arguments.lost_after,
        agent_patience: arguments.agent_patience,
        defaults,
        agent_nodes: arguments.agent_nodes,
        pod_labels: arguments.pods,
        serving,
        admin: arguments.admin_listen,
        registry,
    };
    let shutdown = nodestats_runtime::shutdown_signal()?;
    let mut supervisor = Supervisor::default();
    let stop = supervisor.stop_token();
    supervisor.spawn("the controller", nodestats_controller::run(config, stop));
    supervisor.run(shutdown).await
}
