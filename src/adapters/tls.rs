//! The process's certificate, its key, and whom it believes: read from files, and read again when those change.
//!
//! One server and one client configuration for the life of the process: a new certificate counts from the next connection on, and
//! no established one is touched. What does not fit together is refused, and what was read before stays.

use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::chain;
use crate::domain::certificate::{CertificateFacts, CertificateSummary, Protection};
use crate::domain::clock::WallTime;

/// HTTP/1.1 is all that controllers and agents speak.
const PROTOCOL: &[u8] = b"http/1.1";

/// Where certificate, key and authorities are, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The own certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authorities whose certificates count: of clients, and of the servers that this process calls.
    pub authorities: PathBuf,
}

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("read {path}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is something else in it.
    #[error("{path} holds no {what} in PEM: {problem}")]
    Strange {
        /// Which.
        path: PathBuf,
        /// What was expected.
        what: &'static str,
        /// Why it is none.
        problem: String,
    },
    /// They contradict each other.
    #[error("the key {key} does not belong to the certificate {certificate}: copy both of one issue")]
    Mismatch {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// In TLS's own words.
        source: Error,
    },
    /// Only while something better is in use.
    #[error("{path} ended at {at}: the one before it stays in use")]
    Ended {
        /// Which.
        path: PathBuf,
        /// When.
        at: WallTime,
    },
}

/// The bytes of the three files.
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authorities: Vec<u8>,
}

/// What was made of them.
struct Loaded {
    identity: Arc<CertifiedKey>,
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
    own: CertificateSummary,
    protection: Protection,
}

struct Shared {
    files: TlsFiles,
    provider: Arc<CryptoProvider>,
    /// Of the files as they were read last; `None` after they could not be read.
    seen: Mutex<Option<Fingerprint>>,
    present: RwLock<Arc<Loaded>>,
    protection: watch::Sender<Protection>,
}

/// What tells contents apart without keeping a key in memory once more.
type Fingerprint = [u8; 32];

/// Certificates that renew themselves. Cheap to clone.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Tls").field(&self.0.files).finish()
    }
}

impl Tls {
    /// Reads the files. A certificate that has ended is taken, and told of: the process must run for a new one to be noticed.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let contents = Contents::read(&files)?;
        let seen = Mutex::new(Some(contents.fingerprint()));
        let loaded = Loaded::new(&files, &contents, &provider)?;
        if loaded.own.expires <= now() {
            tracing::error!(
                certificate = %files.certificate.display(), ended = %loaded.own.expires,
                "the certificate has ended, others refuse it: stormglass pki rotate, and copy the new one here"
            );
        }
        let (protection, _) = watch::channel(loaded.protection.clone());
        Ok(Self(Arc::new(Shared { files, provider, seen, present: RwLock::new(Arc::new(loaded)), protection })))
    }

    /// For a listener. A client may show a certificate; what it shows must be good.
    pub fn server(&self) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(self.0.provider.clone())
            .with_safe_default_protocol_versions()
            .expect("the provider has every suite of its default protocol versions")
            .with_client_cert_verifier(Arc::new(Live(self.clone())))
            .with_cert_resolver(Arc::new(Live(self.clone())));
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        // A resumed session would bring back an identity that may not count any more.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Arc::new(config)
    }

    /// For calling others.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::builder_with_provider(self.0.provider.clone())
            .with_safe_default_protocol_versions()
            .expect("the provider has every suite of its default protocol versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Live(self.clone())))
            .with_client_cert_resolver(Arc::new(Live(self.clone())));
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.resumption = Resumption::disabled();
        config
    }

    /// How long what is in use holds, as it changes.
    pub fn protection(&self) -> watch::Receiver<Protection> {
        self.0.protection.subscribe()
    }

    /// Looks at the files every `interval`, and takes what is new, for ever.
    pub async fn keep(self, interval: Duration) -> Infallible {
        loop {
            tokio::time::sleep(interval).await;
            let tls = self.clone();
            // A disk that hangs must hold up this task and nothing else.
            let Ok(look) = tokio::task::spawn_blocking(move || tls.look()).await else { continue };
            match look {
                Ok(None) => {}
                Ok(Some(own)) => tracing::info!(
                    subject = own.subject(), serial = own.serial, ends = %own.expires,
                    "took a new certificate, key or bundle of authorities; connections go on"
                ),
                Err(error) => tracing::warn!(
                    error = %chain(&error),
                    "the new certificate, key or bundle of authorities is not taken; what was read before stays in use"
                ),
            }
        }
    }

    /// Looks at the files once. What is new is taken, and returned; what cannot be used is an error, once.
    pub fn look(&self) -> Result<Option<CertificateSummary>, TlsError> {
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let contents = match Contents::read(&self.0.files) {
            Ok(contents) => contents,
            Err(_) if seen.is_none() => return Ok(None),
            Err(error) => {
                *seen = None;
                return Err(error);
            }
        };
        let fingerprint = contents.fingerprint();
        if seen.replace(fingerprint) == Some(fingerprint) {
            return Ok(None);
        }
        self.take(Loaded::new(&self.0.files, &contents, &self.0.provider)?).map(Some)
    }

    fn take(&self, loaded: Loaded) -> Result<CertificateSummary, TlsError> {
        let now = now();
        if loaded.own.expires <= now && self.present().own.expires > now {
            return Err(TlsError::Ended { path: self.0.files.certificate.clone(), at: loaded.own.expires });
        }
        let own = loaded.own.clone();
        self.0.protection.send_replace(loaded.protection.clone());
        *self.0.present.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
        Ok(own)
    }

    fn present(&self) -> Arc<Loaded> {
        self.0.present.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let read =
            |path: &Path| std::fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source });
        let certificate = read(&files.certificate)?;
        Ok(Self { certificate, key: read(&files.key)?, authorities: read(&files.authorities)? })
    }

    fn fingerprint(&self) -> Fingerprint {
        let mut digest = Sha256::new();
        for part in [&self.certificate, &self.key, &self.authorities] {
            digest.update(part.len().to_le_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }
}

impl Loaded {
    fn new(files: &TlsFiles, contents: &Contents, provider: &Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let chain = certificates(&files.certificate, &contents.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key).map_err(|error| TlsError::Strange {
            path: files.key.clone(),
            what: "private key",
            problem: error.to_string(),
        })?;
        let own = summary(&files.certificate, &chain[0])?;
        let identity = CertifiedKey::from_der(chain, key, provider).map_err(|source| TlsError::Mismatch {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            source,
        })?;
        let mut roots = RootCertStore::empty();
        let mut facts = vec![CertificateFacts { subject: own.subject(), expires: own.expires }];
        let strange = |problem: String| TlsError::Strange {
            path: files.authorities.clone(),
            what: "certificate of an authority",
            problem,
        };
        for authority in certificates(&files.authorities, &contents.authorities)? {
            let summary = summary(&files.authorities, &authority)?;
            if !summary.is_authority {
                return Err(strange(format!("{} is no authority", summary.subject())));
            }
            facts.push(CertificateFacts { subject: summary.subject(), expires: summary.expires });
            roots.add(authority).map_err(|error| strange(error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|error| strange(error.to_string()))?;
        let servers = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|error| strange(error.to_string()))?;
        let protection = Protection::Tls { certificates: facts };
        Ok(Self { identity: Arc::new(identity), clients, servers, own, protection })
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let strange = |problem: String| TlsError::Strange { path: path.to_owned(), what: "certificate", problem };
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| strange(error.to_string()))?;
    if found.is_empty() { Err(strange("there is none".to_owned())) } else { Ok(found) }
}

fn summary(path: &Path, der: &CertificateDer<'_>) -> Result<CertificateSummary, TlsError> {
    CertificateSummary::of(der).map_err(|error| TlsError::Strange {
        path: path.to_owned(),
        what: "certificate",
        problem: error.to_string(),
    })
}

/// What the first certificate in a file says.
pub fn certificate_in(path: &Path) -> Result<CertificateSummary, TlsError> {
    let pem = std::fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })?;
    summary(path, &certificates(path, &pem)?[0])
}

/// TLS judges by the wall clock, and so does what is said of certificates.
fn now() -> WallTime {
    WallTime(0).plus(Duration::from_secs(UnixTime::now().as_secs()))
}

/// Answers TLS's questions from what is in use at that moment.
struct Live(Tls);

impl fmt::Debug for Live {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Live(..)")
    }
}

impl ResolvesServerCert for Live {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.present().identity.clone())
    }
}

impl ResolvesClientCert for Live {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.present().identity.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Live {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    // No hint: every client shows the one certificate that it has, also one of an authority that is new here.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.present().clients.verify_client_cert(certificate, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.present().clients.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.present().clients.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.present().clients.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Live {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0.present().servers.verify_server_cert(certificate, intermediates, name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.present().servers.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.present().servers.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.present().servers.supported_verify_schemes()
    }
}
