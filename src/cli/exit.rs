//! Exit codes, and how every failure of a command becomes one of them.

use std::process::ExitCode;

use crate::api::client::ClientError;
use crate::config::ConfigError;

/// How a command ended. The numbers are a contract with scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed; the state is unchanged, or what was done was undone.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// Nobody was there to confirm; nothing was changed.
    ConfirmationNeeded = 3,
    /// No such cluster, node or operation.
    NotFound = 4,
    /// The controller is out of reach.
    Unreachable = 5,
    /// The token is missing or may not do that.
    NotAuthorised = 6,
    /// The user said no.
    Aborted = 7,
    /// The controller failed.
    ControllerError = 8,
    /// A guard refused.
    Refused = 9,
    /// Nobody knows yet; or it ended half-way, neither unchanged nor undone.
    Unknown = 10,
    /// `status --check`: degraded. `doctor`: something is failing.
    Degraded = 20,
    /// `status --check`: no primary, or none known.
    NoPrimary = 21,
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// A command that did not get to its end, with what to tell the user.
#[derive(Debug)]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// What, why; `None` if everything was said already.
    pub message: Option<String>,
    /// What to do next.
    pub advice: Vec<String>,
}

impl Failure {
    /// A failure with a sentence.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: Some(message.into()), advice: Vec::new() }
    }

    /// With something to do next.
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice.push(advice.into());
        self
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let message = chain(&error);
        match error {
            ClientError::BadUrl { .. } | ClientError::BadFile { .. } => Failure::new(Exit::Usage, message),
            ClientError::Unreachable { .. } if message.contains("certificate") => {
                Failure::new(Exit::Unreachable, message)
                    .advise("name who signed its certificate with --ca-file or STORMGLASS_CACERT: authorities.crt of stormglass pki")
            }
            ClientError::Unreachable { .. } => Failure::new(Exit::Unreachable, message)
                .advise("check that it runs, and --controller or STORMGLASS_CONTROLLER"),
            ClientError::NoAnswer { .. } => Failure::new(Exit::Unreachable, message),
            ClientError::Malformed { .. } => Failure::new(Exit::ControllerError, message),
            ClientError::Problem { problem } => {
                let mut lines = vec![if problem.detail.is_empty() { problem.title.clone() } else { message }];
                lines.extend(problem.reasons.iter().map(|reason| format!("  {reason}")));
                let text = lines.join("\n");
                match problem.status {
                    _ if problem.is_not_the_leader() => Failure::new(Exit::Unreachable, text)
                        .advise("name every controller in --controller or STORMGLASS_CONTROLLER, separated by commas"),
                    401 => Failure::new(Exit::NotAuthorised, text).advise("set STORMGLASS_TOKEN to a valid token"),
                    403 => Failure::new(Exit::NotAuthorised, text).advise("use a token whose role allows this"),
                    404 => Failure::new(Exit::NotFound, text),
                    409 => Failure::new(Exit::Refused, format!("refused: {text}")),
                    429 => Failure::new(Exit::ControllerError, text).advise("ask less often, or wait a second"),
                    _ if problem.is_unknown_outcome() => {
                        Failure::new(Exit::Unknown, format!("the outcome is not known: {text}"))
                    }
                    400..=499 => Failure::new(Exit::Usage, text),
                    _ => Failure::new(Exit::ControllerError, format!("the controller failed: {text}"))
                        .advise("look into the controller's log"),
                }
            }
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::new(Exit::Usage, chain(&error))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            // The reader has seen enough.
            return Self { exit: Exit::Done, message: None, advice: Vec::new() };
        }
        Failure::new(Exit::Failed, format!("write the output: {error}"))
    }
}

/// The error and everything below it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(source) = below {
        text.push_str(&format!(": {source}"));
        below = source.source();
    }
    text
}
