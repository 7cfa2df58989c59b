//! Real processes under the `mpiexec` of MPICH.

use super::{FILES, OPTIONS, assert_equal_runs};
use sparta_tests::command::{binary, in_home, ran};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A run with a checkpoint after each step, long enough to be disturbed.
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

/// `mpiexec` in this home; each process has one thread.
fn launcher(mpich: &Path, home: &Path) -> Command {
    let mut command = in_home(Command::new(mpich.join("bin/mpiexec")), home);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).env("RAYON_NUM_THREADS", "1");
    command
}

/// `mpiexec` with `words` as its options, then the command with the arguments in `line`.
fn mpiexec(mpich: &Path, home: &Path, words: &str, line: &str) -> Command {
    let mut command = launcher(mpich, home);
    command.args(words.split_whitespace()).arg(binary()).args(line.split_whitespace());
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

/// The process that started this one.
fn parent(process: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    line.trim().parse().unwrap()
}

/// Steps and evaluations in a run's log.
fn logged(out: &Path) -> usize {
    fs::read_to_string(out.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

/// Waits until a file has a line with both parts.
fn wait_for_text(file: &Path, first: &str, second: &str) {
    let begin = Instant::now();
    let read = || fs::read_to_string(file).unwrap_or_default();
    while !read().lines().any(|line| line.contains(first) && line.contains(second)) {
        assert!(begin.elapsed() < Duration::from_secs(60), "no {first}..{second}: {}", read());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn wait_for_steps(child: &mut Child, out: &Path, steps: usize) {
    let begin = Instant::now();
    while logged(out) < steps {
        assert!(child.try_wait().unwrap().is_none(), "the run ended early");
        assert!(begin.elapsed() < Duration::from_secs(120), "no {steps} steps");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The output of a launch; fails if it does not end.
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
    assert!(text.contains("the same bytes as one process with --micro-batches 2"), "{text}");
    ran(home.path(), &format!("run {options} --micro-batches 2 --out alone"));
    let out = home
        .path()
        .join("runs")
        .join(fs::read_dir(home.path().join("runs")).unwrap().next().unwrap().unwrap().file_name());
    assert_equal_runs("two processes", &home.path().join("alone"), &out);
}

/// Without shared memory, in a separate network namespace, which counts the bytes.
#[test]
fn messages_by_tcp_change_nothing() {
    let Some(mpich) = mpich() else { return };
    let home = tempfile::tempdir().unwrap();
    ran(home.path(), &format!("run {OPTIONS} --out alone"));
    let mut plain = mpiexec(&mpich, home.path(), "-n 2", &format!("run {OPTIONS} --out tcp --json"));
    // The wheel's default is UCX, which uses shared memory all the same.
    plain.env("MPIR_CVAR_NOLOCAL", "1").env("MPIR_CVAR_CH4_NETMOD", "ofi").env("FI_PROVIDER", "tcp");
    let namespace = Command::new("unshare").args(["-n", "true"]).status().is_ok_and(|status| status.success());
    if namespace {
        let mut inside = in_home(Command::new("unshare"), home.path());
        inside.args(["-n", "sh", "-c", "ip link set lo up; \"$0\" \"$@\" && grep lo: /proc/net/dev"]);
        inside.arg(plain.get_program()).args(plain.get_args());
        for (name, value) in plain.get_envs() {
            inside.env(name, value.unwrap_or_default());
        }
        let output = inside.output().unwrap();
        succeeded(&output);
        let out = String::from_utf8_lossy(&output.stdout);
        let (result, device) = out.trim().split_once('\n').unwrap();
        let result: serde_json::Value = serde_json::from_str(result).unwrap();
        let received = device.split_once("lo:").and_then(|(_, rest)| rest.split_whitespace().next()).unwrap();
        // Each of the two has received as much.
        let exchanged = 2 * result["exchanged"]["bytes"].as_u64().unwrap();
        assert!(
            received.parse::<u64>().unwrap() > exchanged,
            "{received} bytes on the loopback device, {exchanged} sent"
        );
    } else {
        sparta_tests::skipped("no right to make a network namespace: the processes use that of the machine");
        succeeded(&plain.output().unwrap());
    }
    assert_equal_runs("tcp", &home.path().join("alone"), &home.path().join("tcp"));
}

/// Kills a process three times, and continues with a different number of processes each time. At first the launcher
/// ends the others, and on a busy machine may name one of them. Then the launcher is suspended, and the others find out
/// which process was killed.
#[test]
fn a_killed_process_ends_all_and_the_run_can_be_continued() {
    let Some(mpich) = mpich() else { return };
    let home = tempfile::tempdir().unwrap();
    ran(home.path(), &format!("run {LONG} --out alone"));
    let (out, errors) = (home.path().join("run"), home.path().join("errors"));
    let lines = [
        format!("run {LONG} --out run"),
        "run --resume run --device cpu".to_owned(),
        "run --resume run --device cpu".to_owned(),
    ];
    for (kill, line) in lines.iter().enumerate() {
        let (size, own_errors, before) = (2 + kill % 2, kill > 0, logged(&out));
        let mut command = launcher(&mpich, home.path());
        command.args(["-n", &size.to_string()]);
        if own_errors {
            command.args(["sh", "-c", "exec \"$0\" \"$@\" 2>errors"]);
        }
        let mut child = command.arg(binary()).args(line.split_whitespace()).spawn().unwrap();
        let victim = ranks(home.path(), size)[kill % size];
        wait_for_steps(&mut child, &out, before + 4);
        let launcher = parent(victim);
        if own_errors {
            signal(launcher, "STOP");
        }
        signal(victim, "KILL");
        if own_errors {
            wait_for_text(&errors, &format!("process {} on ", kill % size), &format!("({victim}) was lost"));
            signal(launcher, "CONT");
        }
        let output = end(child);
        let text = text(&output);
        assert!(!output.status.success(), "{text}");
        // The plan lists them in the order of ranks.
        assert!(text.lines().any(|line| line.starts_with("  0 to ") && line.contains(&victim.to_string())), "{text}");
        assert!(own_errors || text.contains(" RUNNING AT ") || text.contains(" was lost: "), "{text}");
    }
    succeeded(&launched(&mpich, home.path(), 2, "run --resume run --device cpu"));
    assert_equal_runs("killed", &home.path().join("alone"), &out);
}

/// The others wait for a process that stalls for some seconds.
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

/// What two processes print if the second has other options of `mpiexec`, a different program or a different command
/// line. The error must name the difference, and nothing may be begun.
fn refused(mpich: &Path, home: &Path, line: &str, (words, program, other): (&[&str], &Path, &str)) -> String {
    let out = home.join("run").display().to_string();
    let mut command = launcher(mpich, home);
    command.args(["-n", "1", "-wdir"]).arg(home.join("same")).arg(binary());
    command.args(line.split_whitespace()).args(["--out", &out]);
    command.args([":", "-n", "1"]).args(words).arg(program).args(other.split_whitespace()).args(["--out", &out]);
    let output = command.output().unwrap();
    let text = text(&output);
    let named = text.contains("the processes differ: ") && text.contains("process 1 on ");
    assert!(!output.status.success() && named, "{text}");
    assert!(!Path::new(&out).exists());
    text
}

/// Copies a file with a change.
fn changed(from: &Path, to: &Path, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(from).unwrap();
    change(&mut bytes);
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::write(to, bytes).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
}

/// The program, a plugin, a weight, labels and an option: each differs in one of two processes.
#[test]
fn a_mixed_pair_is_refused_with_what_differs() {
    let Some(mpich) = mpich() else { return };
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    ran(home, &format!("run {OPTIONS} --out alone"));
    let shipped = fs::read_dir(home.join("cache/sparta")).unwrap().next().unwrap().unwrap().path();
    for (place, part) in [("same", ""), ("model", "model.safetensors"), ("data", "train.jsonl")] {
        for (directory, file) in ["model", "data"].into_iter().flat_map(|directory| {
            let files = fs::read_dir(shipped.join(directory)).unwrap();
            files.map(move |file| (directory, file.unwrap().file_name().into_string().unwrap()))
        }) {
            changed(&shipped.join(directory).join(&file), &home.join(place).join(directory).join(&file), |bytes| {
                match file == part {
                    true if part == "train.jsonl" => {
                        bytes.iter_mut().filter(|byte| byte.is_ascii_digit()).for_each(|digit| *digit ^= 1);
                    }
                    // The low byte of the last weight.
                    true => *bytes.iter_mut().nth_back(1).unwrap() ^= 1,
                    false => {}
                }
            });
        }
    }
    let plugins = binary().parent().unwrap().to_owned();
    let append = |bytes: &mut Vec<u8>| bytes.extend(b"another build");
    changed(&binary(), &home.join("sparta-cli"), append);
    let library = format!("{}sparta_method_sparta{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    changed(&plugins.join(&library), &home.join("plugins").join(&library), append);

    let line = &format!("run {OPTIONS} --model model --task sst2 --data data");
    let [same, model, data] = ["same", "model", "data"].map(|place| home.join(place).display().to_string());
    let [beside, others] = [plugins, home.join("plugins")].map(|path| path.display().to_string());
    let (own, program) = (binary(), home.join("sparta-cli"));
    let seeded = &format!("{line} --seed 7");
    let cases: [(&[&str], &Path, &str, &str); 5] = [
        (&["-wdir", &same, "-env", "SPARTA_PLUGIN_PATH", &beside], &program, line, "sparta-cli (SHA-256) is "),
        (&["-wdir", &same, "-env", "SPARTA_PLUGIN_PATH", &others], &own, line, "method plugin sparta is "),
        (&["-wdir", &model], &own, line, "model weights (SHA-256) is "),
        (&["-wdir", &data], &own, line, "train data (SHA-256) is "),
        (&["-wdir", &same], &own, seeded, "seed is 0 for process 0 on "),
    ];
    for (words, program, other, what) in cases {
        let text = refused(&mpich, home, line, (words, program, other));
        assert!(text.contains(what), "{what}: {text}");
    }
}

/// `bench comm` measures what a launcher has started.
#[test]
fn a_launch_is_measured() {
    let Some(mpich) = mpich() else { return };
    let home = tempfile::tempdir().unwrap();
    let line = "bench comm --shape 64,2,4,2,128,512:2x16 --method sparta-0.05 --device cpu --json";
    let output = launched(&mpich, home.path(), 2, line);
    succeeded(&output);
    let steps: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |name: &str| steps[0][name].as_f64().unwrap();
    assert!(steps.as_array().unwrap().len() == 1 && number("processes") == 2.0, "{steps}");
    // The gradients of the other process's one micro-batch in a step.
    let one = launched(&mpich, home.path(), 1, line);
    succeeded(&one);
    let simulated: serde_json::Value = serde_json::from_slice(&one.stdout).unwrap();
    assert_eq!(number("bytes"), simulated[0]["exchanged"]["bytes"].as_f64().unwrap(), "{steps}");
    let times = ["alone", "apart", "together", "exchange", "speedup", "possible"];
    assert!(times.into_iter().all(|name| number(name) > 0.0), "{steps}");
    assert!(number("together") > number("exchange"), "{steps}");
    let refused = text(&launched(&mpich, home.path(), 2, &format!("{line} --latency 1ms")));
    assert!(refused.contains("--latency is for simulations"), "{refused}");
}
