//! What is known of one entry's value, in one packed string beside it.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::entry::Outcome;
use crate::entry::Trigger;
use crate::entry::Validators;

/// Metadata of an entry: `start written invalidated outlived hash@content_since {note}`; `hash~asked@content_since` where nobody was asked when
/// the value was last extended.
///
/// Scripts read and write the head without parsing JSON; only we read the note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// When the fetch of the present value began, or it was last looked whether it would be made from the same (Redis time,
    /// ms); 0 if we fetched none.
    pub start: i64,
    /// When its content was last asked for, or confirmed by its source (Redis time, ms): what was invalidated since is not
    /// answered. It is before `start` where the value was extended since with nobody asked; `start` where nothing is said.
    pub asked: i64,
    /// The `PEXPIRETIME` we gave the value; another one on the key means that somebody else wrote it.
    pub written: i64,
    /// The time of an invalidation that is not yet answered (ms); 0 for none.
    pub invalidated: i64,
    /// By how much it was let outlive its TTL (ms), because its source fails; 0 for not at all.
    pub outlived: i64,
    /// Hash of the value; `-` for none.
    pub hash: String,
    /// Since when this content is readable (Redis time, ms), however often it was fetched since; 0 if that is not known.
    /// What was made from the entry before may be made from another.
    pub content_since: i64,
    /// The rest.
    pub note: Note,
}

/// How the last attempt ended, and what the value came with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// What tells that the value is unchanged.
    #[serde(flatten)]
    pub validators: Validators,
    /// The value's tags.
    #[serde(rename = "g", default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// AI tokens that the value cost.
    #[serde(rename = "c", default, skip_serializing_if = "is_none")]
    pub tokens: u64,
    /// How the last attempt ended. Packed as its number in [`Outcome::ALL`], and not where it warmed the value, which is usual.
    #[serde(rename = "o", default, skip_serializing_if = "is_warmed", with = "outcome_number")]
    pub outcome: Option<Outcome>,
    /// Why it was made. Packed as its number in scores, and not where the value's TTL came to an end, which is usual.
    #[serde(rename = "t", default, skip_serializing_if = "is_expiry", with = "trigger_number")]
    pub trigger: Option<Trigger>,
    /// When it began (Redis time, ms). Not packed where it is 0; read, it is then when the fetch of the present value began.
    #[serde(rename = "a", default, skip_serializing_if = "is_never")]
    pub attempted: i64,
    /// How many have failed in a row.
    #[serde(rename = "n", default, skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// When it is tried again after the last of them (Redis time, ms), whatever brings it on before; 0 for none.
    #[serde(rename = "w", default, skip_serializing_if = "is_never")]
    pub retry: i64,
    /// How many workers in a row died while they fetched it.
    #[serde(rename = "d", default, skip_serializing_if = "is_zero")]
    pub crashes: u32,
    /// The value was fetched in a storm: for an invalidation that followed another.
    #[serde(rename = "s", default, skip_serializing_if = "is_false", with = "flag_number")]
    pub storm: bool,
    /// Why the last one failed, for people; bounded.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_none(n: &u64) -> bool {
    *n == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_never(n: &i64) -> bool {
    *n == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

#[expect(clippy::ref_option, reason = "serde passes references")]
fn is_warmed(outcome: &Option<Outcome>) -> bool {
    matches!(outcome, None | Some(Outcome::Warmed))
}

#[expect(clippy::ref_option, reason = "serde passes references")]
fn is_expiry(trigger: &Option<Trigger>) -> bool {
    matches!(trigger, None | Some(Trigger::Expiry))
}

/// As it is packed, or as it was before there were numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Packed<T> {
    Number(usize),
    Word(T),
}

fn unpacked<'de, T, D>(from: D, all: &[T]) -> Result<Option<T>, D::Error>
where
    T: Copy + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(match Packed::deserialize(from)? {
        Packed::Number(number) => all.get(number).copied(),
        Packed::Word(word) => Some(word),
    })
}

mod outcome_number {
    use super::{Deserializer, Outcome, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "serde passes references")]
    pub(super) fn serialize<S: Serializer>(outcome: &Option<Outcome>, to: S) -> Result<S::Ok, S::Error> {
        outcome.map(|outcome| outcome as u8).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Outcome>, D::Error> {
        super::unpacked(from, &Outcome::ALL)
    }
}

mod flag_number {
    use super::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    pub(super) fn serialize<S: Serializer>(flag: &bool, to: S) -> Result<S::Ok, S::Error> {
        u8::from(*flag).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
        u8::deserialize(from).map(|number| number != 0)
    }
}

mod trigger_number {
    use super::{Deserializer, Serialize, Serializer, Trigger};

    #[expect(clippy::ref_option, reason = "serde passes references")]
    pub(super) fn serialize<S: Serializer>(trigger: &Option<Trigger>, to: S) -> Result<S::Ok, S::Error> {
        trigger.map(|trigger| trigger as u8).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Trigger>, D::Error> {
        super::unpacked(from, &Trigger::ALL)
    }
}

impl Meta {
    /// Reads the packed form; `None` where it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(6, ' ');
        let mut number = || parts.next()?.parse().ok();
        let (start, written, invalidated, outlived) = (number()?, number()?, number()?, number()?);
        let hash = parts.next()?;
        let (hash, content_since) = hash.split_once('@').unwrap_or((hash, "0"));
        let (hash, asked) = hash.split_once('~').map_or((hash, None), |(hash, asked)| (hash, Some(asked)));
        let asked = asked.map_or(Ok(start), str::parse).ok()?;
        let (hash, content_since) = (hash.to_owned(), content_since.parse().ok()?);
        let packed = serde_json::from_str(parts.next()?).ok();
        let known = packed.is_some();
        let mut note: Note = packed.unwrap_or_default();
        if note.attempted == 0 {
            note.attempted = start;
        }
        if known && note.attempted > 0 {
            note.outcome.get_or_insert(Outcome::Warmed);
            note.trigger.get_or_insert(Trigger::Expiry);
        }
        Some(Self { start, asked, written, invalidated, outlived, hash, content_since, note })
    }

    /// Whether the value that expires at `pexpiretime` (as Redis says it) is the one this speaks of.
    pub fn is_of(&self, pexpiretime: i64) -> bool {
        self.start > 0 && self.written == pexpiretime
    }
}

impl Note {
    /// The packed form.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| "{}".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_without_a_readable_note_still_tells_whose_value_it_is() {
        let meta = Meta::parse("1732270000123 1732277200123 0 0 abc {broken").unwrap();
        assert!(meta.is_of(1_732_277_200_123));
        assert_eq!(meta.note, Note { attempted: meta.start, ..Note::default() });
        assert_eq!(Meta::parse("garbage"), None);
    }

    #[test]
    fn content_dates_from_the_head_or_else_from_its_fetch() {
        let asked =
            |head: &str| Meta::parse(&format!("{head} {{}}")).map(|meta| (meta.start, meta.asked, meta.content_since));
        assert_eq!(asked("20 30 0 0 abc@7"), Some((20, 20, 7)));
        assert_eq!(asked("20 30 0 0 abc~10@7"), Some((20, 10, 7)));
        assert_eq!(asked("20 30 0 0 abc~10"), Some((20, 10, 0)));
        assert_eq!(asked("20 30 0 0 -"), Some((20, 20, 0)));
        assert_eq!(asked("20 30 0 0 abc~x@7"), None);
    }

    #[test]
    fn a_note_round_trips() {
        let note = Note {
            validators: Validators { etag: Some("\"v1\"".into()), ..Validators::default() },
            tags: vec!["artist:Frida".into()],
            tokens: 1_200,
            outcome: Some(Outcome::Failed),
            trigger: Some(Trigger::Invalidation),
            attempted: 17,
            failures: 3,
            retry: 18,
            crashes: 1,
            storm: true,
            reason: Some("503 Service Unavailable".into()),
        };
        let packed = format!("1 2 3 0 h {}", note.to_json());
        assert_eq!(Meta::parse(&packed).unwrap().note, note);
        // As lease.lua and invalidate.lua look for it.
        assert!(packed.contains(r#""o":7,"t":1,"#) && packed.contains(r#""s":1"#), "{packed}");
    }

    #[test]
    fn outcomes_and_triggers_round_trip_and_usual_ones_are_empty() {
        let packed = |outcome, trigger| Note { outcome, trigger, ..Note::default() }.to_json();
        let read = |packed: String| Meta::parse(&format!("1 2 0 0 h {packed}")).unwrap().note;
        for outcome in Outcome::ALL {
            assert_eq!(read(packed(Some(outcome), None)).outcome, Some(outcome));
        }
        for trigger in Trigger::ALL {
            assert_eq!(read(packed(None, Some(trigger))).trigger, Some(trigger));
        }
        assert_eq!(packed(Some(Outcome::Warmed), Some(Trigger::Expiry)), "{}");
        let before = read(r#"{"p":"q","o":"failed","t":"invalidation"}"#.to_owned());
        assert_eq!((before.outcome, before.trigger), (Some(Outcome::Failed), Some(Trigger::Invalidation)));
        // Somebody marked it before anybody fetched it.
        assert_eq!(Meta::parse("0 0 17 0 - {}").unwrap().note, Note::default());
    }
}
