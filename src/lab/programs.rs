//! Finds the programs that a lab is made of, and says which package a missing one is in.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::bail;

use super::place;

/// Oldest PostgreSQL that Stormglass works with.
const POSTGRES_VERSION_MIN: u32 = 13;

/// Where the programs are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// Directory of `postgres`, `initdb`, `pg_rewind`, …
    pub postgres: PathBuf,
    /// HAProxy.
    pub haproxy: PathBuf,
    /// PgBouncer.
    pub pgbouncer: PathBuf,
    /// Prometheus.
    pub prometheus: PathBuf,
    /// Alertmanager.
    pub alertmanager: PathBuf,
    /// Prometheus' exporter for PostgreSQL.
    pub exporter: PathBuf,
    /// Backups.
    pub pgbackrest: PathBuf,
}

impl Programs {
    /// Finds them all, or names every missing one with its package.
    pub fn find() -> anyhow::Result<Self> {
        let mut missing = Vec::new();
        let mut need = |found: Option<PathBuf>, program: &'static str, package: &'static str| {
            found.unwrap_or_else(|| {
                missing.push((program, package));
                PathBuf::new()
            })
        };
        let programs = Self {
            postgres: need(postgres_directory(Path::new("/usr/lib/postgresql")), "initdb and postgres", "postgresql"),
            haproxy: need(on_path("haproxy"), "haproxy", "haproxy"),
            pgbouncer: need(on_path("pgbouncer"), "pgbouncer", "pgbouncer"),
            prometheus: need(on_path("prometheus"), "prometheus", "prometheus"),
            alertmanager: need(
                on_path("prometheus-alertmanager").or_else(|| on_path("alertmanager")),
                "prometheus-alertmanager",
                "prometheus-alertmanager",
            ),
            exporter: need(
                on_path("prometheus-postgres-exporter").or_else(|| on_path("postgres_exporter")),
                "prometheus-postgres-exporter",
                "prometheus-postgres-exporter",
            ),
            pgbackrest: need(on_path("pgbackrest"), "pgbackrest", "pgbackrest"),
        };
        if !missing.is_empty() {
            let list: Vec<String> =
                missing.iter().map(|(program, package)| format!("{program} (package {package})")).collect();
            bail!(
                "the lab needs {}; on Debian or Ubuntu run scripts/setup, which installs what is missing",
                list.join(", ")
            );
        }
        Ok(programs)
    }
}

/// Where etcd is; only labs of several controllers need it.
pub fn etcd() -> anyhow::Result<PathBuf> {
    on_path("etcd").ok_or_else(|| {
        anyhow::anyhow!("several controllers need etcd (package etcd-server, or etcd); scripts/setup installs it")
    })
}

/// The exporter of hosts; only labs with a predictor need it.
pub fn host_exporter() -> anyhow::Result<PathBuf> {
    on_path("prometheus-node-exporter").or_else(|| on_path("node_exporter")).ok_or_else(|| {
        anyhow::anyhow!(
            "a predictor needs metrics of hosts (package prometheus-node-exporter); scripts/setup installs it"
        )
    })
}

/// The newest supported version below `root`; else the directory in which PATH has `initdb`.
fn postgres_directory(root: &Path) -> Option<PathBuf> {
    let newest = std::fs::read_dir(root)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin"))))
        .filter(|(version, bin)| {
            *version >= POSTGRES_VERSION_MIN && is_program(&bin.join("initdb")) && is_program(&bin.join("postgres"))
        })
        .max_by_key(|(version, _)| *version);
    match newest {
        Some((_, bin)) => Some(bin),
        None => on_path("initdb").and_then(|initdb| Some(initdb.canonicalize().ok()?.parent()?.to_owned())),
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = place::variable("PATH").unwrap_or_default();
    // Where Debian puts daemons; an ordinary user's PATH often lacks it.
    let directories = path.split(':').chain(["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"]);
    directories.filter(|part| !part.is_empty()).map(|part| Path::new(part).join(program)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_supported_postgresql_is_taken() {
        let root = tempfile::tempdir().expect("directory");
        for version in ["9.6", "12", "13", "15", "17"] {
            let bin = root.path().join(version).join("bin");
            std::fs::create_dir_all(&bin).expect("made");
            for program in ["initdb", "postgres"] {
                let file = bin.join(program);
                std::fs::write(&file, "").expect("written");
                std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("executable");
            }
        }
        // A client package alone brings no server.
        std::fs::remove_file(root.path().join("17/bin/postgres")).expect("removed");
        assert_eq!(postgres_directory(root.path()), Some(root.path().join("15/bin")));
    }
}
