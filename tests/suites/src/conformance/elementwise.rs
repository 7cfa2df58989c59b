//! Elementwise ops, and those that fill, cast and copy.

use super::case::Case;
use super::naive;
use crate::tensor::round;
use sparta_graph::DType;
use sparta_graph::ops::{Activation, Add, Cast, Dropout, Fill, GatedAct, Gather, Scale, SoftCap, Store};

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const SHAPES: [[usize; 2]; 8] = [[1, 1], [1, 3], [2, 7], [17, 1], [3, 33], [5, 65], [64, 127], [257, 3]];

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (i, shape) in SHAPES.into_iter().enumerate() {
        cases.push(add(shape));
        cases.push(add_bias(shape, FLOATS[i % 3]));
        cases.push(scale(shape));
        cases.push(soft_cap(shape));
        cases.push(dropout(shape, [0.0, 0.1, 0.5, 0.9][i % 4]));
        cases.push(gated_act(Activation::Silu, shape));
        cases.push(gated_act(Activation::GeluTanh, shape));
        cases.push(cast(FLOATS[i % 3], FLOATS[(i / 3) % 3], shape));
        cases.push(store(FLOATS[i % 3], shape));
        cases.push(fill(shape));
    }
    for (from, to) in FLOATS.into_iter().flat_map(|from| FLOATS.map(|to| (from, to))) {
        cases.push(cast(from, to, [7, 11]));
    }
    cases.push(extreme_gates(Activation::Silu));
    cases.push(extreme_gates(Activation::GeluTanh));
    cases.push(extreme_caps());
    cases.push(gate_and_up_are_one());
    cases.push(rounding());
    cases.push(a_scalar_shape());
    cases.push(millions());
    cases
}

fn add(shape: [usize; 2]) -> Case {
    Case::new(format!("add {shape:?}"), move |b| {
        let (x, y) = (b.normal(&shape), b.normal(&shape));
        let sum = b.one(Add {}, &[x, y]);
        b.expect(sum, b.of(x).iter().zip(b.of(y)).map(|(x, y)| x + y).collect());
        b.seed(sum);
        b.wrt(&[x, y]);
    })
}

fn add_bias(shape: [usize; 2], dtype: DType) -> Case {
    Case::new(format!("add bias {dtype} {shape:?}"), move |b| {
        let (x, bias) = (b.normal(&shape), b.weight(dtype, &shape[1..]));
        let y = b.one(Add {}, &[x, bias]);
        let values = b.of(bias);
        b.expect(y, b.of(x).iter().enumerate().map(|(e, x)| x + values[e % shape[1]]).collect());
        b.seed(y);
        b.wrt(&[x, bias]);
    })
}

fn scale(shape: [usize; 2]) -> Case {
    Case::new(format!("scale {shape:?}"), move |b| {
        let x = b.normal(&shape);
        let y = b.one(Scale { factor: -0.3 }, &[x]);
        b.expect(y, b.of(x).iter().map(|x| f64::from(-0.3f32) * x).collect());
        b.seed(y);
        b.wrt(&[x]);
    })
}

fn soft_cap(shape: [usize; 2]) -> Case {
    Case::new(format!("soft_cap {shape:?}"), move |b| {
        let x = b.normal(&shape);
        let y = b.one(SoftCap { cap: 1.5 }, &[x]);
        b.expect(y, b.of(x).iter().map(|x| 1.5 * (x / 1.5).tanh()).collect());
        b.seed(y);
        b.wrt(&[x]);
    })
}

fn dropout(shape: [usize; 2], p: f32) -> Case {
    Case::new(format!("dropout {p} {shape:?}"), move |b| {
        let (x, rng) = (b.normal(&shape), b.rng_key());
        let y = b.one(Dropout { p, salt: 3 }, &[x, rng]);
        let key = naive::key(&b.of(rng));
        let factor = |i: usize| naive::kept(naive::philox(key, [i as u32 / 4, 3, 0, 0])[i % 4], p);
        b.expect(y, b.of(x).iter().enumerate().map(|(i, x)| x * factor(i)).collect());
        b.seed(y);
        b.wrt(&[x]);
    })
}

fn gated_act(act: Activation, shape: [usize; 2]) -> Case {
    Case::new(format!("gated_act {act:?} {shape:?}"), move |b| {
        let (gate, up) = (b.normal(&shape), b.normal(&shape));
        let y = b.one(GatedAct { act }, &[gate, up]);
        b.expect(y, b.of(gate).iter().zip(b.of(up)).map(|(g, u)| naive::activate(act, *g) * u).collect());
        b.seed(y);
        b.wrt(&[gate, up]);
    })
}

/// Gates where `exp` overflows or the activation vanishes.
fn extreme_gates(act: Activation) -> Case {
    Case::new(format!("gated_act {act:?} of extreme gates"), move |b| {
        let sizes = [0.0, 1e-30, 1e-6, 1e-3, 3.0, 8.0, 20.0, 60.0, 88.0, 100.0, 1000.0, 1e6];
        let gates: Vec<f64> = sizes.into_iter().flat_map(|x| [x, -x]).collect();
        let (gate, up) = (b.f32s(&[24], gates.clone()), b.f32s(&[24], vec![1.0; 24]));
        let y = b.one(GatedAct { act }, &[gate, up]);
        b.expect(y, b.of(gate).iter().map(|&g| naive::activate(act, g)).collect());
        b.seed(y);
        b.wrt(&[up]);
        let [rest_gate, rest_up] = [gates, vec![1.0; 24]].map(|x| b.f32s(&[24], x));
        let ones = b.one(Fill { value: 1.0, shape: vec![24] }, &[]);
        let grads = b.apply(sparta_graph::ops::GatedActGrad { act }, &[rest_gate, rest_up, ones]);
        grads.into_iter().for_each(|g| {
            b.observe(g);
        });
    })
}

fn extreme_caps() -> Case {
    Case::new("soft_cap of extreme values", |b| {
        let values: Vec<f64> =
            [0.0, 1e-30, 1e-4, 1.0, 30.0, 300.0, 3e3, 1e8, 1e30].into_iter().flat_map(|x| [x, -x]).collect();
        let x = b.f32s(&[18], values);
        let y = b.one(SoftCap { cap: 30.0 }, &[x]);
        b.expect(y, b.of(x).iter().map(|x| 30.0 * (x / 30.0).tanh()).collect());
        let ones = b.one(Fill { value: 1.0, shape: vec![18] }, &[]);
        let dx = b.one(sparta_graph::ops::SoftCapGrad { cap: 30.0 }, &[x, ones]);
        b.expect(dx, b.of(x).iter().map(|x| 1.0 - (x / 30.0).tanh().powi(2)).collect());
    })
}

fn gate_and_up_are_one() -> Case {
    Case::new("gated_act of one tensor", |b| {
        let x = b.normal(&[3, 21]);
        let h = b.one(Scale { factor: 0.5 }, &[x]);
        let y = b.one(GatedAct { act: Activation::Silu }, &[h, h]);
        b.seed(y);
        b.wrt(&[x]);
    })
}

fn cast(from: DType, to: DType, shape: [usize; 2]) -> Case {
    Case::new(format!("cast {from} to {to} {shape:?}"), move |b| {
        let x = b.weight(from, &shape);
        let y = b.one(Cast { to }, &[x]);
        b.expect(y, b.of(x).iter().map(|&x| round(to, x)).collect());
    })
}

/// Ties, subnormals and overflow; the reference holds the same f32 numbers.
fn rounding() -> Case {
    Case::new("cast of numbers that are hard to round", |b| {
        let mut values =
            vec![0.0, -0.0, 65504.0, 65519.0, 65520.0, 1e5, -1e5, 3e38, 3.4e38, 1e-7, 6e-8, 2.9e-8, 1e-38, 1e-40];
        for i in 0..40 {
            let bf16_step = f64::from(i) * 2f64.powi(-9);
            let f16_step = f64::from(i) * 2f64.powi(-12);
            values.extend([1.0 + bf16_step, 1.0 + f16_step, -1.0 - f16_step, 2f64.powi(-14) * f16_step]);
        }
        let values: Vec<f64> = values.into_iter().filter(|x: &f64| *x == 0.0 || x.abs() > 1.2e-38).collect();
        let x = b.f32s(&[values.len()], values);
        for to in [DType::BF16, DType::F16] {
            let y = b.one(Cast { to }, &[x]);
            b.expect(y, b.of(x).iter().map(|&x| round(to, x)).collect());
        }
    })
}

fn store(dtype: DType, shape: [usize; 2]) -> Case {
    Case::new(format!("store {dtype} {shape:?}"), move |b| {
        let (source, target) = (b.weight(dtype, &shape), b.weight(dtype, &shape));
        b.apply(Store {}, &[target, source]);
        b.expect(target, b.of(source));
    })
}

fn fill(shape: [usize; 2]) -> Case {
    Case::new(format!("fill {shape:?}"), move |b| {
        let y = b.one(Fill { value: -2.5, shape: shape.to_vec() }, &[]);
        b.expect(y, vec![-2.5; shape[0] * shape[1]]);
    })
}

fn a_scalar_shape() -> Case {
    Case::new("scalars and three dimensions", |b| {
        for shape in [&[][..], &[2, 3, 5]] {
            let x = b.normal(shape);
            let y = b.one(Scale { factor: 2.0 }, &[x]);
            b.expect(y, b.of(x).iter().map(|x| 2.0 * x).collect());
        }
    })
}

/// More elements than 65,535 workgroups of 256 hold; a few of them are checked.
fn millions() -> Case {
    Case::new("elementwise ops on 16.9 million elements", |b| {
        b.refusable = true;
        let n = 16_900_001;
        let rng = b.rng_key();
        let ones = b.one(Fill { value: 1.0, shape: vec![n] }, &[]);
        let dropped = b.one(Dropout { p: 0.5, salt: 1 }, &[ones, rng]);
        let y = b.one(Add {}, &[dropped, ones]);
        let places = [0, 1, 65_535 * 256 - 1, 65_535 * 256, 65_536 * 256, n - 2, n - 1];
        let index = b.u32s(&[7], places);
        let chosen = b.one(Gather {}, &[y, index]);
        let key = naive::key(&b.of(rng));
        let value = |i: usize| 1.0 + naive::kept(naive::philox(key, [i as u32 / 4, 1, 0, 0])[i % 4], 0.5);
        b.expect(chosen, places.into_iter().map(value).collect());
    })
}
