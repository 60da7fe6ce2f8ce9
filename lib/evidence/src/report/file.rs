//! Writing what was asked for to where it was asked for.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Writes a file whole or not at all. A link is followed; what exists and is no regular file (a pipe, a device) is
/// written to, never replaced; a file that must not be written is left as it is.
///
/// # Errors
/// What the system says.
pub fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => Err(io::Error::new(ErrorKind::IsADirectory, "is a directory")),
        Ok(there) if there.is_file() => {
            if there.permissions().readonly() {
                return Err(io::Error::new(ErrorKind::PermissionDenied, "the file is read-only"));
            }
            drop(OpenOptions::new().write(true).open(path)?);
            match whole(&fs::canonicalize(path)?, text, Some(there.permissions())) {
                // A file may be ours to write where the folder is not.
                Err(e) if e.kind() == ErrorKind::PermissionDenied => fs::write(path, text),
                done => done,
            }
        }
        Ok(_) => OpenOptions::new().write(true).open(path)?.write_all(text),
        Err(e) if e.kind() == ErrorKind::NotFound => whole(&end_of_links(path), text, None),
        Err(e) => Err(e),
    }
}

/// Where a link to nothing leads.
fn end_of_links(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..40 {
        let Ok(target) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    path
}

/// Writes beside `path`, then renames.
fn whole(path: &Path, text: &[u8], permissions: Option<Permissions>) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "names no file"))?;
    let beside = path.with_file_name(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&beside)?;
    let done = file
        .write_all(text)
        .and_then(|()| permissions.map_or(Ok(()), |p| file.set_permissions(p)))
        .and_then(|()| fs::rename(&beside, path));
    if done.is_err() {
        let _ = fs::remove_file(&beside);
    }
    done
}
