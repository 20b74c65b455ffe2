//! Crash matrix: every operation, every step of it, every way in which that step can go wrong, in a small world of agents.
//!
//! Safety is asserted by the world after every change; here it is asserted that each operation ends, how it ends, and that the
//! automatic controller finds a writer afterwards. Two golden files: the steps of each operation, and the whole matrix.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use stormglass::domain::operation::JOURNAL_FORMAT;
use stormglass::domain::record::Member;
use stormglass::domain::report::SynchronousReport;
use stormglass::domain::*;

#[path = "sagas/agent.rs"]
mod agent;
#[path = "sagas/driver.rs"]
mod driver;
#[path = "sagas/slow_disk.rs"]
mod slow_disk;
#[path = "sagas/world.rs"]
mod world;

use agent::{Agent, IDENTIFIER, Postgres, address, cluster, node};
use driver::{FAULTS, Fault};
use world::World;

/// Turns until an operation must have ended.
const TURNS_MAX: usize = 3_000;

/// n1 writes in epoch 3, n2 confirms every commit, n3 is one commit behind.
fn healthy() -> World {
    let start = Lsn(0x500_0000);
    let mut primary = Agent::new("n1", "a", Postgres::Primary, start);
    primary.standing.consented = Some(Epoch(3));
    primary.synchronous =
        Some(SynchronousReport { number: RecordNumber(9), names: vec![node("n2")], barrier_lsn: start });
    let mut agents = vec![primary];
    for (name, site) in [("n2", "a"), ("n3", "b")] {
        let mut standby = Agent::new(name, site, Postgres::Standby, start);
        standby.follows = Some(node("n1"));
        agents.push(standby);
    }
    let mut world = World::new(agents);
    let lease = (Epoch(3), world.now.plus(world.policy.timers.lease));
    world.agent(&node("n1")).lease = Some(lease);
    for agent in world.agents.values_mut() {
        agent.standing.highest_epoch = Epoch(3);
        agent.standing.highest_number = RecordNumber(10);
    }
    let record = ClusterRecord {
        epoch: Epoch(3),
        number: RecordNumber(10),
        holder_confirmed: true,
        eligible: [node("n2")].into(),
        synchronous: [node("n2")].into(),
        synchronous_number: RecordNumber(9),
        members: world.agents.values().map(member).collect(),
        ..ClusterRecord::first(cluster(), IDENTIFIER, node("n1"), address(&node("n1")), DurabilityMode::Sync)
    };
    world.store = Some(record.clone());
    world.controller.record = Some(record);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.writer().expect("n1 writes").name, node("n1"));
    world
}

fn member(agent: &Agent) -> (NodeName, Member) {
    (agent.name.clone(), Member { site: agent.site.clone(), address: address(&agent.name) })
}

fn failover(from: &str, to: &str) -> OperationKind {
    OperationKind::Failover { from: node(from), to: node(to), accept_data_loss: false, old_primary_is_off: false }
}

fn kill(world: &mut World, name: &str) {
    let agent = world.agent(&node(name));
    agent.postgres = Postgres::Stopped;
    world.pass(Duration::from_millis(600));
}

/// An operation and the world it begins in.
struct Saga {
    name: &'static str,
    prepare: fn() -> (World, OperationKind),
}

const SAGAS: &[Saga] = &[
    Saga {
        name: "failover of a killed primary",
        prepare: || {
            let mut world = healthy();
            kill(&mut world, "n1");
            (world, failover("n1", "n2"))
        },
    },
    Saga {
        name: "failover of a silent primary",
        prepare: || {
            let mut world = healthy();
            world.agent(&node("n1")).reachable = false;
            (world, failover("n1", "n2"))
        },
    },
    Saga {
        name: "restart in place",
        prepare: || {
            let mut world = healthy();
            for name in ["n2", "n3"] {
                world.agent(&node(name)).reachable = false;
            }
            world.pass(Duration::from_secs(2));
            kill(&mut world, "n1");
            (world, failover("n1", "n1"))
        },
    },
    Saga {
        name: "first epoch",
        prepare: || {
            let lsn = Lsn(0x500_0000);
            let mut world = World::new(vec![
                Agent::new("n1", "a", Postgres::Stopped, lsn),
                Agent::new("n2", "b", Postgres::NoData, Lsn(0)),
            ]);
            world.pass(Duration::from_secs(1));
            (world, failover("n1", "n1"))
        },
    },
    Saga {
        name: "switchover",
        prepare: || (healthy(), OperationKind::Switchover { from: node("n1"), to: node("n2") }),
    },
    Saga {
        name: "switchover to a standby that confirms nothing",
        prepare: || (healthy(), OperationKind::Switchover { from: node("n1"), to: node("n3") }),
    },
    Saga {
        name: "switchover away from a disk that is about to fail",
        prepare: || {
            let mut world = healthy();
            world.reasons = slow_disk::predicted("n1");
            (world, OperationKind::Switchover { from: node("n1"), to: node("n2") })
        },
    },
    Saga {
        name: "failover with a name",
        prepare: || {
            let mut world = healthy();
            world.policy.keeps_name = true;
            kill(&mut world, "n1");
            (world, failover("n1", "n2"))
        },
    },
    Saga {
        name: "switchover with a name",
        prepare: || {
            let mut world = healthy();
            world.policy.keeps_name = true;
            (world, OperationKind::Switchover { from: node("n1"), to: node("n2") })
        },
    },
    Saga {
        name: "rejoin of a diverged node",
        prepare: || {
            let mut world = healthy();
            let former = world.agent(&node("n3"));
            (former.postgres, former.primary_data, former.lsn) = (Postgres::Stopped, true, Lsn(0x900_0000));
            former.history = stormglass::domain::lsn::History::root(Timeline(2));
            world.pass(Duration::from_secs(2));
            (world, OperationKind::Rejoin { node: node("n3"), reclone: false })
        },
    },
    Saga {
        name: "rejoin of an empty node",
        prepare: || {
            let mut world = healthy();
            let empty = world.agent(&node("n3"));
            (empty.postgres, empty.primary_data, empty.lsn) = (Postgres::NoData, false, Lsn(0));
            world.pass(Duration::from_secs(2));
            (world, OperationKind::Rejoin { node: node("n3"), reclone: true })
        },
    },
    Saga {
        name: "fence",
        prepare: || {
            let mut world = healthy();
            let mut record = world.store.clone().expect("stored").changed();
            record.fenced.insert(node("n3"));
            world.store = Some(record.clone());
            world.controller.record = Some(record);
            (world, OperationKind::Fence { node: node("n3") })
        },
    },
    Saga {
        name: "backup from a standby",
        prepare: || {
            let backup_type = stormglass::domain::backup::BackupType::Incr;
            (healthy(), OperationKind::Backup { node: node("n3"), backup_type })
        },
    },
    Saga {
        name: "drill",
        prepare: || (healthy(), OperationKind::Drill { node: node("n3"), manifests: Default::default() }),
    },
    Saga {
        name: "retraining",
        prepare: || (healthy(), OperationKind::Retrain { node: node("n1"), time_limit_seconds: 60 }),
    },
    Saga { name: "copy beside the cluster", prepare: || (healthy(), restore(Some("/srv/copy"))) },
    Saga { name: "restore of a healthy cluster", prepare: || (healthy(), restore(None)) },
    Saga {
        name: "restore after the data of all nodes were destroyed",
        prepare: || {
            let mut world = healthy();
            for agent in world.agents.values_mut() {
                (agent.postgres, agent.primary_data, agent.lsn) = (Postgres::NoData, false, Lsn(0));
            }
            world.pass(Duration::from_millis(600));
            (world, restore(None))
        },
    },
];

fn restore(into: Option<&str>) -> OperationKind {
    OperationKind::Restore {
        from: node("n1"),
        node: node("n1"),
        target: stormglass::domain::backup::RecoveryTarget::Latest,
        into: into.map(str::to_owned),
        manifests: Default::default(),
    }
}

/// Drives until the operation has ended. A controller that restarted goes on with the operation that it finds.
fn drive(world: &mut World, id: &OperationId) -> Operation {
    for _ in 0..TURNS_MAX {
        if !world.turn(id) {
            return world.operation(id).clone();
        }
    }
    panic!("{id} has not ended: {:#?}", world.operation(id).journal.iter().rev().take(6).collect::<Vec<_>>());
}

fn steps_of(saga: &Saga) -> Vec<StepName> {
    let (mut world, kind) = (saga.prepare)();
    let id = world.begin(kind);
    let ended = drive(&mut world, &id);
    assert_eq!(ended.status, OperationStatus::Succeeded, "{}: {:?}", saga.name, ended.message);
    world.steps_run.clone()
}

/// Somebody writes in the end; nobody can where no node has data that a writer could begin with.
fn settles(world: &mut World) -> bool {
    world.settle() || world.agents.values().all(|agent| agent.postgres == Postgres::NoData)
}

fn who_writes(world: &World) -> String {
    match (world.writer(), &world.store) {
        (Some(writer), Some(record)) => format!("{} writes in epoch {}", writer.name, record.epoch),
        (None, Some(record)) => format!("nobody writes, {} holds epoch {}", record.holder, record.epoch),
        (_, None) => "no record".to_owned(),
    }
}

/// One place of the matrix; panics where safety is broken or the operation does not end.
fn outcome(saga: &Saga, faults: &[(StepName, Fault)]) -> String {
    let (mut world, kind) = (saga.prepare)();
    let before = world.store.as_ref().map(|record| record.epoch);
    let id = world.begin(kind.clone());
    world.faults = faults.to_vec();
    let ended = drive(&mut world, &id);
    let ended_with = who_writes(&world);
    let context = format!("{}, {faults:?}: {} ({:?})", saga.name, ended.status.label(), ended.message);

    let promoted = ended.journal.iter().any(|event| event.step == StepName::Promote);
    if ended.status == OperationStatus::Succeeded && kind.moves_primary() {
        assert_eq!(world.writer().map(|writer| &writer.name), Some(kind.subject()), "{context}");
    }
    if let (OperationKind::Switchover { from, to }, OperationStatus::Failed | OperationStatus::Cancelled) =
        (&kind, ended.status)
    {
        // Undone: the old primary writes again. Past the point of no return there is no way back to it.
        let undone = ended.journal.iter().any(|event| event.step == StepName::Reinstate) || !promoted;
        let holder = if undone { from } else { to };
        assert_eq!(world.store.as_ref().map(|record| &record.holder), Some(holder), "{context}");
        assert!(!undone || world.writer().is_some_and(|writer| writer.name == *from), "{context}: nobody writes");
    }
    if !ended.journal.iter().any(|event| matches!(event.step, StepName::AdvanceEpoch | StepName::Reinstate)) {
        assert_eq!(world.store.as_ref().map(|record| record.epoch), before, "{context}: the epoch moved");
    }

    world.faults.clear();
    assert!(settles(&mut world), "{context}: no writer afterwards: {}", who_writes(&world));
    let later = Some(who_writes(&world)).filter(|later| *later != ended_with);
    format!("{}, {ended_with}{}", ended.status.label(), later.map_or(String::new(), |later| format!("; later {later}")))
}

#[test]
fn a_primary_that_writes_faster_than_its_checkpoints_is_not_shut_down() {
    let mut world = healthy();
    world.agent(&node("n1")).written_meanwhile = world.policy.switchover_max_dirty_bytes + 1;
    let id = world.begin(OperationKind::Switchover { from: node("n1"), to: node("n2") });
    let ended = drive(&mut world, &id);
    assert_eq!(ended.status, OperationStatus::Failed);
    let message = ended.message.unwrap_or_default();
    assert!(message.contains("switchover_max_dirty_bytes"), "{message}");
    assert!(world.steps_run.starts_with(&[StepName::Checkpoint; 3]), "{:?}", world.steps_run);
    assert!(!world.steps_run.contains(&StepName::Demote));
    assert_eq!(who_writes(&world), "n1 writes in epoch 3");
}

#[test]
fn every_step_of_every_operation_may_go_wrong() {
    let mut matrix =
        String::from("# step | how the operation ended; what the automatic controller made of it | faults\n");
    let mut broken = Vec::new();
    for saga in SAGAS {
        writeln!(matrix, "\n{}", saga.name).expect("a String takes it");
        let mut steps = steps_of(saga);
        let stops_by = if steps.contains(&StepName::Demote) { StepName::Demote } else { StepName::Fence };
        // What only happens on the way back.
        if saga.name.starts_with("switchover") {
            steps.extend([StepName::Release, StepName::Fence, StepName::Reinstate]);
        }
        let mut seen = Vec::new();
        for step in steps {
            if seen.contains(&step) {
                continue;
            }
            seen.push(step);
            let mut outcomes: Vec<(String, Vec<String>)> = Vec::new();
            for fault in FAULTS {
                let faults = match step {
                    StepName::Release => vec![(stops_by, Fault::CancelBefore), (step, *fault)],
                    StepName::Fence if stops_by == StepName::Fence => vec![(step, *fault)],
                    StepName::Fence | StepName::Reinstate if saga.name.starts_with("switchover") => {
                        vec![(StepName::Freeze, Fault::CancelDuring), (step, *fault)]
                    }
                    _ => vec![(step, *fault)],
                };
                match std::panic::catch_unwind(|| outcome(saga, &faults)) {
                    Ok(outcome) => match outcomes.iter_mut().find(|(other, _)| *other == outcome) {
                        Some((_, faults)) => faults.push(format!("{fault:?}")),
                        None => outcomes.push((outcome, vec![format!("{fault:?}")])),
                    },
                    Err(problem) => {
                        let problem = problem.downcast_ref::<String>().map_or("(no message)", String::as_str);
                        broken.push(format!("{}, {step}, {fault:?}: {problem}", saga.name));
                    }
                }
            }
            for (outcome, faults) in outcomes {
                writeln!(matrix, "  {step:<13} | {outcome} | {}", faults.join(" ")).expect("a String takes it");
            }
        }
    }
    assert!(broken.is_empty(), "{} of the matrix are broken:\n{}", broken.len(), broken.join("\n"));
    golden("matrix.txt", &matrix, |_| true);
}

#[test]
fn the_steps_of_an_operation_belong_to_the_journal_format() {
    let mut text = format!("journal format {JOURNAL_FORMAT}\n");
    for saga in SAGAS {
        let mut steps: Vec<&str> = steps_of(saga).into_iter().map(StepName::label).collect();
        steps.dedup();
        writeln!(text, "{}: {}", saga.name, steps.join(" -> ")).expect("a String takes it");
    }
    // A running operation is finished by the version that began it, or refused: never read with another list of steps.
    golden("steps.txt", &text, |old| old.lines().next() != text.lines().next());
}

/// Compares with a golden file; `UPDATE_GOLDEN=1` rewrites it, if `may_change` says so of the old one.
fn golden(name: &str, actual: &str, may_change: impl Fn(&str) -> bool) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/sagas").join(name);
    let expected = fs::read_to_string(&path).unwrap_or_default();
    if expected == actual {
        return;
    }
    let update = std::env::vars().any(|(key, value)| key == "UPDATE_GOLDEN" && value == "1");
    if update && (expected.is_empty() || may_change(&expected)) {
        fs::write(&path, actual).expect("write the golden file");
        return;
    }
    let changed = actual.lines().filter(|line| !expected.lines().any(|old| old == *line));
    panic!(
        "{} differs: look at the lines below; UPDATE_GOLDEN=1 rewrites it (changed steps also need a new JOURNAL_FORMAT)\n{}",
        path.display(),
        changed.collect::<Vec<_>>().join("\n")
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Several things go wrong in one operation: it stays safe, ends, and somebody writes afterwards.
    #[test]
    fn several_faults_in_one_operation(
        saga in 0..SAGAS.len(),
        faults in prop::collection::vec((0..15_usize, 0..FAULTS.len()), 1..5),
    ) {
        const STEPS: [StepName; 15] = [
            StepName::Fence, StepName::Checkpoint, StepName::Drain, StepName::Demote, StepName::AdvanceEpoch,
            StepName::Freeze, StepName::Promote, StepName::Redirect, StepName::Verify, StepName::Rewind,
            StepName::Reclone, StepName::StartStandby, StepName::Reinstate, StepName::Release,
            StepName::VerifyName,
        ];
        let faults: Vec<_> = faults.into_iter().map(|(step, fault)| (STEPS[step], FAULTS[fault])).collect();
        // A swap in doubt is asked for until the store answers (rule 4b): with a store that refuses for ever it never ends.
        // Without the doubt the matrix has it.
        let refuses_for_ever = |(step, fault): &(StepName, Fault)| {
            matches!(step, StepName::AdvanceEpoch | StepName::Reinstate) && *fault == Fault::FailsForEver
        };
        prop_assume!(!faults.iter().any(refuses_for_ever));
        let (mut world, kind) = (SAGAS[saga].prepare)();
        let id = world.begin(kind);
        world.faults = faults.clone();
        drive(&mut world, &id);
        world.faults.clear();
        prop_assert!(settles(&mut world), "{} {faults:?}: nobody writes afterwards: {}", SAGAS[saga].name, who_writes(&world));
    }
}

fn saga(name: &str) -> (World, OperationKind) {
    (SAGAS.iter().find(|saga| saga.name == name).expect("listed").prepare)()
}

#[test]
fn a_swap_in_doubt_is_neither_cancelled_nor_given_up() {
    // Trace `no_grant_while_epoch_swap_in_flight`: ended, the controller would grant in the old epoch while the swap still lands.
    let (mut world, kind) = saga("failover of a silent primary");
    let id = world.begin(kind.clone());
    world.faults = vec![(StepName::AdvanceEpoch, Fault::UnknownLate)];
    while !world.steps_run.contains(&StepName::AdvanceEpoch) {
        assert!(world.turn(&id), "ended early");
    }
    world.operation(&id).cancel_requested = true;
    assert_eq!(drive(&mut world, &id).status, OperationStatus::Succeeded);

    let (mut world, _) = saga("failover of a silent primary");
    let id = world.begin(kind);
    world.faults = vec![(StepName::AdvanceEpoch, Fault::UnknownNotDone); 8];
    assert_eq!(drive(&mut world, &id).status, OperationStatus::Succeeded);
}

#[test]
fn no_epoch_for_a_standby_without_the_shutdown_record() {
    let (mut world, kind) = saga("switchover to a standby that confirms nothing");
    // It was cut off a moment ago, and nobody noticed yet.
    world.agent(&node("n3")).reachable = false;
    let id = world.begin(kind);
    let ended = drive(&mut world, &id);
    assert_eq!((ended.status, ended.attempts(StepName::AdvanceEpoch)), (OperationStatus::Failed, 0));
    assert_eq!(who_writes(&world), "n1 writes in epoch 4", "{:?}", ended.message);
}

#[test]
fn what_the_ledger_names_is_not_touched_and_not_called_a_failure_once_it_streams() {
    let named = |world: &mut World| {
        let record = world.store.as_mut().expect("stored");
        record.synchronous.insert(node("n3"));
        world.controller.record = Some(record.clone());
    };
    let (mut world, kind) = saga("rejoin of a diverged node");
    named(&mut world);
    let id = world.begin(kind.clone());
    assert_eq!(drive(&mut world, &id).status, OperationStatus::Failed);
    assert_eq!(world.steps_run, []);

    let (mut world, _) = saga("rejoin of a diverged node");
    let id = world.begin(kind);
    world.faults = vec![(StepName::StartStandby, Fault::OutcomeLost)];
    while !world.steps_run.contains(&StepName::StartStandby) {
        assert!(world.turn(&id), "ended early");
    }
    named(&mut world);
    assert_eq!(drive(&mut world, &id).status, OperationStatus::Succeeded);
}
