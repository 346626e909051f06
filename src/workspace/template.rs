//! The files that `init` writes.

/// The configuration. A commented line shows the default, or an example where there is no default. It has every key: a
/// test compares it with the list of keys.
pub const CONFIG: &str = r#"# What `nixbox up` boots. `nixbox config` shows it with every default filled in.
# Relative paths are relative to the directory that holds .nixbox; ~ is your home.

# name = "dev"                      # default: the directory's name
# vmm = "cloud-hypervisor"          # "simulator": no VM at all, to see nixbox work where there is no KVM

[vm]
# vcpus = 2                         # 0 or absent: half of the host's
# memory = "4GiB"                   # absent: half of the host's, at least 4GiB where the host has it
kernel = "image/vmlinuz"            # bzImage or vmlinux
# initramfs = "image/initramfs.gz"
# cmdline = "console=ttyS0 quiet"
# backing = "auto"                  # guest RAM: auto (tmpfs if there is room, else vmm) | tmpfs | disk | vmm

# [[disks]]
# image = "image/root.img"          # template (raw), never written; cloned for the VM
# size = "64GiB"                    # grown to this; without an image: an empty ext4

# [[mounts]]                        # this one is there when none is given; `mounts = []` for none
# source = "."
# target = "~/workspace"
# readonly = false
# protect = [".git/hooks", ".git/config"] # read-only in the guest: on the host, git runs what these name

# [network]
# mode = "open"                     # off | filtered | open
# domains = ["github.com"]          # filtered: these and what is below them
# ports = [80, 443]
# host-networks = ["192.168.1.0/24"] # private networks (LAN, VPN) that the guest may reach; absent: none
# uplink = "203.0.113.0/24"         # addresses between VM and host that nothing else on this host uses

# [guest]
# user = "user"
# uid = 1000                        # the number of that user; absent: what the guest said last
# gid = 1000                        # the number of its group; absent: likewise, or as uid
# ssh-key = "~/.ssh/vm_key"         # private key that the image lets in; absent: the one that `init` made
# require-entropy = true            # false: a restored guest that refuses fresh entropy runs on without it
# ready-timeout = "110s"            # how long a guest may take to answer SSH (s, min, h), and up to three times as long
#                                   # while it writes to its console; then its VM is shut down

# [guest.scripts]                   # run in the guest as its user with [env], within 10 min; one that fails is told
# after-up = ["docker compose up -d"] # after a boot; after a crash of nixbox these run again
# after-restore = ["sudo systemctl restart chrony"] # likewise
# before-snapshot = ["sync"]        # before the wipe; the guest that runs on is not told of the end

# [env]                             # kept out of every snapshot
# GITHUB_TOKEN = { from-env = "GITHUB_TOKEN" }
# NPM_TOKEN = { file = "~/.config/npm-token" }
# API_KEY = { command = ["op", "read", "op://dev/api/key"] }
# EDITOR = "vi"

# [credentials]                     # kept out of every snapshot
# files = [{ source = "~/.aws/credentials", target = "~/.aws/credentials" }]
# wipe = ["~/.config/gh/hosts.yml"] # kept out though nixbox did not put it there, as histories and what
#                                   # `docker login` keeps always are; a guest that runs on gets it back
# overwrite = ["~/.env"]            # replaced by a credential though nixbox did not write it; else it is refused
# outbound-key = false              # true: the guest gets the key that `init` made as ~/.ssh/id_ed25519

# [hooks]                           # run on the host in the workspace
# pre-up = []                      # the credentials are read before these run
# post-up = ["echo up"]
# pre-down = []
# post-down = []

# [snapshot]
# keep = 5                          # prune the oldest unnamed ones; absent: keep all
# keep-for = "14d"                  # prune unnamed ones that are older (s, min, h, d); absent: keep all
# keep-size = "50GiB"               # prune the oldest unnamed ones while all occupy more; absent: keep all
# keep-disks = 1                    # disks of earlier sessions kept when a snapshot's disk takes their place
# on-leak = "redact"                # a credential found in a snapshot is overwritten there; "fail": no snapshot is made
"#;

/// Keeps everything out of version control except itself and the configuration.
pub(super) const GITIGNORE: &str = "*\n!.gitignore\n!config.toml\n";
