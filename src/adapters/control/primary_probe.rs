//! Knocks at a PostgreSQL from outside: `ports::PrimaryProbe`.
//!
//! The first message of PostgreSQL's protocol that needs no name and no password. Its answer takes a postmaster that runs and a
//! process that it started: a kernel that accepts for a stopped server does not give it.

use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::adapters::host_names::sockets;
use crate::domain::ids::Address;
use crate::ports::control::PrimaryProbe;

/// `SSLRequest`: its length, and the number that stands where a version would. Whoever hangs up after the answer is not logged.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Knocks over TCP.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpPrimaryProbe;

#[async_trait]
impl PrimaryProbe for TcpPrimaryProbe {
    async fn probe(&self, address: &Address, timeout: Duration) -> Result<(), String> {
        let ask = async {
            let mut stream = TcpStream::connect(&*sockets(&address.host, address.port).await?).await?;
            stream.write_all(&SSL_REQUEST).await?;
            stream.read_u8().await
        };
        match tokio::time::timeout(timeout, ask).await {
            // With TLS, without it, or with an error: a host without memory for one more process says so. It lives.
            Ok(Ok(b'S' | b'N' | b'E')) => Ok(()),
            Ok(Ok(_)) => Err(format!("what listens on {address} is no PostgreSQL")),
            Ok(Err(error)) => Err(format!("knock at {address}: {error}")),
            Err(_) => Err(format!("no answer from {address} within {timeout:?}")),
        }
    }
}
