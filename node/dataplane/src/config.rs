//! How a plane is set up.

/// The protocol number of our routes and rules unless configured otherwise.
pub(crate) const ROUTE_PROTOCOL: u8 = 182;

/// How a plane is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaneConfig {
    /// Name of the device that protected prefixes are routed to.
    pub tun_name: String,
    /// Its MTU: the largest inner packet. At least 1280 where IPv6 is to pass.
    pub tun_mtu: u32,
    /// Port of IKE.
    pub ike_port: u16,
    /// Port of IKE and ESP in UDP.
    pub nat_port: u16,
    /// TCP port on which peers are listened for (RFC 9329); none if they are not.
    pub tcp_port: Option<u16>,
    /// So many TCP connections there may be, and so many with one address of a peer.
    pub tcp_connections: usize,
    /// See there.
    pub tcp_connections_per_address: usize,
    /// Mark of outer packets: those do not take the routes into the tunnel. Not zero.
    pub mark: u32,
    /// Which bits of a mark are that one. The others are for the marks of single Child SAs.
    pub mark_mask: u32,
    /// Routing table for protected prefixes.
    pub route_table: u32,
    /// Priority of the rule that leads to the table.
    pub rule_priority: u32,
    /// Metric of routes into the device. The blackhole below has this plus 1000.
    pub route_metric: u32,
    /// Protocol number that routes and rules bear, to know them again.
    pub route_protocol: u8,
    /// Interfaces on which plain ESP goes by packet sockets, if packets are carried in user space: faster, and unseen by firewall rules of IP.
    pub link_devices: Vec<String>,
    /// Room in the queue of events.
    pub event_queue: usize,
    /// Threads in each direction that packets are spread over, by flow; at least 1 and at most [`MAX_WORKERS`]: clamped.
    pub workers: usize,
}

/// Workers that a plane can have: above what a kernel's device and one port are good for.
pub const MAX_WORKERS: usize = 64;
/// Workers that a plane has by default at most: each has buffers of some megabytes.
const USUAL_WORKERS: usize = 16;

impl Default for PlaneConfig {
    fn default() -> Self {
        Self {
            tun_name: "evergate0".into(),
            tun_mtu: 1400,
            ike_port: 500,
            nat_port: 4500,
            tcp_port: None,
            tcp_connections: 4096,
            tcp_connections_per_address: 64,
            mark: 0xE6,
            mark_mask: u32::MAX,
            route_table: 220,
            rule_priority: 220,
            route_metric: 100,
            route_protocol: ROUTE_PROTOCOL,
            link_devices: Vec::new(),
            event_queue: 4096,
            workers: std::thread::available_parallelism().map_or(1, |n| n.get().min(USUAL_WORKERS)),
        }
    }
}
