//! A TOML document read field by field: what is missing, misspelt or of the wrong kind becomes a fault with its place,
//! and reading goes on.

use super::literal::raw_offset;
use super::scope::Scope;
use super::spelling::closest;
use crate::entry::duration;
use crate::job::template::Node;
use crate::job::{EnvValues, Fault, Shape, Template};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeInclusive};
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The deepest nesting of templates in arrays and tables.
const MAX_DEPTH: usize = 50;

/// Where an environment variable is named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct EnvUse {
    /// The variable.
    pub name: String,
    /// It is set and not empty.
    pub set: bool,
    /// The file that names it.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
}

/// Faults and environment variables found while files are read.
pub(super) struct Findings<'a> {
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    pub(super) faults: RefCell<Vec<Fault>>,
    pub(super) uses: RefCell<Vec<EnvUse>>,
    pub(super) values: RefCell<EnvValues>,
}

/// One file.
#[derive(Clone, Copy)]
pub(super) struct Document<'a> {
    pub(super) findings: &'a Findings<'a>,
    pub(super) file: &'a str,
    pub(super) text: &'a str,
}

impl<'a> Document<'a> {
    pub(super) fn fault(&self, at: Range<usize>, message: impl Into<String>) {
        self.fault_with_help(at, message, None);
    }

    pub(super) fn fault_with_help(&self, at: Range<usize>, message: impl Into<String>, help: Option<String>) {
        self.findings.faults.borrow_mut().push(Fault::at(self.file, self.text, at, message, help));
    }

    /// The variable's value; where it is unset or empty a fault.
    pub(super) fn env(&self, name: &str, at: Range<usize>) -> Option<String> {
        let value = (self.findings.env)(name).filter(|value| !value.is_empty());
        let place = Fault::at(self.file, self.text, at.clone(), "", None);
        self.findings.uses.borrow_mut().push(EnvUse {
            name: name.to_owned(),
            set: value.is_some(),
            file: self.file.to_owned(),
            line: place.line,
            column: place.column,
        });
        match &value {
            Some(value) => self.findings.values.borrow_mut().insert(name, value),
            None => self.fault_with_help(
                at,
                format!("environment variable `{name}` is not set"),
                Some(format!("set {name} in the environment or in `.env`")),
            ),
        }
        value
    }
}

/// A table whose fields are asked for one by one; what nobody asked for is unknown.
pub(super) struct Table<'a> {
    pub(super) doc: Document<'a>,
    table: &'a DeTable<'a>,
    /// As messages call it: `[source]`.
    title: String,
    at: Range<usize>,
    known: RefCell<Vec<&'static str>>,
    refused: RefCell<Vec<&'static str>>,
}

impl<'a> Table<'a> {
    /// A whole document.
    pub(super) fn root(doc: Document<'a>, table: &'a DeTable<'a>) -> Self {
        Self {
            doc,
            table,
            title: "this file".to_owned(),
            at: 0..0,
            known: RefCell::default(),
            refused: RefCell::default(),
        }
    }

    /// Its heading, or its braces.
    pub(super) fn at(&self) -> Range<usize> {
        self.at.clone()
    }

    pub(super) fn field(&self, name: &'static str) -> Option<Field<'a>> {
        self.known.borrow_mut().push(name);
        let (key, value) = self.table.get_key_value(name)?;
        Some(Field { doc: self.doc, name: name.to_owned(), key: key.span(), value })
    }

    pub(super) fn required(&self, name: &'static str, example: &str) -> Option<Field<'a>> {
        let field = self.field(name);
        if field.is_none() {
            self.doc.fault_with_help(
                self.at(),
                format!("{} has no `{name}`", self.title),
                Some(format!("add one, such as {example}")),
            );
        }
        field
    }

    /// Reports a field that was replaced by another. The list of known fields does not name it.
    pub(super) fn retired(&self, name: &'static str, message: &str, help: &str) {
        if let Some((key, _)) = self.table.get_key_value(name) {
            self.refused.borrow_mut().push(name);
            self.doc.fault_with_help(key.span(), message, Some(help.to_owned()));
        }
    }

    /// Reports a field that is known elsewhere and has no place here.
    pub(super) fn refuse(&self, name: &'static str, message: &str, help: &str) {
        if let Some((key, _)) = self.table.get_key_value(name) {
            self.refused.borrow_mut().push(name);
            self.doc.fault_with_help(key.span(), format!("`{name}`: {message}"), Some(help.to_owned()));
        }
    }

    /// Every field, for tables whose names are the user's.
    pub(super) fn all(&self) -> Vec<Field<'a>> {
        self.table
            .iter()
            .map(|(key, value)| Field { doc: self.doc, name: key.get_ref().to_string(), key: key.span(), value })
            .collect()
    }

    /// Reports what nobody asked for.
    pub(super) fn finish(self) {
        let (known, refused) = (self.known.into_inner(), self.refused.into_inner());
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if known.contains(&name) || refused.contains(&name) {
                continue;
            }
            let is_jobs_own = BELOW.contains(&self.title.as_str()) && OF_THE_JOB.contains(&name);
            let help = match closest(name, known.iter().copied()) {
                _ if is_jobs_own => {
                    format!("`{name}` belongs to the job itself: write it above the first line in brackets")
                }
                Some(close) => format!("did you mean `{close}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            self.doc.fault_with_help(key.span(), format!("unknown field `{name}` in {}", self.title), Some(help));
        }
    }
}

/// The tables of a job file that swallow the job's own fields if these are written below.
const BELOW: [&str; 3] = ["[source]", "[entries]", "[warm]"];
const OF_THE_JOB: [&str; 6] = ["description", "key", "ttl", "inputs", "tags", "version"];

/// A field's value, with its name for messages.
#[derive(Clone)]
pub(super) struct Field<'a> {
    pub(super) doc: Document<'a>,
    pub(super) name: String,
    pub(super) key: Range<usize>,
    value: &'a Spanned<DeValue<'a>>,
}

/// A string's value and where it came from.
pub(super) struct Text<'a> {
    pub(super) doc: Document<'a>,
    pub(super) at: Range<usize>,
    pub(super) value: String,
}

impl<'a> Text<'a> {
    /// Where bytes of the value stand in the file.
    pub(super) fn place(&self, part: Range<usize>) -> Range<usize> {
        let Some(raw) = self.doc.text.get(self.at.clone()) else { return self.at.clone() };
        let start = self.at.start + raw_offset(raw, part.start);
        let end = self.at.start + raw_offset(raw, part.end);
        if start < end && end <= self.at.end { start..end } else { start.min(self.at.end)..self.at.end }
    }

    pub(super) fn fault(&self, message: impl Into<String>) {
        self.doc.fault(self.at.clone(), message);
    }

    pub(super) fn fault_with_help(&self, message: impl Into<String>, help: &str) {
        self.doc.fault_with_help(self.at.clone(), message, Some(help.to_owned()));
    }

    /// The value as a template of no URL, in which these names may stand.
    pub(super) fn template(&self, scope: &Scope) -> Option<Template> {
        let template = self.template_after("", 0, scope)?;
        let Some(at) = template.path_filter() else { return Some(template) };
        self.doc.fault_with_help(
            self.place(at),
            format!("`{}`: the filter `path` is for URLs only", short(&self.value)),
            Some("remove `| path`: text outside a URL is inserted as it is".to_owned()),
        );
        None
    }

    /// The value from `skip` on as a template of a URL, after literal text that is not in the file.
    pub(super) fn template_after(&self, before: &str, skip: usize, scope: &Scope) -> Option<Template> {
        let source = format!("{before}{}", self.value.get(skip..).unwrap_or_default());
        let shift = |at: usize| at.saturating_sub(before.len()) + skip;
        let place = |part: Option<Range<usize>>| match part {
            Some(part) => self.place(shift(part.start)..shift(part.end)),
            None => self.at.clone(),
        };
        let template = match Template::parse(&source) {
            Ok(template) => template,
            Err(error) => {
                self.doc.fault(place(error.at), format!("`{}`: {}", short(&self.value), error.message));
                return None;
            }
        };
        let mut sound = true;
        let mut values = BTreeMap::new();
        for name in template.names() {
            let at = place(template.locate(&name));
            match scope.check(&name) {
                Ok(None) => {}
                Ok(Some(variable)) => {
                    sound &= self.doc.env(variable, at).is_some_and(|value| {
                        values.insert(variable.to_owned(), value);
                        true
                    });
                }
                Err((message, help)) => {
                    self.doc.fault_with_help(at, message, Some(help));
                    sound = false;
                }
            }
        }
        sound.then(|| if values.is_empty() { template } else { template.with_env(&values) })
    }
}

impl<'a> Field<'a> {
    pub(super) fn at(&self) -> Range<usize> {
        self.value.span()
    }

    pub(super) fn fault(&self, message: impl Into<String>) {
        self.doc.fault(self.at(), message);
    }

    pub(super) fn fault_with_help(&self, message: impl Into<String>, help: impl Into<String>) {
        self.doc.fault_with_help(self.at(), message, Some(help.into()));
    }

    fn wrong_kind(&self, wanted: &str) {
        let found = self.value.get_ref().type_str();
        let article = if found.starts_with(['a', 'i']) { "an" } else { "a" };
        self.fault(format!("`{}` must be {wanted}, not {article} {found}", self.name));
    }

    /// The value as it is written, before environment variables are inserted.
    pub(super) fn written(&self) -> &'a DeValue<'a> {
        self.value.get_ref()
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    /// A string as it is.
    pub(super) fn text(&self) -> Option<Text<'a>> {
        self.text_or("a string")
    }

    fn text_or(&self, wanted: &str) -> Option<Text<'a>> {
        match self.value.get_ref().as_str() {
            Some(value) => Some(Text { doc: self.doc, at: self.at(), value: value.to_owned() }),
            None => {
                self.wrong_kind(wanted);
                None
            }
        }
    }

    pub(super) fn is_text_or_number(&self) -> bool {
        matches!(self.value.get_ref(), DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_))
    }

    /// A string as it is, or a number as its text: an integer in decimal digits, any other as it is written.
    pub(super) fn text_or_number(&self) -> Option<Text<'a>> {
        let value = match self.value.get_ref() {
            DeValue::Integer(_) => self.scalar()?.to_string(),
            DeValue::Float(float) => self.scalar().map(|_| float.as_str().to_owned())?,
            _ => return self.text_or("a string or a number"),
        };
        Some(Text { doc: self.doc, at: self.at(), value })
    }

    /// A string in which nothing but environment variables may be inserted, with their values.
    pub(super) fn plain(&self) -> Option<Text<'a>> {
        self.plain_or("a string")
    }

    fn plain_or(&self, wanted: &str) -> Option<Text<'a>> {
        let mut text = self.text_or(wanted)?;
        let template = text.template(&Scope::environment())?;
        if !template.is_literal() {
            match template.render(&Value::Object(serde_json::Map::new())) {
                Ok(value) => text.value = value,
                Err(message) => {
                    self.fault(message);
                    return None;
                }
            }
        }
        Some(text)
    }

    /// A string that is not blank.
    pub(super) fn filled(&self) -> Option<Text<'a>> {
        let text = self.plain()?;
        if text.value.trim().is_empty() {
            self.fault(format!("`{}` is empty", self.name));
            return None;
        }
        Some(text)
    }

    pub(super) fn template(&self, scope: &Scope) -> Option<Template> {
        self.text()?.template(scope)
    }

    /// A string that something else can read.
    pub(super) fn parsed<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match parse(self.filled()?.value.trim()) {
            Ok(value) => Some(value),
            Err(message) => {
                self.fault(message);
                None
            }
        }
    }

    pub(super) fn duration(&self, bounds: RangeInclusive<Duration>) -> Option<Duration> {
        if let Some(number) = self.value.get_ref().as_integer() {
            self.fault_with_help(
                format!("`{}` has no unit", self.name),
                format!("write \"{number}s\" for seconds, or \"{number}m\", \"{number}h\", \"{number}d\""),
            );
            return None;
        }
        let text = self.plain_or("a time with its unit, such as \"30m\"")?;
        let shown = duration::text;
        let duration = match humantime::parse_duration(text.value.trim()) {
            Ok(duration) => duration,
            Err(error) => {
                self.fault_with_help(
                    format!("`{}` is no time that can be read: {error}", self.name),
                    "write a number and a unit, such as \"90s\", \"30m\", \"2h\" or \"1h30m\"",
                );
                return None;
            }
        };
        if duration < *bounds.start() {
            self.fault(format!("`{}` ({}) must be at least {}", self.name, text.value, shown(*bounds.start())));
            return None;
        }
        if duration > *bounds.end() {
            self.fault(format!("`{}` ({}) must be at most {}", self.name, text.value, shown(*bounds.end())));
            return None;
        }
        Some(duration)
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        let value = self.value.get_ref().as_bool();
        if value.is_none() {
            self.wrong_kind("true or false");
        }
        value
    }

    pub(super) fn integer(&self, bounds: RangeInclusive<u64>) -> Option<u64> {
        let Some(integer) = self.value.get_ref().as_integer() else {
            self.wrong_kind("a whole number");
            return None;
        };
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if bounds.contains(&number) => Some(number),
            _ => {
                let (least, most) = (bounds.start(), bounds.end());
                self.fault(format!("`{}` ({integer}) must be from {least} to {most}", self.name));
                None
            }
        }
    }

    pub(super) fn float(&self, bounds: RangeInclusive<f64>) -> Option<f64> {
        let value = match self.value.get_ref() {
            DeValue::Float(float) => float.as_str().parse::<f64>().ok(),
            DeValue::Integer(integer) => integer.as_str().parse::<f64>().ok(),
            _ => {
                self.wrong_kind("a number");
                return None;
            }
        };
        let value = value.filter(|value| bounds.contains(value));
        if value.is_none() {
            self.fault(format!("`{}` must be from {} to {}", self.name, bounds.start(), bounds.end()));
        }
        value
    }

    pub(super) fn table(&self, title: &str) -> Option<Table<'a>> {
        match self.value.get_ref().as_table() {
            Some(table) => {
                // A table that only has tables below it was never opened by itself.
                let at = if self.at().is_empty() { self.key.clone() } else { self.at() };
                Some(Table {
                    doc: self.doc,
                    table,
                    title: title.to_owned(),
                    at,
                    known: RefCell::default(),
                    refused: RefCell::default(),
                })
            }
            None => {
                self.wrong_kind("a table");
                None
            }
        }
    }

    pub(super) fn items(&self) -> Option<Vec<Field<'a>>> {
        match self.value.get_ref().as_array() {
            Some(items) => Some(
                items
                    .iter()
                    .map(|value| Field { doc: self.doc, name: self.name.clone(), key: value.span(), value })
                    .collect(),
            ),
            None => {
                self.wrong_kind("an array");
                None
            }
        }
    }

    /// A JSON document of templates.
    pub(super) fn shape(&self, scope: &Scope) -> Option<Shape> {
        self.node(scope, MAX_DEPTH).map(Shape::new)
    }

    /// A JSON document in which nothing but environment variables may be inserted.
    pub(super) fn json(&self) -> Option<Value> {
        self.json_within(MAX_DEPTH)
    }

    fn json_within(&self, depth: usize) -> Option<Value> {
        match self.value.get_ref() {
            DeValue::String(_) => Some(Value::String(self.plain()?.value)),
            DeValue::Datetime(date) => {
                self.fault_with_help(
                    format!("`{}` is a date, which JSON does not have", self.name),
                    format!("write it as a string: \"{date}\""),
                );
                None
            }
            DeValue::Array(_) => {
                let deeper = self.deeper(depth)?;
                let items: Vec<_> = self.items()?.iter().map(|item| item.json_within(deeper)).collect();
                Some(Value::Array(items.into_iter().collect::<Option<_>>()?))
            }
            DeValue::Table(_) => {
                let deeper = self.deeper(depth)?;
                let fields = self.table(&self.name)?.all();
                let fields: Vec<_> =
                    fields.into_iter().map(|field| Some((field.name.clone(), field.json_within(deeper)?))).collect();
                Some(Value::Object(fields.into_iter().collect::<Option<_>>()?))
            }
            DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) => self.scalar(),
        }
    }

    /// A number or a boolean as JSON has it.
    fn scalar(&self) -> Option<Value> {
        match self.value.get_ref() {
            DeValue::Integer(integer) => {
                let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
                if number.is_none() {
                    self.fault(format!("{integer} is too large"));
                }
                number.map(Value::from)
            }
            DeValue::Float(float) => {
                let number = float.as_str().parse().ok().and_then(serde_json::Number::from_f64);
                if number.is_none() {
                    self.fault(format!("{float} is not a JSON number"));
                }
                number.map(Value::Number)
            }
            DeValue::Boolean(value) => Some(Value::Bool(*value)),
            DeValue::String(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
        }
    }

    fn deeper(&self, depth: usize) -> Option<usize> {
        let deeper = depth.checked_sub(1);
        if deeper.is_none() {
            self.fault(format!("`{}` is nested deeper than {MAX_DEPTH}", self.name));
        }
        deeper
    }

    fn node(&self, scope: &Scope, depth: usize) -> Option<Node> {
        let deeper = self.deeper(depth)?;
        Some(match self.value.get_ref() {
            DeValue::String(_) => {
                let template = self.template(scope)?;
                if template.is_literal() { Node::Plain(template.source().into()) } else { Node::Template(template) }
            }
            DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) => Node::Plain(self.scalar()?),
            DeValue::Datetime(value) => Node::Plain(value.to_string().into()),
            DeValue::Array(_) => {
                let nodes: Vec<_> = self.items()?.iter().map(|item| item.node(scope, deeper)).collect();
                Node::Array(nodes.into_iter().collect::<Option<_>>()?)
            }
            DeValue::Table(_) => {
                let fields = self.table(&self.name)?.all();
                let nodes: Vec<_> =
                    fields.into_iter().map(|field| Some((field.name.clone(), field.node(scope, deeper)?))).collect();
                Node::Object(nodes.into_iter().collect::<Option<_>>()?)
            }
        })
    }
}

/// The first words of a text, for messages.
pub(super) fn short(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    match line.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

/// The names of all variables, set or not.
pub(super) fn variables(uses: &[EnvUse]) -> BTreeSet<String> {
    uses.iter().map(|one| one.name.clone()).collect()
}
