//! Puts the keys of an issuer of OpenID tokens behind the API's judge of them. Part of `main`, decides nothing.

use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use stormglass::adapters::openid::{Issuer, IssuerSettings};
use stormglass::api::openid::{OpenId, OpenIdRules};
use stormglass::config::oidc::OidcSection;
use stormglass::ports::Clock;
use tokio::sync::Notify;

/// The judge of `[authentication.oidc]`; its keys are fetched from now on, as long as the process lives.
pub fn begin(section: &OidcSection, clock: Arc<dyn Clock>) -> anyhow::Result<Arc<OpenId>> {
    let authority = match &section.ca_file {
        Some(file) => Some(std::fs::read(file).with_context(|| format!("read {}", file.display()))?),
        None => None,
    };
    let settings = IssuerSettings { issuer: section.issuer.clone(), keys_url: section.jwks_url.clone(), authority };
    let issuer = Issuer::new(settings).map_err(|problem| anyhow!("use [authentication.oidc]: {problem}"))?;
    let rules = OpenIdRules {
        issuer: section.issuer.clone(),
        audience: section.audience.clone(),
        role_claim: section.role_claim.clone(),
        roles: section.roles.all().into_iter().map(|(role, values)| (role, values.to_vec())).collect(),
        name_claim: section.name_claim.clone(),
        clusters_claim: section.clusters_claim.clone(),
    };
    let wanted = Arc::new(Notify::new());
    let judge = Arc::new(OpenId::new(rules, wanted.clone()));
    let taker = judge.clone();
    tokio::spawn(async move { match issuer.keep(&wanted, |fetched| taker.take(fetched, clock.wall())).await {} });
    Ok(judge)
}
