//! The trained checkpoint beside the workspace: opens, reads, hashes, encodes.

use cute_checkpoint::{Checkpoint, Detokenizer, Dtype, Tokenizer};
use std::path::{Path, PathBuf};

/// Trained checkpoints that are there; a line on stderr says which are not.
fn checkpoints() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let all = [root.join("examples/tiny-hybrid"), root.join("../shared/tiny-hybrid")];
    let there = |p: &PathBuf| {
        let there = p.join("model.safetensors").is_file();
        if !there {
            eprintln!("skipped: no checkpoint at {}", p.display());
        }
        there
    };
    all.into_iter().filter(there).collect()
}

#[test]
fn a_trained_checkpoint_opens_and_every_tensor_is_finite() {
    for dir in checkpoints() {
        let model = Checkpoint::open(&dir).unwrap();
        assert_eq!(model.config.architecture, "Qwen3_5ForCausalLM");
        assert!(!model.config.full_attention_layers().is_empty());
        let embed = model.tensor("embed_tokens.weight").unwrap();
        assert_eq!(embed.shape, [model.config.vocab_size, model.config.hidden_size]);
        assert_eq!(embed.dtype, Dtype::BF16);
        assert_eq!(embed.to_bf16_bits().unwrap().len(), embed.len());
        for name in model.tensor_names() {
            assert_eq!(model.tensor(name).unwrap().non_finite(), 0, "{name}");
        }
    }
}

#[test]
fn a_stream_of_tokens_puts_together_what_decode_gives() {
    for dir in checkpoints() {
        let tokenizer = Tokenizer::open(&dir).unwrap().unwrap();
        tokenizer.check(&Checkpoint::open(&dir).unwrap().config).unwrap();
        let text = "Question: 12 + 30 = ? Grüße, 中文 🦀🦀 <|im_end|> #### 42\n";
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text.replace("<|im_end|>", ""));
        let mut stream = Detokenizer::default();
        let mut out = String::new();
        for &id in &ids {
            let piece = stream.push(&tokenizer, id).unwrap();
            assert!(!piece.contains('\u{fffd}'), "{piece:?}");
            out += &piece;
        }
        out += &stream.finish(&tokenizer).unwrap();
        assert_eq!(out, tokenizer.decode(&ids).unwrap());
    }
}
