//! Lines of this project's own engine.

use super::{DISPATCH, Pack, Pattern, dispatch};

pub(super) const PACK: Pack = Pack {
    name: "cute",
    doc: "this project's engine: the dispatch line with its outcome and reason",
    extends: &[],
    patterns: PATTERNS,
};

const PATTERNS: &[Pattern] = &[dispatch(
    DISPATCH,
    "[PHASE_E_DISPATCH] {seed_fields:text} path={path:word} outcome={outcome:word}",
    "one dispatch decision, written after the launch: `path=` chosen, `outcome=` ran, `reason=` why, `wo_split=`",
)];
