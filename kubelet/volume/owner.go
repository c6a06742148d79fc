package volume

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// giveToGroup gives all of a volume to the pod's fsGroup: the group may read it, and write it if anybody may, and what is
// made in it later is the group's too.
func giveToGroup(dir string, pod *v1.Pod, readOnly bool) error {
	sc := pod.Spec.SecurityContext
	if sc == nil || sc.FSGroup == nil {
		return nil
	}
	top, err := openDir(dir)
	if err != nil {
		return err
	}
	defer top.Close()
	o := owner{group: int(*sc.FSGroup), mask: 0o660}
	if readOnly {
		o.mask = 0o440
	}
	return errors.Join(walk(top, o.give), o.giveTop(top))
}

// owner is whom files are given to, and the rights that go with it.
type owner struct {
	group int
	mask  uint32
}

func (o owner) give(f entry) error {
	if err := unix.Fchownat(int(f.dir.Fd()), f.name, -1, o.group, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return f.failed("chown", err)
	}
	kind := f.stat.Mode & unix.S_IFMT
	if kind == unix.S_IFLNK { // its own mode means nothing, and chmod would follow it
		return nil
	}
	return f.chmod(o.modeOf(f.stat.Mode))
}

func (o owner) modeOf(mode uint32) uint32 {
	mask := o.mask
	if mode&unix.S_IFMT == unix.S_IFDIR {
		mask |= unix.S_ISGID | 0o110
	}
	return mode&^unix.S_IFMT | mask
}

func (o owner) giveTop(top *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(top.Fd()), &st); err != nil {
		return err
	}
	return errors.Join(unix.Fchown(int(top.Fd()), -1, o.group), unix.Fchmod(int(top.Fd()), o.modeOf(st.Mode)))
}

// mismatched says that the top of a volume does not show the group and the rights that all of it has been given to. For
// pods whose fsGroupChangePolicy is OnRootMismatch that is the sign; for all others every time is the first.
func mismatched(dir string, pod *v1.Pod) (bool, error) {
	sc := pod.Spec.SecurityContext
	if sc == nil || sc.FSGroup == nil {
		return false, nil
	}
	if p := sc.FSGroupChangePolicy; p == nil || *p != v1.FSGroupChangeOnRootMismatch {
		return true, nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return false, err
	}
	const need = unix.S_ISGID | 0o770
	return int64(st.Gid) != *sc.FSGroup || st.Mode&need != need, nil
}
