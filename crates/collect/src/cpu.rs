//! CPU times of `/proc/stat`, the time of boot, and frequencies.

use nodestats_core::sample::{CpuCounters, CpuTimes};

use crate::collector::{Collector, Error};
use crate::root::HostRoot;

pub(crate) struct Cpu;

#[derive(Debug, PartialEq)]
pub(crate) struct CpuOutput {
    pub(crate) total: CpuTimes,
    pub(crate) cpus: Vec<CpuCounters>,
    /// `btime`, seconds since 1970.
    pub(crate) boot_time_seconds: Option<f64>,
}

impl Collector for Cpu {
    type Output = CpuOutput;
    const NAME: &'static str = "cpu";

    fn collect(&mut self, root: &HostRoot) -> Result<CpuOutput, Error> {
        let path = "proc/stat";
        let text = root.read(path).map_err(Error::read(path))?;
        let mut output = parse(&text).ok_or_else(|| Error::parse(path))?;
        frequencies(root, &mut output.cpus);
        Ok(output)
    }
}

fn parse(text: &str) -> Option<CpuOutput> {
    let mut total = None;
    let mut cpus = Vec::new();
    let mut boot_time_seconds = None;
    for line in text.lines() {
        let (key, values) = line.split_once(' ')?;
        if key == "cpu" {
            total = Some(times(values)?);
        } else if let Some(number) = key.strip_prefix("cpu") {
            let cpu = number.parse().ok()?;
            cpus.push(CpuCounters {
                cpu,
                times: times(values)?,
                frequency_mhz: None,
            });
        } else if key == "btime" {
            boot_time_seconds = values.trim().parse().ok();
        } else if key == "intr" {
            // Thousands of numbers that nobody asks for; what follows them is short.
        }
    }
    Some(CpuOutput {
        total: total?,
        cpus,
        boot_time_seconds,
    })
}

/// The first eight columns; Linux before 2.6.11 has no steal, and guest time is in user already.
fn times(values: &str) -> Option<CpuTimes> {
    let mut values = values.split_ascii_whitespace().map(str::parse::<u64>);
    let mut next = || values.next()?.ok();
    Some(CpuTimes {
        user: next()?,
        nice: next()?,
        system: next()?,
        idle: next()?,
        iowait: next().unwrap_or_default(),
        irq: next().unwrap_or_default(),
        softirq: next().unwrap_or_default(),
        steal: next().unwrap_or_default(),
    })
}

/// cpufreq (in kHz) where the host has it, else `/proc/cpuinfo`, which virtual machines have.
fn frequencies(root: &HostRoot, cpus: &mut [CpuCounters]) {
    let mut missing = false;
    for cpu in &mut *cpus {
        let path = format!(
            "sys/devices/system/cpu/cpu{}/cpufreq/scaling_cur_freq",
            cpu.cpu
        );
        let khz = root
            .read(path)
            .ok()
            .and_then(|text| text.trim().parse::<f64>().ok());
        cpu.frequency_mhz = khz.map(|khz| khz / 1000.0);
        missing |= khz.is_none();
    }
    if !missing {
        return;
    }
    let Ok(text) = root.read("proc/cpuinfo") else {
        return;
    };
    let mut number = None;
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        match key.trim_end() {
            "processor" => number = value.trim().parse::<u32>().ok(),
            "cpu MHz" => {
                let cpu = cpus.iter_mut().find(|cpu| Some(cpu.cpu) == number);
                if let Some(cpu) = cpu.filter(|cpu| cpu.frequency_mhz.is_none()) {
                    cpu.frequency_mhz = value.trim().parse().ok();
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_stat_is_no_figure() {
        assert_eq!(parse(""), None);
        assert_eq!(parse("cpu  1 2"), None);
        assert_eq!(parse("cpu  a b c d"), None);
        assert_eq!(parse("ctxt 5\n"), None);
        let old = parse("cpu  1 2 3 4\ncpu0 1 2 3 4\nbtime 5\n").expect("Linux 2.4");
        assert_eq!(
            old.total,
            CpuTimes {
                user: 1,
                nice: 2,
                system: 3,
                idle: 4,
                ..CpuTimes::default()
            }
        );
        assert_eq!(old.boot_time_seconds, Some(5.0));
    }
}
