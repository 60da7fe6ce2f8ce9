//! cute-audit as a user meets it: exit codes, forwarding, expectations, result directories.

use assert_cmd::Command;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn audit(args: &[&str], stdin: &str) -> (i32, String, String) {
    let out =
        Command::cargo_bin("cute-audit").unwrap().args(args).write_stdin(stdin.to_owned()).output().unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

fn records(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn findings(stdout: &str) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let all = records(stdout).into_iter().filter(|r| r["type"] == "finding");
    all.map(|r| (text(&r["check"]), text(&r["severity"]))).collect()
}

fn evidence(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/evidence").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is not here", path.display());
        return None;
    }
    Some(path)
}

const SOUND: &str = r#"{"type":"run","v":1,"tool":"t","version":"0"}
{"type":"completion","v":1,"id":"0","run":0,"index":0,"ordinal":0,"text":"It is 4.","fingerprint":"a","later":1.50}
{"type":"completion","v":1,"id":"1","run":1,"index":0,"ordinal":1,"text":"It is 4.","fingerprint":"a"}
{"type":"later","x":1e2}
{"type":"dispatch","v":1,"layer_name":"l.3","layer_idx":3,"enabled":true,"restricted_layers":null,"is_decode_only":true,"use_fusion":true,"num_seqs":1,"resident_cap":96,"use_beta_coop":true,"use_beta_lite":false,"path":"coop","outcome":"coop","file":"x","line":1,"byte":0}
{"type":"end","v":1,"tool":"t","complete":true,"counts":{"run":1,"completion":2,"later":1,"dispatch":1}}
"#;

#[test]
fn a_sound_stream_is_forwarded_byte_for_byte_between_its_own_run_and_end() {
    let (code, stdout, stderr) = audit(&["--expect-coop-layers", "3"], SOUND);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains(SOUND), "{stdout}");
    let all = records(&stdout);
    assert_eq!((all[0]["type"].as_str(), all[0]["tool"].as_str()), (Some("run"), Some("cute-audit")));
    let end = all.last().unwrap();
    assert_eq!((end["tool"].as_str(), end["complete"].as_bool()), (Some("cute-audit"), Some(true)));
    assert_eq!(end["counts"]["completion"], 2);
    assert_eq!(all[0]["config"]["expect_coop_layers"]["origin"], "flag");
}

#[test]
fn a_violated_expectation_exits_1_and_names_the_layer() {
    let (code, stdout, stderr) = audit(&["--expect-coop-layers", "3,7"], SOUND);
    assert_eq!(code, 1);
    assert!(findings(&stdout).contains(&("dispatch_expected_absent".into(), "error".into())));
    assert!(stderr.contains("layer 7: expected on coop"), "{stderr}");
}

#[test]
fn nothing_to_check_is_3_and_an_empty_expectation_is_2() {
    let none =
        SOUND.lines().filter(|l| !l.contains("dispatch")).map(|l| format!("{l}\n")).collect::<String>();
    assert_eq!(audit(&["-q", "--require-records"], &none).0, 3);
    assert_eq!(audit(&["-q", "--expect-coop-layers", "none"], &none).0, 3);
    let (code, _, stderr) = audit(&["--expect-coop-layers", ""], SOUND);
    assert_eq!(code, 2);
    assert!(stderr.contains("write `none`"), "{stderr}");
    assert_eq!(audit(&["--no-such-flag"], SOUND).0, 2);
    assert_eq!(audit(&["-q", "--results", "/no/such/dir"], SOUND).0, 2);
    assert_eq!(audit(&["-q", "--dispatch", "/no/such.log"], SOUND).0, 2);
}

#[test]
fn a_bad_line_is_reported_with_its_place_and_exits_2() {
    let (code, stdout, stderr) = audit(&["-q"], &SOUND.replacen('\n', "\n{\"half\n", 1));
    assert_eq!(code, 2);
    assert!(stderr.contains("cute-audit: stdin:2: "), "{stderr}");
    assert_eq!(
        records(&stdout).iter().filter(|r| r["type"] == "completion").count(),
        2,
        "its neighbours arrive"
    );
    assert_eq!(records(&stdout).last().unwrap()["complete"], false);
}

#[test]
fn a_stream_cut_off_is_a_finding_and_exits_3() {
    let cut: String = SOUND.lines().take(3).map(|l| format!("{l}\n")).collect();
    let (code, stdout, _) = audit(&["-q"], &cut);
    assert_eq!(code, 3);
    assert!(findings(&stdout).contains(&("stream_cut_off".into(), "warning".into())));
}

#[test]
fn a_dispatch_log_is_read_when_the_stream_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("gen.log");
    let line = |layer: u32, outcome: &str| {
        format!(
            "[PHASE_E_DISPATCH] layer_name=model.layers.{layer}.self_attn.attn layer_idx={layer} enabled=True \
             restricted_layers=None is_decode_only=True use_fusion=True num_seqs=1 resident_cap=96 use_beta_coop=True \
             use_beta_lite=False path=coop outcome={outcome} reason=grid_fits\n"
        )
    };
    std::fs::write(&log, format!("loading\n{}{}", line(3, "coop"), line(7, "coop"))).unwrap();
    let stream: String = SOUND
        .lines()
        .take(2)
        .chain([r#"{"type":"end","v":1,"tool":"t","complete":true,"counts":{"run":1,"completion":1}}"#])
        .map(|l| format!("{l}\n"))
        .collect();
    let log = log.to_str().unwrap();
    let (code, stdout, stderr) = audit(&["--expect-coop-layers", "3,7", "--dispatch", log], &stream);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(records(&stdout).iter().filter(|r| r["type"] == "dispatch").count(), 2, "they travel on");
    std::fs::write(log, format!("{}{}", line(3, "coop"), line(7, "lite"))).unwrap();
    let (code, stdout, _) = audit(&["-q", "--expect-coop-layers", "3,7", "--dispatch", log], &stream);
    assert_eq!(code, 1, "what was chosen is not what ran");
    assert!(findings(&stdout).contains(&("dispatch_intent_outcome".into(), "error".into())));
}

#[test]
fn a_results_directory_becomes_records_and_its_log_explains_it() {
    let Some(dir) = evidence("soak") else { return };
    let (code, stdout, stderr) = audit(&["--explain", "--results", dir.to_str().unwrap()], "");
    assert_eq!(code, 1, "{stderr}");
    let all = records(&stdout);
    assert_eq!(all.iter().filter(|r| r["type"] == "completion").count(), 250);
    let m = all.iter().find(|r| r["check"] == "mechanism").unwrap();
    assert_eq!(m["data"]["mechanism"], "kv_offset_i32_overflow");
    assert_eq!((&m["data"]["explained"], &m["data"]["labels"]), (&Value::from(250), &Value::from(250)));
    assert!(stderr.lines().all(|l| l.chars().count() <= 100), "{stderr}");
}

#[test]
fn a_region_buffer_is_measured_by_its_span() {
    let Some(file) = evidence("stage0a/region_timings_2L_wo8.npy") else { return };
    let (_, stdout, _) = audit(&["-q", "--region", file.to_str().unwrap()], "");
    let span = records(&stdout).into_iter().find(|r| r["type"] == "timing").unwrap();
    assert!((span["ms"].as_f64().unwrap() - 26.637568).abs() < 1e-6, "{span}");
}

#[test]
fn markdown_goes_to_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("audit.md");
    let (code, _, stderr) = audit(&["--markdown", file.to_str().unwrap()], SOUND);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(std::fs::read_to_string(file).unwrap().contains("| layer |"));
}

#[test]
fn a_reader_that_goes_away_changes_nothing() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cute-audit"));
    command.args(["-q", "--expect-coop-layers", "3,7"]);
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), SOUND.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn nothing_at_all_is_3_with_a_sentence() {
    let (code, stdout, stderr) = audit(&[], "");
    assert_eq!(code, 3);
    assert!(findings(&stdout).contains(&("no_records".into(), "warning".into())));
    assert!(stderr.contains("nothing came in"), "{stderr}");
}

#[test]
fn a_dispatch_log_on_stdin_is_refused() {
    let (code, _, stderr) = audit(&["--dispatch", "-"], SOUND);
    assert_eq!(code, 2);
    assert!(stderr.contains("stdin brings the records"), "{stderr}");
}

#[test]
fn auditing_twice_doubles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("gen.log");
    let line = "[PHASE_E_DISPATCH] layer_name=model.layers.3.self_attn.attn layer_idx=3 enabled=True \
                restricted_layers=None is_decode_only=True use_fusion=True num_seqs=1 resident_cap=96 \
                use_beta_coop=True use_beta_lite=False path=coop outcome=lite reason=fell_back\n";
    std::fs::write(&log, line).unwrap();
    let args = ["-q", "--expect-coop-layers", "3", "--dispatch", log.to_str().unwrap()];
    let stream: String =
        SOUND.lines().filter(|l| !l.contains("\"dispatch\",")).map(|l| format!("{l}\n")).collect();
    let stream = stream.replace(",\"dispatch\":1", "").replace("It is 4.", &"!".repeat(400));
    let (code, once, stderr) = audit(&args, &stream);
    assert_eq!(code, 1, "{stderr}");
    let (code, twice, _) = audit(&args, &once);
    assert_eq!(code, 1);
    let count = |s: &str, kind: &str| records(s).iter().filter(|r| r["type"] == kind).count();
    assert_eq!(count(&once, "dispatch"), 1);
    assert_eq!(count(&twice, "dispatch"), 1);
    assert!(count(&once, "finding") >= 4, "{once}");
    assert_eq!(findings(&once), findings(&twice));
}
