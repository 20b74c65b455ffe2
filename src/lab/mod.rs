//! The lab: a real cluster on this machine's loopback, its faults, and a client that measures. The embedded default.
//!
//! It drives the product from outside, by the same files, API and signals as anybody, and never decides for it.
//! Invariant: whatever a lab started is stopped, and nothing else is.

pub mod application;
pub mod arguments;
pub mod chaos;
pub mod client;
pub mod clock;
pub mod configuration;
pub mod confinement;
pub mod control;
pub mod database;
pub mod disk;
pub mod down;
pub mod ladder;
pub mod layout;
pub mod ledger;
pub mod load;
pub mod manifest;
pub mod namespaces;
pub mod naming;
pub mod network;
pub mod phases;
pub mod place;
pub mod pooling;
pub mod prediction;
pub mod process;
pub mod programs;
pub mod progress;
pub mod random;
pub mod report;
pub mod rescue;
pub mod scenario;
pub mod status;
pub mod unprivileged;
pub mod up;
pub mod volume;
pub mod wall_clock;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use arguments::{LabCommand, LinkArguments, OutputFormat, RunArguments, Scenario};
use manifest::Manifest;
use network::{LinkState, Order};
use progress::Progress;
use report::{Report, Series};
use up::{Kind, Lab};

use crate::domain::policy::PredictionMode;

/// Exit codes of `stormglass lab`, as everywhere in the command line.
mod exit {
    pub const DONE: u8 = 0;
    pub const FAILED: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const NOT_FOUND: u8 = 4;
    pub const ABORTED: u8 = 7;
}

/// What a run of a given length takes besides.
const HEALTHY_PATIENCE: std::time::Duration = std::time::Duration::from_secs(240);

/// Lines of a log that an error shows.
const LOG_TAIL_LINES: usize = 15;

/// Runs a command of the lab and returns the exit code.
pub async fn execute(command: LabCommand, output: OutputFormat) -> anyhow::Result<u8> {
    if let Some(contradiction) = command.contradiction() {
        say(&contradiction);
        return Ok(exit::USAGE);
    }
    let user = unprivileged::lab_user()?;
    match command {
        // Root may read and stop the user's lab; it starts nothing itself.
        LabCommand::Down { directory } => down(directory, user.uid, output),
        LabCommand::Status { directory } => show_status(directory, user.uid, output).await,
        LabCommand::Link(arguments) => link(&arguments, user.uid).await,
        LabCommand::Chaos(arguments) if arguments.list => {
            print(output, &chaos::catalogue(), chaos::listed).map(|()| exit::DONE)
        }
        LabCommand::Run(arguments) if arguments.needs_disks() && arguments.prepared.is_none() => {
            if let Some(missing) = disk::missing().await? {
                say(&missing);
                return Ok(exit::USAGE);
            }
            degrade(&arguments, &user, output).await
        }
        command if unprivileged::is_root() => as_user(&user, &command).await,
        LabCommand::Up { namespaces: true, .. } | LabCommand::Run(RunArguments { namespaces: true, .. })
            if !namespaces::is_inside() =>
        {
            say("--namespaces: only root can make a network namespace for each host; run the command with sudo");
            Ok(exit::USAGE)
        }
        LabCommand::Up { directory, namespaces, rto, controllers } => {
            let prediction = Some(PredictionMode::Advise);
            let kind =
                Kind { has_links: true, has_namespaces: namespaces, rto, controllers, prediction, ..Kind::default() };
            up(directory, user.uid, kind, output).await
        }
        LabCommand::Chaos(arguments) => {
            let progress = Progress::new();
            sweep(user.uid, progress);
            let report = chaos::run(&arguments, user.uid, progress).await?;
            let Some(report) = report else { return Ok(exit::USAGE) };
            store(arguments.report.as_deref(), serde_json::to_string_pretty(&report)? + "\n")?;
            print(output, &report, || report.table())?;
            // Nothing of what was asked for can be done here; the table says why.
            let is_impossible = report.faults.is_empty() && !report.skipped.is_empty();
            Ok(if report.interrupted {
                exit::ABORTED
            } else if is_impossible {
                exit::USAGE
            } else if report.succeeded {
                exit::DONE
            } else {
                exit::FAILED
            })
        }
        LabCommand::Run(arguments)
            if arguments.scenario == Scenario::DegradePrimary && arguments.prepared.is_none() =>
        {
            degrade(&arguments, &user, output).await
        }
        LabCommand::Run(arguments) if arguments.scenario.needs_volumes() && arguments.prepared.is_none() => {
            volume::run_with_volumes(&user).await
        }
        LabCommand::Run(arguments) => run(&arguments, user.uid, output).await,
        LabCommand::Application { site, listen } => application::serve(&site, &listen).await.map(|()| exit::DONE),
        LabCommand::Network { directory } => network::serve(&directory).await.map(|()| exit::DONE),
    }
}

/// Both parts of `degrade-primary`, each in a lab of its own.
async fn degrade(arguments: &RunArguments, user: &place::User, output: OutputFormat) -> anyhow::Result<u8> {
    let Some(report) = prediction::run(arguments, user, Progress::new()).await? else { return Ok(exit::USAGE) };
    Ok(if finish(arguments, vec![report], output)? { exit::DONE } else { exit::FAILED })
}

/// Root hands over to the lab's user. What was left behind when that one was killed in its tracks is removed after it.
async fn as_user(user: &place::User, command: &LabCommand) -> anyhow::Result<u8> {
    let wants_namespaces = match command {
        LabCommand::Up { namespaces, .. } => *namespaces,
        LabCommand::Run(run) => run.namespaces,
        LabCommand::Chaos(_) => true,
        _ => false,
    };
    if wants_namespaces && let Some(missing) = namespaces::missing() {
        say(&missing);
        return Ok(exit::USAGE);
    }
    let code = unprivileged::run_as(user, command, wants_namespaces).await;
    if wants_namespaces {
        sweep(user.uid, Progress::new());
    }
    code
}

fn sweep(uid: u32, progress: Progress) {
    for abandoned in down::sweep(uid) {
        progress.line(&format!("removed what a broken lab run had left in {}", abandoned.display()));
    }
}

async fn up(directory: Option<PathBuf>, uid: u32, kind: Kind, output: OutputFormat) -> anyhow::Result<u8> {
    let directory = absolute(directory, uid)?;
    let progress = Progress::new();
    clear(&directory, uid, progress)?;
    tokio::select! {
        // Asked first, so that the signals are listened for before anything is made.
        biased;
        () = interrupted() => {
            progress.line("interrupted: the lab is taken down");
            down::take_down(&directory, uid)?;
            Ok(exit::ABORTED)
        }
        built = Lab::build(&directory, uid, kind, progress) => match built {
            Ok(mut lab) => {
                lab.manifest.runner = None;
                lab.manifest.write()?;
                let status = status::read(&lab.manifest).await?;
                print(output, &status, || status.table())?;
                Ok(exit::DONE)
            }
            Err(error) => {
                // The logs stay for whoever wants to know more; the next `lab up` clears them away.
                down::stop(&directory, uid)?;
                Err(error.context(format!("the lab did not come up; its logs are in {}", directory.join("log").display())))
            }
        },
    }
}

fn down(directory: Option<PathBuf>, uid: u32, output: OutputFormat) -> anyhow::Result<u8> {
    let directory = absolute(directory, uid)?;
    let swept = down::sweep(uid);
    for abandoned in &swept {
        say(&format!("removed what a broken lab run had left in {}", abandoned.display()));
    }
    if !directory.exists() {
        say(&format!("there is no lab in {}", directory.display()));
        return Ok(if swept.is_empty() { exit::NOT_FOUND } else { exit::DONE });
    }
    let stopped = down::take_down(&directory, uid)?;
    #[derive(Serialize)]
    struct Done {
        directory: PathBuf,
        stopped_processes: usize,
    }
    let done = Done { directory, stopped_processes: stopped };
    print(output, &done, || format!("stopped {stopped} processes and removed {}\n", done.directory.display()))?;
    Ok(exit::DONE)
}

async fn show_status(directory: Option<PathBuf>, uid: u32, output: OutputFormat) -> anyhow::Result<u8> {
    let directory = absolute(directory, uid)?;
    let manifest = if place::is_lab_of(&directory, uid) { Manifest::read(&directory)? } else { None };
    let Some(manifest) = manifest else {
        say(&format!("there is no lab in {}: start one with stormglass lab up", directory.display()));
        return Ok(exit::NOT_FOUND);
    };
    if manifest.layout.has_namespaces && !namespaces::is_inside() {
        return namespaces::again_outside(&manifest);
    }
    let status = status::read(&manifest).await?;
    print(output, &status, || status.table())?;
    Ok(exit::DONE)
}

async fn link(arguments: &LinkArguments, uid: u32) -> anyhow::Result<u8> {
    let directory = absolute(arguments.directory.clone(), uid)?;
    let manifest = if place::is_lab_of(&directory, uid) { Manifest::read(&directory)? } else { None };
    let Some(manifest) = manifest else {
        say(&format!("there is no lab in {}: start one with stormglass lab up", directory.display()));
        return Ok(exit::NOT_FOUND);
    };
    if manifest.layout.has_namespaces && !namespaces::is_inside() {
        return namespaces::again_outside(&manifest);
    }
    let state = LinkState {
        cut: arguments.cut,
        jitter: arguments.jitter.unwrap_or_default(),
        delay: arguments.delay.unwrap_or_default(),
        loss_percent: arguments.loss.unwrap_or(0),
    };
    let order =
        Order { host: arguments.host.clone(), peer: arguments.peer.clone(), state, direction: arguments.direction };
    let count = network::order(&manifest.layout, &order).await?;
    say(&format!("{count} links changed"));
    Ok(exit::DONE)
}

async fn run(arguments: &RunArguments, uid: u32, output: OutputFormat) -> anyhow::Result<u8> {
    let progress = Progress::new();
    sweep(uid, progress);
    let directory = match &arguments.prepared {
        Some(prepared) => prepared.clone(),
        None if arguments.keep => absolute(None, uid)?,
        None => place::run_directory(),
    };
    if arguments.keep {
        clear(&directory, uid, progress)?;
    }
    let rescue = match arguments.added_time() {
        Some(longer) => rescue::Rescue::arm_for(&directory, uid, longer + HEALTHY_PATIENCE),
        None => rescue::Rescue::arm(&directory, uid, arguments.measured()),
    };
    let result = tokio::select! {
        // As in `up`.
        biased;
        () = interrupted() => None,
        result = run_in(&directory, arguments, uid, progress) => Some(result),
        () = tokio::time::sleep(rescue.patience()) => Some(Err(anyhow::anyhow!(
            "the scenario did not end within {} s", rescue.patience().as_secs()
        ))),
    };
    let keep = arguments.keep && matches!(result, Some(Ok(_)));
    rescue.finish(keep)?;
    let Some(result) = result else {
        progress.line("interrupted: the lab is taken down");
        return Ok(exit::ABORTED);
    };
    let reports = result?;
    let succeeded = finish(arguments, reports, output)?;
    if keep {
        let manifest = Manifest::read(&directory)?.context("the lab that was kept is gone")?;
        progress.line(&status::read(&manifest).await?.table());
    }
    Ok(if succeeded { exit::DONE } else { exit::FAILED })
}

async fn run_in(
    directory: &Path,
    arguments: &RunArguments,
    uid: u32,
    progress: Progress,
) -> anyhow::Result<Vec<Report>> {
    let kind = Kind {
        has_links: arguments.needs_links(),
        has_volumes: arguments.prepared.is_some(),
        has_namespaces: arguments.namespaces,
        rto: arguments.rto,
        durability: arguments.durability,
        controllers: arguments.controllers,
        sync_scope: arguments.sync_scope(),
        prediction: arguments.scenario.prediction(arguments.part),
        has_ladder: arguments.scenario == arguments::Scenario::RejoinLadder,
        ..Kind::default()
    };
    let mut lab = Lab::build(directory, uid, kind, progress).await?;
    let seed = arguments.seed.unwrap_or_else(|| u64::from(uuid::Uuid::now_v7().as_u128() as u32));
    let mut reports = Vec::new();
    for number in 0..arguments.runs {
        if arguments.runs > 1 {
            progress.line(&format!("run {} of {}", number + 1, arguments.runs));
        }
        let seed = seed + u64::from(number);
        // What is compared with one another is measured in turns: so both meet the same machine.
        for rate in arguments.status_rate.map_or(vec![None], |rate| vec![None, Some(rate)]) {
            let load = rate.map(|rate| load::StatusLoad::begin(&lab, rate)).transpose()?;
            let mut report = scenario::run(&mut lab, arguments, seed, progress).await?;
            report.status_load = load.map(load::StatusLoad::end).transpose()?;
            reports.push(report);
        }
        // A cluster that is not well is no place for the next run.
        if reports.iter().any(|report| !report.succeeded) {
            break;
        }
    }
    if arguments.keep {
        lab.manifest.runner = None;
        lab.manifest.write()?;
    }
    Ok(reports)
}

/// Prints and stores what was found. True if all is well.
fn finish(arguments: &RunArguments, mut reports: Vec<Report>, output: OutputFormat) -> anyhow::Result<bool> {
    let store = |document| store(arguments.report.as_deref(), document);
    if arguments.measured() > 1 {
        let series = Series::of(arguments.scenario.label(), reports);
        store(serde_json::to_string_pretty(&series)? + "\n")?;
        print(output, &series, || series.table())?;
        return Ok(series.succeeded && series.runs.len() == arguments.measured() as usize);
    }
    let report = reports.pop().context("the scenario left no report")?;
    store(serde_json::to_string_pretty(&report)? + "\n")?;
    print(output, &report, || report.table())?;
    if output != OutputFormat::Table {
        say(&report.table());
    }
    Ok(report.succeeded)
}

fn store(file: Option<&Path>, document: String) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("make the directory {}", folder.display()))?;
    }
    std::fs::write(file, document).with_context(|| format!("write the report to {}", file.display()))
}

/// Makes room for a lab: clears a dead one away, and refuses where one lives.
fn clear(directory: &Path, uid: u32, progress: Progress) -> anyhow::Result<()> {
    if !place::is_lab_of(directory, uid) {
        return Ok(());
    }
    let lives = Manifest::read(directory)?.is_some_and(|manifest| manifest.anything_lives());
    if lives {
        bail!(
            "a lab is up already in {}: see stormglass lab status, or take it down with stormglass lab down",
            directory.display()
        );
    }
    down::take_down(directory, uid)?;
    progress.line(&format!("removed a dead lab in {}", directory.display()));
    Ok(())
}

fn absolute(directory: Option<PathBuf>, uid: u32) -> anyhow::Result<PathBuf> {
    let chosen = directory.unwrap_or_else(|| place::default_directory(uid));
    let chosen = std::path::absolute(&chosen).with_context(|| format!("find {}", chosen.display()))?;
    // The manifest and /proc name the real path. One that does not exist yet is resolved by its parent.
    match (chosen.canonicalize(), chosen.parent().map(Path::canonicalize), chosen.file_name()) {
        (Ok(real), _, _) => Ok(real),
        (Err(_), Some(Ok(parent)), Some(name)) => Ok(parent.join(name)),
        _ => Ok(chosen),
    }
}

/// Ends with the first Ctrl-C or SIGTERM.
async fn interrupted() {
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup())) {
        (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) => {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
        }
        _ => std::future::pending().await,
    }
}

/// Data on stdout. Whoever does not read to the end is no error.
fn print<T: Serialize>(output: OutputFormat, document: &T, table: impl FnOnce() -> String) -> anyhow::Result<()> {
    let text = match output {
        OutputFormat::Table => table(),
        OutputFormat::Json => serde_json::to_string_pretty(document).context("write JSON")? + "\n",
        OutputFormat::Yaml => serde_yaml_ng::to_string(document).context("write YAML")?,
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("write to stdout"),
        _ => Ok(()),
    }
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The last lines of a log.
fn log_tail(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return "  (it is empty)".to_owned();
    }
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].iter().map(|line| format!("  {line}\n")).collect()
}
