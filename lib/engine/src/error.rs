//! What can go wrong, with the bad value.

/// An engine error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// the checkpoint
    #[error(transparent)]
    Checkpoint(#[from] cute_checkpoint::Error),
    /// tensors that do not fit together, or are too large
    #[error("{0}")]
    Shape(String),
    /// configuration that cannot be served
    #[error("{0}")]
    Config(String),
    /// a token outside the vocabulary
    #[error("token id {id} is outside the vocabulary of {vocab}")]
    Token {
        /// the token
        id: u32,
        /// size of the vocabulary
        vocab: usize,
    },
    /// a request that can never run; the others go on
    #[error("request {id}: {message}")]
    Request {
        /// name of the request
        id: String,
        /// what is wrong with it, with numbers
        message: String,
    },
    /// a fused launch failed
    #[error("{0}")]
    Launch(String),
    /// a counter of a fused launch that is not what its phase leaves: what it has computed by then is of no use
    #[error("{0}")]
    Counter(String),
    /// a device, its compiler or a kernel
    #[error("{0}")]
    Device(String),
    /// a position without a page: the scheduler and the cache disagree
    #[error("request {owner}: position {position} has no KV page")]
    NoPage {
        /// ordinal of the request
        owner: u64,
        /// the position
        position: usize,
    },
    /// a pool entry that is not what its user believes
    #[error("{0}")]
    Ownership(String),
}
