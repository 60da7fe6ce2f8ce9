//! What tokenizer_config.json says of tokens, against tokenizer.json: which are special, and that ids agree.
//!
//! transformers takes the ids from one file and some of the rest from the other, and that differs between its versions:
//! where the two disagree, nobody knows which the model was trained with.

use crate::Error;
use crate::json::{line, short};
use crate::keys::{Keys, MAX_TEXT, object, read_text};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::{AddedToken, Tokenizer};

/// tokenizer_config.json.
pub(crate) struct SpecialTokens {
    file: String,
    config: Map<String, Value>,
}

/// An added token as either file writes it.
#[derive(Deserialize)]
struct Added {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl Added {
    fn token(self) -> AddedToken {
        let Added { content, single_word, lstrip, rstrip, normalized, special } = self;
        let token = AddedToken::from(content, special).single_word(single_word).lstrip(lstrip).rstrip(rstrip);
        token.normalized(normalized.unwrap_or(!special))
    }
}

impl SpecialTokens {
    /// Reads tokenizer_config.json of a directory; empty when there is none.
    pub fn open(dir: &Path) -> Result<SpecialTokens, Error> {
        let path = dir.join("tokenizer_config.json");
        let file = path.display().to_string();
        let config = read_text(&path, MAX_TEXT)?.map_or(Ok(Map::new()), |text| object(&file, &text))?;
        Ok(SpecialTokens { file, config })
    }

    /// The file, for errors.
    pub fn keys(&self) -> Keys<'_> {
        Keys { file: &self.file, prefix: "", map: &self.config }
    }

    /// Every `…_token`: a string, or an object whose `content` is the string.
    pub fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        self.config.iter().filter_map(|(name, value)| {
            let text = value.as_str().or_else(|| value.get("content").and_then(Value::as_str))?;
            name.ends_with("_token").then_some((name.as_str(), text))
        })
    }

    /// The text of one of them.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.named().find(|(n, _)| *n == name).map(|(_, text)| text)
    }

    /// Checks the added tokens against tokenizer.json, and makes special what this file names: such tokens are no part of
    /// a text.
    ///
    /// # Errors
    /// When the files disagree about a token, or the first or last token of a text is none of the vocabulary.
    pub fn apply(&self, tokenizer: &mut Tokenizer) -> Result<(), Error> {
        let keys = self.keys();
        let added: BTreeMap<u32, AddedToken> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        if let Some(decoder) = keys.object("added_tokens_decoder")? {
            for (id, value) in decoder {
                self.agrees(tokenizer, &added, id, value)?;
            }
        }
        let mut special = Vec::new();
        for (name, text) in self.named() {
            match tokenizer.token_to_id(text) {
                None if matches!(name, "bos_token" | "eos_token") => {
                    return Err(keys.wrong(name, format!("{:?}", short(text)), "a token of tokenizer.json"));
                }
                Some(id) if !tokenizer.get_added_vocabulary().is_special_token(text) => {
                    let token = added.get(&id).cloned();
                    let mut token = token.unwrap_or_else(|| AddedToken::from(text.to_owned(), true));
                    token.special = true;
                    special.push(token);
                }
                _ => {}
            }
        }
        tokenizer
            .add_special_tokens(special)
            .map(|_| ())
            .map_err(|e| Error::Tokenizer { file: self.file.clone(), reason: line(&e.to_string()) })
    }

    /// Whether tokenizer.json has an added token under the same id, with the same flags.
    fn agrees(
        &self,
        tokenizer: &Tokenizer,
        added: &BTreeMap<u32, AddedToken>,
        id: &str,
        value: &Value,
    ) -> Result<(), Error> {
        let keys = Keys { prefix: "added_tokens_decoder.", ..self.keys() };
        let expected = "an added token: an object with `content` under its id";
        let bad = || keys.bad(id, value, expected);
        let said = Added::deserialize(value).map_err(|_| bad())?.token();
        let number = id.parse::<u32>().map_err(|_| bad())?;
        let content = short(&said.content);
        let refuse = |reason: String| Err(keys.wrong(id, format!("{content:?}"), &reason));
        match (added.get(&number), tokenizer.token_to_id(&said.content)) {
            (_, None) => refuse("a token of tokenizer.json, which has none of that name".to_owned()),
            (_, Some(other)) if other != number => {
                refuse(format!("tokenizer.json's id for it, which is {other}"))
            }
            (None, _) => {
                refuse("an added token of tokenizer.json too, where it is an ordinary one".to_owned())
            }
            (Some(found), _) => {
                let flags = |t: &AddedToken| {
                    [
                        ("special", t.special),
                        ("lstrip", t.lstrip),
                        ("rstrip", t.rstrip),
                        ("single_word", t.single_word),
                        ("normalized", t.normalized),
                    ]
                };
                let differs = flags(&said).into_iter().zip(flags(found)).find(|(a, b)| a != b);
                differs.map_or(Ok(()), |((flag, here), (_, there))| {
                    refuse(format!("tokenizer.json's flags for it: {flag} is {here} here and {there} there"))
                })
            }
        }
    }
}
