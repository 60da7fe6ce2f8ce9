//! Chat templates: messages to the text a model was trained on, as transformers renders it.
//!
//! A template is Jinja with a few additions of transformers. Where minijinja differs from what Python does
//! (`tojson`, printed floats and truth values), the Python behaviour is put in its place.

mod python;
mod source;
mod strings;
mod time;

use crate::Error;
use crate::json::line;
use crate::keys::{Keys, MAX_TEXT, object, read_text};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde, Value as Jinja};
use minijinja::{Environment, ErrorKind, State};
use serde_json::{Map, Value};
use std::path::Path;
use std::time::SystemTime;

/// What a template may spend: one for each instruction, and one for every 64 bytes it makes. A conversation of a
/// thousand messages takes some hundred thousand; a hostile loop or doubling ends in an error, at some 300 MB.
const FUEL: u64 = 4_000_000;
/// Largest template, in bytes; those in use have at most some thirty thousand.
const MAX_TEMPLATE: usize = 1 << 16;
/// Most arithmetic signs of a template; the compiler's time grows with the square of those in a row.
const MAX_SIGNS: usize = 8192;
/// Bytes of stack a template is compiled on; only what is used is ever taken.
const STACK: usize = 256 << 20;
/// The name templates are registered under.
const NAME: &str = "chat";

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token`, …: special tokens of tokenizer_config.json
    tokens: Map<String, Value>,
    file: String,
    source: String,
}

impl ChatTemplate {
    /// Opens the template of a directory: chat_template.jinja, else `chat_template` of tokenizer_config.json
    /// (a string, or a list of named templates of which `default` is taken). `None` when there is neither.
    ///
    /// # Errors
    /// When a file cannot be read or the template does not parse.
    pub fn open(dir: &Path) -> Result<Option<ChatTemplate>, Error> {
        let config_path = dir.join("tokenizer_config.json");
        let config_file = config_path.display().to_string();
        let config = match read_text(&config_path, MAX_TEXT)? {
            Some(text) => object(&config_file, &text)?,
            None => Map::new(),
        };
        let tokens = special_tokens(&config);
        let path = dir.join("chat_template.jinja");
        if let Some(bytes) = read_text(&path, MAX_TEXT)? {
            let file = path.display().to_string();
            let source = String::from_utf8(bytes).map_err(|e| Error::Template {
                file: file.clone(),
                line: String::new(),
                reason: format!("invalid UTF-8 at byte {}", e.utf8_error().valid_up_to()),
            })?;
            return Ok(Some(ChatTemplate::new(&file, source, tokens)?));
        }
        let keys = Keys { file: &config_file, prefix: "", map: &config };
        match embedded(&keys)? {
            Some(source) => Ok(Some(ChatTemplate::new(&config_file, source, tokens)?)),
            None => Ok(None),
        }
    }

    /// Compiles a template; `file` is what errors call it, `tokens` are the special tokens by name.
    ///
    /// # Errors
    /// When it does not parse.
    pub fn new(file: &str, source: String, tokens: Map<String, Value>) -> Result<ChatTemplate, Error> {
        let fail = |e: &minijinja::Error| failure(file, e);
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| fail(&e))?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(python::method);
        environment.set_formatter(python::format);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("tojson", tojson);
        environment.add_filter("string", python::string);
        environment.add_filter("int", strings::int);
        environment.add_filter("float", strings::float);
        environment.add_filter("striptags", minijinja_contrib::filters::striptags);
        environment.add_function("cycler", |items: Rest<Jinja>| minijinja_contrib::globals::cycler(items.0));
        environment.add_function("joiner", minijinja_contrib::globals::joiner);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: String| time::strftime(SystemTime::now(), &format));
        compile(&mut environment, file, &source)?;
        Ok(ChatTemplate { environment, tokens, file: file.to_owned(), source })
    }

    /// Renders messages; `add_generation_prompt` appends the head of the reply.
    ///
    /// # Errors
    /// When the template refuses the messages (`raise_exception`) or fails.
    pub fn render(&self, messages: &[Value], add_generation_prompt: bool) -> Result<String, Error> {
        self.render_with(messages, add_generation_prompt, &Map::new())
    }

    /// As [`ChatTemplate::render`], with further variables by name: `tools`, `enable_thinking`, ….
    ///
    /// # Errors
    /// When the template refuses the messages (`raise_exception`) or fails.
    pub fn render_with(
        &self,
        messages: &[Value],
        add_generation_prompt: bool,
        variables: &Map<String, Value>,
    ) -> Result<String, Error> {
        let mut context = self.tokens.clone();
        for name in ["tools", "documents"] {
            context.insert(name.to_owned(), Value::Null);
        }
        context.extend(variables.clone());
        context.insert("messages".to_owned(), Value::Array(messages.to_vec()));
        context.insert("add_generation_prompt".to_owned(), Value::Bool(add_generation_prompt));
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(Jinja::from(Serde(&context))))
            .map_err(|e| failure(&self.file, &e))
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }
}

/// Compiles a template on a thread with a stack for the deepest nesting that its length allows: the compiler calls
/// itself for every `not` and `-` of a row, and a stack that overflows is no error but the end of the process.
fn compile(environment: &mut Environment<'static>, file: &str, source: &str) -> Result<(), Error> {
    let refuse = |reason: String| Error::Template { file: file.to_owned(), line: String::new(), reason };
    if source.len() > MAX_TEMPLATE {
        return Err(refuse(format!("{} bytes: expected at most {MAX_TEMPLATE}", source.len())));
    }
    let signs = source.bytes().filter(|b| b"~+-*/%".contains(b)).count();
    if signs > MAX_SIGNS {
        return Err(refuse(format!("{signs} signs of ~ + - * / %: expected at most {MAX_SIGNS}")));
    }
    let text = source::prepared(source);
    let compiled = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK);
        let compiler = thread.spawn_scoped(scope, || environment.add_template_owned(NAME, text))?;
        Ok(compiler.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    compiled
        .map_err(|e: std::io::Error| refuse(format!("no thread to compile it on: {e}")))?
        .map_err(|e| failure(file, &e))
}

/// The template inside tokenizer_config.json.
fn embedded(keys: &Keys<'_>) -> Result<Option<String>, Error> {
    const EXPECTED: &str = "a template, or a list of {\"name\", \"template\"} with one named \"default\"";
    match keys.get("chat_template") {
        None => Ok(None),
        Some(Value::String(source)) => Ok(Some(source.clone())),
        Some(Value::Array(list)) => {
            let field = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
            let default = list.iter().find(|entry| field(entry, "name").as_deref() == Some("default"));
            match default.and_then(|entry| field(entry, "template")) {
                Some(source) => Ok(Some(source)),
                None => Err(keys.wrong("chat_template", format!("a list of {}", list.len()), EXPECTED)),
            }
        }
        Some(other) => Err(keys.bad("chat_template", other, EXPECTED)),
    }
}

/// Every `…_token` of tokenizer_config.json: a string, or an object whose `content` is the string.
fn special_tokens(config: &Map<String, Value>) -> Map<String, Value> {
    let token = |(name, value): (&String, &Value)| {
        let text = value.as_str().or_else(|| value.get("content").and_then(Value::as_str))?;
        name.ends_with("_token").then(|| (name.clone(), Value::from(text)))
    };
    config.iter().filter_map(token).collect()
}

fn failure(file: &str, e: &minijinja::Error) -> Error {
    let reason = match (e.kind(), e.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    Error::Template {
        reason: line(&reason),
        file: file.to_owned(),
        line: e.line().map(|n| format!(" line {n}")).unwrap_or_default(),
    }
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// transformers' `tojson`: `json.dumps` with its separators, without HTML escapes.
fn tojson(
    state: &mut State<'_, '_>,
    value: &Jinja,
    ensure_ascii: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, minijinja::Error> {
    let style = python::Style {
        ensure_ascii: match kwargs.get::<Option<bool>>("ensure_ascii")? {
            Some(yes) => yes,
            None => ensure_ascii.unwrap_or(false),
        },
        indent: kwargs.get::<Option<Jinja>>("indent")?.map(indent).transpose()?,
        separators: kwargs.get::<Option<Vec<String>>>("separators")?,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    python::dumps(value, &style, state)
}

/// What a level is indented by: a string, or so many spaces.
fn indent(value: Jinja) -> Result<String, minijinja::Error> {
    const MOST: usize = 64;
    let wide = match value.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(usize::try_from(value)?.min(MOST + 1)),
    };
    let message = format!("tojson: indent is wider than {MOST}");
    let fits = wide.len() <= MOST;
    fits.then_some(wide).ok_or_else(|| minijinja::Error::new(ErrorKind::InvalidOperation, message))
}
