//! The slow half of the router: the file, the start, the reload. Never on the path of a redirect that the runtime API can do.
//!
//! Invariant: the file that stays is one that HAProxy starts with: checked before it is put in place, and replaced by what HAProxy
//! runs with where a reload shows that the check was not enough.

use super::*;

/// From the start of the process until its socket answers; measured 30 to 60 ms, 1 s on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(5);
/// From `reload` until the new worker answers; measured 50 ms, 0.9 s on a busy machine.
const RELOAD_LIMIT: Duration = Duration::from_secs(10);
/// HAProxy 2.4 counts no reloads that failed: its master is executed anew, and for so long there is none but the former worker.
const NO_NEW_WORKER_FOR: Duration = Duration::from_secs(1);
/// How long a HAProxy that was told to end, or whose master was killed, may take to be gone.
const DYING_LIMIT: Duration = Duration::from_secs(2);
/// Between two looks at a process that starts or reloads. Not on the path of a failover.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// A configuration that a reload refused is not tried again before that: a port may have been given back by then.
const REFUSED_FOR: Duration = Duration::from_secs(10);

impl HaproxyRouter {
    pub(super) fn rendered(&self, action: &'static str) -> Result<String, TrafficError> {
        let failed = |problem: String| TrafficError::Failed { action, problem };
        let (text, source) = match &self.settings.template {
            None => (template::BUILT_IN.to_owned(), "the built-in template".to_owned()),
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).map_err(|error| failed(format!("{}: {error}", path.display())))?;
                (text, path.display().to_string())
            }
        };
        let (target, wanted) = {
            let memory = self.memory();
            (memory.target.as_ref().map(|target| target.socket), memory.wanted.clone())
        };
        template::render(&self.settings, &wanted, &text, target).map_err(|error| failed(format!("{source}, {error}")))
    }

    /// Brings the file up to date and returns its content. The caller holds `slow`.
    pub(super) async fn write_file(&self) -> Result<String, TrafficError> {
        const ACTION: &str = "write HAProxy's configuration";
        let path = &self.settings.config_file;
        let failed = |error: &dyn std::fmt::Display| TrafficError::Failed {
            action: ACTION,
            problem: format!(
                "{}: {error}; see that the agent may write there and that the disk has space",
                path.display()
            ),
        };
        let content = self.rendered(ACTION)?;
        let sites = template::map(&self.memory().wanted);
        let (settings, wanted) = (Arc::clone(&self.settings), content.clone());
        let staged = spawn_blocking(move || {
            if std::fs::read_to_string(settings.map_file()).ok().as_deref() != Some(&sites) {
                file::replace(&settings.map_file(), sites.as_bytes())?;
            }
            if std::fs::read_to_string(settings.lua_file()).ok().as_deref() != Some(template::WAIT_PRIMARY_LUA) {
                file::replace(&settings.lua_file(), template::WAIT_PRIMARY_LUA.as_bytes())?;
            }
            if !settings.state_file().exists() {
                file::replace(&settings.state_file(), b"1\n")?;
            }
            if std::fs::read_to_string(&settings.config_file).is_ok_and(|present| present == wanted) {
                return Ok(None);
            }
            file::stage(&settings.config_file, wanted.as_bytes()).map(Some)
        })
        .await
        .map_err(|error| failed(&error))?
        .map_err(|error: std::io::Error| failed(&error))?;
        if let Some(staged) = staged {
            process::check(&self.settings, &staged).await?;
            let settings = Arc::clone(&self.settings);
            let publish = move || {
                file::keep(&settings.config_file, &settings.previous_file())?;
                file::publish(&staged, &settings.config_file)
            };
            spawn_blocking(publish).await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        }
        Ok(content)
    }

    /// Nothing listens on the stats socket: finds out what is left and makes one HAProxy of it. The caller holds `slow`
    /// and has written the file.
    pub(super) async fn revive(&self, content: String) -> Result<(), TrafficError> {
        const ACTION: &str = "start HAProxy";
        let end = Instant::now() + DYING_LIMIT;
        loop {
            let master = self.master.processes(ACTION).await;
            if self.runtime.server(ACTION, BACKEND, SERVER).await.is_ok() {
                // It was only reloading.
                if let Ok(processes) = master {
                    let mut memory = self.memory();
                    (memory.master, memory.workers) = (Some(processes.master), processes.workers);
                }
                return Ok(());
            }
            let settings = Arc::clone(&self.settings);
            let running = spawn_blocking(move || process::running(&settings)).await.unwrap_or_default();
            // Never a second one beside the first: both would bind the ports, and the kernel would deal clients out to both.
            match master {
                Err(TrafficError::NotRunning { .. }) if running.is_empty() => return self.start(content).await,
                Err(TrafficError::NotRunning { .. }) if Instant::now() > end => {
                    process::kill_workers(&running).await;
                }
                Ok(_) if Instant::now() > end => return self.reload(content).await,
                Err(error) if Instant::now() > end => return Err(error),
                _ => {}
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Starts HAProxy and waits until it answers. The caller holds `slow` and has written the file.
    async fn start(&self, content: String) -> Result<(), TrafficError> {
        const ACTION: &str = "start HAProxy";
        let mut child = process::start(&self.settings)?;
        let answers = async {
            loop {
                if self.runtime.server(ACTION, BACKEND, SERVER).await.is_ok()
                    && let Ok(processes) = self.master.processes(ACTION).await
                {
                    return Ok(processes);
                }
                tokio::select! {
                    status = child.wait() => return Err(status.map_or_else(|error| error.to_string(), |status| status.to_string())),
                    () = sleep(LOOK_AGAIN) => {}
                }
            }
        };
        let outcome =
            timeout(START_LIMIT, answers).await.unwrap_or_else(|_| Err(format!("no answer in {START_LIMIT:?}")));
        match outcome {
            Ok(processes) => {
                let mut memory = self.memory();
                (memory.master, memory.workers) = (Some(processes.master), processes.workers);
                memory.loaded = Some(content);
                memory.holding = false;
                drop(memory);
                // Reaped when it ends; until then it belongs to nobody.
                tokio::spawn(async move { child.wait().await });
                Ok(())
            }
            Err(problem) => Err(TrafficError::Failed {
                action: ACTION,
                problem: format!("{problem}; it said: {}", process::last_log(&self.settings).await),
            }),
        }
    }

    /// Reloads and waits until the new worker answers. The caller holds `slow`.
    pub(super) async fn reload(&self, content: String) -> Result<(), TrafficError> {
        const ACTION: &str = "reload HAProxy";
        let failed = |problem: String| TrafficError::Failed { action: ACTION, problem };
        // So that the new worker does not take standbys for primaries until its first checks are back.
        let states = self.runtime.ask(ACTION, "show servers state").await.ok();
        if let Some(states) = states {
            let path = self.settings.state_file();
            spawn_blocking(move || file::replace(&path, states.as_bytes()))
                .await
                .map_err(|error| failed(error.to_string()))?
                .map_err(|error| failed(error.to_string()))?;
        }
        let before = self.master.processes(ACTION).await?;
        self.master.ask(ACTION, "reload").await?;
        let finished = async {
            let mut only_former_since = None;
            loop {
                // The master executes itself anew: for a moment it may not answer.
                if let Ok(now) = self.master.processes(ACTION).await {
                    if now.reloads_failed > before.reloads_failed {
                        return Err(process::last_log(&self.settings).await);
                    }
                    let is_new =
                        now.reloads > before.reloads && now.workers.iter().any(|pid| !before.workers.contains(pid));
                    if is_new && self.runtime.server(ACTION, BACKEND, SERVER).await.is_ok() {
                        return Ok(now.workers);
                    }
                    let only_former = now.reloads > before.reloads && now.workers == before.workers;
                    only_former_since = only_former.then(|| only_former_since.unwrap_or_else(Instant::now));
                    if only_former_since.is_some_and(|since| since.elapsed() >= NO_NEW_WORKER_FOR) {
                        return Err(process::last_log(&self.settings).await);
                    }
                }
                sleep(LOOK_AGAIN).await;
            }
        };
        match timeout(RELOAD_LIMIT, finished).await {
            Ok(Ok(workers)) => {
                let mut memory = self.memory();
                (memory.loaded, memory.workers, memory.refused) = (Some(content), workers, None);
                Ok(())
            }
            Ok(Err(words)) => {
                let error = failed(format!(
                    "it failed, the former worker goes on, and the file says again what that one runs with: {words}"
                ));
                self.memory().refused =
                    Some(Refused { shape: template::shape(&content), at: Instant::now(), error: error.clone() });
                self.put_back().await?;
                Err(error)
            }
            Err(_) => Err(failed(format!("no new worker answered within {RELOAD_LIMIT:?}"))),
        }
    }

    /// After a reload that failed: a restart must come up, and on the present primary. The caller holds `slow`.
    pub(super) async fn put_back(&self) -> Result<(), TrafficError> {
        let (loaded, target) = {
            let memory = self.memory();
            (memory.loaded.clone(), memory.target.as_ref().map(|target| target.socket))
        };
        let Some(loaded) = loaded else { return Ok(()) };
        let settings = Arc::clone(&self.settings);
        let text = template::retargeted(&loaded, target);
        let problem = |error: &dyn std::fmt::Display| TrafficError::Failed {
            action: "put HAProxy's former configuration back",
            problem: format!("{}: {error}", self.settings.config_file.display()),
        };
        let replace = move || {
            if std::fs::read_to_string(&settings.config_file).is_ok_and(|present| present == text) {
                return Ok(());
            }
            file::replace(&settings.config_file, text.as_bytes())
        };
        spawn_blocking(replace).await.map_err(|error| problem(&error))?.map_err(|error| problem(&error))
    }

    /// The error of a reload that this very configuration did not survive a moment ago.
    pub(super) fn refused(&self, content: &str) -> Option<TrafficError> {
        let memory = self.memory();
        let refused = memory.refused.as_ref().filter(|refused| refused.at.elapsed() < REFUSED_FOR)?;
        (refused.shape == template::shape(content)).then(|| refused.error.clone())
    }

    /// The way when the runtime API did not do it: the file, and a process that reads it.
    pub(super) async fn redirect_by_file(&self, cause: TrafficError) -> Result<(), TrafficError> {
        const ACTION: &str = "redirect by file";
        let _slow = self.slow.lock().await;
        let content = self.write_file().await?;
        match cause {
            TrafficError::NotRunning { .. } if self.settings.manage_process => self.revive(content).await,
            TrafficError::NoAnswer { .. } => {
                let replaced = async {
                    let hung = self.master.processes(ACTION).await?.workers;
                    self.reload(content).await?;
                    // It cannot hand its sockets over: clients that the kernel gives to it would hang with it.
                    process::kill_workers(&hung).await;
                    Ok(())
                };
                replaced.await.map_err(|problem: TrafficError| TrafficError::Failed {
                    action: ACTION,
                    problem: format!("{cause}; the file is written, and then: {problem}; restart HAProxy on this host"),
                })
            }
            other => Err(other),
        }
    }
}
