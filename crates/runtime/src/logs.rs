//! Logs: on standard error, one line an event; standard output is for data.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Sets up logs. `RUST_LOG` chooses, else `info` of our own programs and `warn` of all others.
pub fn init() {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,nodestats=info,nodestats_api=info,nodestats_agent=info,nodestats_controller=info,nodestats_store=info,nodestats_runtime=info"));
    let stderr = std::io::stderr();
    // A second set-up in one process (tests) keeps the first.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false)
        .with_writer(std::io::stderr)
        .try_init();
}
