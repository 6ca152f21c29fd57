//! Which worker a packet of plain ESP comes to, as programs of the kernel's packet filter: always the same for packets from one address.

use socket2::SockFilter;

/// Which packets come to a worker: this part of so many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    pub(crate) part: u32,
    pub(crate) of: u32,
}

impl Share {
    /// For a socket: lets those packets through that are of this part.
    pub(crate) fn filter(self, ipv4: bool) -> Vec<SockFilter> {
        let mut program = part(ipv4, self.of);
        let is_ours = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        program.extend([
            SockFilter::new(code(is_ours), 0, 1, self.part),
            op(libc::BPF_RET | libc::BPF_K, u32::MAX),
            op(libc::BPF_RET | libc::BPF_K, 0),
        ]);
        program
    }
}

/// For a group of so many sockets: yields which part a packet is of.
pub(crate) fn chooser(ipv4: bool, of: u32) -> Vec<SockFilter> {
    let mut program = part(ipv4, of);
    program.push(op(libc::BPF_RET | libc::BPF_A, 0));
    program
}

/// Computes the part from the source address.
fn part(ipv4: bool, of: u32) -> Vec<SockFilter> {
    // Counted from the IP header, wherever a family's packets begin.
    let load = |at: u32| {
        let header = libc::SKF_NET_OFF.cast_unsigned();
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, header + at)
    };
    let compute = |what, k| op(libc::BPF_ALU | what | libc::BPF_K, k);
    let mut program = if ipv4 {
        vec![load(12)]
    } else {
        vec![
            load(20),
            op(libc::BPF_MISC | libc::BPF_TAX, 0),
            load(16),
            op(libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X, 0),
        ]
    };
    program.extend([
        // All bits of the address count.
        compute(libc::BPF_MUL, 0x9e37_79b1),
        compute(libc::BPF_RSH, 16),
        compute(libc::BPF_MOD, of),
    ]);
    program
}

fn op(what: u32, k: u32) -> SockFilter {
    SockFilter::new(code(what), 0, 0, k)
}

fn code(what: u32) -> u16 {
    u16::try_from(what).unwrap_or(0)
}
