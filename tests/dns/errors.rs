//! What goes wrong with name servers is said in words that tell what to do.

use std::sync::Arc;
use std::time::Duration;

use stormglass::adapters::dns::{Rfc2136, Rfc2136Settings};
use stormglass::domain::ids::Address;
use stormglass::domain::name::NameRecord;
use stormglass::ports::Clock;
use stormglass::ports::name::{NameError, NameService};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use super::server::{KEY, NameServer, OTHER_SECRET, Program, SkewedClock, clock, epoch, free_address, record};

async fn swap_error(settings: &Rfc2136Settings, clock: Arc<dyn Clock>) -> NameError {
    let service = Rfc2136::new(settings, clock).expect("settings that can be tried");
    let wanted = record(&["10.0.1.1"], Some(&epoch(1)));
    service.swap(&NameRecord::default(), &wanted).await.expect_err("it must not succeed")
}

async fn keys_clocks_zones_and_names(program: Program) {
    let server = NameServer::start(program).await;
    let good = server.settings();

    let mut settings = good.clone();
    settings.key.secret = OTHER_SECRET.to_owned();
    let error = swap_error(&settings, clock()).await;
    assert!(matches!(&error, NameError::KeyRejected { key, .. } if key == KEY), "wrong secret: {error:?}");
    assert!(error.to_string().contains("compare its name and secret"), "{error}");

    let mut settings = good.clone();
    settings.key.name = "nobody-knows-me".to_owned();
    let error = swap_error(&settings, clock()).await;
    assert!(matches!(&error, NameError::KeyRejected { key, .. } if key == "nobody-knows-me"), "unknown key: {error:?}");

    for ahead_seconds in [-3600, 3600] {
        let error = swap_error(&good, Arc::new(SkewedClock { ahead_seconds })).await;
        assert!(matches!(error, NameError::ClockSkew { .. }), "clock {ahead_seconds} s off: {error:?}");
    }

    let mut settings = good.clone();
    settings.zone = "example.org".to_owned();
    settings.name = "db.example.org".to_owned();
    settings.companion = "_stormglass.db.example.org".to_owned();
    let error = swap_error(&settings, clock()).await;
    assert!(matches!(&error, NameError::NotAuthoritative { zone, .. } if zone == "example.org"), "zone: {error:?}");

    let mut settings = good.clone();
    settings.name = "www.example.test".to_owned();
    let error = swap_error(&settings, clock()).await;
    // Knot says NOTAUTH to a name that its acl does not list.
    let is_said = matches!(&error, NameError::Refused { .. } | NameError::KeyRejected { .. });
    assert!(is_said || matches!(&error, NameError::NotAuthoritative { .. }), "a name that is not granted: {error:?}");

    let untouched = Rfc2136::new(&good, clock()).expect("good").read().await;
    assert_eq!(untouched, Ok(NameRecord::default()));
}

#[tokio::test]
async fn bind_objects_in_words() {
    keys_clocks_zones_and_names(Program::Bind).await;
}

#[tokio::test]
async fn knot_objects_in_words() {
    keys_clocks_zones_and_names(Program::Knot).await;
}

#[tokio::test]
async fn a_zone_that_the_server_could_not_load_is_its_failure() {
    // BIND runs on and answers SERVFAIL for what it could not load.
    let server = NameServer::start_with(Program::Bind, "this is no zone\n").await;
    let service = server.service();
    let error = service.read().await.expect_err("there is no zone");
    assert!(matches!(error, NameError::ServerFailure { .. }), "{error:?}");
    assert!(error.to_string().contains("SERVFAIL"), "{error}");
    let error = swap_error(&server.settings(), clock()).await;
    let is_said = matches!(error, NameError::ServerFailure { .. } | NameError::NotAuthoritative { .. });
    assert!(is_said, "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_down_is_unreachable() {
    let mut server = NameServer::start(Program::Bind).await;
    server.stop();
    let error = swap_error(&server.settings(), clock()).await;
    assert!(matches!(error, NameError::Unreachable { .. }), "{error:?}");
}

/// Answers every message with its own bytes after `change`.
async fn strange_server(change: fn(Vec<u8>) -> Option<Vec<u8>>) -> (Address, JoinSet<()>) {
    let address = free_address();
    let listener = tokio::net::TcpListener::bind((address.host.as_str(), address.port)).await.expect("bound");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let Ok(length) = stream.read_u16().await else { continue };
            let mut message = vec![0; usize::from(length)];
            if stream.read_exact(&mut message).await.is_err() {
                continue;
            }
            match change(message) {
                Some(answer) => {
                    let length = u16::try_from(answer.len()).expect("short");
                    let _sent = stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await;
                }
                // Never answers, and keeps the connection.
                None => tokio::time::sleep(Duration::from_secs(3600)).await,
            }
        }
    });
    (address, tasks)
}

async fn read_from(address: Address) -> NameError {
    let mut settings = NameServer::start(Program::Bind).await.settings();
    settings.servers = vec![address];
    Rfc2136::new(&settings, clock()).expect("good").read().await.expect_err("it must not succeed")
}

#[tokio::test]
async fn truncated_silent_and_garbled_answers_are_told_apart() {
    // QR, AA and TC in the third byte.
    let (address, _truncating) = strange_server(|mut message| {
        message[2] |= 0b1000_0110;
        Some(message)
    })
    .await;
    let error = read_from(address).await;
    assert!(matches!(error, NameError::Truncated { .. }), "{error:?}");

    let (address, _garbling) = strange_server(|message| Some(message[..5].to_vec())).await;
    let error = read_from(address).await;
    assert!(matches!(error, NameError::Answered { .. }), "{error:?}");

    let (address, _lame) = strange_server(|mut message| {
        message[2] |= 0b1000_0000;
        Some(message)
    })
    .await;
    let error = read_from(address).await;
    assert!(matches!(error, NameError::NotAuthoritative { .. }), "{error:?}");

    let (address, _silent) = strange_server(|_| None).await;
    let error = read_from(address).await;
    assert!(matches!(&error, NameError::Unreachable { problem, .. } if problem.contains("no answer")), "{error:?}");
}
