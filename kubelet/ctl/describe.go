package ctl

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// DescribeOptions are those of "berth describe".
type DescribeOptions struct {
	Scope
	NoEvents bool
	Out, Err io.Writer
}

// Describe prints objects with all that matters of them, as kubectl does.
func (c *Client) Describe(ctx context.Context, args []string, o DescribeOptions) error {
	targets, err := c.targets(ctx, args)
	if err != nil {
		return err
	}
	var failed []error
	first := true
	for _, t := range targets {
		objects, err := c.objects(ctx, t, o.Scope)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if len(objects) == 0 {
			fmt.Fprintf(o.Err, "No resources found in %s namespace.\n", o.Namespace)
		}
		for i := range objects {
			text, err := c.describe(ctx, t, &objects[i], o)
			if err != nil {
				failed = append(failed, err)
				continue
			}
			if !first {
				fmt.Fprint(o.Out, "\n\n")
			}
			first = false
			fmt.Fprint(o.Out, text)
		}
	}
	return Joined(o.Err, failed)
}

// objects are those that a target names: one, or all of its kind.
func (c *Client) objects(ctx context.Context, t target, s Scope) ([]unstructured.Unstructured, error) {
	var raw unstructured.Unstructured
	r := call{path: t.path(s), query: s.query()}
	if t.name != "" {
		r.query = nil
	}
	if err := c.get(ctx, r, &raw); err != nil {
		return nil, err
	}
	if !raw.IsList() {
		return []unstructured.Unstructured{raw}, nil
	}
	list, err := raw.ToList()
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

func (c *Client) describe(ctx context.Context, t target, object *unstructured.Unstructured, o DescribeOptions) (string, error) {
	var text bytes.Buffer
	d := &description{Writer: tabwriter.NewWriter(&text, 0, 8, 2, ' ', 0)}
	var err error
	switch t.kind.Kind {
	case "Pod":
		err = describeAs(object, d, (*description).pod)
	case "ConfigMap":
		err = describeAs(object, d, (*description).configMap)
	case "Secret":
		err = describeAs(object, d, (*description).secret)
	case "PersistentVolumeClaim":
		err = describeAs(object, d, (*description).claim)
	case "PersistentVolume":
		err = describeAs(object, d, (*description).persistentVolume)
	case "Node":
		err = describeAs(object, d, (*description).node)
	default:
		d.line(0, "Name:\t%s", object.GetName())
		d.labels("Labels", object.GetLabels())
		d.annotations(object.GetAnnotations())
	}
	if err != nil {
		return "", err
	}
	if !o.NoEvents && !slices.Contains([]string{"Secret", "Namespace", "Event"}, t.kind.Kind) {
		events, err := c.eventsOf(ctx, t.kind.Kind, object)
		if err != nil {
			return "", err
		}
		d.events(events)
	}
	err = d.Flush()
	return text.String(), err
}

func describeAs[T any](object *unstructured.Unstructured, d *description, with func(*description, *T)) error {
	var typed T
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &typed); err != nil {
		return err
	}
	with(d, &typed)
	return nil
}

func (c *Client) eventsOf(ctx context.Context, kind string, o *unstructured.Unstructured) ([]v1.Event, error) {
	fields := "involvedObject.kind=" + kind + ",involvedObject.name=" + o.GetName()
	s := Scope{AllNamespaces: o.GetNamespace() == "", Namespace: o.GetNamespace()}
	if uid := o.GetUID(); uid != "" {
		fields += ",involvedObject.uid=" + string(uid)
	}
	s.Fields = fields
	events, err := c.resource(ctx, "events")
	if err != nil {
		return nil, err
	}
	var list v1.EventList
	err = c.get(ctx, call{path: target{kind: events}.path(s), query: s.query()}, &list)
	slices.SortStableFunc(list.Items, func(a, b v1.Event) int { return a.LastTimestamp.Compare(b.LastTimestamp.Time) })
	return list.Items, err
}

// A description is what is printed, in kubectl's form: two blanks for each level, values in a column.
type description struct{ *tabwriter.Writer }

func (d *description) line(level int, format string, args ...any) {
	fmt.Fprintf(d, strings.Repeat("  ", level)+format+"\n", args...)
}

func none(s string) string { return cmp.Or(s, "<none>") }

func (d *description) labels(title string, all map[string]string) {
	d.pairs(title, all, "=")
}

func (d *description) annotations(all map[string]string) {
	shown := maps.Clone(all)
	delete(shown, v1.LastAppliedConfigAnnotation)
	d.pairs("Annotations", shown, ": ")
}

func (d *description) pairs(title string, all map[string]string, between string) {
	if len(all) == 0 {
		d.line(0, "%s:\t<none>", title)
		return
	}
	for i, key := range slices.Sorted(maps.Keys(all)) {
		head := ""
		if i == 0 {
			head = title + ":"
		}
		d.line(0, "%s\t%s%s%s", head, key, between, strings.ReplaceAll(strings.TrimSuffix(all[key], "\n"), "\n", "\n\t  "))
	}
}

func (d *description) events(all []v1.Event) {
	if len(all) == 0 {
		d.line(0, "Events:\t<none>")
		return
	}
	d.Flush() // the columns of what comes are others
	d.line(0, "Events:\n  Type\tReason\tAge\tFrom\tMessage")
	d.line(1, "----\t------\t----\t----\t-------")
	for i := range all {
		e := &all[i]
		message := strings.TrimSpace(e.Message)
		if e.InvolvedObject.FieldPath != "" {
			message = e.InvolvedObject.FieldPath + ": " + message
		}
		d.line(1, "%s\t%s\t%s\t%s\t%s", e.Type, e.Reason, seen(e), e.Source.Component, message)
	}
}

func (d *description) configMap(m *v1.ConfigMap) {
	d.line(0, "Name:\t%s", m.Name)
	d.line(0, "Namespace:\t%s", m.Namespace)
	d.labels("Labels", m.Labels)
	d.annotations(m.Annotations)
	d.line(0, "\nData\n====")
	for _, key := range slices.Sorted(maps.Keys(m.Data)) {
		d.line(0, "%s:\n----\n%s\n", key, m.Data[key])
	}
	d.line(0, "\nBinaryData\n====")
	for _, key := range slices.Sorted(maps.Keys(m.BinaryData)) {
		d.line(0, "%s: %d bytes", key, len(m.BinaryData[key]))
	}
	d.line(0, "")
}

func (d *description) secret(s *v1.Secret) {
	d.line(0, "Name:\t%s", s.Name)
	d.line(0, "Namespace:\t%s", s.Namespace)
	d.labels("Labels", s.Labels)
	d.annotations(s.Annotations)
	d.line(0, "\nType:\t%s\n\nData\n====", s.Type)
	for _, key := range slices.Sorted(maps.Keys(s.Data)) {
		d.line(0, "%s:\t%d bytes", key, len(s.Data[key]))
	}
}

func (d *description) claim(c *v1.PersistentVolumeClaim) {
	class, mode := "", ""
	if c.Spec.StorageClassName != nil {
		class = *c.Spec.StorageClassName
	}
	if c.Spec.VolumeMode != nil {
		mode = string(*c.Spec.VolumeMode)
	}
	capacity := c.Status.Capacity[v1.ResourceStorage]
	var modes []string
	for _, m := range c.Status.AccessModes {
		modes = append(modes, string(m))
	}
	d.line(0, "Name:\t%s", c.Name)
	d.line(0, "Namespace:\t%s", c.Namespace)
	d.line(0, "StorageClass:\t%s", class)
	d.line(0, "Status:\t%s", c.Status.Phase)
	d.line(0, "Volume:\t%s", c.Spec.VolumeName)
	d.labels("Labels", c.Labels)
	d.annotations(c.Annotations)
	d.line(0, "Capacity:\t%s", capacity.String())
	d.line(0, "Access Modes:\t%s", strings.Join(modes, ","))
	d.line(0, "VolumeMode:\t%s", mode)
}

func (d *description) persistentVolume(v *v1.PersistentVolume) {
	claim, mode := "", ""
	if r := v.Spec.ClaimRef; r != nil {
		claim = r.Namespace + "/" + r.Name
	}
	if v.Spec.VolumeMode != nil {
		mode = string(*v.Spec.VolumeMode)
	}
	capacity := v.Spec.Capacity[v1.ResourceStorage]
	short := map[v1.PersistentVolumeAccessMode]string{
		v1.ReadWriteOnce: "RWO", v1.ReadOnlyMany: "ROX", v1.ReadWriteMany: "RWX", v1.ReadWriteOncePod: "RWOP",
	}
	var modes []string
	for _, m := range v.Spec.AccessModes {
		modes = append(modes, short[m])
	}
	d.line(0, "Name:\t%s", v.Name)
	d.labels("Labels", v.Labels)
	d.annotations(v.Annotations)
	d.line(0, "Finalizers:\t%v", v.Finalizers)
	d.line(0, "StorageClass:\t%s", v.Spec.StorageClassName)
	d.line(0, "Status:\t%s", v.Status.Phase)
	d.line(0, "Claim:\t%s", claim)
	d.line(0, "Reclaim Policy:\t%s", v.Spec.PersistentVolumeReclaimPolicy)
	d.line(0, "Access Modes:\t%s", strings.Join(modes, ","))
	d.line(0, "VolumeMode:\t%s", mode)
	d.line(0, "Capacity:\t%s", capacity.String())
	d.volumeAffinity(v.Spec.NodeAffinity)
	d.line(0, "Message:\t%s", v.Status.Message)
	d.line(0, "Source:")
	if l := v.Spec.Local; l != nil {
		d.line(2, "Type:\tLocalVolume (a persistent volume backed by local storage on a node)")
		d.line(2, "Path:\t%s", l.Path)
		return
	}
	d.volume(&v1.VolumeSource{HostPath: v.Spec.HostPath, NFS: v.Spec.NFS})
}

func (d *description) volumeAffinity(a *v1.VolumeNodeAffinity) {
	if a == nil || a.Required == nil {
		d.line(0, "Node Affinity:\t<none>")
		return
	}
	d.line(0, "Node Affinity:\t")
	d.line(1, "Required Terms:\t")
	for i, term := range a.Required.NodeSelectorTerms {
		name := fmt.Sprintf("Term %d:", i)
		if len(term.MatchExpressions) == 0 {
			d.line(2, "%s\t<none>", name)
		}
		for _, e := range term.MatchExpressions {
			values := ""
			if len(e.Values) > 0 {
				values = " [" + strings.Join(e.Values, ", ") + "]"
			}
			d.line(2, "%s\t%s %s%s", name, e.Key, strings.ToLower(string(e.Operator)), values)
			name = ""
		}
	}
}

func (d *description) node(n *v1.Node) {
	d.line(0, "Name:\t%s", n.Name)
	d.labels("Labels", n.Labels)
	d.annotations(n.Annotations)
	d.line(0, "CreationTimestamp:\t%s", n.CreationTimestamp.Format(time.RFC1123Z))
	d.line(0, "Conditions:\n  Type\tStatus\tLastTransitionTime\tReason\tMessage")
	d.line(1, "----\t------\t------------------\t------\t-------")
	for _, c := range n.Status.Conditions {
		d.line(1, "%s \t%s \t%s \t%s \t%s", c.Type, c.Status, c.LastTransitionTime.Format(time.RFC1123Z), c.Reason, c.Message)
	}
	d.line(0, "Addresses:")
	for _, a := range n.Status.Addresses {
		d.line(1, "%s:\t%s", a.Type, a.Address)
	}
	for _, part := range []struct {
		title string
		list  v1.ResourceList
	}{{"Capacity", n.Status.Capacity}, {"Allocatable", n.Status.Allocatable}} {
		d.line(0, "%s:", part.title)
		for _, name := range slices.Sorted(maps.Keys(part.list)) {
			q := part.list[name]
			d.line(1, "%s:\t%s", name, q.String())
		}
	}
	info := &n.Status.NodeInfo
	d.line(0, "System Info:")
	d.line(1, "Machine ID:\t%s\n  Boot ID:\t%s\n  Kernel Version:\t%s\n  OS Image:\t%s\n  Operating System:\t%s\n  Architecture:\t%s\n  Container Runtime Version:\t%s\n  Kubelet Version:\t%s",
		info.MachineID, info.BootID, info.KernelVersion, info.OSImage, info.OperatingSystem, info.Architecture, info.ContainerRuntimeVersion, info.KubeletVersion)
}
