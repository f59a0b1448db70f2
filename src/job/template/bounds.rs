//! Bounds on a template's memory. The engine counts instructions, but not the size of their results.
//!
//! - Filters check the size of their result before they work ([`tame`]).
//! - Statements that catch text or call themselves are refused, so all text goes straight to the bounded output.
//! - Assignments that use assigned values are counted, so no value is doubled again and again ([`check`]).
//!
//! One gap remains: the engine lets `*` make a text of 100 MB.

use super::scan::{self, Role, Word};
use super::{MAX_DEPTH, MAX_OUTPUT, TemplateError, URL_OF_MANY, joined};
use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, filters};

/// The longest list that a filter accepts or returns.
const MAX_ITEMS: usize = 1_000_000;
/// The largest factor by which assignments may enlarge a value.
const MAX_GROWTH: usize = 64;

/// Replaces the filters that can return much more than they get, or keep much, by ones that check the size first.
pub(super) fn tame(engine: &mut Environment<'static>) {
    // It would let a loop keep a value and enlarge it in each round.
    engine.remove_global("namespace");
    let tamed: [(&'static str, Value); 25] = [
        ("batch", Value::from_function(filters::batch)),
        ("capitalize", Value::from_function(filters::capitalize)),
        ("dictsort", Value::from_function(filters::dictsort)),
        ("format", Value::from_function(filters::format)),
        ("groupby", Value::from_function(filters::groupby)),
        ("indent", Value::from_function(filters::indent)),
        ("join", Value::from_function(filters::join)),
        ("lines", Value::from_function(filters::lines)),
        ("list", Value::from_function(filters::list)),
        ("lower", Value::from_function(filters::lower)),
        ("map", Value::from_function(filters::map)),
        ("pprint", Value::from_function(filters::pprint)),
        ("reject", Value::from_function(filters::reject)),
        ("rejectattr", Value::from_function(filters::rejectattr)),
        ("replace", Value::from_function(filters::replace)),
        ("reverse", Value::from_function(filters::reverse)),
        ("select", Value::from_function(filters::select)),
        ("selectattr", Value::from_function(filters::selectattr)),
        ("slice", Value::from_function(filters::slice)),
        ("sort", Value::from_function(filters::sort)),
        ("split", Value::from_function(filters::split)),
        ("string", Value::from_function(filters::string)),
        ("title", Value::from_function(filters::title)),
        ("unique", Value::from_function(filters::unique)),
        ("upper", Value::from_function(filters::upper)),
    ];
    for (name, filter) in tamed {
        engine.add_filter(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| -> Result<Value, Error> {
            let args = args.into_values();
            if !fits(name, &args) {
                let message = format!("the result of `{name}` would be too large");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
            if name == "join" && state.name() == URL_OF_MANY {
                joined::check(&args)?;
            }
            filter.call(state, &args)
        });
    }
}

/// Returns `true` if a filter's result for these arguments is small enough. The estimate is an upper bound.
fn fits(filter: &str, args: &[Value]) -> bool {
    let Some(value) = args.first() else { return true };
    if !args.iter().all(|arg| arg.as_str().map_or_else(|| is_short(arg), |text| text.len() <= MAX_OUTPUT)) {
        return false;
    }
    let more = &args[1..];
    let numbers = || more.iter().flat_map(words_of).filter_map(|number| number.as_usize());
    let size = match filter {
        "slice" | "batch" => return numbers().all(|number| number <= MAX_ITEMS),
        "indent" => {
            let text = value.as_str().unwrap_or_default();
            let lines = text.split('\n').count();
            numbers().max().unwrap_or(4).checked_mul(lines).and_then(|spaces| spaces.checked_add(text.len()))
        }
        "replace" => {
            let [text, from, to] = [0, 1, 2].map(|n| args.get(n).and_then(Value::as_str).unwrap_or_default());
            let times = text.matches(from).count();
            to.len().checked_mul(times).and_then(|more| more.checked_add(text.len()))
        }
        "join" => {
            let glue = more.iter().flat_map(words_of).filter_map(|glue| glue.as_str().map(str::len)).max();
            let pieces = value.as_str().map_or_else(|| items(value), str::len);
            let glued = pieces.checked_mul(glue.unwrap_or(0));
            glued.zip(weight(value)).and_then(|(glued, weight)| glued.checked_add(weight))
        }
        "format" => formatted(value.as_str().unwrap_or_default(), more),
        "string" | "pprint" => weight(value),
        _ => Some(0),
    };
    size.is_some_and(|size| size <= MAX_OUTPUT)
}

fn is_short(value: &Value) -> bool {
    items(value) <= MAX_ITEMS
}

/// Returns the number of items of a value; if the value does not know it, counts up to just above [`MAX_ITEMS`].
fn items(value: &Value) -> usize {
    let counted = || value.try_iter().map_or(0, |items| items.take(MAX_ITEMS + 1).count());
    value.len().unwrap_or_else(counted)
}

/// Returns an argument, or the values of named arguments.
fn words_of(arg: &Value) -> Vec<Value> {
    if !arg.is_kwargs() {
        return vec![arg.clone()];
    }
    arg.try_iter().into_iter().flatten().filter_map(|name| arg.get_item(&name).ok()).collect()
}

/// Returns the longest result of a printf format: each number in it may be a width, and each field any argument.
fn formatted(format: &str, args: &[Value]) -> Option<usize> {
    let mut size = format.len();
    for digits in format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty()) {
        size = size.checked_add(digits.parse().ok()?)?;
    }
    let mut each = 0_usize;
    for arg in args {
        each = each.checked_add(weight(arg)?)?;
    }
    each.checked_mul(format.matches('%').count())?.checked_add(size)
}

/// Returns the approximate length of a value as text, in bytes; `None` if that is above [`MAX_OUTPUT`].
fn weight(value: &Value) -> Option<usize> {
    let mut room = MAX_OUTPUT;
    weigh(value, MAX_DEPTH, &mut room)?;
    Some(MAX_OUTPUT - room)
}

fn weigh(value: &Value, depth: usize, room: &mut usize) -> Option<()> {
    let deeper = depth.checked_sub(1)?;
    *room = room.checked_sub(value.as_str().map_or(4, |text| text.len() + 2))?;
    let keys = value.kind() == ValueKind::Map;
    if !keys && !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Some(());
    }
    for item in value.try_iter().ok()? {
        weigh(&item, deeper, room)?;
        if keys {
            weigh(&value.get_item(&item).ok()?, deeper, room)?;
        }
    }
    Some(())
}

/// Refuses statements that catch text or call themselves, and too many assignments that use assigned values.
pub(super) fn check(source: &str) -> Result<(), TemplateError> {
    let mut assigned = Vec::new();
    let mut growth = 1_usize;
    for block in scan::blocks(source) {
        let Some((statement, words)) = block.split_first().filter(|(word, _)| word.role == Role::Statement) else {
            continue;
        };
        let wrong = match statement.text {
            "macro" | "call" | "filter" => {
                Some(format!("`{{% {} %}}` is not supported: its result could grow without bound", statement.text))
            }
            "set" if !assigns(source, statement) => Some(
                "`{% set %}` over a block is not supported: write `{% set name = … %}`, or the text in its place"
                    .into(),
            ),
            "for" if is_recursive(source, words) => {
                Some("recursive loops are not supported: their result could grow without bound".into())
            }
            _ => None,
        };
        if let Some(message) = wrong {
            return Err(TemplateError { message, at: Some(statement.at.clone()) });
        }
        if matches!(statement.text, "set" | "with") {
            let after = |word: &Word<'_>| source.get(word.at.end..).unwrap_or_default().trim_start();
            let equals = source.get(statement.at.end..).and_then(|rest| rest.find('=')).map(|at| statement.at.end + at);
            let is_target = |word: &&Word<'_>| match statement.text {
                "set" => equals.is_some_and(|equals| word.at.end <= equals),
                _ => after(word).starts_with('=') && !after(word).starts_with("=="),
            };
            let names = words.iter().filter(|word| word.role == Role::Name);
            let (targets, uses): (Vec<&Word<'_>>, Vec<&Word<'_>>) = names.partition(is_target);
            let uses = uses.iter().filter(|word| assigned.contains(&word.text)).count();
            growth = growth.saturating_mul(uses.max(1));
            assigned.extend(targets.iter().map(|word| word.text));
            if growth > MAX_GROWTH {
                let message = "too many assignments use assigned values, so their size could grow without bound: insert \
                               the values in place instead";
                return Err(TemplateError { message: message.to_owned(), at: Some(statement.at.clone()) });
            }
        }
    }
    Ok(())
}

/// Returns `true` if a `set` assigns with an equals sign, and does not begin a block.
fn assigns(source: &str, set: &Word<'_>) -> bool {
    let rest = source.get(set.at.end..).unwrap_or_default();
    rest.find(['=', '|', '%']).is_some_and(|at| rest[at..].starts_with('='))
}

/// Returns `true` if the last word of a `for` is the keyword `recursive`, which follows a complete expression.
fn is_recursive(source: &str, words: &[Word<'_>]) -> bool {
    const OPERATORS: [&str; 6] = ["in", "if", "not", "and", "or", "else"];
    let Some((last, before)) = words.split_last().filter(|(last, _)| last.text == "recursive") else { return false };
    let Some(before) = before.last() else { return false };
    let between = source.get(before.at.end..last.at.start).unwrap_or_default().trim_end();
    if between.is_empty() {
        !OPERATORS.contains(&before.text)
    } else {
        between.ends_with([')', ']', '}', '"', '\'']) || between.ends_with(|c: char| c.is_ascii_digit())
    }
}
