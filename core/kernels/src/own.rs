//! The WGSL of plugins' own operations: a text that declares `fn kernel`, to which bindings and an entry point are
//! added.

use naga::valid::{Capabilities, GlobalUse, ValidationFlags, Validator};
use naga::{AddressSpace, Module, SourceLocation};
use sparta_graph::ops::{Launch, OwnOp, Wgsl};
use std::fmt::Write;

/// Storage buffers and bytes of workgroup memory that every device has.
const BUFFERS: usize = 8;
const MEMORY: u32 = 16 << 10;

/// The entry point, with placeholders NUMBER and CALL.
const MAIN: &str = "
@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = NUMBER;
    if (number < sizes.launches) {
        CALL;
    }
}
";

/// The whole text of a kernel for operands of these ranks, and the lines before the plugin's own.
pub fn source(op: &OwnOp, wgsl: &Wgsl, ranks: &[usize]) -> (String, usize) {
    let mut text = String::from("struct Sizes {\n    launches: u32,\n");
    let names: Vec<&String> = op.inputs.iter().chain(&op.outputs).collect();
    // Writing into a string cannot fail.
    for (name, rank) in names.iter().zip(ranks) {
        let _ = (0..*rank).try_for_each(|dimension| writeln!(text, "    {name}_{dimension}: u32,"));
    }
    text += "}\n@group(0) @binding(0) var<uniform> sizes: Sizes;\n";
    for (i, name) in names.iter().enumerate() {
        let _ = writeln!(text, "@group(0) @binding({}) var<storage, read_write> {name}: array<f32>;", i + 1);
    }
    let _ = writeln!(text, "const LANES: u32 = {}u;", wgsl.lanes);
    let lines = text.lines().count();
    let (number, call) = match wgsl.launch {
        Launch::Elements => ("(id.y * count.x + id.x) * LANES + lane", "kernel(number)"),
        Launch::Rows => ("id.y * count.x + id.x", "kernel(number, lane)"),
    };
    text += &wgsl.text;
    text += &MAIN.replace("NUMBER", number).replace("CALL", call);
    (text, lines)
}

/// Whether the kernel of an operation, if it has one, is WGSL that every device can run, for operands of these ranks.
///
/// Errors: what is wrong, with the line of the plugin's text.
pub fn check(op: &OwnOp, ranks: &[usize]) -> Result<(), String> {
    let Some(wgsl) = &op.wgsl else { return Ok(()) };
    let named = |reason: String| format!("the WGSL kernel of `{}`{reason}", op.name);
    let (text, before) = source(op, wgsl, ranks);
    let own = wgsl.text.lines().count();
    let at = |location: Option<SourceLocation>| {
        let line = location.and_then(|at| (at.line_number as usize).checked_sub(before));
        line.filter(|line| (1..=own).contains(line)).map_or(String::new(), |line| format!(", line {line}"))
    };
    let module = naga::front::wgsl::parse_str(&text)
        .map_err(|e| named(format!("{}: {}", at(e.location(&text)), e.message())))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module).map_err(|e| {
        let what = causes(e.as_inner());
        named(format!("{}: {what}", at(e.location(&text))))
    })?;
    check_module(op, &module, info.get_entry_point(0)).map_err(|reason| named(format!(": {reason}")))
}

/// An error with what caused it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

fn check_module(op: &OwnOp, module: &Module, uses: &naga::valid::FunctionInfo) -> Result<(), String> {
    if module.entry_points.len() != 1 {
        return Err("it declares an entry point; only `fn kernel` is called".into());
    }
    let (mut bound, mut memory) = (0, 0);
    for (handle, variable) in module.global_variables.iter() {
        let name = variable.name.clone().unwrap_or_default();
        match variable.space {
            AddressSpace::WorkGroup => memory += module.types[variable.ty].inner.size(module.to_ctx()),
            AddressSpace::Storage { .. } => {
                bound += 1;
                if op.inputs.contains(&name) && uses[handle].contains(GlobalUse::WRITE) {
                    return Err(format!("it writes to its input `{name}`"));
                }
            }
            AddressSpace::Uniform if name == "sizes" => {}
            AddressSpace::Private => {}
            _ => return Err(format!("it declares the binding `{name}`; its operands are bound already")),
        }
    }
    match op.inputs.len() + op.outputs.len() {
        operands if operands != bound => Err("it declares a binding; its operands are bound already".into()),
        operands if operands > BUFFERS => Err(format!("{operands} operands, devices bind {BUFFERS} at once")),
        _ if memory > MEMORY => Err(format!("{memory} bytes of workgroup memory, devices have {MEMORY}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sparta_graph::ops::Body;

    fn checked(text: &str, launch: Launch) -> Result<(), String> {
        let op = OwnOp {
            name: "gate".into(),
            inputs: vec!["x".into(), "w".into()],
            outputs: vec!["y".into()],
            body: Body::default(),
            gradient: None,
            wgsl: Some(Wgsl { text: text.into(), launch, lanes: 32 }),
            function: None,
        };
        check(&op, &[2, 1, 2])
    }

    const SUM: &str = "var<workgroup> partial: array<f32, LANES>;
fn kernel(row: u32, lane: u32) {
    partial[lane] = x[row * sizes.x_1 + lane];
    workgroupBarrier();
    y[row] = partial[0] + partial[LANES - 1u];
}";

    #[test]
    fn kernels_for_elements_and_for_rows_are_valid() {
        checked("fn kernel(i: u32) {\n    y[i] = x[i] * w[i % sizes.w_0];\n}", Launch::Elements).unwrap();
        checked(SUM, Launch::Rows).unwrap();
    }

    #[test]
    fn errors_give_the_line_of_the_plugin() {
        let loose = SUM.replace("array<f32, LANES>", "array<f32, 9000>");
        for (text, expected) in [
            ("fn kernel(i: u32) {\n    y[i] = x[i] +;\n}", "the WGSL kernel of `gate`, line 2: "),
            ("fn kernel(i: u32) {\n\n    y[i] = sizes.v_0;\n}", "the WGSL kernel of `gate`, line 3: "),
            ("fn kernel(i: u32) {\n    y[i] = i;\n}", "the WGSL kernel of `gate`, line 2: "),
            ("fn other(i: u32) {}", "the WGSL kernel of `gate`: "),
            ("fn kernel(i: u32) {\n    x[i] = 0.0;\n}", "it writes to its input `x`"),
            (
                "@group(0) @binding(7) var<storage> z: array<f32>;\nfn kernel(i: u32) { y[i] = z[i]; }",
                "it declares a binding",
            ),
            ("@compute @workgroup_size(1) fn b() {}\nfn kernel(i: u32) { y[i] = 0.0; }", "it declares an entry point"),
        ] {
            let message = checked(text, Launch::Elements).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
        }
        let message = checked(&loose, Launch::Rows).unwrap_err();
        assert!(message.contains("36000 bytes of workgroup memory"), "{message}");
    }
}
