mod credentials;
mod errors;

use super::*;
use evergate_ike::{
    config::{Childless, Fragmentation, HwOffload, IkeVolume, StartAction, Unique, Volume},
    identity::{IdPattern, Identity},
};
use std::{net::IpAddr, time::Duration};

/// A document that uses every key.
const FULL: &str = r#"
[member]
name = "m1"
state_dir = "/tmp/state"
key_file = "/tmp/key"
admin_socket = "/tmp/admin.sock"
ike_port = 1500
nat_port = 14500
workers = 3

[dataplane]
tun = "eg1"
mtu = 1380
mark = 7
route_table = 99
keep_closed = false

[retransmit]
timeout = "500ms"
base = 1.5
tries = 3

[limits]
cookie_threshold = 5
cookie_threshold_ip = 4
block_threshold = 2
half_open = 100
half_open_timeout = "45s"

[connections.zulu]
local_addrs = ["192.0.2.1"]
remote_addrs = ["192.0.2.2", "198.51.100.0/24"]
remote_port = 1501
proposals = ["aes256gcm16-prfsha384-x25519"]
encap = true
vips = ["0.0.0.0", "::"]
pools = ["v4"]
rekey_time = "8h"
over_time = "30m"
rand_time = "10m"
rekey_bytes = 1000
reauth_bytes = 5000
reauth_packets = 300
over_packets = 7
rand_packets = 9
dpd_delay = "30s"
message_id_sync = false
window_size = 4
unique = "keep"
childless = "prefer"
fragmentation = "accept"
fragment_size = 1000
local = { auth = "psk", id = "a.test" }
remote = { auth = "psk", id = "*.test" }

[connections.zulu.children.net]
local_ts = ["10.1.0.0/16"]
remote_ts = ["dynamic"]
esp_proposals = ["aes256gcm16-x25519"]
rekey_time = "2h"
life_time = "3h"
rand_time = "7m"
rekey_bytes = 1000000
life_bytes = 2000000
rand_bytes = 30000
rekey_packets = 1000
start_action = "start"
replay_window = 2048
copy_dscp = false

[connections.alpha]
[connections.alpha.children.net]

[secrets.s]
ids = ["a.test", "b.test"]
secret = "0x0aff"
[secrets.any]
secret = "0sAP8="

[pools.v4]
addrs = "10.99.0.0/24"
dns = ["10.1.0.53"]
[pools.v6]
addrs = "2001:db8::10-2001:db8::1f"
"#;

fn good(text: &str) -> Config {
    parse(text, Path::new("/nonexistent")).unwrap_or_else(|p| panic!("{}", render("test", &p)))
}

/// The only problem of a document that is refused, as `LINE:COLUMN: error: MESSAGE`.
#[track_caller]
fn refused(text: &str) -> String {
    let problems = parse(text, Path::new("/nonexistent")).expect_err("accepted");
    let errors: Vec<String> = problems
        .iter()
        .filter(|p| p.severity == Severity::Error)
        .map(ToString::to_string)
        .collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors[0].clone()
}

#[test]
fn volumes_arrive() {
    let config = good(FULL);
    let c = &config.policy.connections[0];
    let volume = |rekey, reauth, over, rand| IkeVolume {
        rekey,
        reauth,
        over,
        rand,
    };
    assert_eq!(c.bytes, volume(1000, 5000, 500, 500));
    assert_eq!(c.packets, volume(0, 300, 7, 9));
    let child = &c.children[0];
    let volume = |rekey, life, rand| Volume { rekey, life, rand };
    assert_eq!(child.bytes, volume(1_000_000, 2_000_000, 30_000));
    assert_eq!(child.packets, volume(1000, 1100, 100));
}

#[test]
fn every_key_arrives() {
    let config = good(FULL);
    let member = config.member.unwrap();
    assert_eq!(
        (member.name.as_str(), member.ike_port, member.nat_port),
        ("m1", 1500, 14500)
    );
    assert_eq!(member.state_dir, Path::new("/tmp/state"));
    assert_eq!(member.key_file, Path::new("/tmp/key"));
    assert_eq!(member.admin_socket, Path::new("/tmp/admin.sock"));
    assert_eq!(member.workers, Some(3));
    assert_eq!(
        (config.dataplane.tun.as_str(), config.dataplane.mtu),
        ("eg1", 1380)
    );
    let plane = &config.dataplane;
    assert_eq!(
        (plane.mark.0.value, plane.route_table, plane.keep_closed),
        (7, 99, false)
    );
    let retransmit = config.policy.retransmit;
    assert_eq!(retransmit.timeout, Duration::from_millis(500));
    assert_eq!((retransmit.growth_percent, retransmit.tries), (150, 3));
    let limits = config.limits;
    assert_eq!(
        (
            limits.cookie_threshold,
            limits.cookie_threshold_ip,
            limits.block_threshold,
            limits.half_open
        ),
        (5, 4, 2, 100)
    );
    assert_eq!(limits.half_open_timeout.0, Duration::from_secs(45));
    let c = &config.policy.connections[0];
    assert_eq!(c.local_addrs, ["192.0.2.1/32".parse().unwrap()]);
    assert_eq!(
        c.remote_addrs,
        [
            "192.0.2.2/32".parse().unwrap(),
            "198.51.100.0/24".parse().unwrap()
        ]
    );
    assert_eq!(
        (c.remote_port, c.encap, c.message_id_sync, c.window_size),
        (1501, true, false, 4)
    );
    assert_eq!(c.childless, Childless::Prefer);
    assert_eq!(
        (c.fragmentation, c.fragment_size, c.unique),
        (Fragmentation::Accept, 1000, Unique::Keep)
    );
    assert_eq!(
        c.proposals,
        ["aes256gcm16-prfsha384-x25519".parse().unwrap()]
    );
    assert_eq!(
        c.vips,
        ["0.0.0.0".parse::<IpAddr>().unwrap(), "::".parse().unwrap()]
    );
    assert_eq!(c.pools, ["v4"]);
    assert_eq!(c.rekey_time, Duration::from_secs(8 * 3600));
    assert_eq!(c.over_time, Duration::from_secs(30 * 60));
    assert_eq!(c.rand_time, Duration::from_secs(10 * 60));
    assert_eq!(c.dpd_delay, Duration::from_secs(30));
    assert_eq!(c.local_id, Some(Identity::Fqdn("a.test".to_owned())));
    assert!(c.remote_id.matches(&Identity::Fqdn("b.test".to_owned())));
    let child = &c.children[0];
    assert_eq!(child.local_ts, ["10.1.0.0/16".parse().unwrap()]);
    assert_eq!(child.remote_ts, ["dynamic".parse().unwrap()]);
    assert_eq!(child.esp_proposals, ["aes256gcm16-x25519".parse().unwrap()]);
    assert_eq!(child.rekey_time, Duration::from_secs(2 * 3600));
    assert_eq!(child.life_time, Duration::from_secs(3 * 3600));
    assert_eq!(child.rand_time, Duration::from_secs(7 * 60));
    assert_eq!(child.start_action, StartAction::Start);
    assert_eq!((child.replay_window, child.headers.dscp_out), (2048, false));
    assert_eq!(config.policy.secrets[0].ids.len(), 2);
    assert_eq!(config.policy.secrets[0].secret.expose(), [0x0a, 0xff]);
    assert_eq!(config.policy.secrets[1].secret.expose(), [0x00, 0xff]);
    let (v4, v6) = (&config.policy.pools[0], &config.policy.pools[1]);
    assert_eq!(
        (v4.first.to_string(), v4.last.to_string()),
        ("10.99.0.1".into(), "10.99.0.254".into())
    );
    assert_eq!(v4.dns, ["10.1.0.53".parse::<IpAddr>().unwrap()]);
    assert_eq!(v6.last, "2001:db8::1f".parse::<IpAddr>().unwrap());
}

#[test]
fn connections_are_tried_in_the_order_of_the_document() {
    let config = good(FULL);
    let names: Vec<&str> = config
        .policy
        .connections
        .iter()
        .map(|c| c.name.as_str())
        .collect();
    assert_eq!(names, ["zulu", "alpha"]);
}

#[test]
fn defaults_are_those_of_swanctl() {
    let config = good("[member]\nname='m'\n[connections.c.children.x]\n[secrets.s]\nsecret='k'");
    let c = &config.policy.connections[0];
    assert_eq!(c.rekey_time, Duration::from_secs(4 * 3600));
    assert_eq!(
        (c.over_time, c.rand_time),
        (Duration::from_secs(1440), Duration::from_secs(1440))
    );
    assert_eq!((c.dpd_delay, c.remote_port), (Duration::ZERO, 500));
    assert_eq!((&c.remote_id, &c.local_id), (&IdPattern::Any, &None));
    assert!(!c.proposals.is_empty());
    let child = &c.children[0];
    assert_eq!(child.rekey_time, Duration::from_secs(3600));
    assert_eq!(
        (child.life_time, child.rand_time),
        (Duration::from_secs(3960), Duration::from_secs(360))
    );
    assert_eq!(child.start_action, StartAction::None);
    assert_eq!(child.local_ts, ["dynamic".parse().unwrap()]);
    assert_eq!(config.warnings, []);
    let member = config.member.unwrap();
    assert_eq!(member.admin_socket, Path::new("/run/evergate/admin.sock"));
}

#[test]
fn peers_have_names_and_actions_follow_the_start_unless_they_are_given() {
    let config = |child: &str| {
        let text = format!(
            "[connections.c]\nremote_addrs = ['192.0.2.1', 'branch.example', 'b2.example.']\nkeyingtries = 3\n[connections.c.children.x]\n{child}"
        );
        good(&text).policy.connections.remove(0)
    };
    let c = config("");
    assert_eq!(c.remote_names, ["branch.example", "b2.example."]);
    assert_eq!(c.remote_addrs, ["192.0.2.1/32".parse().unwrap()]);
    assert_eq!(c.keyingtries, 3);
    assert!(c.mobike && c.return_routability);
    assert!(
        c.covers("192.0.2.2".parse().unwrap(), "203.0.113.5".parse().unwrap()),
        "what a name stands for is anybody's guess"
    );
    let actions = |child: &str| {
        let child = config(child).children.remove(0);
        (child.start_action, child.close_action, child.dpd_action)
    };
    let (none, trap, start) = (StartAction::None, StartAction::Trap, StartAction::Start);
    assert_eq!(actions(""), (none, none, none));
    assert_eq!(actions("start_action = 'start'"), (start, start, start));
    assert_eq!(actions("start_action = 'trap'"), (trap, trap, trap));
    let all = "start_action = 'start'\nclose_action = 'none'\ndpd_action = 'trap'";
    assert_eq!(actions(all), (start, none, trap));
    assert_eq!(actions("dpd_action = 'restart'"), (none, none, start));
    assert_eq!(
        actions("start_action = 'trap'\ndpd_action = 'clear'"),
        (trap, trap, none)
    );
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let warnings = |text: &str| -> Vec<String> {
        good(text)
            .warnings
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    let no_secret = "[connections.c]\nremote.id = 'b.test'\n[connections.c.children.x]\n[secrets.s]\nids=['a.test','d.test']\nsecret='k'";
    assert_eq!(
        warnings(no_secret),
        ["1:14: warning: no secret fits connection \"c\": its peers cannot authenticate"]
    );
    assert_eq!(
        warnings(&no_secret.replace("d.test", "b.test")),
        Vec::<String>::new()
    );
    assert_eq!(
        warnings("[connections.c]\n[secrets.s]\nsecret='k'"),
        ["1:14: warning: connection \"c\" has no children: it carries nothing"]
    );
}

#[test]
fn secrets_in_files_lose_one_newline() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("psk"), "geheim\n\n").unwrap();
    let config = parse("[secrets.a]\nsecret_file = 'psk'", dir.path()).unwrap();
    assert_eq!(config.policy.secrets[0].secret.expose(), b"geheim\n");
    fs::write(dir.path().join("psk"), "\n").unwrap();
    let problems = parse("[secrets.a]\nsecret_file = 'psk'", dir.path()).unwrap_err();
    assert!(
        problems[0].message.ends_with("is empty, expected a secret"),
        "{problems:?}"
    );
}

#[test]
fn base64_is_read_with_and_without_padding_and_in_one_form_only() {
    let secret = |text: &str| parse(&format!("[secrets.a]\nsecret = '0s{text}'"), Path::new("."));
    let bytes = |text: &str| {
        secret(text).unwrap().policy.secrets[0]
            .secret
            .expose()
            .to_vec()
    };
    assert_eq!(bytes("Zm9v"), b"foo");
    assert_eq!(bytes("Zm9vYg=="), b"foob");
    assert_eq!(bytes("Zm9vYg"), b"foob");
    assert_eq!(bytes("Zm9vYmE="), b"fooba");
    assert_eq!(bytes("+/+/"), [0xfb, 0xff, 0xbf]);
    for wrong in ["Zm9vYh==", "Zm9v=Yg", "Zm9vY", "====", "Zm 9v"] {
        assert!(secret(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn headers_are_copied_as_swanctl_says() {
    let headers = |lines: &str| {
        let text = format!("[connections.a.children.net]\n{lines}\n");
        good(&text).policy.connections[0].children[0].headers
    };
    let usual = headers("");
    assert!(usual.dscp_out && !usual.dscp_in && usual.ecn && usual.df);
    for (value, out, inwards) in [
        ("\"out\"", true, false),
        ("\"in\"", false, true),
        ("\"yes\"", true, true),
        ("\"no\"", false, false),
        ("true", true, false),
        ("false", false, false),
    ] {
        let copied = headers(&format!("copy_dscp = {value}"));
        assert_eq!((copied.dscp_out, copied.dscp_in), (out, inwards), "{value}");
    }
    let neither = headers("copy_ecn = false\ncopy_df = false");
    assert!(!neither.ecn && !neither.df);
}

#[test]
fn marks_are_those_of_swanctl() {
    let marks = |lines: &str| {
        let text = format!(
            "[dataplane]\nkind = \"xfrm\"\nmark = \"0xe6/0xff\"\n[connections.a.children.net]\n{lines}\n"
        );
        let policy = good(&text).policy;
        assert_eq!(policy.asks_the_kernel(), !lines.is_empty());
        let child = &policy.connections[0].children[0];
        let [i, o, si, so] = [
            child.marks.mark_in,
            child.marks.mark_out,
            child.marks.set_mark_in,
            child.marks.set_mark_out,
        ]
        .map(|m| (m.value, m.mask));
        (i, o, si, so, child.hw_offload)
    };
    let (none, full) = ((0, 0), u32::MAX);
    assert_eq!(marks(""), (none, none, none, none, HwOffload::No));
    assert_eq!(
        marks("mark_in = 7\nset_mark_in = \"%same\"\nhw_offload = \"yes\""),
        ((7, full), none, (7, full), none, HwOffload::Crypto)
    );
    assert_eq!(
        marks("mark_out = \"0x700/0xf00\"\nset_mark_out = \"%same/0xf00\"\nhw_offload = \"auto\""),
        (none, (0x700, 0xf00), none, (0x700, 0xf00), HwOffload::Auto)
    );
}

#[test]
fn marks_that_cannot_be_are_refused_where_they_stand() {
    let child = |plane: &str, line: &str| {
        refused(&format!(
            "[dataplane]\n{plane}\n[connections.a.children.net]\n{line}\n"
        ))
    };
    let kernel = "kind = \"xfrm\"";
    for (plane, line, expected) in [
        (
            kernel,
            "mark_in = \"%unique\"",
            "4:11: error: %unique would be another mark on each member",
        ),
        (
            kernel,
            "mark_in = \"%same\"",
            "4:11: error: %same is the same as nothing here",
        ),
        (
            kernel,
            "mark_out = \"0x1f/0xf\"",
            "4:12: error: mark \"0x1f/0xf\" has bits outside of its mask",
        ),
        (
            kernel,
            "mark_out = -1",
            "4:12: error: -1 is not a number of 32 bits",
        ),
        (
            kernel,
            "set_mark_out = 7",
            "4:16: error: set_mark_out has bits of the mark of [dataplane], 0xe6/0xffffffff",
        ),
        (
            kernel,
            "hw_offload = \"packet\"",
            "4:14: error: \"packet\" leaves the counting",
        ),
        (
            "kind = \"userspace\"",
            "mark_out = 7",
            "4:12: error: mark_out needs a data plane of kind xfrm",
        ),
        (
            "kind = \"userspace\"",
            "hw_offload = \"crypto\"",
            "4:14: error: hw_offload needs a data plane of kind xfrm",
        ),
    ] {
        let problem = child(plane, line);
        assert!(problem.starts_with(expected), "{line}: {problem}");
    }
}
