//! The most that any process of a node had in each minute of an hour: who asks for the highest of a thousand
//! nodes at a moment looks at those nodes alone that can have one.

use nodestats_wire::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Bucket, CPU_UNITS, MINUTE, Row, Together, process};
use crate::block;

/// The highest of a minute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peak {
    /// Number of the minute in its hour.
    pub minute: u8,
    /// CPU of a process, in [`CPU_UNITS`].
    pub cpu: u64,
    /// Resident memory of a process in bytes.
    pub memory: u64,
    /// Bytes that a process read and wrote a second, or more.
    pub io: u64,
    /// What all processes had on the mean: CPU and memory in the same units, bytes read and bytes written a
    /// second.
    pub all: [u64; 4],
    /// How many processes there were.
    pub processes: u64,
}

/// Of those minutes of an hour that have samples, in the order of time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peaks {
    /// How many samples of counters the rollup of the hour was made of.
    pub samples: u64,
    /// Each minute.
    pub minutes: Vec<Peak>,
}

impl Peaks {
    /// Of a minute's processes; `ticks` are those of the counters a second.
    pub(super) fn note<'a>(
        &mut self,
        (hour, bucket): (Timestamp, &Bucket),
        ticks: f64,
        rows: impl Iterator<Item = &'a Row>,
    ) {
        let minute = (bucket.begin.micros() - hour.micros()).div_euclid(MINUTE);
        let mut peak = Peak {
            minute: minute as u8,
            ..Peak::default()
        };
        let mut all = Together::default();
        for row in rows {
            all.add(row, bucket.covered);
            peak.processes += 1;
            let flow = |at: usize| row.flows.get(at).copied().flatten().unwrap_or_default().max;
            let level = row.levels.get(process::RESIDENT).copied().flatten();
            peak.cpu = peak.cpu.max(flow(process::CPU));
            peak.memory = peak.memory.max(level.unwrap_or_default().max);
            let io = flow(process::READ).saturating_add(flow(process::WRITTEN));
            peak.io = peak.io.max(io);
        }
        let all = all.row(bucket.covered);
        let rate = |at: usize, unit: f64| {
            let rate = all.mean_rate(at).unwrap_or_default();
            (rate / unit).round() as u64
        };
        let resident = all.levels.get(process::RESIDENT).copied().flatten();
        let io = [process::READ, process::WRITTEN].map(|at| rate(at, 1.0));
        let cpu = rate(process::CPU, ticks / CPU_UNITS);
        peak.all = [cpu, resident.unwrap_or_default().mean, io[0], io[1]];
        self.minutes.push(peak);
    }

    /// As it is kept.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data")
    }

    /// What [`encode`](Self::encode) gave.
    pub fn decode(bytes: &[u8]) -> Result<Self, block::Error> {
        let peaks = postcard::from_bytes::<Self>(bytes).map_err(block::Error::Decode)?;
        if peaks.minutes.len() > 60 {
            return Err(block::Error::TooLarge);
        }
        Ok(peaks)
    }
}
