//! Variables that the command line reads besides its flags, and those that lead to Vault. Secrets of configuration files are read in
//! `secret`.

use std::path::PathBuf;

/// Bearer token of a person or script.
pub const TOKEN_VARIABLE: &str = "STORMGLASS_TOKEN";

/// The operator's token, from `STORMGLASS_TOKEN`.
pub fn token() -> Option<String> {
    variable(TOKEN_VARIABLE)
}

/// True if the environment asks for text without colour: `NO_COLOR`, or a terminal that has none.
pub fn refuses_colour() -> bool {
    variable("NO_COLOR").is_some() || variable("TERM").as_deref() == Some("dumb")
}

/// The way to Vault, by the variables that Vault's own tools read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VaultVariables {
    /// `VAULT_ADDR`: base URL.
    pub address: Option<String>,
    /// `VAULT_TOKEN`.
    pub token: Option<String>,
    /// `VAULT_TOKEN_FILE`, read where there is no `VAULT_TOKEN`: a file that Vault's agent keeps.
    pub token_file: Option<PathBuf>,
    /// `VAULT_NAMESPACE`.
    pub namespace: Option<String>,
    /// `VAULT_CACERT`: who signed its certificate, as PEM.
    pub authority_file: Option<PathBuf>,
}

/// What the environment says about Vault.
pub fn vault() -> VaultVariables {
    VaultVariables {
        address: variable("VAULT_ADDR"),
        token: variable("VAULT_TOKEN"),
        token_file: variable("VAULT_TOKEN_FILE").map(PathBuf::from),
        namespace: variable("VAULT_NAMESPACE"),
        authority_file: variable("VAULT_CACERT").map(PathBuf::from),
    }
}

#[expect(clippy::disallowed_methods, reason = "the command line's environment is read here and nowhere else")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
