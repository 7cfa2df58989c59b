//! Prints what a compiler makes of the hot kernels, without a card: that of a Vulkan driver (registers, spills,
//! scratch, occupancy; `static.sh` runs this on Mesa's for AMD cards), or with the argument `cuda` NVRTC (registers and
//! spills).

use ash::{khr, vk};
use naga::back::spv;
use naga::valid::{Capabilities, ValidationFlags, Validator};
use sparta_backend_cuda::{Compiler, Search};
use sparta_kernels::{Kernel, MatrixUnits};
use std::error::Error;
use std::ffi::{CStr, c_char};

/// The columns of the table: a heading, and the names that drivers give the number.
const COLUMNS: [(&str, &str); 6] = [
    ("VGPR", "VGPRs"),
    ("SGPR", "SGPRs"),
    ("spilled VGPR", "Spilled VGPRs"),
    ("scratch B", "Scratch size"),
    ("LDS B", "LDS size"),
    ("waves per SIMD", "Subgroups per SIMD"),
];
/// The card's matrix units.
const UNITS: MatrixUnits =
    MatrixUnits { size: 16, subgroup: 64, vectors: true, transpose: true, memory: MatrixUnits::MEMORY };
/// Bindings 0 and 9 are uniform, those between are storage.
const BINDINGS: u32 = 10;

/// The architectures of an A100 and of an H100.
const ARCHITECTURES: [(u32, u32); 2] = [(8, 0), (9, 0)];

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::args().any(|argument| argument == "cuda") {
        return cuda();
    }
    let driver = Driver::load()?;
    println!("{}\n", driver.name);
    println!("| kernel | threads of a subgroup | {} |", COLUMNS.map(|(heading, _)| heading).join(" | "));
    println!("|---|---|{}", "---|".repeat(COLUMNS.len()));
    for (label, kernel) in kernels() {
        let text = kernel.source()?;
        let words = translate(&text).map_err(|e| format!("{label}: {e}"))?;
        println!("| {label} | {} |", driver.compile(&words)?.join(" | "));
    }
    Ok(())
}

/// NVRTC's table of the kernels, translated and written by hand.
fn cuda() -> Result<(), Box<dyn Error>> {
    let compiler = Compiler::open(&Search::of_environment(), 13)?;
    let architectures = ARCHITECTURES.map(|capability| compiler.architecture(capability));
    let architectures = architectures.into_iter().collect::<Result<Vec<_>, _>>()?;
    println!("{}\n", compiler.title());
    let headings: Vec<String> = architectures.iter().map(|a| format!("{a}: registers | spilled B | stack B")).collect();
    println!("| kernel | {} |", headings.join(" | "));
    println!("|---|{}", "---|---|---|".repeat(architectures.len()));
    let translated = translated().map(|(label, kernel)| Ok((label, sparta_backend_cuda::translate(&kernel)?)));
    let mut all = translated.collect::<Result<Vec<_>, String>>()?;
    all.extend(sparta_backend_cuda::written());
    for (label, text) in all {
        let columns = architectures.iter().map(|architecture| {
            let report = compiler.report(&text, architecture)?;
            let number = |before: &str, after: &str| number_before(&report, before, after);
            let spilled = number("frame, ", " bytes spill stores");
            Ok(format!("{} | {spilled} | {}", number("Used ", " registers"), number(". ", " bytes stack frame")))
        });
        println!("| {label} | {} |", columns.collect::<Result<Vec<_>, String>>()?.join(" | "));
    }
    Ok(())
}

/// All kernels except those that only products and attention on matrix units need.
fn translated() -> impl Iterator<Item = (String, Kernel)> {
    let on_units = |kernel: &Kernel| kernel.constants.iter().any(|(name, _)| *name == "UNITS");
    kernels().into_iter().filter(move |(_, kernel)| !on_units(kernel) && kernel.name != "magnitude")
}

/// The number that stands between `before` and `after` in a report.
fn number_before(report: &str, before: &str, after: &str) -> String {
    let found = report.split(after).next().filter(|found| found.len() < report.len());
    let number = found.and_then(|found| found.rsplit(before).next()).map(str::trim);
    number.filter(|number| number.bytes().all(|digit| digit.is_ascii_digit())).unwrap_or("?").to_owned()
}

/// The kernels that dominate a training step, each with a label.
fn kernels() -> Vec<(String, Kernel)> {
    let mut all = Vec::new();
    let output = [("TYPE_C", 1), ("BIAS", 0), ("RESIDUAL", 0)];
    for (types, [a, b]) in [("f32 x f32", [0, 0]), ("bf16 x bf16", [1, 1])] {
        for (layout, code) in [("NT", 0), ("NN", 1), ("TN", 2)] {
            let operands = [("TYPE_A", a), ("TYPE_B", b), ("LAYOUT", code)];
            let units = UNITS.constants();
            for blocks in [1, 2] {
                for units in
                    [&[("VECTORS", 1), ("UNROLL", 16)], &units[..]].iter().filter(|units| units.len() == 2 || a == 1)
                {
                    let on = if units.len() == 2 { "" } else { ", matrix units" };
                    let tile = 64 * blocks;
                    let constants = [&operands[..], units, &[("BLOCKS", blocks), ("WHOLE", 1)]].concat();
                    let label = |name: &str| format!("{name} {layout} {types}, {tile} x {tile}{on}");
                    all.push((label("linear"), Kernel::new("linear", [&constants[..], &output].concat())));
                    if layout == "TN" {
                        let kernel = |name| Kernel::new(name, constants.clone());
                        all.push((label("sampled_grad_tiled"), kernel("sampled_grad_tiled")));
                        all.push((label("product_partial"), kernel("product_partial")));
                    }
                }
            }
        }
    }
    let others: [(&'static str, &[(&'static str, u32)]); 10] = [
        ("magnitude", &[("A", 1), ("B", 1)]),
        ("linear_small", &[("LANES", 64), ("TYPE_A", 1), ("TYPE_B", 1), output[0], output[1], output[2]]),
        ("sampled_grad", &[("X", 1), ("DY", 1)]),
        ("rms_norm", &[("X", 0), ("W", 1), ("Y", 1), ("RATE", 0), ("VECTORS", 8)]),
        ("rms_norm_grad", &[("X", 0), ("W", 1), ("DY", 1), ("ACC", 1), ("Y", 0), ("VECTORS", 8)]),
        ("rms_norm_grad_w", &[("X", 0), ("DY", 1), ("CHOSEN", 0), ("VECTORS", 8)]),
        ("gated_act", &[("ACTIVATION", 1), ("X", 1), ("Y", 1), ("VECTORS", 8)]),
        ("gated_act_grad", &[("ACTIVATION", 1), ("X", 1), ("Y", 1), ("VECTORS", 8)]),
        ("adam", &[("VECTORS", 4)]),
        ("scatter", &[("W", 1), ("BASE", 1), ("REMAINDER", 0)]),
    ];
    for head_dim in [64, 256] {
        for (kind, sum) in (0..).zip(["log-sum-exp", "o", "dq", "dk", "dv"]) {
            let tile = [("OTHERS", 64), ("DEPTH", 32), ("KIND", kind), ("Y", 1)];
            let op = [("HEAD_DIM", head_dim), ("SOFT_CAP", 0), ("DROPOUT", 0)];
            let constants = [&UNITS.constants()[..], &tile, &op].concat();
            let kernel = Kernel::new("attention_units", constants);
            all.push((format!("attention on matrix units, {sum}, heads of {head_dim}"), kernel));
        }
    }
    for (head_dim, rows) in [64, 128, 256].into_iter().flat_map(|head_dim| [(head_dim, 32), (head_dim, 64)]) {
        let tile = [("X", 0), ("Y", 0), ("OTHERS", rows)];
        let op = [("HEAD_DIM", head_dim), ("SOFT_CAP", 0), ("DROPOUT", 0)];
        let kernels: &[(&str, &'static str, [u32; 2])] = match head_dim {
            256 => &[("dk", "attention_grad_kv", [1, 0]), ("dv", "attention_grad_kv", [0, 1])],
            _ => &[("dk and dv", "attention_grad_kv", [1, 1])],
        };
        let first = [("o", "attention", [0; 2]), ("dq", "attention_grad_q", [0; 2])];
        for &(sum, name, [dk, dv]) in first.iter().chain(kernels) {
            let constants = [&tile[..], &op, &[("DK", dk), ("DV", dv)]].concat();
            let label = format!("attention in f32, {sum}, heads of {head_dim}, tiles of 64 x {rows}");
            all.push((label, Kernel::new(name, constants)));
        }
    }
    all.extend(others.map(|(name, constants)| (name.to_owned(), Kernel::new(name, constants.to_vec()))));
    all
}

/// The SPIR-V that wgpu would make of a text.
fn translate(text: &str) -> Result<Vec<u32>, String> {
    let module = naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .subgroup_stages(naga::valid::ShaderStages::all())
        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
        .validate(&module)
        .map_err(|e| e.emit_to_string(text))?;
    let options = spv::Options {
        lang_version: (1, 6),
        capabilities: None,
        force_loop_bounding: false,
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        ..spv::Options::default()
    };
    spv::write_vec(&module, &info, &options, None).map_err(|e| e.to_string())
}

/// A device of the first driver, opened to compile.
struct Driver {
    name: String,
    device: ash::Device,
    executables: khr::pipeline_executable_properties::Device,
    layout: vk::PipelineLayout,
    // The loader must outlive everything above.
    _entry: ash::Entry,
}

impl Driver {
    fn load() -> Result<Self, Box<dyn Error>> {
        // SAFETY: the Vulkan loader is a library like any other that this process loads, and it lives as long as
        // `self`.
        let entry = unsafe { ash::Entry::load() }?;
        let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
        let info = vk::InstanceCreateInfo::default().application_info(&application);
        // SAFETY: all structures outlive the call.
        let instance = unsafe { entry.create_instance(&info, None) }?;
        // SAFETY: the instance is alive.
        let physical = *unsafe { instance.enumerate_physical_devices() }?.first().ok_or("the driver has no device")?;
        // SAFETY: the physical device belongs to the instance.
        let properties = unsafe { instance.get_physical_device_properties(physical) };
        let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(0).queue_priorities(&[1.0])];
        let extensions = [khr::pipeline_executable_properties::NAME, khr::cooperative_matrix::NAME].map(CStr::as_ptr);
        let mut executable =
            vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default().pipeline_executable_info(true);
        let mut matrix = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(true);
        let mut storage = vk::PhysicalDeviceVulkan11Features::default().storage_buffer16_bit_access(true);
        let mut half = vk::PhysicalDeviceVulkan12Features::default()
            .shader_float16(true)
            .vulkan_memory_model(true)
            .vulkan_memory_model_device_scope(true);
        let mut subgroups =
            vk::PhysicalDeviceVulkan13Features::default().subgroup_size_control(true).maintenance4(true);
        let info = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queues)
            .enabled_extension_names(&extensions)
            .push_next(&mut executable)
            .push_next(&mut matrix)
            .push_next(&mut storage)
            .push_next(&mut half)
            .push_next(&mut subgroups);
        // SAFETY: all structures outlive the call; a driver that lacks one of them says so.
        let device = unsafe { instance.create_device(physical, &info, None) }?;
        let bindings: Vec<_> = (0..BINDINGS)
            .map(|i| {
                let uniform = i == 0 || i == sparta_kernels::RNG_BINDING;
                let ty = if uniform { vk::DescriptorType::UNIFORM_BUFFER } else { vk::DescriptorType::STORAGE_BUFFER };
                let binding = vk::DescriptorSetLayoutBinding::default().binding(i).descriptor_type(ty);
                binding.descriptor_count(1).stage_flags(vk::ShaderStageFlags::COMPUTE)
            })
            .collect();
        let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
        // SAFETY: the device is alive, and the structures outlive the call.
        let sets = [unsafe { device.create_descriptor_set_layout(&info, None) }?];
        let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
        // SAFETY: as above.
        let layout = unsafe { device.create_pipeline_layout(&info, None) }?;
        let executables = khr::pipeline_executable_properties::Device::new(&instance, &device);
        Ok(Driver { name: text(&properties.device_name), device, executables, layout, _entry: entry })
    }

    /// The threads of a subgroup, and the columns' numbers.
    fn compile(&self, words: &[u32]) -> Result<Vec<String>, Box<dyn Error>> {
        let info = vk::ShaderModuleCreateInfo::default().code(words);
        // SAFETY: naga has validated the module.
        let module = unsafe { self.device.create_shader_module(&info, None) }?;
        let stage = vk::PipelineShaderStageCreateInfo::default()
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(module)
            .name(c"main")
            // As in wgpu with subgroups enabled.
            .flags(vk::PipelineShaderStageCreateFlags::ALLOW_VARYING_SUBGROUP_SIZE);
        let info = vk::ComputePipelineCreateInfo::default()
            .stage(stage)
            .layout(self.layout)
            .flags(vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR);
        // SAFETY: the layout has every binding of the module, and all structures outlive the call.
        let made = unsafe { self.device.create_compute_pipelines(vk::PipelineCache::null(), &[info], None) };
        let pipeline = *made.map_err(|(_, e)| e)?.first().ok_or("no pipeline was made")?;
        let of = vk::PipelineInfoKHR::default().pipeline(pipeline);
        // SAFETY: the pipeline belongs to the device.
        let executable = unsafe { self.executables.get_pipeline_executable_properties(&of) }?;
        let subgroup = executable.first().map_or(0, |executable| executable.subgroup_size);
        let of = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline);
        // SAFETY: the pipeline was made to capture statistics.
        let statistics = unsafe { self.executables.get_pipeline_executable_statistics(&of) }?;
        let number = |name: &str| {
            let found = statistics.iter().find(|statistic| text(&statistic.name) == name);
            // SAFETY: every statistic that is asked for is a whole number.
            found.map_or("?".into(), |statistic| unsafe { statistic.value.u64 }.to_string())
        };
        let numbers = COLUMNS.iter().map(|(_, name)| number(name));
        Ok(std::iter::once(subgroup.to_string()).chain(numbers).collect())
    }
}

fn text(bytes: &[c_char]) -> String {
    let bytes = bytes.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8);
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_in_reports() {
        let report = "ptxas info    : Function properties for k\n\
                      ptxas         .     256 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n\
                      ptxas info    : Used 32 registers, used 0 barriers";
        assert_eq!(number_before(report, "Used ", " registers"), "32");
        assert_eq!(number_before(report, "frame, ", " bytes spill stores"), "8");
        assert_eq!(number_before(report, ". ", " bytes stack frame"), "256");
        assert_eq!(number_before(report, "Used ", " barriers of"), "?");
    }

    #[test]
    fn cuda_cpp_is_written_for_every_kernel_of_its_table() {
        for (label, kernel) in translated() {
            let written = sparta_backend_cuda::translate(&kernel);
            assert!(written.is_ok(), "{label}: {}", written.unwrap_err());
        }
    }

    /// A kernel's constants change with its text.
    #[test]
    fn every_kernel_of_the_table_is_valid() {
        for (label, kernel) in kernels() {
            let words = kernel.source().and_then(|text| translate(&text));
            assert!(words.is_ok(), "{label}: {}", words.unwrap_err());
        }
    }
}
