//! Static programs, and the images that hold them.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use nodestats_cluster::{Image, build_image};

use crate::{install, process};

/// The images: name of the program, of the Dockerfile's stage, and of the image.
const IMAGES: [&str; 2] = ["nodestats", "nodestats-agent"];

/// `cargo xtask image`: builds both, and prints where their archives are, and of each image the
/// digest, which is the same wherever the same commit is built.
pub(crate) fn run(dist: bool) -> anyhow::Result<()> {
    for (archive, digest) in build(dist)? {
        println!("{} {digest}", archive.display());
    }
    Ok(())
}

/// Both images as docker-archives, with their digests.
pub(crate) fn build(dist: bool) -> anyhow::Result<Vec<(PathBuf, String)>> {
    install::cluster()?;
    // The agent is on each node: it is made small (Cargo.toml).
    let profiles = if dist {
        ["dist", "dist-agent"]
    } else {
        ["release", "release"]
    };
    // Together: what both use is built once. Each alone would have other features of what they share.
    let together = if dist {
        None
    } else {
        Some(static_programs("release", &IMAGES)?)
    };
    let folder = process::target_dir("xtask-images")?;
    let context = folder.join("context");
    fs::create_dir_all(&context)?;
    let revision = revision();
    let mut archives = Vec::new();
    for (name, profile) in IMAGES.into_iter().zip(profiles) {
        let programs = match &together {
            Some(programs) => programs.clone(),
            None => static_programs(profile, &[name])?,
        };
        fs::copy(programs.join(name), context.join(name))?;
        let archive = folder.join(format!("{name}.tar"));
        let image = Image {
            reference: &format!("localhost/{name}:latest"),
            dockerfile: &crate::root().join("Dockerfile"),
            target: Some(name),
            context: &context,
            contexts: &[("programs", &context)],
            arguments: &[
                ("VERSION", env!("CARGO_PKG_VERSION")),
                ("REVISION", &revision),
            ],
        };
        let digest = build_image(&image, &archive)?;
        archives.push((archive, digest));
    }
    Ok(archives)
}

/// Builds programs that need no file of the system they run on, and returns their folder.
pub(crate) fn static_programs(profile: &str, packages: &[&str]) -> anyhow::Result<PathBuf> {
    let triple = triple()?;
    let mut command = process::cargo();
    command.args([
        "build",
        "--quiet",
        "--profile",
        profile,
        "--target",
        &triple,
    ]);
    for package in packages {
        command.args(["--package", package]);
    }
    // No path of this machine: the same sources make the same program wherever they are.
    let mut flags = String::from("-C target-feature=+crt-static");
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo = cargo.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    for (folder, name) in [(Some(crate::root()), "/nodestats"), (cargo, "/cargo")] {
        if let Some(folder) = folder {
            let _ = write!(flags, " --remap-path-prefix={}={name}", folder.display());
        }
    }
    process::run(command.env("RUSTFLAGS", flags))?;
    process::target_dir(&format!("{triple}/{profile}"))
}

/// The commit that is built, where this is a repository.
fn revision() -> String {
    let mut git = std::process::Command::new("git");
    let output = git
        .current_dir(crate::root())
        .args(["rev-parse", "HEAD"])
        .output();
    let output = output.ok().filter(|output| output.status.success());
    let text = output.and_then(|output| String::from_utf8(output.stdout).ok());
    text.map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// The system's own triple.
fn triple() -> anyhow::Result<String> {
    let output = std::process::Command::new("rustc").arg("-vV").output()?;
    let text = String::from_utf8(output.stdout)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc names its host")
}
