//! What a controller begins by the clock, on a wall clock that the test puts forward, and what it says of a repository that nobody
//! answers for. The steps themselves are pgBackRest's: `tests/pgbackrest.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use stormglass::adapters::system::SystemClock;
use stormglass::api::controller::ControllerHandler;
use stormglass::api::wire::PauseRequest;
use stormglass::config::backup::{ControllerBackupSection, Job, ScheduleSection};
use stormglass::domain::clock::WallTime;
use stormglass::domain::operation::OperationStatus;
use stormglass::ports::Clock;

use super::{PATIENCE, Setting, caller, start_in};

/// What must be added to the clock of this host so that it is `text` now.
fn offset_to(text: &str) -> i64 {
    let wanted = WallTime::try_from(text.to_owned()).expect("a time");
    wanted.0 - SystemClock::new().expect("a clock").wall().0
}

#[tokio::test]
async fn a_schedule_follows_the_clock_of_its_zone_waits_for_a_ready_cluster_and_tries_again() {
    // Half past two in Berlin, in summer.
    let later = Arc::new(AtomicI64::new(offset_to("2026-07-01T00:30:00Z")));
    let section = ControllerBackupSection {
        time_zone: "Europe/Berlin".to_owned(),
        retry_after: Duration::from_millis(100),
        schedules: vec![
            ScheduleSection { cron: "0 3 * * *".to_owned(), job: Job::Full },
            ScheduleSection { cron: "0 5 * * *".to_owned(), job: Job::Drill },
        ],
        ..ControllerBackupSection::default()
    };
    let controller = start_in(Setting { backup: Some(section), later: later.clone(), ..Setting::default() }).await;
    // Nobody can say anything of the repository.
    controller.until_told("rpo_violated", 1).await;
    assert!(controller.handle.metrics().contains("stormglass_backup_rpo_violation{cluster=\"main\"} 1"));
    assert!(controller.handle.operations(None, 10).await.expect("listed").is_empty(), "nothing is due");

    later.store(offset_to("2026-07-01T01:00:30Z"), Ordering::Relaxed);
    // It is due, and waits for a primary that accepts writes.
    controller.hear_a_healthy_primary().await;
    let first = controller.until_ended("backup", 1).await;
    controller.hear_a_healthy_primary().await;
    let ended = controller.until_ended("backup", 2).await;
    assert!(ended.iter().all(|operation| operation.origin == "schedule"), "{ended:#?}");
    assert!(ended.iter().all(|operation| operation.status == OperationStatus::Failed), "no agent answers");
    assert!(first[0].ended_wall <= Some(ended[1].begun_wall), "never two at once");
    let operations = controller.handle.operations(None, 20).await.expect("listed");
    assert!(operations.iter().all(|operation| operation.kind.label() == "backup"), "the drill is not due before five");
    let failures = controller.until_told("backup_failed", 2).await;
    assert!(failures[0].contains("n1"), "{failures:?}");
    assert_eq!(controller.told("rpo_violated").await.len(), 1, "told once");
}

#[tokio::test]
async fn what_is_due_during_a_pause_begins_when_it_ends() {
    let later = Arc::new(AtomicI64::new(offset_to("2026-07-01T00:30:00Z")));
    let section = ControllerBackupSection {
        schedules: vec![ScheduleSection { cron: "0 1 * * *".to_owned(), job: Job::Full }],
        ..ControllerBackupSection::default()
    };
    let controller = start_in(Setting { backup: Some(section), later: later.clone(), ..Setting::default() }).await;
    let half_an_hour_and_3_seconds = PauseRequest { duration_seconds: Some(1803) };
    controller.handle.pause("main", half_an_hour_and_3_seconds, &caller()).await.expect("stored");
    let status = controller.handle.status("main").await.expect("answers");
    let paused_until = status.document.paused_until.expect("paused");

    later.store(offset_to("2026-07-01T01:00:00Z"), Ordering::Relaxed);
    let begun = tokio::time::timeout(PATIENCE, async {
        loop {
            controller.hear_a_healthy_primary().await;
            let operations = controller.handle.operations(None, 10).await.expect("listed");
            if let Some(backup) = operations.into_iter().find(|operation| operation.kind.label() == "backup") {
                return backup;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let begun = begun.await.expect("it is not forgotten");
    assert!(begun.begun_wall >= paused_until, "{} is before {paused_until}", begun.begun_wall);
}
