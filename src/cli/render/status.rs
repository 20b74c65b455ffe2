//! `status`: is it healthy, who is primary since when, can a node be lost, what is happening, what to do.

use super::{Cell, Look, Table, Tone, risk, tabbed, words};
use crate::api::wire::{ClusterStatus, Health, NameStatus, NodeStatus, ProxyStatus, ScheduledStatus};
use crate::domain::operation::StepState;
use crate::domain::traffic::TrafficReport;

/// The whole answer.
pub fn render(status: &ClusterStatus, look: Look) -> String {
    if !look.terminal {
        return piped(status);
    }
    let mut text = summary(status, look);
    text.push_str(&nodes(status, look).render(look));
    if !status.proxies.is_empty() {
        text.push('\n');
        text.push_str(&proxies(status, look).render(look));
        text.push('\n');
    }
    if let Some(name) = &status.name {
        let tone = if name.agrees { Tone::Good } else { Tone::Warning };
        text.push_str(&format!("Name     {}\n", look.paint(tone, &name_words(name))));
    }
    text.push_str(&failover_now(status));
    for operation in &status.operations {
        let doing = operation.journal.iter().rev().find(|event| event.state == StepState::Started);
        let doing = doing.map_or_else(String::new, |event| format!(", at {}", event.step));
        let began = words::span(status.at.since(operation.begun_wall));
        let what = words::operation(&operation.kind);
        let label = look.paint(Tone::Warning, "Running ");
        text.push_str(&format!(
            "{label} {what} ({}{doing}, for {began}, by {}). Next: stormglass operation watch {}\n",
            operation.status.label(),
            operation.origin,
            operation.id
        ));
    }
    for warning in &status.warnings {
        let next = warning.next.as_ref().map_or_else(String::new, |next| format!(". Next: {next}"));
        let message = warning.message.trim_end_matches('.');
        text.push_str(&format!("{} {message}{next}\n", look.paint(Tone::Warning, "Warning ")));
    }
    text
}

/// The lines above the table.
fn summary(status: &ClusterStatus, look: Look) -> String {
    let tone = match status.health {
        Health::Healthy => Tone::Good,
        Health::Degraded => Tone::Warning,
        Health::NoPrimary | Health::Unknown => Tone::Bad,
    };
    let primary = match &status.primary {
        Some(primary) => {
            let timeline = status.timeline.map_or_else(|| "?".to_owned(), |timeline| timeline.to_string());
            let since = status.primary_since.map_or_else(|| "?".to_owned(), |at| words::span(status.at.since(at)));
            format!("primary {primary} (timeline {timeline}, since {since})")
        }
        None if status.health == Health::Unknown => "primary unknown".to_owned(),
        None => "nobody accepts writes".to_owned(),
    };
    let automation = if status.automation {
        "automation on".to_owned()
    } else {
        let left = match status.paused_until {
            Some(until) => format!(" for {}, until {until}", words::span(until.since(status.at))),
            None => String::new(),
        };
        look.paint(Tone::Warning, &format!("automation paused{left}"))
    };
    let mut text = format!(
        "Cluster  {}   {}   {primary}   {automation}   {}\n",
        status.cluster,
        look.paint(tone, status.health.words()),
        promise(status, look),
    );
    if let Some(since) = status.alone_since {
        let held = words::span(status.at.since(since));
        let line =
            format!("Alone    commits have been confirmed by the primary alone for {held}: losing it loses them");
        text.push_str(&look.paint(Tone::Bad, &line));
        text.push('\n');
    }
    if let Some(scheduled) = &status.scheduled_switchover {
        let ScheduledStatus { at, to, site, asked_by } = scheduled;
        let to = to.as_ref().map_or_else(String::new, |to| format!(" to {to}"));
        let site = site.as_ref().map_or_else(String::new, |site| format!(" in site {site}"));
        let left = words::span(at.since(status.at));
        text.push_str(&format!("Planned  switchover{to}{site} at {at}, in {left}, asked for by {asked_by}\n"));
    }
    if let Some(leader) = &status.leader {
        text.push_str(&format!("Leader   controller {}, at {}\n", leader.name, leader.url));
    }
    if let Some(predictor) = &status.predictor {
        text.push_str(&risk::predictor(predictor, look));
    }
    if look.verbose {
        let timers = &status.timers;
        text.push_str(&format!(
            "Record   epoch {}, number {}, synchronous: {}, eligible: {}\n",
            status.epoch,
            status.record_number,
            names(&status.synchronous),
            names(&status.eligible),
        ));
        text.push_str(&format!(
            "Timers   rto {}s, lease {}s renewed every {}s within {}s, stop budget {}s, wait {}s\n",
            timers.rto_seconds,
            timers.lease_seconds,
            timers.renewal_interval_seconds,
            timers.request_timeout_seconds,
            timers.stop_budget_seconds,
            timers.wait_seconds,
        ));
        let kept = timers.rules.iter().map(|rule| ("Rule", &rule.statement, rule.holds));
        let outages = timers.outages.iter().map(|outage| ("Outage", &outage.statement, true));
        for (label, statement, is_good) in kept.chain(outages) {
            let line = format!("{label:<8} {statement}");
            let line = if is_good { line } else { look.paint(Tone::Bad, &line) };
            text.push_str(&format!("{line}\n"));
        }
        text.push_str(&format!("Answer   by {} at {}\n", status.controller, status.at));
    }
    text
}

/// What losing the primary now would cost.
fn promise(status: &ClusterStatus, look: Look) -> String {
    if status.health == Health::Unknown {
        return "RPO unknown".to_owned();
    }
    let synchronous = status.durability != "async";
    match (synchronous, status.eligible.is_empty()) {
        (true, false) => format!("RPO 0 ({}: {})", status.durability, names(&status.eligible)),
        (true, true) => {
            look.paint(Tone::Warning, &format!("RPO not 0 ({}: no standby holds every commit)", status.durability))
        }
        (false, _) => format!("RPO not 0 ({})", status.durability),
    }
}

fn names(nodes: &[crate::domain::ids::NodeName]) -> String {
    if nodes.is_empty() {
        return "nobody".to_owned();
    }
    nodes.iter().map(|node| node.as_str()).collect::<Vec<_>>().join(", ")
}

fn nodes(status: &ClusterStatus, look: Look) -> Table {
    let with_risk = status.predictor.is_some() || status.nodes.iter().any(|node| node.risk.is_some());
    let mut header = vec!["NODE", "SITE", "ROLE", "STATE", ">TLI", "REPLAY LSN", "LAG", "SYNC"];
    if look.verbose {
        header.extend(["FLUSH LSN", "ADDRESS", "LEASE"]);
    }
    if with_risk {
        header.push("RISK");
    }
    header.push("SEEN");
    let mut table = Table::new(&header);
    for node in &status.nodes {
        let is_primary = status.primary.as_ref() == Some(&node.name);
        let mut cells: Vec<Cell> = vec![
            node.name.as_str().into(),
            node.site.as_str().into(),
            role(node),
            state(node),
            known(node.timeline.map(|timeline| timeline.to_string())),
            known(node.replay_lsn.clone()),
            if is_primary { "-".into() } else { known(node.lag_bytes.map(words::bytes)) },
            sync(node, is_primary),
        ];
        if look.verbose {
            cells.push(known(node.flush_lsn.clone()));
            cells.push(known(node.address.as_ref().map(ToString::to_string)));
            let lease = node.lease_remaining_seconds.map(|left| words::span(words::seconds(left)));
            cells.push(lease.unwrap_or_else(|| "-".to_owned()).into());
        }
        if with_risk {
            cells.push(known(node.risk.map(|risk| format!("{:.0}%", risk * 100.0))));
        }
        let seen = node.seen_seconds.map_or_else(|| "never".to_owned(), |age| words::span(words::seconds(age)));
        cells.push(seen.into());
        table.row(cells);
    }
    table
}

fn known(value: Option<String>) -> Cell {
    match value {
        Some(value) => value.into(),
        None => Cell::toned("?", Tone::Faint),
    }
}

fn role(node: &NodeStatus) -> Cell {
    if node.role == "unknown" { Cell::toned("?", Tone::Faint) } else { node.role.as_str().into() }
}

fn state(node: &NodeStatus) -> Cell {
    let tone = match node.state.as_str() {
        "writable" | "streaming" => Tone::Good,
        "replaying" | "starting" | "rejoining" | "fenced" => Tone::Warning,
        _ => Tone::Bad,
    };
    Cell::toned(node.state.as_str(), tone)
}

fn sync(node: &NodeStatus, is_primary: bool) -> Cell {
    match &node.sync_state {
        _ if is_primary => "-".into(),
        Some(sync) => sync.as_str().into(),
        None => Cell::toned("?", Tone::Faint),
    }
}

fn proxies(status: &ClusterStatus, _look: Look) -> Table {
    let mut table = Table::new(&["PROXY", "SITE", "WRITES AT", "LEAD TO", "STATE"]);
    for proxy in &status.proxies {
        let tone = if proxy.agrees { Tone::Good } else { Tone::Bad };
        table.row(vec![
            proxy.name.as_str().into(),
            proxy.site.as_str().into(),
            known(proxy.write_address.as_ref().map(ToString::to_string)),
            known(proxy.write_target.as_ref().map(ToString::to_string)),
            Cell::toned(proxy_words(proxy), tone),
        ]);
    }
    table
}

fn proxy_words(proxy: &ProxyStatus) -> String {
    match (&proxy.error, proxy.agrees, &proxy.write_target) {
        (Some(error), _, _) => error.clone(),
        (None, true, _) => match proxy.traffic.as_ref().and_then(first_trouble) {
            Some(trouble) => format!("leads to the primary; {trouble}"),
            None => "leads to the primary".to_owned(),
        },
        (None, false, Some(_)) => "leads elsewhere".to_owned(),
        (None, false, None) => "leads nowhere".to_owned(),
    }
}

fn name_words(name: &NameStatus) -> String {
    let wanted = name.wanted.join(", ");
    match &name.error {
        None => format!("{} leads to {wanted} (site {}, for {} s)", name.name, name.site, name.ttl_seconds),
        Some(_) => format!("{} does not lead to {wanted} (site {}) yet", name.name, name.site),
    }
}

/// What an operator should know first of what is behind a proxy.
fn first_trouble(traffic: &TrafficReport) -> Option<String> {
    let drift = traffic.drift.first().cloned();
    let pooler = traffic.pooler.as_ref().and_then(|pooler| pooler.problem.clone());
    let down = traffic.applications.iter().find(|application| application.servers_up < application.servers);
    let down = down.map(|it| format!("{}: {} of {} servers up", it.name, it.servers_up, it.servers));
    drift.or(pooler).or(down)
}

/// One sentence: who would be promoted, and who would not.
fn failover_now(status: &ClusterStatus) -> String {
    let mut text = match &status.failover_now.candidate {
        Some(candidate) => {
            let behind = status.nodes.iter().find(|node| node.name == *candidate).and_then(|node| node.lag_bytes);
            let behind = behind.map_or_else(|| "lag unknown".to_owned(), |lag| format!("{} behind", words::bytes(lag)));
            format!("Failover now: would promote {candidate} ({behind}).")
        }
        None => {
            let why = words::reasons(&status.failover_now.reasons, None);
            let why = if why.is_empty() { String::new() } else { format!(": {why}") };
            format!("Failover now: would promote nobody{why}.")
        }
    };
    for node in &status.nodes {
        let passed_over = Some(&node.name) != status.failover_now.candidate.as_ref();
        let obstacle = node.assessment.iter().find(|reason| words::is_obstacle(reason.code));
        if let (true, false, Some(obstacle)) = (passed_over, status.primary.as_ref() == Some(&node.name), obstacle) {
            text.push_str(&format!(" {}: {}.", node.name, words::reason(obstacle, Some(&node.name))));
        }
    }
    text + "\n"
}

/// One record a line; the first field says which kind.
fn piped(status: &ClusterStatus) -> String {
    let text = |value: Option<String>| value.unwrap_or_else(|| "?".to_owned());
    let automation = match (status.automation, status.paused_until) {
        (true, _) => "on".to_owned(),
        (false, Some(until)) => format!("paused until {until}"),
        (false, None) => "paused".to_owned(),
    };
    let mut lines = tabbed([
        "cluster",
        status.cluster.as_str(),
        status.health.words(),
        status.primary.as_ref().map_or("-", |primary| primary.as_str()),
        &text(status.timeline.map(|timeline| timeline.to_string())),
        &text(status.primary_since.map(|at| at.to_string())),
        &automation,
        &status.durability,
        &status.epoch.to_string(),
        &status.at.to_string(),
    ]);
    if let Some(scheduled) = &status.scheduled_switchover {
        let to = scheduled.to.as_ref().map_or("-", |to| to.as_str());
        let site = scheduled.site.as_deref().unwrap_or("-");
        lines.push_str(&tabbed(["scheduled", &scheduled.at.to_string(), to, site, &scheduled.asked_by]));
    }
    if let Some(leader) = &status.leader {
        lines.push_str(&tabbed(["leader", leader.name.as_str(), &leader.url]));
    }
    for node in &status.nodes {
        let is_primary = status.primary.as_ref() == Some(&node.name);
        let not_for_primary =
            |value: Option<String>| if is_primary { "-".to_owned() } else { value.unwrap_or_else(|| "?".to_owned()) };
        lines.push_str(&tabbed([
            "node",
            node.name.as_str(),
            &node.site,
            if node.role == "unknown" { "?" } else { &node.role },
            &node.state,
            &text(node.timeline.map(|timeline| timeline.to_string())),
            &text(node.replay_lsn.clone()),
            &not_for_primary(node.lag_bytes.map(|lag| lag.to_string())),
            &not_for_primary(node.sync_state.clone()),
            &node.risk.map_or_else(|| "-".to_owned(), |risk| risk.to_string()),
            &node.seen_seconds.map_or_else(|| "never".to_owned(), |seen| seen.to_string()),
        ]));
    }
    for proxy in &status.proxies {
        lines.push_str(&tabbed([
            "proxy",
            &proxy.name,
            &proxy.site,
            &text(proxy.write_address.as_ref().map(ToString::to_string)),
            &text(proxy.write_target.as_ref().map(ToString::to_string)),
            &proxy_words(proxy),
        ]));
    }
    if let Some(name) = &status.name {
        let state = name.error.as_deref().unwrap_or("leads there");
        lines.push_str(&tabbed(["name", &name.name, &name.site, &name.wanted.join(","), state]));
    }
    lines.push_str(&tabbed([
        "failover",
        status.failover_now.candidate.as_ref().map_or("-", |node| node.as_str()),
        &words::reasons(&status.failover_now.reasons, None),
    ]));
    for operation in &status.operations {
        lines.push_str(&tabbed([
            "operation",
            &operation.id.0,
            &words::operation(&operation.kind),
            operation.status.label(),
            &operation.begun_wall.to_string(),
        ]));
    }
    for warning in &status.warnings {
        lines.push_str(&tabbed(["warning", &warning.message, warning.next.as_deref().unwrap_or("-")]));
    }
    lines
}

/// The status without what changes all the time: two equal lines mean that nothing happened.
pub fn change_line(status: &ClusterStatus) -> String {
    let nodes: Vec<String> =
        status.nodes.iter().map(|node| format!("{}={}/{}", node.name, node.role, node.state)).collect();
    let operations: Vec<String> = status
        .operations
        .iter()
        .map(|operation| format!("{} {}", words::operation(&operation.kind), operation.status.label()))
        .collect();
    let fields = [
        status.cluster.clone(),
        status.health.words().to_owned(),
        status.primary.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
        format!("epoch {}", status.epoch),
        if status.automation { "automation on" } else { "automation paused" }.to_owned(),
        nodes.join(" "),
        if operations.is_empty() { "-".to_owned() } else { operations.join(", ") },
    ];
    fields.join("\t")
}
