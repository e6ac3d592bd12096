//! Running other programs.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

/// What `cargo run` tells a program about its package.
const OWN_PACKAGE: [&str; 2] = ["CARGO_PKG_", "CARGO_MANIFEST_"];

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::root());
    // ring's build script asks for these, and so ring and all above it, SurrealDB too, would be
    // built again after each cargo that was started by hand.
    for (variable, _) in std::env::vars() {
        if OWN_PACKAGE.iter().any(|own| variable.starts_with(own)) {
            command.env_remove(variable);
        }
    }
    command
}

/// Runs a command to its end; an error where it fails.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

/// What git says in this repository.
pub(crate) fn git(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("git")
        .current_dir(crate::root())
        .args(arguments)
        .output()
        .context("cannot run git")?;
    ensure!(
        output.status.success(),
        "git {arguments:?} failed: {}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a command, shows its standard output as it comes, and returns it and whether it succeeded.
pub(crate) fn tee(command: &mut Command) -> anyhow::Result<(String, bool)> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let mut text = String::new();
    for line in BufReader::new(child.stdout.take().context("piped")?).lines() {
        let line = line?;
        writeln!(std::io::stdout(), "{line}")?;
        text.push_str(&line);
        text.push('\n');
    }
    Ok((text, child.wait()?.success()))
}

/// Where cargo puts programs of `profile`.
pub(crate) fn target_dir(profile: &str) -> anyhow::Result<PathBuf> {
    let output = cargo()
        .args(["metadata", "--format-version=1", "--no-deps"])
        .output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let folder = metadata["target_directory"]
        .as_str()
        .context("cargo metadata names the folder")?;
    Ok(PathBuf::from(folder).join(profile))
}
