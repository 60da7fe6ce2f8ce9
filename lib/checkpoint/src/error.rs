//! What can be wrong with a checkpoint: one variant per way, each naming file, key or tensor, what stands
//! there and what was expected.

use std::io;

/// Why a checkpoint is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// the system failed
    #[error("{file}: {error}")]
    Io {
        /// path of the file
        file: String,
        /// what the system said
        error: io::Error,
    },
    /// the checkpoint directory is not there
    #[error("{path}: no such directory{hint}")]
    NoDirectory {
        /// as given
        path: String,
        /// why it is no name of the hub either, when it could have been meant as one
        hint: String,
    },
    /// a name of the hub that the local cache does not have
    #[error("{name}: no such directory, and {reason}; `{command}` downloads it")]
    NotCached {
        /// as given
        name: String,
        /// what the cache has instead
        reason: String,
        /// what to run
        command: String,
    },
    /// a ref of the cache that names no commit
    #[error("{file}: it says {found:?}: expected a commit")]
    BadReference {
        /// path of the ref
        file: String,
        /// its content
        found: String,
    },
    /// a snapshot of the cache whose download did not come to its end
    #[error("{dir}: no {file}: {why}; `{command}` completes the snapshot")]
    Incomplete {
        /// the snapshot
        dir: String,
        /// name of the first missing file
        file: String,
        /// how that is known
        why: String,
        /// what to run
        command: String,
    },
    /// a file that must be there is not
    #[error("{dir}: no {file}: {why}")]
    MissingFile {
        /// the checkpoint
        dir: String,
        /// name of the file
        file: String,
        /// who needs it
        why: String,
    },
    /// a directory, pipe or device stands where a file is expected
    #[error("{file}: {found}: expected a regular file")]
    NotAFile {
        /// path of the file
        file: String,
        /// what it is
        found: &'static str,
    },
    /// a text file is far larger than its kind ever is
    #[error("{file}: {bytes} bytes: expected at most {limit}")]
    FileTooLarge {
        /// path of the file
        file: String,
        /// its size
        bytes: u64,
        /// the limit
        limit: u64,
    },
    /// what git keeps in place of a large file
    #[error("{file}: it is a Git LFS pointer: fetch the file itself with git lfs pull")]
    LfsPointer {
        /// path of the file
        file: String,
    },
    /// a JSON file does not parse
    #[error("{file}: not the JSON that belongs here: {reason}")]
    Json {
        /// path of the file
        file: String,
        /// what the parser said
        reason: String,
    },
    /// a key is absent
    #[error("{file}: no {key}: expected {expected}")]
    MissingKey {
        /// path of the file
        file: String,
        /// name of the key
        key: String,
        /// what it should say
        expected: String,
    },
    /// a key has a value that cannot be
    #[error("{file}: {key} is {found}: expected {expected}")]
    BadKey {
        /// path of the file
        file: String,
        /// name of the key
        key: String,
        /// its value
        found: String,
        /// what it should be
        expected: String,
    },
    /// the checkpoint is sound but of a kind this build does not run
    #[error("{file}: {what} is not supported: {needed}")]
    Unsupported {
        /// path of the file that says so
        file: String,
        /// the kind, by name
        what: String,
        /// what would be needed
        needed: String,
    },
    /// the header of a safetensors file is broken as a whole
    #[error("{file}: bad safetensors header: {reason}")]
    Header {
        /// path of the file
        file: String,
        /// what is wrong
        reason: String,
    },
    /// an entry of a safetensors header is broken
    #[error("{file}: tensor {tensor} at data offset {offset}: {reason}")]
    HeaderEntry {
        /// path of the file
        file: String,
        /// name of the tensor
        tensor: String,
        /// where its bytes start, behind the header
        offset: u64,
        /// what is wrong
        reason: String,
    },
    /// a safetensors file is shorter or longer than its header says
    #[error("{file}: {found} bytes: its header says {expected}{detail}")]
    FileLength {
        /// path of the file
        file: String,
        /// its size
        found: u64,
        /// the size its header implies
        expected: u64,
        /// which tensor is cut, or how much is left over
        detail: String,
    },
    /// the same tensor stands in two files
    #[error("tensor {tensor} stands twice: in {first} and in {second}")]
    DuplicateTensor {
        /// name of the tensor
        tensor: String,
        /// path of one file
        first: String,
        /// path of the other
        second: String,
    },
    /// index and files disagree
    #[error("{file}: {reason}")]
    Index {
        /// path of the index
        file: String,
        /// how they disagree
        reason: String,
    },
    /// tensors of both naming schemes
    #[error("{dir}: tensors with two prefixes: {first} and {second}: expected one text model")]
    MixedPrefixes {
        /// the checkpoint
        dir: String,
        /// a tensor named `model.…`
        first: String,
        /// a tensor named `model.language_model.…`
        second: String,
    },
    /// a tensor is absent
    #[error("{dir}: no tensor {tensor}: expected shape {expected}{more}")]
    MissingTensor {
        /// the checkpoint
        dir: String,
        /// its full name
        tensor: String,
        /// its shape by config.json
        expected: String,
        /// how many others are absent, or why it should be there
        more: String,
    },
    /// a tensor has no place in the model
    #[error("{file}: unexpected tensor {tensor}{why}")]
    UnexpectedTensor {
        /// path of the file
        file: String,
        /// its full name
        tensor: String,
        /// why it is unexpected, where that is known
        why: String,
    },
    /// a tensor has another shape than config.json implies
    #[error("{file}: tensor {tensor} has shape {found}: config.json implies {expected}")]
    Shape {
        /// path of the file
        file: String,
        /// its full name
        tensor: String,
        /// shape in the file
        found: String,
        /// shape by config.json
        expected: String,
    },
    /// a tensor has an element type this build does not compute with
    #[error("{file}: tensor {tensor} has dtype {found}: expected BF16, F16 or F32{hint}")]
    Dtype {
        /// path of the file
        file: String,
        /// its full name
        tensor: String,
        /// dtype in the file
        found: String,
        /// what it looks like
        hint: String,
    },
    /// scales have an element type that scales of their kind do not have
    #[error("{file}: scale {tensor} has dtype {found}: expected {expected}")]
    ScaleDtype {
        /// path of the file
        file: String,
        /// full name of the scales
        tensor: String,
        /// dtype in the file
        found: String,
        /// what it should be
        expected: String,
    },
    /// packed codes without their scales
    #[error(
        "{file}: tensor {tensor} has dtype {dtype}, and there is no {scale}: packed weights need their scales"
    )]
    MissingScale {
        /// path of the file with the codes
        file: String,
        /// full name of the codes
        tensor: String,
        /// their dtype
        dtype: String,
        /// full name of the scales
        scale: String,
    },
    /// a tensor that means another format stands beside a weight
    #[error(
        "{file}: {other} stands beside tensor {tensor} of dtype {dtype}: expected one format for a weight"
    )]
    StrayScale {
        /// path of the file with the second tensor
        file: String,
        /// full name of the weight
        tensor: String,
        /// its dtype
        dtype: String,
        /// full name of what stands beside it
        other: String,
    },
    /// a global scale that cannot be one
    #[error("{file}: scale {tensor} is {found}: expected a finite number above 0")]
    ScaleValue {
        /// path of the file
        file: String,
        /// full name of the scale
        tensor: String,
        /// its value
        found: f32,
    },
    /// a tensor is packed in a way that the config does not allow
    #[error("{file}: tensor {tensor} is packed as {format}: {why}")]
    Contradiction {
        /// path of the file
        file: String,
        /// full name of the codes
        tensor: String,
        /// the format, in this build's words
        format: String,
        /// what is said against it
        why: String,
    },
    /// quantised weights are announced, and there are none
    #[error("{file}: quantisation {algo} is announced: no tensor is packed")]
    NothingPacked {
        /// path of the file that says so
        file: String,
        /// the algorithm, in its own words
        algo: String,
    },
    /// a tensor was asked for that the checkpoint does not have
    #[error("{dir}: no tensor named {tensor}")]
    NoSuchTensor {
        /// the checkpoint
        dir: String,
        /// name without prefix
        tensor: String,
    },
    /// a tensor does not fit into memory
    #[error("{file}: no memory for the {bytes} bytes of tensor {tensor}")]
    Memory {
        /// path of the file
        file: String,
        /// its full name
        tensor: String,
        /// what it takes
        bytes: u64,
    },
    /// bytes of a tensor cannot be read
    #[error("{file}: tensor {tensor}, byte {at} of the file: {why}")]
    Unreadable {
        /// path of the file
        file: String,
        /// its full name
        tensor: String,
        /// counted from the start of the file
        at: u64,
        /// what the system said, or that the file is shorter than it was
        why: String,
    },
    /// rows that a weight does not have
    #[error("{tensor} has {rows} rows: rows {found} were asked for")]
    NoSuchRows {
        /// name without prefix
        tensor: String,
        /// the range
        found: String,
        /// how many there are
        rows: usize,
    },
    /// a file changed after it was opened
    #[error("{file}: {}", crate::shards::changed(*found, *expected))]
    Changed {
        /// path of the file
        file: String,
        /// bytes that could be read
        found: u64,
        /// bytes it had
        expected: u64,
    },
    /// tokenizer.json cannot be used, or text cannot be encoded
    #[error("{file}: {reason}")]
    Tokenizer {
        /// path of the file
        file: String,
        /// what the tokenizer said
        reason: String,
    },
    /// the tokenizer belongs to another model
    #[error(
        "{file}: token {token:?} has id {id}: config.json says vocab_size {vocab_size}, so it is another model's tokenizer"
    )]
    TokenizerVocabulary {
        /// path of the file
        file: String,
        /// the token with the largest id
        token: String,
        /// that id
        id: u32,
        /// rows of the embedding
        vocab_size: usize,
    },
    /// the tokenizer has no token for an id that ends a reply
    #[error(
        "{file}: it has {tokens} tokens, none of id {id}: {said_by} says eos_token_id {id}, so it is another model's tokenizer"
    )]
    TokenizerWithoutEnd {
        /// path of the file
        file: String,
        /// how many it has
        tokens: usize,
        /// the first id without one
        id: u32,
        /// name of the file with the id
        said_by: &'static str,
    },
    /// the chat template does not parse or refuses the messages
    #[error("{file}: chat template{line}: {reason}")]
    Template {
        /// path of the file
        file: String,
        /// the template's name, when it is not the default one, and ` line N`, where that is known
        line: String,
        /// what it says
        reason: String,
    },
}
