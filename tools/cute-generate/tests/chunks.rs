//! Stop strings and streamed replies from outside: where the text ends, what says why, and that chunks are the reply.

mod common;

use common::{bare, records, root, run, sealed, stderr, timeless};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SHORT: &[&str] = &["--limit", "6", "--max-num-seqs", "3", "--max-tokens", "60"];

fn with<'a>(args: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    args.iter().chain(more).copied().collect()
}

/// The records of a run that ended well.
fn sound(output: &Output) -> Vec<Value> {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    records(&output.stdout)
}

fn replies(all: &[Value]) -> Vec<&Value> {
    all.iter().filter(|r| r["type"] == "completion").collect()
}

fn chunks(all: &[Value]) -> BTreeMap<u64, Vec<&Value>> {
    let mut out: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
    for chunk in all.iter().filter(|r| r["type"] == "chunk") {
        out.entry(chunk["ordinal"].as_u64().unwrap()).or_default().push(chunk);
    }
    out
}

/// Asserts that the chunks of each reply make it.
fn whole(all: &[Value]) {
    let chunks = chunks(all);
    for reply in replies(all) {
        let parts = &chunks[&reply["ordinal"].as_u64().unwrap()];
        let text: String = parts.iter().map(|c| c["text"].as_str().unwrap()).collect();
        assert_eq!(text, reply["text"].as_str().unwrap());
        let ids: Vec<Value> = parts.iter().flat_map(|c| c["token_ids"].as_array().unwrap().clone()).collect();
        assert_eq!(reply["completion_tokens"], ids.len());
        if reply["token_ids"].is_array() {
            assert_eq!(reply["token_ids"], Value::Array(ids));
        }
        for (i, chunk) in parts.iter().enumerate() {
            assert_eq!((&chunk["part"], &chunk["id"]), (&json!(i), &reply["id"]));
            assert_eq!((&chunk["run"], &chunk["index"]), (&reply["run"], &reply["index"]));
            let last = i + 1 == parts.len();
            assert!(last || chunk["text"] != "", "an empty chunk before the last one");
            let end = if last { [&reply["finish_reason"], &reply["stop_reason"]] } else { [&Value::Null; 2] };
            assert_eq!([&chunk["finish_reason"], &chunk["stop_reason"]], end);
        }
    }
}

#[test]
fn a_stop_string_ends_the_reply_before_it_or_behind_it_and_is_named() {
    let free = sound(&run(SHORT, None));
    // a piece of the first reply that begins and ends within tokens
    let text = replies(&free)[0]["text"].as_str().unwrap();
    let stop: String = text.chars().skip(11).take(7).collect();
    let before = &text[..text.find(&stop).unwrap()];
    let stopped = sound(&run(&with(SHORT, &["--stop", "no such text", "--stop", &stop]), None));
    let reply = replies(&stopped)[0];
    assert_eq!(
        (&reply["text"], &reply["finish_reason"], &reply["stop_reason"]),
        (&json!(before), &json!("stop"), &json!(stop))
    );
    let kept = sound(&run(&with(SHORT, &["--stop", &stop, "--include-stop-str-in-output"]), None));
    assert_eq!(replies(&kept)[0]["text"], format!("{before}{stop}"));
    assert_eq!(replies(&kept)[0]["token_sha256"], reply["token_sha256"], "the same tokens");
    assert_ne!(replies(&kept)[0]["sampling_sha256"], reply["sampling_sha256"]);
    assert!(replies(&free).iter().all(|r| r["stop_reason"].is_null()));
}

#[test]
fn a_request_has_stop_strings_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = dir.path().join("prompts.jsonl");
    let prompt = "Question: What is 30 + 4?\\nAnswer:";
    let lines = [
        format!("{{\"prompt\":\"{prompt}\"}}"),
        format!("{{\"prompt\":\"{prompt}\",\"stop\":[]}}"),
        format!("{{\"prompt\":\"{prompt}\",\"stop\":[\"e\"],\"include_stop_str_in_output\":true}}"),
        format!("{{\"prompt\":\"{prompt}\",\"stop\":[\"\"]}}"),
    ];
    std::fs::write(&prompts, lines.join("\n") + "\n").unwrap();
    let output = bare()
        .arg("--prompts")
        .arg(&prompts)
        .args(["--stop", "a", "--max-tokens", "30", "--stream"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "the last one is refused");
    let all = records(&output.stdout);
    let [flag, none, own, refused] = replies(&all)[..] else { panic!("{all:?}") };
    let text = none["text"].as_str().unwrap();
    assert_eq!(flag["text"], text[..text.find('a').unwrap()]);
    assert_eq!(
        (&flag["stop_reason"], &none["stop_reason"], &own["stop_reason"]),
        (&json!("a"), &json!(null), &json!("e"))
    );
    assert_eq!(own["text"], text[..=text.find('e').unwrap()]);
    assert!(refused["error"].as_str().unwrap().contains("an empty stop string"), "{refused}");
    assert!(!chunks(&all).contains_key(&3), "what never ran has no chunks");
}

#[test]
fn chunks_make_the_reply_and_change_nothing_else() {
    let args = with(SHORT, &["--runs", "2", "--stop", "####", "--stop", " dollars and", "--token-ids"]);
    let (plain, streamed) = (sound(&run(&args, None)), sound(&run(&with(&args, &["--stream"]), None)));
    whole(&streamed);
    let bare = |all: &[Value]| -> Vec<Value> {
        let mut all: Vec<Value> = replies(all).into_iter().cloned().collect();
        all.iter_mut().for_each(|r| r.as_object_mut().unwrap().retain(|k, _| !k.ends_with("_ms")));
        all
    };
    assert_eq!(bare(&plain), bare(&streamed));
    let order: Vec<u64> =
        streamed.iter().filter(|r| r["type"] == "chunk").map(|r| r["ordinal"].as_u64().unwrap()).collect();
    assert!(
        order.windows(2).filter(|w| w[0] != w[1]).count() > 100,
        "chunks of requests in flight interleave"
    );
    assert!(chunks(&plain).is_empty());
    // every chunk comes before its reply
    for (i, reply) in streamed.iter().enumerate().filter(|(_, r)| r["type"] == "completion") {
        let late = streamed[i..].iter().any(|r| r["type"] == "chunk" && r["ordinal"] == reply["ordinal"]);
        assert!(!late, "{reply}");
    }
}

#[test]
fn cancelled_and_preempted_replies_are_their_chunks_and_probes_have_none() {
    let storm = ["--stream", "--storm", "cancel,preempt", "--storm-every", "9", "--probe", "canary"];
    let all = sound(&run(&with(SHORT, &storm), None));
    let (chunks, mut seen) = (chunks(&all), (0, 0));
    let ours: Vec<Value> =
        all.iter().filter(|r| r["type"] == "chunk" || r["text"].is_string()).cloned().collect();
    for reply in replies(&all) {
        let parts = chunks.get(&reply["ordinal"].as_u64().unwrap());
        assert_eq!(parts.is_none(), reply["text"].is_null(), "{reply}");
        let cancelled = parts.is_some() && reply["finish_reason"] == "cancelled";
        seen = (
            seen.0 + u32::from(cancelled),
            seen.1 + u32::from(parts.is_some() && !reply["preempted"].is_null()),
        );
    }
    assert!(seen.0 > 0 && seen.1 > 0, "cancelled and preempted: {seen:?}");
    whole(&ours);
}

#[test]
fn a_model_without_a_tokenizer_streams_tokens() {
    let args = [
        "--model",
        "tests/golden/three-to-one",
        "--max-tokens",
        "4",
        "--stream",
        "--token-ids",
        "--ignore-eos",
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_cute-generate"));
    command.current_dir(root()).env("CUTE_DEVICE", "cpu").args(args);
    let dir = tempfile::tempdir().unwrap();
    let all = sound(&command.arg("--prompts").arg(prompt_ids(dir.path())).output().unwrap());
    let ids: Vec<&Value> = chunks(&all)[&0].iter().flat_map(|c| c["token_ids"].as_array().unwrap()).collect();
    assert_eq!(ids, replies(&all)[0]["token_ids"].as_array().unwrap().iter().collect::<Vec<_>>());
    assert!(all.iter().filter(|r| r["type"] == "chunk").all(|c| c.get("text").is_none()));
}

fn prompt_ids(dir: &Path) -> PathBuf {
    let path = dir.join("ids.jsonl");
    std::fs::write(&path, "{\"prompt_token_ids\":[1,2,3]}\n").unwrap();
    path
}

#[test]
fn a_resumed_run_streams_what_a_whole_one_streams() {
    let args = with(SHORT, &["--stream", "--stop", "####"]);
    let whole = run(&args, None);
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(timeless(&run(&args, Some((dir.path(), false))).stdout), timeless(&whole.stdout));
    let journal = dir.path().join("journal.jsonl");
    let text = std::fs::read_to_string(&journal).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() > 4, "replies end in several steps");
    for kept in 1..=lines.len() {
        std::fs::write(&journal, lines[..kept].join("\n") + "\n").unwrap();
        let resumed = run(&args, Some((dir.path(), true)));
        assert_eq!(timeless(&resumed.stdout), timeless(&whole.stdout), "{kept} lines kept");
    }
    std::fs::write(&journal, &text).unwrap();
    let other = run(&with(SHORT, &["--stop", "####"]), Some((dir.path(), true)));
    assert!(stderr(&other).contains("another run: --stream was true, is false"), "{}", stderr(&other));
    let torn = text.replacen("\"tokens\":[[", "\"tokens\":[[1,", 1);
    std::fs::write(&journal, sealed(&torn.lines().collect::<Vec<_>>())).unwrap();
    let refused = run(&args, Some((dir.path(), true)));
    assert!(stderr(&refused).contains("tokens of a reply that has"), "{}", stderr(&refused));
}
