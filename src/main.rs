//! Parses, loads the configuration, wires adapters into shells, runs. Nothing else.

#[path = "main/backup.rs"]
mod backup;
#[path = "main/clusters.rs"]
mod clusters;
#[path = "main/notifications.rs"]
mod notifications;
#[path = "main/openid.rs"]
mod openid;
#[path = "main/tls.rs"]
mod transport;
#[path = "main/vault.rs"]
mod vault;
#[path = "main/controller.rs"]
mod wiring;

use std::ffi::OsString;
use std::future::Future;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{CommandFactory as _, FromArgMatches as _, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use stormglass::adapters::agent_http::Credentials;
use stormglass::adapters::agent_memory::MemoryFile;
use stormglass::adapters::controller_link::HttpControllerLink;
use stormglass::adapters::haproxy::link::{HttpControllerLink as HttpProxyLink, HttpNodeHealth};
use stormglass::adapters::haproxy::{
    FileMemory, HaproxyRouter, HaproxySettings, PostgresWriteVerifier, VerifyCredentials,
};
use stormglass::adapters::peer_link::HttpPeerLink;
use stormglass::adapters::pgbouncer::{Pgbouncer, PgbouncerSettings};
use stormglass::adapters::postgres::{Password, Postgres, PostgresSettings};
use stormglass::adapters::system::SystemClock;
use stormglass::adapters::system::family::Family;
use stormglass::adapters::system::priority;
use stormglass::adapters::tls::Tls;
use stormglass::agent::guard::link::{GuardClient, GuardReplacement};
use stormglass::agent::guard::{self, GuardSettings};
use stormglass::agent::proxy::ProxyParts;
use stormglass::agent::{self, AgentParts, Ended, HealthPort};
use stormglass::api::agent::Gate;
use stormglass::api::entrance::Door;
use stormglass::cli::{self, Cli, Command, ControllerCommand, Global, OutputFormat};
use stormglass::config::agent::{PgbouncerSection, PostgresqlSection, ProxySection};
use stormglass::config::{AgentConfig, SecretReference, load_agent};
use stormglass::lab::{self, arguments::LabCommand};
use stormglass::ports::agent::KillFamily;
use stormglass::ports::traffic::Pooler;
use stormglass::telemetry::logging;

// Commands beside the client's, which only `main` can run. No doc comment: clap would take it for the program's description.
#[derive(Subcommand)]
enum Local {
    /// A real cluster on this machine: try it, break it, measure it.
    #[command(subcommand)]
    Lab(LabCommand),
}

/// Exit status for a configuration that cannot be used.
const EXIT_CONFIGURATION: u8 = 2;
/// Exit status for a service that failed.
const EXIT_FAILED: u8 = 1;

fn main() -> ExitCode {
    let matches = Local::augment_subcommands(Cli::command()).get_matches();
    if let Ok(Local::Lab(command)) = Local::from_arg_matches(&matches) {
        let global = Global::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        logging::init(global.verbose, false);
        return run_lab(command, global.output);
    }
    let program = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    vault::open();
    let verbosity = program.global.verbose;
    match program.command {
        Command::Controller { command: Some(ControllerCommand::MigrateStore { config, from }), .. } => {
            logging::init(verbosity, false);
            ended(wiring::migrate_store(&config, &from, program.global.dry_run).map(|done| print!("{done}")))
        }
        Command::Controller { config: Some(config), .. } => {
            logging::init(1 + verbosity, false);
            ended(wiring::run(&config))
        }
        Command::Agent { config, under_guard, guard_of } => {
            logging::init(1 + verbosity, false);
            run_agent(&config, under_guard, guard_of)
        }
        _ => {
            logging::init(verbosity, false);
            cli::run(program)
        }
    }
}

fn run_lab(command: LabCommand, output: OutputFormat) -> ExitCode {
    let output = match output {
        OutputFormat::Table => lab::arguments::OutputFormat::Table,
        OutputFormat::Json => lab::arguments::OutputFormat::Json,
        OutputFormat::Yaml => lab::arguments::OutputFormat::Yaml,
    };
    match block_on(lab::execute(command, output)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn ended(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            let is_configuration = error.downcast_ref::<stormglass::config::ConfigError>().is_some()
                || error.downcast_ref::<stormglass::adapters::tls::TlsError>().is_some();
            ExitCode::from(if is_configuration { EXIT_CONFIGURATION } else { EXIT_FAILED })
        }
    }
}

fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?.block_on(future)
}

/// Resolves at SIGTERM or SIGINT.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn secret(reference: &SecretReference) -> anyhow::Result<String> {
    reference.resolve().with_context(|| format!("resolve {}", String::from(reference.clone())))
}

/// The agent service: the guard, or the agent proper under it. A proxy host needs no guard.
fn run_agent(path: &Path, under_guard: bool, guard_of: Option<u32>) -> ExitCode {
    let config = match load_agent(path) {
        Ok(config) => config,
        Err(error) => return ended(Err(error.into())),
    };
    if let Err(error) = std::fs::create_dir_all(&config.agent.state_directory) {
        tracing::error!("create the state directory {}: {error}", config.agent.state_directory.display());
        return ExitCode::from(EXIT_CONFIGURATION);
    }
    // Whoever of PostgreSQL's user stands in the data directory belongs to the family that a fence kills.
    let path = match std::path::absolute(path).and_then(|path| std::env::set_current_dir("/").map(|()| path)) {
        Ok(path) => path,
        Err(error) => return ended(Err(anyhow::Error::new(error).context("leave the working directory"))),
    };
    if config.postgresql.is_some() {
        priority::raise();
    }
    match (&config.postgresql, &config.proxy) {
        (None, Some(proxy)) => ended(run_proxy(&config, proxy)),
        (Some(postgresql), _) if under_guard => ended(run_node(&config, postgresql, &path)),
        (Some(postgresql), _) => match guard_parts(&config, postgresql, &path, guard_of) {
            Ok((settings, clock, killer)) => guard::run(settings, Arc::new(clock), killer),
            Err(error) => ended(Err(error)),
        },
        (None, None) => ended(Err(anyhow::anyhow!("the configuration has neither [postgresql] nor [proxy]"))),
    }
}

/// How guard and agent start each other: by path, so that an upgrade takes the new file.
fn own_command(path: &Path) -> anyhow::Result<(PathBuf, Vec<OsString>)> {
    let executable = std::env::current_exe().context("find the own executable")?;
    Ok((executable, vec!["agent".into(), "--config".into(), path.into()]))
}

fn guard_parts(
    config: &AgentConfig,
    postgresql: &PostgresqlSection,
    path: &Path,
    guard_of: Option<u32>,
) -> anyhow::Result<(GuardSettings, SystemClock, Box<dyn KillFamily>)> {
    let (executable, arguments) = own_command(path)?;
    let adopt = guard_of.map(i32::try_from).transpose().context("read --guard-of")?;
    let settings = GuardSettings {
        executable,
        arguments,
        state_directory: config.agent.state_directory.clone(),
        listen: config.agent.listen,
        adopt,
    };
    Ok((settings, SystemClock::new()?, Box::new(family(postgresql)?)))
}

/// Who PostgreSQL's processes are, found before it is needed: a fence must not touch the disk.
fn family(postgresql: &PostgresqlSection) -> anyhow::Result<Family> {
    let postgres = Postgres::new(postgres_settings(postgresql, None)?)?;
    Ok(postgres.family().clone())
}

fn run_node(config: &AgentConfig, postgresql: &PostgresqlSection, path: &Path) -> anyhow::Result<()> {
    let (executable, arguments) = own_command(path)?;
    let listener = guard::take_listener().context("take the health port from the guard")?;
    let tls = transport::load(config.tls.as_ref())?;
    let (credentials, gate) = keys(config, tls.as_ref())?;
    let protection = transport::protection(tls.as_ref(), config.agent.listen);
    let state_directory = config.agent.state_directory.clone();
    let door_tls = tls.as_ref().map(Tls::server);
    block_on(transport::kept(tls, async {
        let replacement = GuardReplacement { executable, arguments, health_port: listener.try_clone()? };
        let guard = GuardClient::connect(state_directory.clone(), replacement).await?;
        let mut settings = postgres_settings(postgresql, Some(&config.agent.state_directory))?;
        let backup_settings = backup::settings(config, &mut settings)?;
        let postgres = Postgres::new(settings)?;
        let backup = backup::repository(backup_settings, &postgres)?;
        let memory = MemoryFile::new(&state_directory, config.agent.cluster.clone(), postgresql.node.clone());
        let parts = AgentParts {
            config: config.clone(),
            clock: Arc::new(SystemClock::new()?),
            postgres: Arc::new(postgres),
            memory: Arc::new(memory),
            controllers: Arc::new(HttpControllerLink::new(&config.agent.controllers, credentials.clone())?),
            peers: Arc::new(HttpPeerLink::new(config.agent.peers.clone(), credentials)?),
            guard: Arc::new(guard),
            backup,
            protection,
        };
        let port = HealthPort { door: Door::new(listener, door_tls), gate };
        match agent::run(parts, port, stop_signal()?).await? {
            Ended::Stopped => tracing::info!("agent service stopped"),
            Ended::Replaced => tracing::info!("agent ended; PostgreSQL goes on"),
        }
        Ok(())
    }))
}

/// What an agent shows to others, and who may command it.
fn keys(config: &AgentConfig, tls: Option<&Tls>) -> anyhow::Result<(Credentials, Gate)> {
    let token = config.agent.token.as_ref().map(secret).transpose()?;
    let gate = token.as_deref().map_or_else(Gate::certificates, Gate::token);
    Ok((Credentials::new(token, tls), gate))
}

fn postgres_settings(section: &PostgresqlSection, state_directory: Option<&Path>) -> anyhow::Result<PostgresSettings> {
    let password = |reference: &Option<SecretReference>| -> anyhow::Result<Option<Password>> {
        // The guard only kills: it needs no password, and must begin where a secret is missing.
        match reference {
            Some(reference) if state_directory.is_some() => Ok(Some(Password::new(secret(reference)?))),
            _ => Ok(None),
        }
    };
    let state = state_directory.unwrap_or(Path::new("/nonexistent"));
    Ok(PostgresSettings {
        node: section.node.clone(),
        data_directory: section.data_directory.clone(),
        config_directory: section.config_directory.clone(),
        bin_directory: section.bin_directory.clone(),
        address: section.address.clone(),
        listen_addresses: section.listen_addresses.clone(),
        private_socket_directory: state.join("socket"),
        client_socket_directories: section.unix_socket_directories.clone(),
        superuser: section.superuser.clone(),
        superuser_password: password(&section.superuser_password)?,
        replication_user: section.replication_user.clone(),
        replication_password: password(&section.replication_password)?,
        parameters: section.parameters.clone(),
        divergent_directory: section.divergent_directory.clone().unwrap_or_else(|| state.join("divergent")),
        os_user: None,
        log_file: state.join("postgres-log/start.log"),
        archive_stop_file: None,
    })
}

fn run_proxy(config: &AgentConfig, section: &ProxySection) -> anyhow::Result<()> {
    let tls = transport::load(config.tls.as_ref())?;
    let (credentials, gate) = keys(config, tls.as_ref())?;
    let protection = transport::protection(tls.as_ref(), config.agent.listen);
    let listener = TcpListener::bind(config.agent.listen).with_context(|| {
        format!("listen on {}: stop what uses the port, or change agent.listen", config.agent.listen)
    })?;
    let verifier = match &section.verify {
        Some(verify) => {
            let password = verify.password.as_ref().map(secret).transpose()?;
            let credentials =
                VerifyCredentials { user: verify.user.clone(), password, database: verify.database.clone() };
            let translated =
                section.nodes.iter().filter_map(|node| Some((node.address.clone(), node.server_address.clone()?)));
            Some(Arc::new(PostgresWriteVerifier::new(&section.write, &credentials).translating(translated)) as _)
        }
        None => None,
    };
    let door = Door::new(listener, tls.as_ref().map(Tls::server));
    block_on(transport::kept(tls.clone(), async {
        let parts = ProxyParts {
            cluster: config.agent.cluster.clone(),
            site: config.agent.site.clone(),
            section: section.clone(),
            gate,
            protection,
            incarnation: uuid::Uuid::now_v7().to_string(),
            clock: Arc::new(SystemClock::new()?),
            router: Arc::new(HaproxyRouter::new(haproxy_settings(config, section))),
            verifier,
            pooler: section.pgbouncer.as_ref().map(|pgbouncer| pooler(config, pgbouncer)).transpose()?,
            health: Arc::new(HttpNodeHealth::new(tls.as_ref())?),
            link: Arc::new(HttpProxyLink::new(&config.agent.controllers, &config.agent.cluster, credentials)?),
            memory: Arc::new(FileMemory::new(config.agent.state_directory.join("proxy.json"))),
            door,
        };
        Ok(agent::proxy::run(parts, stop_signal()?).await?)
    }))
}

fn pooler(config: &AgentConfig, section: &PgbouncerSection) -> anyhow::Result<Arc<dyn Pooler>> {
    Ok(Arc::new(Pgbouncer::new(PgbouncerSettings {
        admin: section.admin.clone(),
        user: section.user.clone(),
        password: section.password.as_ref().map(secret).transpose()?,
        databases: section.databases.clone(),
        mark: config.agent.state_directory.join("pgbouncer.paused"),
    })))
}

fn haproxy_settings(config: &AgentConfig, section: &ProxySection) -> HaproxySettings {
    HaproxySettings {
        name: section.name.clone(),
        cluster: config.agent.cluster.clone(),
        stats_socket: section.stats_socket.clone(),
        master_socket: section.master_socket.clone(),
        config_file: section.config_file.clone(),
        template: section.template.clone(),
        write: section.write.clone(),
        read: section.read.clone(),
        checked: section.checked.clone(),
        stats: section.stats.clone(),
        authorities: config.tls.as_ref().map(|tls| tls.client_authorities.clone()),
        manage_process: section.manage_process,
        program: None,
        connect_timeout: section.connect_timeout,
        connections_max: HaproxySettings::CONNECTIONS_MAX,
        answer_timeout: HaproxySettings::ANSWER_TIMEOUT,
    }
}
