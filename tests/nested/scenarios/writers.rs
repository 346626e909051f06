//! A snapshot is what the guest was at the pause, however much is written to its RAM and its disk while it is made.

use crate::workspace::Workspace;

const ROUNDS: usize = 10;

/// Writers at full speed: into RAM, onto the disk, and by the daemon of a share, which writes what the guest reads there into
/// the guest's RAM. Each compares what it reads with a checksum that it keeps, and says what differs.
const WRITERS: &str = "
    head -c 400000 /dev/urandom > ~/share/large
    cat > /tmp/writer <<'END'
        while :; do
            head -c 400000 /dev/urandom > $1.next
            sum=$(md5sum < $1.next)
            cp $1.next $1
            [ \"$(md5sum < $1)\" = \"$sum\" ] || echo $1 >> /tmp/differs
            echo >> $1.rounds
        done
END
    cat > /tmp/reader <<'END'
        sum=$(md5sum < $1)
        while :; do
            cp $1 /tmp/read
            [ \"$(md5sum < /tmp/read)\" = \"$sum\" ] || echo $1 >> /tmp/differs
            echo >> /tmp/read.rounds
        done
END
    for place in /tmp/ram ~/disk; do sh /tmp/writer $place > /dev/null 2>&1 < /dev/null & done
    sh /tmp/reader ~/share/large > /dev/null 2>&1 < /dev/null &
    until [ -s /tmp/ram.rounds ] && [ -s ~/disk.rounds ] && [ -s /tmp/read.rounds ]; do sleep 0.1; done";

/// Waits until each writer has gone through two more rounds, and prints what differed.
const LOOK: &str = "
    for file in /tmp/ram.rounds ~/disk.rounds /tmp/read.rounds; do
        before=$(wc -l < $file)
        until [ $(wc -l < $file) -gt $((before + 2)) ]; do sleep 0.1; done
    done
    [ ! -e /tmp/differs ] || cat /tmp/differs";

pub(super) fn what_is_written_while_a_snapshot_is_made_is_in_it_as_it_was_at_the_pause() {
    let workspace = Workspace::new("writers");
    workspace.ok(&["up"]);
    workspace.guest(WRITERS);
    for round in 1..=ROUNDS {
        let name = format!("round-{round}");
        workspace.ok(&["snapshot", "--name", &name]);
        assert_eq!(workspace.guest(LOOK), "", "the guest that ran on, round {round}");
        workspace.ok(&["restore", &name, "--replace"]);
        assert_eq!(workspace.guest(LOOK), "", "the guest that came back, round {round}");
        workspace.ok(&["snapshot", "delete", &name]);
    }
    workspace.ok(&["down"]);
    workspace.assert_down();
}
