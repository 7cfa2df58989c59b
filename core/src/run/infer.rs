//! Using a trained adapter: metrics on a split, predictions for texts.

use super::encode::{Coder, kept, max_length};
use super::prepare::{has_turns, lesson_encoder, objective_of, target};
use crate::adapter::{AppliedAdapter, Head, order_of};
use crate::job::{PrecisionChoice, RunConfig};
use crate::method::options;
use crate::plugin::check_pair;
use crate::plugin::{PluginKind, PluginSet};
use crate::text::Encoder;
use crate::train::evaluate;
use crate::train::objective::{MultiLabel, Regression};
use crate::train::{Encoded, Evaluation, Metrics, Prediction, Session, Target};
use crate::{Error, Result, splits};
use serde_json::Value;
use sparta_graph::Backend;
use sparta_plugin::task::{self, Example, OpenRequest, Task, TaskInfo};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Tokens per batch, unless the run that made the adapter has a different number.
const BATCH_TOKENS: usize = 4096;

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct EvalRequest {
    /// `train`, `dev` or `test`.
    pub split: String,
    /// The head to evaluate; optional if there is only one.
    pub head: Option<String>,
    /// A task other than the one trained on, with the same labels.
    pub task: Option<String>,
    /// Data other than the run's.
    pub data: Option<PathBuf>,
    /// Options of the task, instead of the run's.
    pub task_options: BTreeMap<String, Value>,
    /// The most examples to use, drawn by the run's seed.
    pub max_examples: Option<usize>,
}

/// An adapter with its base model and tokenizer.
pub struct AdaptedModel {
    applied: AppliedAdapter,
    /// The encoders of the heads, and which encoder each head uses.
    encoders: Vec<Encoder>,
    encoder_of: Vec<usize>,
    /// The tasks of the heads, as far as known.
    tasks: Vec<TaskInfo>,
}

impl AdaptedModel {
    /// Opens an adapter of any format, a run directory or a full classifier on its base model, or on `model`. Errors as
    /// [`AppliedAdapter::open`].
    pub fn open(path: &Path, model: Option<&Path>, plugins: &PluginSet) -> Result<AdaptedModel> {
        let applied = AppliedAdapter::open(path, model, plugins)?;
        let (mut encoders, mut encoder_of) = (Vec::<Encoder>::new(), Vec::new());
        for head in &applied.adapter.heads {
            let instruct = head.config.as_ref().and_then(|config| config.instruct.as_ref());
            encoder_of.push(match encoders.iter().position(|encoder| encoder.instruct() == instruct) {
                Some(same) => same,
                None => {
                    encoders.push(Encoder::stored(&applied.adapter.model, applied.padding(), instruct)?);
                    encoders.len() - 1
                }
            });
        }
        for encoder in &encoders {
            encoder.tokenizer().check_vocab(applied.decoder.vocab_size)?;
        }
        let configs = applied.adapter.heads.iter().filter_map(|head| head.config.as_ref());
        let tasks = configs.filter_map(|config| Some(config.task_info(plugins).ok()?.1)).collect();
        Ok(AdaptedModel { applied, encoders, encoder_of, tasks })
    }

    pub fn applied(&self) -> &AppliedAdapter {
        &self.applied
    }

    /// Overrides the float types of the run that made the adapter.
    pub fn set_precision(&mut self, precision: PrecisionChoice) {
        self.applied.precision = precision;
    }

    pub fn into_applied(self) -> AppliedAdapter {
        self.applied
    }

    pub fn heads(&self) -> &[Head] {
        &self.applied.adapter.heads
    }

    /// The position of a head; without a name, of the only one.
    pub fn head(&self, name: Option<&str>) -> Result<usize> {
        let names = || self.heads().iter().map(|head| &*head.name).collect::<Vec<_>>().join(", ");
        match (name, self.heads()) {
            (None, [_]) => Ok(0),
            (None, _) => Err(Error::Usage(format!("there are several heads; give one with --head: {}", names()))),
            (Some(name), heads) => heads
                .iter()
                .position(|head| head.name == name)
                .ok_or_else(|| Error::Usage(format!("there is no head `{name}`; the heads are: {}", names()))),
        }
    }

    /// A prediction of every head for each text or pair of texts, in one pass unless heads were trained with different
    /// prompts. Texts longer than the model's positions are truncated. `device` opens the device.
    ///
    /// Errors: a model that does not classify; a pair of texts for a task of single texts, or the reverse, with its
    /// number.
    pub fn predict(
        &self,
        device: impl Fn() -> Result<Box<dyn Backend>>,
        texts: &[(String, Option<String>)],
    ) -> Result<Vec<Vec<Prediction>>> {
        self.predictor(device).predict(texts)
    }

    /// Predicts texts as they arrive, on a device that stays open.
    pub fn predictor<D: Fn() -> Result<Box<dyn Backend>>>(&self, device: D) -> Predictor<'_, D> {
        Predictor { adapted: self, device, session: None, done: 0 }
    }

    /// The logits of each head.
    fn by_head(&self, all: &Prediction) -> Vec<Prediction> {
        let mut rest = &all.logits[..];
        let mut take = |head: &Head| {
            let (own, others) = rest.split_at(head.labels.len().min(rest.len()));
            rest = others;
            Prediction { logits: own.to_vec() }
        };
        self.heads().iter().map(&mut take).collect()
    }

    /// Encodes examples, truncated to the model's positions; texts learned whole are truncated to the run's length
    /// limit.
    fn encode(
        &self,
        encoder: &Encoder,
        config: Option<&RunConfig>,
        examples: &[Example],
        target: &dyn Fn(&Example) -> Target,
    ) -> Result<Vec<Encoded>> {
        let decoder = &self.applied.decoder;
        let positions = decoder.max_position_embeddings;
        let max_length = config.map_or(positions, |config| max_length(config, decoder));
        let coder = Coder { encoder, target, max_length, positions };
        Ok(kept(coder.items("the data", examples, &(0..examples.len()).collect::<Vec<_>>())?))
    }

    fn evaluate_encoded(
        &self,
        device: Box<dyn Backend>,
        examples: &[Encoded],
        progress: impl FnMut(usize, usize),
    ) -> Result<Evaluation> {
        if examples.is_empty() {
            return Ok(Evaluation::default());
        }
        let mut session = self.applied.session(device, self.budget(), longest(examples))?;
        self.evaluate_in(&mut session, examples, progress)
    }

    fn evaluate_in(
        &self,
        session: &mut Session,
        examples: &[Encoded],
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Evaluation> {
        let found = evaluate::evaluate(session, examples, self.budget(), None, |done, total| {
            progress(done, total);
            true
        })?;
        let finite = |p: &Prediction| p.logits.iter().all(|z| z.is_finite());
        match found.predictions.iter().position(|p| !finite(p)) {
            None => Ok(found),
            Some(at) => Err(Error::Training(format!(
                "the logits of text {} are not finite numbers: {:?}; try --precision f32, and check the model's \
                 weights",
                at + 1,
                found.predictions[at].logits
            ))),
        }
    }

    /// Tokens per batch.
    fn budget(&self) -> usize {
        let config = self.heads().iter().find_map(|head| head.config.as_ref());
        config.map_or(BATCH_TOKENS, |config| config.micro_batch_tokens())
    }

    /// The examples of a split for one head, labelled with its classes.
    pub fn examples(&self, request: &EvalRequest, plugins: &PluginSet) -> Result<Vec<Encoded>> {
        let (task, mut examples) = self.task_examples(request, plugins)?;
        let order = order(&self.heads()[self.head(request.head.as_deref())?], &task).unwrap_or_default();
        for example in &mut examples {
            if let Target::Class(label) = &mut example.target {
                *label = order.get(*label as usize).map_or(*label, |&class| class as u32);
            }
        }
        Ok(examples)
    }

    /// The examples of a split for one head, labelled as in their task.
    fn task_examples(&self, request: &EvalRequest, plugins: &PluginSet) -> Result<(TaskInfo, Vec<Encoded>)> {
        let position = self.head(request.head.as_deref())?;
        let head = &self.heads()[position];
        let config = head.config.as_ref();
        let id = request.task.as_deref().or(config.map(|c| &*c.task));
        let id = id.ok_or_else(|| Error::Usage("the adapter does not name its task; give --task and --data".into()))?;
        let (plugin, described) = plugins.task(id)?;
        self.applied.recorded.check(PluginKind::Task, &plugin.info().name)?;
        // A task that finds its labels in the data gets those of the head.
        let trained = (described.labels.is_empty() && !head.labels.is_empty()).then(|| trained_task(head, &described));
        let data = request.data.clone().or(config.map(|c| c.data.clone()));
        let data = data.ok_or_else(|| Error::Usage("the adapter does not name its data; give --data".into()))?;
        let split = request.split.as_str();
        let own = config.filter(|config| config.task == id).map(|config| config.task_options.clone());
        let mut given = own.unwrap_or_default();
        given.extend(request.task_options.clone());
        let data = OpenRequest {
            splits: vec![split.to_owned()],
            options: options::check(&format!("task {id}"), &plugin.info().options, &options::given(&given))?,
            trained,
            other_data: request.data.is_some(),
            ..OpenRequest::new(id, data)
        };
        let seed = config.map_or(0, |c| c.seed);
        let open = || plugin.open(&data);
        let source = splits::Source::new(&open, &data.data);
        let opened = splits::open(&source, &described)?;
        check_labels(head, &opened.task)?;
        let all = splits::load(opened, &[split], seed)?;
        let task = all.task;
        let (examples, cap) = match split {
            "train" => (all.train, config.and_then(|c| c.max_train)),
            "dev" => (all.dev, config.and_then(|c| c.max_dev)),
            "test" => (all.test, config.and_then(|c| c.max_test)),
            other => return Err(Error::Usage(format!("there is no split `{other}`; the splits are train, dev, test"))),
        };
        let examples = splits::draw(examples, request.max_examples.or(cap), seed, &request.split);
        let target = |example: &Example| target(&task, example);
        let encoded = match self.applied.objective.pools() {
            true => self.encode(&self.encoders[self.encoder_of[position]], config, &examples, &target)?,
            false => {
                let (model, decoder) = (&self.applied.adapter.model, &self.applied.decoder);
                let encoder = lesson_encoder(model, decoder, config, has_turns(&examples))?;
                self.encode(&encoder, config, &examples, &target)?
            }
        };
        if encoded.is_empty() {
            return Err(Error::Data(format!("the {} split of task {} is empty", request.split, task.id)));
        }
        Ok((task, encoded))
    }
}

/// A task that finds its labels in the data, as it was when the head was trained.
fn trained_task(head: &Head, described: &TaskInfo) -> TaskInfo {
    if let Some(found) = head.config.as_ref().and_then(|config| config.found_task.clone())
        && found.id == described.id
    {
        return found;
    }
    let target = match head.objective.as_str() {
        MultiLabel::NAME => task::Target::Classes,
        Regression::NAME => task::Target::Number,
        _ => task::Target::Class,
    };
    TaskInfo { labels: head.labels.clone(), target: Some(target), ..described.clone() }
}

/// Errors: a task whose labels, or their kind, differ from the head's.
fn check_labels(head: &Head, task: &TaskInfo) -> Result<()> {
    let wanted = objective_of(task).name();
    if head.objective != wanted {
        return Err(Error::Usage(format!(
            "task {} is {wanted}, but the model was trained for {}",
            task.id, head.objective
        )));
    }
    match order(head, task) {
        Some(_) => Ok(()),
        None => Err(Error::Usage(format!(
            "task {} has the labels {:?}, but the model was trained for {:?}",
            task.id, task.labels, head.labels
        ))),
    }
}

/// The head's class for each label of a task; `None` if their labels differ.
fn order(head: &Head, task: &TaskInfo) -> Option<Vec<usize>> {
    // A single number has a name, but no classes.
    let number = head.labels.len() == 1 && task.target() == task::Target::Number;
    let unnamed = (head.unnamed() || number) && task.labels.len() == head.labels.len();
    order_of(&head.labels, &task.labels).or_else(|| unnamed.then(|| (0..task.labels.len()).collect()))
}

/// The length of the longest example, in tokens.
fn longest(examples: &[Encoded]) -> usize {
    examples.iter().map(|e| e.tokens.len()).max().unwrap_or(1)
}

/// An adapter that predicts texts as they arrive.
pub struct Predictor<'a, D> {
    adapted: &'a AdaptedModel,
    /// Opens the device.
    device: D,
    /// The open session, and the length of the longest text that it takes.
    session: Option<(Session, usize)>,
    /// Texts predicted so far.
    done: usize,
}

impl<D: Fn() -> Result<Box<dyn Backend>>> Predictor<'_, D> {
    /// As [`AdaptedModel::predict`].
    pub fn predict(&mut self, texts: &[(String, Option<String>)]) -> Result<Vec<Vec<Prediction>>> {
        let adapted = self.adapted;
        if !adapted.applied.objective.pools() {
            return Err(Error::Usage(format!(
                "{}: made by {}, which does not classify; `eval` measures it, and `adapter merge` makes a model that \
                 generates text",
                adapted.applied.adapter.dir.display(),
                adapted.applied.objective.name()
            )));
        }
        for (i, (_, pair)) in texts.iter().enumerate() {
            let checked = adapted.tasks.iter().try_for_each(|task| check_pair(task, pair.is_some()));
            let hint = if pair.is_none() { "; give a table with a column for each text of a pair" } else { "" };
            checked.map_err(|what| Error::Data(format!("text {}: {what}{hint}", self.done + i + 1)))?;
        }
        self.done += texts.len();
        let example = |(text, pair): &(String, Option<String>)| {
            let (text, pair) = (text.clone(), pair.clone());
            Example { text, pair, ..Example::default() }
        };
        let examples: Vec<Example> = texts.iter().map(example).collect();
        let mut passes = Vec::new();
        for encoder in 0..adapted.encoders.len() {
            let encoder = &adapted.encoders[encoder];
            let encoded = adapted.encode(encoder, None, &examples, &|_| adapted.applied.objective.blank())?;
            let predictions = match encoded.is_empty() {
                true => Vec::new(),
                false => adapted.evaluate_in(self.session(longest(&encoded))?, &encoded, |_, _| {})?.predictions,
            };
            passes.push(predictions.iter().map(|all| adapted.by_head(all)).collect::<Vec<_>>());
        }
        let own = |text: usize, head: usize| passes[adapted.encoder_of[head]][text][head].clone();
        Ok((0..texts.len()).map(|text| (0..adapted.heads().len()).map(|head| own(text, head)).collect()).collect())
    }

    /// A session for texts of this many tokens; if the open one is too small, one of at least twice the size replaces
    /// it.
    fn session(&mut self, longest: usize) -> Result<&mut Session> {
        let session = match self.session.take().filter(|(_, most)| *most >= longest) {
            Some(session) => session,
            None => {
                let positions = self.adapted.applied.decoder.max_position_embeddings;
                let most = longest.next_power_of_two().min(positions).max(longest);
                (self.adapted.applied.session((self.device)()?, self.adapted.budget(), most)?, most)
            }
        };
        Ok(&mut self.session.insert(session).0)
    }
}

/// Metrics of an adapter on a split of its own data or of other data.
pub fn evaluate(
    adapted: &AdaptedModel,
    request: &EvalRequest,
    plugins: &PluginSet,
    device: Box<dyn Backend>,
    progress: impl FnMut(usize, usize),
) -> Result<Metrics> {
    let head = adapted.head(request.head.as_deref())?;
    let (task, encoded) = adapted.task_examples(request, plugins)?;
    let found = adapted.evaluate_encoded(device, &encoded, progress)?;
    let own = found.predictions.iter().filter_map(|all| adapted.by_head(all).into_iter().nth(head));
    let order = order(&adapted.heads()[head], &task).unwrap_or_default();
    let in_order =
        |p: Prediction| Prediction { logits: order.iter().filter_map(|&class| p.logits.get(class).copied()).collect() };
    let predictions = own.map(in_order).collect();
    let objective = adapted.heads()[head].objective()?;
    let metrics = objective.score(&task.metrics, &encoded, &Evaluation { predictions, ..found })?;
    Ok(metrics.name_labels(&task.labels))
}
