//! `cluster`: parsing only.

use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Subcommand;

/// `stormglass cluster …`.
#[derive(Debug, Clone, Subcommand)]
pub enum ClusterCommand {
    /// Every cluster that the controller keeps: health, primary, epoch.
    List,
    /// What a cluster is configured as: nodes, proxies, sites, policy, file. Never a secret.
    Show {
        /// The cluster; may be left out where the controller keeps one.
        cluster: Option<String>,
    },
    /// Keep another cluster from now on. The controller checks the definition as config check does, and writes it to its directory.
    #[command(
        after_help = "The controller must have been started with a directory: stormglass controller --config DIRECTORY.\n\nExamples:\n  \
                      stormglass cluster add orders.toml --dry-run\n  generate-definition | stormglass cluster add -"
    )]
    Add {
        /// Its definition, as controller --config takes it; - is standard input.
        #[arg(value_name = "FILE")]
        file: DefinitionFile,
    },
    /// Keep a cluster no longer. Its file gets another name, its store stays, its nodes go on without a controller.
    #[command(after_help = "Example:\n  stormglass cluster remove orders --dry-run")]
    Remove {
        /// Which.
        cluster: String,
    },
}

/// Where a definition is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DefinitionFile {
    /// What is piped in.
    StandardInput,
    /// A file.
    File(PathBuf),
}

impl FromStr for DefinitionFile {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "-" { Self::StandardInput } else { Self::File(text.into()) })
    }
}
