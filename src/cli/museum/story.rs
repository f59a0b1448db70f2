//! The museum's language model: a few sentences, chosen by the prompt.

use super::collection::{Artist, Collection, seed};
use serde_json::json;

/// Openings, middles and endings of Turkish stories.
const TURKISH: [[&str; 4]; 3] = [
    [
        "Bir sabah müzenin kapıları açıldığında, içeri ilk giren bir çocuktu.",
        "Gece bekçisi, o salondan geçerken adımlarını hep yavaşlatırdı.",
        "Yağmurlu bir İstanbul gününde, eski bir bavuldan bir mektup çıktı.",
        "Ressam fırçasını bıraktı ve uzun süre pencereden dışarı baktı.",
    ],
    [
        "Renkler kuruduktan sonra bile değişmeye devam eder, dedi usta; çünkü onlara bakan gözler değişir.",
        "Herkes aynı yere bakıyordu, ama herkes başka bir şey görüyordu.",
        "Köşedeki küçük gölgeyi fark eden pek azdı; o gölge, bütün sırrı saklıyordu.",
        "Bir zamanlar kimsenin beğenmediği bu eser, şimdi önünde kuyruklar oluşan bir sessizlikti.",
    ],
    [
        "Işıklar söndüğünde, resim kendi hikâyesini anlatmayı sürdürdü.",
        "Ve çocuk, büyüdüğünde aynı salona kendi çocuğuyla döndü.",
        "O günden sonra kimse o duvarın önünden aceleyle geçmedi.",
        "Geriye bir fincan çayın buğusu ve bir soru kaldı: gerçekte kim kime bakıyor?",
    ],
];

/// Openings, middles and endings of English stories.
const ENGLISH: [[&str; 4]; 3] = [
    [
        "When the doors opened that morning, a child was the first to come in.",
        "The night guard always walked more slowly through that room.",
        "On a rainy afternoon a letter fell out of an old suitcase.",
        "The painter put down the brush and looked out of the window for a long time.",
    ],
    [
        "Colours go on changing after they have dried, the master said, because the eyes that see them do.",
        "Everybody looked at the same spot, and everybody saw something else.",
        "Few noticed the small shadow in the corner, and it kept the whole secret.",
        "What nobody had liked once was now a silence with a queue before it.",
    ],
    [
        "When the lights went out, the picture went on telling its story.",
        "And the child, grown up, came back to the same room with a child.",
        "From that day on nobody hurried past that wall.",
        "What remained was the steam of a cup of tea, and a question: who is looking at whom?",
    ],
];

/// A text, and whether it is complete.
pub(super) struct Story {
    pub(super) text: String,
    pub(super) whole: bool,
}

/// Returns the approximate number of tokens: one for four characters.
pub(super) fn tokens(text: &str) -> u64 {
    text.chars().count().div_ceil(4) as u64
}

/// Answers a prompt with at most this many tokens. The same prompt gives the same text. A Turkish prompt is answered in
/// Turkish, a prompt for JSON in JSON.
pub(super) fn tell(collection: &Collection, prompt: &str, most: Option<u64>) -> Story {
    let titles = collection.artworks.iter().map(|work| work.title);
    let names = collection.artists.iter().map(|artist| artist.name);
    // Titles precede facts in prompts, and the longest match is the intended one.
    let subject = titles
        .chain(names)
        .filter(|name| prompt.contains(name))
        .min_by_key(|name| (prompt.find(name).unwrap_or(usize::MAX), usize::MAX - name.len()));
    let subject = subject.map_or_else(|| prompt.chars().take(40).collect(), str::to_owned);
    let number = seed(prompt);
    let lower = prompt.to_lowercase();
    let turkish =
        lower.chars().any(|c| "ğşıç".contains(c)) || ["hikâye", " yaz", "hakkında"].iter().any(|w| lower.contains(w));
    let pick = |texts: &[&'static str], salt: u32| texts[number.rotate_right(salt) as usize % texts.len()];
    let [opening, middle, ending] = if turkish { TURKISH } else { ENGLISH };
    let (opening, middle, ending) = (pick(&opening, 3), pick(&middle, 17), pick(&ending, 31));
    // A prompt with a version is answered with that version.
    let version = prompt.split_once("\"version\":").map(|(_, rest)| rest.trim_start());
    let version: String = version.unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
    let source = match (version.as_str(), turkish) {
        ("", _) => String::new(),
        (version, true) => format!(" (Kataloğun {version}. metninden.)"),
        (version, false) => format!(" (After text {version} of the catalogue.)"),
    };
    let text = if prompt.contains("JSON") || prompt.contains("json") {
        let mut document = json!({ "title": subject, "text": format!("{opening} {middle} {ending}") });
        if let Some((born, died)) = collection.artist(&subject).map(Artist::life) {
            document["born"] = json!(born);
            document["died"] = json!(died);
        }
        document.to_string()
    } else {
        format!("{subject}: {opening} {middle} {ending}{source}")
    };
    match most {
        Some(most) if tokens(&text) > most => {
            let length = usize::try_from(most.saturating_mul(4)).unwrap_or(usize::MAX);
            Story { text: text.chars().take(length).collect(), whole: false }
        }
        Some(_) | None => Story { text, whole: true },
    }
}
