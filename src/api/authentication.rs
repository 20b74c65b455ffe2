//! Who speaks: bearer tokens, kept as digests and compared in constant time.
//!
//! What an identity may do is the route's to say, not ours; whose an OpenID token is, [`super::openid`]'s.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::openid::OpenId;
use crate::domain::access::Role;
use crate::domain::ids::{ClusterName, HolderName};

/// Header for clients that cannot set `Authorization`.
pub const TOKEN_HEADER: &str = "x-api-token";

/// A person or script that asks for something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Name of the token: the audit log's "who".
    pub name: String,
    /// What the token may do.
    pub role: Role,
    /// For which clusters; all if none is named.
    pub clusters: Vec<ClusterName>,
    /// Address that the request came from.
    pub peer: SocketAddr,
}

impl Caller {
    /// True if the token is for this cluster.
    pub fn may_touch(&self, cluster: &str) -> bool {
        self.clusters.is_empty() || self.clusters.iter().any(|allowed| allowed.as_str() == cluster)
    }
}

/// Whose token it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The token that controllers and agents share.
    Agent,
    /// The certificate of the agent with this name.
    AgentOf(HolderName),
    /// A person's or a script's token.
    Person {
        /// Its name.
        name: String,
        /// What it may do.
        role: Role,
        /// For which clusters; all if none is named.
        clusters: Vec<ClusterName>,
    },
    /// Somebody whom the issuer of OpenID tokens knows, and who may do nothing here.
    WithoutRole {
        /// Its name.
        name: String,
        /// What it is told.
        why: String,
    },
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Agent => formatter.write_str("the agents' token"),
            Identity::AgentOf(name) => write!(formatter, "agent {name}"),
            Identity::Person { name, .. } | Identity::WithoutRole { name, .. } => formatter.write_str(name),
        }
    }
}

/// Tokens that cannot be told apart, or that anybody could guess.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthenticationError {
    /// Nothing to present.
    #[error("the secret of token {0:?} is empty: put at least 16 random characters where its reference points")]
    Empty(String),
    /// The audit log could not say who it was.
    #[error("two tokens are named {0:?}: give each its own name")]
    SameName(String),
    /// Its role would be a matter of order.
    #[error("tokens {0:?} and {1:?} have the same secret: give each its own")]
    SameSecret(String, String),
}

/// SHA-256 of a token: the only form in which one is kept.
#[derive(Clone, Copy)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// Hashes a token.
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    /// Compares without telling by its time how much was right.
    pub fn matches(&self, token: &str) -> bool {
        self.equals(&TokenDigest::of(token)).into()
    }

    /// Compares without telling by its time how much was right.
    pub fn equals_digest(&self, other: &TokenDigest) -> bool {
        self.equals(other).into()
    }

    /// As it is stored.
    pub fn to_hexadecimal(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads what [`TokenDigest::to_hexadecimal`] wrote.
    pub fn from_hexadecimal(text: &str) -> Option<Self> {
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        let mut bytes = [0; 32];
        for (place, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * place..2 * place + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }

    fn equals(&self, other: &TokenDigest) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TokenDigest(..)")
    }
}

/// One person's or script's token, as it enters [`Authentication::new`].
#[derive(Clone)]
pub struct Token {
    /// Name in the audit log.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// For which clusters; all if none is named.
    pub clusters: Vec<ClusterName>,
    /// The token itself.
    pub secret: String,
}

/// Every token that the controller knows.
#[derive(Debug)]
pub struct Authentication {
    known: Vec<(Identity, TokenDigest)>,
    open_id: Option<Arc<OpenId>>,
}

impl Authentication {
    /// Checks and hashes the tokens. Without one of the agents, they show certificates.
    pub fn new<'a>(
        agent_token: impl Into<Option<&'a str>>,
        tokens: impl IntoIterator<Item = Token>,
    ) -> Result<Self, AuthenticationError> {
        let mut known: Vec<(Identity, TokenDigest)> = Vec::new();
        let people = tokens.into_iter().map(|token| {
            let Token { name, role, clusters, secret } = token;
            (Identity::Person { name, role, clusters }, secret)
        });
        let agents = agent_token.into().map(|secret| (Identity::Agent, secret.to_owned()));
        for (identity, secret) in agents.into_iter().chain(people) {
            if secret.is_empty() {
                return Err(AuthenticationError::Empty(identity.to_string()));
            }
            if known.iter().any(|(other, _)| other.to_string() == identity.to_string()) {
                return Err(AuthenticationError::SameName(identity.to_string()));
            }
            let digest = TokenDigest::of(&secret);
            if let Some((other, _)) = known.iter().find(|(_, other)| other.equals(&digest).into()) {
                return Err(AuthenticationError::SameSecret(other.to_string(), identity.to_string()));
            }
            known.push((identity, digest));
        }
        Ok(Self { known, open_id: None })
    }

    /// The same, and tokens of an issuer count too.
    pub fn with_open_id(self, open_id: Arc<OpenId>) -> Self {
        Self { open_id: Some(open_id), ..self }
    }

    /// The judge of OpenID tokens, if there is one.
    pub fn open_id(&self) -> Option<&OpenId> {
        self.open_id.as_deref()
    }

    /// Every person's and script's token of the configuration.
    pub fn people(&self) -> impl Iterator<Item = &Identity> {
        self.known.iter().map(|(identity, _)| identity).filter(|identity| matches!(identity, Identity::Person { .. }))
    }

    /// Whose token this is. Looks at every known token whatever it finds, so that the time tells nothing.
    pub fn identify(&self, token: &str) -> Option<&Identity> {
        let presented = TokenDigest::of(token);
        let mut found = u64::MAX;
        for (index, (_, digest)) in self.known.iter().enumerate() {
            found.conditional_assign(&(index as u64), digest.equals(&presented));
        }
        usize::try_from(found).ok().and_then(|index| self.known.get(index)).map(|(identity, _)| identity)
    }
}

/// The token in a request: `Authorization: Bearer …`, else `X-API-TOKEN`.
pub fn presented_token(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    bearer
        .or_else(|| headers.get(TOKEN_HEADER).and_then(|value| value.to_str().ok()).map(str::trim))
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(name: &str, role: Role, secret: &str) -> Token {
        Token { name: name.to_owned(), role, clusters: Vec::new(), secret: secret.to_owned() }
    }

    #[test]
    fn each_token_is_its_own_identity() {
        let known =
            Authentication::new("shared", [token("ann", Role::Admin, "a-secret"), token("vic", Role::Viewer, "v")])
                .expect("valid");
        assert_eq!(known.identify("shared"), Some(&Identity::Agent));
        assert_eq!(
            known.identify("v"),
            Some(&Identity::Person { name: "vic".to_owned(), role: Role::Viewer, clusters: Vec::new() })
        );
        for wrong in ["", "A-SECRET", "a-secre", "a-secret "] {
            assert_eq!(known.identify(wrong), None, "{wrong:?} was accepted");
        }
        assert!(!format!("{known:?}").contains("a-secret"));
    }

    #[test]
    fn tokens_that_cannot_be_told_apart_are_refused() {
        let same_secret = Authentication::new("x", [token("ann", Role::Admin, "x")]);
        assert!(matches!(same_secret, Err(AuthenticationError::SameSecret(..))));
        let same_name = Authentication::new("x", [token("ann", Role::Admin, "1"), token("ann", Role::Viewer, "2")]);
        assert!(matches!(same_name, Err(AuthenticationError::SameName(_))));
        assert!(matches!(Authentication::new("", []), Err(AuthenticationError::Empty(_))));
    }
}
