//! What a collector is, and how it is kept from holding up the others.
//!
//! Any read of a host can hang: `statvfs` on a dead network mount, `/proc/PID/cmdline` of a
//! process stuck in the kernel. So each collector has a thread. One that misses its deadline is
//! left alone until it comes back; its figures are absent meanwhile, and all others are there.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use nodestats_core::sample::CollectorRun;

use crate::root::HostRoot;

/// Why a collector has no figures.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file, below the host's root.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file does not have the form that the kernel's documentation gives.
    #[error("{path} does not read as expected")]
    Parse {
        /// The file, below the host's root.
        path: String,
    },
    /// It did not come back in time.
    #[error("no figures within {0:?}")]
    Deadline(Duration),
}

impl Error {
    pub(crate) fn read(path: &str) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Read {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn parse(path: &str) -> Self {
        Self::Parse {
            path: path.to_owned(),
        }
    }
}

/// Reads one kind of figure.
pub(crate) trait Collector: Send + 'static {
    type Output: Send + 'static;
    /// The name in reports; one of a closed set.
    const NAME: &'static str;

    fn collect(&mut self, root: &HostRoot) -> Result<Self::Output, Error>;
}

/// Small, since the deepest that a collector recurses is a walk through folders, 17 levels: a node has nine of these threads.
const STACK: usize = 256 << 10;

/// A collector on its thread.
pub(crate) struct Worker<C: Collector> {
    go: SyncSender<()>,
    results: Receiver<(Result<C::Output, Error>, Duration)>,
    running_since: Option<Instant>,
}

impl<C: Collector> Worker<C> {
    pub(crate) fn start(mut collector: C, root: &HostRoot) -> io::Result<Self> {
        let (go, wanted) = mpsc::sync_channel::<()>(1);
        let (result_tx, results) = mpsc::sync_channel(1);
        let root = root.clone();
        // Not joined: one that hangs in the kernel can only be left behind at the end.
        thread::Builder::new()
            .name(format!("collect-{}", C::NAME))
            .stack_size(STACK)
            .spawn(move || {
                while wanted.recv().is_ok() {
                    let begin = Instant::now();
                    let result = collector.collect(&root);
                    if result_tx.send((result, begin.elapsed())).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            go,
            results,
            running_since: None,
        })
    }

    /// Asks for a reading, unless the last one is still under way.
    pub(crate) fn begin(&mut self) {
        if self.running_since.is_some() && self.results.try_recv().is_ok() {
            // It came back after its deadline; what it read then is old.
            self.running_since = None;
        }
        if self.running_since.is_none() && self.go.try_send(()).is_ok() {
            self.running_since = Some(Instant::now());
        }
    }

    /// The reading, if it is there by `deadline`.
    pub(crate) fn finish(&mut self, deadline: Instant) -> (Option<C::Output>, CollectorRun) {
        let begin = self.running_since.unwrap_or(deadline);
        let left = deadline.saturating_duration_since(Instant::now());
        let (result, took) = match self.results.recv_timeout(left) {
            Ok(finished) => {
                self.running_since = None;
                finished
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let took = begin.elapsed();
                (Err(Error::Deadline(took)), took)
            }
        };
        let run = CollectorRun {
            collector: C::NAME.to_owned(),
            success: result.is_ok(),
            duration_micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        };
        if let Err(error) = &result {
            tracing::debug!(collector = C::NAME, %error, "a collector has no figures");
        }
        (result.ok(), run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Hangs(Receiver<()>);

    impl Collector for Hangs {
        type Output = u32;
        const NAME: &'static str = "hangs";

        fn collect(&mut self, _: &HostRoot) -> Result<u32, Error> {
            let _ = self.0.recv();
            Ok(1)
        }
    }

    #[test]
    fn a_hung_collector_misses_its_deadline_and_comes_back() {
        let (release, held) = mpsc::channel();
        let mut worker = Worker::start(Hangs(held), &HostRoot::new("/")).expect("a thread");
        let mut pass = |patience| {
            worker.begin();
            worker.finish(Instant::now() + Duration::from_millis(patience))
        };
        for _ in 0..2 {
            let (output, run) = pass(20);
            assert_eq!((output, run.success), (None, false));
        }
        // Released once for the reading that hung and once for the next: the old one is dropped.
        release.send(()).expect("it waits");
        release.send(()).expect("it waits");
        let fresh = (0..1000).find_map(|_| pass(20).0);
        assert_eq!(fresh, Some(1));
    }
}
