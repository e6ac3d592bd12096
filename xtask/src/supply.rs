//! What the programs are made of: which licences, crates and registries are taken, and a list of all
//! that is in each program (`CycloneDX` 1.6) to publish beside its image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::process;

/// Licences that may be used without asking; of alternatives one is enough.
const LICENCES: [&str; 15] = [
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MPL-2.0",
    "MPL-2.0+",
    "NCSA",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];
/// Crates whose licence is another one or stands in a file: how their names begin, the licence, and why
/// it does.
const EXCEPTIONS: [(&str, &str, &str); 2] = [
    (
        "surrealdb",
        "BUSL-1.1",
        "for anything but offering a database to third parties as a service; Apache-2.0 later",
    ),
    ("tokio-tungstenite-wasm", "MIT", "its file LICENSE"),
];
/// Crates that may not come in, and why.
const BANNED: [(&str, &str); 4] = [
    ("openssl-sys", "one TLS library: rustls"),
    ("native-tls", "one TLS library: rustls"),
    ("libsystemd-sys", "the programs are static"),
    ("chrono-tz", "jiff does it"),
];
/// Where all crates come from, as cargo calls it.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";
/// Crates that are there in more than one version: it may become fewer.
const SEVERAL_VERSIONS_AT_MOST: usize = 44;
/// The programs that are published.
const PROGRAMS: [&str; 3] = ["nodestats", "nodestats-agent", "nodestats-kubectl"];

/// `cargo xtask supply`: licences, sources, crates that may not be there, and how many there are in
/// several versions.
pub(crate) fn check() -> anyhow::Result<()> {
    let metadata = metadata()?;
    let mut wrong = Vec::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages(&metadata) {
        let Package {
            name,
            version,
            licence,
            ..
        } = package;
        versions.entry(name).or_default().insert(version);
        if let Some((_, why)) = BANNED.iter().find(|(banned, _)| *banned == name) {
            wrong.push(format!("{name} {version} may not be used: {why}"));
        }
        if !package.is_ours && exception(name, licence).is_none() && !is_allowed(licence) {
            wrong.push(format!("{name} {version} has the licence {licence:?}"));
        }
        if !package.is_ours && !package.is_published {
            wrong.push(format!("{name} {version} comes from no registry"));
        }
    }
    let several = versions.values().filter(|versions| versions.len() > 1);
    let several = several.count();
    if several > SEVERAL_VERSIONS_AT_MOST {
        wrong.push(format!(
            "{several} crates are there in more than one version: cargo tree --duplicates"
        ));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!(
        "supply: {} crates, {several} in several versions, all licences and sources as taken",
        versions.len()
    );
    Ok(())
}

/// Writes the list of what each program is made of, and returns where.
pub(crate) fn bills() -> anyhow::Result<Vec<PathBuf>> {
    let metadata = metadata()?;
    let folder = process::target_dir("xtask-images")?;
    fs::create_dir_all(&folder)?;
    let mut written = Vec::new();
    for program in PROGRAMS {
        let path = folder.join(format!("{program}.cdx.json"));
        fs::write(
            &path,
            serde_json::to_string_pretty(&bill(&metadata, program)?)?,
        )?;
        written.push(path);
    }
    Ok(written)
}

/// What is asked of a package; its texts are those of cargo's metadata.
struct Package<'a> {
    id: &'a str,
    name: &'a str,
    version: &'a str,
    /// An SPDX expression; empty where a file says it.
    licence: &'a str,
    is_ours: bool,
    is_published: bool,
}

fn metadata() -> anyhow::Result<Value> {
    let mut command = process::cargo();
    command.args(["metadata", "--format-version", "1", "--locked"]);
    // What the images hold.
    command.args(["--filter-platform", "x86_64-unknown-linux-gnu"]);
    let output = command.output().context("cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata failed");
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn packages(metadata: &Value) -> impl Iterator<Item = Package<'_>> {
    let all = metadata["packages"].as_array().into_iter().flatten();
    let members = &metadata["workspace_members"];
    let is_member = |id: &Value| {
        members
            .as_array()
            .is_some_and(|members| members.contains(id))
    };
    all.map(move |package| Package {
        id: text(&package["id"]),
        name: text(&package["name"]),
        version: text(&package["version"]),
        licence: text(&package["license"]),
        is_ours: is_member(&package["id"]),
        is_published: text(&package["source"]) == REGISTRY,
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The licence of a crate that does not say it as others do, or has one of its own.
fn exception(name: &str, declared: &str) -> Option<&'static str> {
    let found = EXCEPTIONS.iter().find(|(begin, licence, _)| {
        name.starts_with(begin) && (declared.is_empty() || declared == *licence)
    });
    found.map(|(_, licence, _)| *licence)
}

/// Whether an SPDX expression can be met with what is taken. (cargo took `/` for OR once.)
fn is_allowed(licence: &str) -> bool {
    let expression = licence.replace('/', " OR ");
    let Ok(expression) = spdx::Expression::parse_mode(&expression, spdx::ParseMode::LAX) else {
        return false;
    };
    expression.evaluate(|wanted| LICENCES.contains(&&*wanted.to_string()))
}

/// What a program is made of: all that is built into it or runs while it is built, save for tests.
fn bill(metadata: &Value, program: &str) -> anyhow::Result<Value> {
    let by_id: BTreeMap<&str, Package<'_>> = packages(metadata)
        .map(|package| (package.id, package))
        .collect();
    let nodes = metadata["resolve"]["nodes"].as_array();
    let nodes: BTreeMap<&str, &Value> = nodes
        .context("cargo resolves")?
        .iter()
        .map(|node| (text(&node["id"]), node))
        .collect();
    let root = by_id.values().find(|package| package.name == program);
    let root = root.with_context(|| format!("there is no package {program}"))?;
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut waiting = vec![root.id];
    while let Some(id) = waiting.pop() {
        if edges.contains_key(id) {
            continue;
        }
        let node = nodes
            .get(id)
            .with_context(|| format!("{id} is not resolved"))?;
        let used = node["deps"].as_array().into_iter().flatten();
        let used = used.filter(|used| {
            let mut kinds = used["dep_kinds"].as_array().into_iter().flatten();
            kinds.any(|kind| kind["kind"] != "dev")
        });
        let used: BTreeSet<&str> = used.map(|used| text(&used["pkg"])).collect();
        waiting.extend(&used);
        edges.insert(id, used);
    }
    let reference = |id: &str| {
        let package = &by_id[id];
        format!("pkg:cargo/{}@{}", package.name, package.version)
    };
    let component = |id: &str, kind: &str| {
        let package = &by_id[id];
        let mut component = json!({
            "type": kind, "bom-ref": reference(id), "purl": reference(id),
            "name": package.name, "version": package.version,
        });
        let licence = exception(package.name, package.licence).unwrap_or(package.licence);
        component["licenses"] = json!([{ "expression": licence.replace('/', " OR ") }]);
        component
    };
    let others = edges.keys().filter(|id| **id != root.id);
    let components: Vec<Value> = others.map(|id| component(id, "library")).collect();
    let dependencies = edges.iter().map(|(id, used)| {
        let used: Vec<String> = used.iter().map(|id| reference(id)).collect();
        json!({"ref": reference(id), "dependsOn": used})
    });
    Ok(json!({
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "metadata": {"component": component(root.id, "application")},
        "components": components,
        "dependencies": dependencies.collect::<Vec<_>>(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_several_licences_is_enough_and_all_of_several_are_needed() {
        for allowed in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR GPL-3.0) AND ISC",
        ] {
            assert!(is_allowed(allowed), "{allowed}");
        }
        for refused in [
            "",
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "BUSL-1.1",
            "none of these",
        ] {
            assert!(!is_allowed(refused), "{refused}");
        }
    }

    #[test]
    fn a_bill_names_all_that_is_in_a_program_and_nothing_of_its_tests() {
        let metadata = metadata().expect("metadata");
        let names = |program: &str| {
            let bill = bill(&metadata, program).expect("a bill");
            let components = bill["components"].as_array().expect("a list").clone();
            let names = components.iter().map(|one| text(&one["name"]).to_owned());
            names.collect::<BTreeSet<_>>()
        };
        let (server, agent) = (names("nodestats"), names("nodestats-agent"));
        assert!(server.contains("surrealdb-core") && server.contains("nodestats-agent"));
        assert!(agent.contains("kube-client") && !agent.contains("surrealdb-core"));
        for tests in ["proptest", "nodestats-testkit", "tempfile"] {
            assert!(!agent.contains(tests), "{tests}");
        }
    }
}
