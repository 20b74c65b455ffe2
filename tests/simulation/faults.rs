//! What goes wrong: drawn from the seed, one line in the trace each, undone when its time is over.

use std::sync::Arc;
use std::time::Duration;

use stormglass::api::authentication::Caller;
use stormglass::api::controller::ControllerHandler;
use stormglass::api::wire::SwitchoverRequest;
use stormglass::domain::access::Role;

use super::agents::controller_of;
use super::network::{Link, Place};
use super::scenarios::Scripted;
use super::server::{Disk, Hang};
use super::world::{HOSTS, Life, State, StoreTrouble, World, node};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Whoever writes now.
    KillPrimary,
    KillPostgres(usize),
    Hang(usize, Hang),
    Disk(usize, Disk),
    KillAgent(usize),
    PauseAgent(usize),
    ForgetfulAgent(usize),
    CrashHost(usize),
    /// Everything on it stands still, as a hypervisor does it; its clock goes on.
    FreezeHost(usize),
    KillController,
    PauseController,
    Store(StoreTrouble),
    /// From everybody.
    Isolate(usize),
    FromController(usize),
    FromHosts(usize),
    /// Only this direction.
    OneWay(Place, Place),
    Lossy(u64),
    SlowLinks(u64),
    Switchover,
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

fn place(state: &mut State) -> Place {
    match state.random.index(HOSTS + 1) {
        HOSTS => Place::Controller,
        host => Place::Host(host),
    }
}

fn draw(state: &mut State) -> Fault {
    let host = victim(state);
    match state.random.between(0, 21) {
        0..=2 => Fault::KillPostgres(host),
        3 => Fault::Hang(host, Hang::All),
        4 => Fault::Hang(host, Hang::Postmaster),
        5 => Fault::Disk(host, Disk::Stalled),
        6 => Fault::Disk(host, Disk::Full),
        7..=8 => Fault::KillAgent(host),
        9 => Fault::PauseAgent(host),
        10 if state.random.percent(40) => Fault::FreezeHost(host),
        10 => Fault::CrashHost(host),
        11..=12 => Fault::KillController,
        13 => Fault::PauseController,
        14 => {
            let troubles = [StoreTrouble::Fails, StoreTrouble::Slow, StoreTrouble::Unknown];
            Fault::Store(troubles[state.random.index(troubles.len())])
        }
        15 => Fault::Isolate(host),
        16 => Fault::FromController(host),
        17 => Fault::FromHosts(host),
        18 => {
            let (from, to) = (place(state), place(state));
            Fault::OneWay(from, to)
        }
        19 => Fault::Lossy(state.random.between(5, 40)),
        20 => Fault::SlowLinks(state.random.between(20, 1_500)),
        _ if state.random.percent(20) => Fault::ForgetfulAgent(host),
        _ => Fault::Switchover,
    }
}

fn places() -> Vec<Place> {
    (0..HOSTS).map(Place::Host).chain([Place::Controller]).collect()
}

fn cut(state: &mut State, one: Place, others: &[Place], cut: bool) {
    for other in others.iter().filter(|other| **other != one) {
        state.network.change(one, *other, |link| link.cut = cut);
        state.network.change(*other, one, |link| link.cut = cut);
    }
}

fn everywhere(state: &mut State, change: impl Fn(&mut Link)) {
    for from in places() {
        for to in places() {
            state.network.change(from, to, &change);
        }
    }
}

fn begin(state: &mut State, fault: Fault, lasts: Duration) {
    let lasts = u64::try_from(lasts.as_micros()).expect("short");
    let hosts: Vec<Place> = (0..HOSTS).map(Place::Host).collect();
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
            if let Some(run) = state.hosts[host].server.run.as_mut() {
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
        Fault::KillController => state.kill_controller(lasts),
        Fault::PauseController => {
            if let Some(controller) = &state.controller {
                controller.life.send_replace(Life::Paused);
            }
        }
        Fault::Store(trouble) => state.store.trouble = trouble,
        Fault::Isolate(host) => cut(state, Place::Host(host), &places(), true),
        Fault::FromController(host) => cut(state, Place::Host(host), &[Place::Controller], true),
        Fault::FromHosts(host) => cut(state, Place::Host(host), &hosts, true),
        Fault::OneWay(from, to) => state.network.change(from, to, |link| link.cut = true),
        Fault::Lossy(loss) => everywhere(state, |link| (link.loss, link.repeats) = (loss, 10)),
        Fault::SlowLinks(most) => everywhere(state, |link| link.delay_millis = (most / 10, most)),
        Fault::Switchover => {}
    }
}

fn end(state: &mut State, fault: Fault) {
    let hosts: Vec<Place> = (0..HOSTS).map(Place::Host).collect();
    match fault {
        Fault::Hang(host, _) => {
            if let Some(run) = state.hosts[host].server.run.as_mut() {
                run.hang = Hang::No;
            }
        }
        Fault::Disk(host, _) => state.hosts[host].server.disk = Disk::Fine,
        Fault::PauseAgent(host) => {
            if let Some(agent) = &state.hosts[host].agent {
                agent.life.send_replace(Life::Running);
            }
        }
        Fault::CrashHost(host) => state.boot_host(host),
        Fault::PauseController => {
            if let Some(controller) = &state.controller {
                controller.life.send_replace(Life::Running);
            }
        }
        Fault::Store(_) => state.store.trouble = StoreTrouble::None,
        Fault::Isolate(host) => cut(state, Place::Host(host), &places(), false),
        Fault::FromController(host) => cut(state, Place::Host(host), &[Place::Controller], false),
        Fault::FromHosts(host) => cut(state, Place::Host(host), &hosts, false),
        Fault::OneWay(from, to) => state.network.change(from, to, |link| link.cut = false),
        Fault::Lossy(_) => everywhere(state, |link| (link.loss, link.repeats) = (0, 0)),
        Fault::SlowLinks(_) => everywhere(state, |link| link.delay_millis = Link::default().delay_millis),
        Fault::FreezeHost(host) => state.freeze_host(host, false),
        Fault::KillPostgres(_)
        | Fault::KillPrimary
        | Fault::KillAgent(_)
        | Fault::ForgetfulAgent(_)
        | Fault::KillController
        | Fault::Switchover => {}
    }
}

/// An operator wants another primary, whatever the cluster is busy with.
async fn switch_over(world: &Arc<World>) {
    let Some((process, handle)) = controller_of(world) else { return };
    let to = {
        let mut state = world.lock();
        let named = state.random.percent(50);
        named.then(|| node(state.random.index(HOSTS)))
    };
    let caller =
        Caller { name: "operator".to_owned(), role: Role::Operator, peer: "127.0.0.1:1".parse().expect("an address") };
    let request = SwitchoverRequest { to, site: None, dry_run: false };
    let asked = async {
        process.pass().await;
        handle.switchover("main", request, &caller).await
    };
    let answer = tokio::time::timeout(Duration::from_secs(5), asked).await;
    let words = match answer {
        Ok(Ok(_)) => "begun".to_owned(),
        Ok(Err(problem)) => format!("refused: {}", problem.detail),
        Err(_) => "no answer".to_owned(),
    };
    world.note(format!("operator switchover: {words}"));
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
            let fault = scripted.unwrap_or_else(|| draw(&mut state));
            state.note(&format!("FAULT {fault:?} for {lasts:?}"));
            begin(&mut state, fault, lasts);
            fault
        };
        let world = world.clone();
        under_way.push(tokio::spawn(async move {
            if fault == Fault::Switchover {
                return switch_over(&world).await;
            }
            tokio::time::sleep(lasts).await;
            let mut state = world.lock();
            state.note(&format!("ENDS {fault:?}"));
            end(&mut state, fault);
        }));
    }
    for fault in under_way {
        let _ = fault.await;
    }
}
