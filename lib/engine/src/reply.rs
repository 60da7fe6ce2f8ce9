//! The text of a reply as it grows: cut at the first stop string, and handed out in chunks that nothing later can change.

use crate::Error;
use crate::sequence::SamplingParams;
use cute_checkpoint::{Detokenizer, Tokenizer};

/// A reply that is being generated.
#[derive(Debug, Default)]
pub struct Reply {
    stops: Vec<String>,
    /// the stop string stays in the text
    include: bool,
    detokenizer: Detokenizer,
    /// the text so far, without what may still become another character
    text: String,
    /// bytes of it that were handed out
    given: usize,
    /// tokens since the last chunk
    tokens: Vec<u32>,
    /// the stop string that ended it
    stopped: Option<String>,
}

impl Reply {
    /// An empty reply.
    pub fn new(params: &SamplingParams) -> Self {
        let (stops, include) = (params.stop.clone(), params.include_stop_str_in_output);
        Reply { stops, include, ..Reply::default() }
    }

    /// Takes the next token; without a tokenizer it has no text. Returns true when a stop string is complete: the text
    /// ends there, whatever comes after it in the token.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn push(&mut self, tokenizer: Option<&Tokenizer>, id: u32) -> Result<bool, Error> {
        self.tokens.push(id);
        let new = tokenizer.map_or(Ok(String::new()), |t| self.detokenizer.push(t, id))?;
        Ok(self.append(&new))
    }

    /// Ends the reply: what was held back belongs to it. Returns true when that completed a stop string.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn finish(&mut self, tokenizer: Option<&Tokenizer>) -> Result<bool, Error> {
        let rest = tokenizer.map_or(Ok(String::new()), |t| self.detokenizer.finish(t))?;
        let stopped = self.append(&rest);
        self.stops.clear();
        Ok(stopped)
    }

    /// What can be handed out and has not been, with the tokens since then.
    pub fn take(&mut self) -> (String, Vec<u32>) {
        let certain = self.text.len() - if self.stopped.is_some() { 0 } else { self.held() };
        let text = self.text[self.given..certain].to_owned();
        self.given = certain;
        (text, std::mem::take(&mut self.tokens))
    }

    /// Whether there is text to hand out.
    pub fn has_news(&self) -> bool {
        self.text.len() - if self.stopped.is_some() { 0 } else { self.held() } > self.given
    }

    /// The text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The stop string that ended it.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.as_deref()
    }

    /// Adds text. Where several stop strings are complete, that which begins first counts, then that which was given
    /// first.
    fn append(&mut self, new: &str) -> bool {
        if self.stopped.is_some() {
            return false;
        }
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let mut from = self.text.len().saturating_sub(longest.saturating_sub(1));
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        self.text += new;
        let found = |stop: &String| Some((from + self.text[from..].find(stop)?, stop.clone()));
        let Some((at, stop)) = self.stops.iter().filter_map(found).min_by_key(|(at, _)| *at) else {
            return false;
        };
        self.text.truncate(if self.include { at + stop.len() } else { at });
        self.stopped = Some(stop);
        true
    }

    /// Bytes at the end of the text that a stop string may begin with.
    fn held(&self) -> usize {
        let begun = |stop: &String| {
            let starts = (1..stop.len().min(self.text.len() + 1)).rev();
            starts.filter(|n| stop.is_char_boundary(*n)).find(|n| self.text.ends_with(&stop[..*n]))
        };
        self.stops.iter().filter_map(begun).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(stops: &[&str], include: bool) -> Reply {
        Reply { stops: stops.iter().map(|s| (*s).to_owned()).collect(), include, ..Reply::default() }
    }

    /// Adds pieces of text until a stop string is complete: the chunks, the text, the stop string.
    fn feed(stops: &[&str], include: bool, pieces: &[&str]) -> (Vec<String>, String, Option<String>) {
        let mut reply = reply(stops, include);
        let mut chunks = Vec::new();
        for piece in pieces {
            let stopped = reply.append(piece);
            chunks.extend(reply.has_news().then(|| reply.take().0));
            if stopped {
                break;
            }
        }
        reply.finish(None).unwrap();
        chunks.extend(reply.has_news().then(|| reply.take().0));
        assert_eq!(chunks.concat(), reply.text(), "chunks put together are the text");
        (chunks, reply.text().to_owned(), reply.stopped().map(str::to_owned))
    }

    fn check(stops: &[&str], pieces: &[&str], chunks: &[&str], stop: Option<&str>) {
        let (found, text, stopped) = feed(stops, false, pieces);
        assert_eq!((found, stopped.as_deref()), (chunks.iter().map(|c| (*c).to_owned()).collect(), stop));
        let (_, with, _) = feed(stops, true, pieces);
        assert_eq!(with, text + stop.unwrap_or_default());
    }

    #[test]
    fn a_stop_string_ends_the_text_wherever_the_pieces_were_cut() {
        check(&["END"], &["ab", "cEN", "D", "x"], &["ab", "c"], Some("END"));
        check(&["END"], &["abENDxEND"], &["ab"], Some("END"));
        check(&["END"], &["END"], &[], Some("END"));
        check(&["END"], &["E", "N", "D"], &[], Some("END"));
        check(&["a"], &["b", "a"], &["b"], Some("a"));
        check(&["好的"], &["你好", "的吗"], &["你"], Some("好的"));
        check(&["\n\n"], &["a\n", "b\n", "\nc"], &["a", "\nb"], Some("\n\n"));
    }

    #[test]
    fn what_may_become_a_stop_string_waits_and_comes_when_it_does_not() {
        check(&["END"], &["abE", "N", "x", "E"], &["ab", "ENx", "E"], None);
        check(&["aab"], &["a", "a", "a", "a", "b"], &["a", "a"], Some("aab"));
        check(&["好的"], &["好", "吗"], &["好吗"], None);
        check(&[], &["a", "", "b"], &["a", "b"], None);
    }

    #[test]
    fn of_several_stop_strings_the_first_in_the_text_counts_then_the_first_given() {
        check(&["cd", "bc"], &["ab", "cd"], &["a"], Some("bc"));
        check(&["bcd", "bc"], &["ab", "cd"], &["a"], Some("bcd"));
        check(&["bc", "bcd"], &["abcd"], &["a"], Some("bc"));
        check(&["bcdef", "cd"], &["ab", "c", "d"], &["a", "b"], Some("cd"));
    }

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_are_never_taken_back_and_no_stop_string_is_left_in_the_text(
            pieces in prop::collection::vec("[ab好]{0,3}", 0..12),
            stops in prop::collection::vec("[ab好]{1,4}", 0..3),
            include in any::<bool>(),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (chunks, text, stopped) = feed(&stops, include, &pieces);
            let whole = pieces.concat();
            prop_assert!(whole.starts_with(&text));
            prop_assert_eq!(chunks.concat(), text.clone());
            let contained = stops.iter().any(|stop| whole.contains(stop));
            prop_assert_eq!(stopped.is_some(), contained);
            match stopped {
                None => prop_assert_eq!(text, whole),
                Some(stop) => {
                    let before = if include { text.strip_suffix(&stop).unwrap() } else { &text };
                    prop_assert!(whole[before.len()..].starts_with(&stop));
                    prop_assert!(stops.iter().all(|s| !before.contains(s)), "{before:?}");
                }
            }
        }
    }
}
