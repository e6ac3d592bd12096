//! The ways through a cluster, by the person's own kubeconfig: the cluster's own API, which nodestats
//! is a part of, or a port-forward to its pod.
//!
//! The pod has a listener on its own loopback for that. What is forwarded never leaves this process:
//! there is no local port that others on this machine could use.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt as _};
use nodestats_wire::client::Attempt;
use nodestats_wire::v1::NodeView;
use nodestats_wire::{client, routes};
use tracing::Instrument as _;

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

    /// The way to nodestats: the cluster's own API (RBAC says who may see what), a port-forward, or
    /// the first that is there.
    #[arg(long, value_enum, value_name = "WAY", default_value_t = Via::Auto, global = true)]
    via: Via,

    /// The namespace that nodestats is installed in.
    #[arg(
        long,
        env = "NODESTATS_NAMESPACE",
        value_name = "NAME",
        default_value = "nodestats",
        global = true
    )]
    nodestats_namespace: String,
}

/// What a request by the cluster's API is called.
fn template(target: &str) -> String {
    format!("{}{}", routes::AGGREGATED, routes::template(target))
}

/// Ways to nodestats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Via {
    /// The cluster's own API.
    Aggregation,
    /// A port-forward.
    PortForward,
    /// The first of them that is there.
    Auto,
}

/// The API's pods.
const PODS: &str = "app.kubernetes.io/name=nodestats,app.kubernetes.io/component=api";
/// Their listener for port-forwards.
const PORT: u16 = 8081;
/// Entries of history in one request by the cluster's API.
const PAGE: u32 = 1000;
/// One request to the API server has this long.
const PATIENCE: Duration = Duration::from_secs(10);

impl Access {
    /// Where nodestats is installed.
    pub(crate) fn namespace(&self) -> &str {
        &self.nodestats_namespace
    }

    /// Whether the cluster's own API is a way that this person wants.
    pub(crate) fn may_aggregate(&self) -> bool {
        self.via != Via::PortForward
    }

    /// Asks the API for `path`, and returns the body as it came.
    pub(crate) async fn get(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> anyhow::Result<Vec<u8>> {
        let target = target(path, query)?;
        let client = self.client().await?;
        if self.may_aggregate()
            && let Some(page) = self.aggregated(&client, &target).await?
        {
            return Ok(page.body);
        }
        self.forwarded(client, &target).await
    }

    /// The same for a history, of any length: the API server cuts every request off after a minute,
    /// so that it is asked page by page.
    pub(crate) async fn get_history(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> anyhow::Result<Vec<u8>> {
        let client = self.client().await?;
        if !self.may_aggregate() {
            return self.forwarded(client, &target(path, query)?).await;
        }
        let limited = [query, &[("limit", PAGE.to_string())]].concat();
        let mut next = Some(target(path, &limited)?);
        let mut pages = Vec::new();
        while let Some(target) = next {
            let Some(page) = self.aggregated(&client, &target).await? else {
                return self.get(path, query).await;
            };
            pages.push(page.body);
            next = page.next;
        }
        Ok(joined(&pages))
    }

    /// By the cluster's own API; `None` where nodestats is no part of it and another way may be.
    async fn aggregated(&self, client: &Client, target: &str) -> anyhow::Result<Option<Page>> {
        let (target, meant) = canonical(client, target).await;
        let mut request = http::Request::get(format!("{}{target}", routes::AGGREGATED));
        if let Some(meant) = meant {
            request = request.header(routes::ADDRESS_HEADER, meant);
        }
        let attempt = Attempt::elsewhere("GET", &template(&target));
        for (name, value) in &attempt.span().in_scope(client::trace_headers) {
            request = request.header(name, value);
        }
        let request = request.body(Vec::new()).context("a path")?;
        let asked = async {
            let response = client.send(request.map(kube::client::Body::from)).await?;
            let (parts, body) = response.into_parts();
            let body = body.collect_bytes().await?;
            Ok::<_, kube::Error>((parts.status, next_page(&parts.headers), body))
        };
        let asked = asked.instrument(attempt.span());
        let answer = tokio::time::timeout(crate::PATIENCE, asked).await;
        match &answer {
            Ok(Ok((status, ..))) => attempt.answered(status.as_u16()),
            Ok(Err(_)) => attempt.failed("connect"),
            Err(_) => attempt.failed("timeout"),
        }
        let (status, next, body) = answer
            .context("the cluster's API server does not answer")?
            .map_err(|error| self.explain(error, "get", "resources of stats.nodestats.dev"))?;
        // What is an answer of the API server itself, and not of nodestats behind it.
        let own: Option<kube::core::Status> = (!status.is_success())
            .then(|| serde_json::from_slice(&body).ok())
            .flatten()
            .filter(|status: &kube::core::Status| status.code != 0);
        let absent = matches!(status.as_u16(), 404 | 503) && !is_problem(&body);
        if absent && self.via == Via::Auto {
            return Ok(None);
        }
        if let Some(own) = own.filter(|_| status.as_u16() == 403) {
            let resource = resource(&target);
            let verb = if is_list(&target) { "list" } else { "get" };
            let by_name = match address(&target) {
                Some(_) => "ask by the node's name (its address may not be looked up), and ",
                None => "",
            };
            bail!(
                "{}\nhint: {by_name}you need a rule that allows {verb} of {resource} in the API \
                 group {}",
                own.message,
                routes::GROUP
            );
        }
        if absent {
            bail!(
                "nodestats is no part of this cluster's API\n\
                 hint: kubectl get apiservice v1alpha1.stats.nodestats.dev says why; \
                 --via port-forward is another way"
            );
        }
        let body = client::answer("the cluster's API", status.as_u16(), body.to_vec());
        let body = body.map_err(crate::with_hint)?;
        Ok(Some(Page { body, next }))
    }

    /// By a port-forward to a pod of the API.
    async fn forwarded(&self, client: Client, target: &str) -> anyhow::Result<Vec<u8>> {
        let pods: Api<Pod> = Api::namespaced(client, &self.nodestats_namespace);
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
        let attempt = Attempt::elsewhere("GET", &routes::template(target));
        let mut request = hyper::Request::get(target)
            .header(hyper::header::HOST, "localhost")
            .header(hyper::header::CONNECTION, "close");
        for (name, value) in &attempt.span().in_scope(client::trace_headers) {
            request = request.header(name, value);
        }
        let request = request.body(Empty::<Bytes>::new())?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let (parts, body) = response.into_parts();
            Ok::<_, hyper::Error>((parts.status, body.collect().await?.to_bytes()))
        };
        let answered = async { tokio::join!(answer, connection).0 };
        let (status, body) = match tokio::time::timeout(crate::PATIENCE, answered).await {
            Ok(Ok(answer)) => {
                attempt.answered(answer.0.as_u16());
                answer
            }
            Ok(Err(error)) => {
                attempt.failed("connect");
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
            Err(_) => {
                attempt.failed("timeout");
                bail!("the pod {pod} did not answer within {:?}", crate::PATIENCE)
            }
        };
        client::answer(&format!("the pod {pod}"), status.as_u16(), body.to_vec())
            .map_err(crate::with_hint)
    }

    /// The namespace that the kubeconfig's context is about.
    pub(crate) async fn pods_namespace(&self) -> anyhow::Result<String> {
        Ok(self.config().await?.default_namespace)
    }

    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::try_from(self.config().await?)?)
    }

    async fn config(&self) -> anyhow::Result<kube::Config> {
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
        Ok(config)
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
                self.nodestats_namespace,
                pod.name_any()
            ),
            None => bail!(
                "there is no nodestats in the namespace {}; --nodestats-namespace names another",
                self.nodestats_namespace
            ),
        }
    }

    /// What a person can do about an error of the API server.
    fn explain(&self, error: kube::Error, verb: &str, resource: &str) -> anyhow::Error {
        match error {
            kube::Error::Api(status) if status.code == 403 => anyhow::anyhow!(
                "{}\nhint: you need a Role in the namespace {} that allows {verb} of {resource}",
                status.message,
                self.nodestats_namespace
            ),
            kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
            error => anyhow::Error::from(error).context("the cluster's API server does not answer"),
        }
    }
}

/// One answer, and the path below the group that leads on.
struct Page {
    body: Vec<u8>,
    next: Option<String>,
}

fn target(path: &str, query: &[(&str, String)]) -> anyhow::Result<String> {
    if query.is_empty() {
        return Ok(path.to_owned());
    }
    let query = serde_urlencoded::to_string(query).context("pairs of texts encode")?;
    Ok(format!("{path}?{query}"))
}

/// What `Link` leads on to (RFC 8288), as the API writes it.
fn next_page(headers: &http::HeaderMap) -> Option<String> {
    let link = headers.get(http::header::LINK)?.to_str().ok()?;
    let (target, relation) = link.strip_prefix('<')?.split_once('>')?;
    let target = target.strip_prefix(routes::AGGREGATED)?;
    (relation.trim() == "; rel=\"next\"").then(|| target.to_owned())
}

/// The objects of all pages as one: their entries are not looked at.
fn joined(pages: &[Vec<u8>]) -> Vec<u8> {
    let entries = pages.iter().map(|page| {
        let page = page.trim_ascii();
        let page = page.strip_prefix(b"{").unwrap_or(page);
        page.strip_suffix(b"}").unwrap_or(page)
    });
    let entries: Vec<&[u8]> = entries.filter(|entries| !entries.is_empty()).collect();
    [b"{", &*entries.join(&b','), b"}"].concat()
}

/// A request that takes no longer than requests may.
pub(crate) async fn timely<T>(request: impl Future<Output = T>) -> anyhow::Result<T> {
    let answer = tokio::time::timeout(PATIENCE, request).await;
    answer.context("the cluster's API server does not answer")
}

/// Whether an error is one of nodestats (RFC 9457), and not the API server's own.
fn is_problem(body: &[u8]) -> bool {
    serde_json::from_slice::<nodestats_wire::Problem>(body).is_ok()
}

/// The resource that RBAC sees in a path: `/nodes/a/proc/1` is `nodes/proc`.
fn resource(target: &str) -> String {
    let path = target.split('?').next().unwrap_or_default();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let (resource, part) = match &segments[..] {
        ["namespaces", _, resource, rest @ ..] | [resource, rest @ ..] => (*resource, rest.get(1)),
        [] => ("", None),
    };
    match part {
        Some(part) => format!("{resource}/{part}"),
        None => resource.to_owned(),
    }
}

/// Whether a path is asked of RBAC with the verb `list`.
fn is_list(target: &str) -> bool {
    let path = target.split('?').next().unwrap_or_default();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    matches!(
        &segments[..],
        ["nodes" | "pods"] | ["namespaces", _, "pods"]
    )
}

/// The path with a node's address replaced by its name, and that address: RBAC sees what stands in the
/// path, and rules name nodes. As it was, where that is no address of a node or the person may not look
/// it up.
async fn canonical(client: &Client, target: &str) -> (String, Option<String>) {
    let Some(address) = address(target) else {
        return (target.to_owned(), None);
    };
    let name = match name_by_object(client, address).await {
        Some(name) => Some(name),
        None => name_by_list(client, address).await,
    };
    match name {
        Some(name) => (target.replacen(address, &name, 1), Some(address.to_owned())),
        None => (target.to_owned(), None),
    }
}

/// The node in a path, where it is an address.
fn address(target: &str) -> Option<&str> {
    let rest = target.strip_prefix("/nodes/")?;
    let node = rest.split(['/', '?']).next()?;
    node.parse::<std::net::IpAddr>().is_ok().then_some(node)
}

/// By the one `MonitoredNode` that has the address. Its agent has written that: whether it is true
/// the API knows, which is told the address; where several say so nobody is believed.
async fn name_by_object(client: &Client, address: &str) -> Option<String> {
    let kind = kube::core::GroupVersionKind::gvk("nodestats.dev", "v1alpha1", "MonitoredNode");
    let objects: Api<kube::core::DynamicObject> =
        Api::all_with(client.clone(), &kube::core::ApiResource::from_gvk(&kind));
    let listed = timely(objects.list(&ListParams::default()))
        .await
        .ok()?
        .ok()?;
    let mut found = listed.items.into_iter().filter(|object| {
        let addresses = object.data["status"]["addresses"].as_array();
        addresses.is_some_and(|addresses| addresses.iter().any(|one| one == address))
    });
    let only = found.next().filter(|_| found.next().is_none());
    only.map(|object| object.name_any())
}

/// By what nodestats itself lists, for whoever may list nodes there.
async fn name_by_list(client: &Client, address: &str) -> Option<String> {
    let path = format!("{}{}?view=full", routes::AGGREGATED, routes::NODES);
    let request = http::Request::get(path).body(Vec::new()).ok()?;
    let nodes: Vec<NodeView> = timely(client.request(request)).await.ok()?.ok()?;
    let found = nodes
        .into_iter()
        .find(|node| node.ip == address || node.addresses.iter().any(|one| one == address));
    found.map(|node| node.hostname)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_become_one_object() {
        let page = |text: &str| text.as_bytes().to_vec();
        for (pages, whole) in [
            (vec!["{}"], "{}"),
            (
                vec!["{\"a\":{}}", "{}", "{\"b\":[1]}\n"],
                "{\"a\":{},\"b\":[1]}",
            ),
        ] {
            let pages: Vec<Vec<u8>> = pages.into_iter().map(page).collect();
            assert_eq!(joined(&pages), whole.as_bytes());
        }
    }

    #[test]
    fn a_link_leads_on_below_the_group() {
        let next = |link: String| {
            let mut headers = http::HeaderMap::new();
            headers.insert("link", link.parse().expect("a header"));
            next_page(&headers)
        };
        let below = "/nodes/a/cpu?from=1&limit=2";
        let link = |relation| format!("<{}{below}>; rel=\"{relation}\"", routes::AGGREGATED);
        assert_eq!(next(link("next")).as_deref(), Some(below));
        assert_eq!(next(link("prev")), None);
        assert_eq!(next(format!("<{below}>; rel=\"next\"")), None);
    }

    #[test]
    fn an_address_in_a_path_is_found() {
        for (target, found) in [
            ("/nodes/192.168.2.10/cpu?from=1", Some("192.168.2.10")),
            ("/nodes/fd00::1?at=1", Some("fd00::1")),
            ("/nodes/node-1/cpu", None),
            ("/nodes?view=full", None),
        ] {
            assert_eq!(address(target), found, "{target}");
        }
    }

    #[test]
    fn rbac_sees_the_part_after_the_node() {
        for (target, seen) in [
            ("/nodes?view=full", "nodes"),
            ("/nodes/a", "nodes"),
            ("/nodes/a?from=0", "nodes"),
            ("/nodes/a/cpu", "nodes/cpu"),
            ("/nodes/a/proc/1?from=0", "nodes/proc"),
            ("/pods?node=a", "pods"),
            ("/namespaces/a/pods?view=full", "pods"),
            ("/namespaces/a/pods/b", "pods"),
            ("/namespaces/a/pods/b/cpu", "pods/cpu"),
        ] {
            assert_eq!(resource(target), seen, "{target}");
        }
    }
}
