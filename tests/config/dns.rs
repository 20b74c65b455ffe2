//! `[dns]` and `cluster.sync_scope`: what is refused where nodes stand in several sites.

use super::{CONTROLLER, Directory, load};

#[test]
fn a_name_has_a_provider_a_zone_and_a_value_for_every_site() {
    const DNS: &str = r#"
[dns]
provider = "rfc2136"
name = "orders.example.com"
zone = "example.com"
servers = [{ host = "127.0.0.1", port = 53 }]
key_name = "stormglass"
key_secret = "file:@/dns"

[dns.sites]
east = ["10.0.1.21", "fd00::21"]
west = ["proxy.west.example.com"]
"#;
    let base = format!("{CONTROLLER}{DNS}");
    let directory = Directory::new();
    std::fs::write(directory.0.path().join("dns"), "c2VjcmV0").expect("write");
    load(&directory.file(&base), &[]).expect("a good file");
    for (from, to, expected) in [
        ("zone = \"example.com\"", "zone = \"example.org\"", "not in the zone"),
        ("name = \"orders.example.com\"", "name = \"10.0.0.1\"", "is no name"),
        ("key_name = \"stormglass\"\n", "", "dns.key_name"),
        (
            "key_name = \"stormglass\"",
            "key_name = \"stormglass\"\nhosted_zone = \"Z1\"",
            "belongs to the other provider",
        ),
        ("servers = [{ host = \"127.0.0.1\", port = 53 }]\n", "", "dns.servers"),
        ("west = [\"proxy.west.example.com\"]", "", "west is missing"),
        ("west = [\"proxy.west.example.com\"]", "west = []", "names nothing"),
        ("west = [\"proxy.west.example.com\"]", "west = [\"p.example.com\", \"10.0.0.1\"]", "stands alone"),
        ("west = [\"proxy.west.example.com\"]", "west = [\"10.0.0.300\"]", "neither an IP address nor a name"),
        ("west = [", "north = [\"10.0.0.1\"]\nwest = [", "no [[node]] stands in this site"),
        ("key_name =", "companion = \"orders.example.com\"\nkey_name =", "beside a CNAME"),
        ("key_name =", "ttl = \"1500ms\"\nkey_name =", "whole seconds"),
        ("key_name =", "ttI = \"5s\"\nkey_name =", "ttl"),
    ] {
        assert!(base.contains(from), "{from:?} is not in the file that is to be changed");
        let error = load(&directory.file(&base.replacen(from, to, 1)), &[]).expect_err(to);
        assert!(directory.words(&error).contains(expected), "{to:?}: {}", directory.words(&error));
    }
}

#[test]
fn a_scope_needs_another_site_and_a_standby_that_confirms() {
    let directory = Directory::new();
    let with = |settings: &str| CONTROLLER.replace("name = \"orders\"\n", &format!("name = \"orders\"\n{settings}\n"));
    for scope in ["local", "other_site", "each_site"] {
        load(&directory.file(&with(&format!("sync_scope = \"{scope}\""))), &[]).expect("two sites");
    }
    let refused = |text: &str, expected: &str| {
        let error = load(&directory.file(text), &[]).expect_err(text);
        assert!(directory.words(&error).contains(expected), "{}", directory.words(&error));
    };
    refused(&with("sync_scope = \"every_site\""), "each_site");
    refused(&with("sync_scope = \"each_site\"\ndurability = \"async\""), "no standby confirms");
    refused(&with("sync_scope = \"other_site\"").replace("\"west\"", "\"east\""), "stands in one site");
}
