//! Agents and controllers of two versions: what one says, the other understands, for as long as a rolling upgrade takes.
//!
//! What never enters: what they decide. A field that every version must send is named here, so that nobody adds one unawares:
//! an agent of the version before would not be understood, and a primary without heartbeats is one that fails over.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stormglass::domain::clock::{BootId, Moment};
use stormglass::domain::command::{AssignedRole, Assignment, Command, CommandEnvelope, HeartbeatReply};
use stormglass::domain::epoch::{Epoch, RecordNumber};
use stormglass::domain::ids::{Address, ClusterName, NodeName, OperationId, SiteName, SystemIdentifier};
use stormglass::domain::lease::{Grant, LeaseTimers};
use stormglass::domain::operation::StepName;
use stormglass::domain::report::{PostgresReport, PostgresState, Probes, Report, Standing, Tags};

fn node(name: &str) -> NodeName {
    NodeName::new(name).expect("valid")
}

fn cluster() -> ClusterName {
    ClusterName::new("main").expect("valid")
}

fn report() -> Report {
    Report {
        cluster: cluster(),
        node: node("n1"),
        site: SiteName::new("a").expect("valid"),
        address: Address::new("n1", 5432),
        boot: BootId("boot".to_owned()),
        incarnation: "1".to_owned(),
        sequence: 1,
        sent_at: Moment(1),
        version: "0".to_owned(),
        standing: Standing { highest_epoch: Epoch(3), ..Standing::default() },
        postgres: PostgresReport {
            state: PostgresState::Running,
            control: None,
            damage: None,
            live: None,
            probes: Probes::default(),
            disk: None,
            memory: None,
        },
        tags: Tags::default(),
        tasks: Default::default(),
        protection: None,
    }
}

fn reply() -> HeartbeatReply {
    let timers = LeaseTimers::for_rto(Duration::from_secs(5));
    HeartbeatReply {
        assignment: Some(Assignment {
            cluster: cluster(),
            system_identifier: SystemIdentifier(7),
            epoch: Epoch(3),
            number: RecordNumber(9),
            role: AssignedRole::Standby { primary: node("n2"), primary_address: Address::new("n2", 5432) },
            peers: BTreeSet::from([node("n2")]),
            eligible: BTreeSet::new(),
            renewers: None,
        }),
        grant: Some(Grant { epoch: Epoch(3), number: RecordNumber(9), timers }),
        paused: false,
        may_leave: false,
        primary_flush_lsn: None,
    }
}

fn envelope() -> CommandEnvelope {
    CommandEnvelope {
        cluster: cluster(),
        epoch: Epoch(3),
        operation: OperationId("1".to_owned()),
        step: StepName::Freeze,
        attempt: 1,
        command: Command::Freeze { consent_to: None, fence_confirmed: None },
    }
}

/// Every version sends exactly these of the object at `place`; the rest may be missing, and what a later version adds is ignored.
fn every_version_sends<T>(whole: &T, place: &str, wanted: &[&str])
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let whole_text = serde_json::to_value(whole).expect("serialised");
    let understood = |value: Value| serde_json::from_value::<T>(value).ok();
    let change = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let mut value = whole_text.clone();
        change(value.pointer_mut(place).and_then(Value::as_object_mut).expect("an object"));
        value
    };
    let later = change(&|object| {
        object.insert("added_by_a_later_version".to_owned(), json!({ "whatever": [1] }));
    });
    assert_eq!(understood(later).as_ref(), Some(whole), "{place}: what a later version adds is ignored");

    let object = whole_text.pointer(place).and_then(Value::as_object).expect("an object");
    let needed: BTreeSet<&str> = object
        .keys()
        .map(String::as_str)
        .filter(|key| {
            let without = change(&|object| {
                object.remove(*key);
            });
            understood(without).is_none()
        })
        .collect();
    assert_eq!(needed, wanted.iter().copied().collect(), "{place}: a new field needs #[serde(default)]");
    let least = change(&|object| object.retain(|key, _| wanted.contains(&key.as_str())));
    assert!(understood(least).is_some(), "{place}: nothing but these");
}

#[test]
fn a_controller_understands_agents_of_other_versions() {
    let report = report();
    let names = [
        "address",
        "boot",
        "cluster",
        "incarnation",
        "node",
        "postgres",
        "sent_at",
        "sequence",
        "site",
        "standing",
        "tags",
        "version",
    ];
    every_version_sends(&report, "", &names);
    every_version_sends(&report, "/standing", &["half_rejoined", "highest_epoch", "highest_number", "operator_fenced"]);
    every_version_sends(&report, "/postgres", &["probes", "state"]);
}

#[test]
fn an_agent_understands_controllers_of_other_versions() {
    let reply = reply();
    every_version_sends(&reply, "", &["paused"]);
    every_version_sends(&reply, "/assignment", &["cluster", "epoch", "number", "peers", "role", "system_identifier"]);
    every_version_sends(&reply, "/grant", &["epoch", "number", "timers"]);
    every_version_sends(&envelope(), "", &["attempt", "cluster", "command", "epoch", "operation", "step"]);
}

/// A command that a later controller knows and this agent does not is refused, not guessed.
#[test]
fn a_command_of_a_later_version_is_refused() {
    let mut text = serde_json::to_value(envelope()).expect("serialised");
    text["command"] = json!({ "added_by_a_later_version": {} });
    serde_json::from_value::<CommandEnvelope>(text).expect_err("nobody knows what it would do");
}
