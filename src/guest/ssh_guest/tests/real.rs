//! A guest in a real VM, if the environment names one.

use super::*;
use crate::files::shared_paths::SharedPaths;

/// `NIXBOX_TEST_GUEST` is the address of a VM with the virtiofs device `share`, and `NIXBOX_TEST_GUEST_KEY` the key of
/// its root. Without them the test does nothing.
#[tokio::test]
async fn a_real_guest_is_settled_equipped_and_wiped() {
    let Ok(at) = std::env::var("NIXBOX_TEST_GUEST") else {
        return;
    };
    let key = Arc::new(
        key::load(Path::new(&std::env::var("NIXBOX_TEST_GUEST_KEY").unwrap()), &SharedPaths::default())
            .unwrap(),
    );
    let directory = tempfile::tempdir().unwrap();
    let secret = token();
    let wanted =
        Wanted { environment: environment(&secret), key: Some(Arc::clone(&key)), ..Wanted::default() };
    let base =
        settings((at.parse::<std::net::IpAddr>().unwrap(), 22).into(), "root", key, directory.path(), wanted);
    let credentials = base.wanted.resolve(&|_| ()).await.unwrap();
    assert!(credentials[0].content.expose().len() > secret.len());
    let mounts = vec![share("share", "~/my share", true)];
    let guest = SshGuest::new(
        GuestSettings { mounts, ..base },
        Arc::new(StateOnlyVmm(Mutex::new(VmmState::Running))),
    );
    let machine = machine();
    let boot = guest.ready(&machine).await.unwrap();
    let shell = guest.connect(&machine, &Interrupt::new()).await.unwrap();
    let run = async |script: &str| shell.script("test", Rights::Root, script, &[], LIMIT).await;
    for skew in ["- 27", "+ 3600", "+ 0"] {
        run(&format!("date -s @$(( $(date +%s) {skew} ))")).await.unwrap();
        let begun = std::time::Instant::now();
        let clock_offset = settle::settle(&shell).await.unwrap();
        println!("settled from {skew} s: {clock_offset:?} in {:?}", begun.elapsed());
    }
    guest.settle(&machine).await.unwrap();

    guest.inject(&machine).await.unwrap();
    guest.mount(&machine).await.unwrap();
    guest.mount(&machine).await.unwrap();
    assert_eq!(
        guest.equipped(&machine).await.unwrap(),
        Equipment { credentials: Presence::Whole, mounts: Presence::Whole }
    );
    assert_eq!(
        run("grep -c virtiofs /proc/mounts; touch '/root/my share/x' 2>/dev/null || echo readonly")
            .await
            .unwrap(),
        "1\nreadonly\n"
    );

    // A file on a share belongs to the host, so nixbox neither writes nor wipes it, even if a link in the guest leads
    // to it.
    run("mount -o remount,rw '/root/my share'; echo kept > '/root/my share/kept'; ln -s '/root/my share' /root/link").await.unwrap();
    let through = [path("~/link/kept")];
    let error = backup::measure(&shell, &[], &through).await.unwrap_err();
    assert!(!wipe::wipe(&shell, &[], &through, None).await.unwrap());
    assert!(error.to_string().contains("share"), "{error}");
    assert_eq!(run("cat /root/link/kept").await.unwrap(), "kept\n");
    let base = Wanted { files: vec![rule("x", "~/link/new", None)], ..Wanted::default() };
    let credentials = base.resolve(&|_| ()).await.unwrap();
    let survey = inject::survey(&shell, &credentials, &[]).await.unwrap();
    let error = inject::inject(&shell, &survey, &credentials, &[]).await.unwrap_err();
    assert!(error.to_string().contains("share"), "{error}");
    run("rm /root/link").await.unwrap();

    let holder = shell.session.start(b"cd '/root/my share'; exec sleep 1000").await.unwrap();
    let error = loop {
        match guest.unmount(&machine).await {
            Err(error) => break error.to_string(),
            Ok(()) => guest.mount(&machine).await.unwrap(),
        }
    };
    assert!(error.contains("(sleep)") || error.contains("(sh)"), "{error}");
    println!("{error}");
    run("for p in /proc/[0-9]*; do case $(cat $p/comm) in sleep) [ \"$(readlink $p/cwd)\" != '/root/my share' ] || kill ${p#/proc/} ;; esac; done; true").await.unwrap();
    drop(holder);
    while guest.unmount(&machine).await.is_err() {}
    guest.unmount(&machine).await.unwrap();
    let backup = guest.back_up(&machine).await.unwrap();
    assert!(guest.wipe(&machine, backup.as_ref()).await.unwrap());
    assert_eq!(
        guest.equipped(&machine).await.unwrap(),
        Equipment { credentials: Presence::Absent, mounts: Presence::Absent }
    );
    assert_eq!(guest.ready(&machine).await.unwrap(), boot);
    println!("secret {secret}");
    guest.shut_down(&machine).await.unwrap();
}
