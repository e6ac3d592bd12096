//! The one question to the API, asked again and again: how fresh is each node.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use nodestats_wire::client::Client;
use nodestats_wire::v1::ClusterRegistration;

use crate::metrics::Metrics;
use crate::observe::ApiView;

/// Without an answer for so long, and to so many questions in a row, the API is away.
const PATIENCE: Duration = Duration::from_secs(10);
const UNANSWERED: u32 = 2;
/// One question waits no longer than this, so that one which hangs is not the only one asked.
const ONE_QUESTION: Duration = Duration::from_secs(5);

/// What the API last said, shared by all who decide.
pub(crate) struct Shared {
    view: Mutex<ApiView>,
    answers: Mutex<Answers>,
}

/// When the API last answered, and how many questions it has not answered since.
struct Answers {
    last: Instant,
    missed: u32,
}

/// Whether the API came or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    /// The first answer that this replica got.
    First,
    Away,
    Back,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            view: Mutex::new(ApiView::Asking),
            answers: Mutex::new(Answers {
                last: Instant::now(),
                missed: 0,
            }),
        }
    }

    /// Looks at the view; never across an await.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&ApiView) -> T) -> T {
        look(&self.view.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A registration that the API has just taken.
    pub(crate) fn registered(&self, uid: &str, registration: &ClusterRegistration) {
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        if let ApiView::Answers { nodes, .. } = &mut *view {
            nodes
                .entry(uid.to_owned())
                .or_insert_with(|| new(uid))
                .registration = Some(registration.clone());
        }
    }

    /// Asks once.
    pub(crate) async fn ask(&self, client: &Client, metrics: &Metrics) -> Change {
        let answer = match tokio::time::timeout(ONE_QUESTION, client.freshness()).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(late) => Err(late.to_string()),
        };
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(answer) => {
                *answers = Answers {
                    last: Instant::now(),
                    missed: 0,
                };
                let nodes = answer
                    .into_iter()
                    .map(|node| (node.uid.clone(), node))
                    .collect();
                let (since, change) = match &*view {
                    ApiView::Answers { since, .. } => (*since, Change::None),
                    ApiView::Away => (Timestamp::now(), Change::Back),
                    ApiView::Asking => (Timestamp::now(), Change::First),
                };
                *view = ApiView::Answers { since, nodes };
                metrics.set_api_up(true);
                change
            }
            Err(error) => {
                metrics.poll_failed();
                tracing::debug!(error, "the API does not answer");
                answers.missed += 1;
                let patient = answers.last.elapsed() < PATIENCE || answers.missed < UNANSWERED;
                if patient || matches!(*view, ApiView::Away) {
                    return Change::None;
                }
                *view = ApiView::Away;
                metrics.set_api_up(false);
                Change::Away
            }
        }
    }
}

fn new(uid: &str) -> nodestats_wire::v1::Freshness {
    nodestats_wire::v1::Freshness {
        uid: uid.to_owned(),
        origin: nodestats_wire::v1::Origin::Kubernetes,
        state: nodestats_wire::v1::NodeState::Live,
        gone_at: None,
        registration: None,
        last_sample: None,
        age_seconds: None,
        clock_offset_seconds: None,
    }
}
