//! The grammar of gates: what is refused, and where the error points.

use cute_evidence::checks;
use cute_evidence::gates::{Ask, METRICS};

fn gate(text: &str) -> Ask {
    text.parse().unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn malformed_gates_are_refused_at_their_column() {
    for (text, column, says) in [
        ("", 1, "expected a metric"),
        ("corect>=45/50", 1, "no metric \"corect\""),
        ("correct", 8, "expected one of >="),
        ("correct>=", 10, "expected a number"),
        ("correct>=45", 10, "does not scale"),
        ("correct>=45/", 13, "after the /"),
        ("correct>=45/0", 13, "a share of nothing"),
        ("correct>=45/5x", 14, "left over"),
        ("correct>=51/50", 10, "more than all"),
        ("correct>=45/50 errors=0", 16, "left over"),
        ("correct=>45/50", 9, "expected a number"),
        ("errors=0.5", 8, "whole number"),
        ("errors=-1", 8, "below 0"),
        ("errors>=0", 7, "always true"),
        ("mcnemar>=5", 10, "at most 1"),
        ("mcnemar>=1/20", 10, "plain number"),
        ("label.grumpy=0", 7, "no label"),
        ("finding.=0", 9, "name of a check"),
        ("finding.fingerprint_difers=0", 9, "no check \"fingerprint_difers\""),
        (
            "event.cuda_eror=0",
            7,
            "no log pattern \"cuda_eror\": docs/PATTERNS.md lists them, among them cuda_error",
        ),
        ("findings<0", 9, "could not pass"),
        ("accuracy>100%", 9, "could not pass"),
        ("correct>50/50", 8, "could not pass"),
        ("correct<0/50", 8, "could not pass"),
        ("model_digest=0", 13, "could not pass"),
        ("server_alive=2", 13, "could not pass"),
        ("mcnemar>1", 8, "could not pass"),
        ("mcnemar<=1", 8, "could not fail"),
        ("accuracy<=1", 9, "could not fail"),
        ("model_digest!=0", 13, "could not fail"),
        ("correct>=45/50.5", 13, "whole number"),
        ("correct>=44.5/50", 10, "whole number"),
        ("runs>=5/5", 7, "no share"),
        ("finding.bad_row<=1/5", 18, "no share"),
        ("errors=zero", 8, "expected a number"),
        ("errors=1e999", 8, "no number"),
        ("errors ≥ 0", 8, "expected one of"),
    ] {
        let e = text.parse::<Ask>().unwrap_err();
        assert_eq!(e.column, column, "{e}");
        assert!(e.message.contains(says), "{text}: {e}");
    }
}

#[test]
fn no_text_makes_the_parser_panic_and_every_error_points_into_its_text() {
    let pieces = [
        "correct", "errors", "finding.", "label.", "event.x", "mcnemar", ">=", "<", "=", "!", "45", "/",
        "50", "%", " ", "-", "1e9", "é", "所", "\u{0}", ".",
    ];
    let mut x = 0x2545f4914f6cdd1du64;
    for _ in 0..20_000 {
        let mut text = String::new();
        for _ in 0..(x >> 40) % 7 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            text.push_str(pieces[(x >> 20) as usize % pieces.len()]);
        }
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        if let Err(e) = text.parse::<Ask>() {
            assert!(e.column >= 1 && e.column <= text.chars().count() + 1, "{e}");
        }
        let _ = text.parse::<checks::Layers>();
    }
}

#[test]
fn every_example_of_the_table_is_a_gate_and_names_are_unique() {
    let mut names = std::collections::BTreeSet::new();
    for m in METRICS {
        gate(m.example);
        assert!(names.insert(m.name), "{} stands there twice", m.name);
    }
    for good in [
        "correct >= 45 / 50",
        "accuracy>=90%",
        "accuracy>=0.9",
        "errors==0",
        "label.ngram_loop<=1/50",
        "finding.fingerprint_differs=0",
        "finding.non_finite_weights=0",
        "errors=-0",
        "runs>=1",
        "mcnemar<=0.05",
        "server_alive=1",
    ] {
        gate(good);
    }
}

#[test]
fn minus_zero_is_zero() {
    assert_eq!(gate("errors=-0").threshold, gate("errors=0").threshold);
    let cute_evidence::gates::Threshold::Number(x) = gate("errors=-0").threshold else { panic!() };
    assert!(x.is_sign_positive());
}

#[test]
fn every_finding_the_sources_write_has_a_name_that_a_gate_knows() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let written = regex::Regex::new(
        r#"(?:find|finding|\.add|\.error|\.warning)\(\s*"([a-z_0-9]+)",|check: "([a-z_0-9]+)""#,
    )
    .unwrap();
    let mut folders: Vec<_> = ["lib/evidence/src", "tools"].map(|d| root.join(d)).into();
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("tests") {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                for found in written.captures_iter(&text) {
                    let name = found.get(1).or(found.get(2)).unwrap().as_str();
                    seen += 1;
                    assert!(checks::catalogue::names().any(|n| n == name), "{name} in {}", path.display());
                }
            }
        }
    }
    assert!(seen > 60, "{seen}");
}
