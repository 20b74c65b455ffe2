//! The service that keeps the name which clients connect to: small enough that another provider is a page of code.
//!
//! No provider's API enters here, and no error loses the difference between what was refused and what nobody answered.

use async_trait::async_trait;

use crate::domain::name::NameRecord;

/// Why the name could not be read or written. A failure here is never a failure of the database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No connection, or no answer in time: a change may or may not have been made.
    #[error("{server} does not answer: {problem}; look whether it runs and can be reached over TCP")]
    Unreachable {
        /// Which server.
        server: String,
        /// What went wrong.
        problem: String,
    },
    /// The key, or the account, is not the one that the server knows.
    #[error("{server} does not accept the key {key} ({problem}): compare its name and secret there and in [dns]")]
    KeyRejected {
        /// Which server.
        server: String,
        /// Name of the key.
        key: String,
        /// What it said.
        problem: String,
    },
    /// The two clocks differ too much for a signature.
    #[error(
        "{server} finds the time of the signature wrong (BADTIME): set the clocks of both hosts, 5 minutes are tolerated"
    )]
    ClockSkew {
        /// Which server.
        server: String,
    },
    /// It does not keep the zone.
    #[error("{server} does not speak for {zone} (not authoritative): name the zone's own servers in dns.servers")]
    NotAuthoritative {
        /// Which server.
        server: String,
        /// The zone.
        zone: String,
    },
    /// It keeps the zone, and does not let this key change this name.
    #[error("{server} refused (REFUSED): let the key change {names} there")]
    Refused {
        /// Which server.
        server: String,
        /// What must be allowed.
        names: String,
    },
    /// It could not do it.
    #[error("{server} failed (SERVFAIL): its own log says why")]
    ServerFailure {
        /// Which server.
        server: String,
    },
    /// The answer does not fit.
    #[error("{server} sent a truncated answer: there are more records at {name} than belong there")]
    Truncated {
        /// Which server.
        server: String,
        /// What was asked for.
        name: String,
    },
    /// Somebody else wrote since it was read: nothing was changed.
    #[error("somebody else changed the name meanwhile; nothing was written")]
    Conflict,
    /// Anything else that was answered.
    #[error("{server} answered {problem}")]
    Answered {
        /// Which server.
        server: String,
        /// What it said.
        problem: String,
    },
}

/// What one authoritative server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAnswer {
    /// Which server.
    pub server: String,
    /// The name as it answers it.
    pub answer: Result<NameRecord, NameError>,
}

/// Keeps one name and its companion.
#[async_trait]
pub trait NameService: Send + Sync {
    /// The name and its companion, as the side that takes changes has them now.
    async fn read(&self) -> Result<NameRecord, NameError>;

    /// Replaces `seen` by `wanted`, name and companion in one change that is made only if the companion is still as in `seen`.
    /// Returns once the provider says that the change is in force.
    async fn swap(&self, seen: &NameRecord, wanted: &NameRecord) -> Result<(), NameError>;

    /// What every authoritative server answers, asked at the same time. Empty where no server can be asked.
    async fn answers(&self) -> Vec<ServerAnswer>;
}
