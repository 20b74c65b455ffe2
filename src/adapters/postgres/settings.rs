//! What the adapter must be told about its PostgreSQL, and what it finds out once from that.
//!
//! Never reads the product's configuration files: `main.rs` maps them to [`PostgresSettings`].

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::errors::failed;
use super::lane::Lanes;
use super::parameters::{FIXED, is_parameter_name};
use crate::adapters::system::Family;
use crate::domain::ids::{Address, NodeName};
use crate::ports::postgres::PostgresError;

/// Where distributions put one directory for each major version.
const VERSIONS_DIRECTORY: &str = "/usr/lib/postgresql";

/// `sun_path` holds 108 bytes with the closing zero.
const SOCKET_PATH_LENGTH_MAX: usize = 107;

/// A password that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Wraps a password.
    pub fn new(password: impl Into<String>) -> Self {
        Self(password.into())
    }

    pub(in crate::adapters) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(hidden)")
    }
}

/// Everything the adapter is told.
#[derive(Debug, Clone)]
pub struct PostgresSettings {
    /// The node; also `cluster_name`, and `application_name` of its WAL receiver.
    pub node: NodeName,
    /// PGDATA. Need not exist yet.
    pub data_directory: PathBuf,
    /// Where `postgresql.conf` is, if not in the data directory (Debian: below `/etc/postgresql`).
    pub config_directory: Option<PathBuf>,
    /// Where `postgres`, `pg_ctl`, `pg_rewind`, `psql` are; see [`discover_bin_directory`] if not given.
    pub bin_directory: Option<PathBuf>,
    /// Where others reach this PostgreSQL. Its port is the server's port.
    pub address: Address,
    /// `listen_addresses` of a start by the agent.
    pub listen_addresses: String,
    /// The agent's own socket directory: made if missing, mode 0700.
    pub private_socket_directory: PathBuf,
    /// Socket directories for clients, of a start by the agent. Must exist.
    pub client_socket_directories: Vec<PathBuf>,
    /// Role that the agent manages with, over the private socket.
    pub superuser: String,
    /// Its password, where `pg_hba.conf` asks for one.
    pub superuser_password: Option<Password>,
    /// Role that this node streams and rewinds with.
    pub replication_user: String,
    /// Its password.
    pub replication_password: Option<Password>,
    /// Further parameters to set.
    pub parameters: BTreeMap<String, String>,
    /// Where divergent WAL is kept aside.
    pub divergent_directory: PathBuf,
    /// Who runs PostgreSQL, if this process is root; the owner of the data directory if not given.
    pub os_user: Option<String>,
    /// Where PostgreSQL writes what it says before its own logging begins.
    pub log_file: PathBuf,
    /// A file while which is there `archive_command` ends at once: a shutdown waits for no repository.
    pub archive_stop_file: Option<PathBuf>,
}

/// Whose files and processes PostgreSQL's are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// This process is root and has to hand over files and start programs as the owner.
    pub switch: bool,
}

/// Settings with everything that is found out once.
#[derive(Debug)]
pub(super) struct Setup {
    pub settings: PostgresSettings,
    /// Canonical.
    pub data: PathBuf,
    pub owner: Owner,
    pub family: Family,
    pub lanes: Lanes,
}

impl Setup {
    pub(super) fn new(settings: PostgresSettings) -> Result<Self, PostgresError> {
        check(&settings).map_err(|problem| failed("check the PostgreSQL settings", problem))?;
        let data = canonical(&settings.data_directory).map_err(|problem| failed("find the data directory", problem))?;
        let owner =
            find_owner(&settings, &data).map_err(|problem| failed("find the owner of the data directory", problem))?;
        let family = Family::new(owner.uid, data.clone());
        Ok(Self { settings, data, owner, family, lanes: Lanes::default() })
    }

    /// Directory of `postgresql.conf` for a data directory at `data` (the real one, or a backup about to replace it).
    pub(super) fn config_directory<'a>(&'a self, data: &'a Path) -> &'a Path {
        self.settings.config_directory.as_deref().unwrap_or(data)
    }

    /// Path of one of PostgreSQL's programs.
    pub(super) fn program(&self, name: &str) -> Result<PathBuf, String> {
        let directory = match &self.settings.bin_directory {
            Some(directory) => directory.clone(),
            None => discover_bin_directory(&self.data)?,
        };
        let path = directory.join(name);
        if path.is_file() {
            Ok(path)
        } else {
            Err(format!("{} does not exist: install it, or set bin_directory", path.display()))
        }
    }

    /// True if there is a database cluster in the data directory.
    pub(super) fn has_data(&self) -> bool {
        self.data.join("PG_VERSION").exists()
    }

    pub(super) fn pass_file(&self) -> PathBuf {
        self.settings.private_socket_directory.join("passfile")
    }
}

/// Finds PostgreSQL's programs for the version of the data in `data_directory`; without data, the newest installed.
pub fn discover_bin_directory(data_directory: &Path) -> Result<PathBuf, String> {
    if let Ok(version) = fs::read_to_string(data_directory.join("PG_VERSION")) {
        let version = version.trim();
        let directory = Path::new(VERSIONS_DIRECTORY).join(version).join("bin");
        return if directory.join("postgres").is_file() {
            Ok(directory)
        } else {
            Err(format!(
                "the data in {} is of PostgreSQL {version}, and {} has no such server: install it, or set bin_directory",
                data_directory.display(),
                directory.display()
            ))
        };
    }
    fs::read_dir(VERSIONS_DIRECTORY)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|major| Path::new(VERSIONS_DIRECTORY).join(major.to_string()).join("bin/postgres").is_file())
        .max()
        .map(|major| Path::new(VERSIONS_DIRECTORY).join(major.to_string()).join("bin"))
        .ok_or_else(|| format!("no PostgreSQL below {VERSIONS_DIRECTORY}: install it, or set bin_directory"))
}

fn check(settings: &PostgresSettings) -> Result<(), String> {
    let socket = settings.private_socket_directory.join(format!(".s.PGSQL.{}", settings.address.port));
    let length = socket.as_os_str().len();
    if length > SOCKET_PATH_LENGTH_MAX {
        return Err(format!(
            "the socket {} has {length} bytes in its path and the system allows {SOCKET_PATH_LENGTH_MAX}: use a shorter directory",
            socket.display()
        ));
    }
    let sockets = settings.client_socket_directories.iter().chain([&settings.private_socket_directory]);
    for directory in sockets {
        let text = directory.to_str().ok_or_else(|| format!("{} is not UTF-8", directory.display()))?;
        if !directory.is_absolute() || text.contains([',', '"', '\n']) || text.contains(char::is_whitespace) {
            return Err(format!(
                "socket directory {text:?} must be an absolute path without spaces, commas and quotes"
            ));
        }
    }
    if settings.listen_addresses.contains(['"', '\n', '\'']) {
        return Err(format!("listen_addresses {:?} must not contain quotes", settings.listen_addresses));
    }
    for name in settings.parameters.keys() {
        if !is_parameter_name(name) {
            return Err(format!("{name:?} is not the name of a parameter"));
        }
        if FIXED.contains(&name.to_ascii_lowercase().as_str()) {
            return Err(format!("parameter {name} is the agent's own: remove it from the parameters"));
        }
    }
    Ok(())
}

/// Canonical path, also where only the parent exists yet.
fn canonical(path: &Path) -> Result<PathBuf, String> {
    if let Ok(path) = fs::canonicalize(path) {
        return Ok(path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(format!("{} is no path of a directory", path.display()));
    };
    fs::canonicalize(parent)
        .map(|parent| parent.join(name))
        .map_err(|error| format!("{}: {error}; create the parent of the data directory", parent.display()))
}

fn find_owner(settings: &PostgresSettings, data: &Path) -> Result<Owner, String> {
    let own_uid = rustix::process::geteuid().as_raw();
    let present = fs::metadata(data).ok();
    if own_uid != 0 {
        if let Some(found) = present.filter(|found| found.uid() != own_uid) {
            return Err(format!(
                "{} belongs to user id {} and the agent runs as {own_uid}: run the agent as that user, or as root",
                data.display(),
                found.uid()
            ));
        }
        return Ok(Owner { uid: own_uid, gid: rustix::process::getegid().as_raw(), switch: false });
    }
    let (uid, gid) = match (&settings.os_user, present) {
        (Some(name), _) => look_up_user(name)?,
        (None, Some(found)) => (found.uid(), found.gid()),
        (None, None) => look_up_user("postgres")?,
    };
    if uid == 0 {
        return Err(
            "PostgreSQL does not run as root: give the data directory to another user, or set os_user".to_owned()
        );
    }
    Ok(Owner { uid, gid, switch: true })
}

fn look_up_user(name: &str) -> Result<(u32, u32), String> {
    let users = fs::read_to_string("/etc/passwd").map_err(|error| format!("/etc/passwd: {error}"))?;
    users
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == name).then_some(())?;
            Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
        })
        .next()
        .ok_or_else(|| format!("user {name:?} is not in /etc/passwd: create it, or set os_user"))
}
