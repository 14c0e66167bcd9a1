//! The directory of cached files: checks who may write to it, and opens, replaces and removes files in it.
//!
//! Cached graphs run in the caller's process, so a file that belongs to another user must never be used. In a directory
//! with the sticky bit, such as /tmp, other users can create files under any name, including symbolic links and pipes.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::{Error, Kind, Result, Setting};

/// Write permission of the group and of others.
const WRITABLE: u32 = 0o022;
const STICKY: u32 = 0o1000;
/// Maximum number of bytes to read of a text file. The cache writes no longer ones.
const LONGEST: u64 = 1 << 20;

/// Checks that no other user can create or replace files in the directory. A missing directory passes, because
/// [`create`] creates it with mode 0700.
///
/// # Errors
/// [`Kind::BadModel`] if another user owns the directory, or if other users may write to it and it has no sticky bit.
pub fn check(directory: &Path) -> Result<()> {
    // Both the link and the directory that it points to are checked, because the owner of the link chooses the
    // directory.
    let found = [fs::symlink_metadata(directory), fs::metadata(directory)];
    for about in found.iter().flatten() {
        if let Some(why) = objection(about, effective_user()) {
            let message = format!("cache directory \"{}\" is not used", directory.display());
            return Err(Error::new(Kind::BadModel, message).detail(why).hint_setting(
                Setting::Cache,
                "Set {setting} to a directory that only its user may write to. A directory that doesn't exist is created with \
                 mode 0700.",
            ));
        }
    }
    Ok(())
}

/// The reason why this user can't trust a directory or a link to it, if any.
fn objection(about: &Metadata, user: u32) -> Option<String> {
    let (owner, mode) = (about.uid(), about.mode());
    if owner != user && owner != 0 {
        return Some(format!("It belongs to the user with id {owner}; this process runs as the user with id {user}."));
    }
    (about.is_dir() && mode & WRITABLE != 0 && mode & STICKY == 0)
        .then(|| format!("Its mode is {:04o}, so other users can replace files in it.", mode & 0o7777))
}

fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Creates the directory unless it exists.
///
/// # Errors
/// The errors of the file system, and [`ErrorKind::PermissionDenied`] if [`check`] refuses the directory.
pub fn create(directory: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).recursive(true).create(directory)?;
    check(directory).map_err(|e| io::Error::new(ErrorKind::PermissionDenied, e.detail.unwrap_or(e.message)))
}

/// Whether a file or directory belongs to this user or root, and only its owner may write to it.
fn is_own(about: &Metadata) -> bool {
    [effective_user(), 0].contains(&about.uid()) && about.mode() & WRITABLE == 0
}

/// Whether the path is a directory of this user, and not a link to one.
pub fn is_own_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|about| about.is_dir() && is_own(&about))
}

/// Opens a regular file of this user. Links and pipes are refused.
///
/// # Errors
/// The errors of the file system, and [`ErrorKind::InvalidInput`] for any other kind of file.
pub fn open(path: &Path) -> io::Result<File> {
    own(File::options().read(true), path)
}

fn own(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // Without O_NONBLOCK, opening a pipe would wait for its other end.
    let file = options.mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let about = file.metadata()?;
    if about.is_file() && is_own(&about) {
        Ok(file)
    } else {
        Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file of this user"))
    }
}

/// The contents of a text file of this user, up to 1 MiB.
///
/// # Errors
/// The errors of [`open`]; [`ErrorKind::InvalidData`] if the file is not UTF-8.
pub fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open(path)?.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// Opens a file of this user for writing, such as a lock file, and creates it if it is missing. Its contents remain.
/// Anything else at this path, such as a link or a directory, is removed first.
///
/// # Errors
/// The errors of the file system.
pub fn open_or_create(path: &Path) -> io::Result<File> {
    let open = || own(File::options().read(true).write(true).create(true).truncate(false), path);
    open().or_else(|error| {
        let usable = fs::symlink_metadata(path).is_ok_and(|about| about.is_file());
        if usable && error.kind() != ErrorKind::PermissionDenied {
            return Err(error);
        }
        remove(path);
        open()
    })
}

/// Writes a file under a temporary name in the same directory and renames it, so that other processes see the complete
/// file or none. A link or a directory at this path is replaced, not followed.
///
/// # Errors
/// The errors of the file system and of `write`.
pub fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut name = OsString::from(format!("draft-{}-", std::process::id()));
    name.push(path.file_name().unwrap_or_default());
    let draft = path.with_file_name(name);
    remove(&draft);
    let written = File::options().write(true).create_new(true).mode(0o600).open(&draft).and_then(|mut file| {
        write(&mut file)?;
        if fs::symlink_metadata(path).is_ok_and(|about| about.is_dir()) {
            remove(path);
        }
        fs::rename(&draft, path)
    });
    if written.is_err() {
        remove(&draft);
    }
    written
}

/// Like [`replace`], with a text.
///
/// # Errors
/// The errors of the file system.
pub fn replace_text(path: &Path, text: &str) -> io::Result<()> {
    replace(path, |file| file.write_all(text.as_bytes()))
}

/// Removes a file, a link (but not its target), or a directory with its contents. Failures are ignored.
pub fn remove(path: &Path) {
    let Ok(about) = fs::symlink_metadata(path) else { return };
    if !about.is_dir() {
        let _ = fs::remove_file(path);
        return;
    }
    if about.mode() & 0o700 != 0o700 && about.uid() == effective_user() {
        let _ = fs::set_permissions(path, Permissions::from_mode(0o700));
    }
    let _ = fs::remove_dir_all(path);
}

/// The state of a regular file as text: length, inode, and the times of the last change of content and of status, to
/// the nanosecond. None if it is not a regular file.
pub fn state(path: &Path) -> Option<String> {
    let about = fs::symlink_metadata(path).ok().filter(Metadata::is_file)?;
    let (changed, status) = ((about.mtime(), about.mtime_nsec()), (about.ctime(), about.ctime_nsec()));
    Some(format!("{} {} {changed:?} {status:?}", about.len(), about.ino()))
}

/// The time since the last change of a file, a directory, or a link.
pub fn age(path: &Path) -> Option<Duration> {
    let changed = fs::symlink_metadata(path).and_then(|about| about.modified()).ok()?;
    SystemTime::now().duration_since(changed).ok()
}

/// Marks a file or directory as used now, for [`age`].
pub fn touch(path: &Path) {
    let _ = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .and_then(|file| file.set_modified(SystemTime::now()));
}

/// The number of bytes that this user can still write to the file system of a directory, or of its nearest existing
/// parent.
pub fn available(directory: &Path) -> Option<u64> {
    let place = directory.ancestors().find(|path| path.exists())?;
    let about = rustix::fs::statvfs(place).ok()?;
    Some(about.f_bavail.saturating_mul(about.f_frsize))
}

/// The number of bytes of all files below a directory.
pub fn used(directory: &Path) -> u64 {
    let of_entry = |path: PathBuf| match fs::symlink_metadata(&path) {
        Ok(about) if about.is_dir() => used(&path),
        Ok(about) => about.len(),
        Err(_) => 0,
    };
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| of_entry(entry.path())).sum()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, chown, symlink};

    use super::*;

    const NOBODY: u32 = 65_534;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("clip-directory-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// Gives a file to another user, which only root can do. Returns whether it succeeded.
    fn give_away(path: &Path) -> bool {
        std::os::unix::fs::lchown(path, Some(NOBODY), None).is_ok()
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let folder = folder("refused");
        for (mode, good) in [(0o700, true), (0o755, true), (0o1777, true), (0o777, false), (0o770, false)] {
            set_mode(&folder, mode);
            let result = check(&folder);
            assert_eq!(result.is_ok(), good, "{mode:o}: {result:?}");
            assert_eq!(create(&folder).is_ok(), good, "{mode:o}");
            if let Err(error) = result {
                assert!(error.detail.unwrap().starts_with(&format!("Its mode is {mode:04o}")));
                assert_eq!(error.setting, Some(Setting::Cache));
            }
        }
        set_mode(&folder, 0o700);
        assert!(check(&folder.join("missing")).is_ok());
        let about = fs::metadata(&folder).unwrap();
        assert_eq!(objection(&about, about.uid()), None);
        let link = folder.join("link");
        symlink(&folder, &link).unwrap();
        assert!(check(&link).is_ok());
        if give_away(&link) {
            assert!(check(&link).unwrap_err().detail.unwrap().contains(&format!("user with id {NOBODY};")), "a link");
            chown(&folder, Some(NOBODY), None).unwrap();
            assert!(check(&folder).is_err() && create(&folder).is_err());
        } else {
            assert!(objection(&about, about.uid() + 1).unwrap().contains("belongs to"));
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn links_are_neither_followed_nor_emptied() {
        let folder = folder("links");
        let (precious, cache) = (folder.join("precious"), folder.join("cache"));
        fs::write(&precious, "precious").unwrap();
        fs::create_dir(&cache).unwrap();
        let place = cache.join("lock");
        let plant = || symlink(&precious, &place).unwrap();

        plant();
        assert!(open(&place).is_err() && read(&place).is_err() && state(&place).is_none());
        open_or_create(&place).unwrap().write_all(b"lock").unwrap();
        assert_eq!(read(&place).unwrap(), "lock", "the link is gone");
        open_or_create(&place).unwrap();
        assert_eq!(read(&place).unwrap(), "lock", "what is there remains");
        remove(&place);
        plant();
        replace_text(&place, "new").unwrap();
        assert_eq!(read(&place).unwrap(), "new");
        remove(&place);
        plant();
        remove(&place);
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);

        // A link to a directory of this user is not a directory of this user.
        symlink(&folder, &place).unwrap();
        assert!(is_own_directory(&folder) && !is_own_directory(&place));
        remove(&place);
        assert!(precious.exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn entries_of_another_kind_are_replaced() {
        let folder = folder("replaced");
        let place = folder.join("file");
        fs::create_dir(&place).unwrap();
        fs::write(place.join("inside"), "x").unwrap();
        set_mode(&place, 0o000);
        assert!(open(&place).is_err());
        replace_text(&place, "a").unwrap();
        assert_eq!(read(&place).unwrap(), "a");
        set_mode(&place, 0o000);
        replace_text(&place, "b").unwrap();
        assert_eq!(read(&place).unwrap(), "b");
        set_mode(&place, 0o000);
        open_or_create(&place).unwrap();
        remove(&place);
        fs::create_dir(&place).unwrap();
        open_or_create(&place).unwrap();
        remove(&place);
        rustix::fs::mkfifoat(rustix::fs::CWD, &place, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        assert!(fs::metadata(&place).unwrap().file_type().is_fifo());
        assert!(read(&place).is_err(), "without waiting for its other end");
        replace_text(&place, "c").unwrap();
        set_mode(&place, 0o666);
        assert!(open(&place).is_err(), "others may have written it");
        set_mode(&place, 0o600);
        fs::write(&place, [0xff]).unwrap();
        assert_eq!(read(&place).unwrap_err().kind(), ErrorKind::InvalidData);
        if give_away(&place) {
            assert!(open(&place).is_err());
            chown(&folder, Some(NOBODY), None).unwrap();
            assert!(!is_own_directory(&folder));
        }
        let full = replace(&place, |_| Err(ErrorKind::StorageFull.into()));
        assert_eq!(full.unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "no draft remains");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_change_of_a_file_changes_its_state() {
        let folder = folder("state");
        let file = folder.join("file");
        fs::write(&file, "one").unwrap();
        let before = state(&file).unwrap();
        let changed = fs::metadata(&file).unwrap().modified().unwrap();
        assert_eq!(state(&file).unwrap(), before);
        std::thread::sleep(Duration::from_millis(20));
        fs::write(&file, "two").unwrap();
        File::options().write(true).open(&file).unwrap().set_modified(changed).unwrap();
        assert_ne!(state(&file).unwrap(), before, "as long, and with its old time of change");
        assert!(state(&folder).is_none());
        File::options().write(true).open(&file).unwrap().set_modified(changed - Duration::from_secs(100)).unwrap();
        assert!(age(&file).unwrap() > Duration::from_secs(90));
        touch(&file);
        assert!(age(&file).unwrap() < Duration::from_secs(90));
        fs::create_dir(folder.join("more")).unwrap();
        fs::write(folder.join("more/file"), "12345").unwrap();
        assert_eq!(used(&folder), 8);
        assert!(available(&folder.join("missing")).is_some());
        fs::remove_dir_all(folder).unwrap();
    }
}
