//! Tests of what is written to disk.

use super::*;
use crate::adapters::postgres::settings::{Password, PostgresSettings};
use crate::domain::ids::Address;

fn setup(home: &Path) -> Setup {
    fs::create_dir(home.join("data")).expect("create");
    Setup::new(PostgresSettings {
        node: NodeName::new("n1").expect("valid"),
        data_directory: home.join("data"),
        config_directory: None,
        bin_directory: None,
        address: Address::new("127.0.0.1", 5999),
        listen_addresses: "127.0.0.1".to_owned(),
        private_socket_directory: home.join("run"),
        client_socket_directories: vec![],
        superuser: "postgres".to_owned(),
        superuser_password: None,
        replication_user: "repl:icator".to_owned(),
        replication_password: Some(Password::new("s3:cr\\et")),
        parameters: BTreeMap::from([("wal_sender_timeout".to_owned(), "9s".to_owned())]),
        divergent_directory: home.join("divergent"),
        os_user: rustix::process::geteuid().is_root().then(|| "postgres".to_owned()),
        log_file: home.join("postgres.log"),
        archive_stop_file: None,
    })
    .expect("valid settings")
}

fn effective(home: &Path) -> BTreeMap<String, String> {
    let mut found = read_file(&home.join("data/postgresql.conf"), "");
    found.extend(read_file(&home.join("data/postgresql.auto.conf"), ""));
    found
}

#[test]
fn what_is_on_disk_is_closed_whatever_the_user_wrote() {
    let home = tempfile::tempdir().expect("temp");
    let setup = setup(home.path());
    fs::write(
        setup.data.join("postgresql.conf"),
        "listen_addresses = '*'\nmax_wal_senders = 40\nwal_level = logical\ninclude_if_exists 'stormglass.conf'\nport = 1\n",
    )
    .expect("write");
    fs::write(
        setup.data.join("postgresql.auto.conf"),
        "listen_addresses = '*'\nwork_mem = '8MB'\nprimary_conninfo = 'host=old'\n",
    )
    .expect("write");
    secure(&setup, &setup.data, None).expect("secured");
    let found = effective(home.path());
    assert_eq!(found["listen_addresses"], "");
    assert_eq!(found["unix_socket_directories"], home.path().join("run").to_string_lossy());
    assert_eq!((found["port"].as_str(), found["wal_level"].as_str()), ("5999", "logical"));
    assert_eq!((found["max_wal_senders"].as_str(), found["max_replication_slots"].as_str()), ("40", "10"));
    assert_eq!((found["work_mem"].as_str(), found["wal_sender_timeout"].as_str()), ("8MB", "9s"));
    assert_eq!(found["primary_conninfo"], "host=old", "a running standby goes on streaming");

    let before = fs::read_to_string(setup.data.join("stormglass.conf")).expect("written");
    secure(&setup, &setup.data, None).expect("secured again");
    assert_eq!(fs::read_to_string(setup.data.join("stormglass.conf")).expect("written"), before);
    let main = fs::read_to_string(setup.data.join("postgresql.conf")).expect("written");
    assert_eq!(main.matches("stormglass.conf").count(), 1);
    assert!(main.trim_end().ends_with(INCLUDE_LINE));
}

#[test]
fn the_password_is_in_a_file_of_its_own() {
    let home = tempfile::tempdir().expect("temp");
    let setup = setup(home.path());
    fs::write(setup.data.join("postgresql.conf"), "").expect("write");
    let upstream = Upstream { node: NodeName::new("n2").expect("valid"), address: Address::new("db2", 5432) };
    secure(&setup, &setup.data, Some(&Managed::standby_of(&setup, Some(&upstream)))).expect("secured");
    let found = effective(home.path());
    assert!(!found["primary_conninfo"].contains("s3"), "{}", found["primary_conninfo"]);
    assert!(found["primary_conninfo"].contains("application_name='n1'"));
    assert_eq!(found["primary_slot_name"], "stormglass_n1");
    let passfile = fs::read_to_string(home.path().join("run/passfile")).expect("written");
    assert_eq!(passfile, "*:*:*:repl\\:icator:s3\\:cr\\\\et\n");
}

#[test]
fn another_nodes_include_file_lends_nothing() {
    let home = tempfile::tempdir().expect("temp");
    let setup = setup(home.path());
    fs::write(setup.data.join("postgresql.conf"), "").expect("write");
    fs::write(setup.data.join(INCLUDE_FILE), "cluster_name = 'n2'\nsynchronous_standby_names = 'n3'\n").expect("write");
    assert_eq!(read_managed(&setup, &setup.data), None);
    secure(&setup, &setup.data, None).expect("secured");
    assert_eq!(effective(home.path())["synchronous_standby_names"], "");
}

#[test]
fn a_restart_by_hand_stays_closed() {
    let home = tempfile::tempdir().expect("temp");
    let setup = setup(home.path());
    let path = setup.data.join("postmaster.opts");
    let closed = "/bin/postgres \"-D\" \"/data\" \"-c\" \"shared_buffers=1MB\"\n";
    fs::write(&path, "/bin/postgres \"-D\" \"/data\" \"-c\" \"listen_addresses=127.0.0.1,::1\" \"-c\" \"unix_socket_directories=/a,/b\" \"-c\" \"shared_buffers=1MB\"\n")
        .expect("write");
    close_postmaster_options(&setup, &setup.data).expect("closed");
    assert_eq!(fs::read_to_string(&path).expect("there"), closed);
    close_postmaster_options(&setup, &setup.data).expect("closed again");
    assert_eq!(fs::read_to_string(&path).expect("there"), closed);
}

#[test]
fn synchronous_names_are_quoted_and_nobody_blocks() {
    let names = |names: &[&str]| names.iter().map(|name| NodeName::new(*name).expect("valid")).collect();
    assert_eq!(render_synchronous(&names(&["b-1", "a"]), false), "FIRST 1 (\"a\",\"b-1\")");
    assert_eq!(render_synchronous(&names(&[]), false), "");
    assert_eq!(render_synchronous(&names(&[]), true), "FIRST 1 (\"stormglass-nobody\")");
}

#[test]
fn parameters_of_the_agent_cannot_be_set_by_others() {
    let home = tempfile::tempdir().expect("temp");
    let good = setup(home.path()).settings;
    for (name, word) in [("listen_addresses", "agent's own"), ("a b", "not the name")] {
        let parameters = BTreeMap::from([(name.to_owned(), "x".to_owned())]);
        let error = Setup::new(PostgresSettings { parameters, ..good.clone() }).expect_err("refused");
        assert!(error.to_string().contains(word), "{error}");
    }
    let long = home.path().join("x".repeat(100));
    let error = Setup::new(PostgresSettings { private_socket_directory: long, ..good }).expect_err("refused");
    assert!(error.to_string().contains("shorter directory"), "{error}");
}
