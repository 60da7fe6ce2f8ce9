//! `gsm8k.json`: one run of graded questions, 0-based; and the evaluation's own log (`[13/50] WRONG …`, 1-based).

use super::json::Node;
use super::rows::{Notes, Part, Row, Source, ms, need, short};
use super::sharegpt::figures;
use cute_records::{Completion, FinishReason, Record, num};

/// Characters of a reply the file keeps: a shorter tail is the whole reply.
const TAIL: usize = 200;

/// Reads a `gsm8k.json`; what it states about itself becomes an `evaluation` event.
pub(crate) fn read(source: &Source, notes: &mut Notes) -> (Part, Vec<Record>) {
    let doc = source.document().members();
    let mut part = Part { file: source.name.clone(), ..Part::default() };
    let mut head = Row(serde_json::Map::new());
    let mut results: Option<Node<'_>> = None;
    for (key, node) in &doc.items {
        if key == "results" {
            results = Some(*node);
        } else if let Ok(value) = node.value() {
            head.0.insert(key.clone(), value);
        }
    }
    // a file cut off inside its rows has no complete `results` member: take what stands there
    let open = doc.broken.and_then(|_| open_results(&source.text));
    if let Some(at) = doc.broken {
        notes.error("file_cut_off", source.place(at), "the document ends before it is complete");
    }
    let mut field = |result: Result<Option<u64>, String>| {
        result.unwrap_or_else(|message| {
            notes.error("bad_field", &source.name, message);
            None
        })
    };
    part.declared = field(head.u64("n"));
    part.run_index = field(head.u64("run_index"));
    let (correct, errors) = (field(head.u64("correct")), field(head.u64("errors")));
    part.stated = correct.map(|c| (c, errors.unwrap_or(0)));
    part.label = head.get("label").and_then(|v| v.as_str()).map(str::to_owned);
    for name in ["n", "seed", "model", "api", "max_tokens"] {
        if let Some(value) = head.get(name) {
            part.settings.insert(name.to_owned(), value.clone());
        }
    }
    let run = part.run_index.unwrap_or(0);
    if let Some(node) = results.or(open) {
        let rows = node.elements();
        if let (Some(at), true) = (rows.broken, doc.broken.is_none()) {
            notes.error("bad_row", source.place(at), "\"results\" is no list of rows");
        }
        for node in rows.items {
            let place = source.place(node.at);
            match Row::parse(node).and_then(|row| completion(&row, run, &place, notes)) {
                Ok(row) => part.push(row, notes),
                Err(message) => notes.error("bad_row", place, message),
            }
        }
    } else {
        notes.error("bad_field", &source.name, "no \"results\": expected a list of rows");
    }
    check_accuracy(&head, &part, notes);
    part.check_rows(notes);
    part.check_totals(notes);
    let stated = figures(source, "evaluation", head.0.into_iter().collect());
    (part, vec![stated])
}

/// The list behind `"results":` in a document that is not complete.
fn open_results(text: &str) -> Option<Node<'_>> {
    let at = text.find("\"results\"")?;
    let open = at + text[at..].find('[')?;
    Some(Node { at: open, text: &text[open..] })
}

fn completion(row: &Row, run: u64, place: &str, notes: &mut Notes) -> Result<Completion, String> {
    let index = need("i", "a 0-based index", row.u64("i")?)?;
    let status = need("status", "OK, WRONG or ERROR", row.text("status")?)?;
    let mut out = Completion {
        id: row.text("request_id")?.unwrap_or_else(|| format!("q{index}")),
        run,
        index,
        gold: row.word("expected")?,
        extracted: row.word("got")?.filter(|g| !g.is_empty()),
        source: Some(place.to_owned()),
        ..Completion::default()
    };
    let tail = row.text("raw_tail")?;
    match status.as_str() {
        "OK" => out.correct = Some(true),
        "WRONG" => out.correct = Some(false),
        "ERROR" => {
            out.correct = Some(false);
            out.finish_reason = Some(FinishReason::Error);
            out.error =
                Some(tail.clone().filter(|t| !t.is_empty()).unwrap_or_else(|| "status ERROR".to_owned()));
        }
        other => return Err(format!("status={other:?}: expected OK, WRONG or ERROR")),
    }
    measurements(row, &mut out)?;
    if out.error.is_none()
        && let Some(tail) = tail
    {
        let chars = tail.chars().count();
        if out.text_chars.map_or(chars < TAIL, |all| all == chars as u64) {
            check_digest(&out, &tail, place, notes);
            out.text_chars = None;
            out.text = Some(tail);
        } else {
            out.text_tail = Some(tail);
        }
    }
    let seconds = row.f64("elapsed")?;
    out.wall_ms = out.wall_ms.or(seconds.map(ms));
    if out.error.is_none()
        && let Some(gold) = &out.gold
    {
        let same = out.extracted.as_deref().is_some_and(|got| normal(got) == normal(gold));
        if Some(same) != out.correct {
            let got = out.extracted.as_deref().unwrap_or_default();
            notes.error(
                "status_contradicts_answer",
                place,
                format!("status {status}, expected {gold:?}, got {got:?}"),
            );
        }
    }
    Ok(out)
}

/// Fields that the question file and the per-question log share.
pub(super) fn measurements(row: &Row, out: &mut Completion) -> Result<(), String> {
    out.wall_ms = row.f64("wall_time_s")?.map(ms);
    out.prompt_tokens = row.u64("prompt_tokens")?;
    out.completion_tokens = row.u64("completion_tokens")?;
    out.text_chars = row.u64("output_len")?;
    out.text_sha256 = row.text("output_sha256")?;
    if let Some(total) = row.u64("total_tokens")?
        && let (Some(p), Some(c)) = (out.prompt_tokens, out.completion_tokens)
        && p.checked_add(c) != Some(total)
    {
        return Err(format!("total_tokens={total}: expected {p} + {c}"));
    }
    if out.finish_reason.is_none() {
        out.finish_reason = finish_reason(row)?;
    }
    Ok(())
}

/// `stop` or `length`; what else servers write is kept out, loudly.
pub(super) fn finish_reason(row: &Row) -> Result<Option<FinishReason>, String> {
    match row.get("finish_reason") {
        None => Ok(None),
        Some(v) => match v.as_str() {
            Some("stop") => Ok(Some(FinishReason::Stop)),
            Some("length") => Ok(Some(FinishReason::Length)),
            Some("error" | "abort") => Ok(Some(FinishReason::Error)),
            Some("") => Ok(None),
            _ => Err(format!("finish_reason={}: expected stop, length, error or abort", short(v))),
        },
    }
}

fn check_digest(out: &Completion, text: &str, place: &str, notes: &mut Notes) {
    if let Some(said) = &out.text_sha256 {
        let digest = cute_records::digest::sha256(text.as_bytes());
        if !digest.starts_with(said.as_str()) {
            notes.warning(
                "digest_mismatch",
                place,
                format!("output_sha256 {said}, the text has {}", &digest[..said.len().min(digest.len())]),
            );
        }
    }
}

/// The seed's notion of equal answers: whole numbers after truncation, else the text.
fn normal(answer: &str) -> String {
    let text = answer.trim().replace(',', "");
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() && x.abs() < 1e15 => format!("{}", x.trunc() as i64),
        _ => text,
    }
}

/// `48/50 (96.0%)` against the stated counts.
fn check_accuracy(head: &Row, part: &Part, notes: &mut Notes) {
    let (Some(said), Some((correct, _)), Some(n)) =
        (head.get("accuracy").and_then(|v| v.as_str()), part.stated, part.declared)
    else {
        return;
    };
    if !said.starts_with(&format!("{correct}/{n} ")) {
        notes.error("count_mismatch", &part.file, format!("accuracy {said:?}, correct {correct} of n {n}"));
    }
}

/// Reads the evaluation's own log: `[13/50] WRONG (gold=36 pred=1) 211.6s`, for runs whose `gsm8k.json` is missing.
pub(crate) fn read_log(source: &Source, notes: &mut Notes) -> Part {
    let mut part = Part { file: source.name.clone(), ..Part::default() };
    for (i, line) in source.text.lines().enumerate() {
        let place = format!("{}:{}", source.name, i + 1);
        if let Some(parsed) = log_line(line.trim()) {
            match parsed {
                Ok((n, mut row)) => {
                    if part.declared.is_some_and(|d| d != n) {
                        notes.warning(
                            "settings_differ",
                            &place,
                            format!("of {n} rows, before of {:?}", part.declared),
                        );
                    }
                    part.declared = part.declared.or(Some(n));
                    row.source = Some(place);
                    part.push(row, notes);
                }
                Err(message) => notes.error("bad_row", place, message),
            }
        }
    }
    part.check_rows(notes);
    part
}

/// True when a line is one of the evaluation's log.
pub(crate) fn is_log_line(line: &str) -> bool {
    log_line(line.trim()).is_some()
}

fn log_line(line: &str) -> Option<Result<(u64, Completion), String>> {
    let (place, rest) = line.strip_prefix('[')?.split_once("] ")?;
    let (index, n) = place.split_once('/')?;
    let count = |text: &str| text.parse().ok().filter(|n: &u64| *n <= num::MOST);
    let (index, n) = (count(index)?, count(n)?);
    let (status, rest) = rest.split_once(" (gold=").unwrap_or((rest.split(' ').next().unwrap_or(rest), ""));
    let correct = match status {
        "OK" => Some(true),
        "WRONG" | "ERROR" => Some(false),
        _ => return None,
    };
    let Some(index) = index.checked_sub(1) else {
        return Some(Err("index 0: this log counts from 1".to_owned()));
    };
    let (answers, seconds) = rest.split_once(") ").unwrap_or((rest, ""));
    let (gold, pred) = answers.split_once(" pred=").unwrap_or((answers, ""));
    let seconds = seconds.split('s').next().and_then(|s| s.trim().parse::<f64>().ok());
    let word = |w: &str| (!w.is_empty()).then(|| w.to_owned());
    Some(Ok((
        n,
        Completion {
            id: format!("q{index}"),
            index,
            gold: word(gold),
            extracted: word(pred),
            correct,
            finish_reason: (status == "ERROR").then_some(FinishReason::Error),
            error: (status == "ERROR").then(|| "status ERROR".to_owned()),
            wall_ms: seconds.map(ms),
            ..Completion::default()
        },
    )))
}
