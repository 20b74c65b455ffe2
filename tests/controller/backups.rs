//! What a controller begins by the clock, on a wall clock that the test puts forward, and what it says of a repository that nobody
//! answers for. The steps themselves are pgBackRest's: `tests/pgbackrest.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use stormglass::api::controller::ControllerHandler;
use stormglass::config::backup::{ControllerBackupSection, Job, ScheduleSection};
use stormglass::domain::clock::WallTime;
use stormglass::domain::operation::OperationStatus;

use super::{Setting, start_in};

const HOUR_MICROSECONDS: i64 = 3_600_000_000;

/// So much later than now it is at the next three o'clock in Berlin, by the calendar's own word.
fn until_three_in_berlin(now: WallTime) -> i64 {
    use chrono::{TimeZone as _, Timelike as _};
    let zone = chrono_tz::Europe::Berlin;
    let here = zone.timestamp_micros(now.0).single().expect("a time");
    let is_past = here.hour() >= 3;
    let day = here.date_naive() + chrono::Days::new(u64::from(is_past));
    let three = day.and_hms_opt(3, 0, 0).and_then(|naive| zone.from_local_datetime(&naive).earliest()).expect("a time");
    three.timestamp_micros() - now.0
}

#[tokio::test]
async fn a_schedule_follows_the_clock_of_its_zone_waits_for_a_ready_cluster_and_tries_again() {
    let later = Arc::new(AtomicI64::new(0));
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
    controller.hear_a_healthy_primary().await;
    // Nobody can say anything of the repository.
    let violated = controller.until_told("rpo_violated", 1).await;
    assert!(violated[0].contains("n1"), "{violated:?}");
    assert!(controller.handle.metrics().contains("stormglass_backup_rpo_violation{cluster=\"main\"} 1"));
    assert!(controller.handle.operations(None, 10).await.expect("listed").is_empty(), "nothing is due");

    let three = until_three_in_berlin(controller.handle.wall());
    later.store(three + HOUR_MICROSECONDS / 60, Ordering::Relaxed);
    controller.hear_a_healthy_primary().await;
    let ended = controller.until_ended("backup", 2).await;
    assert!(ended.iter().all(|operation| operation.origin == "schedule"), "{ended:#?}");
    assert!(ended.iter().all(|operation| operation.status == OperationStatus::Failed), "no agent answers");
    assert!(ended[0].ended_wall <= Some(ended[1].begun_wall), "never two at once");
    let operations = controller.handle.operations(None, 20).await.expect("listed");
    assert!(operations.iter().all(|operation| operation.kind.label() == "backup"), "the drill is not due before five");
    let failures = controller.until_told("backup_failed", 2).await;
    assert!(failures[0].contains("n1"), "{failures:?}");
    assert_eq!(controller.told("rpo_violated").await.len(), 1, "told once");
}
