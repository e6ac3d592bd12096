//! Pods: they are watched, and the API is told what is known of them, so that their names outlive
//! them. Nothing of a pod is kept here but its UID and a digest of what was told.
//!
//! Found by comparing: what the API knows of pods that live, beside a complete list of them. So a
//! replica that begins to lead tells what changed meanwhile and nothing else, and a pod that was
//! deleted while nobody watched is found.

mod quantity;
mod record;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash as _, Hasher as _};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use nodestats_wire::Timestamp;
use nodestats_wire::client;
use nodestats_wire::v1::{GonePod, Owner, PodChanges, PodRecord, ToldPod};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::observe::Node;
use crate::{REQUEST_PATIENCE, WATCH_SECONDS, lease};
use record::Pod;

/// Pods that are told at once, and bytes of them: the API takes bodies of megabytes.
const BATCH: usize = 200;
const BATCH_BYTES: usize = 1 << 20;
/// What has changed is told no later than this.
const PATIENCE: Duration = Duration::from_secs(1);
/// After a failure it begins anew after so long, and after another twice as long, up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// What was told is compared with what the API knows this often: it may have lost its data.
const COMPARE_AGAIN: Duration = Duration::from_hours(1);
/// Pods that are listed at once: their list is parsed page by page.
const PAGE: u32 = 250;
/// Workloads that are remembered by what they control.
const WORKLOADS: usize = 20_000;
/// Objects on whose node nothing is known yet are told after so many looks all the same.
const LOOKS: u8 = 30;

type Guarded<K> = DeserializeGuard<K>;

/// What the teller works with.
pub(crate) struct Teller<'a> {
    pub(crate) client: Client,
    pub(crate) api: &'a client::Client,
    pub(crate) nodes: &'a Store<Guarded<Node>>,
    pub(crate) metrics: &'a Metrics,
    /// Labels that are told.
    pub(crate) labels: &'a [String],
}

/// Why it begins anew.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the API does not take what is told of pods")]
    Tell(#[source] client::Error),
    #[error("pods cannot be watched")]
    Watch(#[source] Box<watcher::Error>),
    #[error("it is time to compare again")]
    Again,
}

/// Tells of pods for ever.
pub(crate) async fn keep(teller: Teller<'_>) {
    let mut backoff = BACKOFF.0;
    loop {
        let begin = Instant::now();
        let Err(error) = Session::begin(&teller).await;
        if matches!(error, Error::Again) {
            continue;
        }
        if begin.elapsed() > BACKOFF.1 {
            backoff = BACKOFF.0;
        }
        teller.metrics.pods_failed();
        tracing::warn!(error = lease::chain(&error), "pods are told of again later");
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// One list and what follows it.
struct Session<'a> {
    teller: &'a Teller<'a>,
    /// What was told last of each pod that lives, by its UID.
    known: HashMap<Box<str>, u64>,
    /// The pods of a list under way.
    listed: HashSet<Box<str>>,
    changes: PodChanges,
    digests: Vec<(Box<str>, u64)>,
    /// Of what is to be told.
    bytes: usize,
    /// Pods whose node is not known yet, with the looks that there were.
    waiting: Vec<(Pod, u8)>,
    /// What is at the top of an owner, by the owner's UID.
    workloads: BTreeMap<String, Owner>,
}

impl<'a> Session<'a> {
    async fn begin(teller: &'a Teller<'a>) -> Result<std::convert::Infallible, Error> {
        let known = teller.api.pod_digests().await.map_err(Error::Tell)?;
        let known = known.into_iter().filter_map(|one| {
            let digest = u64::from_str_radix(&one.digest, 16).ok()?;
            Some((one.uid.into_boxed_str(), digest))
        });
        let mut session = Self {
            teller,
            known: known.collect(),
            listed: HashSet::new(),
            changes: PodChanges::default(),
            digests: Vec::new(),
            bytes: 0,
            waiting: Vec::new(),
            workloads: BTreeMap::new(),
        };
        // Nodes first: a pod is told with its node's UID.
        let _ = tokio::time::timeout(BACKOFF.1, teller.nodes.wait_until_ready()).await;
        session.watch().await
    }

    async fn watch(&mut self) -> Result<std::convert::Infallible, Error> {
        let pods = Api::<Guarded<Pod>>::all(self.teller.client.clone());
        let config = watcher::Config::default()
            .timeout(WATCH_SECONDS)
            .page_size(PAGE);
        let mut events = std::pin::pin!(watcher(pods, config));
        let end = Instant::now() + COMPARE_AGAIN;
        let mut tick = tokio::time::interval(PATIENCE);
        loop {
            // While it is told nothing is read: what waits is bounded by what is under way.
            tokio::select! {
                event = events.try_next() => {
                    match event {
                        Ok(Some(event)) => self.take(event).await?,
                        Ok(None) => return Err(Error::Again),
                        Err(error) => {
                            self.teller.metrics.watch_failed(&error);
                            return Err(Error::Watch(Box::new(error)));
                        }
                    }
                }
                _ = tick.tick() => {
                    self.look_again().await?;
                    self.tell().await?;
                    if Instant::now() > end {
                        return Err(Error::Again);
                    }
                }
            }
            if self.is_full() {
                self.tell().await?;
            }
        }
    }

    async fn take(&mut self, event: Event<Guarded<Pod>>) -> Result<(), Error> {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(pod) => {
                if let Some(uid) = pod.uid() {
                    self.listed.insert(uid.into_boxed_str());
                }
                self.look_at(pod).await;
            }
            Event::InitDone => {
                let gone = self.known.keys().filter(|uid| !self.listed.contains(*uid));
                let gone: Vec<_> = gone.cloned().collect();
                self.listed = HashSet::new();
                let ended_at = now();
                for part in gone.chunks(BATCH) {
                    for uid in part {
                        self.known.remove(uid);
                        self.changes.gone.push(GonePod {
                            uid: uid.to_string(),
                            ended_at,
                        });
                    }
                    self.tell().await?;
                }
            }
            Event::Apply(pod) => self.look_at(pod).await,
            Event::Delete(pod) => self.end(pod).await,
        }
        Ok(())
    }

    async fn look_at(&mut self, pod: Guarded<Pod>) {
        match pod.0 {
            Ok(pod) => {
                self.forget_waiting(pod.metadata.uid.as_deref());
                self.consider(pod, 0).await;
            }
            Err(invalid) => {
                self.teller.metrics.unparsable();
                let name = invalid.metadata.name.as_deref().unwrap_or_default();
                tracing::warn!(name, error = invalid.error, "a Pod cannot be read");
            }
        }
    }

    async fn consider(&mut self, pod: Pod, looks: u8) {
        let node_uid = pod.node().and_then(|name| self.node_uid(name));
        if pod.node().is_some() && node_uid.is_none() && looks < LOOKS {
            self.waiting.push((pod, looks + 1));
            return;
        }
        let workload = self.workload(&pod).await;
        let Some(record) = pod.record(node_uid, workload, self.teller.labels) else {
            return;
        };
        let (digest, bytes) = digest(&record);
        if self.known.get(&*record.uid) == Some(&digest) {
            // What it was in between is not what it is.
            self.withdraw(&record.uid);
        } else {
            self.add(record, digest, bytes);
        }
    }

    /// Forgets what was to be told of a pod.
    fn withdraw(&mut self, uid: &str) {
        self.changes.pods.retain(|told| told.pod.uid != uid);
        self.digests.retain(|(of, _)| **of != *uid);
    }

    fn add(&mut self, record: PodRecord, digest: u64, bytes: usize) {
        self.bytes += bytes;
        // Of several states between two tellings the last one is told.
        self.withdraw(&record.uid);
        self.digests
            .push((record.uid.clone().into_boxed_str(), digest));
        self.changes.pods.push(ToldPod {
            digest: format!("{digest:016x}"),
            pod: record,
        });
    }

    async fn end(&mut self, pod: Guarded<Pod>) {
        let uid = pod.uid().unwrap_or_default();
        self.forget_waiting(Some(&uid));
        let Ok(pod) = pod.0 else {
            self.changes.gone.push(GonePod {
                uid,
                ended_at: now(),
            });
            return;
        };
        let node_uid = pod.node().and_then(|name| self.node_uid(name));
        let workload = self.workload(&pod).await;
        if let Some(mut record) = pod.record(node_uid, workload, self.teller.labels) {
            // A deletion is asked for with a grace period: it is over when the object is gone.
            let deleted = pod
                .deleted_at()
                .map_or_else(now, |at| at.max(record.created_at))
                .min(now());
            record.ended_at.get_or_insert(deleted);
            let (digest, bytes) = digest(&record);
            self.add(record, digest, bytes);
        }
    }

    /// An older state of a pod waits no longer.
    fn forget_waiting(&mut self, uid: Option<&str>) {
        self.waiting
            .retain(|(waits, _)| waits.metadata.uid.as_deref() != uid);
    }

    async fn look_again(&mut self) -> Result<(), Error> {
        for (pod, looks) in std::mem::take(&mut self.waiting) {
            self.consider(pod, looks).await;
            if self.is_full() {
                self.tell().await?;
            }
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.changes.pods.len() + self.changes.gone.len() >= BATCH || self.bytes >= BATCH_BYTES
    }

    async fn tell(&mut self) -> Result<(), Error> {
        self.bytes = 0;
        if self.changes == PodChanges::default() {
            return Ok(());
        }
        let changes = std::mem::take(&mut self.changes);
        match self.teller.api.tell_of_pods(&changes).await {
            Ok(()) => {}
            // One of them is what the API does not take: the others are told without it.
            Err(error) if is_of_one(&error) => self.tell_each(&changes).await?,
            Err(error) => return Err(Error::Tell(error)),
        }
        self.teller
            .metrics
            .pods_told(changes.pods.len() + changes.gone.len());
        for (uid, digest) in self.digests.drain(..) {
            self.known.insert(uid, digest);
        }
        let ended = changes
            .pods
            .iter()
            .filter(|told| told.pod.ended_at.is_some());
        for told in ended {
            self.known.remove(&*told.pod.uid);
        }
        self.teller.metrics.set_pods(self.known.len());
        Ok(())
    }

    async fn tell_each(&self, changes: &PodChanges) -> Result<(), Error> {
        let gone = PodChanges {
            pods: Vec::new(),
            gone: changes.gone.clone(),
        };
        self.teller
            .api
            .tell_of_pods(&gone)
            .await
            .map_err(Error::Tell)?;
        for told in &changes.pods {
            let one = PodChanges {
                pods: vec![told.clone()],
                gone: Vec::new(),
            };
            match self.teller.api.tell_of_pods(&one).await {
                Err(error) if !is_of_one(&error) => return Err(Error::Tell(error)),
                Err(error) => {
                    self.teller.metrics.pods_failed();
                    let (namespace, name) = (&told.pod.namespace, &told.pod.name);
                    tracing::warn!(namespace, name, %error, "the API does not take a pod");
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn node_uid(&self, name: &str) -> Option<String> {
        let node = self.teller.nodes.get(&ObjectRef::new(name))?;
        let node = node.0.as_ref().ok()?;
        Some(node.uid().to_owned())
    }

    /// What is at the top of what controls a pod; `None` where nothing does, and where it cannot be
    /// found out now.
    async fn workload(&mut self, pod: &Pod) -> Option<Owner> {
        let owner = pod.controller()?;
        if !matches!(&*owner.kind, "ReplicaSet" | "Job") {
            return Some(record::owner(owner));
        }
        if let Some(known) = self.workloads.get(&owner.uid) {
            return Some(known.clone());
        }
        let namespace = pod.namespace().unwrap_or_default();
        let client = self.teller.client.clone();
        let found = if owner.kind == "Job" {
            let jobs = Api::<Job>::namespaced(client, &namespace);
            metadata_of(&jobs, &owner.name, self.teller.metrics).await
        } else {
            let sets = Api::<ReplicaSet>::namespaced(client, &namespace);
            metadata_of(&sets, &owner.name, self.teller.metrics).await
        };
        // One that was made anew has nothing to do with this pod.
        let metadata = found.filter(|metadata| metadata.uid.as_deref() == Some(&owner.uid))?;
        let top = record::controller_of(&metadata).unwrap_or(owner);
        let top = record::owner(top);
        if self.workloads.len() >= WORKLOADS {
            self.workloads.clear();
        }
        self.workloads.insert(owner.uid.clone(), top.clone());
        Some(top)
    }
}

/// The metadata of an object, and nothing else of it; `None` where there is none, or no answer: it is
/// asked for again with the next pod of it.
async fn metadata_of<K: Clone + DeserializeOwned + std::fmt::Debug>(
    objects: &Api<K>,
    name: &str,
    metrics: &Metrics,
) -> Option<ObjectMeta> {
    let found = tokio::time::timeout(REQUEST_PATIENCE, objects.get_metadata_opt(name)).await;
    match found {
        Ok(Ok(found)) => found.map(|found| found.metadata),
        Ok(Err(error)) => {
            metrics.request_failed(&error);
            None
        }
        Err(_) => {
            metrics.request_timed_out();
            None
        }
    }
}

/// Whether it is what was told that the API does not take, and not who told it: 401 and 403 say nothing
/// of a pod, and what they refuse is told again.
fn is_of_one(error: &client::Error) -> bool {
    matches!(error.status(), Some(400 | 413 | 422))
}

fn now() -> Timestamp {
    Timestamp::from_system(std::time::SystemTime::now())
}

/// What tells two states of a pod apart, and how long it is. Another one of another version of this
/// program is told once more, and nothing else.
fn digest(pod: &PodRecord) -> (u64, usize) {
    let mut hasher = DefaultHasher::new();
    let json = serde_json::to_vec(pod).expect("a pod is plain data");
    json.hash(&mut hasher);
    (hasher.finish(), json.len())
}
