//! Losses: on rows of logits, on chunks of logits that are never stored, on single elements.

use super::case::{Build, Case};
use super::naive;
use sparta_graph::ops::{
    BinaryCrossEntropy, CrossEntropy, IGNORED, Layout, LinearCrossEntropy, ScaleBy, SquaredError, step,
};
use sparta_graph::{DType, Op};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    let losses = [(1, 1), (1, 2), (3, 3), (2, 7), (17, 33), (5, 300), (64, 65), (7, 257), (130, 2), (2, 4099)];
    for (i, (rows, classes)) in losses.into_iter().enumerate() {
        cases.push(cross_entropy(rows, classes, [0, 3, 1][i % 3], [None, None, None, Some(1.5)][i % 4]));
    }
    cases.push(cross_entropy(3, 5, 1, None));
    cases.push(cross_entropy(70_001, 2, 2, Some(0.75)));
    cases.push(huge_logits());
    // Fewer rows than a chunk, a chunk, one more, several chunks.
    for (i, size) in
        [[1, 2, 3], [5, 7, 33], [128, 33, 5], [129, 65, 17], [300, 257, 9], [0, 3, 2]].into_iter().enumerate()
    {
        for soft_cap in [None, Some(1.25)] {
            let head = [Head::Dense, Head::Frozen, Head::Chosen][(i + usize::from(soft_cap.is_some())) % 3];
            let weight = [DType::F32, DType::BF16, DType::F16][i % 3];
            cases.push(linear_cross_entropy(size, soft_cap, head, weight));
        }
    }
    cases.push(linear_cross_entropy([257, 41, 12], None, Head::Chosen, DType::F32));
    cases.push(linear_cross_entropy([257, 41, 12], Some(2.0), Head::Dense, DType::BF16));
    // The weight takes several bindings on a device that splits tensors.
    cases.push(linear_cross_entropy([5, 2_000, 64], None, Head::Dense, DType::BF16));
    for shape in [[1, 1], [2, 7], [33, 4], [7, 300], [20_001, 1], [5, 65]] {
        cases.push(element_loss("binary_cross_entropy", BinaryCrossEntropy {}.into(), shape, |x, y| {
            (1.0 + x.exp()).ln() - y * x
        }));
        cases.push(element_loss("squared_error", SquaredError {}.into(), shape, |x, y| (x - y) * (x - y)));
    }
    for n in [1, 65, 70_001] {
        cases.push(scale_by(n));
    }
    cases
}

fn capped(x: f64, cap: Option<f32>) -> f64 {
    cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh())
}

/// Every `ignored`-th label is ignored; 0: none, 1: all.
fn cross_entropy(rows: usize, classes: usize, ignored: usize, soft_cap: Option<f32>) -> Case {
    Case::new(format!("cross_entropy {rows}x{classes}, every {ignored} ignored, cap {soft_cap:?}"), move |b| {
        b.refusable = rows > 20_000;
        let logits = b.normal(&[rows, classes]);
        let skipped = |r: usize| ignored > 0 && r % ignored == ignored - 1;
        let labels: Vec<usize> =
            (0..rows).map(|r| if skipped(r) { IGNORED as usize } else { b.random.below(classes) }).collect();
        let label_input = b.u32s(&[rows], labels.iter().copied());
        let weight = 1.0 / rows as f64;
        let scalars = b.step(&[(step::LR, 7.0), (step::LOSS_WEIGHT, weight)]);
        let weight = b.of(scalars)[step::LOSS_WEIGHT];
        let outputs = b.apply(CrossEntropy { soft_cap }, &[logits, label_input, scalars]);
        let values: Vec<f64> = b.of(logits).into_iter().map(|x| capped(x, soft_cap)).collect();
        let lse: Vec<f64> = values.chunks(classes).map(naive::log_sum_exp).collect();
        let loss = |r: usize| if skipped(r) { 0.0 } else { lse[r] - values[r * classes + labels[r]] };
        b.expect(outputs[0], vec![weight * (0..rows).map(loss).sum::<f64>()]);
        b.expect(outputs[1], lse.clone());
        b.seed(outputs[0]);
        b.wrt(&[logits]);
    })
}

fn huge_logits() -> Case {
    Case::new("cross_entropy of huge logits", |b| {
        let values = vec![1e4, -1e4, 0.0, 88.0, 89.0, 90.0, -1e4, -1e4, -1e4, 300.0, -300.0, 299.0];
        let logits = b.f32s(&[4, 3], values.clone());
        let labels = b.u32s(&[4], [1, 0, 2, 0]);
        let scalars = b.step(&[(step::LOSS_WEIGHT, 0.25)]);
        let outputs = b.apply(CrossEntropy::default(), &[logits, labels, scalars]);
        let lse: Vec<f64> = values.chunks(3).map(naive::log_sum_exp).collect();
        let picked = [values[1], values[3], values[8], values[9]];
        b.magnitude = 1e4;
        b.expect(outputs[0], vec![0.25 * lse.iter().zip(picked).map(|(l, p)| l - p).sum::<f64>()]);
        b.expect(outputs[1], lse);
    })
}

/// Which part of the weight is trained.
#[derive(Clone, Copy, Debug)]
enum Head {
    Frozen,
    Dense,
    Chosen,
}

fn linear_cross_entropy(
    [rows, vocabulary, width]: [usize; 3],
    soft_cap: Option<f32>,
    head: Head,
    weight: DType,
) -> Case {
    let name = format!("linear_cross_entropy {rows}x{vocabulary}x{width} {weight}, cap {soft_cap:?}, {head:?}");
    Case::new(name, move |b| {
        let (hidden, w) = (b.normal(&[rows, width]), b.weight(weight, &[vocabulary, width]));
        let labels: Vec<usize> =
            (0..rows).map(|r| if r % 5 == 2 { IGNORED as usize } else { b.random.below(vocabulary) }).collect();
        let label_input = b.u32s(&[rows], labels.iter().copied());
        let scalars = b.step(&[(step::LOSS_WEIGHT, 1.0 / rows.max(1) as f64)]);
        let loss_weight = b.of(scalars)[step::LOSS_WEIGHT];
        let op = LinearCrossEntropy { chunk: 128, ..LinearCrossEntropy::new(vocabulary, 0.5, soft_cap) };
        let outputs = b.apply(op, &[hidden, w, label_input, scalars]);
        let product = naive::product(Layout::Nt, [rows, vocabulary, width], &b.of(hidden), &b.of(w));
        let logits: Vec<f64> = product.into_iter().map(|x| capped(0.5 * x, soft_cap)).collect();
        let lse: Vec<f64> = logits.chunks(vocabulary).map(naive::log_sum_exp).collect();
        let counted = labels.iter().enumerate().filter(|(_, label)| **label != IGNORED as usize);
        let loss: f64 = counted.map(|(r, label)| lse[r] - logits[r * vocabulary + label]).sum();
        b.expect(outputs[0], vec![loss_weight * loss]);
        b.expect(outputs[1], lse);
        b.seed(outputs[0]);
        b.wrt(&[hidden]);
        match head {
            Head::Frozen => {}
            Head::Dense => b.wrt(&[w]),
            Head::Chosen => {
                let chosen: Vec<usize> = (0..vocabulary * width).filter(|i| i % 7 == 3 || i % 11 == 0).collect();
                b.wrt_chosen(w, &chosen, true);
            }
        }
    })
}

/// Some labels are NaN: those elements do not count.
fn element_loss(name: &str, op: Op, [rows, columns]: [usize; 2], term: fn(f64, f64) -> f64) -> Case {
    Case::new(format!("{name} {rows}x{columns}"), move |b| {
        b.refusable = rows > 20_000;
        let x = b.normal(&[rows, columns]);
        let labels = labels(b, rows * columns);
        let label_input = b.f32s(&[rows, columns], labels.clone());
        let scalars = b.step(&[(step::LOSS_WEIGHT, 1.0 / rows as f64)]);
        let weight = b.of(scalars)[step::LOSS_WEIGHT];
        let loss = b.one(op.clone(), &[x, label_input, scalars]);
        let pairs = b.of(x).into_iter().zip(labels).filter(|(_, y)| !y.is_nan());
        b.expect(loss, vec![weight * pairs.map(|(x, y)| term(x, y)).sum::<f64>()]);
        b.seed(loss);
        b.wrt(&[x]);
    })
}

fn labels(b: &mut Build, n: usize) -> Vec<f64> {
    (0..n).map(|i| if i % 6 == 5 { f64::NAN } else { b.random.below(5) as f64 * 0.25 }).collect()
}

fn scale_by(n: usize) -> Case {
    Case::new(format!("scale_by of {n}"), move |b| {
        let (x, s) = (b.normal(&[n]), b.f32s(&[1], vec![-1.75]));
        let y = b.one(ScaleBy {}, &[x, s]);
        let values = b.of(x);
        b.magnitude = 2.0;
        b.expect(y, values.into_iter().map(|x| -1.75 * x).collect());
        b.seed(y);
        b.wrt(&[x]);
    })
}
