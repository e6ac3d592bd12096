//! All checks and tests, one after another, and the count of them.

use std::process::Command;
use std::sync::mpsc;
use std::time::Instant;

use anyhow::{Context as _, bail};

use nodestats_cluster as cluster;

use crate::suites::{self, Ran, Suite, When};
use crate::{chart, edges, image, install, process, supply};

/// So many programs of tests are told with their times.
const LONGEST: usize = 25;

/// How many passed and failed so far.
#[derive(Debug, Default)]
struct Count {
    passed: u64,
    failed: u64,
    /// What those that failed said, to be told once more at the end.
    failures: Vec<String>,
    /// Seconds that each program of tests took, to be told there too.
    times: Vec<(u64, String)>,
}

impl Count {
    /// A step that is one test by itself.
    fn step(&mut self, name: &str, result: anyhow::Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => self.failure(format!("{name} failed: {error:#}")),
        }
    }

    fn failure(&mut self, told: String) {
        eprintln!("{told}");
        self.failures.push(told);
        self.failed += 1;
    }

    /// What was counted elsewhere.
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.times.extend(other.times);
    }

    /// Programs of tests in Rust.
    fn suites(&mut self, ran: Vec<Ran>) {
        for Ran { name, took, result } in ran {
            match result.and_then(|(text, success)| Ok((counted(&text)?, success))) {
                // A program without a test is one all the same.
                Ok((counted, true)) => self.add(counted),
                other => self.suite(&name, other),
            }
            self.times.push((took, name));
        }
    }

    /// A runner that counts its tests itself. One that failed without a failed test, or ran none,
    /// is a failure.
    fn suite(&mut self, name: &str, ran: anyhow::Result<(Self, bool)>) {
        match ran {
            Ok((counted, success)) => {
                let (passed, failed) = (counted.passed, counted.failed);
                self.add(counted);
                if failed == 0 && (!success || passed == 0) {
                    self.failure(format!("{name} could not run"));
                }
            }
            Err(error) => self.failure(format!("{name} could not run: {error:#}")),
        }
    }
}

/// `cargo xtask test`.
///
/// What is built for clusters (Kubernetes, images) and the suites on them go on beside everything else: a
/// build waits for one long crate, a suite for a cluster, and there are two processors at least. What
/// measures comes after all of it.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut count = Count::default();
    let started = Instant::now();
    let heading = |name: &str| println!("\n== {name} ({} s)", started.elapsed().as_secs());
    heading("format");
    count.step("format", format());
    heading("edges");
    count.step("edges", edges::run());
    heading("supply");
    count.step("supply", supply::check());
    heading("what is installed");
    count.step("what is installed", installed());
    heading("chart");
    count.step("chart", chart::lint());
    let (built, suites_on_clusters) = mpsc::channel();
    let mut alone = Vec::new();
    let on_clusters = std::thread::scope(|scope| {
        let beside = scope.spawn(move || on_clusters(&suites_on_clusters));
        heading("programs");
        count.step("programs", programs());
        heading("tests in Rust");
        match suites::build() {
            Ok(mut all) => {
                let mut of = |when| all.extract_if(.., |suite| suite.when() == when).collect();
                // Who does not take them has failed, and says so.
                let _ = built.send(of(When::OnClusters));
                alone = of(When::Alone);
                count.suites(suites::run(&all));
            }
            Err(error) => count.failure(format!("tests in Rust could not run: {error:#}")),
        }
        drop(built);
        heading("tests in Python");
        count.suite("tests in Python", python());
        heading("generated files");
        count.step("generated files", generate(true));
        heading("examples in documentation");
        count.step("examples in documentation", examples());
        heading("clippy");
        count.step("clippy", clippy());
        beside.join()
    });
    match on_clusters {
        Ok(theirs) => count.add(theirs),
        Err(_) => count.failure("the suites on clusters could not run".to_owned()),
    }
    heading("what measures");
    count.suites(suites::run(&alone));
    count.times.sort_unstable();
    let times = count.times.iter().rev().take(LONGEST);
    let times: Vec<String> = times
        .map(|(took, name)| format!("{took} s {name}"))
        .collect();
    println!("\n== what took longest\n\n{}", times.join("\n"));
    if !count.failures.is_empty() {
        println!("\n== what failed\n\n{}", count.failures.join("\n\n"));
    }
    println!(
        "\nall took {} s\n{} passed, {} failed",
        started.elapsed().as_secs(),
        count.passed,
        count.failed
    );
    if count.failed > 0 {
        bail!("{} of the tests failed", count.failed);
    }
    Ok(())
}

/// What clusters need, and then the suites that run on them.
fn on_clusters(suites: &mpsc::Receiver<Vec<Suite>>) -> Count {
    let mut count = Count::default();
    count.step("Kubernetes", kubernetes());
    count.step("observability", observability());
    count.step("images", image::run(false));
    match suites.recv() {
        Ok(suites) => count.suites(suites::run(&suites)),
        Err(_) => count.failure("the suites on clusters were not built".to_owned()),
    }
    count
}

/// `cargo xtask e2e`: what runs on whole clusters, with what it prints.
pub(crate) fn e2e() -> anyhow::Result<()> {
    programs()?;
    kubernetes()?;
    observability()?;
    image::build(false)?;
    let mut command = process::cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    command.args(["--test", "helm", "--test", "cluster", "--", "--nocapture"]);
    process::run(&mut command)
}

/// `cargo xtask lint`.
pub(crate) fn lint() -> anyhow::Result<()> {
    format()?;
    edges::run()?;
    supply::check()?;
    clippy()
}

/// `cargo xtask programs`.
pub(crate) fn programs() -> anyhow::Result<()> {
    process::run(process::cargo().args(["build", "--workspace"]))
}

/// Debian's packages: one at a time installs some.
fn installed() -> anyhow::Result<()> {
    install::cluster()?;
    install::prometheus()?;
    install::cpp()?;
    install::browser()?;
    install::python().map(drop)
}

/// What the tests on clusters need: each version of Kubernetes, built where it is not yet.
fn kubernetes() -> anyhow::Result<()> {
    install::cluster()?;
    cluster::helm()?;
    for version in cluster::Version::ALL {
        cluster::Binaries::find(version, true)?;
    }
    Ok(())
}

/// What traces and metrics are tested with.
fn observability() -> anyhow::Result<()> {
    install::prometheus()?;
    cluster::jaeger().map(drop)
}

fn format() -> anyhow::Result<()> {
    process::run(process::cargo().args(["fmt", "--check"]))
}

fn clippy() -> anyhow::Result<()> {
    install::cpp()?;
    let arguments = [
        "clippy",
        "--workspace",
        "--all-targets",
        // What `cargo fuzz` builds.
        "--features",
        "nodestats-fuzz/libfuzzer",
        "--",
        "-D",
        "warnings",
    ];
    process::run(process::cargo().args(arguments))
}

/// `cargo xtask generate`: the description of the API, the definition of the resource, and what is
/// made from the chart.
pub(crate) fn generate(check: bool) -> anyhow::Result<()> {
    let mut command = process::cargo();
    // The whole workspace: one package alone would have fewer features of its dependencies, which
    // builds SurrealDB a second time.
    command.args(["test", "--quiet", "--workspace"]);
    command.args(["--test", "router", "--test", "golden_crd"]);
    command.arg("golden");
    if !check {
        command.env("NODESTATS_GENERATE", "1");
    }
    process::run(&mut command)?;
    chart::generate(check)
}

/// What a program of tests in Rust counted: "test result: ok. 12 passed; 0 failed; 0 ignored; …".
fn counted(text: &str) -> anyhow::Result<Count> {
    let mut count = Count::default();
    let results = text
        .lines()
        .filter_map(|line| line.strip_prefix("test result: "));
    for line in results {
        let number = |word: &str| {
            let before = line.split(word).next()?;
            before.split_whitespace().last()?.parse::<u64>().ok()
        };
        count.passed += number(" passed").context("a program of tests counts")?;
        count.failed += number(" failed").context("a program of tests counts")?;
    }
    count.failures = between(text, "failures:", "test result: ");
    Ok(count)
}

/// Examples in the documentation of crates, if there are any.
fn examples() -> anyhow::Result<()> {
    let fences = [
        "grep",
        "-q",
        "-E",
        "^ *//[/!] *```",
        "--",
        "crates/*/src/*.rs",
    ];
    if process::git(&fences).is_err() {
        return Ok(());
    }
    process::run(process::cargo().args(["test", "--workspace", "--doc", "--quiet"]))
}

/// The parts of a runner's output that begin with a line `first` and end before one that begins
/// with `last`, each cut to its end where it is long: that is where the names are.
fn between(text: &str, first: &str, last: &str) -> Vec<String> {
    const LINES: usize = 80;
    let mut parts = Vec::new();
    let mut lines = text.lines();
    while lines.any(|line| line == first) {
        let part: Vec<&str> = lines
            .by_ref()
            .take_while(|line| !line.starts_with(last))
            .collect();
        parts.push(part[part.len().saturating_sub(LINES)..].join("\n"));
    }
    parts
}

fn python() -> anyhow::Result<(Count, bool)> {
    let python = install::python()?;
    install::browser()?;
    let mut command = Command::new(python);
    command
        .current_dir(crate::root().join("crates/testkit/python"))
        .args(["-B", "-m", "pytest", "-p", "no:cacheprovider", "-q", "."])
        .env(
            "NODESTATS_BINARY",
            process::target_dir("debug")?.join("nodestats"),
        )
        .env("NODESTATS_HELM", cluster::helm()?);
    let (text, success) = process::tee(&mut command)?;
    let mut count = Count::default();
    // The last line: "2 failed, 5 passed in 10.00s".
    let last = text.lines().rev().find(|line| {
        line.contains(" passed") || line.contains(" failed") || line.contains(" error")
    });
    for part in last.unwrap_or_default().split(", ") {
        let mut words = part.split_whitespace();
        let number = words
            .next()
            .and_then(|word| word.parse::<u64>().ok())
            .unwrap_or_default();
        match words.next() {
            Some("passed") => count.passed += number,
            Some("failed" | "error" | "errors" | "skipped") => count.failed += number,
            _ => {}
        }
    }
    Ok((count, success))
}
