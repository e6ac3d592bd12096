//! Tasks that nobody forgets: one that ends before it should, or panics, ends the program.

use std::future::Future;

use anyhow::{Context as _, anyhow, bail};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The long-running tasks of a program.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    stop: CancellationToken,
}

impl Supervisor {
    /// Cancelled when the program is to end.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task that runs until [`Self::stop_token`] is cancelled.
    pub fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// Waits until `shutdown` says that the program is to end, or until a task ended by itself,
    /// which is an error; then stops all tasks and waits for them.
    pub async fn run(
        mut self,
        shutdown: impl Future<Output = anyhow::Result<&'static str>>,
    ) -> anyhow::Result<()> {
        let outcome = tokio::select! {
            signal = shutdown => signal.map(|signal| tracing::info!(signal, "stopping")),
            Some(ended) = self.tasks.join_next() => match ended {
                Ok((name, Ok(()))) => Err(anyhow!("{name} ended before it should")),
                Ok((name, Err(error))) => Err(error.context(format!("{name} failed"))),
                Err(error) => Err(anyhow!(error).context("a task panicked")),
            },
        };
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            let (name, result) = ended.context("a task panicked")?;
            if let Err(error) = result {
                if outcome.is_ok() {
                    bail!(error.context(format!("{name} failed")));
                }
                tracing::warn!(task = name, error = format!("{error:#}"), "also failed");
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_or_panics_ends_the_program() {
        let run = |task: fn() -> anyhow::Result<()>| async move {
            let mut supervisor = Supervisor::default();
            let stop = supervisor.stop_token();
            supervisor.spawn("lasting", async move {
                stop.cancelled().await;
                Ok(())
            });
            supervisor.spawn("short", async move { task() });
            supervisor
                .run(pending())
                .await
                .map_err(|error| format!("{error:#}"))
        };
        assert_eq!(
            run(|| Ok(())).await,
            Err("short ended before it should".into())
        );
        assert_eq!(
            run(|| bail!("broken")).await,
            Err("short failed: broken".into())
        );
        let panicked = run(|| panic!("out of luck")).await.expect_err("panicked");
        assert!(panicked.contains("panicked"), "{panicked}");
    }

    #[tokio::test]
    async fn a_signal_stops_all_tasks_in_order() {
        let mut supervisor = Supervisor::default();
        let stop = supervisor.stop_token();
        supervisor.spawn("lasting", async move {
            stop.cancelled().await;
            Ok(())
        });
        supervisor
            .run(async { Ok("SIGTERM") })
            .await
            .expect("an orderly end");
    }
}
