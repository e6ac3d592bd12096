//! Notes: what an agent has to tell of its node that no figure says.
//!
//! They travel with samples, so that they wait, are sent again and count once as those do. A note has
//! a time of its own: one whose sample was dropped goes with a later one.

use serde::{Deserialize, Serialize};

/// Most notes of one sample: more wait for the next one.
pub const NOTES: usize = 256;
/// Most bytes of all notes of one sample.
pub const NOTES_BYTES: usize = 256 << 10;
/// Bytes of a path (`PATH_MAX`), and of each other text in a note.
const PATH: usize = super::cgroup::PATH;
const TEXT: usize = 128;

/// Something that happened, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// By the agent's wall clock, in microseconds since 1970.
    pub time_micros: i64,
    /// What.
    pub what: What,
}

/// What happened. The order is the encoded form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// The agent's first sample.
    Started {
        /// The agent's version.
        version: String,
        /// Which sources tell of kills for memory.
        kills: KillSources,
        /// The kernel's id of the boot; empty where it is not known.
        boot_id: String,
        /// Time since boot, sleep included, in microseconds.
        uptime_micros: u64,
    },
    /// The agent's last sample: it was told to end.
    Stopping,
    /// The last sample before the agent takes none, as it was told.
    Paused,
    /// Samples that were taken never arrived.
    Dropped(Dropped),
    /// The wall clock was set by so many microseconds.
    ClockStep {
        /// Forward where positive.
        micros: i64,
    },
    /// A process was killed for memory.
    Kill(Kill),
    /// A container began to run.
    ContainerStarted(Container),
    /// A container is there no more.
    ContainerEnded(Container),
}

/// Which sources could be read when an agent began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillSources {
    /// Counters of control groups.
    pub cgroups: bool,
    /// The kernel's log.
    pub log: bool,
    /// The kernel's counter of the whole node.
    pub counter: bool,
}

impl KillSources {
    /// Whether none of them could be.
    pub fn is_blind(self) -> bool {
        !(self.cgroups || self.log || self.counter)
    }
}

/// Samples that never arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// How many.
    pub samples: u64,
    /// Time of the first, in microseconds since 1970.
    pub first_micros: i64,
    /// Time of the last.
    pub last_micros: i64,
    /// The server refused them for good; else the buffer was full.
    pub refused: bool,
}

impl Dropped {
    /// Both together, where they are of one reason.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            samples: self.samples.saturating_add(other.samples),
            first_micros: self.first_micros.min(other.first_micros),
            last_micros: self.last_micros.max(other.last_micros),
            refused: self.refused,
        }
    }
}

/// From where a kill is known, the surest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KillSource {
    /// `/dev/kmsg`.
    Log,
    /// `oom_kill` of a group's `memory.events`; version 1: `memory.oom_control`.
    Cgroup,
    /// `oom_kill` of `/proc/vmstat`.
    Counter,
}

/// Processes that the kernel killed because there was no memory left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kill {
    /// From where it is known.
    pub source: KillSource,
    /// How many.
    pub count: u64,
    /// The group that they were in, as far as it is known.
    pub cgroup: Option<String>,
    /// The pod of that group.
    pub pod_uid: Option<String>,
    /// The container of that group.
    pub container_id: Option<String>,
    /// Pid and name of the one that was killed, by the log alone.
    pub victim: Option<(u32, String)>,
    /// What it had in memory by the log; else what its group had in the sample before.
    pub memory_bytes: Option<u64>,
    /// What the group might use.
    pub limit_bytes: Option<u64>,
    /// It was at most so long before the time of the note, in microseconds.
    pub within_micros: u64,
    /// Whether the kernel's log could be read.
    pub log_read: bool,
}

/// A container by its group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The id that its runtime gave it.
    pub id: String,
    /// Its group.
    pub cgroup: String,
    /// The pod around it.
    pub pod_uid: Option<String>,
}

/// How many of these one sample takes.
pub fn fitting(notes: &[Note]) -> usize {
    let mut left = NOTES_BYTES - 16;
    let fits = |note: &&Note| {
        let bytes = postcard::to_stdvec(*note).map_or(usize::MAX, |note| note.len());
        left.checked_sub(bytes).map(|rest| left = rest).is_some()
    };
    notes.iter().take(NOTES).take_while(fits).count()
}

impl Note {
    /// Whether an agent could have written it.
    pub fn is_plausible(&self) -> bool {
        let short = |text: &Option<String>| text.as_ref().is_none_or(|text| text.len() <= TEXT);
        let container =
            |of: &Container| of.id.len() <= TEXT && of.cgroup.len() <= PATH && short(&of.pod_uid);
        match &self.what {
            What::Started {
                version, boot_id, ..
            } => version.len() <= TEXT && boot_id.len() <= TEXT,
            What::Kill(kill) => {
                kill.cgroup.as_ref().is_none_or(|path| path.len() <= PATH)
                    && short(&kill.pod_uid)
                    && short(&kill.container_id)
                    && kill
                        .victim
                        .as_ref()
                        .is_none_or(|(_, name)| name.len() <= TEXT)
            }
            What::ContainerStarted(of) | What::ContainerEnded(of) => container(of),
            What::Stopping | What::Paused | What::Dropped(_) | What::ClockStep { .. } => true,
        }
    }
}
