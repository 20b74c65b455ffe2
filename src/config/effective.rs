//! Settings as text for people: as written, and effective, with defaults filled in and the timers worked out.
//!
//! Secrets stay references.

use std::time::Duration;

use serde::Serialize;

use super::error::ConfigError;
use super::load::AnyConfig;
use crate::domain::policy::Policy;

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

/// The timers and the inequality of the lease, worked out.
pub fn derivation(policy: &Policy) -> Vec<String> {
    let timers = &policy.timers;
    let before_stop = timers.lease.saturating_sub(timers.stop_budget);
    let renewal = timers.renewal_interval + timers.request_timeout;
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
        format!("  gray_after         {}", words(policy.gray_after)),
        "The timers hold:".to_owned(),
        format!(
            "  renewal_interval + request_timeout < lease - stop_budget:   {} + {} = {} < {} = {} - {}",
            words(timers.renewal_interval),
            words(timers.request_timeout),
            words(renewal),
            words(before_stop),
            words(timers.lease),
            words(timers.stop_budget),
        ),
        format!(
            "  lease + drift <= wait, lease + drift <= promise:            {} + {} = {} <= {}, {}",
            words(timers.lease),
            words(timers.drift),
            words(timers.lease + timers.drift),
            words(timers.wait()),
            words(timers.promise()),
        ),
        format!(
            "  kill_budget <= stop_budget:                                 {} <= {}",
            words(timers.kill_budget),
            words(timers.stop_budget)
        ),
        format!("A lost host is replaced after at most {} of waiting.", words(timers.wait())),
    ];
    if !policy.leadership_ttl.is_zero() {
        let (leadership, wait) = (policy.leadership_ttl, policy.new_leader_wait());
        lines.extend([
            format!("Several controllers, elected in etcd; leadership_ttl = {}:", words(leadership)),
            "  a dead controller is replaced after leadership_ttl; nothing happens to clients meanwhile".to_owned(),
            format!(
                "  controller and primary host lost together: replaced after at most leadership_ttl + wait of a new leader\
                 \n    = {} + {} = {} of waiting, and what etcd takes to notice, up to 1s",
                words(leadership),
                words(wait),
                words(leadership + wait)
            ),
        ]);
    }
    lines
}

fn words(duration: Duration) -> String {
    humantime::format_duration(Duration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
        .to_string()
}
