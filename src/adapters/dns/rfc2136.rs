//! Dynamic updates (RFC 2136) with TSIG (RFC 8945), as BIND, Knot and others take them.
//!
//! Name and companion change in one message whose prerequisite is the companion as it was read: the server itself makes the
//! comparison, so that two controllers never both succeed.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use hickory_proto::op::{Message, OpCode, Query};
use hickory_proto::rr::rdata::tsig::TsigAlgorithm;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, TSigner};

use super::wire::{self, Connection, Names, plain};
use crate::domain::ids::Address;
use crate::domain::name::{NameRecord, NameValue};
use crate::ports::Clock;
use crate::ports::name::{NameError, NameService, ServerAnswer};

/// How far the clocks may differ, in seconds: what RFC 8945 recommends and servers assume.
const FUDGE_SECONDS: u16 = 300;

/// The key that updates are signed with, `hmac-sha256`.
#[derive(Clone)]
pub struct TsigKey {
    /// Its name on the server.
    pub name: String,
    /// The secret in base64, as `tsig-keygen` prints it.
    pub secret: String,
}

/// Which name, where, and with which key.
#[derive(Clone)]
pub struct Rfc2136Settings {
    /// The name that clients use.
    pub name: String,
    /// The name of the companion TXT record.
    pub companion: String,
    /// The zone that both are in.
    pub zone: String,
    /// Authoritative servers: changes go to the first, every one is asked what it answers.
    pub servers: Vec<Address>,
    /// The key.
    pub key: TsigKey,
}

/// Keeps a name by dynamic updates.
pub struct Rfc2136 {
    names: Names,
    servers: Vec<Address>,
    signer: TSigner,
    clock: Arc<dyn Clock>,
}

impl Rfc2136 {
    /// Checks names and key; speaks to nobody yet.
    pub fn new(settings: &Rfc2136Settings, clock: Arc<dyn Clock>) -> Result<Self, String> {
        let names = Names::of(&settings.name, &settings.companion, &settings.zone)?;
        for name in [&names.name, &names.companion] {
            if !names.zone.zone_of(name) {
                return Err(format!("{} is not in the zone {}", plain(name), plain(&names.zone)));
            }
        }
        if settings.servers.is_empty() {
            return Err("there is no server to send updates to".to_owned());
        }
        let secret = base64::engine::general_purpose::STANDARD
            .decode(settings.key.secret.trim())
            .map_err(|error| format!("the secret of the key {} is not base64: {error}", settings.key.name))?;
        let mut key = Name::from_ascii(&settings.key.name)
            .map_err(|error| format!("{:?} is no name of a key: {error}", settings.key.name))?;
        key.set_fqdn(true);
        let signer = TSigner::new(secret, TsigAlgorithm::HmacSha256, key.to_lowercase(), FUDGE_SECONDS)
            .map_err(|error| format!("the key {} cannot be used: {error}", settings.key.name))?;
        Ok(Self { names, servers: settings.servers.clone(), signer, clock })
    }

    /// The update: companion as it was read, or nothing is done; then old away, new in.
    fn message(&self, seen: &NameRecord, wanted: &NameRecord) -> Result<Message, String> {
        let Names { name, companion, zone } = &self.names;
        let mut message = Message::query();
        message.metadata.op_code = OpCode::Update;
        message.metadata.recursion_desired = false;
        message.add_query(Query::query(zone.clone(), RecordType::SOA));
        // The prerequisites travel where a query has its answers, the changes where it has its authorities.
        if seen.companion.is_empty() {
            message.add_answer(empty(companion, RecordType::TXT, DNSClass::NONE));
        }
        for text in &seen.companion {
            message.add_answer(Record::from_rdata(companion.clone(), 0, text_record(text)));
        }
        let kinds: BTreeSet<RecordType> = seen.values.iter().map(kind).collect();
        for kind in kinds {
            message.add_authority(empty(name, kind, DNSClass::ANY));
        }
        if !seen.companion.is_empty() {
            message.add_authority(empty(companion, RecordType::TXT, DNSClass::ANY));
        }
        for value in &wanted.values {
            let data = match value {
                NameValue::Address(std::net::IpAddr::V4(address)) => RData::A(A(*address)),
                NameValue::Address(std::net::IpAddr::V6(address)) => RData::AAAA(AAAA(*address)),
                NameValue::Alias(alias) => {
                    let mut alias =
                        Name::from_ascii(alias).map_err(|error| format!("{alias:?} is no name: {error}"))?;
                    alias.set_fqdn(true);
                    RData::CNAME(CNAME(alias))
                }
            };
            message.add_authority(Record::from_rdata(name.clone(), wanted.ttl_seconds, data));
        }
        for text in &wanted.companion {
            message.add_authority(Record::from_rdata(companion.clone(), wanted.ttl_seconds, text_record(text)));
        }
        Ok(message)
    }

    async fn open(&self) -> Result<Connection, NameError> {
        Connection::open(&self.servers[0], &self.names.zone).await
    }
}

fn kind(value: &NameValue) -> RecordType {
    match value {
        NameValue::Address(std::net::IpAddr::V4(_)) => RecordType::A,
        NameValue::Address(std::net::IpAddr::V6(_)) => RecordType::AAAA,
        NameValue::Alias(_) => RecordType::CNAME,
    }
}

fn text_record(text: &str) -> RData {
    RData::TXT(TXT::new(vec![text.to_owned()]))
}

/// A record without data: of class NONE "there is none of this type", of class ANY "every one of this type goes".
fn empty(name: &Name, kind: RecordType, class: DNSClass) -> Record {
    let mut record = Record::update0(name.clone(), 0, kind);
    record.dns_class = class;
    record
}

#[async_trait]
impl NameService for Rfc2136 {
    async fn read(&self) -> Result<NameRecord, NameError> {
        self.open().await?.read(&self.names).await
    }

    async fn swap(&self, seen: &NameRecord, wanted: &NameRecord) -> Result<(), NameError> {
        let message = self.message(seen, wanted).map_err(|problem| NameError::Answered {
            server: format!("name server {}", self.servers[0]),
            problem: format!("nothing: {problem}"),
        })?;
        let unix_seconds = u64::try_from(self.clock.wall().0 / 1_000_000).unwrap_or(0);
        let names = format!("{} and the TXT record of {}", plain(&self.names.name), plain(&self.names.companion));
        self.open().await?.update(message, &self.signer, unix_seconds, &names).await
    }

    async fn answers(&self) -> Vec<ServerAnswer> {
        wire::answers(&self.servers, &self.names).await
    }
}
