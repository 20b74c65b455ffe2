//! Repositories and restores that something is wrong with: each is told, with its cause and what to do, and nothing live is touched.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use stormglass::domain::backup::Continuity;

use super::*;

#[tokio::test]
async fn what_is_wrong_with_a_repository_is_said_and_nothing_is_touched() {
    let place = Place::new();
    let repository = place.directory("repository");
    let host = Host::with_data(&place, "n1", &repository).await;
    let error = host.plan(RecoveryTarget::Latest).await.expect_err("there is no backup").to_string();
    assert!(error.contains("nothing can be restored") || error.contains("no backup"), "{error}");
    let label = host.full_backup().await;
    host.backup.mark().await.expect("archived");
    assert_eq!(host.plan(RecoveryTarget::Latest).await.expect("all is well"), label);
    assert_eq!(host.backup.list().await.expect("listed").continuity, Continuity::Whole);

    let before = RecoveryTarget::Time { at: WallTime(1_000_000) };
    let error = host.plan(before).await.expect_err("before the first backup").to_string();
    assert!(error.contains("before the first backup"), "{error}");
    let after = RecoveryTarget::Lsn { lsn: "9/0".parse().expect("valid") };
    let error = host.plan(after).await.expect_err("after the end").to_string();
    assert!(error.contains("after the end"), "{error}");
    let copy = host.settings.drill_directory.join("copy");
    let stranger = Some(SystemIdentifier(7));
    let error = host.backup.plan(&RecoveryTarget::Latest, &copy, false, stranger).await.expect_err("a stranger's");
    assert!(error.to_string().contains("another cluster's data"), "{error}");
    let error = host.backup.plan(&RecoveryTarget::Latest, host.node.data(), false, None).await.expect_err("live data");
    assert!(error.to_string().contains("lie in each other"), "{error}");
    let foreign = place.directory("foreign");
    fs::write(foreign.join("letter"), "dear").expect("written");
    let error = host.backup.plan(&RecoveryTarget::Latest, &foreign, false, None).await.expect_err("not empty");
    assert!(error.to_string().contains("not empty"), "{error}");
    host.backup.restore(&label, &foreign, &|_| {}).await.expect_err("not empty");
    host.backup.remove(&foreign).await.expect_err("not made here");
    assert!(foreign.join("letter").exists());

    let wrong = host.otherwise(|settings| settings.passphrase = Some(Password::new("another")));
    for error in [
        wrong.backup(BackupType::Full, false).await.expect_err("wrong passphrase"),
        wrong.plan(&RecoveryTarget::Latest, &copy, false, None).await.expect_err("wrong passphrase"),
    ] {
        assert!(error.to_string().contains("another passphrase"), "{error}");
    }
    let nowhere = host.otherwise(|settings| {
        settings.place = RepositoryPlace::Posix { path: repository.join("not-mounted/repository") };
    });
    let error = nowhere.plan(&RecoveryTarget::Latest, &copy, false, None).await.expect_err("not there");
    assert!(error.to_string().contains("nothing can be restored"), "{error}");
    let error = nowhere.backup(BackupType::Full, false).await.expect_err("not there").to_string();
    assert!(error.contains("whether it is mounted"), "{error}");

    // A filesystem without room: the kernel's own has none.
    let error = host.backup.plan(&RecoveryTarget::Latest, Path::new("/proc/copy"), false, None).await;
    let error = error.expect_err("no room").to_string();
    assert!(error.contains("and there are 0: free space, or restore elsewhere, in /proc/copy"), "{error}");

    // Damage: one byte of one file of the backup.
    let victim = files_below(&repository.join("backup/main").join(&label).join("bundle")).remove(0);
    let sound = fs::read(&victim).expect("readable");
    let mut damaged = sound.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x55;
    fs::write(&victim, &damaged).expect("written");
    let error = host.backup.verify(&label).await.expect_err("damaged").to_string();
    assert!(error.contains("damaged"), "{error}");
    // Who restores it all the same is told, too; the copy is removed by whoever began it, and the next attempt is a good one.
    let error = host.backup.restore(&label, &copy, &|_| {}).await.expect_err("damaged").to_string();
    assert!(error.contains("damaged") && error.contains("take another backup"), "{error}");
    host.backup.remove(&copy).await.expect("removed");
    fs::write(&victim, &sound).expect("written");
    host.backup.verify(&label).await.expect("whole again");
    host.backup.restore(&label, &copy, &|_| {}).await.expect("restored");
    host.backup.remove(&copy).await.expect("removed");

    // Another manifest than the one that was read back, and well-formed: an older backup's under a newer one's name.
    let recorded = host.backup.verify(&label).await.expect("whole").manifest_sha256;
    let newer = host.full_backup().await;
    let file = |label: &str| repository.join("backup/main").join(label).join("backup.manifest");
    let sound = fs::read(file(&newer)).expect("readable");
    let newer_recorded = host.backup.verify(&newer).await.expect("whole").manifest_sha256;
    assert_ne!(recorded, newer_recorded);
    host.backup.compare_manifest(&newer, &newer_recorded).await.expect("as it was read back");
    fs::write(file(&newer), fs::read(file(&label)).expect("readable")).expect("written");
    let error = host.backup.compare_manifest(&newer, &newer_recorded).await.expect_err("replaced").to_string();
    for words in [newer.as_str(), recorded.as_str(), newer_recorded.as_str(), "stormglass backup --type full"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    fs::remove_file(file(&newer)).expect("removed");
    let error = host.backup.compare_manifest(&newer, &newer_recorded).await.expect_err("gone").to_string();
    assert!(error.contains("backup.manifest") || error.contains("missing"), "{error}");
    fs::write(file(&newer), &sound).expect("written");

    // PostgreSQL of another major version than the backup's.
    let programs = place.directory("old-bin");
    let old = host.otherwise(|settings| settings.bin_directory = Some(programs.clone()));
    let program = programs.join("postgres");
    fs::write(&program, "#!/bin/sh\necho 'postgres (PostgreSQL) 9.6.24'\n").expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("set");
    let error = old.plan(&RecoveryTarget::Latest, &copy, false, None).await.expect_err("another version").to_string();
    assert!(error.contains("the backup is of PostgreSQL") && error.contains("9.6.24"), "{error}");
    assert!(error.contains("install PostgreSQL") && error.contains("bin_directory"), "{error}");

    // A gap: one segment of WAL after the backup, with others after it.
    for _ in 0..2 {
        host.node.sql("insert into t values (1)").await;
        host.backup.mark().await.expect("archived");
    }
    let mut segments: Vec<PathBuf> = files_below(&repository.join("archive/main"))
        .into_iter()
        .filter(|file| file.file_name().is_some_and(|name| name.len() > 60))
        .collect();
    segments.sort();
    let missing = segments.remove(segments.len() - 2);
    fs::remove_file(&missing).expect("removed");
    let error = host.plan(RecoveryTarget::Latest).await.expect_err("a gap").to_string();
    let name = missing.file_name().expect("a name").to_string_lossy()[..24].to_owned();
    assert!(error.contains("gap") && error.contains(&name) && error.contains("--to-lsn"), "{error}");
    let continuity = host.backup.list().await.expect("listed").continuity;
    assert!(matches!(&continuity, Continuity::Broken { problem } if problem.contains(&name)), "{continuity:?}");
    assert_eq!(host.node.sql("select count(*) from t").await.as_deref(), Some("102"), "the live data are as they were");
}

#[tokio::test]
async fn whoever_finds_the_repository_locked_waits_until_the_other_run_has_ended() {
    let place = Place::new();
    let host = Host::with_data(&place, "n1", &place.directory("repository")).await;
    let endings = place.directory("endings").join("codes");
    let program = place.directory("programs").join("pgbackrest");
    let script =
        format!("#!/bin/sh\n/usr/bin/pgbackrest \"$@\"\ncode=$?\necho $code >> {}\nexit $code\n", endings.display());
    fs::write(&program, script).expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("set");
    let told = host.otherwise(|settings| settings.program = program.clone());
    told.prepare().await.expect("nobody else is there");
    let codes = || fs::read_to_string(&endings).unwrap_or_default();
    assert_eq!(codes(), "0\n");

    // Another run's lock, as pgBackRest takes it: of the file that both name after the stanza.
    let lock = host.settings.directory.join("other/lock/main-archive.lock");
    let held = fs::File::create(&lock).expect("made");
    fs::set_permissions(&lock, fs::Permissions::from_mode(0o666)).expect("set");
    held.lock().expect("nobody holds it");
    let release = async {
        host.node.until("somebody ran into the lock", async |_| codes().contains("50")).await;
        drop(held);
    };
    let (waited, ()) = tokio::join!(told.prepare(), release);
    waited.expect("it waited");
    assert!(codes().ends_with("50\n0\n"), "{}", codes());

    // An operation and the agent's own care of the repository meet.
    let (first, second) = tokio::join!(host.backup.prepare(), host.backup.prepare());
    first.expect("prepared");
    second.expect("prepared");
}

#[tokio::test]
async fn tablespaces_are_found_before_anything_is_put_aside_and_come_along_into_a_copy() {
    let place = Place::new();
    let host = Host::with_data(&place, "n1", &place.directory("repository")).await;
    let space = place.directory("space");
    host.node.sql(&format!("create tablespace elsewhere location '{}'", space.display())).await;
    host.node.sql("create table far tablespace elsewhere as select generate_series(1, 50) as n").await;
    let label = host.full_backup().await;
    host.backup.mark().await.expect("archived");
    let latest = RecoveryTarget::Latest;
    let mut beside = host.node.data().as_os_str().to_owned();
    beside.push(".stormglass-restored");
    let error = host.backup.plan(&latest, Path::new(&beside), true, None).await.expect_err("tablespaces").to_string();
    assert!(error.contains("(elsewhere)") && error.contains("--into"), "{error}");
    assert!(!Path::new(&beside).exists(), "nothing was begun");

    let copy = host.settings.drill_directory.join("copy");
    host.backup.plan(&latest, &copy, false, None).await.expect("into a copy");
    host.backup.restore(&label, &copy, &|_| {}).await.expect("restored");
    host.backup.recover(&copy, &latest, true).await.expect("recovered");
    assert_eq!(host.ask_copy("select count(*) from far"), "50");
    let location = host.ask_copy("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'elsewhere'");
    assert_ne!(location, space.display().to_string(), "the live tablespace is not the copy's");
    host.backup.remove(&copy).await.expect("removed");
    assert_eq!(host.node.sql("select count(*) from far").await.as_deref(), Some("50"), "the live one is as it was");
}

/// Processes of a restore into `copy`, whoever started them.
fn restores_into(copy: &Path) -> Vec<i32> {
    let wanted = format!("--pg1-path={}", copy.display());
    let processes = fs::read_dir("/proc").expect("readable").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).split('\0').any(|argument| argument == wanted))
    })
    .collect()
}

#[tokio::test]
async fn a_restore_that_was_killed_half_way_goes_on_where_it_was() {
    let place = Place::new();
    let host = Host::with_data(&place, "n1", &place.directory("repository")).await;
    let fill = "create table filler as select n, (select string_agg(md5(n::text || part::text), '') from generate_series(1, 30) as part) \
                as text from generate_series(1, 60000) as n";
    host.node.sql(fill).await;
    let label = host.full_backup().await;
    host.backup.mark().await.expect("archived");
    let copy = host.settings.drill_directory.join("copy");
    let begun = async {
        while !copy.join("base").exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        biased;
        () = begun => {}
        ended = host.backup.restore(&label, &copy, &|_| {}) => panic!("it ended before it could be killed: {ended:?}"),
    }
    // The agent is gone, and so is what it had started.
    for pid in restores_into(&copy) {
        let pid = rustix::process::Pid::from_raw(pid).expect("a process");
        let _gone_already = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    assert!(!copy.join("global/pg_control").exists(), "pgBackRest writes it last: the copy is not whole");
    host.backup.plan(&RecoveryTarget::Latest, &copy, false, None).await.expect("what is there is its own");
    let deadline = boot_time() + PATIENCE;
    loop {
        match host.backup.restore(&label, &copy, &|_| {}).await {
            Ok(()) => break,
            Err(error) if error.to_string().contains("still under way") && boot_time() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    host.backup.recover(&copy, &RecoveryTarget::Latest, true).await.expect("recovered");
    assert_eq!(host.ask_copy("select count(*) from filler"), "60000");
    host.backup.remove(&copy).await.expect("removed");
}
