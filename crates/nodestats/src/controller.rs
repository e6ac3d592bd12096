//! Wiring of `nodestats controller`.

use anyhow::Context as _;
use nodestats_runtime::Supervisor;

use crate::arguments::Controller;

/// Where a pod finds its own namespace (the service account's volume).
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// `nodestats controller`.
pub(crate) async fn run(arguments: Controller) -> anyhow::Result<()> {
    let namespace = match arguments.namespace {
        Some(namespace) => namespace,
        None => std::fs::read_to_string(NAMESPACE_FILE)
            .context("outside a pod --namespace says where the Lease is")?
            .trim()
            .to_owned(),
    };
    let identity = match arguments.identity {
        Some(identity) => identity,
        None => nodestats_runtime::hostname(),
    };
    let defaults = serde_json::from_str(&arguments.node_defaults)
        .context("--node-defaults is no JSON object")?;
    let config = nodestats_controller::Config {
        api: arguments.api,
        namespace,
        identity,
        poll: arguments.poll,
        lost_after: arguments.lost_after,
        agent_patience: arguments.agent_patience,
        defaults,
        agent_nodes: arguments.agent_nodes,
        admin: arguments.admin_listen,
    };
    let mut supervisor = Supervisor::default();
    let stop = supervisor.stop_token();
    supervisor.spawn("the controller", nodestats_controller::run(config, stop));
    supervisor.run(nodestats_runtime::shutdown_signal()).await
}
