//! HAProxy's own checks where the agents speak TLS.

use std::sync::atomic::Ordering;

use stormglass::domain::ids::Address;

use super::harness::{self, Lab, until};
use super::support::Authority;

async fn serves(address: &Address, name: &str) -> bool {
    harness::served_by(address).await.as_deref() == Some(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_follow_the_agents_word_over_tls() {
    let authority = Authority::new();
    let lab = Lab::secured(&authority.tls("db1", "agent"), authority.path("authorities.crt"));
    let _router = lab.router(None).await;
    until("checks have run", async || {
        serves(&lab.settings.checked, "A").await && serves(&lab.settings.read, "B").await
    })
    .await;
    lab.agent_a.is_primary.store(false, Ordering::SeqCst);
    lab.agent_b.is_primary.store(true, Ordering::SeqCst);
    until("both follow", async || serves(&lab.settings.checked, "B").await && serves(&lab.settings.read, "A").await)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_word_of_an_agent_that_another_authority_signed_counts_for_nothing() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let lab = Lab::secured(&stranger.tls("db1", "agent"), authority.path("authorities.crt"));
    let _router = lab.router(None).await;
    let runtime = lab.runtime();
    until("both are down", async || {
        let states = runtime.ask("test", "show stat").await.expect("answers");
        let is_down = |name: &str| states.lines().any(|line| line.starts_with(name) && line.contains(",DOWN,"));
        is_down("pg_checked,BACKEND") && is_down("pg_read,BACKEND")
    })
    .await;
}
