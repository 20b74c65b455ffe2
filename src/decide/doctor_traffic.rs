//! The part of [`super::doctor`] that looks at what proxies serve beside the write port: drift, applications, PgBouncer.
//!
//! Judges what the proxies' agents reported; an agent that says nothing of it is no finding.

use super::doctor::{Patient, of};
use crate::domain::readiness::{Check, Verdict};
use crate::domain::traffic::{ApplicationReport, TrafficReport};

/// One line for each proxy, and one for each application that its servers leave in trouble.
pub(super) fn backends(patient: &Patient<'_>) -> Vec<Check> {
    let next = patient.command("status");
    let known = patient.view.proxies.iter().filter_map(|(name, proxy)| Some((name, proxy.report.known()?)));
    let with_traffic = known.filter_map(|(name, report)| Some((name, report.traffic.as_ref()?)));
    with_traffic.flat_map(|(name, traffic)| of_proxy(name.as_str(), traffic, next.as_ref())).collect()
}

fn of_proxy(proxy: &str, traffic: &TrafficReport, next: Option<&String>) -> Vec<Check> {
    const NAME: &str = "backends";
    let check = |verdict, detail: String| of(NAME, verdict, detail).about(proxy);
    let wrong = |verdict, detail: String| check(verdict, detail).then(next.cloned());
    let mut checks = Vec::new();
    if !traffic.drift.is_empty() {
        let detail = format!("not as wanted, and being put right: {}", traffic.drift.join("; "));
        checks.push(wrong(Verdict::Warning, detail));
    }
    if let Some(problem) = traffic.pooler.as_ref().and_then(|pooler| pooler.problem.as_ref()) {
        checks.push(wrong(Verdict::Warning, problem.clone()));
    }
    checks.extend(traffic.applications.iter().filter_map(|application| {
        let (verdict, detail) = trouble(application, traffic)?;
        Some(wrong(verdict, detail))
    }));
    if checks.is_empty() {
        let version = traffic.haproxy_version.as_deref().unwrap_or("of an unknown version");
        let repairs = match &traffic.last_repair {
            Some(last) => format!("; put right {} times, last: {last}", traffic.repairs),
            None => String::new(),
        };
        checks.push(check(Verdict::Ok, format!("HAProxy {version} is as wanted{repairs}")));
    }
    checks
}

/// What is wrong with an application behind a proxy.
fn trouble(application: &ApplicationReport, traffic: &TrafficReport) -> Option<(Verdict, String)> {
    let ApplicationReport { name, servers, servers_up, served_from } = application;
    let Some(from) = served_from else {
        return Some((Verdict::Failing, format!("application {name}: none of its {servers} servers is up")));
    };
    if let Some(active) = traffic.active_site.as_ref().filter(|active| *active != from) {
        let detail = format!("application {name} is served from {from}, the primary is in {active}");
        return Some((Verdict::Warning, detail));
    }
    (servers_up < servers)
        .then(|| (Verdict::Warning, format!("application {name}: {servers_up} of {servers} servers are up")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{ApplicationName, SiteName};
    use crate::domain::traffic::PoolerReport;

    fn site(name: &str) -> SiteName {
        SiteName::new(name).expect("valid")
    }

    fn traffic(servers_up: u32, from: Option<&str>) -> TrafficReport {
        TrafficReport {
            haproxy_version: Some("2.6.12".to_owned()),
            active_site: Some(site("east")),
            is_settled: true,
            applications: vec![ApplicationReport {
                name: ApplicationName::new("shop").expect("valid"),
                servers: 6,
                servers_up,
                served_from: from.map(site),
            }],
            ..TrafficReport::default()
        }
    }

    fn worst(traffic: &TrafficReport) -> (Verdict, String) {
        let checks = of_proxy("p1", traffic, Some(&"stormglass status main".to_owned()));
        let worst = checks.into_iter().max_by_key(|check| check.verdict).expect("at least one line");
        assert_eq!(worst.subject.as_deref(), Some("p1"));
        assert_eq!(worst.next.is_some(), worst.verdict != Verdict::Ok);
        (worst.verdict, worst.detail)
    }

    #[test]
    fn what_differs_and_which_servers_are_missing_is_said() {
        assert_eq!(worst(&traffic(6, Some("east"))), (Verdict::Ok, "HAProxy 2.6.12 is as wanted".to_owned()));
        assert_eq!(worst(&traffic(5, Some("east"))).0, Verdict::Warning);
        let (verdict, words) = worst(&traffic(3, Some("west")));
        assert_eq!(verdict, Verdict::Warning);
        assert_eq!(words, "application shop is served from west, the primary is in east");
        assert_eq!(worst(&traffic(0, None)).0, Verdict::Failing);

        let drifted = TrafficReport { drift: vec!["weights".to_owned()], ..traffic(6, Some("east")) };
        assert!(worst(&drifted).1.contains("weights"));
        let pooler = PoolerReport { is_paused: true, problem: Some("RESUME: no answer".to_owned()) };
        let paused = TrafficReport { pooler: Some(pooler), ..traffic(6, Some("east")) };
        assert_eq!(worst(&paused), (Verdict::Warning, "RESUME: no answer".to_owned()));
        let repaired = TrafficReport { repairs: 2, last_repair: Some("site".to_owned()), ..traffic(6, Some("east")) };
        assert!(worst(&repaired).1.ends_with("put right 2 times, last: site"));
    }
}
