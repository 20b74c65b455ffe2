//! House rules that no compiler knows: which room may use which, headers, words that must not stay, lengths, error texts.
//!
//! Reads sources as text, never builds anything. Each rule is shown to fail on a bad source at the end of this file.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// What a room may use besides itself (`docs/ARCHITECTURE.md`); whatever is not listed is forbidden.
const ROOMS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("decide", &["domain"]),
    ("operate", &["domain"]),
    ("predict", &["domain"]),
    ("ports", &["domain"]),
    ("telemetry", &["domain"]),
    ("api", &["domain", "telemetry"]),
    ("config", &["domain", "telemetry"]),
    ("adapters", &["domain", "ports", "telemetry"]),
    ("controller", &["domain", "decide", "operate", "predict", "ports", "telemetry", "api", "config"]),
    ("agent", &["domain", "decide", "operate", "predict", "ports", "telemetry", "api", "config"]),
    ("cli", &["domain", "api", "config"]),
    ("lab", &["domain", "api", "config"]),
];

/// Crates, modules and words that would make a pure room impure.
const IMPURE: &[(&str, &[&str])] = &[
    ("domain", &["tokio", "async", "std::fs", "std::net", "rand", "Instant", "SystemTime"]),
    ("decide", &["tokio", "async", "std::fs", "std::net", "rand", "Instant", "SystemTime"]),
    ("operate", &["tokio", "async", "std::fs", "std::net", "rand", "Instant", "SystemTime"]),
    ("predict", &["tokio", "async", "std::fs", "std::net", "rand", "Instant", "SystemTime"]),
];

/// Libraries of the rooms in which everything is computed from what is given. They derive, compute and print; none waits, reads a
/// clock or touches the world. A certificate is parsed in `domain` because three rooms that may not meet read its facts.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("domain", &["humantime", "serde", "serde_json", "thiserror", "time", "utoipa", "x509_parser"]),
    ("decide", &["thiserror"]),
    ("operate", &["thiserror"]),
    (
        "predict",
        &["candle_core", "candle_nn", "ndarray", "pulp", "safetensors", "serde", "serde_json", "sha2", "thiserror"],
    ),
    ("ports", &["async_trait", "serde", "thiserror"]),
];

/// Longest file, in lines that are not tests.
const LENGTH_MAX: usize = 500;

/// One broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    line: usize,
    rule: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.path, self.line, self.rule)
    }
}

#[test]
fn every_source_keeps_the_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for directory in ["src", "tests", "training"] {
        collect(&root.join(directory), &mut sources);
    }
    assert!(sources.len() > 30, "found only {} sources below {}", sources.len(), root.display());
    let findings: Vec<String> = sources
        .iter()
        .flat_map(|path| {
            let text = fs::read_to_string(path).expect("a source is readable UTF-8");
            let relative = path.strip_prefix(root).expect("collected below the root");
            inspect(&relative.to_string_lossy(), &text)
        })
        .map(|finding| finding.to_string())
        .collect();
    assert!(findings.is_empty(), "{} house rules broken:\n{}", findings.len(), findings.join("\n"));
}

fn collect(directory: &Path, sources: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable directory").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(path);
        }
    }
}

/// Every broken rule of one source. `path` is relative to the repository.
fn inspect(path: &str, text: &str) -> Vec<Finding> {
    let mut rules: Vec<(usize, String)> = Vec::new();
    // What is neither comment nor literal, then what of that is not test code; both with the lines where they were.
    let code = without_literals(text);
    // `tests.rs` and `testing.rs` are declared under `#[cfg(test)]`; clippy would find them unused otherwise.
    let is_test = path.starts_with("tests/")
        || ["/tests.rs", "/testing.rs"].iter().any(|end| path.ends_with(end))
        || path.contains("/tests/");
    let shipped = if is_test { String::new() } else { without_tests(&code) };

    if !text.starts_with("//!") {
        rules.push((1, "a file starts with a //! header that says what lives here".to_owned()));
    }
    let stem = Path::new(path).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    if ["utils", "util", "helpers", "helper", "common"].contains(&stem) {
        rules.push((1, format!("a file is named after what lives in it, not {stem:?}")));
    }
    let length = if is_test { text.lines().count() } else { shipped_length(text, &code, &shipped) };
    if length > LENGTH_MAX && !text.lines().any(|line| line.starts_with("//! Length:") && line.len() > 20) {
        rules.push((
            1,
            format!("{length} lines without tests: split it at {LENGTH_MAX}, or say why not in a line //! Length:"),
        ));
    }
    for word in ["todo!", "unimplemented!", "dbg!", "#[ignore"] {
        rules.extend(lines_with(&code, word).map(|line| (line, format!("{word} must not stay"))));
    }
    rules.extend(
        lines_with(&shipped, ".unwrap()").map(|line| (line, ".unwrap() outside tests: say why it holds".to_owned())),
    );
    rules.extend(error_texts(text).into_iter().filter_map(|(line, message)| Some((line, bad_error(&message)?))));

    if let Some(room) = room_of(path) {
        rules.extend(rooms_used(path, &shipped).into_iter().filter_map(|(line, used)| {
            let allowed = ROOMS.iter().find(|(name, _)| *name == room).map_or(&[][..], |(_, allowed)| allowed);
            let is_room = ROOMS.iter().any(|(name, _)| *name == used);
            (is_room && used != room && !allowed.contains(&used.as_str()))
                .then(|| (line, format!("{room} may not use {used}, only {}", allowed.join(", "))))
        }));
        let impure = IMPURE.iter().find(|(name, _)| *name == room).map_or(&[][..], |(_, words)| words);
        for word in impure {
            rules.extend(lines_with_word(&shipped, word).map(|line| (line, format!("{room} is pure: no {word}"))));
        }
        if let Some((_, allowed)) = LIBRARIES.iter().find(|(name, _)| *name == room) {
            let is_told_above = |library: &str| impure.contains(&library) || library == "anyhow";
            for library in libraries().filter(|it| !allowed.contains(&it.as_str()) && !is_told_above(it)) {
                rules.extend(
                    lines_with_library(&shipped, &library).map(|line| (line, format!("{room} does without {library}"))),
                );
            }
        }
        if !["cli", "lab"].contains(&room) {
            rules.extend(
                lines_with_word(&shipped, "anyhow").map(|line| (line, format!("{room} has typed errors: no anyhow"))),
            );
        }
    }
    rules.sort();
    rules.into_iter().map(|(line, rule)| Finding { path: path.to_owned(), line, rule }).collect()
}

/// The room that a source belongs to; `None` for `main.rs`, `lib.rs` and everything outside `src`.
fn room_of(path: &str) -> Option<&str> {
    let (first, rest) = path.strip_prefix("src/")?.split_once('/').map_or((path.strip_prefix("src/")?, ""), |it| it);
    let name = if rest.is_empty() { first.strip_suffix(".rs")? } else { first };
    ROOMS.iter().map(|(room, _)| *room).find(|room| *room == name)
}

/// First segments after `crate::` and `stormglass::`, also in groups, and after as many `super::` as lead out of the room.
fn rooms_used(path: &str, code: &str) -> Vec<(usize, String)> {
    let depth = path.trim_start_matches("src/").trim_end_matches("/mod.rs").split('/').count();
    let escape = "super::".repeat(depth);
    let mut used = Vec::new();
    for prefix in ["crate::", "stormglass::", escape.as_str()] {
        for (at, _) in code.match_indices(prefix) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_' || letter == ':') {
                continue;
            }
            let line = line_at(code, at);
            let rest = &code[at + prefix.len()..];
            match rest.strip_prefix('{') {
                Some(group) => used.extend(top_level_names(group).into_iter().map(|name| (line, name))),
                None => used.push((line, identifier(rest))),
            }
        }
    }
    used
}

/// The first segment of each member of a group, whose opening brace was taken off.
fn top_level_names(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut nesting = 0;
    let mut starts = true;
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => nesting += 1,
            '}' if nesting == 0 => break,
            '}' => nesting -= 1,
            ',' if nesting == 0 => starts = true,
            letter if starts && !letter.is_whitespace() => {
                names.push(identifier(&group[at..]));
                starts = false;
            }
            _ => {}
        }
    }
    names
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// Texts of `#[error("…")]`, with the line where the attribute begins. `transparent` has none.
fn error_texts(text: &str) -> Vec<(usize, String)> {
    text.match_indices("#[error(")
        .filter(|(at, _)| text[..*at].rsplit('\n').next().is_none_or(|line| line.trim().is_empty()))
        .filter_map(|(at, attribute)| {
            let literal = text[at + attribute.len()..].trim_start().strip_prefix('"')?;
            let mut message = String::new();
            let mut letters = literal.chars();
            while let Some(letter) = letters.next() {
                match letter {
                    '"' => break,
                    '\\' => message.extend(letters.next()),
                    letter => message.push(letter),
                }
            }
            Some((line_at(text, at), message))
        })
        .collect()
}

fn bad_error(message: &str) -> Option<String> {
    // A name that is written in capitals everywhere (PostgreSQL, HAProxy, CHECKPOINT) keeps them.
    let first: String = message.chars().take_while(|letter| letter.is_alphanumeric()).collect();
    let is_name = first.chars().skip(1).any(char::is_uppercase);
    if first.starts_with(char::is_uppercase) && !is_name {
        return Some(format!("an error text starts in lower case: {message:?}"));
    }
    message.ends_with('.').then(|| format!("an error text does not end in a full stop: {message:?}"))
}

fn lines_with<'text>(text: &'text str, word: &'text str) -> impl Iterator<Item = usize> + 'text {
    text.lines().enumerate().filter(move |(_, line)| line.contains(word)).map(|(index, _)| index + 1)
}

fn lines_with_word<'text>(text: &'text str, word: &'text str) -> impl Iterator<Item = usize> + 'text {
    let is_part = |letter: Option<char>| letter.is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
    text.lines()
        .enumerate()
        .filter(move |(_, line)| {
            line.match_indices(word).any(|(at, _)| {
                !is_part(line[..at].chars().next_back()) && !is_part(line[at + word.len()..].chars().next())
            })
        })
        .map(|(index, _)| index + 1)
}

/// Every dependency of the package, by the name that code calls it.
fn libraries() -> impl Iterator<Item = String> {
    let lines = include_str!("../Cargo.toml").lines();
    let lines = lines.skip_while(|line| *line != "[dependencies]").skip(1).take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| Some(line.split_once(" =")?.0.replace('-', "_")))
}

/// Lines with a path that begins with `library`.
fn lines_with_library<'text>(text: &'text str, library: &str) -> impl Iterator<Item = usize> + use<'text> {
    let path = format!("{library}::");
    let places: Vec<usize> = text.match_indices(&path).map(|(at, _)| at).collect();
    let is_within = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
    places.into_iter().filter(move |at| !text[..*at].ends_with(is_within)).map(|at| line_at(text, at))
}

fn line_at(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Lines that are not test code: a blanked line that held code before belongs to a test.
fn shipped_length(text: &str, code: &str, shipped: &str) -> usize {
    let mut inside_test = false;
    text.lines()
        .zip(code.lines().zip(shipped.lines()))
        .filter(|(_, (code, shipped))| {
            match (code.trim().is_empty(), shipped.trim().is_empty()) {
                (false, true) => inside_test = true,
                (false, false) => inside_test = false,
                (true, _) => {}
            }
            !inside_test
        })
        .count()
}

/// Comments, texts and characters blanked, everything else where it was.
fn without_literals(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < letters.len() {
        let end = literal_end(&letters, at);
        for letter in &letters[at..end.max(at + 1)] {
            code.push(if end > at && *letter != '\n' { ' ' } else { *letter });
        }
        at = end.max(at + 1);
    }
    code
}

/// Where the comment or literal that begins at `at` ends; `at` if none does.
fn literal_end(letters: &[char], at: usize) -> usize {
    let starts = |text: &str| letters[at..].iter().take(text.len()).copied().eq(text.chars());
    let find = |from: usize, end: &dyn Fn(usize) -> bool| (from..letters.len()).find(|at| end(*at));
    let is_word = |letter: &char| letter.is_alphanumeric() || *letter == '_';
    if starts("//") {
        return find(at, &|at| letters[at] == '\n').unwrap_or(letters.len());
    }
    if starts("/*") {
        let mut nesting = 0;
        for end in at..letters.len() {
            match (letters[end], letters.get(end + 1)) {
                ('/', Some('*')) => nesting += 1,
                ('*', Some('/')) => nesting -= 1,
                _ => {}
            }
            if nesting == 0 && letters[end] == '*' {
                return (end + 2).min(letters.len());
            }
        }
        return letters.len();
    }
    if letters[at] == '"' {
        let mut end = at + 1;
        while end < letters.len() && letters[end] != '"' {
            end += if letters[end] == '\\' { 2 } else { 1 };
        }
        return (end + 1).min(letters.len());
    }
    let raw_begins = letters[at] == 'r' && (at == 0 || !is_word(&letters[at - 1]) || letters[at - 1] == 'b');
    if raw_begins {
        let hashes = letters[at + 1..].iter().take_while(|letter| **letter == '#').count();
        if letters.get(at + 1 + hashes) == Some(&'"') {
            let closes = |end: usize| {
                letters[end] == '"' && letters[end + 1..].iter().take(hashes).filter(|it| **it == '#').count() == hashes
            };
            return find(at + 2 + hashes, &closes).map_or(letters.len(), |end| end + 1 + hashes);
        }
    }
    if letters[at] == '\'' {
        // A character, not a lifetime.
        if letters.get(at + 1) == Some(&'\\') {
            return find(at + 3, &|end| letters[end] == '\'').map_or(letters.len(), |end| end + 1);
        }
        if letters.get(at + 2) == Some(&'\'') {
            return at + 3;
        }
    }
    at
}

/// Items under `#[cfg(test)]` blanked. Takes code without literals, so that braces are braces.
fn without_tests(code: &str) -> String {
    let mut shipped = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        let (before, item) = rest.split_at(at);
        shipped.push_str(before);
        let end = item_end(item);
        shipped.extend(item[..end].chars().map(|letter| if letter == '\n' { '\n' } else { ' ' }));
        rest = &item[end..];
    }
    shipped.push_str(rest);
    shipped
}

fn item_end(item: &str) -> usize {
    let mut nesting = 0;
    for (at, letter) in item.char_indices() {
        match letter {
            '{' => nesting += 1,
            '}' if nesting == 1 => return at + 1,
            '}' => nesting -= 1,
            ';' if nesting == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}

fn rules_broken(path: &str, text: &str) -> Vec<String> {
    inspect(path, text).into_iter().map(|finding| finding.rule).collect()
}

#[test]
fn a_good_source_breaks_nothing() {
    let good = r##"//! Lives here.
use crate::domain::{ids::NodeName, lsn::Lsn};
/// Never writes `.unwrap()`, crate::adapters or todo!() in code.
const TEXT: &str = "todo!() .unwrap() crate::adapters tokio";
const RAW: &str = r#"dbg!("x")"#;
fn brand(random: &'static str) -> char { '"' }
#[derive(thiserror::Error)]
#[error("open {path}: PostgreSQL said no")]
struct Bad;
#[cfg(test)]
mod tests {
    use crate::operate;
    fn f() { Some(1).unwrap(); std::time::Instant::now(); }
}
"##;
    assert_eq!(rules_broken("src/decide/candidate.rs", good), Vec::<String>::new());
    assert_eq!(rules_broken("tests/anything.rs", "//! Tests.\nfn f() { Some(1).unwrap(); }"), Vec::<String>::new());
}

#[test]
fn every_import_against_the_table_is_found() {
    for (path, code, rule) in [
        ("src/decide/mod.rs", "use crate::operate::Next;", "decide may not use operate"),
        ("src/decide/mod.rs", "use super::operate::Next;", "decide may not use operate"),
        ("src/decide/lease.rs", "use super::super::adapters;", "decide may not use adapters"),
        ("src/domain/view.rs", "fn f() -> crate::ports::Clock {}", "domain may not use ports"),
        ("src/cli/mod.rs", "use stormglass::{\n api::wire,\n decide::{health, lease},\n};", "cli may not use decide"),
        ("src/controller/mod.rs", "use crate::agent::probe;", "controller may not use agent"),
        ("src/agent/mod.rs", "use crate::adapters::system;", "agent may not use adapters"),
        ("src/adapters/store/mod.rs", "use crate::config::controller;", "adapters may not use config"),
        ("src/domain/clock.rs", "async fn f() {}", "domain is pure: no async"),
        ("src/operate/mod.rs", "use tokio::sync::mpsc;", "operate is pure: no tokio"),
        ("src/decide/mod.rs", "use std::fs;", "decide is pure: no std::fs"),
        ("src/decide/mod.rs", "fn f() { std::time::SystemTime::now(); }", "decide is pure: no SystemTime"),
        ("src/decide/mod.rs", "use serde_json::Value;", "decide does without serde_json"),
        ("src/domain/risk.rs", "fn f() { reqwest::get(); }", "domain does without reqwest"),
        ("src/ports/store.rs", "use anyhow::Result;", "ports has typed errors: no anyhow"),
    ] {
        let found = rules_broken(path, &format!("//! Header.\n{code}\n"));
        assert!(found.len() == 1 && found[0].starts_with(rule), "{path}: {code}\nexpected {rule:?}, found {found:?}");
    }
}

#[test]
fn every_other_rule_can_fail() {
    let long = format!("//! Header.\n{}", "fn f() {}\n".repeat(LENGTH_MAX));
    for (path, text, rule) in [
        ("src/domain/ids.rs", "// no header", "a file starts with"),
        ("src/api/utils.rs", "//! Header.", "a file is named after"),
        ("tests/common.rs", "//! Header.", "a file is named after"),
        ("src/api/body.rs", "//! H.\nfn f() { todo!() }", "todo! must not stay"),
        ("tests/x.rs", "//! H.\nfn f() { unimplemented!() }", "unimplemented! must not stay"),
        ("tests/x.rs", "//! H.\nfn f() { dbg!(1); }", "dbg! must not stay"),
        ("tests/x.rs", "//! H.\n#[test]\n#[ignore = \"slow\"]\nfn f() {}", "#[ignore must not stay"),
        ("src/main.rs", "//! H.\nfn f() { g().unwrap(); }", ".unwrap() outside tests"),
        ("src/api/body.rs", "//! H.\n#[error(\"Open it\")]\nstruct E;", "an error text starts"),
        ("src/api/body.rs", "//! H.\n#[error(\n    \"open it.\"\n)]\nstruct E;", "an error text does not end"),
        ("src/api/body.rs", long.as_str(), "501 lines without tests"),
    ] {
        let found = rules_broken(path, text);
        assert!(found.len() == 1 && found[0].starts_with(rule), "{path}: expected {rule:?}, found {found:?}");
    }
}

#[test]
fn tests_and_stated_reasons_do_not_count_as_length() {
    let tests = format!(
        "//! Header.\nfn f() {{}}\n#[cfg(test)]\nmod tests {{\n{}}}\n",
        "    // A comment.\n    fn g() {}\n".repeat(LENGTH_MAX)
    );
    assert_eq!(rules_broken("src/api/body.rs", &tests), Vec::<String>::new());
    let reasoned =
        format!("//! Header.\n//! Length: one table, read from top to bottom.\n{}", "fn f() {}\n".repeat(600));
    assert_eq!(rules_broken("src/api/body.rs", &reasoned), Vec::<String>::new());
}

#[test]
fn a_finding_names_its_place() {
    let found = inspect("src/decide/mod.rs", "//! H.\n\nuse crate::operate::Next;\n");
    assert_eq!(found[0].to_string(), "src/decide/mod.rs:3: decide may not use operate, only domain");
}
