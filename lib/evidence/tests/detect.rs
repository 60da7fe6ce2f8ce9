//! Detectors: what must be caught, and what must be left alone.

use cute_evidence::detect::{Label, Labelled, label, label_all};
use cute_records::{Completion, FinishReason};

fn reply(text: &str, finish: Option<FinishReason>) -> Labelled {
    label(&Completion { text: Some(text.to_owned()), finish_reason: finish, ..Completion::default() })
}

fn tail(text: &str) -> Labelled {
    let last: String = text.chars().rev().take(200).collect::<Vec<_>>().into_iter().rev().collect();
    label(&Completion { text_tail: Some(last), ..Completion::default() })
}

const LENGTH: Option<FinishReason> = Some(FinishReason::Length);
const STOP: Option<FinishReason> = Some(FinishReason::Stop);

/// Every way in which a reply may reach us.
fn check(text: &str, expect: Label) {
    for finish in [LENGTH, STOP, None] {
        let got = reply(text, finish);
        let cut = expect == Label::Healthy && matches!(got.label, Label::CutOff);
        assert!(got.label == expect || cut, "{finish:?}: {:?}\n{text}\n{:?}", got.label, got.evidence);
    }
    let got = tail(text);
    assert!(
        got.label == expect || got.label == Label::CutOff && expect == Label::Healthy,
        "tail: {got:?}\n{text}"
    );
}

#[test]
fn two_thousand_exclamation_marks_are_caught() {
    check(&"!".repeat(2048), Label::SingleTokenRun);
    check(&format!("<think>{}", "!".repeat(511)), Label::SingleTokenRun);
    check(&format!(" The{}", "!".repeat(127)), Label::SingleTokenRun);
    check(&format!("So he has 12 apples left{}", "!".repeat(300)), Label::SingleTokenRun);
}

#[test]
fn a_line_end_behind_a_run_does_not_hide_it() {
    for behind in ["\n", "  ", "\n\n \n"] {
        let text = format!("7{}{behind}", "!".repeat(120));
        assert!(reply(&text, Some(FinishReason::Length)).degenerate(), "{behind:?}");
        assert!(!reply(&format!("So the answer is 7!{behind}"), Some(FinishReason::Stop)).degenerate());
    }
}

#[test]
fn a_short_run_at_the_token_limit_is_caught() {
    assert_eq!(reply("Then she pays 3!!!!!!!!", LENGTH).label, Label::SingleTokenRun);
    assert_eq!(reply("Then she pays 3!!!!!!!!", STOP).label, Label::Healthy);
}

#[test]
fn the_start_of_a_run_is_named_in_characters_in_tokens_and_from_a_tail() {
    let text = format!("1{}", "!".repeat(511));
    let run = reply(&text, LENGTH).run.unwrap();
    assert_eq!((run.start, run.length, run.unit), (Some(1), 511, "characters"));
    let ids = |n: usize| [vec![220, 16], vec![0; n]].concat();
    let c = Completion { text: Some(text.clone()), token_ids: Some(ids(511)), ..Completion::default() };
    let run = label(&c).run.unwrap();
    assert_eq!((run.start, run.length, run.unit, run.token.as_str()), (Some(2), 511, "tokens", "!"));
    let run = tail(&text).run.unwrap();
    assert_eq!((run.start, run.length), (None, 200), "the run fills the tail: it starts before it");
    let run = tail(&format!("{}{}", "and so on ".repeat(30), "!".repeat(150))).run.unwrap();
    assert_eq!((run.start, run.length), (Some(50), 150));
    let c = Completion { token_ids: Some(ids(40)), finish_reason: LENGTH, ..Completion::default() };
    assert_eq!(label(&c).run.unwrap().start, Some(2), "ids alone are enough");
}

#[test]
fn other_tokens_than_the_exclamation_mark_are_caught_too() {
    check(&format!("answer{}", "\u{fffd}".repeat(400)), Label::SingleTokenRun);
    check(&format!("answer{}", "?".repeat(400)), Label::SingleTokenRun);
    check(&format!("x{}", "a".repeat(400)), Label::SingleTokenRun);
    check(&format!("0.{}", "3".repeat(500)), Label::SingleTokenRun);
    check(&format!("Answer:{}", "\n".repeat(500)), Label::SingleTokenRun);
    check(&"=".repeat(600), Label::SingleTokenRun);
}

#[test]
fn a_run_followed_by_text_is_a_collapse_only_when_it_is_long() {
    let run = reply(&format!("a{}b and the answer is 4.", "!".repeat(400)), STOP).run.unwrap();
    assert!(!run.to_end);
    assert_eq!(reply("Wow!!!!!!!!!!!!!!!! That is 4.", STOP).label, Label::Healthy);
}

#[test]
fn ornament_and_numbers_are_left_alone() {
    for sound in [
        "Totals\n====================\n12 apples\n",
        "Totals\n==========================================================",
        "Chapter 1 ................................................ 12",
        "and so on......",
        "The result is 1000000000000000000000",
        "1/3 = 0.333333333333333333333333333333",
        "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n+---------+---------+",
        "+-------+-------+\n| x     | y     |\n+-------+-------+\n| 1     | 2     |\n+-------+-------+",
        "Great job!!!",
        "Congratulations!!!!!!!",
        "哈哈哈哈哈哈",
        "所以答案是四十五。因为每个人有三个苹果,十五个人一共有四十五个苹果。",
        "答えは45です。三つのりんごを十五人が持っています。",
        "- - - - - - - - - - - - - - - - - - - - - - - - - - - - - -",
        "=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-=-",
        "1010101010101010101010101010101010101010101010101010101010101010101010",
        "*****",
        "0x00000000000000000000000000000000",
        "    indented\n\n\n\n",
        "The row is 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90, 95, 100.",
        "Day 1: 5 km. Day 2: 10 km. Day 3: 15 km. Day 4: 20 km. Day 5: 25 km. Day 6: 30 km. Day 7: 35 km.",
        "No no no, that is wrong. The answer is 4.",
        "Therefore the answer is 5.\n\nTherefore the answer is 5.",
        "😀😀😀😀",
        "a",
        "7",
    ] {
        check(sound, Label::Healthy);
    }
}

#[test]
fn phrases_that_repeat_to_the_end_are_loops() {
    check(&"ha ".repeat(60), Label::NgramLoop);
    check(&format!("It was funny: {}", "ha ha ha ".repeat(30)), Label::NgramLoop);
    let sentence = "I need to find the total cost of the apples and the oranges. ";
    check(&format!("First, {}", sentence.repeat(8)), Label::NgramLoop);
    check(&"so the answer is 5\n".repeat(20), Label::NgramLoop);
    check(&"所以答案是四十五。".repeat(30), Label::NgramLoop);
    let found = reply(&format!("First, {}", sentence.repeat(8)), LENGTH).looping.unwrap();
    assert_eq!(found.period, sentence.len());
}

#[test]
fn almost_equal_repeats_are_loops_when_the_limit_cut_them() {
    let text: String = (0..30)
        .map(|i| format!("Wait, I should check the sum of all the items once more, step {i}. "))
        .collect();
    assert_eq!(reply(&text, LENGTH).label, Label::NgramLoop);
    assert_eq!(reply(&text, STOP).label, Label::Healthy);
}

#[test]
fn a_refrain_in_the_middle_is_no_loop() {
    let text = format!(
        "{}And then the song was over, everybody went home and slept.",
        "la la la, la la la. ".repeat(6)
    );
    check(&text, Label::Healthy);
}

#[test]
fn empty_cut_off_and_failed_replies_have_labels_of_their_own() {
    assert_eq!(reply("", STOP).label, Label::Empty);
    assert_eq!(reply(" \n", STOP).label, Label::Empty);
    assert_eq!(reply("She then buys three more and", LENGTH).label, Label::CutOff);
    let cancelled = Some(FinishReason::Cancelled);
    assert_eq!(reply("She then buys three more and", cancelled).label, Label::Cancelled);
    assert_eq!(reply("", cancelled).label, Label::Cancelled);
    assert_eq!(reply(&"!".repeat(99), cancelled).label, Label::SingleTokenRun, "garbage by then");
    let c =
        Completion { error: Some("timed out".into()), text: Some("!".repeat(99)), ..Completion::default() };
    assert_eq!(label(&c).label, Label::ClientError);
    let c = Completion { finish_reason: Some(FinishReason::Error), ..Completion::default() };
    assert_eq!(label(&c).label, Label::ClientError);
    let c = Completion {
        text_tail: Some("= 3 * 40 = 120\n4. Now add 1".into()),
        correct: Some(false),
        ..Completion::default()
    };
    assert_eq!(label(&c).label, Label::CutOff);
    assert!(label(&c).evidence.contains_key("inferred"));
}

#[test]
fn garbage_that_was_graded_correct_is_lucky_and_still_degenerate() {
    let c = Completion {
        text: Some(format!("1{}", "!".repeat(300))),
        correct: Some(true),
        ..Completion::default()
    };
    assert_eq!(label(&c).label, Label::LuckyGarbage);
    assert!(label(&c).degenerate());
}

#[test]
fn misses_are_compared_over_healthy_runs_only() {
    let row = |run, index, answer: &str, right: bool, text: &str| Completion {
        run,
        index,
        extracted: Some(answer.into()),
        correct: Some(right),
        text: Some(text.into()),
        finish_reason: STOP,
        ..Completion::default()
    };
    let bad = "!".repeat(64);
    let rows = [
        row(0, 0, "7", false, "7."),
        row(1, 0, "7", false, "7."),
        row(2, 0, "1", false, &bad),
        row(0, 1, "4", true, "4."),
        row(1, 1, "5", false, "5."),
        row(2, 1, "4", true, "4."),
        row(0, 2, "2", false, "2."),
        row(1, 2, "3", false, "3."),
        row(2, 2, "1", false, &bad),
        row(0, 3, "9", false, "9."),
        row(1, 3, "1", false, &bad),
        row(2, 3, "1", false, &bad),
        row(0, 4, "9", true, "9."),
        row(1, 4, "9", true, "9."),
        row(2, 4, "1", false, &bad),
    ];
    let labels: Vec<Label> = label_all(&rows).iter().map(|l| l.label).collect();
    use Label::*;
    assert_eq!(labels[..3], [StableMiss, StableMiss, SingleTokenRun]);
    assert_eq!(labels[3..6], [Healthy, KnifeEdge, Healthy]);
    assert_eq!(labels[6..9], [KnifeEdge, KnifeEdge, SingleTokenRun], "wrong in different ways");
    assert_eq!(labels[9], Healthy, "one healthy run proves no stability");
    assert_eq!(labels[12..], [Healthy, Healthy, SingleTokenRun]);
}

#[test]
fn nothing_panics_on_odd_text() {
    for text in [
        "",
        "\u{0}",
        "\u{0}\u{0}\u{0}",
        "e\u{301}".repeat(500).as_str(),
        "🇩🇪".repeat(300).as_str(),
        "\r\n".repeat(400).as_str(),
    ] {
        let _ = reply(text, LENGTH);
        let _ = tail(text);
    }
}

#[test]
fn a_run_is_found_wherever_it_starts_and_no_random_text_is_called_one() {
    let mut x = 88172645463325252u64;
    let mut random = |n: u64| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x % n
    };
    let words = [
        "the", "sum", "is", "12", "apples", "and", "so", "Tom", "has", "left", "=", "+", "3.5", "所以", "\n",
        "-", "**", "$4",
    ];
    for _ in 0..2000 {
        let sound: Vec<&str> =
            (0..5 + random(60)).map(|_| words[random(words.len() as u64) as usize]).collect();
        let sound = sound.join(" ");
        for finish in [STOP, LENGTH, None] {
            assert!(reply(&sound, finish).run.is_none(), "{sound}");
        }
        let n = 16 + random(500) as usize;
        let run = reply(&format!("{sound}{}", "!".repeat(n)), LENGTH).run.unwrap();
        assert_eq!((run.start, run.length), (Some(sound.chars().count()), n));
    }
}
