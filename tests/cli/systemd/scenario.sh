# What happens to VMs on a host with systemd. Runs as a service of that host, as root.
export HOME=/root
nixbox=/run/bin/nixbox
units=/run/systemd/system

# The cgroups of the daemons of a user.
daemons() {
    for pid in $(pgrep -u "$1" -f 'bin/nixbox simulator'); do grep '^0::' "/proc/$pid/cgroup"; done
}

# A service runs `nixbox up` and ends.
mkdir /root/once /root/kept
(cd /root/once && $nixbox init --simulator)
cat > $units/once.service <<E
[Service]
Type=oneshot
Environment=HOME=/root
ExecStart=$nixbox -C /root/once up
E
systemctl start once.service
systemctl show --property ActiveState once.service > /run/test/once
daemons root >> /run/test/once
$nixbox -C /root/once run -- echo the guest answers >> /run/test/once
$nixbox -C /root/once doctor > /run/test/doctor
$nixbox -C /root/once down
systemctl list-units --all --no-legend 'nixbox*' > /run/test/units
systemctl --failed --no-legend >> /run/test/units

# A session ends, of a user who lingers and of a user who does not.
id=31000
for user in lingers leaves; do
    id=$((id + 1))
    useradd --create-home --uid $id $user
    test $user = leaves || loginctl enable-linger $user
    cat > /run/session <<E
cd && mkdir vm && cd vm && $nixbox init --simulator && $nixbox up
E
    # The session's scope and the user's manager are made by pam_systemd, as for a login.
    systemd-run --wait --pipe --quiet --uid $user -p PAMName=login -p WorkingDirectory=/home/$user -E HOME=/home/$user \
        /bin/sh -eux /run/session > /run/test/$user 2>&1
    daemons $user >> /run/test/$user
done

# The host shuts down while a VM runs that belongs to a service.
(cd /root/kept && $nixbox init --simulator)
cat > $units/kept.service <<E
[Service]
Type=oneshot
RemainAfterExit=yes
Environment=HOME=/root
ExecStart=$nixbox -C /root/kept up
ExecStop=/bin/sh -c '$nixbox -C /root/kept run -- echo the guest answers > /run/test/kept; $nixbox -C /root/kept down >> /run/test/kept 2>&1'
E
systemctl start kept.service
