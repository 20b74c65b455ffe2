//! The words of a scenario's line, and why a line was not understood. What the words mean is in `cluster`.

use std::time::Duration;

use stormglass::domain::*;

/// Why a line was not understood.
pub type Trouble = String;

/// Words of a line, taken from the front.
pub struct Words<'line>(std::str::SplitWhitespace<'line>);

impl<'line> Words<'line> {
    pub fn new(line: &'line str) -> Self {
        Self(line.split('#').next().unwrap_or_default().split_whitespace())
    }

    pub fn optional(&mut self) -> Option<&'line str> {
        self.0.next()
    }

    pub fn word(&mut self) -> Result<&'line str, Trouble> {
        self.0.next().ok_or_else(|| "a word is missing at the end".to_owned())
    }

    pub fn parse<T: std::str::FromStr>(&mut self) -> Result<T, Trouble>
    where
        T::Err: std::fmt::Display,
    {
        let word = self.word()?;
        word.parse().map_err(|error| format!("{word:?}: {error}"))
    }

    pub fn duration(&mut self) -> Result<Duration, Trouble> {
        let word = self.word()?;
        humantime::parse_duration(word).map_err(|error| format!("{word:?}: {error}"))
    }

    /// `n2` or `n2,n3` or `nobody`.
    pub fn nodes<C: FromIterator<NodeName>>(&mut self) -> Result<C, Trouble> {
        let word = self.word()?;
        let names = word.split(',').filter(|name| *name != "nobody");
        names.map(|name| NodeName::new(name).map_err(|error| error.to_string())).collect()
    }
}
