package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/runtime"
)

var diskMetrics = []metric{
	{
		name: "container_fs_inodes_free", help: "Number of available Inodes", kind: gauge, extra: []string{"device"},
		values: fromDisk(func(d *disk) uint64 { return d.inodesFree }),
	}, {
		name: "container_fs_inodes_total", help: "Number of Inodes", kind: gauge, extra: []string{"device"},
		values: fromDisk(func(d *disk) uint64 { return d.inodes }),
	}, {
		name: "container_fs_limit_bytes", help: "Number of bytes that can be consumed by the container on this filesystem.", kind: gauge,
		extra:  []string{"device"},
		values: fromDisk(func(d *disk) uint64 { return d.bytes }),
	}, {
		name: "container_fs_usage_bytes", help: "Number of bytes that are consumed by the container on this filesystem.", kind: gauge,
		extra:  []string{"device"},
		values: fromDisk(func(d *disk) uint64 { return d.used }),
	},
	traffic("container_fs_reads_bytes_total", "Cumulative count of bytes read",
		func(d cgroups.IOStats) uint64 { return d.Bytes["Read"] }),
	traffic("container_fs_reads_total", "Cumulative count of reads completed",
		func(d cgroups.IOStats) uint64 { return d.Ops["Read"] }),
	traffic("container_fs_writes_bytes_total", "Cumulative count of bytes written",
		func(d cgroups.IOStats) uint64 { return d.Bytes["Write"] }),
	traffic("container_fs_writes_total", "Cumulative count of writes completed",
		func(d cgroups.IOStats) uint64 { return d.Ops["Write"] }),
	{
		name: "container_blkio_device_usage_total", help: "Blkio Device bytes usage", kind: counter,
		extra:  []string{"device", "major", "minor", "operation"},
		values: blkio,
	},
}

func traffic(name, help string, read func(cgroups.IOStats) uint64) metric {
	return metric{
		name: name, help: help, kind: counter, extra: []string{"device"},
		values: func(s *sample) []value {
			if s.stats == nil {
				return nil
			}
			var out []value
			for _, d := range s.stats.IO {
				out = append(out, value{n: read(d), labels: []string{s.device(d.Major, d.Minor)}})
			}
			return out
		},
	}
}

func blkio(s *sample) []value {
	if s.stats == nil {
		return nil
	}
	var out []value
	for _, d := range s.stats.IO {
		operations := make([]string, 0, len(d.Bytes))
		for op := range d.Bytes {
			operations = append(operations, op)
		}
		slices.Sort(operations)
		for _, op := range operations {
			out = append(out, value{n: d.Bytes[op], labels: []string{
				s.device(d.Major, d.Minor), strconv.FormatUint(d.Major, 10), strconv.FormatUint(d.Minor, 10), op,
			}})
		}
	}
	return out
}

func fromDisk(read func(*disk) uint64) func(*sample) []value {
	return func(s *sample) []value {
		if s.disk == nil {
			return nil
		}
		return []value{{n: read(s.disk), labels: []string{s.disk.device}}}
	}
}

// disk is the file system that a writable layer is on, and what the layer takes of it.
type disk struct {
	device                          string
	bytes, inodes, inodesFree, used uint64
}

// disks remembers, for one answer, what all containers share.
type disks struct {
	devices map[string]string // major:minor → name
	mounts  map[string]string // directory → what is mounted there
}

func newDisks() *disks { return &disks{devices: map[string]string{}, mounts: map[string]string{}} }

// of returns nil if the file system cannot be looked at; the layer may be gone by now.
func (d *disks) of(u runtime.FsUsage) *disk {
	var fs unix.Statfs_t
	if u.Mountpoint == "" || unix.Statfs(u.Mountpoint, &fs) != nil {
		return nil
	}
	return &disk{
		device:     d.source(u.Mountpoint),
		bytes:      fs.Blocks * uint64(fs.Bsize),
		inodes:     fs.Files,
		inodesFree: fs.Ffree,
		used:       u.Bytes,
	}
}

// source is what is mounted at or above dir: a device, or what else the file system was mounted from. Folders beside each
// other count as one mount, which those of containers are, so that a long list of mounts is read once.
func (d *disks) source(dir string) string {
	parent := filepath.Dir(dir)
	if name, ok := d.mounts[parent]; ok {
		return name
	}
	above, err := mountinfo.GetMounts(mountinfo.ParentsFilter(dir))
	if err != nil || len(above) == 0 {
		return ""
	}
	// The longest path is the nearest mount; of several at one place the last hides the others.
	nearest := above[0]
	for _, m := range above[1:] {
		if len(m.Mountpoint) >= len(nearest.Mountpoint) {
			nearest = m
		}
	}
	d.mounts[parent] = nearest.Source
	return nearest.Source
}

// device names a block device as cAdvisor does, "/dev/vda", and by its numbers if it has gone.
func (d *disks) device(major, minor uint64) string {
	numbers := fmt.Sprintf("%d:%d", major, minor)
	if name, ok := d.devices[numbers]; ok {
		return name
	}
	name := numbers
	if link, err := os.Readlink("/sys/dev/block/" + numbers); err == nil {
		name = "/dev/" + filepath.Base(link)
	}
	d.devices[numbers] = name
	return name
}
