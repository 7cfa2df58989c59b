use super::{Data, bench, exactly, f32s, numbers, run, step, u32s};
use sparta_graph::ops::{Adam, ClipCoef, Concat, PARTIALS, Sgd, SumOfSquares};

fn squared(mut data: Data) -> Data {
    let values = numbers(&data.ty, &data.bytes);
    data.bytes = values.iter().flat_map(|x| (x * x).to_le_bytes()).collect();
    data
}

#[test]
fn adam() {
    let Some(mut bench) = bench() else { return };
    let op = Adam { beta1: 0.9, beta2: 0.999, eps: 1e-6, weight_decay: 0.1, lr_factor: 0.5 };
    for n in [1, 70, 40_001] {
        let tensors = [f32s(&[n], 1), f32s(&[n], 2), squared(f32s(&[n], 3)), f32s(&[n], 4)];
        let clip = exactly(&[2], &[7.0, 0.5]);
        let [p, m, v, grad] = tensors;
        bench.check(op.clone(), &[p.clone(), m.clone(), v.clone(), grad.clone(), clip, step()]);
        let not_finite = exactly(&[2], &[f32::INFINITY, -1.0]);
        bench.check(op.clone(), &[p, m, v, grad, not_finite, step()]);
    }
}

#[test]
fn gradient_norms() {
    let Some(mut bench) = bench() else { return };
    for n in [1, 63, 64, 65, 50_003] {
        bench.check(SumOfSquares { slot: 1 }, &[f32s(&[3, PARTIALS], 1), f32s(&[n], 2)]);
    }
    let (begins, n) = Concat::layout([40_001, 0, 70]);
    let table: Vec<u32> = begins.iter().zip([40_001, 0, 70]).flat_map(|(&begin, n)| [begin as u32, n]).collect();
    bench.check(SumOfSquares { slot: 1 }, &[f32s(&[5, PARTIALS], 1), f32s(&[n], 2), u32s(&[3, 2], &table)]);
    let (good, clear) = (exactly(&[1], &[0.7]), exactly(&[1], &[0.0]));
    for max_norm in [None, Some(1.0), Some(1e6)] {
        let norms = squared(f32s(&[5, PARTIALS], 1));
        bench.check(ClipCoef { max_norm }, &[norms.clone(), good.clone(), clear.clone()]);
        bench.check(ClipCoef { max_norm }, &[norms, good.clone(), exactly(&[1], &[1.0])]);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut norms = [1.0; PARTIALS];
            norms[3] = bad;
            for backend in &mut bench.backends {
                let inputs = [exactly(&[1, PARTIALS], &norms), good.clone(), clear.clone()];
                let results = run(backend, &ClipCoef { max_norm }.into(), &inputs);
                let (clip, latch) = (numbers(&results[1].0, &results[1].1), numbers(&results[0].0, &results[0].1));
                assert!(!clip[0].is_finite() && clip[1] == -1.0 && latch == [1.0], "{clip:?} {latch:?}");
                let inputs = [exactly(&[1, PARTIALS], &[1.0; PARTIALS]), exactly(&[1], &[bad]), clear.clone()];
                let results = run(backend, &ClipCoef { max_norm }.into(), &inputs);
                assert_eq!(numbers(&results[1].0, &results[1].1)[1], -1.0, "a loss of {bad}");
            }
        }
    }
}

#[test]
fn gradient_descent_in_shards() {
    let Some(mut bench) = bench() else { return };
    for momentum in [0.0, 0.9] {
        let op = Sgd { momentum, weight_decay: 0.1, lr_factor: 0.5 };
        let mut inputs = vec![f32s(&[40_001], 1), f32s(&[40_001], 2), exactly(&[2], &[7.0, 0.5]), step()];
        inputs.extend((momentum > 0.0).then(|| f32s(&[40_001], 3)));
        bench.check(op, &inputs);
    }
}

/// More gaps than one launch fills, and parts that a shard ends in.
#[test]
fn joined_in_shards() {
    let Some(mut bench) = bench() else { return };
    let mut inputs: Vec<Data> = (0..150).map(|i| f32s(&[1 + i % 67], i as u64)).collect();
    inputs.extend([f32s(&[40_001], 1), f32s(&[0], 2), f32s(&[33], 3)]);
    bench.check(Concat {}, &inputs);
}
