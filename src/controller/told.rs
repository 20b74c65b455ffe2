//! What people were told already, so that each change is told once. Reads the view; changes nothing else.

use std::collections::{BTreeMap, BTreeSet};

use super::event_loop::Controller;
use super::state::Wish;
use crate::decide;
use crate::domain::clock::WallTime;
use crate::domain::epoch::Epoch;
use crate::domain::ids::{Address, NodeName, ProxyName};
use crate::domain::plan::{Reason, ReasonCode};
use crate::domain::report::{ProxyReport, Report};
use crate::domain::view::{Fact, View};
use crate::telemetry::event::Event;

/// What was told, and still holds.
#[derive(Default)]
pub(super) struct Told {
    /// Nodes whose agents do not speak.
    silent: BTreeSet<NodeName>,
    /// Nodes that cannot be used, and why.
    refused: BTreeSet<(NodeName, ReasonCode)>,
    /// The lease that was asked for and not renewed, and why.
    unrenewed: Option<(NodeName, Epoch, &'static str)>,
    /// The pause in force.
    pause: Option<WallTime>,
    proxies: BTreeMap<ProxyName, ToldProxy>,
}

/// A proxy as people know it.
#[derive(Default)]
struct ToldProxy {
    leads_to: Option<Address>,
    is_failed: bool,
}

impl Controller {
    /// Tells what has become different since the last turn.
    pub(super) fn note_changes(&mut self, view: &View) {
        self.note_silence(view);
        self.note_refusals(view);
        self.note_pause(view);
        self.note_proxies(view);
    }

    fn note_silence(&mut self, view: &View) {
        for (name, node) in &view.nodes {
            match &node.report {
                Fact::Known { .. } => {
                    if self.told.silent.remove(name) {
                        self.tell(&Event::AgentHeard { node: name.clone() });
                    }
                }
                Fact::Unknown { for_duration, .. } if *for_duration > self.state.policy.report_stale_after => {
                    if self.told.silent.insert(name.clone()) {
                        self.tell(&Event::AgentSilent { node: name.clone(), silent: *for_duration });
                    }
                }
                Fact::Unknown { .. } | Fact::Absent => {}
            }
        }
    }

    fn note_refusals(&mut self, view: &View) {
        let refused = view.record.as_ref().map(|record| decide::unusable(view, record)).unwrap_or_default();
        let named = |reason: &Reason| Some((reason.node.clone()?, reason.code));
        let now: BTreeSet<_> = refused.iter().filter_map(named).collect();
        for reason in refused {
            if let Some((node, code)) = named(&reason)
                && !self.told.refused.contains(&(node.clone(), code))
            {
                let reason = Reason { node: None, ..reason }.to_string();
                self.tell(&Event::NodeRefused { node, reason });
            }
        }
        self.told.refused = now;
    }

    fn note_pause(&mut self, view: &View) {
        if self.told.pause.is_some_and(|until| until <= view.wall) {
            self.told.pause = None;
            self.tell(&Event::Resumed { who: None });
        }
        // A pause that this controller found in the store was told when it began.
        let stored = view.record.as_ref().and_then(|record| record.paused_until).filter(|until| *until > view.wall);
        self.told.pause = stored;
    }

    fn note_proxies(&mut self, view: &View) {
        let mut events = Vec::new();
        for (name, proxy) in &view.proxies {
            let told = self.told.proxies.entry(name.clone()).or_default();
            let problem = match &proxy.report {
                Fact::Known { value, .. } => value.error.clone(),
                Fact::Unknown { for_duration, .. } if *for_duration > self.state.policy.report_stale_after * 2 => {
                    Some(format!("its agent has not reported for {:.1} s", for_duration.as_secs_f64()))
                }
                Fact::Unknown { .. } | Fact::Absent => continue,
            };
            if let Some(problem) = problem.clone().filter(|_| !told.is_failed) {
                events.push(Event::ProxyFailed { proxy: name.clone(), problem });
            }
            told.is_failed = problem.is_some();
            let leads_to = proxy.report.known().and_then(|report: &ProxyReport| report.write_target.clone());
            // Where it led when it was first heard is no change.
            if let Some(to) = leads_to.filter(|to| told.leads_to.as_ref() != Some(to))
                && told.leads_to.replace(to.clone()).is_some()
            {
                events.push(Event::ProxyRedirected { proxy: name.clone(), to });
            }
        }
        for event in events {
            self.tell(&event);
        }
    }

    /// An operator's wish is in the store.
    pub(super) fn note_wish(&mut self, wish: &Wish) {
        let Wish::Pause { until, who } = wish else { return };
        match until {
            Some(until) => self.tell(&Event::PausedUntil { until: *until, who: who.clone() }),
            None if self.told.pause.is_some() => self.tell(&Event::Resumed { who: Some(who.clone()) }),
            None => {}
        }
        self.told.pause = *until;
    }

    /// The holder reported under its lease: was it renewed, and if not, why?
    pub(super) fn note_renewal(&mut self, report: &Report, is_granted: bool) {
        let Some(record) = self.state.record.as_ref().filter(|record| record.holder == report.node) else { return };
        // Who holds no lease asks for none: a fenced holder's silence is told as such.
        if is_granted || !decide::lease::shows_renewal(record, report) {
            self.told.unrenewed = self.told.unrenewed.take().filter(|_| !is_granted);
            return;
        }
        let pending = decide::lease::swap_in_flight(self.state.moving());
        let why = decide::lease::refusal(record, report, &self.state.policy, pending)
            .unwrap_or("this controller's leadership ends before a lease would");
        let unrenewed = Some((report.node.clone(), record.epoch, why));
        if self.told.unrenewed != unrenewed {
            self.told.unrenewed = unrenewed;
            self.tell(&Event::LeaseNotRenewed { node: report.node.clone(), reason: why.to_owned() });
        }
    }
}
