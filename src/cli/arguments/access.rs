//! `token` and `audit`: parsing only.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use crate::domain::access::Role;

/// `stormglass token …`.
#[derive(Debug, Clone, Subcommand)]
pub enum TokenCommand {
    /// Make one; its secret is printed this once.
    #[command(after_help = "Example:\n  stormglass token create alertmanager --role operator --expires-in 365d")]
    Create {
        /// Its name in the audit log.
        name: String,
        /// viewer, backup, operator or admin; at most your own.
        #[arg(long, value_parser = role)]
        role: Role,
        /// Only for this cluster; may be given again.
        #[arg(long = "cluster", value_name = "CLUSTER")]
        clusters: Vec<String>,
        /// It ends after this; never if not given.
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        expires_in: Option<Duration>,
    },
    /// Every token, without its secret.
    List,
    /// End one at once.
    Revoke {
        /// Its name.
        name: String,
    },
}

/// `stormglass audit …`.
#[derive(Debug, Clone, Subcommand)]
pub enum AuditCommand {
    /// The newest rows.
    List {
        /// How many.
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: usize,
    },
    /// Every row as one line of JSON, oldest first.
    Export,
    /// Check that no row was changed, taken out or put in.
    #[command(
        after_help = "Note the head down elsewhere: that it is still there proves that no newest row was cut off."
    )]
    Verify {
        /// An export instead of the controller's log.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// A row that must be in the log, as an earlier verify printed its head: NUMBER:HASH.
        #[arg(long, value_name = "NUMBER:HASH")]
        expect: Option<String>,
    },
}

fn role(text: &str) -> Result<Role, String> {
    [Role::Viewer, Role::Backup, Role::Operator, Role::Admin]
        .into_iter()
        .find(|role| role.label() == text)
        .ok_or_else(|| "use viewer, backup, operator or admin".to_owned())
}
