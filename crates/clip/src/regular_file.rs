//! Reads files of a model's directory and lists of words. Only regular files are opened: a named pipe or a device in their
//! place would block the process, where no interrupt ends it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// # Errors
/// Those of the system, and an error for anything but a regular file.
pub fn open(path: &Path) -> io::Result<File> {
    // O_NONBLOCK has no effect on regular files; opening a pipe without a writer waits for one otherwise.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "It is not a regular file")),
    }
}

/// # Errors
/// Those of [`open`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// # Errors
/// Those of [`open`], and [`io::ErrorKind::InvalidData`] for a file that is not UTF-8.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-models/regular_file");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let (file, link, pipe) = (folder.join("file"), folder.join("link"), folder.join("pipe"));
        std::fs::write(&file, "text").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(read_to_string(&link).unwrap(), "text");
        for other in [pipe.as_path(), &folder, Path::new("/dev/zero")] {
            assert_eq!(open(other).unwrap_err().to_string(), "It is not a regular file", "{}", other.display());
        }
        assert_eq!(open(&folder.join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
