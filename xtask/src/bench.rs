//! Benchmarks.

use anyhow::Context as _;

use crate::process;

/// `cargo xtask bench collect`.
pub(crate) fn collect(json: bool) -> anyhow::Result<()> {
    let arguments = [
        "bench",
        "--quiet",
        "--package",
        "nodestats-collect",
        "--bench",
        "collect",
    ];
    let output = process::cargo()
        .args(arguments)
        .stderr(std::process::Stdio::inherit())
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let line = text
        .lines()
        .find(|line| line.starts_with('{'))
        .context("the benchmark printed no figures")?;
    if json {
        println!("{line}");
        return Ok(());
    }
    let figures: serde_json::Value = serde_json::from_str(line)?;
    let micros = |name: &str| figures[name].as_f64().unwrap_or_default();
    println!(
        "one pass over {} processes, medians of one run:",
        figures["processes"]
    );
    for (name, reader) in [
        ("pass_micros", "nodestats"),
        ("sysinfo_micros", "sysinfo"),
        ("procfs_micros", "procfs"),
    ] {
        println!(
            "{reader:>10} {:>8.0} µs  {:.1} ×",
            micros(name),
            micros(name) / micros("pass_micros")
        );
    }
    Ok(())
}
