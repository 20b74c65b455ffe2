//! Reads and applications in the running HAProxy: what to tell its runtime API, and what its answers show.
//!
//! Text in, text out: no socket is opened here.

use std::collections::BTreeMap;

use super::template::MAP_KEY;
use crate::domain::ids::{ServerName, SiteName};
use crate::domain::traffic::{Application, ApplicationReport};
use crate::ports::traffic::Arrangement;

/// The backend for reads, as the template names it.
const READ_BACKEND: &str = "pg_read";

/// The oldest HAProxy that the template and the sockets' answers are for.
pub const OLDEST: (u32, u32) = (2, 4);

/// Columns of `show stat`.
const STATUS_COLUMN: usize = 17;

/// What one look showed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// HAProxy's version.
    pub version: Option<String>,
    /// The site in the map; `None` while no map is loaded or it is empty.
    pub active_site: Option<SiteName>,
    /// Whether the map is loaded at all.
    pub has_map: bool,
    /// Weights of the servers for reads.
    pub weights: BTreeMap<String, u32>,
    /// (backend, server) of every server that is up.
    up: Vec<(String, String)>,
}

/// Commands that put weights and the active site right. What HAProxy does not have yet it answers with an error text, which is
/// no matter: that comes with the next reload.
pub fn commands(map_file: &str, wanted: &Arrangement) -> String {
    let weights =
        wanted.nodes.iter().map(|node| format!("set server {READ_BACKEND}/{} weight {}", node.node, node.weight));
    let site = wanted.active_site.iter().map(|site| format!("set map {map_file} {MAP_KEY} {site}"));
    weights.chain(site).collect::<Vec<_>>().join(";")
}

/// Adds the key to a map that was empty when HAProxy read it.
pub fn first_site(map_file: &str, site: &SiteName) -> String {
    format!("add map {map_file} {MAP_KEY} {site}")
}

/// One line of questions whose answers [`Seen::read`] understands.
pub fn questions(map_file: &str) -> String {
    format!("show info;show map {map_file};show servers state {READ_BACKEND};show stat")
}

impl Seen {
    /// Reads the answers to [`questions`].
    pub fn read(answer: &str) -> Self {
        let mut seen = Self { has_map: !answer.contains("Unknown map identifier"), ..Self::default() };
        for line in answer.lines() {
            if let Some(version) = line.strip_prefix("Version: ") {
                seen.version = Some(version.trim().to_owned());
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [pointer, MAP_KEY, site] if pointer.starts_with("0x") => {
                    seen.active_site = SiteName::new(*site).ok();
                }
                [_, READ_BACKEND, _, server, _, _, _, weight, ..] => {
                    if let Ok(weight) = weight.parse() {
                        seen.weights.insert((*server).to_owned(), weight);
                    }
                }
                _ => {}
            }
            let columns: Vec<&str> = line.split(',').collect();
            if columns.get(STATUS_COLUMN).is_some_and(|status| status.starts_with("UP") || *status == "no check") {
                seen.up.push((columns[0].to_owned(), columns[1].to_owned()));
            }
        }
        seen
    }

    /// What the runtime API can change and is not as wanted.
    pub fn differences(&self, wanted: &Arrangement) -> Vec<String> {
        let mut differences = Vec::new();
        for node in &wanted.nodes {
            if let Some(weight) = self.weights.get(node.node.as_str())
                && *weight != u32::from(node.weight)
            {
                let of = &node.node;
                differences.push(format!("reads: {of} has weight {weight} in place of {}", node.weight));
            }
        }
        if let Some(site) = wanted.active_site.as_ref().filter(|_| self.has_map && !wanted.applications.is_empty())
            && self.active_site.as_ref() != Some(site)
        {
            let present = self.active_site.as_ref().map_or("no site", |site| site.as_str());
            differences.push(format!("applications are served from {present} first in place of {site}"));
        }
        differences
    }

    /// How each application stands.
    pub fn applications(&self, wanted: &Arrangement) -> Vec<ApplicationReport> {
        wanted.applications.iter().map(|application| self.application(application)).collect()
    }

    fn application(&self, application: &Application) -> ApplicationReport {
        let is_up = |site: &SiteName, server: &ServerName| {
            let backend = format!("app_{}_in_{site}", application.name);
            self.up.iter().any(|(of, name)| *of == backend && *name == server.as_str())
        };
        let up: Vec<_> = application.servers.iter().filter(|server| is_up(&server.site, &server.name)).collect();
        let first = self.active_site.as_ref().filter(|site| application.sites().contains(site));
        let first = first.or(application.sites().first().copied());
        let served_from = up.iter().find(|server| Some(&server.site) == first).or(up.first());
        ApplicationReport {
            name: application.name.clone(),
            servers: u32::try_from(application.servers.len()).unwrap_or(u32::MAX),
            servers_up: u32::try_from(up.len()).unwrap_or(u32::MAX),
            served_from: served_from.map(|server| server.site.clone()),
        }
    }
}

/// Why a HAProxy of this version is not driven; `None` if it is new enough, or its words are not understood.
pub fn too_old(version: &str) -> Option<String> {
    let mut numbers = version.split(|letter: char| !letter.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { return None };
    let (oldest_major, oldest_minor) = OLDEST;
    ((major, minor) < OLDEST).then(|| {
        format!("HAProxy {version} is older than {oldest_major}.{oldest_minor}, the oldest that the agent can drive: upgrade it")
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::arrangement;
    use super::*;

    const ANSWER: &str = "Name: HAProxy\nVersion: 2.6.12-1+deb12u4\n\n0x564e139287f0 active west\n\n1\n\
        # be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight\n\
        5 pg_read 1 n1 10.0.0.1 2 0 10 1 2 15 3 2 6 0 0 0 - 5432 - 0 0 - - 0\n\n\
        # pxname,svname,qcur,qmax,scur,smax,slim,stot,bin,bout,dreq,dresp,ereq,econ,eresp,wretr,wredis,status\n\
        app_shop_in_east,shop-1,0,0,0,0,,0,0,0,,0,,0,0,0,0,DOWN,1\n\
        app_shop_in_east,shop-4,0,0,0,0,,0,0,0,,0,,0,0,0,0,UP,1\n\
        app_shop_in_west,shop-4,0,0,0,0,,0,0,0,,0,,0,0,0,0,UP,1\n";

    #[test]
    fn one_look_shows_version_weights_site_and_servers() {
        let seen = Seen::read(ANSWER);
        assert_eq!(seen.version.as_deref(), Some("2.6.12-1+deb12u4"));
        assert_eq!(seen.weights, BTreeMap::from([("n1".to_owned(), 10)]));
        assert_eq!(seen.differences(&arrangement()), ["applications are served from west first in place of east"]);
        let shop = &seen.applications(&arrangement())[0];
        assert_eq!((shop.servers, shop.servers_up), (2, 1));
        assert_eq!(shop.served_from.as_ref().map(SiteName::as_str), Some("west"));
        let unloaded = Seen::read("Unknown map identifier. Please use #<id> or <file>.\n");
        assert_eq!(unloaded.differences(&arrangement()), Vec::<String>::new(), "comes with the reload");
    }

    #[test]
    fn commands_are_for_every_node_and_the_active_site() {
        assert_eq!(commands("/x.map", &arrangement()), "set server pg_read/n1 weight 10;set map /x.map active east");
        let mut heavier = arrangement();
        heavier.nodes[0].weight = 100;
        assert_eq!(
            Seen::read(&ANSWER.replace("active west", "active east")).differences(&heavier),
            ["reads: n1 has weight 10 in place of 100"]
        );
    }

    #[test]
    fn versions_below_the_oldest_are_named() {
        assert!(too_old("2.2.9-2+deb11u6").expect("too old").contains("older than 2.4"));
        assert!(too_old("1.8.27").is_some());
        for good in ["2.4.0", "2.6.12-1+deb12u4", "3.0.1", "nonsense"] {
            assert_eq!(too_old(good), None, "{good}");
        }
    }
}
