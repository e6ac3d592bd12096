//! What waits for the server, on disk: an agent that is restarted sends what the one before it could not,
//! and an outage of hours costs no memory.
//!
//! Frames come to disk when a push has failed, once a second at most, and leave memory with it. `ring.rs`
//! has the files; here is who asks them, and waits for a disk that hangs no longer than it has patience.

mod ring;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

pub(crate) use self::ring::Place;
use self::ring::{Opened, Ring};
use crate::queue::{Queue, Queued, SharedQueue};

/// A disk that takes longer stops the spool, and nothing else.
const PATIENCE: Duration = Duration::from_secs(5);
/// The disk is written to no more often: what came since waits in memory until then.
pub(crate) const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// What is to be done with the files, in this order.
#[derive(Debug, Default)]
struct Work {
    /// Is to be sent.
    wanted: Vec<Place>,
    /// Was sent.
    sent: Vec<Place>,
    /// Has no room any more.
    lost: Vec<Place>,
    /// Stands among what was sent, and is written anew.
    moved: Vec<Queued>,
    /// Is not on disk.
    new: Vec<Queued>,
}

/// What came of it, also where not all could be done.
#[derive(Debug, Default)]
struct Done {
    /// Frames that were wanted; `None` where one is damaged.
    wanted: Vec<io::Result<Option<Vec<u8>>>>,
    /// Which of those that were to be moved are damaged.
    damaged: Vec<u64>,
    /// Frames that were lost.
    lost: Vec<Vec<u8>>,
    /// Where frames are now.
    places: Vec<(u64, Place)>,
}

impl Work {
    fn run(self, ring: &mut Ring, done: &mut Done) -> io::Result<()> {
        let wanted = self.wanted.into_iter().map(|place| ring.read(place));
        done.wanted = wanted.collect();
        // A file that cannot be removed keeps no other from being.
        let mut forgotten = Ok(());
        for place in self.sent {
            forgotten = forgotten.and(ring.forget(place));
        }
        for place in self.lost {
            done.lost.extend(ring.read(place).ok().flatten());
            forgotten = forgotten.and(ring.forget(place));
        }
        let (mut orders, mut frames, mut left) = (Vec::new(), Vec::new(), Vec::new());
        for one in self.moved.into_iter().chain(self.new) {
            let Some(place) = one.place else {
                orders.push(one.order);
                frames.push(one.frame);
                continue;
            };
            match ring.read(place) {
                Ok(Some(frame)) => {
                    orders.push(one.order);
                    frames.push(frame);
                    left.push(place);
                }
                Ok(None) => done.damaged.push(one.order),
                Err(error) => forgotten = forgotten.and(Err(error)),
            }
        }
        let places = ring.append(&frames)?;
        done.places = orders.into_iter().zip(places).collect();
        for place in left {
            forgotten = forgotten.and(ring.forget(place));
        }
        forgotten
    }
}

type Task = JoinHandle<(Box<Ring>, Done, io::Result<()>)>;

/// The files, or the work on them that is not done yet.
enum State {
    Idle(Box<Ring>),
    Busy(Task),
    /// There are none: what waits is lost with the agent.
    None,
}

/// Keeps the files as the queue is.
pub(crate) struct Keeper {
    queue: Arc<SharedQueue>,
    state: State,
    /// The disk has not answered in time: it is looked at, and not waited for.
    is_stuck: bool,
    /// Until then nothing is read from a disk that gave an error.
    rests_until: Option<Instant>,
    /// Places of frames that wait no more.
    sent: Vec<Place>,
    damaged: u64,
    /// When something was written last.
    kept: Option<Instant>,
}

impl Keeper {
    /// Opens a node's files, and puts what is in them into the queue. Without a place to write the agent
    /// goes on, and says so.
    pub(crate) async fn open(
        directory: &Path,
        uid: &str,
        limit: usize,
        queue: &Arc<SharedQueue>,
    ) -> Self {
        let (path, uid) = (directory.to_owned(), uid.to_owned());
        let opening = tokio::task::spawn_blocking(move || Ring::open(&path, &uid, limit as u64));
        let opened = match tokio::time::timeout(PATIENCE, opening).await {
            Ok(opened) => opened.unwrap_or_else(|panicked| Err(io::Error::other(panicked))),
            Err(_) => Err(no_answer()),
        };
        let mut keeper = Self::without_disk(queue);
        match opened {
            Ok(opened) => keeper.take_over(opened),
            Err(error) => {
                let path = directory.display();
                tracing::warn!(%error, %path, "samples that wait are lost with this agent");
            }
        }
        keeper
    }

    /// What waits does so in memory.
    pub(crate) fn without_disk(queue: &Arc<SharedQueue>) -> Self {
        Self {
            queue: Arc::clone(queue),
            state: State::None,
            is_stuck: false,
            rests_until: None,
            sent: Vec::new(),
            damaged: 0,
            kept: None,
        }
    }

    fn take_over(&mut self, opened: Opened) {
        self.damaged = opened.damaged;
        if self.damaged > 0 {
            // What a crash cut off, as a rule.
            tracing::warn!(bytes = self.damaged, "a part of what waited is damaged");
        }
        if !opened.frames.is_empty() {
            let samples = opened.frames.len();
            tracing::info!(samples, "samples of an earlier start wait");
        }
        self.state = State::Idle(Box::new(opened.ring));
        self.queue.with(|queue| {
            queue.use_disk();
            opened.frames.into_iter().for_each(|one| queue.restore(one));
        });
    }

    /// Bytes in its files that were no samples when they were opened.
    pub(crate) fn damaged(&self) -> u64 {
        self.damaged
    }

    /// Whether the disk can be asked for what waits there, once what is under way is done.
    pub(crate) async fn answers(&mut self) -> bool {
        // What goes wrong there is told when the files are to be kept.
        let settled = self.wait().await.is_ok() || !self.is_stuck;
        let is_there = matches!(self.state, State::Idle(_));
        let rests = self.rests_until.is_some_and(|until| until > Instant::now());
        settled && is_there && !rests
    }

    /// What waits now is kept at once.
    pub(crate) fn is_ending(&mut self) {
        self.kept = None;
    }

    /// These wait no more.
    pub(crate) fn sent(&mut self, frames: &[Queued]) {
        self.sent.extend(frames.iter().filter_map(|one| one.place));
    }

    /// Brings to disk what waits after a failed push, unless something was brought there a moment ago, and
    /// takes from it what waits no more. An error leaves in memory what was there; a later call tries again.
    pub(crate) async fn keep(&mut self) -> io::Result<()> {
        self.wait().await?;
        let is_early = self.kept.is_some_and(|kept| kept.elapsed() < SYNC_INTERVAL);
        let State::Idle(ring) = &self.state else {
            return Ok(());
        };
        let new = if is_early {
            Vec::new()
        } else {
            self.queue.with(|queue| queue.in_memory())
        };
        if new.is_empty() && self.sent.is_empty() {
            return Ok(());
        }
        let crowded = ring.crowded().filter(|_| !is_early);
        let more = new.iter().map(|one| one.frame.len()).sum();
        let (moved, lost) = self.queue.with(|queue| {
            let lost = queue.make_room(more);
            let moved = crowded.map(|segment| queue.in_segment(segment));
            queue.count_dropped(lost.len() as u64);
            (moved.unwrap_or_default(), lost)
        });
        if !new.is_empty() {
            self.kept = Some(Instant::now());
        }
        self.start(Work {
            lost: lost.iter().filter_map(|one| one.place).collect(),
            moved,
            new,
            ..Work::default()
        });
        self.wait().await.map(drop)
    }

    /// Reads frames that wait on disk. One that is damaged is lost, and not among them any more.
    ///
    /// # Errors
    /// The disk does not give them; they are as they were.
    pub(crate) async fn load(&mut self, frames: &mut Vec<Queued>) -> io::Result<()> {
        let wanted: Vec<Place> = frames.iter().filter_map(|one| one.place).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        self.wait().await?;
        self.start(Work {
            wanted,
            ..Work::default()
        });
        let read: io::Result<Vec<Option<Vec<u8>>>> = self.wait().await?.into_iter().collect();
        let read = read.inspect_err(|_| {
            self.rests_until = Instant::now().checked_add(PATIENCE);
        })?;
        if read.len() < frames.iter().filter(|one| one.place.is_some()).count() {
            return Err(io::Error::other("there is no disk any more"));
        }
        let (mut read, mut lost) = (read.into_iter(), 0);
        frames.retain_mut(|one| {
            let Some(place) = one.place else {
                return true;
            };
            if let Some(frame) = read.next().flatten() {
                one.frame = frame;
                return true;
            }
            self.sent.push(place);
            lost += 1;
            false
        });
        self.queue.with(|queue| queue.count_dropped(lost));
        Ok(())
    }

    /// Begins work, where there are files and nothing else is under way.
    fn start(&mut self, mut work: Work) {
        self.state = match std::mem::replace(&mut self.state, State::None) {
            State::Idle(mut ring) => {
                work.sent = std::mem::take(&mut self.sent);
                State::Busy(tokio::task::spawn_blocking(move || {
                    let mut done = Done::default();
                    let outcome = work.run(&mut ring, &mut done);
                    (ring, done, outcome)
                }))
            }
            other => other,
        };
    }

    /// Waits for work under way, but not for ever, and says what was read. Who stops waiting takes nothing
    /// from it.
    async fn wait(&mut self) -> io::Result<Vec<io::Result<Option<Vec<u8>>>>> {
        let State::Busy(task) = &mut self.state else {
            return Ok(Vec::new());
        };
        let patience = if self.is_stuck {
            Duration::ZERO
        } else {
            PATIENCE
        };
        match tokio::time::timeout(patience, task).await {
            Ok(Ok((ring, done, outcome))) => {
                self.is_stuck = false;
                self.state = State::Idle(ring);
                let read = self.settle(done);
                outcome.map(|()| read)
            }
            Ok(Err(panicked)) => {
                self.state = State::None;
                Err(io::Error::other(panicked))
            }
            Err(_) => {
                self.is_stuck = true;
                Err(no_answer())
            }
        }
    }

    /// The queue is as the files are.
    fn settle(&mut self, done: Done) -> Vec<io::Result<Option<Vec<u8>>>> {
        let sent = &mut self.sent;
        let settle = |queue: &mut Queue| {
            for frame in &done.lost {
                queue.lose(frame, false);
            }
            for order in done.damaged {
                let damaged = queue.take(order);
                queue.count_dropped(u64::from(damaged.is_some()));
                sent.extend(damaged.and_then(|one| one.place));
            }
            for (order, place) in done.places {
                if !queue.set_place(order, place) {
                    // It was sent meanwhile.
                    sent.push(place);
                }
            }
        };
        self.queue.with(settle);
        done.wanted
    }
}

fn no_answer() -> io::Error {
    let text = format!("the disk has not answered for {PATIENCE:?}");
    io::Error::new(io::ErrorKind::TimedOut, text)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use nodestats_core::{Frame, FrameId, Sample, frame};
    use nodestats_wire::Timestamp;

    use super::*;

    fn frame(second: i64) -> Vec<u8> {
        let time = Timestamp::from_micros(second * 1_000_000).expect("a time");
        let id = FrameId {
            agent_start: uuid::Uuid::from_u128(1),
            sequence: second as u64,
        };
        frame::encode(time, id, None, &Sample::default())
    }

    /// What a frame takes on disk.
    fn length() -> usize {
        frame(0).len() + 4
    }

    /// An agent's queue and its files.
    struct Agent {
        queue: Arc<SharedQueue>,
        keeper: Keeper,
    }

    impl Agent {
        async fn start(folder: &Path, limit: usize) -> Self {
            let queue = Arc::new(SharedQueue::new(limit));
            let keeper = Keeper::open(folder, "node-a", limit, &queue).await;
            assert!(matches!(keeper.state, State::Idle(_)));
            Self { queue, keeper }
        }

        /// As after a second.
        async fn keep(&mut self) {
            self.keeper.is_ending();
            self.keeper.keep().await.expect("kept");
        }

        /// Takes what waits, reads it, and says which seconds those are.
        async fn send(&mut self, newest: bool) -> Vec<i64> {
            let mut taken = self.queue.with(|queue| {
                if newest {
                    queue.take_newest(0, true).into_iter().collect()
                } else {
                    queue.take_oldest(usize::MAX, true)
                }
            });
            self.keeper.load(&mut taken).await.expect("read");
            self.keeper.sent(&taken);
            let second = |one: &Queued| {
                let frame = Frame::read(&one.frame).expect("a frame");
                frame.time.micros() / 1_000_000
            };
            taken.iter().map(second).collect()
        }
    }

    /// Lengths of the files of samples.
    fn files(folder: &Path) -> Vec<u64> {
        let mut lengths = Vec::new();
        for entry in fs::read_dir(folder).expect("the folder") {
            let entry = entry.expect("a file");
            if entry.path().extension().is_some_and(|end| end != "lock") {
                let metadata = entry.metadata().expect("a file");
                assert_eq!(metadata.mode() & 0o777, 0o600);
                lengths.push(metadata.len());
            }
        }
        lengths
    }

    #[tokio::test]
    async fn what_waits_outlives_the_agent_and_what_is_sent_does_not_come_again() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut agent = Agent::start(folder.path(), 1 << 20).await;
        (0..3).for_each(|second| agent.queue.push(frame(second)));
        agent.keep().await;
        agent.queue.push(frame(3));
        agent.keep().await;
        // On disk, and not in memory.
        let (behind, bytes) = agent.queue.with(|queue| (queue.is_behind(), queue.bytes()));
        assert_eq!((behind, bytes), (false, 4 * length()));
        drop(agent);
        let mut agent = Agent::start(folder.path(), 1 << 20).await;
        agent.queue.push(frame(4));
        assert_eq!(agent.send(true).await, [4]);
        assert_eq!(agent.send(true).await, [3]);
        // While something of a file waits the file stays.
        agent.keep().await;
        assert_eq!(files(folder.path()), [4 * length() as u64]);
        assert_eq!(agent.send(false).await, [0, 1, 2]);
        agent.keep().await;
        assert!(files(folder.path()).is_empty());
        drop(agent);
        let mut agent = Agent::start(folder.path(), 1 << 20).await;
        assert!(agent.send(false).await.is_empty());
    }

    #[tokio::test]
    async fn the_disk_holds_what_may_wait_and_of_more_the_oldest_are_dropped() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let limit = 40 * length();
        let mut agent = Agent::start(folder.path(), limit).await;
        for second in 0..200 {
            agent.queue.push(frame(second));
            agent.keep().await;
            let bytes: u64 = files(folder.path()).into_iter().sum();
            assert!(bytes <= (limit + limit / 4 + length()) as u64, "{bytes}");
        }
        assert_eq!(agent.queue.with(Queue::take_dropped), 160);
        // What was dropped is told with a later sample.
        let notes = agent.queue.with(|queue| queue.take_notes(0, true));
        assert_eq!(notes.len(), 1, "{notes:?}");
        drop(agent);
        let mut agent = Agent::start(folder.path(), limit).await;
        // What stands beside those in the last of its files may be sent as well.
        let sent = agent.send(false).await;
        assert!(sent.ends_with(&(160..200).collect::<Vec<_>>()), "{sent:?}");
        let dropped = agent.queue.with(Queue::take_dropped);
        assert_eq!(dropped, 0);
        drop(agent);
        // Where the limit has become lower, the oldest are dropped, and counted.
        let mut agent = Agent::start(folder.path(), limit / 4).await;
        agent.queue.push(frame(200));
        agent.keep().await;
        let dropped = agent.queue.with(Queue::take_dropped) as usize;
        assert!(
            dropped >= sent.len() + 1 - 10,
            "{dropped} of {}",
            sent.len()
        );
        let left = agent.send(false).await;
        assert!(left.ends_with(&(192..=200).collect::<Vec<_>>()), "{left:?}");
    }

    #[tokio::test]
    async fn what_was_sent_stands_not_in_the_way_of_what_was_not() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let limit = 64 * length();
        let mut agent = Agent::start(folder.path(), limit).await;
        // Of each four samples three are sent as the newest, again and again, and the past never is.
        for second in 0..240 {
            agent.queue.push(frame(second));
            agent.keep().await;
            if second % 4 > 0 {
                assert_eq!(agent.send(true).await, [second]);
            }
            let bytes: u64 = files(folder.path()).into_iter().sum();
            assert!(bytes <= (limit + limit / 2) as u64, "{bytes}");
        }
        let left: Vec<i64> = (0..240).step_by(4).collect();
        assert_eq!(agent.send(false).await, left);
        assert_eq!(agent.queue.with(Queue::take_dropped), 0);
    }

    #[tokio::test]
    async fn what_a_crash_cut_off_or_damaged_is_let_go_and_counted_and_the_next_one_is_whole() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut agent = Agent::start(folder.path(), 1 << 20).await;
        (0..3).for_each(|second| agent.queue.push(frame(second)));
        agent.keep().await;
        drop(agent);
        let path = folder.path().join("waiting-node-a.00000001");
        let whole = fs::read(&path).expect("read");
        let mut damaged = whole.clone();
        damaged[length() + 20] ^= 1;
        for (bytes, left) in [(&whole[..whole.len() - 5], 2), (&damaged[..], 1)] {
            fs::write(&path, bytes).expect("written");
            let mut agent = Agent::start(folder.path(), 1 << 20).await;
            let rest = bytes.len() - left * length();
            assert_eq!(agent.keeper.damaged(), rest as u64);
            agent.queue.push(frame(9));
            agent.keep().await;
            // Another agent of the same node does not write into it.
            let other = Arc::new(SharedQueue::new(1 << 20));
            let second = Keeper::open(folder.path(), "node-a", 1 << 20, &other).await;
            assert!(matches!(second.state, State::None));
            assert_eq!(other.with(|queue| queue.len()), 0);
            drop(agent);
            let mut agent = Agent::start(folder.path(), 1 << 20).await;
            let sent: Vec<i64> = (0..left as i64).chain([9]).collect();
            assert_eq!(agent.send(false).await, sent);
        }
    }

    #[tokio::test]
    async fn a_sample_that_is_damaged_later_is_dropped_alone() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut agent = Agent::start(folder.path(), 1 << 20).await;
        (0..3).for_each(|second| agent.queue.push(frame(second)));
        agent.keep().await;
        let path = folder.path().join("waiting-node-a.00000001");
        let mut bytes = fs::read(&path).expect("read");
        bytes[length() + 20] ^= 1;
        fs::write(&path, bytes).expect("written");
        assert_eq!(agent.send(false).await, [0, 2]);
        assert_eq!(agent.queue.with(Queue::take_dropped), 1);
        agent.keep().await;
        assert!(files(folder.path()).is_empty());
    }

    #[tokio::test]
    async fn the_one_file_of_an_older_agent_is_taken_over() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("waiting-node-a");
        fs::write(&path, [frame(0), frame(1)].concat()).expect("written");
        let mut agent = Agent::start(folder.path(), 1 << 20).await;
        assert!(!path.exists());
        assert_eq!(files(folder.path()), [2 * length() as u64]);
        assert_eq!(agent.send(false).await, [0, 1]);
    }

    #[tokio::test]
    async fn the_disk_is_written_to_once_a_second_at_most() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut agent = Agent::start(folder.path(), 1 << 20).await;
        for second in 0..5 {
            agent.queue.push(frame(second));
            agent.keeper.keep().await.expect("kept or left");
        }
        assert_eq!(files(folder.path()), [length() as u64]);
        agent.keeper.kept = Instant::now().checked_sub(SYNC_INTERVAL);
        agent.keeper.keep().await.expect("kept");
        assert_eq!(files(folder.path()), [5 * length() as u64]);
    }

    #[tokio::test]
    async fn a_disk_without_room_leaves_in_memory_what_came() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut agent = Agent::start(folder.path(), 1 << 20).await;
        agent.queue.push(frame(0));
        agent.keep().await;
        // Nothing can be written through a descriptor for reading.
        let State::Idle(ring) = &mut agent.keeper.state else {
            panic!("is idle");
        };
        let path = folder.path().join("waiting-node-a.00000001");
        ring.replace_file(1, fs::File::open(&path).expect("opened"));
        agent.queue.push(frame(1));
        agent.keeper.is_ending();
        agent.keeper.keep().await.expect_err("no room");
        assert!(agent.queue.with(|queue| queue.is_behind()));
        let file = fs::File::options().read(true).append(true).open(&path);
        let State::Idle(ring) = &mut agent.keeper.state else {
            panic!("is idle");
        };
        ring.replace_file(1, file.expect("opened"));
        agent.keep().await;
        assert!(!agent.queue.with(|queue| queue.is_behind()));
        assert_eq!(agent.send(false).await, [0, 1]);
    }
}
