//! The suites as a list of tests that can run one by one, each in its own process.

use crate::conformance::{AREAS, Area, Judged};
use crate::golden::trajectories::{self, METHODS, Method, Steps};
use crate::golden::{FAMILIES, Layout, Source, answers, parity};
use crate::{Precision, Subject, contract};
use sparta_core::plugin::PluginSet;

/// A part of a suite.
pub struct Test {
    /// For example `conformance f32: attention`.
    pub name: String,
    kind: Kind,
}

enum Kind {
    Contract,
    Conformance {
        area: &'static Area,
        precision: Precision,
    },
    /// Products of f32 in TF32.
    Tf32 {
        area: &'static Area,
    },
    Parity {
        family: &'static str,
        lm: bool,
        precision: Precision,
    },
    /// In f32.
    Answers,
    Training {
        family: &'static str,
        method: &'static Method,
        steps: Steps,
        precision: Precision,
    },
}

/// What a test found.
#[derive(Default)]
pub struct Outcome {
    pub failures: Vec<String>,
    /// What the backend says it cannot run, and need not run.
    pub refused: Vec<String>,
}

/// All tests for a backend.
pub fn tests() -> Vec<Test> {
    let mut tests = vec![Test { name: "contract".into(), kind: Kind::Contract }];
    tests.extend([Precision::F32, Precision::Bf16].into_iter().flat_map(numbers));
    for area in AREAS.iter().filter(|area| ["matrix products", "chosen elements"].contains(&area.name)) {
        tests.push(Test { name: format!("conformance tf32: {}", area.name), kind: Kind::Tf32 { area } });
    }
    tests.push(Test { name: "golden f32: prompts and answers".into(), kind: Kind::Answers });
    tests
}

/// The tests of what a backend computes.
fn numbers(precision: Precision) -> Vec<Test> {
    let mut tests = vec![];
    for area in &AREAS {
        let name = format!("conformance {precision}: {}", area.name);
        tests.push(Test { name, kind: Kind::Conformance { area, precision } });
    }
    for (lm, task) in [(false, "classifier"), (true, "language model")] {
        for family in FAMILIES {
            let name = format!("golden {precision}: {task} {family}");
            tests.push(Test { name, kind: Kind::Parity { family, lm, precision } });
        }
    }
    for family in trajectories::FAMILIES {
        for method in &METHODS {
            for (steps, how) in [(Steps::Whole, ""), (Steps::Split, " in micro-batches")] {
                let name = format!("golden {precision}: training {family} {}{how}", method.name);
                tests.push(Test { name, kind: Kind::Training { family, method, steps, precision } });
            }
        }
    }
    tests
}

impl Test {
    /// Runs it. `plugins` has the methods of the training runs.
    pub fn run(&self, subject: &mut Subject, plugins: &PluginSet) -> Outcome {
        let failures = match &self.kind {
            Kind::Contract => contract::check(subject),
            Kind::Conformance { area, precision } => {
                let judged = Judged::new(&(area.cases)(), *precision);
                let outcome = judged.check(subject);
                let failures = [judged.failures, outcome.failures].concat();
                return Outcome { failures, refused: outcome.refused };
            }
            Kind::Tf32 { area } => {
                let outcome = Judged::new(&(area.cases)(), Precision::F32).check_tf32(subject);
                return Outcome { failures: outcome.failures, refused: outcome.refused };
            }
            Kind::Parity { precision, .. } | Kind::Training { precision, .. } if !subject.offers(*precision) => {
                return Outcome { failures: vec![], refused: vec![format!("{precision} is not supported")] };
            }
            Kind::Parity { family, lm, precision } => {
                let layout = Layout { lm: *lm, f32: false, version_4: false };
                parity::check(subject, &Source::compact(), family, layout, *precision)
            }
            Kind::Answers => answers::check(subject, &Source::compact()),
            Kind::Training { family, method, steps, precision } => {
                trajectories::check(subject, &Source::compact(), plugins, family, method, *steps, *precision)
            }
        };
        Outcome { failures, refused: vec![] }
    }
}
