//! What the suites share: this repository's backends, the command as a child process, and visible skipping.

use std::io::Write;

pub mod chat;
pub mod command;
pub mod llama;
pub mod more;
pub mod setup;
pub mod subjects;

/// Reports that a part of a suite did not run, bypassing the test harness, which hides the output of tests that pass.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// Like [`skipped`], for what must be present in CI.
pub fn skipped_unless_in_ci(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}, but CI is set");
    skipped(why);
}

/// Defines a test for each area of the conformance suite, from a function of the
/// [`Area`](sparta_suites::conformance::Area).
#[macro_export]
macro_rules! area_tests {
    ($check:ident) => {
        $crate::area_tests! {
            $check
            matrix_products "matrix products"
            norms_and_rotations "norms and rotations"
            attention_in_segments "attention"
            elementwise_ops "elementwise ops"
            primitives "primitives"
            operations_of_plugins "plugins' own operations"
            rows_of_tables "rows of tables"
            weights_in_blocks "weights in blocks"
            losses_and_their_gradients "losses"
            chosen_elements "chosen elements"
            optimizer_steps "optimizer steps"
        }
    };
    ($check:ident $($test:ident $name:literal)+) => {
        $(
            #[test]
            fn $test() {
                let area = sparta_suites::conformance::AREAS.iter().find(|area| area.name == $name);
                $check(area.expect("an area of this name"));
            }
        )+

        #[test]
        fn every_area_has_a_test() {
            let names: Vec<&str> = sparta_suites::conformance::AREAS.iter().map(|area| area.name).collect();
            assert_eq!(names, [$($name),+]);
        }
    };
}
