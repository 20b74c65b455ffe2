//! The clusters that a controller keeps, and what one is configured as, as text.

use super::{Cell, Look, Table, Tone, tabbed};
use crate::api::clusters::ClusterDefinition;
use crate::api::wire::{ClusterStatus, Health};

/// Every cluster.
pub fn list(all: &[ClusterStatus], look: Look) -> String {
    let mut table = Table::new(&["CLUSTER", "HEALTH", "PRIMARY", ">EPOCH", ">NODES", "AUTOMATION"]);
    for one in all {
        let tone = match one.health {
            Health::Healthy => Tone::Good,
            Health::Degraded => Tone::Warning,
            Health::NoPrimary => Tone::Bad,
            Health::Unknown => Tone::Plain,
        };
        table.row(vec![
            one.cluster.as_str().into(),
            Cell::toned(one.health.words(), tone),
            one.primary.as_ref().map_or("-", |node| node.as_str()).into(),
            if one.epoch == 0 { "-".to_owned() } else { one.epoch.to_string() }.into(),
            one.nodes.len().to_string().into(),
            if one.automation { "on" } else { "paused" }.into(),
        ]);
    }
    table.render(look)
}

/// One definition.
pub fn show(definition: &ClusterDefinition, look: Look) -> String {
    let sites: Vec<&str> = definition.sites.iter().map(|site| site.as_str()).collect();
    let mut lines = vec![
        ("cluster", definition.cluster.to_string()),
        ("file", definition.file.clone()),
        ("store", definition.store.clone()),
        ("sites", sites.join(" ")),
    ];
    let nodes = definition.nodes.iter().map(|node| ("node", format!("{} {} {}", node.name, node.site, node.agent)));
    let proxies = definition.proxies.iter().map(|one| ("proxy", format!("{} {} {}", one.name, one.site, one.agent)));
    lines.extend(nodes.chain(proxies));
    let mut settings = Vec::new();
    flatten("", &definition.policy, &mut settings);
    lines.extend(settings.into_iter().map(|(key, value)| ("policy", format!("{key} = {value}"))));
    if !look.terminal {
        return lines.iter().map(|(label, line)| tabbed([*label, line.as_str()])).collect();
    }
    let mut text = String::new();
    let mut last = "";
    for (label, line) in &lines {
        let shown = if *label == last { "" } else { *label };
        text.push_str(&format!("{} {line}\n", look.paint(Tone::Faint, &format!("{shown:<8}"))));
        last = label;
    }
    text
}

/// Every setting with its path, in the order of the document.
fn flatten(path: &str, value: &serde_json::Value, lines: &mut Vec<(String, String)>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, value, lines);
            }
        }
        serde_json::Value::String(text) => lines.push((path.to_owned(), text.clone())),
        other => lines.push((path.to_owned(), other.to_string())),
    }
}
