//! Benchmarks.

use std::path::Path;

use anyhow::Context as _;

use crate::process;

/// `cargo xtask bench push`.
pub(crate) fn push(json: bool) -> anyhow::Result<()> {
    let line = figures("nodestats-api", "push")?;
    if json {
        println!("{line}");
        return Ok(());
    }
    let figures: serde_json::Value = serde_json::from_str(&line)?;
    let micros = |name: &str| figures[name].as_f64().unwrap_or_default();
    println!("one push, medians of one run:");
    for (mode, traces) in [
        ("off", "no collector"),
        ("one_percent", "1 % of traces"),
        ("all", "all traces"),
    ] {
        let cpu = micros(&format!("{mode}_cpu_micros"));
        println!(
            "{traces:>14} {cpu:>8.0} µs of CPU  {:.3} ×  {:>8.0} µs",
            cpu / micros("off_cpu_micros"),
            micros(&format!("{mode}_clock_micros"))
        );
    }
    println!(
        "a span that nobody takes: {} ns",
        figures["span_off_nanos"].as_f64().unwrap_or_default()
    );
    Ok(())
}

/// `cargo xtask bench history`.
pub(crate) fn history(corpus: &Path, json: bool) -> anyhow::Result<()> {
    let corpus = corpus.canonicalize().context("the corpus")?;
    let corpus = corpus.to_str().context("the corpus' path is not UTF-8")?;
    let line = figures_with("nodestats-core", "history", &["--corpus", corpus])?;
    if json {
        println!("{line}");
        return Ok(());
    }
    let figures: serde_json::Value = serde_json::from_str(&line)?;
    let number = |name: &str| figures[name].as_f64().unwrap_or_default();
    println!(
        "{} samples, {} processes in {} rows of 14 values:",
        figures["samples"], figures["series"], figures["rows"]
    );
    println!(
        "{:.4} bytes a value ({:.2} of differences with zstd -19, {:.4})",
        number("bytes_per_value"),
        number("bytes_per_value") / number("floor_bytes_per_value"),
        number("floor_bytes_per_value"),
    );
    println!(
        "{:.1} µs a sample to write, {:.1} µs to read; one process: {:.0} µs",
        number("encode_micros_per_sample"),
        number("read_micros_per_sample"),
        number("read_one_micros"),
    );
    println!(
        "as a block, with names and command lines: {:.0} bytes a sample, {:.2} MB a day at 10 s; {:.0} µs \
         a sample to seal, {:.0} µs to read",
        number("block_bytes_per_sample"),
        number("block_bytes_per_sample") * 8640.0 / 1e6,
        number("seal_micros_per_sample"),
        number("unseal_micros_per_sample"),
    );
    Ok(())
}

/// `cargo xtask bench collect`.
pub(crate) fn collect(json: bool) -> anyhow::Result<()> {
    let line = figures("nodestats-collect", "collect")?;
    if json {
        println!("{line}");
        return Ok(());
    }
    let figures: serde_json::Value = serde_json::from_str(&line)?;
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

/// Runs a benchmark, and returns the line of JSON that it prints.
fn figures(package: &str, bench: &str) -> anyhow::Result<String> {
    figures_with(package, bench, &[])
}

/// The same with arguments for the benchmark.
fn figures_with(package: &str, bench: &str, more: &[&str]) -> anyhow::Result<String> {
    let arguments = [
        "bench",
        "--quiet",
        "--package",
        package,
        "--bench",
        bench,
        "--",
    ];
    let output = process::cargo()
        .args(arguments)
        .args(more)
        .stderr(std::process::Stdio::inherit())
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().find(|line| line.starts_with('{'));
    line.map(str::to_owned)
        .context("the benchmark printed no figures")
}
