//! `[store]`: what follows from it, and what is refused.

use stormglass::config::load::load_controller_with;

use super::{CONTROLLER, Directory, load};

/// A controller's file with this `[store]`.
fn with_store(store: &str) -> String {
    CONTROLLER.replacen("[cluster]", &format!("[store]\n{store}\n\n[cluster]"), 1)
}

const ETCD: &str = "kind = \"etcd\"\nendpoints = [\"http://10.0.0.5:2379\"]";

#[test]
fn the_leadership_outlives_a_lease_and_its_price_is_shown() {
    let policy = |store: &str| {
        let directory = Directory::new();
        let path = directory.file(&with_store(store));
        let settings = load_controller_with(&path, []).unwrap_or_else(|error| panic!("{}", directory.words(&error)));
        (settings.policy().expect("checked"), settings.url())
    };
    let (embedded, _) = policy("kind = \"embedded\"");
    assert!(embedded.leadership_ttl.is_zero());
    assert!(!stormglass::config::effective::derivation(&embedded).concat().contains("leadership_ttl"));

    let (derived, url) = policy(ETCD);
    assert!(derived.leadership_ttl >= derived.timers.lease + derived.timers.renewal_interval);
    assert_eq!(derived.leadership_ttl.subsec_nanos(), 0, "etcd counts whole seconds");
    assert_eq!(url, "http://127.0.0.1:8432");
    let worst = humantime::format_duration(derived.leadership_ttl + derived.new_leader_wait()).to_string();
    let shown = stormglass::config::effective::derivation(&derived).join("\n");
    assert!(shown.contains(&worst), "{worst} is not in\n{shown}");

    let (least, _) = policy(&format!("{ETCD}\nleadership_ttl = \"{}s\"", derived.leadership_ttl.as_secs()));
    assert_eq!(least.leadership_ttl, derived.leadership_ttl, "what is derived is accepted");
    let (chosen, _) = policy(&format!("{ETCD}\nleadership_ttl = \"7s\""));
    assert_eq!(chosen.leadership_ttl, std::time::Duration::from_secs(7));
}

#[test]
fn a_store_that_cannot_be_used_is_refused() {
    for (store, words) in [
        ("kind = \"etcd\"", "must name the members of etcd"),
        ("endpoints = [\"http://10.0.0.5:2379\"]", "belongs to kind = \"etcd\""),
        ("kind = \"etcd\"\nendpoints = [\"10.0.0.5:2379\"]", "no URL of a member"),
        ("kind = \"etcd\"\nendpoints = [\"https://10.0.0.5:2379\"]", "store.ca_file"),
        (&format!("{ETCD}\nca_file = \"/etc/ca.pem\""), "use https://"),
        (&format!("{ETCD}\nuser = \"stormglass\""), "store.password: missing"),
        (&format!("{ETCD}\npassword = \"file:@/operator\""), "store.user: missing"),
        (&format!("{ETCD}\nprefix = \"stormglass\""), "must begin with /"),
        (&format!("{ETCD}\nleadership_ttl = \"2s\""), "whole seconds, at least 4s"),
        // As long as the lease: each keep-alive would already be too old for a lease.
        (&format!("{ETCD}\nleadership_ttl = \"3s\""), "whole seconds, at least 4s"),
        (&format!("{ETCD}\nleadership_ttl = \"4500ms\""), "whole seconds, at least 4s"),
    ] {
        let directory = Directory::new();
        let error = load(&directory.file(&with_store(store)), &[]).expect_err(store);
        let said = directory.words(&error);
        assert!(said.contains(words), "{store}: {said}");
    }
    let directory = Directory::new();
    let everywhere = with_store(ETCD).replacen("\"127.0.0.1:8432\"", "\"0.0.0.0:8432\"\ninsecure = true", 1);
    let error = load(&directory.file(&everywhere), &[]).expect_err("followers would send people nowhere");
    assert!(directory.words(&error).contains("controller.url: missing"), "{}", directory.words(&error));
}
