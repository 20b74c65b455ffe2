//! `notification list` and `notification test`: which channels there are, and whether one works.

use super::Session;
use super::mutate::lost_answer;
use crate::api::client::ClientError;
use crate::cli::arguments::NotificationCommand;
use crate::cli::exit::{Exit, Failure};
use crate::cli::render;

/// What the controller answers where a message did not go out.
const UNAVAILABLE: u16 = 503;

impl Session<'_> {
    pub(super) async fn notification(&mut self, command: &NotificationCommand) -> Result<Exit, Failure> {
        let name = match command {
            NotificationCommand::List => {
                let list = self.client.notifications().await?;
                self.emit(&list.raw, |look| render::notification::list(&list.value, look))?;
                return Ok(Exit::Done);
            }
            NotificationCommand::Test { name } => name,
        };
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if name.is_empty() || !is_name {
            let failure = Failure::new(Exit::Usage, format!("{name:?} is no name of a channel"));
            return Err(failure.advise("stormglass notification list"));
        }
        if self.global.dry_run {
            let list = self.client.notifications().await?;
            self.emit(&list.raw, |_| format!("would send a test over {name}\n"))?;
            return Ok(Exit::Done);
        }
        let reply = match self.client.test_notification(name).await {
            Err(ClientError::Problem { problem }) if problem.status == UNAVAILABLE && !problem.is_not_the_leader() => {
                let failure = Failure::new(Exit::Failed, problem.detail);
                return Err(failure.advise("check [[notification]] in the controller's configuration"));
            }
            other => {
                other.map_err(|error| lost_answer(error, "look whether it arrived: stormglass notification list"))?
            }
        };
        self.emit(&reply.raw, |_| format!("{}\n", reply.value.message))?;
        Ok(Exit::Done)
    }
}
