//! Wiring of the listener for the cluster's front proxy: what it needs stands in two objects of the
//! cluster, and is followed.

use std::collections::BTreeMap;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use nodestats_api::aggregated::{Front, FrontError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Who the front proxy is: the API server writes it there for whoever it forwards to.
const AUTHENTICATION: (&str, &str) = ("kube-system", "extension-apiserver-authentication");

/// The two objects as they were seen last.
#[derive(Default)]
struct Seen {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authentication: BTreeMap<String, String>,
}

impl Seen {
    fn front(&self) -> Result<Front, FrontError> {
        Front::new(&self.certificate, &self.key, &self.authentication)
    }
}

/// Follows both until `stop`.
pub(crate) async fn follow(
    secret: String,
    front: watch::Sender<Option<Front>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    nodestats_runtime::tls::use_ring();
    let namespace = crate::controller::own_namespace()?;
    let client = Client::try_default().await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let maps: Api<ConfigMap> = Api::namespaced(client, AUTHENTICATION.0);
    let mut secrets = watcher::watch_object(secrets, &secret)
        .default_backoff()
        .boxed();
    let mut maps = watcher::watch_object(maps, AUTHENTICATION.1)
        .default_backoff()
        .boxed();
    let mut seen = Seen::default();
    let mut told = None;
    loop {
        tokio::select! {
            Some(change) = secrets.next() => match change {
                Ok(object) => {
                    let mut data = object.and_then(|secret| secret.data).unwrap_or_default();
                    let mut take = |name| data.remove(name).map(|bytes| bytes.0).unwrap_or_default();
                    (seen.certificate, seen.key) = (take("tls.crt"), take("tls.key"));
                }
                Err(error) => tracing::warn!(%error, secret, "the Secret cannot be followed"),
            },
            Some(change) = maps.next() => match change {
                Ok(object) => {
                    seen.authentication = object.and_then(|map| map.data).unwrap_or_default();
                }
                Err(error) => tracing::warn!(%error, "the front proxy's authority cannot be followed"),
            },
            () = stop.cancelled() => return Ok(()),
        }
        match seen.front() {
            Ok(new) => {
                told = None;
                front.send_replace(Some(new));
                tracing::info!("the cluster's front proxy is let in");
            }
            Err(error) => {
                let text = error.to_string();
                if told.as_ref() != Some(&text) {
                    tracing::info!(reason = text, "the cluster's front proxy is not let in yet");
                    told = Some(text);
                }
            }
        }
    }
}

/// A front that is not known yet, and where to say it.
pub(crate) fn unknown() -> (watch::Sender<Option<Front>>, watch::Receiver<Option<Front>>) {
    watch::channel(None)
}
