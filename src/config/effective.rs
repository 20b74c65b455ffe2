//! Settings as text for people: as written, and effective, with defaults filled in and the timers worked out.
//!
//! Secrets stay references.

use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::error::ConfigError;
use super::load::AnyConfig;
use crate::domain::policy::Policy;
use crate::domain::timing::{self, words};

/// Settings with defaults, and what follows from them.
#[derive(Debug, Serialize)]
pub struct Effective {
    /// Defaults filled in, references unresolved.
    pub settings: toml::Table,
    /// The policy of a controller's cluster.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "written")]
    pub policy: Option<Policy>,
}

fn written<S: Serializer>(policy: &Option<Policy>, serializer: S) -> Result<S::Ok, S::Error> {
    policy.as_ref().map(policy_document).serialize(serializer)
}

/// The policy with its durations as they are written in configurations: `"3s"`. Between processes they travel otherwise.
pub fn policy_document(policy: &Policy) -> Value {
    let mut document = serde_json::to_value(policy).expect("a policy is plain data and always has a JSON form");
    write_durations(&mut document);
    document
}

/// serde writes a duration as an object of exactly two numbers, and nothing else in a policy or a setting looks so.
pub(super) fn write_durations(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let number = |name: &str| fields.get(name).and_then(Value::as_u64);
            if let (2, Some(seconds), Some(nanoseconds)) = (fields.len(), number("secs"), number("nanos")) {
                let duration = Duration::new(seconds, u32::try_from(nanoseconds).unwrap_or_default());
                *value = Value::String(words(duration));
            } else {
                fields.values_mut().for_each(write_durations);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(write_durations),
        _ => {}
    }
}

impl AnyConfig {
    /// Defaults filled in, timers derived.
    pub fn effective(&self) -> Result<Effective, ConfigError> {
        let (settings, policy) = match self {
            AnyConfig::Controller(settings) => {
                let policy = settings.policy()?;
                let mut settings = settings.clone();
                settings.cluster.durability = Some(policy.durability);
                (toml::Table::try_from(settings), Some(policy))
            }
            AnyConfig::Agent(settings) => (toml::Table::try_from(settings), None),
        };
        Ok(Effective { settings: settings.expect("settings came from TOML, so TOML can hold them"), policy })
    }
}

impl Effective {
    /// TOML, followed by what was derived, as comments: the text can be loaded again.
    pub fn text(&self) -> String {
        let mut text = toml::to_string(&self.settings).expect("a table of TOML can be written as TOML");
        if let Some(policy) = &self.policy {
            text.push('\n');
            for line in derivation(policy) {
                text.push_str(&format!("# {line}\n"));
            }
        }
        text
    }
}

/// The timers, what they prove and what they cost, worked out.
pub fn derivation(policy: &Policy) -> Vec<String> {
    let timers = &policy.timers;
    let mut lines = vec![
        format!("Derived from rto = {}, after overrides:", words(policy.rto)),
        format!("  lease              {}", words(timers.lease)),
        format!("  renewal_interval   {}", words(timers.renewal_interval)),
        format!("  request_timeout    {}", words(timers.request_timeout)),
        format!(
            "  stop_budget        {}, of which the last {} for SIGKILL",
            words(timers.stop_budget),
            words(timers.kill_budget)
        ),
        format!("  drift              {}", words(timers.drift)),
        format!("  wait, promise      {}: lease + drift, by definition", words(timers.wait())),
        format!("  gray_after         {}", words(policy.gray_after)),
    ];
    if !policy.leadership_ttl.is_zero() {
        lines.push(format!("  leadership_ttl     {}", words(policy.leadership_ttl)));
        let wait = words(policy.new_leader_wait());
        lines.push(format!(
            "  a new leader waits {wait}: the longer of lease and leadership_ttl, + drift, by definition"
        ));
    }
    let (expected, rules): (Vec<_>, Vec<_>) =
        timing::inequalities(policy).into_iter().partition(|rule| rule.is_expectation);
    lines.push("The timers keep the rules:".to_owned());
    lines.extend(rules.iter().map(|rule| format!("  {rule}")));
    lines.push("Beside the rules, and no matter of safety:".to_owned());
    lines.extend(expected.iter().map(|rule| format!("  {rule}")));
    lines.push("Writers wait, before a promotion begins:".to_owned());
    lines.extend(timing::outages(policy).iter().map(|outage| format!("  {outage}")));
    lines
}
