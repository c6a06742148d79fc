package resource

import (
	"path"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-node/berth/cgroups"
)

// Tree says where the cgroups of pods are.
type Tree struct {
	// Root is the cgroup, as a path of names, below which kubepods is; "" and "/" are the root of all.
	Root string
	// Driver decides about the names: folders of cgroupfs, or slices of systemd.
	Driver cgroups.Driver
}

const podPrefix = "pod"

// Node is the cgroup of all pods.
func (t Tree) Node() string { return t.path() }

// Class is the cgroup of all pods of a class. Guaranteed pods are right below that of the node.
func (t Tree) Class(class v1.PodQOSClass) string {
	return t.path(classNames(class)...)
}

// Pod is the pod's cgroup, and the parent of its containers'.
func (t Tree) Pod(uid types.UID, class v1.PodQOSClass) string {
	return t.path(append(classNames(class), podPrefix+string(uid))...)
}

func classNames(class v1.PodQOSClass) []string {
	if class == v1.PodQOSGuaranteed {
		return nil
	}
	return []string{strings.ToLower(string(class))}
}

// path joins names below kubepods. systemd's slices have their parents' names in their own, divided by dashes, so a dash
// within a name becomes an underscore.
func (t Tree) path(names ...string) string {
	all := append(strings.FieldsFunc(t.Root, func(r rune) bool { return r == '/' }), "kubepods")
	all = append(all, names...)
	if t.Driver != cgroups.Systemd {
		return "/" + path.Join(all...)
	}
	full, name := "", ""
	for _, n := range all {
		name += "-" + strings.ReplaceAll(strings.TrimSuffix(n, ".slice"), "-", "_")
		full += "/" + name[1:] + ".slice"
	}
	return full
}

// uidOf is the pod whose cgroup has the name, a folder's in that of a class.
func (t Tree) uidOf(name string) (types.UID, bool) {
	if t.Driver == cgroups.Systemd {
		var slice bool
		if name, slice = strings.CutSuffix(name, ".slice"); !slice {
			return "", false
		}
		name = strings.ReplaceAll(name[strings.LastIndexByte(name, '-')+1:], "_", "-")
	}
	uid, ok := strings.CutPrefix(name, podPrefix)
	return types.UID(uid), ok && uid != ""
}
