//! Hugging Face checkpoints of the Qwen3.5 family: config, tensors, tokenizer, chat template
