//! Block counts from the figures a server prints about its cache pool, with the rule that yields them.
//!
//! A server prints the tokens its pool holds and how many longest requests fit. Both follow from the block
//! count P and the layout: A groups of layers that take a block for every `block_size` tokens, S groups that
//! keep one state a sequence. A request of L tokens takes N = A·⌈L/block_size⌉ + S·k blocks (k = 1 in cache mode
//! `none`), so the concurrency is P/N; the tokens are ⌊P/(A+S)⌋·block_size (or, in newer versions, ⌊P·L/N⌋).
//! The layout is the smallest one (fewest attention groups, then fewest state groups) in which both printed figures
//! can be true at once.

use cute_records::Pool;

/// Largest number of groups of either kind that is tried.
const MAX_GROUPS: u64 = 48;
const GIB: f64 = (1u64 << 30) as f64;
/// Half a unit of the last printed digit, of concurrency and of GiB, with room for the rounding of halves.
const HALF: f64 = 0.005_000_001;

/// What a log says about one pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Facts {
    pub tokens: Option<u64>,
    pub concurrency: Option<f64>,
    pub max_model_len: Option<u64>,
    pub block_size: Option<u64>,
    pub given_block_size: Option<u64>,
    pub page_size: Option<u64>,
    pub available_gib: Option<f64>,
    pub mamba_cache_mode: Option<String>,
    pub kv_heads: Option<u64>,
    pub head_dim: Option<u64>,
    pub kv_cache_dtype: Option<String>,
    pub model_dtype: Option<String>,
    pub layers: Option<u64>,
    pub layers_seen: u64,
    pub blocks_given: Option<u64>,
    pub speculative: Option<u64>,
    pub max_num_seqs: Option<u64>,
}

impl Facts {
    /// Takes from `other` what is unknown here.
    pub(crate) fn fill(&mut self, other: &Facts) {
        macro_rules! fill { ($($f:ident),*) => { $(if self.$f.is_none() { self.$f = other.$f.clone(); })* } }
        fill!(
            tokens,
            concurrency,
            max_model_len,
            block_size,
            given_block_size,
            page_size,
            mamba_cache_mode,
            kv_heads,
            head_dim,
            kv_cache_dtype,
            model_dtype,
            layers,
            blocks_given,
            speculative,
            max_num_seqs
        );
        // several workers: the smallest pool counts
        self.available_gib = match (self.available_gib, other.available_gib) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.layers_seen = self.layers_seen.max(other.layers_seen);
    }

    /// True when a block count may be derivable.
    pub(crate) fn complete(&self) -> bool {
        self.blocks_given.is_some() || (self.tokens.is_some() && self.concurrency.is_some())
    }

    /// True when the log says anything about a pool.
    pub(crate) fn any(&self) -> bool {
        self.complete() || self.tokens.is_some() || self.concurrency.is_some() || self.available_gib.is_some()
    }

    fn hybrid(&self) -> bool {
        self.mamba_cache_mode.is_some() || self.block_size.is_some()
    }

    fn element_bytes(&self) -> Option<u64> {
        let dtype = self.kv_cache_dtype.as_deref().unwrap_or("auto");
        let dtype = if dtype == "auto" { self.model_dtype.as_deref()? } else { dtype };
        match dtype.strip_prefix("torch.").unwrap_or(dtype) {
            d if d.starts_with("fp8") || d.starts_with("float8") || d == "int8" => Some(1),
            "bfloat16" | "float16" | "half" | "bf16" | "fp16" => Some(2),
            "float32" | "float" => Some(4),
            _ => None,
        }
    }
}

/// A pool and what is doubtful about it.
#[derive(Debug)]
pub(crate) struct Derived {
    pub pool: Pool,
    /// figures that contradict one another
    pub contradiction: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Layout {
    attention: u64,
    state: u64,
    /// blocks of one longest request
    need: u64,
    lo: u64,
    hi: u64,
}

/// Derives the pool.
pub(crate) fn derive(f: &Facts) -> Derived {
    let block_size = f.block_size.or(f.given_block_size).or(f.page_size);
    let token_bytes = match (f.kv_heads, f.head_dim, f.element_bytes()) {
        (Some(h), Some(d), Some(b)) => h.checked_mul(d).and_then(|x| x.checked_mul(2 * b)),
        _ => None,
    };
    let block_bytes = token_bytes.zip(block_size).and_then(|(t, s)| t.checked_mul(s));
    let mut pool = Pool {
        block_size,
        block_bytes,
        token_bytes,
        first_block: Some(1),
        kv_cache_tokens: f.tokens,
        max_concurrency: f.concurrency,
        max_model_len: f.max_model_len,
        available_bytes: f.available_gib.map(|g| (g * GIB) as u64),
        mamba_cache_mode: f.mamba_cache_mode.clone(),
        page_size: f.page_size,
        kv_cache_dtype: f.kv_cache_dtype.clone(),
        max_num_seqs: f.max_num_seqs,
        ..Pool::default()
    };
    let mut contradiction = None;
    let found = layouts(f, block_size.unwrap_or(16));
    let fits = |l: &&Layout| memory(f, block_bytes, l.attention).is_none_or(|m| m.lo <= l.hi && l.lo <= m.hi);
    // when nothing agrees with the memory line, the smallest layout counts and the contradiction is told
    let layout = found.iter().find(fits).or(found.first());
    let mut rule = Vec::new();
    if let Some(l) = layout {
        pool.attention_groups = Some(l.attention);
        pool.state_groups = Some(l.state);
        pool.state_blocks_per_request = state_blocks(f).map(|k| k.saturating_mul(l.state));
        pool.tensors = layer_count(f).map(|n| n.div_ceil(l.attention));
        let nearest = (f.concurrency.unwrap_or_default() * l.need as f64).round() as u64;
        pool.num_blocks = Some(nearest.clamp(l.lo, l.hi));
        pool.num_blocks_range = (l.lo != l.hi).then_some((l.lo, l.hi));
        rule.push(layout_words(f, block_size, l));
        // a multiple of the layout with a multiple of the blocks is the same pool in smaller pieces
        let others = found.iter().filter(fits).filter(|o| o.attention * l.state != l.attention * o.state);
        let others: Vec<String> =
            others.take(2).map(|o| format!("{} + {}: {}", o.attention, o.state, o.lo)).collect();
        if !others.is_empty() {
            rule.push(format!("larger layouts that agree as well: {}", others.join(", ")));
        }
    }
    let tensors_of = layout.map_or(1, |l| l.attention);
    if let Some(m) = memory(f, block_bytes, tensors_of) {
        pool.tensors = pool.tensors.or(Some(m.tensors));
        let agrees = layout.is_none_or(|l| m.lo <= l.hi && l.lo <= m.hi);
        let words = format!(
            "available memory {:.2} GiB / ({} tensors x {} bytes a block) = {:.2} blocks",
            f.available_gib.unwrap_or_default(),
            m.tensors,
            group(block_bytes.unwrap_or_default()),
            m.exact
        );
        if layout.is_none() && m.lo == m.hi {
            pool.num_blocks = Some(m.lo);
        } else if layout.is_none() {
            pool.num_blocks_range = Some((m.lo, m.hi));
        } else if agrees && pool.num_blocks_range.is_some() {
            let (lo, hi) = pool.num_blocks_range.unwrap_or_default();
            let (lo, hi) = (lo.max(m.lo), hi.min(m.hi));
            pool.num_blocks = pool.num_blocks.map(|n| n.clamp(lo, hi));
            pool.num_blocks_range = (lo != hi).then_some((lo, hi));
        }
        if !agrees {
            contradiction = Some(format!("{words}, but the reported figures give {:?}", pool.num_blocks));
        }
        rule.push(format!("{words}{}", if agrees { "" } else { " (contradicts)" }));
    }
    if let Some(n) = f.blocks_given {
        if let Some(l) = layout.filter(|l| !(l.lo..=l.hi).contains(&n)) {
            contradiction =
                Some(format!("the log gives {n} blocks, the reported figures {}..{}", l.lo, l.hi));
        }
        pool.num_blocks = Some(n);
        pool.num_blocks_range = None;
        rule.insert(0, format!("the log gives the block count: {}", group(n)));
    }
    if pool.num_blocks.is_none() {
        rule.push(why_not(f, block_size));
    }
    pool.rule = Some(rule.join("; "));
    Derived { pool, contradiction }
}

/// Blocks a state group takes for one sequence; `None` when the cache mode makes it depend on the length.
fn state_blocks(f: &Facts) -> Option<u64> {
    match f.mamba_cache_mode.as_deref() {
        None | Some("none") => Some(f.speculative.unwrap_or(0).saturating_add(1)),
        _ => None,
    }
}

fn layer_count(f: &Facts) -> Option<u64> {
    f.layers.or((f.layers_seen > 0).then_some(f.layers_seen))
}

/// Every layout in which the printed figures can be true at once: fewest attention groups first, then fewest
/// state groups.
fn layouts(f: &Facts, block_size: u64) -> Vec<Layout> {
    let (Some(tokens), Some(concurrency), Some(len)) = (f.tokens, f.concurrency, f.max_model_len) else {
        return Vec::new();
    };
    if block_size == 0
        || len == 0
        || !concurrency.is_finite()
        || concurrency <= 0.0
        || tokens > 1 << 50
        || len > 1 << 40
    {
        return Vec::new();
    }
    let per_group = len.div_ceil(block_size);
    let per_state = match f.mamba_cache_mode.as_deref() {
        None | Some("none") => 1 + f.speculative.unwrap_or(0).min(1 << 20),
        Some("all") => per_group,
        _ => 2 + f.speculative.unwrap_or(0).min(1 << 20),
    };
    let mut out = Vec::new();
    let states = |hybrid: bool| if hybrid { 1..=MAX_GROUPS } else { 0..=0 };
    for hybrid in [f.hybrid(), true] {
        for attention in 1..=4 {
            for state in states(hybrid) {
                let need = attention * per_group + state * per_state;
                out.extend(by_groups(tokens, concurrency, block_size, attention, state, need));
                out.extend(by_capacity(tokens, concurrency, len, attention, state, need));
            }
        }
        if !out.is_empty() {
            break;
        }
    }
    out
}

fn by_concurrency(concurrency: f64, need: u64) -> (u64, u64) {
    let n = need as f64;
    (((concurrency - HALF).max(0.0) * n).ceil() as u64, ((concurrency + HALF) * n).floor() as u64)
}

/// tokens = ⌊P/groups⌋·block_size
fn by_groups(
    tokens: u64,
    concurrency: f64,
    block_size: u64,
    attention: u64,
    state: u64,
    need: u64,
) -> Option<Layout> {
    if !tokens.is_multiple_of(block_size) {
        return None;
    }
    let groups = attention + state;
    let (lo, hi) = by_concurrency(concurrency, need);
    let first = tokens / block_size * groups;
    let (lo, hi) = (lo.max(first), hi.min(first + groups - 1));
    (lo <= hi && hi > 0).then_some(Layout { attention, state, need, lo, hi })
}

/// tokens = ⌊P·max_model_len/need⌋
fn by_capacity(
    tokens: u64,
    concurrency: f64,
    len: u64,
    attention: u64,
    state: u64,
    need: u64,
) -> Option<Layout> {
    let wide = |x: u64| u128::from(x) * u128::from(need);
    let lo = u64::try_from(wide(tokens).div_ceil(u128::from(len))).ok()?;
    let hi = u64::try_from((wide(tokens + 1) - 1) / u128::from(len)).ok()?;
    let (from, to) = by_concurrency(concurrency, need);
    let (lo, hi) = (lo.max(from), hi.min(to));
    (lo <= hi && hi > 0).then_some(Layout { attention, state, need, lo, hi })
}

struct Memory {
    tensors: u64,
    lo: u64,
    hi: u64,
    exact: f64,
}

/// Blocks that fit into the memory the log reports.
fn memory(f: &Facts, block_bytes: Option<u64>, attention_groups: u64) -> Option<Memory> {
    let (gib, block_bytes, layers) = (f.available_gib?, block_bytes?, layer_count(f)?);
    let tensors = layers.div_ceil(attention_groups.max(1));
    let unit = tensors.checked_mul(block_bytes).filter(|u| *u > 0)? as f64;
    let blocks = |gib: f64| (gib.max(0.0) * GIB / unit).floor() as u64;
    Some(Memory { tensors, lo: blocks(gib - HALF), hi: blocks(gib + HALF), exact: gib * GIB / unit })
}

fn layout_words(f: &Facts, block_size: Option<u64>, l: &Layout) -> String {
    let (len, tokens, m) = (
        f.max_model_len.unwrap_or_default(),
        f.tokens.unwrap_or_default(),
        f.concurrency.unwrap_or_default(),
    );
    let bs = block_size.unwrap_or(16);
    let assumed = if block_size.is_none() { " (block size 16 assumed: the log names none)" } else { "" };
    let mode = f.mamba_cache_mode.as_deref().unwrap_or("none, assumed");
    let attention = if l.attention == 1 { String::new() } else { format!("{} x ", l.attention) };
    let state = match l.state {
        0 => String::new(),
        s => format!(
            " + {} for {s} state group(s) (cache mode {mode})",
            l.need - l.attention * len.div_ceil(bs)
        ),
    };
    let groups = l.attention + l.state;
    let exact = format!("{} x {m:.2} = {:.2}", l.need, m * l.need as f64);
    let range = if l.lo == l.hi { format!("{}", l.lo) } else { format!("{} to {}", l.lo, l.hi) };
    format!(
        "a request of {} tokens takes {attention}ceil({len}/{bs}) = {}{state} = {} blocks{assumed}; {exact}, so {range} \
         blocks; {} attention + {} state groups is the smallest layout in which this and the {} reported tokens agree \
         (floor({}/{groups}) x {bs} = {})",
        group(len),
        l.attention * len.div_ceil(bs),
        l.need,
        l.attention,
        l.state,
        group(tokens),
        l.lo,
        group(l.lo / groups * bs),
    )
}

fn why_not(f: &Facts, block_size: Option<u64>) -> String {
    let mut missing = Vec::new();
    for (name, there) in [
        ("the reported tokens", f.tokens.is_some()),
        ("the maximum concurrency", f.concurrency.is_some()),
        ("the longest request", f.max_model_len.is_some()),
    ] {
        if !there {
            missing.push(name);
        }
    }
    if missing.is_empty() {
        let bs = block_size.unwrap_or(16);
        format!(
            "block count not derived: no layout of up to {MAX_GROUPS} groups with blocks of {bs} tokens yields both {} \
             tokens and {:.2}x for {} tokens",
            group(f.tokens.unwrap_or_default()),
            f.concurrency.unwrap_or_default(),
            group(f.max_model_len.unwrap_or_default()),
        )
    } else {
        format!("block count not derived: the log lacks {}", missing.join(", "))
    }
}

/// A number with thousands separators.
fn group(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
#[path = "geometry_tests.rs"]
mod tests;
