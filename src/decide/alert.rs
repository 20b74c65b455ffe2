//! What an alert leads to: which route it takes, and whether what it asks for may be asked for at all.
//!
//! An alert is a witness, never proof. What passes here is planned by [`super::request::plan`], behind the guards of every request.

use std::time::Duration;

use super::request::Request;
use crate::domain::alert::{Alert, AlertAction, AlertPolicy, AlertRoute, AlertState};
use crate::domain::clock::WallTime;
use crate::domain::ids::ClusterName;
use crate::domain::plan::{Reason, ReasonCode};
use crate::domain::sequence::{Sequence, Trigger};
use crate::domain::view::View;

/// Clocks of monitoring and controller may differ so much; what begins later than that is no observation.
const AHEAD_MAX: Duration = Duration::from_secs(300);

/// What an alert is to lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errand<'r> {
    /// What is done.
    pub action: AlertAction,
    /// Which sequence, where a sequence is run.
    pub sequence: Option<&'r str>,
}

/// Where an alert goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Routing<'r> {
    /// Something is to be done: what its route says, then every sequence that names the alert.
    Act(Vec<Errand<'r>>),
    /// A route says that nothing is to be done.
    Ignored,
    /// It is over, and what was done about it stays done.
    Resolved,
    /// It began too long ago, or in the future.
    OutOfTime,
    /// It is about another cluster.
    OtherCluster,
    /// No route fits.
    Unmatched,
}

/// Finds what an alert leads to: the first route that fits, and the sequences that name it. A route that ignores it is the last word.
pub fn route<'r>(
    alert: &Alert,
    policy: &'r AlertPolicy,
    sequences: &'r [Sequence],
    cluster: &ClusterName,
    now: WallTime,
) -> Routing<'r> {
    if alert.label("cluster").is_some_and(|named| named != cluster.as_str()) {
        return Routing::OtherCluster;
    }
    let route: Option<&AlertRoute> = policy.routes.iter().find(|route| route.fits(alert));
    let routed = route.map(|route| Errand { action: route.action, sequence: route.sequence.as_deref() });
    let names = |sequence: &&Sequence| {
        sequence
            .when
            .iter()
            .any(|trigger| matches!(trigger, Trigger::OnAlert { alert: named } if named == alert.name()))
    };
    let begun = sequences
        .iter()
        .filter(names)
        .map(|sequence| Errand { action: AlertAction::Sequence, sequence: Some(&sequence.name) })
        .filter(|errand| Some(*errand) != routed);
    let errands: Vec<Errand<'r>> = routed.into_iter().chain(begun).collect();
    if errands.is_empty() {
        return Routing::Unmatched;
    }
    if alert.state == AlertState::Resolved {
        return Routing::Resolved;
    }
    if routed.is_some_and(|routed| routed.action == AlertAction::Ignore) {
        return Routing::Ignored;
    }
    if now.since(alert.starts_at) > policy.max_age || alert.starts_at.since(now) > AHEAD_MAX {
        return Routing::OutOfTime;
    }
    Routing::Act(errands)
}

/// True while automatic operations are paused: an alert is no operator.
pub fn is_paused(view: &View) -> bool {
    view.record.as_ref().and_then(|record| record.paused_until).is_some_and(|until| until > view.wall)
}

/// What an alert asks of the planner, or the guard that refuses to ask.
pub fn request(alert: &Alert, action: AlertAction, view: &View) -> Result<Request, Reason> {
    let wanted = match action {
        AlertAction::Failover => {
            Request::Failover { to: None, site: None, accept_data_loss: false, old_primary_is_off: false }
        }
        AlertAction::Switchover => Request::Switchover { to: None, site: None },
        other => {
            return Err(Reason::new(
                ReasonCode::AlertAboutAnother,
                format!("{other} is no request to move the primary"),
            ));
        }
    };
    let Some(record) = &view.record else { return Ok(wanted) };
    if is_paused(view) {
        return Err(Reason::new(ReasonCode::Paused, "an alert is no operator: resume first"));
    }
    // By a proxy, an exporter or a rule of an older configuration: what is wrong elsewhere moves no primary.
    if let Some(node) = alert.label("node").filter(|node| *node != record.holder.as_str()) {
        return Err(Reason::about(&record.holder, ReasonCode::AlertAboutAnother, format!("the alert is about {node}")));
    }
    if action == AlertAction::Failover && alert.starts_at < record.holder_since {
        let why = format!("the alert began at {}, before {} became the primary", alert.starts_at, record.holder);
        return Err(Reason::about(&record.holder, ReasonCode::AlertOutdated, why));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::domain::alert::LabelValues;

    const NOW: WallTime = WallTime(1_795_000_000_000_000);

    fn alert(labels: &[(&str, &str)]) -> Alert {
        Alert {
            fingerprint: "01a88acc357e86bc".to_owned(),
            state: AlertState::Firing,
            labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            summary: None,
            starts_at: WallTime(NOW.0 - 2_000_000),
        }
    }

    fn policy() -> AlertPolicy {
        let route = |labels: &[(&str, &str)], action| AlertRoute {
            labels: labels
                .iter()
                .map(|(name, value)| ((*name).to_owned(), LabelValues::One((*value).to_owned())))
                .collect::<BTreeMap<_, _>>(),
            action,
            sequence: None,
        };
        AlertPolicy {
            routes: vec![
                route(&[("alertname", "PrimaryDown"), ("severity", "critical")], AlertAction::Failover),
                route(&[("alertname", "Noise")], AlertAction::Ignore),
                route(&[("team", "*")], AlertAction::Notify),
            ],
            max_age: Duration::from_secs(60),
        }
    }

    #[test]
    fn a_sequence_that_names_an_alert_is_begun_beside_what_its_route_says() {
        let (policy, cluster) = (policy(), ClusterName::new("main").expect("valid"));
        let named = |name: &str, alerts: &[&str]| Sequence {
            name: name.to_owned(),
            when: alerts.iter().map(|alert| Trigger::OnAlert { alert: (*alert).to_owned() }).collect(),
            steps: Vec::new(),
        };
        let sequences = [named("restore", &["PrimaryDown", "Noise", "Alone"]), named("other", &["Alone"])];
        let route = |alert: &Alert| match super::route(alert, &policy, &sequences, &cluster, NOW) {
            Routing::Act(errands) => errands
                .iter()
                .map(|errand| format!("{} {}", errand.action.label(), errand.sequence.unwrap_or("-")))
                .collect::<Vec<_>>()
                .join(", "),
            other => format!("{other:?}"),
        };
        let down = [("alertname", "PrimaryDown"), ("severity", "critical")];
        assert_eq!(route(&alert(&down)), "failover -, sequence restore");
        assert_eq!(route(&alert(&[("alertname", "Alone")])), "sequence restore, sequence other", "without any route");
        assert_eq!(route(&alert(&[("alertname", "Noise")])), "Ignored", "a route that ignores is the last word");
        assert_eq!(route(&alert(&[("alertname", "Else")])), "Unmatched");
        assert_eq!(route(&alert(&[])), "Unmatched");
        let resolved = Alert { state: AlertState::Resolved, ..alert(&[("alertname", "Alone")]) };
        assert_eq!(route(&resolved), "Resolved");
        let old = Alert { starts_at: WallTime(NOW.0 - 60_000_001), ..alert(&[("alertname", "Alone")]) };
        assert_eq!(route(&old), "OutOfTime");
        let elsewhere = alert(&[("alertname", "Alone"), ("cluster", "other")]);
        assert_eq!(route(&elsewhere), "OtherCluster");
        // A route that names the same sequence is the same wish.
        let mut routed = policy.clone();
        routed.routes.insert(
            0,
            AlertRoute { labels: BTreeMap::new(), action: AlertAction::Sequence, sequence: Some("other".to_owned()) },
        );
        let alone = alert(&[("alertname", "Alone")]);
        let Routing::Act(errands) = super::route(&alone, &routed, &sequences, &cluster, NOW) else {
            panic!("something is to be done")
        };
        let names: Vec<_> = errands.iter().filter_map(|errand| errand.sequence).collect();
        assert_eq!(names, ["other", "restore"]);
    }

    #[test]
    fn the_first_route_that_fits_counts() {
        let (policy, cluster) = (policy(), ClusterName::new("main").expect("valid"));
        let route = |alert: &Alert| match super::route(alert, &policy, &[], &cluster, NOW) {
            Routing::Act(errands) => errands[0].action.label(),
            Routing::Ignored => "(ignored)",
            Routing::Resolved => "(resolved)",
            Routing::OutOfTime => "(out of time)",
            Routing::OtherCluster => "(other cluster)",
            Routing::Unmatched => "(unmatched)",
        };
        let down = [("alertname", "PrimaryDown"), ("severity", "critical"), ("team", "dba")];
        assert_eq!(route(&alert(&down)), "failover");
        assert_eq!(route(&alert(&down[..1])), "(unmatched)", "every label of the route is needed");
        assert_eq!(route(&alert(&[("alertname", "Noise"), ("team", "dba")])), "(ignored)");
        assert_eq!(route(&alert(&[("team", "dba")])), "notify");
        assert_eq!(route(&alert(&[("team", "")])), "(unmatched)", "an empty label is none");
        assert_eq!(route(&alert(&[])), "(unmatched)");
        let mut elsewhere = alert(&down);
        elsewhere.labels.insert("cluster".to_owned(), "other".to_owned());
        assert_eq!(route(&elsewhere), "(other cluster)");
        elsewhere.labels.insert("cluster".to_owned(), "main".to_owned());
        assert_eq!(route(&elsewhere), "failover");
        let resolved = Alert { state: AlertState::Resolved, ..alert(&down) };
        assert_eq!(route(&resolved), "(resolved)");
        for (starts_at, expected) in [
            (NOW.0 - 60_000_000, "failover"),
            (NOW.0 - 60_000_001, "(out of time)"),
            (NOW.0 + 300_000_000, "failover"),
            (NOW.0 + 300_000_001, "(out of time)"),
            (i64::MIN, "(out of time)"),
            (i64::MAX, "(out of time)"),
        ] {
            assert_eq!(route(&Alert { starts_at: WallTime(starts_at), ..alert(&down) }), expected, "{starts_at}");
        }
    }

    #[test]
    fn values_may_be_listed() {
        let values = LabelValues::AnyOf(vec!["critical".to_owned(), "page".to_owned()]);
        assert!(values.admit("page") && !values.admit("warning") && !values.admit("*"));
    }
}
