//! Who leads among several controllers, and what only the leader may do.
//!
//! The election is the store's own (etcd). A controller that is the only one leads for ever.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::store::{Store, StoreError};
use crate::domain::clock::Moment;

/// A controller as the others see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Its name.
    pub name: String,
    /// Base URL of its API.
    pub url: String,
}

/// The election.
#[async_trait]
pub trait Leadership: Send + Sync {
    /// Returns once this controller leads.
    async fn lead(&self) -> Result<Arc<dyn Term>, StoreError>;

    /// Who leads now, as far as is known here; never waits.
    fn leader(&self) -> Option<Leader>;
}

/// One time of leading. What is written through [`Term::store`] lands only while it lasts.
#[async_trait]
pub trait Term: Send + Sync {
    /// The store as this leader writes it: every write is conditional on this very session of leadership.
    fn store(&self) -> Arc<dyn Store>;

    /// On this host's clock, the moment until which nobody else can lead; `None`: nobody else ever does.
    fn leads_until(&self) -> Option<Moment>;

    /// Returns when the term has ended, for whatever reason.
    async fn ended(&self);

    /// Gives the leadership back, so that nobody waits for its time to live.
    async fn resign(&self);
}

/// The term of a controller that is the only one.
pub struct Sole {
    store: Arc<dyn Store>,
}

impl Sole {
    /// Leads for ever, on this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }
}

#[async_trait]
impl Term for Sole {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn leads_until(&self) -> Option<Moment> {
        None
    }

    async fn ended(&self) {
        std::future::pending().await
    }

    async fn resign(&self) {}
}
