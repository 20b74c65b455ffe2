//! What stands in a certificate, and the signature below it. P-256 keys, X.509 by rcgen.
//!
//! Opens no file.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::cli::exit::{Exit, Failure};
use crate::domain::certificate::{CertificateRole, Holder};
use crate::domain::clock::WallTime;
use crate::domain::ids::HolderName;

/// Certificates begin a little earlier than they are made: the clocks of hosts are not quite the same.
pub const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// A certificate and its key, as PEM.
pub struct Signed {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// What a certificate is to say.
pub struct Wish {
    /// Whose it is.
    pub holder: Holder,
    /// Where others connect to its holder.
    pub addresses: Vec<String>,
    /// From when on it holds, but for the clocks' skew.
    pub from: WallTime,
    /// Until when.
    pub until: WallTime,
}

/// A new authority.
pub fn authority(name: &HolderName, from: WallTime, until: WallTime) -> Result<Signed, Failure> {
    let mut parameters = CertificateParams::new(Vec::<String>::new()).map_err(refused)?;
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name.as_str());
    // Two authorities of one name must have different subjects, or programs take the one for the other.
    parameters.distinguished_name.push(DnType::OrganizationalUnitName, format!("authority of {from}"));
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    between(&mut parameters, from, until)?;
    let key = KeyPair::generate().map_err(refused)?;
    let certificate = parameters.self_signed(&key).map_err(refused)?;
    Ok(Signed { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A certificate that the authority with this certificate and key signs.
pub fn sign(authority_certificate: &str, authority_key: &str, wish: &Wish) -> Result<Signed, Failure> {
    let unusable =
        |error| Failure::new(Exit::Failed, format!("the authority's key or certificate cannot be used: {error}"));
    let key = KeyPair::from_pem(authority_key).map_err(unusable)?;
    let issuer = Issuer::from_ca_cert_pem(authority_certificate, key).map_err(unusable)?;
    let mut parameters = CertificateParams::new(Vec::<String>::new()).map_err(refused)?;
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, wish.holder.name.as_str());
    parameters.distinguished_name.push(DnType::OrganizationalUnitName, wish.holder.role.label());
    let uri = wish.holder.uri().try_into().map_err(refused)?;
    parameters.subject_alt_names.push(SanType::URI(uri));
    for address in &wish.addresses {
        parameters.subject_alt_names.push(match address.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(address.as_str().try_into().map_err(refused)?),
        });
    }
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = match wish.holder.role {
        CertificateRole::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        // Controllers and agents call each other, and so do the members of etcd.
        _ => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    };
    parameters.use_authority_key_identifier_extension = true;
    between(&mut parameters, wish.from, wish.until)?;
    let key = KeyPair::generate().map_err(refused)?;
    let certificate = parameters.signed_by(&key, &issuer).map_err(refused)?;
    Ok(Signed { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn between(parameters: &mut CertificateParams, from: WallTime, until: WallTime) -> Result<(), Failure> {
    let time = |at: WallTime| {
        time::OffsetDateTime::from_unix_timestamp(at.0.div_euclid(1_000_000))
            .map_err(|error| Failure::new(Exit::Usage, format!("no certificate can begin or end at {at}: {error}")))
    };
    let skew = i64::try_from(CLOCK_SKEW.as_micros()).unwrap_or(0);
    parameters.not_before = time(WallTime(from.0.saturating_sub(skew)))?;
    parameters.not_after = time(until)?;
    Ok(())
}

fn refused(error: rcgen::Error) -> Failure {
    Failure::new(Exit::Failed, format!("make a certificate: {error}"))
}

/// Why nobody could connect to `address`; `None`: it may stand in a certificate.
pub fn address_problem(address: &str) -> Option<String> {
    let is_name = |name: &str| {
        name.len() <= 253
            && name.split('.').all(|label| {
                !label.is_empty()
                    && label.len() <= 63
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            })
    };
    match address.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() => Some(format!("nobody can connect to {address}")),
        Ok(_) => None,
        Err(_) if is_name(address) => None,
        Err(_) => Some(format!("{address:?} is neither an IP address nor a host name (without port)")),
    }
}
