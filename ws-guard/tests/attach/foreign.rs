//! Foreign programs: minimal ones, which only return a verdict.
use std::{
    ffi::CString,
    fs, io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use anyhow::{Context, Result};
use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType,
    tc::{SchedClassifierLinkId, TcAttachOptions},
};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_prog_type};
use ws_guard_testkit::netns::Namespace;

/// Instructions of linux/bpf.h:
/// BPF_ALU | BPF_MOV | BPF_K, BPF_JMP | BPF_CALL, BPF_JMP | BPF_EXIT. The register is in bits 8 to
/// 11, the operand in the upper half.
const MOVE: u64 = 0xb4;
const CALL: u64 = 0x85;
const EXIT: u64 = 0x95;

/// A pinned program of a few instructions.
pub struct Small(PathBuf);

impl Small {
    /// Load a program that returns a constant.
    pub fn constant(kind: bpf_prog_type, verdict: i32) -> Result<Small> {
        Small::new(kind, &[MOVE | (verdict as u32 as u64) << 32, EXIT])
    }

    /// Load a program that hands packets to the other end of a veth pair.
    /// They enter its namespace, as with CNI plugins.
    pub fn redirect_peer(interface: u32) -> Result<Small> {
        const REDIRECT_PEER: u64 = 155 << 32;
        let to = MOVE | 1 << 8 | u64::from(interface) << 32;
        let no_flags = MOVE | 2 << 8;
        let instructions = [to, no_flags, CALL | REDIRECT_PEER, EXIT];
        Small::new(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, &instructions)
    }

    fn new(kind: bpf_prog_type, instructions: &[u64]) -> Result<Small> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let path = format!("/sys/fs/bpf/wsg-foreign-{}-{number}", std::process::id());
        let program = load(kind, instructions).context("loading a foreign program")?;
        pin(&program, &path).context("pinning a foreign program")?;
        Ok(Small(path.into()))
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A TCX program on an interface until dropped.
pub struct OnTcx {
    program: SchedClassifier,
    link: Option<SchedClassifierLinkId>,
    _pin: Small,
}

impl OnTcx {
    pub fn attach(
        namespace: &Namespace,
        interface: &str,
        hook: TcAttachType,
        order: LinkOrder,
        verdict: i32,
    ) -> Result<OnTcx> {
        let pin = Small::constant(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, verdict)?;
        OnTcx::attach_program(namespace, interface, hook, order, pin)
    }

    pub fn attach_program(
        namespace: &Namespace,
        interface: &str,
        hook: TcAttachType,
        order: LinkOrder,
        pin: Small,
    ) -> Result<OnTcx> {
        let mut program = SchedClassifier::from_pin(&pin.0)?;
        let options = TcAttachOptions::TcxOrder(order);
        let link = namespace.run(|| program.attach_with_options(interface, hook, options))??;
        Ok(OnTcx { program, link: Some(link), _pin: pin })
    }
}

impl Drop for OnTcx {
    fn drop(&mut self) {
        if let Some(link) = self.link.take() {
            let _ = self.program.detach(link);
        }
    }
}

fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: the attributes are a whole `bpf_attr`, and what they point to outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as i64, attributes, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn zeroed() -> bpf_attr {
    // SAFETY: a union of integers; all zero is the documented default.
    unsafe { mem::zeroed() }
}

/// Load a program with BPF_PROG_LOAD.
fn load(kind: bpf_prog_type, instructions: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut attributes = zeroed();
    // SAFETY: a member of a union of integers.
    let program = unsafe { &mut attributes.__bindgen_anon_3 };
    program.prog_type = kind as u32;
    program.insn_cnt = instructions.len() as u32;
    program.insns = instructions.as_ptr() as u64;
    program.license = license.as_ptr() as u64;
    let fd = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes)?;
    // SAFETY: the kernel has just given us this descriptor, and it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn pin(program: &OwnedFd, path: &str) -> io::Result<()> {
    let path = CString::new(path)?;
    let mut attributes = zeroed();
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attributes.__bindgen_anon_4.bpf_fd = program.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes).map(drop)
}
