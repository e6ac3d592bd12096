//! Wiring of TLS in a cluster: the API's certificate stands in a Secret, who the front proxy is in a
//! `ConfigMap`, and both are followed while they change.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use nodestats_api::aggregated::{Front, FrontError};
use nodestats_api::{Certificate, CertificateEnd, TlsError};
use rustls::ServerConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Who the front proxy is: the API server writes it there for whoever it forwards to.
const AUTHENTICATION: (&str, &str) = ("kube-system", "extension-apiserver-authentication");

/// What the listeners serve with, as it is known now.
#[derive(Default)]
pub(crate) struct Known {
    /// For whoever connects.
    pub(crate) anybody: watch::Sender<Option<Arc<ServerConfig>>>,
    /// For the front proxy; nobody follows it where there is no such listener.
    pub(crate) front: watch::Sender<Option<Front>>,
    /// When the certificate ends.
    pub(crate) end: CertificateEnd,
}

/// The objects as they were seen last.
#[derive(Default)]
struct Seen {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authentication: BTreeMap<String, String>,
}

impl Seen {
    fn certificate(&self) -> Result<(Certificate, Arc<ServerConfig>), TlsError> {
        let certificate = Certificate::new(&self.certificate, &self.key)?;
        let anybody = certificate.for_anybody()?;
        Ok((certificate, anybody))
    }
}

/// Follows the Secret, and where the front proxy is to be let in what says who that is, until
/// `stop`. What does not do changes nothing: what was known before is served on.
pub(crate) async fn follow(
    secret: String,
    known: Known,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    nodestats_runtime::tls::use_ring();
    let namespace = crate::controller::own_namespace()?;
    let client = Client::try_default().await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let mut secrets = watcher::watch_object(secrets, &secret)
        .default_backoff()
        .boxed();
    let mut maps: BoxStream<'_, _> = if known.front.receiver_count() > 0 {
        let maps: Api<ConfigMap> = Api::namespaced(client, AUTHENTICATION.0);
        watcher::watch_object(maps, AUTHENTICATION.1)
            .default_backoff()
            .boxed()
    } else {
        stream::pending().boxed()
    };
    let mut seen = Seen::default();
    let mut told = [None, None];
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
        let [certificate_told, front_told] = &mut told;
        let certificate = match seen.certificate() {
            Ok((certificate, anybody)) => {
                known.end.set(certificate.end().unwrap_or_default());
                known.anybody.send_replace(Some(anybody));
                tell(certificate_told, "the certificate is served");
                certificate
            }
            Err(error) => {
                tell(certificate_told, &format!("no certificate yet: {error}"));
                continue;
            }
        };
        if known.front.receiver_count() > 0 {
            match Front::new(&certificate, &seen.authentication) {
                Ok(front) => {
                    known.front.send_replace(Some(front));
                    tell(front_told, "the cluster's front proxy is let in");
                }
                Err(error) => tell(front_told, &no_front(&error)),
            }
        }
    }
}

fn no_front(error: &FrontError) -> String {
    format!("the cluster's front proxy is not let in yet: {error}")
}

/// One line for each change.
fn tell(told: &mut Option<String>, text: &str) {
    if told.as_deref() != Some(text) {
        tracing::info!("{text}");
        *told = Some(text.to_owned());
    }
}
