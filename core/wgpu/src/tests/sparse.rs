use super::{Bench, Data, bench, exactly, f32s, floats, noise, subset, u32s};
use sparta_graph::DType;
use sparta_graph::ops::{Gather, SampledGrad, Sampling, Scatter};

fn row_ptr(index: &[u32], out: usize, columns: usize) -> Data {
    let rows = 0..=out;
    let values: Vec<u32> = rows.map(|r| index.partition_point(|&i| (i as usize) < r * columns) as u32).collect();
    u32s(&[out + 1], &values)
}

fn check_sampled(bench: &mut Bench, t: usize, out: usize, columns: usize, share: f32) {
    let index = subset(out * columns, share, 5);
    for sampling in [Sampling::Auto, Sampling::Sampled, Sampling::Tiled] {
        let inputs =
            [f32s(&[t, out], 1), f32s(&[t, columns], 2), u32s(&[index.len()], &index), row_ptr(&index, out, columns)];
        bench.check(SampledGrad { scale: 0.5, sampling }, &inputs);
        bench.check_bf16(2e-6, SampledGrad { scale: 0.5, sampling }, &inputs, &[0, 1]);
    }
}

#[test]
fn sampled_gradients() {
    let Some(mut bench) = bench() else { return };
    check_sampled(&mut bench, 1, 1, 3, 1.0);
    check_sampled(&mut bench, 19, 70, 67, 0.01);
    check_sampled(&mut bench, 30, 65, 130, 0.3);
    // In shards of tokens, and of chosen elements.
    check_sampled(&mut bench, 150, 160, 130, 0.05);
    check_sampled(&mut bench, 5, 200, 300, 0.9);
    // Pieces of the tokens are summed separately; then large tiles.
    check_sampled(&mut bench, 600, 24, 33, 0.2);
    // Too small a limit for rows this long.
    bench.backends.truncate(1);
    check_sampled(&mut bench, 30, 1100, 1028, 0.02);
    // Whole loads of 8.
    check_sampled(&mut bench, 37, 72, 136, 0.1);
    check_sampled(&mut bench, 40, 1096, 1032, 0.02);
    check_sampled(&mut bench, 1280, 304, 600, 0.05);
}

#[test]
fn gathers() {
    let Some(mut bench) = bench() else { return };
    for (n, share) in [(10, 0.5), (70_001, 0.02), (70_001, 0.6)] {
        let index = subset(n, share, 6);
        let inputs = [f32s(&[n], 1), u32s(&[index.len()], &index)];
        bench.check(Gather {}, &inputs);
        bench.check_bf16(0.0, Gather {}, &inputs, &[0]);
    }
}

/// Neighbours in one word, the last element of an odd length, and elements that nobody wrote stay as they are.
#[test]
fn scatters() {
    let Some(mut bench) = bench() else { return };
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (n, share) in [(9, 1.0), (70_001, 0.02), (70_001, 0.6)] {
            let mut index = subset(n, share, 7);
            if index.last() != Some(&(n as u32 - 1)) {
                index.push(n as u32 - 1);
            }
            let chosen = [index.len()];
            // Sums that are exact in f32, some of them halfway between two numbers of the type.
            let grid = |seed| noise(index.len(), seed).map(|x| (x * 1024.0).round() / 1024.0).collect::<Vec<_>>();
            let (base, delta) = (exactly(&chosen, &grid(2)), exactly(&chosen, &grid(3)));
            let w = floats(dtype, &[n], 1);
            for base in [base, floats(dtype, &chosen, 2)] {
                let inputs = [w.clone(), u32s(&chosen, &index), base, delta.clone()];
                bench.check_to(0.0, Scatter::default(), &inputs);
            }
        }
    }
}

#[test]
fn nothing_chosen() {
    let Some(mut bench) = bench() else { return };
    let none = u32s(&[0], &[]);
    bench.check(Gather {}, &[f32s(&[9], 1), none.clone()]);
    bench.check(Scatter::default(), &[f32s(&[9], 1), none.clone(), f32s(&[0], 2), f32s(&[0], 3)]);
    for sampling in [Sampling::Sampled, Sampling::Tiled] {
        let inputs = [f32s(&[4, 2], 1), f32s(&[4, 3], 2), none.clone(), u32s(&[3], &[0, 0, 0])];
        bench.check(SampledGrad { scale: 1.0, sampling }, &inputs);
    }
}
