//! The audit log tells how what somebody asked for ended, in a row of its own, chained like the others.

use stormglass::adapters::store::SqliteStore;
use stormglass::api::controller::ControllerHandler;
use stormglass::api::wire::SequenceRequest;
use stormglass::domain::operation::{Operation, OperationStatus};
use stormglass::domain::sequence::{OnError, Sequence, SequenceStep, StepAction};
use stormglass::ports::{Page, Store};
use stormglass::telemetry::chain;

use super::{AuditRow, PATIENCE, Running, Setting, caller, failover, start, start_in};

fn sequence(name: &str, program: &str) -> Sequence {
    let action =
        StepAction::Command { command: vec![program.to_owned()], environment: Default::default(), directory: None };
    let step = SequenceStep {
        name: "one".to_owned(),
        action,
        timeout_seconds: 20,
        retries: 0,
        on_error: OnError::Stop,
        condition: None,
    };
    Sequence { name: name.to_owned(), when: Vec::new(), steps: vec![step] }
}

async fn begin(controller: &Running, name: &str) {
    let request = SequenceRequest::default();
    controller.handle.begin_sequence("main", name, request, &caller()).await.expect("begun");
}

/// Every row, oldest first; the chain is whole.
async fn rows(store: &dyn Store) -> Vec<AuditRow> {
    let mut entries = store.page_audit(Page::newest(100)).await.expect("listed").rows;
    entries.reverse();
    assert_eq!(chain::verify(&entries).expect("whole").rows, entries.len());
    entries.into_iter().map(|entry| entry.row).collect()
}

fn sequences() -> Vec<Sequence> {
    vec![sequence("good", "true"), sequence("bad", "false")]
}

#[tokio::test]
async fn who_asked_for_what_and_how_it_ended_is_a_row() {
    let controller = start_in(Setting { sequences: sequences(), ..Setting::default() }).await;
    begin(&controller, "good").await;
    controller.until_ended("sequence", 1).await;
    begin(&controller, "bad").await;
    let ended = controller.until_ended("sequence", 2).await;
    // The journal has an end only after the log has it.
    let rows = rows(controller.store.as_ref()).await;
    assert_eq!(rows.len(), 2, "{rows:?}");
    for (row, operation) in rows.iter().zip(&ended) {
        assert_eq!((row.who.as_str(), row.from.as_str()), ("on-call", "controller controller-1"));
        assert_eq!(Some(row.wall), operation.ended_wall);
    }
    assert_eq!(rows[0].what, format!("end of sequence main good, operation {}", ended[0].id));
    assert!(rows[0].outcome.starts_with("succeeded"), "{rows:?}");
    assert_eq!(rows[1].what, format!("end of sequence main bad, operation {}", ended[1].id));
    assert!(rows[1].outcome.starts_with("failed: ") && rows[1].outcome.contains("one"), "{rows:?}");
}

#[tokio::test]
async fn a_cancelled_operation_is_told_as_such_and_what_nobody_asked_for_is_not() {
    for (origin, expected) in [("on-call", 1), ("alert:01a88acc357e86bc", 1), ("automatic", 0), ("schedule", 0)] {
        let begun = Operation { origin: origin.to_owned(), ..failover(None, Vec::new()) };
        let controller = start(PATIENCE, &[begun]).await;
        controller.handle.cancel("op-1", &caller()).await.expect("accepted");
        let ended = controller.until_ended("failover", 1).await;
        assert_eq!(ended[0].status, OperationStatus::Cancelled);
        let rows = rows(controller.store.as_ref()).await;
        assert_eq!(rows.len(), expected, "{origin}: {rows:?}");
        for row in rows {
            assert_eq!((row.who.as_str(), row.what.as_str()), (origin, "end of failover main n2, operation op-1"));
            assert!(row.outcome.starts_with("cancelled: "), "{row:?}");
        }
    }
}

#[tokio::test]
async fn clusters_of_one_controller_share_a_log() {
    let home = tempfile::tempdir().expect("a directory");
    let shared: std::sync::Arc<dyn Store> =
        std::sync::Arc::new(SqliteStore::open(&home.path().join("first.db")).expect("a new store"));
    let setting = Setting { sequences: sequences(), audit: Some(shared.clone()), ..Setting::default() };
    let controller = start_in(setting).await;
    begin(&controller, "good").await;
    controller.until_ended("sequence", 1).await;
    assert_eq!(rows(shared.as_ref()).await.len(), 1);
    assert!(rows(controller.store.as_ref()).await.is_empty());
}
