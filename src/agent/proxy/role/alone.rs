//! What a proxy does while no controller answers: it follows the only node whose agent calls it the primary.
//!
//! Nothing is believed here that [`judge`] does not say.

use futures_util::future::join_all;

use super::*;

impl ProxyRole {
    /// No controller answers: the target is kept while its own agent calls it the primary, else the nodes are asked.
    pub(super) async fn follow_the_nodes(&self) {
        let known = self.state().record.clone();
        let nodes = self.arrangement().nodes;
        if let Some(record) = known.as_ref().filter(|record| !record.hold)
            && let Some(node) = nodes.iter().find(|node| Some(&node.address) == record.target.as_ref())
            && self.parts.health.is_primary(&node.agent, NODE_TIMEOUT).await == Ok(true)
        {
            return self.note(|problems| problems.alone = None);
        }
        let answers = join_all(nodes.iter().map(async |node| {
            let answer = self.parts.health.is_primary(&node.agent, NODE_TIMEOUT).await;
            (node, answer)
        }));
        match judge::single_primary(&answers.await) {
            Ok(primary) => {
                let target = primary.address.clone();
                let _turn = self.turn.lock().await;
                if self.state().record != known {
                    // A controller spoke while the nodes were asked.
                    return;
                }
                let record = ProxyRecord {
                    cluster: self.parts.cluster.clone(),
                    epoch: known.as_ref().map(|record| record.epoch).unwrap_or_default(),
                    number: known.as_ref().map(|record| record.number).unwrap_or_default(),
                    target: Some(target.clone()),
                    hold: false,
                    leader: String::new(),
                    sequence: 0,
                    backends: known
                        .as_ref()
                        .and_then(|record| Some(judge::moved_to(record.backends.as_ref()?, &primary.node))),
                };
                if known.as_ref() != Some(&record) {
                    tracing::warn!(%target, "no controller answers: following the only node that says it is the primary");
                    self.metrics.own_moves_total.inc();
                    // What failed is in the report already.
                    let _reported = self.put_in_force(record, false).await;
                }
                self.note(|problems| problems.alone = None);
            }
            Err(problem) => {
                let words = format!("no controller answers and {problem}: the write port stays as it is");
                self.note(|problems| problems.alone = Some(words));
            }
        }
    }
}
