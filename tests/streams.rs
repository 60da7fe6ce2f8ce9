//! Closed, full and broken streams: every tool with each of them. No panic, a documented exit code, and never a pass.

use std::path::{Path, PathBuf};
use std::process::Command;

const TOOLS: [&str; 5] =
    ["cute-load", "cute-generate", "cute-audit", "cute-dispatch-extract", "cute-verdict"];

/// A tool's command in bash, sound on a sound machine: its stdin comes from `$IN`.
const COMMANDS: [(&str, &str); 5] = [
    ("cute-load", "cute-load examples/tiny-hybrid"),
    ("cute-generate", "cute-generate --model examples/tiny-hybrid --max-tokens 4 < $T/prompts.jsonl"),
    ("cute-audit", "cute-audit < $T/gen.jsonl"),
    ("cute-dispatch-extract", "cute-dispatch-extract < $T/gen.log"),
    ("cute-verdict", "cute-verdict < $T/gen.jsonl"),
];

/// A fresh directory `$T` with prompts, a run's records and its log.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        let made = place.sh("head -n 3 examples/arith-50.jsonl > $T/prompts.jsonl
            cute-generate --model examples/tiny-hybrid --max-tokens 60 < $T/prompts.jsonl > $T/gen.jsonl 2> $T/gen.log");
        assert_eq!(made, (0, String::new()));
        place
    }

    /// Runs a bash command in the workspace's root. Returns its exit code and what it wrote to stderr.
    fn sh(&self, command: &str) -> (i32, String) {
        let exe = std::env::current_exe().unwrap();
        let bin = exe.parent().and_then(Path::parent).unwrap();
        for tool in TOOLS {
            assert!(
                bin.join(tool).exists(),
                "{tool} is not built beside this test: run cargo test --workspace"
            );
        }
        let out = Command::new("bash")
            .args(["-c", command])
            .current_dir(root())
            .env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()))
            .env("T", self.0.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!stderr.contains("panicked"), "{command}\n{stderr}");
        (out.status.code().unwrap_or(-1), stderr)
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn every_tool_passes_when_nothing_is_wrong() {
    let place = Place::new();
    for (tool, command) in COMMANDS {
        // a null device is no closed stream, whichever way it was opened
        for way in ["> /dev/null", "1<> /dev/null", "> $T/out"] {
            let (code, stderr) = place.sh(&format!("{command} {way}"));
            assert_eq!(code, 0, "{tool} {way}: {stderr}");
        }
    }
}

#[test]
fn settings_in_the_environment_do_not_stand_in_the_way_of_schemas() {
    let place = Place::new();
    for (tool, _) in COMMANDS {
        for more in ["--schema", "--man", "--completions bash"] {
            let settings = "CUTE_NVRTC=n CUTE_KERNEL_CACHE=k CUTE_DEVICE=cpu CUTE_WO_SPLIT=2";
            let (code, stderr) = place.sh(&format!("{settings} {tool} {more} > /dev/null"));
            assert_eq!(code, 0, "{tool} {more}: {stderr}");
        }
    }
}

#[test]
fn a_closed_stdout_is_trouble() {
    let place = Place::new();
    for (tool, command) in COMMANDS {
        for more in ["", "--help", "--schema", "--man"] {
            let command = if more.is_empty() { command.to_owned() } else { format!("{tool} {more}") };
            let (code, stderr) = place.sh(&format!("{command} >&-"));
            assert_eq!(code, 2, "{command} >&-: {stderr}");
            assert!(stderr.contains(&format!("{tool}: stdout is closed")), "{command}: {stderr}");
        }
    }
}

#[test]
fn a_full_disk_is_trouble() {
    let place = Place::new();
    for (tool, command) in COMMANDS {
        for more in ["", "--help", "--schema", "--man", "--completions bash", "--version"] {
            let command = if more.is_empty() { command.to_owned() } else { format!("{tool} {more}") };
            let (code, stderr) = place.sh(&format!("{command} > /dev/full"));
            assert_eq!(code, 2, "{command} > /dev/full: {stderr}");
            assert!(stderr.contains("No space left on device"), "{command}: {stderr}");
        }
    }
    for command in ["cute-generate --list-faults", "cute-dispatch-extract --list-packs"] {
        assert_eq!(place.sh(&format!("{command} > /dev/full")).0, 2, "{command}");
    }
}

#[test]
fn a_reader_that_goes_away_ends_a_tool_quietly() {
    let place = Place::new();
    for (tool, command) in COMMANDS {
        for reader in ["true", "head -1 > /dev/null", "head -c 10 > /dev/null"] {
            let (code, stderr) = place.sh(&format!("{command} | {reader}; exit ${{PIPESTATUS[0]}}"));
            assert_eq!(code, 0, "{tool} | {reader}: {stderr}");
            assert!(!stderr.contains("roken pipe"), "{tool} | {reader}: {stderr}");
        }
        let (code, _) = place.sh(&format!("(sleep 0.1; {tool} --help) | true; exit ${{PIPESTATUS[0]}}"));
        assert_eq!(code, 0, "{tool} --help");
    }
}

#[test]
fn a_closed_stdin_is_no_empty_input() {
    let place = Place::new();
    for command in [
        "cute-load examples/tiny-hybrid --verify -",
        "cute-generate --model examples/tiny-hybrid",
        "cute-generate --prompts examples/arith-50.jsonl",
        "cute-audit",
        "cute-audit --results $T/gen.jsonl",
        "cute-dispatch-extract",
        "cute-dispatch-extract - $T/gen.log",
        "cute-verdict",
        "cute-verdict --results $T/gen.jsonl --gate errors=0",
    ] {
        let (code, stderr) = place.sh(&format!("{command} <&- > /dev/null"));
        assert_eq!(code, 2, "{command} <&-: {stderr}");
        assert!(stderr.contains("stdin: it is closed"), "{command}: {stderr}");
    }
    let (code, stderr) = place.sh("cute-load examples/tiny-hybrid <&- > /dev/null");
    assert_eq!(code, 0, "it reads no stdin: {stderr}");
}

#[test]
fn a_stdin_that_cannot_be_read_is_trouble() {
    let place = Place::new();
    for command in
        ["cute-generate --model examples/tiny-hybrid", "cute-audit", "cute-dispatch-extract", "cute-verdict"]
    {
        let (code, stderr) = place.sh(&format!("{command} < /tmp > /dev/null"));
        assert_eq!(code, 2, "{command} < a directory: {stderr}");
        assert!(stderr.contains("Is a directory"), "{command}: {stderr}");
    }
}

#[test]
fn a_producer_that_dies_within_a_line_is_never_a_pass() {
    let place = Place::new();
    let length = |name: &str| place.0.path().join(name).metadata().unwrap().len();
    let all = length("gen.jsonl");
    for share in 0..24 {
        let bytes = all - 1 - share * (all - 1) / 24;
        let cut = format!("head -c {bytes} $T/gen.jsonl");
        for judge in ["cute-audit -q", "cute-verdict -q", "cute-audit -q | cute-verdict -q"] {
            let (code, stderr) =
                place.sh(&format!("set -o pipefail; {cut} | {judge} > $T/out; exit ${{PIPESTATUS[-1]}}"));
            assert!(matches!(code, 2 | 3), "{cut} | {judge}: exit {code}: {stderr}");
        }
    }
    for bytes in [length("prompts.jsonl") - 2, 20] {
        let cut = format!("head -c {bytes} $T/prompts.jsonl");
        let (code, stderr) = place.sh(&format!(
            "{cut} | cute-generate --model examples/tiny-hybrid --max-tokens 4 > $T/out; exit ${{PIPESTATUS[1]}}"
        ));
        assert_eq!(code, 2, "{cut}: {stderr}");
    }
    let (code, stderr) = place.sh(
        "cute-load examples/tiny-hybrid | head -c 3000 | cute-generate --prompts $T/prompts.jsonl > $T/out; exit ${PIPESTATUS[2]}",
    );
    assert_eq!(code, 2, "{stderr}");
    let (code, stderr) = place.sh(
        "cute-load examples/tiny-hybrid | head -c 3000 > $T/cut; cute-load examples/tiny-hybrid --verify $T/cut > $T/out",
    );
    assert_eq!(code, 2, "{stderr}");
    // a log is text: the tool reads what there is of it, and no verdict passes on that
    let (code, stderr) = place.sh(
        "head -c 300 $T/gen.log | cute-dispatch-extract | cute-verdict -q > $T/out; exit ${PIPESTATUS[2]}",
    );
    assert!(matches!(code, 1..=3), "exit {code}: {stderr}");
}

#[test]
fn a_path_that_cannot_be_written_is_trouble() {
    let place = Place::new();
    assert_eq!(place.sh("touch $T/locked; chmod 444 $T/locked").0, 0);
    for path in ["$T/locked", "$T/no/such/folder", "/proc/page", "/dev/full"] {
        for command in [
            "cute-audit --markdown",
            "cute-verdict --markdown",
            "cute-verdict --seed-compat",
            "cute-verdict --report",
        ] {
            let (code, stderr) = place.sh(&format!("{command} {path} < $T/gen.jsonl > /dev/null"));
            assert_eq!(code, 2, "{command} {path}: {stderr}");
        }
    }
    assert_eq!(place.sh("test -s $T/locked").0, 1, "it was left as it is");
    let journal = "cute-generate --model examples/tiny-hybrid --journal";
    for path in ["$T/locked", "/proc/page", "/dev/full"] {
        let (code, stderr) = place.sh(&format!("{journal} {path} < $T/prompts.jsonl > $T/out"));
        assert_eq!(code, 2, "--journal {path}: {stderr}");
        assert!(stderr.contains("cannot make the journal's directory"), "{stderr}");
    }
}

#[test]
fn a_disk_that_fills_up_under_a_journal_loses_nothing() {
    let place = Place::new();
    let run = "cute-generate --model examples/tiny-hybrid --prompts examples/arith-50.jsonl --limit 12 --max-num-seqs 2 \
               --max-tokens 8 --token-ids";
    let (code, stderr) = place.sh(&format!(
        "unshare -m bash -c '
            mkdir $T/disk && mount -t tmpfs -o size=1m none $T/disk || exit 77
            mkdir $T/disk/journal; head -c 1036288 /dev/zero > $T/disk/rest
            {run} --journal $T/disk/journal > $T/first; first=$?
            rm $T/disk/rest
            {run} --journal $T/disk/journal --resume > $T/second; second=$?
            {run} > $T/whole; echo codes $first $second >&2
            for f in second whole; do sed -E \"s/\\\"(wall_ms|decode_ms|ms|figures)\\\":(\\{{[^}}]*\\}}|[^,}}]*)//g\" $T/$f > $T/$f.timeless; done
            cmp $T/second.timeless $T/whole.timeless && cmp -n $(stat -c %s $T/first) $T/first $T/second >&2'"
    ));
    if code == 77 || stderr.contains("unshare") {
        println!("skipped: a file system of 1 MiB cannot be mounted here: {stderr}");
        return;
    }
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stderr.contains("journal.jsonl (it can be resumed once that is mended): No space left"),
        "{stderr}"
    );
    assert!(stderr.contains("codes 2 0"), "{stderr}");
}

#[test]
fn a_streamed_run_audits_clean_and_a_changed_chunk_does_not() {
    let place = Place::new();
    let run = "cute-generate --model examples/tiny-hybrid --prompts examples/arith-50.jsonl --limit 6 --max-num-seqs 3 --max-tokens 30 \
        --stream --stop '####' --storm cancel --storm-every 9 2> /dev/null > $T/streamed.jsonl";
    assert_eq!(place.sh(run).0, 0);
    let (code, stderr) = place.sh("cute-audit < $T/streamed.jsonl > /dev/null");
    assert_eq!(code, 0, "{stderr}");
    let change = "sed '/\"chunk\"/{/\"part\":3,/s/\"text\":\"/&x/}' $T/streamed.jsonl > $T/changed.jsonl";
    assert_eq!(place.sh(change).0, 0);
    let (code, stderr) = place
        .sh("cute-audit < $T/changed.jsonl | grep -q 'chunks_differ.*text differs'; exit ${PIPESTATUS[0]}");
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("chunks_differ"), "{stderr}");
}
