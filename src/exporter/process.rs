//! What the kernel knows of this process, under the names that are usual for it. Read from `/proc`: elsewhere, and where
//! that is forbidden, the figures are missing.

use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use crate::metrics::{Report, level_of, to_f64};

/// Notes everything that can be found out.
pub(super) fn report(report: &mut Report) {
    if let Some(figures) = read_stat() {
        let Figures {
            cpu_seconds,
            threads,
            start_seconds,
            resident_bytes,
        } = figures;
        report.amount("process_cpu_seconds", "Processor time used.", &[], cpu_seconds);
        report.level("process_threads", "Threads.", &[], to_f64(threads));
        report.level("process_resident_memory_bytes", "Memory in use.", &[], resident_bytes);
        if let Some(seconds) = start_seconds {
            let help = "When the process was started, in seconds since 1970.";
            report.level("process_start_time_seconds", help, &[], seconds);
        }
    }
    if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
        // One of them is that of the listing itself.
        let count = descriptors.count().saturating_sub(1);
        report.level("process_open_fds", "Open file descriptors.", &[], level_of(count));
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        let help = "Most file descriptors that may be open.";
        report.level("process_max_fds", help, &[], to_f64(most));
    }
}

struct Figures {
    cpu_seconds: f64,
    threads: u64,
    start_seconds: Option<f64>,
    resident_bytes: f64,
}

fn read_stat() -> Option<Figures> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the name of the program in parentheses, and may contain anything, also a parenthesis. Behind it
    // comes the third.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let seconds = |ticks: u64| to_f64(ticks) / to_f64(clock_ticks_per_second());
    Some(Figures {
        cpu_seconds: seconds(field(14)? + field(15)?),
        threads: field(20)?,
        start_seconds: boot_seconds().zip(field(22)).map(|(boot, ticks)| boot + seconds(ticks)),
        resident_bytes: to_f64(field(24)?) * level_of(page_size()),
    })
}

/// When the machine was started, in seconds since 1970.
fn boot_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    #[test]
    fn the_kernel_tells_of_this_process() {
        let figures = read_stat().unwrap();
        let now = to_f64(u64::try_from(SystemClock::new().wall_seconds()).unwrap());
        let start = figures.start_seconds.unwrap();
        assert!(now - 86_400.0 < start && start < now + 60.0, "{start} {now}");
        assert!(1 <= figures.threads);
        assert!(100_000.0 < figures.resident_bytes && figures.resident_bytes < 1e12);
        assert!(figures.cpu_seconds < 86_400.0);
    }
}
