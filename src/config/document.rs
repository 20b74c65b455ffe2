//! One configuration file with the environment laid over it, in which every setting knows where it was read.
//!
//! Knows TOML, spans and the wording of errors; knows no setting by name.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Origin, Place, Violation, key_text};

/// Variables that begin so, and hold `__`, override settings: `STORMGLASS_FAILOVER__RTO` is `failover.rto`.
const VARIABLE_PREFIX: &str = "STORMGLASS_";

/// What settings are read from: one file, and the variables that override it.
pub(super) struct Source {
    path: PathBuf,
    text: String,
    /// Sorted by name, so that the same environment always gives the same document.
    overrides: Vec<(String, String)>,
}

/// A parsed [`Source`].
pub(super) struct Document<'s> {
    source: &'s Source,
    /// What the n-th override set has the span `text.len() + 1 + n ..`, which nothing in the file has.
    root: Spanned<DeTable<'s>>,
}

/// What a span belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Key,
    Value,
}

impl Source {
    /// Reads the file and picks the variables that are overrides.
    pub fn read(path: &Path, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Ok(Self::of(path, text, environment))
    }

    /// The same of a text that stands in no file yet; `path` is what errors call it.
    pub fn of(path: &Path, text: String, environment: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut overrides: Vec<(String, String)> = environment
            .into_iter()
            .filter(|(name, _)| name.strip_prefix(VARIABLE_PREFIX).is_some_and(|rest| rest.contains("__")))
            .collect();
        overrides.sort();
        Self { path: path.to_owned(), text, overrides }
    }

    /// Parses the file and lays those variables over it whose first part is one of `sections`. Agents and
    /// controllers may share an environment, so a variable for another section is no mistake.
    pub fn parse(&self, sections: &[&str]) -> Result<Document<'_>, ConfigError> {
        let root = DeTable::parse(&self.text).map_err(|error| ConfigError::Invalid {
            place: Place { origin: Some(self.origin(error.span().unwrap_or(0..0))), key: String::new() },
            problem: format!("not valid TOML: {}", error.message()),
        })?;
        let mut document = Document { source: self, root };
        for (number, (name, value)) in self.overrides.iter().enumerate() {
            let path: Vec<String> =
                name[VARIABLE_PREFIX.len()..].split("__").map(|part| part.to_ascii_lowercase()).collect();
            if sections.contains(&path[0].as_str()) {
                document.override_with(self.text.len() + 1 + number, &path, value)?;
            }
        }
        Ok(document)
    }

    fn origin(&self, span: Range<usize>) -> Origin {
        if span.start > self.text.len() {
            return Origin::Variable(self.overrides[span.start - self.text.len() - 1].0.clone());
        }
        let before = self.text.get(..span.start).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Origin::File {
            path: self.path.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

impl<'s> Document<'s> {
    fn override_with(&mut self, start: usize, path: &[String], value: &'s str) -> Result<(), ConfigError> {
        let span = start..start + 1;
        let (last, tables) = path.split_last().expect("split yields at least one part");
        let mut table = self.root.get_mut();
        for part in tables {
            let entry = table
                .entry(Spanned::new(span.clone(), Cow::Owned(part.clone())))
                .or_insert_with(|| Spanned::new(span.clone(), DeValue::Table(DeTable::new())));
            let DeValue::Table(inner) = entry.get_mut() else {
                return Err(ConfigError::Invalid {
                    place: Place { origin: Some(self.source.origin(span)), key: key_text(path) },
                    problem: format!("`{part}` is no table, so a variable can override nothing in it"),
                });
            };
            table = inner;
        }
        // What is no TOML value (5s, 127.0.0.1:8432) is meant as text.
        let value =
            DeValue::parse(value).map_or_else(|_| DeValue::String(Cow::Borrowed(value)), |value| value.into_inner());
        table.remove(last.as_str());
        table.insert(Spanned::new(span.clone(), Cow::Owned(last.clone())), Spanned::new(span, value));
        Ok(())
    }

    /// The settings as `T`; an error names place, key and, for a misspelt word, the nearest known one.
    pub fn settings<T: DeserializeOwned + Serialize>(&self) -> Result<T, ConfigError> {
        let settings: T = self.read()?;
        // Types that also travel between processes let unknown fields pass, so that versions can differ; files must not.
        let known = toml::Table::try_from(&settings).expect("settings came from TOML, so TOML can hold them");
        let mut key = Vec::new();
        match stray(&self.as_written()?, &known, &mut key) {
            Some(problem) => Err(ConfigError::Invalid { place: self.place(&key), problem }),
            None => Ok(settings),
        }
    }

    /// What was written, overrides included, defaults not.
    pub fn as_written(&self) -> Result<toml::Table, ConfigError> {
        self.read()
    }

    fn read<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        T::deserialize(toml::de::Deserializer::from(self.root.clone())).map_err(|error| self.explain(&error))
    }

    /// True if there is such a table or key at the top.
    pub fn has(&self, key: &str) -> bool {
        self.root.get_ref().keys().any(|known| known.get_ref().as_ref() == key)
    }

    /// The error for a broken rule, at the key that breaks it, or at the nearest table around it.
    pub fn violation(&self, violation: Violation) -> ConfigError {
        ConfigError::Invalid { place: self.place(&violation.key), problem: violation.problem }
    }

    /// Where `key` stands.
    pub fn place(&self, key: &[String]) -> Place {
        let mut span = 0..0;
        let mut here: Option<&DeValue<'_>> = None;
        for (depth, part) in key.iter().enumerate() {
            let table = match here {
                None if depth == 0 => Some(self.root.get_ref()),
                Some(DeValue::Table(table)) => Some(table),
                _ => None,
            };
            let next = match (table, here) {
                (Some(table), _) => table
                    .iter()
                    .find(|(name, _)| name.get_ref().as_ref() == part)
                    .map(|(name, value)| (if value.get_ref().is_array() { value.span() } else { name.span() }, value)),
                (None, Some(DeValue::Array(array))) => {
                    part.parse::<usize>().ok().and_then(|index| array.get(index)).map(|value| (value.span(), value))
                }
                _ => None,
            };
            let Some((at, value)) = next else { break };
            span = at;
            here = Some(value.get_ref());
        }
        Place { origin: Some(self.source.origin(span)), key: key_text(key) }
    }

    fn explain(&self, error: &toml::de::Error) -> ConfigError {
        let span = error.span().unwrap_or(0..0);
        let mut path = Vec::new();
        let part = find(self.root.get_ref(), &span, &mut Vec::new(), &mut path);
        let words = quoted(error.message());
        let problem = if error.message().starts_with("unknown field") && words.len() > 1 {
            if part != Some(Part::Key) {
                path.push(words[0].to_owned());
            }
            format!("unknown key: {}", suggestion(words[0], &words[1..], "key"))
        } else if error.message().starts_with("unknown field") {
            "unknown key: this table takes none".to_owned()
        } else if error.message().starts_with("unknown variant") && words.len() > 1 {
            format!("unknown value `{}`: {}", words[0], suggestion(words[0], &words[1..], "value"))
        } else if error.message().starts_with("missing field") && !words.is_empty() {
            path.push(words[0].to_owned());
            "missing: there is no default, add it".to_owned()
        } else {
            error.message().to_owned()
        };
        ConfigError::Invalid { place: Place { origin: Some(self.source.origin(span)), key: key_text(&path) }, problem }
    }
}

/// Path of the deepest setting whose key or value has exactly this span.
fn find(table: &DeTable<'_>, span: &Range<usize>, here: &mut Vec<String>, found: &mut Vec<String>) -> Option<Part> {
    let mut part = None;
    for (key, value) in table.iter() {
        here.push(key.get_ref().to_string());
        let matched = match () {
            () if key.span() == *span => Some(Part::Key),
            () if value.span() == *span => Some(Part::Value),
            () => None,
        };
        if matched.is_some() && here.len() > found.len() {
            *found = here.clone();
            part = matched;
        }
        part = find_in_value(value.get_ref(), span, here, found).or(part);
        here.pop();
    }
    part
}

fn find_in_value(
    value: &DeValue<'_>,
    span: &Range<usize>,
    here: &mut Vec<String>,
    found: &mut Vec<String>,
) -> Option<Part> {
    match value {
        DeValue::Table(table) => find(table, span, here, found),
        DeValue::Array(array) => {
            let mut part = None;
            for (index, element) in array.iter().enumerate() {
                here.push(index.to_string());
                if element.span() == *span && here.len() > found.len() {
                    *found = here.clone();
                    part = Some(Part::Value);
                }
                part = find_in_value(element.get_ref(), span, here, found).or(part);
                here.pop();
            }
            part
        }
        _ => None,
    }
}

/// Leads `key` to the first setting that was written and that nobody reads.
fn stray(written: &toml::Table, known: &toml::Table, key: &mut Vec<String>) -> Option<String> {
    for (name, value) in written {
        key.push(name.clone());
        let Some(counterpart) = known.get(name) else {
            let words: Vec<&str> = known.keys().map(String::as_str).collect();
            return Some(match words.is_empty() {
                true => "unknown key: this table takes none".to_owned(),
                false => format!("unknown key: {}", suggestion(name, &words, "key")),
            });
        };
        if let Some(problem) = stray_in_value(value, counterpart, key) {
            return Some(problem);
        }
        key.pop();
    }
    None
}

fn stray_in_value(written: &toml::Value, known: &toml::Value, key: &mut Vec<String>) -> Option<String> {
    match (written, known) {
        (toml::Value::Table(written), toml::Value::Table(known)) => stray(written, known, key),
        (toml::Value::Array(written), toml::Value::Array(known)) => {
            for (index, pair) in written.iter().zip(known).enumerate() {
                key.push(index.to_string());
                if let Some(problem) = stray_in_value(pair.0, pair.1, key) {
                    return Some(problem);
                }
                key.pop();
            }
            None
        }
        _ => None,
    }
}

/// Words between backticks.
fn quoted(message: &str) -> Vec<&str> {
    message.split('`').skip(1).step_by(2).collect()
}

/// Names the nearest known word, and all of them if it is not near.
fn suggestion(unknown: &str, known: &[&str], what: &str) -> String {
    let nearest = known
        .iter()
        .min_by_key(|word| strsim::damerau_levenshtein(unknown, word))
        .expect("serde lists at least one known word");
    let distance = strsim::damerau_levenshtein(unknown, nearest);
    if distance <= (unknown.len().max(nearest.len()) / 3).max(1) {
        format!("did you mean `{nearest}`?")
    } else {
        format!("the nearest known {what} is `{nearest}`, of {}", known.join(", "))
    }
}
