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
    #[error("layer {layer}: {message}")]
    Counter {
        /// the decoder layer
        layer: usize,
        /// which counter, with numbers
        message: String,
    },
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
    Ownership(Box<Mismatch>),
}

impl Error {
    /// Ownership that is broken without an entry to blame.
    pub fn ownership(message: String) -> Self {
        Error::Ownership(Box::new(Mismatch { message, ..Mismatch::default() }))
    }
}

/// A pool entry that is not what its user believes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// a sentence with the numbers
    pub message: String,
    /// `slot` or `page`, and which
    pub entry: Option<(&'static str, u32)>,
    /// ordinal of the request that used it, acquired it or gave it back
    pub request: Option<u64>,
    /// epoch in which that request believed it to be
    pub expected_epoch: Option<u64>,
    /// ordinal of the request that the pool says owns it
    pub owner: Option<u64>,
    /// epoch that the pool says it is in
    pub epoch: Option<u64>,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}
