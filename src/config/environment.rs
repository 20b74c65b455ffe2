//! Variables that the command line reads besides its flags. Secrets of configuration files are read in `secret`.

/// Bearer token of a person or script.
pub const TOKEN_VARIABLE: &str = "STORMGLASS_TOKEN";

/// The operator's token, from `STORMGLASS_TOKEN`.
pub fn token() -> Option<String> {
    variable(TOKEN_VARIABLE)
}

/// True if the environment asks for text without colour: `NO_COLOR`, or a terminal that has none.
pub fn refuses_colour() -> bool {
    variable("NO_COLOR").is_some() || variable("TERM").as_deref() == Some("dumb")
}

#[expect(clippy::disallowed_methods, reason = "the command line's environment is read here and nowhere else")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
