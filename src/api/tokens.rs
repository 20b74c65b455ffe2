//! Tokens that are made while the controller runs: what the API says about them, and how one is known again.
//!
//! A secret leaves once, in the answer to its creation; kept is its digest alone.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::authentication::{Identity, TokenDigest};
use super::wire::SCHEMA_VERSION;
use crate::domain::access::{RESERVED_NAMES, Role};
use crate::domain::clock::WallTime;
use crate::domain::ids::ClusterName;

/// Body of `POST /api/v1/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Name in the audit log, unlike every other.
    #[schema(pattern = "^[a-z0-9][a-z0-9_.-]{0,62}$")]
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// For which clusters; all if none is named.
    #[serde(default)]
    pub clusters: Vec<ClusterName>,
    /// For how long, in seconds; for ever if not given.
    #[serde(default, deserialize_with = "super::body::whole_number")]
    #[schema(minimum = 1, maximum = 9_007_199_254_740_991_i64)]
    pub expires_in_seconds: Option<u64>,
}

impl TokenRequest {
    /// What is wrong with the name, if anything is.
    pub fn name_problem(&self) -> Option<String> {
        if RESERVED_NAMES.contains(&self.name.as_str()) {
            return Some(format!("the name {:?} is the controller's own: take another one", self.name));
        }
        let is_plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
        let good = self.name.len() <= 63
            && self.name.starts_with(is_plain)
            && self.name.chars().all(|letter| is_plain(letter) || ".-_".contains(letter));
        (!good).then(|| {
            "a token's name has 1 to 63 of a-z, 0-9, '.', '-' and '_', and starts with a letter or digit".to_owned()
        })
    }
}

/// A token as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenDocument {
    /// Name in the audit log.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// For which clusters; all if none is named.
    pub clusters: Vec<ClusterName>,
    /// When it was made; `null`: it stands in the configuration.
    pub created: Option<WallTime>,
    /// Who made it.
    pub created_by: Option<String>,
    /// When it ends; `null`: never.
    pub expires: Option<WallTime>,
}

/// Answer to the creation of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenReply {
    /// The document's version.
    pub schema_version: u32,
    /// The token.
    pub token: TokenDocument,
    /// What is sent as a bearer token. Shown this once; `null` where the answer is repeated for an idempotency key.
    pub secret: Option<String>,
    /// A sentence.
    pub message: String,
}

impl TokenReply {
    /// A new token with its secret.
    pub fn new(token: TokenDocument, secret: String) -> Self {
        let message = format!("token {} with role {} was made; it is shown this once", token.name, token.role.label());
        Self { schema_version: SCHEMA_VERSION, token, secret: Some(secret), message }
    }
}

/// A token as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredToken {
    /// SHA-256 of the secret, in hexadecimal.
    pub sha256: String,
    /// The rest.
    #[serde(flatten)]
    pub token: TokenDocument,
}

impl StoredToken {
    /// The digest; `None` where it was tampered with.
    pub fn digest(&self) -> Option<TokenDigest> {
        TokenDigest::from_hexadecimal(&self.sha256)
    }

    /// Whom it stands for.
    pub fn identity(&self) -> Identity {
        Identity::Person { name: self.token.name.clone(), role: self.token.role, clusters: self.token.clusters.clone() }
    }

    /// True while it may be used.
    pub fn lives_at(&self, now: WallTime) -> bool {
        self.token.expires.is_none_or(|end| now < end)
    }
}

/// The stored token with this digest, if it lives. Looks at every one whatever it finds, so that the time tells nothing.
pub fn find<'t>(tokens: &'t [StoredToken], presented: &TokenDigest, now: WallTime) -> Option<&'t StoredToken> {
    let mut found = None;
    for token in tokens {
        let same = token.digest().is_some_and(|digest| digest.equals_digest(presented));
        if same {
            found = Some(token);
        }
    }
    found.filter(|token| token.lives_at(now))
}
