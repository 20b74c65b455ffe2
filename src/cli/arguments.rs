//! Every command and flag. Parsing only: what they do is in `commands`.
//!
//! Length: one list of everything that can be typed.

mod access;
mod connection;
mod pki;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::domain::backup::BackupType;
use crate::domain::clock::WallTime;
use crate::domain::lsn::Lsn;

pub use access::{AuditCommand, TokenCommand};
pub use connection::Connection;
pub use pki::{IssueArguments, PkiCommand, RotateArguments};

/// Where a controller on the same host answers.
pub const DEFAULT_CONTROLLER: &str = "http://127.0.0.1:8432";

/// Keeps a PostgreSQL cluster writable: fails over by itself, switches over without loss, explains what it decides.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "stormglass",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    max_term_width = 120,
    after_help = "Environment: STORMGLASS_CONTROLLER is the controller's URL (several: comma-separated), STORMGLASS_TOKEN the bearer token.\n\n\
                  Exit codes: 0 done, 1 failed (state unchanged or undone), 2 usage or configuration, 3 confirmation needed,\n\
                  4 not found, 5 controller out of reach, 6 not authorised, 7 aborted, 8 controller error,\n\
                  9 refused by a guard, 10 outcome unknown or neither done nor undone. status --check: 0 healthy, 20 degraded, 21 no primary."
)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// URL of the controller; of several, all of them, separated by commas.
    #[arg(long, global = true, value_name = "URL", env = "STORMGLASS_CONTROLLER", default_value = DEFAULT_CONTROLLER,
        help_heading = "Connection")]
    pub controller: String,
    /// How it is spoken to.
    #[command(flatten)]
    pub connection: Connection,
    /// How stdout is written.
    #[arg(long, short, global = true, value_enum, default_value_t = OutputFormat::Table, help_heading = "Output")]
    pub output: OutputFormat,
    /// More detail; may be repeated.
    #[arg(long, short, global = true, action = clap::ArgAction::Count, help_heading = "Output")]
    pub verbose: u8,
    /// When to use colour; never where stdout is no terminal, unless always.
    #[arg(long, global = true, value_enum, default_value_t = ColourChoice::Auto, help_heading = "Output")]
    pub color: ColourChoice,
    /// Answer yes to every question.
    #[arg(long, short, global = true, help_heading = "Safety")]
    pub yes: bool,
    /// Show the plan that the controller would store, and change nothing.
    #[arg(long, global = true, help_heading = "Safety")]
    pub dry_run: bool,
    /// Wait until the operation has ended (default).
    #[arg(long, global = true, overrides_with = "no_wait", help_heading = "Safety")]
    pub wait: bool,
    /// Return as soon as the operation has begun.
    #[arg(long, global = true, overrides_with = "wait", help_heading = "Safety")]
    pub no_wait: bool,
    /// Stop waiting after this (as in 30s); the operation goes on, and the exit code is 10.
    #[arg(long, global = true, value_name = "DURATION", value_parser = humantime::parse_duration, help_heading = "Safety")]
    pub timeout: Option<Duration>,
}

/// How stdout is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people; piped: one tab-separated line a row, without header.
    Table,
    /// The controller's document.
    Json,
    /// The same as YAML.
    Yaml,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColourChoice {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Also when piped.
    Always,
    /// Not at all.
    Never,
}

/// Every command.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Run the controller, or move its store.
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Controller {
        /// Its configuration.
        #[arg(long, value_name = "FILE", required = true)]
        config: Option<PathBuf>,
        /// What else can be done.
        #[command(subcommand)]
        command: Option<ControllerCommand>,
    },
    /// Run the agent of a database or proxy host.
    Agent {
        /// Its configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The process was started by its guard.
        #[arg(long, hide = true)]
        under_guard: bool,
        /// Be the guard of the agent with this process id.
        #[arg(long, hide = true, value_name = "PID", conflicts_with = "under_guard")]
        guard_of: Option<u32>,
    },
    /// Is it healthy, who is primary, can a node be lost, what is happening, what to do.
    #[command(after_help = "Examples:\n  stormglass status\n  stormglass status orders --check || page-somebody")]
    Status {
        /// The cluster; may be left out where the controller keeps one.
        cluster: Option<String>,
        /// Exit with 0 healthy, 20 degraded, 21 no primary (or none known).
        #[arg(long)]
        check: bool,
    },
    /// The status again and again; piped: a line for every change.
    Watch {
        /// The cluster; may be left out where the controller keeps one.
        cluster: Option<String>,
    },
    /// What the controller would do now, and for every node why it could or could not be promoted; for an operation, which
    /// witness said what when.
    #[command(
        after_help = "Examples:\n  stormglass explain\n  stormglass explain db3\n  stormglass explain 0199a7c2-52f1-7d3e-9d0e-0c2b7f6f8a11"
    )]
    Explain {
        /// A cluster, one node, or an operation's id.
        #[arg(value_name = "CLUSTER|NODE|OPERATION")]
        subject: Option<String>,
    },
    /// Would it survive the next fault: every precondition of a failover and of a recovery, with what to do about it.
    #[command(
        after_help = "Examples:\n  stormglass doctor\n  stormglass doctor orders --output json || page-somebody\n\nExit codes: 0 nothing is failing, 20 something is."
    )]
    Doctor {
        /// The cluster; may be left out where the controller keeps one.
        cluster: Option<String>,
    },
    /// Move the primary, planned and without loss.
    #[command(
        after_help = "Examples:\n  stormglass switchover orders --dry-run\n  stormglass switchover orders --to db2 --yes\n  \
                      stormglass switchover orders --at 2026-12-01T03:00:00Z\n  stormglass switchover orders --unschedule"
    )]
    Switchover {
        /// The cluster; may be left out where the controller keeps one.
        cluster: Option<String>,
        /// Who shall take over; the best candidate if not given.
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        /// Only candidates of this site.
        #[arg(long)]
        site: Option<String>,
        /// Not now, but then (RFC 3339, by the controller's clock); takes the place of one that was scheduled before.
        #[arg(long, value_name = "TIME", value_parser = wall_time)]
        at: Option<WallTime>,
        /// Forget the one that is scheduled, and do nothing else.
        #[arg(long, conflicts_with_all = ["to", "site", "at"])]
        unschedule: bool,
    },
    /// Replace a lost primary.
    #[command(
        after_help = "Examples:\n  stormglass failover orders\n  stormglass failover orders --to db3 --accept-data-loss"
    )]
    Failover {
        /// The cluster; may be left out where the controller keeps one.
        cluster: Option<String>,
        /// Who shall take over; the best candidate if not given.
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        /// Only candidates of this site.
        #[arg(long)]
        site: Option<String>,
        /// Accept that confirmed commits are lost. Not implied by --yes.
        #[arg(long)]
        accept_data_loss: bool,
        /// Swear that the old primary is off and stays off. Asked for again; --yes does not answer it.
        #[arg(long)]
        old_primary_is_off: bool,
    },
    /// Stop automatic operations for a while; lease and self-fence go on.
    #[command(after_help = "Example:\n  stormglass pause orders --for 30m")]
    Pause {
        /// The cluster; may be left out where the controller keeps one.
        cluster: Option<String>,
        /// How long.
        #[arg(long = "for", value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
        duration: Duration,
    },
    /// End a pause.
    Resume {
        /// The cluster; may be left out where the controller keeps one.
        cluster: Option<String>,
    },
    /// Keep a node unable to accept writes until unfence.
    Fence(NodeArguments),
    /// End a fence: the node may come back as a standby.
    Unfence(NodeArguments),
    /// Bring a former primary, a diverged or an empty node back as a standby.
    Rejoin {
        /// Which.
        #[command(flatten)]
        node: NodeArguments,
        /// Skip the rewind and copy everything.
        #[arg(long)]
        reclone: bool,
    },
    /// Sequences: what is done after a failover, on an alert or by name.
    #[command(subcommand)]
    Sequence(SequenceCommand),
    /// Take a backup and read it back.
    #[command(after_help = "Examples:\n  stormglass backup orders\n  stormglass backup orders --type full --no-wait")]
    Backup {
        /// The cluster; may be left out where the controller keeps one.
        cluster: Option<String>,
        /// How much it shall hold: full, diff or incr.
        #[arg(long = "type", value_name = "full|diff|incr", default_value = "incr")]
        backup_type: BackupType,
    },
    /// What is in the backup repository, and which backups were read back.
    Backups {
        /// The cluster; may be left out where the controller keeps one.
        cluster: Option<String>,
    },
    /// Restore the newest backup where nobody uses it, check every table, and remove it: proves that a restore would work, and
    /// measures how long it takes.
    Drill {
        /// The cluster; may be left out where the controller keeps one.
        cluster: Option<String>,
    },
    /// Train a model on what Prometheus has, and let it score if it is better than the one in use.
    #[command(after_help = "Examples:\n  stormglass retrain\n  stormglass retrain orders --no-wait")]
    Retrain {
        /// The cluster; may be left out where the controller keeps one.
        cluster: Option<String>,
    },
    /// Begin the cluster anew from the backup repository; the former data are put aside. With --into, only a copy beside it.
    #[command(
        after_help = "Examples:\n  stormglass restore orders --latest\n  stormglass restore orders --to-time 2026-11-21T03:12:09Z --dry-run\n  \
                      stormglass restore orders --to-lsn 5/3A21F8C8 --into /srv/copy"
    )]
    Restore(RestoreArguments),
    /// Operations that ended: what moved, when, how long it took.
    History(ListArguments),
    /// What happened, as sentences.
    Events(ListArguments),
    /// Operations one by one.
    #[command(subcommand)]
    Operation(OperationCommand),
    /// Models of the predictor.
    #[command(subcommand)]
    Model(ModelCommand),
    /// Who is told what, by mail or webhook.
    #[command(subcommand)]
    Notification(NotificationCommand),
    /// Tokens of people and scripts.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Who asked for what, when, from where, and what became of it.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Certificates of controllers, agents and clients, from an authority of the cluster's own. Asks no controller.
    #[command(subcommand)]
    Pki(PkiCommand),
    /// Configuration files.
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// `stormglass controller …`.
#[derive(Debug, Clone, Subcommand)]
pub enum ControllerCommand {
    /// Copy the store of a single controller to etcd: record, operations, events, audit log. Both must be unused, etcd empty.
    #[command(
        after_help = "Example:\n  systemctl stop stormglass-controller\n  stormglass controller migrate-store --config \
                      /etc/stormglass/controller.toml --from /var/lib/stormglass/controller/stormglass.db --dry-run"
    )]
    MigrateStore {
        /// The new configuration, with [store] kind = "etcd".
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The file of the embedded store; it stays as it is.
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
    },
}

/// A cluster and one of its nodes.
#[derive(Debug, Clone, Args)]
pub struct NodeArguments {
    /// Cluster and node; the cluster may be left out where the controller keeps one.
    #[arg(value_names = ["CLUSTER", "NODE"], num_args = 1..=2, required = true)]
    pub names: Vec<String>,
}

impl NodeArguments {
    /// Cluster, if given.
    pub fn cluster(&self) -> Option<&str> {
        (self.names.len() == 2).then(|| self.names[0].as_str())
    }

    /// Node.
    pub fn node(&self) -> &str {
        self.names.last().expect("clap takes one or two names")
    }
}

/// A list about one cluster.
#[derive(Debug, Clone, Args)]
pub struct ListArguments {
    /// The cluster; may be left out where the controller keeps one.
    pub cluster: Option<String>,
    /// How many of the newest.
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub limit: usize,
}

/// `stormglass sequence …`.
#[derive(Debug, Clone, Subcommand)]
pub enum SequenceCommand {
    /// The configured sequences, with their steps.
    List {
        /// The cluster; may be left out where the controller keeps one.
        cluster: Option<String>,
    },
    /// Begin a sequence by its name.
    #[command(
        after_help = "Examples:\n  stormglass sequence run restore --dry-run\n  stormglass sequence run restore orders --yes"
    )]
    Run {
        /// Which.
        name: String,
        /// The cluster; may be left out where the controller keeps one.
        cluster: Option<String>,
    },
}

/// `stormglass restore …`.
#[derive(Debug, Clone, Args)]
pub struct RestoreArguments {
    /// The cluster; may be left out where the controller keeps one.
    pub cluster: Option<String>,
    /// To the end of the WAL in the repository; so it is also without a target.
    #[arg(long, group = "target")]
    pub latest: bool,
    /// To the last commit made until then (RFC 3339).
    #[arg(long, group = "target", value_name = "TIME", value_parser = wall_time)]
    pub to_time: Option<WallTime>,
    /// To this position.
    #[arg(long, group = "target", value_name = "LSN")]
    pub to_lsn: Option<Lsn>,
    /// On a node of this site.
    #[arg(long)]
    pub site: Option<String>,
    /// Only a copy, in this new directory of a node's host; nothing of the cluster is touched.
    #[arg(long, value_name = "DIR")]
    pub into: Option<String>,
}

fn wall_time(text: &str) -> Result<WallTime, String> {
    WallTime::try_from(text.to_owned()).map_err(|error| error.to_string())
}

/// `stormglass operation …`.
#[derive(Debug, Clone, Subcommand)]
pub enum OperationCommand {
    /// The newest operations.
    List(ListArguments),
    /// One operation: every step with its time, and the phases.
    #[command(
        after_help = "Example:\n  stormglass operation show 0199a7c2-52f1-7d3e-9d0e-0c2b7f6f8a11 --report > incident.md"
    )]
    Show {
        /// Its id.
        id: String,
        /// The incident report instead, as Markdown or, with --output, as JSON or YAML.
        #[arg(long)]
        report: bool,
    },
    /// Follow an operation until it has ended.
    Watch {
        /// Its id.
        id: String,
    },
    /// Stop an operation that has not passed its point of no return.
    Cancel {
        /// Its id.
        id: String,
    },
}

/// `stormglass model …`.
#[derive(Debug, Clone, Subcommand)]
pub enum ModelCommand {
    /// Every model: which one scores, and what is wrong with the others.
    List,
    /// One model: its document.
    Show {
        /// Name of its folder.
        name: String,
    },
    /// Make a model the one that scores, without a restart.
    Promote {
        /// Name of its folder.
        name: String,
    },
    /// Make the model before it score again.
    Rollback,
}

/// `stormglass notification …`.
#[derive(Debug, Clone, Subcommand)]
pub enum NotificationCommand {
    /// Every channel, what it is told, and how it does.
    List,
    /// Send a test over a channel now.
    Test {
        /// Its name.
        name: String,
    },
}

/// `stormglass config …`.
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// Prove that a file can be used: keys, values, secrets, timers.
    Check(ConfigFile),
    /// Print the settings, the environment's overrides included; secrets stay references.
    Show {
        /// Which.
        #[command(flatten)]
        file: ConfigFile,
        /// With defaults filled in and the timers worked out.
        #[arg(long)]
        effective: bool,
    },
}

/// A configuration file, of a controller or an agent.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct ConfigFile {
    /// The file.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    /// The file, however it was given.
    pub fn path(&self) -> &std::path::Path {
        self.file.as_deref().or(self.config.as_deref()).expect("clap requires one of the two")
    }
}
