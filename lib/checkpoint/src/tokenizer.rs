//! tokenizer.json: text to token ids and back, whole or as a stream.

use crate::json::{self, line, reason, short};
use crate::keys::{MAX_TOKENIZER, read_text};
use crate::special::SpecialTokens;
use crate::{Config, Error};
use std::path::Path;

/// What stands for bytes that are no (or not yet a) character.
const REPLACEMENT: char = '\u{fffd}';
/// A stream looks back over at most about this many tokens.
const WINDOW: usize = 64;

/// A model's own tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    file: String,
    largest: (u32, String),
}

impl Tokenizer {
    /// Opens tokenizer.json of a directory; `None` when there is none. Truncation and padding settings of
    /// the file are switched off: a prompt is never cut silently. Tokens that tokenizer_config.json names are special.
    ///
    /// # Errors
    /// When the file is there and cannot be used, or disagrees with tokenizer_config.json.
    pub fn open(dir: &Path) -> Result<Option<Tokenizer>, Error> {
        let path = dir.join("tokenizer.json");
        let Some(text) = read_text(&path, MAX_TOKENIZER)? else { return Ok(None) };
        let file = path.display().to_string();
        let fail =
            |e: tokenizers::Error| Error::Tokenizer { file: file.clone(), reason: line(&e.to_string()) };
        // The library panics on some texts that are no JSON.
        json::check(&text).map_err(|e| Error::Json { file: file.clone(), reason: reason(&e) })?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&text).map_err(fail)?;
        inner.with_truncation(None).map_err(fail)?;
        inner.with_padding(None);
        check_added(&inner, &text).map_err(fail)?;
        SpecialTokens::open(dir)?.apply(&mut inner)?;
        let largest = inner.get_vocab(true).into_iter().map(|(token, id)| (id, token)).max();
        let Some(largest) = largest else {
            return Err(Error::Tokenizer { file, reason: "it has no tokens".to_owned() });
        };
        Ok(Some(Tokenizer { inner, file, largest }))
    }

    /// Token ids of a text. No special tokens are added; those that stand in the text are recognised.
    ///
    /// # Errors
    /// When the tokenizer has no token for some of it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.ids(text, false)
    }

    /// Token ids of a text that no template has made, with the special tokens that tokenizer.json's `post_processor` puts
    /// around it, such as a first one.
    ///
    /// # Errors
    /// When the tokenizer has no token for some of it.
    pub fn encode_whole(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.ids(text, true)
    }

    fn ids(&self, text: &str, around: bool) -> Result<Vec<u32>, Error> {
        let encoding = self.inner.encode_fast(text, around).map_err(|e| self.error(&e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of token ids. Special tokens and ids without a token yield nothing.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        self.inner.decode(ids, true).map_err(|e| self.error(&e))
    }

    /// One more than the largest id, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.largest.0 as usize + 1
    }

    /// The id of a token, e.g. `<|im_end|>`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Refuses another model's tokenizer, as far as ids tell: one with ids that the model has no embedding for, or
    /// without a token for each id that ends a reply. Rows of an embedding beyond the last token are common.
    ///
    /// # Errors
    /// With the token of the largest id, or the first id that ends a reply and has no token.
    pub fn check(&self, config: &Config) -> Result<(), Error> {
        let file = self.file.clone();
        let (id, token) = self.largest.clone();
        if id as usize >= config.vocab_size {
            return Err(Error::TokenizerVocabulary { file, token, id, vocab_size: config.vocab_size });
        }
        match config.eos_token_ids.iter().find(|id| self.inner.id_to_token(**id).is_none()) {
            None => Ok(()),
            Some(&id) => {
                let tokens = self.inner.get_vocab_size(true);
                Err(Error::TokenizerWithoutEnd { file, tokens, id, said_by: config.eos_file })
            }
        }
    }

    /// Whether a token has no part in any text: a special one, or an id without a token.
    fn is_silent(&self, id: u32) -> bool {
        let special = |token: String| self.inner.get_added_vocabulary().is_special_token(&token);
        self.inner.id_to_token(id).is_none_or(special)
    }

    fn error(&self, e: &tokenizers::Error) -> Error {
        Error::Tokenizer { file: self.file.clone(), reason: line(&e.to_string()) }
    }
}

/// The id of `eos_token` of tokenizer_config.json, for a model whose configs name none.
pub(crate) fn eos(dir: &Path, vocab_size: usize) -> Result<Option<u32>, Error> {
    let tokens = SpecialTokens::open(dir)?;
    let Some(token) = tokens.get("eos_token") else { return Ok(None) };
    let id = Tokenizer::open(dir)?.and_then(|t| t.id(token));
    Ok(id.filter(|id| (*id as usize) < vocab_size))
}

/// The library numbers added tokens anew where the file's own number is not the next one; that would be another
/// vocabulary than the model was trained on.
fn check_added(tokenizer: &tokenizers::Tokenizer, text: &[u8]) -> Result<(), tokenizers::Error> {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    #[derive(serde::Deserialize)]
    struct Added {
        id: u32,
        content: String,
    }
    let file: File = serde_json::from_slice(text)?;
    for Added { id, content } in file.added_tokens {
        let found = tokenizer.token_to_id(&content);
        if found != Some(id) {
            let found = found.map_or("no id".to_owned(), |n| format!("id {n}"));
            let content = short(&content);
            let reason = format!(
                "added token {content:?} is said to have id {id}: its place in the vocabulary gives it {found}"
            );
            return Err(reason.into());
        }
    }
    Ok(())
}

/// Text of a growing list of token ids. What it yields, put together, is what [`Tokenizer::decode`] makes of
/// the whole list; it never yields half a character. Every call must be given the same tokenizer.
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    /// the last tokens: some whose text is complete, as context, then those that are not
    ids: Vec<u32>,
    /// bytes of their text that were yielded already
    given: usize,
    /// how many of `ids` are context
    context: usize,
}

impl Detokenizer {
    /// Takes the next token and yields the text that became certain, often none.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, Error> {
        if tokenizer.is_silent(id) {
            return Ok(String::new());
        }
        self.ids.push(id);
        let text = tokenizer.decode(&self.ids)?;
        // Only the last character can still change: it may be the start of one that is not complete.
        let certain = text.strip_suffix(REPLACEMENT).unwrap_or(&text);
        let out = certain.get(self.given..).unwrap_or_default().to_owned();
        self.given = self.given.max(certain.len());
        if certain.len() == text.len() {
            self.forget(tokenizer)?;
        } else if self.ids.len() >= WINDOW {
            self.forget_garbage(tokenizer, &text)?;
        }
        Ok(out)
    }

    /// Ends the stream and yields what was held back: bytes that have not become a character, as U+FFFD.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, Error> {
        let Detokenizer { ids, given, .. } = std::mem::take(self);
        let text = tokenizer.decode(&ids)?;
        Ok(text.get(given..).unwrap_or_default().to_owned())
    }

    /// All text was yielded: keeps the tokens since the last such moment, as context for decoders that treat the first
    /// token of a text differently.
    fn forget(&mut self, tokenizer: &Tokenizer) -> Result<(), Error> {
        self.ids.drain(..self.context);
        self.context = self.ids.len();
        self.given = tokenizer.decode(&self.ids)?.len();
        Ok(())
    }

    /// Bytes that never become a character would make the window grow without end. Where the text of two
    /// halves is the text of the whole, no character spans them.
    fn forget_garbage(&mut self, tokenizer: &Tokenizer, text: &str) -> Result<(), Error> {
        for cut in (1..self.ids.len()).rev() {
            let (head, tail) = self.ids.split_at(cut);
            let (head, tail) = (tokenizer.decode(head)?, tokenizer.decode(tail)?);
            if !tail.is_empty() && text.strip_prefix(&head) == Some(&tail) && head.len() <= self.given {
                self.ids.drain(..cut);
                (self.given, self.context) = (self.given - head.len(), 0);
                return Ok(());
            }
        }
        Ok(())
    }
}
