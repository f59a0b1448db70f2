//! The catalogue: all entries that the jobs keep warm, the most popular first, and a trace of reads and edits.
//!
//! The trace is generated from a seed, so that all contenders get the same reads and edits at the same times.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand_distr::{Distribution as _, Exp, Zipf};

use crate::cli::museum::{Endpoint, Museum};
use crate::entry::EntryKey;
use crate::job::{Job, Jobs, Params};
use crate::source::Sources;

/// The exponent of popularity by Zipf's law, as for web pages (Breslau et al., "Web Caching and Zipf-like
/// Distributions", INFOCOM 1999, find 0.64 to 0.83; a museum with few famous works is steeper).
const STEEPNESS: f64 = 0.9;
/// Reads of each kind among a hundred reads.
const READS: [(&str, Kind, u32); 5] = [
    ("artwork_info", Kind::Info, 40),
    ("artwork_image", Kind::Image, 30),
    ("similar_artworks", Kind::Similar, 15),
    ("ai_story", Kind::Story, 10),
    ("ai_artist_bio", Kind::Biography, 5),
];

/// A kind of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Facts about an artwork.
    Info,
    /// The URL of its picture.
    Image,
    /// Similar artworks.
    Similar,
    /// A story about it, by a language model.
    Story,
    /// An artist's life, by a language model.
    Biography,
}

impl Kind {
    /// Returns the page of an artwork that it is fetched from, which an edit publishes. A story is not published,
    /// although it is made from the artwork: editors do not know of it.
    pub(super) fn page(self) -> Option<Endpoint> {
        match self {
            Self::Info => Some(Endpoint::Artwork),
            Self::Image => Some(Endpoint::Image),
            Self::Similar => Some(Endpoint::Similar),
            Self::Story | Self::Biography => None,
        }
    }
}

/// All that is kept warm.
#[derive(Debug)]
pub(super) struct Catalogue {
    /// Kinds of content, each with its entries.
    pub(super) shelves: Vec<Shelf>,
    /// Artworks, the most popular first.
    pub(super) artworks: Vec<String>,
}

/// The entries of one job.
#[derive(Debug)]
pub(super) struct Shelf {
    /// The job's name. Sources differ, because each contender has its own museum.
    pub(super) job: Arc<Job>,
    /// The entries, the most popular first.
    pub(super) kind: Kind,
    /// The most popular first.
    pub(super) entries: Vec<Entry>,
    share: u32,
}

/// One entry.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its key.
    pub(super) key: EntryKey,
    /// The placeholders in it.
    pub(super) params: Params,
    /// The index of its artwork in [`Catalogue::artworks`]; `None` for artists.
    pub(super) artwork: Option<usize>,
}

impl Catalogue {
    /// Reads the entries from the jobs' feeds.
    pub(super) async fn read(jobs: &Jobs, museum: &Museum) -> anyhow::Result<Self> {
        let sources = Sources::new(jobs)?;
        let artworks = museum.names();
        let places: HashMap<&str, usize> = artworks.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
        let mut shelves = Vec::new();
        for (name, kind, share) in READS {
            let job = jobs.jobs.get(name).with_context(|| format!("there is no job {name}"))?;
            let mut all = sources.feed(job).await?.entries;
            all.extend(job.entries.list.iter().filter_map(|params| job.key.write(params)));
            let entries = all.iter().filter_map(|key| {
                let params = job.key.read(key)?;
                let key = EntryKey::new(key);
                let artwork = params.values().find_map(|name| places.get(name.as_str()).copied());
                Some(Entry { key, params, artwork })
            });
            shelves.push(Shelf { job: Arc::clone(job), kind, entries: entries.collect(), share });
        }
        Ok(Self { shelves, artworks })
    }

    /// Returns an entry by the indices of its shelf and its own.
    pub(super) fn at(&self, shelf: usize, entry: usize) -> Option<(&Shelf, &Entry)> {
        let shelf = self.shelves.get(shelf)?;
        Some((shelf, shelf.entries.get(entry)?))
    }

    /// Returns the number of entries.
    pub(super) fn len(&self) -> usize {
        self.shelves.iter().map(|shelf| shelf.entries.len()).sum()
    }

    /// Returns the entries that an edit of an artwork publishes.
    pub(super) fn about(&self, artwork: usize) -> impl Iterator<Item = (Kind, &EntryKey)> {
        let told = self.shelves.iter().filter(|shelf| shelf.kind.page().is_some());
        told.filter_map(move |shelf| {
            let entry = shelf.entries.iter().find(|entry| entry.artwork == Some(artwork))?;
            Some((shelf.kind, &entry.key))
        })
    }
}

/// An endless sequence of reads: times since the start, and entries.
pub(super) struct Reads {
    random: StdRng,
    pause: Exp<f64>,
    ranks: Vec<Zipf<f64>>,
    choice: Vec<usize>,
    at: Duration,
}

impl Reads {
    /// Creates a sequence with this average rate per second (a Poisson process).
    pub(super) fn new(catalogue: &Catalogue, per_second: f64, seed: u64) -> anyhow::Result<Self> {
        let ranks = catalogue.shelves.iter().map(|shelf| Zipf::new(shelf.entries.len() as f64, STEEPNESS));
        let by_share = |(i, shelf): (usize, &Shelf)| std::iter::repeat_n(i, shelf.share as usize);
        Ok(Self {
            random: StdRng::seed_from_u64(seed),
            pause: Exp::new(per_second)?,
            ranks: ranks.collect::<Result<_, _>>()?,
            choice: catalogue.shelves.iter().enumerate().flat_map(by_share).collect(),
            at: Duration::ZERO,
        })
    }
}

impl Iterator for Reads {
    /// Returns the time, and the indices of shelf and entry for [`Catalogue::at`].
    type Item = (Duration, usize, usize);

    fn next(&mut self) -> Option<Self::Item> {
        self.at += Duration::from_secs_f64(self.pause.sample(&mut self.random));
        let shelf = *self.choice.choose(&mut self.random)?;
        let rank = rank(self.ranks.get(shelf)?, &mut self.random);
        Some((self.at, shelf, rank))
    }
}

/// An endless sequence of edits: times since the start, and artworks.
pub(super) struct Edits {
    random: StdRng,
    pause: Exp<f64>,
    ranks: Zipf<f64>,
    at: Duration,
}

impl Edits {
    /// Creates a sequence with this average rate per second; popular artworks are edited more often.
    pub(super) fn new(catalogue: &Catalogue, per_second: f64, seed: u64) -> anyhow::Result<Self> {
        Ok(Self {
            random: StdRng::seed_from_u64(seed ^ 0xed17),
            pause: Exp::new(per_second)?,
            ranks: Zipf::new(catalogue.artworks.len() as f64, STEEPNESS)?,
            at: Duration::ZERO,
        })
    }
}

impl Iterator for Edits {
    type Item = (Duration, usize);

    fn next(&mut self) -> Option<Self::Item> {
        self.at += Duration::from_secs_f64(self.pause.sample(&mut self.random));
        Some((self.at, rank(&self.ranks, &mut self.random)))
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number from 1 to the length")]
fn rank(ranks: &Zipf<f64>, random: &mut StdRng) -> usize {
    (ranks.sample(random) as usize).saturating_sub(1)
}
