//! Choices among equivalent kernels, made by timing them on the device.
//!
//! When a plan is prepared, its lowering asks for choices by name. What no earlier run has stored is measured with a buffer
//! of its own, and stored for the next run.

use crate::WgpuBackend;
use crate::cache::Cache;
use crate::prepared::PreparedStep;
use crate::profile::MEASUREMENT;
use crate::wait::IN_BROWSER;
use sparta_graph::plan::ALIGNMENT;
use sparta_graph::{BackendError, Call, Choice, DeviceKind, Plan, Tuned};
use sparta_kernels::{Bounds, Choosing, Lowered, Question, lower};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tracing::{debug, info, warn};
use web_time::Instant;

/// How often each trial runs; the fastest run counts. They alternate, so that all meet the same clock rates.
const ROUNDS: usize = 4;
/// How long the device works before it is timed, since its clock drops while it waits for kernels to be compiled.
const WARM_UP: Duration = Duration::from_millis(30);
/// Runs of a trial in a submission that the host's clock times.
const REPEATED: u32 = 4;

/// The choices of an open device.
pub(crate) struct Tuning {
    /// The device, and what is known of it.
    known: Tuned,
    /// The names that the plans so far have asked for, including those of a resumed run.
    asked: BTreeSet<String>,
    cache: Cache,
}

impl WgpuBackend {
    /// Lets [`Backend::autotune`](sparta_graph::Backend::autotune) measure a software driver as well, and store choices in this
    /// directory, or nowhere: for tests.
    pub fn tuning_in(mut self, directory: Option<std::path::PathBuf>) -> Self {
        (self.tunes_software, self.cache) = (true, Cache::at(directory));
        self
    }

    /// Starts tuning with what is stored and known; returns a warning if what is stored cannot be used.
    pub(crate) fn start_tuning(&mut self, known: Option<&Tuned>) -> Option<String> {
        let software = matches!(self.adapter.info.kind, DeviceKind::SoftwareGpu | DeviceKind::Cpu);
        if IN_BROWSER || software && !self.tunes_software {
            return None;
        }
        let device = self.described();
        let (choices, warning) = match self.cache.load(&device) {
            Ok(choices) => (choices, None),
            Err(reason) => (BTreeMap::new(), Some(format!("{reason}; kernels are measured again"))),
        };
        let mut tuned = Tuned { device, choices };
        let known = known.filter(|known| known.device == tuned.device).map(|known| known.choices.clone());
        let known = known.unwrap_or_default();
        let asked = known.keys().cloned().collect();
        tuned.choices.extend(known);
        info!("{} measured choices are known for {}", tuned.choices.len(), tuned.device);
        self.tuning = Some(Tuning { known: tuned, asked, cache: self.cache.clone() });
        warning
    }

    /// What measured times depend on.
    pub(crate) fn described(&self) -> String {
        let info = &self.adapter.info;
        let multiplier = info.multiplier.as_deref().unwrap_or_default();
        format!("{}, {}, {multiplier}, kernels {}", info.name, info.driver, Cache::kernels())
    }

    /// The choices that the plans so far depend on.
    pub(crate) fn chosen(&self) -> Option<Tuned> {
        let Tuning { known, asked, .. } = self.tuning.as_ref()?;
        let choices = asked.iter().filter_map(|name| Some((name.clone(), known.choices.get(name)?.clone())));
        let measured = choices.filter(|(_, choice)| !choice.is_empty());
        Some(Tuned { device: known.device.clone(), choices: measured.collect() })
    }

    /// Lowers all calls of a plan, and makes the choices that they need.
    pub(crate) fn lower_plan(&mut self, plan: &Plan) -> Result<Vec<Lowered>, BackendError> {
        let (mut lowered, mut measured) = (Vec::new(), BTreeMap::new());
        let start = Instant::now();
        for call in &plan.calls {
            lowered.push(loop {
                let lowered = self.lower_call(call)?;
                if lowered.questions.is_empty() {
                    break lowered;
                }
                for question in lowered.questions {
                    self.answer(&question, &mut measured)?;
                }
            });
        }
        if let Some(tuning) = &mut self.tuning {
            tuning.asked.extend(lowered.iter_mut().flat_map(|lowered| std::mem::take(&mut lowered.asked)));
            if !measured.is_empty() {
                info!("{} choices were measured in {:.2?}", measured.len(), start.elapsed());
                if let Err(reason) = tuning.cache.add(&tuning.known.device, measured) {
                    warn!("measured choices are not stored: {reason}");
                }
            }
        }
        Ok(lowered)
    }

    fn lower_call(&self, call: &Call) -> Result<Lowered, BackendError> {
        let known = self.tuning.as_ref().map(|tuning| &tuning.known.choices);
        let choosing = known.map_or(Choosing::ByRule, Choosing::Measured);
        lower(call, Bounds { choosing, ..self.bounds })
            .map_err(|reason| self.op(&format!("{} ({})", call.op.name(), call.label), reason))
    }

    /// Measures, and notes the choice. A choice that cannot be measured, for example for lack of memory, is made by the
    /// rule in this session, and is neither stored nor recorded.
    ///
    /// Errors: the loss of the device.
    fn answer(&mut self, question: &Question, measured: &mut BTreeMap<String, Choice>) -> Result<(), BackendError> {
        let choice = match self.measure(question) {
            Ok(times) => {
                let choice = question.answer(&times);
                debug!("{}: {choice:?} of {times:?}", question.name);
                measured.insert(question.name.clone(), choice.clone());
                choice
            }
            Err(lost @ BackendError::DeviceLost { .. }) => return Err(lost),
            Err(error) => {
                warn!("{} is chosen by rule: {error}", question.name);
                Choice::new()
            }
        };
        if let Some(tuning) = &mut self.tuning {
            tuning.known.choices.insert(question.name.clone(), choice);
        }
        Ok(())
    }

    /// The time of each trial.
    fn measure(&mut self, question: &Question) -> Result<Vec<Duration>, BackendError> {
        let Some(first) = question.trials.first() else { return Ok(Vec::new()) };
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        // In one buffer, as most are in a run: what is only read is then bound like what is written, and the pipelines
        // that are timed are those that run.
        let (mut offsets, mut end) = (Vec::new(), 0);
        for operand in first.call.inputs.iter().chain(&first.call.outputs) {
            offsets.push(end);
            end += operand.ty.bytes().next_multiple_of(ALIGNMENT) as u64;
        }
        let operands = self.create(end, usage, MEASUREMENT)?;
        for (i, words) in &question.contents {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            self.queue.write_buffer(&operands, offsets[*i], &bytes);
        }
        let externals = offsets.into_iter().map(|offset| (operands.clone(), offset)).collect();
        let mut lowered = Vec::new();
        for trial in &question.trials {
            let bounds = Bounds { choosing: Choosing::Only(&trial.choice), ..self.bounds };
            lowered.push(lower(&trial.call, bounds).map_err(|reason| self.op(&question.name, reason))?);
        }
        let scratch = lowered.iter().map(|lowered| lowered.scratch).max().unwrap_or(0);
        let scratch = self.create(scratch as u64, wgpu::BufferUsages::STORAGE, MEASUREMENT)?;
        let plan = Plan {
            arena: 0,
            segments: vec![],
            tf32: false,
            externals: vec![],
            calls: question.trials.iter().map(|trial| trial.call.clone()).collect(),
        };
        let (trials, _) = self.prepare_calls(&plan, &lowered, vec![], externals, scratch)?;
        self.check(MEASUREMENT)?;
        self.best_times(&trials)
    }

    /// The time of each trial's fastest run.
    ///
    /// Errors: a clock that says nothing; a device that fails.
    fn best_times(&self, trials: &[Vec<PreparedStep>]) -> Result<Vec<Duration>, BackendError> {
        let times = |trials: &[Vec<PreparedStep>]| self.time_calls(trials.iter().map(Vec::as_slice), REPEATED);
        let start = Instant::now();
        while start.elapsed() < WARM_UP {
            times(&trials[..1])?;
        }
        let mut best = vec![Duration::MAX; trials.len()];
        for _ in 0..ROUNDS {
            for (best, time) in best.iter_mut().zip(times(trials)?) {
                // Zero: the counter wrapped.
                *best = if time.is_zero() { *best } else { time.min(*best) };
            }
        }
        match best.contains(&Duration::MAX) {
            true => Err(self.op(MEASUREMENT, "the device's clock did not advance")),
            false => Ok(best),
        }
    }
}
