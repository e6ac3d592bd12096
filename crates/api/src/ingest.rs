//! `PUT /nodes/{node}`: samples come in, as an agent's frames or as a third party's JSON.

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use nodestats_core::frame::delta::{Key, Restored};
use nodestats_core::frame::{self, Pushed};
use nodestats_core::life::Life;
use nodestats_core::sample::Note;
use nodestats_core::{FrameId, SampleKey, event};
use nodestats_store::{NewEvent, NewSample, Seen};
use nodestats_wire::v1::Reading;
use nodestats_wire::{Timestamp, routes};
use tracing::{Instrument as _, Span};

use crate::access::Identity;
use crate::query::NoQuery;
use crate::routes::Node;
use crate::{ApiError, App, body, query};

/// Most samples of one request.
const SAMPLES_LIMIT: usize = 10_000;
/// Most events that the samples of one request tell of.
const EVENTS_LIMIT: usize = 2000;
/// All frames of one request unpack to at most so many bytes: four of the largest, or thousands of
/// usual ones. A body of some megabytes could else keep a processor busy for minutes.
const UNPACKED_LIMIT: usize = 64 << 20;
/// What is larger than this, unpacked, is read where it holds up nobody's requests.
const LARGE: usize = 1 << 20;
/// A sample may be this far ahead of the server's clock: hosts whose clocks are wrong by hours
/// exist, and one sample of the year 9999 would be "now" for ever.
const AHEAD_MICROS: i64 = 24 * 3600 * 1_000_000;

pub(crate) async fn put(
    State(app): State<App>,
    identity: Identity,
    node: Node,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let NoQuery {} = query::parse(uri.query())?;
    // The sender's clock is compared with this one: a body of megabytes takes its time.
    let arrived = App::now();
    // Who is not registered, or may not, learns it before a body of megabytes is read.
    let (life, proof) = app.resolve_to_push(&identity, &node).await?;
    let place = app
        .pushed
        .enter(&life.uid, app.options.body_patience)
        .await?;
    let body = body::receive(&app, body).await?;
    let now = App::now();
    let is_frames = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes() == routes::FRAMES_MEDIA_TYPE.as_bytes());
    let mut has_deltas = false;
    let (read, weight) = if is_frames {
        let outline = outline(&body.bytes)?;
        let mut weight = outline.unpacked;
        let key = match outline.key {
            Some(key) => {
                let frame = app.key_frames.find(&app.store, &life.uid, key).await?;
                // What it unpacks to counts as what the body unpacks to does.
                weight += frame::Frame::read(&frame).map_or(0, |key| key.unpacked_bytes());
                check_unpacked(weight)?;
                Some((key, frame))
            }
            None => None,
        };
        has_deltas = outline.has_deltas;
        (Read::Frames(key), weight)
    } else {
        (Read::Readings, body.bytes.len())
    };
    let alone = is_frames.then(|| alone(&body.bytes)).flatten();
    // The body and its place are held until the samples are stored, and where there are deltas its turn too:
    // one of few bytes may be of a frame of many.
    let (samples, _held) = if weight > LARGE {
        let turn = Arc::clone(&app.large_bodies).acquire_owned().await;
        let (app, life, within) = (app.clone(), life.clone(), Span::current());
        // What bounds this goes with it, also where the request is given up: its place among the
        // node's pushes, its turn, and the share of memory that the body has.
        let reading = tokio::task::spawn_blocking(move || {
            let _within = within.enter();
            let samples = read.samples(&app, &life, &body.bytes, now);
            (samples, (body, place, has_deltas.then_some(turn)))
        });
        let read = reading.await;
        read.map_err(|_| ApiError::unavailable("the body could not be read"))?
    } else {
        let samples = read.samples(&app, &life, &body.bytes, now);
        (samples, (body, place, None))
    };
    let samples = samples?;
    let count = samples.len() as u64;
    let seen = seen(&samples, sent_at(&headers)?, arrived);
    let storing = tracing::info_span!("store", "nodestats.samples" = count);
    let stored = app.store.append(&proof, samples, seen, now);
    stored.instrument(storing).await?;
    let lag = arrived.seconds_since(seen.fresh_at).max(0.0);
    app.metrics.stored(count, Duration::from_secs_f64(lag));
    if let Some((key, frame)) = alone {
        app.key_frames.keep(&life.uid, key, frame).await;
    }
    let mut answer = StatusCode::NO_CONTENT.into_response();
    if is_frames {
        let takes = HeaderValue::from_static("1");
        answer.headers_mut().insert(routes::DELTAS_HEADER, takes);
    }
    Ok(answer)
}

/// The sender's clock when it sent this, where it says so.
fn sent_at(headers: &HeaderMap) -> Result<Option<Timestamp>, ApiError> {
    let Some(value) = headers.get(routes::SENT_AT_HEADER) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    let parsed = text.parse::<Timestamp>();
    parsed
        .map(Some)
        .map_err(|error| ApiError::parameter(routes::SENT_AT_HEADER, error.to_string()))
}

/// What a push says of its node's freshness. The age of a sample is what passed on the sender's
/// own clock between taking and sending it, so a clock that is wrong makes no node stale.
fn seen(samples: &[NewSample], sent_at: Option<Timestamp>, arrived: Timestamp) -> Seen {
    let newest = samples.iter().map(NewSample::time).max().unwrap_or(arrived);
    let offset = sent_at.map(|sent| sent.micros() - arrived.micros());
    let taken = newest.plus_micros(-offset.unwrap_or_default());
    Seen {
        last_sample: newest,
        fresh_at: taken.min(arrived),
        clock_offset_micros: offset,
    }
}

/// How samples are read from a body.
enum Read {
    /// With the frame from which some say their differences and that the body does not bring.
    Frames(Option<(SampleKey, Bytes)>),
    Readings,
}

impl Read {
    fn samples(
        &self,
        app: &App,
        life: &Life,
        bytes: &[u8],
        now: Timestamp,
    ) -> Result<Vec<NewSample>, ApiError> {
        match self {
            Self::Frames(key) => frames(app, life, (bytes, key.as_ref()), now),
            Self::Readings => readings(app, life, bytes, now),
        }
    }
}

/// What the headers of a body's frames say.
#[derive(Default)]
struct Outline {
    /// Bytes that they unpack to, as far as they can be read.
    unpacked: usize,
    has_deltas: bool,
    /// The frame from which some say their differences, where it is none of the body.
    key: Option<SampleKey>,
}

fn check_unpacked(bytes: usize) -> Result<(), ApiError> {
    if bytes > UNPACKED_LIMIT {
        return Err(ApiError::too_large(format!(
            "the frames of the body unpack to more than {UNPACKED_LIMIT} bytes"
        )));
    }
    Ok(())
}

fn key_of(time: Timestamp, id: FrameId) -> SampleKey {
    SampleKey {
        time,
        push: Some(id),
    }
}

fn outline(mut bytes: &[u8]) -> Result<Outline, ApiError> {
    let mut outline = Outline::default();
    let mut brought = HashSet::new();
    while let Ok((pushed, _, rest)) = Pushed::split_first(bytes) {
        outline.unpacked += pushed.unpacked_bytes();
        check_unpacked(outline.unpacked)?;
        match pushed {
            Pushed::Whole(frame) => {
                brought.insert(key_of(frame.time, frame.id));
            }
            Pushed::Delta(delta) => {
                outline.has_deltas = true;
                let key = key_of(delta.key_time, delta.key);
                let is_known = brought.contains(&key) || outline.key == Some(key);
                // An agent says what differs from the last frame that it sent whole.
                if !is_known && outline.key.replace(key).is_some() {
                    return Err(ApiError::too_large(
                        "the body says what differs from more than one frame that is not in it",
                    ));
                }
            }
        }
        bytes = rest;
    }
    Ok(outline)
}

/// The frame of a body that has one, and that one whole: that of an agent which is up to date.
fn alone(bytes: &Bytes) -> Option<(SampleKey, Bytes)> {
    match Pushed::split_first(bytes) {
        // A copy: these bytes may be a part of a larger buffer.
        Ok((Pushed::Whole(frame), own, [])) => {
            Some((key_of(frame.time, frame.id), Bytes::copy_from_slice(own)))
        }
        _ => None,
    }
}

fn frames(
    app: &App,
    life: &Life,
    (mut bytes, key): (&[u8], Option<&(SampleKey, Bytes)>),
    now: Timestamp,
) -> Result<Vec<NewSample>, ApiError> {
    let _span = tracing::info_span!("decode").entered();
    let mut samples = Vec::new();
    let mut told_of = 0;
    let mut whole: HashMap<SampleKey, &[u8]> = HashMap::new();
    whole.extend(key.map(|(key, frame)| (*key, &**frame)));
    // Each is unpacked once, as it is counted.
    let mut keys: HashMap<SampleKey, Key> = HashMap::new();
    while !bytes.is_empty() {
        let at = |error: frame::Error| match error {
            // An agent that was upgraded first keeps it until this server is.
            frame::Error::Version(version) if version > frame::VERSION => {
                ApiError::unavailable("the frame is of a newer agent than this server knows")
            }
            // What has the number of its key is another frame.
            frame::Error::Key => ApiError::missing_key_frame(),
            error => ApiError::malformed(format!(
                "frame {} of the body is damaged: {error}",
                samples.len()
            )),
        };
        let (pushed, own, rest) = Pushed::split_first(bytes).map_err(at)?;
        // What cannot be read later is refused now.
        let (time, id, frame, checked) = match pushed {
            Pushed::Whole(frame) => {
                whole.insert(key_of(frame.time, frame.id), own);
                let checked = frame.check().map_err(at)?;
                (frame.time, frame.id, Cow::Borrowed(own), checked)
            }
            Pushed::Delta(delta) => {
                let name = key_of(delta.key_time, delta.key);
                let key = match keys.entry(name) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(unknown) => {
                        let frame = whole.get(&name).ok_or_else(ApiError::missing_key_frame)?;
                        unknown.insert(Key::unpack(frame).map_err(at)?)
                    }
                };
                let Restored { frame, checked } = delta.restore(key).map_err(at)?;
                if frame.len() > app.options.body_limit {
                    return Err(ApiError::too_large(
                        "a frame of the body is larger than a body may be",
                    ));
                }
                (delta.time, delta.id, Cow::Owned(frame), checked)
            }
        };
        let field = format!("[{}].time", samples.len());
        check_time(app, life, time, now, &field)?;
        let new = NewSample::from_frame(time, id, &frame, checked.values);
        let told = events(app, life, id, &checked.notes, now);
        told_of += told.len();
        if told_of > EVENTS_LIMIT {
            return Err(ApiError::too_large(format!(
                "the frames of the body tell of more than {EVENTS_LIMIT} events"
            )));
        }
        app.metrics.came(matches!(frame, Cow::Owned(_)), own.len());
        samples.push(new.with_events(told));
        check_count(samples.len())?;
        bytes = rest;
    }
    if samples.is_empty() {
        return Err(ApiError::malformed("the body has no frame"));
    }
    Ok(samples)
}

/// What an agent tells beside figures, as far as it is of a time that is kept.
fn events(app: &App, life: &Life, id: FrameId, notes: &[Note], now: Timestamp) -> Vec<NewEvent> {
    let kept = app.store.horizon(life, now)..=now.plus_micros(AHEAD_MICROS);
    let happened = event::of_notes(notes, life.cluster.is_some());
    // What is sent again has the same numbers.
    let numbered = happened.into_iter().enumerate();
    numbered
        .filter(|(_, event)| event.time.is_some_and(|time| kept.contains(&time)))
        .map(|(number, event)| NewEvent::of_sample(&life.uid, id, number, event))
        .collect()
}

fn readings(
    app: &App,
    life: &Life,
    bytes: &[u8],
    now: Timestamp,
) -> Result<Vec<NewSample>, ApiError> {
    let _span = tracing::info_span!("decode").entered();
    let is_array = bytes.trim_ascii_start().first() == Some(&b'[');
    let readings: Vec<Reading> = if is_array {
        body::json(bytes)?
    } else {
        vec![body::json(bytes)?]
    };
    check_count(readings.len())?;
    let mut samples = Vec::with_capacity(readings.len());
    for (index, mut reading) in readings.into_iter().enumerate() {
        let field = |name: &str| {
            if is_array {
                format!("[{index}].{name}")
            } else {
                name.to_owned()
            }
        };
        check_identity(life, &mut reading, &field)?;
        let time = take_time(&mut reading, now, &field)?;
        check_time(app, life, time, now, &field("time"))?;
        samples.push(NewSample::from_reading(time, reading));
    }
    Ok(samples)
}

fn check_count(count: usize) -> Result<(), ApiError> {
    if count > SAMPLES_LIMIT {
        return Err(ApiError::too_large(format!(
            "the body has more than {SAMPLES_LIMIT} samples"
        )));
    }
    Ok(())
}

fn check_time(
    app: &App,
    life: &Life,
    time: Timestamp,
    now: Timestamp,
    field: &str,
) -> Result<(), ApiError> {
    let horizon = app.store.horizon(life, now);
    if time < horizon {
        let detail = format!(
            "the sample of {time} is older than the retention, which begins at {horizon}; \
             it would be deleted at once (--retention keeps samples longer)"
        );
        return Err(ApiError::field(field, detail));
    }
    if time > now.plus_micros(AHEAD_MICROS) {
        let detail = format!("the sample of {time} is more than a day ahead of the server's clock");
        return Err(ApiError::field(field, detail));
    }
    Ok(())
}

/// The node's own names may stand in a sample, as `GET` gives them, and then they must be right.
fn check_identity(
    life: &Life,
    reading: &mut Reading,
    field: &dyn Fn(&str) -> String,
) -> Result<(), ApiError> {
    let named = [
        ("uid", reading.uid.take(), &life.uid),
        (
            "hostname",
            reading.hostname.take(),
            &life.registration.hostname,
        ),
        ("ip", reading.ip.take(), &life.registration.ip),
    ];
    for (name, given, registered) in named {
        if given.is_some_and(|given| given != *registered) {
            let detail = format!(
                "{} is another node's: this one has {registered:?}",
                field(name)
            );
            return Err(ApiError::field(field(name), detail));
        }
    }
    Ok(())
}

/// The sample's time: its own, or that of a group that was taken from an answer as it stood, or
/// now less its age. Groups may not contradict it, and lose what it says for them all.
fn take_time(
    reading: &mut Reading,
    now: Timestamp,
    field: &dyn Fn(&str) -> String,
) -> Result<Timestamp, ApiError> {
    let mut time = reading.time.take();
    let age = reading.age_seconds.take();
    let mut agree = |name: &str, group: Option<Timestamp>| match (time, group) {
        (Some(time), Some(group)) if time != group => {
            let name = field(&format!("{name}.time"));
            Err(ApiError::field(
                &*name,
                format!("{name} is not the sample's time {time}"),
            ))
        }
        (None, Some(group)) => {
            time = Some(group);
            Ok(())
        }
        _ => Ok(()),
    };
    macro_rules! groups {
        ($($group:ident),*) => {
            $(if let Some(group) = &mut reading.$group {
                agree(stringify!($group), group.time.take())?;
                group.age_seconds = None;
            })*
        };
    }
    groups!(cpu, memory, disk, network, filesystems, pressure);
    for (index, process) in reading.processes.iter_mut().flatten().enumerate() {
        agree(&format!("processes[{index}]"), process.time.take())?;
        process.age_seconds = None;
    }
    let aged = age.map(|age| now.plus_micros(-(age * 1e6) as i64));
    Ok(time.or(aged).unwrap_or(now))
}
