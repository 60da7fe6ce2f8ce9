//! A chain of lines of JSON: each ends with the sha256 of itself and of the line before it, so that one that was changed, taken
//! out, repeated or moved is found.

use cute_records::digest::Hasher;
use cute_records::{Line, ReadError};
use serde::Serialize;

/// What the digest stands behind.
const SEAL: &str = ",\"sha256\":\"";

/// The digest of the last line; empty before the first.
#[derive(Clone, Debug, Default)]
pub struct Chain(String);

impl Chain {
    fn digest(&self, body: &[u8]) -> String {
        let mut hasher = Hasher::new();
        hasher.update(self.0.as_bytes());
        hasher.update(body);
        hasher.hex()
    }

    /// The next line, of a value that is an object with fields.
    ///
    /// # Errors
    /// When it is no JSON.
    pub fn seal(&mut self, value: &impl Serialize) -> std::io::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(value)?;
        line.pop(); // the last brace comes back behind the digest
        self.0 = self.digest(&line);
        line.extend([SEAL, &self.0, "\"}\n"].concat().bytes());
        Ok(line)
    }

    /// Whether a line is what was written in its place.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&mut self, line: &Line) -> Result<(), ReadError> {
        let parts = line.text.rsplit_once(SEAL);
        let digest = parts.map(|(body, _)| self.digest(body.as_bytes())).unwrap_or_default();
        if parts.and_then(|(_, end)| end.strip_suffix("\"}")) != Some(&digest) {
            let why = "it is not what was written here: its sha256, with the line before, is another";
            return Err(line.error(why));
        }
        self.0 = digest;
        Ok(())
    }
}
