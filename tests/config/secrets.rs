//! References to secrets: every one is followed by `config check`, also into Vault. The Vault is a stand-in that answers as its HTTP API
//! is documented to; the program that asks is the built one.

use std::path::PathBuf;
use std::process::Command;

use axum::http::{HeaderMap, StatusCode, Uri};
use serde_json::{Value, json};
use stormglass::adapters::vault::{Vault, VaultSettings};

use super::{CONTROLLER, DATABASE, Directory, PROXY, load};

const TOKEN: &str = "s.good-token";

/// What a test does to good settings.
type Change<'a> = &'a dyn Fn(&mut VaultSettings);

/// What is said of a file to which `more` was added.
fn said(base: &str, more: &str) -> Result<(), String> {
    let directory = Directory::new();
    let path = directory.file(&format!("{base}\n{more}"));
    load(&path, &[]).map_err(|error| directory.words(&error))
}

fn step(lines: &str) -> String {
    format!("[[sequence]]\nname = \"dr\"\n[[sequence.step]]\nname = \"one\"\n{lines}")
}

#[test]
fn a_secret_that_leads_nowhere_is_an_error_wherever_it_stands() {
    let pooler = "[proxy.pgbouncer]\nadmin = { host = \"127.0.0.1\", port = 6432 }\nuser = \"stats\"\n";
    said(PROXY, &format!("{pooler}password = \"file:@/operator\"")).expect("good");
    let words = said(PROXY, &format!("{pooler}password = \"file:@/missing\"")).expect_err("there is no such file");
    assert!(words.contains("proxy.pgbouncer.password: the secret cannot be had: read the secret file"), "{words}");

    for (lines, key) in [
        ("kind = \"sql\"\nuser = \"a\"\ndatabase = \"a\"\nstatement = \"SELECT 1\"\npassword = \"@\"", "password"),
        ("kind = \"command\"\ncommand = [\"true\"]\nenvironment = { PASSWORD = \"@\" }", "environment.PASSWORD"),
        ("kind = \"http\"\nurl = \"http://127.0.0.1\"\nheaders = { authorization = \"@\" }", "headers.authorization"),
        ("kind = \"terraform\"\ndirectory = \"/srv\"\nvariables = { key = \"@\" }", "variables.key"),
        ("kind = \"ansible\"\nplaybook = \"/srv/a.yml\"\nvariables = { key = \"@\" }", "variables.key"),
        ("kind = \"application\"\nfile = \"/srv/a\"\nvalues = { key = \"@\" }", "values.key"),
    ] {
        let with = |reference: &str| said(CONTROLLER, &step(&lines.replace('@', reference)));
        with("file:@/operator").unwrap_or_else(|words| panic!("{key}: {words}"));
        for reference in ["env:STORMGLASS_TEST_NOT_SET", "file:@/missing", "file:@/empty", "vault:secret/data/a#b"] {
            let words = with(reference).expect_err(reference);
            let place = format!("sequence[0].step[0].{key}: the secret cannot be had");
            assert!(words.contains(&place), "{reference}: {words}");
        }
        let words = with("vault:secret/data/a").expect_err("no field is named");
        assert!(words.contains(key) && words.contains("vault:MOUNT/data/PATH#FIELD"), "{words}");
    }
    // What is no reference is a text.
    said(CONTROLLER, &step("kind = \"command\"\ncommand = [\"true\"]\nenvironment = { MODE = \"environment:a\" }"))
        .expect("a text");
}

/// A Vault of which everything is known.
async fn answer(uri: Uri, headers: HeaderMap) -> (StatusCode, axum::Json<Value>) {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if header("x-vault-token") != TOKEN || header("x-vault-request") != "true" {
        return (
            StatusCode::FORBIDDEN,
            axum::Json(json!({ "errors": ["1 error occurred:\n\t* permission denied\n\n"] })),
        );
    }
    let version_2 = |fields: Value| json!({ "data": { "data": fields, "metadata": { "version": 3 } }, "lease_id": "" });
    let (status, body) = match (uri.path(), header("x-vault-namespace")) {
        ("/v1/secret/data/stormglass", "") => {
            (200, version_2(json!({ "agent": "agent-secret", "operator": "operator-secret", "port": 7, "empty": "" })))
        }
        ("/v1/kv/storm%20glass", "") => (200, json!({ "data": { "operator": "operator-secret" } })),
        ("/v1/team/data/stormglass", "east") => (200, version_2(json!({ "agent": "eastern" }))),
        ("/v1/secret/data/deleted", _) => (404, version_2(Value::Null)),
        ("/v1/sealed/data/stormglass", _) => (503, json!({ "errors": ["Vault is sealed"] })),
        ("/v1/moved/data/stormglass", _) => (307, json!({})),
        ("/v1/odd/data/stormglass", _) => (200, json!("a proxy's page")),
        _ => (404, json!({ "errors": [] })),
    };
    (StatusCode::from_u16(status).expect("a status"), axum::Json(body))
}

async fn vault() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_of_a_secret_in_vault_is_read_and_every_trouble_is_named() {
    let url = vault().await;
    let settings = VaultSettings { address: Some(url.clone()), token: Some(TOKEN.to_owned()), ..Default::default() };
    let read = |path: &str, field: &str| Vault::new(settings.clone()).read(path, field);
    assert_eq!(read("secret/data/stormglass", "agent"), Ok("agent-secret".to_owned()));
    assert_eq!(read("kv/storm glass", "operator"), Ok("operator-secret".to_owned()), "version 1");
    for (path, field, says) in [
        (
            "secret/data/stormglass",
            "agnet",
            "there is no field agnet at secret/data/stormglass in Vault: it has agent, ",
        ),
        ("secret/data/stormglass", "port", "is no text"),
        ("secret/data/other", "agent", "has nothing at secret/data/other (404)"),
        ("secret/stormglass", "agent", "MOUNT/data/PATH"),
        ("secret/data/deleted", "agent", "has nothing at secret/data/deleted (404)"),
        (
            "sealed/data/stormglass",
            "agent",
            "answered 503 Service Unavailable for sealed/data/stormglass: Vault is sealed",
        ),
        ("moved/data/stormglass", "agent", "answered 307"),
        ("odd/data/stormglass", "agent", "no key-value secret"),
    ] {
        let words = read(path, field).expect_err(path);
        assert!(words.contains(says) && !words.contains(TOKEN), "{says:?} is not in {words:?}");
    }
    let with = |change: Change<'_>| {
        let mut changed = settings.clone();
        change(&mut changed);
        Vault::new(changed).read("team/data/stormglass", "agent")
    };
    assert_eq!(with(&|settings| settings.namespace = Some("east".to_owned())), Ok("eastern".to_owned()));
    let home = tempfile::tempdir().expect("a directory");
    let file = home.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).expect("written");
    let by_file = |settings: &mut VaultSettings| {
        (settings.token, settings.token_file) = (None, Some(file.clone()));
        settings.namespace = Some("east".to_owned());
    };
    assert_eq!(with(&by_file), Ok("eastern".to_owned()));
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    let troubles: [(Change<'_>, &str); 8] = [
        (&|settings| settings.token = Some("s.other".to_owned()), "refuses team/data/stormglass (403)"),
        (&|settings| settings.token = None, "neither VAULT_TOKEN nor VAULT_TOKEN_FILE is set"),
        (&|settings| (settings.token, settings.token_file) = (None, Some(PathBuf::from("/none"))), "VAULT_TOKEN_FILE"),
        (&|settings| settings.address = None, "VAULT_ADDR is not set"),
        (&|settings| settings.address = Some("vault:8200".to_owned()), "no URL"),
        (&|settings| settings.address = Some("http://vault.example.org".to_owned()), "use https://"),
        (&|settings| settings.address = Some(format!("http://{free}")), "check VAULT_ADDR"),
        (&|settings| settings.authority_file = Some(PathBuf::from("/dev/null")), "VAULT_CACERT"),
    ];
    for (change, says) in troubles {
        let words = with(change).expect_err(says);
        assert!(words.contains(says) && !words.contains(TOKEN), "{says:?} is not in {words:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_follows_references_into_vault_by_its_environment() {
    let url = vault().await;
    let check = |text: String, variables: Vec<(&'static str, String)>| async move {
        let directory = Directory::new();
        let path = directory.file(&text);
        let output = tokio::task::spawn_blocking(move || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_stormglass"));
            command.args(["config", "check"]).arg(path).env_remove("VAULT_TOKEN").envs(variables);
            command.output().expect("built")
        });
        let output = output.await.expect("no panic");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let variables = || vec![("VAULT_ADDR", url.clone()), ("VAULT_TOKEN", TOKEN.to_owned())];
    let controller = CONTROLLER
        .replace("file:@/agent", "vault:secret/data/stormglass#agent")
        .replace("file:@/operator", "vault:kv/storm glass#operator");
    let database = DATABASE.replace("file:@/agent", "vault:secret/data/stormglass#agent");
    for text in [controller.clone(), database] {
        let (code, words) = check(text, variables()).await;
        assert_eq!(code, Some(0), "{words}");
    }
    for (from, to, says) in [
        (
            "#operator",
            "#oparator",
            "authentication.token[0].secret: the secret cannot be had: there is no field oparator",
        ),
        ("kv/storm glass", "kv/other", "has nothing at kv/other (404)"),
        ("vault:kv/storm glass#operator", "vault:secret/data/stormglass#empty", "#empty is empty"),
        ("vault:kv/storm glass#operator", "vault:secret/data/stormglass#agent", "the same secret as"),
    ] {
        let (code, words) = check(controller.replace(from, to), variables()).await;
        assert_eq!(code, Some(2), "{words}");
        assert!(words.contains(says), "{says:?} is not in {words}");
    }
    let (code, words) = check(controller, vec![("VAULT_ADDR", url.clone())]).await;
    assert!(code == Some(2) && words.contains("neither VAULT_TOKEN nor VAULT_TOKEN_FILE is set"), "{words}");
}
