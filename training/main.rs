//! `stormglass-train`: trains, evaluates, scores and publishes models of the predictor, and measures how good they are.
//!
//! What never enters: the controller's process; it starts this one as a child.

mod bench;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Trains and judges the models of Stormglass's predictor.
#[derive(Debug, Parser)]
#[command(name = "stormglass-train", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure the LSTM's speed beside candle_nn's and PyTorch's, on one thread
    BenchLstm(bench::BenchArguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::BenchLstm(arguments) => bench::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the end of a command-line program")]
            {
                eprintln!("stormglass-train: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
