//! Documents to text: what people and pipes get, letter by letter.

use stormglass::cli::render::{Look, doctor, explain, lists, operation, plan, status};
use stormglass::domain::clock::WallTime;
use stormglass::domain::command::CommandOutput;
use stormglass::domain::incident::IncidentReport;
use stormglass::domain::lsn::Lsn;
use stormglass::domain::operation::{Operation, OperationKind, OperationStatus, StepName, StepState};
use stormglass::domain::plan::{Loss, Reason, ReasonCode};
use stormglass::domain::readiness::{Check, Readiness, Verdict};

use super::documents;

const TERMINAL: Look = Look { terminal: true, colour: false, verbose: false };
const PIPE: Look = Look { terminal: false, colour: false, verbose: false };

#[track_caller]
fn check_text(text: &str, expected: &str) {
    let expected = expected.strip_prefix('\n').expect("goldens begin on a line of their own");
    assert!(text == expected, "expected:\n{expected}\ngot:\n{text}");
}

#[test]
fn healthy() {
    check_text(
        &status::render(&documents::healthy(), TERMINAL),
        "
Cluster  orders   healthy   primary db1 (timeline 7, since 3d 4h)   automation on   RPO 0 (sync: db2)
NODE  SITE  ROLE     STATE      TLI  REPLAY LSN  LAG      SYNC    SEEN
db1   east  primary  writable     7  5/3A21F8C8  -        -       0.2s
db2   east  standby  streaming    7  5/3A21F8C8  0 B      quorum  0.2s
db3   west  standby  streaming    7  5/39FFE010  2.1 MiB  async   0.2s

PROXY       SITE  WRITES AT      LEAD TO        STATE
proxy-east  east  10.0.0.9:5000  10.0.0.1:5432  leads to the primary

Failover now: would promote db2 (0 B behind). db3: not eligible (2.1 MiB behind).
",
    );
}

#[test]
fn verbose_shows_what_the_timers_prove_and_cost() {
    let mut status = documents::healthy();
    status.timers.rules[0].holds = false;
    let text = status::render(&status, Look { verbose: true, ..TERMINAL });
    let from = text.find("Rule").expect("the rules are shown");
    let lines = text[from..].lines().take(2).map(|line| format!("{line}\n")).collect::<String>();
    check_text(
        &lines,
        "
Rule     kill_budget <= stop_budget: 300ms <= 800ms, holds
Outage   host lost: at most 3s 50ms
",
    );
    let painted = status::render(&status, Look { verbose: true, colour: true, ..TERMINAL });
    assert_ne!(
        painted.lines().find(|line| line.contains("kill_budget")),
        text.lines().find(|line| line.contains("kill_budget"))
    );
}

#[test]
fn degraded() {
    check_text(
        &status::render(&documents::degraded(), TERMINAL),
        "
Cluster  orders   degraded   primary db1 (timeline 7, since 3d 4h)   automation on   RPO not 0 (sync: no standby holds every commit)
Alone    commits have been confirmed by the primary alone for 1m 35s: losing it loses them
NODE  SITE  ROLE     STATE        TLI  REPLAY LSN  LAG      SYNC   SEEN
db1   east  primary  writable       7  5/3A21F8C8  -        -      0.2s
db2   east  ?        unreachable    ?  ?           ?        ?      1m 37s
db3   west  standby  streaming      7  5/39FFE010  2.1 MiB  async  0.2s

PROXY       SITE  WRITES AT      LEAD TO        STATE
proxy-east  east  10.0.0.9:5000  10.0.0.1:5432  leads to the primary

Failover now: would promote nobody: no candidate (nobody holds every confirmed commit). db3: not eligible (2.1 MiB behind).
Warning  db2 has not been heard of for 1m 37s. Next: stormglass explain db2
",
    );
}

#[test]
fn no_primary() {
    check_text(
        &status::render(&documents::no_primary(), TERMINAL),
        "
Cluster  orders   no primary   nobody accepts writes   automation on   RPO 0 (sync: db2)
NODE  SITE  ROLE     STATE      TLI  REPLAY LSN  LAG      SYNC    SEEN
db1   east  primary  stopped      7  5/3A21F8C8  ?        ?       0.2s
db2   east  standby  streaming    7  5/3A21F8C8  0 B      quorum  0.2s
db3   west  standby  streaming    7  5/39FFE010  2.1 MiB  async   0.2s

PROXY       SITE  WRITES AT      LEAD TO  STATE
proxy-east  east  10.0.0.9:5000  ?        leads nowhere

Failover now: would promote db2 (0 B behind). db3: not eligible (2.1 MiB behind).
Running  failover db1 -> db2 (running, at promote, for 0.0s, by automatic). Next: stormglass operation watch 019a-7c
",
    );
}

#[test]
fn unknown() {
    check_text(
        &status::render(&documents::unknown(), TERMINAL),
        "
Cluster  orders   unknown   primary unknown   automation on   RPO unknown
NODE  SITE  ROLE  STATE        TLI  REPLAY LSN  LAG  SYNC  SEEN
db1   east  ?     unreachable    ?  ?           ?    ?     never
Failover now: would promote nobody: db1: agent silent (never heard of).
",
    );
}

#[test]
fn paused() {
    let text = status::render(&documents::paused(), TERMINAL);
    check_text(
        &format!("{}\n", text.lines().next().expect("a line")),
        "
Cluster  orders   healthy   primary db1 (timeline 7, since 3d 4h)   automation paused for 49m, until 2026-11-21T04:01:09Z   RPO 0 (sync: db2)
",
    );
}

#[test]
fn piped() {
    check_text(
        &status::render(&documents::degraded(), PIPE),
        "
cluster	orders	degraded	db1	7	2026-11-17T23:12:09Z	on	sync	8	2026-11-21T03:12:09Z
node	db1	east	primary	writable	7	5/3A21F8C8	-	-	-	0.2
node	db2	east	?	unreachable	?	?	?	?	-	97
node	db3	west	standby	streaming	7	5/39FFE010	2202010	async	-	0.2
proxy	proxy-east	east	10.0.0.9:5000	10.0.0.1:5432	leads to the primary
failover	-	no candidate (nobody holds every confirmed commit)
warning	db2 has not been heard of for 1m 37s.	stormglass explain db2
",
    );
}

#[test]
fn explained() {
    check_text(
        &explain::render(&documents::explanation(), TERMINAL),
        "
Cluster  orders
Now      hold
Because  healthy
Blocked  paused (until 03:40)

If the primary were lost now:
RANK  NODE  PROMOTE  WHY
   1  db2   yes      holds every confirmed commit
                     most wal received (5/3A21F8C8)
   -  db3   no       not eligible (2.1 MiB behind)
",
    );
    check_text(
        &explain::node(&documents::explanation().nodes[0], TERMINAL),
        "
Node     db3: would not be promoted if the primary were lost now
Because  not eligible (2.1 MiB behind)
",
    );
}

#[test]
fn operations() {
    let ended = documents::failover(OperationStatus::Failed);
    check_text(
        &operation::render(&ended, TERMINAL),
        "
Operation  019a-7c
What       failover db1 -> db2 in orders, failed in 200 ms
By         automatic, at 2026-11-21T03:12:09Z
Epoch      8 -> 9
Because    db1: postgres down (killed by signal 9)
Left       epoch 9 was given to db2, which was promoted

      AT  STEP      TRY  STATE        TOOK  DETAIL
+0.005 s  fence       1  started         -  -
+0.036 s  fence       1  succeeded   31 ms  -
+0.040 s  promote     1  started         -  -
+0.160 s  promote     1  succeeded  120 ms  LSN 5/3A220000
+0.161 s  redirect    1  started         -  -
+0.200 s  redirect    1  failed      39 ms  proxy-east: no answer

PHASE        BEGAN    TOOK
decide    +0.000 s    4 ms
fence     +0.005 s   31 ms
promote   +0.040 s  120 ms
redirect  +0.161 s   39 ms
in total  +0.000 s  200 ms

What the witnesses said when it was decided:
      AT  WITNESS           SAID OF  WHAT
+0.004 s  agent db1         db1      reported 0.004 s ago: PostgreSQL is stopped
+0.004 s  wal receiver db2  db1      no WAL receiver runs

What proved that the old primary cannot write:
      AT  WITNESS     SAID OF  WHAT
+0.036 s  controller  db1      fence confirmed (epoch 8)
",
    );
    let begun = Operation { journal: ended.journal[..2].to_vec(), ..documents::failover(OperationStatus::Running) };
    check_text(
        &operation::explained(&begun, TERMINAL),
        "
Operation  019a-7c
What       failover db1 -> db2 in orders, running
By         automatic, at 2026-11-21T03:12:09Z
Epoch      8 -> 9
Because    db1: postgres down (killed by signal 9)

What the witnesses said when it was decided:
      AT  WITNESS           SAID OF  WHAT
+0.004 s  agent db1         db1      reported 0.004 s ago: PostgreSQL is stopped
+0.004 s  wal receiver db2  db1      no WAL receiver runs

What proved that the old primary cannot write:
      AT  WITNESS     SAID OF  WHAT
+0.036 s  controller  db1      fence confirmed (epoch 8)

What was done:
      AT  STEP   TRY  STATE       TOOK  DETAIL
+0.005 s  fence    1  started        -  -
+0.036 s  fence    1  succeeded  31 ms  -
",
    );
    check_text(
        &lists::operations(&[ended], TERMINAL),
        "
BEGAN                 OPERATION            OUTCOME    TOOK  EPOCH  BY         ID
2026-11-21T03:12:09Z  failover db1 -> db2  failed   200 ms      9  automatic  019a-7c
",
    );
}

#[test]
fn a_doctor_says_what_to_run_next() {
    let check = |check: &str, subject: Option<&str>, verdict, detail: &str, next: Option<&str>| Check {
        check: check.to_owned(),
        subject: subject.map(str::to_owned),
        verdict,
        detail: detail.to_owned(),
        next: next.map(str::to_owned),
    };
    let found = Readiness::new(
        "orders",
        vec![
            check("primary", Some("db1"), Verdict::Ok, "db1 accepts writes in epoch 8", None),
            check("sync_ledger", None, Verdict::Failing, "nobody confirms", Some("stormglass explain orders")),
            check("backup", None, Verdict::Warning, "not configured", None),
            check("dns", None, Verdict::NotApplicable, "no name", None),
        ],
        documents::NOW,
    );
    check_text(
        &doctor::render(&found, TERMINAL),
        "
Cluster    orders
Readiness  50 %: the next fault may not be survived

CHECK        OF   VERDICT  FOUND
primary      db1  OK       db1 accepts writes in epoch 8
sync ledger  -    failing  nobody confirms
backup       -    warning  not configured

Next       stormglass explain orders
",
    );
    let piped = doctor::render(&found, PIPE);
    assert_eq!(piped.lines().count(), 4);
    assert!(piped.contains("sync_ledger\t-\tfailing\tnobody confirms\tstormglass explain orders\n"), "{piped}");
}

#[test]
fn an_incident_is_told_in_markdown() {
    let mut failover = documents::failover(OperationStatus::Succeeded);
    let holds = Reason::about(&documents::node("db2"), ReasonCode::HoldsEveryConfirmedCommit, "epoch 8");
    failover.reasons.push(holds);
    (failover.risks.before_per_mille, failover.risks.after_per_mille) = (Some(724), Some(20));
    let mut rejoin = Operation {
        kind: OperationKind::Rejoin { node: documents::node("db1"), reclone: false },
        epoch_before: stormglass::domain::epoch::Epoch(9),
        epoch_after: None,
        message: Some("db1 streams from db2".to_owned()),
        journal: Vec::new(),
        evidence: Vec::new(),
        risks: Default::default(),
        ..failover.clone()
    };
    rejoin.id.0 = "019a-7d".to_owned();
    let report = IncidentReport::of(&failover, &[rejoin, failover.clone()]);
    assert_eq!((report.lost_bytes, report.rto_seconds, report.redundancy_seconds), (Some(0), Some(0.2), Some(0.2)));
    assert_eq!((report.risk_before, report.risk_after), (Some(0.724), Some(0.02)));
    check_text(
        &report.to_markdown(),
        "
# Incident: failover from db1 to db2 in orders

|  |  |
|---|---|
| operation | `019a-7c` |
| outcome | succeeded |
| begun by | automatic |
| began | 2026-11-21T03:12:09Z |
| ended | 2026-11-21T03:12:09.2Z |
| epoch | 8 → 9 |
| time without writes (RTO) | 0.200 s |
| data lost (RPO) | 0 bytes: db2 held every confirmed commit when it was chosen |
| until redundant again | 0.200 s |
| risk before | 72 % |
| risk after | 2 % |

## Why

- db1: postgres down (killed by signal 9)
- db2: holds every confirmed commit (epoch 8)

## Where the time went

| phase | began | took |
|---|---|---|
| detect_to_decide | +0.000 s | 0.004 s |
| fence | +0.005 s | 0.031 s |
| promote | +0.040 s | 0.120 s |
| redirect | +0.161 s | 0.039 s |

## What the witnesses said

| when | occasion | witness | about | statement |
|---|---|---|---|---|
| 2026-11-21T03:12:09Z | decided | agent db1 | db1 | reported 0.004 s ago: PostgreSQL is stopped |
| 2026-11-21T03:12:09Z | decided | wal receiver db2 | db1 | no WAL receiver runs |
| 2026-11-21T03:12:09Z | fenced | controller controller | db1 | fence confirmed (epoch 8) |

## What was done

| at | step | state | took | detail |
|---|---|---|---|---|
| +0.005 s | fence | started | - | - |
| +0.036 s | fence | succeeded | 0.031 s | - |
| +0.040 s | promote | started | - | - |
| +0.160 s | promote | succeeded | 0.120 s | LSN 5/3A220000 |
| +0.161 s | redirect | started | - | - |
| +0.200 s | redirect | failed | 0.039 s | proxy-east: no answer |

## What followed

| operation | outcome | took | detail |
|---|---|---|---|
| rejoin of db1 | succeeded | 0.200 s | db1 streams from db2 |
",
    );
}

#[test]
fn a_loss_that_nobody_measured_is_not_called_none() {
    let unknown = documents::failover(OperationStatus::Succeeded);
    let report = IncidentReport::of(&unknown, &[]);
    assert_eq!(report.lost_bytes, None);
    assert!(report.to_markdown().contains("| data lost (RPO) | not known: nothing says that db2"), "{}", report.loss);
    let mut accepted = documents::failover(OperationStatus::Succeeded);
    let to = documents::node("db2");
    accepted.reasons.push(Reason::about(&to, ReasonCode::WouldLoseCommits, "1048576 bytes of WAL"));
    assert_eq!(IncidentReport::of(&accepted, &[]).loss, "1048576 bytes of WAL");
}

#[test]
fn an_accepted_loss_is_told_as_foreseen_and_counted_once_the_old_primary_is_back() {
    let time = |text: &str| WallTime::try_from(text.to_owned()).expect("a time");
    let kept = time("2026-11-21T03:12:07.25Z");
    let mut failover = documents::failover(OperationStatus::Succeeded);
    let OperationKind::Failover { accept_data_loss, .. } = &mut failover.kind else { panic!("a failover") };
    *accept_data_loss = true;
    failover.loss = Some(Loss {
        node: documents::node("db2"),
        missing_bytes: Some(1_048_576),
        flush_lsn: Lsn(0x100_0000),
        last_commit_at: Some(kept),
        primary: documents::node("db1"),
        primary_flush_lsn: Some(Lsn(0x110_0000)),
        primary_seen_at: None,
        holds_every_confirmed_commit: false,
    });
    let report = IncidentReport::of(&failover, std::slice::from_ref(&failover));
    assert_eq!((report.lost_bytes, report.last_commit_kept), (Some(1_048_576), Some(kept)));
    assert_eq!(report.last_commit_lost, None, "nobody knows yet");
    let text = report.to_markdown();
    assert!(
        text.contains("| data lost (RPO) | 1048576 bytes: 1048576 bytes of WAL, and what the primary wrote"),
        "{text}"
    );
    assert!(text.contains("| last commit kept | 2026-11-21T03:12:07.25Z |"), "{text}");

    let came_back = |note: &str| {
        let mut rejoin = Operation {
            kind: OperationKind::Rejoin { node: documents::node("db1"), reclone: false },
            epoch_before: stormglass::domain::epoch::Epoch(9),
            epoch_after: None,
            loss: None,
            ..failover.clone()
        };
        rejoin.id.0 = "019a-7d".to_owned();
        let mut event = rejoin.journal[0].clone();
        let output = CommandOutput { lsn: None, note: Some(note.to_owned()) };
        (event.step, event.state) = (StepName::Rewind, StepState::Succeeded { output });
        rejoin.journal = vec![event];
        IncidentReport::of(&failover, &[failover.clone(), rejoin])
    };
    let lost = time("2026-11-21T03:12:08.5Z");
    let words = "rewound; divergent WAL from 0/1000000 is kept in /aside; it held 2 commits; \
                 lost: 1049600 bytes of WAL, last commit of 2026-11-21T03:12:08.5Z";
    let report = came_back(words);
    assert_eq!((report.lost_bytes, report.last_commit_lost), (Some(1_049_600), Some(lost)));
    assert_eq!(report.last_commit_kept, Some(kept));
    assert!(report.loss.contains("db1 came back: rewound"), "{}", report.loss);
    assert_eq!(came_back("in_place").lost_bytes, Some(0), "it had written nothing that db2 lacks");
    let recloned = came_back("recloned from db2");
    assert_eq!(recloned.lost_bytes, Some(1_048_576), "its data were gone: as foreseen");
}

#[test]
fn colour_adds_nothing_but_colour() {
    let painted = status::render(&documents::degraded(), Look { colour: true, ..TERMINAL });
    let mut plain = String::new();
    let mut rest = painted.as_str();
    while let Some((before, after)) = rest.split_once('\x1b') {
        plain.push_str(before);
        rest = after.split_once('m').expect("an escape ends").1;
    }
    plain.push_str(rest);
    assert_ne!(painted, plain);
    assert_eq!(plain, status::render(&documents::degraded(), TERMINAL));
}

#[test]
fn what_is_lost_is_said_first() {
    check_text(
        &plan::render(&documents::lossy(), &["confirmed commits are lost for good".to_owned()], TERMINAL),
        "
Loses    1048576 bytes of WAL, and what the primary wrote after it was last heard: db3 has received up to 0/4F00000, and its last commit is of 2026-11-21T03:12:07Z; db1 had flushed up to 0/5000000 at 2026-11-21T03:12:09Z
Plan     failover db1 -> db3
Because  operator request
Risk     confirmed commits are lost for good
",
    );
}
