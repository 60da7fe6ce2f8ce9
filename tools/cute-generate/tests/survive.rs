//! Runs are killed at random moments, their successors too; what the last one writes is what a whole run writes.
//!
//! `KILLS` says how many kills (200), `SEED` where the random numbers begin (1); both are printed. `make torture` kills
//! a thousand times, from a new seed.

mod common;

use common::{bare, generate, journal, timeless};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Numbers that look random (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// A command and what it writes when nothing happens to it.
struct Whole {
    command: Box<dyn Fn() -> Command>,
    stdout: Vec<u8>,
    code: i32,
    took: Duration,
}

impl Whole {
    fn of(command: impl Fn() -> Command + 'static) -> Self {
        let start = Instant::now();
        let output = command().output().unwrap();
        let code = output.status.code().unwrap();
        Whole { command: Box::new(command), stdout: output.stdout, code, took: start.elapsed() }
    }
}

/// Runs that wait for slots, for pages and for chunks; that sample; whose paths change with the number of sequences;
/// that repeat; whose prompts are refused.
fn wholes(dir: &Path) -> Vec<Whole> {
    let prompts = dir.join("prompts.jsonl");
    let mut lines = String::from("no json\n");
    for i in 0..9 {
        let max_tokens = [20, 3, 11, 1][i % 4];
        lines += &format!("{{\"prompt\":\"Question: {i} + {}\",\"max_tokens\":{max_tokens}}}\n", i * i);
    }
    lines += "{\"prompt\":\"\"}\n{\"prompt\":\"7 +\",\"max_tokens\":5}\n";
    std::fs::write(&prompts, lines).unwrap();
    let settings: [&[&str]; 3] = [
        &["--limit", "8", "--max-num-seqs", "3", "--max-tokens", "24", "--stream"],
        &["--limit", "3", "--runs", "4", "--max-tokens", "9", "--token-ids", "--logprobs", "2"],
        &[
            "--limit=8",
            "--max-num-seqs=4",
            "--max-num-batched-tokens=40",
            "--page-size=16",
            "--num-kv-pages=30",
            "--max-model-len=200",
            "--resident-cap=128",
            "--temperature=1",
            "--seed=7",
            "--max-tokens=18",
        ],
    ];
    let mut all: Vec<Whole> = settings.map(|args| Whole::of(move || generate(args))).into();
    assert!(all.iter().all(|whole| whole.code == 0));
    all.push(Whole::of(move || {
        let mut command = bare();
        command.arg("--prompts").arg(&prompts).args([
            "--max-num-seqs",
            "2",
            "--ignore-eos",
            "--stop",
            "9",
            "--stream",
        ]);
        command
    }));
    assert_eq!(all[3].code, 2, "a line was no prompt");
    all
}

/// Kills a run after a while, once it has written so much, or once its journal has. Returns what it had written, and
/// whether the kill came before its end.
fn kill(whole: &Whole, dir: &Path, resume: bool, random: &mut Random) -> (Vec<u8>, bool) {
    let out = dir.join("stdout");
    let mut command = (whole.command)();
    journal(&mut command, &dir.join("journal"), resume);
    command.stdout(File::create(&out).unwrap()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let journal = dir.join("journal/journal.jsonl");
    let (micros, bytes) = (random.below(whole.took.as_micros() as u64), whole.stdout.len() as u64);
    let (file, most) = match random.below(3) {
        0 => (None, micros),
        1 => (Some(&out), random.below(bytes)),
        _ => (Some(&journal), length(&journal) + 1 + random.below(bytes / 2)),
    };
    let start = Instant::now();
    let due = || match file {
        None => start.elapsed().as_micros() as u64 >= most,
        Some(file) => length(file) >= most,
    };
    while !due() && running(&mut child) {
        std::thread::sleep(Duration::from_micros(200));
    }
    child.kill().unwrap();
    let killed = child.wait().unwrap().signal() == Some(9);
    let mut written = Vec::new();
    File::open(&out).unwrap().read_to_end(&mut written).unwrap();
    (written, killed)
}

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |m| m.len())
}

fn running(child: &mut Child) -> bool {
    child.try_wait().unwrap().is_none()
}

#[test]
fn a_run_killed_at_any_moment_and_resumed_writes_what_a_whole_run_writes() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |v| v.parse().unwrap());
    let (wanted, seed) = (number("KILLS", 200), number("SEED", 1));
    println!("KILLS={wanted} SEED={seed}");
    let mut random = Random(seed);
    let dir = tempfile::tempdir().unwrap();
    let wholes = wholes(dir.path());
    let (mut kills, mut runs, mut resumed, mut late) = (0, 0, 0, 0);
    while kills < wanted {
        let whole = &wholes[random.below(wholes.len() as u64) as usize];
        let dir = tempfile::tempdir().unwrap();
        let mut prefixes: Vec<Vec<u8>> = Vec::new();
        while random.below(4) > 0 {
            let (written, killed) = kill(whole, dir.path(), !prefixes.is_empty(), &mut random);
            kills += u64::from(killed);
            late += u64::from(!killed);
            resumed += u64::from(killed && !prefixes.is_empty());
            prefixes.push(written);
            let path = dir.path().join("journal/journal.jsonl");
            if path.exists() && random.below(4) == 0 {
                // the machine went down while the next line was on its way to the disk
                let torn = "{\"step\":99,\"spent\":{\"prefill_ns\":1,\"de";
                let length = random.below(torn.len() as u64) as usize + 1;
                let mut file = OpenOptions::new().append(true).open(path).unwrap();
                file.write_all(&torn.as_bytes()[..length]).unwrap();
            }
        }
        let mut command = (whole.command)();
        journal(&mut command, &dir.path().join("journal"), !prefixes.is_empty());
        let last = command.output().unwrap();
        let context = format!("SEED={seed}, run {runs} after {} kills", prefixes.len());
        assert_eq!(last.status.code(), Some(whole.code), "{context}: {}", common::stderr(&last));
        assert_eq!(timeless(&last.stdout), timeless(&whole.stdout), "{context}");
        for written in prefixes {
            // times included: a reply is in the journal before anybody sees it
            assert!(last.stdout.starts_with(&written), "{context}: something written was taken back");
        }
        runs += 1;
    }
    println!("{kills} kills in {runs} runs, {resumed} of resumed ones; {late} came after the end");
    assert!(resumed > kills / 4, "resumed runs are killed, too");
}
