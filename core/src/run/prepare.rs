//! From a configuration to everything a run needs, before anything is allocated on a device.

use super::answers;
use super::blocks::{blocks_of, expect_blocks, quantized_note};
use super::encode::{Coder, Splits, max_length};
use super::epochs::{Epochs, StepSize};
use super::score::{Scoring, restore, scorings};
use super::together::{deal, deal_within};
use crate::adapter::{align_head, score_objective};
use crate::job::{Needs, PaperMemory, PrecisionChoice, RunConfig, RunPlan, TrainablePlan, body_size};
use crate::method::Adaptation;
use crate::method::layers::check_merge;
use crate::method::options;
use crate::model::{Decoder, HEAD, IMAGES, check_weights};
use crate::plugin::{PluginKind, PluginSet, Recorded, UsedPlugin};
use crate::splits;
use crate::text::{ChatTemplate, Encoder, Instruct, Padding, PromptPlan, TrainOn};
use crate::train::objective::{Classification, MultiLabel, NextToken, Regression};
use crate::train::{self, Batch, Demand, Encoded, HeadInit, MICRO_BATCH_TOKENS, Objective, Setup, Target};
use crate::weights::Weights;
use crate::{Error, Result, decoder};
use sparta_graph::{DType, DeviceInfo};
use sparta_plugin::method::{Options, Parameter, Role};
use sparta_plugin::task::{self, Example, OpenRequest, Task, TaskInfo, TaskPluginInfo};
use std::path::Path;
use std::sync::Arc;

/// A run that can start.
pub struct Prepared {
    pub config: RunConfig,
    /// As determined by the data.
    pub task: TaskInfo,
    pub task_options: Options,
    pub weights: Weights,
    pub setup: Setup,
    pub train: Vec<Encoded>,
    pub dev: Vec<Encoded>,
    pub test: Vec<Encoded>,
    pub epochs: Epochs,
    /// The learning rate, which defaults to the method's.
    pub lr: f64,
    pub total_steps: usize,
    /// Bytes of each segment of the arena.
    pub arena: Vec<usize>,
    /// Whether the method has operations of its own.
    pub own_operations: bool,
    /// The scores to compute before training, which choose what is trained.
    pub scorings: Vec<Scoring>,
    pub plan: RunPlan,
}

impl Prepared {
    /// The chosen examples as batches within the token budget, each of examples of the same weight.
    pub fn micro_batches(&self, chosen: &[usize], tokens: usize) -> Result<Vec<Batch>> {
        let (examples, weights) = (&self.train, &self.task.weights);
        let weight = |i: &usize| match examples[*i].target {
            Target::Class(class) => weights.get(class as usize).map_or(1.0, |&weight| weight as f32),
            _ => 1.0,
        };
        let lengths = |chosen: &[usize]| chosen.iter().map(|&i| examples[i].tokens.len()).collect::<Vec<_>>();
        let mut batches = Vec::new();
        for part in deal(&lengths(chosen), self.config.micro_batches.unwrap_or(1)) {
            let mut chosen: Vec<usize> = part.into_iter().map(|place| chosen[place]).collect();
            chosen.sort_by(|a, b| weight(a).total_cmp(&weight(b)));
            for equal in chosen.chunk_by(|a, b| weight(a) == weight(b)) {
                for part in deal_within(&lengths(equal), tokens) {
                    let batch = self.setup.objective.pack(part.iter().map(|&place| &examples[equal[place]]))?;
                    batches.push(Batch { weight: weight(&equal[0]), ..batch });
                }
            }
        }
        Ok(batches)
    }

    /// Plans again with the elements chosen by scores, whose number per tensor was not known before.
    ///
    /// Errors: they do not fit the device.
    pub fn chosen(&mut self, device: &DeviceInfo) -> Result<()> {
        let planned = train::layout::plan_memory(&self.setup, device)?;
        (self.arena, self.plan.memory) = (planned.arena, planned.memory);
        self.plan.trainable = TrainablePlan::new(&self.setup.adaptation);
        self.plan.check_fit()
    }

    /// The length of the run that applies at a step.
    pub fn length_at(&self, step: usize) -> usize {
        let earlier = self.config.earlier_lengths.iter().find(|length| step < length.until);
        earlier.map_or(self.total_steps, |length| length.total_steps)
    }
}

/// The standard deviation of a new head: 0.06 / sqrt(hidden), so that training starts at ln(classes).
pub fn default_head_std(hidden: usize) -> f64 {
    0.06 / (hidden as f64).sqrt()
}

/// The plan's note on a model without weights.
const NO_WEIGHTS: &str = "the model has no weight files here; sizes and types come from its config.json";

/// The tensors of a model according to its configuration. A new head is trained, and kept in f32.
pub fn expected_parameters(decoder: &Decoder, objective: &dyn Objective) -> Vec<Parameter> {
    let mut parameters = decoder.parameters(objective.head());
    parameters.iter_mut().filter(|p| p.role == Role::Head).for_each(|p| p.dtype = DType::F32);
    parameters
}

/// Reads model, data and method, checks that they are consistent, and plans steps and memory. A model without weights
/// can be planned for; to train, check [`Weights::check_present`].
///
/// Errors: any invalid input, by name; a run without steps.
pub fn prepare(config: &RunConfig, plugins: &PluginSet, device: &DeviceInfo) -> Result<Prepared> {
    prepare_for(config, plugins, device, 1)
}

/// [`prepare`] for this many processes, each of which has such a device.
pub fn prepare_for(config: &RunConfig, plugins: &PluginSet, device: &DeviceInfo, processes: usize) -> Result<Prepared> {
    config.check()?;
    let as_many = processes > 1 && config.micro_batches.is_none() && config.micro_batch_tokens.is_none();
    let micro_batches = if as_many { Some(processes) } else { config.micro_batches };
    let config = &RunConfig { micro_batches, ..config.clone() };
    let recorded = Recorded::new(&config.plugins, plugins)?;
    let used = used_plugins(config, plugins, device)?;
    used.iter().try_for_each(|plugin| recorded.check(plugin.kind, &plugin.name))?;
    let method = plugins.method(&config.method)?;
    let owner = format!("method {}", config.method);
    let options = options::check(&owner, &method.info().options, &options::given(&config.method_options))?;
    let decoder = decoder::open(&config.model)?;
    let mut weights = Weights::find(&config.model)?;
    let source = read_task(config, plugins, &decoder, &mut weights)?;
    let Source { task, found_task, task_options, objective, head_init, instruct, prompt, data, note } = source;
    let (mut parameters, absent) = match weights.is_absent() {
        true => (expected_parameters(&decoder, &*objective), Some(NO_WEIGHTS.to_owned())),
        false => (check_weights(&decoder, &weights, objective.head())?, None),
    };

    let blocks = |parameter: &Parameter| blocks_of(parameter, config.quantize, Some(&weights));
    let precision = config.precision.choose(&parameters, blocks, device)?;
    let decoded = precision.precision.activations;
    if (decoded != DType::F32 || config.quantize.is_some()) && absent.is_none() {
        weights.quantize(config.quantize);
        weights.decode_as(decoded);
        parameters = check_weights(&decoder, &weights, objective.head())?;
    }
    let mut adaptation = match absent {
        Some(_) => Adaptation::expected(method.clone(), parameters, options)?,
        None => Adaptation::new(method.clone(), parameters, options, config.seed, &weights)?,
    };
    adaptation.precision = precision.precision;
    match absent {
        Some(_) => expect_blocks(&mut adaptation, config.quantize, None),
        None => adaptation.keep_blocks(|parameter| weights.get(&parameter.name)?.blocks()),
    }
    adaptation.check_trainable()?;
    restore(config, &mut adaptation)?;
    if config.residual {
        adaptation.add_residual()?;
    }
    check_merge(&adaptation)?;
    let lr = config.lr.unwrap_or(adaptation.info.default_lr);
    let size = config.batch_tokens.map_or(StepSize::Examples(config.batch_size), StepSize::Tokens);
    let lengths = data.train.iter().map(|e| e.tokens.len()).collect();
    let epochs = Epochs::new(config.seed, lengths, size, config.control.epochs);
    let demand = Demand { shared: processes > 1, ..demand(config, &decoder, &adaptation, &task, &epochs, &data) };
    let optimization = config.optimization()?;
    let groups = optimization.group_plans(&adaptation.trained())?;
    let mut setup = Setup {
        decoder,
        adaptation,
        objective,
        optimization,
        dropout: config.dropout as f32,
        recompute: false,
        seed: config.seed,
        head_init,
        limits: demand.limits(MICRO_BATCH_TOKENS),
    };
    let scorings = scorings(&setup, &demand, device)?;
    let total_steps = config.control.max_steps.map_or(epochs.total(), |max| max.min(epochs.total()));
    if total_steps == 0 {
        return Err(Error::Usage("there is nothing to train: 0 steps; give --epochs and --max-steps above 0".into()));
    }
    let images = setup.decoder.reads_images.then(|| images_note(&weights)).flatten();
    let strange: Vec<String> = used.iter().filter_map(|used| plugins.note(used.kind, &used.name)).collect();
    let steps = step_note(config.control.max_steps, epochs.total());
    let acts = setup.adaptation.steps.map(|steps| match steps.every {
        1 => "the method acts after each step".to_owned(),
        every => format!("the method acts after every {every} steps"),
    });
    let fit = train::fit(&mut setup, &demand, config.micro_batch_tokens, config.recompute, device)?;
    let micro_batch_tokens = Some(fit.micro_batch_tokens);
    let plan = RunPlan {
        model: config.model.clone(),
        family: setup.decoder.family.model_type().to_owned(),
        parameters: setup.adaptation.parameters.iter().map(|p| p.numel()).sum(),
        method: setup.adaptation.info.name.clone(),
        method_version: setup.adaptation.info.version.clone(),
        options: setup.adaptation.options.clone(),
        paper: PaperMemory::new(body_size(&setup.adaptation), setup.adaptation.trained_in_body()),
        trainable: TrainablePlan::new(&setup.adaptation),
        task: task.id.clone(),
        labels: task.labels.clone(),
        target: task.target,
        primary: task.primary.clone(),
        task_options: task_options.clone(),
        prompt,
        data: data.plan.clone(),
        batch_size: config.batch_size,
        batch_tokens: config.batch_tokens,
        micro_batches: setup.limits.micro_batches,
        micro_batch_parts: config.micro_batches.filter(|_| setup.limits.micro_batches),
        together: None,
        recompute: setup.recompute,
        steps_per_epoch: epochs.first(),
        total_steps,
        optimizer: setup.optimization.optimizer.title(),
        groups,
        lr,
        schedule: config.schedule,
        seed: config.seed,
        device: device.clone(),
        precision,
        needs: Needs::new(&fit, config.micro_batch_tokens, config.recompute),
        memory: fit.planned.memory,
        scoring: scorings.iter().map(|scoring| scoring.plan.clone()).collect(),
        notes: recorded
            .accepted
            .into_iter()
            .chain(absent)
            .chain(note)
            .chain(images)
            .chain(quantized_note(&setup.adaptation))
            .chain(strange)
            .chain(steps)
            .chain(acts)
            .collect(),
    };
    let precision = PrecisionChoice::of(setup.adaptation.precision);
    let exchanged = config.plugins.iter().filter(|was| !used.contains(was)).cloned();
    let earlier_plugins = config.earlier_plugins.iter().cloned().chain(exchanged).collect();
    let config = RunConfig {
        found_task,
        instruct,
        micro_batch_tokens,
        precision,
        plugins: used,
        earlier_plugins,
        ..config.clone()
    };
    let (arena, own_operations) = (fit.planned.arena, fit.planned.own_operations);
    let Splits { train, dev, test, .. } = data;
    Ok(Prepared {
        config,
        task,
        task_options,
        weights,
        setup,
        train,
        dev,
        test,
        epochs,
        lr,
        total_steps,
        arena,
        own_operations,
        scorings,
        plan,
    })
}

/// The plugins among the method, the task and the backend.
fn used_plugins(config: &RunConfig, plugins: &PluginSet, device: &DeviceInfo) -> Result<Vec<UsedPlugin>> {
    let used = [
        plugins.used(PluginKind::Method, &config.method)?,
        plugins.used(PluginKind::Task, &plugins.task(&config.task)?.0.info().name)?,
        plugins.used(PluginKind::Backend, device.id.split(':').next().unwrap_or_default())?,
    ];
    Ok(used.into_iter().flatten().collect())
}

/// A note on the effect of --max-steps on the epochs, if any.
fn step_note(max_steps: Option<usize>, epochs: usize) -> Option<String> {
    match max_steps {
        Some(max) if max > epochs => {
            Some(format!("--max-steps is {max}, but the run ends after its epochs, at step {epochs}; see --epochs"))
        }
        Some(max) if max < epochs => {
            Some(format!("--max-steps ends the run after step {max} of {epochs} in its epochs"))
        }
        _ => None,
    }
}

/// What a run learns, and its data.
struct Source {
    /// As determined by the data.
    task: TaskInfo,
    /// The same, if it differs from the plugin's description.
    found_task: Option<TaskInfo>,
    task_options: Options,
    objective: Arc<dyn Objective>,
    head_init: HeadInit,
    instruct: Option<Instruct>,
    prompt: Option<PromptPlan>,
    data: Splits,
    /// The plan's note on the head.
    note: Option<String>,
}

/// The objective of a task: its labels, or the texts themselves.
pub fn objective_of(task: &TaskInfo) -> Arc<dyn Objective> {
    let outputs = task.labels.len();
    match task.target() {
        task::Target::Class => Arc::new(Classification { classes: outputs }),
        task::Target::Classes => Arc::new(MultiLabel { labels: outputs }),
        task::Target::Number => Arc::new(Regression {}),
        task::Target::Tokens => Arc::new(NextToken {}),
    }
}

/// The training target of an example.
pub fn target(task: &TaskInfo, example: &Example) -> Target {
    match task.target() {
        task::Target::Class => Target::Class(example.label),
        task::Target::Classes => {
            let has = |label: usize| f32::from(u8::from(example.labels.contains(&(label as u32))));
            Target::Numbers((0..task.labels.len()).map(has).collect())
        }
        task::Target::Number => Target::Numbers(vec![example.number.map_or(f32::NAN, |number| number as f32)]),
        task::Target::Tokens => Target::Tokens(None),
    }
}

/// The options of a task's plugin, checked.
pub fn task_options(plugin: &TaskPluginInfo, config: &RunConfig) -> Result<Options> {
    options::check(&format!("task {}", config.task), &plugin.options, &options::given(&config.task_options))
}

/// A task's examples as read.
pub struct Read {
    /// As determined by the data.
    pub task: TaskInfo,
    /// The same, if it differs from the plugin's description.
    found_task: Option<TaskInfo>,
    task_options: Options,
    objective: Arc<dyn Objective>,
    pub encoder: Encoder,
    pub data: splits::Splits,
    /// The plan's note on the head, or on how conversations are formatted.
    pub note: Option<String>,
}

/// Reads the examples of a task; if the model's weights are given, checks its head against the labels.
pub fn read(config: &RunConfig, plugins: &PluginSet, decoder: &Decoder, weights: Option<&mut Weights>) -> Result<Read> {
    let (plugin, described) = plugins.task(&config.task)?;
    let task_options = task_options(plugin.info(), config)?;
    let request =
        OpenRequest { options: task_options.clone(), ..OpenRequest::new(described.id.clone(), config.data.clone()) };
    let open = || plugin.open(&request);
    let source = splits::Source::new(&open, &request.data);
    let opened = splits::open(&source, &described)?;
    let task = opened.task.clone();
    let objective = objective_of(&task);
    let labelled = match objective.pools() {
        true => Some(labelled_encoder(config, decoder, weights, &task)?),
        false => None,
    };
    let data = splits::load(opened, &splits::SPLITS, config.seed)?;
    let (encoder, note) = match labelled {
        Some(labelled) => labelled,
        None => unlabelled_encoder(config, decoder, &data)?,
    };
    encoder.tokenizer().check_vocab(decoder.vocab_size)?;
    let found_task = (task != described).then(|| task.clone());
    Ok(Read { task, found_task, task_options, objective, encoder, data, note })
}

/// Reads the texts of a task, with their labels.
fn read_task(config: &RunConfig, plugins: &PluginSet, decoder: &Decoder, weights: &mut Weights) -> Result<Source> {
    let Read { task, found_task, task_options, objective, encoder, data, note } =
        read(config, plugins, decoder, Some(weights))?;
    let head_init = head_init(config, decoder, weights, &encoder)?;
    let prompt = data.train.first().map(|example| encoder.plan(example)).transpose()?.flatten();
    let coder = Coder {
        encoder: &encoder,
        target: &|example| target(&task, example),
        max_length: max_length(config, decoder),
        positions: decoder.max_position_embeddings,
    };
    let data = coder.splits(config, data)?;
    let instruct = encoder.instruct().cloned();
    Ok(Source { task, found_task, task_options, objective, head_init, instruct, prompt, data, note })
}

/// The encoder of a task with labels, and a note on the model's own head.
///
/// Errors: an option for answers; those of [`own_head`] and of the encoder.
fn labelled_encoder(
    config: &RunConfig,
    decoder: &Decoder,
    weights: Option<&mut Weights>,
    task: &TaskInfo,
) -> Result<(Encoder, Option<String>)> {
    if config.train_on != TrainOn::Answers {
        return Err(Error::Usage(format!("task {} has labels: leave out --train-on", task.id)));
    }
    let note = weights.map(|weights| own_head(config, decoder, weights, task)).transpose()?.flatten();
    let padding = Padding::of_adapter(decoder.pad_token_id);
    Ok((Encoder::open(&config.model, padding, task, config.instruct.as_ref())?, note))
}

/// The encoder of a task that learns tokens, and a note on how conversations are formatted.
///
/// Errors: an option for labels, or for turns if there are none; those of the encoder.
fn unlabelled_encoder(
    config: &RunConfig,
    decoder: &Decoder,
    data: &splits::Splits,
) -> Result<(Encoder, Option<String>)> {
    let all = || data.train.iter().chain(&data.dev).chain(&data.test);
    let (turns, plain) = (has_turns(all()), all().all(Example::is_plain));
    let instruct = config.instruct.as_ref();
    let asked = instruct.is_some_and(|instruct| instruct.prompt.is_some() || instruct.verbalizers.is_some());
    let given = [
        ("has no labels", "--prompt and --verbalizers", asked),
        ("has no labels", "--head-init-std", config.head_init_std.is_some()),
        ("has no labels", "--new-head", config.new_head),
        ("has no turns of a conversation", "--instruct", instruct.is_some() && !turns),
        ("has no answers", "--train-on", config.train_on != TrainOn::Answers && plain),
    ];
    if let Some((what, option, _)) = given.iter().find(|(.., given)| *given) {
        return Err(Error::Usage(format!("task {} {what}: leave out {option}", data.task.id)));
    }
    let encoder = lesson_encoder(&config.model, decoder, Some(config), turns)?;
    let trained = match config.train_on {
        TrainOn::Answers => "the answers",
        TrainOn::All => "all tokens",
        TrainOn::Last => "the last answer of each",
    };
    let written = match encoder.instruct() {
        Some(_) => "conversations are formatted by the model's chat template",
        None => "texts are concatenated, followed by the end-of-text token",
    };
    Ok((encoder, (!plain).then(|| format!("{written}; the loss covers {trained}"))))
}

/// Whether any of the examples is a conversation.
pub fn has_turns<'a>(examples: impl IntoIterator<Item = &'a Example>) -> bool {
    examples.into_iter().any(|example| !example.messages.is_empty())
}

/// The encoder of examples whose tokens are learned, with or without turns: as a run is configured, or with the model's
/// chat template if it has one.
///
/// Errors: those of [`Encoder::of_lessons`].
pub fn lesson_encoder(model: &Path, decoder: &Decoder, config: Option<&RunConfig>, turns: bool) -> Result<Encoder> {
    let given = config.and_then(|config| config.instruct.clone());
    let refused = config.is_some_and(|config| config.no_template);
    let instruct = match given {
        _ if !turns => None,
        None if !refused && ChatTemplate::is_in(model)? => Some(Instruct::new(None, None)),
        given => given,
    };
    let train_on = config.map_or(TrainOn::Answers, |config| config.train_on);
    Encoder::of_lessons(model, instruct.as_ref(), train_on, decoder.eos_token_ids.first().copied())
}

/// The model's own head in the order of the task's labels, unless a new one is requested, and a note on it.
///
/// Errors: a head whose labels, or their kind, differ; an option for a new head.
fn own_head(config: &RunConfig, decoder: &Decoder, weights: &mut Weights, task: &TaskInfo) -> Result<Option<String>> {
    if config.new_head {
        weights.remove(HEAD);
    }
    let note = align_head(weights, decoder, &task.labels)?;
    if note.is_some() && config.head_init_std.is_some() {
        return Err(Error::Usage(format!(
            "--head-init-std is for a new head, but {} already has one, {HEAD}: leave it out, or add --new-head",
            config.model.display()
        )));
    }
    let (own, wanted) = (score_objective(decoder, task.labels.len()), objective_of(task).name());
    match note.is_some() && own != wanted {
        true => Err(Error::Usage(format!(
            "{}: its head is for {own}, the task is {wanted}: train a new one with --new-head",
            config.model.display()
        ))),
        false => Ok(note),
    }
}

/// A note that tensors for images are not used.
fn images_note(weights: &Weights) -> Option<String> {
    let of_images = |name: &str| IMAGES.iter().any(|prefix| name.starts_with(prefix));
    let count = weights.names().filter(|name| of_images(name)).count();
    (count > 0).then(|| format!("only text is supported: the model's {count} tensors for images are left out"))
}

/// Initial values of the head: the vocabulary rows of the prompt's words, or else normal values.
///
/// Errors: a model with its own head, which would be used instead.
fn head_init(config: &RunConfig, decoder: &Decoder, weights: &Weights, encoder: &Encoder) -> Result<HeadInit> {
    let words = encoder.verbalizers();
    if words.is_empty() {
        let std = config.head_init_std.unwrap_or_else(|| default_head_std(decoder.hidden_size));
        return Ok(HeadInit::Normal { std });
    }
    if config.head_init_std.is_some() {
        return Err(Error::Usage(
            "--instruct takes the head's first values from the model: leave out --head-init-std".into(),
        ));
    }
    if weights.get(HEAD).is_some() {
        let model = config.model.display();
        return Err(Error::Usage(format!(
            "{model} is already a classifier, with {HEAD}: train it without --instruct, or with --new-head"
        )));
    }
    Ok(HeadInit::VocabularyRows(words.iter().map(|word| word.token).collect()))
}

fn demand(
    config: &RunConfig,
    decoder: &Decoder,
    adaptation: &Adaptation,
    task: &TaskInfo,
    epochs: &Epochs,
    data: &Splits,
) -> Demand {
    let weighted = !task.weights.is_empty();
    let longest = |examples: &[Encoded]| examples.iter().map(|e| e.tokens.len()).max().unwrap_or(1);
    let longest_train = longest(&data.train);
    Demand {
        batch: match config.batch_tokens {
            Some(_) => data.train.len(),
            None => config.batch_size.min(data.train.len()),
        },
        largest_batch: epochs.largest(),
        longest_train,
        longest: longest_train.max(longest(&data.dev)).max(longest(&data.test)),
        head_features: task.target() != task::Target::Tokens
            && adaptation.head_only()
            && adaptation.steps.is_none()
            && config.dropout == 0.0
            && !weighted,
        cache: answers::context(&data.dev, config.control.answers, decoder),
        split: weighted || config.micro_batches.is_some_and(|parts| parts > 1),
        shared: false,
    }
}
