//! Pods by what Kubernetes says of them: rows `pod:[namespace, name, created, uid]`, so that the pods
//! that had a name are a range of keys. `pod_uid:uid` leads to each, and says of those that live what
//! was told last; `pod_end:[ended, uid]` is the order in which they are forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use nodestats_core::event;
use nodestats_core::pod::merge;
use nodestats_wire::Timestamp;
use nodestats_wire::v1::{GonePod, PodDigest, PodRecord, ToldPod};
use surrealdb::types::{
    Array, Bytes, Object, RecordId, RecordIdKey, RecordIdKeyRange, SurrealValue, Value,
};

use crate::database::bind;
use crate::events::{self, bind_events};
use crate::{Error, NewEvent, Order, Store};

/// Rows that are read or deleted at once.
const PAGE: usize = 500;

/// Where a pod's row is: namespace, name, when it was made, UID.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodKey(String, String, i64, String);

impl PodKey {
    /// The key of a pod.
    pub fn of(pod: &PodRecord) -> Self {
        Self(
            pod.namespace.clone(),
            pod.name.clone(),
            pod.created_at.micros(),
            pod.uid.clone(),
        )
    }

    fn key(&self) -> RecordIdKey {
        Array::from(vec![
            self.0.clone().into_value(),
            self.1.clone().into_value(),
            self.2.into_value(),
            self.3.clone().into_value(),
        ])
        .into()
    }

    fn record(&self) -> RecordId {
        RecordId::new("pod", self.key())
    }
}

fn uid_record(uid: &str) -> Value {
    RecordId::new("pod_uid", uid).into_value()
}

fn end_key(ended: Timestamp, uid: &str) -> RecordIdKey {
    Array::from(vec![
        ended.micros().into_value(),
        uid.to_owned().into_value(),
    ])
    .into()
}

fn prefix(parts: &[&str]) -> RecordIdKey {
    let parts = parts.iter().map(|part| (*part).to_owned().into_value());
    Array::from(parts.collect::<Vec<_>>()).into()
}

fn row<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    Object::from_iter(fields).into_value()
}

/// What there is to write about pods.
#[derive(Default)]
struct Rows {
    pods: Vec<Value>,
    uids: Vec<Value>,
    ends: Vec<Value>,
    /// What happened to their containers.
    events: Vec<NewEvent>,
    bytes: usize,
}

impl Rows {
    fn add(&mut self, pod: &PodRecord, digest: &str) {
        let key = PodKey::of(pod).record();
        let json = serde_json::to_vec(pod).expect("a pod is plain data");
        self.bytes += json.len() + 256;
        let live = pod.ended_at.is_none();
        for uid in std::iter::once(&pod.uid).chain(&pod.static_uid) {
            self.uids.push(row([
                ("id", uid_record(uid)),
                ("pod", key.clone().into_value()),
                ("digest", digest.to_owned().into_value()),
                // The other name is nobody's to tell of.
                ("live", (live && *uid == pod.uid).into_value()),
            ]));
        }
        if let Some(ended) = pod.ended_at {
            let id = RecordId::new("pod_end", end_key(ended, &pod.uid));
            self.ends.push(row([("id", id.into_value())]));
        }
        self.pods.push(row([
            ("id", key.into_value()),
            ("r", Bytes::from(json).into_value()),
        ]));
    }
}

const SAVE: &str = "\
     INSERT INTO pod $pods ON DUPLICATE KEY UPDATE r = $input.r RETURN NONE; \
     INSERT INTO pod_uid $uids ON DUPLICATE KEY UPDATE \
         pod = $input.pod, digest = $input.digest, live = $input.live RETURN NONE; \
     INSERT INTO pod_end $ends ON DUPLICATE KEY UPDATE id = id RETURN NONE; ";

impl Store {
    /// Keeps what was told of pods, beside what was told before. One teller at a time.
    pub async fn save_pods(&self, told: &[ToldPod], gone: &[GonePod]) -> Result<(), Error> {
        for part in told.chunks(PAGE) {
            let keys: Vec<RecordId> = part
                .iter()
                .map(|told| PodKey::of(&told.pod).record())
                .collect();
            let known = self.pods_at(keys).await?;
            let mut known: BTreeMap<String, PodRecord> = known
                .into_iter()
                .map(|pod| (pod.uid.clone(), pod))
                .collect();
            let mut rows = Rows::default();
            for told in part {
                let before = known.remove(&told.pod.uid);
                let pod = merge(before.clone(), told.pod.clone());
                let node = pod.node_uid.clone().unwrap_or_default();
                let happened = event::of_pod(before.as_ref(), &pod);
                let happened = happened.into_iter();
                rows.events
                    .extend(happened.map(|event| NewEvent::of_container(&node, event)));
                rows.add(&pod, &told.digest);
            }
            let is_reconciled = rows.events.iter().any(NewEvent::is_reconciled);
            let _telling = self.telling(is_reconciled).await;
            rows.events = self.reconcile_events(rows.events).await?;
            self.write_pods(rows).await?;
        }
        for part in gone.chunks(PAGE) {
            let uids: Vec<&str> = part.iter().map(|gone| &*gone.uid).collect();
            let mut known = self.pods_of(&uids).await?;
            let mut rows = Rows::default();
            for gone in part {
                if let Some(mut pod) = known.remove(&gone.uid).filter(|pod| pod.ended_at.is_none())
                {
                    pod.ended_at = Some(gone.ended_at);
                    rows.add(&pod, "");
                }
            }
            self.write_pods(rows).await?;
        }
        Ok(())
    }

    async fn write_pods(&self, rows: Rows) -> Result<(), Error> {
        if rows.pods.is_empty() {
            return Ok(());
        }
        let mut variables = bind([
            ("pods", rows.pods.into_value()),
            ("uids", rows.uids.into_value()),
            ("ends", rows.ends.into_value()),
        ]);
        let mut bytes = rows.bytes;
        let mut save_events = "";
        if !rows.events.is_empty() {
            bytes += bind_events(rows.events.iter(), &mut variables);
            save_events = events::SAVE;
        }
        let statements = format!("BEGIN; {SAVE}{save_events}COMMIT");
        self.database
            .write(&statements, variables, bytes)
            .await
            .map_err(Error::Unavailable)
    }

    async fn pods_at(&self, keys: Vec<RecordId>) -> Result<Vec<PodRecord>, Error> {
        let variables = bind([("pod", keys.into_value())]);
        let rows: Vec<Value> = self
            .database
            .select("SELECT VALUE r FROM $pod", variables)
            .await
            .map_err(Error::Unavailable)?;
        rows.into_iter().map(read).collect()
    }

    /// The pods of these UIDs, as far as they are known, by the UID that was asked for.
    pub async fn pods_of(&self, uids: &[&str]) -> Result<BTreeMap<String, PodRecord>, Error> {
        let mut found = BTreeMap::new();
        for part in uids.chunks(PAGE) {
            let records: Vec<Value> = part.iter().map(|uid| uid_record(uid)).collect();
            let variables = bind([("pod_uid", records.into_value())]);
            let keys: Vec<RecordId> = self
                .database
                .select("SELECT VALUE pod FROM $pod_uid", variables)
                .await
                .map_err(Error::Unavailable)?;
            for pod in self.pods_at(keys).await? {
                let names =
                    |uid: &&&str| pod.uid == **uid || pod.static_uid.as_deref() == Some(**uid);
                for uid in part.iter().filter(names) {
                    found.insert((*uid).to_owned(), pod.clone());
                }
            }
        }
        Ok(found)
    }

    /// The pods that have had this name, newest first: the latest of very many.
    pub async fn pods_named(&self, namespace: &str, name: &str) -> Result<Vec<PodRecord>, Error> {
        let start = prefix(&[namespace, name]);
        let end = prefix(&[namespace, &format!("{name}\0")]);
        let range = RecordIdKeyRange {
            start: Bound::Included(start),
            end: Bound::Excluded(end),
        };
        self.pods_within(range, Order::Descending, PAGE).await
    }

    /// At most `limit` pods after `after`, of one namespace or of all, by namespace, name and age.
    pub async fn pods(
        &self,
        namespace: Option<&str>,
        after: Option<&PodKey>,
        limit: usize,
    ) -> Result<Vec<PodRecord>, Error> {
        let start = match (after, namespace) {
            (Some(after), _) => Bound::Excluded(after.key()),
            (None, Some(namespace)) => Bound::Included(prefix(&[namespace])),
            (None, None) => Bound::Included(prefix(&[""])),
        };
        let end = match namespace {
            Some(namespace) => prefix(&[&format!("{namespace}\0")]),
            // Beyond all names of namespaces (RFC 1123 labels).
            None => prefix(&["\u{10FFFF}"]),
        };
        let range = RecordIdKeyRange {
            start,
            end: Bound::Excluded(end),
        };
        self.pods_within(range, Order::Ascending, limit).await
    }

    async fn pods_within(
        &self,
        range: RecordIdKeyRange,
        order: Order,
        limit: usize,
    ) -> Result<Vec<PodRecord>, Error> {
        let variables = bind([
            ("pod", RecordId::new("pod", range).into_value()),
            ("limit", (limit as i64).into_value()),
        ]);
        let statement = match order {
            Order::Ascending => "SELECT id, r FROM array::first([$pod]) LIMIT $limit",
            Order::Descending => "SELECT id, r FROM $pod ORDER BY id DESC LIMIT $limit",
        };
        let rows: Vec<Value> = self
            .database
            .select(statement, variables)
            .await
            .map_err(Error::Unavailable)?;
        let row = |row| match row {
            Value::Object(mut row) => read(row.remove("r").unwrap_or(Value::None)),
            _ => Err(Error::Damaged("pod")),
        };
        rows.into_iter().map(row).collect()
    }

    /// What was told last of all pods that have not ended.
    pub async fn pod_digests(&self) -> Result<Vec<PodDigest>, Error> {
        let rows: Vec<Value> = self
            .database
            .select(
                "SELECT record::id(id) AS uid, digest FROM pod_uid WHERE live = true",
                bind([]),
            )
            .await
            .map_err(Error::Unavailable)?;
        let read = |row: Value| serde_json::from_value(row.into_json_value()).ok();
        let digests: Option<Vec<PodDigest>> = rows.into_iter().map(read).collect();
        digests.ok_or(Error::Damaged("pod"))
    }

    /// Forgets the pods that ended before `horizon`, in bounded pieces.
    pub(crate) async fn forget_pods(&self, horizon: Timestamp) -> Result<(), Error> {
        loop {
            let range = RecordIdKeyRange {
                start: Bound::Unbounded,
                end: Bound::Excluded(Array::from(vec![horizon.micros().into_value()]).into()),
            };
            let variables = bind([
                ("pod_end", RecordId::new("pod_end", range).into_value()),
                ("limit", (PAGE as i64).into_value()),
            ]);
            let ends: Vec<RecordId> = self
                .database
                .select(
                    "SELECT VALUE id FROM array::first([$pod_end]) LIMIT $limit",
                    variables,
                )
                .await
                .map_err(Error::Unavailable)?;
            if ends.is_empty() {
                return Ok(());
            }
            let uids: BTreeSet<String> = ends.iter().filter_map(uid_of_end).collect();
            let asked: Vec<&str> = uids.iter().map(String::as_str).collect();
            let mut rows: Vec<Value> = ends.into_iter().map(SurrealValue::into_value).collect();
            for pod in self.pods_of(&asked).await?.into_values() {
                // It ended later than this row says, where another one says when.
                if pod.ended_at.is_some_and(|ended| ended < horizon) {
                    // The other name of a static pod is the next one's by now.
                    rows.push(uid_record(&pod.uid));
                    rows.push(PodKey::of(&pod).record().into_value());
                }
            }
            self.database
                .delete(
                    "DELETE $pod RETURN NONE",
                    bind([("pod", rows.into_value())]),
                )
                .await
                .map_err(Error::Unavailable)?;
        }
    }
}

fn uid_of_end(id: &RecordId) -> Option<String> {
    let RecordIdKey::Array(parts) = &id.key else {
        return None;
    };
    let uid = parts.get(1)?.clone();
    String::from_value(uid).ok()
}

fn read(row: Value) -> Result<PodRecord, Error> {
    let Value::Bytes(json) = row else {
        return Err(Error::Damaged("pod"));
    };
    serde_json::from_slice(&json.into_inner()).map_err(|_| Error::Damaged("pod"))
}

#[cfg(test)]
mod tests {
    use nodestats_wire::v1::{ContainerRecord, ContainerRun};

    use super::*;
    use crate::tests::{at, fresh};

    fn told(namespace: &str, name: &str, uid: &str, created: i64, digest: &str) -> ToldPod {
        ToldPod {
            digest: digest.into(),
            pod: PodRecord {
                uid: uid.into(),
                namespace: namespace.into(),
                name: name.into(),
                created_at: at(created),
                ..PodRecord::default()
            },
        }
    }

    fn uids(pods: &[PodRecord]) -> Vec<&str> {
        pods.iter().map(|pod| &*pod.uid).collect()
    }

    #[tokio::test]
    async fn a_name_that_is_used_again_is_another_pod() {
        let store = fresh().await;
        let pods = [
            told("a", "web", "u2", 20, "x"),
            told("a", "web", "u1", 10, "x"),
            told("a", "web-2", "u3", 5, "x"),
            told("ab", "web", "u4", 5, "x"),
        ];
        store.save_pods(&pods, &[]).await.expect("saved");
        let named = store.pods_named("a", "web").await.expect("pods");
        assert_eq!(uids(&named), ["u2", "u1"]);
        assert_eq!(
            uids(&store.pods(Some("a"), None, 10).await.expect("pods")),
            ["u1", "u2", "u3"]
        );
        let first = store.pods(None, None, 2).await.expect("pods");
        let rest = store
            .pods(None, Some(&PodKey::of(&first[1])), 10)
            .await
            .expect("pods");
        assert_eq!(
            (uids(&first), uids(&rest)),
            (vec!["u1", "u2"], vec!["u3", "u4"])
        );
    }

    #[tokio::test]
    async fn what_was_told_is_known_until_it_is_forgotten() {
        let store = fresh().await;
        let mut job = told("a", "job", "u1", 10, "one");
        job.pod.static_uid = Some("hash".into());
        job.pod.containers.push(ContainerRecord {
            name: "main".into(),
            runs: vec![ContainerRun {
                container_id: "c".into(),
                ..ContainerRun::default()
            }],
            ..ContainerRecord::default()
        });
        store
            .save_pods(&[job.clone(), told("a", "other", "u2", 10, "two")], &[])
            .await
            .expect("saved");
        let mut digests = store.pod_digests().await.expect("digests");
        digests.sort_by(|a, b| a.uid.cmp(&b.uid));
        let told_of: Vec<(&str, &str)> = digests
            .iter()
            .map(|one| (&*one.uid, &*one.digest))
            .collect();
        assert_eq!(told_of, [("u1", "one"), ("u2", "two")]);
        // It is gone, and a pod that nobody knows too.
        let gone = ["u1", "u9"].map(|uid| GonePod {
            uid: uid.into(),
            ended_at: at(50),
        });
        store.save_pods(&[], &gone).await.expect("saved");
        assert_eq!(store.pod_digests().await.expect("digests").len(), 1);
        let found = store.pods_of(&["hash", "u1", "u9"]).await.expect("pods");
        assert_eq!(found.len(), 2);
        assert_eq!(found["hash"].ended_at, Some(at(50)));
        assert_eq!(found["u1"].containers[0].runs.len(), 1);
        // Told again in the same way it stays as it is.
        store.save_pods(&[job], &[]).await.expect("saved");
        assert_eq!(
            store.pods_of(&["u1"]).await.expect("pods")["u1"].ended_at,
            Some(at(50))
        );
        store.forget_pods(at(50)).await.expect("nothing yet");
        assert_eq!(store.pods_named("a", "job").await.expect("pods").len(), 1);
        store.forget_pods(at(51)).await.expect("forgotten");
        assert!(store.pods_named("a", "job").await.expect("pods").is_empty());
        assert!(
            store
                .pods_of(&["u1", "hash"])
                .await
                .expect("pods")
                .is_empty()
        );
        assert_eq!(store.pods(None, None, 10).await.expect("pods").len(), 1);
    }
}
