//! [`IncidentReport`] as Markdown, for tickets and post-mortems. Adds nothing to what the report says.

use std::fmt::Write as _;

use super::incident::IncidentReport;

impl IncidentReport {
    /// The whole report.
    pub fn to_markdown(&self) -> String {
        let mut text = format!("# Incident: {} in {}\n\n", self.title, self.cluster);
        self.summary(&mut text);
        list(&mut text, "Why", &self.reasons);
        self.timeline(&mut text);
        self.said(&mut text);
        self.journal(&mut text);
        self.aftermath(&mut text);
        text
    }

    fn summary(&self, text: &mut String) {
        let epoch = match self.epoch_after {
            Some(after) => format!("{} → {after}", self.epoch_before),
            None => self.epoch_before.to_string(),
        };
        let lost = self.lost_bytes.map_or_else(|| "not known".to_owned(), |bytes| format!("{bytes} bytes"));
        let mut rows = vec![
            ("operation", format!("`{}`", self.operation)),
            ("outcome", self.status.label().to_owned()),
            ("begun by", self.origin.clone()),
            ("began", self.began.to_string()),
            ("ended", self.ended.map_or_else(|| "-".to_owned(), |at| at.to_string())),
            ("epoch", epoch),
            ("time without writes (RTO)", spent(self.rto_seconds)),
            ("data lost (RPO)", format!("{lost}: {}", self.loss)),
            ("until redundant again", spent(self.redundancy_seconds)),
        ];
        rows.extend(self.last_commit_kept.map(|at| ("last commit kept", at.to_string())));
        rows.extend(self.last_commit_lost.map(|at| ("last commit lost", at.to_string())));
        let risk = |risk: Option<f64>| risk.map(|risk| format!("{:.0} %", risk * 100.0));
        rows.extend(risk(self.risk_before).map(|risk| ("risk before", risk)));
        rows.extend(risk(self.risk_after).map(|risk| ("risk after", risk)));
        rows.extend(self.message.clone().map(|message| ("message", message)));
        rows.extend(self.left_behind.clone().map(|left| ("left behind", left)));
        table(text, &["", ""], rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]));
    }

    fn timeline(&self, text: &mut String) {
        heading(text, "Where the time went");
        let rows = self
            .phases
            .iter()
            .map(|phase| vec![phase.phase.clone(), format!("+{:.3} s", phase.began_seconds), spent(phase.seconds)]);
        table(text, &["phase", "began", "took"], rows);
    }

    fn said(&self, text: &mut String) {
        if self.witnesses.is_empty() {
            return;
        }
        heading(text, "What the witnesses said");
        let rows = self.witnesses.iter().map(|said| {
            let who = format!("{} {}", said.witness, said.source);
            vec![
                said.wall.to_string(),
                said.occasion.label().to_owned(),
                who,
                said.node.to_string(),
                said.statement.clone(),
            ]
        });
        table(text, &["when", "occasion", "witness", "about", "statement"], rows);
    }

    fn journal(&self, text: &mut String) {
        heading(text, "What was done");
        let rows = self.steps.iter().map(|line| {
            let step =
                if line.attempt > 1 { format!("{} (attempt {})", line.step, line.attempt) } else { line.step.clone() };
            let detail = line.detail.clone().unwrap_or_else(|| "-".to_owned());
            vec![format!("+{:.3} s", line.at_seconds), step, line.state.clone(), spent(line.seconds), detail]
        });
        table(text, &["at", "step", "state", "took", "detail"], rows);
    }

    fn aftermath(&self, text: &mut String) {
        if !self.followed_by.is_empty() {
            heading(text, "What followed");
            let rows = self.followed_by.iter().map(|other| {
                let detail = other.detail.clone().unwrap_or_else(|| "-".to_owned());
                vec![other.title.clone(), other.status.label().to_owned(), spent(other.seconds), detail]
            });
            table(text, &["operation", "outcome", "took", "detail"], rows);
        }
        if !self.restore_sequence.is_empty() {
            heading(text, "Restore sequence");
            let rows = self.restore_sequence.iter().map(|line| {
                let detail = line.detail.clone().unwrap_or_else(|| "-".to_owned());
                vec![line.step.clone(), line.outcome.clone(), spent(line.seconds), detail]
            });
            table(text, &["step", "outcome", "took", "detail"], rows);
        }
    }
}

fn heading(text: &mut String, words: &str) {
    write!(text, "\n## {words}\n\n").expect("a string takes everything");
}

fn list(text: &mut String, words: &str, items: &[String]) {
    if items.is_empty() {
        return;
    }
    heading(text, words);
    for item in items {
        writeln!(text, "- {}", item.replace('\n', " ")).expect("a string takes everything");
    }
}

fn table(text: &mut String, header: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|").replace(['\n', '\r'], " ")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    text.push_str(&line(&header.iter().map(|title| (*title).to_owned()).collect::<Vec<_>>()));
    text.push_str(&format!("|{}\n", "---|".repeat(header.len())));
    for row in rows {
        text.push_str(&line(&row));
    }
}

fn spent(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.3} s"))
}
