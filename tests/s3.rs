//! A backup repository in a bucket: the real pgBackRest against a real S3-compatible server behind TLS.
//!
//! The server is moto (`scripts/setup` installs it); HAProxy ends TLS, because pgBackRest speaks nothing else.

#[expect(dead_code, reason = "nodes of other tests stream from each other")]
mod support;

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use stormglass::adapters::pgbackrest::{BackupSettings, LedgerTable, PgBackRest, RepositoryPlace};
use stormglass::adapters::postgres::Password;
use stormglass::adapters::system::boot_time;
use stormglass::domain::backup::{BackupType, RecoveryTarget};
use stormglass::ports::LocalPostgres;
use stormglass::ports::backup::BackupRepository;
use support::{PATIENCE, Place};

/// Ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

fn start(program: &Path, arguments: &[&str]) -> Server {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    Server(command.spawn().unwrap_or_else(|error| panic!("{}: {error}: run scripts/setup", program.display())))
}

/// `moto_server` of the path, or where `scripts/setup` puts it.
fn moto() -> PathBuf {
    let home = std::env::vars().find(|(name, _)| name == "HOME").map(|(_, home)| home).unwrap_or_default();
    let own = Path::new(&home).join(".cache/stormglass/moto/bin/moto_server");
    if own.exists() { own } else { PathBuf::from("moto_server") }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|it| it.local_addr()).expect("a free port").port()
}

/// Certificates of an authority of our own, for `localhost`.
fn certificates(directory: &Path) -> (PathBuf, PathBuf) {
    let issuer_key = rcgen::KeyPair::generate().expect("a key");
    let mut issuer = rcgen::CertificateParams::new(Vec::<String>::new()).expect("parameters");
    // With one name for both, OpenSSL would take the server's certificate for a self-signed one.
    issuer.distinguished_name.push(rcgen::DnType::CommonName, "the test's authority");
    issuer.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = issuer.self_signed(&issuer_key).expect("a certificate");
    let issuer = rcgen::Issuer::new(issuer, issuer_key);
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut server = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    server.distinguished_name.push(rcgen::DnType::CommonName, "localhost");
    let server = server.signed_by(&key, &issuer).expect("a certificate");
    let (ca_file, pem) = (directory.join("ca.crt"), directory.join("server.pem"));
    fs::write(&ca_file, authority.pem()).expect("written");
    fs::write(&pem, server.pem() + &key.serialize_pem()).expect("written");
    (ca_file, pem)
}

#[tokio::test]
async fn a_bucket_holds_encrypted_backups_that_can_be_restored() {
    let place = Place::new();
    let directory = place.directory("s3");
    let (ca_file, pem) = certificates(&directory);
    let (plain, tls) = (free_port(), free_port());
    let _moto = start(&moto(), &["-H", "127.0.0.1", "-p", &plain.to_string()]);
    let configuration = directory.join("haproxy.cfg");
    let text = format!(
        "defaults\n mode http\n timeout connect 2s\n timeout client 60s\n timeout server 60s\nlisten s3\n bind 127.0.0.1:{tls} ssl crt {}\n \
         server s 127.0.0.1:{plain}\n",
        pem.display()
    );
    fs::write(&configuration, text).expect("written");
    let haproxy = start(Path::new("/usr/sbin/haproxy"), &["-f", &configuration.to_string_lossy()]);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let began = boot_time();
    while !client
        .put(format!("http://127.0.0.1:{plain}/pgbackup"))
        .send()
        .await
        .is_ok_and(|answer| answer.status().is_success())
    {
        assert!(boot_time() - began < PATIENCE, "moto does not make a bucket");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let node = place.node("n1");
    let settings = BackupSettings {
        stanza: "main".to_owned(),
        place: RepositoryPlace::S3 {
            endpoint: format!("localhost:{tls}"),
            bucket: "pgbackup".to_owned(),
            region: "us-east-1".to_owned(),
            path: "/repository".to_owned(),
            key: Some(Password::new("test")),
            key_secret: Some(Password::new("testtest")),
            ca_file: Some(ca_file),
            path_style: true,
        },
        passphrase: Some(Password::new("a passphrase")),
        retention_full: 2,
        retention_diff: None,
        processes: 2,
        options: Default::default(),
        peers: Vec::new(),
        directory: place.directory("n1-backup"),
        drill_directory: place.directory("n1-drill"),
        data_directory: node.settings.data_directory.clone(),
        port: node.settings.address.port,
        socket_directory: node.settings.private_socket_directory.clone(),
        superuser: "postgres".to_owned(),
        superuser_password: None,
        bin_directory: None,
        ledger: vec![LedgerTable { database: "postgres".to_owned(), table: "public.t".to_owned() }],
        checks: Vec::new(),
        program: "/usr/bin/pgbackrest".into(),
    };
    let node = node.with_settings(|postgres| {
        for (name, value) in [("archive_mode", "on".to_owned()), ("archive_command", settings.archive_command())] {
            postgres.parameters.insert(name.to_owned(), value);
        }
        postgres.archive_stop_file = Some(settings.stop_file());
    });
    let backup = PgBackRest::new(settings.clone(), node.postgres.owner()).expect("configured");
    node.init_primary().await;
    node.sql("create table t as select generate_series(1, 100) as n").await;
    backup.prepare().await.expect("prepared");
    backup.prove_archiving().await.expect("WAL arrives in the bucket");
    let (label, _) = backup.backup(BackupType::Full, false).await.expect("backed up");
    node.sql("insert into t select generate_series(1, 900)").await;
    let (incremental, _) = backup.backup(BackupType::Incr, false).await.expect("backed up");
    assert!(incremental.starts_with(&label), "{incremental} rests on {label}");
    for label in [&label, &incremental] {
        backup.verify(label).await.expect("read back");
    }
    let mark = backup.mark().await.expect("archived");
    let copy = settings.drill_directory.join("copy");
    let plan = backup.plan(&RecoveryTarget::Latest, &copy, false, None).await.expect("can be restored");
    assert_eq!(plan.label, incremental);
    backup.restore(&plan.label, &copy, &|_| {}).await.expect("restored");
    backup.recover(&copy, &RecoveryTarget::Latest, true).await.expect("recovered");
    let checks = backup.check(&copy, &mark).await.expect("good data").join("; ");
    assert!(checks.contains("1000 rows"), "{checks}");
    backup.remove(&copy).await.expect("removed");

    // Nobody answers any more.
    drop(haproxy);
    let options = [("io-timeout".to_owned(), "2".to_owned())].into();
    let hasty = BackupSettings { options, directory: place.directory("n1-hasty"), ..settings };
    let hasty = PgBackRest::new(hasty, node.postgres.owner()).expect("configured");
    let error = hasty.backup(BackupType::Incr, false).await.expect_err("out of reach").to_string();
    assert!(error.contains("out of reach: see the network and the endpoint"), "{error}");
    let error = hasty.plan(&RecoveryTarget::Latest, &copy, false, None).await.expect_err("out of reach").to_string();
    assert!(error.contains("out of reach") || error.contains("nothing can be restored"), "{error}");
    node.postgres.stop_fast(PATIENCE).await.expect("stops");
}
