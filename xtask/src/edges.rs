//! Which crate may use which: the rooms of ARCHITECTURE.md, checked.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};

use crate::process;

/// Each crate, and which of ours it may use outside its tests. A crate that is not here is a
/// mistake too.
const ALLOWED: [(&str, &[&str]); 16] = [
    ("nodestats-wire", &[]),
    ("nodestats-core", &["nodestats-wire"]),
    ("nodestats-collect", &["nodestats-core"]),
    ("nodestats-store", &["nodestats-core", "nodestats-wire"]),
    ("nodestats-runtime", &[]),
    ("nodestats-cluster", &[]),
    ("nodestats-k8s", &["nodestats-wire"]),
    (
        "nodestats-controller",
        &["nodestats-k8s", "nodestats-runtime", "nodestats-wire"],
    ),
    (
        "nodestats-api",
        &[
            "nodestats-core",
            "nodestats-runtime",
            "nodestats-store",
            "nodestats-wire",
        ],
    ),
    (
        "nodestats-agent",
        &[
            "nodestats-collect",
            "nodestats-core",
            "nodestats-k8s",
            "nodestats-runtime",
            "nodestats-wire",
        ],
    ),
    (
        "nodestats-kubectl",
        &["nodestats-runtime", "nodestats-wire"],
    ),
    (
        "nodestats",
        &[
            "nodestats-agent",
            "nodestats-api",
            "nodestats-controller",
            "nodestats-runtime",
            "nodestats-store",
            "nodestats-wire",
        ],
    ),
    (
        "nodestats-testkit",
        &["nodestats-cluster", "nodestats-core", "nodestats-wire"],
    ),
    ("xtask", &["nodestats-cluster"]),
    ("nodestats-fuzz", &["nodestats-api", "nodestats-core"]),
    ("surrealdb-server-for-tests", &[]),
];

/// Crates from elsewhere that only these rooms may name.
const EXCLUSIVE: [(&str, &[&str]); 7] = [
    ("surrealdb", &["nodestats-store"]),
    ("surrealdb-core", &["nodestats-store"]),
    ("surrealdb-datastore", &["nodestats-store"]),
    ("axum", &["nodestats-api"]),
    ("sysinfo", &["nodestats-collect"]),
    ("procfs", &[]),
    ("reqwest", &["nodestats-runtime", "nodestats-wire"]),
];

/// Checks all edges.
pub(crate) fn run() -> anyhow::Result<()> {
    let edges = edges()?;
    let mut wrong = Vec::new();
    let rooms: BTreeMap<&str, &[&str]> = ALLOWED.into_iter().collect();
    for (crate_name, used) in &edges {
        let Some(allowed) = rooms.get(crate_name.as_str()) else {
            wrong.push(format!(
                "{crate_name} is in no row of the table in xtask/src/edges.rs"
            ));
            continue;
        };
        for name in used {
            if rooms.contains_key(name.as_str()) && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{crate_name} must not use {name}"));
            }
            let exclusive = EXCLUSIVE.iter().find(|(foreign, _)| foreign == name);
            if exclusive.is_some_and(|(_, rooms)| !rooms.contains(&crate_name.as_str())) {
                wrong.push(format!("{crate_name} must not name {name}"));
            }
        }
    }
    wrong.extend(proofs()?);
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("edges: {} crates, as drawn", edges.len());
    Ok(())
}

/// What says that a caller was looked at, and the one room that may say so: the store takes samples for
/// nobody else.
const PROOF: (&str, &str) = ("NodeIdentity::proved(", "crates/api/src/access.rs");

/// Where else the proof is made.
fn proofs() -> anyhow::Result<Vec<String>> {
    let output = process::git(&["grep", "-l", "--untracked", "-F", PROOF.0, "--", "*.rs"])?;
    let files: Vec<&str> = output.lines().collect();
    ensure!(files.contains(&PROOF.1), "{} makes no {}", PROOF.1, PROOF.0);
    let others = files.into_iter().filter(|file| {
        let is_test = ["/tests", "/benches/"]
            .iter()
            .any(|part| file.contains(part))
            || file.starts_with("xtask/");
        *file != PROOF.1 && !is_test
    });
    let told = |file: &str| format!("{file} must not make a {}…)", PROOF.0);
    Ok(others.map(told).collect())
}

/// What each crate of the workspace uses outside its tests.
fn edges() -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
    let output = process::cargo()
        .args(["metadata", "--format-version=1", "--no-deps"])
        .output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists packages")?;
    let mut edges = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default().to_owned();
        let dependencies = package["dependencies"].as_array().context("a list")?;
        let used = dependencies
            .iter()
            .filter(|dependency| dependency["kind"].is_null());
        let names = used.filter_map(|dependency| dependency["name"].as_str().map(str::to_owned));
        edges.insert(name, names.collect());
    }
    Ok(edges)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_crates_use_each_other_as_drawn() {
        super::run().expect("as drawn");
    }
}
