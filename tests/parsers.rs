//! Everything that reads what a network or a user sent, fed hard cases, arbitrary bytes and damaged good examples: it never panics, ends
//! soon, and what it refuses it refuses in words of bounded length that say what is wrong and where.
//!
//! What is held is in `parsers/targets.rs`; good examples are in `fuzz/seeds`. The fuzzers in `fuzz/` begin with the same and go on for
//! as long as they are let. CSV is read by the trainer alone: `training/tests.rs` has its part.

#[path = "parsers/targets.rs"]
mod targets;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use rustix::time::{ClockId, clock_gettime};

/// Processor time of one input, unoptimised: a parser that needs longer could be kept busy by whoever sends it again and again.
const TIME_MAX: Duration = Duration::from_secs(10);
/// Deeper than any parser that calls itself could go on the stack of a thread.
const DEPTH: usize = 200_000;
/// More than any body that is accepted.
const HUGE: usize = 2 << 20;

/// What happens to good bytes on their way.
#[derive(Debug, Clone)]
enum Damage {
    Overwrite(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
    CutOff(Index),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let end = |at: usize, length: usize| (at + length).min(bytes.len());
        match self {
            Damage::Overwrite(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Damage::Insert(at, piece) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, piece.iter().copied());
            }
            Damage::Remove(at, length) => {
                let at = at.index(bytes.len());
                drop(bytes.drain(at..end(at, *length)));
            }
            Damage::Repeat(at, length) => {
                let at = at.index(bytes.len());
                let piece = bytes[at..end(at, *length)].to_vec();
                bytes.splice(at..at, piece);
            }
            Damage::CutOff(at) => bytes.truncate(at.index(bytes.len())),
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let telling = prop_oneof![
        Just(b"\"".to_vec()),
        Just(b"{".to_vec()),
        Just(b"[".repeat(200)),
        Just(b"-99999999999999999999".to_vec()),
        Just(b"1e999".to_vec()),
        Just(b"\\u0000".to_vec()),
        Just(b"\xff\xfe".to_vec()),
        Just("ü\u{202e}".as_bytes().to_vec()),
        Just(b"x".repeat(10_000)),
        proptest::collection::vec(any::<u8>(), 1..8),
    ];
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Overwrite(at, byte)),
        (any::<Index>(), telling).prop_map(|(at, piece)| Damage::Insert(at, piece)),
        (any::<Index>(), 1..40_usize).prop_map(|(at, length)| Damage::Remove(at, length)),
        (any::<Index>(), 1..200_usize).prop_map(|(at, length)| Damage::Repeat(at, length)),
        any::<Index>().prop_map(Damage::CutOff),
    ]
}

/// Good examples of a target; what the repository ships is linked from there.
fn examples(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{target} has no example: put one into {}", directory.display());
    paths.iter().map(|path| fs::read(path).expect("readable")).collect()
}

/// Damaged examples, and now and then anything at all.
fn bytes(examples: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let damaged = (proptest::sample::select(examples), proptest::collection::vec(damage(), 0..5)).prop_map(
        |(mut bytes, damages)| {
            damages.iter().for_each(|damage| damage.apply(&mut bytes));
            bytes
        },
    );
    prop_oneof![4 => damaged, 1 => proptest::collection::vec(any::<u8>(), 0..512)]
}

/// What breaks parsers that were written without it in mind.
fn hard_cases(example: &[u8]) -> Vec<Vec<u8>> {
    let text = String::from_utf8_lossy(example);
    let wide = |to_bytes: fn(u16) -> [u8; 2], mark: [u8; 2]| {
        mark.into_iter().chain(text.encode_utf16().flat_map(to_bytes)).collect::<Vec<u8>>()
    };
    // A value in the place of the first one that there is.
    let with_value = |value: &str| match text.split_once(['=', ':']) {
        Some((before, after)) => {
            let end = after.find([',', '\n', '}']).unwrap_or(after.len());
            format!("{before}{}{value}{}", &text[before.len()..=before.len()], &after[end..]).into_bytes()
        }
        None => value.as_bytes().to_vec(),
    };
    let mut cases = vec![
        Vec::new(),
        b"\0".repeat(64),
        b"\n".repeat(HUGE),
        b"[".repeat(DEPTH),
        b"{\"a\":".repeat(DEPTH),
        [b"[".repeat(DEPTH), b"]".repeat(DEPTH)].concat(),
        with_value(&format!("{}{}", "[".repeat(DEPTH), "]".repeat(DEPTH))),
        with_value(&format!("\"{}\"", "x".repeat(HUGE))),
        with_value(&"9".repeat(10_000)),
        with_value("1e999999999"),
        with_value("-0"),
        with_value("\"\\ud800\""),
        with_value("\"\\u0000\\u202e\""),
        with_value("null"),
        wide(u16::to_le_bytes, [0xff, 0xfe]),
        wide(u16::to_be_bytes, [0xfe, 0xff]),
        [b"\xef\xbb\xbf", example].concat(),
        // Latin-1.
        text.replacen(['a', 'e', 'o'], "\u{fc}", 1)
            .chars()
            .map(|letter| u8::try_from(letter).unwrap_or(b'?'))
            .collect(),
        text.replace('\n', "\r\n").into_bytes(),
        text.replace(' ', "\t\u{a0}").into_bytes(),
        example.repeat(2),
    ];
    if example.len() < HUGE {
        cases.push(example.repeat(HUGE / example.len().max(1)));
    }
    cases
}

/// What this thread has used so far, whatever else the machine does.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).expect("not negative"),
        u32::try_from(time.tv_nsec).expect("below a second"),
    )
}

/// Panics tell what was broken; this adds by which target and how long it took.
fn feed(name: &str, target: fn(&[u8]), bytes: &[u8]) {
    let began = processor_time();
    target(bytes);
    let took = processor_time() - began;
    let beginning = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]);
    assert!(took < TIME_MAX, "{name} took {took:?} for {} bytes: {beginning}…", bytes.len());
}

/// The same inputs each time, `cases` of them; what fails is made smaller before it is shown.
fn damaged(target: &str, cases: u32) {
    let (name, target) = *targets::TARGETS.iter().find(|(name, _)| *name == target).expect("a target");
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let outcome = runner.run(&bytes(examples(name)), |bytes| {
        feed(name, target, &bytes);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
}

#[test]
fn hard_cases_of_every_target() {
    std::thread::scope(|scope| {
        for (name, target) in targets::TARGETS {
            scope.spawn(move || {
                let examples = examples(name);
                examples.iter().for_each(|example| feed(name, *target, example));
                // One example is enough: the others differ in what they say, not in how they are written.
                for case in hard_cases(&examples[0]) {
                    feed(name, *target, &case);
                }
            });
        }
    });
}

#[test]
fn every_target_has_a_fuzzer() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("there");
    for name in targets::TARGETS.iter().map(|(name, _)| *name).chain(["csv"]) {
        let path = format!("fuzz_targets/{name}.rs");
        assert!(root.join(&path).is_file(), "fuzz/{path} is missing");
        assert!(manifest.contains(&format!("path = \"{path}\"")), "fuzz/Cargo.toml does not name {path}");
    }
}

#[test]
fn posts_of_alertmanager() {
    damaged("webhook", 400);
}

#[test]
fn bodies_of_requests() {
    damaged("bodies", 800);
}

#[test]
fn reports_of_agents() {
    damaged("reports", 400);
}

#[test]
fn tokens_in_headers() {
    damaged("tokens", 400);
}

#[test]
fn tokens_and_keys_of_issuers() {
    damaged("openid", 800);
}

#[test]
fn answers_of_haproxy() {
    damaged("haproxy", 400);
}

#[test]
fn words_of_people() {
    damaged("words", 400);
}

#[test]
fn files_of_configuration() {
    damaged("configuration", 100);
}

#[test]
fn documents_and_weights_of_models() {
    damaged("model", 60);
    damaged("weights", 60);
}

#[test]
fn answers_of_prometheus() {
    damaged("prometheus", 200);
    let matrix = &examples("prometheus")[0];
    let good = targets::Conversation::get().answered(matrix).expect("the example is good");
    assert_eq!(good, [vec![Some(1.0)], vec![Some(2.5)], vec![None], vec![None]]);
}
