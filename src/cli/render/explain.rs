//! `explain`: what the controller would do now, and why every node could or could not be promoted.

use super::{Cell, Look, Table, Tone, plan, risk, tabbed, words};
use crate::api::wire::{Explanation, NodeExplanation};

/// The whole cluster.
pub fn render(explanation: &Explanation, look: Look) -> String {
    if !look.terminal {
        let intent = plan::intent(&explanation.plan.intent);
        let mut text = tabbed(["plan", &intent, &words::reasons(&explanation.plan.reasons, None)]);
        for reason in &explanation.plan.blocked_by {
            text.push_str(&tabbed(["blocked", &reason.to_string()]));
        }
        for reason in &explanation.witnesses {
            text.push_str(&tabbed(["witness", &reason.to_string()]));
        }
        for node in &explanation.nodes {
            text.push_str(&piped_node(node));
        }
        return text;
    }
    let mut text = format!("Cluster  {}\n", explanation.cluster);
    text.push_str(&format!("Now      {}\n", plan::intent(&explanation.plan.intent)));
    text.push_str(&block("Because", &explanation.plan.reasons, look, Tone::Plain));
    text.push_str(&block("Blocked", &explanation.plan.blocked_by, look, Tone::Warning));
    text.push_str(&block("Seen", &explanation.witnesses, look, Tone::Plain));
    text.push_str("\nIf the primary were lost now:\n");
    let mut nodes: Vec<&NodeExplanation> = explanation.nodes.iter().collect();
    nodes.sort_by_key(|node| (node.rank.unwrap_or(u32::MAX), node.node.clone()));
    let mut table = Table::new(&[">RANK", "NODE", "PROMOTE", "WHY"]);
    for node in nodes {
        for (index, reason) in node.reasons.iter().enumerate() {
            let first = index == 0;
            table.row(vec![
                if first { rank(node).into() } else { "".into() },
                if first { node.node.as_str().into() } else { "".into() },
                if first { promotable(node) } else { "".into() },
                words::reason(reason, Some(&node.node)).into(),
            ]);
        }
        if node.reasons.is_empty() {
            table.row(vec![rank(node).into(), node.node.as_str().into(), promotable(node), "-".into()]);
        }
    }
    text + &table.render(look)
}

/// One node.
pub fn node(explanation: &NodeExplanation, look: Look) -> String {
    if !look.terminal {
        let mut text = piped_node(explanation);
        if let Some(outlook) = &explanation.outlook {
            text.push_str(&risk::piped(outlook));
        }
        return text;
    }
    let verdict = match (explanation.promotable, explanation.rank) {
        (true, Some(rank)) => format!("could be promoted if the primary were lost now (rank {rank})"),
        (true, None) => "could be promoted if the primary were lost now".to_owned(),
        (false, _) => "would not be promoted if the primary were lost now".to_owned(),
    };
    let tone = if explanation.promotable { Tone::Good } else { Tone::Warning };
    let mut text = format!("Node     {}: {}\n", explanation.node, look.paint(tone, &verdict));
    for (index, reason) in explanation.reasons.iter().enumerate() {
        let label = if index == 0 { "Because" } else { "" };
        text.push_str(&format!("{label:<8} {}\n", words::reason(reason, Some(&explanation.node))));
    }
    if let Some(outlook) = &explanation.outlook {
        text.push_str(&risk::node(outlook, look));
    }
    text
}

fn block(label: &str, reasons: &[crate::domain::plan::Reason], look: Look, tone: Tone) -> String {
    let mut text = String::new();
    for (index, reason) in reasons.iter().enumerate() {
        let label = if index == 0 { label } else { "" };
        text.push_str(&format!("{label:<8} {}\n", look.paint(tone, &reason.to_string())));
    }
    text
}

fn rank(node: &NodeExplanation) -> String {
    node.rank.map_or_else(|| "-".to_owned(), |rank| rank.to_string())
}

fn promotable(node: &NodeExplanation) -> Cell {
    if node.promotable { Cell::toned("yes", Tone::Good) } else { Cell::toned("no", Tone::Warning) }
}

fn piped_node(node: &NodeExplanation) -> String {
    let verdict = if node.promotable { "yes" } else { "no" };
    tabbed(["node", node.node.as_str(), verdict, &rank(node), &words::reasons(&node.reasons, Some(&node.node))])
}
