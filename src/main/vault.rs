//! Brings the way to Vault into the configuration, which speaks to nobody itself. Part of `main`, decides nothing.

use stormglass::adapters::vault::{Vault, VaultSettings};
use stormglass::config::environment;
use stormglass::config::secret::use_vault;

/// Makes `vault:` references readable, with what the environment says of Vault. Connects with the first of them.
pub fn open() {
    let variables = environment::vault();
    let vault = Vault::new(VaultSettings {
        address: variables.address,
        token: variables.token,
        token_file: variables.token_file,
        namespace: variables.namespace,
        authority_file: variables.authority_file,
    });
    use_vault(Box::new(move |path, field| vault.read(path, field)));
}
