//! Text as it grows, over random token ids of vocabularies made for it: single bytes, tokens that begin or end within a
//! character, special and added tokens, ids without a token, decoders that treat the first token differently.

use cute_checkpoint::{Detokenizer, Tokenizer};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::sync::LazyLock;

/// How byte-level vocabularies write a byte: GPT-2's table.
fn letter(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match printable(byte) {
        true => char::from(byte),
        false => char::from_u32(256 + (0..byte).filter(|b| !printable(*b)).count() as u32).unwrap(),
    }
}

fn tokenizer(vocab: Vec<String>, decoder: Value) -> Tokenizer {
    let added = |id: usize, content: &str, special: bool| {
        json!({"id": id, "content": content, "special": special,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
    };
    let n = vocab.len();
    let vocab: Map<String, Value> =
        vocab.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": decoder,
        "added_tokens": [added(n, "<|im_end|>", true), added(n + 1, "<think>", false), added(n + 2, "<é 好>", false)],
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocab, "merges": []},
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    Tokenizer::open(dir.path()).unwrap().unwrap()
}

/// All bytes; then tokens that hold several characters, halves of them, and ends of one with the beginning of the next.
static BYTES: LazyLock<Tokenizer> = LazyLock::new(|| {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|b| vec![b]).collect();
    let text = "好的🦀é\u{301}\u{200d}👩‍💻 a\u{fffd}\n".as_bytes();
    for len in 2..6 {
        tokens.extend(text.windows(len).step_by(2).map(<[u8]>::to_vec));
    }
    tokens.sort();
    tokens.dedup();
    let vocab = tokens.into_iter().map(|t| t.into_iter().map(letter).collect()).collect();
    tokenizer(
        vocab,
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
    )
});

/// Words whose first space is dropped at the beginning of a text.
static WORDS: LazyLock<Tokenizer> = LazyLock::new(|| {
    let words = ["▁a", "▁the", "b", "▁", "▁▁", "é", "好", "▁🦀", "c▁"].map(str::to_owned).to_vec();
    tokenizer(
        words,
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
    )
});

/// Tokens joined by spaces.
static JOINED: LazyLock<Tokenizer> =
    LazyLock::new(|| tokenizer(["a", "好", "c\u{fffd}"].map(str::to_owned).to_vec(), Value::Null));

/// Streams some ids: what is yielded is always a beginning of the whole, and no more of it than one incomplete character
/// waits, with the replacement characters before it that are its own.
fn check(tokenizer: &Tokenizer, ids: &[u32]) -> Result<(), TestCaseError> {
    let whole = tokenizer.decode(ids).unwrap();
    let (mut stream, mut text) = (Detokenizer::default(), String::new());
    for (i, &id) in ids.iter().enumerate() {
        text += &stream.push(tokenizer, id).unwrap();
        prop_assert!(whole.starts_with(&text), "{text:?} is no beginning of {whole:?}");
        let so_far = tokenizer.decode(&ids[..=i]).unwrap();
        prop_assert_eq!(&text, so_far.strip_suffix('\u{fffd}').unwrap_or(&so_far));
    }
    text += &stream.finish(tokenizer).unwrap();
    prop_assert_eq!(text, whole);
    Ok(())
}

/// Ids, a few beyond the vocabulary among them, and a run of one of them.
fn ids(tokenizer: &'static LazyLock<Tokenizer>) -> impl Strategy<Value = Vec<u32>> {
    let id = || 0..tokenizer.vocab_size() as u32 + 3;
    (prop::collection::vec(id(), 0..60), id(), 0usize..100, prop::collection::vec(id(), 0..60))
        .prop_map(|(head, one, n, tail)| [head, vec![one; n], tail].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_bytes_and_halves_stream_to_what_decode_gives(ids in ids(&BYTES)) {
        check(&BYTES, &ids)?;
    }

    #[test]
    fn decoders_that_treat_the_first_token_differently_stream_too(a in ids(&WORDS), b in ids(&JOINED)) {
        check(&WORDS, &a)?;
        check(&JOINED, &b)?;
    }

    #[test]
    fn any_text_cut_anywhere_comes_out_whole_and_never_by_halves(text in "[a-c é好🦀👩‍💻\u{301}\u{fffd}\n]{0,40}", end in 0usize..4) {
        let ids: Vec<u32> = text.bytes().map(byte).collect();
        let whole = ids.len() - end.min(ids.len());
        check(&BYTES, &ids[..whole])?;
        let (mut stream, mut out) = (Detokenizer::default(), String::new());
        for &id in &ids {
            out += &stream.push(&BYTES, id).unwrap();
            prop_assert!(text.starts_with(&out), "{out:?}");
        }
        prop_assert_eq!(out + &stream.finish(&BYTES).unwrap(), text);
    }
}

/// The id of a single byte.
fn byte(b: u8) -> u32 {
    BYTES.id(&letter(b).to_string()).unwrap()
}

#[test]
fn bytes_that_are_no_character_come_out_as_such_only_when_that_is_certain() {
    let crab = "🦀".as_bytes();
    let mut stream = Detokenizer::default();
    let mut push = |b: u8| stream.push(&BYTES, byte(b)).unwrap();
    assert_eq!([push(crab[0]), push(crab[1]), push(crab[2])], ["", "", ""]);
    assert_eq!(push(b'a'), "\u{fffd}a", "three bytes of four and a letter");
    assert_eq!((push(crab[0]), push(crab[1])), (String::new(), String::new()));
    assert_eq!(stream.finish(&BYTES).unwrap(), "\u{fffd}", "only at the end");
    assert_eq!(stream.finish(&BYTES).unwrap(), "", "and then it is empty");
}

#[test]
fn special_tokens_between_words_cost_no_space() {
    let [a, the, end] = ["▁a", "▁the", "<|im_end|>"].map(|t| WORDS.id(t).unwrap());
    let mut stream = Detokenizer::default();
    let text: String = [end, a, end, end, the].iter().map(|id| stream.push(&WORDS, *id).unwrap()).collect();
    assert_eq!(text, "a the");
}
