//! The data plane's contract, and its implementations.
//!
//! [`DataPlane`] is the contract; [`Userspace`] carries packets between a TUN device and sockets, [`Xfrm`] has the kernel carry them. In front of both stands the
//! [`DeadMan`] switch, and [`Addresses`] moves the addresses of virtual gateways.

mod addresses;
mod child;
mod config;
mod contract;
mod counters;
mod deadman;
mod delivery;
mod departure;
mod early;
mod exit;
mod gate;
mod hold;
mod inbound;
mod intake;
mod link;
mod local;
mod marks;
#[cfg(test)]
mod namespace;
mod netlink;
mod nftables;
mod outbound;
mod passage;
mod path;
pub mod prefix;
mod protection;
mod reserve;
mod routes;
mod rtnl;
mod sender;
mod share;
mod sockets;
mod stop;
mod sys;
mod tables;
mod tap;
mod tcp;
mod train;
mod tun;
mod userspace;
mod virtio;
mod watch;
mod xfrm;

pub use addresses::{ANNOUNCEMENTS, Addresses, AddressesConfig, Announcer, Changed, Side, Taken};
pub use config::{MAX_WORKERS, PlaneConfig};
pub use contract::{
    Capabilities, ChildSa, ChildStats, DataPlane, DropReason, Drops, Encapsulation, Mode, Outer,
    PlaneError, PlaneEvent, Protected, TcpEnd, Totals, Transport,
};
pub use deadman::{DeadMan, DeadManConfig};
pub use evergate_esp::{
    Cipher, Encryption, Integrity, Selector, transport::Ends, tunnel::HeaderPolicy,
};
pub use gate::{Gate, boot_time};
pub use hold::{Datagram, DatagramKind, Hold, Packet};
pub use local::{host_addresses, local_address_within};
pub use marks::{Mark, Marks, Offload};
pub use tap::{
    CAPTURE_QUEUE, CAPTURE_QUEUE_BYTES, Capture, Frame, MAX_CAPTURES, Note, Side as FrameSide,
    Subjects,
};
pub use userspace::Userspace;
pub use watch::NetworkWatch;
pub use xfrm::Xfrm;
