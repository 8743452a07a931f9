//! Which stored blob a file is, whatever it is called: workers name files as they see them, through links and other mounts.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Store;
use crate::ids::BlobId;

/// What a path stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundFile {
    /// The file of a stored blob: the same inode of the same file system.
    Blob(BlobId),
    /// Something else, or something that cannot be looked at.
    Foreign,
    /// Nothing, as this process sees it.
    Missing,
}

impl Store {
    /// Looks which of these blobs a file is. Follows links and looks (`stat`) at what they lead to; opens nothing, so that no
    /// path can make it read a device or wait for a pipe. Blocks where the file system does not answer.
    #[must_use]
    pub fn find_file(&self, file: &Path, blobs: &[(BlobId, u64)]) -> FoundFile {
        if !file.is_absolute() {
            return FoundFile::Foreign;
        }
        let found = match std::fs::metadata(file) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return FoundFile::Missing,
            Err(_) => return FoundFile::Foreign,
        };
        let is_it = |blob: BlobId| {
            let own = std::fs::symlink_metadata(self.paths.blob(blob));
            own.is_ok_and(|own| (own.dev(), own.ino()) == (found.dev(), found.ino()))
        };
        // Its size rules out nearly all of them without a look.
        let same_size = blobs.iter().filter(|(_, bytes)| *bytes == found.len());
        let found = same_size.map(|(blob, _)| *blob).find(|blob| is_it(*blob));
        found.map_or(FoundFile::Foreign, FoundFile::Blob)
    }
}
