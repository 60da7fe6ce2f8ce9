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
        "finding.x=0",
    ] {
        gate(good);
    }
}
