//! Every op, forward and backward, on every backend present.
//!
//! The reference is the CPU backend in f64. It is compared with formulas written again here, and its gradients with
//! differences of its forward pass; every other backend is compared with it, with itself in a second run and, where it
//! works in place, with shared memory. A new op needs a case in one of the modules.

mod attention;
mod case;
mod check;
mod devices;
mod elementwise;
mod linear;
mod losses;
mod naive;
mod norm;
mod optimizer;
mod rows;
mod sparse;

use case::Case;
use check::check;
use sparta_graph::Op;
use sparta_graph::ops::{Embed, Scale};
use std::collections::BTreeSet;

#[test]
fn matrix_products() {
    check(&linear::cases());
}

#[test]
fn norms_and_rotations() {
    check(&norm::cases());
}

#[test]
fn attention_in_segments() {
    check(&attention::cases());
}

#[test]
fn elementwise_ops() {
    check(&elementwise::cases());
}

#[test]
fn rows_of_tables() {
    check(&rows::cases());
}

#[test]
fn losses_and_their_gradients() {
    check(&losses::cases());
}

#[test]
fn chosen_elements() {
    check(&sparse::cases());
}

#[test]
fn optimizer_steps() {
    check(&optimizer::cases());
}

#[test]
fn every_op_has_a_case() {
    let areas: [fn() -> Vec<Case>; 8] = [
        linear::cases,
        norm::cases,
        attention::cases,
        elementwise::cases,
        rows::cases,
        losses::cases,
        sparse::cases,
        optimizer::cases,
    ];
    let mut names = BTreeSet::new();
    let mut covered = BTreeSet::new();
    for case in areas.iter().flat_map(|area| area()) {
        let program = case.program(false, true);
        covered.extend(program.graph.nodes().iter().map(|node| node.op.name()));
        assert!(names.insert(case.name.clone()), "two cases are called `{}`", case.name);
    }
    let all: BTreeSet<&str> = Op::NAMES.iter().copied().collect();
    assert_eq!(covered, all);
}

#[test]
#[should_panic(expected = "reference against formula: out0: element 1 is 3e0, expected 4e0")]
fn a_wrong_value_is_found() {
    check(&[Case::new("scale by 3", |b| {
        let x = b.f32s(&[2], vec![1.0, 1.0]);
        let y = b.one(Scale { factor: 3.0 }, &[x]);
        b.expect(y, vec![3.0, 4.0]);
    })]);
}

/// The padding row has an effect on the output, but by definition no gradient.
#[test]
#[should_panic(expected = "by differences")]
fn a_wrong_gradient_is_found() {
    check(&[Case::new("padding", |b| {
        let (table, tokens) = (b.normal(&[3, 4]), b.u32s(&[2], [0, 1]));
        let y = b.one(Embed { scale: 1.0, padding: Some(0) }, &[table, tokens]);
        b.seed(y);
        b.wrt(&[table]);
    })]);
}

/// The generator that dropout is checked with, against the known answers of Random123.
#[test]
fn philox_known_answers() {
    assert_eq!(naive::philox([0; 2], [0; 4]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
    assert_eq!(naive::philox([u32::MAX; 2], [u32::MAX; 4]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
}
