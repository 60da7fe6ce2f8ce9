//! One token to the end of the reply: what is left when every logit is NaN and the sampler takes token 0.
//!
//! The threshold depends on the character. Nobody ends a reply with eight `!` *and* runs into the token limit,
//! but rules (`====`), leaders (`....`), table borders and digits repeat in sound text, so they must fill a
//! reply before they count. A run that reaches neither the end nor a great length is style, not a collapse.

/// A run of one token.
#[derive(Clone, Debug, PartialEq)]
pub struct SingleRun {
    /// the character, or `id N` when only ids are known
    pub token: String,
    /// how long it is, in `unit`
    pub length: usize,
    /// where it starts, 0-based in `unit`; absent when only the end of the reply is known and the run fills it
    pub start: Option<usize>,
    /// `tokens`, `characters`, or `characters of the tail`
    pub unit: &'static str,
    /// false when other text follows the run
    pub to_end: bool,
}

impl SingleRun {
    /// What was seen, in words.
    pub fn seen(&self) -> String {
        let whole = self.start.is_none();
        format!(
            "{} x {:?}{}{}",
            self.length,
            self.token,
            if self.to_end { " to the end" } else { ", then other text" },
            if whole { "; it starts before the part that is known" } else { "" }
        )
    }
}

/// How a character may repeat in sound text.
#[derive(Clone, Copy, PartialEq)]
enum Class {
    /// rules, leaders, table borders, blanks
    Rule,
    /// digits of long numbers and periodic decimals
    Digit,
    /// letters: laughter, screams
    Letter,
    /// everything else
    Mark,
}

fn class(c: char) -> Class {
    if c.is_whitespace() || "=-_.*#~+|/\\─━═│┃—–·…░▒▓█<>^`".contains(c) {
        Class::Rule
    } else if c.is_numeric() {
        Class::Digit
    } else if c.is_alphabetic() {
        Class::Letter
    } else {
        Class::Mark
    }
}

/// Shortest run to the end that counts. `limited`: the token limit ended the reply, if that is known.
fn threshold(c: char, limited: Option<bool>) -> usize {
    match (class(c), limited) {
        (Class::Mark, Some(true)) => 8,
        (Class::Mark, None) => 12,
        (Class::Mark, Some(false)) => 32,
        (Class::Letter, Some(true)) => 24,
        (Class::Letter, _) => 48,
        (Class::Digit, Some(true)) => 64,
        (Class::Digit, _) => 160,
        (Class::Rule, Some(true)) => 128,
        (Class::Rule, _) => 190,
    }
}

/// Longest run that sound text may hold somewhere before its end.
const INNER: usize = 1024;
/// Shortest run of one token id to the end that counts, by whether the token limit ended the reply.
const TOKENS: [usize; 3] = [8, 16, 32];

/// Looks for a run in the token ids, if they are known, else in the text.
pub fn find(text: Option<&str>, tail: bool, ids: Option<&[u32]>, limited: Option<bool>) -> Option<SingleRun> {
    // a line's end or blanks behind a run do not hide it; a run of blanks is one too
    let seen = |t: &str| in_text(t, tail, limited).or_else(|| in_text(t.trim_end(), tail, limited));
    if let Some(run) = text.and_then(seen) {
        // Ids give the exact position; the text has already said that the run is no ornament.
        return ids
            .and_then(|ids| in_ids(ids, 4))
            .map(|r| SingleRun { token: run.token.clone(), ..r })
            .or(Some(run));
    }
    match text {
        Some(_) => None,
        None => ids.and_then(|ids| {
            let least = TOKENS[match limited {
                Some(true) => 0,
                None => 1,
                Some(false) => 2,
            }];
            in_ids(ids, least)
        }),
    }
}

fn in_ids(ids: &[u32], least: usize) -> Option<SingleRun> {
    let last = *ids.last()?;
    let length = ids.iter().rev().take_while(|id| **id == last).count();
    (length >= least).then(|| SingleRun {
        token: format!("id {last}"),
        length,
        start: Some(ids.len() - length),
        unit: "tokens",
        to_end: true,
    })
}

fn in_text(text: &str, tail: bool, limited: Option<bool>) -> Option<SingleRun> {
    let last = text.chars().next_back()?;
    let unit = if tail { "characters of the tail" } else { "characters" };
    let length = text.chars().rev().take_while(|c| *c == last).count();
    let total = text.chars().count();
    if length >= threshold(last, limited) {
        let start = (!(tail && length == total)).then_some(total - length);
        return Some(SingleRun { token: last.to_string(), length, start, unit, to_end: true });
    }
    let (token, start, length) = longest_inner(text)?;
    let least = if class(token) == Class::Mark { INNER / 8 } else { INNER };
    (length >= least).then(|| SingleRun {
        token: token.to_string(),
        length,
        start: Some(start),
        unit,
        to_end: false,
    })
}

/// The longest run of one character: the character, where it starts, how long it is.
fn longest_inner(text: &str) -> Option<(char, usize, usize)> {
    let mut best: Option<(char, usize, usize)> = None;
    let mut now: Option<(char, usize, usize)> = None;
    for (at, c) in text.chars().enumerate() {
        now = match now {
            Some((d, start, n)) if d == c => Some((d, start, n + 1)),
            _ => Some((c, at, 1)),
        };
        if now.map(|r| r.2) > best.map(|r| r.2) {
            best = now;
        }
    }
    best
}
