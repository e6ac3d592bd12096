//! Any question about any history is answered as a map in memory answers it: at once, when a part is sealed, when
//! all is, and when rollups alone are left. Histories are made of a seed; `NODESTATS_TEST_HISTORIES` says how many
//! of them.

mod groups;
mod hosts;
mod made;
mod minutes;
mod processes;
mod ranked;
#[path = "../server/mod.rs"]
mod server;

use made::{BEGIN, Node, at};
use nodestats_core::sample::note::What;
use nodestats_testkit::Random;
use nodestats_wire::{Timestamp, routes};
use serde_json::{Value, json};
use server::Server;

/// Histories whose seed once failed, and so many others.
const FAILED: [u64; 1] = [39];
const HISTORIES: u64 = 16;
/// Questions of each kind at each stage of a history.
const QUESTIONS: usize = 6;
/// Whenever the tests run, their samples are not too old to be taken.
const AGES: u64 = 3_000_000_000;
const DAY: u64 = 86_400;

/// A server, and what it has been told.
struct History {
    server: Server,
    nodes: Vec<Node>,
    random: Random,
    /// What it is, for whoever reads of a failure.
    stage: &'static str,
}

impl History {
    async fn new(seed: u64) -> Self {
        let server = Server::new().await;
        let mut random = Random::new(seed);
        let count = 1 + random.below(4);
        let nodes: Vec<Node> = (0..count)
            .map(|number| Node::new(number, &mut random))
            .collect();
        for (number, node) in nodes.iter().enumerate() {
            let registration = json!({
                "hostname": node.name, "ip": format!("192.168.2.{}", 10 + number),
                "interval_seconds": 20, "retention_seconds": AGES,
                "retention_minute_seconds": AGES + 10 * DAY, "deletion_policy": "retain",
            });
            let path = routes::registration(&node.uid);
            assert_eq!(server.put(&path, &registration).await.status, 204);
            let pods = json!({"pods": node.told_pods()});
            assert_eq!(server.put("/pods", &pods).await.status, 204);
        }
        Self {
            server,
            nodes,
            random,
            stage: "",
        }
    }

    async fn push(&self, node: &Node, seconds: &[i64]) {
        for some in seconds.chunks(40) {
            let body = node.frames(some.iter());
            let answer = self.server.put_frames(&node.uid, body).await;
            assert_eq!(answer.status, 204, "{}", node.uid);
        }
    }

    /// Takes the samples away, and leaves their rollups.
    async fn retain_rollups(&self) {
        let later = i64::try_from(AGES + DAY).expect("small") * 1_000_000;
        let now = at(BEGIN + 2 * 3600).plus_micros(later);
        self.server.store.retain(now).await.expect("done");
        for node in &self.nodes {
            let oldest = self.server.store.oldest(&node.uid).await;
            assert_eq!(oldest.expect("read"), None, "{}", node.uid);
        }
    }

    async fn seal(&self, until: i64) {
        self.server.store.seal(at(until)).await.expect("sealed");
    }

    async fn get(&self, path: &str) -> Option<Value> {
        let answer = self.server.get(path).await;
        match answer.status {
            200 => Some(answer.json()),
            404 => None,
            status => panic!("{path}: {status}"),
        }
    }

    fn node(&mut self) -> usize {
        self.random.below(self.nodes.len() as u64) as usize
    }

    /// A second of the history, or a little before or behind it.
    fn second(&mut self) -> i64 {
        BEGIN - 60 + self.random.below(5500) as i64
    }

    fn span(&mut self) -> (i64, i64) {
        let from = self.second();
        (from, from + self.random.below(4000) as i64)
    }

    async fn ask(&mut self, stage: &'static str, is_settled: bool) {
        self.stage = stage;
        for _ in 0..QUESTIONS {
            self.table_at().await;
            self.one_process().await;
            self.cpu().await;
            self.devices().await;
            self.pods_at().await;
            self.units_at().await;
            self.one_pod().await;
            self.events().await;
            self.top_at().await;
            self.groups_at().await;
            self.groups_within().await;
            // What comes late is in rollups once it is sealed.
            if is_settled {
                self.ask_of_rollups().await;
            }
        }
    }

    async fn ask_of_rollups(&mut self) {
        self.host_by_minutes().await;
        self.process_by_minutes().await;
        self.pod_by_minutes().await;
        self.top_by_hours().await;
    }

    /// What happened in a span.
    async fn events(&mut self) {
        let (number, (from, to)) = (self.node(), self.span());
        let node = &self.nodes[number];
        let path = node.history("events", from, to) + "&limit=1000";
        let answer = self.get(&path).await.unwrap_or_else(|| json!([]));
        let known = ["paused", "clock_step", "oom_kill"].map(|kind| json!(kind));
        let told = answer.as_array().expect("a list").iter();
        let told = told.filter(|event| known.contains(&event["kind"]));
        let told: Vec<Value> = told
            .map(|event| json!([event["time"], event["kind"], event["victim"]["pid"]]))
            .collect();
        let notes = node.samples.values().flat_map(|sample| &sample.notes);
        let within = notes.filter(|note| {
            // The last second is there to its end.
            let (from, to) = (from * 1_000_000, (to + 1) * 1_000_000 - 1);
            (from..=to).contains(&note.time_micros)
        });
        let expected: Vec<Value> = within
            .map(|note| {
                let time = Timestamp::from_micros(note.time_micros).expect("a time");
                let (kind, pid) = match &note.what {
                    What::Paused => ("paused", None),
                    What::ClockStep { .. } => ("clock_step", None),
                    What::Kill(kill) => ("oom_kill", kill.victim.as_ref().map(|(pid, _)| *pid)),
                    other => panic!("{other:?}"),
                };
                json!([time, kind, pid])
            })
            .collect();
        assert_eq!(told, expected, "{}: {path}", self.stage);
    }

    /// Entries that have a figure, by time.
    fn entries<'a>(answer: &'a Value, figure: &str) -> Vec<(&'a str, &'a Value)> {
        let all = answer.as_object().expect("entries").iter();
        let has = all.filter(|(_, entry)| !entry[figure].is_null());
        has.map(|(key, entry)| (key.as_str(), entry)).collect()
    }
}

async fn run(seed: u64) {
    println!("history {seed}");
    let mut history = History::new(seed).await;
    let end = BEGIN + 3 * 3600 + 24 * 3600;
    // Some come late, and some later than they were sealed.
    let mut late: Vec<Vec<i64>> = Vec::new();
    for number in 0..history.nodes.len() {
        let seconds: Vec<i64> = history.nodes[number].samples.keys().copied().collect();
        let (mut now, mut later) = (Vec::new(), Vec::new());
        let mut is_late = false;
        for second in seconds {
            if history.random.below(25) == 0 {
                is_late = !is_late && history.random.below(2) == 0;
            }
            if is_late { &mut later } else { &mut now }.push(second);
        }
        history.push(&history.nodes[number], &now).await;
        late.push(later);
    }
    // One hour or all of them are sealed without what is late.
    let is_one_sealed = history.random.below(2) == 0;
    let are_all_sealed = history.random.below(4) == 0;
    if is_one_sealed {
        history.seal(BEGIN / 3600 * 3600 + 3600 + 180).await;
    }
    if are_all_sealed {
        history.seal(end).await;
    }
    for (number, later) in late.iter().enumerate() {
        history.push(&history.nodes[number], later).await;
    }
    let is_settled = !is_one_sealed && !are_all_sealed;
    history.ask("as it was pushed", is_settled).await;
    history.seal(BEGIN / 3600 * 3600 + 3600 + 180).await;
    history.ask("with an hour sealed", !are_all_sealed).await;
    history.seal(end).await;
    history.ask("sealed", true).await;
    history.retain_rollups().await;
    history.stage = "when samples are gone";
    for _ in 0..QUESTIONS {
        history.ask_of_rollups().await;
    }
    history.server.store.close().await;
}

#[tokio::test]
async fn any_question_about_any_history_is_answered_as_a_map_answers_it() {
    let count = std::env::var("NODESTATS_TEST_HISTORIES");
    let count = count.map_or(HISTORIES, |count| count.parse().expect("a number"));
    let seeds = FAILED.into_iter().chain(1..=count);
    for seed in seeds {
        run(seed).await;
    }
}
