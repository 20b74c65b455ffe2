//! Reads and writes lines of PostgreSQL's configuration files.
//!
//! Only the grammar: what the agent sets, and why, is in `configuration`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Parameters that only the agent sets. They are taken out of `postgresql.auto.conf`, which would override it.
pub(super) const FIXED: [&str; 16] = [
    "listen_addresses",
    "unix_socket_directories",
    "port",
    "cluster_name",
    "hot_standby",
    "wal_log_hints",
    "wal_level",
    "max_wal_senders",
    "max_replication_slots",
    "superuser_reserved_connections",
    "restart_after_crash",
    "recovery_target_timeline",
    "primary_conninfo",
    "primary_slot_name",
    "synchronous_standby_names",
    "promote_trigger_file",
];

/// Files may include one another only so deep; PostgreSQL's own limit.
const INCLUDE_DEPTH_MAX: usize = 10;

pub(super) fn is_parameter_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.' | '$'))
}

/// One line, as `postgresql.conf` wants it.
pub(super) fn line(name: &str, value: &str) -> String {
    format!("{name} = {}\n", quote(value))
}

pub(super) fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n"))
}

/// Name, in lower case, and value of a line; `None` for comments and blank lines.
pub(super) fn parse_line(line: &str) -> Option<(String, String)> {
    let line = line.trim_start();
    let end = line.find(|letter: char| letter.is_whitespace() || letter == '=' || letter == '#').unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if !is_parameter_name(name) {
        return None;
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    Some((name.to_ascii_lowercase(), parse_value(rest)))
}

fn parse_value(text: &str) -> String {
    let Some(quoted) = text.strip_prefix('\'') else {
        return text
            .split(|letter: char| letter.is_whitespace() || letter == '#')
            .next()
            .unwrap_or_default()
            .to_owned();
    };
    let mut value = String::new();
    let mut letters = quoted.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\'' if letters.peek() == Some(&'\'') => value.extend(letters.next()),
            '\'' => break,
            '\\' => match letters.next() {
                Some('n') => value.push('\n'),
                Some('t') => value.push('\t'),
                Some(other) => value.push(other),
                None => break,
            },
            other => value.push(other),
        }
    }
    value
}

/// All parameters set in `file` and in the files it includes, except those named `except`; the last setting wins.
pub(super) fn read_file(file: &Path, except: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    read_into(file, except, 0, &mut found);
    found
}

fn read_into(file: &Path, except: &str, depth: usize, found: &mut BTreeMap<String, String>) {
    let Ok(text) = fs::read_to_string(file) else { return };
    let base = file.parent().unwrap_or(Path::new("/"));
    for (name, value) in text.lines().filter_map(parse_line) {
        match name.as_str() {
            "include" | "include_if_exists" | "include_dir" if depth >= INCLUDE_DEPTH_MAX => {}
            "include" | "include_if_exists" if value == except => {}
            "include" | "include_if_exists" => read_into(&base.join(value), except, depth + 1, found),
            "include_dir" => {
                let mut files: Vec<_> = fs::read_dir(base.join(value))
                    .into_iter()
                    .flatten()
                    .filter_map(|entry| Some(entry.ok()?.path()))
                    .filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
                    .collect();
                files.sort();
                for path in files {
                    read_into(&path, except, depth + 1, found);
                }
            }
            _ => {
                found.insert(name, value);
            }
        }
    }
}

/// A value inside a libpq connection string.
pub(super) fn quote_conninfo(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// A word for `sh`.
pub(super) fn quote_shell(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_back_as_they_were_written() {
        for value in
            ["", "on", "it's", r"back\slash", "FIRST 1 (\"a\",\"b\")", "host='x' password='it\\'s'", "#no comment"]
        {
            assert_eq!(parse_line(&line("name", value)), Some(("name".to_owned(), value.to_owned())));
        }
    }

    #[test]
    fn reads_the_forms_that_people_write() {
        for (text, value) in [
            ("port = 5433 # note", "5433"),
            ("port 5433", "5433"),
            ("  Port=5433", "5433"),
            ("port = '5433'   # note", "5433"),
        ] {
            assert_eq!(parse_line(text), Some(("port".to_owned(), value.to_owned())), "{text}");
        }
        for text in ["", "# port = 1", "#port = 1", "   "] {
            assert_eq!(parse_line(text), None, "{text}");
        }
    }

    #[test]
    fn follows_includes_in_order() {
        let home = tempfile::tempdir().expect("temp");
        fs::create_dir(home.path().join("conf.d")).expect("create");
        let write = |name: &str, text: &str| fs::write(home.path().join(name), text).expect("write");
        write("conf.d/a.conf", "wal_level = logical\n");
        write("own.conf", "port = 9\n");
        write(
            "postgresql.conf",
            "wal_level = minimal\ninclude_dir = 'conf.d'\ninclude_if_exists 'own.conf'\nport = 1\ninclude 'own.conf'\n",
        );
        let found = read_file(&home.path().join("postgresql.conf"), "own.conf");
        assert_eq!(found["wal_level"], "logical");
        assert_eq!(found["port"], "1");
    }
}
