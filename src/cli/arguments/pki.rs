//! `pki`: parsing only.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::domain::certificate::CertificateRole;
use crate::domain::ids::HolderName;

/// `stormglass pki …`.
#[derive(Debug, Clone, Subcommand)]
pub enum PkiCommand {
    /// Make an authority: its key, its certificate, and the bundle of authorities that every host gets.
    #[command(after_help = "Example:\n  stormglass pki init --directory /root/stormglass-pki --name orders")]
    Init {
        /// Where it is kept; made if missing. Not on a host of the cluster: who has the key can be anybody.
        #[arg(long, value_name = "DIR")]
        directory: PathBuf,
        /// Its name in certificates.
        #[arg(long, default_value = "stormglass")]
        name: HolderName,
        /// How long its certificate holds.
        #[arg(long, value_name = "DURATION", default_value = "3650d", value_parser = humantime::parse_duration)]
        valid: Duration,
    },
    /// Make a key and a certificate: NAME.key and NAME.crt.
    #[command(
        after_help = "Examples:\n  stormglass pki issue c1 --role controller --address 10.0.1.5 --address c1.example.com\n  \
                      stormglass pki issue db1 --role agent --address 10.0.1.11\n  stormglass pki issue ann --role client --valid 30d"
    )]
    Issue(IssueArguments),
    /// Renew certificates under their names, for the same roles and addresses, with new keys; or the authority itself.
    #[command(
        after_help = "Examples:\n  stormglass pki rotate db1\n  stormglass pki rotate --expiring-within 30d\n\nA new authority, in this order:\n  \
                      stormglass pki rotate --authority        # then copy authorities.crt to every host\n  \
                      stormglass pki rotate --all              # then copy certificates and keys\n  \
                      stormglass pki rotate --drop-previous    # then copy authorities.crt again"
    )]
    Rotate(RotateArguments),
}

/// `stormglass pki issue …`.
#[derive(Debug, Clone, Args)]
pub struct IssueArguments {
    /// Whose: an agent has the name of its node or proxy.
    pub name: HolderName,
    /// What it may do: controller, agent, client, or server (such as a member of etcd, which may do nothing here).
    #[arg(long, value_parser = role)]
    pub role: CertificateRole,
    /// Where others connect to it: an IP address or a host name; may be given again.
    #[arg(long = "address", value_name = "ADDRESS")]
    pub addresses: Vec<String>,
    /// How long it holds.
    #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = humantime::parse_duration)]
    pub valid: Duration,
    /// The authority's directory.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub directory: PathBuf,
}

/// `stormglass pki rotate …`.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub struct RotateArguments {
    /// The certificate of this name.
    #[arg(group = "which")]
    pub name: Option<HolderName>,
    /// Every certificate that ends within this time.
    #[arg(long, group = "which", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub expiring_within: Option<Duration>,
    /// Every certificate.
    #[arg(long, group = "which")]
    pub all: bool,
    /// The authority: a new key and certificate; the former one stays in authorities.crt.
    #[arg(long, group = "which")]
    pub authority: bool,
    /// Take former authorities out of authorities.crt. Refused while a certificate in the directory rests on one.
    #[arg(long, group = "which")]
    pub drop_previous: bool,
    /// How long the new ones hold; as long as the former ones if not given.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub valid: Option<Duration>,
    /// The authority's directory.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub directory: PathBuf,
}

fn role(text: &str) -> Result<CertificateRole, String> {
    let known = CertificateRole::ALL;
    known.into_iter().find(|role| role.label() == text).ok_or_else(|| {
        let words: Vec<&str> = known.iter().map(|role| role.label()).collect();
        format!("known roles: {}", words.join(", "))
    })
}
