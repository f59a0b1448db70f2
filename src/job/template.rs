//! Templates: strict minijinja, checked when the file is loaded.
//!
//! A template reads only its context and the environment variables bound to it: no files, no includes. Its time and
//! memory are bounded ([`FUEL`], [`MAX_OUTPUT`], [`bounds`]). Strings are inserted as they are and everything else as
//! JSON, so that `{{ artwork }}` in a prompt is a JSON document.

mod bounds;
mod joined;
mod scan;
mod url_path;

use minijinja::value::{Kwargs, Serde, Value as Jinja, ValueKind};
use minijinja::{Environment, ErrorKind, Output, State, UndefinedBehavior};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use scan::Role;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use url_path::{UrlPath, path};

use crate::entry::excerpt;

/// The most instructions of a rendering; a loop over 100,000 items fits.
const FUEL: u64 = 2_000_000;
/// The longest text that a rendering may produce, in bytes.
const MAX_OUTPUT: usize = 8 << 20;
/// The longest value that is inserted without the engine, in bytes.
const MAX_PLAIN: usize = 1 << 16;
/// The deepest nesting of a JSON document.
const MAX_DEPTH: usize = 100;
/// The longest piece of a template in an error, in characters.
const EXCERPT: usize = 80;

const TEXT: &str = "text";
const URL: &str = "url";
/// A URL that names many entries.
const URL_OF_MANY: &str = "url of many";
/// A placeholder for an empty inserted value, until the check for empty path segments.
const NOTHING: char = '\u{1}';

/// All but RFC 3986's unreserved characters (section 2.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One text template, or one expression.
#[derive(Clone)]
pub struct Template(Arc<Compiled>);

struct Compiled {
    source: String,
    /// The source twice, under [`TEXT`] and under [`Compiled::url`]: the name selects the encoding.
    engine: Environment<'static>,
    /// [`URL`] or [`URL_OF_MANY`].
    url: &'static str,
    /// The expression between the braces, if the template consists of one pair of braces.
    expression: Option<String>,
    /// The pieces of a template of literal text and names only, which is rendered without the engine, with the same
    /// result.
    plain: Option<Vec<Piece>>,
}

/// A piece of a template that needs no engine.
#[derive(Clone, Debug)]
enum Piece {
    Literal(String),
    Name(String),
}

/// A fault of a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TemplateError {
    /// The fault.
    pub message: String,
    /// Bytes in the template.
    pub at: Option<Range<usize>>,
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Template").field(&self.0.source).finish()
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.source)
    }
}

impl Template {
    /// Compiles a template; filters and tests must be known, and other templates cannot be included.
    ///
    /// # Errors
    /// A fault, with its place.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        let mut engine = engine().clone();
        for name in [TEXT, URL] {
            engine.add_template_owned(name, source.to_owned()).map_err(|error| refused(source, &error))?;
        }
        check_words(source, &engine)?;
        bounds::check(source)?;
        let expression = sole_expression(source, &engine);
        Ok(Self(Arc::new(Compiled { source: source.to_owned(), engine, url: URL, expression, plain: plain(source) })))
    }

    /// Returns the template as that of a URL that names many entries: in it, `join` refuses a value that contains the
    /// separator.
    ///
    /// # Errors
    /// None, since the template was compiled before.
    pub fn of_many(&self) -> Result<Self, TemplateError> {
        let Compiled { source, engine, expression, plain, .. } = &*self.0;
        let mut engine = engine.clone();
        engine.add_template_owned(URL_OF_MANY, source.clone()).map_err(|error| refused(source, &error))?;
        let (expression, plain) = (expression.clone(), plain.clone());
        Ok(Self(Arc::new(Compiled { source: source.clone(), engine, url: URL_OF_MANY, expression, plain })))
    }

    /// Returns the template with values for `{{ env.NAME }}`. They occur in its output, but not in its `Debug`.
    pub fn with_env(&self, values: &BTreeMap<String, String>) -> Self {
        let Compiled { source, engine, url, expression, plain } = &*self.0;
        let mut engine = engine.clone();
        engine.add_global("env", Jinja::from(Serde(values)));
        let (expression, plain) = (expression.clone(), plain.clone());
        Self(Arc::new(Compiled { source: source.clone(), engine, url, expression, plain }))
    }

    /// Returns the template as written in the file.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// Returns `true` if the template inserts nothing.
    pub fn is_literal(&self) -> bool {
        !["{{", "{%", "{#"].iter().any(|mark| self.0.source.contains(mark))
    }

    /// Returns the names that the context must provide, with their attributes: `value.artist.name`.
    pub fn names(&self) -> BTreeSet<String> {
        let Ok(template) = self.0.engine.get_template(TEXT) else { return BTreeSet::new() };
        let mut names: BTreeSet<String> = template.undeclared_variables(true).into_iter().collect();
        for global in ["range", "dict"] {
            names.remove(global);
        }
        names
    }

    /// Returns the first place of the filter `path`, which is for URLs only: bytes in the source.
    pub fn path_filter(&self) -> Option<Range<usize>> {
        let mut words = scan::words(&self.0.source).into_iter();
        words.find(|word| word.role == Role::Filter && word.text == "path").map(|word| word.at)
    }

    /// Returns the first place of a name, as in [`Template::names`]: bytes in the source.
    pub fn locate(&self, name: &str) -> Option<Range<usize>> {
        let mut parts = name.split('.');
        let top = parts.next()?;
        let attributes: Vec<&str> = parts.collect();
        let words = scan::words(&self.0.source);
        let whole = words.iter().enumerate().find_map(|(index, word)| {
            let rest = words.get(index + 1..index + 1 + attributes.len())?;
            let same = word.role == Role::Name
                && word.text == top
                && rest.iter().zip(&attributes).all(|(word, name)| word.role == Role::Attribute && word.text == *name);
            same.then(|| word.at.start..rest.last().unwrap_or(word).at.end)
        });
        whole.or_else(|| Some(words.iter().find(|word| word.role == Role::Name && word.text == top)?.at.clone()))
    }

    /// Renders the text, with every inserted value as it is.
    ///
    /// # Errors
    /// A text that names the undefined expression, or the reason why the template cannot be rendered.
    pub fn render(&self, context: &Value) -> Result<String, String> {
        self.render_as(TEXT, context)
    }

    /// Renders the text, with every inserted value percent-encoded (all but RFC 3986's unreserved characters).
    ///
    /// Literal text stays as it is. Every inserted value is encoded, so it is always one path segment or one query
    /// value. Numbers and booleans are inserted as in JSON. The filter `path` keeps `/` between segments.
    ///
    /// # Errors
    /// Those of [`Template::render`], and these:
    /// - `null`, a list or an object, which cannot be part of a URL;
    /// - an empty value that is a whole path segment, since `/artworks/` is another resource;
    /// - a path segment `.` or `..`, which no URL can carry: URL parsers (WHATWG URL, section 4.4) also take `%2E%2E`
    ///   for `..` and shorten the path.
    pub fn render_url(&self, context: &Value) -> Result<String, String> {
        let text = match self.plain_url(context) {
            Some(text) => text,
            None => self.render_as(self.0.url, context)?,
        };
        let path_end = text.find(['?', '#']).unwrap_or(text.len());
        let path = text.get(..path_end).unwrap_or_default();
        let path = path.split_once("://").map_or(path, |(_, rest)| rest.find('/').map_or("", |at| &rest[at..]));
        for segment in path.split('/') {
            if is_dot_segment(segment) {
                return Err(format!("a path segment would be `{segment}`, which no URL can carry"));
            }
            if !segment.is_empty() && segment.chars().all(|c| c == NOTHING) {
                return Err(format!(
                    "an inserted value is empty, which leaves a path segment of `{}` empty",
                    self.0.source
                ));
            }
        }
        Ok(text.replace(NOTHING, ""))
    }

    /// Renders a plain template whose values are short texts, with the result of [`Template::render_as`] for a URL.
    /// Returns `None` for any other.
    fn plain_url(&self, context: &Value) -> Option<String> {
        let mut text = String::with_capacity(self.0.source.len() + 32);
        for piece in self.0.plain.as_ref()? {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Name(name) => match context.get(name)?.as_str()? {
                    "" => text.push(NOTHING),
                    value if value.len() <= MAX_PLAIN => text.extend(utf8_percent_encode(value, ENCODED)),
                    _ => return None,
                },
            }
        }
        Some(text)
    }

    /// Returns the truth of the template's single expression (as in minijinja, false, zero, empty and null are false);
    /// for any other template, that of its text, `true` or `false`.
    ///
    /// # Errors
    /// A text that names the undefined expression, or a template whose text is neither.
    pub fn test(&self, context: &Value) -> Result<bool, String> {
        if let Some(expression) = &self.0.expression {
            return Ok(self.evaluate(expression, context)?.is_true());
        }
        let text = self.render(context)?;
        match text.trim().to_ascii_lowercase().as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(format!("`{}` renders neither `true` nor `false`", self.0.source)),
        }
    }

    /// Returns the single expression's value with its JSON type; for any other template, its text.
    ///
    /// # Errors
    /// Those of [`Template::render`], and a value that is not JSON (NaN, a function).
    pub fn value(&self, context: &Value) -> Result<Value, String> {
        match &self.0.expression {
            Some(expression) => to_json(&self.evaluate(expression, context)?),
            None => self.render(context).map(Value::String),
        }
    }

    fn evaluate(&self, expression: &str, context: &Value) -> Result<Jinja, String> {
        let value = self
            .0
            .engine
            .compile_expression(expression)
            .and_then(|compiled| compiled.eval(Jinja::from(Serde(context))))
            .map_err(|error| explain(&error, Some(expression)))?;
        if value.is_undefined() {
            return Err(format!("`{}` is undefined", expression.trim()));
        }
        Ok(value)
    }

    fn render_as(&self, name: &str, context: &Value) -> Result<String, String> {
        let mut text = Bounded(Vec::new());
        let fail = |error: minijinja::Error| explain(&error, Some(&self.0.source));
        let template = self.0.engine.get_template(name).map_err(fail)?;
        template.render_captured_to(Jinja::from(Serde(context)), &mut text).map_err(fail)?;
        String::from_utf8(text.0).map_err(|error| error.to_string())
    }
}

/// Returns `true` if a URL parser takes a path segment for `.` or `..` and drops it.
pub(super) fn is_dot_segment(segment: &str) -> bool {
    matches!(segment.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..")
}

fn engine() -> &'static Environment<'static> {
    static ENGINE: OnceLock<Environment<'static>> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let mut engine = Environment::new();
        engine.set_undefined_behavior(UndefinedBehavior::Strict);
        engine.set_fuel(Some(FUEL));
        // In debug mode, errors quote the context, which contains secrets and bodies.
        engine.set_debug(false);
        engine.remove_global("debug");
        engine.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        engine.set_formatter(insert);
        bounds::tame(&mut engine);
        engine.add_filter("tojson", tojson);
        engine.add_filter("path", path);
        for markup in ["safe", "escape", "e"] {
            engine.remove_filter(markup);
        }
        engine
    })
}

/// Returns the fault of a template that the engine refuses. The engine does not name a character that it cannot read.
fn refused(source: &str, error: &minijinja::Error) -> TemplateError {
    let message = explain(error, None);
    let stray = scan::words(source).into_iter().find(|word| word.role == Role::Stray);
    match stray.filter(|_| message.ends_with("unexpected character")) {
        Some(word) => {
            let plain = if word.text.is_ascii() { "" } else { ": names consist of ASCII letters, digits and `_`" };
            TemplateError { message: format!("{message} `{}`{plain}", word.text), at: Some(word.at) }
        }
        None => TemplateError { message, at: error.range().filter(|at| source.get(at.clone()).is_some()) },
    }
}

fn insert(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Jinja) -> Result<(), minijinja::Error> {
    let full = |_| minijinja::Error::from(ErrorKind::WriteFailure);
    if value.is_undefined() {
        return Ok(());
    }
    if matches!(state.name(), URL | URL_OF_MANY) {
        if let Some(path) = UrlPath::of(value) {
            return path.write(out).map_err(full);
        }
        let text = match value.kind() {
            ValueKind::String => value.to_string(),
            ValueKind::Number | ValueKind::Bool => match to_json(value) {
                Ok(json) => json.to_string(),
                Err(message) => return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message)),
            },
            kind => {
                let message = format!("{kind} cannot be part of a URL; only text, numbers and booleans can");
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
            }
        };
        if text.is_empty() {
            return out.write_char(NOTHING).map_err(full);
        }
        return write!(out, "{}", utf8_percent_encode(&text, ENCODED)).map_err(full);
    }
    match value.as_str() {
        Some(text) => out.write_str(text).map_err(full),
        None => match to_json(value) {
            Ok(json) => write!(out, "{json}").map_err(full),
            Err(message) => Err(minijinja::Error::new(ErrorKind::InvalidOperation, message)),
        },
    }
}

/// Renders plain JSON, without escapes for HTML or for letters of any script. `tojson(2)` or `tojson(indent=2)` breaks
/// it into lines.
fn tojson(value: &Jinja, indent: Option<usize>, named: Kwargs) -> Result<String, minijinja::Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => named.get::<Option<usize>>("indent")?,
    };
    named.assert_all_used()?;
    let fail = |message: String| minijinja::Error::new(ErrorKind::BadSerialization, message);
    let json = to_json(value).map_err(fail)?;
    let Some(indent) = indent else { return Ok(json.to_string()) };
    let spaces = " ".repeat(indent.min(16));
    let mut bytes = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
    serde::Serialize::serialize(&json, &mut serde_json::Serializer::with_formatter(&mut bytes, format))
        .map_err(|error| fail(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| fail(error.to_string()))
}

fn to_json(value: &Jinja) -> Result<Value, String> {
    let mut room = MAX_OUTPUT;
    bounded_json(value, MAX_DEPTH, &mut room)
}

fn bounded_json(value: &Jinja, depth: usize, room: &mut usize) -> Result<Value, String> {
    let too_large = || format!("the document would be longer than {MAX_OUTPUT} bytes");
    let deeper = depth.checked_sub(1).ok_or_else(|| format!("the document is nested deeper than {MAX_DEPTH}"))?;
    let mut take = |size: usize| -> Result<(), String> {
        *room = room.checked_sub(size).ok_or_else(too_large)?;
        Ok(())
    };
    take(2)?;
    match value.kind() {
        ValueKind::Undefined => Err("a part of the value is undefined".to_owned()),
        ValueKind::None => Ok(Value::Null),
        ValueKind::Bool => Ok(Value::Bool(value.is_true())),
        ValueKind::Number => match serde_json::to_value(value) {
            Ok(number @ Value::Number(_)) => Ok(number),
            _ => Err(format!("{value} is not a JSON number")),
        },
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            take(text.len())?;
            Ok(Value::String(text.to_owned()))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter().map_err(|error| error.to_string())?;
            items.map(|item| bounded_json(&item, deeper, room)).collect()
        }
        ValueKind::Map => {
            let mut object = serde_json::Map::new();
            for key in value.try_iter().map_err(|error| error.to_string())? {
                let item = value.get_item(&key).map_err(|error| error.to_string())?;
                let name = key.to_string();
                *room = room.checked_sub(name.len()).ok_or_else(too_large)?;
                object.insert(name, bounded_json(&item, deeper, room)?);
            }
            Ok(Value::Object(object))
        }
        _ if UrlPath::of(value).is_some() => Err("the filter `path` is for URLs only".to_owned()),
        kind => Err(format!("{kind} is not JSON")),
    }
}

/// Returns the pieces of a template of literal text and `{{ name }}` only; `None` for any other.
fn plain(source: &str) -> Option<Vec<Piece>> {
    // The engine renders comments and statements, and trims a line break at the end.
    if source.contains('\n') || source.contains("{%") || source.contains("{#") {
        return None;
    }
    let (mut pieces, mut rest) = (Vec::new(), source);
    while let Some((literal, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}")?;
        let name = name.trim_matches(' ');
        let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !begins || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return None;
        }
        pieces.push(Piece::Literal(literal.to_owned()));
        pieces.push(Piece::Name(name.to_owned()));
        rest = after;
    }
    pieces.push(Piece::Literal(rest.to_owned()));
    Some(pieces)
}

/// Returns the expression if the template is a single `{{ expression }}`.
fn sole_expression(source: &str, engine: &Environment<'_>) -> Option<String> {
    let inner = source.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    let inner = inner.strip_suffix(['-', '+']).unwrap_or(inner);
    engine.compile_expression(inner).ok()?;
    Some(inner.to_owned())
}

fn check_words(source: &str, engine: &Environment<'_>) -> Result<(), TemplateError> {
    let mut state = engine.empty_state();
    for word in scan::words(source) {
        let name = word.text;
        let wrong = match word.role {
            Role::Filter => unknown(&state.apply_filter(name, &[]), ErrorKind::UnknownFilter).then(|| match name {
                "safe" | "escape" | "e" => {
                    format!("unknown filter `{name}`: templates do not escape HTML, so remove it")
                }
                "urlencode" => {
                    "unknown filter `urlencode`: values in a URL are always encoded, so remove it".to_owned()
                }
                _ => format!("unknown filter `{name}`"),
            }),
            Role::Test => unknown(&state.perform_test(name, &[]), ErrorKind::UnknownTest)
                .then(|| format!("unknown test `is {name}`")),
            Role::Statement => matches!(name, "include" | "import" | "from" | "extends" | "block")
                .then(|| format!("`{{% {name} %}}` needs other templates, which do not exist; write the text here")),
            Role::Name | Role::Attribute | Role::Stray => None,
        };
        if let Some(message) = wrong {
            return Err(TemplateError { message, at: Some(word.at) });
        }
    }
    Ok(())
}

fn unknown<T>(result: &Result<T, minijinja::Error>, kind: ErrorKind) -> bool {
    result.as_ref().err().is_some_and(|error| error.kind() == kind)
}

/// Returns the error as a sentence, with the piece of the template that causes it.
fn explain(error: &minijinja::Error, source: Option<&str>) -> String {
    let piece = error.range().and_then(|at| whole_path(source?, at)).map(|piece| excerpt(piece.trim(), EXCERPT));
    match (error.kind(), piece) {
        (ErrorKind::OutOfFuel, _) => "the template takes too many steps; loop over fewer items".to_owned(),
        (ErrorKind::WriteFailure, _) => format!("the text would be longer than {MAX_OUTPUT} bytes"),
        (ErrorKind::UndefinedError, Some(piece)) => format!("`{piece}` is undefined"),
        (kind, piece) => {
            let mut message = match error.detail() {
                Some(detail) if kind == ErrorKind::InvalidOperation => detail.to_owned(),
                Some(detail) => format!("{kind}: {detail}"),
                None => kind.to_string(),
            };
            if let Some(piece) = piece.filter(|_| kind != ErrorKind::SyntaxError) {
                message.push_str(&format!(" (in `{piece}`)"));
            }
            message
        }
    }
}

/// Returns a piece of a template; if it is only the end of a path (`.name` of `value.artist.name`), the whole path.
fn whole_path(source: &str, at: Range<usize>) -> Option<&str> {
    let piece = source.get(at.clone())?;
    if !piece.starts_with(['.', '[']) {
        return Some(piece);
    }
    let before = source.get(..at.start)?;
    let start = before
        .rfind(|c: char| !(c.is_ascii_alphanumeric() || "_.[]'\"".contains(c)))
        .map_or(0, |found| found + before.get(found..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8));
    source.get(start..at.end)
}

/// A buffer of at most [`MAX_OUTPUT`] bytes; a longer write fails.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other("too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A JSON document whose strings are templates; one that is a single `{{ expression }}` keeps the expression's type.
#[derive(Clone, Debug)]
pub struct Shape(Arc<Node>);

/// A part of a [`Shape`].
#[derive(Debug)]
pub(super) enum Node {
    Plain(Value),
    Template(Template),
    Array(Vec<Node>),
    Object(Vec<(String, Node)>),
}

impl Shape {
    pub(super) fn new(root: Node) -> Self {
        Self(Arc::new(root))
    }

    /// Renders the document.
    ///
    /// # Errors
    /// A text that names the undefined expression and its place in the document, or the reason why the document cannot
    /// be rendered.
    pub fn render(&self, context: &Value) -> Result<Value, String> {
        self.0.render(context)
    }

    /// Returns the document with its templates as they are written in the file.
    pub fn source(&self) -> Value {
        self.0.source()
    }

    /// Returns the templates in it.
    pub fn templates(&self) -> Vec<&Template> {
        let (mut found, mut nodes) = (Vec::new(), vec![&*self.0]);
        while let Some(node) = nodes.pop() {
            match node {
                Node::Plain(_) => {}
                Node::Template(template) => found.push(template),
                Node::Array(items) => nodes.extend(items.iter().rev()),
                Node::Object(fields) => nodes.extend(fields.iter().rev().map(|(_, node)| node)),
            }
        }
        found
    }
}

impl Node {
    fn source(&self) -> Value {
        match self {
            Self::Plain(value) => value.clone(),
            Self::Template(template) => template.source().into(),
            Self::Array(items) => items.iter().map(Self::source).collect(),
            Self::Object(fields) => fields.iter().map(|(name, node)| (name.clone(), node.source())).collect(),
        }
    }

    fn render(&self, context: &Value) -> Result<Value, String> {
        match self {
            Self::Plain(value) => Ok(value.clone()),
            Self::Template(template) => template.value(context),
            Self::Array(items) => items.iter().map(|item| item.render(context)).collect(),
            Self::Object(fields) => {
                let mut object = serde_json::Map::new();
                for (name, node) in fields {
                    let value = node.render(context).map_err(|error| format!("{name}: {error}"))?;
                    object.insert(name.clone(), value);
                }
                Ok(Value::Object(object))
            }
        }
    }
}

#[cfg(test)]
mod tests;
