//! PostgreSQL as far as failover can see it: data with its WAL and history, a process, streaming replication, clients that wait
//! for a synchronous standby.
//!
//! Every WAL record has an identity of its own, so that two histories that look alike are told apart.

use std::collections::BTreeSet;

use stormglass::domain::epoch::Epoch;
use stormglass::domain::ids::NodeName;
use stormglass::domain::lsn::{Fork, History, Lsn, Timeline};
use stormglass::domain::report::SynchronousReport;

use super::mutants::Mutant;
use super::network::Place;
use super::signal;
use super::world::{HOSTS, State, node};

/// A standby that lost its primary, or was refused, asks again after this.
const RECONNECT_MICROS: u64 = 200_000;
/// A connection that brings nothing is given up after this: `wal_receiver_timeout`.
const SILENCE_MICROS: u64 = 2_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Unique in the world.
    pub identity: u64,
    pub written_at: u64,
}

#[derive(Debug, Clone)]
pub struct Data {
    pub history: History,
    /// Flushed.
    pub wal: Vec<Record>,
    /// As `pg_control` words it.
    pub state: &'static str,
    pub checkpoint: Lsn,
    /// A rewind was cut off: neither the old nor the new data.
    pub torn: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hang {
    No,
    /// SIGSTOP to the postmaster alone: sessions go on, nobody new comes in, nothing stops it but SIGKILL.
    Postmaster,
    /// SIGSTOP to all.
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    Fine,
    /// Writes never return.
    Stalled,
    /// Writes fail.
    Full,
}

pub struct Run {
    pub postmaster: i32,
    pub recovery: bool,
    pub accepts_at: u64,
    pub hang: Hang,
    pub upstream: Option<usize>,
    pub streams: bool,
    pub connect_at: u64,
    pub last_message: u64,
    pub names: BTreeSet<NodeName>,
    pub block_when_alone: bool,
    /// The change of the names that was acknowledged last.
    pub applied: Option<SynchronousReport>,
    pub stopping: bool,
    /// What this primary knows each standby to have flushed, as a number of records; `None`: not connected.
    pub standbys: [Option<usize>; HOSTS],
    /// Commits that wait for a standby: (identity, position).
    pub waiting: Vec<(u64, usize)>,
}

pub struct Server {
    pub data: Option<Data>,
    pub run: Option<Run>,
    pub disk: Disk,
    /// WAL is on its disk this long after it arrived.
    pub lag_micros: u64,
    /// Who runs, for those who wait for its end.
    pub postmaster: signal::Sender<Option<i32>>,
    next_postmaster: i32,
}

pub fn lsn(records: usize) -> Lsn {
    Lsn(0x100_0000 + 0x100 * records as u64)
}

impl Server {
    /// One primary with two standbys, as an administrator set them up.
    pub fn installed(index: usize) -> Self {
        let wal: Vec<Record> = (1..=10).map(|identity| Record { identity, written_at: 0 }).collect();
        let data = Data {
            history: History::root(Timeline(1)),
            checkpoint: lsn(wal.len()),
            wal,
            state: if index == 0 { "in production" } else { "in archive recovery" },
            torn: false,
        };
        let mut server = Self {
            data: Some(data),
            run: None,
            disk: Disk::Fine,
            lag_micros: 0,
            postmaster: signal::channel(None).0,
            next_postmaster: 100,
        };
        server.begin(0, index != 0, (index != 0).then_some(0));
        server
    }

    pub fn begin(&mut self, accepts_at: u64, recovery: bool, upstream: Option<usize>) -> i32 {
        self.next_postmaster += 1;
        let postmaster = self.next_postmaster;
        self.run = Some(Run {
            postmaster,
            recovery,
            accepts_at,
            hang: Hang::No,
            upstream,
            streams: false,
            connect_at: accepts_at,
            last_message: 0,
            names: BTreeSet::new(),
            block_when_alone: false,
            applied: None,
            stopping: false,
            standbys: [None; HOSTS],
            waiting: Vec::new(),
        });
        self.postmaster.send_replace(Some(postmaster));
        postmaster
    }

    pub fn records(&self) -> usize {
        self.data.as_ref().map_or(0, |data| data.wal.len())
    }

    /// Takes client connections.
    pub fn accepts(&self, now: u64) -> bool {
        self.run.as_ref().is_some_and(|run| now >= run.accepts_at && run.hang == Hang::No && !run.stopping)
    }

    /// Sessions that are open already can work.
    pub fn works(&self, now: u64) -> bool {
        self.run.as_ref().is_some_and(|run| now >= run.accepts_at && run.hang != Hang::All && !run.stopping)
    }

    /// A client could write here.
    pub fn writes(&self, now: u64) -> bool {
        self.works(now) && self.run.as_ref().is_some_and(|run| !run.recovery)
    }
}

impl State {
    pub fn kill_server(&mut self, host: usize, why: &str) {
        self.check_stopped(host, why);
        let server = &mut self.hosts[host].server;
        if let Some(run) = server.run.take() {
            server.postmaster.send_replace(None);
            let line = format!("{} postgres {} ended: {why}", node(host), run.postmaster);
            self.note(&line);
        }
    }

    /// Clean shutdown is done.
    pub fn shut_down_server(&mut self, host: usize) {
        let recovery = self.hosts[host].server.run.as_ref().is_some_and(|run| run.recovery);
        if let Some(data) = self.hosts[host].server.data.as_mut() {
            data.state = if recovery { "shut down in recovery" } else { "shut down" };
            data.checkpoint = lsn(data.wal.len());
        }
        self.kill_server(host, "shut down");
    }

    /// Starts it on what lies on the disk.
    pub fn start_server(&mut self, host: usize, recovery: bool, upstream: Option<usize>) -> Result<i32, String> {
        let accepts_at = self.now() + self.random.between(60_000, 400_000);
        let server = &mut self.hosts[host].server;
        if server.run.is_some() {
            return Err("it runs already".to_owned());
        }
        let Some(data) = server.data.as_mut() else { return Err("no data".to_owned()) };
        if data.torn {
            self.violate(&format!("{} started data that a rewind had left half done", node(host)));
            return Err("torn".to_owned());
        }
        data.state = if recovery { "in archive recovery" } else { "in production" };
        let postmaster = server.begin(accepts_at, recovery, upstream);
        let role = if recovery { "standby" } else { "primary" };
        self.note(&format!("{} postgres {postmaster} starts as {role}, upstream {upstream:?}", node(host)));
        if !recovery {
            self.check_new_primary(host);
        }
        Ok(postmaster)
    }

    /// Leaves recovery. The next timeline is the next number, whoever else may have taken it.
    pub fn promote_server(&mut self, host: usize) -> Option<Lsn> {
        let now = self.now();
        let server = &mut self.hosts[host].server;
        if !server.works(now) {
            return None;
        }
        let run = server.run.as_mut().expect("works");
        let data = server.data.as_mut().expect("runs on data");
        if !run.recovery {
            return Some(lsn(data.wal.len()));
        }
        (run.recovery, run.streams, run.upstream) = (false, false, None);
        data.history.forks.push(Fork { timeline: data.history.timeline, switched_at: lsn(data.wal.len()) });
        data.history.timeline = Timeline(data.history.timeline.0 + 1);
        data.state = "in production";
        let (timeline, position) = (data.history.timeline, lsn(data.wal.len()));
        self.note(&format!("{} postgres promoted to timeline {timeline} at {position}", node(host)));
        self.append(host);
        self.check_new_primary(host);
        Some(position)
    }

    /// Writes a record to the own disk; its identity.
    pub fn append(&mut self, host: usize) -> u64 {
        let written_at = self.now();
        let identity = self.ledger.next_identity();
        if let Some(data) = self.hosts[host].server.data.as_mut() {
            data.wal.push(Record { identity, written_at });
        }
        identity
    }

    /// Streaming replication, and clients that waited for it.
    pub fn replicate(&mut self) {
        for primary in 0..HOSTS {
            for standby in (0..HOSTS).filter(|standby| *standby != primary) {
                self.stream(primary, standby);
            }
            self.confirm(primary);
        }
    }

    fn stream(&mut self, primary: usize, standby: usize) {
        let now = self.now();
        let serves = self.hosts[primary].server.writes(now)
            || self.hosts[primary]
                .server
                .run
                .as_ref()
                .is_some_and(|run| !run.recovery && run.hang != Hang::All && now >= run.accepts_at);
        let follows =
            self.hosts[standby].server.run.as_ref().is_some_and(|run| run.recovery && run.upstream == Some(primary));
        let alive = self.hosts[standby].server.works(now) && follows;
        let there = self.network.open(Place::Host(primary), Place::Host(standby));
        let back = self.network.open(Place::Host(standby), Place::Host(primary));
        let streams = follows && self.hosts[standby].server.run.as_ref().is_some_and(|run| run.streams);
        if !streams {
            if let Some(run) = self.hosts[primary].server.run.as_mut() {
                run.standbys[standby] = None;
            }
            let due = self.hosts[standby].server.run.as_ref().is_some_and(|run| now >= run.connect_at);
            if alive && due && serves && self.hosts[primary].server.accepts(now) && there && back {
                self.connect(primary, standby);
            }
            return;
        }
        let last = self.hosts[standby].server.run.as_ref().map_or(0, |run| run.last_message);
        let gone = self.hosts[primary].server.run.as_ref().is_none_or(|run| run.recovery);
        if gone && there || now.saturating_sub(last) > SILENCE_MICROS {
            self.disconnect(primary, standby);
            return;
        }
        let lag = self.hosts[standby].server.lag_micros;
        let delay = lag + self.network.delay_micros(Place::Host(primary), Place::Host(standby));
        let stalled = self.hosts[standby].server.disk != Disk::Fine;
        if serves && there && alive {
            self.receive(primary, standby, delay, stalled);
        }
        let mut flushed = self.hosts[standby].server.records();
        if self.is(Mutant::ConfirmsBeforeFlush) {
            flushed = self.hosts[primary].server.records();
        }
        if serves
            && alive
            && back
            && there
            && let Some(run) = self.hosts[primary].server.run.as_mut()
        {
            run.standbys[standby] = Some(flushed);
        }
    }

    fn receive(&mut self, primary: usize, standby: usize, delay: u64, stalled: bool) {
        let now = self.now();
        let have = self.hosts[standby].server.records();
        let arrived: Vec<Record> = self.hosts[primary].server.data.as_ref().map_or_else(Vec::new, |data| {
            data.wal[have.min(data.wal.len())..]
                .iter()
                .take_while(|record| record.written_at + delay <= now)
                .copied()
                .collect()
        });
        let server = &mut self.hosts[standby].server;
        if let Some(run) = server.run.as_mut() {
            run.last_message = now;
        }
        if !stalled && let Some(data) = server.data.as_mut() {
            data.wal.extend(arrived);
        }
    }

    fn connect(&mut self, primary: usize, standby: usize) {
        let now = self.now();
        let (Some(theirs), Some(own)) = (&self.hosts[primary].server.data, &self.hosts[standby].server.data) else {
            return;
        };
        let fits =
            theirs.history.contains(own.history.timeline, lsn(own.wal.len())) && own.wal.len() <= theirs.wal.len();
        let same = own.wal.last() == own.wal.len().checked_sub(1).and_then(|last| theirs.wal.get(last));
        let history = theirs.history.clone();
        if fits && !same {
            return self.violate(&format!("{} streams from {} on another history", node(standby), node(primary)));
        }
        let server = &mut self.hosts[standby].server;
        let (Some(run), Some(data)) = (server.run.as_mut(), server.data.as_mut()) else { return };
        if !fits {
            run.connect_at = now + RECONNECT_MICROS * 5;
            return;
        }
        data.history = history;
        (run.streams, run.last_message) = (true, now);
        self.note(&format!("{} streams from {}", node(standby), node(primary)));
    }

    pub fn disconnect(&mut self, primary: usize, standby: usize) {
        let now = self.now();
        if let Some(run) = self.hosts[standby].server.run.as_mut() {
            (run.streams, run.connect_at) = (false, now + RECONNECT_MICROS);
        }
        if let Some(run) = self.hosts[primary].server.run.as_mut() {
            run.standbys[standby] = None;
        }
    }

    /// `FIRST n (names)`: every one of them must have it.
    fn confirm(&mut self, host: usize) {
        let now = self.now();
        if !self.hosts[host].server.works(now) {
            return;
        }
        let Some(run) = self.hosts[host].server.run.as_mut() else { return };
        let flushed =
            |name: &NodeName| (0..HOSTS).find(|index| node(*index) == *name).and_then(|index| run.standbys[index]);
        let held = run.names.iter().map(|name| flushed(name).unwrap_or(0)).min();
        let until = match held {
            None if run.block_when_alone => 0,
            None => usize::MAX,
            Some(flushed) => flushed,
        };
        let done: Vec<(u64, usize)> = run.waiting.iter().filter(|(_, position)| *position <= until).copied().collect();
        run.waiting.retain(|(_, position)| *position > until);
        // While a fence is under way the lease is given back already, and what is confirmed until it is over is still of its epoch.
        let guard = &self.hosts[host].guard;
        let epoch = guard.held.map(|held| held.epoch).or(guard.released).unwrap_or(Epoch(0));
        for (identity, position) in done {
            self.acknowledge(host, identity, position, epoch);
        }
    }
}
