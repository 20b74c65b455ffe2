//! How the command line speaks to controllers over TLS. Parsing only; tokens are no flags.

use std::path::PathBuf;

use clap::Args;

use crate::api::client::ClientFiles;

/// Files for `https://` controllers.
#[derive(Debug, Clone, Default, Args)]
pub struct Connection {
    /// Who signed the controllers' certificates, as PEM; the system's authorities if not given.
    #[arg(long, global = true, value_name = "FILE", env = "STORMGLASS_CACERT", help_heading = "Connection")]
    pub ca_file: Option<PathBuf>,
    /// An own certificate, as PEM. It opens the connection; what may be done is the token's to say.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "STORMGLASS_CERT",
        requires = "key",
        help_heading = "Connection"
    )]
    pub certificate: Option<PathBuf>,
    /// Its key.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "STORMGLASS_KEY",
        requires = "certificate",
        help_heading = "Connection"
    )]
    pub key: Option<PathBuf>,
}

impl Connection {
    /// As the client takes them. clap has seen to it that certificate and key come together.
    pub fn files(&self) -> ClientFiles {
        ClientFiles { authorities: self.ca_file.clone(), identity: self.certificate.clone().zip(self.key.clone()) }
    }
}
