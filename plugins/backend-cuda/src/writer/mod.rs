//! Translates WGSL, as parsed by naga, to CUDA C++: the part that the kernels of `sparta-kernels` use, without matrix
//! units.
//!
//! All functions of a kernel become members of one structure, whose fields are the bindings, so that they can name
//! those; the entry point creates the structure. Its arguments are `Params` by value, the address of the random key,
//! and the addresses of the storage buffers from 1 on, including those that a kernel does not use.

mod function;
mod types;

use crate::KernelText;
use function::Writer;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Binding, BuiltIn, EntryPoint, GlobalVariable, Handle, Module, Type, TypeInner, VectorSize};
use sparta_kernels::{Kernel, RNG_BINDING};

const PRELUDE: &str = include_str!("../../kernels/prelude.cuh");

/// The kernel's name and text, for errors.
struct Source<'s> {
    kernel: &'s str,
    text: &'s str,
}

impl Source<'_> {
    /// An error about something that cannot be translated, with its line.
    fn refuse(&self, span: naga::Span, what: &str) -> String {
        let line = span.location(self.text).line_number;
        let quoted = self.text.lines().nth(line.saturating_sub(1) as usize).unwrap_or("").trim();
        format!("kernel `{}`, line {line}: CUDA C++ is not written for {what}: {quoted}", self.kernel)
    }
}

/// The CUDA C++ of a kernel; its entry point has the kernel's name with `_` appended.
///
/// Errors: the kernel has no text, or naga rejects it; something that cannot be translated, with its line.
pub fn translate(kernel: &Kernel) -> Result<KernelText, String> {
    let text = kernel.source()?;
    let module = naga::front::wgsl::parse_str(&text)
        .map_err(|e| format!("kernel `{}`: {}", kernel.name, e.emit_to_string(&text)))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::empty())
        .validate(&module)
        .map_err(|e| format!("kernel `{}`: {}", kernel.name, e.emit_to_string(&text)))?;
    let entry = format!("{}_", kernel.name);
    let source = Source { kernel: kernel.name, text: &text };
    Ok(KernelText { text: write(&source, &module, &info, &entry)?, entry, shared: 0 })
}

fn write(source: &Source, module: &Module, info: &ModuleInfo, name: &str) -> Result<String, String> {
    let [entry] = &module.entry_points[..] else {
        return Err(format!("kernel `{}` has {} entry points", source.kernel, module.entry_points.len()));
    };
    let mut out = format!("{PRELUDE}\n{}", structures(source, module)?);
    let (mut fields, mut values) = (String::new(), Vec::new());
    let mut parameters = vec!["const u32 no_params".to_owned(), "const v4<u32>* no_key".to_owned()];
    let mut globals: Vec<_> = module.global_variables.iter().collect();
    globals.sort_by_key(|(_, variable)| variable.binding.map_or(u32::MAX, |binding| binding.binding));
    for (handle, variable) in globals {
        let at = |what: String| source.refuse(module.global_variables.get_span(handle), &what);
        let name = format!("g_{}", variable.name.as_deref().unwrap_or(""));
        let ty = types::name(module, variable.ty).map_err(at)?;
        let binding = variable.binding.map_or(0, |binding| binding.binding);
        match variable.space {
            AddressSpace::WorkGroup => out += &format!("__shared__ {ty} {name};\n"),
            AddressSpace::Storage { .. } if binding > 0 => {
                let missing = parameters.len()..=binding as usize;
                parameters.extend(missing.map(|i| format!("const void* no_{i}")));
                parameters.push(format!("{ty} {name}"));
                fields += &format!("    {ty} {name};\n");
                values.push(name);
            }
            AddressSpace::Uniform if binding == 0 && is_structure(module, variable) => {
                parameters[0] = format!("const {ty} {name}");
                fields += &format!("    const {ty} {name};\n");
                values.push(name);
            }
            AddressSpace::Uniform if binding == RNG_BINDING => {
                parameters[1] = format!("const {ty}* {name}");
                fields += &format!("    const {ty}& {name};\n");
                values.push(format!("*{name}"));
            }
            other => return Err(at(format!("the address space {other:?} at binding {binding}"))),
        }
    }
    out += &format!("struct Kernel {{\n{fields}");
    for (handle, function) in module.functions.iter() {
        let name = function.name.as_deref().unwrap_or("");
        out += &Writer::function(source, module, function, &info[handle], name)?;
    }
    out += &Writer::function(source, module, &entry.function, info.get_entry_point(0), "main")?;
    out += &format!(
        "}};\nextern \"C\" __global__ void __launch_bounds__({}) {name}({}) {{\n    Kernel kernel{{{}}};\n    \
         kernel.f_main({});\n}}\n",
        entry.workgroup_size[0],
        parameters.join(", "),
        values.join(", "),
        builtins(source, entry)?
    );
    Ok(out)
}

fn is_structure(module: &Module, variable: &GlobalVariable) -> bool {
    matches!(module.types[variable.ty].inner, TypeInner::Struct { .. })
}

/// All structures. Their members are numbers, vectors of two or four and arrays of four, which have the same layout in
/// both languages.
fn structures(source: &Source, module: &Module) -> Result<String, String> {
    let mut out = String::new();
    for (handle, ty) in module.types.iter() {
        let TypeInner::Struct { members, .. } = &ty.inner else { continue };
        let at = |what: String| source.refuse(module.types.get_span(handle), &what);
        out += &format!("struct {} {{\n", types::name(module, handle).map_err(at)?);
        for member in members {
            let name = member.name.as_deref().unwrap_or("");
            let of = match module.types[member.ty].inner {
                TypeInner::Array { base, .. } if is_four(module, base) => base,
                _ => member.ty,
            };
            if !is_four(module, of)
                && !matches!(
                    module.types[of].inner,
                    TypeInner::Scalar(_) | TypeInner::Vector { size: VectorSize::Bi, .. }
                )
            {
                return Err(at(format!("a member `{name}` that C++ might lay out otherwise")));
            }
            out += &format!("    {} m_{name};\n", types::name(module, member.ty).map_err(at)?);
        }
        out += "};\n";
    }
    Ok(out)
}

fn is_four(module: &Module, ty: Handle<Type>) -> bool {
    matches!(module.types[ty].inner, TypeInner::Vector { size: VectorSize::Quad, .. })
}

/// The arguments of `main`.
fn builtins(source: &Source, entry: &EntryPoint) -> Result<String, String> {
    let value = |binding: &Option<Binding>| match binding {
        Some(Binding::BuiltIn(BuiltIn::WorkGroupId)) => Ok("v3<u32>{blockIdx.x, blockIdx.y, blockIdx.z}"),
        Some(Binding::BuiltIn(BuiltIn::NumWorkGroups)) => Ok("v3<u32>{gridDim.x, gridDim.y, gridDim.z}"),
        Some(Binding::BuiltIn(BuiltIn::LocalInvocationIndex)) => Ok("threadIdx.x"),
        other => Err(format!("kernel `{}`: CUDA C++ is not written for {other:?}", source.kernel)),
    };
    let values: Result<Vec<_>, _> = entry.function.arguments.iter().map(|argument| value(&argument.binding)).collect();
    Ok(values?.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Result<String, String> {
        let module = naga::front::wgsl::parse_str(text).unwrap();
        let info = Validator::new(ValidationFlags::all(), Capabilities::all()).validate(&module).unwrap();
        write(&Source { kernel: "test", text }, &module, &info, "test_")
    }

    const BEGIN: &str = "struct Params { n: u32 }
        @group(0) @binding(0) var<uniform> p: Params;
        @group(0) @binding(2) var<storage, read_write> y: array<u32>;
        @compute @workgroup_size(64) fn main(@builtin(local_invocation_index) lane: u32) {\n";

    #[test]
    fn arguments_are_in_the_order_of_their_bindings() {
        let text = written(&format!("{BEGIN} y[lane] = p.n; }}")).unwrap();
        let arguments = "test_(const s_Params g_p, const v4<u32>* no_key, const void* no_2, u32* g_y)";
        assert!(text.contains(arguments) && text.contains("__launch_bounds__(64)"), "{text}");
    }

    #[test]
    fn unsupported_functions_are_named_with_their_line() {
        let refused = written(&format!("{BEGIN} y[lane] = countOneBits(p.n); }}")).unwrap_err();
        let expected = "kernel `test`, line 5: CUDA C++ is not written for the function CountOneBits";
        assert!(refused.starts_with(expected) && refused.ends_with("y[lane] = countOneBits(p.n); }"), "{refused}");
        let refused = written(&format!("{BEGIN} atomicAdd(&count, 1u); }} var<workgroup> count: atomic<u32>;"));
        assert!(refused.is_err_and(|why| why.contains("line 5") && why.contains("Atomic")));
    }
}
