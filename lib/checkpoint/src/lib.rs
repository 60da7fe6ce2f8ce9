//! Hugging Face checkpoints of the Qwen3.5 family: config, tensors, tokenizer, chat template.
//!
//! [`Checkpoint::open`] reads config.json and the headers of all safetensors files and refuses, with a
//! sentence that names file and key or tensor, whatever is not exactly the model config.json describes.
//! Tensor data is read on demand ([`Checkpoint::weight`]) with positioned reads, never through a memory map:
//! a file cut off meanwhile is an error, not a signal.
//!
//! | module | for |
//! |---|---|
//! | [`config`] | config.json and generation_config.json, checked |
//! | [`checkpoint`] | the directory: headers against config, tensors on demand |
//! | [`tensor`] | element types and bytes |
//! | [`lazy`] | weights whose rows are read when they are asked for |
//! | [`weight`] | weights as they are stored, packed ones with their scales, and what they are worth |
//! | [`quantization`] | what a checkpoint says of its quantised weights |
//! | [`moe`] | mixtures of experts |
//! | [`hub`] | names of the hub, found in the local cache |
//! | [`tokenizer`] | text to token ids and back, streaming |
//! | [`chat`] | messages to text, as transformers renders them |
//! | [`digest`] | sha256 of every file |
//! | [`plan`] | memory a served model takes |
//! | [`record`] | the `model` record |
//! | [`scan`] | NaN and infinity in the weights, scales that no quantiser writes |
//! | [`verify`] | a checkpoint against the record of an earlier one |

pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod digest;
mod error;
mod expected;
pub use expected::expected_shapes;
mod header;
pub mod hub;
mod json;
mod keys;
pub mod lazy;
mod matching;
pub mod moe;
mod packed;
pub mod plan;
pub mod quantization;
pub mod record;
mod refuse;
pub mod scan;
mod shards;
mod source;
mod special;
pub mod tensor;
pub mod tokenizer;
pub mod verify;
pub mod weight;

pub use chat::ChatTemplate;
pub use checkpoint::Checkpoint;
pub use config::{Config, LayerType};
pub use error::Error;
pub use lazy::LazyWeight;
pub use moe::Moe;
pub use plan::memory_plan;
pub use refuse::Family;
pub use tensor::{Dtype, Tensor};
pub use tokenizer::{Detokenizer, Tokenizer};
pub use weight::{Format, Fp8, GlobalScale, Nvfp4, Weight};
