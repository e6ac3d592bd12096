//! What tests share: running the real programs, asking them, and samples to send. Never shipped.
//!
//! Tests wait for conditions, never for a guessed time.

mod certificates;
mod control_group;
mod database;
pub mod fake_api_server;
pub mod jaeger;
pub mod kubernetes;
mod lan;
pub mod logs;
mod program;
mod prometheus;
mod random;
pub mod recording;
mod samples;
mod small_disk;

pub use certificates::Authority;
pub use control_group::{ControlGroup, Limit};
pub use database::DatabaseServer;
pub use lan::Lan;
pub use program::{Program, Run, memory_of};
pub use prometheus::{Exporter, Prometheus, Samples, promtool};
pub use random::Random;
pub use samples::Frames;
pub use small_disk::SmallDisk;

use std::future::Future;
use std::time::{Duration, Instant};

use nodestats_wire::client::Client;
use serde_json::Value;

/// Longest wait for a condition; only a test that fails takes it. Long enough for a slow machine that
/// builds beside it.
pub const PATIENCE: Duration = Duration::from_mins(5);

/// A port of loopback that is free now, for a program that cannot be asked which one it took.
///
/// # Panics
/// Where there is none.
pub fn free_port() -> u16 {
    let [port] = free_ports();
    port
}

/// The same for several, which differ.
///
/// # Panics
/// Where there are not so many.
pub fn free_ports<const N: usize>() -> [u16; N] {
    // Held together, so that each is another one.
    let held = [(); N].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("loopback"));
    held.map(|port| port.local_addr().expect("bound").port())
}

/// Asks again and again until there is an answer.
///
/// # Panics
/// After [`PATIENCE`], naming `what`.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, ask: impl FnMut() -> F) -> T {
    eventually_within(PATIENCE, what, ask).await
}

/// The same for what takes longer by its nature.
///
/// # Panics
/// After `patience`, naming `what`.
pub async fn eventually_within<T, F: Future<Output = Option<T>>>(
    patience: Duration,
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begin.elapsed() < patience, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// The same for what is no request: a process, a file, a port.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The JSON that a path answers; `None` where it answers an error, or not at all.
pub async fn get(client: &Client, path: &str) -> Option<Value> {
    let body = client.get(path, &[]).await.ok()?;
    serde_json::from_slice(&body).ok()
}

/// Times of the samples of a history, in its order, in seconds since 1970: of the entries that are no
/// gaps. `None` where it is no history.
///
/// # Panics
/// Where a key is no time.
pub fn sample_times(history: &Value) -> Option<Vec<f64>> {
    let entries = history.as_object()?.iter();
    let samples = entries.filter(|(_, entry)| entry.get("gap").is_none());
    let time = |(key, _): (&String, _)| {
        let time = key.parse::<nodestats_wire::Timestamp>();
        time.expect("a time").seconds()
    };
    Some(samples.map(time).collect())
}

/// The gap with which a history ends; `None` where it ends with a sample.
pub fn last_gap(history: &Value) -> Option<Value> {
    let last = history.as_object()?.values().next_back()?;
    last.get("gap").cloned()
}
