//! `/metrics` of a database host, in Prometheus's text format.

use std::fmt::Write;
use std::time::Duration;

use prometheus::{Encoder as _, HistogramOpts, HistogramVec, Registry, TextEncoder};

use super::Agent;
use super::start::Role;
use crate::domain::ids::{ClusterName, NodeName};
use crate::domain::report::{PostgresState, Probe, Renewal};

impl Agent {
    /// One metric a fact; a fact that is not known has no sample.
    pub(super) fn metrics_text(&self) -> String {
        let report = self.report();
        let (role, fence_seconds, renewals) = {
            let local = self.local();
            (local.role, local.fence_seconds, local.renewals.counts.clone())
        };
        let mut page =
            Page { text: String::new(), labels: format!("cluster=\"{}\",node=\"{}\"", report.cluster, report.node) };
        let standing = &report.standing;
        let up = report.postgres.state == PostgresState::Running;
        page.gauge("node_up", "1 if PostgreSQL runs and answers.", "", f64::from(u8::from(up)));
        page.begin("node_role", "1 for the role that PostgreSQL runs as.");
        for (label, value) in [("primary", Some(Role::Primary)), ("standby", Some(Role::Standby)), ("unknown", None)] {
            page.sample("node_role", &format!(",role=\"{label}\""), f64::from(u8::from(role == value)));
        }
        let remaining = standing.lease_remaining.map_or(0.0, |left| left.as_secs_f64());
        page.gauge("lease_remaining_seconds", "What is left of the node's lease; 0 without one.", "", remaining);
        page.begin("lease_renewals_total", "Renewals of the node's lease since its agent began.");
        for by in Renewal::ALL {
            let count = renewals.get(&by).copied().unwrap_or(0);
            page.sample("lease_renewals_total", &format!(",by=\"{}\"", by.label()), number(count));
        }
        page.gauge("epoch", "Highest epoch that the node has seen.", "", number(standing.highest_epoch.0));
        page.gauge(
            "record_number",
            "Highest record number that the node has seen.",
            "",
            number(standing.highest_number.0),
        );
        let certificates = self.protection.borrow().certificates().to_vec();
        if !certificates.is_empty() {
            page.begin("certificate_expiry_timestamp_seconds", "When a certificate in use ends.");
        }
        for certificate in certificates {
            let subject = format!(",subject=\"{}\"", certificate.subject.replace(['"', '\\', '\n'], " "));
            page.sample("certificate_expiry_timestamp_seconds", &subject, certificate.expires.0 as f64 / 1e6);
        }
        if let Some(fenced) = standing.fence_confirmed {
            page.gauge(
                "fence_confirmed_epoch",
                "Newest epoch in which the node confirmed its fence.",
                "",
                number(fenced.0),
            );
        }
        if let Some(seconds) = fence_seconds {
            page.gauge("fence_kill_seconds", "How long the last kill of PostgreSQL's processes took.", "", seconds);
        }
        page.begin("probe_failing_seconds", "Since when a probe fails; 0 while it passes.");
        for (name, probe) in [("connect", &report.postgres.probes.connect), ("write", &report.postgres.probes.write)] {
            let Probe { failing_for, .. } = probe;
            let seconds = failing_for.map_or(0.0, |since| since.as_secs_f64());
            page.sample("probe_failing_seconds", &format!(",probe=\"{name}\""), seconds);
        }
        page.begin("probe_seconds", "How long the last probe that passed took.");
        for (name, probe) in [("connect", &report.postgres.probes.connect), ("write", &report.postgres.probes.write)] {
            if let Some(took) = probe.took {
                page.sample("probe_seconds", &format!(",probe=\"{name}\""), took.as_secs_f64());
            }
        }
        if let Some(live) = &report.postgres.live {
            page.gauge("timeline", "PostgreSQL's timeline.", "", f64::from(live.history.timeline.0));
            page.gauge("flush_lsn_bytes", "Flushed (primary) or received (standby).", "", number(live.flush_lsn.0));
            page.gauge("replay_lsn_bytes", "Written (primary) or replayed (standby).", "", number(live.replay_lsn.0));
            if let Some(connections) = live.connections {
                page.gauge("connections_used", "Client connections in use.", "", f64::from(connections.used));
                let help = "Client connections that PostgreSQL allows, without the reserved ones.";
                page.gauge("connections_allowed", help, "", f64::from(connections.allowed));
            }
            if let Some(waits) = live.waits {
                page.gauge("lock_waiters", "Clients that wait for a lock.", "", f64::from(waits.waiting_for_locks));
                let oldest = waits.oldest_transaction.map_or(0.0, |age| age.as_secs_f64());
                page.gauge("oldest_transaction_seconds", "Age of a client's oldest open transaction.", "", oldest);
            }
            if let Some(work) = live.work {
                let words = "Clients in the middle of a statement, without the agent's own sessions.";
                page.gauge("sessions_active", words, "", f64::from(work.active));
                let words = "Clients that wait until WAL is written and flushed.";
                page.gauge("wal_waiters", words, "", f64::from(work.waiting_for_wal));
                page.gauge("commits_total", "Transactions committed.", "", number(work.commits));
                if let Some(milliseconds) = work.statement_milliseconds {
                    let words = "What the statements of all sessions took, of those that have ended.";
                    page.gauge("statement_seconds_total", words, "", number(milliseconds) / 1000.0);
                }
            }
            if !live.standbys.is_empty() {
                page.begin("standby_replay_lag_bytes", "Flushed here and not yet replayed by the standby.");
            }
            for row in &live.standbys {
                if let Some(replayed) = row.replay_lsn {
                    let lag = number(live.flush_lsn.bytes_after(replayed));
                    page.sample("standby_replay_lag_bytes", &format!(",standby={:?}", row.node), lag);
                }
            }
        }
        if let Some(disk) = report.postgres.disk {
            page.gauge("data_free_bytes", "Space left for data.", "", number(disk.data_free_bytes));
            page.gauge("wal_free_bytes", "Space left for WAL.", "", number(disk.wal_free_bytes));
        }
        if let Some(memory) = report.postgres.memory {
            let words =
                "Memory that PostgreSQL may still take, on its host or in the tightest control group around it.";
            page.gauge("memory_available_bytes", words, "", number(memory.available_bytes));
            page.gauge("memory_total_bytes", "Of so much.", "", number(memory.total_bytes));
        }
        page.text + &self.probe_durations.text()
    }
}

/// How long the probes took that passed or ran into their time limit: all of them, where a page of metrics has only the last.
pub(super) struct ProbeDurations {
    registry: Registry,
    seconds: HistogramVec,
}

impl ProbeDurations {
    pub(super) fn new(cluster: &ClusterName, node: &NodeName) -> Result<Self, prometheus::Error> {
        // A flush takes a millisecond or two; the time limit is a second unless somebody sets another.
        let buckets = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
        let words = "How long the probes took that passed or ran into their time limit.";
        let options = HistogramOpts::new("stormglass_probe_duration_seconds", words)
            .const_label("cluster", cluster.to_string())
            .const_label("node", node.to_string());
        let seconds = HistogramVec::new(options.buckets(buckets), &["probe"])?;
        let registry = Registry::new();
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self { registry, seconds })
    }

    pub(super) fn observe(&self, probe: &str, took: Duration) {
        self.seconds.with_label_values(&[probe]).observe(took.as_secs_f64());
    }

    fn text(&self) -> String {
        let mut bytes = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut bytes) {
            Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => format!("# encode the metrics: {error}\n"),
        }
    }
}

/// Prometheus knows only floating point.
#[expect(clippy::cast_precision_loss, reason = "positions and sizes beyond 2^53 bytes may lose their last bytes")]
fn number(value: u64) -> f64 {
    value as f64
}

struct Page {
    text: String,
    labels: String,
}

impl Page {
    fn begin(&mut self, name: &str, help: &str) {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        // Writing to a string cannot fail.
        let _written = writeln!(self.text, "# HELP stormglass_{name} {help}\n# TYPE stormglass_{name} {kind}");
    }

    fn sample(&mut self, name: &str, more_labels: &str, value: f64) {
        let _written = writeln!(self.text, "stormglass_{name}{{{}{more_labels}}} {value}", self.labels);
    }

    fn gauge(&mut self, name: &str, help: &str, more_labels: &str, value: f64) {
        self.begin(name, help);
        self.sample(name, more_labels, value);
    }
}

#[cfg(test)]
mod tests {
    use crate::agent::testing::eventually;
    use crate::agent::tests::leading;

    #[tokio::test]
    async fn every_probe_that_passed_is_in_the_metrics_with_how_long_it_took() {
        let bench = leading().await;
        let counted = |probe: &str| {
            let sample =
                format!("stormglass_probe_duration_seconds_count{{cluster=\"main\",node=\"n1\",probe=\"{probe}\"}} ");
            let text = bench.agent.metrics_text();
            let count = text.lines().find_map(|line| line.strip_prefix(&sample)).map(str::to_owned);
            count.map_or(0, |count| count.parse().expect("a number"))
        };
        eventually("some of each", || counted("write") > 2 && counted("connect") > 2).await;
    }
}
