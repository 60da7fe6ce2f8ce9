//! What can be gated. `docs/GATES.md` is this table; a test keeps them equal.

/// What kind of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// a share of what was asked
    Share,
    /// a count
    Count,
    /// a probability
    Probability,
    /// a number with a unit of its own
    Number,
}

/// One metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// its name
    pub name: &'static str,
    /// what kind of number it is
    pub unit: Unit,
    /// what a pass proves
    pub proves: &'static str,
    /// what a failure means
    pub failure: &'static str,
    /// what evidence it needs; without it the gate is inconclusive
    pub needs: &'static str,
    /// a gate as people write it
    pub example: &'static str,
}

macro_rules! metrics {
    ($($name:literal $unit:ident $example:literal: $proves:literal; $failure:literal; $needs:literal.)*) => {
        /// Every metric, in the order of GATES.md.
        pub const METRICS: &[Metric] = &[$(Metric {
            name: $name, unit: Unit::$unit, proves: $proves, failure: $failure, needs: $needs, example: $example,
        }),*];
    };
}

metrics! {
    "correct" Share "correct>=45/50":
        "every single run answers at least this share of its questions";
        "at least one run fell below; which, and by how much, stands in the reason";
        "graded completions in every run, no row missing, as many runs as --runs says".
    "accuracy" Share "accuracy>=0.9":
        "all runs together answer at least this share";
        "the model or the server is worse than asked, in sum";
        "graded completions".
    "errors" Count "errors=0":
        "no request failed";
        "the client got errors or timeouts; their answers are missing, not wrong";
        "at least one completion".
    "findings" Count "findings=0":
        "the auditor checked this stream and no invariant is broken";
        "at least one finding of severity error; they are listed by check";
        "an audit: cute-audit upstream, or the checks that cute-verdict runs itself".
    "warnings" Count "warnings=0":
        "nothing weakens the evidence";
        "at least one finding of severity warning";
        "an audit, as for findings".
    "completions" Count "completions>=250":
        "this many replies with text or a grade are there";
        "fewer replies than asked for";
        "replies; none at all is inconclusive".
    "runs" Count "runs>=5":
        "this many complete runs of the prompt set are there";
        "the soak was shorter than asked";
        "at least one run".
    "degenerate" Count "degenerate=0":
        "no output collapsed into a single token, graded correct or not";
        "NaN logits, token 0 to the end: a numerical collapse";
        "replies with text, a tail of it, or token ids".
    "loops" Count "loops=0":
        "no output repeats a phrase to its end";
        "the model or its cache drives itself in circles";
        "replies with text or a tail of it".
    "cut_off" Count "cut_off<=2/50":
        "no sound reply was cut off by the token limit";
        "the token limit is too small for the question, or the model never stops";
        "replies with a finish reason, or text to infer it from".
    "empty" Count "empty=0":
        "no reply is empty";
        "requests end before the first token";
        "replies with text".
    "mcnemar" Probability "mcnemar>=0.05":
        "no run differs from the first by more one-way flips than chance explains (exact, Holm-corrected)";
        "a later run lost answers that the first had right";
        "two runs of the same graded questions".
    "mcnemar_legs" Probability "mcnemar_legs>=0.05":
        "no leg's first run differs from the first leg's by more one-way flips than chance explains (exact, Holm-corrected)";
        "one arm answers worse (or better) than the baseline arm";
        "two legs with the same graded questions".
    "flips" Count "flips=0":
        "no question is right in one run and wrong in another of the same leg";
        "answers are not repeatable: state, order or arithmetic leaks between requests";
        "two runs of the same graded questions".
    "homogeneity" Probability "homogeneity>=0.01":
        "one accuracy explains all runs (chi-squared, exact for runs of equal size)";
        "the runs do not share one accuracy: something changed between them";
        "two graded runs".
    "cusum" Count "cusum=0":
        "in the order of requests, misses never gather beyond what the stated false-alarm rate allows";
        "a bad stretch; onset and alarm ordinals stand in the reason";
        "twenty graded completions in known order".
    "unexplained" Count "unexplained=0":
        "the mechanism found explains every label";
        "some labels contradict it, or no mechanism was found";
        "a mechanism finding (cute-audit --explain)".
    "dispatch_records" Count "dispatch_records>=16":
        "the dispatch log of a decode step was there to be audited";
        "fewer lines than the layers that should have logged";
        "nothing; none at all is inconclusive".
    "log_errors" Count "log_errors=0":
        "the server log reports no error, no fallback, no death of a worker";
        "at least one such line; the first stands in the reason";
        "recognised lines of a log".
    "server_alive" Count "server_alive=1":
        "the server answered its last request and its log ends without a crash";
        "the log ends in a crash, or the last request failed";
        "completions and recognised lines of a log".
    "pool_left_percent" Number "pool_left_percent<=0":
        "when nothing runs any more, nothing of the pool is in use";
        "blocks were not given back";
        "a statistics line of the server log with no request running, after the last request".
    "region_span_ms" Number "region_span_ms<=7":
        "from first entry to last exit one launch takes at most this long";
        "the kernel is slower than asked; a sum of medians would not have shown it";
        "a region buffer (cute-audit --region FILE.npy)".
    "wall_p95_ms" Number "wall_p95_ms<=60000":
        "95 of 100 requests end within this time";
        "slower than asked; a collapse does not show here, see degenerate";
        "twenty completions with their wall time".
    "decode_tok_s" Number "decode_tok_s>=2":
        "the median request decodes at least this many tokens a second";
        "slower than asked";
        "completions with tokens and decode or wall time".
    "model_digest" Count "model_digest=1":
        "every producer in the stream names one and the same model digest";
        "replies of different models are judged as one";
        "a digest of the model in at least one run record".
}

/// The table as it stands in `docs/GATES.md`.
pub fn markdown() -> String {
    let mut out = String::from(
        "| gate, for example | a pass proves | a failure means | evidence it needs |\n|---|---|---|---|\n",
    );
    for m in METRICS {
        out.push_str(&format!("| `{}` | {} | {} | {} |\n", m.example, m.proves, m.failure, m.needs));
    }
    out
}
