//! Alerts at a real controller: stored once, carried out behind the guards of every request, also by the one that comes next.

use std::time::Duration;

use stormglass::api::authentication::Caller;
use stormglass::api::controller::ControllerHandler;
use stormglass::api::webhook::AlertsReply;
use stormglass::controller::WaysIn;
use stormglass::domain::alert::{AcceptedAlert, Alert, AlertAction, AlertPolicy, AlertRoute, AlertState, LabelValues};
use stormglass::domain::clock::WallTime;
use stormglass::domain::epoch::Epoch;
use stormglass::domain::ids::ClusterName;
use stormglass::ports::Card;

use super::{PATIENCE, Running, caller, start_with};

fn ways() -> WaysIn {
    let route = |name: &str, action| AlertRoute {
        labels: [("alertname".to_owned(), LabelValues::One(name.to_owned()))].into(),
        action,
        sequence: None,
    };
    let routes = vec![
        route("Down", AlertAction::Failover),
        route("Slow", AlertAction::Switchover),
        route("Look", AlertAction::Notify),
        route("Noise", AlertAction::Ignore),
        route("Weekly", AlertAction::Drill),
        route("Doubt", AlertAction::DrCheck),
        route("Drift", AlertAction::Retrain),
        AlertRoute { sequence: Some("gone".to_owned()), ..route("Page", AlertAction::Sequence) },
    ];
    WaysIn { alerts: AlertPolicy { routes, max_age: Duration::from_secs(3600) } }
}

fn alert(controller: &Running, name: &str, number: usize) -> Alert {
    Alert {
        fingerprint: format!("{number:016x}"),
        state: AlertState::Firing,
        labels: [("alertname".to_owned(), name.to_owned()), ("cluster".to_owned(), "main".to_owned())].into(),
        summary: Some("seen by somebody else".to_owned()),
        starts_at: controller.handle.wall(),
    }
}

async fn begin(accepted: &[Card]) -> Running {
    start_with(None, PATIENCE, &[], ways(), accepted).await
}

async fn post(controller: &Running, alerts: Vec<Alert>) -> AlertsReply {
    controller.handle.alerts(alerts, &caller()).await.expect("accepted")
}

#[tokio::test]
async fn an_alert_is_carried_out_once_in_an_epoch_and_a_guard_may_refuse_it() {
    let controller = begin(&[]).await;
    let down = alert(&controller, "Down", 1);
    let reply = post(&controller, vec![down.clone()]).await;
    assert_eq!((reply.accepted, reply.repeated), (1, 0));
    let handled = controller.until_told("alert_handled", 1).await;
    assert!(handled[0].contains("asked for failover, which was refused"), "{handled:?}");
    assert!(controller.handle.operations(None, 10).await.expect("listed").is_empty());
    for _ in 0..3 {
        let reply = post(&controller, vec![down.clone()]).await;
        assert_eq!((reply.accepted, reply.repeated), (0, 1), "the same alert in the same epoch");
    }
    let again = Alert { starts_at: WallTime(down.starts_at.0 + 1_000), ..down };
    assert_eq!(post(&controller, vec![again]).await.accepted, 1, "it began anew");
    controller.until_told("alert_handled", 2).await;
    assert_eq!(controller.told("alert_accepted").await.len(), 2);
    assert!(controller.handle.metrics().contains("stormglass_alerts_total{action=\"failover\",outcome=\"refused\"} 2"));
}

#[tokio::test]
async fn what_is_over_old_unknown_or_of_others_moves_nothing() {
    let controller = begin(&[]).await;
    let down = alert(&controller, "Down", 1);
    let labelled = |name: &str, value: &str| {
        let mut alert = down.clone();
        alert.labels.insert(name.to_owned(), value.to_owned());
        alert
    };
    let reply = post(
        &controller,
        vec![
            Alert { state: AlertState::Resolved, ..down.clone() },
            Alert { starts_at: WallTime(1), ..down.clone() },
            Alert { starts_at: WallTime(i64::MAX), ..down.clone() },
            labelled("cluster", "other"),
            labelled("alertname", "Unheard"),
            labelled("alertname", "Noise"),
            Alert { labels: Default::default(), ..down.clone() },
        ],
    )
    .await;
    let expected =
        AlertsReply { resolved: 1, out_of_time: 2, other_cluster: 1, unmatched: 2, ignored: 1, ..AlertsReply::new() };
    assert_eq!(reply, expected);
    assert!(controller.told("alert_accepted").await.is_empty());

    // About a standby, or of a time before the primary was one.
    post(&controller, vec![labelled("node", "n2")]).await;
    let handled = controller.until_told("alert_handled", 1).await;
    assert!(handled[0].contains("alert about another (the alert is about n2)"), "{handled:?}");
}

#[tokio::test]
async fn a_token_for_some_clusters_brings_the_alerts_of_those_and_the_others_are_refused_alone() {
    let controller = begin(&[]).await;
    let of = |number: usize, cluster: Option<&str>| {
        let mut alert = alert(&controller, "Look", number);
        alert.labels.remove("cluster");
        alert.labels.extend(cluster.map(|cluster| ("cluster".to_owned(), cluster.to_owned())));
        alert
    };
    let alerts = vec![of(1, Some("main")), of(2, None), of(3, Some("billing")), of(4, Some("orders"))];
    let only = |cluster: &str| Caller { clusters: vec![ClusterName::new(cluster).expect("valid")], ..caller() };
    let post = async |caller: Caller| controller.handle.alerts(alerts.clone(), &caller).await.expect("taken");

    // The controller keeps main: an alert without the label is one of main.
    let reply = post(only("orders")).await;
    assert_eq!(reply, AlertsReply { out_of_scope: 3, other_cluster: 1, ..AlertsReply::new() });
    assert!(reply.sentence().ends_with(", 3 refused: of clusters that the token is not for"), "{}", reply.sentence());
    assert!(controller.told("alert_accepted").await.is_empty());
    let reply = post(only("main")).await;
    assert_eq!(reply, AlertsReply { accepted: 2, out_of_scope: 2, ..AlertsReply::new() });
    controller.until_told("alert_handled", 2).await;
    let reply = post(caller()).await;
    assert_eq!(reply, AlertsReply { repeated: 2, other_cluster: 2, ..AlertsReply::new() });
    assert!(!reply.sentence().contains("refused"), "{}", reply.sentence());
}

#[tokio::test]
async fn a_thousand_alerts_in_one_post_are_all_taken_and_all_handled() {
    let controller = begin(&[]).await;
    let mut alerts: Vec<Alert> = (0..1000).map(|number| alert(&controller, "Look", number)).collect();
    alerts.reverse();
    let reply = post(&controller, alerts.clone()).await;
    assert_eq!((reply.accepted, reply.repeated), (1000, 0));
    let handled = || {
        let metrics = controller.handle.metrics();
        let told = "stormglass_alerts_total{action=\"notify\",outcome=\"told\"} ";
        metrics.lines().find_map(|line| line.strip_prefix(told)?.parse::<u32>().ok()).unwrap_or(0)
    };
    tokio::time::timeout(PATIENCE, async {
        while handled() < 1000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("all are handled");
    assert_eq!(post(&controller, alerts).await.repeated, 1000);
}

#[tokio::test]
async fn an_accepted_alert_is_carried_out_by_the_controller_that_comes_next() {
    let template = begin(&[]).await;
    let accepted = |number: usize, outcome: Option<&str>| AcceptedAlert {
        alert: alert(&template, "Look", number),
        action: AlertAction::Notify,
        sequence: None,
        epoch: Epoch(3),
        received: template.handle.wall(),
        who: "alertmanager".to_owned(),
        outcome: outcome.map(str::to_owned),
        operation: None,
    };
    let old =
        AcceptedAlert { alert: Alert { starts_at: WallTime(1), ..alert(&template, "Look", 3) }, ..accepted(3, None) };
    let first = accepted(1, None);
    let cards: Vec<Card> = [first.clone(), accepted(2, Some("told: before")), old]
        .iter()
        .map(|accepted| Card { key: accepted.key(), body: serde_json::to_string(accepted).expect("JSON") })
        .chain([Card { key: "odd".to_owned(), body: "{}".to_owned() }])
        .collect();
    let controller = begin(&cards).await;
    let handled = controller.until_told("alert_handled", 2).await;
    assert!(handled[0].contains("0000000000000001") && handled[0].contains("told"), "{handled:?}");
    assert!(handled[1].contains("0000000000000003") && handled[1].contains("too old"), "{handled:?}");
    let repeated = post(&controller, vec![first.alert]).await;
    assert_eq!(repeated.repeated, 1);
}

#[tokio::test]
async fn a_check_a_drill_and_a_sequence_are_asked_for_like_by_an_operator() {
    let controller = begin(&[]).await;
    let names = ["Doubt", "Weekly", "Page", "Drift"];
    let alerts = names.iter().enumerate().map(|(number, name)| alert(&controller, name, number)).collect();
    assert_eq!(post(&controller, alerts).await.accepted, 4);
    let handled = controller.until_told("alert_handled", 4).await;
    let of = |action: &str| handled.iter().find(|told| told.contains(action)).expect("told").clone();
    assert!(of("dr-check").contains("readiness 0"), "{handled:?}");
    assert!(of("drill").contains("refused"), "nobody runs, so nothing can be drilled: {handled:?}");
    assert!(of("sequence").contains("there is no sequence"), "{handled:?}");
    assert!(of("retrain").contains("has no predictor"), "{handled:?}");
}
