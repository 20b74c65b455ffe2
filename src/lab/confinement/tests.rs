//! What is read of a host's control groups and written to them; with the real ones where root has them.

use std::process::{Command, Stdio};

use super::*;
use crate::adapters::system::memory;
use crate::lab::unprivileged::{is_root, lab_user};

const ONE: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
35 34 0:30 /outer /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
36 34 0:31 / /sys/fs/cgroup/blkio rw,nosuid master:3 - cgroup cgroup rw,blkio
37 34 0:32 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
";
const TWO: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
37 34 0:32 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate
";

fn groups(version: Version, place: &str) -> Groups {
    Groups {
        version,
        memory: format!("{place}/m").into(),
        blocks: format!("{place}/b").into(),
        switched_on: Vec::new(),
    }
}

#[test]
fn version_1_is_found_below_this_process() {
    let own = "4:memory:/outer/inner\n7:blkio:/\n1:cpu,cpuacct:/x\n0::/\n";
    let found = Trees::find(ONE, own, |_| String::new()).expect("found");
    let expected = Trees {
        version: Version::One,
        memory: "/sys/fs/cgroup/memory/inner".into(),
        blocks: "/sys/fs/cgroup/blkio/".into(),
    };
    assert_eq!(found, expected);
}

#[test]
fn version_2_is_taken_where_it_limits_both_and_nothing_where_none_does() {
    let own = "0::/user.slice/session-1.scope\n";
    let offers = |words: &'static str| move |_: &Path| words.to_owned();
    let found = Trees::find(TWO, own, offers("cpuset cpu io memory pids")).expect("found");
    assert_eq!((found.version, found.memory.to_str()), (Version::Two, Some("/sys/fs/cgroup")));
    assert_eq!(Trees::find(TWO, own, offers("cpu pids")), None);
    assert_eq!(Trees::find("", own, offers("io memory")), None);
    // Where version 1 has one of the two, version 2 cannot have it as well.
    let half = ONE.replace("rw,blkio", "rw,pids");
    assert_eq!(Trees::find(&half, own, offers("io")), None);
}

#[test]
fn limits_are_written_as_each_version_reads_them() {
    let written = |order: Order| format!("{} < {}", order.file.display(), order.text);
    let (one, two) = (groups(Version::One, "/one"), groups(Version::Two, "/two"));
    assert_eq!(written(one.memory_limit(Some(4096))), "/one/m/squeezed/memory.limit_in_bytes < 4096");
    assert_eq!(written(one.memory_limit(None)), "/one/m/squeezed/memory.limit_in_bytes < -1");
    assert_eq!(written(two.memory_limit(Some(4096))), "/two/m/squeezed/memory.max < 4096");
    assert_eq!(written(two.memory_limit(None)), "/two/m/squeezed/memory.max < max");
    let device = (7, 3);
    assert_eq!(written(one.write_limit(device, Some(20))), "/one/b/squeezed/blkio.throttle.write_iops_device < 7:3 20");
    assert_eq!(written(one.write_limit(device, None)), "/one/b/squeezed/blkio.throttle.write_iops_device < 7:3 0");
    assert_eq!(written(two.write_limit(device, Some(20))), "/two/b/squeezed/io.max < 7:3 wiops=20");
    assert_eq!(written(two.write_limit(device, None)), "/two/b/squeezed/io.max < 7:3 wiops=max");
}

#[test]
fn pages_of_files_can_be_had_back_and_the_rest_not() {
    let statistics = "anon 700\nfile 1000\nshmem 300\ninactive_anon 1000\ninactive_file 500\nactive_file 200\ntotal_inactive_file 9\n";
    assert_eq!(value_sum(statistics, &PAGES_OF_FILES), 700);
    assert_eq!(value_sum("", &PAGES_OF_FILES), 0);
    for (version, name) in [(Version::One, "memory.usage_in_bytes"), (Version::Two, "memory.current")] {
        let temporary = tempfile::tempdir().expect("directory");
        let groups = groups(version, temporary.path().to_str().expect("UTF-8"));
        let squeezed = groups.memory.join(SQUEEZED);
        fs::create_dir_all(&squeezed).expect("made");
        fs::write(squeezed.join("memory.stat"), statistics).expect("written");
        fs::write(squeezed.join(name), "1750\n").expect("written");
        assert_eq!(groups.bytes_held().expect("read"), 1050);
    }
}

#[test]
fn a_file_that_a_group_does_not_have_is_not_made() {
    let temporary = tempfile::tempdir().expect("directory");
    let file = temporary.path().join("memory.max");
    assert!(write(&Order { file: file.clone(), text: "max".to_owned() }).is_err());
    assert!(!file.exists());
}

#[test]
fn groups_of_a_maker_that_died_are_known_by_their_name() {
    assert_eq!(maker("12-345"), Some(ProcessIdentity { pid: 12, started_ticks: 345 }));
    assert_eq!((maker("12"), maker("x-345"), maker("")), (None, None, None));
}

#[test]
fn real_groups_take_a_process_limit_it_and_are_gone_afterwards() {
    let (true, Ok(_)) = (is_root(), Trees::here()) else {
        eprintln!("skipped: needs root and control groups");
        return;
    };
    let groups = Groups::make(&lab_user().expect("a user")).expect("made");
    let mut child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("start sleep");
    for parent in groups.parents() {
        for child_group in [REST, SQUEEZED] {
            let file = parent.join(child_group).join(MEMBERS);
            write(&Order { file: file.clone(), text: child.id().to_string() }).expect("moved");
            assert_eq!(read(&file).expect("read").trim(), child.id().to_string());
        }
    }
    write(&groups.memory_limit(Some(64 * 1024 * 1024))).expect("limited");
    let limited = read(&groups.memory_limit(None).file).expect("read");
    assert_eq!(limited.trim(), (64 * 1024 * 1024).to_string());
    let left = memory::left_to(i32::try_from(child.id()).expect("a pid")).expect("read");
    assert_eq!(left.total_bytes, 64 * 1024 * 1024, "what an agent says of it");
    assert!((1..=left.total_bytes).contains(&left.available_bytes), "{left:?}");
    write(&groups.memory_limit(None)).expect("let go");
    assert!(groups.bytes_held().is_ok());
    child.kill().expect("killed");
    child.wait().expect("reaped");
    groups.remove().expect("removed");
    assert!(groups.parents().iter().all(|parent| !parent.exists()));
}
