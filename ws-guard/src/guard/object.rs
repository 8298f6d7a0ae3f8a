//! The compiled kernel programs: the ones built in, or, for tests, a fresh build.
use std::{borrow::Cow, env, fs, path::PathBuf};

use aya_obj::Object;

use super::{
    error::GuardError,
    layout::{Found, LAYOUTS},
};

/// Names an object file to load instead of the built-in one.
pub const OBJECT_VARIABLE: &str = "WS_GUARD_OBJECT";

/// The object that belongs to this build.
static EMBEDDED: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/ws-guard.bpf.o"));

/// An object file and where it is from.
pub struct ObjectFile {
    pub bytes: Cow<'static, [u8]>,
    /// For messages.
    pub place: String,
}

impl ObjectFile {
    /// The built-in object, or the one that `WS_GUARD_OBJECT` names.
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
                // The ring buffer's key and value only give its records their type.
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
