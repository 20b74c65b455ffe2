//! Carries out one step: journal, effect, outcome. The only place where operations touch the outside.
//!
//! An answer that did not come is `Unknown`, never "failed"; repeating a command is harmless, so silence is answered by asking again.

mod errand;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot, watch};

use super::event_loop::Event;
use super::journal::Journal;
use super::name::NameSight;
use crate::domain::clock::Moment;
use crate::domain::command::{Command, CommandEnvelope, CommandOutput, CommandReply, CommandState, ProxyAssignment};
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::ids::{ClusterName, NodeName, ProxyName};
use crate::domain::name;
use crate::domain::operation::{Operation, StepState};
use crate::domain::record::ClusterRecord;
use crate::domain::report::{ProxyReport, Report};
use crate::domain::sequence::StepRun;
use crate::domain::training::TrainRun;
use crate::operate::sequence::{Awaited, is_met};
use crate::operate::{Effect, Step};
use crate::ports::steps::{StepError, StepRunner};
use crate::ports::{Clock, ControlError, NodeControl, ProxyControl, Store, Swap, Trainer};
use crate::telemetry;

/// How long one question to an agent may take; a long command answers `Running` before that. A host that lost its power answers
/// nothing: the question that was on its way is over by then.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// For how long an agent that does not answer at all is asked again within one attempt.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Between two looks at what a step waits for.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Between two questions about the same command.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// The others only report; the candidate is what is waited for.
const OTHERS_TIMEOUT: Duration = Duration::from_millis(300);

/// What a step may touch.
pub(super) struct Outside {
    pub cluster: ClusterName,
    pub store: Arc<dyn Store>,
    pub journal: Arc<Journal>,
    pub clock: Arc<dyn Clock>,
    pub nodes: Arc<dyn NodeControl>,
    pub proxies: Arc<dyn ProxyControl>,
    pub proxy_names: Vec<ProxyName>,
    /// Those of them whose agents were heard lately.
    pub proxies_heard: BTreeSet<ProxyName>,
    pub proxy_assignment: ProxyAssignment,
    /// Proxies of the site that the name is to lead to.
    pub proxies_there: Vec<ProxyName>,
    /// What was last found of the name.
    pub sights: watch::Receiver<Option<NameSight>>,
    pub steps: Arc<dyn StepRunner>,
    pub trainer: Option<Arc<dyn Trainer>>,
    /// Backups that a sequence asks for are taken from a standby where one streams.
    pub backups_from_standby: bool,
    pub events: mpsc::Sender<Event>,
}

/// What came of it.
pub(super) struct Done {
    pub state: StepState,
    pub reports: Vec<Report>,
    pub record: Option<Box<ClusterRecord>>,
}

impl Done {
    fn plain(state: StepState) -> Self {
        Self { state, reports: Vec::new(), record: None }
    }
}

/// Journals the start and carries the step out.
pub(super) async fn step(outside: &Outside, operation: &Operation, step: &Step) -> Done {
    if let Err(error) = outside.journal.save(operation).await {
        return Done::plain(StepState::Failed {
            error: format!("not begun, because it could not be journalled: {error}"),
        });
    }
    match &step.effect {
        Effect::Command { node, command } => run_command(outside, operation, step, node, command.clone()).await,
        Effect::Each { nodes, command } => each(outside, operation, step, nodes, command).await,
        Effect::Swap { expected, record } => swap(outside, *expected, record, step.timeout).await,
        Effect::Freeze { candidate, others, fence_confirmed } => {
            freeze(outside, operation, step, candidate, others, *fence_confirmed).await
        }
        Effect::HoldWrites => {
            let hold = ProxyAssignment { hold: true, ..outside.proxy_assignment.clone() };
            let (told, errors) = tell_proxies(outside, &hold, step.timeout).await;
            let note = format!("{told} of {} proxies hold new writes{errors}", outside.proxy_names.len());
            Done::plain(succeeded(Some(note)))
        }
        Effect::RedirectWrites => {
            let lead = ProxyAssignment { hold: false, ..outside.proxy_assignment.clone() };
            let (told, errors) = tell_proxies(outside, &lead, step.timeout).await;
            let note = format!("{told} of {} proxies lead to the primary{errors}", outside.proxy_names.len());
            let state = if told > 0 || outside.proxy_names.is_empty() {
                succeeded(Some(note))
            } else {
                StepState::Failed { error: note }
            };
            Done::plain(state)
        }
        Effect::VerifyWrites { expect } => {
            let command = Command::VerifyWrite { expect: expect.clone() };
            verify(outside, operation, step, command, &outside.proxy_names).await
        }
        Effect::VerifyName { site: _, expect } => {
            let command = Command::VerifyWrite { expect: expect.clone() };
            verify_name(outside, operation, step, command).await
        }
        Effect::Train { run } => train(outside, operation, step, run).await,
        Effect::RunStep { run } => run_step(outside, step, run).await,
        Effect::Await { what } => wait_until(outside, operation, step, what).await,
        Effect::Begin { what, origin } => errand::run(outside, step, *what, origin).await,
    }
}

/// A step of a sequence; its processes end with this controller's term.
async fn run_step(outside: &Outside, step: &Step, run: &StepRun) -> Done {
    let ran = tokio::select! {
        ran = tokio::time::timeout(step.timeout, outside.steps.run(run)) => ran,
        () = outside.events.closed() => {
            return Done::plain(StepState::Unknown { error: "this controller's term ended".to_owned() });
        }
    };
    Done::plain(match ran {
        Ok(Ok(text)) => succeeded((!text.is_empty()).then_some(text)),
        Ok(Err(StepError::Failed(error))) => StepState::Failed { error },
        Ok(Err(StepError::Unknown(error))) => StepState::Unknown { error },
        Err(_) => StepState::Unknown { error: format!("no outcome within {:?}", step.timeout) },
    })
}

/// A stage of a retraining; its program ends with this controller's term, and where an operator cancels.
async fn train(outside: &Outside, operation: &Operation, step: &Step, run: &TrainRun) -> Done {
    let Some(trainer) = &outside.trainer else {
        let error = "this controller trains nothing: its configuration has no [predictor] with [prometheus]";
        return Done::plain(StepState::Failed { error: error.to_owned() });
    };
    let tell = |progress: String| {
        let told = telemetry::Event::RetrainingProgressed { operation: operation.id.clone(), progress };
        // Where the loop is busy, the next line says more.
        let _ = outside.events.try_send(Event::Tell(Box::new(told)));
    };
    let cancelled = async {
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            let (reply, answer) = oneshot::channel();
            if outside.events.send(Event::Look { reply }).await.is_err() {
                return;
            }
            let Ok(glance) = answer.await else { return };
            if glance.operations.iter().any(|other| other.id == operation.id && other.cancel_requested) {
                return;
            }
        }
    };
    let ran = tokio::select! {
        ran = tokio::time::timeout(step.timeout, trainer.run(run, &tell)) => ran,
        () = outside.events.closed() => {
            return Done::plain(StepState::Unknown { error: "this controller's term ended".to_owned() });
        }
        () = cancelled => return Done::plain(StepState::Failed { error: "cancelled, and its program was ended".to_owned() }),
    };
    Done::plain(match ran {
        Ok(Ok(text)) => succeeded((!text.is_empty()).then_some(text)),
        Ok(Err(StepError::Failed(error))) => StepState::Failed { error },
        Ok(Err(StepError::Unknown(error))) => StepState::Unknown { error },
        Err(_) => StepState::Failed { error: format!("it did not end within {:?}, and was ended", step.timeout) },
    })
}

/// Looks again and again, until it is so, the time is over, the primary moved on, or an operator cancels.
async fn wait_until(outside: &Outside, operation: &Operation, step: &Step, what: &Awaited) -> Done {
    let deadline = outside.clock.now().plus(step.timeout);
    loop {
        let (reply, answer) = oneshot::channel();
        let asked = outside.events.send(Event::Look { reply }).await;
        let (Ok(()), Ok(glance)) = (asked, answer.await) else {
            return Done::plain(StepState::Unknown { error: "this controller's term ended".to_owned() });
        };
        let is_cancelled = glance.operations.iter().any(|other| other.id == operation.id && other.cancel_requested);
        if let Some(moved) = glance.view.record.as_ref().filter(|record| record.epoch != step.epoch) {
            let error = format!("the primary moved on to epoch {} meanwhile", moved.epoch);
            return Done::plain(StepState::Failed { error });
        }
        match is_met(what, &glance.view) {
            Err(missing) if is_cancelled => return Done::plain(StepState::Failed { error: missing }),
            Ok(words) => return Done::plain(succeeded(Some(words))),
            Err(missing) if outside.clock.now() >= deadline => {
                let seconds = step.timeout.as_secs();
                return Done::plain(StepState::Failed { error: format!("{missing}, after {seconds} s") });
            }
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

fn succeeded(note: Option<String>) -> StepState {
    StepState::Succeeded { output: CommandOutput { lsn: None, note } }
}

fn envelope(outside: &Outside, operation: &Operation, step: &Step, command: Command) -> CommandEnvelope {
    CommandEnvelope {
        cluster: outside.cluster.clone(),
        epoch: step.epoch,
        operation: operation.id.clone(),
        step: step.name,
        attempt: step.attempt,
        command,
    }
}

/// Asks until the command has ended, the agent stays silent, or the step's time is over.
async fn run_command(outside: &Outside, operation: &Operation, step: &Step, node: &NodeName, command: Command) -> Done {
    let envelope = envelope(outside, operation, step, command);
    let deadline = outside.clock.now().plus(step.timeout);
    let mut silent_since: Option<Moment> = None;
    let mut reports = Vec::new();
    loop {
        let left = deadline.since(outside.clock.now());
        if left.is_zero() {
            let error = format!("no outcome within {:?}", step.timeout);
            return Done { state: StepState::Unknown { error }, reports, record: None };
        }
        let state = match outside.nodes.command(node, &envelope, ASK_TIMEOUT.min(left)).await {
            Ok(reply) => {
                silent_since = None;
                reports.extend(reply.report.map(|report| *report));
                match reply.state {
                    CommandState::Running { .. } => None,
                    CommandState::Succeeded { output } => Some(StepState::Succeeded { output }),
                    CommandState::Failed { error } => Some(StepState::Failed { error }),
                    CommandState::Refused { reason } => {
                        Some(StepState::Failed { error: format!("refused by the agent of {node}: {reason}") })
                    }
                }
            }
            Err(error @ ControlError::Rejected { .. }) => Some(StepState::Failed { error: error.to_string() }),
            Err(error) => {
                let now = outside.clock.now();
                let since = *silent_since.get_or_insert(now);
                let is_over = now.since(since) >= SILENCE_MAX.min(step.timeout);
                is_over.then(|| match &error {
                    ControlError::Unreachable { .. } => StepState::Failed { error: error.to_string() },
                    _ => StepState::Unknown { error: error.to_string() },
                })
            }
        };
        if let Some(state) = state {
            return Done { state, reports, record: None };
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// The same command for several nodes at the same time; the first that did not do it says how the step ended.
async fn each(outside: &Outside, operation: &Operation, step: &Step, nodes: &[NodeName], command: &Command) -> Done {
    let done = join_all(nodes.iter().map(|node| run_command(outside, operation, step, node, command.clone()))).await;
    let (mut reports, mut notes, mut trouble) = (Vec::new(), Vec::new(), None);
    for (node, done) in nodes.iter().zip(done) {
        reports.extend(done.reports);
        match done.state {
            StepState::Succeeded { output } => notes.extend(output.note.map(|note| format!("{node}: {note}"))),
            state => trouble = trouble.or(Some(state)),
        }
    }
    let state = trouble.unwrap_or_else(|| succeeded((!notes.is_empty()).then(|| notes.join("; "))));
    Done { state, reports, record: None }
}

/// Raises the epoch. Only what is found in the store afterwards counts as an outcome.
async fn swap(outside: &Outside, expected: Option<RecordNumber>, record: &ClusterRecord, timeout: Duration) -> Done {
    match outside.store.swap_record(expected, record).await {
        Ok(Swap::Stored) => {
            Done { state: succeeded(None), reports: Vec::new(), record: Some(Box::new(record.clone())) }
        }
        Ok(Swap::Conflict(current)) => settled(record, current, "another change of the record came first"),
        Err(error) => {
            let deadline = outside.clock.now().plus(timeout);
            loop {
                match outside.store.load_record(&outside.cluster).await {
                    Ok(current) => return settled(record, current.map(Box::new), &error.to_string()),
                    Err(again) if outside.clock.now() >= deadline => {
                        return Done::plain(StepState::Unknown { error: again.to_string() });
                    }
                    Err(_) => tokio::time::sleep(ASK_AGAIN).await,
                }
            }
        }
    }
}

fn settled(wanted: &ClusterRecord, current: Option<Box<ClusterRecord>>, problem: &str) -> Done {
    let landed = current.as_deref() == Some(wanted);
    let state = if landed { succeeded(None) } else { StepState::Failed { error: problem.to_owned() } };
    Done { state, reports: Vec::new(), record: current }
}

/// The candidate consents; the others stop receiving beside it and are not waited for long.
async fn freeze(
    outside: &Outside,
    operation: &Operation,
    step: &Step,
    candidate: &NodeName,
    others: &[NodeName],
    fence_confirmed: Option<Epoch>,
) -> Done {
    let others = others.iter().map(|node| async move {
        let envelope = envelope(outside, operation, step, Command::Freeze { consent_to: None, fence_confirmed });
        outside.nodes.command(node, &envelope, OTHERS_TIMEOUT).await
    });
    let consent = Command::Freeze { consent_to: Some(step.epoch), fence_confirmed };
    let (mut done, others) = tokio::join!(run_command(outside, operation, step, candidate, consent), join_all(others));
    done.reports
        .extend(others.into_iter().flatten().filter_map(|reply: CommandReply| reply.report.map(|report| *report)));
    done
}

fn is_in_force(report: &ProxyReport, assignment: &ProxyAssignment) -> bool {
    let target = assignment.primary.as_ref().map(|primary| &primary.address);
    report.holding == assignment.hold && (assignment.hold || report.write_target.as_ref() == target)
}

/// Asks every proxy at the same time. Who was not heard of lately (a site that was lost) is asked as well, but nobody waits for its
/// answer once the others have given theirs and one of them is good: its agent learns what it missed with its next heartbeat.
async fn from_proxies<T, F: Future<Output = Result<T, String>>>(
    proxies: &[ProxyName],
    heard: &BTreeSet<ProxyName>,
    ask: impl Fn(ProxyName) -> F,
) -> BTreeMap<ProxyName, Result<T, String>> {
    let mut asked: FuturesUnordered<_> = proxies
        .iter()
        .map(|proxy| {
            let answer = ask(proxy.clone());
            async move { (proxy, answer.await) }
        })
        .collect();
    let mut awaited: BTreeSet<&ProxyName> = proxies.iter().filter(|proxy| heard.contains(*proxy)).collect();
    let mut answers = BTreeMap::new();
    while let Some((proxy, answer)) = asked.next().await {
        awaited.remove(proxy);
        answers.insert(proxy.clone(), answer);
        if awaited.is_empty() && answers.values().any(Result::is_ok) {
            break;
        }
    }
    for proxy in proxies {
        let silent = || Err(format!("{proxy}: its agent has not been heard of lately, its answer was not waited for"));
        answers.entry(proxy.clone()).or_insert_with(silent);
    }
    answers
}

/// Tells every proxy; returns how many obeyed and what the others said.
async fn tell_proxies(outside: &Outside, assignment: &ProxyAssignment, timeout: Duration) -> (usize, String) {
    let told = from_proxies(&outside.proxy_names, &outside.proxies_heard, |proxy| async move {
        match outside.proxies.assign(&proxy, assignment, timeout).await {
            // A newer assignment may have overtaken this one: what counts is where the proxy leads.
            Ok(reply) if is_in_force(&reply.report, assignment) => Ok(()),
            Ok(reply) => Err(format!("{proxy}: {}", reply.error.unwrap_or_else(|| "it leads elsewhere".to_owned()))),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
    let obeyed = told.values().filter(|answer| answer.is_ok()).count();
    let errors: Vec<String> = told.into_values().filter_map(Result::err).collect();
    (obeyed, if errors.is_empty() { String::new() } else { format!(" ({})", errors.join("; ")) })
}

/// A write through any proxy proves the client path.
async fn verify(
    outside: &Outside,
    operation: &Operation,
    step: &Step,
    command: Command,
    proxies: &[ProxyName],
) -> Done {
    if proxies.is_empty() {
        return Done::plain(succeeded(Some("no proxy is configured: the node's own write probe vouches".to_owned())));
    }
    let envelope = envelope(outside, operation, step, command);
    let tried = from_proxies(proxies, &outside.proxies_heard, |proxy| {
        let envelope = &envelope;
        async move {
            match outside.proxies.command(&proxy, envelope, step.timeout).await {
                Ok(CommandReply { state: CommandState::Succeeded { .. }, .. }) => Ok(proxy.to_string()),
                Ok(reply) => Err(format!("{proxy}: {:?}", reply.state)),
                Err(error) => Err(error.to_string()),
            }
        }
    })
    .await;
    let (good, bad): (Vec<_>, Vec<_>) = tried.into_values().partition(Result::is_ok);
    let bad: Vec<String> = bad.into_iter().filter_map(Result::err).collect();
    if good.is_empty() {
        return Done::plain(StepState::Failed { error: bad.join("; ") });
    }
    let through: Vec<String> = good.into_iter().flatten().collect();
    Done::plain(succeeded(Some(format!("written through {}", through.join(" and ")))))
}

/// Clients that follow the name arrive: every authoritative server leads to the primary's site, and a write through a proxy there is
/// read back from the primary.
async fn verify_name(outside: &Outside, operation: &Operation, step: &Step, command: Command) -> Done {
    let mut sights = outside.sights.clone();
    let is_of_now = |sight: &Option<NameSight>| {
        sight.as_ref().is_some_and(|sight| sight.wanted.epoch >= step.epoch && sight.problem.is_none())
    };
    let found = match tokio::time::timeout(step.timeout, sights.wait_for(is_of_now)).await {
        Ok(Ok(sight)) => sight.clone(),
        Ok(Err(_)) => None,
        Err(_) => {
            let last = outside.sights.borrow().clone();
            let problem =
                last.and_then(|sight| sight.problem).unwrap_or_else(|| "no server has answered yet".to_owned());
            return Done::plain(StepState::Failed { error: problem });
        }
    };
    let Some(sight) = found else {
        return Done::plain(StepState::Failed { error: "nobody keeps the name".to_owned() });
    };
    let servers: Vec<&str> = sight.answers.iter().map(|answer| answer.server.as_str()).collect();
    let at =
        if servers.is_empty() { "by the provider's word".to_owned() } else { format!("at {}", servers.join(", ")) };
    let leads = format!("the name leads to {} {at}", name::words(&sight.record.values));
    let mut done = verify(outside, operation, step, command, &outside.proxies_there).await;
    match &mut done.state {
        StepState::Succeeded { output } => {
            output.note = Some(match output.note.take() {
                Some(note) => format!("{leads}; {note}"),
                None => leads,
            });
        }
        StepState::Failed { error } => *error = format!("{leads}; {error}"),
        _ => {}
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(names: &[&str]) -> Vec<ProxyName> {
        names.iter().map(|name| ProxyName::new(*name).expect("valid")).collect()
    }

    /// `p1` answers late, `p2` refuses, anybody else never answers.
    async fn answer(proxy: ProxyName) -> Result<(), String> {
        match proxy.as_str() {
            "p1" => tokio::time::sleep(ASK_AGAIN).await,
            "p2" => return Err("p2: no".to_owned()),
            _ => std::future::pending().await,
        }
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_proxies_of_a_lost_site() {
        let all = proxies(&["p1", "p2", "lost"]);
        let heard = all[..2].iter().cloned().collect();
        let answers = from_proxies(&all, &heard, answer).await;
        assert_eq!(answers.values().filter(|answer| answer.is_ok()).count(), 1);
        assert!(answers[&all[2]].as_ref().is_err_and(|words| words.contains("not been heard of lately")));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_heard_is_waited_for_and_so_is_anybody_while_none_has_obeyed() {
        let all = proxies(&["p1", "p2"]);
        for heard in [BTreeSet::from([all[0].clone()]), BTreeSet::from([all[1].clone()]), BTreeSet::new()] {
            let answers = from_proxies(&all, &heard, answer).await;
            assert_eq!(answers[&all[0]], Ok(()), "heard: {heard:?}");
            assert_eq!(answers[&all[1]], Err("p2: no".to_owned()), "heard: {heard:?}");
        }
    }
}
