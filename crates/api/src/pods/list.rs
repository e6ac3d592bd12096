//! `GET /pods`: which pods there are and were, and what they use, written as they are read.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{Uri, header};
use nodestats_core::Life;
use nodestats_core::life::When;
use nodestats_store::PodKey;
use nodestats_wire::Timestamp;
use nodestats_wire::v1::{NodeState, Pod, PodRecord, PodView};

use super::selector::Selector;
use super::{Named, last_moment, state};
use crate::access::{Identity, Target, Want};
use crate::answer::{Answer, Detail, PodDetail};
use crate::pieces::{self, Pieces};
use crate::query::{PodListQuery, Samples, State as Which};
use crate::{ApiError, App, now, query};

/// Pods that are read from the store at once.
const PAGE: usize = 500;
/// Namespaces that somebody's list is looked through for, one question each.
const LOOKED_THROUGH: usize = 500;
/// Nodes whose figures one list holds at a time.
const NODES: usize = 64;
/// Pods that are gone whose last figures one list searches for; of others it says what Kubernetes said.
const SEARCHED: usize = 1000;

/// `GET /pods`, and `GET /namespaces/{namespace}/pods`.
pub(crate) async fn list(
    State(app): State<App>,
    identity: Identity,
    named: Option<Named>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let query: PodListQuery = query::parse(uri.query())?;
    if query.is_digests(named.is_some())? {
        app.permit(&identity, Want::Control, Target::missing("", ""), "pods")
            .await?;
        return Ok(Json(app.store.pod_digests().await?).into_response());
    }
    let namespace = match (named, query.namespace.clone()) {
        (Some(named), None) => Some(named.namespace),
        (Some(_), Some(_)) => {
            let detail = "the namespace stands in the path already";
            return Err(ApiError::parameter("namespace", detail));
        }
        (None, namespace) => namespace,
    };
    let samples = query.samples(App::now())?;
    let wanted = Wanted {
        state: query.state(&samples)?,
        when: samples.when(),
        node: match &query.node {
            Some(node) => Some(app.node_of(node).await?),
            None => None,
        },
        workload: query.workload.clone(),
        selector: match &query.selector {
            Some(text) => {
                let selector = Selector::parse(text);
                selector.map_err(|error| ApiError::parameter("selector", error))?
            }
            None => Selector::default(),
        },
    };
    let usage = query.is_full()?.then_some(match samples {
        Samples::At(moment) => Moment::At(moment),
        Samples::Now => Moment::Now,
        // What a pod used in a span has more than one moment.
        Samples::Span(_) => {
            return Err(ApiError::parameter(
                "view",
                "view=full goes without from and to",
            ));
        }
    });
    let named = namespace.as_deref().unwrap_or_default();
    let sees_all = app.may_list_pods(&identity, named).await?;
    if !sees_all && (namespace.is_some() || !identity.is_looked_through()) {
        return Err(app.refused_list(&identity, named));
    }
    let walk = Walk {
        app,
        identity,
        namespace,
        wanted,
        usage,
        sees_all,
        namespaces: HashMap::new(),
        nodes: HashMap::new(),
        searched: 0,
        after: None,
        left: query.limit()?.unwrap_or(usize::MAX),
        begun: false,
        finished: false,
    };
    walk.respond().await
}

/// One pod as the list shows it.
pub(super) async fn one(
    app: &App,
    pod: PodRecord,
    life: Option<&Life>,
    samples: &Samples,
) -> Result<Response, ApiError> {
    let moment = match samples {
        Samples::At(moment) => Some(*moment),
        _ => None,
    };
    let pod = Arc::new(pod);
    let usage = match life {
        Some(life) => last_usage(app, &pod, &life.uid, moment).await?,
        None => None,
    };
    let view = PodView {
        state: state(&pod),
        pod: Arc::unwrap_or_clone(pod),
        usage,
    };
    Ok(Json(view).into_response())
}

/// What a pod used at a moment, or last; `None` where there is no sample of it.
async fn last_usage(
    app: &App,
    pod: &Arc<PodRecord>,
    node: &str,
    moment: Option<Timestamp>,
) -> Result<Option<Pod>, ApiError> {
    let detail = Detail::Pod(Arc::clone(pod), None, PodDetail::Summary);
    let until = moment.or(last_moment(pod)).unwrap_or(Timestamp::MAX);
    let found = now::find(app, node, &detail, until).await?;
    Ok(found.and_then(|(time, mut answer)| {
        let age = moment.unwrap_or_else(App::now).seconds_since(time).max(0.0);
        answer.stamp(time, (age * 1000.0).round() / 1000.0);
        match answer {
            Answer::Pod(usage) => Some(*usage),
            _ => None,
        }
    }))
}

/// Which pods are listed.
struct Wanted {
    state: Which,
    when: When,
    /// The node's UID.
    node: Option<String>,
    /// `NAME` or `KIND/NAME`.
    workload: Option<String>,
    selector: Selector,
}

impl Wanted {
    fn takes(&self, pod: &PodRecord) -> bool {
        let in_time = match self.when {
            When::Now => true,
            When::Span(from, to) => pod.lived(from, to),
        };
        let in_state = match self.state {
            Which::Live => state(pod) == NodeState::Live,
            Which::Gone => state(pod) == NodeState::Gone,
            Which::All => true,
        };
        let of_node = self
            .node
            .as_ref()
            .is_none_or(|uid| pod.node_uid.as_ref() == Some(uid));
        let of_workload = self.workload.as_ref().is_none_or(|wanted| {
            let workload = pod.workload.as_ref();
            workload.is_some_and(|workload| match wanted.split_once('/') {
                Some((kind, name)) => {
                    workload.kind.eq_ignore_ascii_case(kind) && workload.name == name
                }
                None => workload.name == *wanted,
            })
        });
        in_time && in_state && of_node && of_workload && self.selector.matches(&pod.labels)
    }
}

/// When the use of the pods is wanted.
#[derive(Clone, Copy)]
enum Moment {
    Now,
    At(Timestamp),
}

/// A walk through the pods that writes JSON as it goes.
struct Walk {
    app: App,
    identity: Identity,
    namespace: Option<String>,
    wanted: Wanted,
    usage: Option<Moment>,
    sees_all: bool,
    /// Whether they may list the pods of a namespace.
    namespaces: HashMap<String, bool>,
    /// What the pods of a node use.
    nodes: HashMap<String, HashMap<String, Pod>>,
    /// Pods that are gone whose last figures were searched for.
    searched: usize,
    after: Option<PodKey>,
    left: usize,
    begun: bool,
    finished: bool,
}

impl Pieces for Walk {
    async fn next(&mut self) -> Result<Bytes, ApiError> {
        let mut piece = Vec::new();
        if self.finished {
            return Ok(piece.into());
        }
        while piece.is_empty() && !self.finished {
            // As histories do: readers share what pushes leave.
            let reading = Arc::clone(&self.app.reading);
            let _turn = reading.acquire().await;
            let namespace = self.namespace.as_deref();
            let page = self
                .app
                .store
                .pods(namespace, self.after.as_ref(), PAGE)
                .await?;
            self.after = page.last().map(PodKey::of);
            self.finished = page.len() < PAGE;
            for pod in page {
                if self.left == 0 {
                    self.finished = true;
                    break;
                }
                if !self.wanted.takes(&pod) || !self.may_see(&pod.namespace).await? {
                    continue;
                }
                self.left -= 1;
                piece.push(if self.begun { b',' } else { b'[' });
                self.begun = true;
                let pod = Arc::new(pod);
                let view = PodView {
                    state: state(&pod),
                    usage: self.usage_of(&pod).await?,
                    pod: Arc::unwrap_or_clone(pod),
                };
                serde_json::to_writer(&mut piece, &view).expect("writing to memory");
            }
        }
        if self.finished {
            piece.extend_from_slice(if self.begun { b"]" } else { b"[]" });
        }
        Ok(piece.into())
    }
}

impl Walk {
    async fn respond(mut self) -> Result<Response, ApiError> {
        let first = self.next().await?;
        let json = [(header::CONTENT_TYPE, "application/json")];
        Ok((json, pieces::body(first, self)).into_response())
    }

    async fn may_see(&mut self, namespace: &str) -> Result<bool, ApiError> {
        if self.sees_all {
            return Ok(true);
        }
        if let Some(known) = self.namespaces.get(namespace) {
            return Ok(*known);
        }
        if self.namespaces.len() >= LOOKED_THROUGH {
            return Err(self.app.refused_list(&self.identity, ""));
        }
        let may = self.app.may_list_pods(&self.identity, namespace).await?;
        self.namespaces.insert(namespace.to_owned(), may);
        Ok(may)
    }

    async fn usage_of(&mut self, pod: &Arc<PodRecord>) -> Result<Option<Pod>, ApiError> {
        let (Some(moment), Some(node)) = (self.usage, &pod.node_uid) else {
            return Ok(None);
        };
        // It is not in its node's last sample: what it used last is somewhere before.
        if let (Moment::Now, Some(_)) = (moment, pod.ended_at) {
            self.searched += 1;
            if self.searched > SEARCHED {
                return Ok(None);
            }
            return last_usage(&self.app, pod, node, None).await;
        }
        if !self.nodes.contains_key(node) {
            if self.nodes.len() >= NODES {
                self.nodes.clear();
            }
            let until = match moment {
                Moment::Now => Timestamp::MAX,
                Moment::At(moment) => moment,
            };
            let found = now::find(&self.app, node, &Detail::Pods, until).await?;
            let mut pods = HashMap::new();
            if let Some((time, Answer::Pods(answer))) = found {
                for mut figures in answer.pods.into_iter().flatten() {
                    figures.time = Some(time);
                    if let Some(uid) = figures.uid.clone() {
                        pods.insert(uid, figures);
                    }
                }
            }
            self.nodes.insert(node.clone(), pods);
        }
        let figures = self.nodes.get(node).and_then(|pods| {
            let names = std::iter::once(&pod.uid).chain(&pod.static_uid);
            let mut found = names.filter_map(|uid| pods.get(uid));
            found.find(|figures| nodestats_core::pod::is_of(figures, pod))
        });
        Ok(figures.cloned().map(|mut figures| {
            nodestats_core::pod::name(&mut figures, pod);
            figures
        }))
    }
}

impl App {
    /// The UID of the node that a name in a query means, live or gone.
    async fn node_of(&self, name: &str) -> Result<String, ApiError> {
        let lives = self.store.lives().await?;
        let found = nodestats_core::life::resolve(&lives, name, When::Now).or_else(|_| {
            nodestats_core::life::resolve(&lives, name, When::Span(Timestamp::MIN, Timestamp::MAX))
        });
        // Who may not know of nodes learns nothing of them here: no pod is of one that there is not.
        Ok(found.map_or_else(|_| name.to_owned(), |life| life.uid.clone()))
    }
}
