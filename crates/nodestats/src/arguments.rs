//! The command line: what a person can say, and what it means.

mod token;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use nodestats_runtime::logs;
use nodestats_store::Location;
use nodestats_wire::client::Fingerprint;
use nodestats_wire::time::parse_span;

pub(crate) use token::{Role, Token, TokenCommand};

/// Shows what every process on every node does with CPU, memory and disk, now and at any past
/// moment.
#[derive(Debug, Parser)]
#[command(name = "nodestats", version, propagate_version = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,

    #[command(flatten)]
    pub(crate) logs: logs::Arguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Standalone(Standalone),
    Api(Api),
    Controller(Controller),
    Token(Token),
    Ask(Ask),
}

impl Command {
    /// What it is called as a service among others (`service.name` of OpenTelemetry).
    pub(crate) fn service(&self) -> &'static str {
        match self {
            Self::Standalone(_) => "nodestats-standalone",
            Self::Api(_) => "nodestats-api",
            Self::Controller(_) => "nodestats-controller",
            Self::Token(_) | Self::Ask(_) => "nodestats",
        }
    }
}

/// Asks a server for one path and prints the answer: for tests and probes in images that hold this
/// program and nothing else. People use `kubectl nodestats`.
#[derive(Debug, Args)]
pub(crate) struct Ask {
    /// The server, such as `https://nodestats-api.nodestats.svc`.
    #[arg(long, env = "NODESTATS_SERVER", value_name = "URL")]
    pub(crate) server: String,

    /// PEM file of the authorities that are trusted [default: the system's].
    #[arg(long, env = "NODESTATS_CERTIFICATE_AUTHORITY", value_name = "FILE")]
    pub(crate) certificate_authority: Option<PathBuf>,

    /// Fingerprint of the server's certificate, where it has signed it itself: sha256:HEX.
    #[arg(
        long,
        env = "NODESTATS_FINGERPRINT",
        value_name = "FINGERPRINT",
        conflicts_with = "certificate_authority"
    )]
    pub(crate) fingerprint: Option<Fingerprint>,

    /// File of the bearer token that says who asks.
    #[arg(long, env = "NODESTATS_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,

    /// The path, such as `/nodes`.
    pub(crate) path: String,

    /// How long it may take until there is an answer.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = span)]
    pub(crate) patience: Duration,
}

/// Everything on one host: the API, this host's own agent, and an embedded database.
///
/// Open the printed address in a browser, or ask with curl:
///
///   curl -s localhost:8080/nodes/$(hostname)/cpu
///   curl -s 'localhost:8080/nodes/'$(hostname)'/proc?view=full&sort=cpu&limit=5'
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Standalone {
    #[command(flatten)]
    pub(crate) serving: Serving,

    /// Folder of the database and of this host's identity [default: /var/lib/nodestats as root,
    /// else nodestats in the XDG state directory].
    #[arg(long, env = "NODESTATS_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Time between two samples of this host, such as 10s or 1m.
    #[arg(long, env = "NODESTATS_INTERVAL", value_name = "TIME", default_value = "10s", value_parser = nodestats_agent::parse_interval)]
    pub(crate) interval: Duration,

    /// This node's address [default: the one that the way out uses].
    #[arg(long, env = "NODESTATS_NODE_IP", value_name = "IP")]
    pub(crate) node_ip: Option<IpAddr>,

    /// This node's name [default: the host's].
    #[arg(long, env = "NODESTATS_HOSTNAME", value_name = "NAME")]
    pub(crate) hostname: Option<String>,

    /// Where the host's / is mounted.
    #[arg(
        long,
        env = "NODESTATS_HOST_ROOT",
        value_name = "DIR",
        default_value = "/"
    )]
    pub(crate) host_root: PathBuf,
}

/// The API and the database without an agent of its own.
#[derive(Debug, Args)]
pub(crate) struct Api {
    #[command(flatten)]
    pub(crate) serving: Serving,

    #[command(flatten)]
    pub(crate) database: Database,

    /// Ask Kubernetes who calls (bearer tokens of the audience nodestats) and what they may (RBAC on
    /// `nodes` of the group `stats.nodestats.dev`). The service accounts nodestats-agent and
    /// nodestats-controller of this namespace write.
    #[arg(
        long,
        env = "NODESTATS_KUBERNETES_AUTH",
        value_name = "NAMESPACE",
        conflicts_with = "insecure_no_auth"
    )]
    pub(crate) kubernetes_auth: Option<String>,

    /// A second, read-only listener on this host's loopback, for people who forward a port to it
    /// through Kubernetes.
    #[arg(long, env = "NODESTATS_FORWARDED_LISTEN", value_name = "ADDRESS")]
    pub(crate) forwarded_listen: Option<SocketAddr>,

    /// Show processes there too: whoever may forward ports to this pod then reads all of them.
    #[arg(
        long,
        env = "NODESTATS_FORWARDED_PROCESSES",
        requires = "forwarded_listen"
    )]
    pub(crate) forwarded_processes: bool,

    /// A third listener, read-only, for the front proxy of the cluster's API server (API aggregation).
    #[arg(
        long,
        env = "NODESTATS_AGGREGATED_LISTEN",
        value_name = "ADDRESS",
        requires = "serving_secret"
    )]
    pub(crate) aggregated_listen: Option<SocketAddr>,

    /// Serve with TLS, by the certificate in this Secret of the pod's own namespace (`tls.crt`,
    /// `tls.key`). A new one is served as soon as it is there.
    #[arg(long, env = "NODESTATS_SERVING_SECRET", value_name = "NAME")]
    pub(crate) serving_secret: Option<String>,
}

/// Which database it is, and who we are there.
#[derive(Debug, Args)]
pub(crate) struct Database {
    /// The database: `surrealkv://DIR` (embedded), `mem://` (embedded, gone at the end), or
    /// `ws://HOST:PORT` and `wss://HOST:PORT` (a `SurrealDB` server).
    #[arg(long, env = "NODESTATS_DATABASE", value_name = "URL")]
    pub(crate) database: Location,

    #[command(flatten)]
    pub(crate) account: DatabaseAccount,
}

/// Who we are at a `SurrealDB` server.
#[derive(Debug, Args)]
pub(crate) struct DatabaseAccount {
    /// Root user of the `SurrealDB` server.
    #[arg(
        long = "database-user",
        env = "NODESTATS_DATABASE_USER",
        value_name = "NAME",
        requires = "password"
    )]
    pub(crate) user: Option<String>,

    /// Its password; better given as variable, since arguments can be read by others.
    #[arg(
        long = "database-password",
        env = "NODESTATS_DATABASE_PASSWORD",
        value_name = "PASSWORD",
        hide_env_values = true,
        requires = "user"
    )]
    pub(crate) password: Option<String>,

    /// PEM file of the authorities that sign the `SurrealDB` server's certificate [default: the public
    /// ones].
    #[arg(
        long = "database-certificate-authority",
        env = "NODESTATS_DATABASE_CERTIFICATE_AUTHORITY",
        value_name = "FILE"
    )]
    pub(crate) certificate_authority: Option<PathBuf>,
}

/// Keeps the truth about a cluster's nodes: registers them with the API, says in each
/// `MonitoredNode` whether it reports, and retires what is gone. Of several replicas one acts.
#[derive(Debug, Args)]
pub(crate) struct Controller {
    /// The API, such as `https://nodestats-api.nodestats.svc`.
    #[arg(long, env = "NODESTATS_API", value_name = "URL")]
    pub(crate) api: String,

    /// File of the token that the API knows the controller by; read again for each request.
    #[arg(long, env = "NODESTATS_API_TOKEN_FILE", value_name = "FILE")]
    pub(crate) api_token_file: Option<PathBuf>,

    /// The namespace of the Lease by which replicas agree [default: the pod's own].
    #[arg(long, env = "NODESTATS_NAMESPACE", value_name = "NAME")]
    pub(crate) namespace: Option<String>,

    /// Who this replica is [default: the host's name, which in a pod is the pod's].
    #[arg(long, env = "NODESTATS_IDENTITY", value_name = "NAME")]
    pub(crate) identity: Option<String>,

    /// The cluster's defaults: part of a `MonitoredNode`'s spec, as JSON. They reach every node
    /// whose field nobody edited.
    #[arg(
        long,
        env = "NODESTATS_NODE_DEFAULTS",
        value_name = "JSON",
        default_value = "{}"
    )]
    pub(crate) node_defaults: String,

    /// Labels of the Nodes that have an agent, `KEY=VALUE,…` as in the agents' node selector.
    #[arg(long, env = "NODESTATS_AGENT_NODES", value_name = "LABELS", value_parser = labels, default_value = "")]
    pub(crate) agent_nodes: std::collections::BTreeMap<String, String>,

    /// Tell the API of the cluster's pods, with these of their labels; a name that ends with * is a
    /// beginning. Without it pods have no names in the history.
    #[arg(
        long,
        env = "NODESTATS_PODS",
        value_name = "LABELS",
        value_delimiter = ',',
        num_args = 0..,
        require_equals = true
    )]
    pub(crate) pods: Option<Vec<String>>,

    /// Between two questions to the API about all nodes.
    #[arg(long, env = "NODESTATS_POLL", value_name = "TIME", default_value = "5s", value_parser = span)]
    pub(crate) poll: Duration,

    /// A node is Lost when its last sample is older than this, and than six of its intervals.
    #[arg(long, env = "NODESTATS_LOST_AFTER", value_name = "TIME", default_value = "5m", value_parser = span)]
    pub(crate) lost_after: Duration,

    /// The Secret of the namespace that the API's certificate is in. The controller makes and renews
    /// it, and writes the authorities to trust to --ca-config-map.
    #[arg(
        long,
        env = "NODESTATS_SERVING_SECRET",
        value_name = "NAME",
        requires = "ca_config_map"
    )]
    pub(crate) serving_secret: Option<String>,

    /// The `ConfigMap` of the namespace from which agents know whom to trust (`ca.crt`).
    #[arg(
        long,
        env = "NODESTATS_CA_CONFIG_MAP",
        value_name = "NAME",
        requires = "serving_secret"
    )]
    pub(crate) ca_config_map: Option<String>,

    /// Somebody else, such as cert-manager, makes and renews what is in the Secret (`ca.crt`,
    /// `tls.crt`, `tls.key`).
    #[arg(
        long,
        env = "NODESTATS_FOREIGN_CERTIFICATES",
        requires = "serving_secret"
    )]
    pub(crate) foreign_certificates: bool,

    /// How long the API's certificate is good; it is renewed when a third of that is left.
    #[arg(long, env = "NODESTATS_CERTIFICATE_LIFETIME", value_name = "TIME", default_value = "90d", value_parser = lifetime)]
    pub(crate) certificate_lifetime: Duration,

    /// The same of the authority that signs it; another one takes its place when a tenth is left.
    #[arg(long, env = "NODESTATS_AUTHORITY_LIFETIME", value_name = "TIME", default_value = "3650d", value_parser = lifetime)]
    pub(crate) authority_lifetime: Duration,

    /// How long a new authority is published beside the old one before it signs.
    #[arg(long, env = "NODESTATS_AUTHORITY_PUBLISHED", value_name = "TIME", default_value = "5m", value_parser = span)]
    pub(crate) authority_published: Duration,

    /// Make the API part of the cluster's own API (API aggregation): an `APIService` leads to the
    /// Service `nodestats-api`.
    #[arg(long, env = "NODESTATS_AGGREGATED", requires = "serving_secret")]
    pub(crate) aggregated: bool,

    /// A Node that has had no agent for so long is told about.
    #[arg(long, env = "NODESTATS_AGENT_PATIENCE", value_name = "TIME", default_value = "5m", value_parser = span)]
    pub(crate) agent_patience: Duration,

    /// Address of `/healthz`, `/readyz` and `/metrics`.
    #[arg(
        long,
        env = "NODESTATS_ADMIN_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9091"
    )]
    pub(crate) admin_listen: SocketAddr,
}

fn span(text: &str) -> Result<Duration, String> {
    parse_span(text).map_err(|error| error.to_string())
}

/// Shorter than a few looks of the controller a certificate would end before it is renewed.
fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = span(text)?;
    if lifetime < Duration::from_mins(1) {
        return Err("a certificate is good for 1m at least".to_owned());
    }
    Ok(lifetime)
}

fn labels(text: &str) -> Result<std::collections::BTreeMap<String, String>, String> {
    let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
    let pair = |pair: &str| {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| format!("{pair:?} is no label: write KEY=VALUE"))?;
        Ok((key.trim().to_owned(), value.trim().to_owned()))
    };
    pairs.map(pair).collect()
}

#[derive(Debug, Args)]
pub(crate) struct Serving {
    /// Address to listen on; port 0 takes a free one. The line on standard output names it.
    #[arg(
        long,
        env = "NODESTATS_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080"
    )]
    pub(crate) listen: SocketAddr,

    /// How long samples are kept, by their own time, such as 36h or 14d.
    #[arg(long, env = "NODESTATS_RETENTION", value_name = "TIME", default_value = "14d", value_parser = retention)]
    pub(crate) retention: Duration,

    /// How long rollups of minutes are kept: each minute of the host, its groups and the processes that
    /// mattered.
    #[arg(long, env = "NODESTATS_RETENTION_MINUTE", value_name = "TIME", default_value = "90d", value_parser = retention)]
    pub(crate) retention_minute: Duration,

    /// How long rollups of hours are kept.
    #[arg(long, env = "NODESTATS_RETENTION_HOUR", value_name = "TIME", default_value = "730d", value_parser = retention)]
    pub(crate) retention_hour: Duration,

    /// Room on the disk that all histories may take, such as 20Gi, a third of it samples and the rest for
    /// merging files: beyond it the oldest hours go, of nodes with more than an equal share first, but for
    /// the last one [default: no limit but the retention].
    #[arg(long, env = "NODESTATS_MAX_SIZE", value_name = "SIZE", value_parser = size)]
    pub(crate) max_size: Option<u64>,

    /// Most that one node's history may take, in MiB; a node that has more stores nothing until its
    /// oldest samples are gone [default: an equal share, when the disk becomes scarce].
    #[arg(long, env = "NODESTATS_NODE_QUOTA_MIB", value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub(crate) node_quota_mib: Option<u64>,

    /// The largest body of a request, in MiB.
    #[arg(long, env = "NODESTATS_BODY_LIMIT_MIB", value_name = "MIB", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) body_limit_mib: u16,

    /// Listen on an address that others can reach, although nobody is asked who they are: whoever
    /// reaches it reads every process of every node and writes samples.
    #[arg(
        long,
        env = "NODESTATS_INSECURE_NO_AUTH",
        conflicts_with = "require_tokens"
    )]
    pub(crate) insecure_no_auth: bool,

    /// Ask everyone for a token (`nodestats token`) on loopback too, as behind a proxy that ends TLS; on
    /// any other address that is so anyway.
    #[arg(long, env = "NODESTATS_REQUIRE_TOKENS")]
    pub(crate) require_tokens: bool,

    #[command(flatten)]
    pub(crate) tls: Tls,

    /// A site whose pages may read from this server in a browser, such as `https://grafana.example`.
    #[arg(
        long = "cors-origin",
        env = "NODESTATS_CORS_ORIGINS",
        value_name = "ORIGIN",
        value_delimiter = ',',
        value_parser = origin
    )]
    pub(crate) cors_origins: Vec<String>,
}

/// How a server outside Kubernetes comes to a certificate.
#[derive(Debug, Args)]
pub(crate) struct Tls {
    /// Serve with TLS, by the certificate in this PEM file, with those that lead to its authority. A new
    /// one is served within seconds.
    #[arg(
        long = "tls-cert",
        env = "NODESTATS_TLS_CERT",
        value_name = "FILE",
        requires = "key"
    )]
    pub(crate) certificate: Option<PathBuf>,

    /// PEM file of its key.
    #[arg(
        long = "tls-key",
        env = "NODESTATS_TLS_KEY",
        value_name = "FILE",
        requires = "certificate"
    )]
    pub(crate) key: Option<PathBuf>,

    /// Serve with TLS, by a certificate that is made at the first start, kept in the data directory,
    /// and known by its fingerprint, which is printed and which agents are told.
    #[arg(
        long = "tls-self-signed",
        env = "NODESTATS_TLS_SELF_SIGNED",
        conflicts_with = "certificate"
    )]
    pub(crate) self_signed: bool,
}

/// As a browser writes it (RFC 6454 section 6.2): no path, no slash at the end.
fn origin(text: &str) -> Result<String, String> {
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    match host {
        Some(host) if !host.is_empty() && !host.contains(['/', '*', '?', '#', ' ']) => {
            Ok(text.to_ascii_lowercase())
        }
        _ => {
            Err("an origin is http://HOST or https://HOST, with its port if it has one".to_owned())
        }
    }
}

/// Less holds no hour of a few nodes.
const LEAST_SIZE: u64 = 64 << 20;

fn retention(text: &str) -> Result<Duration, String> {
    let retention = parse_span(text).map_err(|error| error.to_string())?;
    if retention < Duration::from_mins(1) {
        return Err("a retention is at least 1m".to_owned());
    }
    Ok(retention)
}

/// Bytes, with a suffix as Kubernetes has it, or as people write it.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|digit: char| !digit.is_ascii_digit());
    let (number, suffix) = text.split_at(digits.unwrap_or(text.len()));
    let suffix = suffix.strip_suffix('B').unwrap_or(suffix);
    let (power, base) = match suffix.strip_suffix('i') {
        Some(power) => (power, 1024),
        None => (suffix, 1000_u64),
    };
    let exponent = match power {
        "" if base == 1000 => Some(0),
        "" => None,
        power => "kKMGTPE".find(power).map(|at| at.max(1) as u32),
    };
    let bytes = exponent
        .filter(|_| power.len() <= 1)
        .zip(number.parse::<u64>().ok())
        .and_then(|(exponent, number)| number.checked_mul(base.checked_pow(exponent)?));
    match bytes {
        Some(bytes) if bytes >= LEAST_SIZE => Ok(bytes),
        Some(_) => Err(format!("a size is at least {}Mi", LEAST_SIZE >> 20)),
        None => Err("a size is a number and a unit, such as 500Mi, 20Gi or 1T".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_written_as_kubernetes_or_people_write_them() {
        for (text, bytes) in [
            ("500Mi", Some(500 << 20)),
            ("20Gi", Some(20 << 30)),
            ("20GiB", Some(20 << 30)),
            ("20GB", Some(20_000_000_000)),
            ("1T", Some(1_000_000_000_000)),
            ("300000k", Some(300_000_000)),
            ("300000000", Some(300_000_000)),
            ("10Mi", None),
            ("20", None),
            ("Gi", None),
            ("20i", None),
            ("20Xi", None),
            ("20GG", None),
            ("-20Gi", None),
            ("99999999999Ei", None),
        ] {
            assert_eq!(size(text).ok(), bytes, "{text}");
        }
    }
}
