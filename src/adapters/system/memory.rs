//! How much memory is left to a process: the host's, or less where a control group around it has a limit (version 1 or 2).
//!
//! Read anew each time, as processes are moved and limits are set. No decision enters.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::domain::control_group::{below, mounted, own_group, value_sum};
use crate::domain::report::MemoryReport;

/// What the kernel calls things in one version of control groups.
struct Names {
    limits: &'static [&'static str],
    used: &'static str,
    /// Lines of `memory.stat`, children included, of what can be had back: pages of files, and in version 2 what the kernel remembers
    /// of files; version 1 does not say how much that is.
    reclaimable: &'static [&'static str],
}

const ONE: Names = Names {
    limits: &["memory.limit_in_bytes"],
    used: "memory.usage_in_bytes",
    reclaimable: &["total_active_file", "total_inactive_file"],
};
/// Above `memory.high` a process is slowed down until it has given enough back: for a database that is the end already.
const TWO: Names = Names {
    limits: &["memory.max", "memory.high"],
    used: "memory.current",
    reclaimable: &["active_file", "inactive_file", "slab_reclaimable"],
};
/// The value of `vm.overcommit_memory` with which allocations end at a limit of their own, whatever is free.
const NO_OVERCOMMIT: &str = "2";

/// What `pid` and its like may still take, in bytes, with the total of whatever ends first. An error if the process has ended, or if this
/// is no Linux that says how much is available.
pub fn left_to(pid: i32) -> io::Result<MemoryReport> {
    let is_committed = fs::read_to_string("/proc/sys/vm/overcommit_memory")?.trim() == NO_OVERCOMMIT;
    let host = of_host(&fs::read_to_string("/proc/meminfo")?, is_committed).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo does not say how much is available")
    })?;
    // A host without control groups has no other limit.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let Some((mount, group, names)) = find(&mounts, &own) else { return Ok(host) };
    let around = group.ancestors().take_while(|place| place.starts_with(&mount));
    Ok(around.filter_map(|place| of_group(place, names)).fold(host, tighter))
}

/// Of two limits, the one that is reached first.
fn tighter(one: MemoryReport, other: MemoryReport) -> MemoryReport {
    if other.available_bytes < one.available_bytes { other } else { one }
}

/// `is_committed`: what has been promised counts, and not only what is in use (`vm.overcommit_memory = 2`).
fn of_host(text: &str, is_committed: bool) -> Option<MemoryReport> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let free = MemoryReport { available_bytes: bytes("MemAvailable:")?, total_bytes: bytes("MemTotal:")? };
    if !is_committed {
        return Some(free);
    }
    let total_bytes = bytes("CommitLimit:")?;
    let promised = MemoryReport { available_bytes: total_bytes.saturating_sub(bytes("Committed_AS:")?), total_bytes };
    Some(tighter(free, promised))
}

/// `None` where the group sets no limit: the word `max`, a missing file (the topmost group has none).
fn of_group(place: &Path, names: &Names) -> Option<MemoryReport> {
    let number = |name: &str| fs::read_to_string(place.join(name)).ok()?.trim().parse::<u64>().ok();
    let total_bytes = names.limits.iter().filter_map(|name| number(name)).min()?;
    let used = number(names.used)?;
    let reclaimable = value_sum(&fs::read_to_string(place.join("memory.stat")).ok()?, names.reclaimable);
    Some(MemoryReport { available_bytes: total_bytes.saturating_sub(used.saturating_sub(reclaimable)), total_bytes })
}

/// Where memory is limited, and the group of a process there.
fn find(mounts: &str, own: &str) -> Option<(PathBuf, PathBuf, &'static Names)> {
    let one = mounted(mounts, |kind, options| kind == "cgroup" && options.split(',').any(|option| option == "memory"))
        .next()
        .zip(own_group(own, "memory"))
        .map(|found| (found, &ONE));
    let ((mount, root), group, names) = match one {
        Some(((mount, group), names)) => (mount, group, names),
        None => (mounted(mounts, |kind, _| kind == "cgroup2").next()?, own_group(own, "")?, &TWO),
    };
    let group = mount.join(below(&root, &group));
    Some((mount, group, names))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(available_bytes: u64, total_bytes: u64) -> MemoryReport {
        MemoryReport { available_bytes, total_bytes }
    }

    #[test]
    fn a_host_says_what_is_available_and_not_what_is_free() {
        let text = "MemTotal:       24000 kB\nMemFree:         1000 kB\nMemAvailable:    9000 kB\n";
        assert_eq!(of_host(text, false), Some(left(9000 * 1024, 24_000 * 1024)));
        assert_eq!(of_host(text, true), None, "nothing is said of promises");
        for (promised, free) in [(13_000, 2000), (1000, 9000), (16_000, 0)] {
            let text = format!("{text}CommitLimit: 15000 kB\nCommitted_AS: {promised} kB\n");
            assert_eq!(of_host(&text, true).map(|left| left.available_bytes), Some(free * 1024), "{promised}");
        }
        for broken in ["", "MemTotal: 1 kB\n", "MemTotal: x kB\nMemAvailable: 1 kB\n", "MemTotal: 1\nMemAvailable: 1\n"]
        {
            assert_eq!(of_host(broken, false), None, "{broken}");
        }
    }

    #[test]
    fn a_group_counts_pages_of_files_as_available_and_has_no_say_without_a_limit() {
        let place = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| fs::write(place.path().join(name), text).expect("written");
        let statistics = "anon 600\nactive_file 100\ninactive_file 20\nslab_reclaimable 30\ntotal_active_file 100\ntotal_inactive_file 250\n";
        write("memory.stat", statistics);
        write("memory.max", "max\n");
        write("memory.current", "900\n");
        assert_eq!(of_group(place.path(), &TWO), None);
        write("memory.max", "1000\n");
        assert_eq!(of_group(place.path(), &TWO), Some(left(250, 1000)));
        write("memory.high", "800\n");
        assert_eq!(of_group(place.path(), &TWO), Some(left(50, 800)), "the lower of two limits");
        write("memory.high", "700\n");
        assert_eq!(of_group(place.path(), &TWO), Some(left(0, 700)), "beyond the limit nothing is left");
        assert_eq!(of_group(place.path(), &ONE), None, "no file of that version is there");
        write("memory.limit_in_bytes", "2000\n");
        write("memory.usage_in_bytes", "900\n");
        assert_eq!(of_group(place.path(), &ONE), Some(left(1450, 2000)));
    }

    #[test]
    fn the_tightest_of_host_and_groups_counts() {
        let (host, loose, tight) = (left(500, 1000), left(900, u64::MAX), left(20, 4000));
        assert_eq!([loose, tight].into_iter().fold(host, tighter), tight);
        assert_eq!([loose].into_iter().fold(host, tighter), host);
    }

    #[test]
    fn groups_of_both_versions_are_found_in_the_mounts() {
        let one = "35 34 0:30 /outer /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n\
                   37 34 0:32 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n";
        let two = "37 34 0:32 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let place = |mounts, own| find(mounts, own).map(|(mount, group, names)| (mount, group, names.used));
        let found = |mount: &str, group: &str, used| Some((PathBuf::from(mount), PathBuf::from(group), used));
        assert_eq!(
            place(one, "4:memory:/outer/inner\n0::/\n"),
            found("/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/inner", ONE.used)
        );
        assert_eq!(
            place(one, "0::/postgresql.service\n"),
            found("/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/postgresql.service", TWO.used)
        );
        assert_eq!(
            place(two, "0::/system.slice/postgresql.service\n"),
            found("/sys/fs/cgroup", "/sys/fs/cgroup/system.slice/postgresql.service", TWO.used)
        );
        assert_eq!(place("", "0::/\n"), None);
        assert_eq!(place(two, ""), None);
    }

    #[test]
    fn this_very_process_has_some_left() {
        let found = left_to(i32::try_from(std::process::id()).expect("a pid")).expect("read");
        assert!(found.available_bytes > 0 && found.total_bytes >= found.available_bytes, "{found:?}");
        assert!(left_to(i32::MAX).is_err(), "nobody");
    }
}
