//! Disks that fill up or cannot be written, and memory limits: nothing older is lost, and the message says what to
//! do. Parts need root, to mount a small tmpfs or to run as another user.

#![cfg(unix)]

use sparta_tests::command::{binary, command};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const OPTIONS: &str = "--method sparta --max-steps 20 --checkpoint-interval 1 --max-dev 8 --max-test 8 --device cpu";

fn line(home: &Path, line: &str) -> Command {
    let args: Vec<&str> = line.split_whitespace().collect();
    let mut command = command(home, &args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn ran(output: &Output) {
    assert!(output.status.success(), "{}", text(output));
}

#[track_caller]
fn refused(output: &Output, parts: &[&str]) {
    let text = text(output);
    assert!(output.status.code() == Some(1) && parts.iter().all(|part| text.contains(part)), "{parts:?}: {text}");
}

/// A tmpfs that is unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(dir: PathBuf, options: &str) -> Option<Disk> {
        fs::create_dir(&dir).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&dir).output();
        if mounted.is_ok_and(|m| m.status.success()) {
            return Some(Disk(dir));
        }
        sparta_tests::skipped("no right to mount a small tmpfs");
        None
    }

    fn remount(&self, options: &str) {
        let mounted = Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0).status();
        assert!(mounted.unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn newest_checkpoint(out: &Path) -> Option<String> {
    let entries = fs::read_dir(out.join("checkpoints")).ok()?.flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("step-")).max()
}

fn wait_for_checkpoint(child: &mut Child, out: &Path) {
    let begin = Instant::now();
    while newest_checkpoint(out).is_none() {
        assert!(begin.elapsed() < Duration::from_secs(120) && child.try_wait().unwrap().is_none(), "no checkpoint");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn assert_equal_runs(alone: &Path, other: &Path) {
    for file in ["metrics.jsonl", "adapter/adapter.safetensors"] {
        assert!(fs::read(alone.join(file)).unwrap() == fs::read(other.join(file)).unwrap(), "{file} differs");
    }
}

/// A disk that fills up ends the run with a message. Earlier checkpoints are intact, and once there is space again, the
/// run resumes to the bytes of an undisturbed run.
#[test]
fn a_full_disk_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount(home.path().join("disk"), "size=6m") else { return };
    ran(&line(home.path(), &format!("run {OPTIONS} --out alone")).output().unwrap());
    let out = disk.0.join("run");
    let mut child = line(home.path(), &format!("run {OPTIONS} --out {}", out.display())).spawn().unwrap();
    wait_for_checkpoint(&mut child, &out);
    let filler = disk.0.join("filler");
    fs::write(&filler, vec![1u8; 8 << 20]).unwrap_err();
    refused(&child.wait_with_output().unwrap(), &["No space left on device", "free disk space"]);
    assert!(newest_checkpoint(&out).is_some(), "the checkpoints before are gone");
    // If the disk is still full, the message is the same, and nothing is lost.
    let resume = || line(home.path(), &format!("run --resume {} --device cpu", out.display())).output().unwrap();
    refused(&resume(), &["No space left on device", "free disk space"]);
    assert!(newest_checkpoint(&out).is_some(), "the checkpoints before are gone");
    fs::remove_file(&filler).unwrap();
    ran(&resume());
    assert_equal_runs(&home.path().join("alone"), &out);
}

#[test]
fn a_disk_that_is_full_from_the_start_is_named() {
    let home = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount(home.path().join("disk"), "size=64k") else { return };
    fs::write(disk.0.join("filler"), vec![1u8; 1 << 20]).unwrap_err();
    let out = disk.0.join("run");
    let output = line(home.path(), &format!("run {OPTIONS} --out {}", out.display())).output().unwrap();
    refused(&output, &[out.to_str().unwrap(), "No space left on device", "free disk space"]);
}

/// On a read-only file system a run can be evaluated, but neither started nor resumed.
#[test]
fn a_read_only_file_system() {
    let home = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount(home.path().join("disk"), "size=16m") else { return };
    let out = disk.0.join("run");
    ran(&line(home.path(), &format!("run {OPTIONS} --out {}", out.display())).output().unwrap());
    disk.remount("ro");
    let advice = ["Read-only file system", "choose another place"];
    let other = disk.0.join("other");
    for command in [
        format!("run {OPTIONS} --out {}", other.display()),
        format!("run --resume {} --max-steps 30 --device cpu", out.display()),
    ] {
        refused(&line(home.path(), &command).output().unwrap(), &[&advice[..], &[disk.0.to_str().unwrap()]].concat());
    }
    ran(&line(home.path(), &format!("eval {} --device cpu", out.display())).output().unwrap());
}

/// If write permission is revoked during a run, it ends with a message that has the path; once restored, the run can be
/// resumed.
#[test]
fn rights_that_are_taken_away() {
    let home = tempfile::tempdir().unwrap();
    let all = |dir: &Path, mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
    };
    all(home.path(), 0o777);
    // Root is not bound by permissions.
    let as_nobody = |home: &Path, args: &str| -> Command {
        let inner = line(home, args);
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(binary()).args(inner.get_args());
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.current_dir(home).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    if !as_nobody(home.path(), "devices").output().is_ok_and(|output| output.status.success()) {
        sparta_tests::skipped("no right to run as another user who may run the binary");
        return;
    }
    ran(&as_nobody(home.path(), &format!("run {OPTIONS} --out alone")).output().unwrap());
    let out = home.path().join("run");
    let mut child = as_nobody(home.path(), &format!("run {OPTIONS} --out run")).spawn().unwrap();
    wait_for_checkpoint(&mut child, &out);
    let places = [out.clone(), out.join("checkpoints")];
    places.iter().for_each(|dir| all(dir, 0o555));
    refused(&child.wait_with_output().unwrap(), &["Permission denied", "checkpoint", "permissions", "--resume"]);
    assert!(newest_checkpoint(&out).is_some(), "the checkpoints before are gone");
    places.iter().for_each(|dir| all(dir, 0o755));
    ran(&as_nobody(home.path(), "run --resume run --device cpu").output().unwrap());
    assert_equal_runs(&home.path().join("alone"), &out);
}

#[test]
fn places_that_cannot_be_written_are_named() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, "mine").unwrap();
    for out in [&file, &file.join("run"), &PathBuf::from("/proc/run")] {
        let output = line(home.path(), &format!("run {OPTIONS} --out {}", out.display())).output().unwrap();
        refused(&output, &[out.to_str().unwrap()]);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

/// With limited address space, a run either fits or says by how much it does not; it never crashes.
#[test]
fn limits_of_memory() {
    let home = tempfile::tempdir().unwrap();
    ran(&line(home.path(), &format!("run {OPTIONS} --out first")).output().unwrap());
    let limited = |megabytes: usize, out: &str| -> Output {
        let inner = line(home.path(), &format!("run {OPTIONS} --method full --out {out}"));
        let script = format!("ulimit -v {} && exec \"$0\" \"$@\"", megabytes << 10);
        let mut command = Command::new("sh");
        command.args(["-c", &script]).arg(inner.get_program()).args(inner.get_args());
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("RAYON_NUM_THREADS", "2").current_dir(home.path()).output().unwrap()
    };
    ran(&limited(4096, "fits"));
    let mut told = 0;
    for megabytes in (128..=512).step_by(32) {
        let output = limited(megabytes, &format!("run-{megabytes}"));
        let text = text(&output);
        assert!(matches!(output.status.code(), Some(0..=2)), "{megabytes} MB: {:?}: {text}", output.status);
        told += usize::from(text.contains("leaves no memory") || text.contains("To make it fit"));
    }
    assert!(told > 0, "the limit was never seen");
}

/// Processes that start together and share an empty or damaged cache do not disturb each other.
#[test]
fn runs_that_share_a_cache() {
    let home = tempfile::tempdir().unwrap();
    for round in 0..2 {
        let children: Vec<Child> = (0..4)
            .map(|i| line(home.path(), &format!("run {OPTIONS} --max-steps 2 --out run-{round}-{i}")).spawn().unwrap())
            .collect();
        children.into_iter().for_each(|child| ran(&child.wait_with_output().unwrap()));
        let cache = fs::read_dir(home.path().join("cache/sparta")).unwrap().next().unwrap().unwrap().path();
        fs::write(cache.join("data/dev.jsonl"), "").unwrap();
    }
}
