use super::*;
use std::fs;
use std::io::{Seek, SeekFrom, Write};

#[test]
fn a_published_directory_has_only_its_new_name() {
    let dir = tempfile::tempdir().unwrap();
    let (part, whole) = (dir.path().join("a/b/.part"), dir.path().join("a/b/whole"));
    create_dirs(&part).unwrap();
    create_dirs(&part).unwrap();
    fs::write(part.join("f"), "1").unwrap();
    publish(&part, &whole).unwrap();
    assert!(!part.exists() && fs::read(whole.join("f")).unwrap() == b"1");
    for path in [whole.join("f"), whole.clone(), whole] {
        remove(&path).unwrap();
        assert!(!path.exists());
    }
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(create_dirs(&dir.path().join("file/below")).is_err());
}

#[test]
fn only_regular_files_within_the_limit_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "12345").unwrap();
    assert_eq!(read(&file, 5).unwrap(), b"12345");
    assert_eq!(read(&file, 4).unwrap_err().kind(), ErrorKind::FileTooLarge);
    assert_eq!(read(dir.path(), 4).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(read(&dir.path().join("g"), 4).unwrap_err().kind(), ErrorKind::NotFound);
    fs::write(&file, b"\xff").unwrap();
    assert_eq!(read_text(&file, 4).unwrap_err().kind(), ErrorKind::InvalidData);
    #[cfg(unix)]
    assert_eq!(read(Path::new("/dev/zero"), 4).unwrap_err().kind(), ErrorKind::InvalidInput);
}

fn root(test: &str) -> PathBuf {
    Path::new(MEMORY).join(test)
}

#[test]
fn memory_does_what_the_system_does() {
    let dir = tempfile::tempdir().unwrap();
    for root in [dir.path().join("r"), root("same")] {
        let file = root.join("a/b/f");
        assert_eq!(File::create(&file).unwrap_err().kind(), ErrorKind::NotFound);
        create_dirs(file.parent().unwrap()).unwrap();
        let mut out = File::create(&file).unwrap();
        out.write_all(b"12345").unwrap();
        out.seek(SeekFrom::Start(1)).unwrap();
        out.write_all(b"x").unwrap();
        let mut end = File::append(&file).unwrap();
        end.write_all(b"67").unwrap();
        assert_eq!(read(&file, 7).unwrap(), b"1x34567");
        assert_eq!(read(&file, 6).unwrap_err().kind(), ErrorKind::FileTooLarge);
        end.set_size(2).unwrap();
        end.write_all(b"!").unwrap();
        assert_eq!((read_text(&file, 9).unwrap(), end.size().unwrap()), ("1x!".into(), 3));
        let map = Map::of(&open(&file).unwrap()).unwrap();
        map.forget(0..2);
        assert_eq!(&*map, b"1x!");
        assert_eq!(open(&root).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(open(&root.join("g")).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(create_dirs(&file.join("below")).is_err() && list(&file).is_err());
        assert_eq!((kind(&file).unwrap(), kind(&root).unwrap()), (Kind::File(3), Kind::Directory));
        assert!(remove_empty(&root.join("a")).is_err());
        publish(&root.join("a"), &root.join("z")).unwrap();
        assert!(!exists(&file) && is_file(&root.join("z/b/f")) && is_dir(&root.join("z/b")));
        assert_eq!(list(&root).unwrap(), [root.join("z")]);
        create_dirs(&root.join("y")).unwrap();
        assert!(rename(&root.join("z/b/f"), &root.join("y")).is_err());
        assert!(canonical(&root.join("q")).is_err() && canonical(&root.join("y")).is_ok());
        remove_empty(&root.join("y")).unwrap();
        remove(&root).unwrap();
        remove(&root).unwrap();
        assert!(!exists(&root));
    }
}

#[test]
fn a_map_keeps_its_bytes_while_the_file_is_written() {
    let file = root("kept").join("f");
    put(&file, b"old".to_vec()).unwrap();
    let map = Map::of(&open(&file).unwrap()).unwrap();
    File::append(&file).unwrap().write_all(b"er").unwrap();
    assert_eq!((&*map, &*read(&file, 9).unwrap()), (&b"old"[..], &b"older"[..]));
    assert!(put(Path::new("f"), Vec::new()).is_err() && put(&root("kept"), Vec::new()).is_err());
    assert_eq!(open_on_disk(&file).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn a_file_that_does_not_fit_in_memory_is_an_error() {
    let file = root("large").join("f");
    put(&file, b"old".to_vec()).unwrap();
    let mut large = open(&file).unwrap();
    assert_eq!(large.set_size(u64::MAX).unwrap_err().kind(), ErrorKind::OutOfMemory);
    large.seek(SeekFrom::Start(i64::MAX as u64)).unwrap();
    assert_eq!(large.write_all(b"er").unwrap_err().kind(), ErrorKind::OutOfMemory);
    assert_eq!(read(&file, 9).unwrap(), b"old");
}
