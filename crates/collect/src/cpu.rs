//! CPU times of `/proc/stat`, the time of boot, and frequencies.

use std::collections::BTreeMap;

use nodestats_core::sample::{CpuCounters, CpuTimes};

use crate::collector::{Collector, Error};
use crate::root::HostRoot;

/// Remembers what it read last: the kernel may count a little back.
#[derive(Debug, Default)]
pub(crate) struct Cpu {
    total: CpuTimes,
    cpus: BTreeMap<u32, CpuTimes>,
}

/// Ticks by which a counter that falls is held: idle and iowait are adjusted by the kernel (proc(5):
/// iowait "may decrease in certain conditions"). What falls further, three seconds by the usual 100 ticks
/// a second, is another CPU by the same number.
const ADJUSTED: u64 = 300;

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
        self.hold(&mut output);
        frequencies(root, &mut output.cpus);
        Ok(output)
    }
}

impl Cpu {
    /// No counter of `output` is a little less than it was: whoever computes rates would take that for
    /// a counter that began anew.
    fn hold(&mut self, output: &mut CpuOutput) {
        output.total = held(self.total, output.total);
        self.total = output.total;
        for cpu in &mut output.cpus {
            let last = self.cpus.entry(cpu.cpu).or_default();
            cpu.times = held(*last, cpu.times);
            *last = cpu.times;
        }
    }
}

fn held(last: CpuTimes, now: CpuTimes) -> CpuTimes {
    let hold = |last: u64, now: u64| {
        if last.saturating_sub(now) <= ADJUSTED {
            now.max(last)
        } else {
            now
        }
    };
    CpuTimes {
        user: hold(last.user, now.user),
        nice: hold(last.nice, now.nice),
        system: hold(last.system, now.system),
        idle: hold(last.idle, now.idle),
        iowait: hold(last.iowait, now.iowait),
        irq: hold(last.irq, now.irq),
        softirq: hold(last.softirq, now.softirq),
        steal: hold(last.steal, now.steal),
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
    fn a_counter_that_is_adjusted_back_is_held_and_one_that_begins_anew_is_not() {
        let read = |idle: u64| {
            let text = format!("cpu 1 0 1 {idle} 5 0 0 0\ncpu0 1 0 1 {idle} 5 0 0 0\n");
            parse(&text).expect("well formed")
        };
        let mut cpu = Cpu::default();
        let mut seen = |idle: u64| {
            let mut output = read(idle);
            cpu.hold(&mut output);
            (output.total.idle, output.cpus[0].times.idle)
        };
        assert_eq!(seen(1000), (1000, 1000));
        assert_eq!(seen(999), (1000, 1000));
        assert_eq!(seen(1001), (1001, 1001));
        // Taken out and put in again.
        assert_eq!(seen(7), (7, 7));
    }

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
