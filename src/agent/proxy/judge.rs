//! What a proxy's agent makes of what it is told. Pure: no clock, no socket, no file.
//!
//! Invariant: (epoch, record number) of what is in force never goes down.

use crate::config::agent::ProxyNode;
use crate::domain::command::ProxyAssignment;
use crate::domain::ids::{Address, ClusterName};
use crate::ports::traffic::{ProxyRecord, Route};

/// The record that an assignment leads to, or why it is not taken.
pub fn judge(
    cluster: &ClusterName,
    record: Option<&ProxyRecord>,
    assignment: &ProxyAssignment,
) -> Result<ProxyRecord, String> {
    if assignment.cluster != *cluster {
        return Err(format!(
            "refused: this proxy serves cluster {cluster}, the assignment is for {}",
            assignment.cluster
        ));
    }
    if let Some(record) = record
        && (assignment.epoch, assignment.number) < (record.epoch, record.number)
    {
        return Err(format!(
            "refused: epoch {} record {} is older than epoch {} record {}, which this proxy has seen",
            assignment.epoch, assignment.number, record.epoch, record.number
        ));
    }
    if let Some(record) = record
        && record.leader == assignment.leader
        && assignment.sequence < record.sequence
    {
        return Err(format!(
            "late: {} has said more since ({} < {})",
            assignment.leader, assignment.sequence, record.sequence
        ));
    }
    let former = || record.and_then(|record| record.target.clone());
    Ok(ProxyRecord {
        cluster: cluster.clone(),
        epoch: assignment.epoch,
        number: assignment.number,
        target: assignment.primary.as_ref().map(|primary| primary.address.clone()).or_else(former),
        hold: assignment.hold || assignment.primary.is_none(),
        leader: assignment.leader.clone(),
        sequence: assignment.sequence,
    })
}

/// Where the write port is to lead under a record.
pub fn wanted(record: &ProxyRecord) -> Route {
    match &record.target {
        Some(target) if !record.hold => Route::Leads(target.clone()),
        _ => Route::Holding,
    }
}

/// The only node whose agent says that it is the primary, or why nobody is followed.
/// Agents that do not answer count as "no": a node that nobody reaches is of no use to clients either.
pub fn single_primary(answers: &[(&ProxyNode, Result<bool, String>)]) -> Result<Address, String> {
    let says_yes: Vec<&ProxyNode> =
        answers.iter().filter(|(_, answer)| *answer == Ok(true)).map(|(node, _)| *node).collect();
    match says_yes.as_slice() {
        [only] => Ok(only.address.clone()),
        [] => {
            let words: Vec<String> = answers
                .iter()
                .map(|(node, answer)| match answer {
                    Ok(_) => format!("{}: not primary", node.name),
                    Err(problem) => format!("{}: {problem}", node.name),
                })
                .collect();
            Err(format!("no node says that it is the primary ({})", words.join("; ")))
        }
        several => {
            let names: Vec<&str> = several.iter().map(|node| node.name.as_str()).collect();
            Err(format!("several nodes say that they are the primary: {}", names.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::command::ProxyTarget;
    use crate::domain::epoch::{Epoch, RecordNumber};
    use crate::domain::ids::NodeName;

    fn cluster() -> ClusterName {
        ClusterName::new("main").expect("valid")
    }

    fn assignment(epoch: u64, number: u64, port: Option<u16>, hold: bool) -> ProxyAssignment {
        ProxyAssignment {
            cluster: cluster(),
            epoch: Epoch(epoch),
            number: RecordNumber(number),
            primary: port.map(|port| ProxyTarget {
                node: NodeName::new("n1").expect("valid"),
                address: Address::new("10.0.0.1", port),
            }),
            hold,
            leader: "c1".to_owned(),
            sequence: 0,
        }
    }

    fn node(name: &str, port: u16) -> ProxyNode {
        ProxyNode {
            name: NodeName::new(name).expect("valid"),
            address: Address::new("10.0.0.1", port),
            server_address: None,
            agent: Address::new("10.0.0.1", 8008),
        }
    }

    #[test]
    fn older_assignments_and_other_clusters_are_refused() {
        let record = judge(&cluster(), None, &assignment(3, 7, Some(1), false)).expect("first");
        for (epoch, number) in [(2, 9), (3, 6), (0, 0)] {
            let refusal = judge(&cluster(), Some(&record), &assignment(epoch, number, Some(2), false));
            assert!(refusal.expect_err("older").contains("older than epoch 3 record 7"), "({epoch}, {number})");
        }
        for (epoch, number) in [(3, 7), (3, 8), (4, 0)] {
            assert!(judge(&cluster(), Some(&record), &assignment(epoch, number, Some(2), false)).is_ok());
        }
        let elsewhere = judge(&ClusterName::new("other").expect("valid"), None, &assignment(9, 9, None, false));
        assert!(elsewhere.expect_err("other cluster").contains("serves cluster other"));
    }

    #[test]
    fn what_one_controller_said_earlier_does_not_undo_what_it_said_since() {
        let hold = ProxyAssignment { sequence: 4, ..assignment(3, 7, Some(1), true) };
        let lead = ProxyAssignment { sequence: 5, ..assignment(3, 7, Some(1), false) };
        let led = judge(&cluster(), None, &lead).expect("first");
        assert!(judge(&cluster(), Some(&led), &hold).expect_err("late").contains("has said more since"));
        let successor = ProxyAssignment { leader: "c2".to_owned(), sequence: 1, ..hold };
        assert!(judge(&cluster(), Some(&led), &successor).is_ok(), "another controller counts for itself");
    }

    #[test]
    fn nobody_known_means_hold_and_a_hold_remembers_the_last_target() {
        let none = judge(&cluster(), None, &assignment(0, 0, None, false)).expect("taken");
        assert_eq!(wanted(&none), Route::Holding);
        let led = judge(&cluster(), Some(&none), &assignment(1, 1, Some(5), false)).expect("taken");
        assert_eq!(wanted(&led), Route::Leads(Address::new("10.0.0.1", 5)));
        let held = judge(&cluster(), Some(&led), &assignment(1, 2, None, true)).expect("taken");
        assert_eq!(wanted(&held), Route::Holding);
        assert_eq!(held.target, led.target);
    }

    #[test]
    fn only_a_single_primary_is_followed() {
        let (one, two) = (node("n1", 1), node("n2", 2));
        let answers = |first, second| [(&one, first), (&two, second)];
        assert_eq!(single_primary(&answers(Ok(false), Ok(true))), Ok(Address::new("10.0.0.1", 2)));
        assert_eq!(single_primary(&answers(Err("gone".into()), Ok(true))), Ok(Address::new("10.0.0.1", 2)));
        let none = single_primary(&answers(Ok(false), Err("gone".into()))).expect_err("nobody");
        assert_eq!(none, "no node says that it is the primary (n1: not primary; n2: gone)");
        let both = single_primary(&answers(Ok(true), Ok(true))).expect_err("two");
        assert_eq!(both, "several nodes say that they are the primary: n1, n2");
    }
}
