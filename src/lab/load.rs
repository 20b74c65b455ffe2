//! Status requests at a fixed rate while a scenario runs: the controller held to one core, the requests coming from another.
//!
//! The rate is kept whatever the answers take, and a request's time runs from when it was due: what waits behind a slow answer counts.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::clock;
use super::layout::url;
use super::process::ProcessIdentity;
use super::up::Lab;
use crate::domain::clock::Moment;

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests that wait for an answer at the same time; more wait here, and their time runs.
const WAITING_MAX: usize = 512;
/// Nice value of the generator's thread, like that of controller and agents.
const PRIORITY: i32 = -10;
/// How often the generator looks what is due.
const BEAT: Duration = Duration::from_millis(1);

/// What status requests at a fixed rate saw.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusLoadReport {
    /// How many were asked in each second.
    pub wanted_per_second: u32,
    /// How many were answered in each second.
    pub answered_per_second: f64,
    /// Those without a good answer.
    pub errors: u64,
    /// Half of them took no longer, from when they were due.
    pub p50_seconds: f64,
    /// 99 of 100 took no longer.
    pub p99_seconds: f64,
    /// None took longer.
    pub max_seconds: f64,
    /// The core that the controller was held to.
    pub controller_core: usize,
    /// The core that the requests came from.
    pub generator_core: usize,
    /// How much of its core the controller used.
    pub controller_cores_used: f64,
}

impl StatusLoadReport {
    /// One line of several runs; nothing of none.
    pub fn words<'report>(loads: impl Iterator<Item = &'report Self>) -> String {
        let loads: Vec<&Self> = loads.collect();
        let Some(one) = loads.first() else { return String::new() };
        let least = loads.iter().map(|load| load.answered_per_second).fold(f64::INFINITY, f64::min);
        let used = loads.iter().map(|load| load.controller_cores_used).fold(0.0, f64::max);
        let errors: u64 = loads.iter().map(|load| load.errors).sum();
        format!(
            "status requests: {least:.0} of {} a second answered or more, {errors} errors; the controller used {used:.2} of core {}, the \
             requests came from core {}\n",
            one.wanted_per_second, one.controller_core, one.generator_core
        )
    }
}

/// What has been seen.
#[derive(Debug, Default)]
struct Tally {
    seconds: Vec<f64>,
    errors: u64,
}

/// Requests under way.
pub struct StatusLoad {
    rate: u32,
    began: Moment,
    controller: ProcessIdentity,
    controller_seconds: f64,
    cores: (usize, usize),
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Tally>>,
}

impl StatusLoad {
    /// Holds the controller to one core, and asks from another.
    pub fn begin(lab: &Lab, rate: u32) -> anyhow::Result<Self> {
        let layout = lab.layout();
        let cores = two_cores()?;
        let entry = lab.manifest.process(&layout.controller_name(0)).and_then(|entry| entry.identity);
        let controller = entry.context("the lab's controller does not run")?;
        hold(controller.pid, cores.0)?;
        let base = layout.controllers().next().map(url).context("the lab has no controller")?;
        let file = layout.secret("viewer");
        let token = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let asked = format!("{base}/api/v1/clusters/{}", layout.cluster);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("status-load".to_owned())
            .spawn(move || {
                sched_setaffinity(None, &only(cores.1)).with_context(|| format!("stay on core {}", cores.1))?;
                // A request's time runs while this thread waits for its core, which it shares with servers. Where the kernel shares
                // processors out by session, it comes before those of its own session alone: `make bench-status` raises that one.
                let _may_be_refused = setpriority_process(None, PRIORITY);
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
                runtime.block_on(ask(asked, token.trim().to_owned(), rate, stopped))
            })
            .context("start the generator of requests")?;
        let controller_seconds = controller.processor_seconds().unwrap_or(0.0);
        Ok(Self { rate, began: clock::now(), controller, controller_seconds, cores, stop, thread })
    }

    /// Stops asking, and says what was seen. The controller may use every core again.
    pub fn end(self) -> anyhow::Result<StatusLoadReport> {
        let lasted = clock::now().since(self.began).as_secs_f64();
        let used = self.controller.processor_seconds().unwrap_or(0.0) - self.controller_seconds;
        self.stop.store(true, Ordering::Relaxed);
        let tally = self.thread.join().map_err(|_| anyhow!("the generator of requests failed"))??;
        release(self.controller.pid)?;
        let mut seconds = tally.seconds;
        seconds.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let last = seconds.len().saturating_sub(1);
            seconds.get((last as f64 * part).ceil() as usize).copied().unwrap_or(f64::INFINITY)
        };
        Ok(StatusLoadReport {
            wanted_per_second: self.rate,
            answered_per_second: seconds.len() as f64 / lasted,
            errors: tally.errors,
            p50_seconds: at(0.5),
            p99_seconds: at(0.99),
            max_seconds: at(1.0),
            controller_core: self.cores.0,
            generator_core: self.cores.1,
            controller_cores_used: used / lasted,
        })
    }
}

async fn ask(url: String, token: String, rate: u32, stop: Arc<AtomicBool>) -> anyhow::Result<Tally> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .tcp_nodelay(true)
        .timeout(REQUEST_TIMEOUT)
        .build()
        .context("make the HTTP client")?;
    // Made once: what the generator itself needs is missing to the servers beside it.
    let request = client.get(&url).bearer_auth(&token).build().context("make the request")?;
    let tally = Arc::new(Mutex::new(Tally::default()));
    let places = Arc::new(Semaphore::new(WAITING_MAX));
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let began = clock::now();
    let mut asked = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        beat.tick().await;
        while asked as f64 <= clock::now().since(began).as_secs_f64() * f64::from(rate) {
            let due = began.plus(Duration::from_secs_f64(asked as f64 / f64::from(rate)));
            asked += 1;
            let place = places.clone().acquire_owned().await.context("wait for a place")?;
            let request = request.try_clone().context("a request without a body is repeated")?;
            let (client, tally) = (client.clone(), tally.clone());
            tokio::spawn(async move {
                let _place = place;
                let is_good = match client.execute(request).await {
                    Ok(answer) if answer.status().is_success() => answer.bytes().await.is_ok(),
                    _ => false,
                };
                let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                if is_good {
                    tally.seconds.push(clock::now().since(due).as_secs_f64());
                } else {
                    tally.errors += 1;
                }
            });
        }
    }
    let _all = places.acquire_many(WAITING_MAX as u32).await.context("wait for the last answers")?;
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::take(&mut *tally))
}

/// Two of the cores that this process may use: for the controller, and for the requests.
fn two_cores() -> anyhow::Result<(usize, usize)> {
    let allowed = sched_getaffinity(None).context("read which cores there are")?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    ensure!(
        cores.len() >= 2,
        "this needs two cores, one for the controller and one for the requests; there is {}",
        cores.len()
    );
    Ok((cores[0], cores[1]))
}

fn only(core: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(core);
    set
}

/// Every thread of a process on one core; threads that it starts stay there.
fn hold(pid: u32, core: usize) -> anyhow::Result<()> {
    allow(pid, &only(core)).with_context(|| format!("hold process {pid} to core {core}"))
}

fn release(pid: u32) -> anyhow::Result<()> {
    let all = sched_getaffinity(None).context("read which cores there are")?;
    allow(pid, &all).with_context(|| format!("let process {pid} use every core"))
}

fn allow(pid: u32, cores: &CpuSet) -> anyhow::Result<()> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = task?.file_name();
        let Some(task) = name.to_str().and_then(|text| text.parse().ok()).and_then(Pid::from_raw) else { continue };
        match sched_setaffinity(Some(task), cores) {
            // It ended meanwhile.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
