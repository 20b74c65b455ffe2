//! Tokens that are made while the controller runs: in memory for every request, in the store for the next controller.
//!
//! Only the leader makes and ends them, so what it has in memory is what is stored.

use std::sync::{PoisonError, RwLock};

use sha2::{Digest as _, Sha256};

use crate::api::authentication::{Caller, Identity, TokenDigest};
use crate::api::tokens::{self, StoredToken, TokenDocument, TokenReply, TokenRequest};
use crate::api::wire::Problem;
use crate::domain::clock::WallTime;
use crate::ports::{Card, Drawer, Store, StoreError};

/// Begins every secret, so that scanners for leaked secrets find it.
const SECRET_PREFIX: &str = "sgt_";

/// Every token that lives in the store.
pub(super) struct Tokens {
    known: RwLock<Vec<StoredToken>>,
}

impl Tokens {
    /// Reads them.
    pub async fn load(store: &dyn Store) -> Result<Self, StoreError> {
        let cards = store.list_cards(Drawer::Tokens).await?;
        let read = |card: &Card| match serde_json::from_str(&card.body) {
            Ok(token) => Some(token),
            Err(error) => {
                tracing::error!(%error, token = card.key, "a stored token is not understood, and admits nobody");
                None
            }
        };
        let mut known: Vec<StoredToken> = cards.iter().filter_map(read).collect();
        known.reverse();
        Ok(Self { known: RwLock::new(known) })
    }

    /// Whose token has this digest.
    pub fn identity(&self, digest: &TokenDigest, now: WallTime) -> Option<Identity> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        tokens::find(&known, digest, now).map(StoredToken::identity)
    }

    /// Every one, without its digest.
    pub fn list(&self) -> Vec<TokenDocument> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|stored| stored.token.clone()).collect()
    }

    /// Makes one.
    pub async fn create(
        &self,
        store: &dyn Store,
        request: TokenRequest,
        caller: &Caller,
        now: WallTime,
    ) -> Result<TokenReply, Problem> {
        if let Some(problem) = request.name_problem() {
            return Err(Problem::bad_request(problem));
        }
        if request.role > caller.role {
            return Err(Problem::forbidden("a token has at most the role of whoever makes it"));
        }
        let expires = match request.expires_in_seconds {
            Some(0) => return Err(Problem::bad_request("expires_in_seconds must be more than 0")),
            Some(seconds) => {
                // Beyond some thousand years a date has no text any more, and the token lives for ever.
                let seconds = std::time::Duration::from_secs(seconds.min(100 * 366 * 86_400));
                Some(now.plus(seconds))
            }
            None => None,
        };
        let secret = secret();
        let stored = StoredToken {
            sha256: TokenDigest::of(&secret).to_hexadecimal(),
            token: TokenDocument {
                name: request.name,
                role: request.role,
                clusters: request.clusters,
                created: Some(now),
                created_by: Some(caller.name.clone()),
                expires,
            },
        };
        let body = serde_json::to_string(&stored).map_err(|error| Problem::internal(error.to_string()))?;
        let card = Card { key: stored.token.name.clone(), body };
        let taken = store.insert_card(Drawer::Tokens, &card).await;
        if taken.map_err(|error| Problem::unavailable(error.to_string()))?.is_some() {
            let name = &stored.token.name;
            return Err(Problem::refused(format!("there is a token {name} already: revoke it first"), Vec::new()));
        }
        let token = stored.token.clone();
        self.known.write().unwrap_or_else(PoisonError::into_inner).push(stored);
        Ok(TokenReply::new(token, secret))
    }

    /// Ends one; from the answer on it admits nobody.
    pub async fn revoke(&self, store: &dyn Store, name: &str) -> Result<String, Problem> {
        // Out of memory first: if the store does not answer, the token is at least not used meanwhile.
        self.known.write().unwrap_or_else(PoisonError::into_inner).retain(|stored| stored.token.name != name);
        let removed = store.remove_card(Drawer::Tokens, name).await;
        let removed = removed.map_err(|error| {
            Problem::unknown_outcome(format!(
                "{error}; token {name} is refused until this controller restarts: revoke it again"
            ))
        })?;
        if removed {
            Ok(format!("token {name} was revoked"))
        } else {
            Err(Problem::not_found(format!(
                "there is no token {name} in the store; one of the configuration is taken out there"
            )))
        }
    }
}

/// 222 random bits.
fn secret() -> String {
    let mut digest = Sha256::new();
    for _ in 0..3 {
        digest.update(uuid::Uuid::now_v7().as_bytes());
    }
    let digest = digest.finalize();
    SECRET_PREFIX.to_owned() + &digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
}
