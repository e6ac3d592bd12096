//! Events of transitions (`events.k8s.io/v1`), each once.
//!
//! An Event is named after what it tells, so that a second replica, or this one after a restart,
//! that wants to tell the same finds it told.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event as Object;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::metrics::Metrics;

/// Events about objects without a namespace are kept there, as those of Nodes are.
const NAMESPACE: &str = "default";
/// Who reports.
const REPORTER: &str = "nodestats.dev/controller";

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// Which occurrence of it: a time, a boot id.
    pub(crate) occurrence: String,
    /// Whether somebody should look.
    pub(crate) warning: bool,
    /// In one word.
    pub(crate) reason: &'static str,
    /// For a person.
    pub(crate) note: String,
}

/// Publishes Events for this replica.
#[derive(Clone)]
pub(crate) struct Publisher {
    client: Client,
    instance: String,
}

impl Publisher {
    pub(crate) fn new(client: Client, instance: &str) -> Self {
        Self {
            client,
            instance: instance.to_owned(),
        }
    }

    /// Publishes one. What cannot be published is logged: nothing waits for an Event.
    pub(crate) async fn publish(&self, metrics: &Metrics, about: &ObjectReference, event: &Event) {
        let object = self.object(about, event);
        let namespace = about.namespace.as_deref().unwrap_or(NAMESPACE);
        let events: Api<Object> = Api::namespaced(self.client.clone(), namespace);
        let params = PostParams::default();
        let created = events.create(&params, &object);
        match tokio::time::timeout(crate::REQUEST_PATIENCE, created).await {
            Ok(Ok(_)) => metrics.event_published(),
            // It is told already.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
            Ok(Err(error)) => {
                metrics.request_failed(&error);
                tracing::warn!(
                    error = crate::lease::chain(&error),
                    event.reason,
                    "no event"
                );
            }
            Err(_) => metrics.request_timed_out(),
        }
    }

    fn object(&self, about: &ObjectReference, event: &Event) -> Object {
        let name = about.name.as_deref().unwrap_or_default();
        let mut hasher = DefaultHasher::new();
        (&about.uid, event.reason, &event.occurrence).hash(&mut hasher);
        let kind = if event.warning { "Warning" } else { "Normal" };
        Object {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:016x}", hasher.finish())),
                ..ObjectMeta::default()
            },
            action: Some("Observe".to_owned()),
            reason: Some(event.reason.to_owned()),
            note: Some(event.note.clone()),
            type_: Some(kind.to_owned()),
            event_time: Some(MicroTime(Timestamp::now())),
            regarding: Some(about.clone()),
            reporting_controller: Some(REPORTER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            ..Object::default()
        }
    }
}
