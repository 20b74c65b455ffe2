//! Domain values as JSON with a format number, the same in every store. The number is looked at before the rest is understood.

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Refuses what another version wrote or would write.
pub(super) fn check(what: &str, format: u32, known: u32) -> Result<(), String> {
    if format == known {
        return Ok(());
    }
    Err(format!(
        "{what} has format {format}, and this version of stormglass knows format {known} only: start the version that wrote it"
    ))
}

/// For a body that is not what it should be.
pub(super) fn not_understood(what: &str, error: &serde_json::Error) -> String {
    format!("{what} is not understood ({error}): start the version of stormglass that wrote it")
}

/// Reads a body that carries its own format number.
pub(super) fn parse<T: DeserializeOwned>(what: &str, known: u32, body: &[u8]) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Numbered {
        format: u32,
    }
    let numbered: Numbered = serde_json::from_slice(body).map_err(|error| not_understood(what, &error))?;
    check(what, numbered.format, known)?;
    serde_json::from_slice(body).map_err(|error| not_understood(what, &error))
}
