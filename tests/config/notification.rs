//! `[[notification]]`: what is accepted, and what is refused with its place.

use stormglass::config::load::load_controller_with;
use stormglass::domain::notification::NoticeKind;

use super::{CONTROLLER, Directory, load};

const MAIL: &str = "name = \"dba\"\nkind = \"email\"\non = [\"operation_failed\", \"risk\"]\noperations = [\"failover\"]\n\
                    server = { host = \"smtp.example.org\", port = 587 }\nfrom = \"stormglass@example.org\"\n\
                    to = [\"dba@example.org\"]\nuser = \"stormglass\"\npassword = \"file:@/operator\"";
const CHAT: &str = "name = \"chat\"\nkind = \"slack\"\non = [\"alert\"]\nurl = \"file:@/agent\"";

fn with(sections: &[&str]) -> String {
    let sections: Vec<String> = sections.iter().map(|section| format!("\n[[notification]]\n{section}\n")).collect();
    format!("{CONTROLLER}{}", sections.concat())
}

#[test]
fn channels_load_and_may_share_a_secret() {
    let directory = Directory::new();
    let path = directory.file(&with(&[MAIL, CHAT, &MAIL.replace("\"dba\"", "\"dba-2\"")]));
    let settings = load_controller_with(&path, []).unwrap_or_else(|error| panic!("{}", directory.words(&error)));
    let channel = settings.notifications[0].channel();
    assert_eq!(channel.name, "dba");
    assert!(channel.on.contains(&NoticeKind::Risk) && channel.operations.contains("failover"));
    assert_eq!(settings.notifications.len(), 3);
}

#[test]
fn mistakes_name_their_place_and_what_to_do() {
    for (section, from, to, key, problem) in [
        (MAIL, "\"dba\"", "\"DBA\"", "name", "\"DBA\" is not a valid name"),
        (MAIL, "\"risk\"", "\"riks\"", "on[1]", "unknown value `riks`: did you mean `risk`?"),
        (MAIL, "[\"operation_failed\", \"risk\"]", "[]", "on", "must name what is told"),
        (MAIL, "[\"failover\"]", "[\"fail-over\"]", "operations", "\"fail-over\" is no kind of operation"),
        (MAIL, "server = { host = \"smtp.example.org\", port = 587 }\n", "", "server", "missing: name the SMTP server"),
        (MAIL, "to = [\"dba@example.org\"]\n", "", "to", "missing: name at least one receiver"),
        (MAIL, "user = \"stormglass\"\n", "", "user", "needs password, and the other way round"),
        (MAIL, "user =", "tls = \"none\"\nuser =", "tls", "would send the password in the clear"),
        (MAIL, "user =", "link = \"stormglass\"\nuser =", "link", "is no base URL"),
        (MAIL, "file:@/operator", "hunter2", "password", "a secret must be a reference"),
        (CHAT, "url = \"file:@/agent\"", "", "url", "missing: where messages are posted"),
        (CHAT, "url =", "to = [\"dba@example.org\"]\nurl =", "to", "belongs to kind = \"email\""),
        (CHAT, "url =", "token = \"file:@/operator\"\nurl =", "token", "belongs to kind = \"json\""),
        (CHAT, "kind =", "kidn =", "kidn", "unknown key: did you mean `kind`?"),
    ] {
        assert!(section.contains(from), "{from}");
        let directory = Directory::new();
        let path = directory.file(&with(&[&section.replacen(from, to, 1)]));
        let words = directory.words(&load(&path, &[]).expect_err("refused"));
        assert!(words.contains(&format!("notification[0].{key}: ")) && words.contains(problem), "{words}");
        assert!(!words.contains("hunter2"), "{words}");
    }
    let directory = Directory::new();
    let words = directory.words(&load(&directory.file(&with(&[MAIL, MAIL])), &[]).expect_err("twice"));
    assert!(words.contains("notification[1].name: \"dba\" is notification[0] already"), "{words}");
}
