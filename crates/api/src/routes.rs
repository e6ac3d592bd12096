//! The table of routes: each path with its handlers, and at the same place what the description
//! of the API says of it. No route is outside this table.

use std::sync::LazyLock;

use axum::extract::{FromRequestParts, Path, State};
use axum::response::Response;
use axum::routing::{MethodRouter, delete, get, post, put};
use axum::{Router, middleware};
use http::Uri;
use http::request::Parts;
use nodestats_wire::routes;
use nodestats_wire::v1::{
    ClusterRegistration, Cpu, Disk, Event, Filesystems, Freshness, GroupCpu, GroupDisk,
    GroupMemory, Join, Memory, Network, NodePods, NodeView, PhaseChanges, Pod, PodChanges,
    PodDigest, PodView, Pressure, Process, Processes, Reading, Registration, Stamped, ToldPhases,
    Top, Units,
};

use crate::access::{Identity, PROCESSES, Want};
use crate::answer::{Detail, PodDetail};
use crate::openapi::{Answers, Document, Operation};
use crate::pods::Named;
use crate::query::{
    DeleteQuery, EventQuery, ExporterQuery, ListQuery, NoQuery, OfPod, OfProcess, PodListQuery,
    ProcessQuery, Samples, SpanQuery, TopQuery,
};
use crate::{
    ApiError, App, events, exporter, guard, history, ingest, join, limits, nodes, now, observe,
    page, pods, query, system, top,
};

/// The name of a node in a path: a UID, a host name or an address.
pub(crate) struct Node {
    pub(crate) name: String,
    /// The address that was meant by it.
    pub(crate) meant: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Node {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let first = segments(parts, state).await?.into_iter().next();
        let meant = parts.headers.get(routes::ADDRESS_HEADER);
        Ok(Self {
            name: first.unwrap_or_default(),
            meant: meant.map(|meant| String::from_utf8_lossy(meant.as_bytes()).into_owned()),
        })
    }
}

/// The pid in a path, after the node.
struct Pid(u32);

impl<S: Send + Sync> FromRequestParts<S> for Pid {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let pid = segments(parts, state)
            .await?
            .into_iter()
            .nth(1)
            .unwrap_or_default();
        let number = pid.parse().map_err(|_| {
            let shown: String = pid.chars().take(40).collect();
            ApiError::parameter("pid", format!("{shown:?} is not a process id"))
        });
        number.map(Self)
    }
}

async fn segments<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<Vec<String>, ApiError> {
    let path = Path::<Vec<(String, String)>>::from_request_parts(parts, state).await;
    let path = path.map_err(|_| ApiError::malformed("the path is not UTF-8"))?;
    Ok(path.0.into_iter().map(|(_, segment)| segment).collect())
}

/// The router of the API.
pub fn router(app: App) -> Router {
    let (router, _) = table().into_parts();
    let router = router
        .fallback(async || ApiError::missing("there is no such path; /openapi.json lists them all"))
        .method_not_allowed_fallback(async || ApiError::method());
    let router = match &*app.options.cors_origins {
        [] => router,
        origins => router.layer(guard::cors(origins)),
    };
    router
        .layer(middleware::from_fn(limits::hold))
        .layer(middleware::from_fn_with_state(app.clone(), guard::guard))
        .layer(middleware::from_fn_with_state(
            app.clone(),
            observe::observe,
        ))
        .with_state(app)
}

/// The description of the API, `OpenAPI` 3.1, as JSON.
pub fn openapi_document() -> &'static str {
    static DOCUMENT: LazyLock<String> = LazyLock::new(|| table().into_parts().1.into_json());
    &DOCUMENT
}

/// Routes and their description, built side by side.
#[derive(Default)]
struct Table {
    router: Router<App>,
    document: Document,
}

impl Table {
    fn add(&mut self, path: &str, handler: MethodRouter<App>, operation: Operation) {
        let router = std::mem::take(&mut self.router);
        self.router = router.route(path, handler);
        self.document.add(path, operation);
    }

    fn into_parts(self) -> (Router<App>, Document) {
        (self.router, self.document)
    }
}

fn table() -> Table {
    let mut table = Table::default();
    system_routes(&mut table);
    node_routes(&mut table);
    pod_routes(&mut table);
    event_routes(&mut table);
    top_routes(&mut table);
    // The published transcript asks for a history without "/nodes"; both forms are the same.
    for node in ["/nodes/{node}", "/{node}"] {
        detail_routes(&mut table, node);
    }
    table
}

fn system_routes(table: &mut Table) {
    let operation = |id: &str, summary: &str| Operation::get(id, summary).query::<NoQuery>();
    table.add(
        "/",
        get(page::page),
        operation("page", "The page for people").answers(Answers::html()),
    );
    table.add(
        "/healthz",
        get(system::healthz),
        operation("healthz", "Whether the program runs").answers(Answers::text()),
    );
    table.add(
        "/readyz",
        get(system::readyz),
        operation("readyz", "Whether the program can do its work")
            .answers(Answers::text())
            .errors(&[503]),
    );
    table.add(
        "/metrics",
        get(system::metrics),
        operation(
            "metrics",
            "The program's own metrics, Prometheus text or OpenMetrics",
        )
        .answers(Answers::text()),
    );
    table.add(
        routes::NODE_METRICS,
        get(exporter::all),
        Operation::get(
            "node_metrics",
            "The newest figures of all nodes in the names of node_exporter",
        )
        .query::<ExporterQuery>()
        .answers(Answers::text())
        .errors(&[401, 429, 503]),
    );
    table.add(
        "/metrics/nodes/{node}",
        get(exporter::one),
        Operation::get(
            "metrics_of_node",
            "The newest figures of a node in the names of node_exporter; 503 while it is silent",
        )
        .query::<ExporterQuery>()
        .answers(Answers::text())
        .errors(&[401, 404, 409, 429, 503]),
    );
    table.add(
        routes::TARGETS,
        get(exporter::targets),
        operation(
            "targets",
            "One target a node, HTTP service discovery of Prometheus",
        )
        .answers(Answers::any_json())
        .errors(&[401, 429, 503]),
    );
    table.add(
        "/openapi.json",
        get(system::openapi),
        operation("openapi", "This description").answers(Answers::any_json()),
    );
}

fn node_routes(table: &mut Table) {
    table.add(
        "/nodes",
        get(nodes::list),
        Operation::get(
            "list_nodes",
            "The addresses of all nodes; with view=full each life",
        )
        .query::<ListQuery>()
        .answers(Answers::one_of_three::<
            Vec<String>,
            Vec<NodeView>,
            Vec<Freshness>,
        >())
        .errors(&[401, 429, 503]),
    );
    table.add(
        "/nodes",
        post(nodes::register),
        Operation::post(
            "register_node",
            "Registers a node; 200 where it is registered already",
        )
        .query::<NoQuery>()
        .body::<Registration>()
        .created::<NodeView>()
        .answers(Answers::json::<NodeView>())
        .errors(&[401, 408, 409, 413, 422, 429, 503]),
    );
    table.add(
        routes::JOIN,
        post(join::join),
        Operation::post(
            "join",
            "An agent at its first start makes a token of its own known, by a join token",
        )
        .query::<NoQuery>()
        .body::<Join>()
        .no_content()
        .errors(&[401, 408, 409, 413, 422, 429, 503]),
    );
    table.add(
        "/nodes/{node}/registration",
        put(nodes::register_in_cluster),
        Operation::put(
            "register_node_of_cluster",
            "Registers a cluster's node under its UID; its controller alone does",
        )
        .query::<NoQuery>()
        .body::<ClusterRegistration>()
        .no_content()
        .errors(&[401, 408, 413, 422, 429, 503]),
    );
    table.add(
        "/nodes/{node}",
        put(ingest::put),
        Operation::put(
            "put_samples",
            "Stores samples, all or none; answered when they are synced to disk",
        )
        .query::<NoQuery>()
        .samples_body::<Reading>()
        .no_content()
        .errors(&[401, 404, 408, 409, 413, 422, 429, 503]),
    );
    table.add(
        "/nodes/{node}",
        delete(nodes::deregister),
        Operation::delete(
            "deregister_node",
            "Signs a node off; its history stays readable",
        )
        .query::<DeleteQuery>()
        .no_content()
        .errors(&[401, 404, 409, 429, 503]),
    );
}

fn pod_routes(table: &mut Table) {
    table.add(
        routes::PODS,
        get(async |state, who, uri| pods::list(state, who, None, uri).await),
        Operation::get("list_pods", "Pods, live and gone")
            .query::<PodListQuery>()
            .answers(Answers::either::<Vec<PodView>, Vec<PodDigest>>())
            .errors(&[401, 429, 503]),
    );
    table.add(
        "/namespaces/{namespace}/pods",
        get(async |state, who, named, uri| pods::list(state, who, Some(named), uri).await),
        Operation::get(
            "list_pods_of_namespace",
            "The pods of a namespace, live and gone",
        )
        .query::<PodListQuery>()
        .answers(Answers::json::<Vec<PodView>>())
        .errors(&[401, 429, 503]),
    );
    table.add(
        routes::PODS,
        put(pods::tell),
        Operation::put(
            "put_pods",
            "Tells of a cluster's pods; its controller alone does",
        )
        .query::<NoQuery>()
        .body::<PodChanges>()
        .no_content()
        .errors(&[401, 408, 413, 422, 429, 503]),
    );
    let operation = |id: &str, summary: &str| {
        Operation::get(&format!("get_pod{id}"), summary)
            .query::<OfPod<SpanQuery>>()
            .errors(&[401, 404, 429, 503])
    };
    macro_rules! detail {
        ($suffix:literal, $detail:expr, $answers:expr, $id:literal, $summary:literal) => {
            let handler = async |State(app): State<App>, who: Identity, named: Named, uri: Uri| {
                pods::detail(&app, &who, named, $detail, &uri).await
            };
            table.add(
                &format!("{}{}", routes::POD, $suffix),
                get(handler),
                operation($id, $summary).answers($answers),
            );
        };
    }
    detail!(
        "",
        PodDetail::Summary,
        Answers::json::<PodView>().and_history_of::<Pod>(),
        "",
        "A pod: what Kubernetes says of it, and what it uses"
    );
    detail!(
        "/cpu",
        PodDetail::Cpu,
        Answers::or_history::<Stamped<GroupCpu>>(),
        "_cpu",
        "Its CPU"
    );
    detail!(
        "/memory",
        PodDetail::Memory,
        Answers::or_history::<Stamped<GroupMemory>>(),
        "_memory",
        "Its memory"
    );
    detail!(
        "/disk",
        PodDetail::Disk,
        Answers::or_history::<Stamped<GroupDisk>>(),
        "_disk",
        "Block devices that it used"
    );
    detail!(
        "/network",
        PodDetail::Network,
        Answers::or_history::<Network>(),
        "_network",
        "The interfaces of its network namespace"
    );
    table.add(
        &format!("{}/proc", routes::POD),
        get(pods::processes),
        Operation::get(
            "get_pod_processes",
            "Its processes; with view=full their rows",
        )
        .query::<OfPod<ProcessQuery>>()
        .answers(Answers::either::<Vec<u32>, Processes>().and_history())
        .errors(&[401, 404, 429, 503]),
    );
}

fn top_routes(table: &mut Table) {
    table.add(
        routes::TOP,
        get(top::top),
        Operation::get(
            "top",
            "What used most on all nodes, now, at a moment or in a span, also step by step",
        )
        .query::<TopQuery>()
        .answers(Answers::json::<Top>().or_steps::<Top>())
        .errors(&[401, 429, 503]),
    );
}

fn event_routes(table: &mut Table) {
    let operation = |id: &str, summary: &str| {
        Operation::get(id, summary)
            .query::<EventQuery>()
            .answers(Answers::json::<Vec<Event>>())
    };
    table.add(
        routes::EVENTS,
        get(events::all),
        operation("events", "What happened on all nodes, oldest first").errors(&[401, 429, 503]),
    );
    table.add(
        &format!("{}/events", routes::POD),
        get(events::of_pod),
        operation("get_pod_events", "What happened to a pod, oldest first")
            .query::<OfPod<EventQuery>>()
            .errors(&[401, 404, 429, 503]),
    );
    table.add(
        "/nodes/{node}/events",
        get(events::of_node),
        operation("get_events", "What happened to a node, oldest first")
            .errors(&[401, 404, 409, 429, 503]),
    );
    table.add(
        routes::EVENTS,
        put(events::tell),
        Operation::put(
            "put_events",
            "Tells how phases of nodes changed; their cluster's controller alone does",
        )
        .query::<NoQuery>()
        .body::<PhaseChanges>()
        .answers(Answers::json::<ToldPhases>())
        .errors(&[401, 408, 413, 422, 429, 503]),
    );
}

fn detail_routes(table: &mut Table, node: &str) {
    let short = if node == "/{node}" { "_direct" } else { "" };
    let operation = |id: &str, summary: &str| {
        Operation::get(&format!("get_{id}{short}"), summary)
            .query::<SpanQuery>()
            .errors(&[401, 404, 409, 429, 503])
    };
    macro_rules! detail {
        ($suffix:literal, $detail:expr, $type:ty, $id:literal, $summary:literal) => {
            let handler = async |State(app): State<App>, who: Identity, node: Node, uri: Uri| {
                let query: SpanQuery = query::parse(uri.query())?;
                respond(&app, &who, &node, $detail, query.samples(App::now())?, &uri).await
            };
            let answers = Answers::or_history::<$type>();
            table.add(
                &format!("{node}{}", $suffix),
                get(handler),
                operation($id, $summary).answers(answers),
            );
        };
    }
    detail!("", Detail::Summary, Reading, "node", "A node in short");
    detail!("/cpu", Detail::Cpu, Cpu, "cpu", "Its CPUs");
    detail!("/memory", Detail::Memory, Memory, "memory", "Its memory");
    detail!("/disk", Detail::Disk, Disk, "disk", "Its block devices");
    detail!(
        "/network",
        Detail::Network,
        Network,
        "network",
        "Its network interfaces"
    );
    detail!(
        "/filesystems",
        Detail::Filesystems,
        Filesystems,
        "filesystems",
        "Its filesystems"
    );
    detail!(
        "/pressure",
        Detail::Pressure,
        Pressure,
        "pressure",
        "Its pressure stall information"
    );
    detail!(
        "/units",
        Detail::Units,
        Units,
        "units",
        "Its systemd units and sessions, by their control groups"
    );
    detail!(
        "/pods",
        Detail::Pods,
        NodePods,
        "node_pods",
        "Its pods and their containers, by their control groups"
    );
    table.add(
        &format!("{node}/proc"),
        get(processes),
        operation(
            "processes",
            "The ids of its processes; with view=full their rows",
        )
        .query::<ProcessQuery>()
        .answers(
            Answers::either::<Vec<u32>, Processes>()
                .and_history()
                .or_ranking(),
        ),
    );
    detail_of_process(table, node, operation("process", "One process"));
}

fn detail_of_process(table: &mut Table, node: &str, operation: Operation) {
    let handler =
        async |State(app): State<App>, who: Identity, node: Node, Pid(pid): Pid, uri: Uri| {
            let query = OfProcess::<SpanQuery>::parse(uri.query())?;
            let detail = Detail::Process(pid, query.started_at()?);
            let samples = query.of_node.samples(App::now())?;
            respond(&app, &who, &node, detail, samples, &uri).await
        };
    let answers = Answers::or_history::<Process>();
    table.add(
        &format!("{node}/proc/{{pid}}"),
        get(handler),
        operation.query::<OfProcess<SpanQuery>>().answers(answers),
    );
}

async fn processes(
    State(app): State<App>,
    identity: Identity,
    node: Node,
    uri: Uri,
) -> Result<Response, ApiError> {
    let query: ProcessQuery = query::parse(uri.query())?;
    let samples = query.samples(App::now())?;
    if let Some(ranking) = query.ranking(&samples)? {
        let want = Want::Read(PROCESSES);
        let life = app.resolve(&identity, want, &node, samples.when()).await?;
        identity.audit("processes", &life, uri.query());
        return match samples {
            Samples::Now => top::respond_at(&app, vec![life], ranking, None).await,
            Samples::At(moment) => top::respond_at(&app, vec![life], ranking, Some(moment)).await,
            Samples::Span(span) => top::respond_within(&app, vec![life], ranking, span).await,
        };
    }
    let detail = Detail::Processes(query.table()?);
    respond(&app, &identity, &node, detail, samples, &uri).await
}

async fn respond(
    app: &App,
    identity: &Identity,
    node: &Node,
    detail: Detail,
    samples: Samples,
    uri: &Uri,
) -> Result<Response, ApiError> {
    let want = Want::Read(detail.subresource());
    let life = app.resolve(identity, want, node, samples.when()).await?;
    if detail.wants_processes() {
        identity.audit("processes", &life, uri.query());
    }
    match samples {
        Samples::Now => now::respond(app, &life, &detail, None).await,
        Samples::At(moment) => now::respond(app, &life, &detail, Some(moment)).await,
        Samples::Span(span) => history::respond(app, &life, detail, span, uri).await,
    }
}
