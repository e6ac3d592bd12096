//! Pods: the controller tells of them, people ask about them, live or gone.

mod list;
mod selector;

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, State};
use axum::response::Response;
use http::request::Parts;
use http::{StatusCode, Uri};
use nodestats_core::life::When;
use nodestats_core::pod;
use nodestats_wire::Timestamp;
use nodestats_wire::v1::{NodePods, NodeState, PodChanges, PodRecord};

use crate::access::{Identity, Target, Want};
use crate::answer::{Detail, PodDetail};
use crate::query::{NoQuery, OfPod, ProcessQuery, Samples, SpanQuery};
use crate::{ApiError, App, body, history, now, query};

pub(crate) use list::list;

/// Pods whose names one answer remembers: a node has hundreds.
const REMEMBERED: usize = 10_000;

/// A pod in a path: its namespace, or that and its name.
pub(crate) struct Named {
    pub(crate) namespace: String,
    pub(crate) name: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let path = path.map_err(|_| ApiError::malformed("the path is not UTF-8"))?;
        let mut segments = path.0.into_iter().map(|(_, segment)| segment);
        Ok(Self {
            namespace: segments.next().unwrap_or_default(),
            name: segments.next(),
        })
    }
}

/// `PUT /pods`: what the controller has seen.
pub(crate) async fn tell(
    State(app): State<App>,
    identity: Identity,
    uri: Uri,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let NoQuery {} = query::parse(uri.query())?;
    app.permit(&identity, Want::Control, Target::missing("", ""), "pods")
        .await?;
    let body = body::receive(&app, body).await?;
    let changes: PodChanges = body::json(&body.bytes)?;
    for (index, told) in changes.pods.iter().enumerate() {
        let empty = [
            ("uid", &told.pod.uid),
            ("namespace", &told.pod.namespace),
            ("name", &told.pod.name),
        ];
        if let Some((field, _)) = empty.into_iter().find(|(_, text)| text.is_empty()) {
            let field = format!("pods[{index}].pod.{field}");
            return Err(ApiError::field(&*field, format!("{field} is empty")));
        }
    }
    // Each is put together from what was told before.
    let _turn = app.pods.lock().await;
    app.store.save_pods(&changes.pods, &changes.gone).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// One pod, or a detail of it.
pub(crate) async fn detail(
    app: &App,
    identity: &Identity,
    named: Named,
    detail: PodDetail,
    uri: &Uri,
) -> Result<Response, ApiError> {
    let query = OfPod::<SpanQuery>::parse(uri.query())?;
    answer(
        app,
        identity,
        named,
        detail,
        (query.container, query.of_node.samples(App::now())?),
        uri,
    )
    .await
}

/// The processes of a pod.
pub(crate) async fn processes(
    State(app): State<App>,
    identity: Identity,
    named: Named,
    uri: Uri,
) -> Result<Response, ApiError> {
    let query = OfPod::<ProcessQuery>::parse(uri.query())?;
    let table = query.of_node.table()?;
    let samples = query.of_node.samples(App::now())?;
    let detail = PodDetail::Processes(table);
    answer(
        &app,
        &identity,
        named,
        detail,
        (query.container, samples),
        &uri,
    )
    .await
}

async fn answer(
    app: &App,
    identity: &Identity,
    named: Named,
    detail: PodDetail,
    (container, samples): (Option<String>, Samples),
    uri: &Uri,
) -> Result<Response, ApiError> {
    let asked = (named, container.as_deref());
    let pod = permitted(app, identity, detail.subresource(), asked, samples.when()).await?;
    if matches!(detail, PodDetail::Processes(_)) {
        identity.audit_pod("processes", &pod, uri.query());
    }
    let life = match &pod.node_uid {
        Some(uid) => app.store.life(uid).await?,
        None => None,
    };
    if detail == PodDetail::Summary && !matches!(samples, Samples::Span(_)) {
        return list::one(app, pod, life.as_ref(), &samples).await;
    }
    let Some(life) = life else {
        return Err(ApiError::missing(format!(
            "the pod {}/{} has no node of which there are samples",
            pod.namespace, pod.name
        )));
    };
    let last = last_moment(&pod);
    let detail = Detail::Pod(Arc::new(pod), container, detail);
    match samples {
        // Of one that is gone: as it was last.
        Samples::Now => now::respond(app, &life, &detail, last).await,
        Samples::At(moment) => now::respond(app, &life, &detail, Some(moment)).await,
        Samples::Span(span) => history::respond(app, &life, detail, span, uri).await,
    }
}

/// The pod that is asked about, for somebody who may read this detail of it.
pub(crate) async fn permitted(
    app: &App,
    identity: &Identity,
    subresource: &'static str,
    (named, container): (Named, Option<&str>),
    when: When,
) -> Result<PodRecord, ApiError> {
    let name = named.name.unwrap_or_default();
    app.permit_pod(identity, subresource, &named.namespace, &name)
        .await?;
    let pod = app.pod(&named.namespace, &name, when).await?;
    if let Some(container) = container {
        check_container(&pod, container)?;
    }
    Ok(pod)
}

/// An error that names the containers of a pod where it has none of this name.
fn check_container(pod: &PodRecord, name: &str) -> Result<(), ApiError> {
    let known: Vec<&str> = pod
        .containers
        .iter()
        .map(|container| &*container.name)
        .collect();
    if known.contains(&name) {
        return Ok(());
    }
    let detail = format!(
        "the pod has no container {name:?}; it has {}",
        known.join(", ")
    );
    Err(ApiError::parameter("container", detail))
}

/// The last moment of a pod that is gone. Kubernetes says it to the second, and it was there within it.
fn last_moment(pod: &PodRecord) -> Option<Timestamp> {
    pod.ended_at.map(|ended| ended.plus_micros(999_999))
}

/// Whether a pod lives, by what is known of it now.
pub(crate) fn state(pod: &PodRecord) -> NodeState {
    match pod.ended_at {
        None => NodeState::Live,
        Some(_) => NodeState::Gone,
    }
}

impl App {
    /// The pod that had this name at that time: of several the one that lived last. One that is gone
    /// has its name until another one takes it.
    async fn pod(&self, namespace: &str, name: &str, when: When) -> Result<PodRecord, ApiError> {
        let (from, to) = match when {
            When::Now => (Timestamp::MIN, Timestamp::MAX),
            When::Span(from, to) => (from, to),
        };
        let pods = self.store.pods_named(namespace, name).await?;
        let mut then = pods.into_iter().filter(|pod| pod.lived(from, to));
        then.next().ok_or_else(|| {
            ApiError::missing(format!(
                "the namespace {namespace:?} has no pod {name:?} at that time"
            ))
        })
    }
}

/// What Kubernetes says of pods that were seen on a node, remembered for one answer.
#[derive(Default)]
pub(crate) struct Names(HashMap<String, Option<PodRecord>>);

impl Names {
    /// Says of each pod of a node what it is called. What a node claims of pods that are not its own
    /// has no name.
    pub(crate) async fn name(
        &mut self,
        app: &App,
        node: &str,
        pods: &mut NodePods,
    ) -> Result<(), ApiError> {
        let pods = pods.pods.as_deref_mut().unwrap_or_default();
        let uids = pods.iter().filter_map(|pod| pod.uid.as_deref());
        let unknown: Vec<&str> = uids.filter(|uid| !self.0.contains_key(*uid)).collect();
        if !unknown.is_empty() {
            let mut found = app.store.pods_of(&unknown).await?;
            let told = unknown
                .iter()
                .map(|uid| ((*uid).to_owned(), found.remove(*uid)));
            let told: Vec<_> = told.collect();
            if self.0.len() > REMEMBERED {
                self.0.clear();
            }
            self.0.extend(told);
        }
        for figures in pods {
            let uid = figures.uid.as_deref().unwrap_or_default();
            if let Some(Some(known)) = self.0.get(uid)
                && known.node_uid.as_deref() == Some(node)
                && pod::is_of(figures, known)
            {
                pod::name(figures, known);
            }
        }
        Ok(())
    }
}
