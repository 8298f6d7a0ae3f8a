//! Compiled kernel programs: the embedded ones or, for tests, a fresh build.
use std::{borrow::Cow, env, fs, path::PathBuf};

use aya_obj::Object;

use super::{
    error::GuardError,
    layout::{Found, LAYOUTS},
};

/// Variable with the path of an object file to load instead of the embedded one.
pub const OBJECT_VARIABLE: &str = "WS_GUARD_OBJECT";

/// Object that belongs to this build.
static EMBEDDED: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/ws-guard.bpf.o"));

/// Object file and its origin.
pub struct ObjectFile {
    pub bytes: Cow<'static, [u8]>,
    /// Origin, for messages.
    pub place: String,
}

impl ObjectFile {
    /// Return the embedded object, or the one that `WS_GUARD_OBJECT` names.
    ///
    /// # Errors
    /// When the named file cannot be read.
    pub fn find() -> Result<Self, GuardError> {
        let Some(path) = env::var_os(OBJECT_VARIABLE).map(PathBuf::from) else {
            return Ok(ObjectFile {
                bytes: Cow::Borrowed(EMBEDDED),
                place: "this executable".into(),
            });
        };
        let place = format!("{} ({OBJECT_VARIABLE})", path.display());
        match fs::read(&path) {
            Ok(bytes) => Ok(ObjectFile { bytes: Cow::Owned(bytes), place }),
            Err(error) => Err(GuardError::Object { place, reason: error.to_string() }),
        }
    }

    /// Compare the maps that outlive the daemon with their layouts.
    ///
    /// # Errors
    /// When it cannot be parsed, lacks a map, or has one of another layout.
    pub fn check(&self) -> Result<(), GuardError> {
        let object = Object::parse(&self.bytes).map_err(|error| self.error(error.to_string()))?;
        for layout in &LAYOUTS {
            let map = object.maps.get(layout.name);
            let map = map.ok_or_else(|| self.error(format!("no map {}", layout.name)))?;
            let mut found = Found::from(map);
            if layout.value == 0 {
                // The ring buffer's key and value only declare the type of its records.
                (found.key, found.value) = (0, 0);
            }
            layout.check(&found).map_err(|reason| self.error(reason))?;
        }
        Ok(())
    }

    pub fn error(&self, reason: String) -> GuardError {
        GuardError::Object { place: self.place.clone(), reason }
    }
}
