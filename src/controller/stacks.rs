//! Compares Terraform stacks with what is there, beside the loop and seldom: a comparison asks the provider and may take minutes.
//!
//! Nothing is applied, and nothing but the doctor hears of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::domain::readiness::StackFacts;
use crate::ports::steps::StepRunner;

/// The configured stacks; none by default.
#[derive(Debug, Clone, Default)]
pub struct Stacks {
    /// Their directories.
    pub directories: Arc<[String]>,
    /// They are compared this often.
    pub look_interval: Duration,
    /// Longest that one comparison may take.
    pub timeout: Duration,
    /// The program.
    pub program: String,
}

/// Looks at every stack, one after the other, again and again, until nobody is there who would hear of it.
pub(super) async fn look(stacks: Stacks, runner: Arc<dyn StepRunner>, found: watch::Sender<Vec<StackFacts>>) {
    while !stacks.directories.is_empty() && !found.is_closed() {
        let mut facts = Vec::new();
        for directory in stacks.directories.iter() {
            let drift = tokio::select! {
                drift = runner.drifts(directory, &stacks.program, stacks.timeout) => drift,
                () = found.closed() => return,
            };
            facts.push(StackFacts { name: directory.clone(), drift });
        }
        // Told as a whole, so that a stack does not vanish while another one is compared.
        let _ = found.send(facts);
        tokio::select! {
            () = tokio::time::sleep(stacks.look_interval) => {}
            () = found.closed() => return,
        }
    }
}
