//! Archiving across promotions: who archives which segment once two nodes wrote their own.

use super::{Host, Noted, PATIENCE, Place, host};
use stormglass::ports::LocalPostgres;
use stormglass::ports::backup::BackupRepository;
use stormglass::ports::postgres::RewindOutcome;

/// Whatever its `pg_wal` still holds of the timelines before, and the repository has otherwise, it gets to its own. (That older
/// segments are left to others is shown beside the code; here it may happen that none is in the way.)
#[tokio::test]
async fn a_rewound_primary_that_is_promoted_again_archives_what_is_its_own() {
    let place = Place::new();
    let repository = place.directory("repository");
    let first = Host::with_data(&place, "n1", &repository).await;
    let second = host(&place, "n2", &repository);
    second.node.join(&first.node).await;
    first.full_backup().await;
    second.node.caught_up(&first.node).await;

    second.node.postgres.follow(None, PATIENCE).await.expect("frozen");
    first.node.sql("insert into t select generate_series(1, 7000)").await;
    first.backup.mark().await.expect("the segment is archived, with what no other node has");
    second.node.postgres.promote(false, PATIENCE).await.expect("promoted");
    first.node.postgres.kill_family(PATIENCE).await.expect("gone");
    second.node.sql("insert into t select generate_series(1, 50)").await;
    second.backup.mark().await.expect("the new timeline is archived");

    let rewound = first.node.postgres.rewind(&second.node.upstream(), &Noted::default()).await.expect("rewound");
    assert_eq!(rewound, RewindOutcome::Rewound);
    second.node.make_slot(&first.node).await;
    first.node.start_standby(Some(&second.node)).await;
    first.node.caught_up(&second.node).await;

    first.node.postgres.follow(None, PATIENCE).await.expect("frozen");
    second.node.postgres.kill_family(PATIENCE).await.expect("gone");
    first.node.postgres.promote(false, PATIENCE).await.expect("promoted");
    first.node.sql("insert into t values (1)").await;
    first.node.sql("checkpoint").await;
    let mark = first.backup.mark().await.expect("the third timeline is archived");
    assert_eq!(mark.counts[0].rows, 151);
    first.backup.prove_archiving().await.expect("WAL arrives");
}
