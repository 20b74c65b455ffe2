//! The faults that `lab chaos` knows: what each does, what it needs, and how often the primary may move. Pure data.

use std::time::Duration;

use serde::Serialize;

use crate::lab::network::{Direction, LinkState};

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fault {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its row in docs/failure-modes.md.
    pub row: u8,
    /// For people.
    pub words: &'static str,
    /// What the lab must have for it.
    pub needs: Needs,
    /// Fewest and most moves of the primary that are right.
    pub moves: (u64, u64),
    /// True if clients may notice nothing.
    pub undisturbed: bool,
    /// True if it is among the random ones.
    pub is_drawn: bool,
    #[serde(skip)]
    pub(super) action: Action,
    #[serde(skip)]
    pub(super) hold: Hold,
}

/// What a lab must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Needs {
    /// Nothing but processes.
    Nothing,
    /// Links that can be broken.
    Links,
    /// Packets that can be lost one way, or late, or between a standby and its primary: hosts as namespaces.
    Namespaces,
    /// Wall clocks that can be moved (libfaketime).
    Clocks,
    /// A volume of limited size for each node.
    Volumes,
}

/// A host of the lab, by what it does when the fault begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Host {
    Primary,
    /// The one that commits wait for.
    Standby,
    Controller,
    FirstProxy,
}

/// The others whose lines to a host break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peers {
    /// Everybody but the client that bypasses HAProxy.
    All,
    Controller,
    Standbys,
    Proxies,
    /// Of two standbys the other one stays: it reaches both halves.
    ControllerAndStandby,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Action {
    /// Does something to the lines of a host.
    Line(Host, Peers, Direction, LinkState),
    /// Cuts everything of the primary off and on again, ten seconds each.
    Flap,
    /// Cuts both proxies off.
    Proxies,
    /// The line goes, then every process, without a word to anybody.
    LoseHost(Host),
    /// SIGSTOP for every process of the host.
    Pause(Host),
    /// SIGSTOP for the primary's PostgreSQL: the postmaster, or all of it.
    Stop {
        postmaster_alone: bool,
    },
    /// SIGKILL for a part of the primary.
    Kill(Victim),
    /// SIGKILL for every PostgreSQL process of a standby.
    KillStandby,
    KillController,
    PauseController,
    KillProxy,
    /// The primary's PostgreSQL dies; in the middle of the promotion the candidate loses sight of the controller.
    CutPromotion,
    /// The wall clock of the primary's host goes wrong by so many seconds.
    Clock(i64),
    FillDisk,
    /// SIGKILL for every process of every node, at once; they return one by one, in an order that is drawn.
    PowerCycle,
    /// The primary's data directory is gone while PostgreSQL runs in it.
    RemoveData,
    /// The primary's control file is overwritten, then PostgreSQL dies.
    DamageControlFile,
    /// Every PostgreSQL is restarted as for a minor upgrade: the standbys, a switchover, the former primary.
    RollingRestart,
    /// Every core busy, a tenth of all packets lost, up to 200 ms of jitter.
    Starve,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    Agent,
    Guard,
    Postgres,
    Backend,
}

/// How long a fault lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// Drawn between these numbers of seconds.
    Seconds(u64, u64),
    /// Until somebody else is promoted, and a second more.
    Move,
    /// Until an operation is under way; then not a moment longer.
    Operation,
    /// It heals by itself.
    Moment,
    /// As long as `--duration` says.
    Asked,
}

const fn lossy(loss_percent: u8) -> LinkState {
    LinkState { cut: false, delay: Duration::ZERO, jitter: Duration::ZERO, loss_percent }
}

const fn late(milliseconds: u64) -> LinkState {
    LinkState { cut: false, delay: Duration::from_millis(milliseconds), jitter: Duration::ZERO, loss_percent: 0 }
}

/// What every host's lines are like while it starves.
pub(super) const STARVED: LinkState =
    LinkState { cut: false, delay: Duration::ZERO, jitter: Duration::from_millis(200), loss_percent: 10 };

const fn fault(name: &'static str, row: u8, words: &'static str, needs: Needs, action: Action, hold: Hold) -> Fault {
    Fault { name, row, words, needs, moves: (0, 0), undisturbed: false, is_drawn: true, action, hold }
}

impl Fault {
    const fn moves(self, least: u64, most: u64) -> Self {
        Self { moves: (least, most), ..self }
    }

    const fn undisturbed(self) -> Self {
        Self { undisturbed: true, ..self }
    }

    const fn never_drawn(self) -> Self {
        Self { is_drawn: false, ..self }
    }
}

const CUT: LinkState = LinkState::CUT;

/// Every fault, in the order in which they happen.
#[rustfmt::skip]
pub const FAULTS: [Fault; 41] = {
    use Action::*;
    use Direction::{Both, In, Out};
    use Hold::*;
    use Needs::*;
    [
        fault("partition-controller", 20, "the primary's host does not reach the controller", Links,
            Line(Host::Primary, Peers::Controller, Both, CUT), Seconds(10, 15)).undisturbed(),
        fault("partition-standbys", 21, "the primary's host does not reach the standbys", Namespaces,
            Line(Host::Primary, Peers::Standbys, Both, CUT), Seconds(8, 12)).moves(0, 1),
        fault("partition-primary", 22, "the primary's host reaches nobody", Links,
            Line(Host::Primary, Peers::All, Both, CUT), Move).moves(1, 1),
        fault("partition-clients", 24, "the primary's host does not reach the proxies", Namespaces,
            Line(Host::Primary, Peers::Proxies, Both, CUT), Seconds(8, 12)).moves(0, 1),
        fault("partition-standby", 26, "the host of the standby that commits wait for reaches nobody", Namespaces,
            Line(Host::Standby, Peers::All, Both, CUT), Seconds(5, 12)),
        fault("controller-isolated", 25, "the controller reaches nobody", Links,
            Line(Host::Controller, Peers::All, Both, CUT), Seconds(8, 15)).undisturbed(),
        fault("one-way-deaf", 23, "the primary's host sends and hears nothing", Namespaces,
            Line(Host::Primary, Peers::All, In, CUT), Move).moves(1, 1),
        fault("one-way-mute", 23, "the primary's host hears and nothing it sends arrives", Namespaces,
            Line(Host::Primary, Peers::All, Out, CUT), Move).moves(1, 1),
        fault("loss-5", 28, "5 % of the packets of the primary's host are lost, each way", Namespaces,
            Line(Host::Primary, Peers::All, Both, lossy(5)), Seconds(15, 20)),
        fault("loss-30", 28, "30 % of the packets of the primary's host are lost, each way", Namespaces,
            Line(Host::Primary, Peers::All, Both, lossy(30)), Seconds(15, 20)).moves(0, 1),
        fault("delay-200ms", 28, "packets of the primary's host are 200 ms late, each way", Namespaces,
            Line(Host::Primary, Peers::All, Both, late(200)), Seconds(15, 20)),
        fault("delay-1s", 28, "packets of the primary's host are 1 s late, each way", Namespaces,
            Line(Host::Primary, Peers::All, Both, late(1000)), Seconds(15, 20)).moves(0, 1),
        fault("delay-5s", 28, "packets of the primary's host are 5 s late, each way", Namespaces,
            Line(Host::Primary, Peers::All, Both, late(5000)), Seconds(15, 20)).moves(0, 1),
        fault("bridge", 27, "the primary's host reaches neither the controller nor the standby that commits wait for; another one reaches all", Namespaces,
            Line(Host::Primary, Peers::ControllerAndStandby, Both, CUT), Seconds(8, 12)).moves(0, 1),
        fault("flapping", 29, "the line of the primary's host is down for 10 s, up for 10 s, again and again", Links,
            Flap, Moment).moves(0, 1).never_drawn(),
        // Where only the candidate holds every confirmed commit, it has the epoch, gives it back, and the former primary starts in a third.
        fault("partition-in-promotion", 30, "the candidate loses the controller in the middle of its promotion", Links,
            CutPromotion, Seconds(3, 5)).moves(1, 3),
        fault("heals-in-failover", 30, "the primary's host is cut off until somebody acts, and not a moment longer", Links,
            Line(Host::Primary, Peers::All, Both, CUT), Operation).moves(0, 1),
        fault("host-lost", 8, "the primary's host loses line and power at once, and returns", Links,
            LoseHost(Host::Primary), Move).moves(1, 1),
        fault("standby-lost", 7, "the host of the standby that commits wait for loses line and power at once, and returns", Namespaces,
            LoseHost(Host::Standby), Seconds(4, 8)),
        fault("pause-host", 9, "every process of the primary's host stands still, then goes on", Nothing,
            Pause(Host::Primary), Seconds(5, 30)).moves(1, 1),
        fault("pause-standby-host", 9, "every process on the host of the standby that commits wait for stands still, then goes on", Nothing,
            Pause(Host::Standby), Seconds(5, 15)),
        fault("clock-forward", 39, "the wall clock of the primary's host jumps a day forward, and back", Clocks,
            Clock(86_400), Seconds(8, 10)).undisturbed().never_drawn(),
        fault("clock-back", 39, "the wall clock of the primary's host jumps a day back, and forward", Clocks,
            Clock(-86_400), Seconds(8, 10)).undisturbed().never_drawn(),
        fault("kill-controller", 35, "SIGKILL for the controller", Nothing, KillController, Seconds(1, 10)).undisturbed(),
        fault("pause-controller", 25, "SIGSTOP for the controller", Nothing, PauseController, Seconds(5, 12)).undisturbed(),
        fault("kill-agent", 6, "SIGKILL for the primary's agent", Nothing, Kill(Victim::Agent), Seconds(2, 4)).undisturbed(),
        fault("kill-guard", 6, "SIGKILL for the guard of the primary's agent", Nothing, Kill(Victim::Guard), Seconds(2, 4)).undisturbed(),
        fault("kill-postgres", 1, "SIGKILL for every PostgreSQL process of the primary", Nothing, Kill(Victim::Postgres), Moment).moves(1, 1),
        fault("kill-backend", 2, "SIGKILL for one backend of the primary", Nothing, Kill(Victim::Backend), Moment).moves(0, 1),
        fault("kill-standby", 45, "SIGKILL for PostgreSQL on the standby that commits wait for", Nothing, KillStandby, Moment),
        fault("stop-postmaster", 3, "SIGSTOP for the primary's postmaster", Nothing, Stop { postmaster_alone: true }, Move).moves(1, 1),
        fault("stop-postgres", 4, "SIGSTOP for every PostgreSQL process of the primary", Nothing, Stop { postmaster_alone: false }, Move).moves(1, 1),
        fault("power-cycle", 49, "every node loses power at once, and they return one by one", Nothing,
            PowerCycle, Seconds(1, 3)).moves(0, 2),
        fault("data-removed", 18, "the primary's data directory is removed while PostgreSQL runs", Nothing,
            RemoveData, Move).moves(1, 1),
        fault("control-file-damaged", 18, "the primary's pg_control is overwritten, then PostgreSQL dies", Nothing,
            DamageControlFile, Moment).moves(1, 1),
        fault("rolling-restart", 77, "every PostgreSQL is restarted as for a minor upgrade: standbys, switchover, former primary", Nothing,
            RollingRestart, Moment).moves(1, 1),
        fault("proxy-killed", 60, "SIGKILL for one HAProxy", Nothing, KillProxy, Moment),
        fault("proxy-cut", 60, "the host of one HAProxy reaches nobody", Links,
            Line(Host::FirstProxy, Peers::All, Both, CUT), Seconds(5, 10)),
        fault("proxies-cut", 60, "the hosts of both HAProxy reach nobody", Links, Proxies, Seconds(5, 10)),
        fault("disk-full", 13, "the volume of the primary's PostgreSQL is full", Volumes, FillDisk, Move).moves(1, 1).never_drawn(),
        fault("starvation", 57, "every core is busy, 10 % of all packets are lost, the others up to 200 ms late", Namespaces,
            Starve, Asked).never_drawn(),
    ]
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_is_there_once_and_no_bound_is_upside_down() {
        let names: BTreeSet<&str> = FAULTS.iter().map(|fault| fault.name).collect();
        assert_eq!(names.len(), FAULTS.len());
        for fault in FAULTS {
            assert!(fault.moves.0 <= fault.moves.1, "{}", fault.name);
            assert!(!fault.undisturbed || fault.moves == (0, 0), "{}", fault.name);
            assert!(fault.hold != Hold::Move || fault.moves.0 > 0, "{} would wait for ever", fault.name);
            if let Hold::Seconds(least, most) = fault.hold {
                assert!(least < most, "{}", fault.name);
            }
        }
    }
}
