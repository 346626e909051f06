use proptest::prelude::*;

use super::*;

#[test]
fn ports_are_parsed() {
    for (text, host, guest) in [
        ("8080", "127.0.0.1:8080", 8080),
        ("8080:80", "127.0.0.1:8080", 80),
        ("0.0.0.0:8080", "0.0.0.0:8080", 8080),
        ("localhost:8080:80", "127.0.0.1:8080", 80),
        ("[::1]:8080", "[::1]:8080", 8080),
        ("[::]:8080:80", "[::]:8080", 80),
        ("1:65535", "127.0.0.1:1", 65535),
    ] {
        let pair = PortPair::parse(text, Listening::Host).unwrap();
        assert_eq!((pair.host.to_string().as_str(), pair.guest), (host, GuestEnd::Port(guest)), "{text}");
    }
    let pair = PortPair::parse("8080:80", Listening::Guest).unwrap();
    assert_eq!((pair.host.to_string().as_str(), pair.guest), ("127.0.0.1:80", GuestEnd::Port(8080)));
}

#[test]
fn unix_sockets_are_parsed() {
    for (text, listening, host, guest) in [
        ("/s:80", Listening::Host, "/s", "port 80 of the guest"),
        ("/s:1:80", Listening::Host, "/s:1", "port 80 of the guest"),
        ("8080:/s", Listening::Host, "127.0.0.1:8080", "/s of the guest"),
        ("0.0.0.0:8080:/a:b", Listening::Host, "0.0.0.0:8080", "/a:b of the guest"),
        ("/a:/b", Listening::Host, "/a", "/b of the guest"),
        ("80:/s", Listening::Guest, "/s", "port 80 of the guest"),
        ("/s:80", Listening::Guest, "127.0.0.1:80", "/s of the guest"),
        ("/a:b:80", Listening::Guest, "127.0.0.1:80", "/a:b of the guest"),
        ("/a:/b", Listening::Guest, "/b", "/a of the guest"),
        ("[::1]:/s:80", Listening::Guest, "[::1]:80", "/s of the guest"),
    ] {
        let pair = PortPair::parse(text, listening).unwrap();
        assert_eq!(
            (pair.host.to_string().as_str(), pair.guest.to_string().as_str()),
            (host, guest),
            "{text}"
        );
    }
    for text in ["/s", "0.0.0.0:/s:80", "s:80"] {
        assert!(PortPair::parse(text, Listening::Host).unwrap_err().is_usage(), "{text}");
    }
    for text in ["/s", "127.0.0.1:80:/s", "127.0.0.1:/a:/b", "/s:", "/s:0", "/s:x", ":/s"] {
        assert!(PortPair::parse(text, Listening::Guest).unwrap_err().is_usage(), "{text}");
    }
    let longest = format!("/{}", "s".repeat(106));
    for listening in [Listening::Guest, Listening::Host] {
        PortPair::parse(&format!("{longest}:80"), listening).unwrap();
        let error = PortPair::parse(&format!("{longest}s:80"), listening).unwrap_err();
        assert!(matches!(error, PortError::LongPath(_)) && error.is_usage(), "{error}");
    }
}

#[test]
fn a_pair_is_meant_by_its_words_and_by_the_end_that_listens() {
    for (pair, listening, meant, other) in [
        (
            "8080:80",
            Listening::Host,
            &["8080", "8080:80", "127.0.0.1:8080", "localhost:8080:80"][..],
            &["80", "8080:81", "0.0.0.0:8080:80", ""][..],
        ),
        ("8080", Listening::Host, &["8080", "localhost:8080"], &["808", "08080:1"]),
        ("/s:80", Listening::Host, &["/s", "/s:80"], &["80", "/s:81", "s"]),
        ("80:8080", Listening::Guest, &["80", "80:8080"], &["8080"]),
        ("/s:80", Listening::Guest, &["/s", "/s:80"], &["80", "/"]),
    ] {
        let parsed = PortPair::parse(pair, listening).unwrap();
        for word in meant {
            assert!(parsed.is_meant_by(word, listening), "{pair} {word}");
        }
        for word in other {
            assert!(!parsed.is_meant_by(word, listening), "{pair} {word}");
        }
    }
}

#[test]
fn wrong_ports_are_refused() {
    for (text, expected) in [
        ("", "number"),
        ("0", "number"),
        ("65536", "number"),
        ("-1", "number"),
        ("+80", "number"),
        ("80:", "number"),
        (":80", "address"),
        ("80:0", "number"),
        ("host.example:80", "address"),
        ("1:2:3", "form"),
        ("::1:80", "address"),
        ("[::1]80", "form"),
        ("[::1]", "form"),
        ("[1.2.3.4]:80", "address"),
        ("127.0.0.1:1:2:3", "form"),
        ("80 ", "number"),
        ("99999999999999999999", "number"),
    ] {
        let kind = match PortPair::parse(text, Listening::Host).unwrap_err() {
            PortError::Form(_) => "form",
            PortError::Number(_) => "number",
            PortError::Address(_) => "address",
            error => panic!("{text}: {error}"),
        };
        assert_eq!(kind, expected, "{text:?}");
    }
    let twice = |texts: &[&str], listening| {
        let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
        matches!(PortPair::parse_all(&texts, listening), Err(PortError::Twice(_)))
    };
    assert!(twice(&["80", "localhost:80:81"], Listening::Host));
    assert!(!twice(&["80:1", "81:1"], Listening::Host));
    assert!(twice(&["80:1", "80:2"], Listening::Guest));
    assert!(!twice(&["80:1", "81:1"], Listening::Guest));
}

proptest! {
    #[test]
    fn what_is_parsed_is_what_was_written(address: std::net::Ipv4Addr, on_host in 1_u16.., guest in 1_u16..) {
        let pair = PortPair::parse(&format!("{address}:{on_host}:{guest}"), Listening::Host).unwrap();
        prop_assert_eq!(pair, PortPair { host: HostEnd::Address(SocketAddr::new(address.into(), on_host)), guest: GuestEnd::Port(guest) });
    }

    #[test]
    fn no_text_is_a_panic(text in ".{0,20}") {
        PortPair::parse(&text, Listening::Guest).ok();
    }
}
