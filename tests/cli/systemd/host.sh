# Runs systemd as the init of a host of its own, made of namespaces and of an overlay over this system, which stays as it is.
# $1: a directory for the host. $2: the program nixbox. $3: the scenario. Exits with 77 if there can be no such host.
# The scenario writes what it finds to /run/test, which is $1/found afterwards, and turns the host off.
set -eu
for hierarchy in /sys/fs/cgroup/unified /sys/fs/cgroup; do
    test ! -f "$hierarchy/cgroup.procs" || break
done
cgroup=$hierarchy/nixbox-test-$$
mkdir "$cgroup" && echo $$ > "$cgroup/cgroup.procs" || exit 77
trap 'echo $$ > "$hierarchy/cgroup.procs"; find "$cgroup" -depth -type d -exec rmdir {} +' EXIT
unshare --fork --kill-child --pid --mount --cgroup --uts --ipc --net --propagation private sh -euc '
    fail() { echo "$1" >&2; exit 77; }
    mkdir "$1/found" "$1/host"
    mount -t tmpfs none "$1/host" || fail "mounts"
    cd "$1/host"
    mkdir upper work root
    mount -t overlay -o "lowerdir=/,upperdir=upper,workdir=work" none root || fail "an overlay over /"
    mount -t proc none root/proc
    mount -t sysfs -o ro none root/sys || fail "a sysfs of its own"
    mount -t cgroup2 none root/sys/fs/cgroup || fail "version 2 of cgroups"
    mount -t tmpfs -o mode=755 none root/run
    mount -t tmpfs none root/tmp
    mount -t tmpfs -o mode=755 none root/dev
    for device in null zero full random urandom tty; do
        touch "root/dev/$device"
        mount --bind "/dev/$device" "root/dev/$device"
    done
    mkdir root/dev/shm root/dev/pts root/run/test root/run/former
    mount -t tmpfs none root/dev/shm
    ln -s /proc/self/fd root/dev/fd
    mount --bind "$1/found" root/run/test
    mkdir -p root/run/systemd/system root/run/systemd/logind.conf.d root/run/bin
    printf "[Login]\nKillUserProcesses=no\n" > root/run/systemd/logind.conf.d/test.conf
    cp "$2" root/run/bin/nixbox
    cat > root/run/systemd/system/scenario.service <<E
[Unit]
After=basic.target dbus.socket
Wants=dbus.socket
[Service]
Type=oneshot
ExecStart=/bin/sh -c "exec /bin/sh -eux /run/scenario > /run/test/log 2>&1"
ExecStopPost=/usr/bin/systemctl poweroff --no-block
E
    cp "$3" root/run/scenario
    cd root
    pivot_root . run/former
    umount -l /run/former
    exec env -i container=nixbox-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        "$(command -v /usr/lib/systemd/systemd || echo /lib/systemd/systemd)" --system --unit=scenario.service < /dev/null
' sh "$@"
