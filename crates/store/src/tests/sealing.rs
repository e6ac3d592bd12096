//! Sealing as such: when it is due, who does it, what a crash leaves, and what is damaged.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nodestats_core::{Stored, Wanted};
use surrealdb::types::{SurrealValue, Value};

use super::*;
use crate::blocks::{BlockKey, Unreadable};
use crate::database::bind;
use crate::rollups::Rolled;

/// The begin of an hour.
const BEGIN: i64 = 1_699_999_200;

/// Frames of a node, one each 10 s.
fn frames(node: u64, from: i64, numbers: std::ops::Range<u64>) -> Vec<NewSample> {
    let frame = |number: u64| {
        let time = at(from + number as i64 * 10);
        let id = FrameId {
            agent_start: Uuid::from_u128(1),
            sequence: number,
        };
        let sample = made::sample(node, number);
        let bytes = frame::encode(time, id, Some(Duration::from_secs(10)), &sample);
        NewSample::from_frame(time, id, &bytes, sample.values())
    };
    numbers.map(frame).collect()
}

async fn push(store: &Store, uid: &str, samples: Vec<NewSample>, now: i64) {
    let heard = Seen {
        last_sample: at(now),
        fresh_at: at(now),
        clock_offset_micros: None,
    };
    let node = of(uid);
    let appended = store.append(&node, samples, heard, at(now));
    appended.await.expect("kept");
}

/// Which blocks a node has, and how many rows.
async fn state(store: &Store, uid: &str) -> (Vec<BlockKey>, usize) {
    let ids = |table: &str| {
        let statement = format!("SELECT VALUE id FROM {table}");
        let store = store.clone();
        async move {
            let ids = store.database.select::<Value>(&statement, bind([])).await;
            ids.expect("read")
        }
    };
    let of_node = |id: &Value| format!("{id:?}").contains(&format!("{uid:?}"));
    let blocks = ids("block").await.into_iter().filter(of_node);
    let mut blocks: Vec<BlockKey> = blocks.filter_map(BlockKey::read).collect();
    blocks.sort();
    let rows = ids("sample").await.iter().filter(|id| of_node(id)).count();
    (blocks, rows)
}

/// All samples are there once, and say what they said.
async fn check_all(store: &Store, uid: &str, node: u64, count: u64) {
    let samples = store
        .samples(uid, ALL, Order::Ascending, Wanted::All, usize::MAX)
        .await
        .expect("read");
    let numbers: Vec<u64> = samples
        .iter()
        .filter_map(|sample| Some(sample.counters()?.id.sequence))
        .collect();
    assert_eq!(numbers, (0..count).collect::<Vec<_>>());
    for (number, sample) in samples.iter().enumerate() {
        let counters = sample.counters().expect("a frame");
        let read = counters.sample(Wanted::All).expect("readable");
        assert_eq!(read, made::sample(node, number as u64));
    }
}

#[tokio::test]
async fn an_hour_is_sealed_when_it_is_over_and_its_rows_are_gone() {
    let store = fresh().await;
    push(&store, "a", frames(1, BEGIN, 0..500), BEGIN + 5000).await;
    // The hour is over; what is late may still come.
    store.seal(at(BEGIN + 3660)).await.expect("sealed");
    assert_eq!(state(&store, "a").await, (vec![], 500));
    store.seal(at(BEGIN + 5000)).await.expect("sealed");
    let (blocks, rows) = state(&store, "a").await;
    assert_eq!((blocks.len(), rows), (1, 140));
    assert_eq!(
        (blocks[0].first, blocks[0].last),
        (at(BEGIN), at(BEGIN + 3590))
    );
    assert_eq!(blocks[0].samples, 360);
    check_all(&store, "a", 1, 500).await;
    assert_eq!(store.oldest("a").await.expect("read"), Some(at(BEGIN)));
    assert_eq!(
        store.newest("a").await.expect("read"),
        Some(at(BEGIN + 4990))
    );
}

#[tokio::test]
async fn an_hour_is_over_by_the_nodes_own_clock() {
    let store = fresh().await;
    // It is an hour ahead: by the server's clock all of it is to come.
    let heard = Seen {
        last_sample: at(BEGIN + 4000),
        fresh_at: at(BEGIN + 400),
        clock_offset_micros: Some(3_600_000_000),
    };
    let samples = frames(1, BEGIN, 0..400);
    let node = of("a");
    let appended = store.append(&node, samples, heard, at(BEGIN + 400));
    appended.await.expect("kept");
    store.seal(at(BEGIN + 400)).await.expect("sealed");
    assert_eq!(state(&store, "a").await.1, 40);
}

#[tokio::test]
async fn an_hour_of_many_samples_is_sealed_early() {
    let store = fresh().await;
    let each_second = |numbers: std::ops::Range<u64>| {
        numbers
            .map(|number| pushed(BEGIN + number as i64, number))
            .collect::<Vec<_>>()
    };
    push(&store, "a", each_second(0..1500), BEGIN + 1500).await;
    store.seal(at(BEGIN + 1100)).await.expect("sealed");
    assert_eq!(state(&store, "a").await.1, 1500);
    store.seal(at(BEGIN + 1500)).await.expect("sealed");
    // What came within the last two minutes is left alone.
    let (blocks, rows) = state(&store, "a").await;
    assert_eq!((blocks.len(), rows), (1, 120));
    assert_eq!(count(&store, "a").await, 1500);
}

#[tokio::test]
async fn what_is_sent_again_after_it_was_sealed_is_not_stored_again() {
    let store = fresh().await;
    push(&store, "a", frames(1, BEGIN, 0..360), BEGIN + 3600).await;
    store.seal(at(BEGIN + 4000)).await.expect("sealed");
    assert_eq!(state(&store, "a").await.1, 0);
    push(&store, "a", frames(1, BEGIN, 10..20), BEGIN + 4000).await;
    assert_eq!(state(&store, "a").await.1, 0);
    check_all(&store, "a", 1, 360).await;
}

#[tokio::test]
async fn late_samples_go_to_blocks_beside_and_small_ones_are_merged() {
    let store = fresh().await;
    let all = frames(1, BEGIN, 0..360);
    let is_late = |number: usize| number % 8 == 3;
    let (late, early): (Vec<_>, Vec<_>) = all
        .into_iter()
        .enumerate()
        .partition(|(number, _)| is_late(*number));
    let early = early.into_iter().map(|(_, sample)| sample).collect();
    push(&store, "a", early, BEGIN + 3600).await;
    store.seal(at(BEGIN + 4000)).await.expect("sealed");
    let mut now = BEGIN + 4000;
    let mut most = 0;
    for (_, sample) in late {
        now += 60;
        push(&store, "a", vec![sample], now).await;
        store.seal(at(now)).await.expect("sealed");
        let (blocks, rows) = state(&store, "a").await;
        assert_eq!(rows, 0);
        most = most.max(blocks.len());
    }
    // 45 came one by one.
    assert!((2..8).contains(&most), "{most}");
    check_all(&store, "a", 1, 360).await;
}

#[tokio::test]
async fn a_reading_that_is_put_again_after_it_was_sealed_counts() {
    let store = fresh().await;
    let memory = async || {
        let samples = store
            .samples("a", ALL, Order::Ascending, Wanted::Host, 10)
            .await
            .expect("read");
        let of = |sample: &Stored| match sample {
            Stored::Gauges(gauges) => gauges.reading().expect("readable").memory_usage_percent,
            Stored::Counters(_) => None,
        };
        samples.iter().map(of).collect::<Vec<_>>()
    };
    for value in [1.0, 2.0, 3.0] {
        push(&store, "a", vec![reading(BEGIN, value)], BEGIN + 4000).await;
        assert_eq!(memory().await, [Some(value)]);
        store.seal(at(BEGIN + 4000)).await.expect("sealed");
        assert_eq!(memory().await, [Some(value)]);
        let (blocks, rows) = state(&store, "a").await;
        assert_eq!((blocks.len(), rows), (1, 0));
    }
}

#[tokio::test]
async fn many_processes_are_several_blocks_of_an_hour() {
    let store = fresh().await;
    let large = |number: u64| {
        let mut sample = made::sample(1, number);
        let like = sample.processes[1].clone();
        sample.processes = (1..=1500)
            .map(|pid| nodestats_core::sample::Process {
                pid,
                ..like.clone()
            })
            .collect();
        sample.gather_members();
        sample
    };
    let frames = (0..100).map(|number| {
        let (time, sample) = (at(BEGIN + number as i64 * 30), large(number));
        let id = FrameId {
            agent_start: Uuid::from_u128(1),
            sequence: number,
        };
        let bytes = frame::encode(time, id, None, &sample);
        NewSample::from_frame(time, id, &bytes, sample.values())
    });
    push(&store, "a", frames.collect(), BEGIN + 3600).await;
    store.seal(at(BEGIN + 4000)).await.expect("sealed");
    let (blocks, rows) = state(&store, "a").await;
    assert_eq!((blocks.len(), rows), (3, 0));
    let samples = store
        .samples("a", ALL, Order::Descending, Wanted::Processes, 60)
        .await
        .expect("read");
    let first = samples.last().and_then(Stored::counters).expect("a frame");
    let read = first.sample(Wanted::Processes).expect("readable");
    assert_eq!(
        (first.id.sequence, read.processes),
        (40, large(40).processes)
    );
}

#[tokio::test]
async fn one_replica_seals_and_another_when_its_claim_has_expired() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let one = in_folder(folder.path()).await;
    let two = Store {
        replica: "another".into(),
        ..one.clone()
    };
    push(&one, "a", frames(1, BEGIN, 0..360), BEGIN + 3600).await;
    let now = BEGIN + 4000;
    assert!(one.claim(at(now)).await.expect("asked"));
    two.seal(at(now + 60)).await.expect("nothing done");
    assert_eq!(state(&one, "a").await.1, 360);
    // One that was held up finds out before it writes.
    assert!(two.claim(at(now + 121)).await.expect("asked"));
    let late = one.seal_node("a", at(now), &|| at(now)).await;
    assert!(matches!(late, Err(Error::Unavailable(_))), "{late:?}");
    assert_eq!(state(&one, "a").await.1, 360);
    two.seal(at(now + 121)).await.expect("sealed");
    assert_eq!(state(&one, "a").await.1, 0);
    check_all(&one, "a", 1, 360).await;
    // Who ends lets the next one seal at once.
    two.release_claim().await.expect("released");
    assert!(one.claim(at(now + 122)).await.expect("asked"));
}

#[tokio::test]
async fn retention_drops_blocks_of_hours_that_are_past_it() {
    let store = fresh().await;
    store.save_life(&life("a")).await.expect("saved");
    push(&store, "a", frames(1, BEGIN, 0..1080), BEGIN + 10_800).await;
    store.seal(at(BEGIN + 11_000)).await.expect("sealed");
    assert_eq!(state(&store, "a").await.0.len(), 3);
    // 1000 s are kept.
    store.retain(at(BEGIN + 4500)).await.expect("done");
    assert_eq!(state(&store, "a").await.0.len(), 3);
    store.retain(at(BEGIN + 4600)).await.expect("done");
    assert_eq!(state(&store, "a").await.0.len(), 2);
    assert_eq!(
        store.oldest("a").await.expect("read"),
        Some(at(BEGIN + 3600))
    );
    store.retain(at(BEGIN + 90_000)).await.expect("done");
    assert_eq!(state(&store, "a").await, (vec![], 0));
    let parts = store
        .database
        .select::<Value>("SELECT * FROM block_part", bind([]));
    assert!(parts.await.expect("read").is_empty());
}

#[tokio::test]
async fn beyond_the_size_the_oldest_hours_of_the_largest_nodes_go_first() {
    let options = |max_size| Options {
        max_size: Some(max_size),
        retention: Duration::from_hours(10_000),
        ..options(0)
    };
    let store = Store::open(&Location::Memory, &options(1 << 40)).await;
    let mut store = store.expect("opens");
    let now = BEGIN + 40_000;
    for (uid, samples) in [("large", 3600), ("small", 720)] {
        store.save_life(&life(uid)).await.expect("saved");
        push(&store, uid, frames(1, BEGIN, 0..samples), now).await;
    }
    store.seal(at(now)).await.expect("sealed");
    // A row that waits counts too.
    push(&store, "large", frames(1, BEGIN + 36_000, 9000..9010), now).await;
    let before = store.usage.bytes();
    store.retain(at(now)).await.expect("done");
    assert_eq!(
        (store.usage.bytes(), state(&store, "large").await.0.len()),
        (before, 10)
    );
    let mut of_blocks = 0;
    for uid in ["large", "small"] {
        let blocks = state(&store, uid).await.0;
        of_blocks += blocks.iter().map(|block| block.bytes).sum::<u64>();
    }
    let limit = before - of_blocks * 4 / 10;
    store.max_size = Some(3 * limit);
    store.retain(at(now)).await.expect("done");
    let left = state(&store, "large").await;
    assert!((3..7).contains(&left.0.len()), "{left:?}");
    assert_eq!(
        left.0.last().map(|block| block.last),
        Some(at(BEGIN + 35_990))
    );
    assert_eq!((left.1, state(&store, "small").await.0.len()), (10, 2));
    let bytes: u64 = left.0.iter().map(|block| block.bytes).sum();
    assert!(store.usage.bytes() <= limit && store.usage.bytes() > bytes);
    // Samples go before what was made of them.
    let span = async |store: &Store| store.rolled_span("large", Level::Minute).await;
    let (first, _) = span(&store).await.expect("read").expect("rollups");
    assert_eq!(first, at(BEGIN));
    // What is of the last hour stays, however little may, and rollups of the last day.
    store.max_size = Some(0);
    store.retain(at(now)).await.expect("done");
    let (first, _) = span(&store).await.expect("read").expect("rollups");
    assert_eq!(first, at(now).floor_to(24 * 3_600_000_000));
    assert_eq!(state(&store, "large").await, (vec![], 10));
    assert_eq!(state(&store, "small").await, (vec![], 0));
}

#[tokio::test]
async fn a_damaged_block_takes_nothing_else_down_and_is_set_aside() {
    let store = fresh().await;
    push(&store, "a", frames(1, BEGIN, 0..1080), BEGIN + 10_800).await;
    store.seal(at(BEGIN + 11_000)).await.expect("sealed");
    let (blocks, _) = state(&store, "a").await;
    let part = blocks[1].part("a", 0);
    let read = |part| bind([("part", surrealdb::types::RecordId::into_value(part))]);
    let payloads = store
        .database
        .select::<surrealdb::types::Bytes>("SELECT VALUE p FROM $part", read(part.clone()));
    let mut payload = payloads.await.expect("read")[0]
        .clone()
        .into_inner()
        .to_vec();
    let middle = payload.len() / 2;
    payload[middle] ^= 4;
    let mut variables = read(part);
    let payload = Value::Bytes(surrealdb::types::Bytes::from(payload));
    variables.insert("p".to_owned(), payload);
    let written = store
        .database
        .write("UPDATE $part SET p = $p", variables, 0);
    written.await.expect("written");
    for order in [Order::Ascending, Order::Descending] {
        let times = times(&store, "a", ALL, order).await;
        assert_eq!(times.len(), 720);
        assert!(!times.contains(&(BEGIN + 3600 + 50)));
    }
    assert_eq!(state(&store, "a").await.0.len(), 2);
    let aside = store
        .database
        .select::<i64>("SELECT VALUE samples FROM damaged", bind([]));
    assert_eq!(aside.await.expect("read"), [360]);
    // It goes with retention.
    store.purge("a").await.expect("purged");
    for table in ["damaged", "block_part", "block"] {
        let left = format!("SELECT * FROM {table}");
        let left = store.database.select::<Value>(&left, bind([])).await;
        assert!(left.expect("read").is_empty(), "{table}");
    }
}

#[tokio::test]
async fn an_hour_whose_block_was_set_aside_or_lost_is_sealed_again() {
    for is_lost in [false, true] {
        let store = fresh().await;
        push(&store, "a", frames(1, BEGIN, 0..300), BEGIN + 3600).await;
        store.seal(at(BEGIN + 4000)).await.expect("sealed");
        let (blocks, _) = state(&store, "a").await;
        if is_lost {
            let part = bind([("part", blocks[0].part("a", 0).into_value())]);
            let lost = store.database.delete("DELETE $part", part);
            lost.await.expect("deleted");
        } else {
            store.set_aside("a", &blocks[0], &Unreadable::Gone).await;
        }
        // What comes late; of another node too, which is sealed whatever this one's are.
        let mut late = frames(1, BEGIN, 300..310);
        late.push(reading(BEGIN + 100, 1.0));
        push(&store, "a", late, BEGIN + 4000).await;
        push(&store, "b", frames(2, BEGIN, 0..300), BEGIN + 4000).await;
        for look in 0..3 {
            let _ = store.seal(at(BEGIN + 4000 + look)).await;
        }
        let (blocks, rows) = state(&store, "a").await;
        assert_eq!((blocks.len(), blocks[0].samples, rows), (1, 11, 0));
        assert_eq!(count(&store, "a").await, 11);
        check_all(&store, "b", 2, 300).await;
    }
}

#[tokio::test]
async fn the_latest_of_readings_counts_however_blocks_are_merged() {
    let store = fresh().await;
    let hour = |from: i64, count: i64, value: f64| {
        (0..count)
            .map(move |n| reading(BEGIN + from + n, value))
            .collect::<Vec<_>>()
    };
    let mut now = BEGIN + 4000;
    // A small block, a large one that has one of its readings anew, and late ones.
    for samples in [
        hour(0, 5, 1.0),
        hour(4, 1020, 2.0),
        hour(2000, 3, 3.0),
        hour(2010, 2, 3.0),
    ] {
        now += 60;
        push(&store, "a", samples, now).await;
        store.seal(at(now)).await.expect("sealed");
    }
    let samples = store
        .samples(
            "a",
            (at(BEGIN + 4), at(BEGIN + 4)),
            Order::Ascending,
            Wanted::Host,
            9,
        )
        .await
        .expect("read");
    let [Stored::Gauges(gauges)] = &samples[..] else {
        panic!("one reading of that time");
    };
    let reading = gauges.reading().expect("readable");
    assert_eq!(reading.memory_usage_percent, Some(2.0));
    assert_eq!(count(&store, "a").await, 1029);
}

#[tokio::test]
async fn what_was_purged_while_it_was_sealed_does_not_come_again() {
    let store = fresh().await;
    let now = at(BEGIN + 4000);
    push(&store, "a", frames(1, BEGIN, 0..300), BEGIN + 3600).await;
    assert!(store.claim(now).await.expect("asked"));
    let hour = (at(BEGIN), at(BEGIN + 3600));
    let rows = store.rows_to_seal("a", hour).await.expect("read");
    assert_eq!(rows.len(), 300);
    store.purge("a").await.expect("purged");
    let replaced = store
        .replace("a", &rows, &[], (&[], Rolled::default()), now)
        .await;
    assert!(
        matches!(replaced, Err(Error::Unavailable(_))),
        "{replaced:?}"
    );
    assert_eq!(state(&store, "a").await, (vec![], 0));
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_set_aside_and_the_rest_is_sealed() {
    let store = fresh().await;
    let mut samples = frames(1, BEGIN, 0..360);
    // The header is right, and what follows is not.
    let payload = &mut samples[7].payload;
    let length = payload.len();
    payload[length - 40..].fill(0);
    push(&store, "a", samples, BEGIN + 3600).await;
    for _ in 0..2 {
        let _ = store.seal(at(BEGIN + 4000)).await;
    }
    let (blocks, rows) = state(&store, "a").await;
    assert_eq!((blocks.len(), rows, blocks[0].samples), (1, 0, 359));
}

/// What a child of a test does: it opens a folder, and seals until it is ended.
#[tokio::test]
async fn child() {
    let Ok(folder) = std::env::var("NODESTATS_TEST_SEAL") else {
        return;
    };
    let store = in_folder(Path::new(&folder)).await;
    store.seal(at(BEGIN + 100_000)).await.expect("sealed");
    println!("all is sealed");
}

fn seal_in_child(folder: &Path, end_at: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args(["--exact", "tests::sealing::child", "--nocapture"])
        .env("NODESTATS_TEST_SEAL", folder)
        .env("NODESTATS_TEST_END_AT", end_at);
    command
}

#[tokio::test]
async fn a_crash_at_any_point_of_sealing_leaves_every_sample_once() {
    for point in ["read", "coded", "replaced"] {
        let folder = tempfile::tempdir().expect("temporary folder");
        let store = in_folder(folder.path()).await;
        push(&store, "a", frames(1, BEGIN, 0..1000), BEGIN + 10_000).await;
        store.close().await;
        drop(store);
        let ended = seal_in_child(folder.path(), point).output().expect("ran");
        assert!(!ended.status.success(), "{point}: {ended:?}");
        let store = in_folder(folder.path()).await;
        check_all(&store, "a", 1, 1000).await;
        let (blocks, rows) = state(&store, "a").await;
        let expected = if point == "replaced" {
            (1, 640)
        } else {
            (0, 1000)
        };
        assert_eq!((blocks.len(), rows), expected, "{point}");
        // The claim of the one that ended has expired.
        store.seal(at(BEGIN + 101_000)).await.expect("sealed");
        check_all(&store, "a", 1, 1000).await;
        assert_eq!(state(&store, "a").await.1, 0);
    }
}

#[tokio::test]
async fn a_kill_at_any_time_leaves_every_sample_once() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let store = in_folder(folder.path()).await;
    for node in 0..4 {
        let uid = node.to_string();
        push(&store, &uid, frames(node, BEGIN, 0..2000), BEGIN + 20_000).await;
    }
    store.close().await;
    drop(store);
    let mut now = BEGIN + 100_000;
    for millis in [150, 300, 500, 800] {
        let mut child = seal_in_child(folder.path(), "").spawn().expect("started");
        tokio::time::sleep(Duration::from_millis(millis)).await;
        child.kill().expect("killed");
        child.wait().expect("ended");
        let store = in_folder(folder.path()).await;
        for node in 0..4 {
            check_all(&store, &node.to_string(), node, 2000).await;
        }
        // So that the next child may.
        now += 1000;
        assert!(store.claim(at(now)).await.expect("asked"));
        store.release_claim().await.expect("released");
        store.close().await;
    }
    let store = in_folder(folder.path()).await;
    store.seal(at(now)).await.expect("sealed");
    for node in 0..4 {
        check_all(&store, &node.to_string(), node, 2000).await;
        assert_eq!(state(&store, &node.to_string()).await.1, 0);
    }
}

/// The folder that nodestats wrote before there were blocks: 450 frames of `made::sample(2, …)`, and 90
/// readings.
fn old_folder() -> tempfile::TempDir {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/schema-2");
    let folder = tempfile::tempdir().expect("temporary folder");
    copy_folder(&fixture, folder.path());
    folder
}

fn copy_folder(from: &Path, to: &Path) {
    let mut command = Command::new("cp");
    let copied = command.arg("-r").arg(from.join(".")).arg(to).status();
    assert!(copied.expect("copied").success());
}

/// The files below a folder that hold anything, by their paths below it.
fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.metadata().expect("there").len() > 0 && !path.ends_with("LOCK") {
                found.push(path.strip_prefix(folder).expect("below").to_owned());
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_folder_from_before_there_were_blocks_opens_and_its_rows_are_sealed() {
    let folder = old_folder();
    let store = in_folder(folder.path()).await;
    let schema = fs::read_to_string(folder.path().join("nodestats.schema")).expect("there");
    assert_eq!(schema.trim(), directory::SCHEMA.to_string());
    let names = store.lives().await.expect("read");
    let names = names.iter().map(|life| life.registration.hostname.clone());
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert_eq!(names, ["node-0", "node-1"]);
    let readings = async || {
        let samples = store
            .samples("a third party's", ALL, Order::Ascending, Wanted::Host, 1000)
            .await
            .expect("read");
        let memory = |sample: &Stored| match sample {
            Stored::Gauges(gauges) => gauges.reading().expect("readable").memory_usage_percent,
            Stored::Counters(_) => None,
        };
        samples.iter().filter_map(memory).collect::<Vec<f64>>()
    };
    let put: Vec<f64> = (0..90).map(f64::from).collect();
    check_all(&store, "an agent's", 2, 450).await;
    assert_eq!(readings().await, put);
    store.seal(at(1_700_100_000)).await.expect("sealed");
    for uid in ["an agent's", "a third party's"] {
        let (blocks, rows) = state(&store, uid).await;
        assert!(blocks.len() >= 2);
        assert_eq!(rows, 0);
    }
    check_all(&store, "an agent's", 2, 450).await;
    assert_eq!(readings().await, put);
}

/// Flips a bit of a file.
fn flip(file: &Path, at: usize, bit: u8) {
    let mut bytes = fs::read(file).expect("there");
    bytes[at] ^= 1 << bit;
    fs::write(file, bytes).expect("written");
}

/// A folder with three sealed hours of a node, and what is in the middle of the second one's hosts.
async fn sealed_folder() -> (tempfile::TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let store = in_folder(folder.path()).await;
    push(&store, "a", frames(1, BEGIN, 0..1080), BEGIN + 10_800).await;
    push(&store, "c", frames(3, BEGIN, 0..360), BEGIN + 10_800).await;
    store.seal(at(BEGIN + 11_000)).await.expect("sealed");
    push(&store, "a", frames(1, BEGIN, 1080..1100), BEGIN + 11_000).await;
    // The database's files are checked by pieces of 64 KiB: in those of this node's blocks stands nothing else.
    for other in ["A", "b"] {
        let mut random = 1_u64;
        let noise = std::iter::repeat_with(|| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 56) as u8
        });
        let noise: Vec<u8> = noise.take(200 << 10).collect();
        let key = BlockKey {
            hour: at(0),
            first: at(0),
            last: at(0),
            samples: 0,
            bytes: 0,
            number: 0,
        };
        let variables = bind([
            ("part", key.part(other, 0).into_value()),
            ("p", Value::Bytes(noise.into())),
        ]);
        let written = store
            .database
            .write("CREATE $part SET p = $p", variables, 0);
        written.await.expect("written");
    }
    let part = state(&store, "a").await.0[1].part("a", 0).into_value();
    let payloads = store
        .database
        .select::<surrealdb::types::Bytes>("SELECT VALUE p FROM $part", bind([("part", part)]));
    let payload = payloads.await.expect("read")[0].clone().into_inner();
    let middle = payload.len() / 2;
    store.close().await;
    (folder, payload[middle..middle + 24].to_vec())
}

#[tokio::test]
async fn a_bit_of_a_block_that_is_flipped_on_the_disk_makes_a_gap() {
    let (folder, payload) = sealed_folder().await;
    let database = folder.path().join("database");
    let mut flipped = 0;
    for file in files_below(&database) {
        let file = database.join(file);
        let bytes = fs::read(&file).expect("there");
        let found = bytes
            .windows(payload.len())
            .position(|seen| seen == payload);
        if let Some(at) = found {
            flip(&file, at, 3);
            flipped += 1;
        }
    }
    assert_eq!(flipped, 1);
    let store = in_folder(folder.path()).await;
    // All three hours are in that piece; no other is.
    let expected: Vec<u64> = (1080..1100).collect();
    for _ in 0..2 {
        let samples = store
            .samples("a", ALL, Order::Ascending, Wanted::All, usize::MAX)
            .await
            .expect("read");
        let sequences = samples.iter().filter_map(Stored::counters);
        let sequences: Vec<u64> = sequences.map(|counters| counters.id.sequence).collect();
        assert_eq!(sequences, expected);
    }
    assert_eq!(state(&store, "a").await.0.len(), 0);
    check_all(&store, "c", 3, 360).await;
}

/// Whether a database was set aside in a folder.
fn is_aside(folder: &Path) -> bool {
    let mut entries = fs::read_dir(folder).expect("there");
    entries.any(|entry| {
        let name = entry.expect("a name").file_name();
        name.to_string_lossy().starts_with("database-damaged-")
    })
}

#[tokio::test]
async fn a_database_that_cannot_be_opened_is_set_aside_for_as_long_as_history_is_kept() {
    let (folder, _) = sealed_folder().await;
    for file in files_below(&folder.path().join("database/manifest")) {
        flip(&folder.path().join("database/manifest").join(file), 0, 2);
    }
    let store = in_folder(folder.path()).await;
    assert!(is_aside(folder.path()));
    let now = Timestamp::from_system(std::time::SystemTime::now());
    push(&store, "a", frames(1, BEGIN, 0..10), BEGIN + 100).await;
    store.retain(now).await.expect("retained");
    assert!(is_aside(folder.path()));
    // The tests' retention is over.
    let days = now.plus_micros(2000 * 24 * 3600 * 1_000_000);
    store.retain(days).await.expect("retained");
    assert!(!is_aside(folder.path()));
    store.close().await;
}

#[tokio::test]
async fn a_flipped_bit_anywhere_in_the_folder_never_makes_a_wrong_answer() {
    let (folder, _) = sealed_folder().await;
    let files = files_below(&folder.path().join("database"));
    let (mut read, mut refused, mut aside) = (0, 0, 0);
    for seed in 0..24_u64 {
        let copy = tempfile::tempdir().expect("temporary folder");
        copy_folder(folder.path(), copy.path());
        let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let file = copy
            .path()
            .join("database")
            .join(&files[seed as usize % files.len()]);
        let length = fs::metadata(&file).expect("there").len() as usize;
        // Where a table begins the database's own rows are; they are asked for again for two minutes.
        let at = length / 6 + (mixed >> 8) as usize % (length - length / 6);
        flip(&file, at, (mixed & 7) as u8);
        let location = Location::Directory(copy.path().into());
        let store = Store::open(&location, &options(1000)).await;
        let store = store.expect("it starts");
        aside += usize::from(is_aside(copy.path()));
        let samples = store.samples("a", ALL, Order::Ascending, Wanted::All, usize::MAX);
        match samples.await {
            Ok(samples) => {
                for counters in samples.iter().filter_map(Stored::counters) {
                    let sample = counters.sample(Wanted::All).expect("readable");
                    assert_eq!(sample, made::sample(1, counters.id.sequence));
                }
                read += 1;
            }
            Err(Error::Unavailable(error)) => {
                assert!(error.is_damage(), "{error}");
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
        store.close().await;
    }
    println!("{read} read, {refused} refused, {aside} set aside");
    assert!(refused > 0 && aside > 0);
}
