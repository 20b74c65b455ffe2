//! Loading: a file and the environment in, validated settings or one clear error out.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::document::{Document, Source};
use super::error::{ConfigError, Place, Violation};
use super::tls::TlsSection;
use super::{AgentConfig, ControllerConfig, SecretReference};

const CONTROLLER_SECTIONS: &[&str] = &[
    "controller",
    "cluster",
    "store",
    "failover",
    "authentication",
    "prometheus",
    "webhook",
    "predictor",
    "backup",
    "dns",
    "terraform",
    "tls",
];
const AGENT_SECTIONS: &[&str] = &["agent", "postgresql", "proxy", "tags", "backup", "tls"];

/// What both kinds of settings can do.
trait Settings: DeserializeOwned + Serialize {
    /// Rules that types alone cannot hold.
    fn check(&self) -> Result<(), Violation>;
    /// Every reference to a secret, with its key.
    fn secrets(&self) -> Result<Vec<(String, SecretReference)>, Violation>;
    /// The own certificate, if there is one.
    fn tls(&self) -> Option<&TlsSection>;
}

impl Settings for ControllerConfig {
    fn check(&self) -> Result<(), Violation> {
        self.violation()
    }

    fn secrets(&self) -> Result<Vec<(String, SecretReference)>, Violation> {
        let mut secrets = Vec::new();
        let agent_token = self.authentication.agent_token.as_ref();
        secrets.extend(agent_token.map(|token| ("authentication.agent_token".to_owned(), token)));
        for (index, token) in self.authentication.tokens.iter().enumerate() {
            secrets.push((format!("authentication.token.{index}.secret"), &token.secret));
        }
        secrets.extend(self.dns.iter().flat_map(|dns| dns.secrets()));
        secrets.extend(self.prometheus.iter().flat_map(|prometheus| prometheus.secrets()));
        secrets.extend(self.notifications.iter().enumerate().flat_map(|(index, channel)| channel.secrets(index)));
        secrets.extend(self.store.password.as_ref().map(|password| ("store.password".to_owned(), password)));
        let mut secrets = owned(secrets);
        for (index, sequence) in self.sequences.iter().enumerate() {
            secrets.extend(sequence.secrets(index)?);
        }
        Ok(secrets)
    }

    fn tls(&self) -> Option<&TlsSection> {
        self.tls.as_ref()
    }
}

impl Settings for AgentConfig {
    fn check(&self) -> Result<(), Violation> {
        self.violation()
    }

    fn secrets(&self) -> Result<Vec<(String, SecretReference)>, Violation> {
        let mut secrets = Vec::new();
        secrets.extend(self.agent.token.as_ref().map(|token| ("agent.token".to_owned(), token)));
        if let Some(postgresql) = &self.postgresql {
            secrets.extend(
                postgresql.superuser_password.as_ref().map(|it| ("postgresql.superuser_password".to_owned(), it)),
            );
            secrets.extend(
                postgresql.replication_password.as_ref().map(|it| ("postgresql.replication_password".to_owned(), it)),
            );
        }
        if let Some(proxy) = &self.proxy {
            let verify = proxy.verify.as_ref().and_then(|verify| verify.password.as_ref());
            let pooler = proxy.pgbouncer.as_ref().and_then(|pgbouncer| pgbouncer.password.as_ref());
            secrets.extend(verify.map(|it| ("proxy.verify.password".to_owned(), it)));
            secrets.extend(pooler.map(|it| ("proxy.pgbouncer.password".to_owned(), it)));
        }
        secrets.extend(self.backup.iter().flat_map(|backup| backup.secrets()));
        Ok(owned(secrets))
    }

    fn tls(&self) -> Option<&TlsSection> {
        self.tls.as_ref()
    }
}

fn owned(secrets: Vec<(String, &SecretReference)>) -> Vec<(String, SecretReference)> {
    secrets.into_iter().map(|(key, reference)| (key, reference.clone())).collect()
}

/// Settings of either kind.
#[derive(Debug, Clone, PartialEq)]
pub enum AnyConfig {
    /// There is a `[controller]` table.
    Controller(Box<ControllerConfig>),
    /// There is an `[agent]` table.
    Agent(Box<AgentConfig>),
}

/// Reads and proves the settings of a controller, its secrets included.
pub fn load_controller(path: &Path) -> Result<ControllerConfig, ConfigError> {
    load_controller_with(path, std::env::vars())
}

/// [`load_controller`] under another environment.
pub fn load_controller_with(
    path: &Path,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<ControllerConfig, ConfigError> {
    proven_controller(&Source::read(path, environment)?)
}

/// [`load_controller`] of a text that stands in no file yet; `name` is what errors call it.
pub fn load_controller_text(name: &Path, text: String) -> Result<ControllerConfig, ConfigError> {
    let source = Source::of(name, text, std::env::vars());
    if !is_controller(&source)? {
        return Err(ConfigError::Invalid {
            place: Place::default(),
            problem: "this is an agent's configuration, and a controller's is needed".to_owned(),
        });
    }
    proven_controller(&source)
}

fn proven_controller(source: &Source) -> Result<ControllerConfig, ConfigError> {
    let document = source.parse(CONTROLLER_SECTIONS)?;
    let settings: ControllerConfig = checked(&document)?;
    let secrets = secrets_can_be_had(&document, &settings)?;
    tokens_differ(&document, secrets)?;
    Ok(settings)
}

/// Reads and proves the settings of an agent, its secrets included.
pub fn load_agent(path: &Path) -> Result<AgentConfig, ConfigError> {
    load_agent_with(path, std::env::vars())
}

/// [`load_agent`] under another environment.
pub fn load_agent_with(
    path: &Path,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<AgentConfig, ConfigError> {
    let source = Source::read(path, environment)?;
    let document = source.parse(AGENT_SECTIONS)?;
    let settings: AgentConfig = checked(&document)?;
    secrets_can_be_had(&document, &settings)?;
    Ok(settings)
}

/// Reads and proves settings of either kind, secrets included: what `config check` does.
pub fn load_any(path: &Path) -> Result<AnyConfig, ConfigError> {
    Ok(if is_controller(&Source::read(path, [])?)? {
        AnyConfig::Controller(Box::new(load_controller(path)?))
    } else {
        AnyConfig::Agent(Box::new(load_agent(path)?))
    })
}

/// Reads settings of either kind without asking for secrets, with the document as it was written: for `config show`.
pub fn read_any(path: &Path) -> Result<(AnyConfig, toml::Table), ConfigError> {
    let source = Source::read(path, std::env::vars())?;
    if is_controller(&source)? {
        let document = source.parse(CONTROLLER_SECTIONS)?;
        Ok((AnyConfig::Controller(Box::new(checked(&document)?)), document.as_written()?))
    } else {
        let document = source.parse(AGENT_SECTIONS)?;
        Ok((AnyConfig::Agent(Box::new(checked(&document)?)), document.as_written()?))
    }
}

fn is_controller(source: &Source) -> Result<bool, ConfigError> {
    let document = source.parse(&[])?;
    match (document.has("controller"), document.has("agent")) {
        (true, false) => Ok(true),
        (false, true) => Ok(false),
        (true, true) => Err(document.violation(Violation::at(
            "agent",
            "a file is either a controller's, with [controller], or an agent's, with [agent]: split it",
        ))),
        (false, false) => Err(document.violation(Violation::at(
            "",
            "neither [controller] nor [agent] is there, so this is the configuration of neither",
        ))),
    }
}

fn checked<T: Settings>(document: &Document<'_>) -> Result<T, ConfigError> {
    let settings: T = document.settings()?;
    settings.check().map_err(|violation| document.violation(violation))?;
    Ok(settings)
}

/// Reads every secret once, and returns what was read, with its key.
fn secrets_can_be_had<T: Settings>(
    document: &Document<'_>,
    settings: &T,
) -> Result<Vec<(String, String)>, ConfigError> {
    let secrets = settings.secrets().map_err(|violation| document.violation(violation))?;
    let mut read = Vec::new();
    for (key, reference) in secrets {
        let value = reference
            .resolve()
            .map_err(|source| ConfigError::Secret { place: document.place(&Violation::at(&key, "").key), source })?;
        read.push((key, value));
    }
    settings.tls().map_or(Ok(()), TlsSection::unusable).map_err(|violation| document.violation(violation))?;
    Ok(read)
}

/// Two equal tokens would make a role a matter of order, and an agent's token that people hold could command agents.
fn tokens_differ(document: &Document<'_>, secrets: Vec<(String, String)>) -> Result<(), ConfigError> {
    let mut seen: Vec<(String, String)> = Vec::new();
    // Channels may share a mailbox, and steps a password: what they hold opens nothing here.
    let opens_nothing = |key: &str| key.starts_with("notification.") || key.starts_with("sequence.");
    for (key, value) in secrets.into_iter().filter(|(key, _)| !opens_nothing(key)) {
        if let Some((other, _)) = seen.iter().find(|(_, known)| *known == value) {
            let problem = format!("the same secret as {other}: every token needs its own");
            return Err(document.violation(Violation::at(&key, problem)));
        }
        seen.push((key, value));
    }
    Ok(())
}
