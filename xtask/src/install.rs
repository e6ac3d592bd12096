//! What the tests need beyond Rust and Go: Python with its libraries, a browser, Prometheus, and what
//! the nodes of a cluster run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use nodestats_cluster as cluster;

use crate::process;

/// Debian's packages of the browser and of what drives it.
const BROWSER: [&str; 2] = ["chromium", "chromium-driver"];

/// Debian's packages of what keeps metrics, and of what nodes are compared with.
const PROMETHEUS: [&str; 2] = ["prometheus", "prometheus-node-exporter"];

/// What a node of a cluster runs.
const CLUSTER: [&str; 9] = [
    "iproute2",
    "procps",
    "containerd",
    "runc",
    "containernetworking-plugins",
    "nftables",
    "iptables",
    "conntrack",
    "buildah",
];

/// A virtual environment with exactly what `requirements.txt` pins; made anew when that changes.
pub(crate) fn python() -> anyhow::Result<PathBuf> {
    let requirements = crate::root().join("crates/testkit/python/requirements.txt");
    let wanted = fs::read_to_string(&requirements)?;
    let folder = process::target_dir("xtask-python")?;
    let (python, stamp) = (folder.join("bin/python"), folder.join("requirements.txt"));
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) && runs(&python) {
        return Ok(python);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let venv = || process::run(Command::new("python3").args(["-m", "venv"]).arg(&folder));
    if venv().is_err() {
        apt(&["python3", "python3-venv"])?;
        venv()?;
    }
    process::run(
        Command::new(&python)
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "-r",
            ])
            .arg(&requirements),
    )?;
    fs::write(stamp, wanted)?;
    Ok(python)
}

/// Chromium and its driver; installed where they are missing.
pub(crate) fn browser() -> anyhow::Result<()> {
    let chromium = std::env::var_os("CHROMIUM").map_or("/usr/bin/chromium".into(), PathBuf::from);
    let driver =
        std::env::var_os("CHROMEDRIVER").map_or("/usr/bin/chromedriver".into(), PathBuf::from);
    if runs(&chromium) && runs(&driver) {
        return Ok(());
    }
    apt(&BROWSER).context("CHROMIUM and CHROMEDRIVER name them where they are elsewhere")
}

/// What compiles libFuzzer; installed where it is missing.
pub(crate) fn cpp() -> anyhow::Result<()> {
    if runs(Path::new("c++")) {
        return Ok(());
    }
    apt(&["g++"])
}

/// What the nodes of a cluster run; installed where it is missing.
pub(crate) fn cluster() -> anyhow::Result<()> {
    if cluster::missing_programs().is_empty() {
        return Ok(());
    }
    apt(&CLUSTER)
}

/// Prometheus with its tools, and `node_exporter`; installed where they are missing.
pub(crate) fn prometheus() -> anyhow::Result<()> {
    let programs = ["prometheus", "promtool", "prometheus-node-exporter"];
    if programs.iter().all(|program| runs(Path::new(program))) {
        return Ok(());
    }
    apt(&PROMETHEUS)
}

fn runs(program: &Path) -> bool {
    let mut command = Command::new(program);
    command
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn apt(packages: &[&str]) -> anyhow::Result<()> {
    if !runs(Path::new("apt-get")) {
        bail!(
            "the tests need {}: install them, then try again",
            packages.join(" and ")
        );
    }
    eprintln!("installing {}", packages.join(" "));
    let quiet = |command: &mut Command| {
        process::run(
            command
                .env("DEBIAN_FRONTEND", "noninteractive")
                // Programs are wanted, and no services of them.
                .env("RUNLEVEL", "1")
                .stdout(Stdio::null()),
        )
    };
    quiet(Command::new("apt-get").args(["update", "-qq"]))?;
    quiet(
        Command::new("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(packages),
    )
}
