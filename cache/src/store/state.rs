//! Small files that others keep in the store, such as the last listing of an origin: there whole or not at all.

use super::error::{StoreError, Wrap};
use super::{Store, disk};

/// First line of every such file, with the digest of the rest.
const MAGIC: &str = "tierd state 1 ";

/// Longest name, in bytes: escaped three-fold and with its ending it still is a file name.
const NAME_BYTES_MAX: usize = 80;

impl Store {
    /// Keeps bytes under a name, in place of earlier ones, durably.
    ///
    /// # Errors
    ///
    /// [`StoreError::BadStateName`], [`StoreError::Full`], [`StoreError::Io`].
    pub fn put_state(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.paths.catalog().join(file_name(name)?);
        let mut file = format!("{MAGIC}{}\n", blake3::hash(bytes).to_hex()).into_bytes();
        file.extend_from_slice(bytes);
        disk::write_whole(&path, &file, self.paths.file_mode)
    }

    /// What was kept under a name; none if nothing was, or if it is damaged.
    ///
    /// # Errors
    ///
    /// [`StoreError::BadStateName`], [`StoreError::Io`].
    pub fn get_state(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.paths.catalog().join(file_name(name)?);
        if disk::look(&path)?.is_none() {
            return Ok(None);
        }
        let file = std::fs::read(&path).wrap("read", &path)?;
        let kept = undamaged(&file);
        if kept.is_none() {
            tracing::warn!(path = %path.display(), "kept state is damaged, doing without it");
        }
        Ok(kept.map(<[u8]>::to_vec))
    }
}

fn undamaged(file: &[u8]) -> Option<&[u8]> {
    let rest = file.strip_prefix(MAGIC.as_bytes())?;
    let (digest, bytes) = rest.split_at_checked(64)?;
    let bytes = bytes.strip_prefix(b"\n")?;
    (blake3::hash(bytes).to_hex().as_bytes() == digest).then_some(bytes)
}

/// A file name for any name: what could be more than a plain character is escaped, so that no two names meet.
fn file_name(name: &str) -> Result<String, StoreError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(StoreError::BadStateName { name: name.chars().take(NAME_BYTES_MAX).collect() });
    }
    let mut escaped = String::with_capacity(name.len() + 5);
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02x}")),
        }
    }
    Ok(escaped + ".json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_becomes_a_file_name_of_its_own() {
        for (name, file) in [("r2", "r2.json"), ("../x", "%2e%2e%2fx.json"), ("a b", "a%20b.json"), ("%", "%25.json")] {
            assert_eq!(file_name(name).expect("valid"), file);
        }
        assert!(file_name("").is_err() && file_name(&"x".repeat(81)).is_err());
        assert!(file_name(&"é".repeat(40)).expect("valid").len() <= 255);
    }

    #[test]
    fn the_format_is_byte_exact_so_bump_the_version_if_this_fails() {
        let digest = blake3::hash(b"{}").to_hex();
        let file = format!("tierd state 1 {digest}\n{{}}");
        assert_eq!(undamaged(file.as_bytes()), Some(&b"{}"[..]));
        assert_eq!(undamaged(&file.as_bytes()[..file.len() - 1]), None);
    }
}
