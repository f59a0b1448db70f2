//! Which names a template may use where it stands.

use super::spelling::closest;
use std::collections::BTreeSet;

/// The names that a template finds in its context.
#[derive(Clone, Debug, Default)]
pub(super) struct Scope {
    placeholders: BTreeSet<String>,
    inputs: BTreeSet<String>,
    value: bool,
    /// The item's name in an object of items.
    name: bool,
    /// The entries of a request for many, instead of placeholders and inputs.
    entries: bool,
    /// The key or the inputs are at fault themselves, so that any name may be right.
    any: bool,
}

impl Scope {
    /// Nothing but `env`.
    pub(super) fn environment() -> Self {
        Self::default()
    }

    /// Returns a scope in which any name may be right.
    pub(super) fn any() -> Self {
        Self { any: true, ..Self::default() }
    }

    pub(super) fn new<'n>(
        placeholders: impl IntoIterator<Item = &'n String>,
        inputs: impl IntoIterator<Item = &'n String>,
    ) -> Self {
        Self {
            placeholders: placeholders.into_iter().cloned().collect(),
            inputs: inputs.into_iter().cloned().collect(),
            ..Self::default()
        }
    }

    /// Returns whether there are inputs, or may be, because the key is at fault.
    pub(super) fn has_inputs(&self) -> bool {
        self.any || !self.inputs.is_empty()
    }

    /// Returns the scope with `value`, the answer.
    pub(super) fn with_value(&self) -> Self {
        Self { value: true, ..self.clone() }
    }

    /// Returns the scope of an item of an answer: `value`, and its `name`.
    pub(super) fn item() -> Self {
        Self { value: true, name: true, ..Self::default() }
    }

    /// Returns the scope of a request for many entries: `entries` instead of the placeholders and the inputs.
    pub(super) fn of_many(&self) -> Self {
        Self { entries: true, ..self.clone() }
    }

    /// Returns whether `a.b.c` may be used; the variable's name where it is one of the environment.
    pub(super) fn check<'n>(&self, name: &'n str) -> Result<Option<&'n str>, (String, String)> {
        let (top, rest) = name.split_once('.').map_or((name, None), |(top, rest)| (top, Some(rest)));
        if top == "env" {
            let variable = rest.filter(|rest| !rest.contains('.'));
            return variable.map(Some).ok_or_else(|| {
                ("`env` must be followed by the name of one variable".to_owned(), "write `{{ env.NAME }}`".to_owned())
            });
        }
        if self.entries {
            return if top == "entries" { Ok(None) } else { Err(self.not_of_many(top)) };
        }
        let is_of_answer = self.value && top == "value" || self.name && top == "name";
        if self.any || self.inputs.contains(top) || is_of_answer {
            return Ok(None);
        }
        if self.placeholders.contains(top) {
            return match rest {
                None => Ok(None),
                Some(rest) => Err((
                    format!("`{name}`: the placeholder `{top}` is text and has no `{rest}`"),
                    format!("write `{{{{ {top} }}}}`"),
                )),
            };
        }
        let mut known: Vec<&str> = self.placeholders.iter().chain(&self.inputs).map(String::as_str).collect();
        known.extend(self.value.then_some("value"));
        known.extend(self.name.then_some("name"));
        let mut help = match known.as_slice() {
            [] => "only `env.NAME` may be used here".to_owned(),
            known => format!("known here: {} and env.NAME", known.join(", ")),
        };
        if let Some(close) = closest(top, known.iter().copied()) {
            help = format!("did you mean `{close}`? {help}");
        } else if top == "value" {
            help = format!("there is no answer yet where this stands; {help}");
        } else if top == "entries" && !self.value {
            help = format!("`entries` is the list of a source with `bulk`; {help}");
        }
        Err((format!("`{top}` is not defined"), help))
    }

    /// Returns the fault of a name in a request for many entries, and the remedy.
    fn not_of_many(&self, name: &str) -> (String, String) {
        let known = "known here: entries and env.NAME";
        let help = if self.placeholders.contains(name) || self.inputs.contains(name) {
            format!(
                "one request asks for many entries: write `{{{{ entries | map(attribute='{name}') | join(',') }}}}`, or \
                 loop over `entries`; {known}"
            )
        } else {
            known.to_owned()
        };
        (format!("`{name}` is not defined"), help)
    }
}
