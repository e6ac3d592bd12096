//! Wiring of the subcommands that serve: store, API, and this host's agent.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use nodestats_api::{Accounts, App, CertificateEnd, Door, Exposure, Kubernetes, Options};
use nodestats_runtime::metrics::Registry;
use nodestats_runtime::{Supervisor, directories, limits};
use nodestats_store::{Credentials, Location, MemoryBudget, Store};
use nodestats_wire::client::Fingerprint;
use nodestats_wire::v1::ServerAddress;
use nodestats_wire::{Timestamp, routes};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use crate::arguments::{Api, DatabaseAccount, Serving, Standalone, Tls};
use crate::tls::Files;
use crate::{local, serving};

/// Between two looks at what is older than the retention and what is to be sealed.
const UPKEEP_INTERVAL: Duration = Duration::from_mins(1);

/// `nodestats standalone`.
pub(crate) async fn standalone(arguments: Standalone, registry: Registry) -> anyhow::Result<()> {
    let data_dir = arguments
        .data_dir
        .unwrap_or_else(|| directories::state("nodestats"));
    let location = Location::Directory(data_dir.clone());
    let server = Server::start(&arguments.serving, &location, None, registry.clone()).await?;
    anyhow::ensure!(
        server.local.is_some(),
        "this host's agent reaches its server by a socket in {}, and there is none",
        data_dir.display()
    );
    let config = nodestats_agent::Config {
        // Not by the listener for others: this one asks for no token and shows no certificate.
        server: nodestats_agent::Server::Socket(local::path(&data_dir)),
        certificate_authority: None,
        fingerprint: None,
        server_token_file: None,
        join_token: None,
        interval: arguments.interval,
        node_ip: arguments.node_ip,
        hostname: arguments.hostname,
        host_root: arguments.host_root,
        state_dir: data_dir.join("agent"),
        buffer_dir: None,
        // Its server is this process: what waits here waits for the disk.
        buffer_bytes: 4 << 20,
        membership: None,
        admin: None,
        registry,
    };
    server.run(Some(config)).await
}

/// `nodestats api`.
pub(crate) async fn api(arguments: Api, registry: Registry) -> anyhow::Result<()> {
    let location = database(arguments.database.database, &arguments.database.account)?;
    nodestats_runtime::tls::use_ring();
    let kubernetes = match &arguments.kubernetes_auth {
        Some(namespace) => Some(asking_kubernetes(namespace).await?),
        None => None,
    };
    let mut server = Server::start(&arguments.serving, &location, kubernetes, registry).await?;
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
    if let Some(secret) = arguments.serving_secret {
        server.encryption = Encryption::Secret(secret);
    }
    server.run(None).await
}

/// The database with who we are there.
pub(crate) fn database(
    mut location: Location,
    account: &DatabaseAccount,
) -> anyhow::Result<Location> {
    if let Location::Remote {
        credentials,
        authorities,
        ..
    } = &mut location
    {
        let given = account.user.clone().zip(account.password.clone());
        *credentials = given.map(|(user, password)| Credentials { user, password });
        if let Some(path) = &account.certificate_authority {
            let pem = std::fs::read(path);
            *authorities = Some(pem.with_context(|| format!("cannot read {}", path.display()))?);
        }
    }
    Ok(location)
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

/// What a listener's certificate is.
enum Encryption {
    /// It has none.
    None,
    /// In files; where nobody else has signed it, others are told its fingerprint.
    Files(Files, Option<Fingerprint>),
    /// In a Secret, which is followed.
    Secret(String),
}

/// Who may reach the listener, and how it comes to know who asks; an error where others could reach
/// it and nobody would be asked, or what they say could be read on the way.
fn access(
    listen: SocketAddr,
    serving: &Serving,
    kubernetes: Option<Door>,
) -> anyhow::Result<(Exposure, Door)> {
    let with_tls = serving.tls.certificate.is_some() || serving.tls.self_signed;
    let is_loopback = listen.ip().is_loopback();
    Ok(match kubernetes {
        Some(door) if is_loopback => (Exposure::Loopback, door),
        Some(door) => (Exposure::Network, door),
        // Who has a token is no page in a browser, whatever name it asks for.
        None if serving.require_tokens && (is_loopback || with_tls) => {
            (Exposure::Network, Door::tokens())
        }
        None if is_loopback => (Exposure::Loopback, Door::open()),
        None if serving.insecure_no_auth => (Exposure::Network, Door::open()),
        None if with_tls => (Exposure::Network, Door::tokens()),
        None => bail!(
            "{listen} can be reached by others: serve with TLS (--tls-self-signed, or --tls-cert and \
             --tls-key), where everybody is asked for a token; or listen on 127.0.0.1; or accept that \
             nobody is asked who they are, with --insecure-no-auth"
        ),
    })
}

/// A listener and an open store.
struct Server {
    listener: TcpListener,
    store: Store,
    options: Options,
    encryption: Encryption,
    /// The socket for who runs this, in the data directory; none where there is no directory.
    local: Option<UnixListener>,
    /// The listener for port-forwards, and whether it shows processes.
    forwarded: Option<(TcpListener, bool)>,
    /// The listener for the cluster's front proxy; only with a Secret.
    aggregated: Option<TcpListener>,
}

impl Server {
    async fn start(
        serving: &Serving,
        location: &Location,
        kubernetes: Option<Door>,
        registry: Registry,
    ) -> anyhow::Result<Self> {
        let (exposure, door) = access(serving.listen, serving, kubernetes)?;
        let memory = MemoryBudget::from_limit(limits::memory());
        let options = nodestats_store::Options {
            retention: serving.retention,
            memory,
            node_quota: serving.node_quota_mib.map(|mib| mib << 20),
            retention_minute: serving.retention_minute,
            retention_hour: serving.retention_hour,
            max_size: serving.max_size,
            meter: registry.meter("nodestats.store"),
        };
        // The listener first: an address in use is found before a database is made.
        let listener = bind(serving.listen).await?;
        let address = listener.local_addr()?;
        let store = Store::open(location, &options).await?;
        if exposure == Exposure::Network && door.is_open() {
            tracing::warn!(%address, "whoever reaches this address may read and write everything");
        }
        let folder = match location {
            Location::Directory(folder) => Some(folder),
            Location::Memory | Location::Remote { .. } => None,
        };
        let encryption = encryption(&serving.tls, folder.map(PathBuf::as_path), address).await?;
        // Some volumes take no sockets; then tokens are issued while no server runs.
        let local = folder.and_then(|folder| match local::listen(folder) {
            Ok(listener) => Some(listener),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "no socket for who runs this");
                None
            }
        });
        let options = Options {
            body_limit: usize::from(serving.body_limit_mib) << 20,
            exposure,
            door,
            cors_origins: serving.cors_origins.clone(),
            registry,
            ..Options::default()
        };
        Ok(Self {
            listener,
            store,
            options,
            encryption,
            local,
            forwarded: None,
            aggregated: None,
        })
    }

    /// Serves until a signal; then the agent ends first, so that its last samples are taken, then
    /// the requests under way, then the database.
    async fn run(self, agent: Option<nodestats_agent::Config>) -> anyhow::Result<()> {
        let shutdown = nodestats_runtime::shutdown_signal()?;
        let address = self.listener.local_addr()?;
        let mut options = self.options;
        if let Encryption::Secret(_) = self.encryption {
            options.certificate = CertificateEnd::awaited();
        }
        let end = options.certificate.clone();
        end.observe(&options.registry);
        let app = App::new(self.store.clone(), options);
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
        let known = serving::Known {
            end: end.clone(),
            ..serving::Known::default()
        };
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
        let mut fingerprint = None;
        let with_tls = match self.encryption {
            Encryption::None => false,
            Encryption::Secret(secret) => {
                let following = serving::follow(secret, known, stop.clone());
                supervisor.spawn("the certificate", following);
                true
            }
            Encryption::Files(files, own) => {
                known.anybody.send_replace(Some(files.first(&end)?));
                fingerprint = own;
                let following = files.follow(known.anybody, end, stop.clone());
                supervisor.spawn("the certificate", following);
                true
            }
        };
        let scheme = if with_tls { "https" } else { "http" };
        if let Some(listener) = self.local {
            let outside = reachable(address).await;
            let server = ServerAddress {
                url: format!("{scheme}://{outside}"),
                fingerprint: fingerprint.map(|fingerprint| fingerprint.to_string()),
            };
            let router = nodestats_api::local_router(&app, server);
            let serving_until = server_stop.clone();
            supervisor.spawn("the server's own socket", async move {
                nodestats_api::serve_locally(listener, router, serving_until).await;
                Ok(())
            });
        }
        let (listener, serving_until) = (self.listener, server_stop.clone());
        let router = nodestats_api::router(app);
        supervisor.spawn("the server", async move {
            if with_tls {
                nodestats_api::serve_tls(listener, router, anybody, serving_until).await;
            } else {
                nodestats_api::serve(listener, router, serving_until).await;
            }
            Ok(())
        });
        supervisor.spawn("upkeep", upkeep(self.store.clone(), stop.clone()));
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
        say(&format!("{scheme}://{address}"), fingerprint);
        let result = supervisor.run(shutdown).await;
        self.store.close().await;
        result
    }
}

/// The lines for programs that started this one.
fn say(url: &str, fingerprint: Option<Fingerprint>) {
    let mut stdout = std::io::stdout().lock();
    let mut said = writeln!(stdout, "listening on {url}");
    if let Some(fingerprint) = fingerprint {
        said = said.and_then(|()| writeln!(stdout, "fingerprint {fingerprint}"));
    }
    let _ = said.and_then(|()| stdout.flush());
}

/// The certificate that the arguments name; the one of one's own is made where it is missing.
async fn encryption(
    tls: &Tls,
    folder: Option<&Path>,
    address: SocketAddr,
) -> anyhow::Result<Encryption> {
    if let Some((certificate, key)) = tls.certificate.clone().zip(tls.key.clone()) {
        let files = Files { certificate, key };
        // What does not do is told before anybody connects.
        files.first(&CertificateEnd::default())?;
        return Ok(Encryption::Files(files, None));
    }
    if !tls.self_signed {
        return Ok(Encryption::None);
    }
    let folder = folder.context(
        "--tls-self-signed keeps its certificate in a data directory, and this database has none: give \
         --tls-cert and --tls-key",
    )?;
    let files = Files::own(folder);
    let outside = reachable(address).await.ip();
    files.make(&[Ipv4Addr::LOCALHOST.into(), outside])?;
    let fingerprint = files.fingerprint()?;
    Ok(Encryption::Files(files, Some(fingerprint)))
}

/// The address that others are likely to reach a listener by.
async fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(nodestats_agent::own_address().await);
    }
    address
}

/// Deletes what is too old, then seals what is left: one after the other, since both delete rows.
async fn upkeep(store: Store, stop: CancellationToken) -> anyhow::Result<()> {
    let warn = |what: &str, done: Result<(), nodestats_store::Error>| {
        if let Err(error) = done {
            // The database may be away for a while; the next look finds the rest.
            tracing::warn!(
                error = format!("{:#}", anyhow::Error::from(error)),
                "{what} failed"
            );
        }
    };
    let now = || Timestamp::from_system(SystemTime::now());
    loop {
        let look = async {
            warn("retention", store.retain(now()).await);
            warn("sealing", store.seal(now()).await);
        };
        tokio::select! {
            () = look => {}
            () = stop.cancelled() => return Ok(()),
        }
        tokio::select! {
            () = tokio::time::sleep(UPKEEP_INTERVAL) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}
