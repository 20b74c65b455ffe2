//! One writer: one row in each transaction, every acknowledgement noted with the server's own word on where it was made.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::session::{Session, WriteError};
use super::{BACKOFF, Habits, Record, SLOW, Shared, TABLE};
use crate::domain::clock::Moment;
use crate::domain::ids::Address;
use crate::lab::clock;
use crate::lab::ledger::Acknowledgement;
use crate::lab::naming::Naming;

/// A writer before it works.
pub(super) struct Writer {
    /// Its number in the table.
    pub number: u32,
    /// The run's name in the table.
    pub run: String,
    /// Where it connects.
    pub way: Way,
    /// Between two writes.
    pub interval: Duration,
    /// So that the writers do not all write at once.
    pub first_delay: Duration,
    /// It is connected to a node itself, and stays so while that node is read-only.
    pub bypasses: bool,
    /// It keeps what the name led to for its time to live.
    pub keeps: bool,
    /// How it behaves.
    pub habits: Habits,
}

/// How a writer finds a server.
pub(super) enum Way {
    /// These, its own first.
    Fixed(Vec<Address>),
    /// What a name leads to when it connects.
    Named(Box<Naming>),
}

impl Writer {
    /// Writes until told to stop; then hands its record over.
    pub(super) async fn work(self, shared: Arc<Shared>) {
        let mut record = Record::default();
        let mut acknowledgements = Vec::new();
        let mut session: Option<Session> = None;
        let mut sequence = 0;
        let mut written = 0;
        let mut next = Instant::now() + self.first_delay;
        while !shared.stop.load(Ordering::Acquire) {
            let Some(open) = &session else {
                session = self.connect(&mut record).await;
                written = 0;
                if session.is_none() {
                    self.trouble(&mut record, &shared, clock::now());
                    sleep(if self.bypasses { self.interval } else { BACKOFF }).await;
                }
                continue;
            };
            sleep_until(next).await;
            // After an outage the rhythm goes on from now; missed writes are not made up for.
            next = (next + self.interval).max(Instant::now() + self.interval / 2);
            let began = clock::now();
            match self.write(open, sequence).await {
                Ok(acknowledgement) => {
                    if acknowledgement.at.since(began) > SLOW {
                        self.trouble(&mut record, &shared, began.plus(SLOW));
                    }
                    written += 1;
                    if self.keeps {
                        shared.last_kept_acknowledgement.store(acknowledgement.at.0, Ordering::Release);
                    } else if !self.bypasses {
                        shared.last_acknowledgement.store(acknowledgement.at.0, Ordering::Release);
                        shared.acknowledgements.fetch_add(1, Ordering::AcqRel);
                    }
                    acknowledgements.push(acknowledgement);
                    if self.habits.reconnect_after.is_some_and(|after| written >= after) {
                        session = None;
                    }
                }
                Err(error) if self.bypasses && error.is_read_only() => {}
                Err(error) => {
                    note(&mut record, "write", &error);
                    self.trouble(&mut record, &shared, clock::now());
                    record.failed += 1;
                    session = None;
                    sleep(BACKOFF).await;
                }
            }
            sequence += 1;
        }
        let mut whole = shared.record.lock().unwrap_or_else(PoisonError::into_inner);
        if self.bypasses {
            // Its errors are expected: most of the time its node is a standby, or down.
            whole.bypassing.extend(acknowledgements);
        } else if self.keeps {
            // It goes where nobody is any more until its answer has run out.
            whole.keeping.extend(acknowledgements);
        } else {
            whole.proxied.extend(acknowledgements);
            whole.failed += record.failed;
            whole.refused_connections += record.refused_connections;
            whole.unanswered_connections += record.unanswered_connections;
            whole.troubles.extend(record.troubles);
            for (error, count) in record.errors {
                *whole.errors.entry(error).or_default() += count;
            }
        }
    }

    fn trouble(&self, record: &mut Record, shared: &Shared, at: Moment) {
        if !self.bypasses && !self.keeps {
            record.troubles.push(at);
            shared.last_trouble.fetch_max(at.0, Ordering::AcqRel);
        }
    }

    async fn connect(&self, record: &mut Record) -> Option<Session> {
        let named;
        let endpoints = match &self.way {
            Way::Fixed(endpoints) => endpoints,
            Way::Named(naming) => match naming.write_ports().await {
                Ok(found) => {
                    named = found;
                    &named
                }
                Err(problem) => {
                    record.unanswered_connections += 1;
                    let text: String = problem.chars().take(90).collect();
                    *record.errors.entry(format!("resolve: {text}")).or_default() += 1;
                    return None;
                }
            },
        };
        for endpoint in endpoints {
            match Session::open(endpoint, "lab-client").await {
                Ok(session) => return Some(session),
                Err(error) => {
                    match error {
                        WriteError::Deadline => record.unanswered_connections += 1,
                        _ => record.refused_connections += 1,
                    }
                    note(record, "connect", &error);
                }
            }
        }
        None
    }

    async fn write(&self, session: &Session, sequence: u64) -> Result<Acknowledgement, WriteError> {
        let statement = format!(
            "INSERT INTO {TABLE} (run, writer, sequence) VALUES ('{}', {}, {sequence}) \
             RETURNING host(inet_server_addr()), substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)",
            self.run, self.number
        );
        let rows = session.execute(&statement).await?;
        let at = clock::now();
        let [row] = rows.as_slice() else { return Err(WriteError::Answer) };
        let [server, timeline] = row.as_slice() else { return Err(WriteError::Answer) };
        let timeline = u32::from_str_radix(timeline, 16).map_err(|_| WriteError::Answer)?;
        Ok(Acknowledgement { writer: self.number, sequence, at, server: server.clone(), timeline })
    }
}

fn note(record: &mut Record, what: &str, error: &WriteError) {
    let text: String = error.to_string().chars().take(90).collect();
    *record.errors.entry(format!("{what}: {text}")).or_default() += 1;
}
