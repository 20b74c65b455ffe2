//! The certificate of this process, and how its port is protected. Part of `main`, decides nothing.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;

use stormglass::adapters::tls::{Tls, TlsFiles};
use stormglass::config::tls::{TlsSection, is_loopback};
use stormglass::domain::certificate::Protection;

/// A new certificate is in use after this. Three small files are read.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The certificate of `[tls]`, if there is one.
pub fn load(section: Option<&TlsSection>) -> anyhow::Result<Option<Tls>> {
    let files = section.map(|section| TlsFiles {
        certificate: section.certificate.clone(),
        key: section.key.clone(),
        authorities: section.client_authorities.clone(),
    });
    Ok(files.map(Tls::load).transpose()?)
}

/// How the port is protected; says so if it is not.
pub fn protection(tls: Option<&Tls>, listen: SocketAddr) -> watch::Receiver<Protection> {
    match tls {
        Some(tls) => tls.protection(),
        None if is_loopback(listen.ip()) => watch::channel(Protection::Loopback).1,
        None => {
            tracing::warn!(
                %listen,
                "listens without TLS, as insecure = true asks for: whoever is on the way can read tokens and command this process"
            );
            watch::channel(Protection::Insecure).1
        }
    }
}

/// `work`, while new certificates are looked for.
pub async fn kept<T>(tls: Option<Tls>, work: impl Future<Output = T>) -> T {
    let Some(tls) = tls else { return work.await };
    tokio::select! {
        done = work => done,
        never = tls.keep(LOOK_INTERVAL) => match never {},
    }
}
