//! The program `nodestats`: its subcommands, and nothing else.

mod arguments;
mod ask;
mod controller;
mod local;
mod server;
mod serving;
mod tls;
mod token;

use std::process::ExitCode;

use arguments::{Arguments, Command};
use clap::Parser as _;
use nodestats_runtime::limits;
use nodestats_runtime::telemetry::{Program, Protocols, Telemetry};

/// Bytes of a thread's stack, of which none is taken before it is used.
const STACK: usize = 8 << 20;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    limits::share_heaps();
    limits::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // More threads do not make one host's history faster; each keeps memory of its own.
        .worker_threads(2)
        // The embedded database runs a statement by calls within calls.
        .thread_stack_size(STACK)
        .enable_all()
        .build();
    nodestats_runtime::exit(runtime.map_err(Into::into).and_then(|runtime| {
        let result = runtime.block_on(async {
            let telemetry = Telemetry::start(Program {
                name: arguments.command.service(),
                protocols: Protocols::HttpAndGrpc,
                logs: Some(arguments.logs),
                is_lasting: !matches!(arguments.command, Command::Token(_) | Command::Ask(_)),
                always_traced: false,
            });
            let registry = telemetry.registry().clone();
            let result = match arguments.command {
                Command::Standalone(standalone) => server::standalone(standalone, registry).await,
                Command::Api(api) => server::api(api, registry).await,
                Command::Controller(arguments) => controller::run(arguments, registry).await,
                Command::Token(arguments) => token::run(arguments).await,
                Command::Ask(question) => ask::run(question).await,
            };
            telemetry.end().await;
            result
        });
        // A collector may hang in the kernel: the end does not wait for it.
        runtime.shutdown_background();
        result
    }))
}
