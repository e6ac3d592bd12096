//! Leader election by a Lease (`coordination.k8s.io/v1`), as client-go does it: whoever writes the
//! record holds it, and a record that has not changed for its duration may be taken. Clocks of other
//! machines are not compared; what counts is how long this one has seen no change.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::metrics::Metrics;

/// The Lease's name.
pub(crate) const NAME: &str = "nodestats-controller";
/// Who finds the record unchanged for so long may take it.
const DURATION: Duration = Duration::from_secs(10);
/// The holder writes it so often.
const RENEW: Duration = Duration::from_secs(3);
/// A holder that could not write it for so long no longer holds it; before others may take it.
const DEADLINE: Duration = Duration::from_secs(8);
/// Who waits looks so often.
const RETRY: Duration = Duration::from_secs(1);

pub(crate) struct Lease {
    leases: Api<Object>,
    identity: String,
    seen: Option<(LeaseSpec, Instant)>,
    renewed: Instant,
}

impl Lease {
    pub(crate) fn new(client: Client, namespace: &str, identity: &str) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            identity: identity.to_owned(),
            seen: None,
            renewed: Instant::now(),
        }
    }

    /// Waits until the Lease is held.
    pub(crate) async fn acquire(&mut self, metrics: &Metrics) {
        let mut told = false;
        loop {
            self.renewed = Instant::now();
            match tokio::time::timeout(RENEW, self.attempt()).await {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) => metrics.set_standby(),
                Err(_) => metrics.request_timed_out(),
                Ok(Err(error)) => {
                    metrics.request_failed(&error);
                    if !told {
                        tracing::warn!(
                            error = chain(&error),
                            lease = NAME,
                            "cannot take the lease"
                        );
                        told = true;
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Keeps the Lease; returns when it is lost.
    pub(crate) async fn hold(&mut self, metrics: &Metrics) -> anyhow::Error {
        // Counted from before each request: its answer may have been long on its way.
        let mut renewed = self.renewed;
        loop {
            tokio::time::sleep(RENEW.min(DEADLINE.saturating_sub(renewed.elapsed()))).await;
            let left = DEADLINE.saturating_sub(renewed.elapsed());
            let asked = Instant::now();
            match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(true)) => renewed = asked,
                Ok(Ok(false)) => return anyhow!("another replica has taken the lease"),
                Ok(Err(error)) => metrics.request_failed(&error),
                Err(_) => {}
            }
            if renewed.elapsed() >= DEADLINE {
                return anyhow!("the lease could not be renewed for {DEADLINE:?}");
            }
        }
    }

    /// Gives it up, so that another replica takes it at once.
    pub(crate) async fn release(&mut self) {
        let give_up = async {
            let mut lease = self.leases.get(NAME).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.identity) {
                spec.holder_identity = None;
                spec.lease_duration_seconds = Some(1);
                self.leases
                    .replace(NAME, &PostParams::default(), &lease)
                    .await?;
            }
            Ok::<_, kube::Error>(())
        };
        match tokio::time::timeout(Duration::from_secs(2), give_up).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "the lease was not given up"),
            Err(_) => tracing::warn!("the lease was not given up in time"),
        }
    }

    /// Writes the record, if it is ours or free. A conflict means that another replica was faster.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let now = MicroTime(Timestamp::now());
        let Some(mut lease) = self.leases.get_opt(NAME).await? else {
            let lease = Object {
                metadata: ObjectMeta {
                    name: Some(NAME.to_owned()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.record(&LeaseSpec::default(), now)),
            };
            return won(self.leases.create(&PostParams::default(), &lease).await);
        };
        let found = lease.spec.take().unwrap_or_default();
        if !self.may_take(&found) {
            return Ok(false);
        }
        lease.spec = Some(self.record(&found, now));
        won(self
            .leases
            .replace(NAME, &PostParams::default(), &lease)
            .await)
    }

    fn may_take(&mut self, found: &LeaseSpec) -> bool {
        let holder = found.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        match &self.seen {
            Some((seen, since)) if seen == found => since.elapsed() >= DURATION,
            _ => {
                self.seen = Some((found.clone(), Instant::now()));
                false
            }
        }
    }

    fn record(&self, found: &LeaseSpec, now: MicroTime) -> LeaseSpec {
        let ours = found.holder_identity.as_deref() == Some(&self.identity);
        let transitions = found.lease_transitions.unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if ours {
                found.acquire_time.clone()
            } else {
                Some(now.clone())
            },
            renew_time: Some(now),
            lease_transitions: Some(if ours { transitions } else { transitions + 1 }),
            ..found.clone()
        }
    }
}

fn won(result: Result<Object, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

/// An error with its causes, each once. Of what the API server said its message and its code.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let one = match error.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) => format!("{} ({})", status.message, status.code),
            _ => error.to_string(),
        };
        if !text.contains(&one) {
            text = if text.is_empty() {
                one
            } else {
                format!("{text}: {one}")
            };
        }
        next = error.source();
    }
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A message of the API server may repeat each field of an object.
const LONGEST: usize = 400;
