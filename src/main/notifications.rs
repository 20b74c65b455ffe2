//! Puts the channels of notifications behind their port. Part of `main`, decides nothing.

use std::sync::Arc;

use anyhow::Context as _;
use stormglass::adapters::notifications::{Email, EmailSettings, EmailTls, Webhook, WebhookFormat, WebhookSettings};
use stormglass::config::notification::{ChannelKind, MailTls, NotificationSection};
use stormglass::controller::{KeptChannel, Notifications};
use stormglass::ports::Notifier;

use super::secret;

/// Every configured channel.
pub fn channels(sections: &[NotificationSection]) -> anyhow::Result<Notifications> {
    let one = |section: &NotificationSection| {
        let notifier = notifier(section).with_context(|| format!("use the notification channel {}", section.name))?;
        Ok(KeptChannel { channel: section.channel(), kind: section.kind.label(), notifier })
    };
    sections.iter().map(one).collect::<anyhow::Result<Vec<_>>>().map(Into::into)
}

fn notifier(section: &NotificationSection) -> anyhow::Result<Arc<dyn Notifier>> {
    let authority = match &section.ca_file {
        Some(file) => Some(std::fs::read(file).with_context(|| format!("read {}", file.display()))?),
        None => None,
    };
    let format = match section.kind {
        ChannelKind::Email => {
            let settings = EmailSettings {
                server: section.server.clone().context("server is missing")?,
                tls: match section.tls.unwrap_or_default() {
                    MailTls::Starttls => EmailTls::StartTls,
                    MailTls::Implicit => EmailTls::Implicit,
                    MailTls::None => EmailTls::None,
                },
                authority,
                credentials: match (&section.user, &section.password) {
                    (Some(user), Some(password)) => Some((user.clone(), secret(password)?)),
                    _ => None,
                },
                from: section.from.clone().context("from is missing")?,
                to: section.to.clone(),
            };
            return Ok(Arc::new(Email::new(&settings).map_err(anyhow::Error::msg)?));
        }
        ChannelKind::Slack => WebhookFormat::Slack,
        ChannelKind::Json => WebhookFormat::Json,
    };
    let url = secret(section.url.as_ref().context("url is missing")?)?;
    let token = section.token.as_ref().map(secret).transpose()?;
    let webhook = Webhook::new(&WebhookSettings { url, format, token, authority });
    Ok(Arc::new(webhook.map_err(anyhow::Error::msg)?))
}
