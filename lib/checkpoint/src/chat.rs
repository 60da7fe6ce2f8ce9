//! Chat templates: messages to the text a model was trained on, as transformers renders it.
//!
//! A template is Jinja with a few additions of transformers. Where minijinja differs from what Python does
//! (`tojson`, printed floats and truth values), the Python behaviour is put in its place.

mod kinds;
mod python;
mod source;
mod strings;
mod time;

use crate::Error;
use crate::json::{line, short};
use crate::keys::{Keys, MAX_TEXT, read_text};
use crate::special::SpecialTokens;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde, Value as Jinja};
use minijinja::{Environment, ErrorKind, State};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
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
/// The template that is taken unless another is asked for.
const DEFAULT: &str = "default";
/// The template that is taken for requests with tools, where there is one.
const TOOL_USE: &str = "tool_use";
/// Where transformers puts the templates with other names.
pub(crate) const MORE: &str = "additional_chat_templates";

/// A model's chat template, or several by name.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token`, …: special tokens of tokenizer_config.json
    tokens: Map<String, Value>,
    named: BTreeMap<String, Named>,
    chosen: Option<String>,
}

/// One of them.
#[derive(Debug)]
struct Named {
    /// what errors call its file
    file: String,
    source: String,
}

impl ChatTemplate {
    /// Opens the templates of a directory: chat_template.jinja and those of `additional_chat_templates`, else
    /// `chat_template` of tokenizer_config.json (a string, or a list of named templates). `None` when there is neither.
    ///
    /// # Errors
    /// When a file cannot be read, a template does not parse, or none is called `default`.
    pub fn open(dir: &Path) -> Result<Option<ChatTemplate>, Error> {
        let config = SpecialTokens::open(dir)?;
        let tokens = config.named().map(|(name, text)| (name.to_owned(), Value::from(text))).collect();
        let mut named = files(dir)?;
        if named.is_empty() {
            named = embedded(&config.keys())?;
        } else if !named.contains_key(DEFAULT) {
            let (file, why) =
                ("chat_template.jinja".to_owned(), format!("the default among those of {MORE}"));
            return Err(Error::MissingFile { dir: dir.display().to_string(), file, why });
        }
        if named.is_empty() { Ok(None) } else { ChatTemplate::of(named, tokens).map(Some) }
    }

    /// Compiles a template; `file` is what errors call it, `tokens` are the special tokens by name.
    ///
    /// # Errors
    /// When it does not parse.
    pub fn new(file: &str, source: String, tokens: Map<String, Value>) -> Result<ChatTemplate, Error> {
        let one = Named { file: file.to_owned(), source };
        ChatTemplate::of([(DEFAULT.to_owned(), one)].into(), tokens)
    }

    fn of(named: BTreeMap<String, Named>, tokens: Map<String, Value>) -> Result<ChatTemplate, Error> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| failure("", DEFAULT, &e))?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(python::method);
        environment.set_formatter(python::format);
        environment.set_fuel(Some(FUEL));
        for (name, test) in [
            ("iterable", kinds::iterable as fn(&Jinja) -> bool),
            ("sequence", kinds::sequence),
            ("mapping", kinds::mapping),
        ] {
            environment.add_test(name, test);
        }
        environment.add_filter("e", python::escape);
        environment.add_filter("escape", python::escape);
        environment.add_filter("tojson", tojson);
        environment.add_filter("string", python::string);
        environment.add_filter("int", strings::int);
        environment.add_filter("float", strings::float);
        environment.add_filter("striptags", minijinja_contrib::filters::striptags);
        environment.add_function("cycler", |items: Rest<Jinja>| minijinja_contrib::globals::cycler(items.0));
        environment.add_function("joiner", minijinja_contrib::globals::joiner);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: String| time::strftime(SystemTime::now(), &format));
        for (name, Named { file, source }) in &named {
            compile(&mut environment, file, name, source)?;
        }
        Ok(ChatTemplate { environment, tokens, named, chosen: None })
    }

    /// Takes the template of this name from now on, whatever a request has.
    ///
    /// # Errors
    /// With the names there are, when this is none of them.
    pub fn choose(&mut self, name: &str) -> Result<(), Error> {
        if self.named.contains_key(name) {
            self.chosen = Some(name.to_owned());
            return Ok(());
        }
        let names: Vec<&str> = self.named.keys().map(String::as_str).collect();
        let file = self.named.values().next().map_or(String::new(), |one| one.file.clone());
        let reason = format!("there is no template {:?}: expected {}", short(name), names.join(" or "));
        Err(Error::Template { file, line: String::new(), reason })
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
        context.insert("messages".to_owned(), messages.iter().map(message).collect());
        context.insert("add_generation_prompt".to_owned(), Value::Bool(add_generation_prompt));
        let tools = context.get("tools").is_some_and(|tools| !tools.is_null());
        let name = match &self.chosen {
            Some(name) => name,
            None if tools && self.named.contains_key(TOOL_USE) => TOOL_USE,
            None => DEFAULT,
        };
        let file = self.named.get(name).map_or("", |one| one.file.as_str());
        self.environment
            .get_template(name)
            .and_then(|template| template.render(Jinja::from(Serde(&context))))
            .map_err(|e| failure(file, name, &e))
    }

    /// The default template's text.
    pub fn source(&self) -> &str {
        self.named.get(DEFAULT).map_or("", |one| &one.source)
    }
}

/// A message as transformers hands it to a template: keys without a value are left out, and reasoning, whichever of
/// its names it came under, stands under `reasoning_content` and `thinking` too.
fn message(given: &Value) -> Value {
    let Value::Object(given) = given else { return given.clone() };
    let given: Map<String, Value> =
        given.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
    let reasoning = ["reasoning_content", "thinking", "reasoning"].iter().find_map(|name| given.get(*name));
    let Some(reasoning) = reasoning.cloned() else { return Value::Object(given) };
    let mut out = Map::new();
    out.insert("thinking".to_owned(), reasoning.clone());
    out.extend(given);
    out.insert("reasoning_content".to_owned(), reasoning);
    Value::Object(out)
}

/// Compiles a template on a thread with a stack for the deepest nesting that its length allows: the compiler calls
/// itself for every `not` and `-` of a row, and a stack that overflows is no error but the end of the process.
fn compile(
    environment: &mut Environment<'static>,
    file: &str,
    name: &str,
    source: &str,
) -> Result<(), Error> {
    let refuse = |reason: String| Error::Template { file: file.to_owned(), line: called(name), reason };
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
        let compiler =
            thread.spawn_scoped(scope, || environment.add_template_owned(name.to_owned(), text))?;
        Ok(compiler.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    compiled
        .map_err(|e: std::io::Error| refuse(format!("no thread to compile it on: {e}")))?
        .map_err(|e| failure(file, name, &e))
}

/// The templates in files of their own.
fn files(dir: &Path) -> Result<BTreeMap<String, Named>, Error> {
    let mut out = BTreeMap::new();
    let mut all = vec!["chat_template.jinja".to_owned()];
    all.extend(more(dir));
    for file in all {
        let stem = file.strip_prefix(MORE).and_then(|f| f.strip_prefix('/')?.strip_suffix(".jinja"));
        let name = stem.unwrap_or(DEFAULT).to_owned();
        let path = dir.join(file);
        let Some(bytes) = read_text(&path, MAX_TEXT)? else { continue };
        let file = path.display().to_string();
        let source = String::from_utf8(bytes).map_err(|e| Error::Template {
            file: file.clone(),
            line: String::new(),
            reason: format!("invalid UTF-8 at byte {}", e.utf8_error().valid_up_to()),
        })?;
        out.insert(name, Named { file, source });
    }
    Ok(out)
}

/// The templates in `additional_chat_templates`, by their paths in the directory, sorted.
pub(crate) fn more(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join(MORE)).into_iter().flatten().flatten();
    let names = entries.filter_map(|e| e.file_name().into_string().ok());
    let mut out: Vec<String> =
        names.filter(|n| n.ends_with(".jinja")).map(|n| format!("{MORE}/{n}")).collect();
    out.sort();
    out
}

/// The templates inside tokenizer_config.json.
fn embedded(keys: &Keys<'_>) -> Result<BTreeMap<String, Named>, Error> {
    const EXPECTED: &str = "a template, or a list of {\"name\", \"template\"} with one named \"default\"";
    let named = |source: &str| Named { file: keys.file.to_owned(), source: source.to_owned() };
    let mut out = BTreeMap::new();
    match keys.get("chat_template") {
        None => {}
        Some(Value::String(source)) => drop(out.insert(DEFAULT.to_owned(), named(source))),
        Some(Value::Array(list)) => {
            for entry in list {
                let field = |key: &str| entry.get(key).and_then(Value::as_str);
                let (Some(name), Some(source)) = (field("name"), field("template")) else {
                    return Err(keys.bad("chat_template", entry, EXPECTED));
                };
                if out.insert(name.to_owned(), named(source)).is_some() {
                    let twice = format!("a list with two templates {:?}", short(name));
                    return Err(keys.wrong("chat_template", twice, EXPECTED));
                }
            }
            if !out.contains_key(DEFAULT) {
                return Err(keys.wrong("chat_template", format!("a list of {}", list.len()), EXPECTED));
            }
        }
        Some(other) => return Err(keys.bad("chat_template", other, EXPECTED)),
    }
    Ok(out)
}

/// What a template is called in errors, behind its file.
fn called(name: &str) -> String {
    if name == DEFAULT { String::new() } else { format!(" {:?}", short(name)) }
}

fn failure(file: &str, name: &str, e: &minijinja::Error) -> Error {
    let reason = match (e.kind(), e.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    Error::Template {
        reason: line(&reason),
        file: file.to_owned(),
        line: called(name) + &e.line().map(|n| format!(" line {n}")).unwrap_or_default(),
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
