//! Words about witnesses: the controller's own knock at the primary's door, and the clients' way through proxies.

use std::collections::BTreeMap;
use std::time::Duration;

use stormglass::domain::report::{PathReport, Probe, ProxyReport};
use stormglass::domain::view::ProxyView;
use stormglass::domain::witness::Sighting;
use stormglass::domain::*;

use super::{Cluster, Trouble, Words, address};

/// What was seen, and when. Who says nothing was not asked.
#[derive(Default)]
pub struct Witnesses {
    knock: Option<Sighting>,
    proxies: BTreeMap<ProxyName, (PathReport, Moment)>,
}

impl Witnesses {
    pub fn sighting(&self) -> Option<Sighting> {
        self.knock.clone()
    }

    /// A proxy reports twice a second: its word is as old as that.
    pub fn proxies(&self, now: Moment) -> BTreeMap<ProxyName, ProxyView> {
        let view = |(name, (path, since)): (&ProxyName, &(PathReport, Moment))| {
            let mut path = path.clone();
            let later = now.since(*since);
            path.check.last_success_age = path.check.last_success_age.map(|age| age + later);
            path.check.failing_for = path.check.failing_for.map(|age| age + later);
            let report = ProxyReport {
                cluster: ClusterName::new("main").expect("valid"),
                proxy: name.clone(),
                site: SiteName::new("a").expect("valid"),
                write_address: Address::new(name.as_str(), 6432),
                sequence: 1,
                incarnation: "1".to_owned(),
                write_target: Some(path.target.clone()),
                holding: false,
                epoch: Epoch(1),
                error: None,
                path: Some(path),
                traffic: None,
                protection: None,
            };
            let report = Fact::Known { value: report.into(), age: Duration::from_millis(100) };
            (name.clone(), ProxyView { proxy: name.clone(), report })
        };
        self.proxies.iter().map(view).collect()
    }
}

impl Cluster {
    /// `knock answered 0.2s`, `knock unanswered 0.2s`; `path p1 works 0.3s`, `path p1 fails 2s`.
    pub(super) fn witness(&mut self, kind: &str, mut words: Words<'_>) -> Result<(), Trouble> {
        let record = self.record.as_ref().ok_or("witnesses are about a record's holder")?;
        let target = address(&record.holder);
        if kind == "knock" {
            let word = words.word()?;
            let asked_at = self.now.minus(words.duration()?);
            let before = self.witnesses.sighting().and_then(|before| before.answered_at);
            let (problem, answered_at) = match word {
                "answered" => (None, Some(asked_at)),
                "unanswered" => (Some("no answer within 500ms".to_owned()), before),
                other => return Err(format!("{other:?} says nothing about a knock")),
            };
            self.witnesses.knock = Some(Sighting { address: target, asked_at, problem, answered_at });
            return Ok(());
        }
        let proxy = words.parse()?;
        let word = words.word()?;
        let age = words.duration()?;
        let check = match word {
            "works" => Probe { last_success_age: Some(age), ..Probe::default() },
            "fails" => {
                let last_error = Some("the write was not answered".to_owned());
                Probe { failing_for: Some(age), last_error, ..Probe::default() }
            }
            other => return Err(format!("{other:?} says nothing about a path")),
        };
        self.witnesses.proxies.insert(proxy, (PathReport { target, check }, self.now));
        Ok(())
    }
}
