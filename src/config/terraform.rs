//! `[terraform]`: stacks that are compared with what is there, so that the doctor knows before they are needed.
//!
//! Nothing is ever applied by this; a step of a sequence does that.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::duration::DurationText;
use super::error::Violation;

/// `[terraform]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TerraformSection {
    /// Directories of the stacks, on the controllers' hosts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub stacks: Vec<PathBuf>,
    /// They are compared this often.
    #[serde(with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub look_interval: Duration,
    /// Longest that one comparison may take.
    #[serde(with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub timeout: Duration,
    /// The program.
    pub program: String,
}

impl Default for TerraformSection {
    fn default() -> Self {
        Self {
            stacks: Vec::new(),
            look_interval: Duration::from_secs(6 * 3600),
            timeout: Duration::from_secs(600),
            program: "terraform".to_owned(),
        }
    }
}

impl TerraformSection {
    /// The first rule that is broken.
    pub(super) fn violation(&self) -> Result<(), Violation> {
        if let Some(relative) = self.stacks.iter().find(|stack| !stack.is_absolute()) {
            let problem = format!("{} must be an absolute path", relative.display());
            return Err(Violation::at("terraform.stacks", problem));
        }
        let minute = Duration::from_secs(60);
        if self.look_interval < minute {
            return Err(Violation::at(
                "terraform.look_interval",
                "must be at least 1m: a comparison asks the provider",
            ));
        }
        if self.timeout < Duration::from_secs(1) {
            return Err(Violation::at("terraform.timeout", "must be at least 1s"));
        }
        Ok(())
    }
}
