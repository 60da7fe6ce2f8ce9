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
    assert_eq!(verdict(&["-q", "--gate", "correct>=9/10"], torn).0, 3, "cut off within a line");
    let broken = whole.replacen('\n', "\n{\"half\n", 1);
    assert_eq!(
        verdict(&["-q", "--gate", "correct>=9/10"], &broken).0,
        2,
        "half a line in the middle is bad input"
    );
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

/// A producer's stream with the digests it read.
fn produced(right: &[u64], model: &str, prompts: &str) -> String {
    let digests = format!(r#""tool":"cute-generate","digests":{{"model":"{model}","prompts":"{prompts}"}}"#);
    stream(right).replacen(r#""tool":"t""#, &digests, 1).replace(r#""tool":"t""#, r#""tool":"cute-generate""#)
}

/// The stream between the `run` and the `end` of an auditor that found nothing.
fn audited(stream: &str) -> String {
    let mut counts = std::collections::BTreeMap::from([("run".to_owned(), 1)]);
    for line in stream.lines() {
        let v: Value = serde_json::from_str(line).unwrap();
        *counts.entry(v["type"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    let run = json!({"type": "run", "v": 1, "tool": "cute-audit", "version": "0"});
    let end = json!({"type": "end", "v": 1, "tool": "cute-audit", "complete": true, "counts": counts});
    format!("{run}\n{stream}{end}\n")
}

fn collapsed(stream: &str) -> String {
    stream.replace("It is 4.", &"!".repeat(400))
}

#[test]
fn an_audited_stream_vouches_for_none_that_stands_beside_it() {
    let sound = audited(&produced(&[10], "m", "p"));
    assert_eq!(verdict(&["-q"], &sound).0, 0);
    let faulty = collapsed(&produced(&[10], "m", "p"));
    assert_eq!(verdict(&["-q"], &faulty).0, 1);
    assert_eq!(verdict(&["-q"], &format!("{sound}{faulty}")).0, 1, "after it");
    assert_eq!(verdict(&["-q"], &format!("{faulty}{sound}")).0, 1, "before it");
    let lines: String = faulty
        .lines()
        .filter(|l| l.contains("completion\"") && !l.contains("counts"))
        .map(|l| format!("{l}\n"))
        .collect();
    assert_ne!(verdict(&["-q"], &format!("{sound}{lines}")).0, 0, "appended after its end");
}

#[test]
fn findings_that_are_there_already_are_not_counted_again() {
    let faulty = collapsed(&produced(&[10], "m", "p"));
    let (_, once, _) = verdict(&["-q"], &faulty);
    let (_, twice, _) = verdict(&["-q"], &once);
    assert_eq!(record(&once)["findings"], 10);
    assert_eq!(record(&twice)["findings"], 10);
    // The same trouble of a second producer is a second trouble.
    let (_, both, _) = verdict(&["-q"], &format!("{once}{faulty}"));
    assert_eq!(record(&both)["findings"], 20);
}

#[test]
fn records_without_their_producer_are_inconclusive() {
    let replies = |s: &str| -> String {
        s.lines().filter(|l| l.contains("\"ordinal\"")).map(|l| format!("{l}\n")).collect()
    };
    let (code, stdout, _) = verdict(&["-q"], &replies(&stream(&[10])));
    assert_eq!(code, 3);
    assert!(stdout.contains("stream_without_run"), "{stdout}");
    assert_eq!(verdict(&["-q"], &format!("{}{}", stream(&[10]), replies(&stream(&[10])))).0, 3);
}

#[test]
fn replies_of_two_models_are_not_judged_as_one() {
    let one = produced(&[10], "m", "p");
    assert_eq!(verdict(&["-q"], &format!("{one}{one}")).0, 0);
    let (code, stdout, _) = verdict(&["-q"], &format!("{one}{}", produced(&[10], "other", "p")));
    assert_eq!(code, 1);
    assert!(stdout.contains("mixed_models"), "{stdout}");
    let other = format!("{one}{}", produced(&[10], "m", "others"));
    assert!(verdict(&["-q"], &other).1.contains("mixed_prompts"));
    assert_eq!(verdict(&["-q", "--gate", "warnings=0"], &other).0, 1);
}

#[test]
fn a_verdict_upstream_is_never_improved_upon() {
    let (code, failed, _) = verdict(&["-q", "--gate", "correct>=9/10"], &stream(&[1]));
    assert_eq!(code, 1);
    let (code, stdout, stderr) = verdict(&["--gate", "completions>=1"], &failed);
    assert_eq!(code, 1);
    assert!(
        stdout.contains("a verdict upstream failed: correct>=9/10") && stderr.contains("upstream verdict")
    );
    let (_, open, _) = verdict(&["-q", "--gate", "log_errors=0"], &stream(&[10]));
    assert_eq!(verdict(&["-q"], &open).0, 3);
    let (_, passed, _) = verdict(&["-q"], &stream(&[10]));
    assert_eq!(verdict(&["-q"], &passed).0, 0);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_a_failure_a_failure_and_takes_a_pass_away() {
    for (right, expect) in [(1, 1), (10, 2)] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_cute-verdict"))
            .args(["-q", "--gate", "correct>=9/10"])
            .stdin(std::process::Stdio::piped())
            .stdout(full)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), stream(&[right]).as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(expect));
        assert!(String::from_utf8_lossy(&out.stderr).contains("cannot write records"));
    }
}

#[cfg(unix)]
#[test]
fn a_report_goes_where_it_was_asked_for_and_replaces_nothing_but_a_file() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let report = |flag: &str, path: &Path| verdict(&["-q", flag, path.to_str().unwrap()], &stream(&[9]));

    std::fs::write(at("real.html"), "old").unwrap();
    symlink("real.html", at("link.html")).unwrap();
    symlink("new.html", at("dangling.html")).unwrap();
    for (link, real) in [("link.html", "real.html"), ("dangling.html", "new.html")] {
        assert_eq!(report("--report", &at(link)).0, 0);
        assert!(at(link).is_symlink(), "{link} is still a link");
        assert!(std::fs::read_to_string(at(real)).unwrap().ends_with("</html>"));
    }

    for flag in ["--report", "--seed-compat"] {
        let fifo = at(&format!("fifo{flag}"));
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let reader = {
            let fifo = fifo.clone();
            std::thread::spawn(move || std::fs::read_to_string(fifo).unwrap())
        };
        assert_eq!(report(flag, &fifo).0, 0);
        assert!(std::fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo(), "{flag}: still a pipe");
        assert!(!reader.join().unwrap().is_empty());
    }

    std::fs::write(at("kept.html"), "kept").unwrap();
    std::fs::set_permissions(at("kept.html"), std::fs::Permissions::from_mode(0o444)).unwrap();
    for flag in ["--report", "--seed-compat"] {
        let (code, _, stderr) = report(flag, &at("kept.html"));
        assert_eq!(code, 2);
        assert!(stderr.contains("kept.html") && stderr.contains("read-only"), "{stderr}");
    }
    assert_eq!(std::fs::read_to_string(at("kept.html")).unwrap(), "kept");

    let (code, _, stderr) = report("--report", Path::new("-"));
    assert_eq!(code, 2);
    assert!(stderr.contains("stdout carries the records"), "{stderr}");
}
