//! Encodes a run's examples as tokens, and decides which are kept, truncated or left out.

use crate::job::{DataPlan, Lengths, RunConfig, SplitPlan};
use crate::model::Decoder;
use crate::splits::{self, Origins};
use crate::text::{Encoder, Lesson};
use crate::train::{Encoded, Target};
use crate::{Error, Result};
use sparta_plugin::task::Example;

/// Train, dev and test.
pub struct Splits {
    pub train: Vec<Encoded>,
    pub dev: Vec<Encoded>,
    pub test: Vec<Encoded>,
    pub plan: DataPlan,
}

/// An example of a split.
pub struct Item {
    /// Its place in the split, from 0.
    pub place: usize,
    pub encoded: Encoded,
    pub fate: Fate,
    /// Whether a token spans the end of its prompt and the start of its answer.
    joined: bool,
}

/// Whether an example is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Kept,
    /// Truncated.
    Cut {
        /// Its original number of tokens.
        from: usize,
    },
    /// Left out: it has more tokens than a training example may have.
    TooLong,
    /// Left out: it has no tokens to train on.
    Untrained,
}

impl Fate {
    pub fn is_kept(self) -> bool {
        matches!(self, Fate::Kept | Fate::Cut { .. })
    }
}

/// The length limit of training examples, in tokens.
pub fn max_length(config: &RunConfig, decoder: &Decoder) -> usize {
    let positions = decoder.max_position_embeddings;
    config.max_length.map_or(positions, |n| n.min(positions))
}

/// Turns examples into tokens.
pub struct Coder<'a> {
    pub encoder: &'a Encoder,
    /// Gives the training target of an example.
    pub target: &'a dyn Fn(&Example) -> Target,
    pub max_length: usize,
    /// The model's positions.
    pub positions: usize,
}

impl Coder<'_> {
    /// The training examples, as many as the run may use, and those examined for them, by place. They are examined in
    /// the order of [`splits::draw`], and those not needed are not tokenised.
    ///
    /// Errors: those of [`Coder::items`].
    pub fn train(&self, examples: &[Example], config: &RunConfig) -> Result<Vec<Item>> {
        let Some(cap) = config.max_train.filter(|&cap| cap < examples.len()) else {
            return self.items("train", examples, &(0..examples.len()).collect::<Vec<_>>());
        };
        let order = splits::permutation(config.seed, "cap", "train", examples.len());
        let (mut items, mut kept) = (Vec::new(), 0);
        for some in order.chunks(cap) {
            for item in self.items("train", examples, some)? {
                if kept < cap {
                    kept += usize::from(item.fate.is_kept());
                    items.push(item);
                }
            }
            if kept == cap {
                break;
            }
        }
        items.sort_by_key(|item| item.place);
        Ok(items)
    }

    /// At most `cap` examples of another split, drawn by seed. Errors: those of [`Coder::items`].
    pub fn held_out(&self, split: &str, examples: &[Example], cap: Option<usize>, seed: u64) -> Result<Vec<Item>> {
        let places = splits::draw((0..examples.len()).collect(), cap, seed, split);
        self.items(split, examples, &places)
    }

    /// Encodes the examples of a split at these places. Training examples that are too long are left out; texts learned
    /// whole are truncated to the length limit, and all others to the model's positions.
    ///
    /// Errors: an example that cannot be encoded, or has no tokens, with its place.
    pub fn items(&self, split: &str, examples: &[Example], places: &[usize]) -> Result<Vec<Item>> {
        let chosen: Vec<&Example> = places.iter().map(|&place| &examples[place]).collect();
        let lessons = self.encoder.lessons(&chosen).into_iter();
        let items = lessons.zip(chosen).zip(places).map(|((lesson, example), &place)| {
            let wrong = |what: String| Error::Data(format!("{split}, example {}: {what}", place + 1));
            let Lesson { tokens, trained, joined } = lesson.map_err(|error| wrong(error.to_string()))?;
            if tokens.is_empty() {
                return Err(wrong(format!("the text {:?} gives no tokens", example.text)));
            }
            let target = match (self.target)(example) {
                Target::Tokens(None) if !example.is_plain() => Target::Tokens(Some(trained)),
                target => target,
            };
            let mut encoded = Encoded { tokens, target };
            let fate = self.judge(&mut encoded, split == "train");
            Ok(Item { place, encoded, fate, joined })
        });
        items.collect()
    }

    fn judge(&self, encoded: &mut Encoded, train: bool) -> Fate {
        let from = encoded.tokens.len();
        let longest = match (&encoded.target, train) {
            (Target::Tokens(None), _) => self.max_length,
            (_, true) if from > self.max_length => return Fate::TooLong,
            _ => self.positions,
        };
        self.encoder.cut(&mut encoded.tokens, longest);
        let rest = encoded.tokens.len();
        let learned = match &mut encoded.target {
            Target::Tokens(Some(trained)) => {
                trained.truncate(rest);
                trained.iter().skip(1).any(|trained| *trained)
            }
            Target::Tokens(None) => rest > 1,
            Target::Class(_) | Target::Numbers(_) => true,
        };
        match learned {
            false => Fate::Untrained,
            true if from > longest => Fate::Cut { from },
            true => Fate::Kept,
        }
    }

    /// The splits of a run.
    ///
    /// Errors: those of [`Coder::items`]; no example left for training.
    pub fn splits(&self, config: &RunConfig, data: splits::Splits) -> Result<Splits> {
        let splits::Splits { train, dev, test, mut origins, .. } = data;
        origins.train = capped(origins.train, train.len(), config.max_train);
        origins.dev = capped(origins.dev, dev.len(), config.max_dev);
        origins.test = capped(origins.test, test.len(), config.max_test);
        let train = self.train(&train, config)?;
        if !train.iter().any(|item| item.fate.is_kept()) {
            return Err(self.nothing_left(config, &train));
        }
        let dev = self.held_out("dev", &dev, config.max_dev, config.seed)?;
        let test = self.held_out("test", &test, config.max_test, config.seed)?;
        self.note(&mut origins, [&train, &dev, &test]);
        let too_long = count(&train, |item| item.fate == Fate::TooLong);
        let is_cut = |item: &Item| matches!(item.fate, Fate::Cut { .. }) && !is_document(item);
        let cut = count(&dev, is_cut) + count(&test, is_cut);
        let [train, dev, test] = [train, dev, test].map(kept);
        let plan = DataPlan {
            train: split_plan(origins.train, &train),
            dev: split_plan(origins.dev, &dev),
            test: split_plan(origins.test, &test),
            max_length: self.max_length,
            too_long,
            cut,
            notes: origins.notes,
        };
        Ok(Splits { train, dev, test, plan })
    }

    /// Adds notes on what the plan does not count.
    fn note(&self, origins: &mut Origins, splits: [&[Item]; 3]) {
        let all = |is: &dyn Fn(&Item) -> bool| splits.iter().map(|items| count(items, is)).sum::<usize>();
        let cut = all(&|item| matches!(item.fate, Fate::Cut { .. }) && is_document(item));
        if cut > 0 {
            origins.notes.push(format!("{cut} documents are truncated to {} tokens", self.max_length));
        }
        let untrained = all(&|item| item.fate == Fate::Untrained && !is_document(item));
        if untrained > 0 {
            origins.notes.push(format!("{untrained} examples are left out, as they have no tokens to train on"));
        }
        let joined = all(&|item| item.joined && item.fate.is_kept());
        if joined > 0 {
            origins.notes.push(format!(
                "in {joined} examples a token spans the end of the prompt and the start of the answer; it counts as \
                 the answer's, like the white space between them"
            ));
        }
    }

    fn nothing_left(&self, config: &RunConfig, train: &[Item]) -> Error {
        let (data, max, all) = (config.data.display(), self.max_length, train.len());
        let long = count(train, |item| item.fate == Fate::TooLong);
        if long < all {
            return Error::Data(match train.iter().all(is_document) {
                true => format!("{data}: there is no document of two tokens or more"),
                false => format!(
                    "{data}: no training example is left: of {all}, {long} have more than {max} tokens, and the \
                     others have no tokens to train on; see `data show`, --train-on and --max-length"
                ),
            });
        }
        let way = match max < self.positions {
            true => "raise --max-length",
            false => "that exceeds the model's positions: use shorter texts or another model",
        };
        Error::Data(format!("no training example is left: all {all} have more than {max} tokens; {way}"))
    }
}

/// The origin of a split of which a cap may leave out examples.
pub fn capped(origin: String, examples: usize, cap: Option<usize>) -> String {
    match cap.filter(|&cap| cap < examples) {
        Some(cap) => format!("{origin}, at most {cap}"),
        None => origin,
    }
}

/// The examples that are kept.
pub fn kept(items: Vec<Item>) -> Vec<Encoded> {
    items.into_iter().filter(|item| item.fate.is_kept()).map(|item| item.encoded).collect()
}

fn is_document(item: &Item) -> bool {
    item.encoded.target == Target::Tokens(None)
}

fn count(items: &[Item], is: impl Fn(&Item) -> bool) -> usize {
    items.iter().filter(|item| is(item)).count()
}

fn split_plan(origin: String, examples: &[Encoded]) -> SplitPlan {
    let trained = |example: &Encoded| match &example.target {
        Target::Tokens(Some(trained)) => Some(trained.iter().filter(|trained| **trained).count()),
        _ => None,
    };
    let (mut tokens, mut of_them) = (0, None);
    for example in examples {
        tokens += example.tokens.len();
        of_them = trained(example).map(|more| of_them.unwrap_or(0) + more).or(of_them);
    }
    let lengths = Lengths::of(examples.iter().map(|example| example.tokens.len()));
    SplitPlan { origin, examples: examples.len(), tokens, trained: of_them, lengths }
}
