//! The real controller and the real agents on a virtual clock, network, disk and PostgreSQL; faults drawn from a seed.
//!
//! `SIMULATION_SEED=123 cargo test --test simulation -- --nocapture` replays one seed with its trace;
//! `SIMULATION_SECONDS=600` runs seeds for so long.

#[path = "simulation/agents.rs"]
mod agents;
#[path = "simulation/checks.rs"]
mod checks;
#[path = "simulation/clients.rs"]
mod clients;
#[path = "simulation/controllers.rs"]
mod controllers;
#[path = "simulation/etcd.rs"]
mod etcd;
#[path = "simulation/faults.rs"]
mod faults;
#[path = "simulation/mutants.rs"]
mod mutants;
#[path = "simulation/network.rs"]
mod network;
#[path = "simulation/operators.rs"]
mod operators;
#[path = "simulation/postgres.rs"]
mod postgres;
#[path = "simulation/random.rs"]
mod random;
#[path = "simulation/run.rs"]
mod run;
#[path = "simulation/scenarios.rs"]
mod scenarios;
#[path = "simulation/server.rs"]
mod server;
#[path = "simulation/signal.rs"]
mod signal;
#[path = "simulation/store.rs"]
mod store;
#[path = "simulation/world.rs"]
mod world;

use std::time::{Duration, Instant};

/// How long the ordinary test runs.
const SECONDS: u64 = 20;

#[expect(clippy::disallowed_methods, reason = "the only way to hand a test its parameters")]
fn parameter(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is not a number")))
}

#[expect(clippy::disallowed_methods, reason = "bounds the test itself, decides nothing inside it")]
fn real_time() -> Instant {
    Instant::now()
}

fn check(seed: u64) -> run::Outcome {
    let outcome = run::run(seed, None, None);
    if let Some(violation) = &outcome.violation {
        println!("{}", outcome.trace.join("\n"));
        panic!(
            "seed {seed}: {violation}\nreplay it: SIMULATION_SEED={seed} cargo test --test simulation -- --nocapture"
        );
    }
    outcome
}

/// Runs seeds from `first` on for as long as asked, and stops at the first violation, unless all are wanted.
#[test]
fn no_seed_breaks_a_rule() {
    if let Some(seed) = parameter("SIMULATION_SEED") {
        let outcome = check(seed);
        println!("{}", outcome.trace.join("\n"));
        println!(
            "seed {seed}: {:.1} s of virtual time, {} acknowledged commits",
            outcome.virtual_seconds, outcome.acknowledged
        );
        return;
    }
    let began = real_time();
    let limit = Duration::from_secs(parameter("SIMULATION_SECONDS").unwrap_or(SECONDS));
    let first = parameter("SIMULATION_FIRST").unwrap_or(1);
    let survey = parameter("SIMULATION_SURVEY").is_some();
    let (mut seeds, mut virtual_seconds, mut acknowledged, mut faults, mut violations) = (0_u64, 0.0, 0, 0, 0);
    while began.elapsed() < limit {
        let seed = first + seeds;
        let outcome = if survey { run::run(seed, None, None) } else { check(seed) };
        if let Some(violation) = &outcome.violation {
            violations += 1;
            println!("seed {seed}: {violation} ({})", outcome.trace[0].trim());
        }
        seeds += 1;
        virtual_seconds += outcome.virtual_seconds;
        acknowledged += outcome.acknowledged;
        faults += outcome.faults;
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "simulation: {seeds} seeds in {seconds:.0} s = {:.0} an hour on one core; from {first}, {violations} violations, \
         {faults} faults, {:.1} hours of virtual time, {acknowledged} acknowledged commits",
        seeds as f64 / seconds * 3_600.0,
        virtual_seconds / 3_600.0
    );
    assert_eq!(violations, 0);
}

/// Whoever breaks a promise that the rules rest on is found: so the checks can fail.
fn is_found(mutant: mutants::Mutant) {
    let found = (1..=mutants::SEEDS_MAX).find_map(|seed| {
        let outcome = run::run(seed, Some(mutant.settings()), mutant.scenario());
        Some((seed, outcome.violation.filter(|violation| mutants::is_breach(violation))?))
    });
    match found {
        Some((seed, violation)) => {
            println!("{mutant:?}: found with seed {seed}: {violation}");
            let kept = world::Settings { mutant: None, ..mutant.settings() };
            let violation = run::run(seed, Some(kept), mutant.scenario()).violation;
            assert_eq!(violation, None, "with every promise kept, seed {seed} breaks nothing");
        }
        None => panic!("{mutant:?} was not found in {} seeds", mutants::SEEDS_MAX),
    }
}

#[test]
fn a_guard_that_does_not_kill_is_found() {
    is_found(mutants::Mutant::GuardDoesNotKill);
}

#[test]
fn a_disk_that_forgets_is_found() {
    is_found(mutants::Mutant::DiskForgets);
}

#[test]
fn promises_that_nobody_gave_are_found() {
    is_found(mutants::Mutant::PromisesNobodyGave);
}

#[test]
fn a_kill_that_leaves_backends_is_found() {
    is_found(mutants::Mutant::KillLeavesBackends);
}

#[test]
fn a_clock_beyond_the_bound_is_found() {
    is_found(mutants::Mutant::ClockBeyondTheBound);
}

#[test]
fn a_standby_that_confirms_before_it_flushed_is_found() {
    is_found(mutants::Mutant::ConfirmsBeforeFlush);
}

#[test]
fn no_scenario_breaks_a_rule() {
    for scenario in scenarios::SCENARIOS {
        for seed in 1..=5 {
            let outcome = run::run(seed, None, Some(scenario));
            if let Some(violation) = outcome.violation {
                panic!("{}\n{}, seed {seed}: {violation}", outcome.trace.join("\n"), scenario.name);
            }
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in [3, 1_234] {
        let (one, two) = (run::run(seed, None, None), run::run(seed, None, None));
        let differs = one.trace.iter().zip(&two.trace).position(|(one, two)| one != two);
        if let Some(line) = differs {
            panic!("seed {seed} differs at line {line}:\n{}\n{}", one.trace[line], two.trace[line]);
        }
        assert_eq!(one.trace.len(), two.trace.len(), "seed {seed}");
    }
}
