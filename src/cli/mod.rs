//! The command line: a client of the controller's API.
//!
//! Arguments → commands (fetch, ask, send) → rendering (pure). Decides nothing about the cluster, and reports only what
//! the controller said: an outcome that nobody knows has an exit code of its own.

pub mod arguments;
mod commands;
pub mod console;
pub mod exit;
mod pki;
pub mod render;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

pub use arguments::{Cli, Command, ConfigCommand, ControllerCommand, Global, OperationCommand, OutputFormat};
pub use console::Console;
pub use exit::{Exit, Failure};

/// Runs a client command on the streams of this process. `controller`, `agent` and `lab` are no client commands.
pub fn run(cli: Cli) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return Exit::Failed.into();
        }
    };
    let exit = runtime.block_on(execute(cli, &mut Console::of_process()));
    // Somebody may still be asked on stdin; nobody waits for that answer any more.
    runtime.shutdown_background();
    exit.into()
}

/// Parses `arguments` (the program's name first) and runs them on `console`.
pub async fn run_with<I, T>(arguments: I, console: &mut Console) -> Exit
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    match Cli::try_parse_from(arguments) {
        Ok(cli) => execute(cli, console).await,
        Err(error) => {
            let text = error.render().to_string();
            if error.use_stderr() {
                console.note(text.trim_end());
                return Exit::Usage;
            }
            // A closed pipe while help is printed is no failure.
            let _ = console.print(&text);
            Exit::Done
        }
    }
}

/// Runs a parsed client command and says on stderr why it failed, if it did.
pub async fn execute(cli: Cli, console: &mut Console) -> Exit {
    console.choose_colour(cli.global.color);
    match commands::run(console, cli.global, cli.command).await {
        Ok(exit) => exit,
        Err(failure) => {
            if let Some(message) = &failure.message {
                console.note(&format!("error: {message}"));
            }
            for advice in &failure.advice {
                console.note(&format!("next: {advice}"));
            }
            failure.exit
        }
    }
}
