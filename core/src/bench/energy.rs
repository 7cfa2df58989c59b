//! The energy that a device used, as reported by the system.

use sparta_graph::{DeviceInfo, DeviceKind};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Linux's energy counters of processor packages.
const PACKAGES: &str = "/sys/class/powercap";
/// Linux's sensors; amdgpu's report the power of a card.
const SENSORS: &str = "/sys/class/hwmon";

/// Measures a device's energy between two readings.
pub struct Meter(Vec<Counter>);

struct Counter {
    file: PathBuf,
    unit: Unit,
    start: f64,
}

enum Unit {
    /// A counter of microjoules, and where it wraps around to 0.
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
            _ => cards(Path::new(SENSORS)),
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
        let now = read(&self.file)?;
        Some(match self.unit {
            Unit::Microjoules { wraps } => {
                1e-6 * if now < self.start { now + wraps - self.start } else { now - self.start }
            }
            Unit::Microwatts { since } => {
                1e-6 * (now + self.start) / 2.0 * since.elapsed().max(Duration::ZERO).as_secs_f64()
            }
        })
    }
}

fn packages(root: &Path) -> Vec<Counter> {
    let package =
        |directory: &PathBuf| fs::read_to_string(directory.join("name")).is_ok_and(|name| name.starts_with("package"));
    let counter = |directory: PathBuf| {
        let file = directory.join("energy_uj");
        let (start, wraps) = (read(&file)?, read(&directory.join("max_energy_range_uj"))?);
        Some(Counter { file, unit: Unit::Microjoules { wraps }, start })
    };
    entries(root).into_iter().filter(package).filter_map(counter).collect()
}

/// The machine's AMD card; with several, it is not known which one is in use.
fn cards(root: &Path) -> Vec<Counter> {
    let amd =
        |directory: &PathBuf| fs::read_to_string(directory.join("name")).is_ok_and(|name| name.trim() == "amdgpu");
    let counter = |directory: PathBuf| {
        let file = directory.join("power1_average");
        Some(Counter { start: read(&file)?, unit: Unit::Microwatts { since: Instant::now() }, file })
    };
    let found: Vec<Counter> = entries(root).into_iter().filter(amd).filter_map(counter).collect();
    if found.len() == 1 { found } else { Vec::new() }
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
    fn what_the_system_does_not_tell_is_absent() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Meter(packages(root.path())).joules(), None);
        for name in ["hwmon0", "hwmon1"] {
            write(&root.path().join(name), &[("name", "amdgpu\n"), ("power1_average", "1000000\n")]);
        }
        assert_eq!(Meter(cards(root.path())).joules(), None);
        assert_eq!(Meter(cards(&root.path().join("none"))).joules(), None);
    }
}
