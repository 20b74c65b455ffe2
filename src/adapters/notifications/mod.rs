//! Channels to people: mail over SMTP, and webhooks in Slack's form or as plain JSON.
//!
//! What is worth a message, and who wants it, is decided elsewhere.

mod email;
mod webhook;

use std::time::Duration;

pub use email::{Email, EmailSettings, EmailTls};
pub use webhook::{Webhook, WebhookFormat, WebhookSettings};

/// How long one attempt may take.
const TIMEOUT: Duration = Duration::from_secs(15);
