//! Fills the configuration template. A placeholder that is unknown, or one that must be there and is not, is an error
//! that names it; HAProxy's own check comes after that.
//!
//! No file is read or written here.

use std::net::SocketAddr;
use std::time::Duration;

use super::HaproxySettings;
use crate::domain::ids::{Address, SiteName};
use crate::domain::traffic::Application;
use crate::ports::traffic::{Arrangement, ReadServer};

/// The template that is used unless the settings name another.
pub const BUILT_IN: &str = include_str!("../../../haproxy/haproxy.cfg.template");

/// Holds connections of the checked ports.
pub const WAIT_PRIMARY_LUA: &str = include_str!("../../../haproxy/wait_primary.lua");

/// An application's frontend, and below it `{{sites}}`.
const APPLICATION: &str = include_str!("../../../haproxy/application.cfg.template");

/// An application's backend while the primary is in one site.
const APPLICATION_SITE: &str = include_str!("../../../haproxy/application-site.cfg.template");

/// The key in the map whose value is the active site.
pub const MAP_KEY: &str = "active";

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
pub fn render(
    settings: &HaproxySettings,
    wanted: &Arrangement,
    template: &str,
    target: Option<SocketAddr>,
) -> Result<String, TemplateError> {
    let retries = (HOLD_LIMIT.as_millis() / settings.connect_timeout.as_millis().max(1)).max(1);
    let read_check = match wanted.read_max_lag_bytes {
        Some(limit) => format!("/replica?lag={limit}"),
        None => "/replica".to_owned(),
    };
    let values: Vec<(&'static str, String)> = vec![
        ("name", settings.name.to_string()),
        ("cluster", settings.cluster.to_string()),
        ("maxconn", settings.connections_max.to_string()),
        ("stats_socket", settings.stats_socket.display().to_string()),
        ("state_file", settings.state_file().display().to_string()),
        ("lua_file", settings.lua_file().display().to_string()),
        ("map_file", settings.map_file().display().to_string()),
        ("write", settings.write.to_string()),
        ("read", settings.read.to_string()),
        ("checked", settings.checked.to_string()),
        ("stats", settings.stats.to_string()),
        ("connect_timeout", format!("{}ms", settings.connect_timeout.as_millis().max(1))),
        ("retries", retries.to_string()),
        ("write_target", target.unwrap_or(HOLD).to_string()),
        ("primary_servers", nodes(settings, wanted, |_| String::new())),
        ("replica_servers", nodes(settings, wanted, |node| format!(" weight {}", node.weight))),
        ("read_check", read_check),
        ("applications", applications(settings, wanted)?),
    ];
    let required = ["stats_socket", "write", "write_target"].into_iter();
    // A template of one's own may do without applications until there are some.
    for required in required.chain((!wanted.applications.is_empty()).then_some("applications")) {
        if !template.contains(&format!("{{{{{required}}}}}")) {
            return Err(TemplateError::Missing(required));
        }
    }
    fill_all(template, &values)
}

/// The text without what the runtime API can change: two texts of one shape need no reload between them.
pub fn shape(text: &str) -> String {
    let mut shape = String::with_capacity(text.len());
    for line in text.lines() {
        let mut words = line.split_whitespace().peekable();
        let is_write_server = line.trim_start().starts_with("server primary ");
        while let Some(word) = words.next() {
            shape.push_str(word);
            shape.push(' ');
            let is_variable = word == "weight" || (is_write_server && word == "primary");
            if is_variable && words.next().is_some() {
                shape.push_str("* ");
            }
        }
        shape.push('\n');
    }
    shape
}

/// The same text with the write server leading to `target`.
pub fn retargeted(text: &str, target: Option<SocketAddr>) -> String {
    let line = |line: &str| match line.split_once("server primary ") {
        Some((before, after)) if before.trim().is_empty() => {
            let rest = after.split_once(char::is_whitespace).map(|(_, rest)| format!(" {rest}")).unwrap_or_default();
            format!("{before}server primary {}{rest}\n", target.unwrap_or(HOLD))
        }
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// What the map file holds: the one site that applications are served from first.
pub fn map(wanted: &Arrangement) -> String {
    wanted.active_site.as_ref().map(|site| format!("{MAP_KEY} {site}\n")).unwrap_or_default()
}

/// Frontend and backends of every application.
fn applications(settings: &HaproxySettings, wanted: &Arrangement) -> Result<String, TemplateError> {
    let mut text = String::new();
    for application in &wanted.applications {
        let sites = application.sites();
        let Some(first_site) = sites.first() else { continue };
        let mut blocks = String::new();
        for site in &sites {
            let values = [
                ("application", application.name.to_string()),
                ("site", site.to_string()),
                ("check", application.check.clone()),
                ("servers", application_servers(application, site)),
            ];
            blocks.push_str(&fill_all(APPLICATION_SITE, &values)?);
        }
        let values = [
            ("application", application.name.to_string()),
            ("listen", Address::new(settings.write.host.clone(), application.port).to_string()),
            ("map_file", settings.map_file().display().to_string()),
            ("first_site", first_site.to_string()),
            ("sites", blocks),
        ];
        text.push_str(&fill_all(APPLICATION, &values)?);
    }
    Ok(text)
}

/// Servers of `site`, checked here, and the others as backups, which are checked in the backend of their own site.
fn application_servers(application: &Application, site: &SiteName) -> String {
    let (own, other): (Vec<_>, Vec<_>) = application.servers.iter().partition(|server| server.site == *site);
    let own = own.into_iter().map(|server| format!("  server {} {} check", server.name, server.address));
    let other = other.into_iter().map(|server| {
        let checked_in = format!("app_{}_in_{}/{}", application.name, server.site, server.name);
        format!("  server {} {} track {checked_in} backup", server.name, server.address)
    });
    own.chain(other).collect::<Vec<_>>().join("\n")
}

fn fill_all(template: &str, values: &[(&'static str, String)]) -> Result<String, TemplateError> {
    let mut filled = String::with_capacity(template.len() * 2);
    for (index, line) in template.lines().enumerate() {
        fill(line, index + 1, values, &mut filled)?;
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

/// The lines of the nodes in a backend whose servers HAProxy checks itself.
fn nodes(settings: &HaproxySettings, wanted: &Arrangement, more: impl Fn(&ReadServer) -> String) -> String {
    let tls = match &settings.authorities {
        Some(file) => format!(" check-ssl verify required ca-file {}", file.display()),
        None => String::new(),
    };
    let line = |node: &ReadServer| {
        let Address { host, port } = &node.agent;
        format!("  server {} {} check addr {host} port {port}{tls}{}", node.node, node.address, more(node))
    };
    wanted.nodes.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrangement, settings};
    use super::*;

    #[test]
    fn the_built_in_template_is_filled_completely() {
        let settings = settings(std::path::Path::new("/run/stormglass"));
        let text = render(&settings, &arrangement(), BUILT_IN, None).expect("the built-in template is valid");
        assert!(!text.contains("{{"), "{text}");
        assert!(text.contains("  server primary 127.0.0.1:1\n"), "holds before the first primary: {text}");
        let text = render(&settings, &arrangement(), BUILT_IN, Some("[::1]:5432".parse().unwrap())).expect("valid");
        assert!(text.contains("  server primary [::1]:5432\n"), "{text}");
        assert!(text.contains("  server n1 10.0.0.1:5432 check addr 10.0.0.1 port 8008\n"), "{text}");
        assert!(text.contains("  server n1 10.0.0.1:5432 check addr 10.0.0.1 port 8008 weight 10\n"), "{text}");
        assert!(text.contains("GET /replica?lag=1000\n"), "{text}");
        let settings = HaproxySettings { authorities: Some("/etc/a.crt".into()), ..settings };
        let text = render(&settings, &arrangement(), BUILT_IN, None).expect("valid");
        let check =
            "  server n1 10.0.0.1:5432 check addr 10.0.0.1 port 8008 check-ssl verify required ca-file /etc/a.crt";
        assert!(text.contains(&format!("{check}\n")) && text.contains(&format!("{check} weight 10\n")), "{text}");
    }

    #[test]
    fn an_application_has_a_backend_for_each_site_with_the_other_sites_as_backups() {
        let settings = settings(std::path::Path::new("/run/stormglass"));
        let text = render(&settings, &arrangement(), BUILT_IN, None).expect("valid");
        let (_, east) = text.split_once("backend app_shop_in_east\n").expect("there is one for east");
        let (east, west) = east.split_once("backend app_shop_in_west\n").expect("there is one for west");
        assert!(east.contains("  server shop-1 10.0.1.1:8080 check\n"), "{east}");
        assert!(east.contains("  server shop-4 10.0.2.1:8080 track app_shop_in_west/shop-4 backup\n"), "{east}");
        assert!(west.contains("  server shop-4 10.0.2.1:8080 check\n"), "{west}");
        assert!(west.contains("  server shop-1 10.0.1.1:8080 track app_shop_in_east/shop-1 backup\n"), "{west}");
        assert!(text.contains("  bind 0.0.0.0:8080\n"), "on the write port's address: {text}");
        assert_eq!(map(&arrangement()), "active east\n");
        let without = render(&settings, &arrangement(), "{{stats_socket}} {{write}} {{write_target}}", None);
        assert_eq!(without, Err(TemplateError::Missing("applications")));
    }

    #[test]
    fn only_what_the_runtime_api_cannot_change_changes_the_shape() {
        let settings = settings(std::path::Path::new("/run/stormglass"));
        let text = |wanted: &Arrangement, target: Option<&str>| {
            render(&settings, wanted, BUILT_IN, target.map(|target| target.parse().unwrap())).expect("valid")
        };
        let first = text(&arrangement(), None);
        let mut other = arrangement();
        other.nodes[0].weight = 0;
        other.active_site = None;
        assert_ne!(first, text(&other, Some("10.0.0.9:1")));
        assert_eq!(shape(&first), shape(&text(&other, Some("10.0.0.9:1"))));
        assert_eq!(retargeted(&first, Some("10.0.0.9:1".parse().unwrap())), text(&arrangement(), Some("10.0.0.9:1")));
        other.applications[0].servers.pop();
        assert_ne!(shape(&first), shape(&text(&other, None)));
        let mut moved = arrangement();
        moved.nodes[0].address.port += 1;
        assert_ne!(shape(&first), shape(&text(&moved, None)));
    }

    #[test]
    fn errors_name_the_placeholder_and_the_line() {
        let settings = settings(std::path::Path::new("/run/stormglass"));
        let render = |text: &str| render(&settings, &Arrangement::default(), text, None);
        let needed = "{{stats_socket}} {{write}} {{write_target}}\n";
        let unknown = render(&format!("{needed}bind {{{{wrte}}}}\n")).expect_err("unknown").to_string();
        assert!(unknown.starts_with("line 2: unknown placeholder {{wrte}}; known are name, cluster"), "{unknown}");
        let unclosed = render(&format!("{needed}a {{{{write\n")).expect_err("unclosed");
        assert_eq!(unclosed, TemplateError::Unclosed { line: 2 });
        let missing = render("{{stats_socket}} {{write}}").expect_err("missing");
        assert_eq!(missing, TemplateError::Missing("write_target"));
    }
}
