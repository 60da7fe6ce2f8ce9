//! What people see: tables at 100 columns, markdown, and a page that a real browser shows.

use cute_evidence::checks::{self, Case, Expectations};
use cute_evidence::explain::explain;
use cute_evidence::gates::{Judgment, Settings, judge};
use cute_evidence::report::{Table, html, table, tables};
use cute_records::{Completion, Dispatch, FinishReason, Pool, Record, Run};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A soak of five runs on a made-up engine that collapses from 162 to 213, with a nasty answer in it.
fn soak() -> (Case, Judgment) {
    let mut case = Case::default();
    case.add(&Record::Run(Run {
        tool: "cute-generate".into(),
        version: "1".into(),
        device: Some("cpu".into()),
        ..Run::default()
    }));
    case.add(&Record::Pool(Pool {
        num_blocks: Some(863),
        block_size: Some(1600),
        block_bytes: Some(3_276_800),
        token_bytes: Some(2048),
        state_blocks_per_request: Some(3),
        ..Pool::default()
    }));
    for layer in [3, 7] {
        case.add(&Record::Dispatch(Dispatch {
            layer_idx: Some(layer),
            is_decode_only: true,
            use_beta_coop: true,
            num_seqs: 1,
            outcome: Some("coop".into()),
            ..Dispatch::default()
        }));
    }
    for i in 0..250u64 {
        let bad = (162..214).contains(&i);
        let right = !bad && !matches!(i % 50, 0 | 44);
        let answer = if i % 50 == 44 { "<script>alert(1)</script>" } else { "7" };
        case.add(&Record::Completion(Completion {
            id: i.to_string(),
            run: i / 50,
            index: i % 50,
            ordinal: i,
            text: Some(if bad { format!("1{}", "!".repeat(99)) } else { "It is 7.".into() }),
            finish_reason: Some(if bad { FinishReason::Length } else { FinishReason::Stop }),
            gold: Some("7".into()),
            extracted: Some(answer.into()),
            correct: Some(right),
            wall_ms: Some(61_234.5),
            ..Completion::default()
        }));
    }
    case.finish();
    let mut found = checks::all(&case, &Expectations::default());
    found.extend(explain(&case).findings);
    case.findings.extend(found);
    let j = judge(&case, &Settings::default());
    (case, j)
}

#[test]
fn no_table_is_wider_than_100_columns() {
    let (case, j) = soak();
    let all = tables::all(&case, &j);
    assert!(all.len() >= 6, "{} tables", all.len());
    for t in all {
        for line in t.text(table::WIDTH).lines() {
            assert!(table::wide(line) <= 100, "{} columns: {line}", table::wide(line));
        }
    }
}

#[test]
fn tables_align_wrap_and_survive_odd_cells() {
    let mut t = Table::new("T", &["name", ">n", "because"]);
    t.row(["a|b", "1", "short"]);
    t.row(["所以", "12", &"word ".repeat(40)]);
    t.row(["tab\there\nnewline", "3", &"x".repeat(300)]);
    let text = t.text(60);
    assert!(text.lines().all(|l| table::wide(l) <= 60), "{text}");
    assert!(text.contains("a|b"), "{text}");
    assert!(t.markdown().contains("| a\\|b | 1 | short |"), "{}", t.markdown());
    assert!(t.markdown().contains("|---|---:|---|"));
}

#[test]
fn the_page_names_onset_recovery_and_mechanism_and_needs_nothing_else() {
    let (case, j) = soak();
    let page = html::page(&case, &j);
    for says in [
        "48, 48, 48, 11, 35 of 50 correct; bad from request 162, good again from 214.",
        "kv_offset_i32_overflow explains 250 of 250 labels",
        "onset: ordinal 162, run 4 Q12",
        "recovery: ordinal 214, run 5 Q14",
        "prefers-color-scheme: dark",
        "alarm 16",
        "after_n_requests",
    ] {
        assert!(page.contains(says), "{says:?} is missing");
    }
    assert!(!page.contains("<script"), "no script, neither ours nor a reply's");
    assert!(page.contains("&lt;script&gt;alert(1)"), "a reply's text is escaped");
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside} reaches outside the file");
    }
}

#[test]
fn a_page_of_nothing_and_a_page_of_very_much_are_pages() {
    let mut empty = Case::default();
    empty.finish();
    let page = html::page(&empty, &judge(&empty, &Settings::default()));
    assert!(page.contains("inconclusive") && page.ends_with("</html>"));
    let mut big = Case::default();
    for i in 0..60_000u64 {
        let text = if i % 1000 == 7 { "!".repeat(80) } else { "Fine.".into() };
        big.add(
            &Completion {
                run: i / 2000,
                index: i % 2000,
                ordinal: i,
                text: Some(text),
                ..Completion::default()
            }
            .into(),
        );
    }
    big.finish();
    let page = html::page(&big, &judge(&big, &Settings::default()));
    assert!(page.len() < 4_000_000, "{} bytes", page.len());
}

#[test]
fn a_map_of_many_or_far_questions_stays_within_its_picture() {
    let all: Vec<u64> = (0..1319).collect();
    let far = [0, 1, 2, 1 << 32, u64::MAX];
    for (indices, labels) in [(&all[..], "1300"), (&far, "4294967296")] {
        let mut case = Case::default();
        for (ordinal, index) in indices.iter().enumerate() {
            let (index, ordinal) = (*index, ordinal as u64);
            let text = Some("!".repeat(80));
            case.add(&Completion { index, ordinal, text, ..Completion::default() }.into());
        }
        case.finish();
        let page = html::page(&case, &judge(&case, &Settings::default()));
        let map = page.split("heat map").nth(1).unwrap().split("</svg>").next().unwrap();
        assert!(map.contains(&format!(">{labels}</text>")), "{labels}");
        let number = |rect: &str, name: &str| -> f64 {
            let value = rect.split(&format!(" {name}=\"")).nth(1).unwrap().split('"').next().unwrap();
            value.parse().unwrap()
        };
        let cells: Vec<&str> = map.split("<rect").skip(1).collect();
        assert_eq!(cells.len(), indices.len());
        for cell in cells {
            let end = number(cell, "x") + number(cell, "width");
            assert!(end <= 1060.0, "a cell ends at {end}");
        }
    }
}

#[test]
fn a_question_that_every_run_answered_is_not_among_the_missed_ones() {
    // Collapsed all through run 4; of its outputs that of question 1 is graded correct.
    let mut case = Case::default();
    for i in 0..250u64 {
        let bad = i / 50 == 3;
        case.add(
            &Completion {
                run: i / 50,
                index: i % 50,
                ordinal: i,
                text: Some(if bad { format!("1{}", "!".repeat(99)) } else { "It is 7.".into() }),
                gold: Some("7".into()),
                extracted: Some("7".into()),
                correct: Some(!bad || i % 50 == 1),
                ..Completion::default()
            }
            .into(),
        );
    }
    case.finish();
    let leg = case.with_completions().next().unwrap();
    let folded = tables::misses(leg, tables::Rows::Folded).unwrap();
    assert_eq!(folded.notes, ["49 questions were missed by collapsed outputs only: Q0, 2-49."]);
    assert_eq!(tables::misses(leg, tables::Rows::All).unwrap().rows.len(), 49);
}

fn browser() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).flat_map(|dir| names.map(|n| dir.join(n))).find(|p| p.is_file())
}

fn screenshot(browser: &Path, page: &Path, to: &Path) -> usize {
    let profile = page.with_extension("profile");
    let done = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1600"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--screenshot={}", to.display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let size = std::fs::metadata(to).map(|m| m.len() as usize);
    size.unwrap_or_else(|_| panic!("no screenshot: {}", String::from_utf8_lossy(&done.stderr)))
}

#[test]
fn a_real_browser_shows_the_page() {
    let Some(browser) = browser() else {
        eprintln!("skipped: no chromium on the PATH");
        return;
    };
    let dir = std::env::temp_dir().join(format!("cute-report-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (case, j) = soak();
    let (full, blank) = (dir.join("full.html"), dir.join("blank.html"));
    std::fs::write(&full, html::page(&case, &j)).unwrap();
    std::fs::write(&blank, "<!doctype html><title>blank</title>").unwrap();
    let drawn = screenshot(&browser, &full, &dir.join("full.png"));
    let nothing = screenshot(&browser, &blank, &dir.join("blank.png"));
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(drawn > 40_000 && drawn > 5 * nothing, "{drawn} bytes of picture, {nothing} of a blank one");
}
