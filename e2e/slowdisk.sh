#!/usr/bin/env bash
# slowdisk.sh WRITES COMMAND... runs a command whose temporary files are on a disk that takes
# so many writes a second; a sync is two. Linux, root.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
writes=$1
shift

work=$(mktemp -d)
group= loop=
clean() {
  [ -z "$group" ] || { echo $$ >"$parent/cgroup.procs"; rmdir "$group"; } || true
  umount "$work/disk" 2>/dev/null || true
  [ -z "$loop" ] || losetup -d "$loop"
  rm -r "$work"
}
trap clean EXIT

truncate -s 4G "$work/image"
mkfs.ext4 -q "$work/image"
loop=$(losetup -f --show "$work/image")
mkdir "$work/disk"
mount "$loop" "$work/disk"

device=$(cat "/sys/class/block/${loop##*/}/dev")
parent=/sys/fs/cgroup
[ ! -d $parent/blkio ] || parent=$parent/blkio
group=$parent/storelay-slow-disk
mkdir "$group"
if [ "$parent" = /sys/fs/cgroup ]; then # cgroup v2
  grep -qw io $parent/cgroup.subtree_control || echo +io >$parent/cgroup.subtree_control
  echo "$device wiops=$writes" >"$group/io.max"
else
  echo "$device $writes" >"$group/blkio.throttle.write_iops_device"
fi
echo $$ >"$group/cgroup.procs"

TMPDIR=$work/disk GOTMPDIR= "$@"
