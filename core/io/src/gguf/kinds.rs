//! Tensor types by their numbers in a file.

use sparta_graph::{Blocks, DType};
use sparta_model::Storage;

/// The supported types.
const READ: [(u32, Storage); 11] = [
    (0, Storage::Plain(DType::F32)),
    (1, Storage::Plain(DType::F16)),
    (30, Storage::Plain(DType::BF16)),
    (2, Storage::Blocks(Blocks::Q4_0)),
    (3, Storage::Blocks(Blocks::Q4_1)),
    (6, Storage::Blocks(Blocks::Q5_0)),
    (7, Storage::Blocks(Blocks::Q5_1)),
    (8, Storage::Blocks(Blocks::Q8_0)),
    (12, Storage::Blocks(Blocks::Q4K)),
    (13, Storage::Blocks(Blocks::Q5K)),
    (14, Storage::Blocks(Blocks::Q6K)),
];

/// Names of the others, for messages.
const OTHERS: [(u32, &str); 20] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (39, "MXFP4"),
];

/// The number of a type.
pub fn number(stored: Storage) -> Option<u32> {
    READ.iter().find(|(_, known)| *known == stored).map(|(number, _)| *number)
}

/// How the values of a type are stored. Errors: an unsupported type.
pub(super) fn stored(kind: u32) -> std::result::Result<Storage, String> {
    if let Some((_, stored)) = READ.iter().find(|(number, _)| *number == kind) {
        return Ok(*stored);
    }
    let known = OTHERS.iter().find(|(number, _)| *number == kind);
    Err(format!(
        "has type {}, which is not supported; use a file in F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K \
         or Q6_K (a Q4_K_M file, for example, has only these)",
        known.map_or(format!("number {kind}"), |(_, name)| (*name).to_owned())
    ))
}
