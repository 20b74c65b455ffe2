//! Questions and answers over one TCP connection: an answer of any size fits, and an address cannot be forged.
//!
//! Signs, checks signatures, and says in words what a server objects to. Knows no rule about the name.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::tsig::TsigError;
use hickory_proto::rr::{Name, RData, RecordType, TSigner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::adapters::host_names::sockets;
use crate::domain::ids::Address;
use crate::domain::name::{NameRecord, NameValue};
use crate::ports::name::{NameError, ServerAnswer};

/// A name server answers at once; one across the world in a few hundred milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The name, its companion and their zone, as hickory has them.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pub name: Name,
    pub companion: Name,
    pub zone: Name,
}

impl Names {
    /// Absolute names of texts that may lack the last dot.
    pub fn of(name: &str, companion: &str, zone: &str) -> Result<Self, String> {
        let absolute = |text: &str| -> Result<Name, String> {
            let mut name = Name::from_ascii(text).map_err(|error| format!("{text:?} is no name: {error}"))?;
            name.set_fqdn(true);
            Ok(name.to_lowercase())
        };
        Ok(Self { name: absolute(name)?, companion: absolute(companion)?, zone: absolute(zone)? })
    }
}

/// How a name is shown: without its last dot.
pub(super) fn plain(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

/// An open connection to a name server.
pub(super) struct Connection {
    server: String,
    zone: String,
    stream: TcpStream,
}

impl Connection {
    pub async fn open(server: &Address, zone: &Name) -> Result<Self, NameError> {
        let label = format!("name server {server}");
        let unreachable = |problem: String| NameError::Unreachable { server: label.clone(), problem };
        let connected = async { TcpStream::connect(&*sockets(&server.host, server.port).await?).await };
        let stream = timeout(ANSWER_TIMEOUT, connected)
            .await
            .map_err(|_| unreachable(format!("no connection within {} s", ANSWER_TIMEOUT.as_secs())))?
            .map_err(|error| unreachable(error.to_string()))?;
        Ok(Self { server: label, zone: plain(zone), stream })
    }

    /// Sends a message and returns the bytes and the content of the answer to it.
    async fn exchange(&mut self, message: &Message) -> Result<(Vec<u8>, Message), NameError> {
        let server = self.server.clone();
        let unreachable = |problem: String| NameError::Unreachable { server: server.clone(), problem };
        let garbled = |problem: String| NameError::Answered { server: server.clone(), problem };
        let bytes = message.to_vec().map_err(|error| garbled(format!("nothing: {error}")))?;
        let length = u16::try_from(bytes.len()).map_err(|_| garbled("nothing: the message is too long".to_owned()))?;
        let answered = timeout(ANSWER_TIMEOUT, async {
            self.stream.write_all(&length.to_be_bytes()).await?;
            self.stream.write_all(&bytes).await?;
            let length = self.stream.read_u16().await?;
            let mut answer = vec![0; usize::from(length)];
            self.stream.read_exact(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        });
        let answer = answered
            .await
            .map_err(|_| unreachable(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())))?
            .map_err(|error| unreachable(error.to_string()))?;
        let content = Message::from_vec(&answer).map_err(|error| garbled(format!("what is no answer: {error}")))?;
        if content.metadata.id != message.metadata.id {
            return Err(garbled("another question".to_owned()));
        }
        Ok((answer, content))
    }

    /// The authoritative records of one type at `name`.
    async fn query(&mut self, name: &Name, kind: RecordType) -> Result<Vec<(RData, u32)>, NameError> {
        let mut message = Message::query();
        message.metadata.recursion_desired = false;
        message.add_query(Query::query(name.clone(), kind));
        let (_, answer) = self.exchange(&message).await?;
        if answer.metadata.truncation {
            return Err(NameError::Truncated { server: self.server.clone(), name: plain(name) });
        }
        match answer.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain if answer.metadata.authoritative => {}
            ResponseCode::NoError | ResponseCode::NXDomain | ResponseCode::NotAuth => {
                return Err(NameError::NotAuthoritative { server: self.server.clone(), zone: self.zone.clone() });
            }
            ResponseCode::ServFail => return Err(NameError::ServerFailure { server: self.server.clone() }),
            // A server that does not serve everybody answers so for what is not its own.
            ResponseCode::Refused => {
                return Err(NameError::NotAuthoritative { server: self.server.clone(), zone: self.zone.clone() });
            }
            other => return Err(NameError::Answered { server: self.server.clone(), problem: code_words(other) }),
        }
        let records = answer.answers.into_iter();
        // An alias brings what it leads to along.
        Ok(records
            .filter(|record| record.name.eq_ignore_root(name) && record.record_type() == kind)
            .map(|record| (record.data, record.ttl))
            .collect())
    }

    /// The name and its companion.
    pub async fn read(&mut self, names: &Names) -> Result<NameRecord, NameError> {
        let mut record = NameRecord::default();
        for kind in [RecordType::CNAME, RecordType::A, RecordType::AAAA] {
            for (data, ttl) in self.query(&names.name, kind).await? {
                let value = match data {
                    RData::A(address) => NameValue::Address(address.0.into()),
                    RData::AAAA(address) => NameValue::Address(address.0.into()),
                    RData::CNAME(alias) => NameValue::Alias(plain(&alias.0)),
                    _ => continue,
                };
                record.values.insert(value);
                record.ttl_seconds = record.ttl_seconds.max(ttl);
            }
            // Nothing stands beside an alias.
            if record.values.iter().any(|value| matches!(value, NameValue::Alias(_))) {
                break;
            }
        }
        let texts = self.query(&names.companion, RecordType::TXT).await?;
        record.companion = texts.into_iter().filter_map(|(data, _)| text_of(&data)).collect::<BTreeSet<_>>();
        Ok(record)
    }

    /// Sends an update under the key; `names`: what must be allowed to it, for an error.
    pub async fn update(
        &mut self,
        mut message: Message,
        signer: &TSigner,
        unix_seconds: u64,
        names: &str,
    ) -> Result<(), NameError> {
        let server = self.server.clone();
        let zone = message.queries.first().map_or_else(Name::root, |query| query.name().clone());
        let key = plain(signer.signer_name());
        let rejected = |problem: &str| NameError::KeyRejected {
            server: server.clone(),
            key: key.clone(),
            problem: problem.to_owned(),
        };
        let garbled = |problem: String| NameError::Answered { server: server.clone(), problem };
        let verifier = message
            .finalize(signer, unix_seconds)
            .map_err(|error| garbled(format!("nothing: the update could not be signed: {error}")))?;
        let (bytes, answer) = self.exchange(&message).await?;
        let code = answer.metadata.response_code;
        // An objection to the key cannot be signed with it, so it is read before the signature is.
        match answer.signature.as_ref().and_then(|signature| signature.data.error) {
            Some(TsigError::BadTime) => return Err(NameError::ClockSkew { server }),
            Some(TsigError::BadKey) => return Err(rejected("BADKEY: it knows no key of that name and algorithm")),
            Some(TsigError::BadSig) => return Err(rejected("BADSIG: its secret is another one")),
            Some(other) => return Err(rejected(&format!("{other:?}"))),
            None => {}
        }
        if answer.signature.is_none() {
            return Err(match code {
                // Either it does not keep the zone, or the key may not change it: Knot says the same to both.
                ResponseCode::NotAuth => match self.query(&zone, RecordType::SOA).await {
                    Ok(_) => rejected("NOTAUTH: the key may not change this name, or is unknown"),
                    Err(error) => error,
                },
                ResponseCode::ServFail => NameError::ServerFailure { server },
                ResponseCode::NotImp => garbled("NOTIMP: it takes no updates".to_owned()),
                other => garbled(format!("{}, not signed", code_words(other))),
            });
        }
        if let Some(mut verifier) = verifier {
            verifier
                .verify(&bytes)
                .map_err(|error| rejected(&format!("its answer's signature does not hold: {error}")))?;
        }
        if answer.metadata.truncation {
            return Err(NameError::Truncated { server, name: names.to_owned() });
        }
        match code {
            ResponseCode::NoError => Ok(()),
            ResponseCode::NXRRSet | ResponseCode::YXRRSet | ResponseCode::NXDomain | ResponseCode::YXDomain => {
                Err(NameError::Conflict)
            }
            ResponseCode::NotAuth | ResponseCode::NotZone => {
                Err(NameError::NotAuthoritative { server, zone: self.zone.clone() })
            }
            ResponseCode::Refused => Err(NameError::Refused { server, names: names.to_owned() }),
            ResponseCode::ServFail => Err(NameError::ServerFailure { server }),
            other => Err(garbled(code_words(other))),
        }
    }
}

/// The text of a TXT record, its strings joined as RFC 7208 does.
fn text_of(data: &RData) -> Option<String> {
    let RData::TXT(text) = data else { return None };
    Some(text.txt_data.iter().map(|part| String::from_utf8_lossy(part)).collect())
}

fn code_words(code: ResponseCode) -> String {
    format!("{} ({})", code.to_str(), u16::from(code))
}

/// What each of `servers` answers, asked at the same time.
pub(super) async fn answers(servers: &[Address], names: &Names) -> Vec<ServerAnswer> {
    join_all(servers.iter().map(|server| async move {
        let answer = match Connection::open(server, &names.zone).await {
            Ok(mut connection) => connection.read(names).await,
            Err(error) => Err(error),
        };
        ServerAnswer { server: server.to_string(), answer }
    }))
    .await
}
