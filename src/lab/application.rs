//! The lab's application: HTTP servers that say who they are and where, in the lab's own program.
//!
//! One process for the servers of one site, so that a site can be lost at once.

use anyhow::Context as _;
use axum::Router;
use axum::routing::get;
use serde::{Deserialize, Serialize};

use super::control;
use super::layout::{Layout, socket};
use crate::domain::ids::{Address, SiteName};

/// Its name.
pub const APPLICATION: &str = "shop";

/// The path that HAProxy asks.
pub const CHECK: &str = "/health";

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The server.
    pub server: String,
    /// Where it stands.
    pub site: String,
}

/// Serves for ever: one server at each address, `<site><number>` by name.
pub async fn serve(site: &SiteName, addresses: &[Address]) -> anyhow::Result<()> {
    let mut servers = tokio::task::JoinSet::new();
    for (number, address) in (1..).zip(addresses) {
        let listener =
            tokio::net::TcpListener::bind(socket(address)?).await.with_context(|| format!("listen on {address}"))?;
        let answer = Answer { server: format!("{site}{number}"), site: site.to_string() };
        let routes = Router::new()
            .route("/", get(move || async move { axum::Json(answer) }))
            .route(CHECK, get(|| async { "healthy\n" }));
        servers.spawn(async move { axum::serve(listener, routes).await });
    }
    match servers.join_next().await {
        Some(ended) => ended.context("serve")?.context("serve"),
        None => Ok(()),
    }
}

/// Which site serves the application at each proxy now; nothing from a proxy that does not answer.
pub async fn served_from(layout: &Layout) -> Vec<(String, Option<String>)> {
    let mut answers = Vec::new();
    for proxy in &layout.proxies {
        let Some(port) = layout.application_port else { continue };
        let url = format!("http://{}/", Address::new(proxy.write.host.clone(), port));
        let answer = control::text(&url).await.ok();
        let answer: Option<Answer> = answer.and_then(|text| serde_json::from_str(&text).ok());
        answers.push((proxy.name.to_string(), answer.map(|answer| answer.site)));
    }
    answers
}
