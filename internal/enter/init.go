package enter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path"
)

// An Init is what the program does to become the init of a new container, in libcontainer's order; all paths but those of the
// container are those of the mount namespace in which it is started. What the rest of the plan says of credentials, limits, the
// filter and the command holds for init as for any other process; Namespaces and CgroupProcs are not for it.
type Init struct {
	// Join are the namespaces that others have made, in the order in which they are joined.
	Join []Join
	// New are those that the container gets for itself, as CLONE_NEW* flags. That of mounts is always among them.
	New uint32
	// Rootfs is the container's root filesystem. Propagation (MS_*) is that of all mounts before anything is mounted, slave if it
	// is 0, and then the root itself gets nothing of the node's mounts; RootPropagation, if it is not 0, that of the container's
	// root in the end.
	Rootfs                       string
	Propagation, RootPropagation uint32
	// Mounts are made in their order. One of them is /dev, with all devices in it and the container's alone: links are made there.
	Mounts []Mount
	// ReadonlyMounts are remounted when all else is mounted, with these flags (MS_*) and no others.
	ReadonlyMounts []Remount
	ReadonlyRoot   bool
	// ReadonlyPaths and MaskedPaths are those of the runtime spec. What is not there is left out.
	ReadonlyPaths, MaskedPaths []string
}

// A Join is a namespace by the path of its file and its kind, a CLONE_NEW* flag.
type Join struct {
	Path string
	Kind uint32
}

// A Mount is one mount of a container.
type Mount struct {
	// Target is its absolute path in the container. It is made if it is not there: a file for a tree that is none, else a folder.
	Target string
	// Tree is the path of what is mounted there, as a bind mount: with all that is mounted below if Recursive is set. If it is
	// empty, a file system is mounted, as mount(2) does with the four fields below.
	Tree      string
	Recursive bool

	Source, Type, Data string
	Flags              uint64
	// Attributes are set on the mount one after the other.
	Attributes []Attributes
}

// Attributes are the arguments of a mount_setattr(2).
type Attributes struct {
	Recursive               bool
	Set, Clear, Propagation uint64
}

// A Remount is a mount of the container by its path, and the flags (MS_*) that it gets.
type Remount struct {
	Path  string
	Flags uint32
}

// initHeader is struct init of enter.c.
type initHeader struct {
	Join, JoinLen, New, Flags              uint32
	Rootfs, Propagation, RootPropagation   uint32
	Mounts, MountsLen, Remounts, RemountsN uint32
	Readonly, ReadonlyLen                  uint32
	Masked, MaskedLen                      uint32
	_                                      uint32
}

// The bits of initHeader.Flags.
const readonlyRoot = 1

// The kinds of mounts in enter.c.
const (
	mountTree = iota
	mountAny
	mountStrict // on a folder that is reached through no link
)

// mountHeader is struct mount of enter.c.
type mountHeader struct {
	Kind, Recursive, Target, Tree uint32
	Source, Type, Data            uint32
	Attributes, AttributesLen     uint32
	_                             uint32
	Flags                         uint64
}

func (i *Init) check() error {
	if len(i.Rootfs) == 0 || i.Rootfs[0] != '/' {
		return fmt.Errorf("the root filesystem %q is not an absolute path", i.Rootfs)
	}
	devs := 0
	for _, m := range i.Mounts {
		target := path.Clean("/" + m.Target)
		switch {
		case target == "/":
			return errors.New("a mount on the root filesystem")
		case len(m.Tree) == 0 && len(m.Type) == 0:
			return fmt.Errorf("the mount at %q has neither a source nor a type", m.Target)
		}
		if target == "/dev" {
			devs++
		}
	}
	if devs != 1 { // the program makes links in it, which must not get into another's
		return fmt.Errorf("%d mounts at /dev, want one", devs)
	}
	for _, text := range i.texts() {
		if hasZero(text) {
			return fmt.Errorf("%q has a zero byte", text)
		}
	}
	return nil
}

// texts are all that are written into the plan.
func (i *Init) texts() []string {
	all := append([]string{i.Rootfs}, i.ReadonlyPaths...)
	all = append(all, i.MaskedPaths...)
	for _, j := range i.Join {
		all = append(all, j.Path)
	}
	for _, r := range i.ReadonlyMounts {
		all = append(all, r.Path)
	}
	for _, m := range i.Mounts {
		all = append(all, m.Target, m.Tree, m.Source, m.Type, m.Data)
	}
	return all
}

// init writes what enter.c reads as struct init, and returns its offset.
func (w *writer) init(i *Init) uint32 {
	h := initHeader{
		JoinLen: uint32(len(i.Join)), New: i.New, Propagation: i.Propagation, RootPropagation: i.RootPropagation,
		MountsLen: uint32(len(i.Mounts)), RemountsN: uint32(len(i.ReadonlyMounts)),
		ReadonlyLen: uint32(len(i.ReadonlyPaths)), MaskedLen: uint32(len(i.MaskedPaths)),
	}
	if i.ReadonlyRoot {
		h.Flags |= readonlyRoot
	}
	h.Rootfs = w.text(i.Rootfs)
	var pairs []uint32
	for _, j := range i.Join {
		pairs = append(pairs, w.text(j.Path), j.Kind)
	}
	h.Join = w.list32(pairs)
	pairs = nil
	for _, r := range i.ReadonlyMounts {
		pairs = append(pairs, w.text(r.Path), r.Flags)
	}
	h.Remounts = w.list32(pairs)
	h.Readonly = w.offsets(i.ReadonlyPaths)
	h.Masked = w.offsets(i.MaskedPaths)
	h.Mounts = w.mounts(i.Mounts)
	return w.value(h)
}

func (w *writer) mounts(mounts []Mount) uint32 {
	var list bytes.Buffer
	for _, m := range mounts {
		h := mountHeader{
			Kind: m.kind(), Target: w.text(path.Clean("/" + m.Target)), Tree: w.optional(m.Tree), Source: w.text(m.Source), Type: w.text(m.Type), Data: w.text(m.Data),
			Attributes: w.attributes(m.Attributes), AttributesLen: uint32(len(m.Attributes)), Flags: m.Flags,
		}
		if m.Recursive {
			h.Recursive = 1
		}
		_ = binary.Write(&list, binary.NativeEndian, h) // a buffer takes everything
	}
	return w.raw(list.Bytes())
}

func (m *Mount) kind() uint32 {
	switch {
	case m.Tree != "":
		return mountTree
	case m.Type == "proc", m.Type == "sysfs":
		return mountStrict
	default:
		return mountAny
	}
}

func (w *writer) attributes(all []Attributes) uint32 {
	var list bytes.Buffer
	for _, a := range all {
		const atRecursive = 0x8000
		value := [4]uint64{0, a.Set, a.Clear, a.Propagation}
		if a.Recursive {
			value[0] = atRecursive
		}
		_ = binary.Write(&list, binary.NativeEndian, value)
	}
	return w.raw(list.Bytes())
}

// value writes a struct of fixed size.
func (w *writer) value(v any) uint32 {
	var data bytes.Buffer
	_ = binary.Write(&data, binary.NativeEndian, v)
	return w.raw(data.Bytes())
}
