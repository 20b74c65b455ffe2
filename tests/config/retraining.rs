//! Retraining in `[predictor]` and in routes of alerts: what is accepted, and what is refused with its place.

use stormglass::config::load::load_controller_with;

use super::{CONTROLLER, Directory, load};

const PREDICTOR: &str = "\n[prometheus]\nurl = \"http://10.0.0.7:9090\"\n\n[predictor]\nretrain_schedule = \"0 3 * * sun\"\n\
                         retrain_time_zone = \"Europe/Berlin\"\nretrain_span = \"7d\"\n";
const ROUTE: &str = "\n[[webhook.route]]\nmatch = { alertname = \"Drift\" }\naction = \"retrain\"\n";

fn refused(text: &str) -> String {
    let directory = Directory::new();
    let path = directory.file(text);
    directory.words(&load(&path, &[]).expect_err("refused"))
}

#[test]
fn a_schedule_and_a_route_load() {
    let directory = Directory::new();
    let path = directory.file(&format!("{CONTROLLER}{PREDICTOR}{ROUTE}"));
    let settings = load_controller_with(&path, []).unwrap_or_else(|error| panic!("{}", directory.words(&error)));
    let predictor = settings.predictor.expect("there is one");
    assert_eq!(predictor.retrain_span.as_secs(), 7 * 86_400);
    assert!(!predictor.retrain_on_drift, "nothing is trained by itself unless somebody says so");
}

#[test]
fn mistakes_name_their_place_and_what_to_do() {
    for (from, to, key, problem) in [
        ("0 3 * * sun", "on sundays", "retrain_schedule", "is no cron expression such as"),
        ("Europe/Berlin", "Berlin/Europe", "retrain_time_zone", "is no time zone such as"),
        ("\"7d\"", "\"1h\"", "retrain_span", "must be 400 times predictor.step at least"),
        (
            "retrain_span",
            "retrain_memory_bytes = 1000\nretrain_span",
            "retrain_memory_bytes",
            "must be at least 268435456",
        ),
        ("retrain_span", "retrain_program = \"train\"\nretrain_span", "retrain_program", "is relative"),
        ("retrain_span", "model = \"lab-1s\"\nretrain_span", "model", "fixes which model scores (lab-1s)"),
        ("retrain_span", "retrain_time_limit = \"0s\"\nretrain_span", "retrain_time_limit", "must be more than 0s"),
    ] {
        assert!(PREDICTOR.contains(from), "{from}");
        let words = refused(&format!("{CONTROLLER}{}", PREDICTOR.replacen(from, to, 1)));
        assert!(words.contains(&format!("predictor.{key}: ")) && words.contains(problem), "{words}");
    }
    let words = refused(&format!("{CONTROLLER}{ROUTE}"));
    assert!(words.contains("webhook.route[0].action: retrain needs [predictor]"), "{words}");
}
