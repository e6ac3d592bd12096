//! What contributors and the gate run: `cargo xtask COMMAND`.

mod bench;
mod chart;
mod cluster;
mod edges;
mod image;
mod install;
mod jaeger;
mod measure;
mod process;
mod record;
mod suites;
mod supply;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tests, checks, benchmarks and measurements of nodestats.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Installs what the tests need, runs all of them, and counts them.
    Test,
    /// Builds the programs that the tests run: ours, and a database server.
    Programs,
    /// Builds programs and images, and runs the tests on whole clusters alone.
    E2e,
    /// Formatting, clippy, and the edges between crates.
    Lint,
    /// Writes the generated files.
    Generate {
        /// Only compares them with what would be written.
        #[arg(long)]
        check: bool,
    },
    /// Checks which crate may use which.
    Edges,
    /// Checks the chart, as far as that needs no cluster.
    Chart,
    /// Runs a benchmark.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Records `/proc` of this host for the benchmark of histories: of each process its figures and the
    /// name of its program, no arguments.
    Record {
        /// Where to; a file that is there is not written over.
        file: PathBuf,
        /// Passes: each second one is a sample.
        #[arg(long, default_value_t = 300)]
        passes: u32,
        /// Seconds between two passes.
        #[arg(long, default_value_t = 5.0)]
        interval: f64,
    },
    /// Measures memory, CPU and the first answer of the release programs on this host.
    Measure {
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
        /// How long the programs run, in seconds.
        #[arg(long, default_value_t = 600)]
        seconds: u64,
    },
    /// Starts Jaeger on this machine until Ctrl-C, and prints the variables that send traces there.
    Jaeger,
    /// Starts and ends a real Kubernetes cluster on this machine.
    Cluster {
        #[command(subcommand)]
        what: cluster::Cluster,
    },
    /// Builds the images of both programs as docker-archives, static and on nothing.
    Image {
        /// As they are published: slower to build, smaller and faster.
        #[arg(long)]
        dist: bool,
    },
    /// Checks licences and sources of all crates that are used, and which may not be.
    Supply,
    /// Builds what is published: the images, and of each program the list of what it is made of.
    Dist,
    /// What is too slow for each change: the tests, the benchmark and the measurement.
    ReleaseCheck,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// One pass over all processes: our reader beside sysinfo and procfs.
    Collect {
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// How densely a recorded history is kept, and how fast it is stored and answered.
    History {
        /// The recording: `/proc` of a host, one JSON object a pass, with zstd.
        #[arg(long, value_name = "FILE")]
        corpus: PathBuf,
        #[command(flatten)]
        load: bench::Load,
        /// Built as it is published, which takes most of an hour the first time.
        #[arg(long)]
        dist: bool,
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Whether deleted history gives its disk back: a month in fast motion.
    Retention {
        /// Built as it is published, which takes most of an hour the first time.
        #[arg(long)]
        dist: bool,
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// What traces cost a push: none, one in a hundred, all.
    Push {
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// The workspace's folder.
fn root() -> PathBuf {
    let xtask = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask
        .parent()
        .expect("xtask is in the workspace")
        .to_owned()
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Test => test::run(),
        Command::Programs => test::programs(),
        Command::E2e => test::e2e(),
        Command::Lint => test::lint(),
        Command::Generate { check } => test::generate(check),
        Command::Edges => edges::run(),
        Command::Chart => chart::lint(),
        Command::Bench {
            what: Bench::Collect { json },
        } => bench::collect(json),
        Command::Bench {
            what:
                Bench::History {
                    corpus,
                    load,
                    dist,
                    json,
                },
        } => bench::history(&corpus, load, dist, json),
        Command::Bench {
            what: Bench::Retention { dist, json },
        } => bench::retention(dist, json),
        Command::Bench {
            what: Bench::Push { json },
        } => bench::push(json),
        Command::Record {
            file,
            passes,
            interval,
        } => std::time::Duration::try_from_secs_f64(interval)
            .map_err(anyhow::Error::from)
            .and_then(|interval| record::run(passes, interval, &file)),
        Command::Measure { json, seconds } => measure::run(json, seconds),
        Command::Jaeger => jaeger::run(),
        Command::Cluster { what } => cluster::run(what),
        Command::Image { dist } => image::run(dist),
        Command::Supply => supply::check(),
        Command::Dist => image::run(true).and_then(|()| {
            supply::bills()?
                .iter()
                .for_each(|bill| println!("{}", bill.display()));
            Ok(())
        }),
        Command::ReleaseCheck => test::run()
            .and_then(|()| bench::collect(true))
            .and_then(|()| measure::run(true, 600)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
