//! What every program of nodestats needs of its process: logs, metrics, traces, signals, limits, default folders,
//! tasks that nobody forgets, and a listener for whoever operates it. Knows nothing of nodes and samples.

pub mod admin;
pub mod directories;
pub mod limits;
pub mod logs;
pub mod metrics;
mod supervisor;
pub mod telemetry;
pub mod tls;

pub use supervisor::Supervisor;

/// The host's name, which in a pod is the pod's.
pub fn hostname() -> String {
    let uname = rustix::system::uname();
    uname.nodename().to_string_lossy().into_owned()
}

/// From now on SIGTERM and SIGINT end the program in order: what is returned waits for one of them, and
/// names it. Called before anybody is told that the program runs.
pub fn shutdown_signal() -> anyhow::Result<impl Future<Output = anyhow::Result<&'static str>>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        Ok(tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        })
    })
}

/// Runs a program's main function, and ends the process: 0, or one sentence on standard error
/// and 1. Causes follow the sentence, each once.
pub fn exit(result: anyhow::Result<()>) -> std::process::ExitCode {
    let Err(error) = result else {
        return std::process::ExitCode::SUCCESS;
    };
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !message.contains(&cause) {
            message = if message.is_empty() {
                cause
            } else {
                format!("{message}: {cause}")
            };
        }
    }
    eprintln!("error: {message}");
    std::process::ExitCode::FAILURE
}
