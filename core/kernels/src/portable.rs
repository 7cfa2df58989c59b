//! Tests that every kernel, in all specialisations that differ in code, is valid with WebGPU's default capabilities and
//! translates to the languages of all three APIs.

use crate::lower::MatrixUnits;
use crate::source::{Kernel, LANES, SHADERS, shader};
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use sparta_graph::Blocks;
use std::fs;
use std::process::Command;
use std::thread;

/// The constants that kernels need, besides LANES.
fn specialisations(name: &'static str) -> Vec<Vec<(&'static str, u32)>> {
    let all = variants(name);
    let text = shader(name).unwrap();
    if !["bound(", "written(", "NUMBERS"].iter().any(|used| text.contains(used))
        && !matches!(name, "add" | "div" | "mul")
    {
        return all;
    }
    // In words, and in vectors unless these constants rule them out.
    let in_vectors = |constants: Vec<(&'static str, u32)>| {
        let narrow = constants.iter().any(|&(c, t)| matches!(c, "A" | "B" | "X" | "Y" | "W" | "DY" | "TABLE") && t > 0);
        let narrow = narrow || name == "adam_bf16";
        let words = constants.contains(&("CHOSEN", 1));
        let vectors = (!words).then_some(if narrow { 8 } else { 4 });
        let choices: Vec<u32> = [0].into_iter().chain(vectors).collect();
        choices.into_iter().map(move |vectors| [&constants[..], &[("VECTORS", vectors)]].concat())
    };
    all.into_iter().flat_map(in_vectors).collect()
}

/// [`specialisations`] without the choice between vectors and words.
fn variants(name: &'static str) -> Vec<Vec<(&'static str, u32)>> {
    // All of one type.
    let types = |constants: &[&'static str]| {
        (0..3).map(|t| constants.iter().map(|&constant| (constant, t)).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    match name {
        "gated_act" | "gated_act_grad" => {
            (0..4).map(|i| vec![("ACTIVATION", i / 2), ("X", i % 2), ("Y", i % 2)]).collect()
        }
        "add" | "div" | "mul" => {
            (0..3).map(|b| vec![("A", b % 2), ("B", b % 2), ("BROADCAST", b), ("Y", b % 2)]).collect()
        }
        "map" => (0..12).map(|i| vec![("X", i / 6), ("Y", i / 6), ("FUNCTION", i % 6)]).collect(),
        "map_grad" => (0..12).map(|i| vec![("X", i / 6), ("DY", i % 2), ("Y", i / 6), ("FUNCTION", i % 6)]).collect(),
        "embed" => (0..6).map(|i| vec![("TABLE", i / 2), ("Y", i % 2)]).collect(),
        "dequantize" => Blocks::ALL
            .iter()
            .flat_map(|&blocks| {
                [0, 1].map(|on| {
                    vec![("FORMAT", blocks as u32), ("BYTES", blocks.bytes() as u32), ("Y", on), ("LOOKUP", on)]
                })
            })
            .collect(),
        "scatter" => (0..6).map(|i| vec![("W", i % 3), ("BASE", i / 3 * (i % 3)), ("REMAINDER", i / 3)]).collect(),
        "sparse_linear" => (0..4).map(|i| vec![("X", i % 2), ("TRANSPOSED", i / 2)]).collect(),
        "rms_norm" => (0..6).map(|i| vec![("X", i % 2), ("W", i / 2), ("Y", 1 - i % 2), ("RATE", i % 2)]).collect(),
        "rms_norm_grad" => {
            (0..6).map(|i| vec![("X", i % 2), ("W", i / 2), ("DY", 1 - i % 2), ("ACC", i % 2), ("Y", i % 2)]).collect()
        }
        "rms_norm_grad_w" => (0..4).map(|i| vec![("X", i % 2), ("DY", i / 2), ("CHOSEN", i % 2)]).collect(),
        "sampled_grad" => (0..4).map(|i| vec![("X", i % 2), ("DY", i / 2)]).collect(),
        "cast" | "scatter_rows" => (0..9).map(|i| vec![("X", i / 3), ("Y", i % 3)]).collect(),
        "cross_entropy" | "cross_entropy_grad" => vec![vec![("CAP", 0)], vec![("CAP", 1)]],
        "accumulate" | "scale" | "scale_by" | "soft_cap" | "soft_cap_grad" | "rope" | "moved" => types(&["X", "Y"]),
        "attention_grad_sum" | "fill" => types(&["Y"]),
        "attention_delta" | "column_sum" | "row_sum" | "dropout" | "gather" => types(&["X"]),
        "magnitude" => vec![vec![("A", 1), ("B", 2)], vec![("A", 2), ("B", 1)]],
        "linear" => {
            let output = |i: u32| [("TYPE_C", i / 18), ("BIAS", i % 4), ("RESIDUAL", i % 2 * (1 + i / 18))];
            products(3).into_iter().zip(0..).map(|(c, i)| [&c[..], &output(i)].concat()).collect()
        }
        "product_partial" | "sampled_grad_tiled" => products(2),
        "linear_small" | "linear_sum" => (0..6)
            .map(|i| {
                let (b, c) = (i % 3, i / 3);
                vec![("LANES", 64), ("TYPE_A", c), ("TYPE_B", b), ("TYPE_C", c), ("BIAS", 3 - b), ("RESIDUAL", 1 + c)]
            })
            .collect(),
        "attention" | "attention_cached" | "attention_grad_q" | "attention_grad_kv" => [16, 42, 80, 128, 192, 256]
            .into_iter()
            .flat_map(|d| {
                [0, 1].map(|on| {
                    let types = [("X", on), ("Y", on), ("OTHERS", 32)];
                    let both = u32::from(d <= 128);
                    let sums = [("DK", on | both), ("DV", (1 - on) | both)];
                    [&types[..], &sums, &[("HEAD_DIM", d), ("SOFT_CAP", on), ("DROPOUT", on)]].concat()
                })
            })
            .collect(),
        "columns" => vec![vec![("JOIN", 0)], vec![("JOIN", 1)]],
        "sgd" => vec![vec![("STATE", 0)], vec![("STATE", 1)]],
        "sum_of_squares" => (0..4).map(|i| vec![("X", i % 2), ("PARTS", i / 2)]).collect(),
        _ => vec![vec![]],
    }
}

/// The variants of kernels that make tiles, with this number of types of b.
fn products(types: u32) -> Vec<Vec<(&'static str, u32)>> {
    (0..12 * types)
        .map(|i| {
            let (layout, b) = (i % 3, i / 3 % types);
            let (blocks, vectors) = (1 + i / (3 * types) % 2, i / (6 * types));
            let types = [("TYPE_A", b % 2), ("TYPE_B", b)];
            let whole = [("WHOLE", i % 2), ("EDGES", i / 2 % 2), ("UNROLL", 1 + 15 * (i / 4 % 2))];
            [&types[..], &[("LAYOUT", layout), ("BLOCKS", blocks), ("VECTORS", vectors)], &whole].concat()
        })
        .collect()
}

#[test]
fn every_shader_is_portable() {
    let parts = [
        "prelude",
        "binary",
        "element_loss",
        "element_loss_grad",
        "activation",
        "attention_tile",
        "attention_units",
        "attention_grad_tile",
        "attention_half",
        "attention_params",
        "linear_output",
        "product",
        "product_operands",
        "product_params",
        "product_units",
        "units",
        "vectors",
        "column_sums",
    ];
    for name in SHADERS.iter().filter(|name| !parts.contains(name)) {
        for constants in specialisations(name) {
            let text = Kernel::new(name, constants.clone()).source().unwrap();
            check(&text, &format!("{name} {constants:?}"), MEMORY);
        }
    }
    // With more memory, tiles are larger.
    for name in ["attention", "attention_grad_q", "attention_grad_kv"] {
        for mut constants in specialisations(name) {
            constants.retain(|(constant, _)| *constant != "OTHERS");
            constants.push(("OTHERS", 64));
            let text = Kernel::new(name, constants.clone()).source().unwrap();
            check(&text, &format!("{name} {constants:?}"), 25 << 10);
        }
    }
}

/// Products on matrix units of every kind, in SPIR-V, which the program that SPARTA_SPIRV_VAL names validates, and in
/// MSL where Metal has the size.
#[test]
fn products_on_matrix_units_are_valid() {
    let all = [(8, 8, true, true), (8, 32, false, true), (16, 32, true, false), (16, 64, true, true)];
    for (size, subgroup, vectors, transpose) in all {
        let units = MatrixUnits { size, subgroup, vectors, transpose, memory: MatrixUnits::MEMORY };
        for i in 0..12 {
            let (layout, types, blocks) = (i % 3, i / 3 % 2, 1 + i / 6);
            let mut constants = vec![("TYPE_A", 1), ("TYPE_B", 1 + types), ("LAYOUT", layout), ("BLOCKS", blocks)];
            constants.extend([("WHOLE", i % 2), ("EDGES", i / 2 % 2)]);
            constants.extend(units.constants());
            for name in ["linear", "product_partial", "sampled_grad_tiled"] {
                let output = [("TYPE_C", types), ("BIAS", 0), ("RESIDUAL", 1)];
                let constants = [&constants[..], if name == "linear" { &output } else { &[] }].concat();
                let what = format!("{name} {constants:?}");
                let text = Kernel::new(name, constants).source().unwrap_or_else(|e| panic!("{what}: {e}"));
                check_units(&text, !vectors, MatrixUnits::MEMORY, &what);
            }
        }
    }
}

/// Attention on matrix units, as [`products_on_matrix_units_are_valid`].
#[test]
fn attention_on_matrix_units_is_valid() {
    for (units, subgroup, lanes, vectors) in [
        (8, 8, 128, 1),
        (8, 8, 256, 1),
        (8, 32, 128, 0),
        (8, 32, 256, 0),
        (16, 32, 128, 1),
        (16, 16, 128, 1),
        (16, 32, 256, 1),
        (16, 64, 256, 1),
    ] {
        let shared = [("LANES", lanes), ("UNITS", units), ("SUBGROUP", subgroup), ("VECTOR_MEMORY", vectors)];
        for (i, head_dim) in [(0, 5), (1, 64), (2, 80), (3, 256)] {
            let mut kernels = vec![("attention_half", vec![("X", 1), ("D_O", i % 2)])];
            for kind in 0..5 {
                let options = vec![("KIND", kind), ("OTHERS", 32 + 32 * (i / 2)), ("DEPTH", 32), ("Y", i % 2)];
                let variant = vec![("SOFT_CAP", i % 2), ("DROPOUT", i / 2)];
                kernels.push(("attention_units", [options, variant].concat()));
            }
            for (name, constants) in kernels {
                let constants = [&shared[..], &constants, &[("HEAD_DIM", head_dim)]].concat();
                let what = format!("{name} {constants:?}");
                let text = Kernel::new(name, constants).source().unwrap_or_else(|e| panic!("{what}: {e}"));
                let memory = if i < 2 { MatrixUnits::MEMORY } else { MatrixUnits::MOST_MEMORY };
                check_units(&text, vectors == 0, memory, &what);
            }
        }
    }
}

fn check_units(text: &str, metal: bool, memory: u32, what: &str) {
    let module = naga::front::wgsl::parse_str(text).unwrap_or_else(|e| panic!("{what}: {}", e.emit_to_string(text)));
    let capabilities = Capabilities::COOPERATIVE_MATRIX | Capabilities::SHADER_FLOAT16 | Capabilities::SUBGROUP;
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
        .validate(&module)
        .unwrap_or_else(|e| panic!("{what}: {}", e.emit_to_string(text)));
    default_limits(&module, &info, memory, what);
    let options = spv::Options { lang_version: (1, 6), ..spv::Options::default() };
    let words = spv::write_vec(&module, &info, &options, None).unwrap_or_else(|e| panic!("{what}: SPIR-V: {e}"));
    if let Some(validator) = std::env::var_os("SPARTA_SPIRV_VAL") {
        let file = std::env::temp_dir().join(format!("sparta-{}-{:?}.spv", std::process::id(), thread::current().id()));
        fs::write(&file, words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
        let run = Command::new(validator).args(["--target-env", "spv1.6"]).arg(&file).output().unwrap();
        let said = [run.stdout, run.stderr].concat();
        assert!(run.status.success(), "{what}: {}", String::from_utf8_lossy(&said));
        fs::remove_file(file).unwrap();
    }
    if metal {
        let options = msl::Options { lang_version: (2, 3), fake_missing_bindings: true, ..Default::default() };
        msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
            .unwrap_or_else(|e| panic!("{what}: MSL: {e}"));
    }
}

#[test]
fn every_file_in_shaders_is_embedded() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shaders");
    let mut files: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".wgsl")?.to_string()))
        .collect();
    files.sort();
    let mut embedded = SHADERS.to_vec();
    embedded.sort();
    assert_eq!(files, embedded);
}

/// WebGPU's default limit of workgroup memory.
const MEMORY: u32 = 16 << 10;

fn check(text: &str, what: &str, memory: u32) {
    let module = naga::front::wgsl::parse_str(text).unwrap_or_else(|e| panic!("{what}: {}", e.emit_to_string(text)));
    let info = Validator::new(ValidationFlags::all(), Capabilities::empty())
        .validate(&module)
        .unwrap_or_else(|e| panic!("{what}: {}", e.emit_to_string(text)));
    default_limits(&module, &info, memory, what);
    spv::write_vec(&module, &info, &spv::Options::default(), None).unwrap_or_else(|e| panic!("{what}: SPIR-V: {e}"));
    let options = msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
    msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
        .unwrap_or_else(|e| panic!("{what}: MSL: {e}"));
    let special = hlsl::BindTarget { space: 1, ..Default::default() };
    let options = hlsl::Options {
        fake_missing_bindings: true,
        special_constants_binding: Some(special),
        ..hlsl::Options::default()
    };
    let mut translated = String::new();
    hlsl::Writer::new(&mut translated, &options, &hlsl::PipelineOptions::default())
        .write(&module, &info, None)
        .unwrap_or_else(|e| panic!("{what}: HLSL: {e}"));
}

/// WebGPU's default limits except for workgroup memory: 256 threads, 8 storage buffers, parameters in one slot.
fn default_limits(module: &naga::Module, info: &naga::valid::ModuleInfo, memory: u32, what: &str) {
    let entry = &module.entry_points[0];
    assert!(entry.workgroup_size.iter().product::<u32>() <= LANES, "{what}: {:?}", entry.workgroup_size);
    let (mut workgroup, mut storage) = (0, 0);
    for (handle, variable) in module.global_variables.iter() {
        let size = module.types[variable.ty].inner.size(module.to_ctx());
        match variable.space {
            naga::AddressSpace::WorkGroup if !info.get_entry_point(0)[handle].is_empty() => workgroup += size,
            naga::AddressSpace::Storage { .. } => storage += 1,
            naga::AddressSpace::Uniform => assert!(size <= 256, "{what}: parameters of {size} bytes"),
            _ => {}
        }
    }
    assert!(workgroup <= memory, "{what}: {workgroup} bytes of workgroup memory");
    assert!(storage <= 8, "{what}: {storage} storage buffers");
}
