//! Choices among equivalent kernels, which only a measurement on the device can make: a lowering asks questions, and a
//! backend that can time kernels answers them.

use super::Lowering;
use sparta_graph::graph::TensorType;
use sparta_graph::ops::{Attention, Layout, Linear, SampledGrad, Sampling};
use sparta_graph::{Call, Choice, DType, Op, Operand, Place};
use std::collections::BTreeMap;
use std::time::Duration;

/// How a lowering chooses among kernels that differ only in the order of their sums.
#[derive(Clone, Copy, Debug, Default)]
pub enum Choosing<'c> {
    /// By rules, which know sizes alone.
    #[default]
    ByRule,
    /// As measured; what is not known yet is chosen by rule, and a [`Question`] asks about it.
    Measured(&'c BTreeMap<String, Choice>),
    /// This wherever it fits: for measurements.
    Only(&'c Choice),
}

/// A choice that is still to be made.
#[derive(Clone, Debug)]
pub struct Question {
    /// What the choice is for: its name in a [`Choosing::Measured`].
    pub name: String,
    /// What to time. All have the same operands: external tensors in order, inputs first.
    pub trials: Vec<Trial>,
    /// Contents of the operands for which zeros would not do, by position.
    pub contents: Vec<(usize, Vec<u32>)>,
    answer: Answer,
}

/// A call, to be lowered with [`Choosing::Only`] this choice.
#[derive(Clone, Debug)]
pub struct Trial {
    pub call: Call,
    pub choice: Choice,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    /// The choice of the fastest trial.
    Fastest,
    /// From the times of a sampled and of a dense gradient: how much longer a multiplication of the former takes.
    Cost,
}

/// The first trial is what the rule says; another must need less than this share of its time.
const CLEARLY: f64 = 0.95;
/// The product and the gradient that are timed are small enough to take a hundredth of the longest dispatch.
const OF_LONGEST: u64 = 100;
/// Rows and columns, and the inner dimension, above which products are alike.
const WIDE: usize = 4096;
const LONG: usize = 16384;
/// No dimension is shortened below this.
const SHORT: usize = 512;
/// A measured gradient takes one in this many elements.
const ONE_IN: usize = 64;
/// Attention is measured with at least this many rows.
const ATTENDED: usize = 128;
const MEASURED: &str = "a measurement";
/// The name of a tile's number of rows on the other side.
const OTHERS: &str = "others";
/// The name of a measured cost, and the largest.
const COST: &str = "cost";
const MOST_COST: u32 = 4096;

impl Question {
    /// The choice, given the time of each trial.
    pub fn answer(&self, times: &[Duration]) -> Choice {
        match self.answer {
            Answer::Fastest => {
                let mut seconds = times.iter().map(Duration::as_secs_f64).enumerate();
                let rule = seconds.next().map_or((0, f64::INFINITY), |(_, time)| (0, CLEARLY * time));
                let (best, _) = seconds.fold(rule, |best, other| if other.1 < best.1 { other } else { best });
                self.trials.get(best).map(|trial| trial.choice.clone()).unwrap_or_default()
            }
            Answer::Cost => {
                let [sampled, dense] = [0, 1].map(|i| times.get(i).map_or(0.0, Duration::as_secs_f64));
                let cost = ONE_IN as f64 * sampled / dense;
                // To the nearest power of two, so that repeated measurements agree.
                let cost = 2f64.powf(cost.log2().round().clamp(0.0, f64::from(MOST_COST.ilog2())));
                Choice::from([(COST.to_owned(), cost as u32)])
            }
        }
    }

    /// How to tile a product with operands of these types; `forms` begins with what the rule says.
    pub(super) fn product(
        name: String,
        layout: Layout,
        types: [DType; 2],
        [m, n, k]: [usize; 3],
        flops: u64,
        forms: Vec<Choice>,
    ) -> Question {
        let [m, n, k] = typical([m, n, k], flops);
        let (a, b) = match layout {
            Layout::Nt => ([m, k], [n, k]),
            Layout::Nn => ([m, k], [k, n]),
            Layout::Tn => ([k, m], [k, n]),
        };
        let op = Linear { output: Some(DType::F32), ..Linear::plain(layout) };
        let inputs = vec![TensorType::new(types[0], a), TensorType::new(types[1], b)];
        let call = call(op.into(), inputs, TensorType::f32([m, n]));
        let trials = forms.into_iter().map(|choice| Trial { call: call.clone(), choice }).collect();
        Question { name, trials, contents: Vec::new(), answer: Answer::Fastest }
    }

    /// What a sampled gradient costs, with dy and x of these types.
    pub(super) fn cost(name: String, [dy, x]: [DType; 2], flops: u64) -> Question {
        let [out, columns, rows] = typical([WIDE, WIDE / 2, SHORT], flops);
        let chosen = out * columns / ONE_IN;
        let inputs = vec![
            TensorType::new(dy, [rows, out]),
            TensorType::new(x, [rows, columns]),
            TensorType::new(DType::U32, [chosen]),
            TensorType::new(DType::U32, [out + 1]),
        ];
        let trial = |sampling| {
            let op = SampledGrad { scale: 1.0, sampling };
            Trial { call: call(op.into(), inputs.clone(), TensorType::f32([chosen])), choice: Choice::new() }
        };
        let trials = vec![trial(Sampling::Sampled), trial(Sampling::Tiled)];
        // One in each run of elements, at a varying position.
        let index = (0..chosen).map(|i| (i * ONE_IN + i * 37 % ONE_IN) as u32).collect();
        let row_ptr = (0..=out).map(|row| (row * columns / ONE_IN) as u32).collect();
        Question { name, trials, contents: vec![(2, index), (3, row_ptr)], answer: Answer::Cost }
    }

    /// Asks how many rows of the other side an attention tile should have, measured with this op on fewer rows. `spans`
    /// is the position of that input; the first of `others` is the rule's choice.
    pub(super) fn attention(
        name: String,
        op: &Attention,
        like: &Call,
        spans: usize,
        flops: u64,
        others: &[u32],
    ) -> Question {
        let all = like.inputs.get(spans).and_then(|spans| spans.ty.shape.first()).copied().unwrap_or(0);
        let of = |rows: usize| 4 * (rows * rows * op.heads * op.head_dim) as u64;
        let mut rows = all.min(SHORT);
        while rows > ATTENDED && of(rows) > flops / OF_LONGEST {
            rows /= 2;
        }
        let mut call = Call { label: MEASURED.into(), ..like.clone() };
        for (i, operand) in call.inputs.iter_mut().chain(&mut call.outputs).enumerate() {
            operand.place = Place::External(i);
            operand.ty.shape.iter_mut().take(1).filter(|length| **length == all).for_each(|length| *length = rows);
        }
        let choice = |&others: &u32| Choice::from([(OTHERS.to_owned(), others)]);
        let trials = others.iter().map(|others| Trial { call: call.clone(), choice: choice(others) }).collect();
        // Each row attends to all before it.
        let whole = [0, rows as u32].repeat(rows);
        Question { name, trials, contents: vec![(spans, whole)], answer: Answer::Fastest }
    }
}

/// The measured rows of a tile's other side in a choice.
pub(super) fn others_of(choice: &Choice) -> Option<u32> {
    choice.get(OTHERS).copied()
}

/// The measured cost in a choice, if it is one.
pub(super) fn cost_of(choice: &Choice) -> Option<u32> {
    choice.get(COST).copied().filter(|cost| (1..=MOST_COST).contains(cost))
}

/// The class of a dimension: products of one class share a choice.
pub(super) fn class(length: usize, most: usize) -> usize {
    length.min(most).next_power_of_two()
}

/// The classes of a product's m, n and k.
pub(super) fn classes([m, n, k]: [usize; 3]) -> [usize; 3] {
    [class(m, WIDE), class(n, WIDE), class(k, LONG)]
}

/// A smaller product that stands for one of these sizes: long dimensions are halved until it takes little time.
fn typical([m, n, k]: [usize; 3], flops: u64) -> [usize; 3] {
    let mut sizes = [m.min(WIDE), n.min(WIDE), k.min(LONG)];
    while 2 * sizes.iter().map(|&size| size as u64).product::<u64>() > flops / OF_LONGEST {
        let Some(longest) = sizes.iter_mut().filter(|size| **size > SHORT).max() else { break };
        *longest = (*longest / 2).next_multiple_of(64);
    }
    sizes
}

fn call(op: Op, inputs: Vec<TensorType>, output: TensorType) -> Call {
    let outputs = inputs.len();
    let operand = |(i, ty)| Operand { place: Place::External(i), ty };
    let inputs = inputs.into_iter().enumerate().map(operand).collect();
    Call { op, inputs, outputs: vec![operand((outputs, output))], label: MEASURED.into() }
}

impl<'a> Lowering<'a> {
    /// The choice by this name; notes that it was asked for, and the question if nobody has answered it and there is
    /// something to choose from.
    pub(super) fn chosen(
        &mut self,
        name: impl FnOnce() -> String,
        question: impl FnOnce(String) -> Question,
    ) -> Option<&'a Choice> {
        match self.bounds.choosing {
            Choosing::ByRule => None,
            Choosing::Only(choice) => Some(choice),
            Choosing::Measured(known) => {
                let name = name();
                let found = known.get(&name);
                if found.is_none() {
                    let question = question(name.clone());
                    if question.trials.len() < 2 {
                        return None;
                    }
                    self.questions.push(question);
                }
                self.asked.push(name);
                found
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::{Bounds, Lowered, MatrixUnits, Step, lower};
    use sparta_graph::DeviceKind;

    fn milliseconds(times: &[u64]) -> Vec<Duration> {
        times.iter().map(|&time| Duration::from_millis(time)).collect()
    }

    fn linear(rows: usize) -> Call {
        let shapes = [[rows, 512], [256, 512]].map(TensorType::f32);
        call(Linear::plain(Layout::Nt).into(), shapes.to_vec(), TensorType::f32([rows, 256]))
    }

    fn lowered(call: &Call, choosing: Choosing) -> Lowered {
        lower(call, Bounds { choosing, ..Bounds::new(DeviceKind::DiscreteGpu, 1 << 27) }).unwrap()
    }

    fn kernels(lowered: &Lowered) -> Vec<&'static str> {
        let name = |step: &Step| if let Step::Dispatch(dispatch) = step { Some(dispatch.kernel.name) } else { None };
        lowered.steps.iter().filter_map(name).collect()
    }

    #[test]
    fn the_rule_stays_unless_another_is_clearly_faster() {
        let known = BTreeMap::new();
        let question = lowered(&linear(300), Choosing::Measured(&known)).questions.remove(0);
        assert!(question.trials.len() > 3, "{question:?}");
        let answer = |times: &[u64]| question.answer(&milliseconds(times));
        assert_eq!(answer(&[100, 96, 97]), question.trials[0].choice);
        assert_eq!(answer(&[100, 94, 60, 70]), question.trials[2].choice);
        assert_eq!(answer(&[]), question.trials[0].choice);
    }

    #[test]
    fn known_choices_are_used_and_not_measured_again() {
        let mut known = BTreeMap::new();
        let first = lowered(&linear(300), Choosing::Measured(&known));
        let name = first.questions[0].name.clone();
        assert_eq!(name, "product f32 nt f32*f32 512x256x512");
        for trial in &first.questions[0].trials {
            known.insert(name.clone(), trial.choice.clone());
            let found = lowered(&linear(300), Choosing::Measured(&known));
            assert!(found.questions.is_empty() && found.asked == [name.clone()]);
            let expected =
                if trial.choice["pieces"] > 1 { &["product_partial", "linear_sum"][..] } else { &["linear"] };
            assert_eq!(kernels(&found), expected, "{:?}", trial.choice);
            // A smaller product of the class has the choice, too; the trial itself is lowered as it says.
            assert!(lowered(&linear(257), Choosing::Measured(&known)).questions.is_empty());
            assert_eq!(kernels(&lowered(&trial.call, Choosing::Only(&trial.choice))), expected);
        }
        assert_eq!(lowered(&linear(600), Choosing::Measured(&known)).questions.len(), 1, "another class");
        assert!(lowered(&linear(300), Choosing::ByRule).asked.is_empty());
    }

    /// What a file says is used only if a kernel can be made of it.
    #[test]
    fn a_choice_that_no_kernel_has_is_ignored() {
        let name = "product f32 nt f32*f32 512x256x512";
        let by_rule = lowered(&linear(300), Choosing::ByRule);
        for wrong in [
            &[("blocks", 3), ("pieces", 1), ("unroll", 1)][..],
            &[("blocks", 1), ("pieces", 0), ("unroll", 1)],
            &[("blocks", 2), ("pieces", 1), ("unroll", 7)],
            &[("blocks", 2)],
            &[],
        ] {
            let choice: Choice = wrong.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
            let known = BTreeMap::from([(name.to_owned(), choice)]);
            let found = lowered(&linear(300), Choosing::Measured(&known));
            assert_eq!(format!("{:?}", found.steps), format!("{:?}", by_rule.steps), "{wrong:?}");
        }
        let many = Choice::from([("blocks", 1), ("pieces", u32::MAX), ("unroll", 1)].map(|(n, x)| (n.to_owned(), x)));
        let known = BTreeMap::from([(name.to_owned(), many)]);
        let found = lowered(&linear(300), Choosing::Measured(&known));
        assert!(found.scratch <= 16 * 4 * 300 * 256, "no more pieces than tiles of k: {}", found.scratch);
    }

    #[test]
    fn the_measured_cost_decides_between_sampled_and_dense() {
        let sampled = |chosen: usize, choosing: Choosing| {
            let types = [[64, 80], [64, 128]].map(TensorType::f32).into_iter();
            let sets = [chosen, 81].map(|n| TensorType::new(DType::U32, [n]));
            let op = SampledGrad { scale: 1.0, sampling: Sampling::Auto };
            let lowered = lowered(&call(op.into(), types.chain(sets).collect(), TensorType::f32([chosen])), choosing);
            (kernels(&lowered).contains(&"sampled_grad"), lowered.questions)
        };
        let known = BTreeMap::new();
        let question = sampled(100, Choosing::Measured(&known)).1.remove(0);
        assert_eq!(question.name, "sampled_grad f32 f32*f32");
        let cost = |times| cost_of(&question.answer(&milliseconds(times)));
        assert_eq!(
            (cost(&[10, 10]), cost(&[30, 10]), cost(&[1, 2000]), cost(&[9000, 1])),
            (Some(64), Some(256), Some(1), Some(4096))
        );
        for (times, few, many) in [(&[10, 10], true, false), (&[10, 640], true, true), (&[640, 10], false, false)] {
            let known = BTreeMap::from([(question.name.clone(), question.answer(&milliseconds(times)))]);
            let found = [100, 200].map(|chosen| sampled(chosen, Choosing::Measured(&known)).0);
            assert_eq!(found, [few, many], "{times:?}");
        }
        let [(_, index), (_, row_ptr)] = &question.contents[..] else { panic!() };
        let columns = question.trials[0].call.inputs[1].ty.shape[1] as u32;
        for (row, ends) in row_ptr.windows(2).enumerate() {
            let chosen = &index[ends[0] as usize..ends[1] as usize];
            assert!(chosen.iter().all(|i| i / columns == row as u32), "row {row}: {chosen:?}");
        }
        assert_eq!(row_ptr.last().map(|&end| end as usize), Some(index.len()));
    }

    /// Attention on matrix units may have tiles of two heights.
    #[test]
    fn tiles_of_attention_are_measured_where_there_is_memory_for_both() {
        let (heads, head_dim) = (2, 32);
        let op = Attention {
            heads,
            kv_heads: heads,
            head_dim,
            scale: 1.0,
            window: None,
            soft_cap: None,
            dropout: 0.0,
            salt: 0,
        };
        let rows = 3000;
        let of_type = |dtype: DType, width: usize| TensorType::new(dtype, [rows, width]);
        let mut inputs = vec![of_type(DType::BF16, heads * head_dim); 3];
        inputs.push(of_type(DType::U32, 2));
        let mut attention = call(op.into(), inputs, of_type(DType::BF16, heads * head_dim));
        attention.outputs.push(Operand { place: Place::External(5), ty: of_type(DType::F32, heads) });
        let known = BTreeMap::new();
        let lowered = |memory: u32, call: &Call, choosing| {
            let units = Some(MatrixUnits { size: 16, subgroup: 32, vectors: true, transpose: false, memory });
            let bounds = Bounds { units, attention_units: units, choosing, ..Bounds::new(DeviceKind::Other, 1 << 27) };
            lower(call, bounds).unwrap()
        };
        let measured = Choosing::Measured(&known);
        assert!(lowered(MatrixUnits::MEMORY, &attention, measured).questions.is_empty());
        let question = lowered(MatrixUnits::MOST_MEMORY, &attention, measured).questions.remove(0);
        assert_eq!(question.name, "attention units 2x32 4096");
        for (trial, others) in question.trials.iter().zip([64, 32]) {
            assert_eq!(trial.call.inputs[3].ty.shape, [question.contents[0].1.len() / 2, 2]);
            let steps = lowered(MatrixUnits::MOST_MEMORY, &trial.call, Choosing::Only(&trial.choice)).steps;
            let of_tiles = steps.iter().filter_map(|step| match step {
                Step::Dispatch(dispatch) if dispatch.kernel.name == "attention_units" => Some(&dispatch.kernel),
                _ => None,
            });
            assert!(
                of_tiles.clone().count() == 2 && of_tiles.clone().all(|k| k.constants.contains(&("OTHERS", others)))
            );
        }
    }

    #[test]
    fn timed_products_are_small() {
        for (sizes, flops) in [([100_000, 100_000, 100_000], 2_000_000_000_000), ([4096, 16384, 2048], 100_000_000_000)]
        {
            let [m, n, k] = typical(sizes, flops);
            let little = (flops / OF_LONGEST).max(2 * (SHORT as u64).pow(3));
            assert!(2 * (m * n * k) as u64 <= little && m.min(n).min(k) >= SHORT / 2, "{m} {n} {k}");
        }
        assert_eq!(typical([8, 2048, 4096], 2_000_000_000_000), [8, 2048, 4096]);
    }
}
