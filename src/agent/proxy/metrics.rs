//! Numbers of the proxy role, in base units.

use prometheus::{
    Encoder as _, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

use crate::domain::certificate::CertificateFacts;
use crate::telemetry::metrics::CERTIFICATE_EXPIRY;

/// All of them.
#[derive(Debug)]
pub struct ProxyMetrics {
    registry: Registry,
    /// Redirects and holds, by outcome.
    pub redirects_total: IntCounterVec,
    /// Time of a redirect or hold until it was verified in HAProxy.
    pub redirect_seconds: Histogram,
    /// Times that HAProxy was found to lead elsewhere than it should.
    pub drift_repairs_total: IntCounter,
    /// Moves on the word of the nodes, without a controller.
    pub own_moves_total: IntCounter,
    /// 1 while HAProxy answers.
    pub up: IntGauge,
    /// 1 while new write connections wait.
    pub holding: IntGauge,
    /// Epoch of the last redirect stored.
    pub epoch: IntGauge,
    certificates: GaugeVec,
}

impl ProxyMetrics {
    /// Registers everything.
    pub fn new() -> Result<Self, prometheus::Error> {
        // A redirect takes 0.3 ms; what takes longer than the last bound ran into the time limit.
        let buckets = vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5];
        let metrics = Self {
            registry: Registry::new(),
            redirects_total: IntCounterVec::new(
                Opts::new("stormglass_proxy_redirects_total", "Redirects and holds of the write port, by outcome."),
                &["outcome"],
            )?,
            redirect_seconds: Histogram::with_opts(
                HistogramOpts::new("stormglass_proxy_redirect_seconds", "Time until HAProxy was seen to follow.")
                    .buckets(buckets),
            )?,
            drift_repairs_total: IntCounter::new(
                "stormglass_proxy_drift_repairs_total",
                "Times that HAProxy led elsewhere than assigned and was put right.",
            )?,
            own_moves_total: IntCounter::new(
                "stormglass_proxy_own_moves_total",
                "Redirects on the word of the nodes' agents, while no controller answered.",
            )?,
            up: IntGauge::new("stormglass_proxy_up", "1 while HAProxy answers its runtime API.")?,
            holding: IntGauge::new("stormglass_proxy_holding", "1 while new write connections wait.")?,
            epoch: IntGauge::new("stormglass_epoch", "Epoch of the last assignment stored.")?,
            certificates: GaugeVec::new(
                Opts::new(CERTIFICATE_EXPIRY, "When a certificate in use ends."),
                &["subject"],
            )?,
        };
        metrics.registry.register(Box::new(metrics.redirects_total.clone()))?;
        metrics.registry.register(Box::new(metrics.redirect_seconds.clone()))?;
        metrics.registry.register(Box::new(metrics.drift_repairs_total.clone()))?;
        metrics.registry.register(Box::new(metrics.own_moves_total.clone()))?;
        metrics.registry.register(Box::new(metrics.up.clone()))?;
        metrics.registry.register(Box::new(metrics.holding.clone()))?;
        metrics.registry.register(Box::new(metrics.epoch.clone()))?;
        metrics.registry.register(Box::new(metrics.certificates.clone()))?;
        Ok(metrics)
    }

    /// Prometheus text, with the certificates in use.
    pub fn text(&self, certificates: &[CertificateFacts]) -> String {
        self.certificates.reset();
        for certificate in certificates {
            let expires = certificate.expires.0 as f64 / 1e6;
            self.certificates.with_label_values(&[certificate.subject.as_str()]).set(expires);
        }
        let mut bytes = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut bytes) {
            Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => format!("# encode the metrics: {error}\n"),
        }
    }
}
