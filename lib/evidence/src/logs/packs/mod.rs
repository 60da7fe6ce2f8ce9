//! The pattern tables: data, one file an engine. Adding a pattern is adding a line.

mod cute;
mod nvllm;
mod vllm;

use super::pack::{Kind, Pack, Pattern};

/// Every table, the most specific first.
pub(crate) const ALL: &[Pack] = &[cute::PACK, nvllm::PACK, vllm::PACK];

/// Name of the pattern of a dispatch line.
pub(crate) const DISPATCH: &str = "phase_e_dispatch";

/// What opens a dispatch line.
pub(crate) const DISPATCH_MARK: &str = "[PHASE_E_DISPATCH]";

const fn event(name: &'static str, template: &'static str, doc: &'static str) -> Pattern {
    Pattern::new(Kind::Event, name, template, doc)
}

const fn pool(name: &'static str, template: &'static str, doc: &'static str) -> Pattern {
    Pattern::new(Kind::Pool, name, template, doc)
}

const fn ignore(name: &'static str, template: &'static str, doc: &'static str) -> Pattern {
    Pattern::new(Kind::Ignore, name, template, doc)
}

const fn dispatch(name: &'static str, template: &'static str, doc: &'static str) -> Pattern {
    Pattern::new(Kind::Dispatch, name, template, doc)
}
