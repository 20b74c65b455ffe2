//! The store, with every call timed and every write that fails noticed. Passes calls on; decides and repeats nothing.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::event_loop::Event;
use crate::domain::epoch::RecordNumber;
use crate::domain::ids::{ClusterName, OperationId};
use crate::domain::operation::Operation;
use crate::domain::record::ClusterRecord;
use crate::domain::trail::{AuditEntry, AuditRow, EventRow};
use crate::ports::{Card, Clock, Drawer, Page, Paged, Store, StoreError, Swap};
use crate::telemetry::metrics::ControllerMetrics;

/// What all watched stores of one controller share.
#[derive(Clone)]
pub(super) struct StoreWatch {
    clock: Arc<dyn Clock>,
    metrics: Arc<ControllerMetrics>,
    events: mpsc::Sender<Event>,
    /// Kinds of writes whose last one failed: that the next one fails too is no news.
    failing: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl StoreWatch {
    pub fn new(clock: Arc<dyn Clock>, metrics: Arc<ControllerMetrics>, events: mpsc::Sender<Event>) -> Self {
        Self { clock, metrics, events, failing: Arc::default() }
    }

    /// The same store, watched.
    pub fn over(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        Arc::new(Watched { watch: self.clone(), store })
    }

    async fn timed<T>(&self, action: &str, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let began = self.clock.now();
        let outcome = call.await;
        self.metrics.observe_store(action, self.clock.now().since(began));
        outcome
    }

    async fn write<T>(
        &self,
        action: &'static str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let outcome = self.timed(action, call).await;
        let is_news = {
            let mut failing = self.failing.lock().expect("nothing panics while it is held");
            match &outcome {
                Ok(_) => {
                    failing.remove(action);
                    false
                }
                Err(_) => failing.insert(action),
            }
        };
        if let Some(error) = outcome.as_ref().err().filter(|_| is_news) {
            // A loop that is gone, or too busy to be told, logs the failure itself.
            let _ = self.events.try_send(Event::StoreFailed { problem: error.to_string() });
        }
        outcome
    }
}

struct Watched {
    watch: StoreWatch,
    store: Arc<dyn Store>,
}

#[async_trait]
impl Store for Watched {
    async fn load_record(&self, cluster: &ClusterName) -> Result<Option<ClusterRecord>, StoreError> {
        self.watch.timed("load_record", self.store.load_record(cluster)).await
    }

    async fn swap_record(&self, expected: Option<RecordNumber>, record: &ClusterRecord) -> Result<Swap, StoreError> {
        self.watch.write("swap_record", self.store.swap_record(expected, record)).await
    }

    async fn save_operation(&self, operation: &Operation) -> Result<(), StoreError> {
        self.watch.write("save_operation", self.store.save_operation(operation)).await
    }

    async fn load_operation(&self, id: &OperationId) -> Result<Option<Operation>, StoreError> {
        self.watch.timed("load_operation", self.store.load_operation(id)).await
    }

    async fn page_operations(&self, cluster: &ClusterName, page: Page) -> Result<Paged<Operation>, StoreError> {
        self.watch.timed("list_operations", self.store.page_operations(cluster, page)).await
    }

    async fn unfinished_operations(&self, cluster: &ClusterName) -> Result<Vec<Operation>, StoreError> {
        self.watch.timed("unfinished_operations", self.store.unfinished_operations(cluster)).await
    }

    async fn append_event(&self, event: &EventRow) -> Result<(), StoreError> {
        self.watch.write("append_event", self.store.append_event(event)).await
    }

    async fn page_events(&self, cluster: &ClusterName, page: Page) -> Result<Paged<EventRow>, StoreError> {
        self.watch.timed("list_events", self.store.page_events(cluster, page)).await
    }

    async fn append_audit(&self, row: &AuditRow) -> Result<(), StoreError> {
        self.watch.write("append_audit", self.store.append_audit(row)).await
    }

    async fn page_audit(&self, page: Page) -> Result<Paged<AuditEntry>, StoreError> {
        self.watch.timed("list_audit", self.store.page_audit(page)).await
    }

    async fn insert_card(&self, drawer: Drawer, card: &Card) -> Result<Option<Card>, StoreError> {
        self.watch.write("insert_card", self.store.insert_card(drawer, card)).await
    }

    async fn replace_card(&self, drawer: Drawer, card: &Card) -> Result<(), StoreError> {
        self.watch.write("replace_card", self.store.replace_card(drawer, card)).await
    }

    async fn load_card(&self, drawer: Drawer, key: &str) -> Result<Option<Card>, StoreError> {
        self.watch.timed("load_card", self.store.load_card(drawer, key)).await
    }

    async fn list_cards(&self, drawer: Drawer) -> Result<Vec<Card>, StoreError> {
        self.watch.timed("list_cards", self.store.list_cards(drawer)).await
    }

    async fn remove_card(&self, drawer: Drawer, key: &str) -> Result<bool, StoreError> {
        self.watch.write("remove_card", self.store.remove_card(drawer, key)).await
    }
}
