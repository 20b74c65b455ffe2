//! Arguments of `stormglass lab`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::network::Direction;
use crate::domain::ids::{Address, SiteName};
use crate::domain::policy::{DurabilityMode, PredictionMode, SyncScope};

/// `stormglass lab …`.
#[derive(Debug, Clone, Subcommand)]
pub enum LabCommand {
    /// Build a real cluster on this machine and leave it running
    Up {
        /// Where its files go; a short path, for Unix sockets
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
        /// Every host is a network namespace; root only
        #[arg(long)]
        namespaces: bool,
        /// `failover.rto` of the cluster, such as 2s
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        rto: Option<Duration>,
        /// How many controllers; more than one are elected in etcd, which has as many members
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
        controllers: u8,
    },
    /// Stop everything of the lab and remove it, also after a crash
    Down {
        /// Where the lab is
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Where everything of the lab is: addresses, tokens, directories
    Status {
        /// Where the lab is
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Build a lab, break something while a client writes, measure, remove the lab
    Run(RunArguments),
    /// Break everything that can be broken, one after the other, while clients write; then at random
    Chaos(ChaosArguments),
    /// Break the links of a host in a running lab, or heal them
    Link(LinkArguments),
    /// Serve the lab's application in one site (started by the lab itself)
    #[command(hide = true)]
    Application {
        /// Where its servers stand
        #[arg(long)]
        site: SiteName,
        /// `host:port` of each
        #[arg(long, value_delimiter = ',', value_parser = address)]
        listen: Vec<Address>,
    },
    /// Carry the links of a lab (started by the lab itself)
    #[command(hide = true)]
    Network {
        /// Where the lab is
        #[arg(long, value_name = "DIR")]
        directory: PathBuf,
    },
}

/// `stormglass lab link …`. Without an option it heals.
#[derive(Debug, Clone, Args)]
pub struct LinkArguments {
    /// A host: a node, a proxy, or `controller`
    pub host: String,
    /// Only the links to this host; `database` is whoever connects to a node's PostgreSQL
    pub peer: Option<String>,
    /// Nothing passes, and nobody is told
    #[arg(long, conflicts_with_all = ["delay", "jitter", "loss"])]
    pub cut: bool,
    /// Hold it back for up to so much more, at random
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub jitter: Option<Duration>,
    /// Which way, seen from the host; one way alone only between namespaces
    #[arg(long, value_enum, default_value_t = Direction::Both)]
    pub direction: Direction,
    /// Hold everything back for so long, such as 200ms
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub delay: Option<Duration>,
    /// Share of what passes that is lost once and comes late
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub loss: Option<u8>,
    /// Where the lab is
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
}

/// `stormglass lab chaos …`.
#[derive(Debug, Clone, Args)]
pub struct ChaosArguments {
    /// Faults drawn at random, after every fault was there once; with --only they are drawn from those
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub faults: u32,
    /// Repeats what was drawn
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Only this fault; may be repeated
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// Not every fault once first: begin with the random ones
    #[arg(long)]
    pub random_only: bool,
    /// List the faults
    #[arg(long)]
    pub list: bool,
    /// How long `starvation` lasts
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub duration: Duration,
    /// How often `flapping` goes down and comes up, 10 s each
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub flaps: u32,
    /// `failover.rto` of the cluster, such as 2s
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub rto: Option<Duration>,
    /// Also write the JSON report to this file
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// `stormglass lab run …`.
#[derive(Debug, Clone, Args)]
pub struct RunArguments {
    /// What is broken
    #[arg(value_enum)]
    pub scenario: Scenario,
    /// Repeat a run: decides when in the client's rhythm the fault happens
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Also write the JSON report to this file
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Repeat the scenario in one lab and show least, median and greatest
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// Leave the lab running afterwards, where `lab status` and `lab down` find it
    #[arg(long)]
    pub keep: bool,
    /// Every host is a network namespace; root only
    #[arg(long)]
    pub namespaces: bool,
    /// `failover.rto` of the cluster, such as 2s
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub rto: Option<Duration>,
    /// switchover: a client holds a transaction open, others come through PgBouncer and anew, and must notice nothing
    #[arg(long)]
    pub held: bool,
    /// switchover: to the other site and back, while clients follow the name
    #[arg(long, conflicts_with = "held")]
    pub to_site: bool,
    /// lose-site: the only controller is lost with the site, and its store too; another one begins with nothing, and an operator
    /// swears that the site is off
    #[arg(long, conflicts_with = "controllers")]
    pub with_controller: bool,
    /// Who confirms commits [default: local; each_site for lose-site and switchover --to-site]
    #[arg(long, value_parser = sync_scope, value_name = "local|other_site|each_site")]
    pub sync_scope: Option<SyncScope>,
    /// controller-crash: together with the primary, then in the middle of a failover
    #[arg(long)]
    pub during_failover: bool,
    /// kill-primary: once alone, and once while the controller, on a core of its own, answers so many status requests a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub status_rate: Option<u32>,
    /// hang-primary: which processes stop; degrade-primary: what grows; if not given, one after the other all that do not need root
    #[arg(long, value_enum)]
    pub fault: Option<NamedFault>,
    /// The cluster's durability mode [default: sync]
    #[arg(long, value_parser = durability_mode, value_name = "sync|sync_strict|async")]
    pub durability: Option<DurabilityMode>,
    /// How many controllers; more than one are elected in etcd, which has as many members
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    pub controllers: u8,
    /// healthy-load: how long it lasts [default: 60s]; degrade-primary: load before the fault [default: 12s in the control run, 160s
    /// where the predictor acts, which learns what is usual]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// degrade-primary: in which time the fault takes everything [default: 55s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub grows_for: Option<Duration>,
    /// degrade-primary, healthy-load: also write the samples of every node, for the trainer: one a second, and one in 15 s below 15s/
    #[arg(long, value_name = "DIR")]
    pub samples: Option<PathBuf>,
    /// degrade-primary: one of its two runs alone
    #[arg(long, value_enum)]
    pub part: Option<Part>,
    /// A lab directory with volumes of limited size in it (made by the lab itself)
    #[arg(long, value_name = "DIR", hide = true)]
    pub prepared: Option<PathBuf>,
}

/// So many seconds after a start the scorers of the lab's model have learnt what is usual, from the last 71 of 142 samples, and each sample
/// was one of this load; a cluster in production has had years.
const LEARNING_TIME: Duration = Duration::from_secs(160);
/// A fault that takes everything at once does not grow.
const GROWS_FOR_MIN: Duration = Duration::from_secs(10);

fn address(text: &str) -> Result<Address, String> {
    let parts = text.rsplit_once(':').and_then(|(host, port)| Some(Address::new(host, port.parse().ok()?)));
    parts.ok_or_else(|| "host:port".to_owned())
}

fn durability_mode(text: &str) -> Result<DurabilityMode, String> {
    let known = [DurabilityMode::Sync, DurabilityMode::SyncStrict, DurabilityMode::Async];
    known
        .into_iter()
        .find(|mode| mode.label() == text)
        .ok_or_else(|| format!("one of {}", known.map(DurabilityMode::label).join(", ")))
}

fn sync_scope(text: &str) -> Result<SyncScope, String> {
    let known = SyncScope::ALL;
    known
        .into_iter()
        .find(|scope| scope.label() == text)
        .ok_or_else(|| format!("one of {}", known.map(SyncScope::label).join(", ")))
}

/// What `lab run` can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// SIGKILL for every PostgreSQL process of the primary
    KillPrimary,
    /// SIGSTOP for every PostgreSQL process of the primary, then for a postmaster alone
    HangPrimary,
    /// A planned move of the primary
    Switchover,
    /// kill -9 of the primary's agent, then of its guard: nothing may happen to clients
    AgentCrash,
    /// kill -9 of the controller, away for more than two leases: nothing may happen to clients
    ControllerCrash,
    /// The primary, then every host, is cut off from the controller for more than two leases, and the primary's agent is
    /// killed meanwhile: nothing may happen to clients
    PartitionController,
    /// The primary's host is cut off from everything but a client of its own; then the line is back
    PartitionPrimary,
    /// The volume of the primary's PostgreSQL fills up; then there is space again
    DiskFull,
    /// The primary's host loses its line and its power at once; then it is switched on again
    HostLost,
    /// All of the primary's site is gone at once, databases, proxy and agents; clients follow the name to the other one. Then it is
    /// back
    LoseSite,
    /// A fault grows until commits fail; and once more with the predictor in mode `act`: how long before is the primary moved away?
    DegradePrimary,
    /// Varied load without a fault: what alarms all the same?
    HealthyLoad,
    /// Every rung of the way back: WAL that parted ways, a data directory removed, a host gone and replaced by Terraform
    RejoinLadder,
    /// The data of all nodes are destroyed; the cluster is restored from the repository to a point in time
    Restore,
}

/// One of the two runs of `degrade-primary`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The predictor may act
    Act,
    /// It only observes: when do commits fail?
    Control,
}

impl RunArguments {
    /// How many runs there will be: with `--status-rate` each is made twice.
    pub fn measured(&self) -> u32 {
        if self.status_rate.is_some() { self.runs * 2 } else { self.runs }
    }

    /// Whether clients resolve the name at each connection.
    pub fn is_by_name(&self) -> bool {
        self.scenario == Scenario::LoseSite || self.to_site
    }

    /// Who confirms commits: a site can only be left by itself where another one has them all.
    pub fn sync_scope(&self) -> SyncScope {
        let fallback = if self.is_by_name() { SyncScope::EachSite } else { SyncScope::Local };
        self.sync_scope.unwrap_or(fallback)
    }

    /// Whether every node needs a disk and a control group of its own.
    pub fn needs_disks(&self) -> bool {
        self.fault.is_some_and(NamedFault::needs_disk)
    }

    /// Load before the fault of `degrade-primary`, at least, where the predictor acts: so long it may learn what is usual here.
    pub fn learning_time(&self) -> Option<Duration> {
        let acts = self.scenario == Scenario::DegradePrimary && self.part.unwrap_or(Part::Act) == Part::Act;
        acts.then(|| self.duration.unwrap_or(LEARNING_TIME))
    }

    /// What was asked for that takes longer than a scenario's usual time.
    pub fn added_time(&self) -> Option<Duration> {
        self.duration.or(self.learning_time()).into_iter().chain(self.grows_for).reduce(|left, right| left + right)
    }

    /// Whether a link is cut or slowed down, or may be by hand.
    pub fn needs_links(&self) -> bool {
        let cuts = matches!(
            self.scenario,
            Scenario::PartitionPrimary | Scenario::PartitionController | Scenario::HostLost | Scenario::LoseSite
        );
        cuts || self.during_failover || self.keep
    }
}

impl Scenario {
    /// Whether every node's data is on a volume of limited size.
    pub fn needs_volumes(self) -> bool {
        matches!(self, Scenario::DiskFull | Scenario::DegradePrimary | Scenario::HealthyLoad)
    }

    /// What predictions may do in it; `None`: there is no predictor.
    pub fn prediction(self, part: Option<Part>) -> Option<PredictionMode> {
        match (self, part) {
            (Scenario::DegradePrimary, Some(Part::Control)) | (Scenario::HealthyLoad, _) => {
                Some(PredictionMode::Observe)
            }
            (Scenario::DegradePrimary, _) => Some(PredictionMode::Act),
            _ => None,
        }
    }

    /// Name in the report.
    pub fn label(self) -> &'static str {
        match self {
            Scenario::KillPrimary => "kill-primary",
            Scenario::HangPrimary => "hang-primary",
            Scenario::Switchover => "switchover",
            Scenario::AgentCrash => "agent-crash",
            Scenario::ControllerCrash => "controller-crash",
            Scenario::PartitionController => "partition-controller",
            Scenario::PartitionPrimary => "partition-primary",
            Scenario::DiskFull => "disk-full",
            Scenario::HostLost => "host-lost",
            Scenario::LoseSite => "lose-site",
            Scenario::DegradePrimary => "degrade-primary",
            Scenario::HealthyLoad => "healthy-load",
            Scenario::RejoinLadder => "rejoin-ladder",
            Scenario::Restore => "restore",
        }
    }
}

/// What stops in `hang-primary`, or grows in `degrade-primary`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NamedFault {
    /// hang-primary: every PostgreSQL process of the primary
    All,
    /// hang-primary: the postmaster alone: sessions go on, new ones hang
    Postmaster,
    /// hang-primary: the agent and its guard, longer than a lease, while PostgreSQL goes on: nobody may be promoted beside it
    Agent,
    /// degrade-primary: the volume fills up
    DiskFilling,
    /// degrade-primary: somebody opens connections and forgets to close them
    ConnectionsLeaking,
    /// degrade-primary: a slot that nobody reads keeps all WAL
    WalPilingUp,
    /// degrade-primary: the processors are taken away from the primary's PostgreSQL, as a hypervisor does it
    ProcessorStolen,
    /// degrade-primary: the disk begins fewer and fewer writes a second (needs root, loop devices and control groups)
    DiskSlowing,
    /// degrade-primary: the memory that the primary's PostgreSQL may use shrinks (needs root, loop devices and control groups)
    MemoryPressure,
}

impl NamedFault {
    /// Faults that grow and that the lab can inject without root.
    pub const GROWING: [NamedFault; 4] =
        [NamedFault::DiskFilling, NamedFault::ConnectionsLeaking, NamedFault::WalPilingUp, NamedFault::ProcessorStolen];

    /// Name in the report, and on the command line.
    pub fn label(self) -> &'static str {
        match self {
            NamedFault::All => "all",
            NamedFault::Postmaster => "postmaster",
            NamedFault::Agent => "agent",
            NamedFault::DiskFilling => "disk-filling",
            NamedFault::ConnectionsLeaking => "connections-leaking",
            NamedFault::WalPilingUp => "wal-piling-up",
            NamedFault::ProcessorStolen => "processor-stolen",
            NamedFault::DiskSlowing => "disk-slowing",
            NamedFault::MemoryPressure => "memory-pressure",
        }
    }

    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            NamedFault::DiskFilling => "the volume of the primary fills up",
            NamedFault::ConnectionsLeaking => "connections to the primary are opened and never closed",
            NamedFault::WalPilingUp => "WAL piles up behind a slot of the primary",
            NamedFault::ProcessorStolen => "processor time of the primary is stolen",
            NamedFault::DiskSlowing => "the disk of the primary gets slower",
            NamedFault::MemoryPressure => "the memory of the primary gets short",
            other => other.label(),
        }
    }

    /// The scenario that it belongs to.
    fn scenario(self) -> Scenario {
        match self {
            NamedFault::All | NamedFault::Postmaster | NamedFault::Agent => Scenario::HangPrimary,
            _ => Scenario::DegradePrimary,
        }
    }

    /// Whether it acts on a disk and a control group of the node's own, which only root can make.
    pub fn needs_disk(self) -> bool {
        matches!(self, NamedFault::DiskSlowing | NamedFault::MemoryPressure)
    }
}

/// How data is written to stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// For programs, and people who prefer it.
    Yaml,
}

impl LabCommand {
    /// Options that do not belong to the scenario, which would be ignored silently.
    pub fn contradiction(&self) -> Option<String> {
        let LabCommand::Run(run) = self else { return None };
        if run.namespaces && run.scenario.needs_volumes() {
            return Some(format!("--namespaces: {} has namespaces of another kind", run.scenario.label()));
        }
        if run.keep && run.scenario.needs_volumes() {
            return Some(format!("--keep: the volumes of {} end with the run", run.scenario.label()));
        }
        if run.scenario == Scenario::DegradePrimary
            && (run.runs > 1 || run.controllers > 1 || run.samples.is_some() && run.fault.is_none())
        {
            return Some(
                "degrade-primary takes one controller, no --runs, and --samples only with one --fault".to_owned(),
            );
        }
        if let Some(fault) = run.fault.filter(|fault| fault.scenario() != run.scenario) {
            return Some(format!("--fault {} belongs to the scenario {}", fault.label(), fault.scenario().label()));
        }
        if run.namespaces && run.scenario == Scenario::RejoinLadder {
            return Some("--namespaces: Terraform starts the replacement outside of them".to_owned());
        }
        if run.controllers == 2 {
            return Some("--controllers: two members of etcd survive no loss; take one or three".to_owned());
        }
        if run.controllers > 1 && run.scenario == Scenario::ControllerCrash && run.during_failover {
            return Some("--during-failover: with several controllers that is part of the scenario".to_owned());
        }
        let misplaced = [
            (run.held, Scenario::Switchover, "--held"),
            (run.to_site, Scenario::Switchover, "--to-site"),
            (run.during_failover, Scenario::ControllerCrash, "--during-failover"),
            (run.status_rate.is_some(), Scenario::KillPrimary, "--status-rate"),
            (run.grows_for.is_some(), Scenario::DegradePrimary, "--grows-for"),
        ];
        if run.duration.is_some() && !matches!(run.scenario, Scenario::HealthyLoad | Scenario::DegradePrimary) {
            return Some("--duration belongs to the scenarios healthy-load and degrade-primary".to_owned());
        }
        if run.grows_for.is_some_and(|time| time < GROWS_FOR_MIN) {
            return Some(format!("--grows-for: at least {} s, else it is no growth", GROWS_FOR_MIN.as_secs()));
        }
        misplaced
            .iter()
            .find(|(given, scenario, _)| *given && run.scenario != *scenario)
            .map(|(_, scenario, option)| format!("{option} belongs to the scenario {}", scenario.label()))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: LabCommand,
    }

    fn parse(line: &[&str]) -> Result<LabCommand, clap::Error> {
        Line::try_parse_from(std::iter::once("lab").chain(line.iter().copied())).map(|line| line.command)
    }

    #[test]
    fn scenarios_are_written_as_in_the_documentation() {
        for name in [
            "kill-primary",
            "hang-primary",
            "switchover",
            "agent-crash",
            "controller-crash",
            "partition-controller",
            "partition-primary",
            "disk-full",
            "host-lost",
            "lose-site",
            "degrade-primary",
            "healthy-load",
            "rejoin-ladder",
            "restore",
        ] {
            let LabCommand::Run(run) = parse(&["run", name]).expect("parsed") else { panic!("not a run") };
            assert_eq!(run.scenario.label(), name);
        }
        assert!(parse(&["run", "earthquake"]).is_err());
        assert!(parse(&["run", "kill-primary", "--runs", "0"]).is_err());
    }

    #[test]
    fn an_option_of_another_scenario_is_refused() {
        let contradiction = |line: &[&str]| parse(line).expect("parsed").contradiction();
        assert!(contradiction(&["run", "kill-primary", "--held"]).is_some());
        assert!(contradiction(&["run", "switchover", "--during-failover"]).is_some());
        assert!(contradiction(&["run", "switchover", "--fault", "all"]).is_some());
        assert!(contradiction(&["run", "disk-full", "--keep"]).is_some());
        assert!(contradiction(&["run", "degrade-primary", "--fault", "agent"]).is_some());
        assert!(contradiction(&["run", "hang-primary", "--fault", "disk-filling"]).is_some());
        assert!(contradiction(&["run", "degrade-primary", "--fault", "memory-pressure"]).is_none());
        assert!(contradiction(&["run", "hang-primary", "--fault", "disk-slowing"]).is_some());
        assert!(contradiction(&["run", "degrade-primary", "--fault", "wal-piling-up", "--grows-for", "8m"]).is_none());
        assert!(contradiction(&["run", "degrade-primary", "--grows-for", "1s"]).is_some());
        assert!(contradiction(&["run", "switchover", "--grows-for", "8m"]).is_some());
        assert!(contradiction(&["run", "switchover", "--duration", "8m"]).is_some());
        assert!(contradiction(&["run", "switchover", "--held"]).is_none());
        assert!(contradiction(&["up"]).is_none());
    }
}
