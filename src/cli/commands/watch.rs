//! `watch`: on a terminal the status in place, in a pipe a line for every change. Ends with Ctrl-C or `--timeout`.

use std::time::Duration;

use super::Session;
use crate::cli::arguments::OutputFormat;
use crate::cli::exit::{Exit, Failure, chain};
use crate::cli::render;

/// Slow enough for eyes; a change in a pipe is seen within this, too.
const INTERVAL: Duration = Duration::from_secs(1);

/// To the upper left corner; what is below the text is erased after it.
const HOME: &str = "\x1b[H";
const ERASE_LINE: &str = "\x1b[K";
const ERASE_BELOW: &str = "\x1b[J";

impl Session<'_> {
    pub(super) async fn watch(&mut self, cluster: Option<&str>) -> Result<Exit, Failure> {
        let cluster = self.cluster(cluster).await?;
        let limit = self.global.timeout;
        tokio::select! {
            ended = self.watch_for_ever(&cluster) => ended,
            () = limit_reached(limit) => Ok(Exit::Done),
            _ = tokio::signal::ctrl_c() => Ok(Exit::Done),
        }
    }

    async fn watch_for_ever(&mut self, cluster: &str) -> Result<Exit, Failure> {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let redraws = self.console.out_is_terminal && self.global.output == OutputFormat::Table;
        if redraws {
            self.console.print(&format!("{HOME}{ERASE_BELOW}"))?;
        }
        let mut last_change = String::new();
        loop {
            ticks.tick().await;
            match self.client.status(cluster).await {
                Ok(found) if redraws => {
                    let text = render::status::render(&found.value, self.look());
                    self.redraw(&text)?;
                }
                Ok(found) => {
                    let change = render::status::change_line(&found.value);
                    if change != last_change {
                        let line = match self.global.output {
                            OutputFormat::Table => format!("{}\t{change}\n", found.value.at),
                            OutputFormat::Json => format!("{}\n", found.raw),
                            OutputFormat::Yaml => format!("---\n{}", super::document(OutputFormat::Yaml, &found.raw)?),
                        };
                        self.console.print(&line)?;
                        last_change = change;
                    }
                }
                // A controller that restarts is what people watch for.
                Err(error) => {
                    let message = chain(&error);
                    let failure = Failure::from(error);
                    if failure.exit != Exit::Unreachable && failure.exit != Exit::ControllerError {
                        return Err(failure);
                    }
                    if redraws {
                        self.redraw(&format!("{message}\nTrying again.\n"))?;
                    } else if message != last_change {
                        self.console.note(&format!("{message}; trying again"));
                        last_change = message;
                    }
                }
            }
        }
    }

    fn redraw(&mut self, text: &str) -> Result<(), Failure> {
        let lines = text.replace('\n', &format!("{ERASE_LINE}\n"));
        Ok(self.console.print(&format!("{HOME}{lines}{ERASE_BELOW}"))?)
    }
}

/// Never, without a limit.
pub(super) async fn limit_reached(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}
