//! What a journal refuses, what a signal leaves behind, and what happens when the disk is full.

mod common;

use common::{bare, generate, journal, records, root, run, sealed, signal, stderr, timeless};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

const SHORT: &[&str] = &["--limit", "6", "--max-num-seqs", "2", "--max-tokens", "8"];
/// A run long enough to be met in the middle of it.
const LONG: &[&str] =
    &["--limit", "8", "--runs", "8", "--max-num-seqs", "2", "--max-tokens", "50", "--ignore-eos"];

fn with(args: &[&str], more: &[&str]) -> Vec<String> {
    args.iter().chain(more).map(|s| (*s).to_owned()).collect()
}

/// A short run with a journal, and its output.
fn kept(dir: &Path) -> Output {
    let output = run(SHORT, Some((dir, false)));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    output
}

/// Asserts that a run is refused, with a sentence and without a record.
fn refused(output: &Output, sentence: &str) {
    let text = stderr(output);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{text}");
    assert!(text.contains(sentence), "expected {sentence:?} in: {text}");
}

#[test]
fn a_journal_changes_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let (with, without) = (kept(dir.path()), run(SHORT, None));
    assert_eq!(timeless(&with.stdout), timeless(&without.stdout));
}

#[test]
fn a_finished_run_is_written_again_byte_for_byte_without_computing_anything() {
    let dir = tempfile::tempdir().unwrap();
    let first = kept(dir.path());
    let again = run(SHORT, Some((dir.path(), true)));
    assert_eq!(again.stdout, first.stdout, "durations included");
    assert!(stderr(&first).contains("[PHASE_E_DISPATCH]"));
    assert!(!stderr(&again).contains("[PHASE_E_DISPATCH]"), "nothing was launched: {}", stderr(&again));
    assert!(stderr(&again).contains("holds 6 replies"), "{}", stderr(&again));
}

#[test]
fn a_journal_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    kept(dir.path());
    let before = fs::read(dir.path().join("journal.jsonl")).unwrap();
    refused(&run(SHORT, Some((dir.path(), false))), "journal.jsonl is there already: give --resume");
    assert_eq!(fs::read(dir.path().join("journal.jsonl")).unwrap(), before);
}

#[test]
fn another_run_is_refused_with_every_difference() {
    let dir = tempfile::tempdir().unwrap();
    kept(dir.path());
    for (more, sentence) in [
        (&["--seed", "4"][..], "another run: --seed was 0, is 4"),
        (&["--token-ids"], "--token-ids was false, is true"),
        (&["--page-size", "32", "--wo-split", "2"], "--page-size was 64, is 32; --wo-split was 1, is 2"),
        (&["--limit", "5"], "--limit was 6, is 5; the digest of the prompts was "),
        (&["--threads", "1"], "the device was \"cpu ("),
    ] {
        let args = with(&SHORT[if more[0] == "--limit" { 2 } else { 0 }..], more);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let sentence = sentence.replace('"', "");
        refused(&run(&args, Some((dir.path(), true))), &sentence);
    }
    let path = dir.path().join("journal.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let old =
        text.replacen(&format!("\\\"version\\\":\\\"{version}\\\""), "\\\"version\\\":\\\"0.0.9\\\"", 1);
    assert_ne!(old, text);
    fs::write(&path, sealed(&old.lines().collect::<Vec<_>>())).unwrap();
    refused(
        &run(SHORT, Some((dir.path(), true))),
        &format!("another run: the version was 0.0.9, is {version}"),
    );
}

#[test]
fn another_model_and_other_prompts_are_refused_whatever_their_paths() {
    let dir = tempfile::tempdir().unwrap();
    let (model, prompts) = (dir.path().join("model"), dir.path().join("prompts.jsonl"));
    fs::create_dir(&model).unwrap();
    for file in fs::read_dir(root().join("examples/tiny-hybrid")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    fs::write(&prompts, "{\"prompt\":\"1 + 1\"}\n").unwrap();
    let go = |resume| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cute-generate"));
        command.arg("--model").arg(&model).arg("--prompts").arg(&prompts).args(["--max-tokens", "4"]);
        journal(&mut command, &dir.path().join("journal"), resume);
        command.output().unwrap()
    };
    assert_eq!(go(false).status.code(), Some(0));
    fs::write(&prompts, "{\"prompt\":\"1 + 2\"}\n").unwrap();
    refused(&go(true), "another run: the digest of the prompts was ");
    fs::write(&prompts, "{\"prompt\":\"1 + 1\"}\nno json\n").unwrap();
    let output = go(true);
    refused(&output, "another run: 0 unreadable line(s) of input, now 1");
    fs::write(&prompts, "{\"prompt\":\"1 + 1\"}\n").unwrap();
    let weights = model.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    refused(&go(true), "another run: the digest of the model was ");
}

#[test]
fn what_cannot_be_resumed_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    for (more, sentence) in [
        (&["--fault", "stale-state"][..], "--journal with --fault stale-state"),
        (&["--region-timing", "1"], "--journal with --region-timing 1"),
    ] {
        refused(&run(more, Some((&dir.path().join("journal"), false))), sentence);
    }
    refused(&run(&["--resume"], None), "--journal <DIR>");
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for place in [&file, &file.join("below"), Path::new("/proc/journal")] {
        refused(&run(SHORT, Some((place, false))), "cannot make the journal's directory");
    }
}

#[test]
fn a_damaged_journal_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    kept(dir.path());
    let path = dir.path().join("journal.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let with = |text: String| {
        fs::write(&path, text).unwrap();
        run(SHORT, Some((dir.path(), true)))
    };
    let again = |lines: &[&str]| with(lines.join("\n") + "\n");
    refused(&again(&[lines[0], "no json", lines[2]]), "journal.jsonl:2: it is not what was written here");
    refused(&again(&[lines[0], lines[1], lines[1]]), "journal.jsonl:3: it is not what was written here");
    refused(&again(&[lines[0], lines[2]]), "journal.jsonl:2: it is not what was written here");
    refused(&with(sealed(&[lines[0], lines[1], lines[1]])), "journal.jsonl:3: step ");
    refused(&again(&lines[1..]), "missing field `journal`");
    refused(
        &again(&["{\"journal\":1,\"bad_lines\":0,\"opening\":\"\"}"]),
        "has format 1: this build reads format 2",
    );
    let later = with(sealed(&[lines[0], lines[2]]));
    assert_eq!(later.status.code(), Some(2));
    assert!(stderr(&later).contains("does not fit the steps of this run"), "{}", stderr(&later));
    let other = lines[1].replacen("\"prompt_sha256\":\"", "\"prompt_sha256\":\"0", 1);
    let output = with(sealed(&[lines[0], &other]));
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("its reply 0 is another request's"), "{}", stderr(&output));
    fs::write(&path, "").unwrap();
    refused(&run(SHORT, Some((dir.path(), true))), "journal.jsonl is empty");
}

#[test]
fn no_flipped_bit_of_a_journal_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let whole = kept(dir.path());
    let path = dir.path().join("journal.jsonl");
    let bytes = fs::read(&path).unwrap();
    for i in 0..100 {
        // anywhere but in a newline, which would cut off the last line or join two
        let at = (i * 7919 + 13) % bytes.len();
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (i % 7);
        if bytes[at] == b'\n' || flipped[at] == b'\n' {
            continue;
        }
        fs::write(&path, flipped).unwrap();
        let output = run(SHORT, Some((dir.path(), true)));
        assert_eq!(output.status.code(), Some(2), "bit {} of byte {at}: {}", i % 7, stderr(&output));
        assert!(output.stdout.is_empty(), "bit {} of byte {at}", i % 7);
    }
    fs::write(&path, bytes).unwrap();
    assert_eq!(run(SHORT, Some((dir.path(), true))).stdout, whole.stdout);
}

#[test]
fn two_processes_do_not_write_one_journal() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = generate(LONG);
    journal(&mut command, dir.path(), false);
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let second = run(LONG, Some((dir.path(), true)));
    child.kill().unwrap();
    child.wait().unwrap();
    refused(&second, "holds the journal of a process that is still running");
}

#[test]
fn a_signal_stops_a_run_at_its_next_step_and_the_journal_goes_on_from_there() {
    let whole = timeless(&run(LONG, None).stdout);
    for (name, code, word) in [("INT", 130, "stopped by Ctrl-C"), ("TERM", 143, "stopped by SIGTERM")] {
        let dir = tempfile::tempdir().unwrap();
        let mut command = generate(LONG);
        journal(&mut command, dir.path(), false);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut seen = String::new();
        while !seen.contains("\"type\":\"completion\"") {
            assert!(lines.read_line(&mut seen).unwrap() > 0, "{seen}");
        }
        signal(&child, name);
        lines.read_to_string(&mut seen).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code));
        let all = records(seen.as_bytes());
        let end = all.last().unwrap();
        assert_eq!((end["type"].as_str(), end["complete"].as_bool()), (Some("end"), Some(false)));
        let reason = end["reason"].as_str().unwrap();
        assert!(reason.starts_with(word) && reason.ends_with("of 64 requests"), "{reason}");
        let replies = all.iter().filter(|r| r["type"] == "completion").count();
        assert!((1..64).contains(&replies), "{replies}");
        assert_eq!(end["counts"]["completion"], replies);
        let resumed = run(LONG, Some((dir.path(), true)));
        assert_eq!(resumed.status.code(), Some(0), "{}", stderr(&resumed));
        assert_eq!(timeless(&resumed.stdout), whole);
    }
}

#[test]
fn a_second_signal_ends_a_run_that_cannot_reach_its_next_step() {
    // the reply's log-probabilities are more than a pipe holds, and nobody reads them
    let mut child = generate(&["--limit", "1", "--max-tokens", "120", "--ignore-eos", "--logprobs", "40"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::with_capacity(1, child.stdout.take().unwrap());
    let mut seen = String::new();
    while !seen.contains("\"op\":\"release\"") {
        assert!(lines.read_line(&mut seen).unwrap() > 0, "{seen}");
    }
    signal(&child, "TERM");
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it waits for its reader");
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn a_full_disk_ends_the_run_and_the_journal_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let whole = timeless(&run(SHORT, None).stdout);
    let place = dir.path().join("journal");
    // files of this shell's children end at so many KiB, as if the disk did
    let limited = |kib: u64, resume: bool| {
        let mut command = generate(SHORT);
        journal(&mut command, &place, resume);
        let words: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|w| format!("'{}'", w.to_str().unwrap()))
            .collect();
        let script = format!("trap '' XFSZ; ulimit -f {kib}; exec {}", words.join(" "));
        Command::new("bash").arg("-c").arg(script).current_dir(root()).output().unwrap()
    };
    let head = limited(1, false);
    assert_eq!((head.status.code(), head.stdout.len()), (Some(2), 0));
    assert!(stderr(&head).contains("journal.jsonl: File too large"), "{}", stderr(&head));
    let mut full = 0;
    for kib in 2..40 {
        let output = limited(kib, kib > 2 && place.join("journal.jsonl").exists());
        if output.status.code() == Some(0) {
            assert_eq!(timeless(&output.stdout), whole);
            break;
        }
        assert_eq!(output.status.code(), Some(2));
        full += usize::from(stderr(&output).contains("it can be resumed once that is mended"));
    }
    assert!(full >= 2, "the journal grew past its limit {full} time(s)");
    let resumed = run(SHORT, Some((&place, true)));
    assert_eq!(timeless(&resumed.stdout), whole);
}

#[test]
fn a_run_that_was_killed_before_it_had_a_journal_starts_at_its_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("not/yet");
    let output = run(SHORT, Some((&place, true)));
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("holds no journal yet"), "{}", stderr(&output));
    assert_eq!(run(SHORT, Some((&place, true))).stdout, output.stdout);
}

#[test]
fn a_closed_pipe_leaves_a_journal_to_go_on_from() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = generate(LONG);
    journal(&mut command, dir.path(), false);
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "as a filter whose reader has seen enough");
    let resumed = run(LONG, Some((dir.path(), true)));
    assert_eq!(timeless(&resumed.stdout), timeless(&run(LONG, None).stdout));
}

#[test]
fn prompts_from_stdin_are_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let go = |stdin: &str, resume| {
        let input = dir.path().join("stdin");
        fs::write(&input, stdin).unwrap();
        let mut command = bare();
        journal(&mut command, &dir.path().join("journal"), resume);
        command.args(["--max-tokens", "3"]).stdin(fs::File::open(&input).unwrap()).output().unwrap()
    };
    let first = go("{\"prompt\":\"1 +\"}\n", false);
    assert_eq!(go("{\"prompt\":\"1 +\"}\n", true).stdout, first.stdout);
    refused(&go("{\"prompt\":\"2 +\"}\n", true), "the digest of the prompts was ");
    refused(&go("", true), "no prompts");
}
