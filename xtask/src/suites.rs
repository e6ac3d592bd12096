//! The programs that `cargo test` would run one after another, run by ourselves: so that some can go on
//! while others wait, and what is built for them is built meanwhile.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::process;

/// What runs on Kubernetes or asks Jaeger, by the names of the suites.
const ON_CLUSTERS: [&str; 7] = [
    "control_plane",
    "cluster",
    "helm",
    "identity",
    "kubernetes",
    "pod_life",
    "traces",
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
    /// Whether it runs on Kubernetes.
    pub(crate) fn is_on_clusters(&self) -> bool {
        ON_CLUSTERS.contains(&&*self.target)
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
    let missing = ON_CLUSTERS
        .iter()
        .find(|name| !suites.iter().any(|suite| suite.target == **name));
    ensure!(missing.is_none(), "there is no suite {missing:?}");
    Ok(suites)
}

/// One prints at a time: suites that run beside each other are shown one after the other.
static PRINTING: Mutex<()> = Mutex::new(());

/// Runs some, one after another, and gives what each printed and whether it succeeded.
pub(crate) fn run(suites: &[Suite]) -> Vec<(String, anyhow::Result<(String, bool)>)> {
    let run = |suite: &Suite| {
        let begin = Instant::now();
        println!("-- {} begins", suite.name);
        let ran = output(suite);
        let _turn = PRINTING.lock();
        println!("-- {} took {} s", suite.name, begin.elapsed().as_secs());
        if let Ok((text, _)) = &ran {
            // Whoever reads it is not there any more: it is counted all the same.
            let _ = std::io::stdout().write_all(text.as_bytes());
        }
        (suite.name.clone(), ran)
    };
    suites.iter().map(run).collect()
}

fn output(suite: &Suite) -> anyhow::Result<(String, bool)> {
    let (mut reader, writer) = std::io::pipe()?;
    let mut command = Command::new(&suite.program);
    command
        .current_dir(&suite.folder)
        .env("CARGO_MANIFEST_DIR", &suite.folder)
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
