//! The restore sequence of the scenario `rejoin-ladder`: wait for the old host, else provision a replacement with Terraform, then
//! redundancy, a backup, a write through the clients' path, and a look at the data.
//!
//! Only configuration and files; what is broken is in `scenario`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;

use super::layout::{APPLICATION_ROLE, DATABASE, Layout};
use crate::config::sequence::{SequenceBegin, SequenceSection, StepKind, StepSection};
use crate::domain::sequence::OnError;

/// Name of the sequence.
pub const SEQUENCE: &str = "restore";
/// The step that provisions.
pub const PROVISION: &str = "provision";
/// The stack, as it is in `terraform/lab`.
const STACK: &str = include_str!("../../terraform/lab/main.tf");
/// An agent that comes back does so in less.
const PATIENCE: Duration = Duration::from_secs(12);

/// Where the stack is.
fn stack(layout: &Layout) -> PathBuf {
    layout.directory.join("terraform")
}

/// Where the configuration of every agent is kept.
fn images(layout: &Layout) -> PathBuf {
    layout.directory.join("images")
}

fn step(name: &str, kind: StepKind, timeout: Duration) -> StepSection {
    let text = format!("name = {name:?}\nkind = \"verify\"\n");
    let empty: StepSection = toml::from_str(&text).expect("the text is constant but for the name");
    StepSection { kind, timeout, ..empty }
}

/// What follows each failover.
pub fn sequence(layout: &Layout) -> SequenceSection {
    let seconds = Duration::from_secs;
    let text = |path: PathBuf| path.display().to_string();
    let variables: BTreeMap<String, String> = [
        ("node", "{{ old_primary }}".to_owned()),
        ("epoch", "{{ epoch }}".to_owned()),
        ("program", text(layout.program())),
        ("directory", text(layout.directory.clone())),
        ("images", text(images(layout))),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let wait = StepSection { on_error: OnError::Continue, ..step("old-host", StepKind::Rejoin, PATIENCE) };
    let provision = StepSection {
        directory: Some(text(stack(layout))),
        variables,
        condition: Some("outcomes['old-host'] == 'failed'".to_owned()),
        ..step(PROVISION, StepKind::Terraform, seconds(60))
    };
    let look = StepSection {
        user: Some(APPLICATION_ROLE.to_owned()),
        database: Some(DATABASE.to_owned()),
        statement: Some("select count(*) from pg_stat_user_tables".to_owned()),
        ..step("data", StepKind::Sql, seconds(20))
    };
    SequenceSection {
        name: SEQUENCE.to_owned(),
        when: Some(SequenceBegin::AfterFailover),
        alerts: Vec::new(),
        risk_min: None,
        steps: vec![
            wait,
            provision,
            step("redundancy", StepKind::Redundancy, seconds(90)),
            step("backup", StepKind::Backup, seconds(90)),
            step("verify", StepKind::Verify, seconds(20)),
            look,
        ],
    }
}

/// Writes the stack and keeps every agent's configuration where a replacement finds it.
pub fn prepare(layout: &Layout) -> anyhow::Result<()> {
    for directory in [stack(layout), images(layout)] {
        fs::create_dir_all(&directory).with_context(|| format!("make the directory {}", directory.display()))?;
    }
    fs::write(stack(layout).join("main.tf"), STACK).context("write the stack")?;
    for node in &layout.nodes {
        let image = images(layout).join(format!("{}.toml", node.name));
        fs::copy(node.agent_config(), &image).with_context(|| format!("keep {}", image.display()))?;
    }
    Ok(())
}
