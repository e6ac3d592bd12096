//! Events: rows `event:[uid, time, id]`, so that what happened to a node is a range of keys, and
//! `event_time:[time, uid, id]`, by which what happened on all nodes is one. What makes an event the
//! same when it is told again is its id.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use nodestats_core::FrameId;
use nodestats_core::event::{self, Place};
use nodestats_wire::Timestamp;
use nodestats_wire::v1::{Event, EventKind};
use surrealdb::types::{
    Array, Bytes, Object, RecordId, RecordIdKey, RecordIdKeyRange, SurrealValue, Value, Variables,
};
use tokio::sync::OwnedMutexGuard;

use crate::database::bind;
use crate::samples::Order;
use crate::{Error, Store};

/// Rows that are read or deleted at once.
const PAGE: usize = 500;
/// Keys that are read at once, and pages of them that are looked through for events of one kind.
const KEYS: usize = 1000;
const PAGES: usize = 10;
/// Events of one telling that are compared with what is known, and what each is compared with, at most.
const RECONCILED: usize = 100;

/// An event to keep.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    key: EventKey,
    /// `None`: what stands there is told in another place by now.
    event: Option<Event>,
}

/// Bytes of an event and its keys without its path.
const EVENT_BYTES: usize = 1024;

/// Where an event is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventKey {
    /// When it happened.
    pub time: Timestamp,
    /// The node; empty where Kubernetes has not told it.
    pub node: String,
    /// Its kind, and what makes it the same when it is told again.
    pub id: String,
}

impl NewEvent {
    /// What an agent noted with a sample: the `number`th of its events.
    pub fn of_sample(node: &str, id: FrameId, number: usize, event: Event) -> Self {
        let which = format!("{}/{}/{number}", id.agent_start, id.sequence);
        Self::new(node, &which, event)
    }

    /// What Kubernetes tells of a container: of one run of it there is one of each kind.
    pub fn of_container(node: &str, event: Event) -> Self {
        let run = event.container_id.clone().unwrap_or_default();
        Self::new(node, &run, event)
    }

    /// What is told of a node as such: at one time there is one of each kind.
    pub fn of_node(node: &str, event: Event) -> Self {
        Self::new(node, "", event)
    }

    fn new(node: &str, which: &str, event: Event) -> Self {
        Self {
            key: EventKey {
                time: event.time.unwrap_or(Timestamp::MIN),
                node: node.to_owned(),
                id: format!("{}/{which}", kind_name(&event)),
            },
            event: Some(event),
        }
    }
}

fn kind_name(event: &Event) -> &'static str {
    event.kind.map_or("", EventKind::name)
}

impl NewEvent {
    fn kind(&self) -> Option<EventKind> {
        self.event.as_ref()?.kind
    }

    /// Whether what is known says what is to be kept of it.
    pub(crate) fn is_reconciled(&self) -> bool {
        matches!(self.kind(), Some(EventKind::Boot | EventKind::OomKill))
    }

    /// Bytes that it takes, nearly: fields that have a bound, and its control group's path.
    pub(crate) fn bytes(&self) -> usize {
        let path = |event: &Event| event.cgroup.as_ref().map_or(0, String::len);
        EVENT_BYTES + self.event.as_ref().map_or(0, path)
    }
}

/// What is to be kept of a boot or a kill beside those that are known of that time.
fn beside(new: NewEvent, known: BTreeMap<EventKey, Event>) -> Vec<NewEvent> {
    let NewEvent {
        key,
        event: Some(event),
    } = new
    else {
        return vec![new];
    };
    if event.kind == Some(EventKind::Boot) {
        let is_known = known.values().any(|known| known.boot_id == event.boot_id);
        return if is_known {
            Vec::new()
        } else {
            vec![NewEvent {
                key,
                event: Some(event),
            }]
        };
    }
    let (keys, known): (Vec<EventKey>, Vec<Event>) = known.into_iter().unzip();
    let joined = event::join_kill(&event, &known).into_iter();
    joined
        .map(|(place, event)| {
            let key = match place {
                Place::New => key.clone(),
                Place::Known(at) => keys[at].clone(),
            };
            let stored = |event| Event {
                // The key says both.
                time: Some(key.time),
                node_uid: None,
                ..event
            };
            NewEvent {
                event: event.map(stored),
                key,
            }
        })
        .collect()
}

impl EventKey {
    fn kind(&self) -> &str {
        self.id.split('/').next().unwrap_or_default()
    }

    fn by_node(&self) -> RecordIdKey {
        Array::from(vec![
            self.node.clone().into_value(),
            self.time.micros().into_value(),
            self.id.clone().into_value(),
        ])
        .into()
    }

    fn by_time(&self) -> RecordIdKey {
        Array::from(vec![
            self.time.micros().into_value(),
            self.node.clone().into_value(),
            self.id.clone().into_value(),
        ])
        .into()
    }

    fn records(&self) -> [Value; 2] {
        [
            RecordId::new("event", self.by_node()).into_value(),
            RecordId::new("event_time", self.by_time()).into_value(),
        ]
    }

    fn of_record(record: &RecordId) -> Option<Self> {
        let RecordIdKey::Array(parts) = &record.key else {
            return None;
        };
        let mut parts = parts.iter().cloned();
        let (first, second) = (parts.next()?, parts.next()?);
        let (node, time) = match (record.table.as_str(), first, second) {
            ("event", node, time) | (_, time, node) => (node, time),
        };
        Some(Self {
            time: Timestamp::from_micros(i64::from_value(time).ok()?)?,
            node: String::from_value(node).ok()?,
            id: String::from_value(parts.next()?).ok()?,
        })
    }
}

/// Statements that write events, for a transaction that has other ones too.
pub(crate) const SAVE: &str = "INSERT INTO event $events ON DUPLICATE KEY UPDATE e = $input.e RETURN NONE; \
     INSERT INTO event_time $event_times ON DUPLICATE KEY UPDATE id = id RETURN NONE; \
     DELETE $event_moved RETURN NONE; ";

/// Binds the variables of [`SAVE`], and returns how many bytes of values they have.
pub(crate) fn bind_events<'a>(
    events: impl Iterator<Item = &'a NewEvent>,
    variables: &mut Variables,
) -> usize {
    // Of one key the last: a statement takes each once.
    let events: BTreeMap<&EventKey, Option<&Event>> =
        events.map(|new| (&new.key, new.event.as_ref())).collect();
    let mut bytes = 0;
    let (mut rows, mut times, mut moved) = (Vec::new(), Vec::new(), Vec::new());
    for (key, event) in events {
        let Some(event) = event else {
            moved.extend(key.records());
            continue;
        };
        let json = serde_json::to_vec(event).expect("an event is plain data");
        bytes += json.len() + 256;
        let [row, time] = key.records();
        rows.push(
            Object::from_iter([
                ("id".to_owned(), row),
                ("e".to_owned(), Bytes::from(json).into_value()),
            ])
            .into_value(),
        );
        times.push(Object::from_iter([("id".to_owned(), time)]).into_value());
    }
    variables.insert("events".to_owned(), rows.into_value());
    variables.insert("event_times".to_owned(), times.into_value());
    variables.insert("event_moved".to_owned(), moved.into_value());
    bytes
}

/// A page of events.
#[derive(Debug, Clone, PartialEq)]
pub struct EventPage {
    /// The events, with where they are.
    pub events: Vec<(EventKey, Event)>,
    /// The last one that was looked at: the next page is beyond it.
    pub last: Option<EventKey>,
    /// There is no next page.
    pub is_last: bool,
}

/// A range of events: of one node or of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventRange<'a> {
    /// The node's UID; `None` for all nodes.
    pub node: Option<&'a str>,
    /// The first time that is in it.
    pub from: Timestamp,
    /// The last one.
    pub to: Timestamp,
}

impl Store {
    /// Keeps events, beside what is known.
    pub async fn save_events(&self, events: &[NewEvent]) -> Result<(), Error> {
        for part in events.chunks(PAGE) {
            let mut variables = bind([]);
            let bytes = bind_events(part.iter(), &mut variables);
            self.database
                .write(&format!("BEGIN; {SAVE} COMMIT"), variables, bytes)
                .await
                .map_err(Error::Unavailable)?;
        }
        Ok(())
    }

    /// At most `limit` events of a range in the order asked for, beyond `after`. Of each the node's UID
    /// is there, and names are not.
    pub async fn events(
        &self,
        range: EventRange<'_>,
        after: Option<&EventKey>,
        order: Order,
        limit: usize,
    ) -> Result<EventPage, Error> {
        let keys = self.event_keys(range, after, order, limit).await?;
        Ok(EventPage {
            is_last: keys.len() < limit,
            last: keys.last().cloned(),
            events: self.events_at(keys).await?,
        })
    }

    async fn event_keys(
        &self,
        range: EventRange<'_>,
        after: Option<&EventKey>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<EventKey>, Error> {
        let (table, begin, end) = match range.node {
            Some(node) => {
                let bound = |time: i64| vec![node.to_owned().into_value(), time.into_value()];
                (
                    "event",
                    bound(range.from.micros()),
                    bound(range.to.micros() + 1),
                )
            }
            None => (
                "event_time",
                vec![range.from.micros().into_value()],
                vec![(range.to.micros() + 1).into_value()],
            ),
        };
        let mut begin = Bound::Included(Array::from(begin).into());
        let mut end = Bound::Excluded(Array::from(end).into());
        let after = after.map(|after| match range.node {
            Some(_) => after.by_node(),
            None => after.by_time(),
        });
        let statement = match order {
            Order::Ascending => {
                begin = after.map_or(begin, Bound::Excluded);
                "SELECT id FROM array::first([$event]) LIMIT $limit"
            }
            Order::Descending => {
                end = after.map_or(end, Bound::Excluded);
                "SELECT id FROM $event ORDER BY id DESC LIMIT $limit"
            }
        };
        let keys = RecordIdKeyRange { start: begin, end };
        let variables = bind([
            ("event", RecordId::new(table, keys).into_value()),
            ("limit", (limit as i64).into_value()),
        ]);
        let rows: Vec<Value> = self
            .database
            .select(statement, variables)
            .await
            .map_err(Error::Unavailable)?;
        let key = |row| match row {
            Value::Object(mut row) => match row.remove("id") {
                Some(Value::RecordId(id)) => EventKey::of_record(&id),
                _ => None,
            },
            _ => None,
        };
        let keys: Option<Vec<EventKey>> = rows.into_iter().map(key).collect();
        keys.ok_or(Error::Damaged("event"))
    }

    /// The first `limit` events of a kind in the order asked for, as far as the first ten thousand of the
    /// range have any.
    pub async fn events_of_kind(
        &self,
        range: EventRange<'_>,
        kind: EventKind,
        order: Order,
        limit: usize,
    ) -> Result<Vec<(EventKey, Event)>, Error> {
        let keys = self.keys_of_kind(range, kind, order, limit).await?;
        self.events_at(keys).await
    }

    /// The first `limit` keys of a kind, as far as so many events are looked through.
    async fn keys_of_kind(
        &self,
        range: EventRange<'_>,
        kind: EventKind,
        order: Order,
        limit: usize,
    ) -> Result<Vec<EventKey>, Error> {
        let (mut found, mut after) = (Vec::new(), None);
        for _ in 0..PAGES {
            let page = self.event_keys(range, after.as_ref(), order, KEYS).await?;
            let is_last = page.len() < KEYS;
            after = page.last().cloned();
            found.extend(page.into_iter().filter(|key| key.kind() == kind.name()));
            if is_last || found.len() >= limit {
                break;
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    async fn events_at(&self, keys: Vec<EventKey>) -> Result<Vec<(EventKey, Event)>, Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let records: Vec<Value> = keys
            .iter()
            .map(|key| RecordId::new("event", key.by_node()).into_value())
            .collect();
        let variables = bind([("event", records.into_value())]);
        let rows: Vec<Value> = self
            .database
            .select("SELECT id, e FROM $event", variables)
            .await
            .map_err(Error::Unavailable)?;
        let found: Result<BTreeMap<EventKey, Event>, Error> = rows.into_iter().map(read).collect();
        let mut found = found?;
        // In the order in which they were asked for.
        let found = keys.into_iter().filter_map(|key| {
            let event = found.remove(&key)?;
            Some((key, event))
        });
        Ok(found.collect())
    }

    /// What is to be kept of `new`, which is told at once, beside what the store knows already: a boot
    /// that an earlier agent has told of is told once, and so is a kill that two sources tell of. Until
    /// it is written nobody else may ask: see [`Store::telling`].
    pub(crate) async fn reconcile_events(
        &self,
        new: Vec<NewEvent>,
    ) -> Result<Vec<NewEvent>, Error> {
        let mut events: Vec<NewEvent> = Vec::with_capacity(new.len());
        let mut looked = 0;
        for new in new {
            let margin_seconds = match new.kind() {
                Some(EventKind::Boot) => BOOT_MARGIN_SECONDS,
                _ => event::SAME_KILL_MOST_SECONDS,
            };
            // Of more than a host has at once each stands as it is told.
            let (Some(kind), true) = (new.kind(), new.is_reconciled() && looked < RECONCILED)
            else {
                events.push(new);
                continue;
            };
            looked += 1;
            let margin = margin_seconds * 1_000_000;
            let range = EventRange {
                node: Some(&new.key.node),
                from: new.key.time.plus_micros(-margin),
                to: new.key.time.plus_micros(margin),
            };
            let known = self.events_of_kind(range, kind, Order::Ascending, RECONCILED);
            let mut known: BTreeMap<EventKey, Event> = known.await?.into_iter().collect();
            // It was sent again, and what became of it stays.
            if known.contains_key(&new.key) {
                continue;
            }
            let earlier = events.iter().filter(|earlier| {
                earlier.key.node == new.key.node && earlier.key.kind() == kind.name()
            });
            for earlier in earlier {
                match &earlier.event {
                    Some(event) => known.insert(earlier.key.clone(), event.clone()),
                    None => known.remove(&earlier.key),
                };
            }
            events.extend(beside(new, known));
        }
        Ok(events)
    }

    /// Whoever tells of what is reconciled waits until the one before has written it.
    pub(crate) async fn telling(&self, is_reconciled: bool) -> Option<OwnedMutexGuard<()>> {
        if is_reconciled {
            Some(Arc::clone(&self.telling).lock_owned().await)
        } else {
            None
        }
    }

    /// Forgets what happened before `horizon`, to a node or by `None` to all, in bounded pieces.
    pub(crate) async fn forget_events(
        &self,
        node: Option<&str>,
        horizon: Timestamp,
    ) -> Result<(), Error> {
        if horizon == Timestamp::MIN {
            return Ok(());
        }
        let range = EventRange {
            node,
            from: Timestamp::MIN,
            to: horizon.plus_micros(-1),
        };
        loop {
            let old = self.event_keys(range, None, Order::Ascending, PAGE).await?;
            if old.is_empty() {
                return Ok(());
            }
            let rows: Vec<Value> = old.iter().flat_map(EventKey::records).collect();
            self.database
                .delete(
                    "DELETE $event RETURN NONE",
                    bind([("event", rows.into_value())]),
                )
                .await
                .map_err(Error::Unavailable)?;
        }
    }
}

/// See [`Store::reconcile_events`].
const BOOT_MARGIN_SECONDS: i64 = 3600;

fn read(row: Value) -> Result<(EventKey, Event), Error> {
    let damaged = || Error::Damaged("event");
    let Value::Object(mut row) = row else {
        return Err(damaged());
    };
    let (Some(Value::RecordId(id)), Some(Value::Bytes(json))) = (row.remove("id"), row.remove("e"))
    else {
        return Err(damaged());
    };
    let key = EventKey::of_record(&id).ok_or_else(damaged)?;
    let event = serde_json::from_slice(&json.into_inner()).map_err(|_| damaged())?;
    let event = Event {
        node_uid: Some(key.node.clone()).filter(|node| !node.is_empty()),
        ..event
    };
    Ok((key, event))
}

#[cfg(test)]
mod tests {
    use nodestats_wire::v1::EventSource;

    use super::*;
    use crate::tests::{at, fresh, life};

    fn event(seconds: i64, kind: EventKind) -> Event {
        Event {
            time: Some(at(seconds)),
            kind: Some(kind),
            ..Event::default()
        }
    }

    fn all(node: Option<&str>) -> EventRange<'_> {
        EventRange {
            node,
            from: Timestamp::MIN,
            to: Timestamp::MAX,
        }
    }

    async fn times(
        store: &Store,
        range: EventRange<'_>,
        after: Option<&EventKey>,
        order: Order,
        limit: usize,
    ) -> Vec<(String, i64)> {
        let events = store.events(range, after, order, limit).await;
        let events = events.expect("events").events;
        let of = |(key, event): (EventKey, Event)| {
            assert_eq!(event.time, Some(key.time));
            (event.node_uid.unwrap_or_default(), key.time.second())
        };
        events.into_iter().map(of).collect()
    }

    #[tokio::test]
    async fn events_are_a_range_of_one_node_and_of_all() {
        let store = fresh().await;
        let events = [
            NewEvent::of_node("a", event(10, EventKind::NodeRegistered)),
            NewEvent::of_node("b", event(20, EventKind::NodeRegistered)),
            NewEvent::of_node("a", event(30, EventKind::NodeGone)),
            NewEvent::of_node("ab", event(30, EventKind::NodeGone)),
            // Told again.
            NewEvent::of_node("a", event(10, EventKind::NodeRegistered)),
        ];
        store.save_events(&events).await.expect("saved");
        let named = |all: &[(&str, i64)]| {
            let all = all.iter().map(|(node, time)| ((*node).to_owned(), *time));
            all.collect::<Vec<_>>()
        };
        let of_a = times(&store, all(Some("a")), None, Order::Ascending, 10).await;
        assert_eq!(of_a, named(&[("a", 10), ("a", 30)]));
        let newest = times(&store, all(None), None, Order::Descending, 2).await;
        assert_eq!(newest, named(&[("ab", 30), ("a", 30)]));
        let first = store
            .events(all(None), None, Order::Ascending, 2)
            .await
            .expect("events");
        let rest = times(&store, all(None), first.last.as_ref(), Order::Ascending, 10).await;
        assert_eq!(rest, named(&[("a", 30), ("ab", 30)]));
        let within = EventRange {
            from: at(20),
            to: at(29),
            node: None,
        };
        assert_eq!(
            times(&store, within, None, Order::Ascending, 10).await,
            named(&[("b", 20)])
        );
        store
            .forget_events(Some("a"), at(30))
            .await
            .expect("forgotten");
        let left = times(&store, all(None), None, Order::Ascending, 10).await;
        assert_eq!(left, named(&[("b", 20), ("a", 30), ("ab", 30)]));
    }

    #[tokio::test]
    async fn what_happened_is_kept_as_long_as_history_of_unknown_nodes_too() {
        let store = fresh().await;
        store.save_life(&life("a")).await.expect("saved");
        let events = ["a", "unknown", ""].map(|node| {
            [100, 1500].map(|time| NewEvent::of_node(node, event(time, EventKind::NodePhase)))
        });
        store.save_events(&events.concat()).await.expect("saved");
        // A thousand seconds are kept.
        store.retain(at(2000)).await.expect("done");
        let left = times(&store, all(None), None, Order::Ascending, 10).await;
        let left: Vec<i64> = left.into_iter().map(|(_, time)| time).collect();
        assert_eq!(left, [1500, 1500, 1500]);
        let of_a = times(&store, all(Some("a")), None, Order::Ascending, 10).await;
        assert_eq!(of_a, [("a".to_owned(), 1500)]);
    }

    #[tokio::test]
    async fn a_boot_is_one_and_a_kill_of_two_sources_too() {
        let store = fresh().await;
        let save = async |event: Event| {
            let id = FrameId {
                agent_start: uuid::Uuid::new_v4(),
                sequence: 0,
            };
            let new = match event.sources {
                Some(_) => NewEvent::of_container("a", event),
                None => NewEvent::of_sample("a", id, 0, event),
            };
            let new = store.reconcile_events(vec![new]).await.expect("reconciled");
            store.save_events(&new).await.expect("saved");
        };
        let boot = |seconds, id: &str| Event {
            boot_id: Some(id.to_owned()),
            ..event(seconds, EventKind::Boot)
        };
        save(boot(10, "x")).await;
        // Its next agent counts back to another moment.
        save(boot(12, "x")).await;
        save(boot(20, "y")).await;
        let kill = |seconds, pod: &str| Event {
            pod_uid: Some(pod.to_owned()),
            ..event(seconds, EventKind::OomKill)
        };
        save(kill(100, "p")).await;
        save(Event {
            container_id: Some("c".to_owned()),
            limit_bytes: Some(64),
            sources: Some(vec![EventSource::Kubernetes]),
            ..kill(102, "p")
        })
        .await;
        save(kill(104, "q")).await;
        let events = store
            .events(all(Some("a")), None, Order::Ascending, 10)
            .await
            .expect("events");
        let told: Vec<_> = events
            .events
            .iter()
            .map(|(key, event)| (key.time.second(), event.limit_bytes))
            .collect();
        assert_eq!(told, [(10, None), (20, None), (100, Some(64)), (104, None)]);
    }
}
