//! What the suites share: the backends of this repository, the command as a child process, and skipping aloud.

use std::io::Write;

pub mod chat;
pub mod command;
pub mod more;
pub mod subjects;

/// Says that a part of a suite did not run. Written past the capture of the test harness, which does not show the
/// output of a test that passes.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// [`skipped`] for what must be present in CI.
pub fn skipped_unless_in_ci(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}, but CI is set");
    skipped(why);
}

/// A test for each area of the conformance suite, by a function that takes the [`Area`](sparta_suites::conformance::Area).
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
