//! Every op, forward and backward, on every backend present; and tests that the suite finds errors.

use sparta_graph::Op;
use sparta_graph::ops::{Embed, Scale};
use sparta_suites::Precision;
use sparta_suites::conformance::{AREAS, Area, Case, Judged, Outcome, naive};
use sparta_tests::subjects;
use std::collections::BTreeSet;

/// The largest buffer, in bytes, of a device with low limits: enough for one tensor of most cases, but not for all.
const BUFFER: u64 = 896 << 10;

/// Checks the cases on all backends in both precisions and panics with all failures.
fn check(cases: &[Case]) {
    check_in(Precision::F32, cases);
    check_in(Precision::Bf16, cases);
}

fn check_in(precision: Precision, cases: &[Case]) {
    let judged = Judged::new(cases, precision);
    let mut failures = judged.failures.clone();
    let mut take = |outcome: Outcome| {
        failures.extend_from_slice(&outcome.failures);
        outcome.refused.iter().filter(|_| precision == Precision::Bf16).for_each(|why| println!("refused: {why}"));
        outcome
    };
    if std::env::var_os("SPARTA_MATRIX_UNITS").is_some() {
        // A second driver, for its matrix units: the rest is judged with the first.
        subjects::wgpu().into_iter().for_each(|mut subject| drop(take(judged.check_short(&mut subject))));
    } else {
        let (one, three) = [1, 3].map(|threads| take(judged.check(&mut subjects::cpu(Some(threads))))).into();
        let on_wgpu = subjects::wgpu().into_iter().chain(subjects::wgpu_limited(BUFFER));
        on_wgpu.for_each(|mut subject| drop(take(judged.check(&mut subject))));
        failures.extend(judged.differences(&one, &three));
    }
    assert!(
        failures.is_empty(),
        "{} failures in {} cases in {precision}\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

fn check_area(area: &Area) {
    check(&(area.cases)());
}

sparta_tests::area_tests!(check_area);

#[test]
fn every_op_has_a_case() {
    let mut names = BTreeSet::new();
    let mut covered = BTreeSet::new();
    for case in AREAS.iter().flat_map(|area| (area.cases)()) {
        let program = case.program(Precision::F32, false, true);
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

/// The generator that checks dropout gives the known answers of Random123.
#[test]
fn philox_known_answers() {
    assert_eq!(naive::philox([0; 2], [0; 4]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
    assert_eq!(naive::philox([u32::MAX; 2], [u32::MAX; 4]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
}
