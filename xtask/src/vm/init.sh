#!/bin/busybox sh
# The first process of a test machine. Jobs follow; their output goes to the serial port that the
# kernel's command line names, the second where there are two: its own messages are on the first.
/bin/busybox mkdir -p /dev /proc /sys /run /tmp /sbin /usr/sbin /usr/bin /var/run
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
rm -r /var/run && ln -s /run /var/run
exec </dev/null >"/dev/$jobs" 2>&1
ip link set lo up
# Not loaded automatically: it makes the device that others open.
modprobe -q tun

# NAME SECONDS COMMAND...
job() {
    name=$1 limit=$2
    shift 2
    echo "@job $name"
    timeout "$limit" "$@"
    echo "@exit $name $?"
}

