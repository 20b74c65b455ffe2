//! What is on disk: closed to clients, and managed by the agent (design, rule 8).
//!
//! All settings of the agent stand in one include file at the end of `postgresql.conf`. Invariant: whatever state a crash
//! leaves behind, a start by hand reaches nobody; only the command line of `process::start` opens PostgreSQL.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::errors::failed;
use super::files::{hand_over, make_private_directory, remove, write_atomically};
use super::parameters::{FIXED, line, parse_line, quote, quote_conninfo, read_file};
use super::settings::Setup;
use crate::domain::ids::NodeName;
use crate::ports::postgres::{PostgresError, Upstream};

/// The include file, beside `postgresql.conf`.
const INCLUDE_FILE: &str = "stormglass.conf";

/// The line that includes it.
const INCLUDE_LINE: &str =
    "include_if_exists 'stormglass.conf'  # keep last: the agent's settings, closed to clients on disk";

/// Set unless the user sets them. Replication notices a lost peer within seconds, and a standby looks for WAL again after
/// 100 ms instead of 5 s, which otherwise stalls every second promotion right after the primary's death.
const DEFAULTS: [(&str, &str); 5] = [
    // A primary that was fenced in order made one more checkpoint, which gives WAL away that pg_rewind reads.
    ("wal_keep_size", "512MB"),
    ("wal_retrieve_retry_interval", "100ms"),
    ("wal_receiver_status_interval", "1s"),
    ("wal_receiver_timeout", "5s"),
    ("wal_sender_timeout", "5s"),
];

/// Least values: three held connections and the probes fit into the reserved ones; every node streams, is cloned and rewound at once.
const MINIMA: [(&str, u64); 3] =
    [("max_wal_senders", 10), ("max_replication_slots", 10), ("superuser_reserved_connections", 5)];

/// The parameter that bounds what slots keep.
const SLOTS_KEEP: &str = "max_slot_wal_keep_size";

/// The slots of nodes that are away keep no more WAL than this part of the volume that it is on: a full one ends the primary.
const SLOTS_PART_OF_VOLUME: u64 = 4;

/// A standby that nobody is: commits that wait for it wait for ever.
const NOBODY: &str = "stormglass-nobody";

/// The settings that change while PostgreSQL runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Managed {
    pub primary_conninfo: String,
    pub primary_slot_name: String,
    pub synchronous_standby_names: String,
}

impl Managed {
    /// Settings of a standby of `upstream`.
    pub(super) fn standby_of(setup: &Setup, upstream: Option<&Upstream>) -> Self {
        Self {
            primary_conninfo: upstream.map(|upstream| streaming_conninfo(setup, upstream)).unwrap_or_default(),
            primary_slot_name: upstream.map(|_| setup.settings.node.slot()).unwrap_or_default(),
            synchronous_standby_names: String::new(),
        }
    }
}

/// `synchronous_standby_names` for these names: every one of them confirms every commit.
pub(super) fn render_synchronous(names: &BTreeSet<NodeName>, block_when_alone: bool) -> String {
    if names.is_empty() {
        return if block_when_alone { format!("FIRST 1 (\"{NOBODY}\")") } else { String::new() };
    }
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    format!("FIRST {} ({})", quoted.len(), quoted.join(","))
}

fn streaming_conninfo(setup: &Setup, upstream: &Upstream) -> String {
    conninfo(setup, upstream, setup.settings.node.as_str())
}

/// How this node reaches `upstream` as the replication role. The password is in a file, never in a setting or on a command line.
pub(super) fn conninfo(setup: &Setup, upstream: &Upstream, application_name: &str) -> String {
    let mut text = format!(
        "host={} port={} user={} application_name={} connect_timeout=3 keepalives_idle=2 keepalives_interval=1 keepalives_count=3",
        quote_conninfo(&upstream.address.host),
        upstream.address.port,
        quote_conninfo(&setup.settings.replication_user),
        quote_conninfo(application_name),
    );
    if setup.settings.replication_password.is_some() {
        let _ = write!(text, " passfile={}", quote_conninfo(&setup.pass_file().to_string_lossy()));
    }
    text
}

/// The include file's present settings, if it is this node's: after a rewind it may be another node's.
pub(super) fn read_managed(setup: &Setup, data: &Path) -> Option<Managed> {
    let text = fs::read_to_string(setup.config_directory(data).join(INCLUDE_FILE)).ok()?;
    let found: BTreeMap<_, _> = text.lines().filter_map(parse_line).collect();
    (found.get("cluster_name")? == setup.settings.node.as_str()).then(|| pick_managed(&found))
}

fn pick_managed(found: &BTreeMap<String, String>) -> Managed {
    let get = |name: &str| found.get(name).cloned().unwrap_or_default();
    Managed {
        primary_conninfo: get("primary_conninfo"),
        primary_slot_name: get("primary_slot_name"),
        synchronous_standby_names: get("synchronous_standby_names"),
    }
}

/// Writes everything. `managed`: the changing settings; `None` keeps what this node has, so that a running PostgreSQL that
/// reads its files again goes on as it was.
pub(super) fn secure(setup: &Setup, data: &Path, managed: Option<&Managed>) -> Result<(), PostgresError> {
    const ACTION: &str = "secure the configuration";
    let at = |path: &Path, error: std::io::Error| failed(ACTION, format!("{}: {error}", path.display()));
    let directory = setup.config_directory(data);
    let main_file = directory.join("postgresql.conf");
    let auto_file = data.join("postgresql.auto.conf");
    let include_file = directory.join(INCLUDE_FILE);
    let main_text = fs::read_to_string(&main_file).map_err(|error| {
        failed(ACTION, format!("{}: {error}; set config_directory if it is elsewhere", main_file.display()))
    })?;

    let mut present = read_file(&main_file, INCLUDE_FILE);
    present.extend(read_file(&auto_file, INCLUDE_FILE));
    let kept = match managed {
        Some(managed) => managed.clone(),
        None => read_managed(setup, data).unwrap_or_else(|| pick_managed(&present)),
    };
    write_private(setup).map_err(|error| at(&setup.settings.private_socket_directory, error))?;
    // The include file comes first: once postgresql.conf names it, it is there.
    write_atomically(&include_file, &render(setup, &present, &kept, volume_bytes(&data.join("pg_wal"))), setup.owner)
        .map_err(|error| at(&include_file, error))?;
    write_atomically(&main_file, &with_include(&main_text), setup.owner).map_err(|error| at(&main_file, error))?;
    if let Ok(auto_text) = fs::read_to_string(&auto_file) {
        write_atomically(&auto_file, &without_fixed(&auto_text), setup.owner).map_err(|error| at(&auto_file, error))?;
    }
    close_postmaster_options(setup, data).map_err(|error| at(&data.join("postmaster.opts"), error))
}

/// The size of the volume that `directory` is on, if it can be asked.
fn volume_bytes(directory: &Path) -> Option<u64> {
    rustix::fs::statvfs(directory).ok().map(|found| found.f_blocks * found.f_frsize)
}

/// The private directory with the password file in it. Lost with every reboot where it is below `/run`.
pub(super) fn write_private(setup: &Setup) -> std::io::Result<()> {
    let settings = &setup.settings;
    make_private_directory(&settings.private_socket_directory, setup.owner)?;
    if let Some(password) = &settings.replication_password {
        let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
        let text = format!("*:*:*:{}:{}\n", escape(&settings.replication_user), escape(password.expose()));
        write_atomically(&setup.pass_file(), &text, setup.owner)?;
    }
    Ok(())
}

/// Whether PostgreSQL starts again by itself after one of its processes crashed. Not while commits wait for a standby: recovery
/// would show clients what no standby has confirmed, and the standby may be promoted a moment later without it. So it ends, and
/// the ledger decides who goes on.
fn restart_after_crash(managed: &Managed) -> &'static str {
    if managed.synchronous_standby_names.is_empty() { "on" } else { "off" }
}

/// `max_slot_wal_keep_size` in megabytes for a volume of so many bytes.
fn slots_keep_megabytes(volume_bytes: u64) -> u64 {
    ((volume_bytes / SLOTS_PART_OF_VOLUME) >> 20).max(1)
}

/// The include file. `present`: what the user's own files say; `wal_volume_bytes`: the size of the volume that WAL is on.
fn render(
    setup: &Setup,
    present: &BTreeMap<String, String>,
    managed: &Managed,
    wal_volume_bytes: Option<u64>,
) -> String {
    let settings = &setup.settings;
    let wish = |name: &str| settings.parameters.get(name).or_else(|| present.get(name));
    let mut text = String::from(
        "# Written by the agent; changes here are lost. Closed to clients on purpose: only the agent opens PostgreSQL, while\n\
         # the node may be reached. Set further parameters in the agent's configuration or in postgresql.conf.\n",
    );
    for (name, value) in DEFAULTS {
        if !settings.parameters.contains_key(name) {
            text += &line(name, value);
        }
    }
    if let Some(bytes) = wal_volume_bytes.filter(|_| wish(SLOTS_KEEP).is_none()) {
        text += &line(SLOTS_KEEP, &format!("{}MB", slots_keep_megabytes(bytes)));
    }
    for (name, value) in &settings.parameters {
        text += &line(name, value);
    }
    for (name, least) in MINIMA {
        let value = wish(name).and_then(|value| value.parse().ok()).unwrap_or(least).max(least);
        text += &line(name, &value.to_string());
    }
    let wal_level = if wish("wal_level").is_some_and(|level| level == "logical") { "logical" } else { "replica" };
    for (name, value) in [
        ("wal_level", wal_level),
        ("hot_standby", "on"),
        ("wal_log_hints", "on"),
        ("restart_after_crash", restart_after_crash(managed)),
        ("recovery_target_timeline", "latest"),
        ("listen_addresses", ""),
        ("unix_socket_directories", &settings.private_socket_directory.to_string_lossy()),
        ("port", &settings.address.port.to_string()),
        ("cluster_name", settings.node.as_str()),
        ("primary_conninfo", &managed.primary_conninfo),
        ("primary_slot_name", &managed.primary_slot_name),
        ("synchronous_standby_names", &managed.synchronous_standby_names),
    ] {
        text += &line(name, value);
    }
    text
}

/// `postgresql.conf` with the include as its last line.
fn with_include(text: &str) -> String {
    let is_ours =
        |line: &str| parse_line(line).is_some_and(|(name, value)| name == "include_if_exists" && value == INCLUDE_FILE);
    let mut kept: Vec<&str> = text.lines().filter(|line| !is_ours(line)).collect();
    while kept.last().is_some_and(|line| line.trim().is_empty()) {
        kept.pop();
    }
    kept.push(INCLUDE_LINE);
    kept.join("\n") + "\n"
}

/// `postgresql.auto.conf` without the agent's parameters, which it would override.
fn without_fixed(text: &str) -> String {
    text.lines()
        .filter(|line| !parse_line(line).is_some_and(|(name, _)| FIXED.contains(&name.as_str())))
        .fold(String::new(), |kept, line| kept + line + "\n")
}

/// Takes the opening options out of `postmaster.opts`, which `pg_ctl restart` by hand would use again.
pub(super) fn close_postmaster_options(setup: &Setup, data: &Path) -> std::io::Result<()> {
    let path = data.join("postmaster.opts");
    let Ok(mut text) = fs::read_to_string(&path) else { return Ok(()) };
    for name in ["listen_addresses", "unix_socket_directories", "hba_file"] {
        let opening = format!(" \"-c\" \"{name}=");
        while let Some(begin) = text.find(&opening) {
            let value = begin + opening.len();
            let end = text[value..].find('"').map_or(text.trim_end().len(), |length| value + length + 1);
            text.replace_range(begin..end, "");
        }
    }
    write_atomically(&path, &text, setup.owner).map(drop)
}

/// Makes the next start one of a standby, or of a primary.
pub(super) fn set_signal_files(setup: &Setup, data: &Path, is_standby: bool) -> Result<(), PostgresError> {
    const ACTION: &str = "set standby.signal";
    let at = |error: std::io::Error| failed(ACTION, format!("{}: {error}", data.display()));
    remove(&data.join("recovery.signal")).map_err(at)?;
    // Left by a promotion that was killed half-way; it would promote a standby unasked.
    remove(&data.join("promote")).map_err(at)?;
    let standby = data.join("standby.signal");
    if is_standby {
        write_atomically(&standby, "", setup.owner).map_err(at)?;
        return hand_over(&standby, setup.owner).map_err(at);
    }
    remove(&standby).map_err(at)?;
    super::files::sync_parent(&standby).map_err(at)
}

/// The value as it stands in the include file; for comparing with `current_setting`.
pub(super) fn replace_managed(setup: &Setup, change: impl FnOnce(&mut Managed)) -> Result<(), PostgresError> {
    let mut managed = read_managed(setup, &setup.data).unwrap_or_default();
    change(&mut managed);
    secure(setup, &setup.data, Some(&managed))
}

/// A text literal of SQL.
pub(super) fn literal(text: &str) -> String {
    // With a backslash it needs the E form; quote() escapes both.
    format!("E{}", quote(text))
}

#[cfg(test)]
#[path = "configuration_tests.rs"]
mod tests;
