//! Every check by name. `docs/GATES.md` is this table; a test keeps them equal.

/// A check: its name, how bad its findings are, and what they say.
pub type Entry = (&'static str, &'static str, &'static str);

/// The checks of cute-audit, in the order of GATES.md.
pub const CHECKS: &[Entry] = &[
    (
        "stream_cut_off",
        "gap",
        "a producer's stream has no `end`, an incomplete one, or another number of records than its `end` counts",
    ),
    (
        "stream_without_run",
        "gap",
        "records came outside every `run` … `end`: nobody vouches for them, and none can say how many there were",
    ),
    ("no_records", "gap", "nothing came in that could be checked"),
    (
        "mixed_models, mixed_prompts",
        "error; a warning for prompts",
        "producers of one stream that name no legs read different models, or different prompts",
    ),
    ("lines_unreadable", "gap", "lines of the stream could not be understood; their places stand on stderr"),
    (
        "missing_run, missing_rows, duplicate_row",
        "gap",
        "runs or rows that other runs have are missing, or stand there twice",
    ),
    (
        "no_dispatch_records",
        "gap",
        "an expectation was stated, or records were required, and no decode step was logged",
    ),
    (
        "dispatch_expected_absent",
        "error",
        "a layer did not run on the path expected of it, or no record names it",
    ),
    ("dispatch_unexpected", "error", "a layer ran on a path that was not expected of it: a silent fallback"),
    (
        "dispatch_two_paths",
        "error or warning",
        "a layer took two paths; an error where one was expected of it",
    ),
    ("dispatch_intent_outcome", "error", "what ran is not what was chosen"),
    (
        "dispatch_layer_unknown",
        "error or warning",
        "lines name no layer and cannot be compared; reported, not dropped",
    ),
    ("dispatch_intent_only", "warning", "lines state what was chosen before the launch, not what ran"),
    (
        "dispatch_not_built",
        "warning",
        "no layer on coop, as expected, but the kernel may have failed to build",
    ),
    ("dispatch_deduplicated", "info", "one line a layer: the log says nothing about later requests"),
    (
        "server_trouble",
        "error or warning",
        "the server log reports a failed launch, a failed build, an error, a death",
    ),
    ("state_not_zero_on_acquire", "error", "a slot or page still held something when a request got it"),
    ("state_owned_twice", "error", "a slot or page was given to a request while another held it"),
    (
        "state_released_by_another, state_released_twice",
        "error",
        "a slot or page was given back by somebody who did not hold it",
    ),
    (
        "state_epoch",
        "error",
        "the epoch of a slot or page did not rise with its acquire, or the release names another one",
    ),
    (
        "pool_in_use_at_end, pool_unbalanced",
        "error",
        "a complete run ended with slots or pages in use; or acquired less released is not what is in use",
    ),
    (
        "chunks_differ",
        "error",
        "the chunks of a streamed reply, put together, are not its text, its tokens or its end; or one is missing",
    ),
    (
        "trace_contradicts_reply, trace_contradicts_pool",
        "error",
        "a trace says other than its reply of tokens, bits, slot or pages; or its entries or offsets are not the pool's",
    ),
    ("trace_missing_reset", "error", "a layer took a path whose sums were not zeroed as often as it ran"),
    (
        "trace_buffer_moved",
        "error",
        "a buffer that recorded steps know by its address lies elsewhere than before",
    ),
    ("trace_path_unlogged", "error", "a layer took a path that the log has no line of"),
    ("fingerprint_differs", "error", "the same prompt gave other logits, to the bit; tokens may still agree"),
    ("tokens_differ", "error", "the same prompt gave other tokens"),
    (
        "path_without_effect",
        "error",
        "two runs told to take different paths agree to the bit in every reply: one ran the other's path",
    ),
    ("same_prompt_skipped", "info", "the producer sampled: replies to the same prompt may differ"),
    (
        "single_token_run, lucky_garbage",
        "error",
        "an output collapsed into one token; graded correct all the same, in the second case",
    ),
    ("client_error", "error", "a request failed"),
    ("ngram_loop, cut_off, empty", "warning", "an output repeats itself, was cut off, or holds nothing"),
    (
        "stable_miss, knife_edge",
        "info",
        "an answer is wrong in the same way in every healthy run, or flips between them",
    ),
    ("cancelled", "info", "a request was cancelled by its client: it is neither graded nor compared"),
    ("mechanism", "info", "which hypothesis explains which labels, with its rivals and the replayed blocks"),
    (
        "replay_impossible",
        "warning",
        "outputs collapsed and the pool could not be replayed; the reason is said",
    ),
    ("invariance", "info", "over several legs: which counters agree at onset, and which do not"),
    ("pool_exposed", "warning", "offsets of this pool pass a signed 32-bit index; from which request on"),
    ("pool_not_exposed", "info", "every offset of this pool fits a signed 32-bit index"),
];

/// Names that others than the checks above write: result files, logs, region buffers, comparisons of legs, the loader and
/// the engine. A test holds this list against the sources.
pub const OTHERS: &[&str] = &[
    "bad_arm",
    "bad_field",
    "bad_input",
    "bad_row",
    "capture_wrote_live_state",
    "commit_mismatch",
    "coop_not_built",
    "count_mismatch",
    "counter_broken",
    "digest_mismatch",
    "dispatch_line_malformed",
    "file_cut_off",
    "gate_contradicts_runs",
    "head_differs",
    "identical_totals",
    "impossible_scales",
    "index_differs",
    "invalid_utf8",
    "knob_changes_within_leg",
    "knob_without_effect",
    "label_mismatch",
    "layer_unknown",
    "length_differs",
    "logits_not_finite",
    "malformed_knob",
    "model_differs",
    "no_rows",
    "non_finite_weights",
    "nonfinite_value",
    "not_a_single_variable_comparison",
    "one_boot_per_leg",
    "ownership_broken",
    "pool_figures_disagree",
    "pool_not_derived",
    "probe_aba",
    "probe_blind",
    "probe_boundary",
    "probe_canary",
    "probe_codeword",
    "record_contradicts_log",
    "region_active_blocks",
    "region_coverage",
    "region_empty",
    "region_last_slice_only",
    "region_layout_unknown",
    "region_overlap",
    "region_row_torn",
    "region_stale_row",
    "region_sum_is_no_span",
    "region_zero_durations",
    "requested_not_effective",
    "reserved_page_written",
    "reserved_slot_written",
    "results_disagree",
    "row_outside_step_written",
    "settings_differ",
    "several_filters",
    "several_legs",
    "state_not_reproduced",
    "status_contradicts_answer",
    "unreadable_file",
    "vacuous_gate",
];

/// Every name a finding may bear.
pub fn names() -> impl Iterator<Item = &'static str> {
    let listed = CHECKS.iter().flat_map(|(name, ..)| name.split(", "));
    listed.chain(OTHERS.iter().copied()).chain(super::EVIDENCE_MISSING.iter().copied())
}

/// The table as it stands in `docs/GATES.md`.
pub fn markdown() -> String {
    let mut out = String::from("| check | severity | what it says |\n|---|---|---|\n");
    for (name, severity, says) in CHECKS {
        let names: Vec<String> = name.split(", ").map(|n| format!("`{n}`")).collect();
        out.push_str(&format!("| {} | {severity} | {says} |\n", names.join(", ")));
    }
    out
}
