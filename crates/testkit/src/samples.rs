//! Samples as an agent sends them.

use nodestats_core::sample::{Host, Process, Sample};
use nodestats_core::{FrameId, frame};
use nodestats_wire::Timestamp;
use uuid::Uuid;

/// The frames of one start of an agent: a host with one busy process.
#[derive(Debug)]
pub struct Frames {
    agent_start: Uuid,
    begin: Timestamp,
    sequence: u64,
}

impl Frames {
    /// The first one is of `begin`, each next one a second later.
    pub fn new(begin: Timestamp) -> Self {
        Self {
            agent_start: Uuid::new_v4(),
            begin,
            sequence: 0,
        }
    }

    /// The time of the next frame.
    pub fn next_time(&self) -> Timestamp {
        self.begin.plus_micros(self.sequence as i64 * 1_000_000)
    }

    /// The next frame, encoded.
    pub fn next_frame(&mut self) -> Vec<u8> {
        let time = self.next_time();
        let n = self.sequence;
        let process = Process {
            pid: 7,
            ppid: 1,
            start_ticks: 50,
            name: "busy".into(),
            state: 'R',
            user_ticks: n * 100,
            threads: 1,
            ..Process::default()
        };
        let host = Host {
            boot_id: "test".to_owned(),
            uptime_micros: 1_000_000 * (n + 10),
            ticks_per_second: 100,
            boot_time_seconds: Some(1e9),
            load_average: Some([n as f64, 0.0, 0.0]),
            ..Host::default()
        };
        self.sequence += 1;
        let id = FrameId {
            agent_start: self.agent_start,
            sequence: n,
        };
        frame::encode(
            time,
            id,
            &Sample {
                host,
                processes: vec![process],
                cgroups: None,
            },
        )
    }
}
