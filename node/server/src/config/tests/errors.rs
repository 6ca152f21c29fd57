//! Every message and its place.

use super::*;

#[test]
fn unknown_keys_are_refused_where_they_stand() {
    let cases = [
        (
            "[member]\nname = 'm'\n  nmae = 'x'",
            "3:3: error: unknown field `nmae`, expected one of `name`",
        ),
        (
            "[conections.a]",
            "1:2: error: unknown field `conections`, expected one of `member`",
        ),
        (
            "[connections.a]\nproposal = []",
            "2:1: error: unknown field `proposal`, expected one of `local_addrs`",
        ),
        (
            "[connections.a.local]\ncert = ''",
            "2:1: error: unknown field `cert`, expected one of `auth`, `id`, `certs`",
        ),
        (
            "[connections.a.remote]\ncert = ''",
            "2:1: error: unknown field `cert`, expected one of `auth`, `id`, `certs`",
        ),
        (
            "[connections.a.children.b]\nts = 1",
            "2:1: error: unknown field `ts`, expected one of `local_ts`",
        ),
        (
            "[secrets.a]\nkey = 1",
            "2:1: error: unknown field `key`, expected one of `ids`",
        ),
        (
            "[pools.a]\naddrs='10.0.0.0/8'\nx = 1",
            "3:1: error: unknown field `x`, expected `addrs` or `dns`",
        ),
        (
            "[dataplane]\nx = 1",
            "2:1: error: unknown field `x`, expected",
        ),
        (
            "[limits]\nx = 1",
            "2:1: error: unknown field `x`, expected one of `cookie_threshold`",
        ),
    ];
    for (text, expected) in cases {
        let message = refused(text);
        assert!(message.starts_with(expected), "{text:?}: {message}");
    }
}

#[test]
fn wrong_values_are_refused_where_they_stand() {
    let in_connection = [
        (
            "rekey_time = '4x'",
            14,
            "\"4x\" is not a duration, expected a duration such as \"30s\"",
        ),
        (
            "rekey_time = '4'",
            14,
            "\"4\" is not a duration, expected a duration",
        ),
        (
            "rekey_time = '40000d'",
            14,
            "\"40000d\" is too long, expected a duration",
        ),
        (
            "dpd_delay = 30",
            13,
            "a number stands here, expected a duration such as",
        ),
        (
            "local_addrs = ['192.0.2.1', 'host']",
            29,
            "\"host\" is no address (names are not resolved), expected an IP",
        ),
        (
            "remote_addrs = ['peer.example', '192.0.2.300']",
            33,
            "\"192.0.2.300\" is neither an address nor a name, expected an IP address, a network",
        ),
        (
            "vips = ['x']",
            9,
            "\"x\" is not an IP address, expected an IP address",
        ),
        (
            "proposals = ['aes256gcm16-x25519-prfsha384', 'rot13']",
            46,
            "\"rot13\": ",
        ),
        (
            "local = { auth = 'eap' }",
            18,
            "\"eap\" is not a method of authentication that is supported, expected \"psk\"",
        ),
        (
            "remote_port = 70000",
            15,
            "invalid value: integer `70000`, expected u16",
        ),
        (
            "encap = 'yes'",
            9,
            "invalid type: string \"yes\", expected a boolean",
        ),
        (
            "proposals = []",
            13,
            "the list is empty, expected at least one proposal",
        ),
        (
            "rekey_time = '1h'\nrand_time = '2h'",
            13,
            "rand_time is longer than rekey_time, expected less",
        ),
        (
            "pools = ['p']",
            10,
            "there is no pool \"p\", expected a [pools.NAME] table for it",
        ),
    ];
    for (line, column, expected) in in_connection {
        let row = 1 + line.lines().count();
        let message = refused(&format!("[connections.a]\n{line}\n"));
        let expected = format!("{row}:{column}: error: {expected}");
        assert!(message.starts_with(&expected), "{line:?}: {message}");
    }
}

#[test]
fn wrong_values_of_children_are_refused_where_they_stand() {
    let in_child = [
        (
            "local_ts = ['10.0.0.0/99']",
            13,
            "\"10.0.0.0/99\" is not a traffic selector, expected a traffic selector such as",
        ),
        (
            "local_ts = []",
            12,
            "the list is empty, expected at least one traffic selector",
        ),
        ("esp_proposals = ['prfsha384']", 18, "\"prfsha384\": "),
        (
            "start_action = 'route'",
            16,
            "\"route\" is not a start action, expected \"none\", \"trap\" or \"start\"",
        ),
        (
            "dpd_action = 'hold'",
            14,
            "\"hold\" is no action for silent peers, expected \"clear\", \"trap\" or \"restart\"",
        ),
        (
            "close_action = 'trap'",
            16,
            "close_action needs a peer to go to, expected a single address or a name in remote_addrs",
        ),
        (
            "start_action = 'start'",
            16,
            "start_action needs a peer to go to, expected a single address or a name in remote_addrs",
        ),
        (
            "replay_window = 1",
            17,
            "replay_window is out of range, expected 64 to 4096",
        ),
        (
            "life_time = '30m'",
            13,
            "life_time is not longer than rekey_time, expected time to rekey",
        ),
    ];
    for (line, column, expected) in in_child {
        let message = refused(&format!("[connections.a.children.b]\n{line}\n"));
        let expected = format!("2:{column}: error: {expected}");
        assert!(message.starts_with(&expected), "{line:?}: {message}");
    }
}

#[test]
fn wrong_documents_are_refused_where_they_are_wrong() {
    let cases = [
        (
            "[member]\nname = ''",
            "1:1: error: \"\" is no name for a member, expected 1 to 64 printable characters",
        ),
        (
            "[member]\nstate_dir = '/x'",
            "1:1: error: missing field `name`",
        ),
        (
            "[member]\nname='m'\nike_port=4500",
            "1:1: error: ike_port and nat_port are the same, expected two ports",
        ),
        (
            "[member]\nname='m'\nworkers=0",
            "1:1: error: workers is out of range, expected 1 to 256",
        ),
        (
            "[dataplane]\nmtu = 100",
            "1:1: error: mtu is out of range, expected 1280 to 65000",
        ),
        (
            "[dataplane]\nworkers = 0",
            "1:1: error: workers is out of range, expected 1 to 64",
        ),
        (
            "[dataplane]\ntun = 'a/b'",
            "1:1: error: tun is not the name of a device, expected up to 15 characters",
        ),
        (
            "[dataplane]\nlink_devices = ['eth0', 'a/b']",
            "1:1: error: link_devices: \"a/b\" is not the name of a device, expected up to 15 characters",
        ),
        (
            "[dataplane]\nkind = 'xfrm'\nlink_devices = ['eth0']",
            "1:1: error: kind is xfrm, but link_devices is set: the kernel's data plane has no packet sockets",
        ),
        (
            "[limits]\nhalf_open_timeout = '0'",
            "1:1: error: half_open_timeout is out of range, expected 1s to 600s",
        ),
        (
            "[connections.c]\nfragment_size = 575",
            "2:17: error: fragment_size is out of range, expected 576 to 65535",
        ),
        (
            "[connections.c]\nunique = 'yes'",
            "2:10: error: \"yes\" is not a policy of uniqueness, expected",
        ),
        (
            "[connections.c.children.n]\nrekey_packets = 9\nlife_packets = 9",
            "3:16: error: life_packets is not more than rekey_packets, expected",
        ),
        (
            "[connections.c.children.n]\nrand_bytes = 9",
            "2:14: error: rand_bytes is more than rekey_bytes, expected less",
        ),
        (
            "[connections.c]\nreauth_bytes = 9\nrand_bytes = 10",
            "3:14: error: rand_bytes is more than rekey_bytes and reauth_bytes, expected less",
        ),
        (
            "[limits]\nhalf_open = 0",
            "1:1: error: half_open is zero, expected how many",
        ),
    ];
    all_refused(&cases);
}

#[test]
fn wrong_pools_are_refused_where_they_are_wrong() {
    let cases = [
        (
            "[pools.a]\naddrs='10.0.0.9-10.0.0.1'",
            "2:7: error: \"10.0.0.9-10.0.0.1\" ends before it begins, expected a network",
        ),
        (
            "[pools.a]\naddrs='10.0.0.9-::1'",
            "2:7: error: \"10.0.0.9-::1\" mixes IPv4 and IPv6, expected",
        ),
        (
            "[pools.a]\naddrs='x'",
            "2:7: error: \"x\" is not a pool, expected a network such as",
        ),
        ("[pools.a]\ndns=[]", "1:1: error: missing field `addrs`"),
        (
            "[pools.a]\naddrs='10.0.0.0/24'\n[pools.b]\naddrs='10.0.0.200-10.0.1.1'",
            "4:7: error: the addresses overlap with those of pool \"a\", expected each address in one pool",
        ),
        (
            "[pools.a]\naddrs='10.0.0.0/24'\n[pools.a]\naddrs='10.1.0.0/24'",
            "3:",
        ),
    ];
    all_refused(&cases);
}

#[test]
fn wrong_secrets_and_references_are_refused_where_they_are_wrong() {
    let cases = [
        (
            "[secrets.a]\nids=['x']",
            "1:1: error: expected either \"secret\" or \"secret_file\"",
        ),
        (
            "[secrets.a]\nsecret='x'\nsecret_file='y'",
            "1:1: error: expected either \"secret\" or \"secret_file\"",
        ),
        (
            "[secrets.a]\nsecret=''",
            "2:8: error: the secret is empty, expected a text",
        ),
        (
            "[secrets.a]\nsecret='0xabc'",
            "2:8: error: the secret is not hexadecimal, expected a text",
        ),
        (
            "[secrets.a]\nsecret='0sA'",
            "2:8: error: the secret is not Base64, expected a text",
        ),
        (
            "[secrets.a]\nsecret_file='y'",
            "2:13: error: cannot read /nonexistent/y: ",
        ),
        (
            "[connections.c]\npools=['p']\n[pools.q]\naddrs='10.0.0.0/8'",
            "2:8: error: there is no pool \"p\", expected one of \"q\"",
        ),
        (
            "[connections.c]\npools=['q','q']\n[pools.q]\naddrs='10.0.0.0/8'",
            "2:12: error: pool \"q\" is named twice, expected once",
        ),
        (
            "[connections.\"\"]",
            "1:14: error: \"\" is no name for a connection, expected 1 to 64",
        ),
        (
            "connections = 1",
            "1:15: error: invalid type: integer `1`, expected a table for each name",
        ),
        ("[member\n", "1:8: error: "),
    ];
    all_refused(&cases);
}

#[track_caller]
fn all_refused(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let message = refused(text);
        assert!(message.starts_with(expected), "{text:?}: {message}");
    }
}

#[test]
fn all_problems_of_a_document_come_at_once_and_in_order() {
    let text = "[connections.a]\nproposals = []\npools = ['x']\n[dataplane]\nmtu = 1\n";
    let problems = parse(text, Path::new(".")).unwrap_err();
    let lines: Vec<usize> = problems.iter().map(|p| p.line).collect();
    assert_eq!(lines, [1, 1, 2, 3, 4], "{problems:?}");
}

#[test]
fn messages_never_show_secrets() {
    for value in [
        "'0xsecretvalue'",
        "'0s!secretvalue'",
        "4711815",
        "[4711815]",
        "{ x = 4711815 }",
    ] {
        let message = refused(&format!("[secrets.a]\nsecret = {value}"));
        assert!(
            !message.contains("secretvalue") && !message.contains("4711815"),
            "{message}"
        );
    }
    let shown = format!("{:?}", good("[secrets.a]\nsecret = 'secretvalue'"));
    assert!(!shown.contains("secretvalue"), "{shown}");
}

#[test]
fn columns_count_characters() {
    let message = refused("[connections.\"käse\"]\nvips = [\"ä\"]\nlocal.auth = 'x'");
    assert!(message.starts_with("2:9: "), "{message}");
    let message = refused("[connections.\"käse\"]\nlocal = { id = 'ä.test', auth = 'x' }");
    assert!(message.starts_with("2:33: "), "{message}");
}

#[test]
fn times_between_repetitions_stay_reasonable() {
    for wrong in [
        "timeout = '0s'",
        "base = 0.5",
        "base = nan",
        "base = 20.0",
        "tries = 101",
        "timeout = '1h'",
    ] {
        let message = refused(&format!("[retransmit]\n{wrong}"));
        assert!(
            message.starts_with("1:1: error: these times cannot be used, expected a timeout"),
            "{wrong}: {message}"
        );
    }
}
