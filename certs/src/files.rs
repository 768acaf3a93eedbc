//! Private files that are either old or new, never half written, whenever the process dies.

use crate::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// The largest PEM file that is read, in bytes.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// Writes a file that only its owner may read: a new file beside it, synced, then renamed over it.
///
/// # Errors
/// [`Error::File`].
pub fn write_private(path: &Path, contents: &[u8]) -> Result<(), Error> {
    write(path, contents).map_err(|source| Error::File {
        path: path.display().to_string(),
        source,
    })
}

/// The file's text; `None` if there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<String>, Error> {
    let failed = |source| Error::File {
        path: path.display().to_string(),
        source,
    };
    match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e)),
        Ok(m) if m.len() > PEM_BYTES_MAX => {
            Err(Error::malformed(path.display(), "it is too long for a PEM file"))
        }
        Ok(_) => fs::read_to_string(path).map(Some).map_err(failed),
    }
}

fn write(path: &Path, contents: &[u8]) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let new = folder.join(name);
    // A leftover of a process that died may have other permissions.
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = private().open(&new)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_private_and_replace_leftovers() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        fs::write(folder.path().join("key.new"), "half").expect("a leftover");
        for text in ["one", "two"] {
            write_private(&path, text.as_bytes()).expect("written");
            assert_eq!(read(&path).expect("read").as_deref(), Some(text));
            assert_eq!(
                fs::metadata(&path).expect("there").permissions().mode() & 0o777,
                0o600
            );
        }
        assert!(!folder.path().join("key.new").exists());
        assert_eq!(read(&folder.path().join("other")).expect("no error"), None);
    }
}
