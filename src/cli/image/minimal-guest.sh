# Builds a small Linux for a VM out of this machine's Debian packages. `nixbox image make-minimal` runs it, with bash:
#
#   minimal-guest.sh DIRECTORY PUBLIC-KEY      writes DIRECTORY/vmlinuz and DIRECTORY/initramfs.gz
#
# The guest accepts the key in the file PUBLIC-KEY for logins as `root` and as `user` (uid 1000, `sudo` without a
# password). The guest gets its address by DHCP. If its disk, /dev/vda, has an ext4, the guest keeps its SSH host key
# and /home there for the next boot. Without a disk, the guest uses a host key that this script makes. The script does
# not need root.
set -euo pipefail
umask 022
PATH=$PATH:/usr/sbin:/sbin
target=$1 key=$2

need() { [ -e "$1" ] || { echo "$1 is missing: install the Debian package $2" >&2; exit 1; }; }
need /bin/busybox busybox-static
need /bin/bash bash
need /usr/sbin/dropbear dropbear-bin
need /usr/bin/sudo sudo
need /usr/bin/cpio cpio
need /sbin/modprobe kmod
need /lib/x86_64-linux-gnu/security/pam_permit.so libpam-modules
kernel=$(find /boot -name 'vmlinuz-*-cloud-amd64' | sort -V | tail -n 1)
need "${kernel:-/boot/vmlinuz-*-cloud-amd64}" linux-image-cloud-amd64
release=${kernel#/boot/vmlinuz-}
mkdir -p "$target"
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT

mkdir -p "$tree"/{bin,dev,etc/dropbear,etc/pam.d,etc/sudoers.d,etc/udhcpc,home/user,lib/modules,mnt,proc,root,run,sys,tmp}
mkdir -p "$tree"/usr/{bin,sbin,libexec,share} "$tree"/{var/empty,var/log,var/run}
chmod 755 "$tree"
chmod 1777 "$tree/tmp"
cp /bin/busybox "$tree/bin/"
for applet in $(/bin/busybox --list); do [ -e "$tree/bin/$applet" ] || ln -s busybox "$tree/bin/$applet"; done

# The programs that busybox does not have, with the libraries that they load.
with_libraries() {
    local file library
    for file; do
        mkdir -p "$tree$(dirname "$file")"
        cp -L --preserve=mode "$file" "$tree$file"
        for library in $(ldd "$file" | grep -o '/[^ ]*'); do
            [ -e "$tree$library" ] || { mkdir -p "$tree$(dirname "$library")"; cp -L "$library" "$tree$library"; }
        done
    done
}
libraries=/lib/x86_64-linux-gnu
with_libraries /usr/sbin/dropbear /usr/bin/dropbearkey /usr/bin/sudo /bin/bash /usr/libexec/sudo/sudoers.so "$libraries/security/pam_permit.so"
[ ! -e "$libraries/libnss_files.so.2" ] || with_libraries "$libraries/libnss_files.so.2"
chmod 4755 "$tree/usr/bin/sudo"
echo 'user ALL=(ALL) NOPASSWD: ALL' > "$tree/etc/sudoers"
chmod 440 "$tree/etc/sudoers"
for kind in auth account session; do echo "$kind required pam_permit.so"; done > "$tree/etc/pam.d/sudo"

n=10
for name in virtio_pci virtio_net virtio_blk virtiofs virtio_rng virtio_balloon; do
    for module in $(modprobe --show-depends -S "$release" "$name" 2> /dev/null | awk '$1 == "insmod" {print $2}'); do
        ls "$tree"/lib/modules/*-"${module##*/}" > /dev/null 2>&1 || cp "$module" "$tree/lib/modules/$((n++))-${module##*/}"
    done
done

printf 'root::0:0:root:/root:/bin/sh\nuser::1000:1000:user:/home/user:/bin/sh\n' > "$tree/etc/passwd"
printf 'root:x:0:\nuser:x:1000:\n' > "$tree/etc/group"
echo /bin/sh > "$tree/etc/shells"
printf 'passwd: files\nhosts: files dns\n' > "$tree/etc/nsswitch.conf"
echo '127.0.0.1 localhost guest' > "$tree/etc/hosts"
for home in root home/user; do
    mkdir -p "$tree/$home/.ssh"
    cp "$key" "$tree/$home/.ssh/authorized_keys"
    chmod 700 "$tree/$home" "$tree/$home/.ssh"
    chmod 600 "$tree/$home/.ssh/authorized_keys"
done
dropbearkey -t ed25519 -f "$tree/etc/dropbear/hostkey" > /dev/null 2>&1

cat > "$tree/etc/udhcpc/script" <<'SCRIPT'
#!/bin/sh
case $1 in
bound | renew)
    ip addr flush dev "$interface"
    ip addr add "$ip/$mask" dev "$interface"
    for gateway in $router; do ip route replace default via "$gateway" dev "$interface"; done
    for server in $dns; do echo "nameserver $server"; done > /etc/resolv.conf
    ;;
esac
SCRIPT
cat > "$tree/etc/inittab" <<'INITTAB'
::sysinit:/etc/start
::respawn:/usr/sbin/dropbear -r /etc/dropbear/hostkey -E -F
::shutdown:/bin/umount -a -r
INITTAB
cat > "$tree/etc/start" <<'START'
#!/bin/sh
for m in /lib/modules/*; do insmod "$m" 2> /dev/null; done
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
if [ -b /dev/vda ] && mkdir -p /disk && mount -t ext4 /dev/vda /disk; then
    if [ ! -d /disk/home ]; then
        cp -a /home /disk/new
        sync
        mv /disk/new /disk/home
    fi
    # Renamed when it is whole: a guest that is killed in its first boot has the same host key in its second, or none.
    if [ ! -s /disk/hostkey ]; then
        rm -f /disk/hostkey.new
        dropbearkey -t ed25519 -f /disk/hostkey.new > /dev/null 2>&1
        sync
        mv /disk/hostkey.new /disk/hostkey
    fi
    mount -o bind /disk/home /home
    cp /disk/hostkey /etc/dropbear/hostkey
    sync
fi
ip link set lo up
ip link set eth0 up
udhcpc -q -n -t 20 -T 1 -i eth0 -s /etc/udhcpc/script > /run/udhcpc.log 2>&1
hostname guest
# What lives in RAM alone: a restored guest still has it, a rebooted one has not.
od -An -N16 -tx1 /dev/urandom | tr -d ' \n' > /run/nonce
echo "GUEST-READY $(cut -d' ' -f1 /proc/uptime)" > /dev/console
START
cat > "$tree/init" <<'INIT'
#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec /bin/init
INIT
chmod +x "$tree"/{init,etc/start,etc/udhcpc/script}

cp "$kernel" "$target/vmlinuz"
# The initramfs is two archives in one file: everything belongs to root except the user's home.
cd "$tree"
{
    find . -path ./home/user -prune -o -print | cpio -o -H newc -R 0:0 --quiet
    find ./home/user | cpio -o -H newc -R 1000:1000 --quiet
} | gzip -1 > "$target/initramfs.gz.new"
mv "$target/initramfs.gz.new" "$target/initramfs.gz"
