//! The JSON Schema (2020-12) of configuration files, made from the types that they are read into: editors complete and check with it.
//!
//! Only what types hold is in it. Rules between settings, and whether a secret is there, are for `config check`.

use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::effective::write_durations;
use super::{AgentConfig, ControllerConfig};

/// The dialect.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
/// Where OpenAPI keeps the types that others refer to, and where JSON Schema does.
const REFERENCES: (&str, &str) = ("#/components/schemas/", "#/$defs/");

/// Whose file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A controller's.
    Controller,
    /// An agent's.
    Agent,
}

/// The schema of one kind of file, or of either.
pub fn document(kind: Option<FileKind>) -> Value {
    let mut definitions = Map::new();
    let mut root = match kind {
        Some(FileKind::Controller) => file::<ControllerConfig>(&mut definitions),
        Some(FileKind::Agent) => file::<AgentConfig>(&mut definitions),
        None => {
            let either = [file::<ControllerConfig>(&mut definitions), file::<AgentConfig>(&mut definitions)];
            json!({ "oneOf": either })
        }
    };
    let title = match kind {
        Some(FileKind::Controller) => "Configuration of a Stormglass controller",
        Some(FileKind::Agent) => "Configuration of a Stormglass agent",
        None => "Configuration of a Stormglass controller or agent",
    };
    root["$schema"] = DIALECT.into();
    root["title"] = title.into();
    root["$defs"] = Value::Object(definitions);
    root
}

/// A reference to the type of a whole file, whose schema is collected with all that it refers to.
fn file<T: ToSchema>(definitions: &mut Map<String, Value>) -> Value {
    let mut collected = Vec::new();
    T::schemas(&mut collected);
    collected.push((T::name().into_owned(), T::schema()));
    for (name, schema) in collected {
        let mut schema = serde_json::to_value(schema).expect("a schema is plain data and always has a JSON form");
        settle(&mut schema);
        definitions.insert(name, schema);
    }
    json!({ "$ref": format!("{}{}", REFERENCES.1, T::name()) })
}

/// Makes JSON Schema for TOML of a schema for OpenAPI: nothing is null there, and a key that nobody reads is an error.
fn settle(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    without_null(fields);
    if let Some(Value::String(reference)) = fields.get_mut("$ref")
        && let Some(name) = reference.strip_prefix(REFERENCES.0)
    {
        *reference = format!("{}{name}", REFERENCES.1);
    }
    if fields.contains_key("properties") && !fields.contains_key("additionalProperties") {
        fields.insert("additionalProperties".to_owned(), false.into());
    }
    // Defaults are written as in a file, where what is left out is not written at all.
    match fields.get_mut("default") {
        Some(Value::Null) => drop(fields.remove("default")),
        Some(default) => write_durations(default),
        None => {}
    }
    // Formats of OpenAPI, such as int64, are none of JSON Schema.
    fields.remove("format");
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(settle);
    }
    for inner in ["items", "additionalProperties", "propertyNames"] {
        fields.get_mut(inner).into_iter().for_each(settle);
    }
    for list in ["oneOf", "anyOf", "allOf"] {
        if let Some(Value::Array(all)) = fields.get_mut(list) {
            all.iter_mut().for_each(settle);
        }
    }
}

/// A setting that may be left out is no setting that may be null.
fn without_null(fields: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = fields.get_mut("type") {
        types.retain(|one| one != "null");
        if let [only] = &types[..] {
            let only = only.clone();
            fields.insert("type".to_owned(), only);
        }
    }
    let Some(Value::Array(all)) = fields.get_mut("oneOf") else { return };
    all.retain(|one| *one != json!({ "type": "null" }));
    if let [Value::Object(only)] = &all[..] {
        let only = only.clone();
        fields.remove("oneOf");
        for (key, value) in only {
            // What is said of the setting counts for more than what is said of its type.
            fields.entry(key).or_insert(value);
        }
    }
}
