//! The collection: facts from two small tables, in the order of popularity, and a version of each work.

use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use twox_hash::XxHash3_128;

/// `title|artist|year|medium|museum`, the most popular first.
const ARTWORKS: &str = include_str!("artworks.txt");
/// `name|born|died|country|movement`.
const ARTISTS: &str = include_str!("artists.txt");
/// The number of similar works in an answer.
const SIMILAR: usize = 6;

#[derive(Debug)]
pub(super) struct Collection {
    pub(super) artworks: Vec<Artwork>,
    pub(super) artists: Vec<Artist>,
    by_title: HashMap<&'static str, usize>,
    by_name: HashMap<&'static str, usize>,
    /// The longest time from an edit until pages show it.
    lag: Duration,
}

#[derive(Debug)]
pub(super) struct Artwork {
    pub(super) title: &'static str,
    pub(super) artist: &'static str,
    year: u32,
    medium: &'static str,
    museum: &'static str,
    edits: Mutex<Edits>,
}

/// The edits of a work, as a read replica has them.
#[derive(Debug)]
struct Edits {
    /// The version of the last edit.
    version: u64,
    /// The times at which the last versions begin to show, in their order; past ones are removed by [`Edits::shown`].
    showing: VecDeque<Instant>,
}

#[derive(Debug)]
pub(super) struct Artist {
    pub(super) name: &'static str,
    born: Option<u32>,
    died: Option<u32>,
    country: &'static str,
    movement: &'static str,
    /// Indices of works.
    works: Vec<usize>,
}

impl Collection {
    pub(super) fn new(lag: Duration) -> Self {
        let artworks: Vec<Artwork> = ARTWORKS
            .lines()
            .map(|line| {
                let [title, artist, year, medium, museum] = columns(line);
                let edits = Mutex::new(Edits { version: 1, showing: VecDeque::new() });
                Artwork { title, artist, year: year.parse().unwrap_or(0), medium, museum, edits }
            })
            .collect();
        let mut artists: Vec<Artist> = ARTISTS
            .lines()
            .map(|line| {
                let [name, born, died, country, movement] = columns(line);
                let works =
                    artworks.iter().enumerate().filter(|(_, work)| work.artist == name).map(|(i, _)| i).collect();
                Artist { name, born: born.parse().ok(), died: died.parse().ok(), country, movement, works }
            })
            .collect();
        // An artist is as popular as the most popular work.
        artists.sort_by_key(|artist| artist.works.first().copied());
        let by_title = artworks.iter().enumerate().map(|(i, work)| (work.title, i)).collect();
        let by_name = artists.iter().enumerate().map(|(i, artist)| (artist.name, i)).collect();
        Self { artworks, artists, by_title, by_name, lag }
    }

    pub(super) fn artwork(&self, title: &str) -> Option<&Artwork> {
        self.artworks.get(*self.by_title.get(title)?)
    }

    pub(super) fn artist(&self, name: &str) -> Option<&Artist> {
        self.artists.get(*self.by_name.get(name)?)
    }

    pub(super) fn edit(&self, title: &str) -> Option<u64> {
        let mut edits = self.artwork(title)?.edits();
        let version = edits.version + 1;
        // The lag depends on nothing but the edit, so that all museums lag alike.
        let share = seed(&format!("{title} {version}")) as f64 / u64::MAX as f64;
        edits.add(Instant::now() + self.lag.mul_f64(share));
        Some(version)
    }

    pub(super) fn version(&self, title: &str) -> Option<u64> {
        Some(self.artwork(title)?.version())
    }

    pub(super) fn versions(&self) -> Value {
        self.artworks.iter().map(|work| (work.title.to_owned(), json!(work.version()))).collect()
    }

    /// Returns the description of a work in this version.
    pub(super) fn describe(&self, work: &Artwork, version: u64) -> Value {
        let artist = self.artist(work.artist);
        json!({
            "title": work.title,
            "artist": work.artist,
            "artist_country": artist.map(|artist| artist.country),
            "movement": artist.map(|artist| artist.movement),
            "year": work.year,
            "medium": work.medium,
            "museum": work.museum,
            "image_id": image_id(work.title, version),
            "version": version,
            "description": self.description(work, version),
            "public_domain": artist.and_then(|artist| artist.died).is_some_and(|died| died < 1954),
        })
    }

    pub(super) fn image(work: &Artwork, version: u64) -> Value {
        let id = image_id(work.title, version);
        let number = seed(work.title);
        let (width, height) = (1200 + number % 2400, 1200 + number / 7 % 2400);
        json!({
            "title": work.title,
            "image_id": id,
            "url": format!("https://images.museum.example/{id}/full/843,/0/default.jpg"),
            "thumbnail_url": format!("https://images.museum.example/{id}/full/200,/0/default.jpg"),
            "width": width,
            "height": height,
            "alt": format!("{}, {}: {}", work.artist, work.title, work.medium),
            "credit": work.museum,
            "version": version,
        })
    }

    /// Returns works of the same artist, movement or time, in this order.
    pub(super) fn similar(&self, work: &Artwork, version: u64) -> Value {
        let movement = |work: &Artwork| self.artist(work.artist).map(|artist| artist.movement);
        let mut others: Vec<&Artwork> = self.artworks.iter().filter(|other| other.title != work.title).collect();
        others.sort_by_key(|other| {
            (other.artist != work.artist, movement(other) != movement(work), other.year.abs_diff(work.year))
        });
        let shown = |other: &&Artwork| {
            json!({
                "title": other.title,
                "artist": other.artist,
                "year": other.year,
                "museum": other.museum,
                "because": if other.artist == work.artist { "artist" } else if movement(other) == movement(work) { "movement" } else { "time" },
                "version": version,
            })
        };
        others.iter().take(SIMILAR).map(shown).collect()
    }

    pub(super) fn biography(&self, artist: &Artist) -> Value {
        let works: Vec<&str> = artist.works.iter().filter_map(|i| Some(self.artworks.get(*i)?.title)).collect();
        let Artist { name, country, movement, .. } = artist;
        let life = match (artist.born, artist.died) {
            (Some(born), Some(died)) => format!("born in {born} and died in {died}"),
            (Some(born), None) => format!("at work since {born}"),
            (None, _) => "of whose life little is known".to_owned(),
        };
        let known = works.first().copied().unwrap_or_default();
        json!({
            "name": name,
            "born": artist.born,
            "died": artist.died,
            "country": country,
            "movement": movement,
            "works": works,
            "version": 1,
            "biography": format!(
                "{name}, {life}, belongs to {country} and to what is called {movement}. Visitors come for {known} first, \
                 and stay for the rest: the museum keeps {} of the works on its list. The guides speak of a patient hand, \
                 of long mornings in the studio and of letters in which prices are discussed at least as often as colours. \
                 What was painted for a few is looked at by many now, and hardly anybody leaves without having changed \
                 their mind about something.",
                works.len()
            ),
        })
    }

    fn description(&self, work: &Artwork, version: u64) -> String {
        let Artwork { title, artist, year, medium, museum, .. } = work;
        let sort =
            |texts: [&'static str; 4], salt: u64| texts[((seed(title) >> (8 * salt)) + version) as usize % texts.len()];
        let first = sort(
            [
                "At first sight it is quieter than one remembers it from reproductions.",
                "Nobody is prepared for its size, whichever size they expected.",
                "The eye is led from the lower left to the light, and only then to what happens.",
                "What looks effortless was corrected many times; the X-rays show four earlier versions.",
            ],
            0,
        );
        let second = sort(
            [
                "The colours have darkened, but in the morning, when the sun stands low, the ground shines through as it must have done when it left the studio.",
                "A restoration took away two layers of varnish and gave back a blue that older catalogues called green.",
                "In the margin there is a small figure that most visitors miss; children find it at once.",
                "Its frame is older than it is, and was cut to fit by somebody in a hurry.",
            ],
            1,
        );
        let third = sort(
            [
                "It was sold twice, pawned once and stolen for a night, and came back with a scratch that nobody has wished to remove.",
                "Contemporaries did not like it. One of them wrote that it would be forgotten within the year, and so is remembered himself.",
                "Poets have written about it, three songs bear its name, and it has been on stamps of eleven countries.",
                "The model is unknown. Five families claim her, and the guides have given up taking sides.",
            ],
            2,
        );
        let fourth = sort(
            [
                "Whoever stands before it should take a step back, then another, and then come very near.",
                "The bench opposite is the most comfortable of the house, and not by chance.",
                "It is lent to nobody. Who wants to see it has to come.",
                "Ask for the drawing that belongs to it: it lies in the next room, in the second drawer.",
            ],
            3,
        );
        let fifth = sort(
            [
                "The room is kept at nineteen degrees and half in the dark, for the sake of the paper next to it; after a minute the eyes have grown used to that, and find more than they came for.",
                "Its back is as interesting as its front: seven labels, two seals, a pencilled sum and the name of a carter, from which its travels have been worked out almost to the day.",
                "When it was last photographed for the catalogue, in very strong light, a second hand came to light, perhaps a pupil's; the discussion about that fills a shelf of the library.",
                "Children are asked here to count the colours. Most say seven, some say thirty; the chemists say eleven, and that two of them should not yet have existed.",
            ],
            4,
        );
        format!(
            "{title} was made by {artist} around {year} ({medium}) and is to be seen here by courtesy of: {museum}. {first} {second} \
             {third} {fourth} {fifth} The curators have gone over this text; what you read is its version {version}."
        )
    }
}

impl Artwork {
    /// Returns the version of the last edit.
    pub(super) fn version(&self) -> u64 {
        self.edits().version
    }

    /// Returns the version that pages show, and the version of the last edit.
    pub(super) fn shown(&self) -> (u64, u64) {
        let mut edits = self.edits();
        (edits.shown(Instant::now()), edits.version)
    }

    fn edits(&self) -> MutexGuard<'_, Edits> {
        self.edits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Edits {
    /// Adds an edit that shows at `at`, but not before an earlier one.
    fn add(&mut self, at: Instant) {
        self.version += 1;
        self.showing.push_back(self.showing.back().map_or(at, |before| at.max(*before)));
    }

    /// Returns the version that shows at `now`.
    fn shown(&mut self, now: Instant) -> u64 {
        while self.showing.pop_front_if(|at| *at <= now).is_some() {}
        self.version - self.showing.len() as u64
    }
}

impl Artist {
    /// The years of birth and death.
    pub(super) fn life(&self) -> (Option<u32>, Option<u32>) {
        (self.born, self.died)
    }
}

/// Returns the columns of a line; missing ones are empty.
fn columns(line: &'static str) -> [&'static str; 5] {
    let mut columns = line.split('|');
    std::array::from_fn(|_| columns.next().unwrap_or_default())
}

/// Returns a number derived from a text.
pub(super) fn seed(text: &str) -> u64 {
    // The lower half is sufficient.
    XxHash3_128::oneshot(text.as_bytes()) as u64
}

fn image_id(title: &str, version: u64) -> String {
    let hash = format!("{:032x}", XxHash3_128::oneshot(format!("{title}\n{version}").as_bytes()));
    let part = |from: usize, to: usize| hash.get(from..to).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_show_after_their_lag_and_in_order() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let mut edits = Edits { version: 1, showing: VecDeque::new() };
        edits.add(after(3));
        edits.add(after(1));
        edits.add(after(5));
        let shown = [0, 2, 3, 4, 5].map(|seconds| edits.shown(after(seconds)));
        assert_eq!((shown, edits.version), ([1, 1, 3, 3, 4], 4));
    }
}
