//! Puts pgBackRest behind its port, and PostgreSQL's archiving in the way that leads to it. Part of `main`, decides nothing.

use std::sync::Arc;

use stormglass::adapters::pgbackrest::{
    BackupSettings, CheckSettings, LedgerTable, PeerSettings, PgBackRest, RepositoryPlace,
};
use stormglass::adapters::postgres::{Password, Postgres, PostgresSettings};
use stormglass::config::AgentConfig;
use stormglass::config::secret::SecretReference;
use stormglass::ports::BackupRepository;

use super::secret;

/// What the repository needs, and what PostgreSQL needs to archive to it. `None` without `[backup]`.
pub fn settings(config: &AgentConfig, postgres: &mut PostgresSettings) -> anyhow::Result<Option<BackupSettings>> {
    let Some(section) = &config.backup else { return Ok(None) };
    let read = |reference: &Option<SecretReference>| -> anyhow::Result<Option<Password>> {
        reference.as_ref().map(|reference| Ok(Password::new(secret(reference)?))).transpose()
    };
    let place = match (&section.path, &section.s3) {
        (Some(path), _) => RepositoryPlace::Posix { path: path.clone() },
        (None, Some(s3)) => RepositoryPlace::S3 {
            endpoint: s3.endpoint.clone(),
            bucket: s3.bucket.clone(),
            region: s3.region.clone(),
            path: s3.path.clone(),
            key: read(&s3.key)?,
            key_secret: read(&s3.key_secret)?,
            ca_file: s3.ca_file.clone(),
            path_style: s3.path_style,
        },
        (None, None) => anyhow::bail!("[backup] names neither path nor s3"),
    };
    let state = &config.agent.state_directory;
    let settings = BackupSettings {
        stanza: section.stanza.clone().unwrap_or_else(|| config.agent.cluster.to_string()),
        place,
        passphrase: read(&section.cipher_passphrase)?,
        retention_full: section.retention_full,
        retention_diff: section.retention_diff,
        processes: section.processes,
        options: section.options.clone(),
        peers: section
            .peers
            .iter()
            .map(|peer| PeerSettings {
                host: peer.host.clone(),
                data_directory: peer.data_directory.clone(),
                port: peer.port,
                socket_directory: peer.socket_directory.clone(),
            })
            .collect(),
        directory: state.join("backup"),
        drill_directory: section.drill.directory.clone().unwrap_or_else(|| state.join("drill")),
        data_directory: postgres.data_directory.clone(),
        port: postgres.address.port,
        socket_directory: postgres.private_socket_directory.clone(),
        superuser: postgres.superuser.clone(),
        superuser_password: postgres.superuser_password.clone(),
        bin_directory: postgres.bin_directory.clone(),
        ledger: section
            .drill
            .ledgers
            .iter()
            .map(|ledger| LedgerTable { database: ledger.database.clone(), table: ledger.table.clone() })
            .collect(),
        checks: section
            .drill
            .checks
            .iter()
            .map(|check| CheckSettings {
                name: check.name.clone(),
                database: check.database.clone(),
                sql: check.sql.clone(),
            })
            .collect(),
        program: section.program.clone(),
    };
    for (name, value) in [
        ("archive_mode", "on".to_owned()),
        ("archive_command", settings.archive_command()),
        ("archive_timeout", section.archive_timeout.as_secs().to_string()),
    ] {
        postgres.parameters.insert(name.to_owned(), value);
    }
    postgres.archive_stop_file = Some(settings.stop_file());
    Ok(Some(settings))
}

/// The repository, as PostgreSQL's user reaches it.
pub fn repository(
    settings: Option<BackupSettings>,
    postgres: &Postgres,
) -> anyhow::Result<Option<Arc<dyn BackupRepository>>> {
    let Some(settings) = settings else { return Ok(None) };
    Ok(Some(Arc::new(PgBackRest::new(settings, postgres.owner())?)))
}
