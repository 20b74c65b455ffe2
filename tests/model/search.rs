//! Exhaustive breadth-first search: every state that any order of steps can reach, the shortest trace to a broken one.
//!
//! Written here and not taken from a crate: it is a page long, it counts states in a fixed order, so that a mutant is found after
//! the same number of states on every machine, and a model checker's explorer, threads and hash maps are not needed for it.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::{Duration, Instant};

/// What can happen, and what must never be.
pub trait Model {
    type State: Clone + Eq + Hash;
    type Action: Copy + Debug;
    fn initial(&self) -> Self::State;
    /// Everything that can happen next.
    fn steps(&self, state: &Self::State, next: &mut Vec<(Self::Action, Self::State)>);
    /// The invariant that `state` breaks.
    fn broken(&self, state: &Self::State) -> Option<&'static str>;
}

/// What a search found.
pub struct Outcome<A> {
    /// Different states reached.
    pub states: usize,
    /// Steps taken.
    pub steps: usize,
    pub took: Duration,
    /// Nothing was left to explore.
    pub exhausted: bool,
    /// The broken invariant with the shortest way to it.
    pub violation: Option<(&'static str, Vec<A>)>,
}

impl<A: Debug> Outcome<A> {
    /// The way to the violation, one step a line.
    pub fn trace(&self) -> String {
        let Some((invariant, trace)) = &self.violation else { return "no violation".to_owned() };
        let steps: Vec<String> =
            trace.iter().enumerate().map(|(step, action)| format!("{:3} {action:?}", step + 1)).collect();
        format!("{invariant}, after\n{}", steps.join("\n"))
    }
}

/// Explores until nothing is left, an invariant breaks, or `states_max` states were reached.
#[expect(clippy::disallowed_methods, reason = "the time of the search is printed, nothing depends on it")]
pub fn explore<M: Model>(model: &M, states_max: usize) -> Outcome<M::Action> {
    let began = Instant::now();
    let mut seen: HashMap<M::State, (), BuildHasherDefault<Mixer>> = HashMap::default();
    let mut came_from: Vec<Option<(usize, M::Action)>> = vec![None];
    let mut waiting = VecDeque::from([(0, model.initial())]);
    seen.insert(model.initial(), ());
    let (mut steps, mut next) = (0, Vec::new());
    let end = |came_from: &Vec<Option<(usize, M::Action)>>, steps, violation, exhausted| Outcome {
        states: came_from.len(),
        steps,
        took: began.elapsed(),
        exhausted,
        violation,
    };
    while let Some((from, state)) = waiting.pop_front() {
        model.steps(&state, &mut next);
        for (action, state) in next.drain(..) {
            steps += 1;
            if seen.contains_key(&state) {
                continue;
            }
            let index = came_from.len();
            came_from.push(Some((from, action)));
            if let Some(invariant) = model.broken(&state) {
                let mut trace = Vec::new();
                let mut at = index;
                while let Some((from, action)) = came_from[at] {
                    trace.push(action);
                    at = from;
                }
                trace.reverse();
                return end(&came_from, steps, Some((invariant, trace)), false);
            }
            seen.insert(state.clone(), ());
            waiting.push_back((index, state));
        }
        if came_from.len() >= states_max {
            return end(&came_from, steps, None, false);
        }
    }
    end(&came_from, steps, None, true)
}

/// A fast hash without a seed: searches are the same every time.
#[derive(Default)]
pub struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u8(*byte);
        }
    }
    fn write_u8(&mut self, byte: u8) {
        self.0 = (self.0.rotate_left(5) ^ u64::from(byte)).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
}
