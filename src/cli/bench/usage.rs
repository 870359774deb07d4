//! What processes use, as Linux tells it in `/proc`.

use std::fs;

/// Ticks a second of the times in `/proc`, the same on every machine that Linux runs on.
const TICKS_PER_S: f64 = 100.0;

/// What a process has used since it started; nothing of what the system does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Usage {
    /// Processor time, of all threads.
    pub(super) cpu_s: Option<f64>,
    /// The most memory at once.
    pub(super) rss_peak_bytes: Option<u64>,
}

impl Usage {
    /// Of the process with this id.
    pub(super) fn of(pid: u32) -> Self {
        Self::in_proc(&pid.to_string())
    }

    /// Of this process.
    pub(super) fn own() -> Self {
        Self::in_proc("self")
    }

    fn in_proc(process: &str) -> Self {
        let read = |file| fs::read_to_string(format!("/proc/{process}/{file}")).ok();
        Self {
            cpu_s: read("stat").and_then(|stat| cpu_s(&stat)),
            rss_peak_bytes: read("status").and_then(|status| rss_peak_bytes(&status)),
        }
    }

    /// What was used since `earlier`; memory is the peak of the whole life.
    pub(super) fn since(self, earlier: Self) -> Self {
        let cpu_s = self.cpu_s.zip(earlier.cpu_s).map(|(now, then)| now - then);
        Self { cpu_s, ..self }
    }
}

/// Fields 14 and 15, the second of which is the name in parentheses, which may hold anything.
fn cpu_s(stat: &str) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut times = after_name.split_whitespace().skip(11);
    let mut ticks = || times.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS_PER_S)
}

fn rss_peak_bytes(status: &str) -> Option<u64> {
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = peak.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 9 9 20 0 1 0 100 0 0";
        assert_eq!(cpu_s(stat), Some(3.0));
        assert_eq!(cpu_s("7 (a) S 1"), None);
    }

    #[test]
    fn the_peak_of_memory_is_told_in_bytes() {
        assert_eq!(rss_peak_bytes("Name:\ta\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"), Some(2 << 20));
        assert_eq!(rss_peak_bytes("Name:\ta\n"), None);
    }

    #[test]
    fn this_process_uses_something() {
        assert!(Usage::own().rss_peak_bytes.is_some_and(|bytes| bytes > 100_000));
        assert_eq!(Usage::of(std::process::id()).cpu_s.is_some(), Usage::own().cpu_s.is_some());
    }
}
