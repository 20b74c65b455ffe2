//! OpenID tokens (JWT): whose they are and what they may do, judged by the keys that their issuer published.
//!
//! Fetches nothing and reads no clock: keys and times come from outside. Invariant: only asymmetric signatures count, and a token
//! never says which key or which kind of signature is good for it: the issuer's key set does.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::authentication::Identity;
use crate::domain::access::Role;
use crate::domain::clock::WallTime;
use crate::domain::ids::ClusterName;

/// Keys count for so long after they were fetched. An outage of the issuer locks nobody out for a day; a key that the issuer has
/// withdrawn does not count for ever.
pub const KEYS_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Clocks of the issuer and of this host may differ by so much.
pub const LEEWAY: Duration = Duration::from_secs(30);
/// A key that is not known is looked for at most once in this time: everybody can invent names of keys.
pub const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// How long a request waits for that: issuers answer within a second.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);
/// Before a name in the audit log: no token of this program has one with a colon.
pub const NAME_PREFIX: &str = "oidc:";
/// Longest name that is taken into the audit log, in characters. An identity is never cut off: two people would become one.
const NAME_LENGTH_MAX: usize = 200;
/// Longest token; headers of a request are not much longer.
const TOKEN_LENGTH_MAX: usize = 16 * 1024;
/// More keys than any issuer publishes.
const KEYS_MAX: usize = 100;
/// How much of somebody else's text is repeated, in characters.
const EXCERPT_LENGTH_MAX: usize = 80;

/// The signatures that count, by their names in a token.
const ALGORITHMS: [(&str, Algorithm); 9] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

/// Which tokens are taken, and how what they claim becomes a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenIdRules {
    /// `iss` of every token.
    pub issuer: String,
    /// What `aud` must name.
    pub audience: String,
    /// The claim that is compared with `roles`: its name, or names with dots between them that lead to it.
    pub role_claim: String,
    /// Values of that claim that give a role.
    pub roles: BTreeMap<Role, Vec<String>>,
    /// The claim that names whose token it is.
    pub name_claim: String,
    /// The claim that names the clusters that the token is for; all where none is configured.
    pub clusters_claim: Option<String>,
}

/// Why a token admits nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// It is no token.
    #[error("the OpenID token cannot be read: {0}")]
    Malformed(&'static str),
    /// `none`, a shared secret, or a signature that its key does not make.
    #[error("the OpenID token is signed with {0:?}, which does not count here: the issuer must sign with {1}")]
    Algorithm(String, String),
    /// The issuer was never reached.
    #[error(
        "the keys of {0} were not fetched yet, so nobody can tell whether the OpenID token is good: see the controller's log"
    )]
    NoKeys(String),
    /// The issuer was not reached for too long.
    #[error(
        "the keys of {0} were fetched last more than a day ago and do not count any more: see the controller's log"
    )]
    KeysTooOld(String),
    /// No key of that name.
    #[error("{issuer} has no key {key:?} for the OpenID token: get a new token; if it is new, ask again in {wait} s", wait = LOOK_AGAIN_AFTER.as_secs())]
    UnknownKey {
        /// Who should have it.
        issuer: String,
        /// Its name; empty where the token names none.
        key: String,
    },
    /// Somebody else made it, or changed it.
    #[error("the signature of the OpenID token is not that of its issuer")]
    Signature,
    /// Of another issuer.
    #[error("the OpenID token is not of the issuer {0}")]
    Issuer(String),
    /// For somebody else.
    #[error("the OpenID token is not for the audience {0:?}: ask the issuer for one that is")]
    Audience(String),
    /// Its time is over, or it names no end.
    #[error("the OpenID token has expired: get a new one")]
    Expired,
    /// Its time has not come.
    #[error("the OpenID token is not valid yet: compare the clocks of its issuer and of this controller")]
    NotYet,
    /// Nobody could be written into the audit log.
    #[error("the claim {0:?} of the OpenID token names nobody: it must be a text of 1 to {max} printable characters", max = NAME_LENGTH_MAX)]
    NoName(String),
    /// Anybody may write any address into it.
    #[error("the address in the claim {0:?} of the OpenID token was not verified by its issuer")]
    UnverifiedName(String),
}

/// A key set that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// No JSON, or without keys.
    #[error("the key set cannot be read: {0}")]
    Malformed(String),
    /// Nothing in it checks a signature.
    #[error("the key set holds no public key for signatures that count here: RSA, P-256, P-384 or Ed25519")]
    NoKey,
}

/// One public key.
#[derive(Clone)]
struct Key {
    id: Option<String>,
    /// Signatures that it may check.
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// The public keys of an issuer.
#[derive(Clone)]
pub struct KeySet {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct WireKeys {
    keys: Vec<Value>,
}

impl KeySet {
    /// Reads a JSON Web Key Set. Keys that are of no use here are left out: issuers publish keys for other purposes beside them.
    pub fn parse(text: &[u8]) -> Result<Self, KeySetError> {
        let wire: WireKeys =
            serde_json::from_slice(text).map_err(|error| KeySetError::Malformed(excerpt(&error.to_string())))?;
        if wire.keys.len() > KEYS_MAX {
            return Err(KeySetError::Malformed(format!("it has {} keys, more than {KEYS_MAX}", wire.keys.len())));
        }
        let keys: Vec<Key> = wire.keys.into_iter().filter_map(usable).collect();
        if keys.is_empty() { Err(KeySetError::NoKey) } else { Ok(Self { keys }) }
    }

    /// The key that a token names; without a name the only one.
    fn find(&self, id: Option<&str>) -> Option<&Key> {
        match id {
            Some(id) => self.keys.iter().find(|key| key.id.as_deref() == Some(id)),
            None => self.keys.first().filter(|_| self.keys.len() == 1),
        }
    }
}

/// A key that checks signatures; `None` for every other one, secrets among them.
fn usable(wire: Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(wire.clone()).ok()?;
    if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
        return None;
    }
    let mut algorithms: Vec<Algorithm> = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => ALGORITHMS[..6].iter().map(|(_, algorithm)| *algorithm).collect(),
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => vec![Algorithm::ES256],
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P384 => vec![Algorithm::ES384],
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => vec![Algorithm::EdDSA],
        _ => return None,
    };
    if let Some(only) = wire.get("alg") {
        let only = by_name(only.as_str()?)?;
        algorithms.retain(|algorithm| *algorithm == only);
    }
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    (!algorithms.is_empty()).then_some(Key { id: jwk.common.key_id, algorithms, key })
}

fn by_name(name: &str) -> Option<Algorithm> {
    ALGORITHMS.iter().find(|(known, _)| *known == name).map(|(_, algorithm)| *algorithm)
}

fn names(algorithms: &[Algorithm]) -> String {
    let named = ALGORITHMS.iter().filter(|(_, algorithm)| algorithms.contains(algorithm));
    named.map(|(name, _)| *name).collect::<Vec<_>>().join(" or ")
}

/// What is known of the issuer's keys.
#[derive(Clone, Default)]
struct Known {
    keys: Option<(Arc<KeySet>, WallTime)>,
    /// Attempts to fetch them that have ended, one way or the other.
    attempts: u64,
}

/// The judge of one issuer's tokens.
pub struct OpenId {
    rules: OpenIdRules,
    known: watch::Sender<Known>,
    wanted: Arc<Notify>,
    /// When a key was last looked for that was not known, and how many attempts had ended then.
    asked: Mutex<Option<(Instant, u64)>>,
}

impl OpenId {
    /// Knows no key yet. `wanted` is told when the keys should be fetched before their time.
    pub fn new(rules: OpenIdRules, wanted: Arc<Notify>) -> Self {
        Self { rules, known: watch::channel(Known::default()).0, wanted, asked: Mutex::new(None) }
    }

    /// Takes in the key set that was fetched, or that none could be. What was known before goes on to count until it is too old.
    pub fn take(&self, fetched: Result<&[u8], String>, now: WallTime) -> Result<(), String> {
        let read = fetched.and_then(|text| KeySet::parse(text).map_err(|error| error.to_string()));
        self.known.send_modify(|known| {
            known.attempts += 1;
            if let Ok(keys) = &read {
                known.keys = Some((Arc::new(keys.clone()), now));
            }
        });
        read.map(drop)
    }

    /// Whose token it is. A key that is not known is looked for, at most once in a while; only the request that names it waits.
    pub async fn identify(&self, token: &str, now: WallTime) -> Result<Identity, TokenRefusal> {
        match self.judge(token, now) {
            Err(TokenRefusal::UnknownKey { .. }) => {
                self.look_again().await;
                self.judge(token, now)
            }
            judged => judged,
        }
    }

    /// Waits until the keys were fetched once more, where that may be asked for.
    async fn look_again(&self) {
        let mut known = self.known.subscribe();
        let attempts = known.borrow_and_update().attempts;
        let since = {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            match *asked {
                Some((at, since)) if at.elapsed() < LOOK_AGAIN_AFTER => since,
                _ => {
                    *asked = Some((Instant::now(), attempts));
                    self.wanted.notify_one();
                    attempts
                }
            }
        };
        // Somebody else's question may be answered already: then there is nothing to wait for.
        if since == attempts {
            let answered = known.wait_for(|known| known.attempts > since);
            // Too late, or never: what is known by then counts.
            let _ = tokio::time::timeout(LOOK_PATIENCE, answered).await;
        }
    }

    /// Judges a token by what is known now.
    pub fn judge(&self, token: &str, now: WallTime) -> Result<Identity, TokenRefusal> {
        let claims = self.verified(token, now)?;
        let rules = &self.rules;
        let name = self.name(&claims)?;
        let values = texts(claim(&claims, &rules.role_claim));
        let gives = |wanted: &[String]| wanted.iter().any(|wanted| values.contains(&wanted.as_str()));
        // Roles are in their order: the last one that fits is the most privileged.
        let Some((role, _)) = rules.roles.iter().rev().find(|(_, wanted)| gives(wanted)) else {
            let why = format!(
                "the OpenID token of {name} gives no role: none of the {} values of its claim {:?} stands in \
                 [authentication.oidc.roles]",
                values.len(),
                rules.role_claim
            );
            return Ok(Identity::WithoutRole { name, why });
        };
        let mut clusters = Vec::new();
        if let Some(path) = &rules.clusters_claim {
            let named = texts(claim(&claims, path));
            clusters.extend(named.into_iter().filter_map(|name| ClusterName::new(name).ok()));
            // No cluster means all of them elsewhere; a token that names none must not be good for all.
            if clusters.is_empty() {
                let why = format!("the OpenID token of {name} is for no cluster: its claim {path:?} names none");
                return Ok(Identity::WithoutRole { name, why });
            }
        }
        Ok(Identity::Person { name, role: *role, clusters })
    }

    /// The claims of a token that its issuer signed, for us, and for now.
    fn verified(&self, token: &str, now: WallTime) -> Result<Map<String, Value>, TokenRefusal> {
        let rules = &self.rules;
        let head = Head::of(token)?;
        let algorithm = by_name(&head.alg).ok_or_else(|| {
            TokenRefusal::Algorithm(excerpt(&head.alg), "an asymmetric key, as in RS256 or ES256".to_owned())
        })?;
        let (keys, fetched) =
            self.known.borrow().keys.clone().ok_or_else(|| TokenRefusal::NoKeys(rules.issuer.clone()))?;
        if now.since(fetched) > KEYS_KEPT {
            return Err(TokenRefusal::KeysTooOld(rules.issuer.clone()));
        }
        let Some(key) = keys.find(head.kid.as_deref()) else {
            let key = excerpt(head.kid.as_deref().unwrap_or_default());
            return Err(TokenRefusal::UnknownKey { issuer: rules.issuer.clone(), key });
        };
        if !key.algorithms.contains(&algorithm) {
            return Err(TokenRefusal::Algorithm(excerpt(&head.alg), names(&key.algorithms)));
        }
        let mut validation = Validation::new(algorithm);
        validation.set_issuer(&[&rules.issuer]);
        validation.set_audience(&[&rules.audience]);
        validation.set_required_spec_claims(&["iss", "aud"]);
        // The library would read a clock of its own.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let decoded = jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &validation);
        let claims = decoded.map_err(|error| refusal(error.kind(), rules))?.claims;
        during(&claims, now)?;
        Ok(claims)
    }

    fn name(&self, claims: &Map<String, Value>) -> Result<String, TokenRefusal> {
        let path = &self.rules.name_claim;
        let name = claim(claims, path).and_then(Value::as_str).unwrap_or_default();
        let is_good = !name.trim().is_empty()
            && name.chars().count() <= NAME_LENGTH_MAX
            && !name.chars().any(|letter| letter.is_control() || letter.is_whitespace() && letter != ' ');
        if !is_good {
            return Err(TokenRefusal::NoName(path.clone()));
        }
        if path == "email" && claims.get("email_verified").is_some_and(|verified| *verified != Value::Bool(true)) {
            return Err(TokenRefusal::UnverifiedName(path.clone()));
        }
        Ok(format!("{NAME_PREFIX}{name}"))
    }
}

impl fmt::Debug for OpenId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("OpenId").field("rules", &self.rules).finish_non_exhaustive()
    }
}

/// True for what is meant as one: no token of this program looks so.
pub fn looks_like_one(token: &str) -> bool {
    token.starts_with("ey") && token.matches('.').count() == 2
}

/// What a token says about itself, before anything is proven.
#[derive(Deserialize)]
struct Head {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    /// Extensions that must be understood (RFC 7515, 4.1.11): none is.
    #[serde(default)]
    crit: Option<Value>,
}

impl Head {
    fn of(token: &str) -> Result<Self, TokenRefusal> {
        if token.len() > TOKEN_LENGTH_MAX {
            return Err(TokenRefusal::Malformed("it is longer than 16 KiB"));
        }
        let encoded = token.split_once('.').map(|(head, _)| head).unwrap_or_default();
        let text = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| TokenRefusal::Malformed("its head is no base64url"))?;
        let head: Self = serde_json::from_slice(&text)
            .map_err(|_| TokenRefusal::Malformed("its head is no JSON that names the kind of its signature"))?;
        if head.crit.is_some() {
            return Err(TokenRefusal::Malformed("its head asks for extensions that are not understood here"));
        }
        Ok(head)
    }
}

/// The time at which it is presented is one of those that it is for.
fn during(claims: &Map<String, Value>, now: WallTime) -> Result<(), TokenRefusal> {
    let now = now.0 as f64 / 1e6;
    let leeway = LEEWAY.as_secs_f64();
    let seconds = |name: &str| match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value
            .as_f64()
            .filter(|seconds| seconds.is_finite())
            .map(Some)
            .ok_or(TokenRefusal::Malformed("a claim that should be a time is no number")),
    };
    match seconds("exp")? {
        Some(end) if now < end + leeway => {}
        Some(_) => return Err(TokenRefusal::Expired),
        None => return Err(TokenRefusal::Malformed("it never expires: the claim \"exp\" is missing")),
    }
    match seconds("nbf")? {
        Some(begin) if begin > now + leeway => Err(TokenRefusal::NotYet),
        _ => Ok(()),
    }
}

fn refusal(kind: &ErrorKind, rules: &OpenIdRules) -> TokenRefusal {
    match kind {
        ErrorKind::InvalidIssuer => TokenRefusal::Issuer(rules.issuer.clone()),
        ErrorKind::InvalidAudience => TokenRefusal::Audience(rules.audience.clone()),
        ErrorKind::MissingRequiredClaim(claim) if claim == "iss" => TokenRefusal::Issuer(rules.issuer.clone()),
        ErrorKind::MissingRequiredClaim(_) => TokenRefusal::Audience(rules.audience.clone()),
        ErrorKind::InvalidToken => TokenRefusal::Malformed("it does not have three parts"),
        ErrorKind::Base64(_) | ErrorKind::Utf8(_) => TokenRefusal::Malformed("a part of it is no base64url"),
        ErrorKind::Json(_) => TokenRefusal::Malformed("its claims are no JSON object"),
        _ => TokenRefusal::Signature,
    }
}

/// A claim by its name, which may hold dots itself, or by the names that lead to it.
fn claim<'c>(claims: &'c Map<String, Value>, path: &str) -> Option<&'c Value> {
    claims.get(path).or_else(|| {
        let mut steps = path.split('.');
        let first = claims.get(steps.next()?)?;
        steps.try_fold(first, |value, step| value.get(step))
    })
}

/// A text, or a list of them.
fn texts(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(Value::String(text)) => vec![text.as_str()],
        Some(Value::Array(values)) => values.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// Somebody else's text for a message: one line, not endless.
fn excerpt(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(EXCERPT_LENGTH_MAX).collect()
}
