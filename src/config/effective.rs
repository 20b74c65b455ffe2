//! Settings as text for people: as written, and effective, with defaults filled in and the timers worked out.
//!
//! Secrets stay references.

use serde::Serialize;

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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
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
        format!("  wait, promise      {}, {}", words(timers.wait()), words(timers.promise())),
        format!("  gray_after         {}", words(policy.gray_after)),
    ];
    if !policy.leadership_ttl.is_zero() {
        lines.push(format!("  leadership_ttl     {}", words(policy.leadership_ttl)));
    }
    lines.push("The timers keep the rules:".to_owned());
    lines.extend(timing::inequalities(policy).iter().map(|rule| format!("  {rule}")));
    lines.push("Writers wait, before a promotion begins:".to_owned());
    lines.extend(timing::outages(policy).iter().map(|outage| format!("  {outage}")));
    lines
}
