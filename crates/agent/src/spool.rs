//! What waits for the server, on disk too: an agent that is restarted sends what the one before
//! it could not.
//!
//! One file a node in the state directory holds frames one after another; each begins with its
//! length, so what a crash cut off is found and let go. Frames come to it when a push has failed,
//! and the file is emptied when nothing of it waits any more: sending a frame twice is harmless,
//! since the server counts it once. Disk and memory have the same limit.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, BufReader, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nodestats_core::Frame;
use tokio::task::JoinHandle;

use crate::queue::{Queued, SharedQueue, Which};

/// A disk that takes longer stops the spool, and nothing else.
const PATIENCE: Duration = Duration::from_secs(5);
/// The disk is written to no more often: what came since waits in memory until then.
pub(crate) const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// The file may hold so many times what may wait, before it is written anew.
const SLACK: u64 = 2;

/// The file.
#[derive(Debug)]
struct Spool {
    file: File,
    path: PathBuf,
    /// Its length.
    bytes: u64,
    /// Most bytes that wait.
    limit: u64,
}

/// A file that was opened.
struct Opened {
    spool: Spool,
    /// Samples in it.
    frames: usize,
    /// Bytes behind them that are none.
    damaged: u64,
}

impl Spool {
    /// Opens a node's file, and brings the frames in it into the queue, which lets go of the oldest
    /// beyond its limit: the file is never in memory as a whole.
    fn open(directory: &Path, uid: &str, limit: usize, queue: &SharedQueue) -> io::Result<Opened> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let path = directory.join(format!("waiting-{uid}"));
        let file = open(&path)?;
        let length = file.metadata()?.len();
        let mut reader = BufReader::new(File::open(&path)?);
        let (mut bytes, mut frames) = (0, 0);
        while let Some(frame) = next_frame(&mut reader, length - bytes)? {
            bytes += frame.len() as u64;
            frames += 1;
            queue.with(|queue| queue.restore(frame));
        }
        if bytes < length {
            // What a crash cut off, as a rule.
            tracing::warn!(bytes = length - bytes, "the rest of what waited is damaged");
        }
        let mut spool = Self {
            file,
            path,
            bytes,
            limit: limit as u64,
        };
        spool.cut(bytes)?;
        Ok(Opened {
            spool,
            frames,
            damaged: length - bytes,
        })
    }

    /// Adds frames; they are on disk afterwards, or the file is as it was.
    fn append(&mut self, frames: &[Queued]) -> io::Result<()> {
        let mut written = Ok(());
        for one in frames {
            written = written.and_then(|()| self.file.write_all(&one.frame));
        }
        if let Err(error) = written.and_then(|()| self.file.sync_data()) {
            self.cut(self.bytes)?;
            return Err(error);
        }
        self.bytes += length(frames);
        Ok(())
    }

    /// Writes the file anew.
    fn replace(&mut self, frames: &[Queued]) -> io::Result<()> {
        let path = self.path.with_extension("new");
        let _ = fs::remove_file(&path);
        let mut next = Self {
            file: open(&path)?,
            bytes: 0,
            limit: self.limit,
            path: self.path.clone(),
        };
        next.append(frames)?;
        fs::rename(&path, &self.path)?;
        *self = next;
        Ok(())
    }

    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)?;
        self.bytes = bytes;
        Ok(())
    }
}

fn length(frames: &[Queued]) -> u64 {
    frames.iter().map(|one| one.frame.len() as u64).sum()
}

/// The next frame of at most `rest` bytes; `None` where there is no whole one.
fn next_frame(reader: &mut impl Read, rest: u64) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; 4];
    if rest < head.len() as u64 {
        return Ok(None);
    }
    reader.read_exact(&mut head)?;
    let length = u64::from(u32::from_le_bytes(head));
    if length < head.len() as u64 || length > rest {
        return Ok(None);
    }
    let mut frame = vec![0; length as usize];
    frame[..head.len()].copy_from_slice(&head);
    reader.read_exact(&mut frame[head.len()..])?;
    Ok(Frame::read(&frame).is_ok().then_some(frame))
}

/// Opens a file for appending that no other agent has. What people ran is nobody else's to read.
fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let file = options.create(true).append(true).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "another agent of this node has it",
        )),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// What is to be done with the file.
enum Work {
    Append(Vec<Queued>),
    Replace(Vec<Queued>),
    Clear,
}

type Task = JoinHandle<(Spool, io::Result<()>)>;

/// The file, or the work on it that is not done yet.
enum State {
    Idle(Spool),
    Busy(Task),
    /// There is no file: what waits is lost with the agent.
    None,
}

/// Keeps the file as the queue is.
pub(crate) struct Keeper {
    state: State,
    /// The disk has not answered in time: it is looked at, and not waited for.
    stuck: bool,
    /// Something in the file may have been sent since it was written anew.
    sent: bool,
    damaged: u64,
    /// When something was written last.
    kept: Option<Instant>,
}

impl Keeper {
    /// Opens a node's file, and puts what is in it into the queue. Without a place to write the
    /// agent goes on, and says so.
    pub(crate) async fn open(
        directory: &Path,
        uid: &str,
        limit: usize,
        queue: &Arc<SharedQueue>,
    ) -> Self {
        let (path, uid, of_file) = (directory.to_owned(), uid.to_owned(), Arc::clone(queue));
        let opening =
            tokio::task::spawn_blocking(move || Spool::open(&path, &uid, limit, &of_file));
        let opened = match tokio::time::timeout(PATIENCE, opening).await {
            Ok(opened) => opened.unwrap_or_else(|panicked| Err(io::Error::other(panicked))),
            Err(_) => Err(no_answer()),
        };
        let mut damaged = 0;
        let state = match opened {
            Ok(opened) => {
                damaged = opened.damaged;
                if opened.frames > 0 {
                    tracing::info!(samples = opened.frames, "samples of an earlier start wait");
                }
                State::Idle(opened.spool)
            }
            Err(error) => {
                let path = directory.display();
                tracing::warn!(%error, %path, "samples that wait are lost with this agent");
                State::None
            }
        };
        Self {
            state,
            stuck: false,
            sent: false,
            damaged,
            kept: None,
        }
    }

    /// Bytes at the end of its file that were no samples when it was opened.
    pub(crate) fn damaged(&self) -> u64 {
        self.damaged
    }

    /// What waits now is kept at once.
    pub(crate) fn is_ending(&mut self) {
        self.kept = None;
    }

    /// The server has taken something.
    pub(crate) fn sent(&mut self) {
        self.sent = true;
    }

    /// Brings to disk what waits after a failed push, unless something was brought there a moment ago. An
    /// error leaves the file as it was; a later call tries again.
    pub(crate) async fn keep(&mut self, queue: &SharedQueue) -> io::Result<()> {
        if self.kept.is_some_and(|kept| kept.elapsed() < SYNC_INTERVAL) {
            return Ok(());
        }
        let Some(spool) = self.take().await? else {
            return Ok(());
        };
        let new = queue.with(|queue| queue.copies(Which::NotSpooled));
        if new.is_empty() {
            self.state = State::Idle(spool);
            return Ok(());
        }
        self.kept = Some(Instant::now());
        let orders: Vec<u64> = new.iter().map(|one| one.order).collect();
        // What was sent must not stand in the way of what was not: a start reads the last of it.
        let most = if self.sent { 1 } else { SLACK } * spool.limit;
        let work = if spool.bytes + length(&new) > most {
            self.sent = false;
            Work::Replace(queue.with(|queue| queue.copies(Which::All)))
        } else {
            Work::Append(new)
        };
        self.work(spool, work).await?;
        queue.with(|queue| queue.set_spooled(&orders));
        Ok(())
    }

    /// Empties the file when nothing waits any more.
    pub(crate) async fn clear(&mut self, queue: &SharedQueue) -> io::Result<()> {
        let Some(spool) = self.take().await? else {
            return Ok(());
        };
        if spool.bytes == 0 || queue.with(|queue| queue.len()) > 0 {
            self.state = State::Idle(spool);
            return Ok(());
        }
        self.work(spool, Work::Clear).await
    }

    /// The file, when the work before is done.
    async fn take(&mut self) -> io::Result<Option<Spool>> {
        self.wait().await?;
        match std::mem::replace(&mut self.state, State::None) {
            State::Idle(spool) => Ok(Some(spool)),
            other => {
                self.state = other;
                Ok(None)
            }
        }
    }

    async fn work(&mut self, mut spool: Spool, work: Work) -> io::Result<()> {
        self.state = State::Busy(tokio::task::spawn_blocking(move || {
            let done = match work {
                Work::Append(frames) => spool.append(&frames),
                Work::Replace(frames) => spool.replace(&frames),
                Work::Clear => spool.cut(0),
            };
            (spool, done)
        }));
        self.wait().await
    }

    /// Waits for work under way, but not for ever. Who stops waiting takes nothing from it.
    async fn wait(&mut self) -> io::Result<()> {
        let State::Busy(task) = &mut self.state else {
            return Ok(());
        };
        let patience = if self.stuck { Duration::ZERO } else { PATIENCE };
        match tokio::time::timeout(patience, task).await {
            Ok(Ok((spool, done))) => {
                self.stuck = false;
                self.state = State::Idle(spool);
                done
            }
            Ok(Err(panicked)) => {
                self.state = State::None;
                Err(io::Error::other(panicked))
            }
            Err(_) => {
                self.stuck = true;
                Err(no_answer())
            }
        }
    }
}

fn no_answer() -> io::Error {
    let text = format!("the disk has not answered for {PATIENCE:?}");
    io::Error::new(io::ErrorKind::TimedOut, text)
}

#[cfg(test)]
mod tests {
    use nodestats_core::{FrameId, Sample, frame};
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

    fn waiting(queue: &SharedQueue) -> Vec<Vec<u8>> {
        let frames = queue.with(|queue| queue.copies(Which::All));
        frames.into_iter().map(|one| one.frame).collect()
    }

    /// As after a second.
    async fn kept(keeper: &mut Keeper, queue: &SharedQueue) {
        keeper.is_ending();
        keeper.keep(queue).await.expect("kept");
    }

    async fn opened(folder: &Path, limit: usize) -> (Keeper, Arc<SharedQueue>) {
        let queue = Arc::new(SharedQueue::new(limit));
        let keeper = Keeper::open(folder, "node-a", limit, &queue).await;
        assert!(matches!(keeper.state, State::Idle(_)));
        (keeper, queue)
    }

    #[tokio::test]
    async fn what_waits_outlives_the_agent_and_what_is_sent_does_not_come_again() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (mut keeper, queue) = opened(folder.path(), 1 << 20).await;
        (0..3).for_each(|second| queue.push(frame(second)));
        kept(&mut keeper, &queue).await;
        queue.push(frame(3));
        kept(&mut keeper, &queue).await;
        drop(keeper);
        let (mut keeper, queue) = opened(folder.path(), 1 << 20).await;
        assert_eq!(waiting(&queue), (0..4).map(frame).collect::<Vec<_>>());
        queue.push(frame(4));
        let newest = queue.with(crate::queue::Queue::take_newest).expect("one");
        assert_eq!(newest.frame, frame(4));
        // While something waits the file stays; then it is empty.
        keeper.clear(&queue).await.expect("left");
        queue.with(|queue| queue.take_oldest(usize::MAX));
        let file = folder.path().join("waiting-node-a");
        assert!(fs::metadata(&file).expect("is there").len() > 0);
        keeper.clear(&queue).await.expect("cleared");
        assert_eq!(fs::metadata(&file).expect("is there").len(), 0);
        drop(keeper);
        let (_keeper, queue) = opened(folder.path(), 1 << 20).await;
        assert!(waiting(&queue).is_empty());
    }

    #[tokio::test]
    async fn the_file_is_bounded_as_the_queue_is() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let limit = 3 * frame(0).len();
        let (mut keeper, queue) = opened(folder.path(), limit).await;
        for second in 0..50 {
            queue.push(frame(second));
            kept(&mut keeper, &queue).await;
            let file = fs::metadata(folder.path().join("waiting-node-a")).expect("is there");
            assert!(file.len() <= SLACK * limit as u64);
        }
        drop(keeper);
        let (_keeper, queue) = opened(folder.path(), limit).await;
        assert_eq!(waiting(&queue), (47..50).map(frame).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn what_was_sent_stands_not_in_the_way_of_what_was_not() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let limit = 4 * frame(0).len();
        let (mut keeper, queue) = opened(folder.path(), limit).await;
        queue.push(frame(0));
        queue.push(frame(1));
        kept(&mut keeper, &queue).await;
        // The newest are taken again and again, and the past never is.
        for second in 2..20 {
            queue.push(frame(second));
            kept(&mut keeper, &queue).await;
            queue.with(crate::queue::Queue::take_newest).expect("one");
            keeper.sent();
        }
        drop(keeper);
        let (_keeper, queue) = opened(folder.path(), limit).await;
        let left = waiting(&queue);
        assert!(left.contains(&frame(0)) && left.contains(&frame(1)));
        let mode = fs::metadata(folder.path().join("waiting-node-a"));
        let mode = std::os::unix::fs::MetadataExt::mode(&mode.expect("is there"));
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_frame_that_a_crash_cut_off_is_let_go_and_the_next_one_is_whole() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("waiting-node-a");
        let bytes = [frame(0), frame(1)].concat();
        fs::write(&path, &bytes[..bytes.len() - 5]).expect("written");
        let (mut keeper, queue) = opened(folder.path(), 1 << 20).await;
        assert_eq!(waiting(&queue), [frame(0)]);
        assert_eq!(keeper.damaged(), frame(1).len() as u64 - 5);
        queue.push(frame(2));
        kept(&mut keeper, &queue).await;
        assert_eq!(
            fs::read(&path).expect("read"),
            [frame(0), frame(2)].concat()
        );
        // Another agent of the same node does not write into it.
        let other = Arc::new(SharedQueue::new(1 << 20));
        let second = Keeper::open(folder.path(), "node-a", 1 << 20, &other).await;
        assert!(matches!(second.state, State::None));
        assert!(waiting(&other).is_empty());
    }

    #[tokio::test]
    async fn the_disk_is_written_to_once_a_second_at_most() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (mut keeper, queue) = opened(folder.path(), 1 << 20).await;
        let file = folder.path().join("waiting-node-a");
        for second in 0..5 {
            queue.push(frame(second));
            keeper.keep(&queue).await.expect("kept or left");
        }
        assert_eq!(fs::read(&file).expect("read"), frame(0));
        keeper.kept = Instant::now().checked_sub(SYNC_INTERVAL);
        keeper.keep(&queue).await.expect("kept");
        let all: Vec<u8> = (0..5).flat_map(frame).collect();
        assert_eq!(fs::read(&file).expect("read"), all);
    }
}
