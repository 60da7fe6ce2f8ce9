//! The tool from outside: streams, files, filters, exit codes.

use assert_cmd::Command;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};

const TOOL: &str = env!("CARGO_BIN_EXE_cute-dispatch-extract");

const DISPATCH: &str = "(EngineCore pid=146) INFO 05-13 13:32:02 [_backend.py:1397] [PHASE_E_DISPATCH] layer_name=l.3 \
    layer_idx=3 enabled=True restricted_layers=[3, 7] is_decode_only=True use_fusion=True num_seqs=1 resident_cap=96 \
    use_beta_coop=True use_beta_lite=False\n";
const HTTP: &str = "(APIServer pid=1) INFO:     127.0.0.1:1 - \"POST /v1/completions HTTP/1.1\" 200 OK\n";

fn tool() -> Command {
    Command::new(TOOL)
}

fn records(stdout: &[u8]) -> Vec<Value> {
    String::from_utf8(stdout.to_vec()).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn types(stdout: &[u8]) -> Vec<String> {
    records(stdout).iter().map(|r| r["type"].as_str().unwrap().to_owned()).collect()
}

/// The incident's files, beside the repository; `None` where they are not at hand.
fn incident(file: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/evidence")).join(file);
    if !path.exists() {
        println!("skipped: {} is not at hand", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn a_log_on_stdin_becomes_records_between_run_and_end() {
    let out = tool().write_stdin(format!("{DISPATCH}noise\n\n{HTTP}")).assert().code(0).get_output().clone();
    assert_eq!(types(&out.stdout), ["run", "dispatch", "event", "end"]);
    let all = records(&out.stdout);
    assert_eq!(all[0]["config"]["pack"]["value"], "auto");
    assert_eq!(
        (&all[1]["file"], &all[1]["line"], &all[1]["layer_idx"]),
        (&"stdin".into(), &1.into(), &3.into())
    );
    let end = &all[3];
    assert_eq!((&end["complete"], &end["counts"]["dispatch"]), (&true.into(), &1.into()));
    let count = |name: &str| end["counters"][name].as_u64().unwrap();
    assert_eq!((count("lines"), count("matched"), count("ignored"), count("unmatched")), (4, 2, 1, 1));
    assert!(out.stderr.is_empty(), "stderr is for trouble");
}

#[test]
fn an_empty_log_is_whole_and_holds_nothing() {
    let out = tool().write_stdin("").assert().code(0).get_output().clone();
    assert_eq!(types(&out.stdout), ["run", "end"]);
}

#[test]
fn several_logs_are_read_and_one_that_cannot_be_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, gone) = (dir.path().join("a.log"), dir.path().join("b.log"), dir.path().join("gone.log"));
    std::fs::write(&a, DISPATCH).unwrap();
    std::fs::write(&b, HTTP).unwrap();
    let out = tool().args([&a, &gone, &b]).assert().code(2).get_output().clone();
    assert_eq!(types(&out.stdout), ["run", "dispatch", "event", "end"]);
    assert!(String::from_utf8(out.stderr).unwrap().contains("gone.log"));
    let end = &records(&out.stdout)[3];
    assert_eq!(end["complete"], false);
    assert!(end["reason"].as_str().unwrap().contains("gone.log"));
    assert_eq!(records(&out.stdout)[2]["file"], b.display().to_string());
    tool().arg(dir.path()).assert().code(2);
}

#[test]
fn only_what_was_asked_for_is_written_and_findings_always() {
    let torn = &DISPATCH[..DISPATCH.len() - 21];
    let log = format!("{DISPATCH}{HTTP}{torn}\n");
    let run = |only: &str| {
        types(&tool().args(["--only", only]).write_stdin(log.clone()).assert().code(0).get_output().stdout)
    };
    assert_eq!(run("dispatch"), ["run", "dispatch", "finding", "end"]);
    assert_eq!(run("event,pool"), ["run", "event", "finding", "end"]);
    tool().args(["--only", "everything"]).write_stdin("").assert().code(2);
}

#[test]
fn tables_are_chosen_and_listed() {
    let out = tool()
        .args(["--pack", "vllm"])
        .write_stdin(format!("{DISPATCH}{HTTP}"))
        .assert()
        .code(0)
        .get_output()
        .clone();
    assert_eq!(types(&out.stdout), ["run", "event", "end"]);
    let text = |args: &[&str]| {
        String::from_utf8(tool().args(args).assert().code(0).get_output().stdout.clone()).unwrap()
    };
    let all = text(&["--list-packs"]);
    assert!(["cute", "nvllm", "vllm"].iter().all(|p| all.contains(p)), "{all}");
    let one = text(&["--list-packs", "nvllm"]);
    assert!(one.contains("phase_e_dispatch") && one.contains("[PHASE_E_DISPATCH] {:kv}"), "{one}");
    for args in [["--pack", "sglang"], ["--list-packs", "sglang"]] {
        let out = tool().args(args).write_stdin("").assert().code(2).get_output().clone();
        assert!(String::from_utf8(out.stderr).unwrap().contains("sglang"));
    }
}

#[test]
fn records_appear_while_the_log_is_still_being_written() {
    let mut child = Process::new(TOOL).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("\"run\""), "before any line");
    stdin.write_all(DISPATCH.as_bytes()).unwrap();
    assert!(lines.next().unwrap().unwrap().contains("\"dispatch\""));
    stdin.write_all(&HTTP.as_bytes()[..20]).unwrap();
    stdin.write_all(&HTTP.as_bytes()[20..]).unwrap();
    assert!(lines.next().unwrap().unwrap().contains("\"http_request\""));
    drop(stdin);
    assert!(lines.next().unwrap().unwrap().contains("\"end\""));
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_reader_that_goes_away_ends_the_tool_quietly() {
    let mut child = Process::new(TOOL)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().unwrap();
    let writer =
        std::thread::spawn(move || while stdin.write_all(DISPATCH.repeat(1000).as_bytes()).is_ok() {});
    let status = child.wait().unwrap();
    writer.join().unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_trouble() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let out = Process::new(TOOL).stdin(Stdio::null()).stdout(full).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8(out.stderr).unwrap().contains("cannot write records"));
}

#[test]
fn twenty_megabytes_of_every_kind_of_damage_are_counted_line_by_line() {
    let mut log = Vec::new();
    let mut lines = 0u64;
    while log.len() < 20 << 20 {
        for piece in [
            DISPATCH.as_bytes(),
            HTTP.as_bytes(),
            b"\x1b[0;36m(E pid=1)\x1b[0m\r\n",
            b"\xff\xfe\n",
            b"plain words\n",
            &DISPATCH.as_bytes()[..90],
            b"\n",
        ] {
            log.extend_from_slice(piece);
            lines += u64::from(piece.ends_with(b"\n"));
        }
    }
    let out = tool().args(["--only", "pool"]).write_stdin(log).assert().code(0).get_output().clone();
    let end = records(&out.stdout).pop().unwrap();
    let count = |name: &str| end["counters"][name].as_u64().unwrap();
    assert_eq!(count("lines"), lines);
    assert_eq!(count("matched") + count("ignored") + count("unmatched"), lines);
    assert_eq!(count("matched") * 2, lines, "three of six lines: whole, torn and HTTP");
}

#[test]
fn the_incidents_log_yields_sixteen_decisions_and_one_pool_of_863_blocks() {
    let Some(log) = incident("soak/docker.log") else { return };
    let out = tool().arg(log).assert().code(0).get_output().clone();
    let all = records(&out.stdout);
    let of = |kind: &str| all.iter().filter(|r| r["type"] == kind).collect::<Vec<_>>();
    assert_eq!((of("dispatch").len(), of("finding").len()), (16, 0));
    assert_eq!(of("pool")[0]["num_blocks"], 863);
    assert_eq!(of("dispatch").iter().filter(|d| d["use_beta_coop"] == true).count(), 12);
    let end = all.last().unwrap();
    assert_eq!((&end["counters"]["lines"], &end["counters"]["matched_cute"]), (&3580.into(), &0.into()));
}

#[test]
fn help_shows_three_examples() {
    let out = tool().arg("--help").assert().code(0).get_output().clone();
    let help = String::from_utf8(out.stdout).unwrap();
    assert!(
        help.matches("  cute-dispatch-extract").count() + help.matches("| cute-dispatch-extract").count()
            >= 3,
        "{help}"
    );
    assert!(help.contains("Examples:") && help.contains("Exit codes:"));
}
