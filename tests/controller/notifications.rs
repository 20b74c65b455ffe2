//! Notifications of a real controller, to a real web server and a real mail server: once, also over a restart, and never in the way.

use std::sync::Arc;
use std::time::Duration;

use stormglass::adapters::notifications::{Email, EmailSettings, EmailTls, Webhook, WebhookFormat, WebhookSettings};
use stormglass::api::controller::ControllerHandler;
use stormglass::controller::{KeptChannel, Notifications, WaysIn};
use stormglass::domain::alert::{Alert, AlertAction, AlertPolicy, AlertRoute, AlertState, LabelValues};
use stormglass::domain::ids::Address;
use stormglass::domain::notification::{Channel, Message, Notice, NoticeKind};
use stormglass::domain::operation::{Operation, OperationStatus};
use stormglass::domain::readiness::Verdict;
use stormglass::ports::{Card, Drawer, Notifier, NotifyError, Store};

use super::receivers::{Hook, Mailbox};
use super::{PATIENCE, Running, caller, cluster, failover, record, run_on, until};

fn channel(name: &str, on: &[NoticeKind]) -> Channel {
    Channel {
        name: name.to_owned(),
        on: on.iter().copied().collect(),
        operations: Default::default(),
        clusters: Vec::new(),
        link: Some("https://stormglass.example.org".to_owned()),
    }
}

fn webhook(url: &str, format: WebhookFormat, token: Option<&str>) -> Arc<dyn Notifier> {
    let settings = WebhookSettings { url: url.to_owned(), format, token: token.map(str::to_owned), authority: None };
    Arc::new(Webhook::new(&settings).expect("good settings"))
}

fn kept(channel: Channel, notifier: Arc<dyn Notifier>) -> KeptChannel {
    KeptChannel { channel, kind: "json", notifier }
}

/// All but what these controllers are told of their primary, whose agent nobody reaches.
const TOLD: [NoticeKind; 4] =
    [NoticeKind::OperationStarted, NoticeKind::OperationSucceeded, NoticeKind::OperationFailed, NoticeKind::Alert];

fn everything(url: &str) -> Notifications {
    Arc::new([kept(channel("dba", &TOLD), webhook(url, WebhookFormat::Json, None))])
}

fn ways() -> WaysIn {
    let routes = vec![AlertRoute {
        labels: [("alertname".to_owned(), LabelValues::One("Look".to_owned()))].into(),
        action: AlertAction::Notify,
        sequence: None,
    }];
    WaysIn { alerts: AlertPolicy { routes, max_age: Duration::from_secs(3600) } }
}

/// An alert that is only told: what was told before it has been dealt with once it arrives.
async fn mark(controller: &Running, fingerprint: &str) {
    let alert = Alert {
        fingerprint: fingerprint.to_owned(),
        state: AlertState::Firing,
        labels: [("alertname".to_owned(), "Look".to_owned())].into(),
        summary: Some("seen by somebody else".to_owned()),
        starts_at: controller.handle.wall(),
    };
    assert_eq!(controller.handle.alerts(vec![alert], &caller()).await.expect("taken").accepted, 1);
}

async fn begin(operations: &[Operation], cards: &[Card], notifications: Notifications) -> Running {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("store.db");
    let store: Arc<dyn Store> = Arc::new(stormglass::adapters::store::SqliteStore::open(&file).expect("a new store"));
    store.swap_record(None, &record()).await.expect("stored");
    for operation in operations {
        store.save_operation(operation).await.expect("stored");
    }
    for card in cards {
        store.insert_card(Drawer::Notifications, card).await.expect("stored");
    }
    run_on(directory, store, None, PATIENCE, ways(), notifications).await
}

/// Stops a controller and starts the next one on its store.
async fn again(controller: Running, notifications: Notifications) -> Running {
    controller.shutdown.send(true).expect("it runs");
    run_on(controller.directory, controller.store, None, PATIENCE, ways(), notifications).await
}

/// The store's word on every message.
async fn outcomes(controller: &Running) -> Vec<(String, Option<String>)> {
    let cards = controller.store.list_cards(Drawer::Notifications).await.expect("listed");
    let outcome = |card: Card| {
        let body: serde_json::Value = serde_json::from_str(&card.body).expect("JSON");
        (card.key, body["outcome"].as_str().map(str::to_owned))
    };
    cards.into_iter().rev().map(outcome).collect()
}

/// An operation that ends as soon as a controller looks at it.
fn cancelled(clock: &Running) -> Operation {
    Operation { cancel_requested: true, begun_wall: clock.handle.wall(), ..failover(None, Vec::new()) }
}

#[tokio::test]
async fn an_operation_is_told_once_retried_until_taken_and_not_again_by_the_next_controller() {
    let clock = begin(&[], &[], Notifications::default()).await;
    let mut hook = Hook::start(&[500, 429]).await;
    let controller = begin(&[cancelled(&clock)], &[], everything(&hook.url)).await;
    mark(&controller, "aa").await;
    let posted = hook.until("alert/aa").await;
    let heard: Vec<(&str, u16)> = posted.iter().map(|one| (one.key.as_str(), one.answered)).collect();
    assert_eq!(
        heard[..4],
        [("op-1/started", 500), ("op-1/started", 429), ("op-1/started", 200), ("op-1/cancelled", 200)]
    );
    assert_eq!(heard.len(), 5, "{heard:?}");
    let ended = &posted[3].body;
    assert_eq!((&ended["kind"], &ended["severity"]), (&"operation_failed".into(), &"info".into()));
    assert_eq!(ended["operation"], "op-1");
    assert_eq!(ended["link"], "https://stormglass.example.org/?operation=op-1");
    assert!(ended["text"].as_str().expect("text").starts_with("The failover of n2 ended as cancelled"), "{ended}");
    // A channel that began to fail is an event, once, and shows how it does.
    let failed = controller.until_told("notification_failed", 1).await;
    assert!(failed[0].starts_with("The notification channel dba does not take messages: "), "{failed:?}");
    until("the last one is noted", async || {
        outcomes(&controller).await.iter().all(|(_, outcome)| outcome.is_some()).then_some(())
    })
    .await;
    let metrics = controller.handle.metrics();
    for (outcome, count) in [("sent", 3), ("retried", 2), ("failed", 0), ("dropped", 0)] {
        let line = format!("stormglass_notifications_total{{name=\"dba\",outcome=\"{outcome}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}");
    }
    let channels = controller.handle.notifications().await.expect("listed");
    assert!(channels[0].problem.is_none() && channels[0].last_sent.is_some(), "{channels:?}");

    // The next controller finds the same operation in the store.
    let next = again(controller, everything(&hook.url)).await;
    mark(&next, "bb").await;
    let posted = hook.until("alert/bb").await;
    assert_eq!(posted.len(), 1, "nothing is told twice: {posted:?}");
}

#[tokio::test]
async fn what_a_controller_stored_and_did_not_send_is_sent_by_the_next_one() {
    let clock = begin(&[], &[], Notifications::default()).await;
    let card = |key: &str, age: Duration, outcome: Option<&str>| {
        let at =
            stormglass::domain::clock::WallTime(clock.handle.wall().0 - i64::try_from(age.as_micros()).expect("small"));
        let notice = Notice {
            key: key.to_owned(),
            kinds: vec![NoticeKind::OperationFailed],
            cluster: cluster(),
            epoch: Default::default(),
            severity: "warning".to_owned(),
            subject: "failover of n2 failed".to_owned(),
            text: "The failover of n2 ended as failed after 3.000 s.".to_owned(),
            operation: None,
            operation_kind: None,
            at,
        };
        let body = serde_json::json!({ "channel": "dba", "notice": notice, "outcome": outcome });
        Card { key: format!("dba/{key}"), body: body.to_string() }
    };
    let cards = [
        card("x/failed", Duration::from_secs(60), None),
        card("y/failed", Duration::from_secs(60), Some("sent before")),
        card("z/failed", Duration::from_secs(86_400), None),
        Card { key: "odd".to_owned(), body: "{}".to_owned() },
    ];
    let mut hook = Hook::start(&[]).await;
    let controller = begin(&[], &cards, everything(&hook.url)).await;
    mark(&controller, "aa").await;
    let keys: Vec<String> = hook.until("alert/aa").await.into_iter().map(|posted| posted.key).collect();
    assert_eq!(keys[0], "x/failed");
    assert_eq!(keys.len(), 2, "what was sent, and what is no news any more, is not: {keys:?}");
    until("its end is noted", async || {
        let sent = |(key, outcome): &(String, Option<String>)| {
            key == "dba/x/failed" && outcome.as_ref().is_some_and(|outcome| outcome.starts_with("sent at "))
        };
        outcomes(&controller).await.iter().any(sent).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_channel_that_hangs_or_refuses_holds_up_neither_the_controller_nor_the_others() {
    // Takes connections, and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let hangs = format!("http://{}/", silent.local_addr().expect("bound"));
    let (mut refuses, mut good) = (Hook::start(&[403, 403]).await, Hook::start(&[]).await);
    let json = |name: &str, url: &str| kept(channel(name, &TOLD), webhook(url, WebhookFormat::Json, None));
    let slack = webhook(&good.url, WebhookFormat::Slack, None);
    let only_risks = kept(channel("risks", &[NoticeKind::Risk]), webhook(&good.url, WebhookFormat::Json, None));
    let channels = [
        json("hangs", &hangs),
        json("refuses", &refuses.url),
        only_risks,
        kept(channel("good", &[NoticeKind::Alert]), slack),
    ];
    let controller = begin(&[], &[], Arc::new(channels)).await;
    mark(&controller, "aa").await;
    mark(&controller, "bb").await;
    for _ in 0..2 {
        let text = good.next().await.body["text"].as_str().expect("text").to_owned();
        assert!(
            text.starts_with("*[Stormglass] main: alert Look*\n") && text.contains("seen by somebody else"),
            "{text}"
        );
        assert!(refuses.next().await.key.starts_with("alert/"), "a refused message is not tried again");
    }
    controller.handle.status("main").await.expect("the loop answers");
    let metrics = || controller.handle.metrics();
    let refused = "stormglass_notifications_total{name=\"refuses\",outcome=\"failed\"} 2\n";
    until("both are given up", async || metrics().contains(refused).then_some(())).await;
    assert!(metrics().contains("stormglass_notifications_total{name=\"risks\",outcome=\"sent\"} 0\n"));
    assert!(metrics().contains("stormglass_notifications_total{name=\"hangs\",outcome=\"sent\"} 0\n"));
    let told = controller.until_told("notification_failed", 1).await;
    assert!(told.iter().any(|told| told.contains("channel refuses") && told.contains("403 Forbidden")), "{told:?}");
    let channels = controller.handle.notifications().await.expect("listed");
    let readiness = controller.handle.doctor("main").await.expect("examined");
    let found = |name: &str| {
        let about = |check: &&stormglass::domain::readiness::Check| {
            check.check == "notifications" && check.subject.as_deref() == Some(name)
        };
        readiness.checks.iter().find(about).map(|check| check.verdict)
    };
    assert_eq!(found("refuses"), Some(Verdict::Warning));
    assert_eq!(found("good"), Some(Verdict::Ok));
    assert!(channels[1].problem.as_ref().is_some_and(|problem| problem.contains("403")), "{channels:?}");
}

#[tokio::test]
async fn a_test_says_whether_it_went_out() {
    let mut hook = Hook::start(&[200, 404]).await;
    let notifier = webhook(&hook.url, WebhookFormat::Json, Some("token-1"));
    let controller = begin(&[], &[], Arc::new([kept(channel("dba", &[NoticeKind::Risk]), notifier)])).await;
    let reply = controller.handle.test_notification("dba", &caller()).await.expect("it went out");
    assert_eq!(reply.message, "a test went out over dba: look whether it arrived");
    let posted = hook.next().await;
    assert_eq!(posted.authorization.as_deref(), Some("Bearer token-1"));
    assert!(posted.body["text"].as_str().expect("text").contains("as on-call asked: nothing happened"), "{posted:?}");
    let problem = controller.handle.test_notification("dba", &caller()).await.expect_err("404");
    assert!(problem.status == 503 && problem.detail.contains("404 Not Found"), "{problem:?}");
    let problem = controller.handle.test_notification("other", &caller()).await.expect_err("unknown");
    assert_eq!((problem.status, problem.detail.as_str()), (404, "there is no notification channel \"other\": dba"));
}

fn mail(port: u16, to: &[&str]) -> EmailSettings {
    EmailSettings {
        server: Address::new("localhost", port),
        tls: EmailTls::None,
        authority: None,
        credentials: None,
        from: "Stormglass <stormglass@example.org>".to_owned(),
        to: to.iter().map(|receiver| (*receiver).to_owned()).collect(),
    }
}

fn stuck_failover() -> Message {
    let outcome = OperationStatus::Stuck;
    let event = stormglass::telemetry::Event::OperationEnded {
        operation: stormglass::domain::ids::OperationId("op-1".to_owned()),
        kind: "failover",
        node: super::node("n2"),
        outcome,
        took: Duration::from_secs(3),
        message: Some("n2 führt, die Antwort blieb aus".to_owned()),
    };
    let at = stormglass::domain::clock::WallTime(1_795_000_000_000_000);
    let epoch = stormglass::domain::epoch::Epoch(4);
    let notice = stormglass::telemetry::notification::notice(&event, &cluster(), epoch, at).expect("a notice");
    channel("dba", &NoticeKind::ALL).message(notice)
}

#[tokio::test]
async fn mail_arrives_with_its_words_and_an_identity_of_its_own() {
    let mut mailbox = Mailbox::start(None).await;
    let email = Email::new(&mail(mailbox.port, &["DBA <dba@example.org>", "on-call@example.org"])).expect("good");
    for _ in 0..2 {
        email.send(&stuck_failover()).await.expect("taken");
    }
    let (first, second) = (mailbox.next().await, mailbox.next().await);
    assert_eq!(first["from"], "stormglass@example.org");
    assert_eq!(first["to"], serde_json::json!(["dba@example.org", "on-call@example.org"]));
    let content = first["content"].as_str().expect("text");
    let header = |name: &str| {
        let (_, rest) = content.split_once(&format!("\n{name}: ")).unwrap_or_else(|| panic!("{name}: {content}"));
        rest.lines().next().expect("a line").trim_end().to_owned()
    };
    assert_eq!(header("Subject"), "[Stormglass] main: failover of n2 is stuck");
    assert_eq!(header("Date"), "Wed, 18 Nov 2026 11:06:40 +0000");
    assert_eq!(header("Auto-Submitted"), "auto-generated");
    assert!(header("Message-ID").ends_with("@example.org>"), "{content}");
    assert!(content.contains("Operation  op-1\r\n") && content.contains("/?operation=3Dop-1"), "{content}");
    assert_eq!(first["content"], second["content"], "an attempt more is the same message");
}

#[tokio::test]
async fn mail_goes_over_starttls_with_a_login_and_only_to_whom_it_trusts() {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    let certificate = certificate.self_signed(&key).expect("signed");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (certificate_file, key_file) = (directory.path().join("certificate"), directory.path().join("key"));
    std::fs::write(&certificate_file, certificate.pem()).expect("written");
    std::fs::write(&key_file, key.serialize_pem()).expect("written");
    let mut mailbox = Mailbox::start(Some((&certificate_file, &key_file))).await;
    let settings = |password: &str, authority: Option<String>, to: &str| EmailSettings {
        tls: EmailTls::StartTls,
        authority: authority.map(String::into_bytes),
        credentials: Some(("stormglass".to_owned(), password.to_owned())),
        ..mail(mailbox.port, &[to])
    };
    let send = async |settings: EmailSettings| Email::new(&settings).expect("good").send(&stuck_failover()).await;
    let trusted = Some(certificate.pem());
    send(settings("correct horse", trusted.clone(), "dba@example.org")).await.expect("taken");

    let stranger = send(settings("correct horse", None, "dba@example.org")).await.expect_err("nobody signed it");
    assert!(matches!(&stranger, NotifyError::Failed(words) if words.contains("certificate")), "{stranger:?}");
    let refused = send(settings("battery staple", trusted.clone(), "dba@example.org")).await.expect_err("refused");
    assert!(refused.to_string().contains("535"), "{refused:?}");
    assert!(!refused.to_string().contains("battery"), "a password is never told: {refused:?}");
    let nobody = send(settings("correct horse", trusted, "nobody@example.org")).await.expect_err("refused");
    assert!(matches!(&nobody, NotifyError::Refused(words) if words.contains("no such user")), "{nobody:?}");
    let plain = mail(mailbox.port, &["dba@example.org"]);
    assert!(Email::new(&plain).expect("good").send(&stuck_failover()).await.is_err(), "the server wants STARTTLS");

    let taken = mailbox.next().await;
    assert_eq!((&taken["tls"], &taken["login"]), (&true.into(), &"stormglass".into()), "{taken}");
}
