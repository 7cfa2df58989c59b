use super::{Data, bench, exactly, f32s, numbers, run, step};
use sparta_graph::ops::{Adam, ClipCoef, PARTIALS, SumOfSquares};

fn squared(mut data: Data) -> Data {
    let values = numbers(&data.ty, &data.bytes);
    data.bytes = values.iter().flat_map(|x| (x * x).to_le_bytes()).collect();
    data
}

#[test]
fn adam() {
    let Some(mut bench) = bench() else { return };
    let op = Adam { beta1: 0.9, beta2: 0.999, eps: 1e-6, weight_decay: 0.1 };
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
    for max_norm in [None, Some(1.0), Some(1e6)] {
        bench.check(ClipCoef { max_norm }, &[squared(f32s(&[5, PARTIALS], 1))]);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut norms = [1.0; PARTIALS];
            norms[3] = bad;
            for backend in &mut bench.backends {
                let (ty, bytes) =
                    run(backend, &ClipCoef { max_norm }.into(), &[exactly(&[1, PARTIALS], &norms)]).remove(0);
                let clip = numbers(&ty, &bytes);
                assert!(!clip[0].is_finite() && clip[1] == -1.0, "{clip:?}");
            }
        }
    }
}
