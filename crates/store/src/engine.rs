//! The one thread on which an embedded database lives.
//!
//! `SurrealKV` 0.21 takes two of its locks in one order where it begins to read a range, and in the other where
//! it has written a file: two threads that do so at once wait for each other for ever, and with them everything
//! that asks after that. Neither leaves its thread in between, so of one thread that cannot be. What it costs is
//! that nothing is read or written while files are merged.

use std::future::Future;
use std::sync::{Mutex, PoisonError};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::database::Error;

/// Ends its thread when it is stopped or dropped.
pub(crate) struct Engine {
    handle: Handle,
    running: Mutex<Option<oneshot::Sender<()>>>,
}

impl Engine {
    pub(crate) fn start() -> Result<Self, Error> {
        let failed = |error: std::io::Error| Error::Datastore(error.to_string());
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed)?;
        let handle = runtime.handle().clone();
        let (running, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("database".to_owned());
        let run = move || runtime.block_on(async { drop(stopped.await) });
        thread.spawn(run).map_err(failed)?;
        Ok(Self {
            handle,
            running: Mutex::new(Some(running)),
        })
    }

    /// Runs something on the thread. It goes on there where nobody waits for it any more.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Error> {
        self.handle.spawn(work).await.map_err(|_| Error::Closed)
    }

    /// Ends the thread; what is run later is not run.
    pub(crate) fn stop(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        drop(running.take());
    }
}
