//! What a name service must do, the same for BIND and Knot.

use stormglass::domain::name::NameRecord;
use stormglass::ports::name::{NameError, NameService};

use super::server::{NAME, NameServer, Program, SECRET, epoch, free_address, record};

/// Name and companion are written where nothing was, and every kind of record follows every other one.
async fn every_kind_follows_every_other(program: Program) {
    let server = NameServer::start(program).await;
    let service = server.service();
    let mut seen = service.read().await.expect("answered");
    assert_eq!(seen, NameRecord::default());
    let kinds: [&[&str]; 6] = [
        &["10.0.1.1"],
        &["10.0.2.1", "10.0.2.2", "fd00::1"],
        &["p1.example.test"],
        &["p2.example.net"],
        &["fd00::2"],
        &["p1.example.test"],
    ];
    for (number, values) in kinds.iter().enumerate() {
        let wanted = record(values, Some(&epoch(number as u64 + 1)));
        service.swap(&seen, &wanted).await.unwrap_or_else(|error| panic!("{values:?}: {error}"));
        seen = service.read().await.expect("answered");
        assert_eq!(seen, wanted);
    }
    let answers = service.answers().await;
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].server, server.address.to_string());
    assert_eq!(answers[0].answer.as_ref(), Ok(&seen));
}

/// The value goes A → B → A: whoever read it the first time must not write any more.
async fn stale_writers_change_nothing(program: Program) {
    let server = NameServer::start(program).await;
    let service = server.service();
    let nothing = service.read().await.expect("answered");
    let [first, second, third] = [("10.0.1.1", 1), ("10.0.2.1", 2), ("10.0.1.1", 3)]
        .map(|(value, number)| record(&[value], Some(&epoch(number))));
    service.swap(&nothing, &first).await.expect("the first");
    service.swap(&first, &second).await.expect("the second");
    service.swap(&second, &third).await.expect("the third");
    let stale = record(&["10.0.9.9"], Some(&epoch(2)));
    for seen in [&nothing, &first, &second] {
        assert_eq!(service.swap(seen, &stale).await, Err(NameError::Conflict));
    }
    assert_eq!(service.read().await, Ok(third));
}

/// What was written outlives the server.
async fn restarts_lose_nothing(program: Program) {
    let mut server = NameServer::start(program).await;
    let service = server.service();
    let wanted = record(&["10.0.1.1"], Some(&epoch(4)));
    service.swap(&NameRecord::default(), &wanted).await.expect("written");
    server.stop();
    let Err(NameError::Unreachable { .. }) = service.read().await else { panic!("it is down") };
    server.restart().await;
    assert_eq!(service.read().await, Ok(wanted));
}

/// One server of two is down: the other's word is still heard, and each is named.
async fn every_server_is_asked(program: Program) {
    let server = NameServer::start(program).await;
    let mut settings = server.settings();
    settings.servers.push(free_address());
    let service = stormglass::adapters::dns::Rfc2136::new(&settings, super::server::clock()).expect("good");
    let wanted = record(&["10.0.1.1"], Some(&epoch(1)));
    service.swap(&NameRecord::default(), &wanted).await.expect("the first one takes it");
    let answers = service.answers().await;
    assert_eq!(answers[0].answer, Ok(wanted));
    assert!(matches!(answers[1].answer, Err(NameError::Unreachable { .. })), "{:?}", answers[1]);
}

#[tokio::test]
async fn bind_lets_every_kind_follow_every_other() {
    every_kind_follows_every_other(Program::Bind).await;
}

#[tokio::test]
async fn knot_lets_every_kind_follow_every_other() {
    every_kind_follows_every_other(Program::Knot).await;
}

#[tokio::test]
async fn bind_keeps_stale_writers_away() {
    stale_writers_change_nothing(Program::Bind).await;
}

#[tokio::test]
async fn knot_keeps_stale_writers_away() {
    stale_writers_change_nothing(Program::Knot).await;
}

#[tokio::test]
async fn bind_loses_nothing_in_a_restart() {
    restarts_lose_nothing(Program::Bind).await;
}

#[tokio::test]
async fn knot_loses_nothing_in_a_restart() {
    restarts_lose_nothing(Program::Knot).await;
}

#[tokio::test]
async fn every_authoritative_server_is_asked() {
    every_server_is_asked(Program::Bind).await;
}

#[test]
fn settings_that_cannot_work_are_refused_at_once() {
    let server = free_address();
    let good = stormglass::adapters::dns::Rfc2136Settings {
        name: NAME.to_owned(),
        companion: "_stormglass.db.example.test".to_owned(),
        zone: "example.test".to_owned(),
        servers: vec![server],
        key: stormglass::adapters::dns::TsigKey { name: "k".to_owned(), secret: SECRET.to_owned() },
    };
    let refused = |change: &dyn Fn(&mut stormglass::adapters::dns::Rfc2136Settings)| {
        let mut settings = good.clone();
        change(&mut settings);
        let made = stormglass::adapters::dns::Rfc2136::new(&settings, super::server::clock());
        made.err().expect("refused")
    };
    assert!(stormglass::adapters::dns::Rfc2136::new(&good, super::server::clock()).is_ok());
    assert!(refused(&|it| it.zone = "example.com".to_owned()).contains("not in the zone"));
    assert!(refused(&|it| it.servers.clear()).contains("no server"));
    assert!(refused(&|it| it.key.secret = "%%".to_owned()).contains("base64"));
}
