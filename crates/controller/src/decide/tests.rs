//! Tables of what follows from what, and properties that hold for anything observed.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use nodestats_k8s::{AgentStatus, MonitoredNodeSpec, Span};
use nodestats_wire::v1::{NodeState, Origin};
use proptest::prelude::*;

use super::*;
use crate::apply;

const TIMES: Times = Times {
    poll: Duration::from_secs(5),
    lost_after: Duration::from_mins(5),
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

/// One node, what the API says of it, and the time.
#[derive(Debug, Clone)]
struct Scene {
    object: MonitoredNode,
    node: Node,
    api: ApiView,
    now: i64,
}

impl Scene {
    fn new() -> Self {
        let node = Node::test("uid-1");
        let mut object = MonitoredNode::new(node.name(), MonitoredNodeSpec::default());
        object.metadata.generation = Some(1);
        object.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.name().to_owned(),
            uid: node.uid().to_owned(),
            ..OwnerReference::default()
        }]);
        let scene = Self {
            object,
            node,
            api: ApiView::Away,
            now: 100_000,
        };
        scene.silent_for(None)
    }

    /// The API has answered for a day, and the last sample is so old.
    fn silent_for(mut self, age: Option<f64>) -> Self {
        let registration = self.node.registration(&self.object.spec, None);
        let life = Freshness {
            uid: self.node.uid().to_owned(),
            origin: Origin::Kubernetes,
            state: NodeState::Live,
            gone_at: None,
            registration,
            last_sample: None,
            age_seconds: age,
            clock_offset_seconds: age.map(|_| 0.0),
        };
        let since = match self.api {
            ApiView::Answers { since, .. } => since,
            ApiView::Asking | ApiView::Away => at(0),
        };
        let nodes = BTreeMap::from([(self.node.uid().to_owned(), life)]);
        self.api = ApiView::Answers { since, nodes };
        self
    }

    fn interval(mut self, seconds: u64) -> Self {
        self.object.spec.interval = Span::from_secs(seconds);
        self
    }

    fn decide(&self) -> Decision {
        let observed = Observed {
            object: &self.object,
            node: Some(&self.node),
            api: &self.api,
        };
        decide(observed, TIMES, at(self.now)).expect("the object is its Node's")
    }

    /// Writes what is decided, as the API server would; whether that changed anything.
    fn apply(&mut self) -> bool {
        let decision = self.decide();
        let Some((phase, conditions)) = apply::status(&self.object, &decision, at(self.now)) else {
            return false;
        };
        let status = self.object.status.get_or_insert_default();
        status.phase = Some(phase);
        status.observed_generation = self.object.metadata.generation;
        for condition in conditions {
            status.conditions.retain(|old| old.type_ != condition.type_);
            status.conditions.push(condition);
        }
        true
    }

    fn after(mut self, seconds: i64) -> Self {
        self.now += seconds;
        self
    }

    fn applied(mut self) -> Self {
        self.apply();
        self
    }

    fn edited(mut self) -> Self {
        self.object.metadata.generation = self.object.metadata.generation.map(|n| n + 1);
        self
    }

    fn phase(&self) -> Phase {
        self.decide().phase
    }

    fn claim(&self, type_: &str) -> (Status, &'static str) {
        let claims = self.decide().claims;
        let claim = claims
            .iter()
            .find(|claim| claim.type_ == type_)
            .expect(type_);
        (claim.status, claim.reason)
    }
}

#[test]
fn the_age_of_the_last_sample_makes_the_phase() {
    let ready = || Scene::new().silent_for(Some(1.0)).applied();
    assert_eq!(Scene::new().phase(), Phase::Pending);
    for (interval, age, phase) in [
        (10, 0.0, Phase::Ready),
        (10, 34.0, Phase::Ready),
        (10, 36.0, Phase::Stale),
        (10, 299.0, Phase::Stale),
        (10, 301.0, Phase::Lost),
        (60, 184.0, Phase::Ready),
        (60, 350.0, Phase::Stale),
        (60, 361.0, Phase::Lost),
        // An hour between two samples makes no node lost in between.
        (3600, 3599.0, Phase::Ready),
        (3600, 21_599.0, Phase::Stale),
        (3600, 21_601.0, Phase::Lost),
    ] {
        let scene = ready().interval(interval).silent_for(Some(age));
        assert_eq!(scene.phase(), phase, "{interval} s, {age} s old");
    }
}

#[test]
fn while_the_api_is_away_no_node_is_called_lost() {
    let mut scene = Scene::new().silent_for(Some(1.0)).applied();
    scene.api = ApiView::Away;
    assert_eq!(scene.phase(), Phase::Unknown);
    for type_ in [controller::REPORTING, controller::READY] {
        assert_eq!(scene.claim(type_), (Status::Unknown, "ApiUnavailable"));
    }
    assert_eq!(
        scene.claim(controller::REGISTERED),
        (Status::True, "Registered")
    );
    let scene = scene.applied().after(900);
    // It is back after a quarter of an hour, and the agents have not sent yet.
    let mut back = scene.silent_for(Some(900.0));
    if let ApiView::Answers { since, .. } = &mut back.api {
        *since = at(back.now);
    }
    assert_eq!(back.phase(), Phase::Unknown);
    let back = back.applied();
    assert_eq!(
        back.clone().after(5).silent_for(Some(1.0)).phase(),
        Phase::Ready
    );
    // One of them never sends again.
    let back = back.after(40).silent_for(Some(940.0));
    assert_eq!(back.phase(), Phase::Stale);
    let back = back.applied().after(200).silent_for(Some(1140.0));
    assert_eq!(back.phase(), Phase::Stale);
    assert_eq!(
        back.after(120).silent_for(Some(1260.0)).phase(),
        Phase::Lost
    );
}

#[test]
fn a_pause_and_another_interval_make_no_node_lost() {
    let mut paused = Scene::new().silent_for(Some(1.0)).applied().edited();
    paused.object.spec.paused = true;
    assert_eq!(paused.phase(), Phase::Paused);
    let mut resumed = paused
        .applied()
        .after(3600)
        .silent_for(Some(3600.0))
        .edited();
    resumed.object.spec.paused = false;
    assert_eq!(resumed.phase(), Phase::Unknown);
    assert_eq!(
        resumed.applied().after(3).silent_for(Some(1.0)).phase(),
        Phase::Ready
    );
    let hourly = Scene::new()
        .interval(3600)
        .silent_for(Some(3000.0))
        .applied();
    assert_eq!(hourly.phase(), Phase::Ready);
    let quick = hourly.edited().interval(10).silent_for(Some(3000.0));
    assert_eq!(quick.phase(), Phase::Unknown);
    assert_eq!(
        quick.applied().after(60).silent_for(Some(3060.0)).phase(),
        Phase::Stale
    );
}

#[test]
fn a_node_that_is_not_ready_and_sends_samples_is_not_lost() {
    let mut scene = Scene::new().silent_for(Some(1.0));
    scene.node = serde_json::from_value(serde_json::json!({
        "metadata": {"name": scene.node.name(), "uid": scene.node.uid()},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "192.168.2.10"}],
            "conditions": [{"type": "Ready", "status": "Unknown"}],
        },
    }))
    .expect("a Node");
    assert_eq!(scene.phase(), Phase::Ready);
    assert_eq!(
        scene.claim(controller::READY),
        (Status::False, "NodeNotReady")
    );
    assert_eq!(
        scene.claim(controller::REPORTING),
        (Status::True, "SamplesArrive")
    );
}

#[test]
fn a_lost_node_s_pressure_is_unknown_and_comes_back_with_it() {
    let lost = Scene::new()
        .silent_for(Some(1.0))
        .applied()
        .after(400)
        .silent_for(Some(400.0));
    assert_eq!(
        lost.claim(condition::agent::CPU_PRESSURE),
        (Status::Unknown, "NodeLost")
    );
    let back = lost.applied().silent_for(Some(2.0));
    assert!(
        back.decide()
            .claims
            .iter()
            .all(|claim| controller::ALL.contains(&claim.type_))
    );
}

#[test]
fn an_agent_that_was_told_to_end_is_named_as_the_reason() {
    let mut scene = Scene::new().silent_for(Some(1.0)).applied();
    scene.object.status.get_or_insert_default().agent = Some(AgentStatus {
        state: Some(AgentState::Stopping),
        ..AgentStatus::default()
    });
    assert_eq!(scene.phase(), Phase::Ready);
    let later = scene.after(60).silent_for(Some(60.0));
    assert_eq!(
        later.claim(controller::REPORTING),
        (Status::False, "AgentStopping")
    );
}

#[test]
fn another_node_of_the_same_name_is_another_node() {
    let mut scene = Scene::new();
    scene.node = Node::test("uid-2");
    let observed = Observed {
        object: &scene.object,
        node: Some(&scene.node),
        api: &scene.api,
    };
    assert_eq!(decide(observed, TIMES, at(0)), None);
    assert_eq!(
        decide(
            Observed {
                node: None,
                ..observed
            },
            TIMES,
            at(0)
        ),
        None
    );
}

#[test]
fn what_the_api_does_not_know_it_is_told() {
    let mut scene = Scene::new().interval(30);
    let told = scene.decide().register.expect("the interval is another");
    assert_eq!((told.interval_seconds, &*told.ip), (30, "192.168.2.10"));
    assert_eq!(
        scene.claim(controller::REGISTERED),
        (Status::False, "NotRegistered")
    );
    scene = scene.silent_for(None);
    assert_eq!(scene.decide().register, None);
    assert_eq!(
        scene.claim(controller::REGISTERED),
        (Status::True, "Registered")
    );
}

#[test]
fn a_clock_is_skewed_from_five_seconds_until_it_is_within_two() {
    let with_offset = |mut scene: Scene, offset: f64| {
        if let ApiView::Answers { nodes, .. } = &mut scene.api {
            for life in nodes.values_mut() {
                life.clock_offset_seconds = Some(offset);
            }
        }
        scene
    };
    let scene = || Scene::new().silent_for(Some(1.0));
    let skew = |scene: &Scene| scene.claim(controller::CLOCK_SKEWED);
    assert_eq!(skew(&with_offset(scene(), 4.0)), (Status::False, "InStep"));
    let ahead = with_offset(scene(), 6.0).applied();
    assert_eq!(skew(&ahead), (Status::True, "ClockAhead"));
    assert_eq!(
        skew(&with_offset(ahead.clone(), 3.0)),
        (Status::True, "ClockAhead")
    );
    assert_eq!(skew(&with_offset(ahead, 1.0)), (Status::False, "InStep"));
    assert_eq!(
        skew(&with_offset(scene(), -60.0)),
        (Status::True, "ClockBehind")
    );
    assert_eq!(skew(&Scene::new()), (Status::Unknown, "NotMeasured"));
}

/// What may happen to a node.
#[derive(Debug, Clone)]
enum Step {
    Pass(i64),
    Sample(f64),
    Forget,
    ApiAway,
    ApiBack,
    Pause(bool),
    Interval(u64),
    Apply,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0i64..2000).prop_map(Step::Pass),
        prop_oneof![
            0.0..100_000.0f64,
            Just(f64::NAN),
            Just(-1.0),
            Just(f64::MAX)
        ]
        .prop_map(Step::Sample),
        Just(Step::Forget),
        Just(Step::ApiAway),
        Just(Step::ApiBack),
        any::<bool>().prop_map(Step::Pause),
        (1u64..3600).prop_map(Step::Interval),
        Just(Step::Apply),
    ]
}

fn take(mut scene: Scene, step: Step) -> Scene {
    match step {
        Step::Pass(seconds) => scene.after(seconds),
        Step::Sample(age) => scene.silent_for(Some(age)),
        Step::Forget => scene.silent_for(None),
        Step::ApiAway => {
            scene.api = ApiView::Away;
            scene
        }
        Step::ApiBack => {
            scene = scene.silent_for(Some(1.0));
            if let ApiView::Answers { since, .. } = &mut scene.api {
                *since = at(scene.now);
            }
            scene
        }
        Step::Pause(paused) => {
            scene.object.spec.paused = paused;
            scene.edited()
        }
        Step::Interval(seconds) => scene.interval(seconds).edited(),
        Step::Apply => scene.applied(),
    }
}

proptest! {
    /// Whatever happened before: nothing panics, and what was applied needs no second write.
    #[test]
    fn applying_twice_changes_nothing(steps in prop::collection::vec(step(), 0..30)) {
        let mut scene = steps.into_iter().fold(Scene::new(), take);
        let first = scene.decide().phase;
        scene.apply();
        prop_assert_eq!(scene.decide().phase, first);
        prop_assert!(!scene.apply(), "{:?}", scene.object.status);
    }

    /// Samples that arrive make any node Ready, and silence makes it Lost, whatever happened.
    #[test]
    fn it_converges(steps in prop::collection::vec(step(), 0..30)) {
        let mut scene = steps.into_iter().fold(Scene::new(), take);
        scene.object.spec.paused = false;
        let mut scene = scene.interval(10).silent_for(Some(1.0)).edited().applied();
        prop_assert_eq!(scene.phase(), Phase::Ready);
        if let ApiView::Answers { since, .. } = &mut scene.api {
            *since = at(scene.now);
        }
        let begin = scene.now;
        for _ in 0..100 {
            scene = scene.after(5);
            let age = (scene.now - begin) as f64;
            scene = scene.silent_for(Some(age)).applied();
        }
        prop_assert_eq!(scene.phase(), Phase::Lost);
    }
}
