//! The energy that a device used, as reported by the system.

#[cfg(feature = "libraries")]
mod nvml;

use sparta_graph::{DeviceInfo, DeviceKind};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Linux's energy counters of processor packages.
const PACKAGES: &str = "/sys/class/powercap";
/// Linux's directories of PCI devices, by address; drivers of graphics cards have sensors there.
const PCI: &str = "/sys/bus/pci/devices";
/// What sensors of cards report: energy, as Intel's do, or power, as AMD's do.
const SENSORS: [(&str, bool); 3] = [("energy1_input", true), ("power1_average", false), ("power1_input", false)];

/// Measures a device's energy between two readings.
pub struct Meter(Vec<Counter>);

struct Counter {
    source: Source,
    unit: Unit,
    start: f64,
}

enum Source {
    File(PathBuf),
    /// An NVIDIA card, whose energy counts from when its driver was loaded.
    #[cfg(feature = "libraries")]
    Card(nvml::Card),
}

enum Unit {
    /// A counter of microjoules, and what to add if it has wrapped around to 0.
    Microjoules { wraps: f64 },
    /// A sensor of microwatts; the mean power since then is taken to be the mean of the two readings.
    Microwatts { since: Instant },
}

impl Meter {
    /// Starts counting. If the system does not report the device's energy, or not to this user, the meter has no
    /// counters.
    pub fn start(device: &DeviceInfo) -> Meter {
        let counters = match device.kind {
            DeviceKind::Cpu | DeviceKind::SoftwareGpu => packages(Path::new(PACKAGES)),
            _ => device
                .card
                .as_deref()
                .and_then(|card| sensor(Path::new(PCI), card).or_else(|| nvidia(card)))
                .into_iter()
                .collect(),
        };
        Meter(counters)
    }

    /// Joules since the start.
    pub fn joules(&self) -> Option<f64> {
        if self.0.is_empty() {
            return None;
        }
        self.0.iter().map(Counter::joules).sum()
    }
}

impl Counter {
    fn joules(&self) -> Option<f64> {
        let now = self.source.read()?;
        Some(match self.unit {
            Unit::Microjoules { wraps } => {
                let end = if now < self.start { now + wraps } else { now };
                // Less than at the start: the driver was loaded again.
                1e-6 * (end >= self.start).then_some(end - self.start)?
            }
            Unit::Microwatts { since } => {
                1e-6 * (now + self.start) / 2.0 * since.elapsed().max(Duration::ZERO).as_secs_f64()
            }
        })
    }
}

impl Source {
    fn read(&self) -> Option<f64> {
        match self {
            Source::File(file) => read(file),
            #[cfg(feature = "libraries")]
            Source::Card(card) => card.microjoules(),
        }
    }
}

fn packages(root: &Path) -> Vec<Counter> {
    let package =
        |directory: &PathBuf| fs::read_to_string(directory.join("name")).is_ok_and(|name| name.starts_with("package"));
    let counter = |directory: PathBuf| {
        let file = directory.join("energy_uj");
        let (start, wraps) = (read(&file)?, read(&directory.join("max_energy_range_uj"))?);
        Some(Counter { source: Source::File(file), unit: Unit::Microjoules { wraps }, start })
    };
    entries(root).into_iter().filter(package).filter_map(counter).collect()
}

/// The sensor of the card at this address, `0000:01:00.0`.
fn sensor(root: &Path, card: &str) -> Option<Counter> {
    let directories = entries(&root.join(card.to_lowercase()).join("hwmon"));
    let counter = |(directory, (name, energy)): (&PathBuf, (&str, bool))| {
        let file = directory.join(name);
        let start = read(&file)?;
        let unit = if energy { Unit::Microjoules { wraps: 0.0 } } else { Unit::Microwatts { since: Instant::now() } };
        Some(Counter { source: Source::File(file), unit, start })
    };
    directories.iter().flat_map(|directory| SENSORS.map(|sensor| (directory, sensor))).find_map(counter)
}

#[cfg(feature = "libraries")]
fn nvidia(card: &str) -> Option<Counter> {
    let card = nvml::Card::at(card)?;
    let start = card.microjoules()?;
    Some(Counter { source: Source::Card(card), unit: Unit::Microjoules { wraps: 0.0 }, start })
}

#[cfg(not(feature = "libraries"))]
fn nvidia(_: &str) -> Option<Counter> {
    None
}

fn entries(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn read(file: &Path) -> Option<f64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(directory).unwrap();
        files.iter().for_each(|(name, text)| fs::write(directory.join(name), text).unwrap());
    }

    #[test]
    fn packages_are_added_up_and_counters_wrap() {
        let root = tempfile::tempdir().unwrap();
        let [a, b, core] = ["intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"].map(|name| root.path().join(name));
        write(&a, &[("name", "package-0\n"), ("energy_uj", "1000000\n"), ("max_energy_range_uj", "5000000\n")]);
        write(&b, &[("name", "package-1\n"), ("energy_uj", "4000000\n"), ("max_energy_range_uj", "5000000\n")]);
        write(&core, &[("name", "core\n"), ("energy_uj", "1\n"), ("max_energy_range_uj", "5000000\n")]);
        let meter = Meter(packages(root.path()));
        write(&a, &[("energy_uj", "3000000\n")]);
        write(&b, &[("energy_uj", "500000\n")]);
        assert_eq!(meter.joules(), Some(3.5));
    }

    #[test]
    fn the_sensor_of_a_card_is_found_by_its_address() {
        let root = tempfile::tempdir().unwrap();
        let sensors = |card: &str| root.path().join(card).join("hwmon/hwmon3");
        write(&sensors("0000:0a:00.0"), &[("name", "amdgpu\n"), ("power1_average", "20000000\n")]);
        write(&sensors("0000:0b:00.0"), &[("energy1_input", "7000000\n"), ("power1_average", "1\n")]);
        let energy = Meter(sensor(root.path(), "0000:0B:00.0").into_iter().collect());
        write(&sensors("0000:0b:00.0"), &[("energy1_input", "9500000\n")]);
        assert_eq!(energy.joules(), Some(2.5));
        let power = Meter(sensor(root.path(), "0000:0a:00.0").into_iter().collect());
        std::thread::sleep(Duration::from_millis(1));
        assert!(power.joules().is_some_and(|joules| joules >= 20e-3), "{:?}", power.joules());
    }

    #[test]
    fn values_that_the_system_does_not_report_are_absent() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Meter(packages(root.path())).joules(), None);
        fs::create_dir_all(root.path().join("0000:0a:00.0/hwmon/hwmon0")).unwrap();
        for card in ["0000:0a:00.0", "0000:0c:00.0", ""] {
            assert_eq!(Meter(sensor(root.path(), card).into_iter().collect()).joules(), None);
        }
        // Whatever library the machine has, it has no card at this address.
        assert!(nvidia("ffff:ff:1f.7").is_none() && nvidia("\0").is_none());
    }
}
