//! The way through a cluster: the person's own kubeconfig, and a port-forward to the API's pod.
//!
//! The pod has a listener on its own loopback for this. What is forwarded never leaves this process:
//! there is no local port that others on this machine could use.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt as _};
use nodestats_wire::client;

/// Which cluster, and as whom: what kubectl calls so.
#[derive(Debug, Args)]
pub(crate) struct Access {
    /// The kubeconfig [default: KUBECONFIG, else ~/.kube/config, else the pod's own].
    #[arg(long, value_name = "FILE", global = true)]
    kubeconfig: Option<PathBuf>,

    /// The context of the kubeconfig.
    #[arg(long, value_name = "NAME", global = true)]
    context: Option<String>,

    /// The cluster of the kubeconfig.
    #[arg(long, value_name = "NAME", global = true)]
    cluster: Option<String>,

    /// The user of the kubeconfig.
    #[arg(long, value_name = "NAME", global = true)]
    user: Option<String>,

    /// Impersonate this user.
    #[arg(long = "as", value_name = "NAME", global = true)]
    as_user: Option<String>,

    /// Impersonate this group; may be given more than once.
    #[arg(long, value_name = "NAME", global = true, requires = "as_user")]
    as_group: Vec<String>,

    /// The namespace that nodestats is installed in.
    #[arg(
        short,
        long,
        env = "NODESTATS_NAMESPACE",
        value_name = "NAME",
        default_value = "nodestats",
        global = true
    )]
    namespace: String,
}

/// The API's pods.
const PODS: &str = "app.kubernetes.io/name=nodestats,app.kubernetes.io/component=api";
/// Their listener for port-forwards.
const PORT: u16 = 8081;
/// One request to the API server has this long.
const PATIENCE: Duration = Duration::from_secs(10);

impl Access {
    /// Where nodestats is installed.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Asks the API for `path`, and returns the body as it came.
    pub(crate) async fn get(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> anyhow::Result<Vec<u8>> {
        let client = self.client().await?;
        let pods: Api<Pod> = Api::namespaced(client, &self.namespace);
        let pod = self.pod(&pods).await?;
        let mut forwarder = timely(pods.portforward(&pod, &[PORT]))
            .await?
            .map_err(|error| self.explain(error, "create", "pods/portforward"))?;
        let stream = forwarder
            .take_stream(PORT)
            .context("the API server forwards no port")?;
        let refused = forwarder.take_error(PORT);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .context("the port-forward broke off")?;
        let connection = async {
            let _ = connection.await;
        };
        let mut target = path.to_owned();
        if !query.is_empty() {
            let query = serde_urlencoded::to_string(query).context("pairs of texts encode")?;
            target = format!("{path}?{query}");
        }
        let request = hyper::Request::get(target)
            .header(hyper::header::HOST, "localhost")
            .header(hyper::header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let (parts, body) = response.into_parts();
            Ok::<_, hyper::Error>((parts.status, body.collect().await?.to_bytes()))
        };
        let answered = async { tokio::join!(answer, connection).0 };
        let (status, body) = match tokio::time::timeout(crate::PATIENCE, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                let said = match refused {
                    Some(refused) => tokio::time::timeout(Duration::from_secs(1), refused).await,
                    None => Ok(None),
                };
                let said = said.ok().flatten().unwrap_or_else(|| error.to_string());
                bail!(
                    "the pod {pod} does not answer to port-forwards: {}\nhint: the value \
                     api.portForward.enabled of the chart turns that on",
                    said.trim()
                );
            }
            Err(_) => bail!("the pod {pod} did not answer within {:?}", crate::PATIENCE),
        };
        client::answer(&format!("the pod {pod}"), status.as_u16(), body.to_vec())
            .map_err(crate::with_hint)
    }

    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        nodestats_runtime::tls::use_ring();
        let options = KubeConfigOptions {
            context: self.context.clone(),
            cluster: self.cluster.clone(),
            user: self.user.clone(),
        };
        let chosen = self.context.is_some() || self.cluster.is_some() || self.user.is_some();
        let mut config = match &self.kubeconfig {
            Some(file) => {
                let kubeconfig = Kubeconfig::read_from(file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?
            }
            None if chosen => kube::Config::from_kubeconfig(&options).await?,
            None => kube::Config::infer().await.context(
                "neither a server nor a cluster: give --server URL, or a kubeconfig by \
                 --kubeconfig or KUBECONFIG",
            )?,
        };
        config.connect_timeout = Some(PATIENCE);
        if self.as_user.is_some() {
            config.auth_info.impersonate.clone_from(&self.as_user);
            config.auth_info.impersonate_groups =
                (!self.as_group.is_empty()).then(|| self.as_group.clone());
        }
        Ok(Client::try_from(config)?)
    }

    /// A pod of the API that is ready.
    pub(crate) async fn pod(&self, pods: &Api<Pod>) -> anyhow::Result<String> {
        let params = ListParams::default().labels(PODS);
        let listed = timely(pods.list(&params)).await?;
        let listed = listed.map_err(|error| self.explain(error, "list", "pods"))?;
        let is_ready = |pod: &&Pod| {
            let conditions = pod
                .status
                .iter()
                .flat_map(|status| status.conditions.iter());
            let mut conditions = conditions.flatten();
            conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
        };
        if let Some(pod) = listed.items.iter().find(is_ready) {
            return Ok(pod.name_any());
        }
        match listed.items.first() {
            Some(pod) => bail!(
                "the pod {} of nodestats' API is not ready yet: kubectl describe pod -n {} {}",
                pod.name_any(),
                self.namespace,
                pod.name_any()
            ),
            None => bail!(
                "there is no nodestats in the namespace {}; --namespace names another",
                self.namespace
            ),
        }
    }

    /// What a person can do about an error of the API server.
    fn explain(&self, error: kube::Error, verb: &str, resource: &str) -> anyhow::Error {
        match error {
            kube::Error::Api(status) if status.code == 403 => anyhow::anyhow!(
                "{}\nhint: you need a Role in the namespace {} that allows {verb} of {resource}",
                status.message,
                self.namespace
            ),
            kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
            error => anyhow::Error::from(error).context("the cluster's API server does not answer"),
        }
    }
}

/// A request that takes no longer than requests may.
pub(crate) async fn timely<T>(request: impl Future<Output = T>) -> anyhow::Result<T> {
    let answer = tokio::time::timeout(PATIENCE, request).await;
    answer.context("the cluster's API server does not answer")
}
