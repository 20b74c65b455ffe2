//! Steps of sequences with the real programs: processes, HTTP, PostgreSQL, Terraform and Ansible. Velero alone is a stand-in that
//! records how it was called.
//!
//! What is not installed here is skipped with a message.

#[expect(dead_code, reason = "other tests need more of it")]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stormglass::adapters::steps::HostSteps;
use stormglass::domain::sequence::{OnError, SequenceStep, StepAction, StepRun, outputs_of};
use stormglass::ports::steps::{StepError, StepRunner as _};

const SECRET: &str = "correct horse battery staple";

fn steps() -> HostSteps {
    let inherited = ["PATH", "HOME", "LANG"].into_iter().filter_map(|name| {
        let (_, value) = std::env::vars().find(|(key, _)| key == name)?;
        Some((name.to_owned(), value))
    });
    let resolve = |reference: &str| match reference {
        "env:SECRET" => Ok(SECRET.to_owned()),
        other => Err(format!("{other} is not set")),
    };
    HostSteps::new(Arc::new(resolve), inherited.collect())
}

fn run_of(action: StepAction) -> StepRun {
    let texts = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    StepRun {
        sequence: "restore".to_owned(),
        step: SequenceStep {
            name: "one".to_owned(),
            action,
            timeout_seconds: 60,
            retries: 0,
            on_error: OnError::Stop,
            condition: None,
        },
        key: "op/one/3".to_owned(),
        operation: "op".to_owned(),
        attempt: 1,
        variables: texts(&[("cluster", "main"), ("epoch", "3"), ("old_primary", "n1"), ("new_primary", "n2")]),
        outcomes: texts(&[("zero", "failed")]),
        outputs: [("zero".to_owned(), texts(&[("node", "n4")]))].into(),
    }
}

fn command(words: &[&str]) -> StepAction {
    StepAction::Command {
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        environment: [("TOKEN".to_owned(), "env:SECRET".to_owned())].into(),
        directory: None,
    }
}

async fn said(action: StepAction) -> String {
    steps().run(&run_of(action)).await.expect("it succeeds")
}

async fn failure(run: StepRun) -> String {
    match steps().run(&run).await {
        Err(StepError::Failed(text)) => text,
        other => panic!("it must fail: {other:?}"),
    }
}

fn is_missing(program: &str) -> bool {
    let found = std::process::Command::new(program).arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: {program} is not installed here");
    }
    !found
}

fn program(directory: &Path, name: &str, script: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, script).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    path
}

#[tokio::test]
async fn a_command_knows_its_key_and_never_shows_a_secret() {
    let script = "echo key $STORMGLASS_IDEMPOTENCY_KEY of $STORMGLASS_NEW_PRIMARY; echo token $TOKEN; env | grep -c AGENT_TOKEN; true";
    let text = said(command(&["sh", "-c", script])).await;
    assert!(text.contains("key op/one/3 of n2"), "{text}");
    assert!(text.contains("token [secret]") && !text.contains(SECRET), "{text}");
    let text = said(command(&["echo", "{{ old_primary }} {{ outputs.zero.node }}"])).await;
    assert_eq!(text, "n1 n4");
}

#[tokio::test]
async fn a_command_that_ends_badly_says_how() {
    let text = failure(run_of(command(&["sh", "-c", "echo half done; echo no space left >&2; exit 3"]))).await;
    assert!(text.contains("ended with 3: no space left") && text.contains("half done"), "{text}");
    let text = failure(run_of(command(&["/nonexistent/program"]))).await;
    assert!(text.contains("is it installed on this host"), "{text}");
    let text = failure(run_of(command(&["echo", "{{ new_primry }}"]))).await;
    assert!(text.contains("new_primry"), "{text}");
}

#[tokio::test]
async fn a_step_that_hangs_is_killed_with_all_that_it_started() {
    let directory = tempfile::tempdir().expect("directory");
    let pid = directory.path().join("pid");
    let script = format!("sleep 600 & echo $! > {}; wait", pid.display());
    let mut run = run_of(command(&["sh", "-c", &script]));
    run.step.timeout_seconds = 1;
    let text = failure(run).await;
    assert!(text.contains("did not end within 1 s"), "{text}");
    let child = fs::read_to_string(&pid).expect("it began");
    let stat = format!("/proc/{}/stat", child.trim());
    // The signal is sent, and the kernel carries it out when the child has its next turn.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let state = fs::read_to_string(&stat).unwrap_or_default();
        if state.is_empty() || state.contains(") Z ") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the child lives on: {state}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_condition_decides() {
    let mut run = run_of(command(&["echo", "done"]));
    run.step.condition = Some("outcomes.zero == 'failed' and cluster == 'main'".to_owned());
    assert_eq!(steps().run(&run).await.expect("judged"), "done");
    run.step.condition = Some("outcomes.zero == 'succeeded'".to_owned());
    assert!(steps().run(&run).await.expect("judged").starts_with("passed over"));
    run.step.condition = Some("outcomes.zero ==".to_owned());
    assert!(failure(run).await.contains("cannot be judged"));
}

#[tokio::test]
async fn a_dry_run_shows_what_would_be_done_without_secrets() {
    let run = run_of(StepAction::Http {
        method: "post".to_owned(),
        url: "http://jenkins/job/{{ cluster }}".to_owned(),
        headers: [("authorization".to_owned(), "env:SECRET".to_owned())].into(),
        body: Some("{{ outputs.later.node }}".to_owned()),
        expect: Vec::new(),
    });
    let text = steps().preview(&run).expect("shown");
    assert_eq!(text, "one: http POST http://jenkins/job/main, body ");
}

#[tokio::test]
async fn a_request_carries_key_and_secret_and_its_status_counts() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let shared = seen.clone();
    let router =
        axum::Router::new().fallback(move |uri: axum::http::Uri, headers: axum::http::HeaderMap, body: String| {
            let text =
                |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
            shared.lock().expect("no panic").push((text("idempotency-key"), text("authorization"), body));
            let status = if uri.path() == "/full" { 503 } else { 201 };
            async move { (axum::http::StatusCode::from_u16(status).expect("a status"), "queued") }
        });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let base = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let call = |path: &str, expect: Vec<u16>| StepAction::Http {
        method: "POST".to_owned(),
        url: format!("{base}{path}"),
        headers: [("authorization".to_owned(), "env:SECRET".to_owned())].into(),
        body: Some("primary={{ new_primary }}".to_owned()),
        expect,
    };
    assert_eq!(said(call("/job", Vec::new())).await, "201 Created\nqueued");
    let expected = ("op/one/3".to_owned(), SECRET.to_owned(), "primary=n2".to_owned());
    assert_eq!(seen.lock().expect("no panic")[0], expected);
    assert!(failure(run_of(call("/full", Vec::new()))).await.contains("answered with 503"));
    assert!(failure(run_of(call("/job", vec![200]))).await.contains("answered with 201"));
}

#[tokio::test]
async fn statements_reach_the_primary_and_errors_are_postgresqls_own() {
    let place = support::Place::new();
    let node = place.node("n1");
    node.init_primary().await;
    let address = node.settings.address.clone();
    let sql = |statement: &str| StepAction::Sql {
        host: Some(address.host.clone()),
        port: Some(address.port.to_string()),
        user: "postgres".to_owned(),
        password: None,
        database: "postgres".to_owned(),
        statement: statement.to_owned(),
    };
    let text =
        said(sql("create table moved (epoch int); insert into moved values ({{ epoch }}); select * from moved")).await;
    assert!(text.lines().any(|line| line == "3"), "{text}");
    assert!(failure(run_of(sql("select * from nothing"))).await.contains("42P01"));
    let mut slow = run_of(sql("select pg_sleep(600)"));
    slow.step.timeout_seconds = 1;
    let late = steps().run(&slow).await.expect_err("too slow");
    assert!(late.to_string().contains("canceling statement") || late.to_string().contains("no answer"), "{late}");
}

fn terraform(directory: &Path) -> StepAction {
    StepAction::Terraform {
        directory: directory.display().to_string(),
        variables: [
            ("node".to_owned(), "{{ old_primary }}".to_owned()),
            ("password".to_owned(), "env:SECRET".to_owned()),
        ]
        .into(),
        environment: BTreeMap::new(),
        program: None,
    }
}

const STACK: &str = r#"
terraform { required_version = ">= 1.4" }
variable "node" { type = string }
variable "password" {
  type      = string
  sensitive = true
}
variable "pause" {
  type    = number
  default = 0
}
resource "terraform_data" "host" {
  input = var.node
  provisioner "local-exec" { command = "echo host ${self.input} >> ${path.module}/made.txt; sleep ${var.pause}" }
}
output "node" { value = terraform_data.host.output }
output "password" {
  value     = var.password
  sensitive = true
}
"#;

#[tokio::test]
async fn terraform_applies_its_own_plan_once_and_gives_outputs() {
    if is_missing("terraform") {
        return;
    }
    let stack = tempfile::tempdir().expect("directory");
    fs::write(stack.path().join("main.tf"), STACK).expect("written");
    let text = said(terraform(stack.path())).await;
    let outputs = outputs_of(&text);
    assert_eq!(outputs.get("node").map(String::as_str), Some("n1"), "{text}");
    assert!(!outputs.contains_key("password") && !text.contains(SECRET), "{text}");
    assert!(text.contains("1 to add"), "{text}");
    let again = said(terraform(stack.path())).await;
    assert!(again.starts_with("nothing to change"), "{again}");
    assert_eq!(fs::read_to_string(stack.path().join("made.txt")).expect("made"), "host n1\n", "made once");
}

#[tokio::test]
async fn terraform_stops_where_it_fails_and_says_what_to_do() {
    if is_missing("terraform") {
        return;
    }
    let stack = tempfile::tempdir().expect("directory");
    fs::write(stack.path().join("main.tf"), STACK.replace("echo host", "exit 7; echo host")).expect("written");
    let text = failure(run_of(terraform(stack.path()))).await;
    assert!(text.starts_with("terraform apply in ") && text.contains("next: terraform -chdir="), "{text}");
    fs::write(stack.path().join("main.tf"), "resource {").expect("written");
    assert!(failure(run_of(terraform(stack.path()))).await.starts_with("terraform init in "));
}

#[tokio::test]
async fn a_locked_state_is_told_from_other_failures() {
    if is_missing("terraform") {
        return;
    }
    let stack = tempfile::tempdir().expect("directory");
    fs::write(stack.path().join("main.tf"), STACK).expect("written");
    let first = terraform(stack.path());
    let StepAction::Terraform { mut variables, directory, environment, program } = first else {
        unreachable!("made above")
    };
    variables.insert("pause".to_owned(), "20".to_owned());
    let slow = StepAction::Terraform { variables, directory, environment, program };
    let holder = tokio::spawn(async move { steps().run(&run_of(slow)).await });
    let began = stack.path().join("made.txt");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !began.exists() {
        assert!(tokio::time::Instant::now() < deadline, "the first apply never began");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let text = failure(run_of(terraform(stack.path()))).await;
    assert!(text.contains("the state is locked by somebody else") && text.contains("force-unlock"), "{text}");
    holder.abort();
}

#[tokio::test]
async fn ansible_runs_a_real_playbook_with_what_the_step_knows() {
    if is_missing("ansible-playbook") {
        return;
    }
    let directory = tempfile::tempdir().expect("directory");
    let playbook = directory.path().join("lifecycle.yml");
    let text = "- hosts: localhost\n  connection: local\n  gather_facts: false\n  tasks:\n    - name: Tell what moved\n      \
                ansible.builtin.debug:\n        msg: \"from {{ stormglass_old_primary }} size {{ size }}\"\n    - name: Keep the secret\n      \
                ansible.builtin.command: echo {{ password }}\n";
    fs::write(&playbook, text).expect("written");
    let ansible = |size: &str| StepAction::Ansible {
        playbook: playbook.display().to_string(),
        inventory: None,
        variables: [("size".to_owned(), size.to_owned()), ("password".to_owned(), "env:SECRET".to_owned())].into(),
        environment: [("ANSIBLE_STDOUT_CALLBACK".to_owned(), "default".to_owned())].into(),
        program: None,
    };
    // A template of Ansible stays Ansible's: only the step's own texts are filled in here.
    let text = said(ansible("{{ epoch }}0")).await;
    assert!(text.contains("from n1 size 30") && !text.contains(SECRET), "{text}");
    fs::write(&playbook, "- hosts: localhost\n  connection: local\n  gather_facts: false\n  tasks:\n    - ansible.builtin.fail:\n        msg: disk too small\n").expect("written");
    let text = failure(run_of(ansible("1"))).await;
    assert!(text.contains("ended with 2") && text.contains("disk too small"), "{text}");
}

#[tokio::test]
async fn velero_is_called_as_its_command_line_wants() {
    let directory = tempfile::tempdir().expect("directory");
    let calls = directory.path().join("calls");
    let script =
        format!("#!/bin/sh\necho \"$@\" >> {}\necho Restore completed with status: Completed\n", calls.display());
    let stand_in = program(directory.path(), "velero-stand-in", &script);
    let velero = StepAction::Velero {
        backup: Some("daily-{{ cluster }}".to_owned()),
        schedule: None,
        arguments: vec!["--include-namespaces".to_owned(), "shop".to_owned()],
        environment: BTreeMap::new(),
        program: Some(stand_in.display().to_string()),
    };
    assert!(said(velero.clone()).await.contains("Completed"));
    let called = fs::read_to_string(&calls).expect("called");
    assert_eq!(called, "restore create stormglass-one-op --from-backup daily-main --wait --include-namespaces shop\n");
    // An attempt that nobody heard the end of has created it already.
    program(
        directory.path(),
        "velero-stand-in",
        "#!/bin/sh\necho 'error: restores \"x\" already exists' >&2; exit 1\n",
    );
    assert!(said(velero).await.starts_with("begun by an earlier attempt"));
}

#[tokio::test]
async fn an_application_host_gets_its_file_whole_and_then_a_restart() {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("app.env");
    fs::write(&file, "DATABASE_HOST=old\n").expect("written");
    let change = |through: Vec<String>| StepAction::Application {
        file: file.display().to_string(),
        values: [("DATABASE_HOST".to_owned(), "{{ new_primary }}.example".to_owned())].into(),
        restart: vec!["cat".to_owned(), file.display().to_string()],
        through,
    };
    for through in [Vec::new(), vec!["sh".to_owned(), "-c".to_owned(), "eval \"$*\"".to_owned(), "remote".to_owned()]] {
        let text = said(change(through)).await;
        assert!(text.contains("DATABASE_HOST=n2.example"), "{text}");
        assert!(!fs::read_to_string(&file).expect("there").contains("old"));
    }
}

/// Rows of the table of the doctor's check `stacks`: nothing to do, something to do, and why it cannot be told.
#[tokio::test]
async fn a_stack_that_differs_from_what_is_there_is_found_and_left_as_it_is() {
    if is_missing("terraform") {
        return;
    }
    let home = tempfile::tempdir().expect("a temporary directory");
    let stack = home.path().join("stack");
    std::fs::create_dir(&stack).expect("made");
    let describe = |word: &str| {
        let text = format!("resource \"terraform_data\" \"it\" {{ input = \"{word}\" }}\n");
        std::fs::write(stack.join("main.tf"), text).expect("written");
    };
    let (directory, patience) = (stack.display().to_string(), Duration::from_secs(120));
    let differs = async || steps().drifts(&directory, "terraform", patience).await;
    describe("one");
    assert_eq!(differs().await, Ok(true), "nothing was ever applied");
    let run = run_of(StepAction::Terraform {
        directory: directory.clone(),
        variables: Default::default(),
        environment: Default::default(),
        program: None,
    });
    steps().run(&run).await.expect("applied");
    assert_eq!(differs().await, Ok(false));
    describe("two");
    let state = std::fs::read(stack.join("terraform.tfstate")).expect("a state");
    assert_eq!(differs().await, Ok(true));
    assert_eq!(std::fs::read(stack.join("terraform.tfstate")).expect("a state"), state, "it was only looked at");
    std::fs::write(stack.join("main.tf"), "resource {").expect("written");
    let why = differs().await.expect_err("no stack");
    assert!(why.starts_with("terraform init: ") || why.starts_with("terraform plan: "), "{why}");
    let nowhere = steps().drifts("/nonexistent", "terraform", patience).await.expect_err("no such directory");
    assert!(nowhere.contains("start terraform"), "{nowhere}");
}

/// Our playbook of the examples keeps the rules that its readers' own are held to.
#[test]
fn the_playbook_of_the_examples_passes_ansible_lint() {
    let home = std::env::var_os("HOME").map(std::path::PathBuf::from).unwrap_or_default();
    let own = home.join(".cache/stormglass/ansible-lint/bin");
    let beside = std::env::var_os("PATH").unwrap_or_default();
    let path =
        std::env::join_paths(std::iter::once(own.clone()).chain(std::env::split_paths(&beside))).expect("a path");
    let work = tempfile::tempdir().expect("directory");
    let run = std::process::Command::new(if own.exists() { own.join("ansible-lint") } else { "ansible-lint".into() })
        .args(["--offline", "--strict", "--profile", "production", "--nocolor", "-q"])
        .arg(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/sequences/lifecycle.yml"))
        // It looks for the programs of Ansible beside itself.
        .env("PATH", path)
        .env("ANSIBLE_HOME", work.path())
        .current_dir(work.path())
        .output();
    let Ok(output) = run else {
        eprintln!("skipped: ansible-lint is not installed here; scripts/setup installs it");
        return;
    };
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
}
