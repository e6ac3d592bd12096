//! What happened: to a node, to a pod, on all nodes. Written as it is read, oldest first.
//!
//! Some of it is completed when it is asked for, from what is stored by then: a sample that ended a boot
//! may arrive long after the first of the next one, and a pod's name after what happened to it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{StatusCode, Uri, header};
use nodestats_core::gap::Ending;
use nodestats_core::life::{Life, When};
use nodestats_core::stored::Counters;
use nodestats_core::{Stored, Wanted, event};
use nodestats_store::{EventKey, EventRange, NewEvent, Order};
use nodestats_wire::Timestamp;
use nodestats_wire::v1::{Event, EventKind, PhaseChanges, PodRecord, ToldPhases};

use crate::access::{EVENTS, Identity, Target, Want};
use crate::answer::{Answer, Detail, PodDetail};
use crate::pieces::{self, Pieces};
use crate::pods::{self, Named};
use crate::query::{EventQuery, Events, NoQuery, OfPod};
use crate::routes::Node;
use crate::{ApiError, App, body, now, query};

/// Events that are read from the store at once.
const PAGE: usize = 200;
/// Samples that are looked at for what a container had in memory before it was killed.
const SAMPLES_BEFORE: usize = 3;
/// Pods whose names one answer remembers.
const REMEMBERED: usize = 10_000;

/// `GET /nodes/{node}/events`.
pub(crate) async fn of_node(
    State(app): State<App>,
    identity: Identity,
    node: Node,
    uri: Uri,
) -> Result<Response, ApiError> {
    let query: EventQuery = query::parse(uri.query())?;
    let wanted = query.events(App::now())?;
    let want = Want::Read(EVENTS);
    let then = When::Span(wanted.from, wanted.to);
    // Without times what it is called now, else what it was called then.
    let first = if query.has_times() { then } else { When::Now };
    let life = match app.resolve(&identity, want, &node, first).await {
        Err(error) if error.status() == StatusCode::NOT_FOUND => {
            let ever = When::Span(Timestamp::MIN, Timestamp::MAX);
            app.resolve(&identity, want, &node, ever).await?
        }
        found => found?,
    };
    let scope = Scope::Node(life.uid.clone());
    let caller = (identity, uri);
    Walk::begin(app, caller, scope, wanted, vec![life])
        .respond()
        .await
}

/// `GET /events`: of all nodes that the caller may read.
pub(crate) async fn all(
    State(app): State<App>,
    identity: Identity,
    uri: Uri,
) -> Result<Response, ApiError> {
    let query: EventQuery = query::parse(uri.query())?;
    let wanted = query.events(App::now())?;
    let lives = app.store.lives().await?;
    let lives: Vec<Life> = lives.iter().map(|life| Life::clone(life)).collect();
    let count = lives.len();
    let readable = app.readable(&identity, EVENTS, lives).await?;
    let of = readable.iter().map(|life| life.uid.clone()).collect();
    let scope = Scope::Nodes((readable.len() < count).then_some(of));
    Walk::begin(app, (identity, uri), scope, wanted, readable)
        .respond()
        .await
}

/// `GET /namespaces/{namespace}/pods/{pod}/events`: without times all of its life.
pub(crate) async fn of_pod(
    State(app): State<App>,
    identity: Identity,
    named: Named,
    uri: Uri,
) -> Result<Response, ApiError> {
    let OfPod {
        container,
        of_node: query,
    } = OfPod::<EventQuery>::parse(uri.query())?;
    let mut wanted = query.events(App::now())?;
    let when = if query.has_times() {
        When::Span(wanted.from, wanted.to)
    } else {
        When::Now
    };
    let asked = (named, container.as_deref());
    let pod = pods::permitted(&app, &identity, EVENTS, asked, when).await?;
    let life = match &pod.node_uid {
        Some(uid) => app.store.life(uid).await?,
        None => None,
    };
    if !query.has_times() {
        // A static pod runs before the API server hears of it.
        let runs = pod.containers.iter().flat_map(|container| &container.runs);
        let started = runs.filter_map(|run| run.started_at).min();
        wanted.from = pod.created_at.min(started.unwrap_or(pod.created_at));
    }
    let scope = Scope::Pod(Arc::new(pod), container);
    let lives = life.into_iter().collect();
    Walk::begin(app, (identity, uri), scope, wanted, lives)
        .respond()
        .await
}

/// `PUT /events`: how phases of nodes changed, as the controller says.
pub(crate) async fn tell(
    State(app): State<App>,
    identity: Identity,
    uri: Uri,
    body: Body,
) -> Result<Json<ToldPhases>, ApiError> {
    let NoQuery {} = query::parse(uri.query())?;
    app.permit(&identity, Want::Control, Target::missing("", ""), "events")
        .await?;
    let body = body::receive(&app, body).await?;
    let mut told: PhaseChanges = body::json(&body.bytes)?;
    told.changes.sort_by_key(|change| change.time);
    let mut answer = ToldPhases::default();
    // The phase that each node was told to have last.
    let mut phases: HashMap<String, Option<String>> = HashMap::new();
    let mut events = Vec::new();
    for change in told.changes {
        let uid = change.node_uid.clone();
        if !phases.contains_key(&uid) {
            if app.store.life(&uid).await?.is_none() {
                answer.unknown.push(uid);
                continue;
            }
            let before = EventRange {
                node: Some(&uid),
                from: Timestamp::MIN,
                to: change.time,
            };
            let kind = EventKind::NodePhase;
            let store = &app.store;
            let last = store.events_of_kind(before, kind, Order::Descending, 1);
            let last = last.await?.into_iter().next();
            let phase = last.and_then(|(_, last)| last.phase);
            phases.insert(uid.clone(), phase);
        }
        // A controller that has just begun does not know what was told.
        let before = phases.insert(uid.clone(), Some(change.phase.clone()));
        if before.flatten().as_ref() != Some(&change.phase) {
            events.push(NewEvent::of_node(&uid, event::of_phase(change)));
        }
    }
    app.store.save_events(&events).await?;
    Ok(Json(answer))
}

impl App {
    /// Keeps that a node came or went.
    pub(crate) async fn note(
        &self,
        life: &Life,
        kind: EventKind,
        time: Timestamp,
    ) -> Result<(), ApiError> {
        let event = NewEvent::of_node(&life.uid, event::of_node(kind, time));
        Ok(self.store.save_events(&[event]).await?)
    }
}

/// Whose events are asked for.
enum Scope {
    Node(String),
    /// Of these nodes alone, or of all.
    Nodes(Option<HashSet<String>>),
    /// Or of one container of it.
    Pod(Arc<PodRecord>, Option<String>),
}

impl Scope {
    fn node(&self) -> Option<&str> {
        match self {
            Self::Node(uid) => Some(uid),
            Self::Nodes(_) => None,
            Self::Pod(pod, _) => Some(pod.node_uid.as_deref().unwrap_or_default()),
        }
    }

    fn takes(&self, event: &Event) -> bool {
        match self {
            Self::Node(_) | Self::Nodes(None) => true,
            Self::Nodes(Some(of)) => event.node_uid.as_ref().is_some_and(|uid| of.contains(uid)),
            Self::Pod(pod, container) => {
                let known = event
                    .container_id
                    .as_deref()
                    .and_then(|id| pod.container(id));
                let called = event.container.as_ref();
                let name = called.or(known.map(|container| &container.name));
                is_of(event, pod) && (container.is_none() || container.as_ref() == name)
            }
        }
    }
}

/// Whether something happened to this pod.
fn is_of(event: &Event, pod: &PodRecord) -> bool {
    let container = event.container_id.as_deref();
    let uid = event.pod_uid.as_deref();
    uid.is_some_and(|uid| pod.owns(uid, container.into_iter()))
}

/// A walk through events that writes JSON as it goes.
struct Walk {
    app: App,
    /// Who asks, and how.
    caller: (Identity, Uri),
    /// Whether they may see which process was killed, once it was asked.
    sees_processes: Option<bool>,
    scope: Scope,
    wanted: Events,
    /// What nodes are called, by their UIDs.
    nodes: HashMap<String, String>,
    pods: HashMap<String, Option<Arc<PodRecord>>>,
    after: Option<EventKey>,
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
            for event in self.page(Order::Ascending).await? {
                piece.push(if self.begun { b',' } else { b'[' });
                self.begun = true;
                serde_json::to_writer(&mut piece, &event).expect("writing to memory");
            }
        }
        if self.finished {
            piece.extend_from_slice(if self.begun { b"]" } else { b"[]" });
        }
        Ok(piece.into())
    }
}

impl Walk {
    fn begin(
        app: App,
        caller: (Identity, Uri),
        scope: Scope,
        wanted: Events,
        lives: Vec<Life>,
    ) -> Self {
        let named = lives
            .into_iter()
            .map(|life| (life.uid, life.registration.hostname));
        Self {
            app,
            caller,
            sees_processes: None,
            scope,
            wanted,
            nodes: named.collect(),
            pods: HashMap::new(),
            after: None,
            begun: false,
            finished: false,
        }
    }

    async fn respond(mut self) -> Result<Response, ApiError> {
        let first = match self.wanted.limit {
            Some(limit) => self.newest(limit).await?,
            None => self.next().await?,
        };
        let json = [(header::CONTENT_TYPE, "application/json")];
        Ok((json, pieces::body(first, self)).into_response())
    }

    /// The newest ones, at most `limit`, oldest first.
    async fn newest(&mut self, limit: usize) -> Result<Bytes, ApiError> {
        let mut newest = VecDeque::new();
        while newest.len() < limit && !self.finished {
            for event in self.page(Order::Descending).await? {
                if newest.len() < limit {
                    newest.push_front(event);
                }
            }
        }
        self.finished = true;
        Ok(serde_json::to_vec(&newest)
            .expect("an event is plain data")
            .into())
    }

    /// The events of the next page that are wanted, completed.
    async fn page(&mut self, order: Order) -> Result<Vec<Event>, ApiError> {
        // As histories do: readers share what pushes leave.
        let reading = Arc::clone(&self.app.reading);
        let turn = reading.acquire().await;
        let range = EventRange {
            node: self.scope.node(),
            from: self.wanted.from,
            to: self.wanted.to,
        };
        let store = &self.app.store;
        let page = store
            .events(range, self.after.as_ref(), order, PAGE)
            .await?;
        self.finished = page.is_last;
        self.after = page.last.or(self.after.take());
        let page: Vec<Event> = page
            .events
            .into_iter()
            .map(|(_, event)| event)
            .filter(|event| self.wanted.takes(event) && self.scope.takes(event))
            .collect();
        self.look_up_pods(&page).await?;
        drop(turn);
        let mut events = Vec::with_capacity(page.len());
        for event in page {
            // Each in turn: what completes it may be samples that are to be unpacked.
            let _turn = reading.acquire().await;
            events.push(self.complete(event).await?);
        }
        Ok(events)
    }

    async fn look_up_pods(&mut self, page: &[Event]) -> Result<(), ApiError> {
        if self.pods.len() > REMEMBERED {
            self.pods.clear();
        }
        let uids: HashSet<&str> = page
            .iter()
            .filter_map(|event| event.pod_uid.as_deref())
            .filter(|uid| !self.pods.contains_key(*uid))
            .collect();
        let uids: Vec<&str> = uids.into_iter().collect();
        let mut found = self.app.store.pods_of(&uids).await?;
        for uid in uids {
            let pod = found.remove(uid).map(Arc::new);
            self.pods.insert(uid.to_owned(), pod);
        }
        Ok(())
    }

    /// Says what is known by now: names, how a boot or an agent ended, what a container had in memory.
    async fn complete(&mut self, mut event: Event) -> Result<Event, ApiError> {
        let node = event.node_uid.clone().unwrap_or_default();
        event.node = self.nodes.get(&node).cloned();
        let pod = event.pod_uid.as_ref().and_then(|uid| self.pods.get(uid));
        // What a node claims of pods that are not its own has no name.
        let pod = pod.cloned().flatten().filter(|pod| {
            is_of(&event, pod) && pod.node_uid.as_deref().unwrap_or_default() == node
        });
        if let Some(pod) = &pod {
            let id = event.container_id.as_deref().unwrap_or_default();
            let container = pod.container(id);
            event.namespace = Some(pod.namespace.clone());
            event.pod = Some(pod.name.clone());
            event.pod_uid = Some(pod.uid.clone());
            event.container = event
                .container
                .or_else(|| container.map(|container| container.name.clone()));
            event.limit_bytes = event.limit_bytes.or_else(|| container?.memory_limit_bytes);
        }
        match event.kind {
            Some(EventKind::Boot | EventKind::AgentStarted) => self.find_end(&mut event).await?,
            Some(EventKind::OomKill) if event.memory_bytes.is_none() => {
                if let Some(pod) = pod {
                    event.memory_bytes = self.memory_before(&event, &pod, &node).await?;
                }
            }
            _ => {}
        }
        if event.victim.is_some() && !self.sees_processes().await? {
            event.victim = None;
            event.victim_unknown = Some("who was killed is shown to who may see processes".into());
        }
        event.message = Some(event::message(&event));
        Ok(event)
    }

    /// Which process was killed is shown to who may see processes, and to nobody else.
    async fn sees_processes(&mut self) -> Result<bool, ApiError> {
        if let Some(known) = self.sees_processes {
            return Ok(known);
        }
        let (identity, uri) = &self.caller;
        let (app, query) = (&self.app, uri.query());
        let sees = match &self.scope {
            Scope::Pod(pod, _) => {
                let sees = app.may_see_processes_of_pod(identity, pod).await?;
                if sees {
                    identity.audit_pod("killed processes", pod, query);
                }
                sees
            }
            Scope::Node(uid) => match app.store.life(uid).await? {
                Some(life) => {
                    let sees = app.may_see_processes(identity, Some(&life)).await?;
                    if sees {
                        identity.audit("killed processes", &life, query);
                    }
                    sees
                }
                None => false,
            },
            Scope::Nodes(_) => app.may_see_processes(identity, None).await?,
        };
        self.sees_processes = Some(sees);
        Ok(sees)
    }

    /// The last sample before a boot or an agent, and how that ended.
    async fn find_end(&self, event: &mut Event) -> Result<(), ApiError> {
        let (Some(node), Some(time)) = (&event.node_uid, event.time) else {
            return Ok(());
        };
        let before = (Timestamp::MIN, time.plus_micros(-1));
        let store = &self.app.store;
        let rows = store
            .samples(node, before, Order::Descending, Wanted::Host, 1)
            .await?;
        let Some(last) = rows.first().and_then(Stored::counters) else {
            return Ok(());
        };
        let same_boot = Some(boot_of(last)) == event.boot_id;
        if same_boot == (event.kind == Some(EventKind::AgentStarted)) {
            let ending = Ending::of(&last.notes().unwrap_or_default(), last.time);
            event.previous_end = Some(last.time);
            // One that takes no samples does not say that it ends.
            event.orderly = Some(ending.stopping).filter(|stopping| *stopping || !ending.paused);
        }
        Ok(())
    }

    /// What a container had in memory when it was sampled last.
    async fn memory_before(
        &self,
        event: &Event,
        pod: &Arc<PodRecord>,
        node: &str,
    ) -> Result<Option<u64>, ApiError> {
        let detail = Detail::Pod(Arc::clone(pod), event.container.clone(), PodDetail::Memory);
        let until = event.time.unwrap_or(Timestamp::MAX);
        let found = now::find_within(&self.app, node, &detail, until, SAMPLES_BEFORE).await?;
        Ok(match found {
            Some((_, Answer::GroupMemory(memory))) => memory.figure.current_bytes,
            _ => None,
        })
    }
}

/// The boot that a sample is of; empty where it cannot be read.
fn boot_of(counters: &Counters) -> String {
    counters.host().map(|host| host.boot_id).unwrap_or_default()
}
