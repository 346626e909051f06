//! Rulesets as nft 1.0.6 lists what ufw, Docker, firewalld and people write.

use serde_json::json;

use super::*;

fn uplinks() -> Guests {
    Guests { network: "203.0.113.0/24".to_owned(), devices: "nixbox-" }
}

fn listing(chains: &[Value], rules: &[(&str, &str, &str, Value)]) -> Value {
    let chains = chains.iter().map(|chain| json!({ "chain": chain }));
    let rules = rules.iter().map(|(family, table, chain, expr)| {
        json!({ "rule": { "family": family, "table": table, "chain": chain, "expr": expr } })
    });
    json!({ "nftables": chains.chain(rules).collect::<Vec<_>>() })
}

fn base(family: &str, table: &str, name: &str, policy: &str) -> Value {
    json!({ "family": family, "table": table, "name": name, "type": "filter", "hook": "forward", "prio": 0, "policy": policy })
}

fn found(ruleset: &Value) -> Option<Obstacle> {
    let guest = Some(Ipv4Addr::new(203, 0, 113, 2));
    find(ruleset, &exchange("nixbox-0", guest, Some("eth0".to_owned())), &uplinks())
}

#[track_caller]
fn assert_found(ruleset: &Value, place: &str, certain: bool, remedy: &str) {
    let found = found(ruleset).expect("an obstacle");
    assert!(found.place().contains(place), "{found}");
    assert_eq!(found.is_certain, certain, "{found}");
    assert!(found.remedy().contains(remedy), "{found}");
}

fn is(left: Value, right: Value) -> Value {
    json!({ "match": { "op": "==", "left": left, "right": right } })
}

fn device(key: &str, name: &str) -> Value {
    is(json!({ "meta": { "key": key } }), json!(name))
}

const CONNTRACK: &str = r#"{ "xt": { "type": "match", "name": "conntrack" } }"#;

fn xt() -> Value {
    serde_json::from_str(CONNTRACK).unwrap()
}

#[test]
fn a_policy_or_rule_that_drops_is_named_with_what_allows_the_traffic() {
    let policy = listing(&[base("inet", "mine", "fwd", "drop")], &[]);
    assert_found(
        &policy,
        "the policy of chain fwd in table inet mine drops",
        true,
        "insert rule inet mine fwd iifname",
    );
    let rule = listing(
        &[base("ip", "mine", "fwd", "accept")],
        &[("ip", "mine", "fwd", json!([device("iifname", "eth*"), { "drop": null }]))],
    );
    assert_found(&rule, "a rule of chain fwd in table ip mine drops", true, "nixbox-*");
    for passes in [
        listing(&[base("inet", "mine", "fwd", "accept")], &[]),
        listing(
            &[base("inet", "nixbox_uplink_1", "forward", "drop"), base("ip6", "mine", "fwd", "drop")],
            &[],
        ),
        listing(
            &[base("inet", "mine", "fwd", "drop")],
            &[(
                "inet",
                "mine",
                "fwd",
                json!([{ "counter": { "packets": 1, "bytes": 1 } }, { "accept": null }]),
            )],
        ),
    ] {
        assert_eq!(found(&passes), None);
    }
}

#[test]
fn answers_are_looked_at_too() {
    let only_out = listing(
        &[base("inet", "mine", "fwd", "drop")],
        &[("inet", "mine", "fwd", json!([device("iifname", "nixbox-*"), { "accept": null }]))],
    );
    assert_found(&only_out, "the policy of chain fwd", true, "oifname");
    let state = json!({ "match": { "op": "in", "left": { "ct": { "key": "state" } }, "right": ["established", "related"] } });
    let both = listing(
        &[base("inet", "mine", "fwd", "drop")],
        &[
            ("inet", "mine", "fwd", json!([state, { "accept": null }])),
            ("inet", "mine", "fwd", json!([device("iifname", "nixbox-*"), { "accept": null }])),
        ],
    );
    assert_eq!(found(&both), None);
}

#[test]
fn chains_that_docker_and_ufw_offer_are_no_obstacle() {
    let jump = |target: &str| json!([{ "jump": { "target": target } }]);
    let chain = |name: &str| json!({ "family": "ip", "table": "filter", "name": name });
    for offered in ["DOCKER-USER", "ufw-user-forward"] {
        let ruleset = listing(
            &[base("ip", "filter", "FORWARD", "drop"), chain(offered), chain("ufw-before-forward")],
            &[
                ("ip", "filter", "FORWARD", jump("ufw-before-forward")),
                ("ip", "filter", "ufw-before-forward", json!([xt(), { "accept": null }])),
                ("ip", "filter", "ufw-before-forward", json!([xt(), { "drop": null }])),
                ("ip", "filter", "ufw-before-forward", jump(offered)),
            ],
        );
        assert_eq!(found(&ruleset), None, "{offered}");
    }
    // The administrator's own rule in ufw's chain counts first.
    let denied = listing(
        &[base("ip", "filter", "FORWARD", "drop"), chain("ufw-user-forward")],
        &[
            ("ip", "filter", "FORWARD", jump("ufw-user-forward")),
            ("ip", "filter", "ufw-user-forward", json!([{ "drop": null }])),
        ],
    );
    assert_found(
        &denied,
        "a rule of chain ufw-user-forward in table ip filter drops",
        true,
        "ufw route allow from 203.0.113.0/24",
    );
}

/// What firewalld 1.3.3 of Debian 12 makes by default, and after the command that is told.
#[test]
fn firewalld_is_told_in_its_own_words() {
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_found(
        &parse(include_str!("firewalld-1.3.3.json")),
        "a rule of chain filter_FWD_public in table inet firewalld rejects",
        true,
        "sudo firewall-cmd --permanent --zone=trusted --add-source=203.0.113.0/24 && sudo firewall-cmd --reload",
    );
    assert_eq!(found(&parse(include_str!("firewalld-1.3.3-trusted.json"))), None);
}

#[test]
fn what_cannot_be_read_makes_the_finding_uncertain() {
    for expr in [
        json!([xt(), { "accept": null }]),
        json!([{ "limit": { "rate": 3 } }, { "accept": null }]),
        json!([is(json!({ "payload": { "protocol": "ip", "field": "saddr" } }), json!("@trusted")), { "accept": null }]),
        json!([{ "vmap": { "key": { "meta": { "key": "iifname" } }, "data": "@zones" } }]),
        json!([17, { "accept": null }]),
    ] {
        let ruleset =
            listing(&[base("inet", "mine", "fwd", "drop")], &[("inet", "mine", "fwd", expr.clone())]);
        let found = found(&ruleset).expect("an obstacle");
        assert!(
            !found.is_certain && found.to_string().contains("unless a rule that nixbox cannot read"),
            "{expr}"
        );
    }
}

#[test]
fn sets_ranges_maps_and_other_protocols_are_read() {
    let source = json!({ "payload": { "protocol": "ip", "field": "saddr" } });
    let port = |protocol: &str| json!({ "payload": { "protocol": protocol, "field": "dport" } });
    let ours = json!({ "prefix": { "addr": "203.0.113.0", "len": 24 } });
    let established =
        json!({ "match": { "op": "in", "left": { "ct": { "key": "state" } }, "right": "established" } });
    let answers = ("inet", "mine", "fwd", json!([established, { "accept": null }]));
    let passes = |expr: Value| {
        found(&listing(
            &[base("inet", "mine", "fwd", "drop")],
            &[answers.clone(), ("inet", "mine", "fwd", expr)],
        ))
        .is_none()
    };
    let accept = json!({ "accept": null });
    assert!(passes(json!([is(source.clone(), ours.clone()), accept])));
    assert!(passes(json!([
        is(source.clone(), json!({ "set": ["10.0.0.1", { "elem": { "val": ours } }] })),
        accept
    ])));
    assert!(passes(json!([is(source.clone(), json!({ "range": ["203.0.113.0", "203.0.113.9"] })), accept])));
    assert!(!passes(json!([is(source, json!("10.0.0.1")), accept])));
    assert!(passes(json!([is(port("tcp"), json!({ "set": [80, { "range": [400, 500] }] })), accept])));
    assert!(!passes(json!([is(port("udp"), json!(443)), accept])));
    let l4 = json!({ "meta": { "key": "l4proto" } });
    assert!(!passes(json!([is(l4.clone(), json!("icmp")), accept])));
    assert!(passes(json!([is(l4.clone(), json!({ "set": [17, 6] })), accept])));
    assert!(passes(json!([{ "match": { "op": "!=", "left": l4, "right": "udp" } }, accept])));
    let map = json!({ "key": { "meta": { "key": "iifname" } }, "data": { "set": [["eth0", { "drop": null }], ["nixbox-*", accept]] } });
    assert!(passes(json!([{ "vmap": map }])));
}

#[test]
fn the_walk_of_a_hostile_listing_ends() {
    let chain = |name: &str| json!({ "family": "inet", "table": "mine", "name": name });
    let jump = |target: &str| json!([{ "jump": { "target": target } }]);
    let round = [
        ("inet", "mine", "fwd", jump("a")),
        ("inet", "mine", "a", jump("b")),
        ("inet", "mine", "b", jump("a")),
    ];
    let many: Vec<_> = round.iter().cycle().take(300).cloned().collect();
    let ruleset = listing(&[base("inet", "mine", "fwd", "drop"), chain("a"), chain("b")], &many);
    assert!(!found(&ruleset).unwrap().is_certain);
    let odd = listing(&[base("inet", "x'; reboot #\n", "$(y)", "drop")], &[]);
    let remedy = found(&odd).unwrap().to_string();
    assert!(!remedy.contains(['\n', '#', '$']) && remedy.matches('\'').count() == 2, "{remedy}");
    for strange in
        [json!(null), json!({ "nftables": 3 }), json!({ "nftables": [null, { "chain": 1 }, { "rule": [] }] })]
    {
        assert_eq!(found(&strange), None);
    }
}

#[test]
fn a_legacy_table_that_drops_and_offers_nothing_is_an_obstacle() {
    let saved = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\nCOMMIT\n";
    assert!(find_legacy(saved).unwrap().remedy().contains("iptables-legacy -I FORWARD"));
    assert_eq!(find_legacy(&saved.replace("DROP", "ACCEPT")), None);
    assert_eq!(find_legacy(&format!("{saved}:DOCKER-USER - [0:0]\n")), None);
}

#[test]
fn a_guest_in_the_hosts_network_needs_the_hook_of_input() {
    let (gateway, guest) = (Ipv4Addr::new(172, 16, 0, 1), Ipv4Addr::new(172, 16, 0, 2));
    let mut chain = base("inet", "mine", "input", "drop");
    chain["hook"] = json!("input");
    let ruleset = listing(&[chain], &[]);
    let taps = Guests { network: "172.16.0.0/16".to_owned(), devices: "vm" };
    let found = find(&ruleset, &questions_to_host("vm0", gateway, guest), &taps).unwrap();
    assert!(found.remedy().contains("input iifname \"vm*\" udp dport 67 accept"), "{found}");
}
