//! Timers of `[failover]`: each can be overridden, and what breaks a rule is refused with the rule.

use stormglass::config::read_any;

use super::{CONTROLLER, Directory, refused};

#[test]
fn a_timer_that_breaks_a_rule_is_refused_at_its_key() {
    refused(
        CONTROLLER,
        "rto = \"5s\"",
        "drift = \"10ms\"",
        "stormglass.toml:11:1: failover.drift: drift 10ms is less than 0.5 % of the lease 3s: two healthy clocks may run apart by \
         more, and a lease would be called expired while its holder still writes",
    );
    refused(
        CONTROLLER,
        "rto = \"5s\"",
        "kill_budget = \"100ms\"",
        "stormglass.toml:11:1: failover.kill_budget: kill_budget 100ms is less than 120ms, the worst time that killing PostgreSQL's \
         processes takes",
    );
    refused(
        CONTROLLER,
        "rto = \"5s\"",
        "kill_budget = \"2s\"",
        "stormglass.toml:11:1: failover.kill_budget: kill_budget 2s must not exceed stop_budget 800ms",
    );
}

#[test]
fn every_timer_can_be_overridden_and_durations_are_written_as_in_the_file() {
    let directory = Directory::new();
    let overrides = [
        ("lease", "4s"),
        ("renewal_interval", "400ms"),
        ("request_timeout", "900ms"),
        ("stop_budget", "1s"),
        ("kill_budget", "200ms"),
        ("drift", "30ms"),
    ];
    let lines: String = overrides.iter().map(|(key, value)| format!("{key} = \"{value}\"\n")).collect();
    let text = CONTROLLER.replace("rto = \"5s\"\n", &format!("rto = \"5s\"\n{lines}gray_after = \"2s\"\n"));
    let (settings, _) = read_any(&directory.file(&text)).expect("good");
    let document = serde_json::to_value(settings.effective().expect("good")).expect("plain data");
    for (key, value) in overrides {
        assert_eq!(document["policy"]["timers"][key], value, "{document:#}");
    }
    assert_eq!(document["policy"]["gray_after"], "2s");
    assert!(!document.to_string().contains("nanos"), "{document:#}");
    let shown = settings.effective().expect("good").text();
    let expected = "#   two healthy clocks apart after a lease <= drift: 20ms <= 30ms, holds";
    assert!(shown.lines().any(|line| line == expected), "{shown}");
    assert!(!shown.contains("lease + drift <="), "a definition proves nothing:\n{shown}");
}
