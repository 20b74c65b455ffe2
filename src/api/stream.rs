//! Events as they happen, as server-sent events (`event: event`, with the row as data).
//!
//! Looks at the newest rows again and again: nothing is missed by a reader that is slower than the events, up to a bound.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use super::controller::ControllerHandler;
use super::listing::Wanted;
use super::wire::Problem;
use crate::domain::trail::EventRow;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(500);
/// Rows looked at: more in one interval are told as far back as that.
const ROWS_MAX: usize = 200;
/// A comment this often keeps proxies from closing the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

struct Reader {
    handler: Arc<dyn ControllerHandler>,
    cluster: String,
    /// The newest row that was told, or that was there before.
    last: Option<EventRow>,
    waiting: Vec<EventRow>,
}

/// The stream of one cluster, from now on.
pub(super) async fn events(handler: Arc<dyn ControllerHandler>, cluster: String) -> Result<Response, Problem> {
    let newest = handler.page_of_events(&cluster, Wanted { limit: 1, before: None }).await?;
    let reader = Reader { handler, cluster, last: newest.rows.into_iter().next(), waiting: Vec::new() };
    let told = stream::unfold(reader, |mut reader| async move {
        while reader.waiting.is_empty() {
            tokio::time::sleep(INTERVAL).await;
            // A controller that stops or does not lead any more ends the stream: the reader connects to the next one.
            reader.look().await.ok()?;
        }
        let row = reader.waiting.remove(0);
        let event = Event::default().event("event").json_data(&row).ok()?;
        Some((Ok::<_, Infallible>(event), reader))
    });
    Ok(Sse::new(told).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

impl Reader {
    async fn look(&mut self) -> Result<(), Problem> {
        let newest = self.handler.page_of_events(&self.cluster, Wanted { limit: ROWS_MAX, before: None }).await?.rows;
        let known = |row: &EventRow| self.last.as_ref() == Some(row);
        let mut fresh: Vec<EventRow> = newest.into_iter().take_while(|row| !known(row)).collect();
        fresh.reverse();
        if let Some(last) = fresh.last() {
            self.last = Some(last.clone());
        }
        self.waiting = fresh;
        Ok(())
    }
}
