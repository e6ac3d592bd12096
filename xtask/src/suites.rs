//! The programs that `cargo test` would run one after another, run by ourselves: so that some can go on
//! while others wait, and what is built for them is built meanwhile.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::process;

/// When a suite runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// One after another.
    InTurn,
    /// On Kubernetes, or asking Jaeger: beside the others, once what they need is built.
    OnClusters,
    /// After all others: its figures are those of a machine that has time for what is measured.
    Alone,
}

/// By the names of the suites; all others run in turn.
const PLACES: [(&str, When); 7] = [
    ("control_plane", When::OnClusters),
    ("cluster", When::OnClusters),
    ("helm", When::OnClusters),
    ("identity", When::OnClusters),
    ("kubernetes", When::OnClusters),
    ("pod_life", When::Alone),
    ("traces", When::OnClusters),
];

/// A program of tests.
#[derive(Debug)]
pub(crate) struct Suite {
    /// Its target, such as `helm`, with its package.
    name: String,
    target: String,
    program: PathBuf,
    /// Where its package is.
    folder: PathBuf,
}

impl Suite {
    /// When it runs.
    pub(crate) fn when(&self) -> When {
        let place = PLACES.iter().find(|(name, _)| *name == self.target);
        place.map_or(When::InTurn, |(_, when)| *when)
    }
}

/// Builds all programs of tests.
pub(crate) fn build() -> anyhow::Result<Vec<Suite>> {
    let mut command = process::cargo();
    command.args(["test", "--workspace", "--no-run"]);
    command.arg("--message-format=json-render-diagnostics");
    let output = command.stderr(std::process::Stdio::inherit()).output();
    let output = output.context("cannot run cargo")?;
    ensure!(output.status.success(), "the tests cannot be built");
    let mut suites = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let told: serde_json::Value = serde_json::from_str(line)?;
        let is_test = told["profile"]["test"].as_bool() == Some(true);
        let (Some(program), true) = (told["executable"].as_str(), is_test) else {
            continue;
        };
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let target = text(&told["target"]["name"]).context("cargo names the target")?;
        let manifest = text(&told["manifest_path"]).context("cargo names the package")?;
        let folder = PathBuf::from(manifest);
        let folder = folder.parent().context("a manifest is in a folder")?;
        let package = folder.file_name().unwrap_or_default();
        suites.push(Suite {
            name: format!("{}/{target}", package.to_string_lossy()),
            target,
            program: program.into(),
            folder: folder.to_owned(),
        });
    }
    suites.sort_by(|a, b| a.name.cmp(&b.name));
    let missing = PLACES
        .iter()
        .find(|(name, _)| !suites.iter().any(|suite| suite.target == *name));
    ensure!(missing.is_none(), "there is no suite {missing:?}");
    Ok(suites)
}

/// One prints at a time: suites that run beside each other are shown one after the other.
static PRINTING: Mutex<()> = Mutex::new(());

/// How a program of tests went.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Of its suite.
    pub(crate) name: String,
    /// In seconds.
    pub(crate) took: u64,
    /// What it printed, and whether it succeeded.
    pub(crate) result: anyhow::Result<(String, bool)>,
}

/// Runs some, one after another.
pub(crate) fn run(suites: &[Suite]) -> Vec<Ran> {
    let run = |suite: &Suite| {
        let begin = Instant::now();
        println!("-- {} begins", suite.name);
        let result = output(suite);
        let took = begin.elapsed().as_secs();
        let _turn = PRINTING.lock();
        println!("-- {} took {took} s", suite.name);
        if let Ok((text, _)) = &result {
            // Whoever reads it is not there any more: it is counted all the same.
            let _ = std::io::stdout().write_all(text.as_bytes());
        }
        Ran {
            name: suite.name.clone(),
            took,
            result,
        }
    };
    suites.iter().map(run).collect()
}

fn output(suite: &Suite) -> anyhow::Result<(String, bool)> {
    let (mut reader, writer) = std::io::pipe()?;
    let mut command = Command::new(&suite.program);
    command
        .current_dir(&suite.folder)
        .env("CARGO_MANIFEST_DIR", &suite.folder)
        // What failed says so in a line; a trace of the runtime's frames would hide it.
        .env("RUST_BACKTRACE", "0")
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command.spawn().context("cannot run it")?;
    // Our own ends of the pipe.
    drop(command);
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    let success = child.wait()?.success();
    Ok((String::from_utf8_lossy(&bytes).into_owned(), success))
}
