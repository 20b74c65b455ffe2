//! Durations as people write them: `"3s"`, `"500ms"`, `"1h 30m"`.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de::Error as _};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// Stands for a duration in the schema of configuration files.
pub struct DurationText;

impl PartialSchema for DurationText {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(Type::String);
        let text = text.pattern(Some("^[0-9]+ ?[A-Za-zµ]+( ?[0-9]+ ?[A-Za-zµ]+)*$"));
        text.description(Some("A duration such as 3s, 500ms or 1h 30m.")).into()
    }
}

impl ToSchema for DurationText {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("DurationText")
    }
}

/// Writes `500ms`.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

/// Reads `500ms`.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|error| D::Error::custom(format!("{text:?} is not a duration such as \"3s\" or \"500ms\": {error}")))
}

/// The same for settings that may be left out.
pub mod optional {
    use super::{Deserializer, Duration, Serializer};

    /// Writes `500ms`.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads `500ms`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        super::deserialize(deserializer).map(Some)
    }
}
