//! `[tls]`, and the rule that nobody listens to the network without it by accident.

use super::{CONTROLLER, DATABASE, Directory, PROXY, load, refused};

/// With a certificate, a key and a bundle in the directory, and `[tls]` that names them.
fn secured(base: &str) -> (Directory, String) {
    let directory = Directory::new();
    let key = rcgen::KeyPair::generate().expect("a key");
    let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    let certificate = parameters.self_signed(&key).expect("a certificate").pem();
    let at = directory.0.path();
    for (name, text) in
        [("own.crt", &certificate), ("own.key", &key.serialize_pem()), ("authorities.crt", &certificate)]
    {
        std::fs::write(at.join(name), text).expect("written");
    }
    let at = at.display();
    let section = format!(
        "[tls]\ncertificate = \"{at}/own.crt\"\nkey = \"{at}/own.key\"\nclient_authorities = \"{at}/authorities.crt\"\n"
    );
    (directory, format!("{base}\n{section}"))
}

#[test]
fn an_open_listener_needs_tls_or_a_word_that_it_is_meant() {
    for (base, table, port, line) in
        [(CONTROLLER, "controller", 8432, 4), (DATABASE, "agent", 8008, 5), (PROXY, "agent", 8008, 5)]
    {
        let before = format!("listen = \"127.0.0.1:{port}\"");
        for address in [format!("0.0.0.0:{port}"), format!("10.0.0.5:{port}"), format!("[::]:{port}")] {
            let after = format!("listen = \"{address}\"");
            let expected = format!(
                "stormglass.toml:{line}:1: {table}.listen: others reach {address}, and there is no TLS: add [tls] (certificates: \
                 stormglass pki), or, in a network that you trust, insecure = true in [{table}]"
            );
            refused(base, &before, &after, &expected);
            let meant = base.replacen(&before, &format!("{after}\ninsecure = true"), 1);
            load(&Directory::new().file(&meant), &[]).unwrap_or_else(|error| panic!("{address}: {error:?}"));
        }
        for address in [format!("127.0.0.9:{port}"), format!("[::1]:{port}"), format!("[::ffff:127.0.0.1]:{port}")] {
            let closed = base.replacen(&before, &format!("listen = \"{address}\""), 1);
            load(&Directory::new().file(&closed), &[]).unwrap_or_else(|error| panic!("{address}: {error:?}"));
        }
        let (directory, text) = secured(&base.replacen(&before, &format!("listen = \"0.0.0.0:{port}\""), 1));
        load(&directory.file(&text), &[]).expect("TLS is enough");
        let both = text.replacen("listen = ", "insecure = true\nlisten = ", 1);
        let error = load(&directory.file(&both), &[]).expect_err("both");
        assert!(
            directory.words(&error).ends_with(&format!("{table}.insecure: there is [tls]: take one of the two out"))
        );
    }
}

#[test]
fn with_certificates_no_token_is_needed_and_without_both_nothing_is_known() {
    for (base, key) in [(CONTROLLER, "agent_token"), (DATABASE, "token"), (PROXY, "token")] {
        let before = format!("{key} = \"file:@/agent\"\n");
        let table = if base == CONTROLLER { "authentication" } else { "agent" };
        let without = base.replacen(&before, "", 1);
        let directory = Directory::new();
        let error = load(&directory.file(&without), &[]).expect_err("neither");
        assert!(directory.words(&error).contains(&format!("{table}.{key}: missing: without [tls]")), "{error:?}");
        let (directory, text) = secured(&without);
        let error = load(&directory.file(&text), &[]).expect_err("plain HTTP, and nothing to show there");
        assert!(directory.words(&error).contains("use https://, or configure the token"), "{error:?}");
        load(&directory.file(&text.replace("http://", "https://")), &[]).expect("certificates are enough");
    }
}

#[test]
fn https_needs_somebody_to_believe() {
    let https = "https needs [tls], whose client_authorities say whose certificate is good there";
    refused(
        CONTROLLER,
        "agent = \"http://127.0.0.1:8001\"",
        "agent = \"https://127.0.0.1:8001\"",
        &format!("stormglass.toml:24:1: node[0].agent: {https}"),
    );
    refused(
        DATABASE,
        "[\"http://127.0.0.1:8432\"]",
        "[\"https://127.0.0.1:8432\"]",
        &format!("stormglass.toml:7:16: agent.controllers[0]: {https}"),
    );
}

#[test]
fn files_that_cannot_be_used_are_named() {
    for (file, content, expected) in [
        ("own.crt", None, "tls.certificate: read "),
        ("own.crt", Some("nonsense"), "own.crt holds no certificate in PEM"),
        ("own.key", Some("nonsense"), "own.key holds no private key in PEM"),
        ("authorities.crt", Some(""), "authorities.crt holds no certificate in PEM"),
    ] {
        let (directory, text) = secured(DATABASE);
        let path = directory.0.path().join(file);
        match content {
            Some(content) => std::fs::write(path, content).expect("written"),
            None => std::fs::remove_file(path).expect("removed"),
        }
        let error = load(&directory.file(&text), &[]).expect_err(expected);
        let words = directory.words(&error);
        assert!(words.starts_with("stormglass.toml:") && words.contains(expected), "{words}");
    }
    let (directory, text) = secured(DATABASE);
    let relative = text.replace(&format!("{}/own.key", directory.0.path().display()), "own.key");
    let error = load(&directory.file(&relative), &[]).expect_err("relative");
    assert!(directory.words(&error).contains("tls.key: \"own.key\" is relative"), "{error:?}");
}
