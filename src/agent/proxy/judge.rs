//! What a proxy's agent makes of what it is told. Pure: no clock, no socket, no file.
//!
//! Invariant: (epoch, record number) of what is in force never goes down.

use crate::config::agent::ProxyNode;
use crate::domain::command::ProxyAssignment;
use crate::domain::ids::{ClusterName, NodeName, SiteName};
use crate::domain::traffic::{Backends, READ_WEIGHT};
use crate::ports::traffic::{Arrangement, ProxyRecord, ReadServer, Route};

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
        backends: assignment.backends.clone().or_else(|| record.and_then(|record| record.backends.clone())),
    })
}

/// Reads and applications as this proxy, which stands in `site`, serves them. `own`: the nodes as its file lists them, which is
/// all there is before a controller has said anything. A node that the controllers do not name any more is left out.
pub fn arrangement(site: &SiteName, own: &[ProxyNode], backends: Option<&Backends>) -> Arrangement {
    let Some(backends) = backends.filter(|backends| !backends.members.is_empty()) else {
        let nodes = own.iter().map(|node| ReadServer {
            node: node.name.clone(),
            address: node.address.clone(),
            agent: node.agent.clone(),
            weight: READ_WEIGHT,
        });
        return Arrangement { nodes: nodes.collect(), ..Arrangement::default() };
    };
    let nodes = backends.members.iter().filter_map(|member| {
        let own = own.iter().find(|node| node.name == member.node);
        Some(ReadServer {
            node: member.node.clone(),
            address: own.map(|node| &node.address).or(member.address.as_ref())?.clone(),
            agent: own.map(|node| &node.agent).or(member.agent.as_ref())?.clone(),
            weight: match member.serves_reads {
                false => 0,
                true if member.site == *site => READ_WEIGHT,
                true => backends.reads.other_site_weight,
            },
        })
    });
    Arrangement {
        nodes: nodes.collect(),
        read_max_lag_bytes: Some(backends.reads.max_lag_bytes),
        active_site: backends.active_site.clone(),
        applications: backends.applications.clone(),
    }
}

/// Where the write port is to lead under a record.
pub fn wanted(record: &ProxyRecord) -> Route {
    match &record.target {
        Some(target) if !record.hold => Route::Leads(target.clone()),
        _ => Route::Holding,
    }
}

/// The same backends after the nodes' own word that `primary` is the primary: the controllers' last word, moved on.
pub fn moved_to(backends: &Backends, primary: &NodeName) -> Backends {
    let former = backends.active_site.clone();
    let mut moved = backends.clone();
    for member in &mut moved.members {
        member.serves_reads = member.node != *primary;
    }
    let site = moved.members.iter().find(|member| member.node == *primary).map(|member| member.site.clone());
    Backends { active_site: site.or(former), ..moved }
}

/// The only node whose agent says that it is the primary, or why nobody is followed.
/// Agents that do not answer count as "no": a node that nobody reaches is of no use to clients either.
pub fn single_primary(answers: &[(&ReadServer, Result<bool, String>)]) -> Result<ReadServer, String> {
    let says_yes: Vec<&ReadServer> =
        answers.iter().filter(|(_, answer)| *answer == Ok(true)).map(|(node, _)| *node).collect();
    match says_yes.as_slice() {
        [only] => Ok((*only).clone()),
        [] => {
            let words: Vec<String> = answers
                .iter()
                .map(|(node, answer)| match answer {
                    Ok(_) => format!("{}: not primary", node.node),
                    Err(problem) => format!("{}: {problem}", node.node),
                })
                .collect();
            Err(format!("no node says that it is the primary ({})", words.join("; ")))
        }
        several => {
            let names: Vec<&str> = several.iter().map(|node| node.node.as_str()).collect();
            Err(format!("several nodes say that they are the primary: {}", names.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::command::ProxyTarget;
    use crate::domain::epoch::{Epoch, RecordNumber};
    use crate::domain::ids::Address;
    use crate::domain::traffic::{Member, ReadPolicy};

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
            backends: None,
        }
    }

    fn node(name: &str, port: u16) -> ReadServer {
        ReadServer {
            node: NodeName::new(name).expect("valid"),
            address: Address::new("10.0.0.1", port),
            agent: Address::new("10.0.0.1", 8008),
            weight: 0,
        }
    }

    fn member(name: &str, site: &str, serves_reads: bool) -> Member {
        Member {
            node: NodeName::new(name).expect("valid"),
            site: SiteName::new(site).expect("valid"),
            address: Some(Address::new("10.0.0.9", 5432)),
            agent: Some(Address::new("10.0.0.9", 8008)),
            serves_reads,
        }
    }

    #[test]
    fn reads_go_to_standbys_of_the_own_site_first_and_members_come_and_go_with_the_controllers_word() {
        let own = ["n1", "n4"].map(|name| ProxyNode {
            name: NodeName::new(name).expect("valid"),
            address: Address::new("10.0.0.1", 1),
            server_address: None,
            agent: Address::new("10.0.0.1", 2),
        });
        let east = SiteName::new("east").expect("valid");
        let before = arrangement(&east, &own, None);
        assert_eq!(before.nodes.iter().map(|node| node.weight).collect::<Vec<_>>(), [READ_WEIGHT; 2]);
        assert_eq!((before.active_site, before.read_max_lag_bytes), (None, None));

        let backends = Backends {
            active_site: Some(east.clone()),
            members: vec![member("n1", "east", false), member("n2", "east", true), member("n3", "west", true)],
            reads: ReadPolicy { max_lag_bytes: 7, other_site_weight: 5 },
            applications: Vec::new(),
        };
        let told = arrangement(&east, &own, Some(&backends));
        let servers: Vec<(&str, u16, u8)> =
            told.nodes.iter().map(|node| (node.node.as_str(), node.address.port, node.weight)).collect();
        // n1 as its own file says, n2 and n3 as told, n4 gone.
        assert_eq!(servers, [("n1", 1, 0), ("n2", 5432, 100), ("n3", 5432, 5)]);
        assert_eq!(told.read_max_lag_bytes, Some(7));

        let assigned = ProxyAssignment { backends: Some(backends.clone()), ..assignment(1, 1, Some(1), false) };
        let record = judge(&cluster(), None, &assigned).expect("taken");
        assert_eq!(record.backends.as_ref(), Some(&backends));
        let moved = moved_to(&backends, &NodeName::new("n3").expect("valid"));
        assert_eq!(moved.active_site.as_ref().map(SiteName::as_str), Some("west"));
        let weights: Vec<u8> = arrangement(&east, &own, Some(&moved)).nodes.iter().map(|node| node.weight).collect();
        assert_eq!(weights, [100, 100, 0]);
        let silent = judge(&cluster(), Some(&record), &assignment(1, 2, Some(1), false)).expect("taken");
        assert_eq!(silent.backends, Some(backends), "a controller that says nothing of them changes nothing");
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
        assert_eq!(single_primary(&answers(Ok(false), Ok(true))), Ok(two.clone()));
        assert_eq!(single_primary(&answers(Err("gone".into()), Ok(true))), Ok(two.clone()));
        let none = single_primary(&answers(Ok(false), Err("gone".into()))).expect_err("nobody");
        assert_eq!(none, "no node says that it is the primary (n1: not primary; n2: gone)");
        let both = single_primary(&answers(Ok(true), Ok(true))).expect_err("two");
        assert_eq!(both, "several nodes say that they are the primary: n1, n2");
    }
}
