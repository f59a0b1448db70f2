//! The entries that an entry is made from, and those that are made from it, as lists with links.

use maud::{Markup, html};

use super::page::{entry_link, text};
use crate::ops::Neighbours;
use crate::ops::words::grouped;

/// Returns the section of an entry; nothing if it has no neighbours.
pub(super) fn view(key: &str, Neighbours { inputs, dependants, has_more }: &Neighbours) -> Markup {
    html! {
        @if !inputs.is_empty() || !dependants.is_empty() {
            section aria-labelledby="made" {
                h2 #made { "What it is made from, and what is made from it" }
                ul.graph {
                    @for (input, has_value) in inputs { li { (entry_link(input)) (absent(*has_value)) } }
                    @if inputs.is_empty() { li.note { "made from no other entry" } }
                    li {
                        strong.key { (text(key)) }
                        @if dependants.is_empty() { " " span.note { "nothing is made from it" } } @else {
                            ul {
                                @for (dependant, has_value) in dependants {
                                    li { (entry_link(dependant)) (absent(*has_value)) }
                                }
                                @if *has_more {
                                    li.note { "and others: these are the first " (grouped(dependants.len() as u64)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn absent(has_value: bool) -> Markup {
    html! { @if !has_value { " " span.note { "(no value)" } } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_links_and_what_is_absent_is_told() {
        let inputs = vec![("a:<1>".to_owned(), true)];
        let all = Neighbours { inputs, dependants: vec![("c:1".to_owned(), false)], has_more: true };
        let shown = view("b:1", &all).into_string();
        assert!(shown.contains("a:&lt;1&gt;") && shown.contains("/console/entry?key=c%3A1"), "{shown}");
        assert!(shown.contains("(no value)") && shown.contains("the first 1"), "{shown}");
        assert!(view("b:1", &Neighbours::default()).into_string().is_empty());
    }
}
