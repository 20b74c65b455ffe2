//! The part of [`super::doctor`] that looks beyond PostgreSQL: backups, names, certificates, controllers, sequences, stacks.
//!
//! Judges facts that the shell gathered; what is not configured is said to be, and never called good.

use std::time::Duration;

use super::doctor::{Patient, of};
use crate::domain::backup::Continuity;
use crate::domain::certificate::{CertificateFacts, Protection};
use crate::domain::clock::WallTime;
use crate::domain::readiness::{Check, Verdict};

/// A drill older than this proves little about today's repository.
const DRILL_AGE: Duration = Duration::from_secs(31 * 86_400);
/// A certificate that ends sooner is renewed now: later it falls into somebody's holidays.
const EXPIRY_NEAR: Duration = Duration::from_secs(30 * 86_400);

/// Where a certificate is that is read at start only.
const OF_STORE: &str = "this controller's [store]";

pub(super) fn backups(patient: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "backup";
    let Some(facts) = &patient.circumstances.backup else {
        return vec![of(
            NAME,
            Verdict::Warning,
            "not configured: a dropped table or a lost site cannot be brought back",
        )];
    };
    if let Some(failure) = &facts.last_failure {
        let detail = format!("the last one failed: {failure}");
        return vec![of(NAME, Verdict::Failing, detail).then(patient.command("backup"))];
    }
    let Some(last) = facts.last_success else {
        return vec![of(NAME, Verdict::Failing, "there is none yet").then(patient.command("backup"))];
    };
    let age = since(patient.view.wall, last);
    let objective = facts.objective_seconds.map(Duration::from_secs);
    vec![match objective {
        Some(objective) if age > objective => {
            let detail = format!("the last one is of {last}, older than the objective of {} s", objective.as_secs());
            of(NAME, Verdict::Failing, detail).then(patient.command("backup"))
        }
        _ => of(NAME, Verdict::Ok, format!("the last one is of {last}")),
    }]
}

/// Whether the repository answers, and whether its WAL can be followed from the newest backup.
pub(super) fn repository(patient: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "repository";
    const WAL: &str = "archived_wal";
    let Some(facts) = &patient.circumstances.backup else {
        return vec![of(NAME, Verdict::NotApplicable, "no backup is configured")];
    };
    let next = patient.command("backups");
    let found = match &facts.repository {
        None => return vec![of(NAME, Verdict::NotApplicable, "it was not looked at yet")],
        Some(Err(problem)) => return vec![of(NAME, Verdict::Failing, problem.clone()).then(next)],
        Some(Ok(found)) => found,
    };
    if found.backups == 0 {
        return vec![of(NAME, Verdict::Failing, "it answers, and holds no backup").then(patient.command("backup"))];
    }
    let wal = match &found.continuity {
        Continuity::Whole => of(WAL, Verdict::Ok, "it goes on without a gap from the newest backup"),
        Continuity::Unknown => of(WAL, Verdict::Warning, "nobody could tell in time whether it has a gap").then(next),
        // A new backup begins behind the gap.
        Continuity::Broken { problem } => of(WAL, Verdict::Failing, problem.clone()).then(patient.command("backup")),
    };
    vec![of(NAME, Verdict::Ok, format!("it answers, and holds {} backups", found.backups)), wal]
}

pub(super) fn drills(patient: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "drill";
    let Some(facts) = &patient.circumstances.backup else {
        return vec![of(NAME, Verdict::NotApplicable, "no backup is configured")];
    };
    if let Some(failure) = &facts.last_drill_failure {
        let detail = format!("the last one failed: {failure}");
        return vec![of(NAME, Verdict::Failing, detail).then(patient.command("drill"))];
    }
    vec![match facts.last_drill {
        Some(last) if since(patient.view.wall, last) > DRILL_AGE => {
            let detail = format!("the last one is of {last}, more than a month ago");
            of(NAME, Verdict::Warning, detail).then(patient.command("drill"))
        }
        Some(last) => of(NAME, Verdict::Ok, format!("a restore was proven at {last}")),
        None => of(NAME, Verdict::Warning, "no restore was ever proven").then(patient.command("drill")),
    }]
}

fn since(now: WallTime, then: WallTime) -> Duration {
    if now > then { now.since(then) } else { Duration::ZERO }
}

pub(super) fn names(patient: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "dns";
    let Some(facts) = &patient.circumstances.names else {
        return vec![of(NAME, Verdict::NotApplicable, "no name is configured that follows the primary")];
    };
    vec![match &facts.problem {
        Some(problem) => of(NAME, Verdict::Failing, problem.clone()).then(patient.command("status")),
        None if Duration::from_secs(facts.ttl_seconds.into()) > patient.policy.rto => {
            let detail = format!(
                "clients may keep an old answer for {} s, longer than failover.rto = {:.0} s: lower dns.ttl, or count it on top",
                facts.ttl_seconds,
                patient.policy.rto.as_secs_f64()
            );
            of(NAME, Verdict::Warning, detail)
        }
        None => of(NAME, Verdict::Ok, format!("an old answer is kept for {} s at most", facts.ttl_seconds)),
    }]
}

/// Every process whose port others reach, with how that is protected. Authorities are named with where they count.
fn protections<'a>(patient: &'a Patient<'_>) -> Vec<(String, &'a Protection)> {
    let nodes = patient.view.nodes.values().map(|node| (&node.report, node.node.to_string()));
    let nodes = nodes.filter_map(|(report, name)| Some((name, report.last_heard()?.protection.as_ref()?)));
    let proxies = patient.view.proxies.values().map(|proxy| (&proxy.report, proxy.proxy.to_string()));
    let proxies = proxies.filter_map(|(report, name)| Some((name, report.last_heard()?.protection.as_ref()?)));
    let own = std::iter::once(("this controller".to_owned(), &patient.circumstances.protection));
    own.chain(nodes).chain(proxies).collect()
}

pub(super) fn transport(patient: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "transport";
    let found = protections(patient);
    let open: Vec<Check> = found
        .iter()
        .filter(|(_, protection)| **protection == Protection::Insecure)
        .map(|(name, _)| {
            let detail =
                "listens without TLS (insecure = true): whoever is on the way reads its token and can command it";
            of(NAME, Verdict::Warning, detail)
                .about(name)
                .then(Some("stormglass pki issue, then [tls] in its configuration".to_owned()))
        })
        .collect();
    if !open.is_empty() {
        return open;
    }
    let tls = found.iter().filter(|(_, protection)| matches!(protection, Protection::Tls { .. })).count();
    vec![match tls {
        0 => of(NAME, Verdict::NotApplicable, "every port that says so is reached from its own host only"),
        _ => of(
            NAME,
            Verdict::Ok,
            format!("{tls} of {} ports speak TLS, and no other is open to the network", found.len()),
        ),
    }]
}

pub(super) fn certificates(patient: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "certificates";
    let found = protections(patient);
    let store = patient.circumstances.store_certificates.iter().map(|facts| (OF_STORE, facts));
    let all: Vec<(&str, &CertificateFacts)> = found
        .iter()
        .flat_map(|(place, protection)| protection.certificates().iter().map(move |facts| (place.as_str(), facts)))
        .chain(store)
        .collect();
    let Some((_, first)) = all.iter().min_by_key(|(_, facts)| facts.expires) else {
        return vec![of(NAME, Verdict::NotApplicable, "none is configured")];
    };
    let name = |facts: &CertificateFacts| facts.subject.split(' ').next_back().unwrap_or_default().to_owned();
    let one = |(place, facts): &(&str, &CertificateFacts)| {
        let verdict = match facts.expires.since(patient.view.wall) {
            Duration::ZERO => Verdict::Failing,
            left if left < EXPIRY_NEAR => Verdict::Warning,
            _ => return None,
        };
        let detail = match verdict {
            Verdict::Failing => format!("ended at {}: new connections with it are refused", facts.expires),
            _ => format!("ends at {}", facts.expires),
        };
        let (subject, renew) = match facts.subject.strip_prefix("authority ") {
            Some(_) => (format!("{} on {place}", facts.subject), "--authority".to_owned()),
            None if *place == OF_STORE => (format!("{} for {place}", facts.subject), name(facts)),
            None => (facts.subject.clone(), name(facts)),
        };
        Some(of(NAME, verdict, detail).about(subject).then(Some(format!("stormglass pki rotate {renew}"))))
    };
    let near: Vec<Check> = all.iter().filter_map(one).collect();
    if near.is_empty() {
        let detail =
            format!("{} in use, the first to end is that of {}, at {}", all.len(), first.subject, first.expires);
        return vec![of(NAME, Verdict::Ok, detail)];
    }
    near
}

pub(super) fn controllers(patient: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "controllers";
    if !patient.circumstances.has_election {
        let detail =
            "one controller with an embedded store: writes go on without it, and nobody fails over while it is down";
        return vec![of(NAME, Verdict::Warning, detail)];
    }
    vec![match patient.view.leads_for {
        Some(left) if left > patient.policy.timers.lease => {
            let detail =
                format!("this one leads, for another {:.1} s at least, and others can follow", left.as_secs_f64());
            of(NAME, Verdict::Ok, detail)
        }
        Some(left) => {
            let detail = format!("the store confirms this leadership for {:.1} s only: it is slow", left.as_secs_f64());
            of(NAME, Verdict::Warning, detail)
        }
        None => of(NAME, Verdict::Ok, "this one leads"),
    }]
}

pub(super) fn sequences(patient: &Patient<'_>) -> Vec<Check> {
    let names = &patient.circumstances.sequences_after_failover;
    if names.is_empty() {
        return vec![of("restore_sequence", Verdict::NotApplicable, "none is configured to follow a failover")];
    }
    vec![of("restore_sequence", Verdict::Ok, format!("after a failover: {}", names.join(", ")))]
}

pub(super) fn stacks(patient: &Patient<'_>) -> Vec<Check> {
    let one = |facts: &crate::domain::readiness::StackFacts| {
        let check =
            |verdict, detail: &str| Check { subject: Some(facts.name.clone()), ..of("stacks", verdict, detail) };
        let plan = Some(format!("terraform -chdir={} plan", facts.name));
        match &facts.drift {
            Ok(false) => check(Verdict::Ok, "what is there is what is described"),
            Ok(true) => check(Verdict::Warning, "what is there differs from what is described").then(plan),
            Err(why) => check(Verdict::Warning, &format!("could not be compared: {why}")).then(plan),
        }
    };
    patient.circumstances.stacks.iter().map(one).collect()
}

pub(super) fn channels(patient: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "notifications";
    if patient.circumstances.channels.is_empty() {
        return vec![of(NAME, Verdict::NotApplicable, "none is configured")];
    }
    let one = |facts: &crate::domain::readiness::ChannelFacts| {
        let check = |verdict, detail| Check { subject: Some(facts.name.clone()), ..of(NAME, verdict, detail) };
        match &facts.problem {
            None => check(Verdict::Ok, "nothing is known against it".to_owned()),
            Some(problem) => check(Verdict::Warning, format!("its last message did not go out: {problem}"))
                .then(Some(format!("stormglass notification test {}", facts.name))),
        }
    };
    patient.circumstances.channels.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::tests::{policy, record, view};
    use crate::domain::readiness::{BackupFacts, Circumstances, RepositoryFacts};

    fn found(repository: Option<Result<RepositoryFacts, String>>) -> Vec<(String, Verdict)> {
        let (view, policy) = (view(&record()), policy());
        let backup = Some(BackupFacts { repository, ..BackupFacts::default() });
        let circumstances = Circumstances { backup, ..Circumstances::default() };
        let patient =
            Patient { cluster: "main", view: &view, policy: &policy, operations: &[], circumstances: &circumstances };
        repository_of(&patient)
    }

    fn repository_of(patient: &Patient<'_>) -> Vec<(String, Verdict)> {
        repository(patient).into_iter().map(|check| (check.check, check.verdict)).collect()
    }

    #[test]
    fn a_repository_that_does_not_answer_and_a_gap_in_its_wal_are_failing() {
        let one = |name: &str, verdict| vec![(name.to_owned(), verdict)];
        let holds = |backups, continuity| Some(Ok(RepositoryFacts { backups, continuity }));
        let with_wal = |verdict| [one("repository", Verdict::Ok), one("archived_wal", verdict)].concat();
        let broken = Continuity::Broken { problem: "segment 5 is missing".to_owned() };
        assert_eq!(found(None), one("repository", Verdict::NotApplicable));
        assert_eq!(found(Some(Err("out of reach".to_owned()))), one("repository", Verdict::Failing));
        assert_eq!(found(holds(0, Continuity::Unknown)), one("repository", Verdict::Failing));
        assert_eq!(found(holds(2, Continuity::Whole)), with_wal(Verdict::Ok));
        assert_eq!(found(holds(2, Continuity::Unknown)), with_wal(Verdict::Warning));
        assert_eq!(found(holds(2, broken)), with_wal(Verdict::Failing));
    }
}
