//! `stormglass-train`: trains, evaluates, scores and publishes models of the predictor, and measures how good they are.
//!
//! What never enters: the controller's process; it starts this one as a child.

mod bench;
mod benchmark;
mod card;
mod collect;
mod commands;
mod evaluation;
mod features;
mod network;
mod pipeline;
mod progress;
mod publish;
mod report;
mod table;
#[cfg(test)]
mod tests;

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
    /// Pull samples from Prometheus into CSV files
    Collect(collect::CollectArguments),
    /// Train a model on samples from CSV files or from Prometheus
    Fit(commands::FitArguments),
    /// Judge models on the same rows
    Evaluate(commands::EvaluateArguments),
    /// Score a file of samples
    Score(commands::ScoreArguments),
    /// Put a model into use if it is better than the one in use
    Publish(commands::PublishArguments),
    /// Train on every machine of a data folder and score its test part
    Benchmark(benchmark::BenchmarkArguments),
    /// Write the accuracy report
    Report(report::ReportArguments),
    /// Measure the LSTM's speed beside candle_nn's and PyTorch's, on one thread
    BenchLstm(bench::BenchArguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Collect(arguments) => commands::collect(&arguments),
        Command::Fit(arguments) => commands::fit(&arguments),
        Command::Evaluate(arguments) => commands::evaluate(&arguments),
        Command::Score(arguments) => commands::score(&arguments),
        Command::Publish(arguments) => commands::publish(&arguments),
        Command::Benchmark(arguments) => benchmark::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::BenchLstm(arguments) => bench::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the end of a command-line program")]
            {
                eprintln!("stormglass-train: {error:#}");
            }
            // 9: refused by a guard, as for the commands of `stormglass`.
            if error.is::<commands::NotBetter>() { ExitCode::from(9) } else { ExitCode::FAILURE }
        }
    }
}
