//! The readers of `tests/readers` on the stable toolchain: good inputs are accepted, and mutated ones give a value or an
//! error, never a panic. `fuzz/` feeds the same functions for longer, guided by coverage.

use sparta_readers::READERS;
use sparta_suites::Random;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Mutated inputs for each reader.
const INPUTS: usize = 500;

/// Words that matter to one format or another.
const WORDS: [&str; 16] = [
    "[",
    "]",
    "{",
    "}",
    "\"",
    "-1",
    "1e999",
    "18446744073709551615",
    "null",
    "..",
    "\0",
    "\t",
    "\n",
    "{%",
    "%}",
    "F32",
];

/// Numbers that are easily forgotten.
const NUMBERS: [u64; 8] = [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 40, i64::MAX as u64, u64::MAX];

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..1 + random.below(6) {
        // Mostly near the beginning, where headers are.
        let end = if random.below(3) > 0 { bytes.len().min(400) } else { bytes.len() };
        let at = random.below(end);
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.bits() as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.splice(at..at, WORDS[random.below(WORDS.len())].bytes())),
            4 => drop(bytes.drain(at..(at + 1 + random.below(16)).min(bytes.len()))),
            // A count, a size or an offset.
            5 if at + 8 <= bytes.len() => {
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                let width = 4 + 4 * random.below(2);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            6 => {
                let piece = bytes[at..(at + 1 + random.below(64)).min(bytes.len())].to_vec();
                let to = random.below(bytes.len());
                drop(bytes.splice(to..to, piece));
            }
            _ => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}

#[test]
fn good_inputs_are_accepted() {
    for reader in READERS {
        for (i, bytes) in (reader.good)().iter().enumerate() {
            assert!((reader.read)(bytes), "{}: good input {i}: {}", reader.name, String::from_utf8_lossy(bytes));
        }
    }
}

#[test]
fn mutated_inputs_do_not_panic() {
    let bad = Path::new(env!("CARGO_MANIFEST_DIR")).join("bad");
    for reader in READERS {
        let seeds = reader.seeds(&bad).unwrap();
        let mut random = Random::named(reader.name);
        for _ in 0..INPUTS {
            let bytes = mutate(&mut random, &seeds);
            if catch_unwind(AssertUnwindSafe(|| (reader.read)(&bytes))).is_err() {
                let kept = std::env::temp_dir().join(format!("sparta-fuzz-{}", reader.name));
                fs::write(&kept, &bytes).unwrap();
                panic!("{}: an input makes the reader panic; it is kept in {}", reader.name, kept.display());
            }
        }
    }
}

#[test]
fn every_reader_has_a_target() {
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
    let mut found: Vec<String> =
        fs::read_dir(targets).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let mut expected: Vec<String> = READERS.iter().map(|reader| format!("{}.rs", reader.name)).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}
