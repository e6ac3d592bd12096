//! The one question to the API, asked again and again: how fresh is each node.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use nodestats_wire::client::Client;
use nodestats_wire::v1::{ClusterRegistration, Freshness};

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
    /// Registrations that the API has taken, and when, by UID: an answer to a question that is older
    /// knows nothing of them.
    taken: Mutex<BTreeMap<String, (Instant, ClusterRegistration)>>,
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
            taken: Mutex::default(),
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
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.insert(uid.to_owned(), (Instant::now(), registration.clone()));
        if let ApiView::Answers { nodes, .. } = &mut *view {
            set_registration(nodes, uid, registration.clone());
        }
    }

    /// What the API answered to a question that was asked at `asked`, with what it has taken since.
    fn answered(&self, view: &mut ApiView, answer: Vec<Freshness>, asked: Instant) -> Change {
        let by_uid = answer.into_iter().map(|node| (node.uid.clone(), node));
        let mut nodes = by_uid.collect();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|_, (at, _)| *at >= asked);
        for (uid, (_, registration)) in &*taken {
            set_registration(&mut nodes, uid, registration.clone());
        }
        let (since, change) = match &*view {
            ApiView::Answers { since, .. } => (*since, Change::None),
            ApiView::Away => (Timestamp::now(), Change::Back),
            ApiView::Asking => (Timestamp::now(), Change::First),
        };
        *view = ApiView::Answers { since, nodes };
        change
    }

    /// Asks once.
    pub(crate) async fn ask(&self, client: &Client, metrics: &Metrics) -> Change {
        let asked = Instant::now();
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
                let change = self.answered(&mut view, answer, asked);
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

/// The API knows this registration of a node, whatever else it knows of it.
fn set_registration(
    nodes: &mut BTreeMap<String, Freshness>,
    uid: &str,
    registration: ClusterRegistration,
) {
    let node = nodes.entry(uid.to_owned()).or_insert_with(|| new(uid));
    node.registration = Some(registration);
}

fn new(uid: &str) -> Freshness {
    Freshness {
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

#[cfg(test)]
mod tests {
    use nodestats_k8s::MonitoredNodeSpec;

    use super::*;
    use crate::observe::Node;

    #[test]
    fn an_answer_to_an_older_question_forgets_no_registration() {
        let registration = |uid| {
            let node = Node::test(uid);
            let wanted = node.registration(&MonitoredNodeSpec::default(), None);
            wanted.expect("an address")
        };
        let shared = Shared::new();
        let known = || {
            shared.with(|view| match view {
                ApiView::Answers { nodes, .. } => nodes
                    .values()
                    .filter(|node| node.registration.is_some())
                    .map(|node| node.uid.clone())
                    .collect::<Vec<_>>(),
                _ => panic!("no answer"),
            })
        };
        let answer = |asked, nodes| {
            let mut view = shared.view.lock().expect("not poisoned");
            shared.answered(&mut view, nodes, asked)
        };
        let begin = Instant::now();
        assert_eq!(answer(begin, Vec::new()), Change::First);
        let asked = Instant::now();
        shared.registered("a", &registration("a"));
        assert_eq!(answer(asked, vec![new("b")]), Change::None);
        assert_eq!(known(), ["a"]);
        // The next question is younger: what it is answered counts.
        assert_eq!(answer(Instant::now(), vec![new("b")]), Change::None);
        assert!(known().is_empty());
    }
}
