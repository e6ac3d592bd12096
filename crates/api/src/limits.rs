//! What one caller may take of the server: so many requests at once, and so many a second. Who asks
//! more is told to come back (429), and nobody else notices.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ApiError;

/// How much one caller may ask for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Requests at once, until their answers are read to the end.
    pub in_flight: u32,
    /// Requests a second, for as long as somebody asks.
    pub per_second: f64,
    /// Requests at any speed after a rest.
    pub burst: f64,
}

impl Default for Limits {
    /// An agent sends one push after another, a page three requests every five seconds; a script over
    /// all nodes of a cluster of two hundred is done at once.
    fn default() -> Self {
        Self {
            in_flight: 16,
            per_second: 50.0,
            burst: 400.0,
        }
    }
}

/// Callers that are known at once; when there are more, those that rest are forgotten.
const KNOWN: usize = 10_000;

/// What every caller has under way.
#[derive(Debug, Clone)]
pub(crate) struct Callers {
    limits: Limits,
    known: Arc<Mutex<HashMap<String, Caller>>>,
}

#[derive(Debug)]
struct Caller {
    in_flight: u32,
    /// Requests that may come now, and when that was so.
    ready: f64,
    at: Instant,
}

/// A request that is under way, until this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    callers: Callers,
    name: String,
}

impl Callers {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            known: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Caller>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for the caller of this name; the error says after how long there is one.
    pub(crate) fn enter(&self, name: &str, now: Instant) -> Result<Turn, Duration> {
        let Limits {
            in_flight,
            per_second,
            burst,
        } = self.limits;
        let mut known = self.lock();
        if known.len() >= KNOWN && !known.contains_key(name) {
            let rests = Duration::from_secs_f64(burst / per_second);
            known.retain(|_, caller| {
                caller.in_flight > 0 || now.saturating_duration_since(caller.at) < rests
            });
        }
        let caller = known.entry(name.to_owned()).or_insert(Caller {
            in_flight: 0,
            ready: burst,
            at: now,
        });
        let rested = now.saturating_duration_since(caller.at).as_secs_f64();
        caller.ready = (caller.ready + rested * per_second).min(burst);
        caller.at = now;
        if caller.in_flight >= in_flight {
            return Err(Duration::from_secs(1));
        }
        if caller.ready < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - caller.ready) / per_second));
        }
        caller.ready -= 1.0;
        caller.in_flight += 1;
        Ok(Turn {
            callers: self.clone(),
            name: name.to_owned(),
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(caller) = self.callers.lock().get_mut(&self.name) {
            caller.in_flight = caller.in_flight.saturating_sub(1);
        }
    }
}

/// Pushes of one node at once; further ones wait before their bodies are read. An agent sends one.
const PUSHES_OF_NODE: usize = 4;

/// The nodes that are pushed to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Nodes(Arc<Mutex<HashMap<String, Weak<Semaphore>>>>);

impl Nodes {
    /// Waits for a place among the pushes of a node.
    pub(crate) async fn enter(
        &self,
        uid: &str,
        patience: Duration,
    ) -> Result<OwnedSemaphorePermit, ApiError> {
        let places = self.places(uid).acquire_owned();
        let place = tokio::time::timeout(patience, places).await;
        let place = place.map_err(|_| refused(Duration::from_secs(1)))?;
        Ok(place.expect("it is never closed"))
    }

    fn places(&self, uid: &str) -> Arc<Semaphore> {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = nodes.get(uid).and_then(Weak::upgrade) {
            return places;
        }
        if nodes.len() >= KNOWN {
            nodes.retain(|_, places| places.strong_count() > 0);
        }
        let places = Arc::new(Semaphore::new(PUSHES_OF_NODE));
        nodes.insert(uid.to_owned(), Arc::downgrade(&places));
        places
    }
}

/// Where a request's turn is put once it is known who asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slot(Arc<Mutex<Option<Turn>>>);

impl Slot {
    pub(crate) fn put(&self, turn: Turn) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(turn);
    }

    fn take(&self) -> Option<Turn> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.take()
    }
}

/// Keeps a request's turn until its answer was read to the end, or given up.
pub(crate) async fn hold(mut request: Request, next: Next) -> Response {
    let slot = Slot::default();
    request.extensions_mut().insert(slot.clone());
    let response = next.run(request).await;
    match slot.take() {
        Some(turn) => response.map(|body| Body::new(Held { body, _turn: turn })),
        None => response,
    }
}

/// A body that holds its request's turn.
struct Held {
    body: Body,
    _turn: Turn,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The answer to who asks too much.
pub(crate) fn refused(wait: Duration) -> ApiError {
    ApiError::too_many(
        "you ask for more than one caller's share of this server; come back after the time in Retry-After",
        wait,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callers() -> Callers {
        Callers::new(Limits {
            in_flight: 2,
            per_second: 10.0,
            burst: 5.0,
        })
    }

    #[test]
    fn so_many_at_once_and_others_do_not_notice() {
        let (callers, now) = (callers(), Instant::now());
        let first = callers.enter("a", now).expect("a place");
        let _second = callers.enter("a", now).expect("a place");
        assert!(callers.enter("a", now).is_err());
        assert!(callers.enter("b", now).is_ok());
        drop(first);
        assert!(callers.enter("a", now).is_ok());
    }

    #[test]
    fn so_many_a_second_after_the_first_ones() {
        let (callers, begin) = (callers(), Instant::now());
        let ask = |millis: u64| callers.enter("a", begin + Duration::from_millis(millis));
        assert!((0..5).all(|_| ask(0).is_ok()));
        let wait = ask(0).expect_err("too many");
        assert_eq!(wait, Duration::from_millis(100));
        assert!(ask(99).is_err());
        assert!(ask(100).is_ok());
        assert!(ask(101).is_err());
        // After a rest, as at the beginning and no more.
        assert!((0..5).all(|_| ask(60_000).is_ok()));
        assert!(ask(60_000).is_err());
    }

    #[test]
    fn those_that_rest_are_forgotten() {
        let (callers, begin) = (callers(), Instant::now());
        let held = callers.enter("held", begin).expect("a place");
        for n in 0..KNOWN {
            drop(callers.enter(&n.to_string(), begin));
        }
        drop(callers.enter("late", begin + Duration::from_mins(1)));
        assert_eq!(callers.lock().len(), 2);
        drop(held);
    }
}
