//! Configuration files: the examples load, and every mistake gives one clear error with its place.

#[path = "config/dns.rs"]
mod dns;
#[path = "config/notification.rs"]
mod notification;
#[path = "config/oidc.rs"]
mod oidc;
#[path = "config/retraining.rs"]
mod retraining;
#[path = "config/schema.rs"]
mod schema;
#[path = "config/secrets.rs"]
mod secrets;
#[path = "config/store.rs"]
mod store;
#[path = "config/timers.rs"]
mod timers;
#[path = "config/tls.rs"]
mod tls;

use std::path::{Path, PathBuf};

use stormglass::config::load::{load_agent_with, load_controller_with};
use stormglass::config::{AnyConfig, ConfigError, read_any};
use stormglass::domain::policy::DurabilityMode;

const CONTROLLER: &str = r#"
[controller]
name = "controller-1"
listen = "127.0.0.1:8432"
data_directory = "/var/lib/stormglass"

[cluster]
name = "orders"

[failover]
rto = "5s"

[authentication]
agent_token = "file:@/agent"

[[authentication.token]]
name = "on-call"
role = "operator"
secret = "file:@/operator"

[[node]]
name = "db1"
site = "east"
agent = "http://127.0.0.1:8001"

[[node]]
name = "db2"
site = "west"
agent = "http://127.0.0.1:8002"
"#;

const DATABASE: &str = r#"
[agent]
cluster = "orders"
site = "east"
listen = "127.0.0.1:8008"
state_directory = "/var/lib/stormglass/agent"
controllers = ["http://127.0.0.1:8432"]
token = "file:@/agent"

[postgresql]
node = "db1"
data_directory = "/var/lib/postgresql/15/main"
address = { host = "127.0.0.1", port = 5432 }
listen_addresses = "*"
"#;

const PROXY: &str = r#"
[agent]
cluster = "orders"
site = "east"
listen = "127.0.0.1:8008"
state_directory = "/var/lib/stormglass/agent"
controllers = ["http://127.0.0.1:8432"]
token = "file:@/agent"

[proxy]
name = "p1"
stats_socket = "/run/haproxy/admin.sock"
master_socket = "/run/haproxy/master.sock"
config_file = "/etc/haproxy/haproxy.cfg"
write = { host = "127.0.0.1", port = 5000 }
read = { host = "127.0.0.1", port = 5001 }
checked = { host = "127.0.0.1", port = 5002 }
stats = { host = "127.0.0.1", port = 7000 }

[[proxy.nodes]]
name = "db1"
address = { host = "127.0.0.1", port = 5432 }
agent = { host = "127.0.0.1", port = 8001 }
"#;

struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        std::fs::write(directory.path().join("agent"), "agent-secret\n").expect("write");
        std::fs::write(directory.path().join("operator"), "operator-secret\n").expect("write");
        std::fs::write(directory.path().join("empty"), "\n").expect("write");
        Self(directory)
    }

    /// Writes `text` with `@` standing for the directory.
    fn file(&self, text: &str) -> PathBuf {
        let path = self.0.path().join("stormglass.toml");
        std::fs::write(&path, text.replace("file:@", &format!("file:{}", self.0.path().display()))).expect("write");
        path
    }

    /// The error as users see it, with the directory taken out.
    fn words(&self, error: &ConfigError) -> String {
        stormglass::cli::exit::chain(error).replace(&format!("{}/", self.0.path().display()), "")
    }
}

fn load(path: &Path, environment: &[(&str, &str)]) -> Result<(), ConfigError> {
    let environment = || environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    if std::fs::read_to_string(path).is_ok_and(|text| text.contains("[controller]")) {
        load_controller_with(path, environment()).map(drop)
    } else {
        load_agent_with(path, environment()).map(drop)
    }
}

/// `base` with `from` replaced by `to` gives exactly `expected`.
#[track_caller]
fn refused(base: &str, from: &str, to: &str, expected: &str) {
    assert!(base.contains(from), "{from:?} is not in the file that is to be changed");
    let directory = Directory::new();
    let path = directory.file(&base.replacen(from, to, 1));
    let error = load(&path, &[]).expect_err("a bad configuration was accepted");
    assert_eq!(directory.words(&error), expected);
}

#[test]
fn good_files_load() {
    let directory = Directory::new();
    for text in [CONTROLLER, DATABASE, PROXY] {
        load(&directory.file(text), &[]).expect("good");
    }
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    refused(
        CONTROLLER,
        "listen =",
        "lisen =",
        "stormglass.toml:4:1: controller.lisen: unknown key: did you mean `listen`?",
    );
    refused(
        CONTROLLER,
        "[failover]",
        "[failovr]",
        "stormglass.toml:10:2: failovr: unknown key: did you mean `failover`?",
    );
    refused(
        CONTROLLER,
        "site = \"west\"",
        "sitee = \"west\"",
        "stormglass.toml:28:1: node[1].sitee: unknown key: did you mean `site`?",
    );
    refused(
        CONTROLLER,
        "rto = \"5s\"",
        "ttl = 30",
        "stormglass.toml:11:1: failover.ttl: unknown key: the nearest known key is `rto`, of rto, lease, renewal_interval, \
         request_timeout, stop_budget, kill_budget, drift, switchover_max_dirty_bytes, gray_after",
    );
    refused(
        DATABASE,
        "port = 5432 }",
        "port = 5432, hots = 1 }",
        "stormglass.toml:13:46: postgresql.address.hots: unknown key: did you mean `host`?",
    );
}

#[test]
fn missing_and_mistyped_values_say_where() {
    refused(
        CONTROLLER,
        "listen = \"127.0.0.1:8432\"\n",
        "",
        "stormglass.toml:2:1: controller.listen: missing: there is no default, add it",
    );
    refused(
        CONTROLLER,
        "\"5s\"",
        "\"5 parsecs\"",
        "stormglass.toml:11:7: failover.rto: \"5 parsecs\" is not a duration such as \"3s\" or \"500ms\": unknown time unit \
         \"parsecs\", supported units: ns, us/µs, ms, sec, min, hours, days, weeks, months, years (and few variations)",
    );
    refused(
        CONTROLLER,
        "\"5s\"",
        "5",
        "stormglass.toml:11:7: failover.rto: invalid type: integer `5`, expected a string",
    );
    refused(
        CONTROLLER,
        "role = \"operator\"",
        "role = \"operater\"",
        "stormglass.toml:18:8: authentication.token[0].role: unknown value `operater`: did you mean `operator`?",
    );
    refused(
        CONTROLLER,
        "name = \"db1\"",
        "name = \"DB 1\"",
        "stormglass.toml:22:8: node[0].name: node \"DB 1\" is not a valid name: use 1 to 63 of a-z, 0-9, '-' and '_', and start \
         with a letter or digit",
    );
    refused(
        CONTROLLER,
        "rto = \"5s\"",
        "rto = ",
        "stormglass.toml:11:7: not valid TOML: string values must be quoted, expected literal string",
    );
}

#[test]
fn secrets_are_references_that_lead_somewhere_and_are_never_shown() {
    let inline = "stormglass.toml:14:15: authentication.agent_token: a secret must be a reference, env:NAME, file:/path or \
                  vault:MOUNT/data/PATH#FIELD; \
                  the value itself must not stand in the configuration";
    refused(CONTROLLER, "\"file:@/agent\"", "\"hunter2\"", inline);
    refused(
        CONTROLLER,
        "\"file:@/agent\"",
        "\"env:STORMGLASS_TEST_NOT_SET\"",
        "stormglass.toml:14:1: authentication.agent_token: the secret cannot be had: environment variable \
         STORMGLASS_TEST_NOT_SET is not set or not UTF-8",
    );
    refused(
        CONTROLLER,
        "file:@/operator",
        "file:/nowhere/token",
        "stormglass.toml:19:1: authentication.token[0].secret: the secret cannot be had: read the secret file \
         /nowhere/token: No such file or directory (os error 2)",
    );
    refused(
        CONTROLLER,
        "file:@/operator",
        "file:@/agent",
        "stormglass.toml:19:1: authentication.token[0].secret: the same secret as authentication.agent_token: every token \
         needs its own",
    );
    let directory = Directory::new();
    let path = directory.file(&DATABASE.replace("file:@/agent", "file:@/empty"));
    let words = directory.words(&load(&path, &[]).expect_err("an empty secret was accepted"));
    assert!(
        words.starts_with("stormglass.toml:8:1: agent.token: the secret cannot be had: the secret file:"),
        "{words}"
    );
}

#[test]
fn rules_between_settings_are_held() {
    refused(
        CONTROLLER,
        "name = \"db2\"",
        "name = \"db1\"",
        "stormglass.toml:27:1: node[1].name: \"db1\" is node[0] already: every name is used once",
    );
    refused(
        CONTROLLER,
        "http://127.0.0.1:8002",
        "127.0.0.1:8002",
        "stormglass.toml:29:1: node[1].agent: \"127.0.0.1:8002\" is no base URL as in \"https://10.0.0.5:8432\": relative URL \
         without a base",
    );
    refused(
        CONTROLLER,
        "http://127.0.0.1:8002",
        "http://0.0.0.0:8002",
        "stormglass.toml:29:1: node[1].agent: \"http://0.0.0.0:8002\" is no base URL as in \"https://10.0.0.5:8432\": nobody can \
         connect to that address, name one that others reach",
    );
    refused(
        CONTROLLER,
        "rto = \"5s\"",
        "rto = \"1s\"",
        "stormglass.toml:11:1: failover.rto: must be at least 2s: in less time no lease fits",
    );
    refused(
        CONTROLLER,
        "rto = \"5s\"",
        "request_timeout = \"2s\"",
        "stormglass.toml:10:2: failover: renewal_interval 500ms + request_timeout 2s must be less than lease 3s - stop_budget \
         800ms: shorten the first two or lengthen the lease",
    );
    refused(
        CONTROLLER,
        "data_directory = \"/var/lib/stormglass\"",
        "data_directory = \"data\"",
        "stormglass.toml:5:1: controller.data_directory: \"data\" is relative, and would depend on where the process is \
         started: begin it with /",
    );
    let without_nodes =
        CONTROLLER.split("[[node]]").next().expect("text").replace("[controller]", "node = []\n[controller]");
    refused(&without_nodes, "", "", "stormglass.toml:2:8: node: a cluster needs at least one [[node]]");
}

#[test]
fn an_agent_serves_one_thing_and_keeps_its_state_safe() {
    let both = format!("{DATABASE}{}", PROXY.split("\n\n").skip(1).collect::<Vec<_>>().join("\n\n"));
    refused(
        &both,
        "",
        "",
        "stormglass.toml:15:2: proxy: an agent serves either [postgresql] or [proxy]: run one agent for each, with a \
         state_directory of its own",
    );
    let neither = DATABASE.split("[postgresql]").next().expect("text");
    refused(
        neither,
        "",
        "",
        "stormglass.toml:1:1: an agent needs [postgresql] on a database host or [proxy] on a proxy host",
    );
    refused(
        DATABASE,
        "\"/var/lib/stormglass/agent\"",
        "\"/var/lib/postgresql/15/main/../main/stormglass\"",
        "stormglass.toml:6:1: agent.state_directory: is inside postgresql.data_directory: a rewind or reclone would delete what \
         the agent promised; move it out",
    );
    refused(
        DATABASE,
        "port = 5432",
        "port = 8008",
        "stormglass.toml:13:1: postgresql.address: port 8008 is agent.listen already: choose another one for either",
    );
    refused(
        DATABASE,
        "listen_addresses = \"*\"",
        "listen_addresses = \"*\"\nparameters = { fsync = \"off\" }",
        "stormglass.toml:15:16: postgresql.parameters.fsync: must stay on: without it a confirmed commit may not survive a crash",
    );
    refused(
        DATABASE,
        "listen_addresses = \"*\"",
        "listen_addresses = \"*\"\nparameters = { port = \"1\" }",
        "stormglass.toml:15:16: postgresql.parameters.port: is set by the agent: take it out",
    );
    refused(
        DATABASE,
        "[\"http://127.0.0.1:8432\"]",
        "[]",
        "stormglass.toml:7:15: agent.controllers: must name at least one controller, as in \"http://10.0.0.5:8432\"",
    );
    refused(
        PROXY,
        "port = 5001",
        "port = 5000",
        "stormglass.toml:16:1: proxy.read: 127.0.0.1:5000 is proxy.write already: each needs a port of its own",
    );
}

#[test]
fn variables_override_the_file_and_are_named_in_errors() {
    let directory = Directory::new();
    let path = directory.file(CONTROLLER);
    let variables = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
    };
    let settings = load_controller_with(
        &path,
        variables(&[
            ("STORMGLASS_CONTROLLER__LISTEN", "127.0.0.1:9999"),
            ("STORMGLASS_FAILOVER__RTO", "10s"),
            ("STORMGLASS_CLUSTER__MAX_LAG_BYTES", "17"),
            ("STORMGLASS_CLUSTER__DURABILITY", "async"),
            ("STORMGLASS_CONTROLLER", "http://not-a-setting:1"),
            ("STORMGLASS_POSTGRESQL__NODE", "of-an-agent"),
        ]),
    )
    .expect("good");
    assert_eq!(settings.controller.listen.port(), 9999);
    let policy = settings.policy().expect("good");
    assert_eq!(policy.rto.as_secs(), 10);
    assert_eq!(policy.max_lag_bytes, 17);
    assert_eq!(policy.durability, DurabilityMode::Async);

    let error = load_controller_with(&path, variables(&[("STORMGLASS_FAILOVER__RTO", "soon")])).expect_err("bad value");
    let words = directory.words(&error);
    assert!(
        words.starts_with("environment variable STORMGLASS_FAILOVER__RTO: failover.rto: \"soon\" is not"),
        "{words}"
    );
    let error = load_controller_with(&path, variables(&[("STORMGLASS_FAILOVER__RTOO", "5s")])).expect_err("bad key");
    assert_eq!(
        directory.words(&error),
        "environment variable STORMGLASS_FAILOVER__RTOO: failover.rtoo: unknown key: did you mean `rto`?"
    );
    let error = load_controller_with(&path, variables(&[("STORMGLASS_FAILOVER__RTO", "1s")])).expect_err("too short");
    assert!(
        directory.words(&error).starts_with("environment variable STORMGLASS_FAILOVER__RTO: failover.rto: must be")
    );
}

#[test]
fn an_unreadable_file_is_named() {
    let error = load_controller_with(Path::new("/nowhere/stormglass.toml"), []).expect_err("no file");
    assert_eq!(
        stormglass::cli::exit::chain(&error),
        "read the configuration /nowhere/stormglass.toml: No such file or directory (os error 2)"
    );
}

#[test]
fn one_node_is_async_unless_told_otherwise() {
    let directory = Directory::new();
    let (head, _) = CONTROLLER.rsplit_once("[[node]]").expect("two nodes");
    let settings = load_controller_with(&directory.file(head), []).expect("good");
    assert_eq!(settings.policy().expect("good").durability, DurabilityMode::Async);
    let strict = head.replace("name = \"orders\"", "name = \"orders\"\ndurability = \"sync\"");
    let error = load_controller_with(&directory.file(&strict), []).expect_err("nobody can confirm");
    assert!(directory.words(&error).contains("cluster.durability: there is one [[node]]"));
}

#[test]
fn effective_settings_show_derived_timers_and_no_secret_and_load_again() {
    let directory = Directory::new();
    let (settings, _) = read_any(&directory.file(CONTROLLER)).expect("good");
    let text = settings.effective().expect("good").text();
    for line in [
        "durability = \"sync\"",
        "#   lease              3s",
        "#   renewal_interval + request_timeout < lease - stop_budget: 1s 500ms < 2s 200ms, holds",
    ] {
        assert!(text.lines().any(|have| have == line), "{line:?} is not in\n{text}");
    }
    assert!(!text.contains("agent-secret") && !text.contains("operator-secret"), "a secret is shown in\n{text}");
    load(&directory.file(&text), &[]).expect("what is shown can be loaded");
}

#[test]
fn the_examples_hold() {
    for (name, is_controller) in
        [("controller.toml", true), ("agent-postgresql.toml", false), ("agent-proxy.toml", false)]
    {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
        let (settings, _) = read_any(&path).unwrap_or_else(|error| panic!("{}", stormglass::cli::exit::chain(&error)));
        assert_eq!(matches!(settings, AnyConfig::Controller(_)), is_controller, "{name}");
    }
}

#[test]
fn the_reference_names_every_key_of_the_examples() {
    fn keys(table: &toml::Table, found: &mut Vec<String>) {
        for (key, value) in table {
            // The user's own names, not ours.
            // What is in them is named by the user.
            if ["parameters", "sites"].contains(&key.as_str()) {
                continue;
            }
            found.push(key.clone());
            let tables = match value {
                toml::Value::Table(table) => vec![table],
                toml::Value::Array(values) => values.iter().filter_map(toml::Value::as_table).collect(),
                _ => Vec::new(),
            };
            for table in tables {
                keys(table, found);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let reference = std::fs::read_to_string(root.join("docs/configuration.md")).expect("the reference is there");
    for name in ["controller.toml", "agent-postgresql.toml", "agent-proxy.toml"] {
        let (settings, _) = read_any(&root.join("examples").join(name)).expect("checked above");
        let mut found = Vec::new();
        keys(&settings.effective().expect("checked above").settings, &mut found);
        for key in found {
            let named = reference.contains(&format!("`{key}`")) || reference.contains(&format!(".{key}`"));
            let is_section = reference.contains(&format!("`[{key}]`")) || reference.contains(&format!("`{key}."));
            assert!(named || is_section || ["host", "port"].contains(&key.as_str()), "{key} of {name} is in no table");
        }
    }
}
