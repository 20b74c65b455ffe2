//! Tests of the family with real processes.

use std::process::{Child, Command};

use super::*;

fn sleeper(directory: &Path) -> Child {
    Command::new("sleep").arg("600").current_dir(directory).spawn().expect("sleep exists")
}

fn pid(child: &Child) -> i32 {
    i32::try_from(child.id()).expect("a pid fits")
}

#[test]
fn finds_its_own_processes_and_nobody_elses() {
    let (home, other) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let nested = home.path().join("base");
    fs::create_dir(&nested).expect("create");
    let family = Family::of_directory(home.path()).expect("exists");
    let mut own = sleeper(home.path());
    let mut strangers = [sleeper(other.path()), sleeper(&nested)];
    assert_eq!(scan(&family).expect("/proc"), vec![pid(&own)]);
    assert_eq!(
        scan(&Family::new(4_000_000_000, home.path().into())).expect("/proc"),
        Vec::<i32>::new(),
        "another user"
    );
    assert!(kill_until_gone(&family, Duration::from_secs(10)).is_ok());
    assert!(own.wait().expect("own child").code().is_none(), "ended by a signal");
    for stranger in &mut strangers {
        assert!(stranger.try_wait().expect("own child").is_none(), "a stranger was killed");
        stranger.kill().expect("own child");
        stranger.wait().expect("own child");
    }
}

#[test]
fn kills_what_is_stopped_and_what_lost_its_directory() {
    let home = tempfile::tempdir().expect("temp");
    let data = home.path().join("data");
    fs::create_dir(&data).expect("create");
    let family = Family::of_directory(&data).expect("exists");
    let mut children = [sleeper(&data), sleeper(&data)];
    assert!(signal(&family, pid(&children[0]), Signal::STOP).expect("own child"));
    fs::remove_dir(&data).expect("remove");
    assert_eq!(scan(&family).expect("/proc").len(), 2, "a removed directory hides nobody");
    kill_until_gone(&family, Duration::from_secs(10)).expect("nothing holds them");
    for child in &mut children {
        child.wait().expect("own child");
    }
}

#[test]
fn a_signal_never_hits_a_stranger() {
    let (home, other) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let family = Family::of_directory(home.path()).expect("exists");
    let mut stranger = sleeper(other.path());
    assert!(!signal(&family, pid(&stranger), Signal::KILL).expect("no error"));
    assert!(stranger.try_wait().expect("own child").is_none());
    stranger.kill().expect("own child");
    stranger.wait().expect("own child");
}

#[test]
fn uninterruptible_sleep_counts_as_gone_only_with_sigkill_pending() {
    let status = |state: &str, private: &str, shared: &str| {
        Status::parse(&format!(
            "Name:\tpostgres\nState:\t{state}\nUid:\t1\t104\t1\t1\nSigPnd:\t{private}\nShdPnd:\t{shared}\n"
        ))
    };
    let kill = "0000000000000100";
    let none = "0000000000000000";
    assert!(status("D (disk sleep)", kill, none).can_never_run_again());
    assert!(status("D (disk sleep)", none, kill).can_never_run_again());
    assert!(!status("D (disk sleep)", none, none).can_never_run_again());
    assert!(!status("D (disk sleep)", "0000000000000080", none).can_never_run_again());
    assert!(!status("S (sleeping)", kill, none).can_never_run_again());
    assert!(!status("T (stopped)", none, none).can_never_run_again());
    assert!(status("Z (zombie)", none, none).can_never_run_again());
    assert_eq!(status("S (sleeping)", none, none).effective_user, Some(104));
}

#[test]
fn a_directory_that_is_renamed_does_not_hide_its_processes() {
    let place = tempfile::tempdir().expect("temp");
    let (home, moved) = (place.path().join("data"), place.path().join("data.old"));
    fs::create_dir(&home).expect("create");
    let family = Family::of_directory(&home).expect("exists");
    let mut own = sleeper(&home);
    // The guard's copy learns with the agent's.
    assert_eq!(scan(&family.clone()).expect("/proc"), vec![pid(&own)]);
    fs::rename(&home, &moved).expect("renamed");
    fs::create_dir(&home).expect("create");
    assert_eq!(scan(&family).expect("/proc"), vec![pid(&own)], "it goes on under another name");
    kill_until_gone(&family, Duration::from_secs(10)).expect("killed");
    assert!(own.wait().expect("own child").code().is_none(), "ended by a signal");
    let mut stranger = sleeper(&moved);
    assert_eq!(scan(&family).expect("/proc"), Vec::<i32>::new(), "once nobody is left, the directory is a stranger's");
    stranger.kill().expect("own child");
    stranger.wait().expect("own child");
}
