//! The program `kubectl-nodestats`: asks a nodestats server, and shows the answer to a person or
//! a program. Standard output is data, standard error is talk.

mod ask;
mod cluster;
mod doctor;
mod show;
mod table;
mod times;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use nodestats_runtime::telemetry::{self, Program, Protocols, Telemetry};
use nodestats_wire::client::{self, Client};
use tracing::Instrument as _;
use tracing::field::Empty;

/// Asks nodestats what nodes and their processes do, now and at any past moment.
#[derive(Debug, Parser)]
#[command(name = "kubectl-nodestats", version)]
struct Arguments {
    /// A server to ask directly, such as `http://127.0.0.1:8080` [default: the nodestats of the
    /// kubeconfig's cluster].
    #[arg(long, env = "NODESTATS_SERVER", value_name = "URL", global = true)]
    server: Option<String>,

    /// With --server: PEM file of the authorities that sign its certificate [default: the system's].
    #[arg(long, value_name = "FILE", global = true, requires = "server")]
    certificate_authority: Option<PathBuf>,

    /// With --server: fingerprint of its certificate, where it has signed it itself: sha256:HEX.
    #[arg(
        long,
        value_name = "FINGERPRINT",
        global = true,
        requires = "server",
        conflicts_with = "certificate_authority"
    )]
    fingerprint: Option<client::Fingerprint>,

    /// With --server: file of the bearer token that says who asks.
    #[arg(long, value_name = "FILE", global = true, requires = "server")]
    token_file: Option<PathBuf>,

    /// Record a trace of this question through all that answers it, and print its id on standard error.
    /// The servers send their parts to where they send traces; this program sends its own where the
    /// standard variables say (`OTEL_EXPORTER_OTLP_ENDPOINT`).
    #[arg(long, global = true)]
    trace: bool,

    #[command(flatten)]
    access: cluster::Access,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Get(Box<Get>),
    Events(Box<Events>),
    Top(Box<Top>),
    /// Looks at the way to nodestats in a cluster step by step, and says what to do about the first
    /// thing that is not right.
    Doctor,
}

/// Shows all nodes, or one node, or one detail of it; or pods, by `get pods` and `get pod NAME`.
///
/// Times without a zone are your local time; write Z behind a time for UTC.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl nodestats get
  kubectl nodestats get 192.168.2.10 --cpu
  kubectl nodestats get web-1 --processes --sort memory --limit 10
  kubectl nodestats get pods -n shop -l app=web
  kubectl nodestats get pod web-6d4cf56db6-x2x7k -n shop --memory --from '2026-03-01 13:45'
  kubectl nodestats get web-1 --processes --at '2026-03-01 03:12'
  kubectl nodestats get web-1 --memory --from '2026-03-01 13:45' --to '2026-03-01 14:45' --step 5m")]
#[command(group = ArgGroup::new("detail").multiple(false))]
pub(crate) struct Get {
    /// Name, address or UID of a node, or `pods`, or `pod`; without it all nodes are listed.
    #[arg(value_name = "NODE")]
    node: Option<String>,
    /// After `pod`: its name.
    #[arg(value_name = "POD")]
    name: Option<String>,
    /// The namespace of pods [default: that of the kubeconfig's context].
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// Pods of all namespaces.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Pods on this node alone.
    #[arg(long = "node", value_name = "NODE")]
    of_node: Option<String>,
    /// Pods with these labels alone.
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// Pods that live, that are gone, or all.
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<PodState>,
    /// One container of the pod.
    #[arg(short = 'c', long, value_name = "NAME")]
    container: Option<String>,
    /// Its CPUs.
    #[arg(long, group = "detail", requires = "node")]
    cpu: bool,
    /// Its memory.
    #[arg(long, group = "detail", requires = "node")]
    memory: bool,
    /// Its block devices.
    #[arg(long, group = "detail", requires = "node")]
    disk: bool,
    /// Its network interfaces.
    #[arg(long, group = "detail", requires = "node")]
    network: bool,
    /// Its systemd units and sessions.
    #[arg(long, group = "detail", requires = "node")]
    units: bool,
    /// Its pods and their containers.
    #[arg(long, group = "detail", requires = "node")]
    pods: bool,
    /// Its processes.
    #[arg(long, group = "detail", requires = "node")]
    processes: bool,
    /// One of its processes.
    #[arg(long, group = "detail", requires = "node", value_name = "N")]
    pid: Option<u32>,
    /// A moment: as it was then.
    #[arg(long, requires = "node", value_name = "TIME", conflicts_with_all = ["from", "to", "step"])]
    at: Option<String>,
    /// Begin of a span of history.
    #[arg(long, requires = "node", value_name = "TIME")]
    from: Option<String>,
    /// End of the span [default: now].
    #[arg(long, requires = "node", value_name = "TIME")]
    to: Option<String>,
    /// One entry for each step of the span, such as 60s or 5m, or auto.
    #[arg(long, requires = "node", value_name = "TIME")]
    step: Option<String>,
    /// What stands for a step [default: rates over all of it, and gauges as they were last].
    #[arg(long, requires = "step", value_enum)]
    aggregate: Option<Aggregate>,
    /// Order of processes, the highest first.
    #[arg(long, value_enum, requires = "processes")]
    sort: Option<Sort>,
    /// At most so many processes.
    #[arg(long, requires = "processes", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: Option<u32>,
    /// Form of the answer; json is the API's own bytes.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Shows what happened: boots, kills for memory, containers that started and ended, agents, clocks that
/// were set, samples that were dropped; on all nodes, on one, or to a pod.
///
/// Times without a zone are your local time; write Z behind a time for UTC.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl nodestats events
  kubectl nodestats events 192.168.2.10 --from '2026-03-01' --kind boot,oom_kill
  kubectl nodestats events --pod web-6d4cf56db6-x2x7k -n shop")]
pub(crate) struct Events {
    /// Name, address or UID of a node; without it of all nodes.
    #[arg(value_name = "NODE", conflicts_with = "pod")]
    node: Option<String>,
    /// Of this pod alone.
    #[arg(long, value_name = "NAME")]
    pod: Option<String>,
    /// The namespace of the pod [default: that of the kubeconfig's context].
    #[arg(short, long, value_name = "NAME", requires = "pod")]
    namespace: Option<String>,
    /// One container of the pod.
    #[arg(short = 'c', long, value_name = "NAME", requires = "pod")]
    container: Option<String>,
    /// Begin of the span [default: a day before its end, and of a pod its begin].
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// End of the span [default: now].
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Events of these kinds alone, such as `oom_kill,boot`.
    #[arg(long, value_name = "KINDS")]
    kind: Option<String>,
    /// The newest so many.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Form of the answer; json is the API's own bytes.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Shows what uses most on all nodes, or on one: now, at a moment, or over a span.
///
/// Times without a zone are your local time; write Z behind a time for UTC.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl nodestats top processes
  kubectl nodestats top processes --at '2026-03-01 03:12' --sort memory
  kubectl nodestats top workloads --from '2026-03-01' --to '2026-03-08'
  kubectl nodestats top workloads --sort memory --from '2026-02-01' --step 1d
  kubectl nodestats top names --node web-1 --sort io")]
pub(crate) struct Top {
    /// What is ranked.
    #[arg(value_enum, value_name = "WHAT", default_value_t = Ranked::Processes)]
    what: Ranked,
    /// On this node alone.
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// A moment: as it was then.
    #[arg(long, value_name = "TIME", conflicts_with_all = ["from", "to"])]
    at: Option<String>,
    /// Begin of a span: what used most in it.
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// End of the span [default: now].
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// What those that used most in the span used in each step of it, such as 1h or 1d, or auto.
    #[arg(long, value_name = "SPAN")]
    step: Option<String>,
    /// By what.
    #[arg(long, value_enum, default_value_t = Resource::Cpu)]
    sort: Resource,
    /// At most so many rows.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Form of the answer; json is the API's own bytes.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// What is ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ranked {
    /// Each process.
    #[value(alias = "process")]
    Processes,
    /// All processes of a name.
    #[value(alias = "name")]
    Names,
    /// All processes of a user.
    #[value(alias = "user")]
    Users,
    /// Each pod.
    #[value(alias = "pod")]
    Pods,
    /// Each container.
    #[value(alias = "container")]
    Containers,
    /// All pods of what was deployed.
    #[value(alias = "workload")]
    Workloads,
    /// Each node.
    #[value(alias = "node")]
    Nodes,
}

/// By what something is ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Resource {
    Cpu,
    Memory,
    Io,
}

/// Which pods are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PodState {
    Live,
    Gone,
    All,
}

/// What stands for a step.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Aggregate {
    Mean,
    Min,
    Max,
    Last,
    /// The median; as the others below it of CPU and memory of nodes, pods and units.
    P50,
    P90,
    P95,
    P99,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Sort {
    Pid,
    Cpu,
    Memory,
    Read,
    Write,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Wide,
    Json,
    Yaml,
}

/// A server has this long to answer; a long history is streamed within it.
const PATIENCE: Duration = Duration::from_mins(2);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(traced(arguments)));
    nodestats_runtime::exit(result)
}

/// The whole question within one span, where somebody takes spans.
async fn traced(arguments: Arguments) -> anyhow::Result<()> {
    let is_wanted = arguments.trace;
    let telemetry = Telemetry::start(Program {
        name: "kubectl-nodestats",
        protocols: Protocols::HttpAndGrpc,
        logs: None,
        is_lasting: false,
        always_traced: is_wanted,
    });
    let span = tracing::info_span!(
        "kubectl nodestats",
        "error.type" = Empty,
        "otel.status_code" = Empty
    );
    let result = run(arguments).instrument(span.clone()).await;
    if result.is_err() {
        span.record("error.type", "_OTHER");
        span.record("otel.status_code", "ERROR");
    }
    let ids = span.in_scope(telemetry::current_ids);
    drop(span);
    telemetry.end().await;
    if let Some((trace, _)) = ids.filter(|_| is_wanted) {
        eprintln!("trace {trace}");
    }
    result
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let zone = jiff::tz::TimeZone::system();
    let (question, output) = match &arguments.command {
        Command::Doctor => return doctor::run(&arguments.access).await,
        Command::Get(get) => {
            let about_pods = ask::is_about_pods(get) && !get.all_namespaces;
            let namespace = namespace(&arguments, get.namespace.as_ref(), about_pods).await?;
            let question = ask::Question::new(get, namespace.as_deref(), &zone)?;
            (question, get.output)
        }
        Command::Top(top) => (ask::Question::about_top(top, &zone)?, top.output),
        Command::Events(events) => {
            let about_pod = events.pod.is_some();
            let namespace = namespace(&arguments, events.namespace.as_ref(), about_pod).await?;
            let question = ask::Question::about_events(events, namespace.as_deref(), &zone)?;
            (question, events.output)
        }
    };
    let (path, query) = (&question.path, &question.query);
    let body = match &arguments.server {
        Some(server) => {
            let client = Client::new(server, PATIENCE)?.with_files(
                arguments.certificate_authority.as_deref(),
                arguments.fingerprint,
                arguments.token_file.as_deref(),
            )?;
            client.get(path, query).await.map_err(with_hint)?
        }
        None if question.history => arguments.access.get_history(path, query).await?,
        None => arguments.access.get(path, query).await?,
    };
    show::print(output, &question, &body, &zone)
}

/// The namespace that pods are asked about in; `None` for all of them.
async fn namespace(
    arguments: &Arguments,
    given: Option<&String>,
    about_pods: bool,
) -> anyhow::Result<Option<String>> {
    match given {
        Some(namespace) => Ok(Some(namespace.clone())),
        // A plain server has no context, and no namespace that goes without saying.
        None if !about_pods || arguments.server.is_some() => Ok(None),
        None => Ok(Some(arguments.access.pods_namespace().await?)),
    }
}

/// The names that the server knows are the best help.
fn with_hint(error: client::Error) -> anyhow::Error {
    let names = match &error {
        client::Error::Refused(problem, _) => problem.names.join(", "),
        _ => String::new(),
    };
    let error = anyhow::Error::from(error);
    if names.is_empty() {
        error
    } else {
        anyhow::anyhow!("{error}\nhint: known names: {}", table::plain(&names))
    }
}
