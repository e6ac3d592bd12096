//! The store on a real database: embedded, in memory and in a folder, and all of it that needs no folder
//! once more on a server.

use std::cell::RefCell;
use std::path::Path;
use std::process::Command;

use nodestats_core::token::{self, Grant, Token};
use nodestats_core::{FrameId, Life, NodeIdentity, Sample, SampleKey, Stored, Wanted, frame};
use nodestats_testkit::DatabaseServer;
use nodestats_wire::v1::{Purpose, Reading, Registration};
use surrealdb::types::{SurrealValue as _, Value};
use uuid::Uuid;

use super::*;

mod history;
mod made;
mod sealing;

const ALL: (Timestamp, Timestamp) = (Timestamp::MIN, Timestamp::MAX);

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000).expect("in range")
}

fn options(retention_seconds: u64) -> Options {
    Options {
        retention: Duration::from_secs(retention_seconds),
        memory: MemoryBudget::from_limit(0),
        node_quota: None,
        retention_minute: Duration::from_hours(24 * 90),
        retention_hour: Duration::from_hours(24 * 730),
        max_size: None,
        meter: opentelemetry::global::meter("test"),
    }
}

fn of(uid: &str) -> NodeIdentity {
    NodeIdentity::proved(uid)
}

/// Set: stores are on servers. Of histories as many are made.
const ON_SERVERS: &str = "NODESTATS_TEST_HISTORIES_ON_SERVERS";

thread_local! {
    /// The servers of the test of this thread, which end with it.
    static SERVERS: RefCell<Vec<(DatabaseServer, tempfile::TempDir)>> = const { RefCell::new(Vec::new()) };
}

/// A store on a database of its own that is empty.
pub(crate) async fn fresh() -> Store {
    let location = if std::env::var_os(ON_SERVERS).is_some() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let server = DatabaseServer::start(folder.path());
        let credentials = Credentials {
            user: DatabaseServer::USER.to_owned(),
            password: DatabaseServer::PASSWORD.to_owned(),
        };
        let url = server.url();
        SERVERS.with_borrow_mut(|servers| servers.push((server, folder)));
        Location::Remote {
            tls: false,
            authority: url.trim_start_matches("ws://").to_owned(),
            credentials: Some(credentials),
            authorities: None,
        }
    } else {
        Location::Memory
    };
    Store::open(&location, &options(1000)).await.expect("opens")
}

#[test]
fn all_of_it_is_true_on_a_server_too() {
    if std::env::var_os(ON_SERVERS).is_some() {
        return;
    }
    let tests = std::env::current_exe().expect("a test is a program");
    let run = Command::new(tests).env(ON_SERVERS, "40").output();
    let run = run.expect("started");
    let told = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{told}");
    println!("{told}");
}

async fn in_folder(path: &Path) -> Store {
    Store::open(&Location::Directory(path.into()), &options(1000))
        .await
        .expect("opens")
}

fn pushed(seconds: i64, sequence: u64) -> NewSample {
    let id = FrameId {
        agent_start: Uuid::from_u128(1),
        sequence,
    };
    let bytes = frame::encode(at(seconds), id, None, &Sample::default());
    NewSample::from_frame(at(seconds), id, &bytes, 1)
}

fn reading(seconds: i64, memory: f64) -> NewSample {
    let reading = Reading {
        memory_usage_percent: Some(memory),
        ..Reading::default()
    };
    NewSample::from_reading(at(seconds), reading)
}

async fn times(store: &Store, uid: &str, range: (Timestamp, Timestamp), order: Order) -> Vec<i64> {
    let samples = store
        .samples(uid, range, order, Wanted::All, usize::MAX)
        .await
        .expect("read");
    samples
        .iter()
        .map(|sample| sample.time().second())
        .collect()
}

/// How many samples of a node are kept.
async fn count(store: &Store, uid: &str) -> usize {
    times(store, uid, ALL, Order::Ascending).await.len()
}

/// The server's clock of pushes that cannot have been sealed.
const START: Timestamp = Timestamp::MIN;

const HEARD: Seen = Seen {
    last_sample: Timestamp::MIN,
    fresh_at: Timestamp::MIN,
    clock_offset_micros: None,
};

#[tokio::test]
async fn a_range_holds_both_its_ends_in_either_order() {
    let store = fresh().await;
    store
        .append(
            &of("a"),
            (0..5).map(|n| pushed(n * 10, n as u64)).collect(),
            HEARD,
            START,
        )
        .await
        .expect("kept");
    store
        .append(&of("b"), vec![pushed(20, 9)], HEARD, START)
        .await
        .expect("kept");
    let range = (at(10), at(30));
    assert_eq!(
        times(&store, "a", range, Order::Ascending).await,
        [10, 20, 30]
    );
    assert_eq!(
        times(&store, "a", range, Order::Descending).await,
        [30, 20, 10]
    );
    assert_eq!(times(&store, "b", ALL, Order::Ascending).await, [20]);
    assert_eq!(times(&store, "nobody", ALL, Order::Ascending).await, [0; 0]);
    assert_eq!(count(&store, "a").await, 5);
    assert_eq!(store.newest("a").await.expect("read"), Some(at(40)));
}

#[tokio::test]
async fn a_page_goes_on_where_the_last_one_ended() {
    let store = fresh().await;
    // Two samples of the same time: an agent's and a third party's.
    store
        .append(
            &of("a"),
            vec![pushed(10, 1), reading(10, 1.0), pushed(20, 2)],
            HEARD,
            START,
        )
        .await
        .expect("kept");
    for (order, expected) in [
        (Order::Ascending, [10, 10, 20]),
        (Order::Descending, [20, 10, 10]),
    ] {
        let mut seen = Vec::new();
        let mut walk = store.walk("a", ALL, order, Wanted::Host);
        loop {
            let page = walk.page(1).await.expect("read");
            let Some(sample) = page.first() else { break };
            seen.push(sample.time().second());
        }
        assert_eq!(seen, expected);
    }
}

#[tokio::test]
async fn the_nth_time_of_a_range_is_found_by_keys() {
    let store = fresh().await;
    store
        .append(
            &of("a"),
            (0..5).map(|n| pushed(n * 10, n as u64)).collect(),
            HEARD,
            START,
        )
        .await
        .expect("kept");
    let nth = |n| store.nth_time("a", (at(10), at(30)), n);
    assert_eq!(nth(0).await.expect("read"), Some(at(10)));
    assert_eq!(nth(2).await.expect("read"), Some(at(30)));
    assert_eq!(nth(3).await.expect("read"), None);
}

#[tokio::test]
async fn what_comes_twice_counts_once_and_the_last_reading_wins() {
    let store = fresh().await;
    for _ in 0..2 {
        store
            .append(&of("a"), vec![pushed(10, 1), pushed(10, 1)], HEARD, START)
            .await
            .expect("kept");
    }
    store
        .append(&of("a"), vec![reading(20, 1.0)], HEARD, START)
        .await
        .expect("kept");
    store
        .append(
            &of("a"),
            vec![reading(20, 1.5), reading(20, 2.0)],
            HEARD,
            START,
        )
        .await
        .expect("kept");
    assert_eq!(count(&store, "a").await, 2);
    let samples = store
        .samples("a", ALL, Order::Descending, Wanted::Host, 1)
        .await
        .expect("read");
    let [Stored::Gauges(gauges)] = &samples[..] else {
        panic!("a reading was put");
    };
    let kept = gauges.reading().expect("readable");
    assert_eq!(kept.memory_usage_percent, Some(2.0));
}

#[tokio::test]
async fn retention_drops_what_is_old_by_its_own_time_and_nothing_else() {
    let store = fresh().await;
    let samples = [10, 1000, 1999, 2000, 2500, 90_000];
    store
        .append(
            &of("a"),
            samples.map(|time| pushed(time, 0)).to_vec(),
            HEARD,
            START,
        )
        .await
        .expect("kept");
    store.save_life(&life("a")).await.expect("saved");
    store.retain(at(3000)).await.expect("done");
    assert_eq!(
        times(&store, "a", ALL, Order::Ascending).await,
        [2000, 2500, 90_000]
    );
}

#[tokio::test]
async fn a_node_that_is_gone_is_forgotten_with_its_last_sample() {
    let store = fresh().await;
    let mut node = life("a");
    node.retire(at(100));
    store.save_life(&node).await.expect("saved");
    store
        .append(&of("a"), vec![pushed(90, 0)], HEARD, START)
        .await
        .expect("kept");
    store.retain(at(1050)).await.expect("done");
    assert_eq!(store.lives().await.expect("read").len(), 1);
    store.retain(at(1200)).await.expect("done");
    assert!(store.lives().await.expect("read").is_empty());
}

#[tokio::test]
async fn a_purge_takes_one_life_with_its_history() {
    let store = fresh().await;
    for uid in ["a", "b"] {
        store.save_life(&life(uid)).await.expect("saved");
        store
            .append(
                &of(uid),
                vec![pushed(10, 0), pushed(50_000, 1)],
                HEARD,
                START,
            )
            .await
            .expect("kept");
    }
    store.purge("a").await.expect("purged");
    assert_eq!(store.life("a").await.expect("read"), None);
    assert_eq!(count(&store, "a").await, 0);
    assert_eq!(store.life("b").await.expect("read"), Some(life("b")));
    assert_eq!(count(&store, "b").await, 2);
}

#[tokio::test]
async fn a_folder_keeps_everything_over_a_restart() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let store = in_folder(folder.path()).await;
    store.save_life(&life("a")).await.expect("saved");
    store
        .append(&of("a"), vec![pushed(10, 1)], HEARD, START)
        .await
        .expect("kept");
    store.close().await;
    assert!(matches!(
        store
            .append(&of("a"), vec![pushed(20, 2)], HEARD, START)
            .await,
        Err(Error::Closing)
    ));
    drop(store);
    let store = in_folder(folder.path()).await;
    assert_eq!(store.life("a").await.expect("read"), Some(life("a")));
    assert_eq!(times(&store, "a", ALL, Order::Ascending).await, [10]);
}

#[tokio::test]
async fn a_folder_is_open_once_and_never_by_an_older_program() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let location = Location::Directory(folder.path().into());
    let store = in_folder(folder.path()).await;
    let second = Store::open(&location, &options(10)).await;
    assert!(matches!(
        second,
        Err(OpenError::Directory(directory::Error::InUse { .. }))
    ));
    // One of an older program is brought up to ours, and is refused there from then on.
    store.database.write_schema(1).await.expect("written");
    store.close().await;
    drop(store);
    let file = folder.path().join("nodestats.schema");
    std::fs::write(&file, "1\n").expect("written");
    let store = in_folder(folder.path()).await;
    let ours = directory::SCHEMA.to_string();
    assert_eq!(
        std::fs::read_to_string(&file).expect("readable").trim(),
        ours
    );
    let schema = store.database.schema().await.expect("read");
    assert_eq!(schema, Some(directory::SCHEMA));
    store.database.write_schema(99).await.expect("written");
    store.close().await;
    drop(store);
    let older = Store::open(&location, &options(10)).await;
    assert!(matches!(
        older,
        Err(OpenError::NewerSchema { found: 99, .. })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_share_transactions_and_lose_nothing() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let store = in_folder(folder.path()).await;
    let writers = (0..20).map(|node| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..10 {
                store
                    .append(
                        &NodeIdentity::proved(&format!("node-{node}")),
                        vec![pushed(n, n as u64)],
                        HEARD,
                        START,
                    )
                    .await
                    .expect("kept");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("wrote");
    }
    for node in 0..20 {
        assert_eq!(count(&store, &format!("node-{node}")).await, 10);
    }
}

pub(crate) fn life(uid: &str) -> Life {
    let registration = Registration {
        uid: Some(uid.into()),
        interval_seconds: Some(10),
        ..Registration::new("10.0.0.1", format!("host-{uid}"))
    };
    Life::new(uid.into(), registration, at(5))
}

#[tokio::test]
async fn what_was_heard_of_a_node_is_never_set_back() {
    let store = fresh().await;
    let seen = |last, fresh, offset| Seen {
        last_sample: at(last),
        fresh_at: at(fresh),
        clock_offset_micros: offset,
    };
    let keep = async |n, seen| {
        store
            .append(&of("a"), vec![pushed(n, n as u64)], seen, START)
            .await
            .expect("kept");
    };
    keep(10, seen(10, 12, None)).await;
    assert_eq!(store.seen().await.expect("read")["a"], seen(10, 12, None));
    keep(20, seen(20, 22, Some(-7))).await;
    // A push of the past, as another replica may write it.
    keep(5, seen(5, 8, None)).await;
    let all = store.seen().await.expect("read");
    assert_eq!((all.len(), all["a"]), (1, seen(20, 22, Some(-7))));
    store.purge("a").await.expect("purged");
    assert!(store.seen().await.expect("read").is_empty());
}

#[tokio::test]
async fn what_a_push_left_behind_a_purge_goes_with_the_next_retention() {
    let store = fresh().await;
    store.save_life(&life("kept")).await.expect("saved");
    for uid in ["kept", "purged"] {
        let samples = vec![pushed(10, 1)];
        store
            .append(&of(uid), samples, HEARD, START)
            .await
            .expect("kept");
    }
    store.retain(at(11)).await.expect("retained");
    assert_eq!(count(&store, "kept").await, 1);
    assert_eq!(count(&store, "purged").await, 0);
    let seen = store.seen().await.expect("read");
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["kept"]);
}

fn host_token(random: u8) -> (Token, Grant) {
    let purpose = Purpose::Host {
        node: "web-1".to_owned(),
    };
    let token = Token::new(&purpose, &[random; token::RANDOM_BYTES]);
    let grant = Grant::new(&token, purpose, at(0), None);
    (token, grant)
}

#[tokio::test]
async fn a_token_is_kept_as_a_hash_until_it_is_revoked() {
    let store = fresh().await;
    let (token, grant) = host_token(1);
    assert_eq!(store.grant(token.id()).await.expect("read"), None);
    store.save_grant(&grant).await.expect("kept");
    let kept = store.grant(token.id()).await.expect("read").expect("there");
    assert_eq!(kept, grant);
    assert!(kept.is_of(&token));
    let all = store.grants().await.expect("read");
    let of_host = store.grants_of_host("WEB-1").await.expect("read");
    assert_eq!((&all, all.as_slice()), (&of_host, &[grant][..]));
    assert!(
        store
            .grants_of_host("web-2")
            .await
            .expect("read")
            .is_empty()
    );
    let ended = store.revoke(token.id()).await.expect("revoked");
    assert_eq!(ended, Some(kept));
    assert_eq!(store.revoke(token.id()).await.expect("nothing there"), None);
    assert_eq!(store.grant(token.id()).await.expect("read"), None);
}

#[tokio::test]
async fn a_join_token_is_used_as_often_as_it_says_also_at_once() {
    let store = fresh().await;
    let purpose = Purpose::Join { uses_left: 2 };
    let token = Token::new(&purpose, &[9; token::RANDOM_BYTES]);
    let by = Grant::new(&token, purpose, at(0), None);
    store.save_grant(&by).await.expect("kept");
    let attempts = (1..=8).map(|random| {
        let (store, by) = (store.clone(), by.clone());
        tokio::spawn(async move { store.join(&by, &host_token(random).1).await })
    });
    let mut joined = 0;
    for attempt in attempts.collect::<Vec<_>>() {
        // One that another got in the way of may be refused by the database, and counts for nothing.
        if let Ok(Joined::New) = attempt.await.expect("no panic") {
            joined += 1;
        }
    }
    let hosts = store.grants_of_host("web-1").await.expect("read").len();
    assert_eq!(joined, hosts);
    assert!(hosts <= 2, "{hosts}");
    while store.grants_of_host("web-1").await.expect("read").len() < 2 {
        let random = 20 + store.grants().await.expect("read").len() as u8;
        let done = store.join(&by, &host_token(random).1).await;
        assert_eq!(done.expect("alone"), Joined::New);
    }
    let done = store.join(&by, &host_token(99).1).await.expect("alone");
    assert_eq!(done, Joined::UsedUp);
    let left = store.grant(token.id()).await.expect("read").expect("there");
    assert_eq!(left.token.purpose, Purpose::Join { uses_left: 0 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ranges_are_read_while_files_are_written() {
    const FILES: usize = 400;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = Options {
        // A file is written after each few rows.
        memory: MemoryBudget {
            memtable: 128 << 10,
            ..MemoryBudget::from_limit(0)
        },
        ..options(1000)
    };
    let location = Location::Directory(folder.path().into());
    let store = Store::open(&location, &options);
    let store = store.await.expect("opens");
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers = (0..3).map(|_| {
        let (store, done) = (store.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let mut reads = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                store.first_row("a", at(0)).await.expect("read");
                reads += 1;
            }
            reads
        })
    });
    let readers: Vec<_> = readers.collect();
    for number in 0..FILES as i64 {
        let key = SampleKey {
            time: at(number % 7),
            push: None,
        };
        let variables = database::bind([
            ("id", samples::record(&key, "a").into_value()),
            ("p", Value::Bytes(vec![number as u8; 100 << 10].into())),
        ]);
        let written = store.database.write("UPSERT $id SET p = $p", variables, 0);
        written.await.expect("written");
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    for reader in readers {
        assert!(reader.await.expect("ended") > 0);
    }
    store.close().await;
}
