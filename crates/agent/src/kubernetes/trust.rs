//! Whom the agent trusts to be its server: the authorities in a `ConfigMap`, which is watched, since a
//! mounted one lags behind by more than a minute.

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use nodestats_wire::client::Client;
use tokio_util::sync::CancellationToken;

/// Its key.
const AUTHORITIES: &str = "ca.crt";

/// Keeps `server` trusting what the `ConfigMap` (`NAMESPACE/NAME`) says, until `stop`. Until it says
/// something, and while it cannot be read, samples wait.
pub(crate) async fn follow(map: &str, server: Client, stop: CancellationToken) {
    tokio::select! {
        () = keep(map, &server) => {}
        () = stop.cancelled() => {}
    }
}

async fn keep(map: &str, server: &Client) {
    let (namespace, name) = map.split_once('/').unwrap_or(("default", map));
    let client = match super::client().await {
        Ok(client) => client,
        Err(error) => {
            // The member says so too, again and again.
            tracing::warn!(%error, "nobody says whom to trust");
            return std::future::pending().await;
        }
    };
    let maps: Api<ConfigMap> = Api::namespaced(client, namespace);
    let mut changes = watcher::watch_object(maps, name).default_backoff().boxed();
    let mut told = None;
    while let Some(change) = changes.next().await {
        let trusted = match change {
            Ok(found) => {
                let mut data = found.and_then(|map| map.data).unwrap_or_default();
                let authorities = data.remove(AUTHORITIES).unwrap_or_default();
                server
                    .trust(authorities.as_bytes())
                    .map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        let text = trusted.err();
        match &text {
            None => tracing::info!(config_map = map, "the server's authorities are known"),
            Some(error) if told.as_ref() != Some(&text) => {
                tracing::warn!(error, config_map = map, "whom to trust is not known anew");
            }
            Some(_) => {}
        }
        told = Some(text);
    }
}
