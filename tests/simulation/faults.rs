//! What goes wrong: drawn from the seed, one line in the trace each, undone when its time is over.

use std::sync::Arc;
use std::time::Duration;

use super::network::{Link, Place};
use super::operators;
use super::scenarios::Scripted;
use super::server::{Disk, Hang};
use super::store::StoreTrouble;
use super::world::{HOSTS, Life, State, World};
use stormglass::domain::policy::DurabilityMode;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Whoever writes now.
    KillPrimary,
    KillPostgres(usize),
    Hang(usize, Hang),
    Disk(usize, Disk),
    /// A standby that is this many milliseconds behind.
    Lag(usize, u64),
    KillAgent(usize),
    /// All at once: an upgrade that took no care.
    KillAgents,
    PauseAgent(usize),
    ForgetfulAgent(usize),
    CrashHost(usize),
    /// Everything on it stands still, as a hypervisor does it; its clock goes on.
    FreezeHost(usize),
    /// The controller that leads.
    KillLeader,
    KillController(usize),
    PauseController(usize),
    /// None is there.
    ControllersAway,
    /// Runs, and reaches no host.
    ControllerFromHosts(usize),
    /// Runs, and does not reach etcd.
    ControllerFromStore(usize),
    /// etcd gives the leadership away while its holder believes in it.
    RevokeLeadership,
    Store(StoreTrouble),
    /// Nothing is left of it; it is made anew from what the agents know.
    LoseStore,
    /// From everybody.
    Isolate(usize),
    FromController(usize),
    FromHosts(usize),
    /// Only this direction.
    OneWay(Place, Place),
    Lossy(u64),
    SlowLinks(u64),
    Switchover,
    /// Of the operation under way.
    Cancel,
    Pause,
    OperatorFence(usize),
}

/// The primary more often than others.
fn victim(state: &mut State) -> usize {
    let now = state.now();
    let primary = (0..HOSTS).find(|host| state.hosts[*host].server.writes(now));
    match primary {
        Some(primary) if state.random.percent(60) => primary,
        _ => state.random.index(HOSTS),
    }
}

/// The leader more often than others.
fn controller(state: &mut State) -> usize {
    let count = state.controllers.len();
    if state.random.percent(70) { state.leader() } else { state.random.index(count) }
}

fn place(state: &mut State) -> Place {
    match state.random.index(HOSTS + 1) {
        HOSTS => Place::Controller(controller(state)),
        host => Place::Host(host),
    }
}

/// Of the control plane: no reason to interrupt a healthy primary.
fn draw_gentle(state: &mut State) -> Fault {
    let (host, controller) = (victim(state), controller(state));
    match state.random.between(0, 12) {
        0 => Fault::KillController(controller),
        1 => Fault::PauseController(controller),
        2..=3 => Fault::ControllersAway,
        4 => Fault::ControllerFromHosts(controller),
        5 => Fault::ControllerFromStore(controller),
        6 => Fault::RevokeLeadership,
        7..=8 => {
            let troubles = [StoreTrouble::Fails, StoreTrouble::Slow, StoreTrouble::Unknown];
            Fault::Store(troubles[state.random.index(troubles.len())])
        }
        // What was lost with it costs an epoch, and a restart.
        9 if !state.settings.gentle => Fault::LoseStore,
        9..=10 => Fault::Pause,
        11 => Fault::OneWay(Place::Host(host), Place::Controller(controller)),
        _ => Fault::FromController(host),
    }
}

fn draw(state: &mut State) -> Fault {
    let host = victim(state);
    match state.random.between(0, 35) {
        0..=2 => Fault::KillPostgres(host),
        3 => Fault::Hang(host, Hang::All),
        4 => Fault::Hang(host, Hang::Postmaster),
        5 => Fault::Disk(host, Disk::Stalled),
        6..=7 => Fault::Disk(host, Disk::Full),
        8 => Fault::Lag(host, state.random.between(100, 3_000)),
        9..=10 => Fault::KillAgent(host),
        11 => Fault::KillAgents,
        12 => Fault::PauseAgent(host),
        13..=14 => Fault::CrashHost(host),
        // A hypervisor that stops a host stops its clocks too: then only a synchronous standby protects.
        15 if state.settings.durability != DurabilityMode::Async => Fault::FreezeHost(host),
        15 => Fault::CrashHost(host),
        16 => Fault::ForgetfulAgent(host),
        17..=18 => Fault::Isolate(host),
        19..=20 => Fault::FromHosts(host),
        21..=22 => {
            let (from, to) = (place(state), place(state));
            Fault::OneWay(from, to)
        }
        23 => Fault::Lossy(state.random.between(5, 40)),
        24 => Fault::SlowLinks(state.random.between(20, 1_500)),
        25..=27 => Fault::Switchover,
        28 => Fault::Cancel,
        29 => Fault::OperatorFence(host),
        _ => draw_gentle(state),
    }
}

fn hosts() -> Vec<Place> {
    (0..HOSTS).map(Place::Host).collect()
}

fn controllers(state: &State) -> Vec<Place> {
    (0..state.controllers.len()).map(Place::Controller).collect()
}

fn places(state: &State) -> Vec<Place> {
    hosts().into_iter().chain(controllers(state)).chain([Place::Store]).collect()
}

fn cut(state: &mut State, one: Place, others: &[Place], cut: bool) {
    for other in others.iter().filter(|other| **other != one) {
        state.network.change(one, *other, |link| link.cut = cut);
        state.network.change(*other, one, |link| link.cut = cut);
    }
}

fn everywhere(state: &mut State, change: impl Fn(&mut Link)) {
    let places = places(state);
    for from in &places {
        for to in &places {
            state.network.change(*from, *to, &change);
        }
    }
}

fn begin(state: &mut State, fault: Fault, lasts: Duration) {
    let lasts = u64::try_from(lasts.as_micros()).expect("short");
    match fault {
        Fault::KillPostgres(host) => state.kill_server(host, "SIGKILL"),
        Fault::KillPrimary => {
            let now = state.now();
            if let Some(host) = (0..HOSTS).find(|host| state.hosts[*host].server.writes(now)) {
                state.kill_server(host, "SIGKILL");
            }
        }
        Fault::FreezeHost(host) => state.freeze_host(host, true),
        Fault::Hang(host, hang) => {
            let frozen = state.hosts[host].frozen;
            if let Some(run) = state.hosts[host].server.run.as_mut().filter(|_| !frozen) {
                run.hang = hang;
            }
        }
        Fault::Disk(host, disk) => state.hosts[host].server.disk = disk,
        Fault::KillAgent(host) => state.kill_agent(host, lasts),
        Fault::PauseAgent(host) => {
            if let Some(agent) = &state.hosts[host].agent {
                agent.life.send_replace(Life::Paused);
            }
        }
        Fault::ForgetfulAgent(host) => {
            state.kill_agent(host, lasts / 4);
            state.hosts[host].memory = None;
        }
        Fault::CrashHost(host) => state.crash_host(host),
        Fault::Lag(host, millis) => state.hosts[host].server.lag_micros = millis * 1_000,
        Fault::KillAgents => {
            for host in 0..HOSTS {
                let rests = state.random.between(100_000, 1_000_000);
                state.kill_agent(host, rests);
            }
        }
        Fault::KillLeader => {
            let leader = state.leader();
            state.kill_controller(leader, lasts);
        }
        Fault::KillController(index) => state.kill_controller(index, lasts),
        Fault::PauseController(index) => state.pause_controller(index, Life::Paused),
        Fault::ControllersAway => kill_controllers(state, lasts * 3),
        Fault::ControllerFromHosts(index) => cut(state, Place::Controller(index), &hosts(), true),
        Fault::ControllerFromStore(index) => cut(state, Place::Controller(index), &[Place::Store], true),
        Fault::RevokeLeadership => state.store.leader = None,
        Fault::Store(trouble) => state.store.trouble = trouble,
        Fault::LoseStore => {
            // One that has its store on its own disk does not outlive it.
            if state.controllers.len() == 1 {
                state.kill_controller(0, lasts / 4);
            }
            state.store.lose();
            state.forget_stored_epoch();
        }
        Fault::Isolate(host) => cut(state, Place::Host(host), &places(state), true),
        Fault::FromController(host) => cut(state, Place::Host(host), &controllers(state), true),
        Fault::FromHosts(host) => cut(state, Place::Host(host), &hosts(), true),
        Fault::OneWay(from, to) => state.network.change(from, to, |link| link.cut = true),
        Fault::Lossy(loss) => everywhere(state, |link| (link.loss, link.repeats) = (loss, 10)),
        Fault::SlowLinks(most) => everywhere(state, |link| link.delay_millis = (most / 10, most)),
        Fault::Switchover | Fault::Cancel | Fault::Pause | Fault::OperatorFence(_) => {}
    }
}

fn kill_controllers(state: &mut State, rests_micros: u64) {
    for index in 0..state.controllers.len() {
        state.kill_controller(index, rests_micros);
    }
}

fn end(state: &mut State, fault: Fault) {
    match fault {
        Fault::Hang(host, _) => {
            let frozen = state.hosts[host].frozen;
            if let Some(run) = state.hosts[host].server.run.as_mut().filter(|_| !frozen) {
                run.hang = Hang::No;
            }
        }
        Fault::Disk(host, _) => state.hosts[host].server.disk = Disk::Fine,
        Fault::PauseAgent(host) => {
            let frozen = state.hosts[host].frozen;
            if let Some(agent) = state.hosts[host].agent.as_ref().filter(|_| !frozen) {
                agent.life.send_replace(Life::Running);
            }
        }
        Fault::CrashHost(host) => state.boot_host(host),
        Fault::Lag(host, _) => state.hosts[host].server.lag_micros = 0,
        Fault::PauseController(index) => state.pause_controller(index, Life::Running),
        Fault::ControllerFromHosts(index) => cut(state, Place::Controller(index), &hosts(), false),
        Fault::ControllerFromStore(index) => cut(state, Place::Controller(index), &[Place::Store], false),
        Fault::Store(_) => {
            state.store.trouble = StoreTrouble::None;
            state.majority_is_back();
        }
        Fault::Isolate(host) => cut(state, Place::Host(host), &places(state), false),
        Fault::FromController(host) => cut(state, Place::Host(host), &controllers(state), false),
        Fault::FromHosts(host) => cut(state, Place::Host(host), &hosts(), false),
        Fault::OneWay(from, to) => state.network.change(from, to, |link| link.cut = false),
        Fault::Lossy(_) => everywhere(state, |link| (link.loss, link.repeats) = (0, 0)),
        Fault::SlowLinks(_) => everywhere(state, |link| link.delay_millis = Link::default().delay_millis),
        Fault::FreezeHost(host) => state.freeze_host(host, false),
        Fault::KillPostgres(_)
        | Fault::KillPrimary
        | Fault::KillAgent(_)
        | Fault::ForgetfulAgent(_)
        | Fault::KillAgents
        | Fault::KillLeader
        | Fault::KillController(_)
        | Fault::ControllersAway
        | Fault::RevokeLeadership
        | Fault::LoseStore
        | Fault::Switchover
        | Fault::Cancel
        | Fault::Pause
        | Fault::OperatorFence(_) => {}
    }
}

/// The next fault of this seed: after how long, which, for how long.
fn next(world: &World) -> (Duration, Option<Fault>, Duration) {
    let mut state = world.lock();
    // Often one right after the other: recovery is when it hurts.
    let pause = if state.random.percent(60) { state.random.millis(0, 900) } else { state.random.millis(900, 5_000) };
    let lasts =
        if state.random.percent(50) { state.random.millis(100, 1_500) } else { state.random.millis(1_500, 9_000) };
    (pause, None, lasts)
}

/// The faults of a script, or of the seed until it has had enough; then everything works again.
pub async fn storm(world: Arc<World>, script: Option<&'static [Scripted]>) {
    let drawn = world.lock().random.between(1, 5);
    let count = script.map_or(usize::try_from(drawn).expect("small"), <[Scripted]>::len);
    let mut under_way = Vec::new();
    for turn in 0..count {
        let (pause, scripted, lasts) = match script {
            Some(script) => {
                let Scripted { after_millis, fault, lasts_millis } = &script[turn];
                (Duration::from_millis(*after_millis), Some(*fault), Duration::from_millis(*lasts_millis))
            }
            None => next(&world),
        };
        tokio::time::sleep(pause).await;
        let fault = {
            let mut state = world.lock();
            // What is drawn hits what is there at that moment.
            let drawn = if state.settings.gentle { draw_gentle } else { draw };
            let fault = scripted.unwrap_or_else(|| drawn(&mut state));
            state.faults += 1;
            state.note(&format!("FAULT {fault:?} for {lasts:?}"));
            begin(&mut state, fault, lasts);
            fault
        };
        let world = world.clone();
        under_way.push(tokio::spawn(async move {
            match fault {
                Fault::Switchover => return operators::switch_over(&world).await,
                Fault::Cancel => return operators::cancel(&world).await,
                Fault::Pause => operators::pause(&world).await,
                Fault::OperatorFence(host) => operators::fence(&world, host).await,
                _ => {}
            }
            tokio::time::sleep(lasts).await;
            match fault {
                Fault::Pause => operators::resume(&world).await,
                Fault::OperatorFence(host) => operators::unfence(&world, host).await,
                _ => {}
            }
            let mut state = world.lock();
            state.note(&format!("ENDS {fault:?}"));
            end(&mut state, fault);
        }));
    }
    for fault in under_way {
        let _ = fault.await;
    }
}
