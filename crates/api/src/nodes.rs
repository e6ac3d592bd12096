//! The registry of nodes: register, list, sign off.

use std::net::IpAddr;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{StatusCode, Uri, header};
use nodestats_core::life::{self, Life, When};
use nodestats_runtime::telemetry;
use nodestats_store::Seen;
use nodestats_wire::v1::{EventKind, Freshness, NodeState, NodeView, Origin, Registration};
use nodestats_wire::{Timestamp, routes};
use tracing::Instrument as _;

use crate::access::{Identity, Target, Want};
use crate::query::{DeleteQuery, ListQuery, ListView, NoQuery, State as Which};
use crate::routes::Node;
use crate::{ApiError, App, body, query};

/// Histories that a host may begin with its token before one of them is removed: each has a share of
/// the disk.
const LIVES_OF_HOST: usize = 16;
/// A node that has been silent for so long, or for six of its intervals, has lost its address to
/// another that registers with the same name and address (an agent that lost its identity).
const SILENCE_SECONDS: f64 = 300.0;

pub(crate) async fn list(
    State(app): State<App>,
    identity: Identity,
    uri: Uri,
) -> Result<Response, ApiError> {
    let query: ListQuery = query::parse(uri.query())?;
    let (list_view, state, now) = (query.view()?, query.state()?, App::now());
    let span = query.span(now)?;
    if span.is_some() && list_view != ListView::Full {
        return Err(ApiError::parameter("from", "from and to go with view=full"));
    }
    let lives = app.store.lives().await?;
    let wanted = lives.iter().filter(|life| match state {
        Which::Live => life.is_live(),
        Which::Gone => !life.is_live(),
        Which::All => true,
    });
    let mut lives: Vec<Life> = wanted.map(|life| Life::clone(life)).collect();
    lives.sort_by_cached_key(|life| (address(life), life.registration.hostname.clone()));
    let lives = app.visible(&identity, lives).await?;
    if list_view == ListView::Freshness {
        let seen = app.store.seen().await?;
        let fresh = |life: &Life| freshness(life, seen.get(&life.uid), now);
        return Ok(Json(lives.iter().map(fresh).collect::<Vec<_>>()).into_response());
    }
    if list_view == ListView::Addresses {
        let mut addresses: Vec<&str> = lives.iter().map(|life| &*life.registration.ip).collect();
        addresses.dedup();
        return Ok(Json(addresses).into_response());
    }
    let mut views = Vec::with_capacity(lives.len());
    for life in &lives {
        let view = view(&app, life, now).await?;
        let within = span.is_none_or(|(from, to)| {
            view.first_sample.is_some_and(|first| first <= to)
                && view.last_sample.is_some_and(|last| last >= from)
        });
        if within {
            views.push(view);
        }
    }
    Ok(Json(views).into_response())
}

fn address(life: &Life) -> Option<IpAddr> {
    life.registration.ip.parse().ok()
}

fn freshness(life: &Life, seen: Option<&Seen>, now: Timestamp) -> Freshness {
    let offset = seen.and_then(|seen| seen.clock_offset_micros);
    Freshness {
        uid: life.uid.clone(),
        origin: life.origin(),
        state: state(life),
        gone_at: life.gone_at,
        registration: life.cluster.clone(),
        last_sample: seen.map(|seen| seen.last_sample),
        age_seconds: seen.map(|seen| now.seconds_since(seen.fresh_at).max(0.0)),
        clock_offset_seconds: offset.map(|micros| micros as f64 / 1e6),
    }
}

fn state(life: &Life) -> NodeState {
    if life.is_live() {
        NodeState::Live
    } else {
        NodeState::Gone
    }
}

async fn view(app: &App, life: &Life, now: Timestamp) -> Result<NodeView, ApiError> {
    let last_sample = app.store.newest(&life.uid).await?;
    let registration = life.registration.clone();
    Ok(NodeView {
        uid: life.uid.clone(),
        hostname: registration.hostname,
        ip: registration.ip,
        addresses: life
            .cluster
            .as_ref()
            .map(|cluster| cluster.addresses.clone())
            .unwrap_or_default(),
        origin: life.origin(),
        state: state(life),
        registered_at: life.registered_at,
        gone_at: life.gone_at,
        first_sample: app.store.oldest(&life.uid).await?,
        last_sample,
        age_seconds: last_sample.map(|last| now.seconds_since(last).max(0.0)),
        kernel: registration.kernel,
        os: registration.os,
        architecture: registration.architecture,
        agent_version: registration.agent_version,
        interval_seconds: registration.interval_seconds,
    })
}

pub(crate) async fn register(
    State(app): State<App>,
    identity: Identity,
    uri: Uri,
    body: Body,
) -> Result<Response, ApiError> {
    let NoQuery {} = query::parse(uri.query())?;
    // Who registers nothing at all learns it before a body is read.
    let own = identity.host().unwrap_or_default();
    let nothing = Target::missing(own, "");
    app.permit(&identity, Want::Register, nothing, own).await?;
    let body = body::receive_small(&app, body).await?;
    let registration: Registration = body::json(&body.bytes)?;
    let (uid, registration) = life::identify(registration)?;
    let now = App::now();
    let name = &registration.hostname;
    let target = Target::missing(name, &uid);
    app.permit(&identity, Want::Register, target, name).await?;
    // One at a time: who reads a life and writes it back must not miss another's change.
    let _turn = app.registrations.lock().await;
    let known = app.store.life(&uid).await?;
    if identity.host().is_some() {
        if let Some(life) = &known {
            let name = &life.registration.hostname;
            app.permit(&identity, Want::Register, Target::of(life), name)
                .await?;
        }
        for mut life in taken_over(&app, &uid, &registration, now).await? {
            identity.audit("sign-off of a silent node", &life, None);
            tracing::info!(old = life.uid, new = uid, "a silent node is taken over");
            app.retire(&mut life, now).await?;
        }
    } else {
        retire_silent_namesakes(&app, &uid, &registration, now).await?;
    }
    let (life, new) = if let Some(mut life) = known {
        if life.origin() == Origin::Kubernetes && life.is_live() {
            return Err(ApiError::registered_by_controller(&uid));
        }
        let before = life.clone();
        let new = life.register(registration, now);
        if life != before {
            app.store.save_life(&life).await?;
        }
        (life, new)
    } else {
        let life = Life::new(uid, registration, now);
        app.store.save_life(&life).await?;
        (life, true)
    };
    if new {
        app.note(&life, EventKind::NodeRegistered, now).await?;
        identity.audit("registration", &life, None);
        tracing::info!(
            uid = life.uid,
            ip = life.registration.ip,
            "a node registered"
        );
    }
    let status = if new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let location = routes::node(&life.registration.ip);
    let view = view(&app, &life, now).await?;
    Ok((status, [(header::LOCATION, location)], Json(view)).into_response())
}

/// `PUT /nodes/{uid}/registration`: what a cluster's controller says of a node.
pub(crate) async fn register_in_cluster(
    State(app): State<App>,
    identity: Identity,
    Node { name: uid, .. }: Node,
    uri: Uri,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let NoQuery {} = query::parse(uri.query())?;
    let target = Target::missing("", &uid);
    app.permit(&identity, Want::Control, target, &uid).await?;
    let body = body::receive_small(&app, body).await?;
    let checked = life::identify_in_cluster(&uid, body::json(&body.bytes)?)?;
    let now = App::now();
    let _turn = app.registrations.lock().await;
    let before = app.store.life(&uid).await?;
    let (life, new) = if let Some(mut life) = before.clone() {
        let new = life.register_in_cluster(checked, now);
        (life, new)
    } else {
        (Life::new_in_cluster(uid, checked, now), true)
    };
    if before.as_ref() != Some(&life) {
        app.store.save_life(&life).await?;
        identity.audit("registration", &life, None);
    }
    if new {
        app.note(&life, EventKind::NodeRegistered, now).await?;
        tracing::info!(
            uid = life.uid,
            name = life.registration.hostname,
            "the controller registered a node"
        );
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn retire_silent_namesakes(
    app: &App,
    uid: &str,
    registration: &Registration,
    now: Timestamp,
) -> Result<(), ApiError> {
    for life in app.store.lives().await?.iter() {
        let same = life.registration.ip == registration.ip
            && life.registration.hostname == registration.hostname;
        // A cluster's node is its controller's to retire.
        let of_cluster = life.origin() == Origin::Kubernetes;
        if !same || life.uid == uid || !life.is_live() || of_cluster {
            continue;
        }
        if is_silent(app, life, Timestamp::MIN, now).await? {
            tracing::info!(
                old = life.uid,
                new = uid,
                "a silent node's name and address are taken over"
            );
            app.retire(&mut Life::clone(life), now).await?;
        }
    }
    Ok(())
}

/// Whether it was not heard of for long, by this server's clock; nobody is silent for longer than it
/// was listened to.
async fn is_silent(
    app: &App,
    life: &Life,
    since: Timestamp,
    now: Timestamp,
) -> Result<bool, ApiError> {
    let heard = app.store.seen_of(&life.uid).await?;
    let heard = heard.map_or(life.registered_at, |seen| seen.fresh_at);
    let last = heard.max(life.registered_at).max(since);
    let intervals = f64::from(life.registration.interval_seconds.unwrap_or_default()) * 6.0;
    Ok(now.seconds_since(last) > SILENCE_SECONDS.max(intervals))
}

/// A host that is known by its token says itself which address it has, and by which UID its history
/// is kept: neither may be what another node is known by. A silent host's address is free; these are
/// to be retired for it.
async fn taken_over(
    app: &App,
    uid: &str,
    registration: &Registration,
    now: Timestamp,
) -> Result<Vec<Life>, ApiError> {
    // A UID is looked for before names are: one that is written like a name would take that.
    if uuid::Uuid::parse_str(uid).is_err() {
        return Err(ApiError::field("uid", "a host's identity is a UUID"));
    }
    let lives = app.store.lives().await?;
    let begun = lives.iter().filter(|life| {
        let hostname = &life.registration.hostname;
        life.uid != uid && hostname.eq_ignore_ascii_case(&registration.hostname)
    });
    let is_known = lives.iter().any(|life| life.uid == uid);
    if !is_known && begun.count() >= LIVES_OF_HOST {
        return Err(ApiError::taken(format!(
            "the host {:?} has begun {LIVES_OF_HOST} histories, as one does that does not keep its \
             identity (the agent's --state-dir); it may begin another when one of them is removed",
            registration.hostname
        )));
    }
    let mut silent = Vec::new();
    for life in &*lives {
        let named = [&*registration.hostname, &*registration.ip];
        if life.uid == uid || !life.is_live() || !named.iter().any(|name| life.is_called(name)) {
            continue;
        }
        let is_free =
            life.origin() == Origin::Rest && is_silent(app, life, app.started, now).await?;
        if !is_free {
            return Err(ApiError::taken(format!(
                "the live node {:?} ({}) has this name or address already",
                life.registration.hostname, life.uid
            )));
        }
        silent.push(Life::clone(life));
    }
    Ok(silent)
}

pub(crate) async fn deregister(
    State(app): State<App>,
    identity: Identity,
    node: Node,
    uri: Uri,
) -> Result<StatusCode, ApiError> {
    let query: DeleteQuery = query::parse(uri.query())?;
    if query.purge()? {
        // Of a node that is gone too: what it left is what is purged.
        let when = When::Span(Timestamp::MIN, Timestamp::MAX);
        let want = Want::Control;
        let life = match app.resolve(&identity, want, &node, When::Now).await {
            Err(error) if error.status() == StatusCode::NOT_FOUND => {
                app.resolve(&identity, want, &node, when).await?
            }
            found => found?,
        };
        // A long history takes its time, and no other node waits for it; one that is cut off is
        // asked for again, since the life is there until nothing else is.
        identity.audit("purge", &life, None);
        app.store.purge_history(&life.uid).await?;
        let _turn = app.registrations.lock().await;
        app.store.purge(&life.uid).await?;
        tracing::info!(uid = life.uid, "a node and its history were removed");
    } else {
        let _turn = app.registrations.lock().await;
        let want = Want::SignOff;
        let mut life = app.resolve(&identity, want, &node, When::Now).await?;
        app.retire(&mut life, App::now()).await?;
        identity.audit("sign-off", &life, None);
        tracing::info!(
            uid = life.uid,
            ip = life.registration.ip,
            "a node signed off"
        );
    }
    Ok(StatusCode::NO_CONTENT)
}

impl App {
    /// A node is managed no more.
    async fn retire(&self, life: &mut Life, now: Timestamp) -> Result<(), ApiError> {
        let was_live = life.is_live();
        life.retire(now);
        self.store.save_life(life).await?;
        if was_live {
            self.note(life, EventKind::NodeGone, now).await?;
        }
        Ok(())
    }

    /// The life that a name in a path means, for somebody who may do with it what they want to.
    pub(crate) async fn resolve(
        &self,
        identity: &Identity,
        want: Want,
        node: &Node,
        when: When,
    ) -> Result<Life, ApiError> {
        let asked = node.name.as_str();
        match self.find(node, when).await {
            Ok(life) => {
                // The request's span, as far as it has room for it.
                let named = if life.cluster.is_some() {
                    "k8s.node.name"
                } else {
                    "host.name"
                };
                tracing::Span::current().record(named, &*life.registration.hostname);
                self.permit(identity, want, Target::of(&life), asked)
                    .instrument(telemetry::part(|| tracing::info_span!("authorise")))
                    .await?;
                Ok(life)
            }
            // Who might not have done it with a node of that name is not told whether there is one.
            Err(error)
                if [StatusCode::NOT_FOUND, StatusCode::CONFLICT].contains(&error.status()) =>
            {
                self.permit(identity, want, Target::missing(asked, asked), asked)
                    .await?;
                if self.may_list(identity).await? {
                    Err(error)
                } else {
                    Err(error.without_names(asked))
                }
            }
            Err(error) => Err(error),
        }
    }

    async fn find(&self, node: &Node, when: When) -> Result<Life, ApiError> {
        let life = self.find_by_name(&node.name, when).await?;
        match &node.meant {
            Some(meant) if !life.was_called(meant) => Err(ApiError::taken(format!(
                "{} says that it has the address {meant}, and its cluster does not; ask by name",
                life.registration.hostname
            ))),
            _ => Ok(life),
        }
    }

    async fn find_by_name(&self, name: &str, when: When) -> Result<Life, ApiError> {
        // An agent asks by UID each time: one row, not all.
        if let Some(life) = self.store.life(name).await?
            && (life.is_live() || when != When::Now)
        {
            return Ok(life);
        }
        let lives = self.store.lives().await?;
        Ok(life::resolve(&lives, name, when)?.clone())
    }
}
