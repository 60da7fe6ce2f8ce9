//! The engine for hybrid models, every dispatch and state slot of it open to audit.
//!
//! One token's path: prompt → tokens → [`Sequence`](sequence::Sequence) → [`Scheduler`](scheduler::Scheduler) →
//! [`Batch`](batch::Batch) → [`dispatch`] → [`model`]: embed → [norm → mixer → add → norm → MLP → add] × L →
//! norm → lm_head → [`sampler`] → [`Output`].
//!
//! | module | for |
//! |---|---|
//! | [`engine`] | the step loop: schedule, forward, sample, append; replaying it for a resumed run |
//! | [`config`] | how an engine is set up, checked |
//! | [`scheduler`] | waiting and running queues to batches; no device, no floats |
//! | [`pool`] | slots and pages: FIFO, owner, epoch |
//! | [`sequence`] | one request on its way |
//! | [`reply`] | its text as it grows: stop strings, chunks |
//! | [`dispatch`], [`knobs`] | which path a layer takes, and why |
//! | [`model`] | the model text, generic over [`backend::Backend`] |
//! | [`backend`] | the operations; [`backend::Cpu`] is the reference |
//! | [`sampler`] | logits to a token |
//! | [`guard`] | invariants that are watched when asked for |
//! | [`fault`] | ways to break all this on purpose |

pub mod backend;
pub mod batch;
pub mod config;
pub mod dispatch;
pub mod engine;
pub mod error;
pub mod fault;
pub mod guard;
pub mod knobs;
pub mod model;
pub mod pool;
pub mod reply;
pub mod rope;
pub mod sampler;
pub mod scheduler;
pub mod sequence;

pub use config::EngineConfig;
pub use engine::{Engine, Event, Known};
pub use error::Error;
pub use fault::Fault;
pub use guard::{Guard, Guards};
pub use knobs::Knobs;
pub use sequence::{Output, Request, SamplingParams};
