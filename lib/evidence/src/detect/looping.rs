//! A phrase that repeats to the end: the text is periodic, or almost all of its word sequences are repeats.
//!
//! Only the end counts: a refrain in the middle of a text that goes on is no loop. Units without a letter
//! (table borders, `1010…`, `- - -`) are ornament.

use std::collections::HashMap;

/// A loop at the end of a reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Loop {
    /// characters of the repeated unit (the mean distance of repeats when the repeats are not exact)
    pub period: usize,
    /// how often it stands there
    pub repeats: f64,
    /// the unit itself, at most 80 characters
    pub unit: String,
}

/// Longest stretch looked at, in characters from the end.
const WINDOW: usize = 4096;
/// Words of a sequence that must not come again and again.
const NGRAM: usize = 5;

/// Looks for a loop at the end. `tail`: only the end of the reply is known. `limited`: whether the token limit
/// ended the reply, if that is known; a reply that stopped by itself must repeat more before it counts.
pub fn find(text: &str, tail: bool, limited: Option<bool>) -> Option<Loop> {
    let trimmed = text.trim_end();
    let skip = trimmed.chars().count().saturating_sub(WINDOW);
    let chars: Vec<char> = trimmed.chars().skip(skip).collect();
    periodic(&chars, tail, limited).or_else(|| if limited == Some(true) { wordy(trimmed) } else { None })
}

fn periodic(s: &[char], tail: bool, limited: Option<bool>) -> Option<Loop> {
    for period in 2..=s.len() / 2 {
        // Characters at the end that equal the one a period before.
        let same = (period..s.len()).rev().take_while(|i| s[*i] == s[*i - period]).count();
        let covered = same + period;
        let repeats = covered as f64 / period as f64;
        let enough = match limited {
            Some(false) => repeats >= 6.0 && covered >= 120 && covered * 2 >= s.len(),
            _ if period < 20 => repeats >= 6.0 && covered >= 60,
            _ => repeats >= 3.0 || tail && period >= 60 && repeats >= 2.2,
        };
        if !enough {
            continue;
        }
        let unit = &s[s.len() - period..];
        if unit.iter().any(|c| c.is_alphabetic()) && unit.iter().any(|c| *c != unit[0]) {
            return Some(Loop { period, repeats, unit: unit.iter().take(80).collect() });
        }
        if period == 2 && !unit.iter().all(|c| c.is_alphanumeric() || *c == ' ') && unit[0] != unit[1] {
            // `- - - -` and `=-=-`: ornament at any multiple of this period too.
            return None;
        }
    }
    None
}

/// Word sequences that repeat without being exactly periodic.
fn wordy(text: &str) -> Option<Loop> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let words = &words[words.len().saturating_sub(240)..];
    if words.len() < 80 {
        return None;
    }
    let mut seen: HashMap<&[&str], usize> = HashMap::new();
    let mut again = Vec::new();
    let mut distance = 0usize;
    for (i, gram) in words.windows(NGRAM).enumerate() {
        let before = seen.insert(gram, i).filter(|_| gram.iter().any(|w| w.chars().any(char::is_alphabetic)));
        distance += before.map_or(0, |b| i - b);
        again.push(before.is_some());
    }
    // More than half of all sequences have stood there before, and so have more than half of the last ones.
    let share = |of: &[bool]| of.iter().filter(|a| **a).count() * 20 > of.len() * 11;
    if !share(&again) || !share(&again[again.len().saturating_sub(40)..]) {
        return None;
    }
    let repeated = again.iter().filter(|a| **a).count();
    let mean = distance / repeated.max(1);
    let unit: String = words[words.len().saturating_sub(mean.max(1))..].join(" ").chars().take(80).collect();
    Some(Loop { period: unit.chars().count(), repeats: words.len() as f64 / mean.max(1) as f64, unit })
}
