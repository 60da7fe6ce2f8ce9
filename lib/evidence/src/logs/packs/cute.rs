//! Lines of this project's own engine.

use super::{DISPATCH, Pack, Pattern, dispatch, event};

pub(super) const PACK: Pack = Pack {
    name: "cute",
    doc: "this project's engine: the dispatch line with its outcome and reason, faults, fallbacks, summary",
    extends: &[],
    patterns: PATTERNS,
};

const PATTERNS: &[Pattern] = &[
    dispatch(
        DISPATCH,
        "[PHASE_E_DISPATCH] {seed_fields:text} path={path:word} outcome={outcome:word}",
        "one dispatch decision, written after the launch: `path=` chosen, `outcome=` ran, `reason=` why, `wo_split=`",
    ),
    event(
        "coop_launch_failed",
        "beta-coop launch failed (falling back to {to:word}) layer={layer:int} {error:text}",
        "the dispatch line says coop, another path ran",
    ),
    event(
        "fault_injected",
        "FAULT INJECTED: {fault:word}: ",
        "the engine was broken on purpose: nothing this run says is about the engine itself",
    ),
    event(
        "generation_summary",
        "cute-generate: {requests:int} requests, {errors:int} errors; prefill {prefill_tokens:int} tokens at {prefill_tokens_per_s:num} tok/s; decode {decode_tokens:int} tokens at {decode_tokens_per_s:num} tok/s",
        "what a run did, at its end",
    ),
    event("tool_message", "cute-generate: {message:text}", "anything else the generator said").generic(),
];
