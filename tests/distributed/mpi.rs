//! Real processes under the `mpiexec` of MPICH.

use super::{FILES, OPTIONS, assert_equal_runs};
use sparta_tests::command::{binary, command, ran};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A run that has a checkpoint after each step, and steps enough to be disturbed.
const LONG: &str = "--max-steps 60 --batch-size 8 --checkpoint-interval 1 --eval-interval 100 --max-dev 8 --max-test 8 \
                    --micro-batches 4 --device cpu";

/// The directory of MPICH; a test without one is skipped.
fn mpich() -> Option<PathBuf> {
    let found = std::env::var_os("SPARTA_MPICH").map(PathBuf::from);
    if found.is_none() {
        sparta_tests::skipped("no MPI: SPARTA_MPICH names no directory that .ci/mpich has made");
    }
    found
}

/// `mpiexec` with these words and then the command with those.
fn mpiexec(mpich: &Path, home: &Path, words: &str, line: &str) -> Command {
    let like = command(home, &[]);
    let mut command = Command::new(mpich.join("bin/mpiexec"));
    command.args(words.split_whitespace()).arg(binary()).args(line.split_whitespace()).current_dir(home);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, value) in like.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("RAYON_NUM_THREADS", "1");
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

fn launched(mpich: &Path, home: &Path, processes: usize, line: &str) -> Output {
    mpiexec(mpich, home, &format!("-n {processes}"), line).output().unwrap()
}

/// The processes of a launch, by rank.
fn ranks(home: &Path, size: usize) -> Vec<u32> {
    let begin = Instant::now();
    loop {
        let mut found = vec![None; size];
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let variables: Vec<&[u8]> = environment.split(|&byte| byte == 0).collect();
            let executable = fs::read_link(entry.path().join("exe")).unwrap_or_default();
            let of_home = format!("HOME={}", home.join("").display());
            if executable == binary() && variables.contains(&of_home.as_bytes()) {
                let rank = variables.iter().find_map(|variable| variable.strip_prefix(b"PMI_RANK="));
                let rank = rank.and_then(|rank| std::str::from_utf8(rank).ok()?.parse::<usize>().ok());
                rank.into_iter().for_each(|rank| found[rank] = Some(id));
            }
        }
        if found.iter().all(Option::is_some) {
            return found.into_iter().flatten().collect();
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "there are no {size} processes");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(process: u32, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status().unwrap().success());
}

fn wait_for_steps(child: &mut Child, out: &Path, steps: usize) {
    let begin = Instant::now();
    let lines = || fs::read_to_string(out.join("metrics.jsonl")).map_or(0, |text| text.lines().count());
    while lines() < steps {
        assert!(child.try_wait().unwrap().is_none(), "the run ended early");
        assert!(begin.elapsed() < Duration::from_secs(120), "no {steps} steps");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What a launch ends with; fails where it does not end.
fn end(mut child: Child) -> Output {
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > Duration::from_secs(60) {
            let _ = child.kill();
            panic!("it does not end: {}", text(&child.wait_with_output().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn one_two_and_four_processes_write_the_same_bytes() {
    let Some(mpich) = mpich() else { return };
    let home = tempfile::tempdir().unwrap();
    ran(home.path(), &format!("run {OPTIONS} --out alone"));
    for size in [1, 2, 4] {
        let text = succeeded(&launched(&mpich, home.path(), size, &format!("run {OPTIONS} --out {size}")));
        assert_equal_runs(&size.to_string(), &home.path().join("alone"), &home.path().join(size.to_string()));
        assert_eq!(text.matches("\nsteps ").count(), 1, "one process prints: {text}");
        assert_eq!(text.contains("each process receives"), size > 1, "{text}");
    }
}

/// Without an option a step has a micro-batch for each process, and the plan says how one process does the same.
#[test]
fn a_launch_needs_no_option() {
    let Some(mpich) = mpich() else { return };
    let home = tempfile::tempdir().unwrap();
    let options = "--max-steps 4 --max-dev 16 --max-test 16 --device cpu";
    let text = succeeded(&launched(&mpich, home.path(), 2, &format!("run {options}")));
    assert!(text.contains("the same bytes as of one process with --micro-batches 2"), "{text}");
    ran(home.path(), &format!("run {options} --micro-batches 2 --out alone"));
    let out = home
        .path()
        .join("runs")
        .join(fs::read_dir(home.path().join("runs")).unwrap().next().unwrap().unwrap().file_name());
    assert_equal_runs("two processes", &home.path().join("alone"), &out);
}

/// In a network namespace of its own, without shared memory.
#[test]
fn messages_by_tcp_change_nothing() {
    let Some(mpich) = mpich() else { return };
    let home = tempfile::tempdir().unwrap();
    ran(home.path(), &format!("run {OPTIONS} --out alone"));
    let mut plain = mpiexec(&mpich, home.path(), "-n 2", &format!("run {OPTIONS} --out tcp"));
    plain.env("MPIR_CVAR_NOLOCAL", "1").env("FI_PROVIDER", "tcp");
    let namespace = Command::new("unshare").args(["-n", "true"]).status().is_ok_and(|status| status.success());
    let output = match namespace {
        false => {
            sparta_tests::skipped("no right to make a network namespace: the processes use that of the machine");
            plain.output().unwrap()
        }
        true => {
            let mut inside = Command::new("unshare");
            inside.args(["-n", "sh", "-c", "ip link set lo up; exec \"$0\" \"$@\""]);
            inside.arg(plain.get_program()).args(plain.get_args()).current_dir(home.path());
            for (name, value) in plain.get_envs() {
                inside.env(name, value.unwrap_or_default());
            }
            inside.output().unwrap()
        }
    };
    succeeded(&output);
    assert_equal_runs("tcp", &home.path().join("alone"), &home.path().join("tcp"));
}

/// Each process is killed once, by signal or by standing still; all end, and another number of processes goes on.
#[test]
fn a_killed_process_ends_all_and_the_run_goes_on() {
    let Some(mpich) = mpich() else { return };
    let home = tempfile::tempdir().unwrap();
    ran(home.path(), &format!("run {LONG} --out alone"));
    let out = home.path().join("run");
    let lines = [
        format!("run {LONG} --out run"),
        "run --resume run --device cpu".to_owned(),
        "run --resume run --device cpu".to_owned(),
    ];
    for (kill, line) in lines.iter().enumerate() {
        let size = 2 + kill % 2;
        // Once the launcher does not end the others: they find out themselves.
        let words = if kill == 1 { format!("-disable-auto-cleanup -n {size}") } else { format!("-n {size}") };
        let mut child = mpiexec(&mpich, home.path(), &words, line).spawn().unwrap();
        let victim = ranks(home.path(), size)[kill % size];
        wait_for_steps(&mut child, &out, 4 + 8 * kill);
        signal(victim, "KILL");
        let output = end(child);
        let text = text(&output);
        assert!(!output.status.success(), "{text}");
        // The launcher names it by its number, which the plan lists in the order of ranks, unless it was slower.
        let listed = text.lines().any(|line| line.starts_with("  0 to ") && line.contains(&victim.to_string()));
        let named = [format!("process {} on ", kill % size), format!("PID {victim} RUNNING AT")];
        assert!(listed && named.iter().any(|name| text.contains(name)), "{named:?}: {text}");
    }
    succeeded(&launched(&mpich, home.path(), 2, "run --resume run --device cpu"));
    assert_equal_runs("killed", &home.path().join("alone"), &out);
}

/// One that stands still for some seconds is waited for.
#[test]
fn a_slow_process_is_waited_for() {
    let Some(mpich) = mpich() else { return };
    let home = tempfile::tempdir().unwrap();
    ran(home.path(), &format!("run {OPTIONS} --out alone"));
    let mut child = mpiexec(&mpich, home.path(), "-n 2", &format!("run {OPTIONS} --out slow")).spawn().unwrap();
    let victim = ranks(home.path(), 2)[1];
    wait_for_steps(&mut child, &home.path().join("slow"), 1);
    signal(victim, "STOP");
    std::thread::sleep(Duration::from_secs(3));
    signal(victim, "CONT");
    succeeded(&end(child));
    assert_equal_runs("slow", &home.path().join("alone"), &home.path().join("slow"));
}

/// Ctrl-C at the launcher ends all after the same step, and what was learned is saved.
#[test]
fn an_interruption_ends_all_cleanly() {
    let Some(mpich) = mpich() else { return };
    let home = tempfile::tempdir().unwrap();
    let options = LONG.replace("--checkpoint-interval 1", "--checkpoint-interval 1000");
    ran(home.path(), &format!("run {options} --out alone"));
    let out = home.path().join("run");
    let mut child = mpiexec(&mpich, home.path(), "-n 2", &format!("run {options} --out run")).spawn().unwrap();
    wait_for_steps(&mut child, &out, 3);
    ranks(home.path(), 2).into_iter().for_each(|process| signal(process, "INT"));
    let text = text(&end(child));
    assert!(text.contains("interrupted after") && text.matches("stopping after this step").count() == 1, "{text}");
    succeeded(&launched(&mpich, home.path(), 3, "run --resume run --device cpu"));
    assert_equal_runs("interrupted", &home.path().join("alone"), &out);
}

/// The leading process has no place to write: all end with its message.
#[test]
fn a_full_disk_ends_all_with_its_message() {
    let Some(mpich) = mpich() else { return };
    let home = tempfile::tempdir().unwrap();
    let disk = home.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"]).arg(&disk).output();
    if !mounted.is_ok_and(|mounted| mounted.status.success()) {
        return sparta_tests::skipped("no right to mount a small tmpfs");
    }
    ran(home.path(), &format!("run {LONG} --out alone"));
    let out = disk.join("run");
    let mut child = mpiexec(&mpich, home.path(), "-n 2", &format!("run {LONG} --out disk/run")).spawn().unwrap();
    wait_for_steps(&mut child, &out, 3);
    fs::write(disk.join("filler"), vec![1u8; 8 << 20]).unwrap_err();
    let text = text(&end(child));
    assert_eq!(text.matches("No space left on device").count().min(1), 1, "{text}");
    fs::remove_file(disk.join("filler")).unwrap();
    let resumed = launched(&mpich, home.path(), 2, "run --resume disk/run --device cpu");
    let equal = resumed.status.success().then(|| {
        FILES.map(|file| {
            let [a, b] = [home.path().join("alone"), out.clone()].map(|run| fs::read(run.join(file)).unwrap());
            a == b
        })
    });
    let _ = Command::new("umount").arg("-l").arg(&disk).status();
    assert_eq!(equal, Some([true; 3]), "{}", self::text(&resumed));
}

#[test]
fn a_mixed_pair_of_programs_is_refused() {
    let Some(mpich) = mpich() else { return };
    let home = tempfile::tempdir().unwrap();
    let other = home.path().join("sparta-cli");
    let bytes = fs::read(binary()).unwrap();
    fs::write(&other, [&bytes[..], b"another build"].concat()).unwrap();
    fs::set_permissions(&other, fs::metadata(binary()).unwrap().permissions()).unwrap();
    // The libraries beside it are the same; only the program is another.
    let plugins = binary().parent().unwrap().to_owned();
    let mut command = mpiexec(&mpich, home.path(), "-n 1", &format!("run {OPTIONS} --out run"));
    command.args([":", "-n", "1"]).arg(&other).args(format!("run {OPTIONS} --out run").split_whitespace());
    let output = command.env("SPARTA_PLUGIN_PATH", plugins).output().unwrap();
    let text = text(&output);
    assert!(
        !output.status.success() && text.contains("sparta-cli (SHA-256) is") && text.contains("process 1 on"),
        "{text}"
    );
    assert!(!home.path().join("run").exists());
}
