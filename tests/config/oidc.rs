//! `[authentication.oidc]`.

use super::{CONTROLLER, Directory, load};

const OIDC: &str = r#"
[authentication.oidc]
issuer = "https://idp.example.org/realms/ops"
audience = "stormglass"
role_claim = "realm_access.roles"

[authentication.oidc.roles]
viewer = ["everybody"]
operator = ["dba"]
"#;

#[test]
fn an_issuer_is_taken_with_defaults_and_with_everything() {
    let directory = Directory::new();
    load(&directory.file(&format!("{CONTROLLER}{OIDC}")), &[]).expect("good");
    let issuer = "issuer = \"http://127.0.0.1:8080\"\njwks_url = \"https://idp.example.org/keys?v=1\"\nca_file = \"/etc/ssl/idp.pem\"";
    let all = OIDC.replace("issuer = \"https://idp.example.org/realms/ops\"", issuer);
    let all = all.replace("role_claim", "name_claim = \"email\"\nclusters_claim = \"clusters\"\nrole_claim");
    load(&directory.file(&format!("{CONTROLLER}{all}")), &[]).expect("good");
    load(
        &directory.file(&format!("{CONTROLLER}{OIDC}")),
        &[("STORMGLASS_AUTHENTICATION__OIDC__ISSUER", "https://other.example.org")],
    )
    .expect("good");
}

#[test]
fn every_mistake_names_its_key() {
    for (from, to, key, says) in [
        ("https://idp", "http://idp", "issuer", "must begin with https://"),
        ("https://idp.example.org/realms/ops", "ops", "issuer", "is no URL"),
        ("https://idp", "https://ann:x@idp", "issuer", "user name or password"),
        ("/realms/ops", "/realms/ops?a=b", "issuer", "no query or fragment"),
        ("audience = \"stormglass\"", "", "audience", "missing"),
        ("audience = \"stormglass\"", "audience = \" \"", "audience", "must not be empty"),
        ("audience", "jwks_url = \"ftp://idp\"\naudience", "jwks_url", "must begin with https://"),
        ("audience", "ca_file = \"idp.pem\"\naudience", "ca_file", "is relative"),
        ("\"realm_access.roles\"", "\"\"", "role_claim", "must not be empty"),
        ("audience", "clusters_claim = \"\"\naudience", "clusters_claim", "must not be empty"),
        ("[\"dba\"]", "[\"dba\", \"\"]", "roles.operator[1]", "must not be empty"),
        ("viewer = [\"everybody\"]\noperator = [\"dba\"]", "", "roles", "nobody would have a role"),
        ("operator =", "root =", "roles.root", "unknown key"),
        ("role_claim", "rol_claim", "rol_claim", "did you mean `role_claim`?"),
    ] {
        assert!(OIDC.contains(from), "{from:?}");
        let directory = Directory::new();
        let path = directory.file(&format!("{CONTROLLER}{}", OIDC.replacen(from, to, 1)));
        let words = directory.words(&load(&path, &[]).expect_err(to));
        assert!(words.contains(&format!("authentication.oidc.{key}: ")) && words.contains(says), "{to:?}: {words}");
    }
    for name in ["oidc:ann", "automatic", "schedule"] {
        let directory = Directory::new();
        let path = directory.file(&CONTROLLER.replace("name = \"on-call\"", &format!("name = \"{name}\"")));
        let words = directory.words(&load(&path, &[]).expect_err(name));
        assert!(words.contains("authentication.token[0].name: is a name by which"), "{words}");
    }
}
