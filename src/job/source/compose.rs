//! `kind = "compose"`: a value made from the entry's inputs, without a server.

use super::{Outline, Properties};
use crate::entry::Usage;
use crate::job::Shape;

/// A value made from the entry's inputs.
#[derive(Clone, Debug)]
pub struct ComposeSource {
    /// The stored value, built from the placeholders and the inputs.
    pub value: Shape,
}

impl ComposeSource {
    pub(super) fn properties(&self) -> Properties<'_> {
        Properties {
            upstream: None,
            may_lag: false,
            costs_money: false,
            may_hold_unasked: false,
            // All of its content is in its inputs, so an old input answers no invalidation.
            waits_for_inputs: true,
            at_once: 1,
            gathers: None,
            saves: |_| Usage::default(),
        }
    }

    pub(super) fn outline(&self) -> Outline<'_> {
        Outline {
            method: "COMPOSE",
            url: None,
            headers: None,
            body: None,
            model: None,
            system: None,
            prompt: None,
            value: Some(&self.value),
            is_bulk: false,
        }
    }
}
