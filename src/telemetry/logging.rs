//! Log lines on stderr: for people by default, one JSON document a line where machines read them.
//!
//! `error` means that a human must look.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// Filters in the syntax of `tracing-subscriber`; the first that is set wins over the verbosity.
const FILTER_VARIABLES: [&str; 2] = ["STORMGLASS_LOG", "RUST_LOG"];

/// Sends log lines to stderr from here on.
///
/// `verbosity`: 0 warnings, 1 information, 2 debugging, 3 and more everything. Services begin at 1, commands at 0;
/// each `-v` adds one. Calls after the first change nothing.
pub fn init(verbosity: u8, json: bool) {
    let mut refused = Vec::new();
    let filter = FILTER_VARIABLES
        .iter()
        .filter_map(|variable| match EnvFilter::try_from_env(variable) {
            Ok(filter) => Some(filter),
            Err(error) => {
                if !is_unset(&error) {
                    refused.push((*variable, error));
                }
                None
            }
        })
        .next()
        .unwrap_or_else(|| EnvFilter::new(directives(verbosity)));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A subscriber that is there already stays: tests of one process share it.
    let _ = if json {
        builder.json().flatten_event(true).with_ansi(false).finish().try_init()
    } else if std::io::stderr().is_terminal() {
        // Colour by default, which NO_COLOR turns off.
        builder.with_target(verbosity > 1).finish().try_init()
    } else {
        builder.with_target(verbosity > 1).with_ansi(false).finish().try_init()
    };
    for (variable, error) in refused {
        tracing::warn!(%error, variable, "the log filter in the environment is not understood and was ignored");
    }
}

/// Ours at the level asked for; of other crates only what goes wrong.
fn directives(verbosity: u8) -> &'static str {
    match verbosity {
        0 => "warn",
        1 => "warn,stormglass=info",
        2 => "warn,stormglass=debug",
        _ => "debug,stormglass=trace",
    }
}

fn is_unset(error: &tracing_subscriber::filter::FromEnvError) -> bool {
    use std::error::Error as _;
    error.source().is_some_and(|source| source.is::<std::env::VarError>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verbosity_is_a_valid_filter() {
        for verbosity in 0..5 {
            assert!(EnvFilter::try_new(directives(verbosity)).is_ok());
        }
    }

    #[test]
    fn an_unset_variable_is_told_from_a_bad_one() {
        let unset = EnvFilter::try_from_env("STORMGLASS_VARIABLE_THAT_NOBODY_SETS").expect_err("it is not set");
        assert!(is_unset(&unset));
    }

    #[test]
    fn a_second_call_is_harmless() {
        init(1, false);
        init(2, true);
    }
}
