//! Models of the predictor: list, show, promote, roll back.

use super::Session;
use super::mutate::lost_answer;
use crate::cli::arguments::ModelCommand;
use crate::cli::exit::{Exit, Failure};
use crate::cli::render;

impl Session<'_> {
    pub(super) async fn model(&mut self, command: &ModelCommand) -> Result<Exit, Failure> {
        let (question, name) = match command {
            ModelCommand::List => {
                let list = self.client.models().await?;
                self.emit(&list.raw, |look| render::model::list(&list.value, look))?;
                return Ok(Exit::Done);
            }
            ModelCommand::Show { name } => return self.model_show(name).await,
            ModelCommand::Promote { name } => (format!("Let model {name} score?"), Some(name)),
            ModelCommand::Rollback => ("Let the model before it score again?".to_owned(), None),
        };
        let list = self.client.models().await?;
        let plan = format!("{}{question}\n", render::model::list(&list.value, self.look_of_notes()));
        if self.global.dry_run {
            self.emit(&list.raw, |_| plan)?;
            return Ok(Exit::Done);
        }
        self.confirm(&list.raw, &plan, None).await?;
        let reply = match name {
            Some(name) => self.client.promote_model(name).await,
            None => self.client.roll_back_model().await,
        };
        let reply = reply.map_err(|error| lost_answer(error, "stormglass model list"))?;
        self.emit(&reply.raw, |_| format!("{}\n", reply.value.message))?;
        self.console.note("Next: stormglass model list");
        Ok(Exit::Done)
    }

    async fn model_show(&mut self, name: &str) -> Result<Exit, Failure> {
        let list = self.client.models().await?;
        let Some(place) = list.value.models.iter().position(|model| model.name == name) else {
            let known: Vec<&str> = list.value.models.iter().map(|model| model.name.as_str()).collect();
            let message = format!("there is no model {name}; the controller knows {}", known.join(", "));
            return Err(Failure::new(Exit::NotFound, message).advise("stormglass model list"));
        };
        let raw = list.raw["models"][place].clone();
        self.emit(&raw, |look| render::model::one(&list.value.models[place], look))?;
        Ok(Exit::Done)
    }
}
