//! Wiring of the subcommands that serve: store, API, and this host's agent.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use nodestats_api::{Accounts, App, Door, Exposure, Kubernetes, Options};
use nodestats_runtime::{Supervisor, directories, limits};
use nodestats_store::{Credentials, Location, MemoryBudget, Store};
use nodestats_wire::{Timestamp, routes};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::arguments::{Api, Serving, Standalone};
use crate::serving;

/// Between two looks at what is older than the retention.
const RETENTION_INTERVAL: Duration = Duration::from_mins(1);

/// `nodestats standalone`.
pub(crate) async fn standalone(arguments: Standalone) -> anyhow::Result<()> {
    let data_dir = arguments
        .data_dir
        .unwrap_or_else(|| directories::state("nodestats"));
    let location = Location::Directory(data_dir.clone());
    let (server, address) = Server::start(&arguments.serving, &location, Door::Open).await?;
    let config = nodestats_agent::Config {
        server: format!("http://{}", reachable(address)),
        certificate_authority: None,
        server_token_file: None,
        interval: arguments.interval,
        node_ip: arguments.node_ip,
        hostname: arguments.hostname,
        host_root: arguments.host_root,
        state_dir: data_dir.join("agent"),
        // Its server is this process: what waits here waits for the disk.
        buffer_bytes: 4 << 20,
        membership: None,
        admin: None,
    };
    server.run(Some(config)).await
}

/// `nodestats api`.
pub(crate) async fn api(arguments: Api) -> anyhow::Result<()> {
    let mut location = arguments.database;
    if let Location::Remote {
        credentials,
        authorities,
        ..
    } = &mut location
    {
        let given = arguments.database_user.zip(arguments.database_password);
        *credentials = given.map(|(user, password)| Credentials { user, password });
        if let Some(path) = arguments.database_certificate_authority {
            let pem = std::fs::read(&path);
            *authorities = Some(pem.with_context(|| format!("cannot read {}", path.display()))?);
        }
    }
    nodestats_runtime::tls::use_ring();
    let door = match &arguments.kubernetes_auth {
        Some(namespace) => asking_kubernetes(namespace).await?,
        None => Door::Open,
    };
    let (mut server, _) = Server::start(&arguments.serving, &location, door).await?;
    if let Some(address) = arguments.forwarded_listen {
        anyhow::ensure!(
            address.ip().is_loopback(),
            "--forwarded-listen is for this host's loopback, and {address} can be reached by others"
        );
        let listener = bind(address).await?;
        server.forwarded = Some((listener, arguments.forwarded_processes));
    }
    if let Some(address) = arguments.aggregated_listen {
        server.aggregated = Some(bind(address).await?);
    }
    server.secret = arguments.serving_secret;
    server.run(None).await
}

/// Kubernetes is asked who calls, and what they may.
async fn asking_kubernetes(namespace: &str) -> anyhow::Result<Door> {
    let client = kube::Client::try_default().await;
    let client = client.context("--kubernetes-auth needs a cluster to ask")?;
    let account = |name: &str| format!("system:serviceaccount:{namespace}:{name}");
    let accounts = Accounts {
        agent: account("nodestats-agent"),
        controller: account("nodestats-controller"),
    };
    let authority = Kubernetes::new(client, routes::AUDIENCE);
    Ok(Door::asking(authority, accounts))
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot listen on {address}"))
}

/// The address that this process reaches its own listener by.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    address
}

/// A listener and an open store.
struct Server {
    listener: TcpListener,
    store: Store,
    options: Options,
    /// The listener for port-forwards, and whether it shows processes.
    forwarded: Option<(TcpListener, bool)>,
    /// The listener for the cluster's front proxy; only with a Secret.
    aggregated: Option<TcpListener>,
    /// The Secret of the certificate that all is served with, save port-forwards.
    secret: Option<String>,
}

impl Server {
    async fn start(
        serving: &Serving,
        location: &Location,
        door: Door,
    ) -> anyhow::Result<(Self, SocketAddr)> {
        let is_open = matches!(door, Door::Open);
        let listen = serving.listen;
        let exposure = match listen.ip().is_loopback() {
            true => Exposure::Loopback,
            false if serving.insecure_no_auth || !is_open => Exposure::Network,
            false => bail!(
                "{listen} can be reached by others, and nobody is asked who they are: listen on \
                 127.0.0.1, or accept that with --insecure-no-auth"
            ),
        };
        let memory = MemoryBudget::from_limit(limits::memory());
        let options = nodestats_store::Options {
            retention: serving.retention,
            memory,
        };
        // The listener first: an address in use is found before a database is made.
        let listener = bind(listen).await?;
        let address = listener.local_addr()?;
        let store = Store::open(location, &options).await?;
        if exposure == Exposure::Network && is_open {
            tracing::warn!(%address, "whoever reaches this address may read and write everything");
        }
        let body_limit = usize::from(serving.body_limit_mib) << 20;
        let options = Options {
            body_limit,
            exposure,
            door,
            ..Options::default()
        };
        Ok((
            Self {
                listener,
                store,
                options,
                forwarded: None,
                aggregated: None,
                secret: None,
            },
            address,
        ))
    }

    /// Serves until a signal; then the agent ends first, so that its last samples are taken, then
    /// the requests under way, then the database.
    async fn run(self, agent: Option<nodestats_agent::Config>) -> anyhow::Result<()> {
        let address = self.listener.local_addr()?;
        let app = App::new(self.store.clone(), self.options);
        let mut supervisor = Supervisor::default();
        let stop = supervisor.stop_token();
        let server_stop = CancellationToken::new();
        if let Some((listener, processes)) = self.forwarded {
            let router = nodestats_api::forwarded_router(&app, processes);
            let serving_until = server_stop.clone();
            supervisor.spawn("the server for port-forwards", async move {
                nodestats_api::serve(listener, router, serving_until).await;
                Ok(())
            });
        }
        let known = serving::Known::default();
        let anybody = known.anybody.subscribe();
        if let Some(listener) = self.aggregated {
            let front = known.front.subscribe();
            let router = nodestats_api::aggregated::aggregated_router(app.clone());
            let serving_until = server_stop.clone();
            supervisor.spawn("the server for the front proxy", async move {
                nodestats_api::aggregated::serve(listener, router, front, serving_until).await;
                Ok(())
            });
        }
        let (listener, serving_until) = (self.listener, server_stop.clone());
        let router = nodestats_api::router(app);
        let scheme = if let Some(secret) = self.secret {
            supervisor.spawn(
                "the certificate",
                serving::follow(secret, known, stop.clone()),
            );
            supervisor.spawn("the server", async move {
                nodestats_api::serve_tls(listener, router, anybody, serving_until).await;
                Ok(())
            });
            "https"
        } else {
            supervisor.spawn("the server", async move {
                nodestats_api::serve(listener, router, serving_until).await;
                Ok(())
            });
            "http"
        };
        supervisor.spawn("retention", retention(self.store.clone(), stop.clone()));
        supervisor.spawn("the agent", async move {
            let result = if let Some(config) = agent {
                Box::pin(nodestats_agent::run(config, stop)).await
            } else {
                stop.cancelled().await;
                Ok(())
            };
            server_stop.cancel();
            result
        });
        // The one line for programs that started this one.
        let mut stdout = std::io::stdout().lock();
        let _ = writeln!(stdout, "listening on {scheme}://{address}").and_then(|()| stdout.flush());
        drop(stdout);
        let result = supervisor.run(nodestats_runtime::shutdown_signal()).await;
        self.store.close().await;
        result
    }
}

async fn retention(store: Store, stop: CancellationToken) -> anyhow::Result<()> {
    loop {
        let done = tokio::select! {
            done = store.retain(Timestamp::from_system(SystemTime::now())) => done,
            () = stop.cancelled() => return Ok(()),
        };
        if let Err(error) = done {
            // The database may be away for a while; the next look finds the rest.
            tracing::warn!(
                error = format!("{:#}", anyhow::Error::from(error)),
                "retention failed"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(RETENTION_INTERVAL) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}
