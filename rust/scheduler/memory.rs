//! How much memory is to be had.

use std::fs;

/// Bytes that this process could still use: what the system has to give, and what its control group lets it have.
/// Eight gigabytes where nobody says.
pub fn available_memory() -> u64 {
    let system = of_system().unwrap_or(8 << 30);
    of_group().map_or(system, |group| group.min(system))
}

/// What Linux says.
fn of_system() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

/// What is left in the control group of a container: of version 2, or else of version 1.
fn of_group() -> Option<u64> {
    let read = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let root = "/sys/fs/cgroup";
    let v2 = || Some((read(&format!("{root}/memory.max"))?, read(&format!("{root}/memory.current"))?));
    let v1 = || {
        let of = |name: &str| read(&format!("{root}/memory/memory.{name}_in_bytes"));
        Some((of("limit")?, of("usage")?))
    };
    let (limit, usage) = v2().or_else(v1)?;
    // Pages of files count as used, and are given back when they are wanted.
    let stat = [format!("{root}/memory.stat"), format!("{root}/memory/memory.stat")];
    let stat = stat.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let cache = ["inactive_file ", "total_inactive_file "]
        .iter()
        .find_map(|name| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()));
    Some(limit.saturating_sub(usage.saturating_sub(cache.unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_some_memory() {
        let bytes = super::available_memory();
        assert!((1 << 20..1 << 50).contains(&bytes), "{bytes}");
    }
}
