//! The devices that backends offer, and the choice made by `--device`.

use crate::plugin::{LoadedBackendPlugin, PluginSet};
use crate::{Error, Result};
use sparta_graph::{Backend, BackendError, DeviceInfo, DeviceKind};
use std::cell::OnceCell;
use std::cmp::Reverse;
use std::sync::Arc;

/// A source of devices: a backend of the host itself, or a plugin's.
pub trait Provider {
    /// `cpu`, `wgpu`, `cuda`: the first part of its devices' ids.
    fn name(&self) -> &str;
    fn devices(&self) -> std::result::Result<Vec<DeviceInfo>, BackendError>;
    /// Opens the device with this [`DeviceInfo::id`].
    fn open(&self, id: &str) -> std::result::Result<Box<dyn Backend>, BackendError>;
}

impl Provider for Arc<LoadedBackendPlugin> {
    fn name(&self) -> &str {
        &self.info().name
    }

    fn devices(&self) -> std::result::Result<Vec<DeviceInfo>, BackendError> {
        LoadedBackendPlugin::devices(self)
    }

    fn open(&self, id: &str) -> std::result::Result<Box<dyn Backend>, BackendError> {
        LoadedBackendPlugin::open(self, id)
    }
}

type Answer = std::result::Result<Vec<DeviceInfo>, BackendError>;

/// All devices of the machine. A backend is asked for its devices only when they are needed: `--device cpu` does not
/// depend on any driver.
pub struct Devices {
    /// With their answers, once asked.
    providers: Vec<(Box<dyn Provider>, OnceCell<Answer>)>,
}

impl Devices {
    /// The host's own providers, then backend plugins whose names are not taken.
    pub fn find(own: Vec<Box<dyn Provider>>, plugins: &PluginSet) -> Devices {
        let mut providers = own;
        for plugin in plugins.backends() {
            if providers.iter().all(|known| known.name() != plugin.info().name) {
                providers.push(Box::new(plugin.clone()));
            }
        }
        Devices::new(providers)
    }

    fn new(providers: Vec<Box<dyn Provider>>) -> Devices {
        Devices { providers: providers.into_iter().map(|provider| (provider, OnceCell::new())).collect() }
    }

    fn answers(&self) -> impl Iterator<Item = (&dyn Provider, &Answer)> {
        self.providers.iter().map(|(provider, answer)| {
            let provider = provider.as_ref();
            (provider, answer.get_or_init(|| provider.devices()))
        })
    }

    /// The devices of all backends.
    pub fn list(&self) -> impl Iterator<Item = &DeviceInfo> {
        self.answers().filter_map(|(_, answer)| answer.as_ref().ok()).flatten()
    }

    /// Each card once. If two backends list it, the one that multiplies 16-bit floats in hardware wins, else the later
    /// one: a plugin's rather than the host's own.
    pub fn distinct(&self) -> impl Iterator<Item = &DeviceInfo> {
        let listed: Vec<&DeviceInfo> = self.list().collect();
        let suits = |(i, device): (usize, &DeviceInfo)| (!device.products.is_empty(), i);
        let best = |i: usize| {
            let same = |other: &DeviceInfo| other.card.is_some() && other.card == listed[i].card;
            let mut others = listed.iter().enumerate().filter(|(_, other)| same(other));
            others.all(|(j, other)| suits((j, other)) <= suits((i, listed[i])))
        };
        let kept: Vec<&DeviceInfo> = (0..listed.len()).filter(|&i| best(i)).map(|i| listed[i]).collect();
        kept.into_iter()
    }

    /// The errors of backends that cannot list their devices.
    pub fn failures(&self) -> impl Iterator<Item = &BackendError> {
        self.answers().filter_map(|(_, answer)| answer.as_ref().err())
    }

    /// The device selected by `wanted`: `auto`, an id such as `cpu` or `wgpu:1`, the name of a backend, or part of the
    /// name of one device.
    ///
    /// `auto` is a discrete GPU, else an integrated one, else the CPU. A backend's name selects its best device, a
    /// software GPU only if it has no other. Among devices of a kind those that multiply 16-bit floats in hardware come
    /// first, of them the one with the most memory, then the first. A card that two backends list counts as one device
    /// for `auto` and for parts of names ([`Devices::distinct`]).
    ///
    /// Errors: an unknown or ambiguous name; a backend that is not installed, or has no device, and why. They list the
    /// devices found.
    pub fn select(&self, wanted: &str) -> Result<&DeviceInfo> {
        if wanted == "auto" {
            let automatic = |device: &&DeviceInfo| {
                matches!(device.kind, DeviceKind::DiscreteGpu | DeviceKind::IntegratedGpu | DeviceKind::Cpu)
            };
            return best(self.distinct().filter(automatic))
                .ok_or_else(|| self.error("no device for `--device auto`, which takes a GPU or the CPU".into()));
        }
        let backend = wanted.split(':').next().unwrap_or_default().to_ascii_lowercase();
        if let Some((provider, answer)) = self.providers.iter().find(|(provider, _)| provider.name() == backend) {
            let own = || answer.get_or_init(|| provider.devices()).iter().flatten();
            if own().next().is_none() && answer.get().is_some_and(Answer::is_ok) {
                // A backend without a driver lists no device; opening one gives the reason.
                let why = provider.open(wanted).err().map(|error| error.to_string());
                let why = why.unwrap_or_else(|| format!("there is no device `{wanted}`"));
                return Err(self.error(why));
            }
            return own()
                .find(|device| device.id.eq_ignore_ascii_case(wanted))
                .or_else(|| best(own()).filter(|_| !wanted.contains(':')))
                .ok_or_else(|| self.error(format!("there is no device `{wanted}`")));
        }
        if backend == "cuda" {
            return Err(self.error(format!(
                "`--device {wanted}`: no CUDA backend plugin is installed (`sparta-cli plugin list` lists what was found)"
            )));
        }
        self.by_name(wanted)
    }

    /// The device for one of several processes on this machine: from a list such as `wgpu:0,wgpu:1` or `cuda:0,1` the
    /// one at its position; otherwise the device that [`Devices::select`] gives, followed, for `auto` and the name of a
    /// backend, by the later devices of the same kind. If there are more processes than devices, they share them.
    ///
    /// Errors: those of [`Devices::select`].
    pub fn select_for(&self, wanted: &str, local_rank: usize) -> Result<&DeviceInfo> {
        let list = listed(wanted);
        let wanted = &list[local_rank % list.len()];
        let first = self.select(wanted)?;
        let backend = |device: &DeviceInfo| device.id.split(':').next().unwrap_or_default().to_owned();
        if list.len() > 1 || (wanted != "auto" && *wanted != backend(first)) {
            return Ok(first);
        }
        let equal = |device: &&DeviceInfo| device.kind == first.kind && backend(device) == backend(first);
        let equal: Vec<&DeviceInfo> = self.list().filter(equal).collect();
        let place = equal.iter().position(|device| device.id == first.id).unwrap_or(0);
        Ok(equal.get((place + local_rank) % equal.len().max(1)).copied().unwrap_or(first))
    }

    fn by_name(&self, part: &str) -> Result<&DeviceInfo> {
        let part_lower = part.to_lowercase();
        let matches: Vec<&DeviceInfo> =
            self.distinct().filter(|device| device.name.to_lowercase().contains(&part_lower)).collect();
        match matches[..] {
            [device] if !part.trim().is_empty() => Ok(device),
            [] => Err(self.error(format!("no device has the id `{part}` or a name with `{part}` in it"))),
            _ => {
                let ids: Vec<&str> = matches.iter().map(|device| device.id.as_str()).collect();
                Err(self.error(format!("`{part}` matches several devices: {}; give an id", ids.join(", "))))
            }
        }
    }

    /// Opens a device of this list.
    pub fn open(&self, device: &DeviceInfo) -> Result<Box<dyn Backend>> {
        let backend = device.id.split(':').next().unwrap_or_default();
        match self.providers.iter().find(|(provider, _)| provider.name() == backend) {
            Some((provider, _)) => Ok(provider.open(&device.id)?),
            None => Err(self.error(format!("there is no device `{}`", device.id))),
        }
    }

    /// `problem`, followed by the devices found.
    fn error(&self, problem: String) -> Error {
        let mut message = problem + ". Devices here:";
        for device in self.list() {
            message += &format!("\n  {:<8} {}", device.id, device.name);
        }
        if self.list().next().is_none() {
            message += " none";
        }
        for error in self.failures() {
            message += &format!("\n  {error}");
        }
        Error::Usage(message)
    }
}

/// The devices of a list: `cuda:0,1` is `cuda:0` and `cuda:1`.
pub fn listed(wanted: &str) -> Vec<String> {
    let mut backend: Option<&str> = None;
    let mut one = |part| match (str::split_once(part, ':'), backend) {
        (None, Some(backend)) if part.chars().all(|c| c.is_ascii_digit()) => format!("{backend}:{part}"),
        (split, _) => {
            backend = split.map(|(backend, _)| backend);
            part.to_owned()
        }
    };
    wanted.split(',').map(str::trim).map(&mut one).collect()
}

fn best<'a>(devices: impl Iterator<Item = &'a DeviceInfo>) -> Option<&'a DeviceInfo> {
    let rank = |device: &DeviceInfo| match device.kind {
        DeviceKind::DiscreteGpu => 0,
        DeviceKind::IntegratedGpu => 1,
        DeviceKind::Cpu => 2,
        DeviceKind::VirtualGpu => 3,
        DeviceKind::Other => 4,
        DeviceKind::SoftwareGpu => 5,
    };
    // Two backends may list the same card without an address; the one that leaves more of its memory to the run wins.
    devices.min_by_key(|device| (rank(device), device.products.is_empty(), Reverse(device.memory.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use DeviceKind::*;
    use sparta_graph::DType;

    struct Fake(&'static str, Vec<DeviceInfo>);

    impl Provider for Fake {
        fn name(&self) -> &str {
            self.0
        }

        fn devices(&self) -> std::result::Result<Vec<DeviceInfo>, BackendError> {
            assert_ne!(self.0, "broken", "a backend is asked although another was meant");
            if self.1.is_empty() && self.0 != "cuda" {
                return Err(BackendError::Other { device: self.0.into(), reason: "no driver".into() });
            }
            Ok(self.1.clone())
        }

        fn open(&self, id: &str) -> std::result::Result<Box<dyn Backend>, BackendError> {
            Err(BackendError::Other { device: id.into(), reason: format!("opened by {}", self.0) })
        }
    }

    fn device(id: &str, name: &str, kind: DeviceKind, gib: Option<u64>) -> DeviceInfo {
        let memory = gib.map(|n| n << 30);
        DeviceInfo {
            id: id.into(),
            name: name.into(),
            kind,
            card: None,
            driver: String::new(),
            memory,
            max_buffer: 1 << 31,
            max_binding: None,
            segments: false,
            in_place: true,
            activations: vec![DType::F32],
            products: vec![],
            multiplier: None,
            rounds_in_attention: false,
            tf32: false,
            sampled_cost: None,
            own_kernels: vec![],
        }
    }

    fn cpu() -> Fake {
        Fake("cpu", vec![device("cpu", "Some CPU", Cpu, Some(64))])
    }

    fn machine(gpus: &[(&str, DeviceKind, Option<u64>)]) -> Devices {
        let list =
            gpus.iter().enumerate().map(|(i, (name, kind, gib))| device(&format!("wgpu:{i}"), name, *kind, *gib));
        Devices::new(vec![Box::new(Fake("wgpu", list.collect())), Box::new(cpu())])
    }

    fn picked(devices: &Devices, wanted: &str) -> String {
        match devices.select(wanted) {
            Ok(device) => device.id.clone(),
            Err(error) => error.to_string(),
        }
    }

    const LLVMPIPE: (&str, DeviceKind, Option<u64>) = ("llvmpipe (LLVM 15.0.6, 256 bits)", SoftwareGpu, Some(16));

    #[test]
    fn auto_takes_a_discrete_gpu_then_an_integrated_one_then_the_cpu_but_no_software_gpu() {
        let (igpu, small, large) =
            (("Iris", IntegratedGpu, None), ("A", DiscreteGpu, Some(8)), ("B", DiscreteGpu, Some(24)));
        assert_eq!(picked(&machine(&[LLVMPIPE, igpu, small, large]), "auto"), "wgpu:3");
        assert_eq!(picked(&machine(&[LLVMPIPE, igpu]), "auto"), "wgpu:1");
        assert_eq!(picked(&machine(&[LLVMPIPE]), "auto"), "cpu");
        assert_eq!(picked(&machine(&[("Virtio", VirtualGpu, None)]), "auto"), "cpu");
        assert_eq!(picked(&machine(&[]), "auto"), "cpu");
        let software =
            Devices::new(vec![Box::new(Fake("wgpu", vec![device("wgpu:0", LLVMPIPE.0, SoftwareGpu, None)]))]);
        assert!(picked(&software, "auto").contains("no device for `--device auto`"));
    }

    #[test]
    fn a_backend_name_is_its_best_device() {
        assert_eq!(picked(&machine(&[LLVMPIPE, ("Iris", IntegratedGpu, None)]), "wgpu"), "wgpu:1");
        assert_eq!(picked(&machine(&[LLVMPIPE, ("Virtio", VirtualGpu, None)]), "wgpu"), "wgpu:1");
        assert_eq!(picked(&machine(&[LLVMPIPE]), "wgpu"), "wgpu:0");
        assert_eq!(picked(&machine(&[LLVMPIPE]), "cpu"), "cpu");
    }

    #[test]
    fn ids_and_parts_of_names() {
        let devices = machine(&[LLVMPIPE, ("Radeon RX 7600", DiscreteGpu, None), ("Radeon 780M", IntegratedGpu, None)]);
        assert_eq!(picked(&devices, "wgpu:0"), "wgpu:0");
        assert_eq!(picked(&devices, "LLVMpipe"), "wgpu:0");
        assert_eq!(picked(&devices, "780m"), "wgpu:2");
        assert!(picked(&devices, "radeon").starts_with("`radeon` matches several devices: wgpu:1, wgpu:2; give an id"));
        for unknown in ["geforce", "", "wgpu:3", "wgpu:x", "cpu:1"] {
            let message = picked(&devices, unknown);
            assert!(message.contains("Devices here:\n  wgpu:0   llvmpipe"), "{unknown}: {message}");
        }
    }

    #[test]
    fn a_missing_or_failing_backend_says_so() {
        let message = picked(&machine(&[LLVMPIPE]), "cuda:1");
        assert!(message.contains("no CUDA backend plugin is installed"), "{message}");
        let message = picked(&machine(&[]), "wgpu");
        assert!(message.contains("there is no device `wgpu`") && message.contains("\n  wgpu: no driver"), "{message}");
    }

    #[test]
    fn a_backend_without_devices_is_asked_why() {
        let devices = Devices::new(vec![Box::new(Fake("cuda", Vec::new())), Box::new(cpu())]);
        for wanted in ["cuda", "cuda:1"] {
            let message = picked(&devices, wanted);
            assert!(message.starts_with(&format!("{wanted}: opened by cuda. Devices here:\n  cpu")), "{message}");
        }
        assert_eq!(picked(&devices, "auto"), "cpu");
    }

    #[test]
    fn a_card_of_two_backends_is_one_device() {
        let card = |id, place: &str, products: &[DType]| DeviceInfo {
            card: Some(place.into()),
            products: products.to_vec(),
            ..device(id, "H100", DiscreteGpu, Some(if id == "wgpu:1" { 81 } else { 80 }))
        };
        let both = |ours: &[DType], theirs: &[DType]| {
            let own = vec![card("wgpu:0", "0000:01:00.0", theirs), card("wgpu:1", "0000:02:00.0", theirs)];
            let plugin = vec![card("cuda:0", "0000:02:00.0", ours), card("cuda:1", "0000:03:00.0", ours)];
            Devices::new(vec![Box::new(Fake("wgpu", own)), Box::new(cpu()), Box::new(Fake("cuda", plugin))])
        };
        let (bf16, f16) = ([DType::BF16], [DType::F16]);
        let ids = |devices: &Devices| devices.distinct().map(|d| d.id.clone()).collect::<Vec<_>>().join(" ");
        assert_eq!(ids(&both(&bf16, &f16)), "wgpu:0 cpu cuda:0 cuda:1");
        assert_eq!(ids(&both(&[], &f16)), "wgpu:0 wgpu:1 cpu cuda:1", "a backend that lacks a library");
        assert_eq!(ids(&both(&[], &[])), "wgpu:0 cpu cuda:0 cuda:1");
        assert_eq!(both(&bf16, &f16).list().count(), 5, "what is listed is all");
        let one = |id, name, ours: &[DType]| {
            let card = card(id, "0000:01:00.0", ours);
            Fake(name, vec![card])
        };
        let one = Devices::new(vec![Box::new(one("wgpu:0", "wgpu", &f16)), Box::new(one("cuda:0", "cuda", &bf16))]);
        for (wanted, id) in [("auto", "cuda:0"), ("h100", "cuda:0"), ("wgpu", "wgpu:0"), ("wgpu:0", "wgpu:0")] {
            assert_eq!(picked(&one, wanted), id);
        }
    }

    #[test]
    fn fast_products_count_for_more_than_memory() {
        // The same card, without an address, as a translating driver lists it.
        let cuda = DeviceInfo { products: vec![DType::BF16], ..device("cuda:0", "H100", DiscreteGpu, Some(79)) };
        let wgpu = device("wgpu:0", "Microsoft Direct3D12 (H100)", DiscreteGpu, Some(80));
        let devices = Devices::new(vec![Box::new(Fake("wgpu", vec![wgpu])), Box::new(Fake("cuda", vec![cuda]))]);
        assert_eq!(picked(&devices, "auto"), "cuda:0");
    }

    #[test]
    fn processes_take_equal_devices_in_turn() {
        let (large, small) = (("B", DiscreteGpu, Some(24)), ("A", DiscreteGpu, Some(8)));
        let devices = machine(&[LLVMPIPE, small, large, small]);
        let ids = |wanted: &str| -> Vec<String> {
            (0..4)
                .map(|rank| devices.select_for(wanted, rank).map_or_else(|e| e.to_string(), |d| d.id.clone()))
                .collect()
        };
        assert_eq!(ids("auto"), ["wgpu:2", "wgpu:3", "wgpu:1", "wgpu:2"]);
        assert_eq!(ids("wgpu"), ids("auto"));
        assert_eq!(ids("wgpu:1"), ["wgpu:1"; 4]);
        assert_eq!(ids("cpu"), ["cpu"; 4]);
        assert_eq!(ids("wgpu:0,2, cpu"), ["wgpu:0", "wgpu:2", "cpu", "wgpu:0"]);
    }

    #[test]
    fn a_device_is_opened_by_its_own_provider() {
        let devices = machine(&[LLVMPIPE]);
        let error = devices.open(devices.select("wgpu:0").unwrap()).err().unwrap();
        assert_eq!(error.to_string(), "wgpu:0: opened by wgpu");
    }

    #[test]
    fn a_backend_that_is_not_named_is_not_asked() {
        let devices = Devices::new(vec![Box::new(Fake("broken", Vec::new())), Box::new(cpu())]);
        assert_eq!(picked(&devices, "cpu"), "cpu");
    }
}
