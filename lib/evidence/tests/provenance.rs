//! Legs side by side: the incident's, and each kind of contradiction by itself.

use cute_evidence::provenance::{Comparison, Leg, Says, compare};
use std::path::{Path, PathBuf};

/// The incident's files, beside the repository; `None` where they are not at hand.
fn incident(file: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/evidence")).join(file);
    if !path.exists() {
        println!("skipped: {} is not at hand", path.display());
        return None;
    }
    Some(path)
}

fn finds(c: &Comparison, check: &str, part: &str) {
    let all: Vec<_> = c.findings.iter().map(|f| (&f.check, &f.message)).collect();
    assert!(all.iter().any(|(k, m)| *k == check && m.contains(part)), "no {check} with {part:?} in {all:#?}");
}

fn cell<'a>(c: &'a Comparison, row: &str, column: usize) -> &'a str {
    let row = c.rows.iter().find(|r| r[0] == row).unwrap_or_else(|| panic!("no row {row}"));
    &row[column]
}

#[test]
fn the_incidents_soaks_differ_in_layers_and_what_was_asked_for_is_not_what_ran() {
    let Some(root) = incident("") else { return };
    let legs = ["soak", "soak_d2_5_2L_3_7_control"].map(|l| Leg::read(&root.join(l)).unwrap());
    let c = compare(&legs);
    assert_eq!(c.columns, ["knob", "soak", "soak_d2_5_2L_3_7_control"]);
    assert_eq!(cell(&c, "phase_e_layers", 2), "3,7");
    assert_eq!((cell(&c, "result pool_blocks", 1), cell(&c, "result pool_blocks", 2)), ("863", "864"));
    assert_eq!(cell(&c, "result correct", 1), "48 48 48 11 37");
    let same = |k: &str| c.same.iter().find(|(n, _)| n == k).map(|(_, v)| v.as_str());
    assert_eq!((same("mamba_cache_mode"), same("wo_split")), (Some("align → none"), Some("8")));
    assert_eq!(same("image_commit"), Some("f79cf418b"));
    finds(&c, "requested_not_effective", "mamba_cache_mode was asked for as \"align\"");
    finds(&c, "commit_mismatch", "built from f79cf418b");
    finds(&c, "not_a_single_variable_comparison", "layers");
    finds(&c, "one_boot_per_leg", "2 legs");
}

#[test]
fn four_ablation_arms_with_one_total_are_a_coincidence_to_explain() {
    let Some(root) = incident("ablation") else { return };
    let legs: Vec<Leg> = ["both", "kv_only", "neither", "ssm_only"]
        .iter()
        .map(|a| Leg::read(&root.join(format!("verdict-{a}.json"))).unwrap())
        .collect();
    let c = compare(&legs);
    finds(&c, "identical_totals", "sum_completion_tokens is 42385 in all of");
    finds(&c, "not_a_single_variable_comparison", "verdict-both and verdict-neither differ in 2 things");
    // arms with equal scores may well have equal outputs: no coincidence
    let equal: Vec<Leg> = legs.into_iter().filter(|l| l.name != "verdict-kv_only").collect();
    assert!(compare(&equal).findings.iter().all(|f| f.check != "identical_totals"));
}

const DISPATCH: &str = "(EngineCore pid=1) INFO 05-13 13:32:02 [_backend.py:1397] [PHASE_E_DISPATCH] layer_name=l.3 layer_idx=3 \
    enabled=True restricted_layers=None is_decode_only=True use_fusion=True num_seqs=1 resident_cap=96 \
    use_beta_coop=True use_beta_lite=False\n";
const ARGS: &str = "(APIServer pid=1) INFO 05-10 20:14:02 [utils.py:233] non-default args: {'model': 'm', 'max_model_len': 4096}\n";

fn leg(dir: &Path, name: &str, env: &str, log: &str, verdict: &str) -> Leg {
    let dir = dir.join(name);
    std::fs::create_dir_all(&dir).unwrap();
    for (file, content) in [("ENV.txt", env), ("docker.log", log), ("verdict.json", verdict)] {
        if !content.is_empty() {
            std::fs::write(dir.join(file), content).unwrap();
        }
    }
    Leg::read(&dir).unwrap()
}

#[test]
fn knobs_the_server_reads_as_something_else_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let log = format!("{ARGS}{DISPATCH}");
    let one = |name: &str, env: &str, log: &str, verdict: &str| {
        compare(&[leg(dir.path(), name, env, log, verdict)])
    };
    let c = one("layers", "CUTE_PHASE_E_LAYERS=0..7\n", &log, "");
    finds(&c, "malformed_knob", "\"0..7\" is no list of layers");
    finds(&c, "requested_not_effective", "phase_e_layers was asked for as \"0..7\"");
    finds(&one("path", "CUTE_PHASE_E_PATH=fast\n", &log, ""), "malformed_knob", "none of auto, coop, lite");
    finds(&one("split", "CUTE_WO_SPLIT=3\n", &log, ""), "malformed_knob", "\"3\" is none of 1, 2, 4, 8");
    finds(&one("switch", "CUTE_PHASE_E_FUSION=yes\n", &log, ""), "malformed_knob", "neither 0 nor 1");
    finds(
        &one("lite", "CUTE_PHASE_E_PATH=lite\n", &log, ""),
        "requested_not_effective",
        "phase_e_path \"lite\", but coop layers are 3",
    );
    finds(
        &one("silent", "CUTE_PHASE_E_DISPATCH_LOG=1\n", ARGS, ""),
        "requested_not_effective",
        "holds no dispatch line",
    );
    finds(
        &one("raise", "CUTE_PHASE_E_FALLBACK_RAISE=1\n", &log, ""),
        "requested_not_effective",
        "does not confirm it",
    );
    let failed = format!(
        "{ARGS}(E pid=1) ERROR 05-10 20:14:02 [a.py:1] CuTe Phase E beta-coop kernel construction failed: x\n"
    );
    finds(&one("built", "", &failed, ""), "coop_not_built", "the server runs on");
    let verdict = "{\"arm\":\"x\",\"ok\":true,\"wo_split\":4,\"expected_coop_layers\":\"3,7\"}";
    let c = one("noted", "CUTE_WO_SPLIT=8\n", &log, verdict);
    finds(&c, "record_contradicts_log", "wo_split is recorded as \"4\", asked for as \"8\"");
    finds(
        &c,
        "requested_not_effective",
        "layers \"3,7\" were expected on the cooperative path, \"3\" took it",
    );
    let c = one("boots", "", &format!("{ARGS}{}", ARGS.replace("4096", "8192")), "");
    finds(&c, "knob_changes_within_leg", "max_model_len is 8192 here and 4096");
}

#[test]
fn one_difference_is_a_comparison_and_two_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let env = |wo: u32, path: &str| format!("CUTE_WO_SPLIT={wo}\nCUTE_PHASE_E_PATH={path}\n");
    let a = leg(dir.path(), "a", &env(8, "auto"), "", "");
    let b = leg(dir.path(), "b", &env(1, "auto"), "", "");
    let c = leg(dir.path(), "c", &env(1, "lite"), "", "");
    let single =
        |legs: &[Leg]| compare(legs).findings.iter().all(|f| f.check != "not_a_single_variable_comparison");
    assert!(single(&[a.clone(), b.clone()]) && single(&[b.clone(), c.clone()]));
    let all = compare(&[a.clone(), b, c]);
    finds(
        &all,
        "not_a_single_variable_comparison",
        "a and c differ in 2 things: phase_e_path (auto / lite), wo_split (8 / 1)",
    );
    assert_eq!(all.rows.len(), 2);
    assert_eq!(a.knobs["wo_split"].says(Says::Requested), Some("8"));
    assert_eq!(a.knobs["wo_split"].says(Says::Effective), None);
    // a knob only one leg states is shown and is no difference
    let mute = leg(dir.path(), "mute", "CUTE_WO_SPLIT=8\n", "", "");
    let shown = compare(&[a, mute]);
    assert_eq!(cell(&shown, "phase_e_path", 2), "-");
    assert!(shown.findings.is_empty());
    assert!(compare(&[]).rows.is_empty());
}
