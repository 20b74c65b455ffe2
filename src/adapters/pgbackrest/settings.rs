//! What the adapter is told, and the configuration of pgBackRest that follows from it.
//!
//! Secrets stand in that file, which only PostgreSQL's user reads, and nowhere else: not on a command line, not in a log.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::adapters::postgres::Password;

/// Where the repository is.
#[derive(Debug, Clone)]
pub enum RepositoryPlace {
    /// A directory that every host of the cluster sees.
    Posix {
        /// Which.
        path: PathBuf,
    },
    /// A bucket.
    S3 {
        /// Host, with the port if it is not 443.
        endpoint: String,
        /// Bucket.
        bucket: String,
        /// Region.
        region: String,
        /// Path within the bucket.
        path: String,
        /// Access key; both absent: the host's own role.
        key: Option<Password>,
        /// Secret of the key.
        key_secret: Option<Password>,
        /// Certificates that the server's is checked against.
        ca_file: Option<PathBuf>,
        /// Bucket in the path instead of in the host's name.
        path_style: bool,
    },
}

/// Another node, for backups from a standby: pgBackRest asks the primary as well.
#[derive(Debug, Clone)]
pub struct PeerSettings {
    /// Host, where it is another one: pgBackRest must be reachable there by SSH or TLS.
    pub host: Option<String>,
    /// PGDATA there.
    pub data_directory: PathBuf,
    /// Port of its PostgreSQL.
    pub port: u16,
    /// Directory of a socket there; TCP is not used.
    pub socket_directory: Option<PathBuf>,
}

/// A check of a drill, beside those that are always made.
#[derive(Debug, Clone)]
pub struct CheckSettings {
    /// For people.
    pub name: String,
    /// Database.
    pub database: String,
    /// Must return true.
    pub sql: String,
}

/// A table whose rows are counted in the live cluster and in the copy.
#[derive(Debug, Clone)]
pub struct LedgerTable {
    /// Database.
    pub database: String,
    /// Table, with its schema.
    pub table: String,
}

/// Everything.
#[derive(Debug, Clone)]
pub struct BackupSettings {
    /// pgBackRest's name for the cluster.
    pub stanza: String,
    /// Where the repository is.
    pub place: RepositoryPlace,
    /// Encrypts the repository, if given.
    pub passphrase: Option<Password>,
    /// Full backups that are kept.
    pub retention_full: u32,
    /// Differential backups that are kept.
    pub retention_diff: Option<u32>,
    /// Processes of one run.
    pub processes: u32,
    /// Further options, as pgBackRest names them.
    pub options: BTreeMap<String, String>,
    /// Other nodes.
    pub peers: Vec<PeerSettings>,
    /// The agent's own directory for it: configuration, locks, logs, sockets of copies.
    pub directory: PathBuf,
    /// Where copies of drills are made.
    pub drill_directory: PathBuf,
    /// The node's PGDATA.
    pub data_directory: PathBuf,
    /// Its port.
    pub port: u16,
    /// The agent's private socket directory.
    pub socket_directory: PathBuf,
    /// Role that the agent manages with.
    pub superuser: String,
    /// Its password.
    pub superuser_password: Option<Password>,
    /// Where PostgreSQL's programs are; found for the version of the data if not given.
    pub bin_directory: Option<PathBuf>,
    /// Tables that drills count.
    pub ledger: Vec<LedgerTable>,
    /// Checks that drills make.
    pub checks: Vec<CheckSettings>,
    /// pgBackRest itself.
    pub program: PathBuf,
}

impl BackupSettings {
    /// The configuration for everything but backups from a standby.
    pub fn file(&self) -> PathBuf {
        self.directory.join("pgbackrest.conf")
    }

    /// The one that names the other nodes, too.
    pub fn standby_file(&self) -> PathBuf {
        self.directory.join("pgbackrest-standby.conf")
    }

    /// While it is there nothing is archived: PostgreSQL shuts down, and its clients wait for the next primary. What is left out
    /// that one brings ([`crate::ports::backup::BackupRepository::fill_archive`]).
    pub fn stop_file(&self) -> PathBuf {
        stop_file(&self.directory)
    }

    /// `archive_command`. Replaced by pgBackRest, so that killing it ends PostgreSQL's archiver, too.
    pub fn archive_command(&self) -> String {
        // PostgreSQL replaces `%`.
        let quote = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''").replace('%', "%%"));
        format!(
            "test ! -e {} || exit 255; exec {} --config={} --stanza={} archive-push \"%p\"",
            quote(&self.stop_file()),
            quote(&self.program),
            quote(&self.file()),
            self.stanza
        )
    }

    /// `restore_command` of a copy.
    pub(super) fn restore_command(&self, directory: &Path) -> String {
        // PostgreSQL replaces `%`.
        let quote = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''").replace('%', "%%"));
        format!(
            "{} --config={} --stanza={} --pg1-path={} archive-get %f \"%p\"",
            quote(&self.program),
            quote(&self.file()),
            self.stanza,
            quote(directory)
        )
    }

    /// `pgbackrest.conf`; with `peers`, for a backup from this standby.
    pub(super) fn render(&self, with_peers: bool) -> String {
        let mut text = String::from("# Written by the agent; changes here are lost.\n[global]\n");
        let mut set = |name: &str, value: &str| {
            let _ = writeln!(text, "{name}={value}");
        };
        match &self.place {
            RepositoryPlace::Posix { path } => {
                set("repo1-type", "posix");
                set("repo1-path", &path.display().to_string());
            }
            RepositoryPlace::S3 { endpoint, bucket, region, path, key, key_secret, ca_file, path_style } => {
                let (host, port) = match endpoint.rsplit_once(':') {
                    Some((host, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => (host, Some(port)),
                    _ => (endpoint.as_str(), None),
                };
                set("repo1-type", "s3");
                set("repo1-path", path);
                set("repo1-s3-endpoint", host);
                // The name that the certificate is checked for, too.
                set("repo1-storage-host", host);
                if let Some(port) = port {
                    set("repo1-storage-port", port);
                }
                set("repo1-s3-bucket", bucket);
                set("repo1-s3-region", region);
                match (key, key_secret) {
                    (Some(key), Some(secret)) => {
                        set("repo1-s3-key", key.expose());
                        set("repo1-s3-key-secret", secret.expose());
                    }
                    _ => set("repo1-s3-key-type", "auto"),
                }
                if let Some(file) = ca_file {
                    set("repo1-storage-ca-file", &file.display().to_string());
                }
                set("repo1-s3-uri-style", if *path_style { "path" } else { "host" });
            }
        }
        if let Some(passphrase) = &self.passphrase {
            set("repo1-cipher-type", "aes-256-cbc");
            set("repo1-cipher-pass", passphrase.expose());
        }
        set("repo1-retention-full", &self.retention_full.to_string());
        if let Some(diff) = self.retention_diff {
            set("repo1-retention-diff", &diff.to_string());
        }
        let in_directory = |name: &str| self.directory.join(name).display().to_string();
        let mut rest = BTreeMap::from([
            ("archive-timeout", "60".to_owned()),
            ("compress-type", "lz4".to_owned()),
            ("io-timeout", "15".to_owned()),
            ("lock-path", in_directory("lock")),
            ("log-level-console", "warn".to_owned()),
            ("log-level-file", "off".to_owned()),
            ("log-level-stderr", "off".to_owned()),
            ("log-path", in_directory("log")),
            ("process-max", self.processes.to_string()),
            ("repo1-bundle", "y".to_owned()),
            ("spool-path", in_directory("spool")),
            ("start-fast", "y".to_owned()),
        ]);
        if with_peers {
            rest.insert("backup-standby", "y".to_owned());
        }
        for (name, value) in &self.options {
            rest.insert(name, value.clone());
        }
        for (name, value) in &rest {
            set(name, value);
        }
        let _ = write!(text, "\n[{}]\n", self.stanza);
        let mut set = |number: usize, name: &str, value: &str| {
            let _ = writeln!(text, "pg{number}-{name}={value}");
        };
        set(1, "path", &self.data_directory.display().to_string());
        set(1, "port", &self.port.to_string());
        set(1, "socket-path", &self.socket_directory.display().to_string());
        set(1, "user", &self.superuser);
        for (number, peer) in (2..).zip(self.peers.iter().filter(|_| with_peers)) {
            if let Some(host) = &peer.host {
                set(number, "host", host);
            }
            set(number, "path", &peer.data_directory.display().to_string());
            set(number, "port", &peer.port.to_string());
            if let Some(directory) = &peer.socket_directory {
                set(number, "socket-path", &directory.display().to_string());
            }
            set(number, "user", &self.superuser);
        }
        text
    }
}

/// See [`BackupSettings::stop_file`].
pub fn stop_file(directory: &Path) -> PathBuf {
    directory.join("archiving-stopped")
}

#[cfg(test)]
pub(super) fn example() -> BackupSettings {
    BackupSettings {
        stanza: "main".to_owned(),
        place: RepositoryPlace::Posix { path: "/backup".into() },
        passphrase: Some(Password::new("hush")),
        retention_full: 2,
        retention_diff: None,
        processes: 1,
        options: BTreeMap::from([("io-timeout".to_owned(), "60".to_owned())]),
        peers: vec![PeerSettings {
            host: Some("db2".to_owned()),
            data_directory: "/data2".into(),
            port: 5432,
            socket_directory: None,
        }],
        directory: "/state/backup".into(),
        drill_directory: "/state/drill".into(),
        data_directory: "/data".into(),
        port: 5433,
        socket_directory: "/state/socket".into(),
        superuser: "postgres".to_owned(),
        superuser_password: None,
        bin_directory: None,
        ledger: Vec::new(),
        checks: Vec::new(),
        program: "/usr/bin/pgbackrest".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_described_with_its_passphrase_and_the_users_options_win() {
        let text = example().render(false);
        for line in [
            "repo1-type=posix",
            "repo1-path=/backup",
            "repo1-cipher-pass=hush",
            "repo1-retention-full=2",
            "io-timeout=60",
            "pg1-path=/data",
            "pg1-socket-path=/state/socket",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("pg2-") && !text.contains("backup-standby"), "{text}");
        assert!(text.find("[main]") > text.find("spool-path"), "{text}");
        assert!(!format!("{:?}", example()).contains("hush"), "the passphrase is shown");
    }

    #[test]
    fn a_backup_from_a_standby_names_the_other_nodes() {
        let text = example().render(true);
        for line in ["backup-standby=y", "pg2-host=db2", "pg2-path=/data2", "pg2-port=5432"] {
            assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_bucket_is_described_with_host_and_port_apart() {
        let place = RepositoryPlace::S3 {
            endpoint: "localhost:21443".to_owned(),
            bucket: "b".to_owned(),
            region: "us-east-1".to_owned(),
            path: "/repo".to_owned(),
            key: Some(Password::new("k")),
            key_secret: Some(Password::new("s")),
            ca_file: Some("/ca.crt".into()),
            path_style: true,
        };
        let text = BackupSettings { place, ..example() }.render(false);
        for line in
            ["repo1-s3-endpoint=localhost", "repo1-storage-port=21443", "repo1-s3-uri-style=path", "repo1-s3-key=k"]
        {
            assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn archiving_stops_where_the_file_is_and_quotes_what_the_shell_would_read() {
        let settings = BackupSettings { directory: "/it's here".into(), ..example() };
        let command = settings.archive_command();
        assert!(command.starts_with("test ! -e '/it'\\''s here/archiving-stopped' || exit 255; exec "), "{command}");
        assert!(command.ends_with("archive-push \"%p\""), "{command}");
    }
}
