//! Which names a template may use where it stands.

use super::spelling::closest;
use std::collections::BTreeSet;

/// The names that a template finds in its context.
#[derive(Clone, Debug, Default)]
pub(super) struct Scope {
    placeholders: BTreeSet<String>,
    inputs: BTreeSet<String>,
    value: bool,
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

    /// Returns whether `a.b.c` may be used; the variable's name where it is one of the environment.
    pub(super) fn check<'n>(&self, name: &'n str) -> Result<Option<&'n str>, (String, String)> {
        let (top, rest) = name.split_once('.').map_or((name, None), |(top, rest)| (top, Some(rest)));
        if top == "env" {
            let variable = rest.filter(|rest| !rest.contains('.'));
            return variable.map(Some).ok_or_else(|| {
                ("`env` must be followed by the name of one variable".to_owned(), "write `{{ env.NAME }}`".to_owned())
            });
        }
        if self.any || self.inputs.contains(top) || (self.value && top == "value") {
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
        if self.value {
            known.push("value");
        }
        let mut help = match known.as_slice() {
            [] => "only `env.NAME` may be used here".to_owned(),
            known => format!("known here: {} and env.NAME", known.join(", ")),
        };
        if let Some(close) = closest(top, known.iter().copied()) {
            help = format!("did you mean `{close}`? {help}");
        } else if top == "value" {
            help = format!("there is no answer yet where this stands; {help}");
        }
        Err((format!("`{top}` is not defined"), help))
    }
}
