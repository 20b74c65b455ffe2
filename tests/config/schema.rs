//! The JSON Schema of configuration files: what the loader takes it takes, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stormglass::config::schema::{FileKind, document};
use stormglass::config::{
    AnyConfig, agent, backup, controller, dns, notification, read_any, sequence, store, terraform,
};
use stormglass::config::{oidc, tls, traffic, webhook};
use stormglass::domain::alert::AlertRoute;
use stormglass::domain::report::Tags;

/// What is wrong with `value`, as far as types, keys and words go. A small part of JSON Schema, and all that this schema uses but
/// patterns.
fn faults(schema: &Value, root: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let pointer = reference.strip_prefix('#').expect("a reference within the document");
        let target = root.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"));
        faults(target, root, value, path, found);
    }
    for list in ["oneOf", "anyOf"] {
        let Some(all) = schema[list].as_array() else { continue };
        let fits = all.iter().filter(|one| {
            let mut found = Vec::new();
            faults(one, root, value, path, &mut found);
            found.is_empty()
        });
        if fits.count() == 0 {
            found.push(format!("{path}: fits none of {list}"));
        }
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        found.push(format!("{path}: {value} is none of {words:?}"));
    }
    let fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        None => true,
        Some(other) => panic!("{path}: the type {other} is not known here"),
    };
    if !fits {
        found.push(format!("{path}: {value} is no {}", schema["type"]));
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        if schema["items"].is_object() {
            faults(&schema["items"], root, item, &format!("{path}[{index}]"), found);
        }
    }
    let Some(fields) = value.as_object() else { return };
    for (name, value) in fields {
        let path = format!("{path}.{name}");
        match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Bool(false)) => found.push(format!("{path}: no such key")),
            (Value::Null, further) => faults(further, root, value, &path, found),
            (known, _) => faults(known, root, value, &path, found),
        }
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            found.push(format!("{path}.{name}: missing"));
        }
    }
}

fn faults_of(kind: Option<FileKind>, value: &Value) -> Vec<String> {
    let (schema, mut found) = (document(kind), Vec::new());
    faults(&schema, &schema, value, "", &mut found);
    found
}

#[test]
fn the_examples_fit_as_they_are_written_and_with_every_default() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    for name in ["controller.toml", "agent-postgresql.toml", "agent-proxy.toml"] {
        let (settings, written) = read_any(&examples.join(name)).expect("an example loads");
        let (kind, other) = match &settings {
            AnyConfig::Controller(_) => (FileKind::Controller, FileKind::Agent),
            AnyConfig::Agent(_) => (FileKind::Agent, FileKind::Controller),
        };
        let effective = settings.effective().expect("an example loads").settings;
        for table in [written, effective] {
            let value = serde_json::to_value(table).expect("plain data");
            for kind in [Some(kind), None] {
                assert_eq!(faults_of(kind, &value), [] as [&str; 0], "{name}");
            }
            assert!(!faults_of(Some(other), &value).is_empty(), "{name} is no file of the other kind");
        }
    }
    let text = std::fs::read_to_string(examples.join("sequences/jenkins.toml")).expect("an example");
    let steps: toml::Table = text.parse().expect("TOML");
    let (schema, mut found) = (document(Some(FileKind::Controller)), Vec::new());
    let sequences = &schema["$defs"]["ControllerConfig"]["properties"]["sequence"];
    let value = serde_json::to_value(&steps["sequence"]).expect("plain data");
    faults(sequences, &schema, &value, "sequence", &mut found);
    assert_eq!(found, [] as [&str; 0]);
}

#[test]
fn mistakes_are_found() {
    let good = json!({
        "controller": {"name": "c", "listen": "127.0.0.1:8432"}, "cluster": {"name": "main"},
        "authentication": {"agent_token": "env:T"}, "node": [{"name": "n", "site": "a", "agent": "http://127.0.0.1:1"}],
    });
    let changed = |pointer: &str, key: &str, value: Value| {
        let mut bad = good.clone();
        bad.pointer_mut(pointer).expect("there")[key] = value;
        faults_of(Some(FileKind::Controller), &bad).join("; ")
    };
    assert_eq!(faults_of(Some(FileKind::Controller), &good), [] as [&str; 0]);
    assert!(changed("/cluster", "nmae", "x".into()).contains(".cluster.nmae: no such key"));
    assert!(changed("/cluster", "durability", "always".into()).contains("is none of"));
    assert!(changed("/node/0", "agent", 1.into()).contains(".node[0].agent: 1 is no \"string\""));
    assert!(changed("", "node", json!([{"name": "n"}])).contains(".node[0].site: missing"));
    assert!(changed("", "failover", json!({"drift": null})).contains(".failover.drift"), "nothing is null in TOML");
}

#[test]
fn durations_and_secrets_have_their_forms_and_keys_their_words() {
    let schema = document(Some(FileKind::Controller));
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let definitions = &schema["$defs"];
    let pattern = |name: &str| definitions[name]["pattern"].as_str().unwrap_or_default().to_owned();
    assert!(pattern("DurationText").starts_with("^[0-9]+"), "{definitions:#}");
    assert!(pattern("SecretReference").starts_with("^(env:"), "{definitions:#}");
    let lease = &definitions["FailoverSection"]["properties"]["lease"];
    assert_eq!(
        (&lease["$ref"], &lease["description"]),
        (&"#/$defs/DurationText".into(), &"Override of the lease.".into())
    );
    assert_eq!(definitions["FailoverSection"]["properties"]["rto"]["default"], "5s");
    let text = schema.to_string();
    for target in text.split("\"$ref\":\"#/$defs/").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(definitions[target].is_object(), "{target} is not defined");
    }
    assert!(!text.contains("components/schemas") && !text.contains("\"null\""), "{schema:#}");
    for (name, definition) in definitions.as_object().expect("definitions") {
        for (key, property) in definition["properties"].as_object().into_iter().flatten() {
            assert!(property["description"].is_string(), "{name}.{key} has no description: {property}");
            let mut found = Vec::new();
            if let Some(default) = property.get("default") {
                faults(property, &schema, default, &format!("{name}.{key}"), &mut found);
            }
            assert_eq!(found, [] as [&str; 0], "the default is written as in a file");
        }
    }
}

/// The keys that the loader takes for `T`, by its own word.
fn keys<T: DeserializeOwned>() -> BTreeSet<String> {
    let Err(error) = toml::from_str::<T>("no_such_key = 1\n") else { panic!("an unknown key is taken") };
    let words: Vec<String> = error.message().split('`').skip(1).step_by(2).map(str::to_owned).collect();
    assert_eq!(words.first().map(String::as_str), Some("no_such_key"), "{error}");
    words.into_iter().skip(1).collect()
}

#[test]
fn every_key_that_the_loader_takes_is_in_the_schema() {
    let loader: BTreeMap<&str, BTreeSet<String>> = [
        ("ControllerConfig", keys::<controller::ControllerConfig>()),
        ("ControllerSection", keys::<controller::ControllerSection>()),
        ("ClusterSection", keys::<controller::ClusterSection>()),
        ("FailoverSection", keys::<controller::FailoverSection>()),
        ("AuthenticationSection", keys::<controller::AuthenticationSection>()),
        ("TokenSection", keys::<controller::TokenSection>()),
        ("OidcSection", keys::<oidc::OidcSection>()),
        ("OidcRoles", keys::<oidc::OidcRoles>()),
        ("NodeSection", keys::<controller::NodeSection>()),
        ("ProxyHostSection", keys::<controller::ProxyHostSection>()),
        ("PrometheusSection", keys::<controller::PrometheusSection>()),
        ("PredictorSection", keys::<controller::PredictorSection>()),
        ("ReadsSection", keys::<traffic::ReadsSection>()),
        ("ApplicationSection", keys::<traffic::ApplicationSection>()),
        ("ApplicationServerSection", keys::<traffic::ApplicationServerSection>()),
        ("PgbouncerSection", keys::<traffic::PgbouncerSection>()),
        ("StoreSection", keys::<store::StoreSection>()),
        ("WebhookSection", keys::<webhook::WebhookSection>()),
        ("AlertRoute", keys::<AlertRoute>()),
        ("DnsSection", keys::<dns::DnsSection>()),
        ("SequenceSection", keys::<sequence::SequenceSection>()),
        ("StepSection", keys::<sequence::StepSection>()),
        ("TerraformSection", keys::<terraform::TerraformSection>()),
        ("ControllerBackupSection", keys::<backup::ControllerBackupSection>()),
        ("ScheduleSection", keys::<backup::ScheduleSection>()),
        ("NotificationSection", keys::<notification::NotificationSection>()),
        ("TlsSection", keys::<tls::TlsSection>()),
        ("AgentConfig", keys::<agent::AgentConfig>()),
        ("AgentSection", keys::<agent::AgentSection>()),
        ("PostgresqlSection", keys::<agent::PostgresqlSection>()),
        ("ProxySection", keys::<agent::ProxySection>()),
        ("ProxyNode", keys::<agent::ProxyNode>()),
        ("VerifySection", keys::<agent::VerifySection>()),
        ("Tags", keys::<Tags>()),
        ("AgentBackupSection", keys::<backup::AgentBackupSection>()),
        ("S3Section", keys::<backup::S3Section>()),
        ("PeerSection", keys::<backup::PeerSection>()),
        ("DrillSection", keys::<backup::DrillSection>()),
        ("LedgerSection", keys::<backup::LedgerSection>()),
        ("CheckSection", keys::<backup::CheckSection>()),
        ("Address", ["host", "port"].map(str::to_owned).into()),
    ]
    .into();
    let schema = document(None);
    let definitions = schema["$defs"].as_object().expect("definitions");
    let described: BTreeMap<&str, BTreeSet<String>> = definitions
        .iter()
        .filter_map(|(name, one)| Some((name.as_str(), one["properties"].as_object()?.keys().cloned().collect())))
        .collect();
    assert_eq!(described, loader, "the schema (left) against the loader (right)");
}
