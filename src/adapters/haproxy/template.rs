//! Fills the configuration template. A placeholder that is unknown, or one that must be there and is not, is an error
//! that names it; HAProxy's own check comes after that.
//!
//! No file is read or written here.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use super::HaproxySettings;
use crate::domain::ids::Address;

/// The template that is used unless the settings name another.
pub const BUILT_IN: &str = include_str!("../../../haproxy/haproxy.cfg.template");

/// Holds connections of the checked ports.
pub const WAIT_PRIMARY_LUA: &str = include_str!("../../../haproxy/wait_primary.lua");

/// How long a connection to the write port waits for a primary. Longer than any failover, shorter than the patience of
/// most clients' own connection timeouts multiplied by their retries.
const HOLD_LIMIT: Duration = Duration::from_secs(60);

/// Where the write server leads while connections wait: port 1 of loopback refuses at once and costs no packet on a wire.
pub const HOLD: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

/// Why a template cannot be filled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Nobody knows what to put there.
    #[error("line {line}: unknown placeholder {{{{{name}}}}}; known are {known}")]
    Unknown {
        /// From 1.
        line: usize,
        /// As written.
        name: String,
        /// All that exist.
        known: String,
    },
    /// `{{` without `}}`.
    #[error("line {line}: a placeholder begins with {{{{ and does not end with }}}}")]
    Unclosed {
        /// From 1.
        line: usize,
    },
    /// Without it the agent could not do its work.
    #[error("the template never uses {{{{{0}}}}}, without which the agent cannot drive HAProxy")]
    Missing(&'static str),
}

/// The configuration that leads to `target`; `None`: the write port holds.
pub fn render(settings: &HaproxySettings, template: &str, target: Option<SocketAddr>) -> Result<String, TemplateError> {
    let retries = (HOLD_LIMIT.as_millis() / settings.connect_timeout.as_millis().max(1)).max(1);
    let values: Vec<(&'static str, String)> = vec![
        ("name", settings.name.to_string()),
        ("cluster", settings.cluster.to_string()),
        ("maxconn", settings.connections_max.to_string()),
        ("stats_socket", settings.stats_socket.display().to_string()),
        ("state_file", settings.state_file().display().to_string()),
        ("lua_file", settings.lua_file().display().to_string()),
        ("write", settings.write.to_string()),
        ("read", settings.read.to_string()),
        ("checked", settings.checked.to_string()),
        ("stats", settings.stats.to_string()),
        ("connect_timeout", format!("{}ms", settings.connect_timeout.as_millis().max(1))),
        ("retries", retries.to_string()),
        ("write_target", target.unwrap_or(HOLD).to_string()),
        ("primary_servers", servers(settings)),
        ("replica_servers", servers(settings)),
    ];
    for required in ["stats_socket", "write", "write_target"] {
        if !template.contains(&format!("{{{{{required}}}}}")) {
            return Err(TemplateError::Missing(required));
        }
    }
    let mut filled = String::with_capacity(template.len() * 2);
    for (index, line) in template.lines().enumerate() {
        fill(line, index + 1, &values, &mut filled)?;
        filled.push('\n');
    }
    Ok(filled)
}

fn fill(
    line: &str,
    number: usize,
    values: &[(&'static str, String)],
    filled: &mut String,
) -> Result<(), TemplateError> {
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").ok_or(TemplateError::Unclosed { line: number })?;
        let value = values.iter().find(|(known, _)| *known == name.trim()).ok_or_else(|| TemplateError::Unknown {
            line: number,
            name: name.trim().to_owned(),
            known: values.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", "),
        })?;
        filled.push_str(before);
        filled.push_str(&value.1);
        rest = after;
    }
    filled.push_str(rest);
    Ok(())
}

fn servers(settings: &HaproxySettings) -> String {
    let mut lines = String::new();
    for node in &settings.nodes {
        let separator = if lines.is_empty() { "" } else { "\n" };
        let Address { host, port } = &node.agent;
        write!(lines, "{separator}  server {} {} check addr {host} port {port}", node.name, node.address)
            .expect("writing to a String cannot fail");
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::tests::settings;
    use super::*;

    #[test]
    fn the_built_in_template_is_filled_completely() {
        let settings = settings(std::path::Path::new("/run/stormglass"));
        let text = render(&settings, BUILT_IN, None).expect("the built-in template is valid");
        assert!(!text.contains("{{"), "{text}");
        assert!(text.contains("  server primary 127.0.0.1:1\n"), "holds before the first primary: {text}");
        let text = render(&settings, BUILT_IN, Some("[::1]:5432".parse().unwrap())).expect("valid");
        assert!(text.contains("  server primary [::1]:5432\n"), "{text}");
        assert!(text.contains("  server n1 10.0.0.1:5432 check addr 10.0.0.1 port 8008\n"), "{text}");
    }

    #[test]
    fn errors_name_the_placeholder_and_the_line() {
        let settings = settings(std::path::Path::new("/run/stormglass"));
        let needed = "{{stats_socket}} {{write}} {{write_target}}\n";
        let unknown =
            render(&settings, &format!("{needed}bind {{{{wrte}}}}\n"), None).expect_err("unknown").to_string();
        assert!(unknown.starts_with("line 2: unknown placeholder {{wrte}}; known are name, cluster"), "{unknown}");
        let unclosed = render(&settings, &format!("{needed}a {{{{write\n"), None).expect_err("unclosed");
        assert_eq!(unclosed, TemplateError::Unclosed { line: 2 });
        let missing = render(&settings, "{{stats_socket}} {{write}}", None).expect_err("missing");
        assert_eq!(missing, TemplateError::Missing("write_target"));
    }
}
