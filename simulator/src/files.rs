//! The job files of a plan: artworks, and what is made from them.

use crate::plan::{Bulk, Plan};

/// A job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Job {
    /// Artworks, which an upstream has.
    Art,
    /// Pages, each composed of an artwork.
    Page,
    /// Stories, each written by a model about an artwork.
    Story,
}

impl Job {
    const ALL: [Self; 3] = [Self::Art, Self::Page, Self::Story];

    /// Returns its name, with which its keys begin.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Art => "art",
            Self::Page => "page",
            Self::Story => "story",
        }
    }

    /// Returns the key of an item's entry.
    pub(crate) fn key(self, name: &str) -> String {
        format!("{}:{name}", self.name())
    }

    /// Reads a key.
    pub(crate) fn of(key: &str) -> Option<(Self, &str)> {
        let (job, name) = key.split_once(':')?;
        Some((Self::ALL.into_iter().find(|known| known.name() == job)?, name))
    }
}

/// The numbers of the present job files. Values tell from which file they were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) art: u32,
    pub(crate) page: u32,
    pub(crate) story: u32,
}

impl Files {
    pub(crate) const FIRST: Self = Self { art: 1, page: 1, story: 1 };

    /// Returns the number of a job's file.
    pub(crate) fn of(&mut self, job: Job) -> &mut u32 {
        match job {
            Job::Art => &mut self.art,
            Job::Page => &mut self.page,
            Job::Story => &mut self.story,
        }
    }

    /// Returns the files: their names and texts.
    pub(crate) fn texts(self, plan: &Plan) -> Vec<(String, String)> {
        let mut files =
            vec![("upstreams.toml".to_owned(), plan.upstreams()), ("art.toml".to_owned(), plan.art(self.art))];
        if plan.pages {
            let source = format!("kind = \"compose\"\nvalue = {{ art = \"{{{{ art }}}}\", file = {} }}\n", self.page);
            files.push(("page.toml".to_owned(), plan.made(Job::Page, &source)));
        }
        if plan.stories {
            let source = format!(
                "kind = \"ai\"\nupstream = \"model\"\nmodel = \"m\"\nprompt = \"{{{{ name }}}} {{{{ art.rev }}}} {}\"\n\
                 max_tokens = 60\nformat = \"json\"\n",
                self.story
            );
            files.push(("story.toml".to_owned(), plan.made(Job::Story, &source)));
        }
        files
    }
}

impl Plan {
    /// Returns the jobs.
    pub(crate) fn jobs(&self) -> impl Iterator<Item = Job> {
        let is_there = |job: &Job| match job {
            Job::Art => true,
            Job::Page => self.pages,
            Job::Story => self.stories,
        };
        Job::ALL.into_iter().filter(is_there)
    }

    fn upstreams(&self) -> String {
        let mut text = "[museum]\nurl = \"http://museum\"\ntimeout = \"2s\"\n".to_owned();
        if let Some(rate) = self.rate {
            text += &format!("rate = \"{rate}\"\n");
        }
        if let Some(concurrency) = self.concurrency {
            text += &format!("concurrency = {concurrency}\n");
        }
        if self.stories {
            text += "\n[model]\nurl = \"http://model\"\ntimeout = \"3s\"\n";
            if let Some(tokens) = self.tokens {
                text += &format!("tokens = \"{}\"\n", tokens.text);
            }
        }
        text
    }

    fn art(&self, file: u32) -> String {
        let tags = if self.is_tagged { "tags = [\"all\"]\n" } else { "" };
        let version = if self.versions { "version = \"{{ value.rev }}\"\n" } else { "" };
        let guard = if self.guard { "" } else { "gone_guard = \"off\"\n" };
        let source = match self.bulk {
            Some(Bulk { size, is_by_name, .. }) => {
                let item = if is_by_name { "item = { name = \"{{ name }}\" }\n" } else { "" };
                format!(
                    "path = \"/art?names={{{{ entries | map(attribute='name') | join(',') }}}}&file={file}\"\n\
                     bulk = {size}\n{item}"
                )
            }
            None => format!("path = \"/art/{{{{ name }}}}?file={file}\"\n"),
        };
        format!(
            "key = \"art:{{name}}\"\nttl = \"{}\"\n{tags}{version}\n[source]\nkind = \"http\"\nupstream = \"museum\"\n\
             {source}\n{}recheck = {}\n{guard}",
            self.ttl,
            self.kept(),
            self.recheck
        )
    }

    /// Returns the file of a job that is made from artworks.
    fn made(&self, job: Job, source: &str) -> String {
        format!(
            "key = \"{}:{{name}}\"\nttl = \"{}\"\n\n[inputs]\nart = \"art:{{name}}\"\n\n[source]\n{source}\n{}\
             gone_guard = \"off\"\n",
            job.name(),
            self.ttl,
            self.kept()
        )
    }

    /// Returns the entries that are kept warm, and the beginning of how.
    fn kept(&self) -> String {
        let mut text = format!("[entries]\nlist = {:?}\n", self.listed);
        if !self.fed.is_empty() {
            text += "feed = { upstream = \"museum\", path = \"/feed\" }\n";
        }
        text += "\n[warm]\nattempts = 1000\n";
        if let Some(every) = self.every {
            text += &format!("every = \"{every}\"\n");
        }
        if self.stale_if_error {
            text += "stale_if_error = \"10m\"\n";
        }
        text
    }
}
