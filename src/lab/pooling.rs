//! PgBouncer and the application of a lab: their settings, and what controller and proxy agents are told of them.

use std::time::Duration;

use anyhow::Context as _;

use super::application::{APPLICATION, CHECK};
use super::configuration;
use super::layout::{APPLICATION_ROLE, DATABASE, Layout, ProxyLayout};
use crate::config::SecretReference;
use crate::config::agent::PgbouncerSection;
use crate::config::controller::{ApplicationSection, ApplicationServerSection};
use crate::domain::ids::{ApplicationName, ServerName};

/// Who may pause.
const ADMINISTRATOR: &str = "operator";

/// The secret's name.
const SECRET: &str = "pgbouncer";

/// PgBouncer renews its connections after this. In production an hour; faults of the lab grow in a minute, and a server that takes no
/// new sessions is to be noticed within it. It also means that some login is nearly always on its way when a move begins.
const SERVER_LIFETIME: Duration = Duration::from_secs(1);

/// What the controller is told of the application: its servers in every site.
pub fn applications(layout: &Layout) -> anyhow::Result<Vec<ApplicationSection>> {
    let Some(port) = layout.application_port else { return Ok(Vec::new()) };
    let mut servers = Vec::new();
    for application in &layout.applications {
        for (number, address) in (1..).zip(&application.servers) {
            servers.push(ApplicationServerSection {
                name: ServerName::new(format!("{}{number}", application.site))?,
                site: application.site.clone(),
                address: address.clone(),
            });
        }
    }
    Ok(vec![ApplicationSection { name: ApplicationName::new(APPLICATION)?, port, check: CHECK.to_owned(), servers }])
}

/// What a proxy's agent is told of its PgBouncer.
pub fn section(layout: &Layout, proxy: &ProxyLayout) -> Option<PgbouncerSection> {
    Some(PgbouncerSection {
        admin: proxy.pgbouncer.clone()?,
        user: ADMINISTRATOR.to_owned(),
        password: Some(SecretReference::File(layout.secret(SECRET))),
        databases: Vec::new(),
        pause_timeout: Duration::from_secs(1),
    })
}

/// Writes the settings of a proxy host's PgBouncer.
pub fn write_all(layout: &Layout, proxy: &ProxyLayout) -> anyhow::Result<()> {
    let Some(listen) = &proxy.pgbouncer else { return Ok(()) };
    let file = layout.secret(SECRET);
    let secret = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let directory = &proxy.directory;
    let settings = format!(
        "[databases]\n{DATABASE} = host={} port={}\n[pgbouncer]\nlisten_addr = {}\nlisten_port = {}\n\
         unix_socket_dir =\npool_mode = transaction\nauth_type = hba\nauth_hba_file = {}\nauth_file = {}\n\
         admin_users = {ADMINISTRATOR}\nmax_client_conn = 500\ndefault_pool_size = 20\nserver_login_retry = 0.1\n\
         server_lifetime = {}\n",
        proxy.write.host,
        proxy.write.port,
        listen.host,
        listen.port,
        directory.join("pgbouncer.hba").display(),
        directory.join("pgbouncer.users").display(),
        SERVER_LIFETIME.as_secs(),
    );
    configuration::write(&directory.join("pgbouncer.ini"), &settings)?;
    let access =
        format!("host {DATABASE} {APPLICATION_ROLE} 0.0.0.0/0 trust\nhost pgbouncer {ADMINISTRATOR} 0.0.0.0/0 md5\n");
    configuration::write(&directory.join("pgbouncer.hba"), &access)?;
    let users = format!("\"{APPLICATION_ROLE}\" \"\"\n\"{ADMINISTRATOR}\" \"{}\"\n", secret.trim());
    configuration::write(&directory.join("pgbouncer.users"), &users)
}
