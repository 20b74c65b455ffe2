//! Serves a router on a listener until told to stop. Used by controllers and by agents.
//!
//! Knows no route.

use std::future::{Future, IntoFuture};
use std::io;
use std::time::Duration;

use axum::Router;
use tokio::sync::oneshot;

use super::entrance::{Door, Entrance, Peer};

/// How long requests under way may take after the stop was asked for. Longer ones find a broken connection,
/// which every client of ours treats as an unknown outcome.
const GRACE: Duration = Duration::from_secs(3);

/// Serves `router` until `shutdown` resolves, then lets the requests under way finish for a moment.
///
/// Answers leave at once (TCP_NODELAY): a heartbeat's answer carries a lease.
pub async fn serve(
    door: impl Into<Door>,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let entrance = Entrance::open(door.into())?;
    let (announce, announced) = oneshot::channel();
    let server = axum::serve(entrance, router.into_make_service_with_connect_info::<Peer>())
        .with_graceful_shutdown(async move {
            shutdown.await;
            // The receiver is gone only if the server has ended already.
            let _ = announce.send(());
        })
        .into_future();
    tokio::select! {
        ended = server => ended,
        () = grace_over(announced) => Ok(()),
    }
}

async fn grace_over(announced: oneshot::Receiver<()>) {
    if announced.await.is_ok() {
        tokio::time::sleep(GRACE).await;
    } else {
        std::future::pending().await
    }
}
