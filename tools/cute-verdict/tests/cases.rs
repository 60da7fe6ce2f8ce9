//! cute-verdict as a user meets it: the exit code is the judgment, whoever reads the output.

use assert_cmd::Command;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn verdict(args: &[&str], stdin: &str) -> (i32, String, String) {
    let out = Command::cargo_bin("cute-verdict")
        .unwrap()
        .args(args)
        .write_stdin(stdin.to_owned())
        .output()
        .unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

fn record(stdout: &str) -> Value {
    let last = stdout.lines().rev().nth(1).unwrap();
    let v: Value = serde_json::from_str(last).unwrap();
    assert_eq!(v["type"], "verdict", "the last record but `end`");
    v
}

fn evidence(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/evidence").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is not here", path.display());
        return None;
    }
    Some(path)
}

/// A stream of runs with so many right answers of ten.
fn stream(right: &[u64]) -> String {
    let mut lines = vec![json!({"type": "run", "v": 1, "tool": "t", "version": "0"})];
    for (run, right) in right.iter().enumerate() {
        for i in 0..10u64 {
            let ordinal = run as u64 * 10 + i;
            lines.push(json!({"type": "completion", "v": 1, "id": ordinal.to_string(), "run": run, "index": i,
                "ordinal": ordinal, "text": "It is 4.", "finish_reason": "stop", "gold": "4", "correct": i < *right}));
        }
    }
    let counts = json!({"run": 1, "completion": lines.len() - 1});
    lines.push(json!({"type": "end", "v": 1, "tool": "t", "complete": true, "counts": counts}));
    lines.iter().map(|l| format!("{l}\n")).collect()
}

#[test]
fn the_exit_code_is_the_judgment() {
    let gate = |gate: &str, right: &[u64]| verdict(&["-q", "--gate", gate], &stream(right)).0;
    assert_eq!(gate("correct>=9/10", &[9, 10]), 0);
    assert_eq!(gate("correct>=9/10", &[9, 8]), 1);
    assert_eq!(gate("correct>=9/x", &[9]), 2);
    assert_eq!(gate("log_errors=0", &[9]), 3);
    assert_eq!(verdict(&["-q"], &stream(&[9])).0, 0, "default gates");
    assert_eq!(verdict(&["-q"], "").0, 3, "nothing is no pass");
    assert_eq!(verdict(&["-q", "--runs", "3", "--gate", "correct>=9/10"], &stream(&[9, 9])).0, 3);
}

#[test]
fn a_stream_cut_off_is_never_a_pass() {
    let whole = stream(&[9]);
    let cut = whole.lines().take(11).map(|l| format!("{l}\n")).collect::<String>();
    let (code, stdout, _) = verdict(&["-q", "--gate", "correct>=9/10"], &cut);
    assert_eq!((code, record(&stdout)["outcome"].as_str()), (3, Some("inconclusive")));
    let torn = &whole[..whole.len() - 20];
    assert_eq!(verdict(&["-q", "--gate", "correct>=9/10"], torn).0, 2, "half a line is bad input");
}

#[test]
fn a_malformed_gate_is_pointed_at() {
    let (code, _, stderr) = verdict(&["--gate", "correct>=45"], "");
    assert_eq!(code, 2);
    assert!(stderr.contains("column 10") && stderr.contains("\n           ^"), "{stderr}");
}

#[test]
fn a_failed_verdict_stays_failed_when_nobody_reads_it() {
    for stderr_too in [false, true] {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_cute-verdict"))
            .args(["--gate", "correct>=9/10"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        if stderr_too {
            drop(child.stderr.take());
        }
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), stream(&[1]).as_bytes()).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1));
    }
}

#[test]
fn the_evidence_is_forwarded_with_the_verdict() {
    let given = stream(&[10]);
    let (_, stdout, stderr) = verdict(&["--gate", "correct>=9/10"], &given);
    assert!(stdout.contains(&given));
    let v = record(&stdout);
    assert_eq!(v["runs"][0]["correct"], 10);
    for key in [
        "onset_ordinal",
        "recovery_ordinal",
        "degenerate",
        "labels",
        "explained",
        "mechanism",
        "first_bad_block",
        "pool_blocks",
    ] {
        assert!(v.get(key).is_some(), "{key} is always there");
    }
    assert!(stderr.contains("Verdict: pass") && stderr.lines().all(|l| l.chars().count() <= 100), "{stderr}");
}

#[test]
fn the_report_is_written_whole_and_readable_by_others() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("soak.html");
    let (code, ..) = verdict(&["-q", "--report", file.to_str().unwrap()], &stream(&[9, 9]));
    assert_eq!(code, 0);
    assert!(std::fs::read_to_string(&file).unwrap().ends_with("</html>"));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left behind");
    let (code, _, stderr) = verdict(&["-q", "--report", "/no/such/dir/x.html"], &stream(&[9]));
    assert_eq!(code, 2);
    assert!(stderr.contains("/no/such/dir/x.html"), "{stderr}");
}

#[test]
fn a_soak_directory_is_judged_directly_and_the_original_fields_agree() {
    let Some(dir) = evidence("soak") else { return };
    let out = tempfile::tempdir().unwrap();
    let compat = out.path().join("verdict.json");
    let args = [
        "-q",
        "--results",
        dir.to_str().unwrap(),
        "--seed-compat",
        compat.to_str().unwrap(),
        "--gate",
        "correct>=45/50",
    ];
    let (code, stdout, stderr) = verdict(&args, "");
    assert_eq!(code, 1, "{stderr}");
    let v = record(&stdout);
    assert_eq!(
        (&v["onset_ordinal"], &v["recovery_ordinal"], &v["degenerate"]),
        (&json!(162), &json!(214), &json!(52))
    );
    let ours: Value = serde_json::from_str(&std::fs::read_to_string(compat).unwrap()).unwrap();
    let theirs: Value =
        serde_json::from_str(&std::fs::read_to_string(dir.join("verdict.json")).unwrap()).unwrap();
    for key in ["runs", "n_runs", "gsm8k_floor", "gate_2b_pass"] {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
}

#[test]
fn the_incident_is_replayed_from_its_facts() {
    let bin = Path::new(env!("CARGO_BIN_EXE_cute-verdict")).parent().unwrap();
    if !bin.join("cute-dispatch-extract").is_file() || !bin.join("cute-audit").is_file() {
        eprintln!("skipped: cute-audit and cute-dispatch-extract are not built");
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/incident/replay.sh");
    let done = std::process::Command::new("bash")
        .arg(script)
        .env("PATH", path)
        .env("OUT", out.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(out.path().join("incident.html").is_file());
}
