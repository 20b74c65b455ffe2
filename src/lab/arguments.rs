//! Arguments of `stormglass lab`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

/// `stormglass lab …`.
#[derive(Debug, Clone, Subcommand)]
pub enum LabCommand {
    /// Build a real cluster on this machine and leave it running
    Up {
        /// Where its files go; a short path, for Unix sockets
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
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
    /// Break the links of a host in a running lab, or heal them
    Link(LinkArguments),
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
    #[arg(long, conflicts_with_all = ["delay", "loss"])]
    pub cut: bool,
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
    /// switchover: a client holds a transaction open
    #[arg(long)]
    pub held: bool,
    /// controller-crash: together with the primary
    #[arg(long)]
    pub during_failover: bool,
    /// hang-primary: which processes stop; both faults one after the other if not given
    #[arg(long, value_enum)]
    pub fault: Option<HangFault>,
    /// How many controllers; more than one are elected in etcd, which has as many members
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    pub controllers: u8,
    /// A lab directory with volumes of limited size in it (made by the lab itself)
    #[arg(long, value_name = "DIR", hide = true)]
    pub prepared: Option<PathBuf>,
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
    /// kill -9 of the controller: nothing may happen to clients
    ControllerCrash,
    /// The primary's host is cut off from everything but a client of its own; then the line is back
    PartitionPrimary,
    /// The volume of the primary's PostgreSQL fills up; then there is space again
    DiskFull,
}

impl Scenario {
    /// Name in the report.
    pub fn label(self) -> &'static str {
        match self {
            Scenario::KillPrimary => "kill-primary",
            Scenario::HangPrimary => "hang-primary",
            Scenario::Switchover => "switchover",
            Scenario::AgentCrash => "agent-crash",
            Scenario::ControllerCrash => "controller-crash",
            Scenario::PartitionPrimary => "partition-primary",
            Scenario::DiskFull => "disk-full",
        }
    }
}

/// What stops in `hang-primary`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HangFault {
    /// Every PostgreSQL process of the primary
    All,
    /// The postmaster alone: sessions go on, new ones hang
    Postmaster,
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
        if run.keep && run.scenario == Scenario::DiskFull {
            return Some("--keep: the volumes of disk-full end with the run".to_owned());
        }
        if run.controllers == 2 {
            return Some("--controllers: two members of etcd survive no loss; take one or three".to_owned());
        }
        if run.controllers > 1 && run.scenario == Scenario::ControllerCrash && run.during_failover {
            return Some("--during-failover: with several controllers that is part of the scenario".to_owned());
        }
        let misplaced = [
            (run.held, Scenario::Switchover, "--held"),
            (run.during_failover, Scenario::ControllerCrash, "--during-failover"),
            (run.fault.is_some(), Scenario::HangPrimary, "--fault"),
        ];
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
            "partition-primary",
            "disk-full",
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
        assert!(contradiction(&["run", "switchover", "--held"]).is_none());
        assert!(contradiction(&["up"]).is_none());
    }
}
