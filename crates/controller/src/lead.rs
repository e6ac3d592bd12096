//! What the replica that leads does: it reconciles each node when something about it changed or time
//! alone may have changed it, and compares whole lists after each answer of the API.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::core::DeserializeGuard;
use kube::runtime::controller::{self, Action, Controller};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use nodestats_k8s::MonitoredNode;
use nodestats_k8s::condition::{self, controller::REPORTING};
use nodestats_wire::client;
use nodestats_wire::v1::{DeletionPolicy, PhaseChange, PhaseChanges};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::apply::{self, Error};
use crate::compare::{self, Departed, WithoutAgent};
use crate::decide::{self, Decision, Observed, Times, decide};
use crate::events::{Event, Publisher};
use crate::freshness::{Change, Shared};
use crate::metrics::Metrics;
use crate::observe::{ApiView, Node};
use crate::{Config, REQUEST_PATIENCE, WATCH_SECONDS, defaults, lease, pods, serving};

/// Objects that cannot be read are told from those that can.
type Guarded<K> = DeserializeGuard<K>;

/// Nodes that are reconciled at a time: enough that one that hangs holds up no other, few enough for
/// the API server at 5,000 nodes.
const CONCURRENCY: u16 = 64;

/// What everything here works with.
struct Context {
    api: client::Client,
    objects: Api<MonitoredNode>,
    nodes: Store<Guarded<Node>>,
    shared: Shared,
    publisher: Publisher,
    metrics: Arc<Metrics>,
    config: Config,
    /// Failures in a row, and the boot that was last seen, by the object's UID.
    memory: Mutex<BTreeMap<String, Memory>>,
    /// Changes of phase that the API is to know.
    phases: Mutex<VecDeque<ToTell>>,
}

/// A change of phase that the API is to know.
struct ToTell {
    change: PhaseChange,
    /// How often the API did not know the node: it may be told of it in the next moment.
    unknown: u8,
}

/// The API hears of a change of a node that it does not know so often.
const UNKNOWN: u8 = 20;
/// Changes of phase that are told at once: each is some reads of the API's database.
const TOLD: usize = 200;

/// Changes of phase that wait while the API takes none; of more the oldest are let go.
const PHASES: usize = 10_000;

#[derive(Debug, Clone, Default)]
struct Memory {
    failures: u32,
    boot_id: Option<String>,
    /// Of each reason the occurrence that was told last: an Event is kept by the API server for an
    /// hour only, and its name guards no longer against telling it twice.
    told: BTreeMap<&'static str, String>,
    /// A version of the object whose status was written since: the watch has not brought the next.
    superseded: Option<String>,
}

/// Runs until `stop`.
pub(crate) async fn run(
    client: Client,
    config: &Config,
    metrics: &Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (for_serving, for_pods) = (client.clone(), client.clone());
    let (nodes, writer) = reflector::store();
    let context = Arc::new(Context {
        api: client::Client::new(&config.api, REQUEST_PATIENCE)?.with_files(
            None,
            None,
            config.api_token_file.as_deref(),
        )?,
        objects: Api::all(client.clone()),
        nodes,
        shared: Shared::new(),
        publisher: Publisher::new(client.clone(), &config.identity),
        metrics: Arc::clone(metrics),
        config: config.clone(),
        memory: Mutex::default(),
        phases: Mutex::default(),
    });
    let counted = Arc::clone(metrics);
    let unreadable = Arc::clone(metrics);
    let node_stream = watcher(Api::<Guarded<Node>>::all(client.clone()), watching())
        .inspect_err(move |error| counted.watch_failed(error))
        .default_backoff()
        .modify(move |node| match &mut node.0 {
            Ok(node) => {
                node.metadata.managed_fields = None;
                node.metadata.annotations = None;
            }
            Err(invalid) => {
                unreadable.unparsable();
                let name = invalid.metadata.name.as_deref().unwrap_or_default();
                tracing::warn!(name, error = invalid.error, "a Node cannot be read");
            }
        })
        .reflect(writer)
        .touched_objects();
    let (objects, writer) = reflector::store();
    let counted = Arc::clone(metrics);
    let object_stream = watcher(Api::<Guarded<MonitoredNode>>::all(client), watching())
        .inspect_err(move |error| counted.watch_failed(error))
        .default_backoff()
        .modify(|object| {
            if let Ok(object) = &mut object.0 {
                defaults::keep_owners_of_spec(&mut object.metadata);
            }
        })
        .reflect(writer)
        .touched_objects();
    let (answered, answers) = watch::channel(());
    let (all_again, changes) = mpsc::channel::<()>(1);
    let changes = futures_util::stream::unfold(changes, async |mut changes| {
        changes.recv().await.map(|()| ((), changes))
    });
    let controller = Controller::for_stream(object_stream, objects.clone())
        .with_config(controller::Config::default().concurrency(CONCURRENCY))
        .watches_stream(node_stream, |node| {
            Some(ObjectRef::<Guarded<MonitoredNode>>::new(&node.name_any()))
        })
        .reconcile_all_on(changes);
    let reconciling = controller
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(reconcile, on_error, Arc::clone(&context))
        .for_each(|result| {
            report(result);
            std::future::ready(())
        });
    tokio::select! {
        () = reconciling => Ok(()),
        () = ask_again_and_again(&context, &objects, (all_again, answered)) => Ok(()),
        () = compare_again_and_again(&context, &objects, answers.clone()) => Ok(()),
        () = tell_again_and_again(&context, answers) => Ok(()),
        () = serving::keep(
            for_serving,
            config.serving.as_ref(),
            (&context.api, &context.shared),
            metrics,
            config.poll,
        ) => Ok(()),
        () = tell_of_pods(&context, for_pods) => Ok(()),
        () = stop.cancelled() => Ok(()),
    }
}

async fn tell_of_pods(context: &Context, client: Client) {
    let Some(labels) = &context.config.pod_labels else {
        return std::future::pending().await;
    };
    let teller = pods::Teller {
        client,
        api: &context.api,
        nodes: &context.nodes,
        metrics: &context.metrics,
        labels,
    };
    Box::pin(pods::keep(teller)).await;
}

fn watching() -> watcher::Config {
    // Small pages: a list is parsed page by page, and its peak is the memory of one.
    watcher::Config::default()
        .timeout(WATCH_SECONDS)
        .page_size(100)
}

/// Logs what the controller's machinery reports. Failures are counted where they happen.
fn report<T>(result: Result<T, kube::runtime::controller::Error<Error, watcher::Error>>) {
    use kube::runtime::controller::Error as Machinery;
    match result {
        Ok(_) | Err(Machinery::ReconcilerFailed(..) | Machinery::ObjectNotFound(_)) => {}
        Err(Machinery::QueueError(error)) => {
            tracing::warn!(
                error = lease::chain(&error),
                "a watch failed and begins again"
            );
        }
        Err(error) => tracing::error!(error = lease::chain(&error), "the controller failed"),
    }
}

async fn reconcile(
    object: Arc<Guarded<MonitoredNode>>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let begin = Instant::now();
    let span = tracing::info_span!(
        "reconcile",
        "k8s.node.name" = object.name_any(),
        "error.type" = Empty,
        "otel.status_code" = Empty
    );
    let done = look_at(&object, &context).instrument(span.clone()).await;
    if let Err(error) = &done {
        span.record("error.type", error.kind());
        span.record("otel.status_code", "ERROR");
    }
    context.metrics.reconciled(begin.elapsed(), done.is_ok());
    done
}

async fn look_at(object: &Guarded<MonitoredNode>, context: &Context) -> Result<Action, Error> {
    let object = match &object.0 {
        Ok(object) => object,
        Err(invalid) => {
            context.metrics.unparsable();
            let name = invalid.metadata.name.as_deref().unwrap_or_default();
            tracing::warn!(
                name,
                error = invalid.error,
                "a MonitoredNode cannot be read"
            );
            return Ok(Action::await_change());
        }
    };
    let version = object.metadata.resource_version.clone();
    let superseded = context.remember(object, |memory| memory.superseded.clone());
    if superseded.is_some() && superseded == version {
        return Ok(Action::requeue(context.config.poll));
    }
    let Some(mut decision) = context.decide(object) else {
        return Ok(Action::requeue(context.config.poll));
    };
    let mut refused = None;
    if let Some(registration) = decision.register.take() {
        let uid = context.node_uid(object);
        match context.api.register_in_cluster(&uid, &registration).await {
            Ok(()) => {
                context.metrics.registered();
                context.shared.registered(&uid, &registration);
                match context.decide(object) {
                    Some(again) => decision = again,
                    None => return Ok(Action::requeue(context.config.poll)),
                }
            }
            // The status says so; then it is tried again.
            Err(error) => refused = Some(Error::Register(error)),
        }
    }
    if let Some(spec) = defaults::wanted(object, &context.config.defaults) {
        match apply::write_defaults(&context.objects, &context.metrics, object, spec).await {
            // The new spec comes back by the watch.
            Ok(()) => return Ok(Action::requeue(context.config.poll)),
            Err(error) => refused = Some(error),
        }
    }
    context.tell_of_reboot(object).await;
    let now = Timestamp::now();
    if let Some(status) = apply::status(object, &decision, now) {
        let written =
            apply::write_status(&context.objects, &context.metrics, object, status).await?;
        if written != version {
            context.remember(object, |memory| memory.superseded = version);
        }
        let uid = context.node_uid(object);
        if let Some(change) = apply::phase_change(&uid, object, &decision, now) {
            context.is_to_tell(ToTell { change, unknown: 0 });
        }
        if let Some(event) = apply::transition(object, &decision) {
            context.tell(object, &event).await;
        }
    }
    if let Some(error) = refused {
        return Err(error);
    }
    context.remember(object, |memory| memory.failures = 0);
    Ok(Action::requeue(decision.recheck))
}

fn on_error(object: Arc<Guarded<MonitoredNode>>, error: &Error, context: Arc<Context>) -> Action {
    let Ok(object) = &object.0 else {
        return Action::await_change();
    };
    let failures = context.remember(object, |memory| {
        memory.failures += 1;
        memory.failures
    });
    tracing::warn!(
        name = object.name_any(),
        error = lease::chain(error),
        "tried again later"
    );
    Action::requeue(apply::backoff(failures))
}

impl Context {
    fn times(&self) -> Times {
        Times {
            poll: self.config.poll,
            lost_after: self.config.lost_after,
        }
    }

    fn node(&self, name: &str) -> Option<Arc<Node>> {
        let found = self.nodes.get(&ObjectRef::new(name))?;
        found.0.as_ref().ok().map(|node| Arc::new(node.clone()))
    }

    fn decide(&self, object: &MonitoredNode) -> Option<Decision> {
        let node = self.node(&object.name_any());
        self.shared.with(|api| {
            let observed = Observed {
                object,
                node: node.as_deref(),
                api,
            };
            decide(observed, self.times(), Timestamp::now())
        })
    }

    fn node_uid(&self, object: &MonitoredNode) -> String {
        let node = self.node(&object.name_any());
        node.map(|node| node.uid().to_owned()).unwrap_or_default()
    }

    fn remember<T>(&self, object: &MonitoredNode, change: impl FnOnce(&mut Memory) -> T) -> T {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        change(memory.entry(object.uid().unwrap_or_default()).or_default())
    }

    fn is_to_tell(&self, change: ToTell) {
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        phases.push_back(change);
        while phases.len() > PHASES {
            phases.pop_front();
        }
    }

    /// A reboot is the same node with another boot id.
    async fn tell_of_reboot(&self, object: &MonitoredNode) {
        let boot = object
            .status
            .as_ref()
            .and_then(|status| status.boot_id.clone());
        let Some(boot) = boot else { return };
        let before = self.remember(object, |memory| memory.boot_id.replace(boot.clone()));
        if before.is_some_and(|before| before != boot) {
            let event = Event {
                occurrence: boot,
                warning: false,
                reason: "NodeRebooted",
                note: "The node's kernel was started anew.".to_owned(),
            };
            self.tell(object, &event).await;
        }
    }

    /// Tells what happened to a node, unless this replica has told it already.
    async fn tell(&self, object: &MonitoredNode, event: &Event) {
        let before = self.remember(object, |memory| {
            let occurrence = event.occurrence.clone();
            memory.told.insert(event.reason, occurrence)
        });
        if before.as_ref() != Some(&event.occurrence) {
            let about = object.object_ref(&());
            self.publisher.publish(&self.metrics, &about, event).await;
        }
    }
}

type Objects = Store<Guarded<MonitoredNode>>;

/// Asks the API how fresh its nodes are. No node's affair is waited for here, so that answers are
/// as old as they are said to be; only that the API itself came or went is told.
async fn ask_again_and_again(
    context: &Context,
    objects: &Objects,
    (all_again, answered): (mpsc::Sender<()>, watch::Sender<()>),
) {
    // Before the first answer nothing is decided, and so the objects say what the replica that led
    // before has told of the API.
    let _ = objects.wait_until_ready().await;
    let mut told_away = objects
        .state()
        .iter()
        .any(|object| says_api_is_away(object));
    let mut ticks = tokio::time::interval(context.config.poll);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let change = context.shared.ask(&context.api, &context.metrics).await;
        if change != Change::None {
            // A full channel says the same.
            let _ = all_again.try_send(());
        }
        answered.send_replace(());
        let tell = match change {
            Change::Away if !told_away => Some(Availability::Gone),
            Change::First | Change::Back if told_away => Some(Availability::Back),
            _ => None,
        };
        if let Some(availability) = tell {
            tell_of_api(context, availability).await;
        }
        told_away = match change {
            Change::None => told_away,
            Change::Away => true,
            Change::First | Change::Back => false,
        };
    }
}

/// Whether an object says that the API is away.
fn says_api_is_away(object: &Guarded<MonitoredNode>) -> bool {
    let status = object
        .0
        .as_ref()
        .ok()
        .and_then(|object| object.status.as_ref());
    let reporting = status.and_then(|status| condition::find(&status.conditions, REPORTING));
    reporting.is_some_and(|reporting| reporting.reason == decide::API_UNAVAILABLE)
}

/// Departures that are told to the API at a time: a purge of a long history takes its time.
const DEPARTURES: usize = 8;

/// After each answer of the API: whose Node is gone, which Node has no agent.
async fn compare_again_and_again(
    context: &Context,
    objects: &Objects,
    mut answers: watch::Receiver<()>,
) {
    let mut without_agent = WithoutAgent::default();
    let mut departed_before: Vec<Departed> = Vec::new();
    while answers.changed().await.is_ok() {
        if !is_complete(&context.nodes) || !is_complete(objects) {
            continue;
        }
        let departed = departed(context);
        futures_util::stream::iter(&departed)
            // What one answer says may be older than the Node's list.
            .filter(|one| std::future::ready(departed_before.contains(one)))
            .for_each_concurrent(DEPARTURES, |one| retire(context, one))
            .await;
        departed_before = departed;
        let (present, missing) = agents(context, objects);
        let tell = without_agent.update(&missing, context.config.agent_patience, Instant::now());
        futures_util::stream::iter(&tell)
            .for_each_concurrent(DEPARTURES, |node| tell_of_missing_agent(context, node))
            .await;
        let phases = present
            .iter()
            .filter_map(|object| object.status.as_ref()?.phase);
        context.metrics.set_nodes(phases, without_agent.overdue());
        let known: std::collections::BTreeSet<String> = present
            .iter()
            .filter_map(|object| object.metadata.uid.clone())
            .collect();
        let mut memory = context
            .memory
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        memory.retain(|uid, _| known.contains(uid));
    }
}

/// After each answer of the API: how phases changed. No other affair waits for it.
async fn tell_again_and_again(context: &Context, mut answers: watch::Receiver<()>) {
    while answers.changed().await.is_ok() {
        Box::pin(tell_of_phases(context)).await;
    }
}

/// Tells the API of changes of phase; what it does not take now waits for its next answer.
async fn tell_of_phases(context: &Context) {
    let waiting = {
        let mut phases = context
            .phases
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *phases)
    };
    let mut waiting = Vec::from(waiting);
    // What waited since an earlier failure stands behind what came since.
    waiting.sort_by_key(|told| told.change.time);
    while !waiting.is_empty() {
        let part: Vec<ToTell> = waiting.drain(..waiting.len().min(TOLD)).collect();
        let changes = part.iter().map(|told| told.change.clone()).collect();
        let unknown = match context.api.tell_of_phases(&PhaseChanges { changes }).await {
            Ok(answer) => answer.unknown,
            Err(error) => {
                tracing::debug!(%error, "changes of phase are told again later");
                let rest = part.into_iter().chain(waiting);
                return rest.for_each(|told| context.is_to_tell(told));
            }
        };
        // A node that was purged has no history any more; one that is new is known in a moment.
        for mut told in part {
            told.unknown += 1;
            if unknown.contains(&told.change.node_uid) && told.unknown < UNKNOWN {
                context.is_to_tell(told);
            }
        }
    }
}

/// Whether the first list is in the store.
fn is_complete<K>(store: &Store<K>) -> bool
where
    K: kube::runtime::reflector::Lookup + Clone + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone + Default,
{
    use futures_util::FutureExt as _;
    store
        .wait_until_ready()
        .now_or_never()
        .is_some_and(|ready| ready.is_ok())
}

fn all_nodes(context: &Context) -> Vec<Arc<Node>> {
    let all = context.nodes.state();
    let readable = |node: &Arc<Guarded<Node>>| node.0.as_ref().ok().cloned().map(Arc::new);
    all.iter().filter_map(readable).collect()
}

fn departed(context: &Context) -> Vec<Departed> {
    // One that cannot be read is there all the same.
    let uid = |node: &Arc<Guarded<Node>>| node.meta().uid.clone();
    let present = context.nodes.state().iter().filter_map(uid).collect();
    context.shared.with(|view| match view {
        ApiView::Answers { nodes: known, .. } => compare::departed(known, &present),
        ApiView::Asking | ApiView::Away => Vec::new(),
    })
}

async fn retire(context: &Context, departed: &Departed) {
    let done = match departed.policy {
        DeletionPolicy::Retain => context.api.deregister(&departed.uid).await,
        DeletionPolicy::Purge => context.api.purge(&departed.uid).await,
    };
    match done {
        Ok(()) => {
            context.metrics.departed();
            tracing::info!(uid = departed.uid, name = departed.name, policy = ?departed.policy, "a Node is gone");
        }
        Err(error) if error.status() == Some(404) => {}
        Err(error) => {
            tracing::warn!(uid = departed.uid, %error, "a Node is gone, and the API does not take it");
        }
    }
}

type Present = Vec<Arc<MonitoredNode>>;

/// The objects, and the Nodes that want an agent and have no object.
fn agents(context: &Context, objects: &Store<Guarded<MonitoredNode>>) -> (Present, Vec<Arc<Node>>) {
    let all = objects.state();
    let names: std::collections::BTreeSet<String> =
        all.iter().map(|object| object.name_any()).collect();
    let missing = all_nodes(context).into_iter().filter(|node| {
        !names.contains(node.name()) && node.wants_agent(&context.config.agent_nodes)
    });
    let missing = missing.collect();
    let readable =
        |object: &Arc<Guarded<MonitoredNode>>| object.0.as_ref().ok().cloned().map(Arc::new);
    (all.iter().filter_map(readable).collect(), missing)
}

async fn tell_of_missing_agent(context: &Context, node: &Node) {
    let about = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: node.metadata.name.clone(),
        // As the kubelet does: `kubectl describe node` looks for Events by this.
        uid: node.metadata.uid.clone(),
        ..ObjectReference::default()
    };
    let event = Event {
        occurrence: node.uid().to_owned(),
        warning: true,
        reason: "NodestatsAgentMissing",
        note: "No nodestats agent has registered this Node.".to_owned(),
    };
    context
        .publisher
        .publish(&context.metrics, &about, &event)
        .await;
}

/// What becomes of the API.
enum Availability {
    Gone,
    Back,
}

/// One Event for all nodes, about the Lease that the controller holds.
async fn tell_of_api(context: &Context, availability: Availability) {
    let (warning, reason, note) = match availability {
        Availability::Gone => (
            true,
            "ApiUnavailable",
            "The nodestats API does not answer; what its nodes do cannot be told.",
        ),
        Availability::Back => (false, "ApiAvailable", "The nodestats API answers again."),
    };
    if warning {
        tracing::warn!(api = context.config.api, "the API does not answer");
    } else {
        tracing::info!(api = context.config.api, "the API answers again");
    }
    let about = ObjectReference {
        api_version: Some("coordination.k8s.io/v1".to_owned()),
        kind: Some("Lease".to_owned()),
        name: Some(lease::NAME.to_owned()),
        namespace: Some(context.config.namespace.clone()),
        ..ObjectReference::default()
    };
    let event = Event {
        occurrence: Timestamp::now().to_string(),
        warning,
        reason,
        note: note.to_owned(),
    };
    context
        .publisher
        .publish(&context.metrics, &about, &event)
        .await;
}
