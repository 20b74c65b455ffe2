//! A controller that answers by heart and remembers what it was told.
//!
//! Length: the trait has one method for each route, and each is answered here.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use serde_json::{Value, json};
use stormglass::api::authentication::{Caller, Identity, TokenDigest};
use stormglass::api::clusters::{ClusterAddRequest, ClusterDefinition, ClusterRemoveRequest, DefinedNode};
use stormglass::api::controller::ControllerHandler;
use stormglass::api::listing::{Listing, Wanted};
use stormglass::api::rendered::Rendered;
use stormglass::api::risk::{ModelList, PromoteRequest, RiskDocument};
use stormglass::api::routes::Endpoint;
use stormglass::api::tokens::{StoredToken, TokenDocument, TokenReply, TokenRequest, find};
use stormglass::api::webhook::AlertsReply;
use stormglass::api::wire::{
    BackupList, BackupRequest, ClusterStatus, DrillRequest, Explanation, FailoverPreview, FailoverRequest, Health,
    LeaderAddress, MutationReply, NodeRequest, PauseRequest, Problem, RestoreRequest, RetrainRequest, SCHEMA_VERSION,
    SequenceRequest, SwitchoverRequest, TimerStatus,
};
use stormglass::domain::alert::Alert;
use stormglass::domain::clock::{BootId, Moment, WallTime};
use stormglass::domain::command::{HeartbeatReply, ProxyAssignment};
use stormglass::domain::epoch::{Epoch, RecordNumber};
use stormglass::domain::ids::{Address, ClusterName, NodeName, OperationId, ProxyName, SiteName};
use stormglass::domain::incident::IncidentReport;
use stormglass::domain::lsn::Lsn;
use stormglass::domain::operation::{JOURNAL_FORMAT, Operation, OperationKind, OperationStatus};
use stormglass::domain::plan::{Intent, Loss, Plan, Reason, ReasonCode};
use stormglass::domain::readiness::{Check, Readiness, Verdict};
use stormglass::domain::report::{PostgresReport, PostgresState, Probes, ProxyReport, Report, Standing, Tags};
use stormglass::domain::sequence::Sequence;
use stormglass::domain::trail::{AuditEntry, AuditRow, EventRow};
use stormglass::telemetry::chain;
use tokio::sync::Notify;

/// The time on the script's clock.
pub const NOW: WallTime = WallTime(1_795_000_000_000_000);

#[derive(Default)]
pub struct Script {
    pub audit: Mutex<Vec<AuditRow>>,
    pub limits: Mutex<Vec<usize>>,
    /// Alerts that were taken, in their order.
    pub alerts: Mutex<Vec<Alert>>,
    /// Oldest first.
    pub events: Mutex<Vec<EventRow>>,
    pub replies: Mutex<std::collections::BTreeMap<String, String>>,
    pub tokens: Mutex<Vec<StoredToken>>,
    pub broken: Mutex<Option<String>>,
    /// A fence tells that it began, then waits until it is let go.
    pub fence_began: Notify,
    pub fence_let_go: Notify,
}

impl Script {
    pub fn rows(&self) -> Vec<AuditRow> {
        self.audit.lock().expect("no panic").clone()
    }
}

pub fn node(name: &str) -> NodeName {
    NodeName::new(name).expect("valid")
}

fn cluster() -> ClusterName {
    ClusterName::new("main").expect("valid")
}

pub fn operation(id: &str, status: OperationStatus) -> Operation {
    Operation {
        format: JOURNAL_FORMAT,
        id: OperationId(id.to_owned()),
        cluster: cluster(),
        kind: OperationKind::Switchover { from: node("db1"), to: node("db2") },
        status,
        origin: "operator".to_owned(),
        reasons: Vec::new(),
        epoch_before: Epoch(1),
        epoch_after: None,
        cancel_requested: false,
        detected_at: Moment(1),
        decided_at: Moment(2),
        begun_wall: NOW,
        ended_at: None,
        ended_wall: None,
        message: None,
        journal: Vec::new(),
        evidence: Vec::new(),
        risks: Default::default(),
        loss: None,
    }
}

pub fn plan() -> Plan {
    Plan {
        intent: Intent::Hold,
        reasons: vec![Reason::new(ReasonCode::Healthy, "")],
        blocked_by: Vec::new(),
        based_on: Some((Epoch(1), RecordNumber(1))),
        loss: Some(Loss {
            node: NodeName::new("n2").expect("valid"),
            missing_bytes: Some(1),
            flush_lsn: Lsn(1),
            last_commit_at: None,
            primary: NodeName::new("n1").expect("valid"),
            primary_flush_lsn: Some(Lsn(2)),
            primary_seen_at: None,
            holds_every_confirmed_commit: false,
        }),
    }
}

pub fn readiness() -> Readiness {
    let check = Check {
        check: "backup".to_owned(),
        subject: None,
        verdict: Verdict::Warning,
        detail: "not configured".to_owned(),
        next: None,
    };
    Readiness::new("main", vec![check], NOW)
}

pub fn reply(message: &str) -> MutationReply {
    MutationReply {
        schema_version: SCHEMA_VERSION,
        operation: Some(operation("op-1", OperationStatus::Running)),
        plan: Some(plan()),
        expect: vec!["writes pause for 0.1 s".to_owned()],
        message: message.to_owned(),
    }
}

pub fn status() -> ClusterStatus {
    ClusterStatus {
        schema_version: SCHEMA_VERSION,
        cluster: "main".to_owned(),
        health: Health::Healthy,
        primary: Some(node("db1")),
        primary_since: Some(NOW),
        timeline: Some(7),
        epoch: 3,
        record_number: 9,
        durability: "sync".to_owned(),
        eligible: vec![node("db2")],
        synchronous: vec![node("db2")],
        alone_since: None,
        automation: true,
        paused_until: None,
        scheduled_switchover: None,
        nodes: Vec::new(),
        proxies: Vec::new(),
        name: None,
        failover_now: FailoverPreview { candidate: Some(node("db2")), reasons: Vec::new() },
        operations: Vec::new(),
        warnings: Vec::new(),
        timers: TimerStatus {
            rto_seconds: 5.0,
            lease_seconds: 3.0,
            renewal_interval_seconds: 0.5,
            request_timeout_seconds: 1.0,
            stop_budget_seconds: 0.8,
            wait_seconds: 3.05,
            kill_budget_seconds: 0.3,
            drift_seconds: 0.05,
            promise_seconds: 3.05,
            leadership_ttl_seconds: None,
            rules: Vec::new(),
            outages: Vec::new(),
        },
        predictor: None,
        controller: "script".to_owned(),
        leader: Some(LeaderAddress { name: "script".to_owned(), url: "http://127.0.0.1:8432".to_owned() }),
        at: NOW,
    }
}

pub fn report() -> Report {
    Report {
        cluster: cluster(),
        node: node("db1"),
        site: SiteName::new("a").expect("valid"),
        address: Address::new("127.0.0.1", 5432),
        boot: BootId("boot".to_owned()),
        incarnation: "1".to_owned(),
        sequence: 1,
        sent_at: Moment(1),
        version: "0".to_owned(),
        standing: Standing::default(),
        postgres: PostgresReport {
            state: PostgresState::Stopped,
            control: None,
            damage: None,
            live: None,
            probes: Probes::default(),
            disk: None,
            memory: None,
        },
        tags: Tags::default(),
        tasks: Default::default(),
        protection: None,
    }
}

fn proxy_report() -> ProxyReport {
    ProxyReport {
        cluster: cluster(),
        proxy: ProxyName::new("proxy1").expect("valid"),
        site: SiteName::new("a").expect("valid"),
        write_address: Address::new("127.0.0.1", 5000),
        sequence: 1,
        incarnation: "1".to_owned(),
        write_target: None,
        holding: false,
        epoch: Epoch(1),
        path: None,
        error: None,
        traffic: None,
        protection: None,
    }
}

/// A body that the route takes; `None` for a route without.
pub fn body(endpoint: Endpoint) -> Option<Value> {
    match endpoint {
        Endpoint::Heartbeat => serde_json::to_value(report()).ok(),
        Endpoint::ProxyHeartbeat => serde_json::to_value(proxy_report()).ok(),
        Endpoint::Fence | Endpoint::Unfence | Endpoint::Rejoin => Some(json!({ "node": "db1" })),
        Endpoint::Switchover => Some(json!({ "to": "db2" })),
        Endpoint::Failover => Some(json!({ "dry_run": true })),
        Endpoint::TokenCreate => Some(json!({ "name": "robot", "role": "viewer" })),
        Endpoint::Alertmanager => Some(json!({ "version": "4", "alerts": [] })),
        Endpoint::Pause => Some(json!({ "duration_seconds": 60 })),
        Endpoint::ClusterAdd => Some(json!({ "definition": "[cluster]\nname = \"orders\"\n" })),
        Endpoint::ModelPromote => Some(json!({ "name": "lab-1s" })),
        _ => None,
    }
}

fn known(cluster: &str) -> Result<(), Problem> {
    if cluster == "main" { Ok(()) } else { Err(Problem::not_found(format!("there is no cluster {cluster:?}"))) }
}

#[async_trait]
impl ControllerHandler for Script {
    async fn heartbeat(&self, _: Report) -> Result<HeartbeatReply, Problem> {
        Ok(HeartbeatReply { assignment: None, grant: None, paused: false, may_leave: false, primary_flush_lsn: None })
    }

    async fn proxy_heartbeat(&self, report: ProxyReport) -> Result<ProxyAssignment, Problem> {
        Ok(ProxyAssignment {
            cluster: report.cluster,
            epoch: Epoch(1),
            number: RecordNumber(1),
            primary: None,
            hold: false,
            leader: "c1".to_owned(),
            sequence: 1,
            backends: None,
        })
    }

    async fn clusters(&self) -> Result<Vec<ClusterStatus>, Problem> {
        Ok(vec![status()])
    }

    async fn status(&self, cluster: &str) -> Result<Arc<Rendered<ClusterStatus>>, Problem> {
        known(cluster)?;
        Rendered::of(status()).map(Arc::new)
    }

    async fn definition(&self, cluster: &str) -> Result<ClusterDefinition, Problem> {
        known(cluster)?;
        let site = SiteName::new("a").expect("valid");
        Ok(ClusterDefinition {
            schema_version: SCHEMA_VERSION,
            cluster: self::cluster(),
            file: "/etc/stormglass/clusters/main.toml".to_owned(),
            store: "/var/lib/stormglass/controller".to_owned(),
            is_first: true,
            sites: vec![site.clone()],
            nodes: vec![DefinedNode { name: node("db1"), site, agent: "http://127.0.0.1:8008".to_owned() }],
            proxies: Vec::new(),
            policy: json!({ "rto": "5s" }),
        })
    }

    async fn add_cluster(&self, request: ClusterAddRequest, _: &Caller) -> Result<MutationReply, Problem> {
        if request.definition.contains("orders") {
            return Ok(reply("kept from now on"));
        }
        Err(Problem::bad_request("the definition: cluster.name: missing"))
    }

    async fn remove_cluster(
        &self,
        cluster: &str,
        _: ClusterRemoveRequest,
        _: &Caller,
    ) -> Result<MutationReply, Problem> {
        known(cluster).map(|()| reply("kept no longer"))
    }

    async fn explain(&self, cluster: &str) -> Result<Explanation, Problem> {
        known(cluster)?;
        Ok(Explanation {
            schema_version: SCHEMA_VERSION,
            cluster: cluster.to_owned(),
            plan: plan(),
            nodes: Vec::new(),
            witnesses: Vec::new(),
        })
    }

    async fn risk(&self, cluster: &str) -> Result<RiskDocument, Problem> {
        known(cluster)?;
        Ok(RiskDocument {
            schema_version: SCHEMA_VERSION,
            cluster: cluster.to_owned(),
            predictor: None,
            nodes: Vec::new(),
        })
    }

    async fn models(&self) -> Result<ModelList, Problem> {
        Ok(ModelList { schema_version: SCHEMA_VERSION, models: Vec::new() })
    }

    async fn promote_model(&self, _: PromoteRequest, _: &Caller) -> Result<MutationReply, Problem> {
        Ok(reply("it scores"))
    }

    async fn roll_back_model(&self, _: &Caller) -> Result<MutationReply, Problem> {
        Ok(reply("it scores again"))
    }

    async fn test_notification(&self, name: &str, _: &Caller) -> Result<MutationReply, Problem> {
        Ok(reply(&format!("it went out over {name}")))
    }

    async fn events(&self, cluster: &str, limit: usize) -> Result<Vec<EventRow>, Problem> {
        self.limits.lock().expect("no panic").push(limit);
        known(cluster).map(|()| Vec::new())
    }

    async fn operations(&self, cluster: Option<&str>, limit: usize) -> Result<Vec<Operation>, Problem> {
        if let Some(cluster) = cluster {
            known(cluster)?;
        }
        let all = [
            ("op-3", OperationStatus::Running),
            ("op-2", OperationStatus::Failed),
            ("op-1", OperationStatus::Succeeded),
        ];
        Ok(all.into_iter().map(|(id, status)| operation(id, status)).take(limit).collect())
    }

    async fn operation(&self, id: &str) -> Result<Operation, Problem> {
        match id {
            "op-1" => Ok(operation(id, OperationStatus::Running)),
            _ => Err(Problem::not_found(format!("there is no operation {id}"))),
        }
    }

    async fn doctor(&self, cluster: &str) -> Result<Readiness, Problem> {
        known(cluster).map(|()| readiness())
    }

    async fn report(&self, id: &str) -> Result<IncidentReport, Problem> {
        Ok(IncidentReport::of(&self.operation(id).await?, &[]))
    }

    async fn cancel(&self, _: &str, _: &Caller) -> Result<MutationReply, Problem> {
        Ok(reply("asked to stop"))
    }

    async fn switchover(
        &self,
        cluster: &str,
        request: SwitchoverRequest,
        caller: &Caller,
    ) -> Result<MutationReply, Problem> {
        known(cluster)?;
        assert!(caller.peer.ip().is_loopback());
        match request.to {
            Some(to) if to == node("db9") => {
                Err(Problem::refused("db9 is not known", vec![Reason::about(&to, ReasonCode::UnknownNode, "")]))
            }
            _ => Ok(reply("switchover begun")),
        }
    }

    async fn failover(&self, cluster: &str, request: FailoverRequest, _: &Caller) -> Result<MutationReply, Problem> {
        known(cluster)?;
        if request.dry_run {
            return Ok(reply("this would be done"));
        }
        Err(Problem::unknown_outcome("the store did not answer; see operation op-1"))
    }

    async fn fence(&self, cluster: &str, request: NodeRequest, _: &Caller) -> Result<MutationReply, Problem> {
        known(cluster)?;
        if request.node == node("db3") {
            self.fence_began.notify_one();
            self.fence_let_go.notified().await;
        }
        Ok(reply("fenced"))
    }

    async fn unfence(&self, cluster: &str, _: NodeRequest, _: &Caller) -> Result<MutationReply, Problem> {
        known(cluster).map(|()| reply("unfenced"))
    }

    async fn rejoin(&self, cluster: &str, _: NodeRequest, _: &Caller) -> Result<MutationReply, Problem> {
        known(cluster).map(|()| reply("rejoin begun"))
    }

    async fn sequences(&self, cluster: &str) -> Result<Vec<Sequence>, Problem> {
        known(cluster).map(|()| Vec::new())
    }

    async fn begin_sequence(
        &self,
        cluster: &str,
        name: &str,
        _: SequenceRequest,
        _: &Caller,
    ) -> Result<MutationReply, Problem> {
        known(cluster).map(|()| reply(&format!("sequence {name} begun")))
    }

    async fn backups(&self, cluster: &str) -> Result<BackupList, Problem> {
        known(cluster)?;
        let seen_by = NodeName::new("n1").expect("valid");
        let (repository, verified) = (Default::default(), Default::default());
        Ok(BackupList { schema_version: SCHEMA_VERSION, cluster: cluster.to_owned(), seen_by, repository, verified })
    }

    async fn backup(&self, cluster: &str, _: BackupRequest, _: &Caller) -> Result<MutationReply, Problem> {
        known(cluster).map(|()| reply("backup begun"))
    }

    async fn drill(&self, cluster: &str, _: DrillRequest, _: &Caller) -> Result<MutationReply, Problem> {
        known(cluster).map(|()| reply("drill begun"))
    }

    async fn retrain(&self, cluster: &str, _: RetrainRequest, _: &Caller) -> Result<MutationReply, Problem> {
        known(cluster).map(|()| reply("retraining begun"))
    }

    async fn restore(&self, cluster: &str, _: RestoreRequest, _: &Caller) -> Result<MutationReply, Problem> {
        known(cluster).map(|()| reply("restore begun"))
    }

    async fn pause(&self, cluster: &str, _: PauseRequest, _: &Caller) -> Result<MutationReply, Problem> {
        known(cluster).map(|()| reply("paused"))
    }

    async fn resume(&self, cluster: &str, _: &Caller) -> Result<MutationReply, Problem> {
        known(cluster).map(|()| reply("resumed"))
    }

    async fn alerts(&self, alerts: Vec<Alert>, _: &Caller) -> Result<AlertsReply, Problem> {
        let unmatched = alerts.len();
        self.alerts.lock().expect("no panic").extend(alerts);
        Ok(AlertsReply { unmatched, ..AlertsReply::new() })
    }

    async fn page_of_events(&self, cluster: &str, wanted: Wanted) -> Result<Listing<EventRow>, Problem> {
        self.limits.lock().expect("no panic").push(wanted.limit);
        known(cluster)?;
        // Places count down from 3; the third row is the oldest.
        let (from, all) = (wanted.before.unwrap_or(4), self.events.lock().expect("no panic").clone());
        let rows: Vec<EventRow> =
            all.into_iter().rev().skip(4_usize.saturating_sub(from as usize)).take(wanted.limit).collect();
        let next = from.checked_sub(rows.len() as u64).filter(|next| *next > 1 && !rows.is_empty());
        Ok(Listing { rows, next })
    }

    async fn page_of_operations(&self, cluster: Option<&str>, wanted: Wanted) -> Result<Listing<Operation>, Problem> {
        let all = self.operations(cluster, usize::MAX).await?;
        let numbered = (1..=all.len() as u64).rev().zip(all);
        let page: Vec<_> =
            numbered.filter(|(number, _)| *number < wanted.before.unwrap_or(u64::MAX)).take(wanted.limit).collect();
        let next = page.last().map(|(number, _)| *number).filter(|number| *number > 1);
        Ok(Listing { rows: page.into_iter().map(|(_, operation)| operation).collect(), next })
    }

    async fn page_of_audit(&self, wanted: Wanted) -> Result<Listing<AuditEntry>, Problem> {
        let mut entries: Vec<AuditEntry> = Vec::new();
        for row in self.rows() {
            entries.push(chain::append(entries.last(), row));
        }
        let before = wanted.before.unwrap_or(u64::MAX);
        let rows: Vec<AuditEntry> =
            entries.into_iter().rev().filter(|entry| entry.number < before).take(wanted.limit).collect();
        let next = rows.last().map(|last| last.number).filter(|number| *number > 1);
        Ok(Listing { rows, next })
    }

    async fn claim_reply(&self, key: &str, body: String) -> Result<Option<String>, Problem> {
        let mut replies = self.replies.lock().expect("no panic");
        match replies.get(key) {
            Some(known) => Ok(Some(known.clone())),
            None => {
                replies.insert(key.to_owned(), body);
                Ok(None)
            }
        }
    }

    async fn keep_reply(&self, key: &str, body: Option<String>) {
        let mut replies = self.replies.lock().expect("no panic");
        match body {
            Some(body) => replies.insert(key.to_owned(), body),
            None => replies.remove(key),
        };
    }

    fn stored_token(&self, digest: &TokenDigest) -> Result<Option<Identity>, Problem> {
        let tokens = self.tokens.lock().expect("no panic");
        Ok(find(&tokens, digest, NOW).map(StoredToken::identity))
    }

    async fn tokens(&self) -> Result<Vec<TokenDocument>, Problem> {
        Ok(self.tokens.lock().expect("no panic").iter().map(|stored| stored.token.clone()).collect())
    }

    async fn create_token(&self, request: TokenRequest, caller: &Caller) -> Result<TokenReply, Problem> {
        let secret = format!("secret-of-{}", request.name);
        let token = TokenDocument {
            name: request.name,
            role: request.role,
            clusters: request.clusters,
            created: Some(NOW),
            created_by: Some(caller.name.clone()),
            expires: request.expires_in_seconds.map(|seconds| NOW.plus(std::time::Duration::from_secs(seconds))),
        };
        let sha256 = TokenDigest::of(&secret).to_hexadecimal();
        self.tokens.lock().expect("no panic").push(StoredToken { sha256, token: token.clone() });
        Ok(TokenReply::new(token, secret))
    }

    async fn revoke_token(&self, name: &str, _: &Caller) -> Result<MutationReply, Problem> {
        self.tokens.lock().expect("no panic").retain(|stored| stored.token.name != name);
        Ok(reply("revoked"))
    }

    async fn record_audit(&self, row: AuditRow) {
        self.audit.lock().expect("no panic").push(row);
    }

    fn ready(&self) -> Result<(), String> {
        self.broken.lock().expect("no panic").clone().map_or(Ok(()), Err)
    }

    fn metrics(&self) -> String {
        "stormglass_epoch{cluster=\"main\"} 3\n".to_owned()
    }

    fn wall(&self) -> WallTime {
        NOW
    }
}
