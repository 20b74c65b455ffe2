//! Channels of notifications as text.

use super::{Cell, Look, Table, Tone, tabbed};
use crate::api::notifications::ChannelDocument;

/// Every channel.
pub fn list(channels: &[ChannelDocument], look: Look) -> String {
    if !look.terminal {
        let row =
            |channel: &ChannelDocument| tabbed([channel.name.as_str(), &channel.kind, &told(channel), &state(channel)]);
        return channels.iter().map(row).collect();
    }
    if channels.is_empty() {
        return "Nobody is told anything: there is no [[notification]] in the controller's configuration.\n".to_owned();
    }
    let mut table = Table::new(&["CHANNEL", "KIND", "TOLD", "STATE"]);
    for channel in channels {
        let tone = if channel.problem.is_some() { Tone::Warning } else { Tone::Plain };
        table.row(vec![
            channel.name.as_str().into(),
            channel.kind.as_str().into(),
            told(channel).into(),
            Cell::toned(state(channel), tone),
        ]);
    }
    table.render(look)
}

fn told(channel: &ChannelDocument) -> String {
    channel.on.iter().map(|kind| kind.label()).collect::<Vec<_>>().join(" ")
}

fn state(channel: &ChannelDocument) -> String {
    match (&channel.problem, channel.last_sent) {
        (Some(problem), _) => format!("fails: {problem}"),
        (None, Some(at)) => format!("sent at {at}"),
        (None, None) => "nothing was sent yet".to_owned(),
    }
}
