//! Wiring of the subcommands that serve: store, API, and this host's agent.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use nodestats_api::{App, Exposure, Options};
use nodestats_runtime::{Supervisor, directories, limits};
use nodestats_store::{Credentials, Location, MemoryBudget, Store};
use nodestats_wire::Timestamp;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::arguments::{Api, Serving, Standalone};
use crate::front;

/// Between two looks at what is older than the retention.
const RETENTION_INTERVAL: Duration = Duration::from_mins(1);

/// `nodestats standalone`.
pub(crate) async fn standalone(arguments: Standalone) -> anyhow::Result<()> {
    let data_dir = arguments
        .data_dir
        .unwrap_or_else(|| directories::state("nodestats"));
    let location = Location::Directory(data_dir.clone());
    let (server, address) = Server::start(&arguments.serving, &location).await?;
    let config = nodestats_agent::Config {
        server: format!("http://{}", reachable(address)),
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
    if let Location::Remote { credentials, .. } = &mut location {
        let given = arguments.database_user.zip(arguments.database_password);
        *credentials = given.map(|(user, password)| Credentials { user, password });
    }
    let (mut server, _) = Server::start(&arguments.serving, &location).await?;
    if let Some(address) = arguments.forwarded_listen {
        anyhow::ensure!(
            address.ip().is_loopback(),
            "--forwarded-listen is for this host's loopback, and {address} can be reached by others"
        );
        let listener = bind(address).await?;
        server.forwarded = Some((listener, arguments.forwarded_processes));
    }
    if let Some((address, secret)) = arguments.aggregated_listen.zip(arguments.serving_secret) {
        server.aggregated = Some((bind(address).await?, secret));
    }
    server.run(None).await
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
    /// The listener for the cluster's front proxy, and the Secret of its certificate.
    aggregated: Option<(TcpListener, String)>,
}

impl Server {
    async fn start(serving: &Serving, location: &Location) -> anyhow::Result<(Self, SocketAddr)> {
        let listen = serving.listen;
        let exposure = match listen.ip().is_loopback() {
            true => Exposure::Loopback,
            false if serving.insecure_no_auth => Exposure::Network,
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
        if exposure == Exposure::Network {
            tracing::warn!(%address, "whoever reaches this address may read and write everything");
        }
        let body_limit = usize::from(serving.body_limit_mib) << 20;
        let options = Options {
            body_limit,
            exposure,
            ..Options::default()
        };
        Ok((
            Self {
                listener,
                store,
                options,
                forwarded: None,
                aggregated: None,
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
        if let Some((listener, secret)) = self.aggregated {
            let (known, front) = front::unknown();
            supervisor.spawn("the front", front::follow(secret, known, stop.clone()));
            let router = nodestats_api::aggregated::aggregated_router(app.clone());
            let serving_until = server_stop.clone();
            supervisor.spawn("the server for the front proxy", async move {
                nodestats_api::aggregated::serve(listener, router, front, serving_until).await;
                Ok(())
            });
        }
        let (listener, serving_until) = (self.listener, server_stop.clone());
        supervisor.spawn("the server", async move {
            nodestats_api::serve(listener, nodestats_api::router(app), serving_until).await;
            Ok(())
        });
        supervisor.spawn("retention", retention(self.store.clone(), stop.clone()));
        supervisor.spawn("the agent", async move {
            let result = if let Some(config) = agent {
                nodestats_agent::run(config, stop).await
            } else {
                stop.cancelled().await;
                Ok(())
            };
            server_stop.cancel();
            result
        });
        // The one line for programs that started this one.
        let mut stdout = std::io::stdout().lock();
        let _ = writeln!(stdout, "listening on http://{address}").and_then(|()| stdout.flush());
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
