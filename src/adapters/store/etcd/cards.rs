//! Cards, and the audit log's chain: small writes that are conditional on what they replace.
//!
//! A row of the audit log is written under its own number, and only if nobody else has taken that: a request that got lost and
//! arrives late finds its place taken, so that no number is given twice.

use etcd_client::{DeleteOptions, TxnOp};

use super::write::{Writer, Written, unchanged};
use super::{EtcdStore, kept};
use crate::domain::trail::{AuditEntry, AuditRow};
use crate::ports::store::{Card, Drawer, Page, StoreError};
use crate::telemetry::chain;

/// How often a write is tried again because somebody was faster.
const TRIES: usize = 8;

impl EtcdStore {
    pub(super) async fn append_chained(&self, writer: &Writer, row: &AuditRow) -> Result<(), StoreError> {
        const ACTION: &str = "append an audit row";
        // One at a time: each needs the hash of the one before it.
        let mut head = writer.audit_head().await;
        for _ in 0..TRIES {
            let last: Option<AuditEntry> = match head.take() {
                Some(known) => Some(known),
                None => {
                    let page = self.newest(ACTION, "an audit row", &self.keys.audit(), Page::newest(1)).await?;
                    // Rows of an older version have no place in the chain: it begins behind them.
                    page.rows.into_iter().next().filter(|entry: &AuditEntry| entry.number > 0)
                }
            };
            let entry = chain::append(last.as_ref(), row.clone());
            let key = self.keys.audit_row(entry.number);
            let body = self.body(ACTION, &entry)?;
            let writes = vec![TxnOp::put(key.as_str(), body.as_slice(), None)];
            match self.fenced(writer, ACTION, vec![unchanged(&key, 0)], writes, &key).await? {
                Written::Done(_) => {
                    *head = Some(entry);
                    drop(head);
                    self.trim(writer, &self.keys.audit(), kept::AUDIT).await;
                    return Ok(());
                }
                // The former try of this very row had landed.
                Written::Differs(Some(pair)) if pair.value() == body => {
                    *head = Some(entry);
                    return Ok(());
                }
                Written::Differs(_) => {}
            }
        }
        Err(self.connection.failed(ACTION, "the end of the audit log moves all the time"))
    }

    pub(super) async fn put_card_in(
        &self,
        writer: &Writer,
        drawer: Drawer,
        card: &Card,
    ) -> Result<Option<Card>, StoreError> {
        const ACTION: &str = "put a card in";
        let key = self.keys.card(drawer, &card.key);
        if drawer == Drawer::Tokens && self.read_cards(drawer).await?.len() >= drawer.kept() {
            return Err(self.connection.failed(ACTION, format!("too many {}: revoke some", drawer.label())));
        }
        let writes = vec![TxnOp::put(key.as_str(), card.body.as_str(), None)];
        match self.fenced(writer, ACTION, vec![unchanged(&key, 0)], writes, &key).await? {
            Written::Done(_) => {
                if drawer != Drawer::Tokens {
                    self.trim(writer, &self.keys.drawer(drawer), drawer.kept()).await;
                }
                Ok(None)
            }
            // The former try of this very card had landed: bodies that must differ have something of their own in them.
            Written::Differs(Some(pair)) if pair.value() == card.body.as_bytes() => Ok(None),
            Written::Differs(found) => Ok(found
                .map(|pair| Card { key: card.key.clone(), body: String::from_utf8_lossy(pair.value()).into_owned() })),
        }
    }

    pub(super) async fn rewrite_card(&self, writer: &Writer, drawer: Drawer, card: &Card) -> Result<(), StoreError> {
        const ACTION: &str = "replace a card";
        let key = self.keys.card(drawer, &card.key);
        for _ in 0..TRIES {
            let Some((_, revision)) = self.read_card(drawer, &card.key).await? else { return Ok(()) };
            let writes = vec![TxnOp::put(key.as_str(), card.body.as_str(), None)];
            match self.fenced(writer, ACTION, vec![unchanged(&key, revision)], writes, &key).await? {
                Written::Done(_) => return Ok(()),
                Written::Differs(Some(pair)) if pair.value() == card.body.as_bytes() => return Ok(()),
                Written::Differs(_) => {}
            }
        }
        Err(self.connection.failed(ACTION, "another writer changes it all the time"))
    }

    pub(super) async fn take_card_out(&self, writer: &Writer, drawer: Drawer, key: &str) -> Result<bool, StoreError> {
        const ACTION: &str = "remove a card";
        let name = self.keys.card(drawer, key);
        for _ in 0..TRIES {
            let Some((_, revision)) = self.read_card(drawer, key).await? else { return Ok(false) };
            let writes = vec![TxnOp::delete(name.as_str(), None::<DeleteOptions>)];
            if let Written::Done(_) =
                self.fenced(writer, ACTION, vec![unchanged(&name, revision)], writes, &name).await?
            {
                return Ok(true);
            }
        }
        Err(self.connection.failed(ACTION, "another writer changes it all the time"))
    }
}
