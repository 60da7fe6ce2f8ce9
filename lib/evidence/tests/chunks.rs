//! Streamed replies: chunks that make their reply are no finding, and each way in which they do not is named.

use cute_evidence::checks::{self, Case, Expectations};
use cute_records::digest::sha256_ids;
use cute_records::{Chunk, Completion, End, FinishReason, Origin, Record, Run, Setting};

fn run() -> Record {
    let stream = Setting { value: true.into(), origin: Origin::Flag };
    Run { tool: "cute-generate".into(), config: [("stream".to_owned(), stream)].into(), ..Run::default() }
        .into()
}

fn chunk(part: u64, text: &str, token_ids: &[u32]) -> Chunk {
    let (text, token_ids) = (Some(text.to_owned()), token_ids.to_vec());
    Chunk { id: "a".into(), ordinal: 4, part, text, token_ids, ..Chunk::default() }
}

/// A reply and its three chunks.
struct Streamed {
    chunks: Vec<Chunk>,
    reply: Completion,
}

impl Streamed {
    fn new() -> Self {
        let mut chunks = vec![chunk(0, "The ", &[1]), chunk(1, "ans", &[2, 3]), chunk(2, "", &[4])];
        chunks[2].finish_reason = Some(FinishReason::Stop);
        chunks[2].stop_reason = Some("wer".into());
        let reply = Completion {
            id: "a".into(),
            ordinal: 4,
            text: Some("The ans".into()),
            completion_tokens: Some(4),
            token_sha256: Some(sha256_ids(&[1, 2, 3, 4])),
            finish_reason: Some(FinishReason::Stop),
            stop_reason: Some("wer".into()),
            ..Completion::default()
        };
        Streamed { chunks, reply }
    }
}

/// Messages of `chunks_differ` about a stream of records.
fn found(records: Vec<Record>) -> Vec<String> {
    let mut case = Case::default();
    records.iter().for_each(|r| case.add(r));
    case.finish();
    let all = checks::all(&case, &Expectations::default());
    let ours = all.into_iter().filter(|f| f.check == "chunks_differ");
    ours.map(|f| f.message).collect()
}

fn check(change: impl FnOnce(&mut Streamed), want: &str) {
    let mut s = Streamed::new();
    change(&mut s);
    let Streamed { chunks, reply } = s;
    let all = [vec![run()], chunks.into_iter().map(Record::Chunk).collect(), vec![reply.into()]].concat();
    let want = match want {
        "" => vec![],
        want => vec![format!("request 4 (run 0, index 0): its chunks do not make its reply: {want}")],
    };
    assert_eq!(found(all), want);
}

#[test]
fn chunks_that_make_the_reply_are_no_finding() {
    check(|_| (), "");
    check(
        |s| {
            s.reply.text = None;
            s.chunks.iter_mut().for_each(|c| c.text = None);
        },
        "",
    );
}

#[test]
fn each_way_in_which_chunks_are_not_the_reply_is_named() {
    check(
        |s| s.chunks[1].text = Some("and".into()),
        "their text differs from the reply's at byte 6 (7 and 7 bytes)",
    );
    check(
        |s| s.reply.text = Some("The answer".into()),
        "their text differs from the reply's at byte 7 (7 and 10 bytes)",
    );
    check(|s| s.chunks[1].token_ids = vec![3, 2], "their 4 tokens are not those of the reply");
    check(|s| s.chunks[1].token_ids = vec![2], "they hold 3 tokens, the reply has 4");
    check(|s| drop(s.chunks.remove(1)), "chunk 2 comes where chunk 1 should");
    check(|s| s.chunks.swap(0, 1), "chunk 1 comes where chunk 0 should");
    check(|s| drop(s.chunks.pop()), "the last one is missing: none has a finish_reason");
    check(|s| s.chunks[1].finish_reason = Some(FinishReason::Stop), "chunk 2 comes after the last one");
    check(|s| s.chunks[1].id = "b".into(), "chunk 1 is of \"b\", those before of \"a\"");
    check(
        |s| s.chunks.iter_mut().for_each(|c| c.id = "b".into()),
        "they are of \"b\", the reply is of \"a\"",
    );
    check(|s| s.chunks.clear(), "it has none");
    check(
        |s| s.reply.finish_reason = Some(FinishReason::Length),
        "their finish_reason is stop, the reply's length",
    );
    check(|s| s.reply.stop_reason = None, "their stop_reason is not the reply's");
    check(|s| s.chunks.iter_mut().for_each(|c| c.text = None), "they lack text");
    check(|s| s.reply.text = None, "they have text, and the reply has none");
}

#[test]
fn chunks_without_a_reply_are_a_finding_when_the_run_says_that_it_is_complete() {
    let records = |complete| {
        let end = End { tool: "cute-generate".into(), complete, ..End::default() };
        let chunks = Streamed::new().chunks.into_iter().map(Record::Chunk);
        [run()].into_iter().chain(chunks).chain([end.into()]).collect()
    };
    assert_eq!(found(records(true)), ["request 4: 3 chunk(s), and the reply never came"]);
    assert_eq!(found(records(false)), [""; 0], "a run that was stopped leaves replies in flight");
}
