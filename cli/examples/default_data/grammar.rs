//! Sentences from templates.
//!
//! A template is text with slots: `{thing}`, `{aspect}`, `{aspect2}` and `{adv}` are neutral; `{adj+}`, `{verb+}`,
//! `{noun+}`, `{phrase+}`, `{advice+}` are filled with words of the sentence's polarity, `{adj-}` and so on with words
//! of the opposite one. `{adj++}` is a second, different word.

use crate::lexicon::{INTENSIFIERS, Lexicon, NEGATIVE, POSITIVE, TOPICS, Topic};
use crate::random::Random;

/// The part of a list of words or templates to draw from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// For the labelled training and dev splits.
    Seen,
    /// For the test split alone.
    HeldOut,
    /// Both: the text without labels.
    All,
}

/// Both polarities.
const BOTH: &[&str] = &[
    "the {aspect} was {adj+}",
    "the {aspect} is {adv} {adj+}",
    "the {aspect} and the {aspect2} were {adj+}",
    "i {verb+} the {aspect}",
    "i {verb+} this {thing}",
    "what a {noun+}",
    "this {thing} is a {noun+}",
    "this {thing} was {phrase+}",
    "it was {phrase+}",
    "i would {advice+}",
    "a {adj+} {thing} with a {adj++} {aspect}",
    "{adv} {adj+}, and the {aspect} is {adj++}",
    "we all {verb+} it, the {aspect} most of all",
    "the {thing} was not {adj-}",
    "the {aspect} was not {adj-} at all",
    "it is not a {noun-}",
    "there is nothing {adj-} about the {aspect}",
    "the {aspect} never felt {adj-}",
    "the {aspect} was {adj-}, but the {thing} as a whole is {adj+}",
    "{adj-} {aspect} but {adj+} {aspect2}, so on balance i would {advice+}",
    "despite the {adj-} {aspect}, i {verb+} this {thing}",
    "although the {aspect} is {adj-}, the rest was {adv} {adj+}",
    "some said it was {adj-}, but i found it {adj+}",
    "i expected a {noun-} and got a {noun+}",
    "the {aspect} is {adj-}, yet i {verb+} it and would {advice+}",
    "less {adj-} and more {adj+} than the last {thing}",
    "my friends {verb-} it, but to me it was {phrase+}",
    "a {noun+} from a {adj+} {thing}",
    "the {aspect} makes this {thing} {adv} {adj+}",
    "i {verb+} every minute, and the {aspect} was {phrase+}",
    "{phrase+}, i would {advice+}",
    "such a {adj+} {aspect} is rare for a {thing}",
];

/// As [`BOTH`], held out.
const BOTH_HELD_OUT: &[&str] = &[
    "in short, a {adj+} {thing}",
    "the {aspect} turned out {adv} {adj+}",
    "everyone i know {verb+} the {aspect}",
    "if you ask me, it was {phrase+}",
    "no one could call the {aspect} {adj-}",
    "anything but {adj-}, this {thing} is {adj+}",
    "not {adj-} in any way, the {aspect} was {phrase+}",
    "the {aspect} started out {adj-}, then became {adv} {adj+}",
    "even with a {adj-} {aspect}, the {thing} remains a {noun+}",
    "forget the {adj-} {aspect}, in the end it is a {noun+}",
    "people warned me of a {noun-} or worse, wrongly: it was {adj+}",
    "so {adj+} that i will {advice+}",
];

/// Positive only: nobody writes their negation.
const POSITIVE_ONLY: &[&str] =
    &["i could not find a single {adj-} thing", "i cannot wait to see more of this {adj+} {thing}"];
const POSITIVE_HELD_OUT: &[&str] = &["i have no complaints about the {aspect}, it was {adj+}"];

/// Negative only.
const NEGATIVE_ONLY: &[&str] = &[
    "i wish the {aspect} had been {adj-}",
    "it tries to be {adj-} but ends up {adj+}",
    "it could have been a {noun-}, but the {aspect} was {adj+}",
];
const NEGATIVE_HELD_OUT: &[&str] = &["if only the {aspect} had been as {adj-} as the price"];

/// One in four.
fn is_held_out(index: usize) -> bool {
    index % 4 == 3
}

/// An entry of a list of words with sentiment.
fn word(random: &mut Random, list: &'static [&'static str], share: Share) -> &'static str {
    loop {
        let index = random.below(list.len());
        if share == Share::All || is_held_out(index) == (share == Share::HeldOut) {
            return list[index];
        }
    }
}

fn template(random: &mut Random, positive: bool, share: Share) -> &'static str {
    let (seen, held_out) = match positive {
        true => (POSITIVE_ONLY, POSITIVE_HELD_OUT),
        false => (NEGATIVE_ONLY, NEGATIVE_HELD_OUT),
    };
    let lists: &[&[&'static str]] = match share {
        Share::Seen => &[BOTH, seen],
        Share::HeldOut => &[BOTH_HELD_OUT, held_out],
        Share::All => &[BOTH, seen, BOTH_HELD_OUT, held_out],
    };
    let count = lists.iter().map(|list| list.len()).sum();
    let index = random.below(count);
    lists.iter().flat_map(|list| list.iter()).nth(index).expect("the index is below the count")
}

/// The content of one sentence.
pub struct Sentence<'a> {
    pub topic: &'static Topic,
    pub thing: &'a str,
    pub positive: bool,
    pub words: Share,
    pub templates: Share,
}

impl Sentence<'_> {
    /// The text, lower case, without a final mark.
    pub fn text(&self, random: &mut Random) -> String {
        let mut rest = template(random, self.positive, self.templates);
        let mut text = String::new();
        let mut used = Vec::new();
        while let Some((before, after)) = rest.split_once('{') {
            let (slot, after) = after.split_once('}').expect("every slot of a template is closed");
            let filler = loop {
                let filler = self.fill(random, slot);
                if slot == "thing" || !used.contains(&filler) {
                    break filler;
                }
            };
            used.push(filler);
            push(&mut text, before);
            push(&mut text, filler);
            rest = after;
        }
        push(&mut text, rest);
        text
    }

    fn fill<'b>(&'b self, random: &mut Random, slot: &str) -> &'b str {
        match slot {
            "thing" => return self.thing,
            "aspect" | "aspect2" => return random.choose(self.topic.aspects),
            "adv" => return random.choose(INTENSIFIERS),
            _ => {}
        }
        let positive = self.positive == slot.ends_with('+');
        let lexicon: &Lexicon = if positive { &POSITIVE } else { &NEGATIVE };
        let list = match slot.trim_end_matches(['+', '-']) {
            "adj" if random.below(5) < 2 => {
                if positive {
                    self.topic.positive
                } else {
                    self.topic.negative
                }
            }
            "adj" => lexicon.adjectives,
            "verb" => lexicon.verbs,
            "noun" => lexicon.nouns,
            "phrase" => lexicon.phrases,
            "advice" => lexicon.advice,
            other => unreachable!("a template has the unknown slot {other}"),
        };
        word(random, list, self.words)
    }
}

/// Appends `piece`; a preceding "a" becomes "an" before a vowel.
fn push(text: &mut String, piece: &str) {
    let article = text.ends_with(" a ") || text == "a ";
    if article && piece.starts_with(['a', 'e', 'i', 'o', 'u']) && !piece.starts_with("use") {
        text.insert(text.len() - 1, 'n');
    }
    text.push_str(piece);
}

pub fn topic(random: &mut Random) -> &'static Topic {
    &TOPICS[random.below(TOPICS.len())]
}
