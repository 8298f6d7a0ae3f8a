//! Commands of bpf(2) that aya lacks: batches, a pinned link's interface,
//! the first program on a hook, and look-ups under a map's spin lock through a shared reference.
use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type};

/// Look up or update an element under its spin lock.
pub const F_LOCK: u64 = 4;

/// Result of a successful or unfinished batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// Number of entries; there are more.
    More(usize),
    /// Number of entries; they were the last.
    Last(usize),
    /// One hash bucket holds more entries than the buffers have room for.
    TooSmall,
}

/// Buffers for a batch's entries; each pointer has room for `count` of its kind.
pub struct BatchBuffers<K, V> {
    pub keys: *mut K,
    pub values: *mut V,
    pub count: u32,
}

/// # Safety
/// What the attributes point to must be valid for the command.
unsafe fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the attributes are a whole `bpf_attr`; the caller guarantees the pointers in it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, attributes, size_of::<bpf_attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn zeroed() -> bpf_attr {
    // SAFETY: a union of integers and structs of integers; all zero is the documented default.
    unsafe { mem::zeroed() }
}

/// Return the `bpf_attr` of a command on one element.
fn element<K>(map: BorrowedFd<'_>, key: *const K, value: u64, flags: u64) -> bpf_attr {
    let mut attributes = zeroed();
    attributes.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attributes.__bindgen_anon_2.key = key as u64;
    attributes.__bindgen_anon_2.__bindgen_anon_1.value = value;
    attributes.__bindgen_anon_2.flags = flags;
    attributes
}

/// BPF_MAP_LOOKUP_ELEM; `None` if the key does not exist.
///
/// # Safety
/// The map's key and value sizes must be those of `K` and `V`, and any bytes must be a valid `V`.
pub unsafe fn lookup<K, V>(map: BorrowedFd<'_>, key: &K, flags: u64) -> io::Result<Option<V>> {
    let mut value = mem::MaybeUninit::<V>::uninit();
    let mut attributes = element(map, key, value.as_mut_ptr() as u64, flags);
    // SAFETY: key and value have the map's sizes, as the caller guarantees.
    match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attributes) } {
        // SAFETY: the kernel has written the value's whole size.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// BPF_MAP_UPDATE_ELEM with BPF_ANY.
///
/// # Safety
/// The map's key and value sizes must be those of `K` and `V`.
pub unsafe fn update<K, V>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut attributes = element(map, key, value as *const V as u64, 0);
    // SAFETY: key and value have the map's sizes, as the caller guarantees; the kernel only reads.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
}

/// BPF_MAP_DELETE_ELEM; return whether the key existed.
///
/// # Safety
/// The map's key size must be that of `K`.
pub unsafe fn delete<K>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attributes = element(map, key, 0, 0);
    // SAFETY: the key has the map's size, as the caller guarantees.
    match unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attributes) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// BPF_MAP_GET_NEXT_KEY; `None` returns the first one.
///
/// # Safety
/// The map's key size must be that of `K`, and any bytes must be a valid `K`.
pub unsafe fn next_key<K>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = mem::MaybeUninit::<K>::uninit();
    let key = key.map_or(std::ptr::null(), |key| key as *const K);
    let mut attributes = element(map, key, next.as_mut_ptr() as u64, 0);
    // SAFETY: both keys have the map's size, as the caller guarantees; a null key is allowed.
    match unsafe { bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attributes) } {
        // SAFETY: the kernel has written a whole key.
        Ok(_) => Ok(Some(unsafe { next.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// BPF_MAP_LOOKUP_BATCH (Linux 5.6).
/// `position` is empty before the first batch and belongs to the kernel from then on.
///
/// # Safety
/// The map's key and value sizes must be those of `K` and `V`, `buffers` must have room for `count`
/// of each, and `position` for a key or four bytes, whichever is more.
pub unsafe fn lookup_batch<K, V>(
    map: BorrowedFd<'_>,
    position: &mut Vec<u8>,
    buffers: &BatchBuffers<K, V>,
    flags: u64,
) -> io::Result<Batch> {
    let first = position.is_empty();
    position.resize(size_of::<K>().max(size_of::<u32>()), 0);
    let mut attributes = zeroed();
    attributes.batch.in_batch = if first { 0 } else { position.as_ptr() as u64 };
    attributes.batch.out_batch = position.as_mut_ptr() as u64;
    attributes.batch.keys = buffers.keys as u64;
    attributes.batch.values = buffers.values as u64;
    attributes.batch.count = buffers.count;
    attributes.batch.map_fd = map.as_raw_fd() as u32;
    attributes.batch.elem_flags = flags;
    // SAFETY: the buffers have room for `count` keys and values, as the caller guarantees.
    let result = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attributes) };
    // SAFETY: the kernel writes the count on success and at the end of the map.
    let count = unsafe { attributes.batch.count } as usize;
    match result {
        Ok(_) => Ok(Batch::More(count)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(Batch::Last(count)),
            Some(libc::ENOSPC) => {
                if first {
                    position.clear();
                }
                Ok(Batch::TooSmall)
            }
            _ => Err(error),
        },
    }
}

/// Kernel's information about a pinned link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    pub id: u32,
    pub program_id: u32,
    /// 0 once the interface is gone: the link is severed.
    pub interface: u32,
}

/// BPF_OBJ_GET.
fn pinned_object(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = zeroed();
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: the path is a C string that outlives the call.
    let fd = unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attributes) }?;
    // SAFETY: the kernel has just returned this descriptor, which has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// BPF_LINK_DETACH (Linux 5.9): frees the hook, even if a process holds the link.
/// It is free on return; removing the pin alone frees it some time later.
pub fn detach_link(path: &Path) -> io::Result<()> {
    let link = pinned_object(path)?;
    let mut attributes = zeroed();
    attributes.link_detach.link_fd = link.as_raw_fd() as u32;
    // SAFETY: the command takes nothing but the descriptor, which outlives the call.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attributes) }.map(drop)
}

/// BPF_PROG_QUERY (Linux 6.6 for TCX): the first program on a hook of an interface.
pub fn first_program(interface: u32, hook: bpf_attach_type) -> io::Result<Option<u32>> {
    let mut first = 0_u32;
    let mut attributes = zeroed();
    attributes.query.__bindgen_anon_1.target_ifindex = interface;
    attributes.query.attach_type = hook as u32;
    attributes.query.prog_ids = &raw mut first as u64;
    attributes.query.__bindgen_anon_2.prog_cnt = 1;
    // SAFETY: the list has room for the one id that is asked for, and outlives the call.
    match unsafe { bpf(bpf_cmd::BPF_PROG_QUERY, &mut attributes) } {
        // There are further ones, without room.
        Err(error) if error.raw_os_error() != Some(libc::ENOSPC) => Err(error),
        _ => Ok((first != 0).then_some(first)),
    }
}

/// BPF_OBJ_GET_INFO_BY_FD of a pinned XDP or TCX link.
///
/// # Errors
/// Errors of the commands, and `InvalidData` for a link of another kind.
pub fn pinned_link(path: &Path) -> io::Result<LinkInfo> {
    let fd = pinned_object(path)?;
    // SAFETY: plain integers; zero is valid.
    let mut info: bpf_link_info = unsafe { mem::zeroed() };
    let mut attributes = zeroed();
    attributes.info.bpf_fd = fd.as_raw_fd() as u32;
    attributes.info.info_len = size_of::<bpf_link_info>() as u32;
    attributes.info.info = &raw mut info as u64;
    // SAFETY: `info` has the length that is given, and outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    let interface = match info.type_ {
        // SAFETY: the kernel fills the member that belongs to the type.
        kind if kind == bpf_link_type::BPF_LINK_TYPE_XDP as u32 => unsafe {
            info.__bindgen_anon_1.xdp.ifindex
        },
        // SAFETY: as above.
        kind if kind == bpf_link_type::BPF_LINK_TYPE_TCX as u32 => unsafe {
            info.__bindgen_anon_1.tcx.ifindex
        },
        kind => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a link of kind {kind}, neither XDP nor TCX"),
            ));
        }
    };
    Ok(LinkInfo { id: info.id, program_id: info.prog_id, interface })
}
