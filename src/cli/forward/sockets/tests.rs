use super::super::ports::GuestEnd;
use super::*;

#[tokio::test]
async fn the_file_of_a_socket_is_for_this_user_and_goes_with_its_listener() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let pair = PortPair { host: HostEnd::Socket(path.clone()), guest: GuestEnd::Port(1) };
    let listeners = bind_all(std::slice::from_ref(&pair)).await.unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let error = bind_all(std::slice::from_ref(&pair)).await.unwrap_err();
    assert!(matches!(error, PortError::Exists(_)) && path.exists(), "{error}");
    drop(listeners);
    assert!(!path.exists());
    // The socket that a killed process has left is replaced; another one is not.
    for (mode, is_replaced) in [(0o600, true), (0o666, false)] {
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(bind_all(std::slice::from_ref(&pair)).await.is_ok(), is_replaced, "{mode:o}");
        assert_ne!(path.exists(), is_replaced, "{mode:o}");
    }
    fs::remove_file(&path).unwrap();
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    bind_all(std::slice::from_ref(&pair)).await.unwrap_err();
    assert!(path.exists());
}

#[tokio::test]
async fn all_ports_are_bound_or_none() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let pairs = [free, taken.local_addr().unwrap()]
        .map(|host| PortPair { host: HostEnd::Address(host), guest: GuestEnd::Port(1) });
    let error = bind_all(&pairs).await.unwrap_err();
    assert!(matches!(error, PortError::Taken(address) if address == taken.local_addr().unwrap()), "{error}");
    assert_eq!(bind_all(&pairs[..1]).await.unwrap().len(), 1);
    let elsewhere = HostEnd::Address("192.0.2.1:9000".parse().unwrap());
    let elsewhere = PortPair { host: elsewhere, guest: GuestEnd::Port(1) };
    assert!(matches!(bind_all(&[elsewhere]).await.unwrap_err(), PortError::Listen { .. }));
}
