//! Backups, copies and restores with the real pgBackRest and real PostgreSQL.
//!
//! Drives the ports as an agent would; what is decided about a cluster never enters.

#[expect(dead_code, reason = "nodes of other tests stream from each other")]
mod support;
#[path = "pgbackrest/timelines.rs"]
mod timelines;
#[path = "pgbackrest/troubles.rs"]
mod troubles;

use std::fs;
use std::path::{Path, PathBuf};

use stormglass::adapters::pgbackrest::{BackupSettings, LedgerTable, PgBackRest, RepositoryPlace};
use stormglass::adapters::postgres::Password;
use stormglass::adapters::system::boot_time;
use stormglass::domain::backup::{BackupType, RecoveryTarget, RowCount, WalSegment};
use stormglass::domain::clock::WallTime;
use stormglass::domain::ids::SystemIdentifier;
use stormglass::domain::lsn::{History, Timeline};
use stormglass::ports::LocalPostgres;
use stormglass::ports::backup::{BackupError, BackupRepository};
use stormglass::ports::postgres::{CopySource, DataChange, Presence};
use support::{Node, Noted, PATIENCE, Place};

/// A node that archives to a repository of its place.
struct Host {
    node: Node,
    backup: PgBackRest,
    settings: BackupSettings,
}

/// Settings for `node`, before its PostgreSQL knows of archiving.
fn settings(place: &Place, node: &Node, repository: &Path) -> BackupSettings {
    BackupSettings {
        stanza: "main".to_owned(),
        place: RepositoryPlace::Posix { path: repository.to_owned() },
        passphrase: Some(Password::new("a passphrase")),
        retention_full: 2,
        retention_diff: None,
        processes: 1,
        options: Default::default(),
        peers: Vec::new(),
        directory: place.directory(&format!("{}-backup", node.name)),
        drill_directory: place.directory(&format!("{}-drill", node.name)),
        data_directory: node.settings.data_directory.clone(),
        port: node.settings.address.port,
        socket_directory: node.settings.private_socket_directory.clone(),
        superuser: "postgres".to_owned(),
        superuser_password: None,
        bin_directory: None,
        ledger: vec![LedgerTable { database: "postgres".to_owned(), table: "public.t".to_owned() }],
        checks: Vec::new(),
        program: "/usr/bin/pgbackrest".into(),
    }
}

fn host(place: &Place, name: &str, repository: &Path) -> Host {
    let node = place.node(name);
    let settings = settings(place, &node, repository);
    let node = node.with_settings(|postgres| {
        for (name, value) in [("archive_mode", "on".to_owned()), ("archive_command", settings.archive_command())] {
            postgres.parameters.insert(name.to_owned(), value);
        }
        postgres.archive_stop_file = Some(settings.stop_file());
    });
    let backup = PgBackRest::new(settings.clone(), node.postgres.owner()).expect("configured");
    Host { node, backup, settings }
}

impl Host {
    /// A primary with a table, and a repository that knows it.
    async fn with_data(place: &Place, name: &str, repository: &Path) -> Self {
        let host = host(place, name, repository);
        host.node.init_primary().await;
        host.backup.prepare().await.expect("prepared");
        host.backup.prepare().await.expect("prepared again");
        host.node.sql("create table t as select generate_series(1, 100) as n").await;
        host
    }

    async fn full_backup(&self) -> String {
        self.backup.backup(BackupType::Full, false).await.expect("backed up").0
    }

    /// What a copy that runs answers.
    fn ask_copy(&self, sql: &str) -> String {
        let socket = self.settings.directory.join("copy").display().to_string();
        let asked =
            self.node.run("psql", &["-XAt", "-h", &socket, "-p", "5432", "-U", "postgres", "-c", sql, "postgres"]);
        assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        String::from_utf8_lossy(&asked.stdout).trim().to_owned()
    }

    async fn now(&self) -> WallTime {
        let text = self.node.sql("select (extract(epoch from clock_timestamp()) * 1000000)::bigint::text").await;
        WallTime(text.expect("a time").parse().expect("a number"))
    }

    async fn plan(&self, target: RecoveryTarget) -> Result<String, BackupError> {
        let copy = self.settings.drill_directory.join("copy");
        self.backup.plan(&target, &copy, false, None).await.map(|plan| plan.label)
    }

    /// A repository object with other settings.
    fn otherwise(&self, change: impl FnOnce(&mut BackupSettings)) -> PgBackRest {
        let mut settings = self.settings.clone();
        settings.directory.push("other");
        change(&mut settings);
        PgBackRest::new(settings, self.node.postgres.owner()).expect("configured")
    }
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("readable").flatten() {
        if entry.path().is_dir() { found.extend(files_below(&entry.path())) } else { found.push(entry.path()) }
    }
    found
}

#[tokio::test]
async fn an_encrypted_backup_is_read_back_and_restored_to_a_point_in_time() {
    let place = Place::new();
    let repository = place.directory("repository");
    let host = Host::with_data(&place, "n1", &repository).await;
    host.backup.prove_archiving().await.expect("WAL arrives");
    let label = host.full_backup().await;
    let verified = host.backup.verify(&label).await.expect("read back");
    assert!(verified.manifest_sha256.len() == 64 && verified.files > 100, "{verified:?}");
    let stored = files_below(&repository.join("backup"));
    assert!(stored.iter().all(|file| !fs::read(file).expect("readable").starts_with(b"[backrest]")), "not encrypted");
    host.backup.compare_manifest(&label, &verified.manifest_sha256).await.expect("as it was read back");

    host.node.sql("insert into t select generate_series(1, 900)").await;
    let target = host.now().await;
    host.node.sql("insert into t select generate_series(1, 5000)").await;
    let mark = host.backup.mark().await.expect("archived");
    assert_eq!(mark.counts[0].rows, 6000);
    let listed = host.backup.list().await.expect("listed");
    assert_eq!(listed.backups.len(), 1);
    assert!(listed.newest_wal_at.is_some() && listed.problem.is_none(), "{listed:?}");

    let copy = host.settings.drill_directory.join("copy");
    let target = RecoveryTarget::Time { at: target };
    let plan = host.backup.plan(&target, &copy, false, None).await.expect("can be restored");
    assert_eq!(plan.label, label);
    host.backup.restore(&label, &copy, &|_| {}).await.expect("restored");
    host.backup.restore(&label, &copy, &|_| {}).await.expect("restored again, from what is there");
    let reached = host.backup.recover(&copy, &target, true).await.expect("recovered");
    assert!(reached < mark.lsn, "{reached} {}", mark.lsn);
    assert_eq!(host.ask_copy("select count(*) from t"), "1000");
    assert_eq!(host.ask_copy("show archive_mode"), "off");
    assert_eq!(host.ask_copy("show listen_addresses"), "");
    host.backup.remove(&copy).await.expect("removed");
    host.backup.remove(&copy).await.expect("gone already");
    assert!(!copy.exists());
    assert_eq!(
        host.node.sql("select count(*) from t").await.as_deref(),
        Some("6000"),
        "the live data are as they were"
    );
}

#[tokio::test]
async fn a_drill_finds_missing_rows_and_passes_without_them() {
    let place = Place::new();
    let host = Host::with_data(&place, "n1", &place.directory("repository")).await;
    let label = host.full_backup().await;
    host.node.sql("insert into t select generate_series(1, 900)").await;
    let mark = host.backup.mark().await.expect("archived");
    let copy = host.settings.drill_directory.join("copy");
    host.backup.restore(&label, &copy, &|_| {}).await.expect("restored");
    let reached = host.backup.recover(&copy, &RecoveryTarget::Latest, true).await.expect("recovered");
    assert!(reached >= mark.lsn, "{reached} {}", mark.lsn);
    let checks = host.backup.check(&copy, &mark).await.expect("good data").join("; ");
    assert!(checks.contains("pg_amcheck") && checks.contains("1000 rows"), "{checks}");
    let mut more = mark.clone();
    more.counts = vec![RowCount { table: "postgres/public.t".to_owned(), rows: 1001 }];
    let error = host.backup.check(&copy, &more).await.expect_err("a row is missing").to_string();
    assert!(error.contains("are missing"), "{error}");
    host.backup.remove(&copy).await.expect("removed");
}

#[tokio::test]
async fn a_copy_takes_the_place_of_the_data_and_these_lie_aside() {
    let place = Place::new();
    let host = Host::with_data(&place, "n1", &place.directory("repository")).await;
    let label = host.full_backup().await;
    let lsn = host.node.sql("select pg_current_wal_insert_lsn()").await.expect("a position").parse().expect("an LSN");
    host.node.sql("drop table t").await;
    host.backup.mark().await.expect_err("the ledger's table is gone");
    host.node.sql("select pg_switch_wal()").await;
    host.backup.prove_archiving().await.expect("archived");
    host.node.postgres.stop_fast(PATIENCE).await.expect("stops");

    let mut copy = host.node.data().as_os_str().to_owned();
    copy.push(".stormglass-restored");
    let copy = PathBuf::from(copy);
    let target = RecoveryTarget::Lsn { lsn };
    let plan = host.backup.plan(&target, &copy, true, None).await.expect("can be restored in place");
    assert_eq!(plan.label, label);
    host.backup.restore(&label, &copy, &|_| {}).await.expect("restored");
    host.backup.recover(&copy, &target, false).await.expect("recovered");
    let postgres = &host.node.postgres;
    let aside = postgres.adopt_copy(&copy, "aside-1").await.expect("adopted").expect("there were data");
    assert!(aside.join("PG_VERSION").exists() && !copy.exists());
    let again = postgres.adopt_copy(&copy, "aside-1").await.expect("repeated");
    assert_eq!(again, Some(aside));
    assert_eq!(postgres.presence().await, Presence::Stopped);
    let control = postgres.control_data().await.expect("readable").expect("there");
    assert!(control.is_shut_down() && control.timeline.0 == 2, "{control:?}");

    let data = host.node.data().to_string_lossy().into_owned();
    let log = host.node.settings.log_file.to_string_lossy().into_owned();
    let by_hand = host.node.run("pg_ctl", &["start", "-w", "-D", &data, "-l", &log]);
    assert!(by_hand.status.success(), "{}", host.node.log());
    assert!(host.node.client().await.is_err(), "restored data that are started by hand are open to clients");
    postgres.stop_fast(PATIENCE).await.expect("stops");
    host.node.start_primary().await;
    assert_eq!(host.node.sql("select count(*) from t").await.as_deref(), Some("100"));
    assert_eq!(host.node.sql("show archive_mode").await.as_deref(), Some("on"), "it archives again");
    host.backup.prove_archiving().await.expect("the new timeline is archived");
    // A second attempt under the same name never touches what is there.
    postgres.stop_fast(PATIENCE).await.expect("stops");
    postgres.set_aside("aside-1").await.expect_err("data would be in the way");
    let second = postgres.set_aside("aside-2").await.expect("renamed").expect("there were data");
    assert_eq!(postgres.set_aside("aside-2").await.expect("repeated"), Some(second));
    assert_eq!(postgres.presence().await, Presence::NoData);
}

#[tokio::test]
async fn a_shutdown_waits_for_no_repository_and_the_next_primary_brings_its_wal() {
    let place = Place::new();
    let repository = place.directory("repository");
    let first = Host::with_data(&place, "n1", &repository).await;
    let label = first.full_backup().await;
    let second = host(&place, "n2", &repository);
    second.node.join(&first.node).await;
    first.backup.mark().await.expect("archived");
    // The repository hangs: a program that never ends, as a mount of which nobody answers.
    fs::write(first.settings.stop_file(), "").expect("written");
    first.node.sql("insert into t select generate_series(1, 900)").await;
    first.node.sql("select pg_switch_wal()").await;
    first.node.sql("insert into t select generate_series(1, 1000)").await;
    second.node.caught_up(&first.node).await;
    first.node.postgres.stop_fast(PATIENCE).await.expect("stops although nothing is archived");

    second.node.postgres.follow(None, PATIENCE).await.expect("frozen");
    second.node.postgres.promote(false, PATIENCE).await.expect("promoted");
    let archived = async |host: &Host| host.backup.mark().await.is_ok();
    assert!(archived(&second).await, "the promoted node archives");
    let copy = second.settings.drill_directory.join("copy");
    let gap = second.backup.plan(&RecoveryTarget::Latest, &copy, false, None).await;
    assert!(gap.expect_err("the first primary's WAL is missing").to_string().contains("gap"));
    let brought = second.backup.fill_archive().await.expect("brought");
    assert!(brought >= 1, "{brought}");
    assert_eq!(second.backup.fill_archive().await.expect("nothing more"), 0);
    let mark = second.backup.mark().await.expect("archived");
    second.backup.plan(&RecoveryTarget::Latest, &copy, false, None).await.expect("no gap any more");
    second.backup.restore(&label, &copy, &|_| {}).await.expect("restored");
    second.backup.recover(&copy, &RecoveryTarget::Latest, true).await.expect("recovered across the promotion");
    assert_eq!(second.ask_copy("select count(*) from t"), "2000");
    second.backup.check(&copy, &mark).await.expect("good data");
    second.backup.remove(&copy).await.expect("removed");
}

/// Megabytes of database for the comparison of speed; 1024 takes some minutes.
#[expect(clippy::disallowed_methods, reason = "whoever measures asks for more than a test needs")]
fn megabytes() -> u64 {
    std::env::var("STORMGLASS_RESTORE_MEGABYTES").ok().and_then(|text| text.parse().ok()).unwrap_or(32)
}

/// Prints how long a restore takes and how long pgBackRest takes for the same by itself, one after the other, three times.
#[tokio::test]
async fn a_restore_is_what_pgbackrest_does_and_little_more() {
    let place = Place::new();
    let host = Host::with_data(&place, "n1", &place.directory("repository")).await;
    // Rows that are not compressed away.
    let rows = megabytes() * 1024;
    let fill = format!(
        "create table filler as select n, (select string_agg(md5(n::text || part::text), '') from generate_series(1, 30) as part) as text \
         from generate_series(1, {rows}) as n"
    );
    host.node.sql(&fill).await;
    let label = host.full_backup().await;
    let bytes: u64 = host.backup.list().await.expect("listed").backups[0].database_bytes;
    assert!(bytes > megabytes() << 20, "{bytes}");
    let sum = |directory: &Path| {
        let data = files_below(&directory.join("base"));
        data.iter().map(|file| fs::metadata(file).expect("there").len()).sum::<u64>()
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let copy = host.settings.drill_directory.join(format!("copy{round}"));
        let begin = boot_time();
        host.backup.restore(&label, &copy, &|_| {}).await.expect("restored");
        ours.push((boot_time() - begin).as_secs_f64());
        let plain = place.directory(&format!("plain{round}"));
        let config = format!("--config={}", host.settings.file().display());
        let (path, set) = (format!("--pg1-path={}", plain.display()), format!("--set={label}"));
        let begin = boot_time();
        let by_hand =
            host.node.run("/usr/bin/pgbackrest", &[&config, "--stanza=main", &path, &set, "--type=none", "restore"]);
        theirs.push((boot_time() - begin).as_secs_f64());
        assert!(by_hand.status.success(), "{}", String::from_utf8_lossy(&by_hand.stdout));
        assert_eq!(sum(&copy), sum(&plain), "the same data");
        host.backup.remove(&copy).await.expect("removed");
        fs::remove_dir_all(&plain).expect("removed");
    }
    let median = |seconds: &mut Vec<f64>| {
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    };
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    println!(
        "restore of {bytes} bytes: {ours:.2} s, pgbackrest restore alone {theirs:.2} s: {:.0} % of its speed",
        100.0 * theirs / ours
    );
}

/// The repository as an agent hands it to its PostgreSQL.
struct Source<'a>(&'a PgBackRest);

#[async_trait::async_trait]
impl CopySource for Source<'_> {
    async fn bring(
        &self,
        system_identifier: SystemIdentifier,
        history: &History,
        change: &dyn DataChange,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(String, WalSegment), String> {
        self.0.bring_standby(system_identifier, history, change, progress).await.map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn a_former_primary_is_cloned_from_the_repository_by_what_differs() {
    let place = Place::new();
    let repository = place.directory("repository");
    let first = Host::with_data(&place, "n1", &repository).await;
    let second = host(&place, "n2", &repository);
    second.node.join(&first.node).await;
    let label = first.full_backup().await;
    first.node.sql("insert into t select generate_series(1, 900)").await;
    first.backup.mark().await.expect("archived");
    second.node.caught_up(&first.node).await;

    // The standby is promoted; the primary goes on for a while, and nobody archives that.
    second.node.postgres.follow(None, PATIENCE).await.expect("frozen");
    fs::write(first.settings.stop_file(), "").expect("written");
    first.node.sql("insert into t select generate_series(1, 7000)").await;
    second.node.postgres.promote(false, PATIENCE).await.expect("promoted");
    second.node.sql("insert into t select generate_series(1, 50)").await;
    second.backup.mark().await.expect("the new timeline is archived");
    second.node.sql("insert into t select generate_series(1, 5)").await;
    first.node.postgres.kill_family(PATIENCE).await.expect("gone");
    let version = first.node.data().join("base/1/PG_VERSION");
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("there"));
    let before = inode(&version);

    let noted = Noted::default();
    let stranger = first.backup.bring_standby(SystemIdentifier(7), &History::root(Timeline(1)), &noted, &|_| {}).await;
    assert!(stranger.expect_err("a stranger's").to_string().contains("this cluster's data"));
    let identifier = second.node.postgres.observe(PATIENCE).await.expect("answers").system_identifier;
    let elsewhere = first.backup.bring_standby(identifier, &History::root(Timeline(9)), &noted, &|_| {}).await;
    assert!(elsewhere.expect_err("another history").to_string().contains("no backup lies on"));
    assert_eq!(inode(&version), before);

    assert!(!noted.began(), "nothing was touched");
    let source = Source(&first.backup);
    let cloned = first.node.postgres.reclone_from(&second.node.upstream(), &source, &noted, &|_| {}).await;
    let words = cloned.expect("cloned");
    assert!(words.contains(&label) && words.contains("segments of WAL"), "{words}");
    assert!(noted.began(), "whoever remembers it was told before the data changed");
    assert_eq!(inode(&version), before, "what does not differ is left where it is");
    let kept = files_below(&first.node.settings.divergent_directory);
    let list = kept.iter().find(|file| file.ends_with("transactions.txt")).expect("listed");
    assert!(fs::read_to_string(list).expect("readable").contains("COMMIT"), "divergent WAL lies aside: {kept:?}");

    second.node.make_slot(&first.node).await;
    first.node.start_standby(Some(&second.node)).await;
    first.node.caught_up(&second.node).await;
    assert_eq!(first.node.sql("select count(*) from t").await.as_deref(), Some("1055"), "nothing of its own is left");

    // Nobody would go on where the copy ends: an empty node says so, and is not started.
    let third = host(&place, "n3", &repository);
    let nobody = third.node.upstream();
    let refused = third.node.postgres.reclone_from(&nobody, &Source(&third.backup), &Noted::default(), &|_| {}).await;
    assert!(refused.is_err(), "a primary that does not answer");
    let source = Source(&third.backup);
    let cloned = third.node.postgres.reclone_from(&second.node.upstream(), &source, &Noted::default(), &|_| {}).await;
    cloned.expect("a node without data too");
    second.node.make_slot(&third.node).await;
    third.node.start_standby(Some(&second.node)).await;
    third.node.caught_up(&second.node).await;
    assert_eq!(third.node.sql("select count(*) from t").await.as_deref(), Some("1055"));

    // Promoted, it archives what is new, and not once more what it came with.
    third.node.postgres.follow(None, PATIENCE).await.expect("frozen");
    second.node.postgres.kill_family(PATIENCE).await.expect("gone");
    third.node.postgres.promote(false, PATIENCE).await.expect("promoted");
    third.node.sql("checkpoint").await;
    let names = |directory: PathBuf| {
        let files = files_below(&directory);
        files.iter().filter_map(|file| file.file_name()?.to_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let archived = names(repository.join("archive/main"));
    let again: Vec<String> = names(third.node.data().join("pg_wal/archive_status"))
        .into_iter()
        .filter_map(|name| name.strip_suffix(".ready").map(str::to_owned))
        // Whole segments of the timelines before its own.
        .filter(|name| name.len() == 24 && !name.starts_with("00000003"))
        .filter(|name| archived.iter().any(|held| held.starts_with(name.as_str())))
        .collect();
    assert!(again.is_empty(), "{again:?}");
}
