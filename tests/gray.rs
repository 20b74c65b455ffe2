//! Gray failures and saturation: real PostgreSQL, real faults. What needs root is skipped with a message otherwise.
//!
//! What never enters: how long something takes; each test waits for what must happen.

#[path = "gray/agent.rs"]
mod agent;
#[path = "gray/saturation.rs"]
mod saturation;
#[expect(dead_code, reason = "other tests need more of it")]
mod support;
#[path = "gray/volume.rs"]
mod volume;

use std::fs;

use rustix::process::Signal;
use stormglass::adapters::control::TcpPrimaryProbe;
use stormglass::adapters::system::family;
use stormglass::ports::postgres::{Presence, StartMode};
use stormglass::ports::{LocalPostgres, PrimaryProbe};
use support::{Node, PATIENCE, Place, names};
use volume::Volume;

/// A client's table with one row.
async fn fill(node: &Node) {
    node.sql("create table if not exists kept (number int); insert into kept values (1)").await;
}

async fn rows(node: &Node) -> Option<String> {
    node.sql("select count(*) from kept").await
}

#[tokio::test]
async fn a_stopped_postmaster_accepts_and_never_answers() {
    let place = Place::new();
    let node = place.node("n1");
    node.init_primary().await;
    let (probe, address) = (TcpPrimaryProbe, &node.settings.address);
    probe.probe(address, PATIENCE).await.expect("it answers whoever knocks");
    node.postgres.probe_write(PATIENCE).await.expect("over the held connection");

    let Presence::Running { postmaster } = node.postgres.presence().await else { panic!("it runs") };
    assert!(family::signal(&node.family(), postmaster, Signal::STOP).expect("own process"));
    let short = std::time::Duration::from_millis(300);
    tokio::net::TcpStream::connect((address.host.as_str(), address.port)).await.expect("the kernel accepts for it");
    let error = probe.probe(address, short).await.expect_err("nobody answers");
    assert!(error.contains("no answer"), "{error}");
    node.postgres.probe_connect(short).await.expect_err("a new connection finds out");
    node.postgres.probe_write(PATIENCE).await.expect("an old one does not");
    node.postgres.kill_family(PATIENCE).await.expect("a fence does not need it awake");
    let error = probe.probe(address, PATIENCE).await.expect_err("nobody is there");
    assert!(error.contains("knock at"), "{error}");
}

#[tokio::test]
async fn a_data_directory_that_is_moved_away_hides_nobody_from_the_fence() {
    let place = Place::new();
    let node = place.node("n1");
    node.init_primary().await;
    fill(&node).await;
    let moved = node.data().with_extension("moved");
    fs::rename(node.data(), &moved).expect("moved");
    // It goes on: whoever believed the path would call it fenced while it commits.
    fill(&node).await;
    let error = node.postgres.probe_write(PATIENCE).await.expect_err("the probe finds no data");
    assert!(error.to_string().contains("No such file"), "{error}");
    assert!(matches!(node.postgres.presence().await, Presence::Running { .. }));
    node.postgres.kill_family(PATIENCE).await.expect("all of them");
    assert!(node.client().await.is_err(), "somebody still answers clients");
    assert_eq!(node.postgres.presence().await, Presence::NoData);
    fs::rename(&moved, node.data()).expect("moved back");
    node.start_primary().await;
    assert_eq!(rows(&node).await.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_detached_volume_hides_nobody_from_the_fence() {
    let place = Place::new();
    let Some(volume) = Volume::tmpfs(&place, "volume", "256m") else { return };
    let node = place.node_at("n1", &[], volume.directory.join("data"));
    node.init_primary().await;
    fill(&node).await;
    volume.detach();
    fill(&node).await;
    node.postgres.probe_write(PATIENCE).await.expect_err("the probe finds no data");
    node.postgres.kill_family(PATIENCE).await.expect("all of them");
    assert!(node.client().await.is_err(), "somebody still answers clients");
    assert_eq!(node.postgres.presence().await, Presence::NoData);
}

#[tokio::test]
async fn a_filesystem_that_turns_read_only_is_found_by_the_write_probe() {
    let place = Place::new();
    let Some(volume) = Volume::ext4(&place, "volume") else { return };
    let node = place.node_at("n1", &[], volume.directory.join("data"));
    node.init_primary().await;
    fill(&node).await;
    node.postgres.probe_write(PATIENCE).await.expect("healthy");
    volume.abort();
    node.postgres.probe_write(PATIENCE).await.expect_err("nothing can be written");
    // The fence, and what is asked of the node after it, need no working disk.
    node.postgres.kill_family(PATIENCE).await.expect("killed");
    assert_eq!(node.postgres.presence().await, Presence::Stopped);
    node.postgres.control_data().await.expect("still readable").expect("there");
    let error = node.postgres.start(&StartMode::Standby { upstream: None }).await.expect_err("it cannot be started");
    assert!(error.to_string().contains("Read-only file system"), "{error}");
    volume.mount_again();
    node.start_primary().await;
    assert_eq!(rows(&node).await.as_deref(), Some("1"), "what was committed is there");
}

#[tokio::test]
async fn a_full_wal_volume_ends_postgresql_and_space_brings_it_back() {
    let place = Place::new();
    let Some(volume) = Volume::tmpfs(&place, "wal", "128m") else { return };
    let node = place.node_with("n1", &[("min_wal_size", "32MB"), ("max_wal_size", "32MB")]);
    node.init();
    let (wal, target) = (node.data().join("pg_wal"), volume.directory.join("pg_wal"));
    volume.take_over(&place, &wal, &target);
    node.start_primary().await;
    fill(&node).await;
    assert!(node.postgres.disk().await.expect("known").wal_free_bytes < 128 << 20, "the WAL's own volume is asked");

    volume.fill();
    let writer = node.client().await.expect("connects");
    // Every turn needs a new segment; when there is none PostgreSQL panics.
    while writer.simple_query("select pg_logical_emit_message(true, '', ''), pg_switch_wal()").await.is_ok() {}
    node.until("it ended, recovery included", async |node| {
        node.postgres.presence().await == Presence::Stopped || node.postgres.probe_write(PATIENCE).await.is_err()
    })
    .await;
    node.postgres.kill_family(PATIENCE).await.expect("fenced");
    volume.relieve();
    node.start_primary().await;
    assert_eq!(rows(&node).await.as_deref(), Some("1"), "what was committed is there");
}

#[tokio::test]
async fn the_slot_of_a_node_that_never_returns_does_not_fill_the_wal_volume() {
    let place = Place::new();
    let Some(volume) = Volume::tmpfs(&place, "wal", "256m") else { return };
    let small = [("min_wal_size", "32MB"), ("max_wal_size", "32MB"), ("wal_keep_size", "16MB")];
    let (node, gone) = (place.node_with("n1", &small), place.node("n2"));
    node.init();
    let (wal, target) = (node.data().join("pg_wal"), volume.directory.join("pg_wal"));
    volume.take_over(&place, &wal, &target);
    node.start_primary().await;
    assert_eq!(node.sql("show max_slot_wal_keep_size").await.as_deref(), Some("64MB"), "a quarter of the volume");
    node.postgres.tend_slots(&names(&[&gone]), PATIENCE).await.expect("a slot for the node that is away");
    fill(&node).await;
    // Half a gigabyte: twice what the volume holds.
    for _ in 0..32 {
        node.sql("select pg_logical_emit_message(true, '', ''), pg_switch_wal()").await;
        node.sql("checkpoint").await;
    }
    let status = async || node.sql("select wal_status from pg_replication_slots").await;
    assert_eq!(status().await.as_deref(), Some("lost"), "its node must be cloned");
    node.postgres.probe_write(PATIENCE).await.expect("clients notice nothing");
    node.postgres.tend_slots(&names(&[&gone]), PATIENCE).await.expect("a slot for the node that is cloned");
    assert_ne!(status().await.as_deref(), Some("lost"), "a clone could stream from it");
    assert_eq!(rows(&node).await.as_deref(), Some("1"));
}
