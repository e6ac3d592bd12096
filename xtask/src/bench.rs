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

/// Whose history is made of a recording.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Load {
    /// Nodes whose history is a day that is made of the recording.
    #[arg(long, value_name = "N", default_value_t = 20)]
    nodes: usize,
    /// Nodes that push two hours of it.
    #[arg(long, value_name = "N", default_value_t = 0)]
    others: usize,
    /// Nodes that are given a day of it when all was asked: then it is asked again.
    #[arg(long, value_name = "N", default_value_t = 0)]
    copies: usize,
    /// Makes so many processes of each.
    #[arg(long, value_name = "N", default_value_t = 1)]
    times: usize,
    /// Keeps all in a `SurrealDB` server.
    #[arg(long)]
    shared: bool,
}

/// `cargo xtask bench history`.
pub(crate) fn history(corpus: &Path, load: Load, dist: bool, json: bool) -> anyhow::Result<()> {
    let corpus = corpus.canonicalize().context("the corpus")?;
    let corpus = corpus.to_str().context("the corpus' path is not UTF-8")?;
    let numbers = [
        ("--nodes", load.nodes),
        ("--others", load.others),
        ("--copies", load.copies),
        ("--times", load.times),
    ];
    let numbers = numbers.map(|(name, number)| (name, number.to_string()));
    let mut arguments = vec!["--corpus", corpus];
    arguments.extend(numbers.iter().flat_map(|(name, number)| [*name, &**number]));
    if load.shared {
        arguments.push("--shared");
        let profile = if dist { "dist" } else { "release" };
        let mut build = process::cargo();
        build.args(["build", "--quiet", "--profile", profile]);
        process::run(build.args(["--package", "surrealdb-server-for-tests"]))?;
    }
    let line = figures_with("nodestats-api", "history", dist, &arguments)?;
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
        "{:.4} bytes a value ({:.2} of differences with zstd -19, {:.4}); {:.1} µs a sample to write, {:.1} to \
         read; one process: {:.0} µs",
        number("codec_bytes_per_value"),
        number("codec_bytes_per_value") / number("floor_bytes_per_value"),
        number("floor_bytes_per_value"),
        number("encode_micros_per_sample"),
        number("read_micros_per_sample"),
        number("read_one_micros"),
    );
    println!(
        "as a block, with all that is known of a process: {:.4} bytes a value, {:.0} a sample ({:.0} as a frame); \
         {:.0} µs a sample to seal, {:.0} to read",
        number("bytes_per_value"),
        number("block_bytes_per_sample"),
        number("frame_bytes"),
        number("seal_micros_per_sample"),
        number("unseal_micros_per_sample"),
    );
    println!(
        "on the wire: {:.0} bytes a sample, {:.0} of what only says what differs; {:.0} µs to say it, {:.0} to \
         restore it",
        number("sent_bytes_per_sample"),
        number("delta_bytes"),
        number("delta_micros"),
        number("restore_micros"),
    );
    println!(
        "with a database on the disk, by HTTP, {} nodes of a day each and {} of two hours:",
        figures["nodes"], figures["others"]
    );
    for (what, name, unit) in [
        (
            "pushes of one frame, synced",
            "pushes_per_second",
            "a second",
        ),
        (
            "CPU of the server for each",
            "server_cpu_micros_per_push",
            "µs",
        ),
        (
            "CPU a sample, pushed in bodies of 120, sealed",
            "store_cpu_micros_per_push",
            "µs",
        ),
        ("sealed", "sealed_bytes_per_sample", "bytes a sample"),
        (
            "the database's files",
            "node_day_bytes",
            "bytes a node and day",
        ),
        ("a day of CPU at 60 s, p99", "cpu_day_p99_ms", "ms"),
        (
            "a day of a process at 10 s, p99",
            "process_day_p99_ms",
            "ms",
        ),
        (
            "the process table at a moment, p99",
            "table_at_p99_ms",
            "ms",
        ),
        (
            "the top of all nodes at a moment, the slowest",
            "cluster_top_at_p99_ms",
            "ms",
        ),
        ("resident", "api_rss_mib", "MiB"),
        ("resident at its peak", "api_rss_peak_mib", "MiB"),
    ] {
        print(&figures, (what, name, unit));
    }
    if load.copies == 0 {
        return Ok(());
    }
    println!("with {} more nodes of a day each:", load.copies);
    for (what, name, unit) in [
        ("the database's files", "filled_bytes", "bytes"),
        ("a start after a kill", "start_after_kill_ms", "ms"),
        (
            "pushes of one frame, synced",
            "filled_pushes_per_second",
            "a second",
        ),
        ("a day of CPU at 60 s, p99", "filled_cpu_day_p99_ms", "ms"),
        (
            "a day of a process at 10 s, p99",
            "filled_process_day_p99_ms",
            "ms",
        ),
        (
            "the process table at a moment, p99",
            "filled_table_at_p99_ms",
            "ms",
        ),
        (
            "the top of all nodes at a moment, the slowest",
            "filled_cluster_top_at_p99_ms",
            "ms",
        ),
        ("resident at its peak", "filled_api_rss_peak_mib", "MiB"),
    ] {
        print(&figures, (what, name, unit));
    }
    Ok(())
}

/// A line of a figure, where it was taken.
fn print(figures: &serde_json::Value, (what, name, unit): (&str, &str, &str)) {
    if let Some(figure) = figures[name].as_f64() {
        println!("{what:>46} {figure:>12.1} {unit}");
    }
}

/// `cargo xtask bench retention`.
pub(crate) fn retention(dist: bool, json: bool) -> anyhow::Result<()> {
    let line = figures_with("nodestats-api", "retention", dist, &[])?;
    if json {
        println!("{line}");
        return Ok(());
    }
    let figures: serde_json::Value = serde_json::from_str(&line)?;
    println!(
        "{} days of {} nodes in {} s: {} MB written, {} live; {} MB of files ({} at most in the second half), \
         {} MiB resident, {} at the peak",
        figures["days"],
        figures["nodes"],
        figures["seconds"],
        figures["written_mb"],
        figures["live_mb"],
        figures["disk_mb"],
        figures["disk_most_mb"],
        figures["rss_mib"],
        figures["rss_peak_mib"],
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
    figures_with(package, bench, false, &[])
}

/// The same with arguments for the benchmark, and built as it is published.
fn figures_with(package: &str, bench: &str, dist: bool, more: &[&str]) -> anyhow::Result<String> {
    let profile: &[&str] = if dist { &["--profile", "dist"] } else { &[] };
    let output = process::cargo()
        .args(["bench", "--quiet", "--package", package, "--bench", bench])
        .args(profile)
        .arg("--")
        .args(more)
        .stderr(std::process::Stdio::inherit())
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().find(|line| line.starts_with('{'));
    line.map(str::to_owned)
        .context("the benchmark printed no figures")
}
