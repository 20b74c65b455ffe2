//! `[authentication.oidc]`: whose OpenID tokens count, and how what they claim becomes a role.
//!
//! Holds no secret: what proves a token is public.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Violation;
use super::tls::is_loopback;
use super::validate::absolute;
use crate::domain::access::Role;

/// Where every key of this table begins.
const TABLE: &str = "authentication.oidc";

/// `[authentication.oidc]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OidcSection {
    /// `iss` of every token, and where the issuer describes itself.
    pub issuer: String,
    /// What `aud` of a token must name.
    pub audience: String,
    /// Where the issuer's keys are; by discovery if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_url: Option<String>,
    /// Who signed the issuer's certificate, as PEM; the system's authorities if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ca_file: Option<PathBuf>,
    /// The claim that gives a role: a text or a list; names with dots between them lead into it.
    #[serde(default = "default_role_claim")]
    pub role_claim: String,
    /// The claim that names whose token it is.
    #[serde(default = "default_name_claim")]
    pub name_claim: String,
    /// The claim that names clusters; every token is for all of them if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clusters_claim: Option<String>,
    /// `[authentication.oidc.roles]`.
    pub roles: OidcRoles,
}

/// Values of the claim that give each role; the most privileged that fits counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OidcRoles {
    /// Of a viewer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub viewer: Vec<String>,
    /// Of one who takes backups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backup: Vec<String>,
    /// Of an operator.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub operator: Vec<String>,
    /// Of an administrator.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub admin: Vec<String>,
}

impl OidcRoles {
    /// Every role with its values.
    pub fn all(&self) -> [(Role, &[String]); 4] {
        [
            (Role::Viewer, &self.viewer),
            (Role::Backup, &self.backup),
            (Role::Operator, &self.operator),
            (Role::Admin, &self.admin),
        ]
    }
}

impl OidcSection {
    /// The first rule that is broken.
    pub(super) fn violation(&self) -> Result<(), Violation> {
        let key = |name: &str| format!("{TABLE}.{name}");
        trusted_url(&key("issuer"), &self.issuer)?;
        if let Some(url) = &self.jwks_url {
            trusted_url(&key("jwks_url"), url)?;
        }
        if let Some(file) = &self.ca_file {
            absolute(&key("ca_file"), file)?;
        }
        let named = [
            ("audience", Some(&self.audience)),
            ("role_claim", Some(&self.role_claim)),
            ("name_claim", Some(&self.name_claim)),
            ("clusters_claim", self.clusters_claim.as_ref()),
        ];
        if let Some((name, _)) = named.iter().find(|(_, value)| value.is_some_and(|value| value.trim().is_empty())) {
            return Err(Violation::at(&key(name), "must not be empty"));
        }
        for (role, values) in self.roles.all() {
            if let Some(place) = values.iter().position(|value| value.trim().is_empty()) {
                let problem = "must not be empty: it would give the role to nobody in particular";
                return Err(Violation::at(&key(&format!("roles.{}.{place}", role.label())), problem));
            }
        }
        if self.roles.all().iter().all(|(_, values)| values.is_empty()) {
            let problem = format!("names no value of the claim {:?}: nobody would have a role", self.role_claim);
            return Err(Violation::at(&key("roles"), problem));
        }
        Ok(())
    }
}

/// Keys that come from there prove who somebody is: nobody on the way may change them.
fn trusted_url(key: &str, url: &str) -> Result<(), Violation> {
    let refused = |why: &str| Err(Violation::at(key, format!("{url:?} {why}")));
    let parsed = match reqwest::Url::parse(url) {
        Ok(parsed) => parsed,
        Err(error) => return refused(&format!("is no URL: {error}")),
    };
    let host = parsed.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let stays_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(is_loopback);
    if parsed.scheme() != "https" && !(parsed.scheme() == "http" && stays_here) {
        return refused("must begin with https://: keys that come without TLS prove nothing");
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return refused("holds a user name or password: what is fetched there is public");
    }
    if parsed.fragment().is_some() || (key.ends_with("issuer") && parsed.query().is_some()) {
        return refused("no query or fragment may follow host and path");
    }
    Ok(())
}

fn default_role_claim() -> String {
    "groups".to_owned()
}

fn default_name_claim() -> String {
    "sub".to_owned()
}
