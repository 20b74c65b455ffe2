//! Route 53 against moto's server, which answers its API. It checks no signature, serves no DNS, and lets two creations of one
//! record pass where Route 53 refuses the second: races are not shown here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use stormglass::adapters::dns::{Route53, Route53Settings};
use stormglass::domain::ids::Address;
use stormglass::domain::name::NameRecord;
use stormglass::ports::name::{NameError, NameService};
use tokio::time::{Instant, sleep};

use super::server::{COMPANION, NAME, PATIENCE, ZONE, clock, epoch, free_address, record};

/// A server of moto that runs.
struct Moto {
    address: Address,
    child: Child,
}

/// `moto_server` of the machine, or of a virtual environment that is made below `target/` once.
fn moto_server() -> PathBuf {
    let works = |program: &Path| {
        Command::new(program)
            .arg("--help")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|it| it.success())
    };
    let installed = PathBuf::from("moto_server");
    if works(&installed) {
        return installed;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("moto");
    let program = folder.join("bin/moto_server");
    if works(&program) {
        return program;
    }
    let run = |command: &mut Command| {
        let output = command.output().expect("python3 is there: run scripts/setup");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder));
    run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", "moto[server]"]));
    program
}

impl Moto {
    async fn start() -> Self {
        let address = free_address();
        let log = fs::File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("moto.log")).expect("create");
        let child = Command::new(moto_server())
            .args(["-H", &address.host, "-p", &address.port.to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("twice"))
            .stderr(log)
            .spawn()
            .expect("started");
        let moto = Self { address, child };
        let end = Instant::now() + PATIENCE;
        while reqwest::get(moto.url()).await.is_err() {
            assert!(Instant::now() < end, "moto does not answer");
            sleep(std::time::Duration::from_millis(50)).await;
        }
        moto
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes the zone and returns its identity.
    async fn make_zone(&self) -> String {
        let body = format!(
            "<CreateHostedZoneRequest xmlns=\"https://route53.amazonaws.com/doc/2013-04-01/\"><Name>{ZONE}</Name>\
             <CallerReference>test</CallerReference></CreateHostedZoneRequest>"
        );
        let request = reqwest::Client::new().post(format!("{}/2013-04-01/hostedzone", self.url())).body(body);
        let signed_for =
            "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/route53/aws4_request, SignedHeaders=host, Signature=0";
        let answer =
            request.header("authorization", signed_for).send().await.expect("answered").text().await.expect("text");
        let (_, rest) = answer.split_once("<Id>").unwrap_or_else(|| panic!("no zone: {answer}"));
        rest.split_once("</Id>").expect("an end").0.to_owned()
    }

    fn service(&self, hosted_zone: &str) -> Route53 {
        let settings = Route53Settings {
            name: NAME.to_owned(),
            companion: COMPANION.to_owned(),
            zone: ZONE.to_owned(),
            hosted_zone: hosted_zone.to_owned(),
            endpoint: self.url(),
            access_key: "key".to_owned(),
            secret_key: "secret".to_owned(),
            servers: Vec::new(),
        };
        Route53::new(&settings, clock()).expect("good settings")
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _ended = self.child.wait();
    }
}

#[tokio::test]
async fn name_and_companion_change_in_one_batch_and_the_stale_change_nothing() {
    let moto = Moto::start().await;
    let zone = moto.make_zone().await;
    let service = moto.service(&zone);
    let mut seen = service.read().await.expect("answered");
    assert_eq!(seen, NameRecord::default());
    // moto never lets a record be created again that was there once, so no value returns.
    let kinds: [&[&str]; 5] =
        [&["10.0.1.1"], &["10.0.2.1", "10.0.2.2", "fd00::1"], &["p1.example.test"], &["p2.example.net"], &["10.0.3.1"]];
    let mut earlier = vec![seen.clone()];
    for (number, values) in kinds.iter().enumerate() {
        let wanted = record(values, Some(&epoch(number as u64 + 1)));
        service.swap(&seen, &wanted).await.unwrap_or_else(|error| panic!("{values:?}: {error}"));
        seen = service.read().await.expect("answered");
        assert_eq!(seen, wanted);
        earlier.push(seen.clone());
    }
    earlier.pop();
    for stale in &earlier {
        let attempt = service.swap(stale, &record(&["10.0.9.9"], Some(&epoch(2)))).await;
        assert_eq!(attempt, Err(NameError::Conflict), "after {stale:?}");
    }
    assert_eq!(service.read().await, Ok(seen));
    assert!(service.answers().await.is_empty(), "no server was named");
}

#[tokio::test]
async fn a_zone_that_is_not_there_and_an_endpoint_that_is_down_are_said_in_words() {
    let moto = Moto::start().await;
    let error = moto.service("ZNOTTHERE").read().await.expect_err("no such zone");
    assert!(error.to_string().contains("NoSuchHostedZone"), "{error}");
    let service = moto.service("ZNOTTHERE");
    drop(moto);
    let error = service.read().await.expect_err("it is down");
    assert!(matches!(error, NameError::Unreachable { .. }), "{error:?}");
}
