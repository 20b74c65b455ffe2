//! `pki init`, `issue` and `rotate`: certificates of the cluster's own authority. No controller is asked.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::document;
use crate::cli::arguments::{Global, IssueArguments, OutputFormat, PkiCommand, RotateArguments};
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::pki::signing::{self, Signed, Wish, address_problem};
use crate::cli::pki::{Draft, Folder, summaries};
use crate::cli::render::{Look, Table};
use crate::domain::certificate::{CertificateSummary, Holder};
use crate::domain::clock::WallTime;
use crate::domain::ids::HolderName;

/// What a command is going to write, or wrote.
struct Work {
    folder: Folder,
    drafts: Vec<Draft>,
    /// What the new certificates say.
    certificates: Vec<CertificateSummary>,
    /// What to do next.
    next: String,
}

pub(super) fn run(console: &mut Console, global: &Global, command: &PkiCommand) -> Result<Exit, Failure> {
    let now = now();
    let work = match command {
        PkiCommand::Init { directory, name, valid } => init(Folder::new(directory), name, *valid, now)?,
        PkiCommand::Issue(arguments) => issue(arguments, now)?,
        PkiCommand::Rotate(arguments) => rotate(arguments, now)?,
    };
    if !global.dry_run {
        work.folder.make()?;
        work.folder.replace(&work.drafts)?;
    }
    let look = Look { terminal: console.out_is_terminal, colour: console.colour, verbose: global.verbose > 0 };
    let text = match global.output {
        OutputFormat::Table => work.text(look),
        format => document(format, &work.document(global.dry_run))?,
    };
    console.print(&text)?;
    if global.dry_run {
        console.note("Dry run: nothing was written.");
    } else if !work.drafts.is_empty() {
        console.note(&format!("next: {}", work.next));
    }
    Ok(Exit::Done)
}

#[expect(clippy::disallowed_methods, reason = "a certificate begins now; nothing is decided by it")]
fn now() -> WallTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    WallTime(0).plus(since)
}

impl Work {
    fn new(folder: Folder, next: &str) -> Self {
        Self { folder, drafts: Vec::new(), certificates: Vec::new(), next: next.to_owned() }
    }

    fn add(&mut self, (certificate, key): (PathBuf, PathBuf), signed: Signed) -> Result<(), Failure> {
        let said = summaries(&certificate, &signed.certificate)?;
        self.certificates.extend(said.into_iter().map(|(_, summary)| summary));
        self.drafts.push(Draft::secret(key, signed.key));
        self.drafts.push(Draft::public(certificate, signed.certificate));
        Ok(())
    }

    fn text(&self, look: Look) -> String {
        let mut table = Table::new(&["CERTIFICATE", "ADDRESSES", "ENDS", "SERIAL"]);
        for summary in &self.certificates {
            let addresses = summary.addresses.join(",");
            table.row(vec![
                summary.subject().into(),
                if addresses.is_empty() { "-".to_owned() } else { addresses }.into(),
                summary.expires.to_string().into(),
                summary.serial.as_str().into(),
            ]);
        }
        table.render(look)
    }

    fn document(&self, is_dry_run: bool) -> Value {
        let certificates: Vec<Value> = self
            .certificates
            .iter()
            .map(|summary| {
                let role = summary.holder.as_ref().map_or("authority", |holder| holder.role.label());
                json!({
                    "role": role,
                    "name": summary.common_name,
                    "addresses": summary.addresses,
                    "serial": summary.serial,
                    "begins": summary.begins,
                    "expires": summary.expires,
                })
            })
            .collect();
        let files: Vec<String> = self.drafts.iter().map(|draft| draft.path().display().to_string()).collect();
        json!({ "dry_run": is_dry_run, "files": files, "certificates": certificates })
    }
}

fn init(folder: Folder, name: &HolderName, valid: Duration, now: WallTime) -> Result<Work, Failure> {
    for path in [folder.authority_key(), folder.authority_certificate(), folder.bundle()] {
        if path.exists() {
            let message =
                format!("refused: there is an authority in {} already ({})", folder.root().display(), path.display());
            return Err(Failure::new(Exit::Refused, message)
                .advise("to replace it without an interruption: stormglass pki rotate --authority"));
        }
    }
    let signed = signing::authority(name, now, until(now, valid)?)?;
    let next =
        "keep authority.key off every host of the cluster; stormglass pki issue NAME --role controller|agent|client";
    let mut work = Work::new(folder, next);
    let (certificate, key, bundle) =
        (work.folder.authority_certificate(), work.folder.authority_key(), work.folder.bundle());
    work.drafts.push(Draft::public(bundle, signed.certificate.clone()));
    work.add((certificate, key), signed)?;
    Ok(work)
}

fn issue(arguments: &IssueArguments, now: WallTime) -> Result<Work, Failure> {
    let IssueArguments { name, role, addresses, valid, directory } = arguments;
    let folder = Folder::new(directory);
    let pair = folder.pair(name)?;
    for address in addresses {
        if let Some(problem) = address_problem(address) {
            return Err(Failure::new(Exit::Usage, format!("--address: {problem}")));
        }
    }
    if role.listens() && addresses.is_empty() {
        let message = format!("a certificate of role {} needs --address: where others connect to {name}", role.label());
        return Err(Failure::new(Exit::Usage, message));
    }
    for path in [&pair.0, &pair.1] {
        if path.exists() {
            return Err(Failure::new(Exit::Refused, format!("refused: there is a {} already", path.display()))
                .advise(format!("to renew it: stormglass pki rotate {name} --directory {}", directory.display())));
        }
    }
    let authority = Authority::open(&folder)?;
    let wish = Wish {
        holder: Holder { role: *role, name: name.clone() },
        addresses: addresses.clone(),
        from: now,
        until: until(now, *valid)?,
    };
    let signed = authority.sign(&folder, &wish)?;
    let next = format!(
        "copy {name}.crt, {name}.key (mode 0600) and authorities.crt to its host, and name them in [tls] there"
    );
    let mut work = Work::new(folder, &next);
    work.add(pair, signed)?;
    Ok(work)
}

fn rotate(arguments: &RotateArguments, now: WallTime) -> Result<Work, Failure> {
    let folder = Folder::new(&arguments.directory);
    if arguments.authority {
        return new_authority(folder, arguments.valid, now);
    }
    if arguments.drop_previous {
        return drop_previous(folder);
    }
    let authority = Authority::open(&folder)?;
    let due: Vec<(HolderName, CertificateSummary)> = match &arguments.name {
        Some(name) => {
            let summary = folder.certificate(&folder.pair(name)?.0)?;
            vec![(name.clone(), summary)]
        }
        None => {
            let before = arguments.expiring_within.map(|within| now.plus(within));
            let is_due =
                |(_, summary): &(HolderName, CertificateSummary)| before.is_none_or(|before| summary.expires <= before);
            folder.issued()?.into_iter().filter(is_due).collect()
        }
    };
    let mut work =
        Work::new(folder, "copy the new certificates and keys to their hosts: they are taken without a restart");
    for (name, summary) in due {
        let pair = work.folder.pair(&name)?;
        let Some(holder) = summary.holder.filter(|holder| holder.name == name) else {
            let message = format!("{} was not issued by stormglass pki to {name}", pair.0.display());
            return Err(Failure::new(Exit::Failed, message).advise("name another directory with --directory"));
        };
        let before = summary.expires.since(summary.begins).saturating_sub(signing::CLOCK_SKEW);
        let until = until(now, arguments.valid.unwrap_or(before))?;
        let wish = Wish { holder, addresses: summary.addresses, from: now, until };
        let signed = authority.sign(&work.folder, &wish)?;
        work.add(pair, signed)?;
    }
    Ok(work)
}

/// A new key and certificate for the authority; the bundle gets it beside those that were in it.
fn new_authority(folder: Folder, valid: Option<Duration>, now: WallTime) -> Result<Work, Failure> {
    let present = folder.certificate(&folder.authority_certificate())?;
    let name = HolderName::new(present.common_name.clone()).map_err(|error| {
        Failure::new(Exit::Failed, format!("the authority was not made by stormglass pki: {error}"))
    })?;
    let before = present.expires.since(present.begins).saturating_sub(signing::CLOCK_SKEW);
    let signed = signing::authority(&name, now, until(now, valid.unwrap_or(before))?)?;
    let bundle = signed.certificate.clone() + &folder.text(&folder.bundle())?;
    let next = "copy authorities.crt to every host, wait until each has taken it (its log says so), then stormglass pki rotate --all";
    let mut work = Work::new(folder, next);
    let (certificate, key, path) =
        (work.folder.authority_certificate(), work.folder.authority_key(), work.folder.bundle());
    // The bundle first: a command that is cut off must leave one with the present authority in it.
    work.drafts.push(Draft::public(path, bundle));
    work.add((certificate, key), signed)?;
    Ok(work)
}

/// The bundle with the present authority alone.
fn drop_previous(folder: Folder) -> Result<Work, Failure> {
    let path = folder.authority_certificate();
    let present = folder.certificate(&path)?;
    let resting: Vec<String> = folder
        .issued()?
        .into_iter()
        .filter(|(_, summary)| summary.authority_key.is_none() || summary.authority_key != present.own_key)
        .map(|(name, _)| name.to_string())
        .collect();
    if !resting.is_empty() {
        let message = format!("refused: certificates of a former authority are in use: {}", resting.join(", "));
        return Err(
            Failure::new(Exit::Refused, message).advise("stormglass pki rotate --all, and copy them to their hosts")
        );
    }
    let text = folder.text(&path)?;
    let mut work = Work::new(folder, "copy authorities.crt to every host");
    work.drafts.push(Draft::public(work.folder.bundle(), text));
    work.certificates.push(present);
    Ok(work)
}

fn until(now: WallTime, valid: Duration) -> Result<WallTime, Failure> {
    if valid < Duration::from_secs(1) {
        return Err(Failure::new(Exit::Usage, "--valid must be at least 1s"));
    }
    Ok(now.plus(valid))
}

/// Who signs.
struct Authority {
    certificate: String,
    key: String,
    expires: WallTime,
}

impl Authority {
    fn open(folder: &Folder) -> Result<Self, Failure> {
        let path = folder.authority_certificate();
        let expires = folder.certificate(&path)?.expires;
        Ok(Self { certificate: folder.text(&path)?, key: folder.text(&folder.authority_key())?, expires })
    }

    fn sign(&self, folder: &Folder, wish: &Wish) -> Result<Signed, Failure> {
        if wish.until > self.expires {
            let message = format!(
                "refused: the certificate of {} would end at {}, after that of the authority in {}, {}",
                wish.holder.name,
                wish.until,
                folder.root().display(),
                self.expires
            );
            return Err(Failure::new(Exit::Refused, message)
                .advise("choose a shorter --valid, or renew the authority: stormglass pki rotate --authority"));
        }
        signing::sign(&self.certificate, &self.key, wish)
    }
}
