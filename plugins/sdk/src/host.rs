//! How much memory this process may use.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of memory: the machine's, or less if a control group or the address space limit (`ulimit -v`) says so. `None`
/// if the system does not report it.
pub fn host_memory() -> Option<u64> {
    let machine = kilobytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:");
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = group_files(&groups).into_iter().filter_map(|path| number(&fs::read_to_string(path).ok()?));
    limits.chain(address_space_left()).chain(machine).min()
}

/// The files that may hold a memory limit of these control groups (`/proc/self/cgroup`) or their ancestors. Lines read
/// `0::PATH` in version 2 and `N:memory:PATH` in version 1.
fn group_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let path = Path::new(path.trim_start_matches('/'));
        files.extend(path.ancestors().map(|above| Path::new(root).join(above).join(file)));
    }
    files
}

/// Address space that a process takes besides tensors: libraries, stacks and the heaps the C library reserves for
/// each thread.
const OVERHEAD: u64 = 256 << 20;

/// What the address space limit leaves after what the process has mapped already and [`OVERHEAD`].
fn address_space_left() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit = number(line.split_whitespace().next()?)?;
    let mapped = kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmSize:")?;
    Some(limit.saturating_sub(mapped + OVERHEAD))
}

/// A limit in bytes; `max` and `unlimited` mean there is none.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Bytes from a line `NAME: N kB`.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_those_above_them_are_asked() {
        let files = |text: &str| -> Vec<String> {
            group_files(text).into_iter().map(|path| path.display().to_string()).collect()
        };
        let root = "/sys/fs/cgroup";
        assert_eq!(files("0::/\n"), [format!("{root}/memory.max")]);
        assert_eq!(
            files("0::/jobs/one\n"),
            [format!("{root}/jobs/one/memory.max"), format!("{root}/jobs/memory.max"), format!("{root}/memory.max")]
        );
        let old = "5:cpu,cpuacct:/a\n4:memory:/a\n";
        assert_eq!(
            files(old),
            [format!("{root}/memory/a/memory.limit_in_bytes"), format!("{root}/memory/memory.limit_in_bytes")]
        );
    }

    #[test]
    fn numbers_as_the_system_writes_them() {
        assert_eq!(number("1048576\n"), Some(1 << 20));
        assert_eq!(number("max\n"), None);
        assert_eq!(kilobytes("VmPeak:\t 9 kB\nVmSize:\t   12 kB\n", "VmSize:"), Some(12 << 10));
    }
}
