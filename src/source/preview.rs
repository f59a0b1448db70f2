//! The requests for entries, rendered without sending them: `samovar check` finds names that make no request.
//!
//! Only templates that name no input are rendered: the others need a value. Environment variables have their values, as
//! in a worker, and messages hide them.

use serde_json::{Map, Value};

use super::client::{header_line, whole};
use super::secrets::Secrets;
use super::{context, context_of_many};
use crate::job::{EnvValues, Job, Outline, Params, Template};

/// The templates of a job that are rendered before anything is asked, and that name no input.
#[derive(Debug)]
pub struct Preview<'j> {
    parts: Vec<Part<'j>>,
    secrets: Secrets,
}

/// A template and its place in the job file.
#[derive(Debug)]
struct Part<'j> {
    place: String,
    kind: Kind<'j>,
    /// It is of a request for many entries.
    is_bulk: bool,
    template: &'j Template,
}

/// The use of a template, which tells what it may render.
#[derive(Clone, Copy, Debug)]
enum Kind<'j> {
    Url,
    Header(&'j str),
    System,
    Prompt,
    Json,
}

/// A template of a request that cannot be rendered for an entry, or that renders what cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestFault {
    /// The field of the source, and of which fallback: `url`, `header X-Lang`, `prompt of fallback 1`.
    pub place: String,
    /// The template, without secrets.
    pub template: String,
    /// The reason, without secrets.
    pub reason: String,
}

impl<'j> Preview<'j> {
    /// Returns the preview of a job's requests. `env` has the values that messages hide.
    pub fn new(job: &'j Job, env: &EnvValues) -> Self {
        let mut parts = Vec::new();
        for (number, source) in job.sources.iter().enumerate() {
            let Outline { url, headers, body, system, prompt, value, is_bulk, .. } = source.outline();
            let mut add = |field: &str, kind, template: &'j Template| {
                // The inputs of a request for many entries are within `entries`.
                if !job.names_input(template) && (!is_bulk || job.inputs.is_empty()) {
                    let place = if number == 0 { field.to_owned() } else { format!("{field} of fallback {number}") };
                    parts.push(Part { place, kind, is_bulk, template });
                }
            };
            url.into_iter().for_each(|template| add("url", Kind::Url, template));
            for (name, template) in headers.into_iter().flatten() {
                add(&format!("header {name}"), Kind::Header(name), template);
            }
            for (field, shape) in [("body", body), ("value", value)] {
                shape.into_iter().flat_map(|shape| shape.templates()).for_each(|part| add(field, Kind::Json, part));
            }
            system.into_iter().for_each(|template| add("system", Kind::System, template));
            prompt.into_iter().for_each(|template| add("prompt", Kind::Prompt, template));
        }
        Self { parts, secrets: Secrets::new(None, env) }
    }

    /// Returns the first fault of an entry's requests.
    pub fn fault(&self, params: &Params) -> Option<RequestFault> {
        let none = Map::new();
        let (alone, of_many) = (context(params, &none, None), context_of_many([(params, &none)]));
        self.parts.iter().find_map(|part| {
            let reason = part.check(if part.is_bulk { &of_many } else { &alone }).err()?;
            let (template, reason) = (self.hide(part.template.source()), self.hide(&reason));
            Some(RequestFault { place: part.place.clone(), template, reason })
        })
    }

    /// Returns a message without the values of environment variables.
    pub fn hide(&self, message: &str) -> String {
        self.secrets.blot(message, false)
    }
}

impl Part<'_> {
    fn check(&self, context: &Value) -> Result<(), String> {
        match self.kind {
            Kind::Url => {
                let url = self.template.render_url(context)?;
                whole(&url).map(drop).map_err(|error| error.to_string())
            }
            Kind::Header(name) => header_line(name, &self.template.render(context)?).map(drop),
            Kind::System => self.template.render(context).map(drop),
            Kind::Prompt if self.template.render(context)?.trim().is_empty() => Err("it is empty".to_owned()),
            Kind::Prompt => Ok(()),
            Kind::Json => self.template.value(context).map(drop),
        }
    }
}
