//! Starts and stops PostgreSQL, and says what is there. Presence is read from the process table first: it needs no disk.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use super::admission;
use super::archiving;
use super::configuration::{self, Managed, close_postmaster_options, set_signal_files};
use super::errors::{NO_THREAD, blocking, failed, within};
use super::files;
use super::parameters::quote_shell;
use super::programs::{self, last_lines};
use super::settings::Setup;
use crate::adapters::system::{family, wait_for_exit};
use crate::ports::postgres::{PostgresError, Presence, StartMode};

const START: &str = "start PostgreSQL";

/// From `pg_ctl` to bound sockets it takes some 30 ms; a stalled disk or a slow preloaded library takes longer.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause between two looks at a server that starts or stops.
const PAUSE: Duration = Duration::from_millis(3);

/// So many looks in a row must find nobody before a server that was just started counts as ended.
const ABSENCES: u32 = 4;

/// How long the files of the data directory may keep an answer waiting.
const FILES_TIMEOUT: Duration = Duration::from_millis(500);

/// Most that is read of the log for an error.
const LOG_BYTES_MAX: u64 = 16 * 1024;

/// See [`crate::ports::LocalPostgres::presence`].
pub(super) async fn presence(setup: &Arc<Setup>) -> Presence {
    let here = setup.clone();
    let look = blocking("look for PostgreSQL", move || {
        let members = family::scan(&here.family).map_err(|error| failed("look for PostgreSQL", error))?;
        Ok((family::postmasters(&members), members.is_empty()))
    });
    match look.await {
        Ok((postmasters, is_empty)) => match postmasters[..] {
            [postmaster] => return Presence::Running { postmaster },
            [first, ..] => {
                let postmaster = choose(setup, postmasters).await.unwrap_or(first);
                return Presence::Running { postmaster };
            }
            [] if is_empty => {}
            [] => return Presence::Orphans,
        },
        Err(error) => {
            // Nothing seen is not nothing there.
            tracing::error!(%error, "cannot look for PostgreSQL's processes");
            return Presence::Orphans;
        }
    }
    let here = setup.clone();
    match setup.lanes.presence.run(FILES_TIMEOUT, "look for data", move || Ok(here.has_data())).await {
        Ok(false) => Presence::NoData,
        // A stalled disk does not make the data go away.
        Ok(true) | Err(_) => Presence::Stopped,
    }
}

/// For the moment in which a child of a killed postmaster has not renamed itself yet.
async fn choose(setup: &Arc<Setup>, postmasters: Vec<i32>) -> Option<i32> {
    let here = setup.clone();
    let read = move || Ok(read_postmaster_pid(&here));
    let found = setup.lanes.presence.run(FILES_TIMEOUT, "read postmaster.pid", read).await;
    found.ok().flatten().filter(|pid| postmasters.contains(pid))
}

fn read_postmaster_pid(setup: &Setup) -> Option<i32> {
    fs::read_to_string(setup.data.join("postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()
}

/// Sends a signal to the postmaster. False: there is none.
pub(super) async fn signal_postmaster(setup: &Arc<Setup>, signal: Signal) -> bool {
    let Presence::Running { postmaster } = presence(setup).await else { return false };
    let here = setup.clone();
    blocking("signal PostgreSQL", move || {
        family::signal(&here.family, postmaster, signal).map_err(|error| failed("signal PostgreSQL", error))
    })
    .await
    .unwrap_or(false)
}

/// See [`crate::ports::LocalPostgres::start`].
pub(super) async fn start(setup: &Arc<Setup>, mode: &StartMode) -> Result<i32, PostgresError> {
    match presence(setup).await {
        Presence::Stopped => {}
        Presence::NoData => {
            return Err(failed(START, format!("no data in {}: clone the node first", setup.data.display())));
        }
        Presence::Running { postmaster } => {
            return Err(failed(START, format!("it runs already, process {postmaster}")));
        }
        Presence::Orphans => return Err(failed(START, "processes of an earlier start are left: kill them first")),
    }
    let is_closed = matches!(mode, StartMode::Recovering { .. });
    let (managed, is_standby) = match mode {
        StartMode::Recovering { synchronous } => {
            let synchronous_standby_names = configuration::render_synchronous(synchronous, true);
            (Managed { synchronous_standby_names, ..Managed::default() }, false)
        }
        StartMode::Standby { upstream } => (Managed::standby_of(setup, upstream.as_ref()), true),
        StartMode::Primary { synchronous, block_when_alone } => {
            let synchronous_standby_names = configuration::render_synchronous(synchronous, *block_when_alone);
            (Managed { synchronous_standby_names, ..Managed::default() }, false)
        }
    };
    let here = setup.clone();
    let prepare = move || {
        configuration::secure(&here, &here.data, Some(&managed))?;
        set_signal_files(&here, &here.data, is_standby)?;
        let at = |error: std::io::Error| failed(START, format!("{}: {error}", here.data.display()));
        // Nobody of the family runs, so a lock file is stale, however alive a stranger with the same number is.
        files::remove(&here.data.join("postmaster.pid")).map_err(at)?;
        files::remove(&here.data.join("postmaster.opts")).map_err(at)?;
        remove_stale_socket_locks(&here).map_err(at)?;
        archiving::resume(&here).map_err(at)?;
        if is_standby {
            archiving::leave_to_others(&here).map_err(at)?;
        }
        if is_closed {
            admission::close(&here)?
        } else {
            admission::forget(&here).map_err(at)?
        }
        prepare_log(&here).map_err(|error| failed(START, format!("{}: {error}", here.settings.log_file.display())))
    };
    let log_begin = setup.lanes.start.run(START_TIMEOUT, START, prepare).await?;
    let said = launch(setup, is_closed).await?;
    within(START_TIMEOUT, START, wait_until_bound(setup, log_begin, &said)).await
}

/// Lock files of sockets that this data directory's PostgreSQL left. It would take them for valid as long as something has
/// its old number: a stranger, or its own corpse where nobody reaps.
fn remove_stale_socket_locks(setup: &Setup) -> std::io::Result<()> {
    let settings = &setup.settings;
    for directory in [&settings.private_socket_directory].into_iter().chain(&settings.client_socket_directories) {
        let lock = directory.join(format!(".s.PGSQL.{}.lock", settings.address.port));
        // First line the process, second the data directory.
        let is_own = fs::read_to_string(&lock).is_ok_and(|text| {
            text.lines().nth(1).is_some_and(|data| fs::canonicalize(data).is_ok_and(|data| data == setup.data))
        });
        if is_own {
            files::remove(&lock)?;
        }
    }
    Ok(())
}

/// Makes the log's directory and returns the log's length: what follows is of this start.
fn prepare_log(setup: &Setup) -> std::io::Result<u64> {
    let log = &setup.settings.log_file;
    if let Some(parent) = log.parent().filter(|parent| !parent.exists()) {
        files::make_private_directory(parent, setup.owner)?;
    }
    Ok(fs::metadata(log).map_or(0, |metadata| metadata.len()))
}

/// `pg_ctl` makes PostgreSQL a session of its own, so that it outlives the agent. Returns what was said before PostgreSQL's own log was
/// open: the shell that `pg_ctl` starts may fail to open it, or to run PostgreSQL, and `pg_ctl` does not wait for that.
async fn launch(setup: &Setup, is_closed: bool) -> Result<String, PostgresError> {
    let settings = &setup.settings;
    let sockets: Vec<_> = [&settings.private_socket_directory]
        .into_iter()
        .chain(&settings.client_socket_directories)
        .map(|directory| directory.to_string_lossy())
        .collect();
    let mut options = format!(
        "-c {} -c {}",
        quote_shell(&format!("listen_addresses={}", settings.listen_addresses)),
        quote_shell(&format!("unix_socket_directories={}", sockets.join(",")))
    );
    if is_closed {
        options += &format!(" -c {}", quote_shell(&format!("hba_file={}", admission::link(setup).display())));
    }
    if let Some(directory) = &settings.config_directory {
        let file = directory.join("postgresql.conf");
        options += &format!(" -c {}", quote_shell(&format!("config_file={}", file.display())));
    }
    let mut command = programs::command(setup, START, "pg_ctl")?;
    command.arg("start").arg("-W").arg("-D").arg(&setup.data).arg("-l").arg(&settings.log_file).arg("-o").arg(options);
    // Not killed with its caller: half of a start is a server that nobody knows of. In the data directory from its first
    // moment, so that a fence finds even a postmaster that has not gone there itself yet.
    command.kill_on_drop(false).current_dir(&setup.data);
    command.env("PG_OOM_ADJUST_FILE", "/proc/self/oom_score_adj").env("PG_OOM_ADJUST_VALUE", "0");
    Ok(programs::run(command, START, START_TIMEOUT).await?.stderr)
}

/// Waits for `postmaster.opts`, which is written once all sockets are bound, and closes it.
async fn wait_until_bound(setup: &Arc<Setup>, log_begin: u64, said: &str) -> Result<i32, PostgresError> {
    let mut absences = 0;
    loop {
        let found = presence(setup).await;
        // `pg_ctl` returns while its child is about to become PostgreSQL. On a busy host a single look at that moment has found nobody,
        // where no log and no error told of an end.
        absences = if matches!(found, Presence::Stopped | Presence::NoData) { absences + 1 } else { 0 };
        let is_gone = absences >= ABSENCES;
        let (here, said) = (setup.clone(), said.to_owned());
        let look = move || {
            let options = fs::read_to_string(here.data.join("postmaster.opts")).unwrap_or_default();
            match found {
                Presence::Running { postmaster }
                    if options.ends_with('\n') && read_postmaster_pid(&here) == Some(postmaster) =>
                {
                    close_postmaster_options(&here, &here.data).map_err(|error| failed(START, error))?;
                    Ok(Some(postmaster))
                }
                Presence::Stopped | Presence::NoData if is_gone => {
                    Err(failed(START, format!("it ended at once: {}", read_log(&here, log_begin, &said))))
                }
                Presence::Running { .. } | Presence::Orphans | Presence::Stopped | Presence::NoData => Ok(None),
            }
        };
        if let Some(postmaster) = setup.lanes.start.run(START_TIMEOUT, START, look).await? {
            return Ok(postmaster);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What PostgreSQL said since `begin`, or else what was `said` before it had a log.
fn read_log(setup: &Setup, begin: u64, said: &str) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(&setup.settings.log_file)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(begin.max(length.saturating_sub(LOG_BYTES_MAX))))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) if !text.trim().is_empty() => last_lines(&text),
        _ if !said.trim().is_empty() => last_lines(said),
        _ => format!("and said nothing in {}; see PostgreSQL's own log", setup.settings.log_file.display()),
    }
}

/// See [`crate::ports::LocalPostgres::stop_fast`].
pub(super) async fn stop_fast(setup: &Arc<Setup>, timeout: Duration) -> Result<(), PostgresError> {
    const ACTION: &str = "stop PostgreSQL";
    within(timeout, ACTION, async {
        if let Presence::Running { postmaster } = presence(setup).await {
            archiving::suspend(setup).await;
            signal_postmaster(setup, Signal::INT).await;
            tokio::select! {
                () = wait_for_exit(postmaster) => {}
                () = archiving::cut_short(setup) => {}
            }
        }
        while matches!(presence(setup).await, Presence::Running { .. } | Presence::Orphans) {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    })
    .await
}

/// See [`crate::ports::LocalPostgres::kill_family`].
pub(super) async fn kill_family(setup: &Arc<Setup>, timeout: Duration) -> Result<Duration, PostgresError> {
    const ACTION: &str = "kill PostgreSQL";
    let here = setup.clone();
    let kill = move || family::kill_until_gone(&here.family, timeout).map_err(|left| failed(ACTION, left));
    match blocking(ACTION, kill.clone()).await {
        // A host without a thread to spare needs its fence all the more: this one waits for it.
        Err(PostgresError::Failed { problem, .. }) if problem.starts_with(NO_THREAD) => kill(),
        done => done,
    }
}
