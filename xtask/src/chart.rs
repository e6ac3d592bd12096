//! What is generated from the chart, and the checks of the chart that need no cluster.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use nodestats_cluster as cluster;

/// The oldest version of Kubernetes that the chart is rendered for.
const KUBERNETES: &str = "1.34.0";
/// The definition of the resource, and its copy: a chart holds all that it installs.
const DEFINITION: &str = "crds/monitorednodes.nodestats.dev.yaml";
const COPY: &str = "charts/nodestats/files/monitorednodes.nodestats.dev.yaml";
/// The chart with its default values, for `kubectl apply -f`.
const MANIFESTS: &str = "manifests/nodestats.yaml";
const README: &str = "charts/nodestats/README.md";
/// Between these lines of the README stands the table of values.
const TABLE: (&str, &str) = ("<!-- values -->", "<!-- end of values -->");

fn folder() -> PathBuf {
    crate::root().join("charts/nodestats")
}

/// Writes what is generated from the chart, or only compares it.
pub(crate) fn generate(check: bool) -> anyhow::Result<()> {
    let read = |path: &str| {
        let path = crate::root().join(path);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    // First: the manifests hold it.
    update(COPY, &read(DEFINITION)?, check)?;
    update(MANIFESTS, &manifests()?, check)?;
    let readme = with_table(&read(README)?, &read("charts/nodestats/values.yaml")?)?;
    update(README, &readme, check)
}

fn update(path: &str, wanted: &str, check: bool) -> anyhow::Result<()> {
    let full = crate::root().join(path);
    if fs::read_to_string(&full).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    ensure!(!check, "{path} differs: cargo xtask generate");
    if let Some(parent) = full.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&full, wanted).with_context(|| format!("cannot write {path}"))
}

fn helm(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(cluster::helm()?)
        .args(arguments)
        .arg(folder())
        .output()
        .context("helm does not start")?;
    if !output.status.success() {
        bail!("helm {}: {}", arguments.join(" "), said(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

fn manifests() -> anyhow::Result<String> {
    let mut text = String::from(
        "# The chart nodestats with its default values, for `kubectl apply -f`. Made from \
         charts/nodestats\n# by `cargo xtask generate`; change that.\n\
         apiVersion: v1\nkind: Namespace\nmetadata:\n  name: nodestats\n",
    );
    let rendered = helm(&[
        "template",
        "nodestats",
        "--namespace=nodestats",
        "--skip-tests",
        &format!("--kube-version={KUBERNETES}"),
    ])?;
    text.push_str(&rendered);
    Ok(text)
}

/// `cargo xtask chart`: what helm itself says of it.
pub(crate) fn lint() -> anyhow::Result<()> {
    helm(&["lint", "--strict", "--quiet"]).map(drop)
}

/// The table of values: each with the comment above it and its default.
fn with_table(readme: &str, values: &str) -> anyhow::Result<String> {
    let (before, rest) = readme
        .split_once(TABLE.0)
        .with_context(|| format!("{README} has no line {}", TABLE.0))?;
    let (_, after) = rest
        .split_once(TABLE.1)
        .with_context(|| format!("{README} has no line {}", TABLE.1))?;
    let mut table = String::from("| value | default | |\n|---|---|---|\n");
    for Value {
        path,
        default,
        text,
    } in described(values)
    {
        let _ = writeln!(table, "| `{path}` | {default} | {text} |");
    }
    Ok(format!("{before}{}\n{table}{}{after}", TABLE.0, TABLE.1))
}

struct Value {
    path: String,
    default: String,
    text: String,
}

/// Reads `values.yaml` line by line, for its comments: `# -- text`, continued by further comments,
/// belongs to the key below it.
fn described(values: &str) -> Vec<Value> {
    let mut found: Vec<Value> = Vec::new();
    let mut parents: Vec<(usize, String)> = Vec::new();
    let mut comment: Option<String> = None;
    for line in values.lines() {
        let text = line.trim_start();
        let depth = line.len() - text.len();
        if let Some(begun) = text.strip_prefix("# -- ") {
            comment = Some(begun.to_owned());
        } else if let (Some(more), Some(comment)) = (text.strip_prefix("# "), &mut comment) {
            comment.push(' ');
            comment.push_str(more);
        } else if let Some((key, default)) = text.split_once(':')
            && !text.starts_with(['#', '-'])
        {
            parents.retain(|(parent, _)| *parent < depth);
            parents.push((depth, key.to_owned()));
            if let Some(text) = comment.take() {
                let names: Vec<&str> = parents.iter().map(|(_, name)| name.as_str()).collect();
                let default = match default.trim() {
                    "" => "see values.yaml".to_owned(),
                    default => format!("`{default}`"),
                };
                found.push(Value {
                    path: names.join("."),
                    default,
                    text: text.replace('|', "\\|"),
                });
            }
        } else if text.is_empty() {
            comment = None;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_belong_to_the_key_below_them() {
        let values = "# Not this.\n\na:\n  # -- First,\n  # and more.\n  b: 1\n  c:\n    # -- Deep.\n    d: {}\n# -- Last.\ne:\n  - x: 1\n";
        let rows: Vec<(String, String, String)> = described(values)
            .into_iter()
            .map(|value| (value.path, value.default, value.text))
            .collect();
        let row = |path: &str, default: &str, text: &str| {
            (path.to_owned(), default.to_owned(), text.to_owned())
        };
        assert_eq!(
            rows,
            [
                row("a.b", "`1`", "First, and more."),
                row("a.c.d", "`{}`", "Deep."),
                row("e", "see values.yaml", "Last."),
            ]
        );
    }

    #[test]
    fn every_value_is_described_once() {
        let text = fs::read_to_string(folder().join("values.yaml")).expect("readable");
        let values: serde_json::Value = serde_saphyr::from_str(&text).expect("YAML");
        let described: Vec<String> = described(&text)
            .into_iter()
            .map(|value| value.path)
            .collect();
        let mut missing = Vec::new();
        walk("", &values, &described, &mut missing);
        assert!(missing.is_empty(), "{missing:?}");
        let mut once = described.clone();
        once.dedup();
        assert_eq!(once, described);
    }

    fn walk(
        path: &str,
        value: &serde_json::Value,
        described: &[String],
        missing: &mut Vec<String>,
    ) {
        if described.iter().any(|found| found == path) {
            return;
        }
        match value.as_object().filter(|object| !object.is_empty()) {
            Some(object) => {
                for (key, value) in object {
                    let below = format!("{path}.{key}");
                    walk(below.trim_start_matches('.'), value, described, missing);
                }
            }
            None => missing.push(path.to_owned()),
        }
    }
}
