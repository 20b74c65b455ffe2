//! Mail over SMTP, one connection a message.

use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MessageBuilder};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor};
use sha2::{Digest as _, Sha256};

use super::TIMEOUT;
use crate::adapters::chain;
use crate::domain::ids::Address;
use crate::domain::notification::Message;
use crate::ports::notification::{Notifier, NotifyError};

/// How the connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmailTls {
    /// From the first byte, as on port 465.
    Implicit,
    /// After STARTTLS, without which nothing is sent.
    StartTls,
    /// Not at all: a relay on the same host.
    None,
}

/// Where mail goes, and how.
#[derive(Clone)]
pub struct EmailSettings {
    /// The server.
    pub server: Address,
    /// Protection of the connection.
    pub tls: EmailTls,
    /// Who signed the server's certificate, as PEM; the system's authorities if not given.
    pub authority: Option<Vec<u8>>,
    /// User and password.
    pub credentials: Option<(String, String)>,
    /// Sender.
    pub from: String,
    /// Receivers.
    pub to: Vec<String>,
}

/// A mailbox to which messages go.
pub struct Email {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    server: Address,
    from: Mailbox,
    to: Vec<Mailbox>,
}

impl Email {
    /// A channel that connects with its first message. An error says what is wrong with the settings.
    pub fn new(settings: &EmailSettings) -> Result<Self, String> {
        let host = settings.server.host.as_str();
        let tls = || -> Result<TlsParameters, String> {
            let mut builder = TlsParameters::builder(host.to_owned());
            if let Some(pem) = &settings.authority {
                let certificate = Certificate::from_pem(pem)
                    .map_err(|error| format!("ca_file is no certificate in PEM: {}", chain(&error)))?;
                builder = builder.certificate_store(CertificateStore::None).add_root_certificate(certificate);
            }
            builder.build_rustls().map_err(|error| format!("prepare TLS for {host}: {}", chain(&error)))
        };
        let tls = match settings.tls {
            EmailTls::Implicit => Tls::Wrapper(tls()?),
            EmailTls::StartTls => Tls::Required(tls()?),
            EmailTls::None => Tls::None,
        };
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
            .port(settings.server.port)
            .tls(tls)
            .timeout(Some(TIMEOUT));
        if let Some((user, password)) = &settings.credentials {
            builder = builder.credentials(Credentials::new(user.clone(), password.clone()));
        }
        Ok(Self {
            transport: builder.build(),
            server: settings.server.clone(),
            from: mailbox(&settings.from)?,
            to: settings.to.iter().map(|address| mailbox(address)).collect::<Result<_, _>>()?,
        })
    }

    fn mail(&self, message: &Message) -> Result<lettre::Message, String> {
        let notice = &message.notice;
        // The same for every attempt, so that mail programs show one that came twice once.
        let digest: String =
            Sha256::digest(notice.key.as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let domain = self.from.email.domain();
        let at = UNIX_EPOCH + Duration::from_micros(u64::try_from(notice.at.0).unwrap_or_default());
        let mut mail: MessageBuilder = lettre::Message::builder()
            .from(self.from.clone())
            .subject(message.subject())
            .date(at)
            .message_id(Some(format!("<{digest}@{domain}>")))
            .header(ContentType::TEXT_PLAIN)
            // No answers of absence to a machine.
            .raw_header(HeaderValue::new(
                HeaderName::new_from_ascii_str("Auto-Submitted"),
                "auto-generated".to_owned(),
            ));
        for receiver in &self.to {
            mail = mail.to(receiver.clone());
        }
        mail.body(message.text()).map_err(|error| format!("write the mail: {}", chain(&error)))
    }
}

fn mailbox(address: &str) -> Result<Mailbox, String> {
    address.parse().map_err(|error| format!("{address:?} is no mail address: {error}"))
}

#[async_trait]
impl Notifier for Email {
    async fn send(&self, message: &Message) -> Result<(), NotifyError> {
        let mail = self.mail(message).map_err(NotifyError::Refused)?;
        let sent = tokio::time::timeout(TIMEOUT * 2, self.transport.send(mail)).await;
        let sent = sent.map_err(|_| NotifyError::Failed(format!("{} did not take the mail in time", self.server)))?;
        sent.map(drop).map_err(|error| {
            let words = format!("mail by {}: {}", self.server, chain(&error));
            // What the server says of this mail it says again; a login that it refuses may be good again later.
            let is_login = error.status().is_some_and(|code| code.to_string().starts_with("53"));
            if error.is_permanent() && !is_login { NotifyError::Refused(words) } else { NotifyError::Failed(words) }
        })
    }
}
