//! `doctor`: every check with its verdict, the score, and what to run next.

use super::{Cell, Look, Table, Tone, tabbed};
use crate::domain::readiness::{Readiness, Verdict};

/// The whole examination. Without `-v` what does not apply is left out.
pub fn render(readiness: &Readiness, look: Look) -> String {
    if !look.terminal {
        let rows = readiness.checks.iter().map(|check| {
            let subject = check.subject.as_deref().unwrap_or("-");
            let next = check.next.as_deref().unwrap_or("-");
            tabbed([check.check.as_str(), subject, check.verdict.label(), &check.detail, next])
        });
        return rows.collect();
    }
    let (tone, verdict) = match readiness.worst() {
        Verdict::Failing => (Tone::Bad, "the next fault may not be survived"),
        Verdict::Warning => (Tone::Warning, "the next fault is survived, with a smaller margin than possible"),
        Verdict::Ok | Verdict::NotApplicable => (Tone::Good, "the next fault is survived"),
    };
    let mut text = format!(
        "Cluster    {}\nReadiness  {:.0} %: {}\n\n",
        readiness.cluster,
        readiness.score * 100.0,
        look.paint(tone, verdict)
    );
    let mut table = Table::new(&["CHECK", "OF", "VERDICT", "FOUND"]);
    let mut next: Vec<&str> = Vec::new();
    for check in &readiness.checks {
        if check.verdict == Verdict::NotApplicable && !look.verbose {
            continue;
        }
        let (word, tone) = match check.verdict {
            Verdict::NotApplicable => ("-", Tone::Faint),
            Verdict::Ok => ("OK", Tone::Good),
            Verdict::Warning => ("warning", Tone::Warning),
            Verdict::Failing => ("failing", Tone::Bad),
        };
        let subject = check.subject.as_deref().unwrap_or("-");
        table.row(vec![
            check.check.replace('_', " ").into(),
            subject.into(),
            Cell::toned(word, tone),
            check.detail.as_str().into(),
        ]);
        next.extend(check.next.as_deref().filter(|one| !next.contains(one)).into_iter().collect::<Vec<_>>());
    }
    text.push_str(&table.render(look));
    for (index, command) in next.iter().enumerate() {
        text.push_str(if index == 0 { "\nNext       " } else { "           " });
        text.push_str(command);
        text.push('\n');
    }
    text
}
